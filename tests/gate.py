"""The real command line, stopped at a chosen call of a function until a test lets it go on.

    python gate.py FOLDER MODULE:FUNCTION N WORDS OF THE COMMAND ...

Before the N-th call of the function the command makes the file FOLDER/stopped and waits for
FOLDER/go. Which call that is does not depend on how busy the machine is, as a pause would.
"""

import sys
import time
from importlib import import_module
from pathlib import Path

PATIENCE = 600
"""Seconds after which something hangs: nothing that a test waits for takes a tenth of it."""


def wait_for(condition, process=None):
    """Wait until a condition holds; fails if a process ends before, or if it never does.

    Args:
        condition: Called without arguments.
        process: From ``subprocess.Popen``, with standard error in a pipe, or None.
    """
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process is None or process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "what the test waits for does not come"
        time.sleep(0.01)


def program(folder, function, number):
    """The words that start this file as a program."""
    return sys.executable, __file__, folder, function, number


def wait(folder, process):
    """Until the command has stopped."""
    wait_for((folder / "stopped").exists, process)


def open_gate(folder):
    """Let the command go on."""
    (folder / "go").touch()


def stop_before(folder, function, number):
    """In the process of the command: replace a function by one that waits at its n-th call."""
    module, _, names = function.partition(":")
    owner = import_module(module)
    *inside, name = names.split(".")
    for one in inside:
        owner = getattr(owner, one)
    original, calls = getattr(owner, name), 0

    def waits(*args, **options):
        nonlocal calls
        calls += 1
        if calls == number:
            (folder / "stopped").touch()
            wait_for((folder / "go").exists)
        return original(*args, **options)

    setattr(owner, name, waits)


if __name__ == "__main__":
    import hessrmt.cli.app as app  # before torch: it tells MKL to repeat itself

    folder, function, number, *words = sys.argv[1:]
    sys.argv = ["hessrmt", *words]
    stop_before(Path(folder), function, int(number))
    app.main()
