"""Kernels of csrc/ compiled for the CPU, from the same text, through host_shim.hpp."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

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


def build(folder, name, launchers):
    """Library with csrc/NAME.cu and ``launchers``, C++ functions that call ``launch``."""
    if not shutil.which("g++"):
        pytest.skip("no g++")
    text, library = folder / f"{name}.cpp", folder / f"{name}.so"
    text.write_text('#include "host_shim.hpp"\n' + kernels.source(name) + launchers)
    include = f"-I{Path(__file__).parent}"
    subprocess.run(["g++", *FLAGS, include, text, "-o", library], check=True)
    return ctypes.CDLL(str(library))


def call(function, *arguments):
    """Arrays go as their address, ``np.int32`` as int, Python's int as long long."""
    function.restype = None
    function(*map(_argument, arguments))


def _argument(x):
    if isinstance(x, np.ndarray):
        return ctypes.c_void_p(x.ctypes.data)
    return ctypes.c_int(x) if isinstance(x, np.int32) else ctypes.c_longlong(x)
