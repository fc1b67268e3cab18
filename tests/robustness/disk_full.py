"""Let the disk be full at every point of commands that write, and see whether anything is lost.

    python tests/robustness/disk_full.py [--points 60] [--case spectrum ...]

At a chosen call that needs space, and at all that follow, there is none left; of a write that is
cut short, half is written. The command must end with one sentence and exit status 1, what was
finished must be there, and with space again the run that completes it must end with the same files
as one that nothing disturbed.
"""

from __future__ import annotations

import argparse
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from cases import CASES
from figures import tell


def sentence(done, code=1):
    """What is wrong with how a run told of its end.

    Args:
        done: Its outcome.
        code: Exit status that it should have.

    Returns:
        Sentences.
    """
    said = done.err.strip().splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    wrong = [] if done.code == code else [f"exit status {done.code}, not {code}: {said[-3:]}"]
    if len(errors) != 1:
        wrong.append(f"{len(errors)} errors are told: {done.err[-2000:]}")
    if "Traceback" in done.err or re.search(r"^\s*File \"", done.err, re.MULTILINE):
        wrong.append(f"a traceback: {done.err[-2000:]}")
    return wrong


def check(program, undisturbed, at):
    """Run a case on a disk that becomes full, and complete it when there is space again.

    Args:
        program: The server.
        undisturbed: The case without a fault.
        at: Point from which on there is no space.

    Returns:
        Whether it failed for that, and sentences on what is wrong.
    """
    folder = undisturbed.fresh()
    done = program.run(undisturbed.case.words.split(), folder, "full", at)
    failed = done.code != 0
    wrong = sentence(done) if failed else []
    if failed and not re.search("No space left on device", done.err):
        wrong.append(f"it doesn't say that the disk is full: {done.err}")
    if drafts := list(folder.rglob("*.part")):
        wrong.append(f"left behind: {[draft.name for draft in drafts]}")
    wrong += undisturbed.faults_of(folder, done.told)
    again = program.run(undisturbed.case.completion, folder)
    return failed, wrong + undisturbed.faults_after(folder, again)


def sweep(program, undisturbed, points):
    """Let the disk be full at many points.

    Args:
        program: The server.
        undisturbed: The case without a fault.
        points: How many, spread over all that there are.

    Yields:
        The point, whether the run failed, and what is wrong.
    """
    for at in np.unique(np.linspace(1, undisturbed.points, points).astype(int)):
        yield f"full at {at}", *check(program, undisturbed, int(at))


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--points", type=int, default=60, help="of each case")
    arguments.add_argument("--case", nargs="*", default=list(CASES))
    chosen = arguments.parse_args()
    return tell(chosen.case, partial(sweep, points=chosen.points), "runs failed")


if __name__ == "__main__":
    sys.exit(main())
