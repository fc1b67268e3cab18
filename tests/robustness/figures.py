"""The figures of a program that strikes commands at many points."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from cases import CASES, WARM, Undisturbed, write_inputs
from faults import POSSIBLE, Program


def tell(names, sweep, struck):
    """Strike some cases, and print what came of it.

    Args:
        names: Of the cases.
        sweep: Of a program and an undisturbed case: yields what was done, whether it struck, and
            what is wrong then.
        struck: What the number of those that struck is called.

    Returns:
        Exit status: 1 if anything was wrong.
    """
    if not POSSIBLE:
        sys.exit("this needs Linux and a C compiler")
    worst = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        with Program(WARM, write_inputs(folder / "warm")) as program:
            for number, name in enumerate(names):
                begun, tried, count, wrong = time.monotonic(), 0, 0, []
                undisturbed = Undisturbed(program, folder / str(number), CASES[name])
                for what, did, faults in sweep(program, undisturbed):
                    tried, count = tried + 1, count + did
                    wrong += [f"{what}: {fault}" for fault in faults]
                print(
                    f"{name}: {tried} points, {count} {struck}, {len(wrong)} faults "
                    f"({time.monotonic() - begun:.0f} s)"
                )
                for line in wrong[:20]:
                    print("   ", line)
                sys.stdout.flush()
                worst += len(wrong)
    return int(worst > 0)
