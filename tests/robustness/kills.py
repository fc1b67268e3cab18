"""Kill commands that write, at many points, and see whether anything is lost.

    python tests/robustness/kills.py [--kills 60] [--timed 15] [--real 2] [--case spectrum ...]

Each case is killed before, or in the middle of, a call by which it changes a file; at random times;
and, as a process of its own, at random times. What was finished must be there, and the run that
completes it must end with the same files as one that nothing disturbed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from cases import CASES
from figures import tell


def strikes(points, count):
    """Points to kill at, spread over all, alternately before and amid them.

    Args:
        points: How many there are.
        count: How many to take; with twice as many as there are, each is struck in both ways.

    Yields:
        The way and the number.
    """
    for place in np.unique(np.linspace(0, 2 * points - 1, min(count, 2 * points)).astype(int)):
        yield ("kill before", "kill amid")[place % 2], int(place // 2) + 1


def check(program, undisturbed, **fault):
    """Kill a run, and complete it.

    Args:
        program: The server.
        undisturbed: The case without a fault.
        fault: Of ``Program.run``.

    Returns:
        Whether it was killed before it ended, and sentences on what is wrong.
    """
    folder = undisturbed.fresh()
    done = program.run(undisturbed.case.words.split(), folder, **fault)
    killed = done.code == -signal.SIGKILL
    if not killed and done.code != 0:
        return killed, [f"it ended with {done.code}: {done.err}"]
    wrong = undisturbed.faults_of(folder, done.told)
    again = program.run(undisturbed.case.completion, folder)
    return killed, wrong + undisturbed.faults_after(folder, again)


def check_real(program, undisturbed, share):
    """The same with a process of its own, killed after a share of the time that it takes."""
    folder = undisturbed.fresh()
    command = [Path(sys.executable).parent / "hessrmt", *undisturbed.case.words.split()]
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **single, "XDG_CACHE_HOME": str(folder / "cache")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(share * (undisturbed.seconds + 4.0))  # imports take about that
    process.kill()
    process.wait()
    killed = process.returncode == -signal.SIGKILL
    wrong = undisturbed.faults_of(folder, 0)
    again = program.run(undisturbed.case.completion, folder)
    return killed, wrong + undisturbed.faults_after(folder, again)


def sweep(program, undisturbed, kills, timed, real, seed=0):
    """Kill a case in every way.

    Args:
        program: The server.
        undisturbed: The case without a fault.
        kills: Points to kill at.
        timed: Random times to kill at.
        real: Of them, with a process of its own.
        seed: Of the times.

    Yields:
        What was done, whether it was killed by it, and what is wrong then.
    """
    draw = np.random.default_rng(seed)
    for mode, at in strikes(undisturbed.points, kills):
        yield f"{mode} {at}", *check(program, undisturbed, mode=mode, at=at)
    for share in draw.uniform(size=timed):
        after = float(share) * undisturbed.seconds
        yield f"after {after:.2f} s", *check(program, undisturbed, after=after)
    for share in draw.uniform(size=real):
        yield f"a process of its own, {share:.2f}", *check_real(program, undisturbed, float(share))


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--kills", type=int, default=60, help="points of each case")
    arguments.add_argument("--timed", type=int, default=15, help="random times of each case")
    arguments.add_argument("--real", type=int, default=2, help="processes of each case")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--case", nargs="*", default=list(CASES))
    chosen = arguments.parse_args()
    counts = {name: getattr(chosen, name) for name in ("kills", "timed", "real", "seed")}
    return tell(chosen.case, partial(sweep, **counts), "kills")


if __name__ == "__main__":
    sys.exit(main())
