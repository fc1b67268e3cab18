"""Let memory run out at many points of the commands that compute, and see what they say and keep.

    python tests/robustness/memory.py [--points 12] [--case spectrum ...]

An allocation of numpy's or torch's fails, as where there is no memory; or an operation of torch
raises what the CPU's or CUDA's allocator raises. The command must end with one sentence that says
what to change, and exit status 1; or, where another way needs less memory, with the right result.
What was finished must be there, and the run that completes it must end with the same files.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from disk_full import sentence
from figures import tell

COMPUTING = ("spectrum", "spectrum of blocks", "train", "density", "simulate", "levels", "capacity")

WAYS = ("cpu", "cuda", "python")
"""Errors that are raised at operations of torch."""

LEAST = 1024
"""Bytes of an allocation that may fail; numpy itself doesn't expect it of its small ones."""


def check(program, undisturbed, **fault):
    """Let memory run out in a run, and complete it when there is some again.

    Args:
        program: The server.
        undisturbed: The case without a fault.
        fault: Of ``Program.run``.

    Returns:
        Whether it failed for that, and sentences on what is wrong.
    """
    folder = undisturbed.fresh()
    done = program.run(undisturbed.case.words.split(), folder, **fault)
    failed, wrong = done.code != 0, []
    if failed and "cannot read" in done.err:  # of a file: large numbers in it may be damage
        wrong += sentence(done, 2)
    elif failed:
        wrong += sentence(done)
        if "memory" not in done.err or not any(w in done.err for w in ("take", "try")):
            wrong.append(f"it doesn't say what to change: {done.err}")
    wrong += undisturbed.faults_of(folder, done.told)
    again = program.run(undisturbed.case.completion, folder) if failed else done
    wrong += undisturbed.faults_after(folder, again)
    # where torch's operations are watched, the last bits are others: rows are compared with such
    return failed, [line for line in wrong if not ("raised" in fault and "in the end" in line)]


def sweep(program, undisturbed, points):
    """Let memory run out at many points.

    Args:
        program: The server.
        undisturbed: The case without a fault.
        points: How many allocations, and how many operations for each kind of error.

    Yields:
        What was done, whether the run failed, and what is wrong.
    """
    words = undisturbed.case.words.split()
    never = {"at": 10**9}
    count = program.run(words, undisturbed.fresh(), "no memory", least=LEAST, **never).allocations
    for at in places(count, points):
        fault = {"mode": "no memory", "at": at, "least": LEAST}
        yield f"allocation {at} of {count}", *check(program, undisturbed, **fault)
    folder = undisturbed.fresh()
    count = program.run(words, folder, raised="cpu", **never).allocations
    undisturbed.rows = undisturbed.finished(folder)
    for raised in WAYS:
        for at in places(count, points):
            fault = {"raised": raised, "at": at}
            yield f"{raised} at {at} of {count}", *check(program, undisturbed, **fault)


def places(count, points):
    """Numbers from 1, spread evenly on a logarithmic scale: most of what differs comes first."""
    return np.unique(np.geomspace(1, count, points).astype(int)).tolist() if count else []


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--points", type=int, default=12, help="of each kind and case")
    arguments.add_argument("--case", nargs="*", default=list(COMPUTING))
    chosen = arguments.parse_args()
    return tell(chosen.case, partial(sweep, points=chosen.points), "runs failed")


if __name__ == "__main__":
    sys.exit(main())
