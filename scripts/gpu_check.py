"""What can be learnt of a GPU in seven minutes: are the kernels right on it, and how fast.

    PYTHONPATH=. python scripts/gpu_check.py

Runs from a source tree; beside torch and CuPy it needs numpy, scipy, h5py, typer and rich. Every
step is a process with a time limit of its own, and the record is written anew after each, so that
one that hangs or crashes costs only itself and a run that is cut off leaves what it has. Steps that
need more (pytest, compute-sanitizer, ...) say what is missing.

The record is DIR/gpu_check-<device>-<time>.json, by default in benchmarks/results. Exit code 0 if
no step failed, 1 if one did, 2 without a GPU, 3 if time ran out before all were run. ``--stand-in``
goes through the same steps at small sizes without a GPU: kernels run on the CPU, and nothing is
said about speed.

This process imports neither torch nor CuPy: scripts/gpu_steps.py does.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import importlib.util
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
Entry = dict[str, Any]


class Step(NamedTuple):
    """One process.

    Attributes:
        name: Of the step, known to scripts/gpu_steps.py too.
        limit: Seconds it may take.
        needs: Python packages and programs without which it is skipped.
    """

    name: str
    limit: float
    needs: tuple[str, ...] = ()


_TESTS = ("pytest", "hypothesis", "pydantic", "jaxtyping", "pooch", "safetensors")
STEPS = (
    Step("versions", 60),
    Step("compile", 90),
    Step("symmetrize", 30),
    Step("goe", 30),
    Step("power-law scan", 30),
    Step("small batches", 40),
    Step("sturm", 30),
    Step("panel", 40),
    Step("bulge chase", 60),
    Step("banded", 30),
    Step("two-stage", 60),
    Step("stacks", 45),
    Step("n = 20,060", 90),
    Step("n = 10,000", 45),
    Step("n = 5,000", 30),
    Step("tuning", 60),
    Step("batches", 75),
    Step("spectrum", 75),
    Step("simulate, levels, capacity", 60),
    Step("memcheck", 75, ("compute-sanitizer",)),
    Step("racecheck", 75, ("compute-sanitizer",)),
    Step("parity tests", 120, _TESTS),
    Step("n = 40,000", 60),
)
PASSED, FAILED, SKIPPED, NOT_RUN = "passed", "failed", "skipped", "not run"
LEAST = 5.0
"""Seconds under which a step is not begun."""
PLANTED = 2.0
"""Seconds that a step is given which was told to hang."""


# One step


class Process:
    """A step's process: its imports go on while the step before runs, then it waits for the word.

    Python, torch and CuPy take seconds to load, which a GPU would idle through a dozen times.
    """

    def __init__(self, step: Step, folder: Path, options: argparse.Namespace) -> None:
        self.step = step
        stem = re.sub(r"\W+", "-", step.name)
        self.record, self._log = folder / f"{stem}.json", folder / f"{stem}.log"
        command = [sys.executable, str(Path(__file__).with_name("gpu_steps.py")), step.name]
        command += ["--record", str(self.record), "--folder", str(folder)]
        command += ["--stand-in"] if options.stand_in else []
        if step.name in options.plant:
            command += ["--plant", options.plant[step.name]]
        places = [str(folder / "wheels"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, places)),
            "CUPY_CACHE_DIR": str(folder / "cupy"),
            "PYTHONUNBUFFERED": "1",
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )

    def run(self, limit: float) -> Entry:
        """Give the word and wait.

        Args:
            limit: Seconds.

        Returns:
            Status, seconds, entries, and what went wrong if anything did.
        """
        start = time.monotonic()
        try:
            self._process.communicate(b"go\n", timeout=limit)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        self.stop()
        found = {"name": self.step.name, "limit": limit, "seconds": time.monotonic() - start}
        try:
            found |= json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found |= {"status": None, "entries": []}
        code = self._process.returncode
        if not ended:
            found |= {"status": "timed out", "error": f"stopped after {limit:.0f} s"}
        elif found["status"] not in {PASSED, FAILED, SKIPPED}:
            found |= {"status": "crashed", "error": f"exit code {code}"}
        if found["status"] not in {PASSED, SKIPPED}:
            said = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
            found["tail"] = said[-30:]
        return found

    def stop(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def missing(step: Step, wheels: Path) -> str:
    """What a step needs and this machine lacks.

    Args:
        step: The step.
        wheels: Folder of packages that travelled along.

    Returns:
        A name; empty if it can run.
    """
    from importlib.machinery import PathFinder

    for name in step.needs:
        if not (PathFinder.find_spec(name, [str(wheels), *sys.path]) or shutil.which(name)):
            return name
    return ""


# The record


def write(path: Path, result: Entry) -> None:
    """Replace the record; a reader sees the old one or the new one.

    Args:
        path: Its file.
        result: What it says.
    """
    draft = path.with_suffix(".draft")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


OURS = ("two-stage", "one block", "batched two-stage")
PEERS = ("torch", "cupy", "XsyevBatched")
WINS = 1.3
"""Times faster than the best peer a solver of ours must be to be taken."""


def conclusions(steps: list[Entry]) -> Entry:
    """What the timings say.

    Args:
        steps: Of the record.

    Returns:
        For each race each solver of ours and the fastest of the peers; the thresholds of
        hessrmt/backend/solvers.py for float64: the smallest n from which the two-stage solver beats
        the best peer at every larger size timed (``TWO_STAGE_FROM``), the same of stacks
        (``BATCHED_FROM``), and the largest n of one block per matrix that beats the best peer for
        it and all smaller ones (``SMALL_LIMIT``), None where no size is won; the versions of
        cuSOLVER, the peer.
    """
    entries = [entry for step in steps for entry in step["entries"]]
    races: dict[str, dict[str, float]] = {}
    sizes: dict[str, int] = {}
    for entry in entries:
        if "race" in entry and entry.get("median"):
            races.setdefault(entry["race"], {})[entry["route"]] = entry["median"]
            sizes[entry["race"]] = entry["n"]
    rows, wins = [], {name: {} for name in OURS}
    for race, median in races.items():
        peers = [name for name in PEERS if name in median]
        for ours in (name for name in OURS if name in median and peers):
            peer = min(peers, key=median.__getitem__)
            faster = median[peer] / median[ours]
            rows.append({"race": race, "ours": ours, "peer": peer, "times faster": faster})
            wins[ours][sizes[race]] = faster >= WINS
    return {
        "races": rows,
        "TWO_STAGE_FROM": _unbroken(wins["two-stage"], downwards=True),
        "BATCHED_FROM": _unbroken(wins["batched two-stage"], downwards=True),
        "SMALL_LIMIT": _unbroken(wins["one block"], downwards=False),
        "cuSOLVER": next((e["cuSOLVER"] for e in entries if "cuSOLVER" in e), None),
    }


def _unbroken(wins: dict[int, bool], *, downwards: bool) -> int | str | None:
    """The last of the sizes won without a gap, from the largest down or from the smallest up."""
    if not wins:
        return "not measured"
    won = list(itertools.takewhile(wins.__getitem__, sorted(wins, reverse=downwards)))
    return won[-1] if won else None


def device_name(options: argparse.Namespace) -> str | None:
    """The first GPU's name, asked of the driver's own program, or else of torch.

    Args:
        options: The command line.

    Returns:
        A name; None if there is no GPU.
    """
    if options.stand_in:
        return "stand-in"
    driver = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    torch = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name(0))"]
    for command in (driver, torch):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        names = done.stdout.strip().splitlines()
        if done.returncode == 0 and names:
            return names[0].strip()
    return None


def without_cuda() -> str:
    """Version of a torch that is built without CUDA, read without importing it.

    Returns:
        Empty if it has CUDA, or can't be read.
    """
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return ""
    text = Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
    if re.search(r"^cuda\b.*= *None$", text, re.MULTILINE) is None:
        return ""
    return metadata.version("torch")


def line(step: Entry) -> str:
    """A step in one line of the terminal.

    Args:
        step: Of the record.

    Returns:
        Status, name, seconds, and what went wrong.
    """
    checks = [entry for entry in step["entries"] if "agrees" in entry]
    wrong = [entry["what"] for entry in checks if not entry["agrees"]]
    about = f"{len(checks)} checks" if checks else ""
    if wrong:
        about += f", {len(wrong)} differ: {wrong[0]}"
    reason = step.get("error") or ""
    words = "; ".join(filter(None, (about, reason.strip().splitlines()[-1] if reason else "")))
    return f"{step['status']:<10} {step['name']:<15} {step['seconds']:6.1f} s  {words}"


def check(device: str, options: argparse.Namespace, folder: Path) -> int:
    """Run the steps.

    Args:
        device: Its name.
        options: The command line.
        folder: For the steps' own files.

    Returns:
        The exit code.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    created = dt.datetime.now(dt.UTC)
    path = options.out / f"gpu_check-{slug}-{created:%Y%m%dT%H%M%S}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    for wheel in sorted(options.wheels.glob("*.whl")) if options.wheels else ():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "wheels")
    start = time.monotonic()
    result: Entry = {
        "schema": "hessrmt/gpu-check",
        "device": device,
        "stand_in": options.stand_in,
        "created": created.isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "command": shlex.join(sys.argv),
        "complete": False,
        "steps": [],
    }
    chosen = [s for s in STEPS if not options.only or s.name in options.only]
    lacking = {step: missing(step, folder / "wheels") for step in chosen}
    waiting = [step for step in chosen if not lacking[step]]
    processes: dict[Step, Process] = {}
    over = f"the {options.seconds:.0f} s are over"

    def begin(step: Step) -> Process:
        if step not in processes:
            processes[step] = Process(step, folder, options)
        return processes[step]

    try:
        for step in chosen:
            left = options.seconds - (time.monotonic() - start)
            if lacking[step]:
                reason = f"skipped: {lacking[step]} is missing"
                done = {"status": SKIPPED, "seconds": 0.0, "error": reason, "entries": []}
                done = {"name": step.name, **done}
            elif left < LEAST:
                done = {"status": NOT_RUN, "seconds": 0.0, "error": over, "entries": []}
                done = {"name": step.name, **done}
            else:
                process = begin(step)
                place = waiting.index(step) + 1
                if place < len(waiting) and left > step.limit / 2:
                    begin(waiting[place])
                limit = PLANTED if options.plant.get(step.name) == "hang" else step.limit
                done = process.run(min(limit, left))
                if done["status"] == "timed out" and left < limit:
                    done |= {"status": NOT_RUN, "error": f"cut: {over}"}
            result["steps"].append(done)
            result["seconds"] = time.monotonic() - start
            result["conclusions"] = {} if options.stand_in else conclusions(result["steps"])
            write(path, result)
            print(line(done), flush=True)
    finally:
        for process in processes.values():
            process.stop()
    result["complete"] = True
    write(path, result)
    return concluded(result, path)


def concluded(result: Entry, path: Path) -> int:
    """Print what was found.

    Args:
        result: The record.
        path: Its file.

    Returns:
        The exit code.
    """
    for name, found in result["conclusions"].items():
        for row in found if isinstance(found, list) else [found]:
            print(f"{name}: {row}")
    print(f"written: {path}")
    statuses = [step["status"] for step in result["steps"]]
    counts = {name: statuses.count(name) for name in dict.fromkeys(statuses)}
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    found = set(statuses)
    if found - {PASSED, SKIPPED, NOT_RUN}:
        return 1
    return 3 if NOT_RUN in found else 0


def planted(word: str) -> tuple[str, str]:
    """``STEP=hang`` or ``STEP=crash``.

    Args:
        word: From the command line.

    Returns:
        The step's name and what it does.

    Raises:
        argparse.ArgumentTypeError: If it is neither.
    """
    name, _, fault = word.rpartition("=")
    if name not in {step.name for step in STEPS} or fault not in {"hang", "crash"}:
        raise argparse.ArgumentTypeError(f"{word!r}: give STEP=hang or STEP=crash")
    return name, fault


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line.

    Args:
        arguments: Without the program's name; None takes the process's own.

    Returns:
        Options.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    add = parser.add_argument
    names = [step.name for step in STEPS]
    results = ROOT / "benchmarks" / "results"
    add("--out", type=Path, default=results, help="folder of the record (benchmarks/results)")
    add("--seconds", type=float, default=430, help="for everything (430)")
    add(
        "--only",
        nargs="+",
        metavar="STEP",
        choices=names,
        help=f"some of: {', '.join(map(repr, names))}",
    )
    add("--stand-in", action="store_true", help="without a GPU: kernels run on the CPU, small")
    add("--wheels", type=Path, help="folder with wheels of packages that the machine lacks")
    add("--plant", type=planted, action="append", default=[], metavar="STEP=hang|crash",
        help="make a step fail: a test of this program")  # fmt: skip
    options = parser.parse_args(arguments)
    options.plant = dict(options.plant)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run all steps.

    Args:
        arguments: Command line without the program's name; None takes the process's own.

    Returns:
        The exit code.
    """
    options = parse(arguments)
    device = device_name(options)
    if device is None:
        print("error: nvidia-smi and torch find no GPU (--stand-in needs none)", file=sys.stderr)
        return 2
    if not options.stand_in and (version := without_cuda()):
        said = f"{device} is there, but torch {version} is built without CUDA; install a CUDA build"
        print(f"error: {said}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all processes are ended
    cuda = [str(place) for place in Path("/usr/local").glob("cuda*/bin")]  # compute-sanitizer
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), *cuda])
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as folder:
        return check(device, options, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
