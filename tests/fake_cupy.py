"""The few names of CuPy that hessrmt uses, over main memory: kernels of csrc/ run by host_shim.hpp.

A kernel is called as CuPy calls it, and every argument must have exactly the type that the kernel's
signature says: on a GPU a wrong one would be read as other bits.
"""

import ctypes
import re
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch
from host_kernels import build

from hessrmt.backend.kernels import csrc, source

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
OPT_IN = 48 * 1024


def parameters(text):
    """Names of the kernels of a source, each with its parameters: (type, is a pointer)."""
    found = {}
    for name, inside in SIGNATURE.findall(text):
        words = [" ".join(p.replace("const ", "").split()) for p in inside.split(",")]
        kinds = [re.fullmatch(r"(.+?) ?(\*?)\w+", word).groups() for word in words]
        found[name] = [(kind, bool(star)) for kind, star in kinds]
    return found


def launchers(text):
    code = []
    for name, kinds in parameters(text).items():
        typed = [f"{kind} {'*' * star}p{i}" for i, (kind, star) in enumerate(kinds)]
        given = ", ".join(f"p{i}" for i in range(len(kinds)))
        code.append(
            f'extern "C" void host_{name}(const unsigned *g, const unsigned *t, unsigned at_once, '
            f"unsigned long long shared, {', '.join(typed)}) {{\n"
            f"    launch_in_flight(at_once, dim3{{g[0], g[1], g[2]}}, dim3{{t[0], t[1], t[2]}}, "
            f"shared, {name}, {given});\n}}\n"
        )
    return "".join(code)


class Module:
    """A compiled source, which must be one of csrc/; compiled once."""

    def __init__(self, folder, built, code):
        self.kinds = parameters(code)
        if code not in built:
            (name,) = (f.stem for f in csrc().glob("*.cu") if source(f.stem) == code)
            built[code] = build(folder, name, launchers(code))
        self.library = built[code]

    def get_function(self, name):
        return Kernel(self, name)


class Kernel:
    num_regs, local_size_bytes, shared_size_bytes = 64, 0, 0

    def __init__(self, module, name):
        self.name, self.kinds = name, module.kinds[name]
        self.function = getattr(module.library, f"host_{name}")
        self.function.restype = None
        self.max_dynamic_shared_size_bytes = OPT_IN

    def __call__(self, grid, block, arguments, *, shared_mem=0):
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise RuntimeError("CUDA_ERROR_INVALID_VALUE: did not opt in to so much shared memory")
        if len(arguments) != len(self.kinds):
            raise TypeError(f"{self.name}: {len(arguments)} arguments for {len(self.kinds)}")
        dims = [np.array([*x, 1, 1][:3], np.uint32) for x in (grid, block)]
        assert all(x.min() > 0 for x in dims), (self.name, grid, block)
        at_once = 2 if self.name.startswith("bulge_chase") else 1
        passed = map(self.argument, range(len(arguments)), arguments)
        self.function(
            *(ctypes.c_void_p(x.ctypes.data) for x in dims),
            ctypes.c_uint(at_once),
            ctypes.c_ulonglong(shared_mem),
            *passed,
        )

    def argument(self, i, x):
        kind, pointer = self.kinds[i]
        if pointer:
            if not isinstance(x, np.ndarray) or x.dtype not in POINTERS[kind]:
                raise TypeError(f"{self.name}, parameter {i}: {kind} *, not {x!r}")
            return ctypes.c_void_p(x.ctypes.data)
        python, c = NUMBERS[kind]
        if type(x) is not python:
            raise TypeError(f"{self.name}, parameter {i}: {kind}, not {type(x).__name__}")
        return c(int(x))


class Stream:
    """As in CuPy 14, which deprecates ``ExternalStream``: made from what has the protocol."""

    @classmethod
    @contextmanager
    def from_external(cls, stream):
        version, pointer = stream.__cuda_stream__()
        assert (version, type(pointer)) == (0, int)
        yield


class Device:
    # of an H100, but for the multiprocessors
    attributes = {  # noqa: RUF012
        "MultiProcessorCount": 2,
        "MaxSharedMemoryPerBlockOptin": 227 * 1024,
        "MaxSharedMemoryPerMultiprocessor": 228 * 1024,
        "MaxThreadsPerMultiProcessor": 2048,
        "MaxRegistersPerMultiprocessor": 65536,
    }

    def __init__(self, index):
        assert index == 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class FakeCupy:
    """Stands where the module ``cupy`` does; ``compiled`` and ``solved`` say what was done."""

    def __init__(self, folder, built):
        self.folder, self.built = folder, built
        self.compiled, self.solved = [], 0
        self.cuda = SimpleNamespace(Device=Device, Stream=Stream)
        self.linalg = SimpleNamespace(eigvalsh=self.eigvalsh)

    def RawModule(self, *, code, options):  # noqa: N802
        self.compiled.append(list(parameters(code)))
        assert all(isinstance(option, str) for option in options)
        return Module(self.folder, self.built, code)

    def from_dlpack(self, tensor):
        assert isinstance(tensor, torch.Tensor)
        return np.from_dlpack(tensor)

    def get_default_memory_pool(self):
        return SimpleNamespace(free_all_blocks=lambda: None)

    def eigvalsh(self, matrix, UPLO):
        self.solved += 1
        assert matrix.flags.c_contiguous
        return np.linalg.eigvalsh(matrix, UPLO)
