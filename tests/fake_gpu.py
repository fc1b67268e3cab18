"""Fixtures: a GPU backend whose device is main memory, with fake_cupy or without CuPy."""

import builtins
import sys
from types import SimpleNamespace

import pytest
import torch
from cuda_samples import GB
from fake_cupy import FakeCupy

from hessrmt.backend import chase, cuda_kernels, solvers
from hessrmt.backend.cuda import CudaBackend

# of launches whose number of threads the kernel leaves open: here each is one of the machine's
FEW = {"bulge_chase": 4, "sturm_prepare": 4, "sturm_bisect": 8, "staircase": 8}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("csrc"), {}


@pytest.fixture
def memory():
    """Bytes that the device says are free."""
    return SimpleNamespace(free=80 * GB)


@pytest.fixture
def no_gpu(monkeypatch, memory):
    """torch.cuda's answers, for a device that is main memory."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "fake")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (memory.free, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
    monkeypatch.setattr(chase, "SPIN_LIMIT", 1 << 28)
    monkeypatch.setattr(solvers, "HALF_WIDTHS", (4,))
    monkeypatch.setattr(solvers, "COLLECTED", 8)
    for name, threads in FEW.items():
        monkeypatch.setitem(cuda_kernels.THREADS, name, threads)


@pytest.fixture
def cupy(monkeypatch, no_gpu, compiled):
    fake = FakeCupy(*compiled)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


@pytest.fixture
def make(cupy):
    return lambda solver="auto": CudaBackend(torch.device("cpu"), solver)


@pytest.fixture
def torch_only(monkeypatch, no_gpu):
    """The backend where CuPy is not installed."""
    find = builtins.__import__

    def absent(name, *arguments, **options):
        if name == "cupy":
            raise ImportError(name)
        return find(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(builtins, "__import__", absent)
    backend = CudaBackend(torch.device("cpu"))
    assert backend.kernels is None
    return backend
