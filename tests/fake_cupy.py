"""The few names of CuPy that hessrmt uses, over main memory: kernels of csrc/ run by host_shim.hpp.

A kernel is called as CuPy calls it, and every argument must have exactly the type that the kernel's
signature says: on a GPU a wrong one would be read as other bits.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch
from host_kernels import Module, parameters

from hessrmt.backend.kernels import csrc, source

OPT_IN = 48 * 1024
RESIDENT = 2
"""Blocks of kernels that wait for each other that run at once."""


class Kernel:
    num_regs, local_size_bytes, shared_size_bytes = 64, 0, 0

    def __init__(self, module, name):
        self.module, self.name = module, name
        self.max_dynamic_shared_size_bytes = OPT_IN

    def __call__(self, grid, block, arguments, *, shared_mem=0):
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise RuntimeError("CUDA_ERROR_INVALID_VALUE: did not opt in to so much shared memory")
        if any(type(x) is int for x in arguments):
            raise TypeError(f"{self.name}: a number without a type")
        assert min(*grid, *block) > 0, (self.name, grid, block)
        at_once = RESIDENT if self.name.startswith(("bulge_chase", "panel_qr")) else 1
        launch = self.module.launch
        launch(self.name, grid, block, *arguments, shared=shared_mem, at_once=at_once)


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
        "MultiProcessorCount": RESIDENT,
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
    """Stands where the module ``cupy`` does; ``compiled`` and ``solved`` say what was done,
    ``version`` is cuSOLVER's."""

    def __init__(self, folder, built):
        self.folder, self.built = folder, built
        self.compiled, self.solved, self.version = [], 0, (12, 0, 4)
        library = SimpleNamespace(_getVersion=lambda: self.version)  # cuSOLVER's
        self.cuda = SimpleNamespace(Device=Device, Stream=Stream, cusolver=library)
        self.linalg = SimpleNamespace(eigvalsh=self.eigvalsh)

    def RawModule(self, *, code, options):  # noqa: N802
        self.compiled.append(list(parameters(code)))
        assert all(isinstance(option, str) for option in options)
        if code not in self.built:
            (name,) = (f.stem for f in csrc().glob("*.cu") if source(f.stem) == code)
            self.built[code] = Module(self.folder, name)
        return SimpleNamespace(get_function=lambda name: Kernel(self.built[code], name))

    def from_dlpack(self, tensor):
        assert isinstance(tensor, torch.Tensor)
        return np.from_dlpack(tensor)

    def get_default_memory_pool(self):
        return SimpleNamespace(free_all_blocks=lambda: None)

    def eigvalsh(self, matrix, UPLO):
        self.solved += 1
        assert matrix.flags.c_contiguous
        return np.linalg.eigvalsh(matrix, UPLO)
