"""A GPU backend whose device is main memory: what is put in place of torch.cuda, CuPy and cuSOLVER.

For the fixtures of fake_gpu.py, and for ``scripts/gpu_check.py --stand-in`` where there is no
pytest.
"""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from fake_cupy import FakeCupy
from fake_cusolver import FakeCusolver

from hessrmt.backend import cuda, cuda_kernels, cusolver, solvers

GB = 10**9
# of launches whose number of threads the kernel leaves open: here each is one of the machine's
FEW = {"bulge_chase": 4, "panel_qr": 8, "sturm_prepare": 4, "sturm_bisect": 8}


def device_memory():
    return SimpleNamespace(free=80 * GB, cusolver=[FakeCusolver()])


def replacements(memory):
    """(object, attribute, value) of everything.

    ``memory.free`` is what the device says is free, ``memory.cusolver`` what is loaded of cuSOLVER.
    """
    stream = SimpleNamespace(cuda_stream=0)

    def chosen(_, solver=None):
        """What `select("cuda")` gives."""
        return cuda.CudaBackend(torch.device("cpu"), solvers.policy(solver))

    return [
        (cuda, "cuda_backend", chosen),
        (torch.cuda, "device", lambda _: nullcontext()),
        (torch.cuda, "get_device_name", lambda _: "fake"),
        (torch.cuda, "current_stream", lambda _: stream),
        (torch.cuda, "mem_get_info", lambda _: (memory.free, 80 * GB)),
        (torch.cuda, "memory_reserved", lambda _: 0),
        (torch.cuda, "memory_allocated", lambda _: 0),
        (cusolver, "libraries", lambda _: memory.cusolver),
        (cuda_kernels, "PANEL_THREADS", 4),
        (cuda_kernels, "SPIN_LIMIT", 1 << 28),
        (solvers, "HALF_WIDTHS", (4,)),
        (solvers, "COLLECTED", 8),
        (solvers, "PANEL_ROWS", 8),
        (cuda_kernels, "THREADS", cuda_kernels.THREADS | FEW),
    ]


def install(folder):
    """Put it all in place for the rest of this process; kernels are compiled into a folder."""
    for where, name, value in replacements(device_memory()):
        setattr(where, name, value)
    sys.modules["cupy"] = FakeCupy(folder, {})
