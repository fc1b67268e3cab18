"""Runs of the command line that something goes wrong with: killed, out of disk space, or of memory.

A server process imports everything, and forks for each run: that takes tenths of a second. faults.c
is loaded before the C library there, counts what a run does to its files, and strikes at a chosen
point. So every point can be tried, and which one it is doesn't depend on how busy the machine is.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_suffix(".c")
MODES = ("count", "kill before", "kill amid", "full", "no memory")
COMPILER = shutil.which("gcc") or shutil.which("cc")
POSSIBLE = sys.platform == "linux" and COMPILER is not None
"""Whether faults can be made here at all: the library is for Linux."""

PATIENCE = 60
"""Seconds after which a run that takes less than one hangs."""


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
        code: Exit status; negative, the signal that ended it.
        out: Standard output.
        err: Standard error.
        points: How often it changed a file.
        allocations: How often torch or numpy asked for much memory.
        told: Rows, or versions of a file, of which the writer said that they are on disk.
        seconds: That it took.
    """

    code: int
    out: str
    err: str
    points: int
    allocations: int
    told: int
    seconds: float


class _State(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("points", "allocations", "told")]


def _build(folder):
    library = Path(folder) / "faults.so"
    options = ["-shared", "-fPIC", "-O2", "-Wall", "-Werror"]
    subprocess.run([COMPILER, *options, "-o", library, SOURCE, "-ldl"], check=True)
    return library


class Program:
    """The command line with faults; a context manager.

    Args:
        warm: Commands that the server runs first in a folder, so that what they import is there.
        folder: That one.
    """

    def __init__(self, warm, folder):
        self._temporary = tempfile.TemporaryDirectory()
        library = _build(self._temporary.name)
        single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        single |= {"MKL_CBWR": "AUTO", "CUDA_VISIBLE_DEVICES": "", "LD_PRELOAD": str(library)}
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps([list(map(list, warm)), str(folder)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **single, "HESSRMT_LIBRARY_OF_FAULTS": str(library)},
        )
        self._process.stdout.readline()

    def run(self, words, folder, mode="count", at=0, *, after=None, raised="", least=1024, many=1):
        """Run a command.

        Args:
            words: Of the command.
            folder: Where; faults strike only below it.
            mode: One of ``MODES``.
            at: Number of the point, or of the allocation, that is struck, from 1.
            after: Seconds after which the run is killed; None for never.
            raised: Name of an error of torch or Python that is raised at the operation of that
                number, in place of a fault.
            least: Bytes of an allocation that counts.
            many: Allocations that fail.

        Returns:
            How it ended.
        """
        asked = {"words": list(map(str, words)), "folder": str(Path(folder).resolve())}
        asked |= {"mode": MODES.index(mode), "at": at, "after": after, "raised": raised}
        asked |= {"least": least, "many": many}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the server of faults has died"
        return Outcome(**json.loads(line))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._temporary.cleanup()


# The server


def _serve(warm, folder):
    faults = ctypes.CDLL(os.environ["HESSRMT_LIBRARY_OF_FAULTS"])
    faults.faults_state.restype = ctypes.POINTER(_State)
    answers = os.fdopen(os.dup(1), "w")
    os.environ.pop("LD_PRELOAD")  # not for what a run starts
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    _warm(warm, folder)
    _count_what_is_told(faults)
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(_one(faults, json.loads(line))) + "\n")
        answers.flush()


def _warm(commands, folder):
    here = os.getcwd()
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
    for words in commands:
        code = _main(words)
        assert code == 0, (words, code)
    os.chdir(here)


def _main(words):
    from hessrmt.cli.app import main

    sys.argv = ["hessrmt", *words]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _count_what_is_told(faults):
    """Let the writers of files tell what they say is on disk."""
    from hessrmt.runs.training import TrainingFile
    from hessrmt.store.density import DensityWriter
    from hessrmt.store.writing import SpectrumWriter

    def counting(kind, name, count):
        plain = getattr(kind, name)

        def counted(self, *arguments, **options):
            found = plain(self, *arguments, **options)
            faults.faults_told(ctypes.c_long(count(*arguments)))
            return found

        setattr(kind, name, counted)

    counting(SpectrumWriter, "write_all", lambda rows, *_: len(rows))
    counting(TrainingFile, "save", lambda *_: 1)
    counting(DensityWriter, "write", lambda *_: 1)


def _one(faults, asked):
    begun, folder = time.monotonic(), Path(asked["folder"])
    files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
    state = faults.faults_state().contents
    state.points = state.allocations = state.told = 0
    child = os.fork()
    if child == 0:
        _child(faults, asked, folder, files)
    limit = begun + (PATIENCE if asked["after"] is None else asked["after"])
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() >= limit:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.002)
    seconds = time.monotonic() - begun
    said = []
    for file in files:
        file.seek(0)
        said.append(file.read().decode(errors="replace"))
        file.close()
    if asked["after"] is None and seconds > PATIENCE:
        said[1] += "HANG"
    numbers = {name: getattr(state, name) for name, _ in _State._fields_}
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "out": said[0], "err": said[1], "seconds": seconds, **numbers}


def _child(faults, asked, folder, files):
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, file in enumerate(files, 1):
            os.dup2(file.fileno(), descriptor)
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        numbers = [ctypes.c_long(asked[name]) for name in ("at", "least", "many")]
        faults.faults_arm(str(folder).encode(), asked["mode"], *numbers)
        code = _raising(faults, asked) if asked["raised"] else _main(asked["words"])
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _raising(faults, asked):
    """Run with an error raised at the n-th operation of torch."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    errors = {
        "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        "cpu": RuntimeError(
            "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 8 bytes. Error code 12 (Cannot allocate memory)"
        ),
        "python": MemoryError(),
    }
    error, at, state = errors[asked["raised"]], asked["at"], faults.faults_state().contents

    class Raising(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            state.allocations += 1
            if state.allocations == at:
                raise error
            return function(*arguments, **(options or {}))

    with Raising():
        return _main(asked["words"])


if __name__ == "__main__":
    _serve(*json.loads(sys.argv[1]))
