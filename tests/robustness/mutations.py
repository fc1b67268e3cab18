"""Damage files of every kind, and see what the readers make of them.

    python tests/robustness/mutations.py [--flips 400] [--mutants 150] [--kind spectra.h5 ...]

A process apart reads each damaged file; it may hang, crash or take memory: that is what is looked
for. A file that carries checksums is right if it is refused, or read with the same numbers, or with
rows that are named and left out.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from kind_files import CHECKED, READERS, write_all

LIMIT = 30.0
"""Seconds that a reader may take on a busy machine; on an idle one all end within a few."""

ROOM = 1 << 30
"""Bytes that a reader may take beside what it has; more if the file has more."""

GOOD = ("refused", "equal", "rows left out", "read")


def flipped(whole, draw):
    """One bit is another."""
    raw = bytearray(whole)
    raw[draw.integers(len(raw))] ^= 1 << draw.integers(8)
    return bytes(raw)


def zeroed(whole, start, size):
    """A block of a disk is lost."""
    return whole[:start] + bytes(len(whole[start : start + size])) + whole[start + size :]


def mutant(whole, draw):
    """Something else is wrong: bits, blocks, lengths, pieces that were moved or repeated."""
    kind, place = draw.integers(8), int(draw.integers(len(whole)))
    size = int(min(draw.choice([1, 4, 8, 64, 512]), len(whole) - place))
    other = int(draw.integers(len(whole)))
    raw = bytearray(whole)
    if kind == 0:
        return whole[:place]
    if kind == 1:
        return whole + draw.bytes(size)
    if kind == 2:
        raw[place : place + size] = draw.bytes(size)
    elif kind == 3:
        raw[place : place + size] = b"\xff" * size
    elif kind == 4:
        raw[place : place + size] = whole[other : other + size]
    elif kind == 5:
        del raw[place : place + size]
    elif kind == 6:
        raw[place:place] = whole[other : other + size]
    else:
        for _ in range(draw.integers(2, 20)):
            raw = bytearray(flipped(bytes(raw), draw))
    return bytes(raw)


def same(one, other):
    """Whether two readings are equal, with names of what isn't."""
    differing = [name for name in {**one, **other} if not _equal(one.get(name), other.get(name))]
    return not differing, differing


def _equal(one, other):
    if isinstance(one, dict) and isinstance(other, dict):
        return same(one, other)[0]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(
            one, other, equal_nan=one.dtype.kind == "f"
        )
    return type(one) is type(other) and (one == other or (one != one and other != other))


def read(kind, path, expected):
    """What becomes of one file."""
    from hessrmt.errors import HessrmtError, HessrmtWarning

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = READERS[kind](path)
        except HessrmtError as error:
            return "refused" if str(error).strip() else "refused without a word", str(error)
        except Exception as error:
            return f"TRACEBACK {type(error).__name__}", str(error)
    if kind not in CHECKED:
        return "read", ""
    equal, differing = same(expected, found)
    if equal:
        return "equal", ""
    told = any(issubclass(one.category, HessrmtWarning) for one in said)
    rows = [name for name in expected if name.startswith("row ")]
    left = {name: value for name, value in found.items() if name.startswith("row ")}
    fewer = len(left) < len(rows) and all(_same_row(left[n], expected.get(n)) for n in left)
    others = [name for name in differing if not name.startswith("row ")]
    if told and fewer and not others:
        return "rows left out", ""
    return "CHANGED", ", ".join(differing)[:200]


def _same_row(one, other):
    return other is not None and same(one, other)[0]


def _serve(pipe):
    read(*pipe.recv())  # a whole file first, so that what is imported late is there
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    while (asked := pipe.recv()) is not None:
        outcome = read(*asked)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pipe.send((*outcome, peak))


class Reader:
    """A process that reads files, replaced where it hangs or dies."""

    def __init__(self, folder):
        self.process, self.folder = None, folder

    def outcome(self, kind, path, expected):
        if self.process is None:
            self._start(kind, expected)
        self.pipe.send((kind, path, expected))
        if not self.pipe.poll(LIMIT):
            self._stop()
            return "HANG", ""
        try:
            outcome, words, peak = self.pipe.recv()
        except EOFError:
            self._stop()
            return "CRASH", ""
        grown = (peak - self.peak) * 1024
        self.peak = max(self.peak, peak)
        if grown > max(ROOM, 3 * path.stat().st_size):
            return f"MEMORY {grown >> 20} MiB", words
        return outcome, words

    def _start(self, kind, expected):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.send((kind, self.folder / kind, expected))
        self.peak = self.pipe.recv()

    def _stop(self):
        self.process.kill()
        self.process.join()
        self.process = None

    def close(self):
        if self.process is not None:
            self._stop()


def damaged(whole, flips, mutants, seed, zeros=True, step=1):
    """Names and contents of damaged files."""
    draw = np.random.default_rng(seed)
    for number in range(flips):
        yield f"flip {number}", flipped(whole, draw)
    for size in (64, 512) if zeros else ():
        for start in range(0, len(whole), size * step):
            yield f"zeroed {size} at {start}", zeroed(whole, start, size)
    for number in range(mutants):
        yield f"mutant {number}", mutant(whole, draw)


def sweep(folder, kind, files, reader):
    """Outcome of every damaged file of a kind, counted; and those that are wrong."""
    expected = READERS[kind](folder / kind)
    counts, wrong = collections.Counter(), []
    place = folder / "damaged"
    place.mkdir(exist_ok=True)
    for number, (name, content) in enumerate(files):
        path = place / f"{number}-{kind}"
        path.write_bytes(content)
        outcome, words = reader.outcome(kind, path, expected)
        counts[name.split()[0], outcome.split()[0] if outcome not in GOOD else outcome] += 1
        if outcome not in GOOD:
            wrong.append((name, outcome, words))
        path.unlink()
    return counts, wrong


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--flips", type=int, default=400)
    arguments.add_argument("--mutants", type=int, default=150, help="of each kind of file")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument(
        "--step", type=int, default=1, help="of the zeroed blocks, every so many"
    )
    arguments.add_argument("--kind", nargs="*", default=list(READERS))
    chosen = arguments.parse_args()
    folder = Path(tempfile.mkdtemp())
    reader, worst = Reader(folder), 0
    try:
        write_all(folder)
        for kind in chosen.kind:
            whole, start = (folder / kind).read_bytes(), time.monotonic()
            files = damaged(whole, chosen.flips, chosen.mutants, chosen.seed, step=chosen.step)
            counts, wrong = sweep(folder, kind, files, reader)
            shown = ", ".join(f"{a} {b} {n}" for (a, b), n in sorted(counts.items()))
            print(f"{kind} ({len(whole):,} bytes, {time.monotonic() - start:.0f} s): {shown}")
            for line in wrong[:20]:
                print("   ", *line)
            sys.stdout.flush()
            worst += len(wrong)
    finally:
        reader.close()
        shutil.rmtree(folder)
    return worst > 0


if __name__ == "__main__":
    sys.exit(main())
