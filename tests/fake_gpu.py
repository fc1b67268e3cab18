"""Fixtures: a GPU backend whose device is main memory, with fake_cupy or without CuPy."""

import builtins
import sys

import pytest
import torch
from fake_cupy import FakeCupy
from stand_in import device_memory, replacements

from hessrmt.backend.cuda import CudaBackend


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("csrc"), {}


@pytest.fixture
def memory():
    """Bytes that the device says are free, and what is loaded of cuSOLVER."""
    found = device_memory()
    yield found
    assert not any(library.error for library in found.cusolver)


@pytest.fixture
def no_gpu(monkeypatch, memory):
    """torch.cuda's answers, for a device that is main memory."""
    for where, name, value in replacements(memory):
        monkeypatch.setattr(where, name, value)


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
            raise ModuleNotFoundError(name, name=name)
        return find(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(builtins, "__import__", absent)
    backend = CudaBackend(torch.device("cpu"))
    assert backend.kernels is None
    return backend
