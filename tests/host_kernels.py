"""Kernels of csrc/ compiled for the CPU, from the same text, through host_shim.hpp."""

import ctypes
import fcntl
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np

from hessrmt.backend import kernels

# Contraction into fused multiply-add as in CUDA, where the processor has it
FLAGS = "-std=c++20 -O2 -march=native -ffp-contract=fast -Wall -Werror -Wno-unknown-pragmas"
SIGNATURE = re.compile(
    r'extern "C" __global__ void\s+(?:__launch_bounds__\(\d+\)\s+)?(\w+)\(([^)]*)\)'
)
POINTERS = {
    "double": {np.dtype(np.float64)},
    "float": {np.dtype(np.float32)},
    "int": {np.dtype(np.int32)},
    "unsigned": {np.dtype(np.int32), np.dtype(np.uint32)},
    "long long": {np.dtype(np.int64)},
    "u64": {np.dtype(np.int64), np.dtype(np.uint64)},
}
NUMBERS = {
    "int": (np.int32, ctypes.c_int),
    "unsigned": (np.uint32, ctypes.c_uint),
    "long long": (np.int64, ctypes.c_longlong),
    "u64": (np.uint64, ctypes.c_ulonglong),
}
GUARD = np.full(64, 0xA5, np.uint8)
"""Around every array that a kernel gets: it may write there as little as to a const one."""

_shared = {}


def share_builds(folder):
    """Where the processes that run tests keep their libraries, so that each is compiled once."""
    _shared["folder"] = folder


def parameters(text):
    """Names of the kernels of a source, each with its parameters: (type, pointer, const)."""
    found = {}
    for name, inside in SIGNATURE.findall(text):
        words = [" ".join(p.split()) for p in inside.split(",")]
        kinds = [re.fullmatch(r"(const )?(.+?) ?(\*?)\w+", word).groups() for word in words]
        found[name] = [(kind, bool(star), bool(const)) for const, kind, star in kinds]
    return found


def launchers(text):
    code = []
    for name, kinds in parameters(text).items():
        typed = [f"{kind} {'*' * star}p{i}" for i, (kind, star, _) in enumerate(kinds)]
        given = ", ".join(f"p{i}" for i in range(len(kinds)))
        code.append(
            f'extern "C" void host_{name}(const unsigned *g, const unsigned *t, unsigned at_once, '
            f"unsigned long long shared, {', '.join(typed)}) {{\n"
            f"    launch_in_flight(at_once, dim3{{g[0], g[1], g[2]}}, dim3{{t[0], t[1], t[2]}}, "
            f"shared, {name}, {given});\n}}\n"
        )
    return "".join(code)


def build(folder, name, code):
    """Library of a program; built once by all processes together."""
    if not shutil.which("g++"):
        import pytest  # not there where scripts/gpu_check.py uses this file

        pytest.skip("no g++")
    folder = _shared.get("folder", folder)
    stem = f"{name}-{hashlib.sha256(code.encode()).hexdigest()[:16]}"
    text, library = folder / f"{stem}.cpp", folder / f"{stem}.so"
    with (folder / f"{stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            text.write_text(code)
            begun = folder / f"{stem}.begun"
            options = [*FLAGS.split(), "-shared", "-fPIC", "-pthread", f"-I{Path(__file__).parent}"]
            subprocess.run(["g++", *options, text, "-o", begun], check=True)
            begun.rename(library)
    return ctypes.CDLL(str(library))


def ptx_of(name, folder):
    """What nvcc makes of a kernel file for a GPU, as text."""
    text, out = folder / f"{name}.cu", folder / f"{name}.ptx"
    text.write_text(kernels.source(name))
    command = ["nvcc", *kernels.OPTIONS, "-ptx", "-arch=sm_90", text, "-o", out]
    subprocess.run(command, check=True)
    return out.read_text()


class Module:
    """csrc/NAME.cu with C++ functions of a test, which ``call`` calls."""

    def __init__(self, folder, name, functions=""):
        text = kernels.source(name)
        self.kinds = parameters(text)
        program = '#include "host_shim.hpp"\n' + text + launchers(text) + functions
        self.library = build(folder, name, program)

    def launch(self, name, grid, block, *arguments, shared=0, at_once=1):
        """A kernel by its name, or by its name without the type that the first array has.

        ``at_once`` blocks run together; Python's integers are what the signature says.
        """
        if name not in self.kinds:
            name += {8: "_f64", 4: "_f32"}[arguments[0].itemsize]
        kinds = self.kinds[name]
        if len(arguments) != len(kinds):
            raise TypeError(f"{name}: {len(arguments)} arguments for {len(kinds)}")
        dims = [np.array([*x, 1, 1][:3], np.uint32) for x in (grid, block)]
        function = getattr(self.library, f"host_{name}")
        function.restype = None
        passed, rooms = [], []
        for x, (kind, pointer, const) in zip(arguments, kinds, strict=True):
            allowed = POINTERS[kind] if pointer else {NUMBERS[kind][0], int}
            if (x.dtype if pointer and isinstance(x, np.ndarray) else type(x)) not in allowed:
                raise TypeError(f"{name}: {x!r} for {kind} {'*' * pointer}")
            if not pointer:
                passed.append(NUMBERS[kind][1](int(x)))
                continue
            if x.flags.c_contiguous:
                room = np.concatenate([GUARD, x.reshape(-1).view(np.uint8), GUARD])
                rooms.append((room, x, const))
            address = room.ctypes.data + len(GUARD) if x.flags.c_contiguous else x.ctypes.data
            passed.append(ctypes.c_void_p(address))
        shape = (ctypes.c_void_p(x.ctypes.data) for x in dims)
        function(*shape, ctypes.c_uint(at_once), ctypes.c_ulonglong(shared), *passed)
        for room, x, const in rooms:
            before, inside, after = np.split(room, [len(GUARD), len(room) - len(GUARD)])
            assert np.array_equal([before, after], [GUARD] * 2), name
            values = x.reshape(-1).view(np.uint8)
            assert not const or np.array_equal(inside, values), name
            if not const:
                values[:] = inside

    def call(self, name, *arguments):
        """A function of the test: arrays as their address, all numbers as long long."""
        function = getattr(self.library, name)
        function.restype = None
        function(
            *(
                ctypes.c_void_p(x.ctypes.data)
                if isinstance(x, np.ndarray)
                else ctypes.c_longlong(x)
                for x in arguments
            )
        )
