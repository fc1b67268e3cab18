"""cuSOLVER called directly, without a GPU: calls go through the header's types.

What this cannot show: that the library's own workspace and results are as documented; for that
there is scripts/gpu_check.py.
"""

import gc
from pathlib import Path
from types import SimpleNamespace

import fake_cusolver
import pytest
import torch
from cuda_samples import close, symmetric
from fake_cusolver import FakeCusolver, prototypes

from hessrmt.backend import cusolver, solvers
from hessrmt.backend.cusolver import Cusolver, CusolverError

pytest_plugins = ["fake_gpu"]

CPU = torch.device("cpu")
ENOUGH = 10**6
STREAM = 0x7F12_3456_7890  # more than 32 bits


@pytest.fixture
def library(no_gpu, monkeypatch):
    """A library; a fault inside its functions fails the test."""
    stream = SimpleNamespace(cuda_stream=STREAM)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    found = FakeCusolver()
    yield found
    assert found.error is None


def stack_of(count, n, dtype=torch.float64):
    return torch.stack([symmetric(n, dtype, seed) for seed in range(count)])


def solved(library, stack, free=ENOUGH):
    return Cusolver(library, CPU).batch(stack.clone(), free).numpy()


def test_types_are_those_of_the_header():
    assert prototypes() == cusolver._ARGUMENTS


@pytest.mark.parametrize(("count", "n"), [(1, 1), (3, 1), (1, 5), (4, 7), (2, 33)])
def test_eigenvalues(library, count, n):
    stack = stack_of(count, n)
    found = solved(library, stack)
    assert all(close(row, a) for row, a in zip(found, stack, strict=True))
    assert library.calls == [{"n": n, "lda": n, "batch": count, "type": 1}]  # CUDA_R_64F
    assert library.streams == [STREAM]


def test_calls_stay_below_the_limit_of_numbers(library, monkeypatch):
    n, stack = 5, stack_of(8, 5)
    monkeypatch.setattr(fake_cusolver, "LIMIT", 3 * n * n + 1)
    with pytest.raises(CusolverError, match="cusolverDnXsyevBatched_bufferSize: status 3"):
        solved(library, stack)
    monkeypatch.setattr(solvers, "LIBRARY_NUMBERS", 3 * n * n + 1)
    found = solved(library, stack)
    assert [call["batch"] for call in library.calls] == [3, 3, 2]
    assert all(close(row, a) for row, a in zip(found, stack, strict=True))
    monkeypatch.setattr(cusolver, "_AT_ONCE", 2)
    solved(library, stack)
    assert [call["batch"] for call in library.calls[3:]] == [2, 2, 2, 2]
    monkeypatch.setattr(solvers, "LIBRARY_NUMBERS", n * n - 1)
    with pytest.raises(CusolverError, match="n = 5 is more than"):
        solved(library, stack)


def test_a_batch_is_parted_until_its_workspace_fits(library):
    stack = stack_of(7, 4)
    found = solved(library, stack, free=3 * library.workspace)
    assert [call["batch"] for call in library.calls] == [2, 2, 2, 1]
    assert all(close(row, a) for row, a in zip(found, stack, strict=True))
    with pytest.raises(CusolverError, match="a workspace of 64 bytes; 63 are free"):
        solved(library, stack, free=library.workspace - 1)


def test_a_matrix_that_is_not_solved_is_named(library, monkeypatch):
    library.failing = {2: 4}
    with pytest.raises(CusolverError, match="info 4 of matrix 2"):
        solved(library, stack_of(5, 3))
    monkeypatch.setattr(solvers, "LIBRARY_NUMBERS", 4 * 9)
    library.failing = {3: -1}  # of the first call; the second has one matrix
    with pytest.raises(CusolverError, match="info -1 of matrix 3"):
        solved(library, stack_of(5, 3))


@pytest.mark.parametrize("name", [n for n in prototypes() if "Dn" in n and "Destroy" not in n])
def test_a_function_that_fails_is_named_and_the_handle_is_given_back(library, name):
    library.statuses = {name: 6}
    with pytest.raises(CusolverError, match=f"^{name}: status 6$"):
        solved(library, stack_of(2, 3))
    gc.collect()
    assert library.alive == []


def test_a_handle_is_kept_for_several_batches_and_given_back(library):
    solver = Cusolver(library, CPU)
    for _ in range(2):
        solver.batch(stack_of(2, 3), ENOUGH)
    assert library.alive == ["handle", "params"]
    assert library.streams == [STREAM] * 2  # the current one of each call
    del solver
    gc.collect()
    assert library.alive == []


# Which library


def test_the_newest_library_that_solves_batches(no_gpu, memory):
    old, lacks = FakeCusolver((11, 7, 1)), FakeCusolver((12, 9, 0), batched=False)
    new = FakeCusolver((11, 7, 10))
    memory.cusolver = [old, new, lacks]
    assert cusolver.with_batches(CPU) is new
    memory.cusolver = [lacks]
    assert cusolver.with_batches(CPU) is None
    assert cusolver.version(lacks) == (12, 9, 0)


def test_libraries_that_are_loaded(monkeypatch):
    maps = "".join(
        f"7f00-7f01 r-xp 00000000 08:01 12  {path}\n"
        for path in ("/b c/libcusolver.so.12", "/lib/libc.so.6", "/a/libcusolver.so.11")
    )
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: 2 * maps)
    assert cusolver.loaded() == [Path("/a/libcusolver.so.11"), Path("/b c/libcusolver.so.12")]

    def nowhere(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", nowhere)
    assert cusolver.loaded() == []


def test_a_library_without_the_symbol_is_none(monkeypatch):
    """ctypes itself, on a library that every Linux has."""
    monkeypatch.setattr(cusolver, "loaded", lambda: [Path("libm.so.6")])
    (found,) = cusolver.libraries(CPU)
    assert found.sqrt
    assert cusolver.with_batches(CPU) is None
