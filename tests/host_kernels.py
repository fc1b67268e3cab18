"""Kernels of csrc/ compiled for the CPU, from the same text, through host_shim.hpp."""

import ctypes
import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

import numpy as np

from hessrmt.backend import kernels

# Contraction into fused multiply-add as in CUDA, where the processor has it
FLAGS = [
    "-std=c++20",
    "-O2",
    "-march=native",
    "-ffp-contract=fast",
    "-Wall",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-shared",
    "-fPIC",
    "-pthread",
]


_shared = {}


def share_builds(folder):
    """Where the processes that run tests keep their libraries, so that each is compiled once."""
    _shared["folder"] = folder


def build(folder, name, launchers):
    """Library with csrc/NAME.cu and ``launchers``, C++ functions that call ``launch``.

    A function with ``@`` in its text is there twice: for REAL = double as f64, and float as f32.
    """
    if not shutil.which("g++"):
        import pytest  # not there where scripts/gpu_check.py uses this file

        pytest.skip("no g++")
    code = '#include "host_shim.hpp"\n' + kernels.source(name)
    for text in launchers.split("extern")[1:]:
        for kind, real in (("f64", "double"), ("f32", "float"))[: 1 + ("@" in text)]:
            code += "extern" + text.replace("@", kind).replace("REAL", real)
    folder = _shared.get("folder", folder)
    stem = f"{name}-{hashlib.sha256(code.encode()).hexdigest()[:16]}"
    text, library = folder / f"{stem}.cpp", folder / f"{stem}.so"
    with (folder / f"{stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            text.write_text(code)
            begun = folder / f"{stem}.begun"
            include = f"-I{Path(__file__).parent}"
            subprocess.run(["g++", *FLAGS, include, text, "-o", begun], check=True)
            begun.rename(library)
    return ctypes.CDLL(str(library))


def call(function, *arguments):
    """Arrays go as their address, ``np.int32`` as int, Python's int as long long."""
    function.restype = None
    function(*map(_argument, arguments))


def _argument(x):
    if isinstance(x, np.ndarray):
        return ctypes.c_void_p(x.ctypes.data)
    return ctypes.c_int(x) if isinstance(x, np.int32) else ctypes.c_longlong(x)
