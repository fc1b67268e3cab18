"""One Hessian on many processes, the processes played by threads: no MPI, no cluster.

What this shows: who keeps what, that the parts make up the Hessian, how processes fail together,
and what is passed to cuSOLVERMp. That MPI, ScaLAPACK and ELPA do their part is the business of
tests/test_distributed.py; cuSOLVERMp itself has never run.
"""

import ctypes
from importlib.util import find_spec
from types import SimpleNamespace

import fake_mpi
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hessrmt as hr
from hessrmt.backend.cpu_processes import load_library
from hessrmt.backend.cusolvermp import CusolverMpBackend, Libraries, import_libraries
from hessrmt.backend.distributed import (
    DistributedBackend,
    Grid,
    Layout,
    lay_out,
    multiply,
    owned,
    process_grid,
    scatter,
)
from hessrmt.backend.select import select_distributed
from hessrmt.backend.world import World
from hessrmt.config import SpectrumConfig
from hessrmt.curvature.distributed import assemble_columns, distributed_spectrum
from hessrmt.curvature.reduction import identity, reduce_problem
from hessrmt.errors import (
    ConfigError,
    ConvergenceError,
    DeviceError,
    DistributedError,
    NonFiniteError,
    ProblemError,
    StoreError,
)
from hessrmt.problems import models
from hessrmt.runs import distributed

EPS = np.finfo(float).eps
SIZES = [1, 2, 3, 4, 6]


class Gathering(DistributedBackend):
    """A solver that cheats: every process sees the whole matrix, LAPACK does the rest."""

    solver = "numpy"
    largest_block = 4

    def eigen_bytes(self, layout, itemsize):
        return 2 * itemsize * layout.n**2

    def _solve(self, part, layout):
        return np.linalg.eigvalsh(whole(part, layout, self.world))


def whole(part, layout, world):
    matrix = np.full((layout.n, layout.n), np.nan)
    for other, values in world.gather((layout, part.numpy().copy())):
        matrix[np.ix_(other.rows, other.columns)] = values.T
    return matrix


def on_each(size, function):
    return fake_mpi.run(size, lambda communicator: function(World(communicator, size)))


def symmetric(n, seed=0):
    matrix = np.random.default_rng(seed).standard_normal((n, n))
    return matrix + matrix.T


def small_problem(seed=0, width=5):
    torch.manual_seed(seed)
    x = torch.randn(7, 6, dtype=torch.float64)
    x[:, 2] = 0  # a dead input
    return hr.Problem(models.mlp((6,), 3, (width,)), "cross-entropy", (x, torch.arange(7) % 3))


# The Hessian in parts


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reduce", ["auto", "none"])
def test_the_parts_are_the_hessian(size, reduce):
    problem = small_problem().at(torch.float64, torch.device("cpu"))
    basis = identity(problem) if reduce == "none" else reduce_problem(problem)
    dense = torch.from_numpy(hr.hessian(problem, device="cpu"))
    q = basis.lift(torch.eye(basis.reduced_dimension, dtype=torch.float64)).T
    expected = (q.T @ dense @ q).numpy()

    def work(world):
        layout = Gathering(world).layout(basis.reduced_dimension)
        part = assemble_columns(problem, basis, layout, world, rows=3)
        assert part.numel() == layout.entries
        return whole(part, layout, world)

    for found in on_each(size, work):
        # both are Hessian-vector products of unit vectors: the rounding of two of them
        bound = 20 * basis.dimension**0.5 * EPS * np.linalg.norm(expected, 2)
        assert np.abs(found - expected).max() <= bound


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_the_spectrum_is_that_of_one_machine_and_the_same_on_every_process(size):
    problem = small_problem()
    alone = hr.spectrum(problem, device="cpu")
    found = on_each(size, lambda world: distributed_spectrum(problem, Gathering(world)))
    for spectrum in found:
        assert np.array_equal(spectrum.eigenvalues, found[0].eigenvalues)
        # Weyl: both matrices act as H up to the tolerance of the check, both solvers are stable
        bound = 2 * alone.noise_floor + 20 * alone.dimension**0.5 * EPS * alone.eigenvalues[-1]
        assert np.abs(spectrum.eigenvalues - alone.eigenvalues).max() <= bound
        assert spectrum.rank == alone.rank
        assert spectrum.reduced_dimension < spectrum.dimension
        assert spectrum.check <= 10 * alone.dimension**0.5 * EPS


def test_a_product_with_the_distributed_matrix():
    matrix, v = symmetric(23), np.random.default_rng(1).standard_normal(23)

    def work(world):
        layout = Gathering(world).layout(23)
        return multiply(scatter(matrix, layout), layout, world, torch.from_numpy(v)).numpy()

    for found in on_each(6, work):
        assert (np.abs(found - matrix @ v) <= 23 * EPS * np.abs(matrix) @ np.abs(v)).all()


# Refusals


@pytest.mark.parametrize(
    ("wrong", "short", "kind", "said"),
    [
        (np.nan, None, NonFiniteError, ""),
        (np.inf, None, NonFiniteError, ""),
        (1e-4, None, ConfigError, "not symmetric"),
        (0.0, 1, ConfigError, "process 1 of 2: a part of shape"),
    ],
)
def test_a_matrix_of_no_use_is_refused_by_all(wrong, short, kind, said):
    matrix = symmetric(9)
    matrix[8, 0] += wrong

    def work(world):
        backend = Gathering(world)
        layout = backend.layout(9)
        part = scatter(matrix, layout)
        return backend.eigvalsh(part[:-1] if world.rank == short else part, layout)

    for error in on_each(2, work):
        assert type(error) is kind
        assert said in str(error)


def test_processes_with_different_parameters_are_found_out():
    given = [small_problem(seed) for seed in range(2)]
    found = on_each(2, lambda world: distributed_spectrum(given[world.rank], Gathering(world)))
    for error in found:
        assert isinstance(error, ProblemError)
        assert "different parameters or data" in str(error)


def test_too_little_memory_on_one_process_stops_all_before_any_work():
    class Poor(Gathering):
        def free_memory(self):
            return 10 if self.world.rank == 1 else super().free_memory()

    problem = small_problem()
    for error in on_each(2, lambda world: distributed_spectrum(problem, Poor(world))):
        assert isinstance(error, DeviceError)
        assert "process 1 of 2: the part of the" in str(error)


class Wrong(torch.autograd.Function):
    """Its second derivative couples samples in one direction only."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * 3 * x.detach() ** 2 + gradient.flip(0) * x.mean()


def test_a_wrong_second_derivative_is_refused_by_all():
    torch.manual_seed(0)
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.arange(5) % 3
    problem = hr.Problem(
        torch.nn.Linear(4, 3), lambda outputs, _: Wrong.apply(outputs).square().mean(), (x, y)
    )
    for error in on_each(2, lambda world: distributed_spectrum(problem, Gathering(world))):
        assert isinstance(error, ProblemError)
        assert "not symmetric" in str(error) or "does not act as the Hessian" in str(error)


# Failing together


@pytest.mark.parametrize(
    ("failing", "raised", "kind", "said"),
    [
        ({1}, ConvergenceError("no luck"), ConvergenceError, "process 1 of 2: no luck"),
        ({0, 1}, ConfigError("bad word"), ConfigError, "bad word"),  # told once and plainly
        ({0}, MemoryError("no room"), DistributedError, "process 0 of 2: MemoryError: no room"),
    ],
)
def test_a_failure_of_some_processes_is_raised_by_all(failing, raised, kind, said):
    def work(world):
        with world.together():
            if world.rank in failing:
                raise raised

    for error in on_each(2, work):
        assert (type(error), str(error)) == (kind, said)


def test_what_the_others_cannot_know_of_ends_the_run(capfd):
    def work(world):
        with world.guard():
            if world.rank == 1:
                raise ZeroDivisionError("outside")
            world.gather(None)  # waits for process 1

    found = on_each(2, work)
    assert isinstance(found[1], fake_mpi.Ended)
    assert isinstance(found[0], BaseException)  # not waiting any more
    assert (
        "process 1 of 2 failed, the run ends: ZeroDivisionError: outside" in capfd.readouterr().err
    )


def test_what_all_agreed_on_passes_the_guard(capfd):
    def work(world):
        with world.guard():
            try:
                with world.together():
                    raise ConfigError("bad word")
            except ConfigError as error:
                raise ConfigError(f"batch 3: {error}") from error

    assert [str(error) for error in on_each(2, work)] == ["batch 3: bad word"] * 2
    assert not capfd.readouterr().err


# The run


def run(tmp_path, monkeypatch, size=2, **settings):
    monkeypatch.setattr(distributed, "select_distributed", lambda *a: Gathering(a[2]))
    names = ("resume", "overwrite", "finished")
    options = {name: settings.pop(name) for name in names if name in settings}
    config = SpectrumConfig(model="logistic", batch=8, device="cpu", **settings)
    return on_each(
        size,
        lambda world: distributed.run_distributed(
            config, tmp_path / "x.h5", world=world, tell=told.append, **options
        ),
    )


told = []


def test_process_0_writes_the_file_and_continues_it(tmp_path, monkeypatch):
    told.clear()
    rows = []

    def finished(batch, found):
        rows.append((batch, found.rank))

    first, *others = run(tmp_path, monkeypatch, size=3, batches=2, finished=finished)
    assert others == [None, None]
    assert [item.rank for item in first] == [item.rank for item in hr.load(tmp_path / "x.h5")]
    assert first[0].rank > 8
    # process 0 alone tells
    assert rows == [(0, first[0].rank), (1, first[1].rank)]
    assert sum("data: " in line for line in told) == 1

    again, leaves = run(tmp_path, monkeypatch, batches=2)
    assert type(again) is StoreError
    assert isinstance(leaves, SystemExit)
    assert leaves.code == again.exit_code == 2

    resumed, _ = run(tmp_path, monkeypatch, batches=2, resume=True, finished=finished)
    assert np.array_equal(resumed.eigenvalues, first.eigenvalues)
    assert rows[2:] == rows[:2]  # those that were there are told, too
    other, _ = run(tmp_path, monkeypatch, batches=2, resume=True, seed=1)
    assert type(other) is StoreError


def test_what_cannot_be_computed_does_not_cost_a_file(tmp_path, monkeypatch):
    (tmp_path / "x.h5").write_text("precious")
    monkeypatch.setattr(Gathering, "free_memory", lambda self: 10)
    error, _ = run(tmp_path, monkeypatch, batches=1, overwrite=True)
    assert type(error) is DeviceError
    assert (tmp_path / "x.h5").read_text() == "precious"


@pytest.mark.parametrize(
    ("settings", "kind"),
    [({"operator": "ggn"}, ConfigError), ({"resume": True, "overwrite": True}, ConfigError)],
)
def test_runs_that_are_refused(tmp_path, monkeypatch, settings, kind):
    error, leaves = run(tmp_path, monkeypatch, **settings)
    assert type(error) is kind
    assert leaves.code == 2


# Choosing


@pytest.mark.parametrize(
    ("solver", "device", "kind"),
    [
        ("lapack", "cpu", ConfigError),
        ("scalapack", "cuda", ConfigError),
        ("elpa", "cuda", ConfigError),
        ("cusolvermp", "cpu", ConfigError),
        ("auto", "cuda:1", ConfigError),
    ],
)
def test_words_that_exclude_each_other(solver, device, kind):
    found = on_each(2, lambda world: select_distributed(solver, device, world))
    assert {type(error) for error in found} == {kind}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_more_processes_than_gpus():
    for error in on_each(2, lambda world: select_distributed("cusolvermp", "auto", world)):
        assert isinstance(error, DeviceError)
        assert "start one process for each GPU" in str(error)


def test_a_missing_library_says_what_to_install(monkeypatch):
    with pytest.raises(DeviceError, match=r"libnowhere.so.*apt-get install.*HESSRMT_NOWHERE"):
        load_library(["libnowhere.so"], "HESSRMT_NOWHERE", "Try apt-get install libnowhere")
    monkeypatch.setenv("HESSRMT_NOWHERE", "/nowhere/lib.so")
    with pytest.raises(DeviceError, match=r"/nowhere/lib\.so cannot be loaded"):
        load_library(["libm.so.6"], "HESSRMT_NOWHERE", "Try apt-get install libnowhere")


# cuSOLVERMp, played by a module with the signatures of nvmath-python 1.0


def doubles(address, count, kind):
    return np.ctypeslib.as_array((kind * count).from_address(address))


KINDS = {1: ctypes.c_double, 0: ctypes.c_float}


class FakeCusolverMp:
    GridMapping = SimpleNamespace(ROW_MAJOR=0, COL_MAJOR=1)
    workspace = (64, 32)
    info = 0

    def __init__(self, world):
        self.world, self.living, self.next = world, {}, 100

    def _new(self, thing):
        self.next += 1
        self.living[self.next] = thing
        return self.next

    def create(self, device_id, stream):
        return self._new("handle")

    def set_stream(self, handle, stream):
        assert self.living[handle] == "handle"

    def create_device_grid(self, handle, comm, num_row_devices, num_col_devices, mapping):
        assert self.living[handle] == "handle"
        assert comm == 7
        assert mapping == self.GridMapping.COL_MAJOR
        assert num_row_devices * num_col_devices == self.world.size
        return self._new(("grid", num_row_devices, num_col_devices))

    def create_matrix_desc(self, grid, data_type, m_a, n_a, mb_a, nb_a, rsrc_a, csrc_a, lld_a):
        assert self.living[grid][0] == "grid"
        assert (rsrc_a, csrc_a) == (0, 0)
        assert m_a == n_a
        assert mb_a == nb_a
        return self._new(("matrix", data_type, n_a, nb_a, lld_a))

    def destroy_matrix_desc(self, desc):
        assert self.living.pop(desc)[0] == "matrix"

    def _check(self, handle, compz, uplo, n, ia, ja, desc_a, d_q, iq, jq, desc_q, compute_type):
        assert self.living[handle] == "handle"
        assert ctypes.string_at(compz) == b"N"
        assert uplo == 0
        assert (ia, ja, iq, jq) == (1, 1, 1, 1)
        assert desc_q == desc_a
        assert d_q == 0
        found = self.living[desc_a]
        assert found[1:3] == (compute_type, n)
        return found

    def syevd_buffer_size(
        self, handle, compz, uplo, n, d_a, ia, ja, desc_a, d_d, d_q, iq, jq, desc_q, compute_type
    ):
        self._check(handle, compz, uplo, n, ia, ja, desc_a, d_q, iq, jq, desc_q, compute_type)
        return self.workspace

    def syevd(self, *given):
        *common, d_work, on_device, h_work, on_host, d_info = given
        handle, compz, uplo, n, d_a, ia, ja, desc_a, d_d, *vectors, compute_type = common
        found = self._check(handle, compz, uplo, n, ia, ja, desc_a, *vectors, compute_type)
        assert (on_device, on_host) == self.workspace
        assert d_work
        assert h_work
        kind, layout = KINDS[compute_type], CusolverMpBackend.layout(self.backend, n)
        assert found[3:] == (layout.block, len(layout.rows))
        values = doubles(d_a, layout.entries, kind).reshape(len(layout.columns), -1)
        lower = np.tril(whole(torch.from_numpy(values), layout, self.world))
        levels = np.linalg.eigvalsh(lower)  # reads the lower triangle
        doubles(d_d, n, kind)[:] = levels
        doubles(d_info, 1, ctypes.c_int)[0] = self.info


def gpus(world, **changes):
    fake = FakeCusolverMp(world)
    for name, value in changes.items():
        setattr(fake, name, value)
    communicator = SimpleNamespace(init=lambda nranks, rank, unique_id: SimpleNamespace(ptr=7))
    nccl = SimpleNamespace(get_unique_id=lambda: b"id", Communicator=communicator)
    fake.backend = CusolverMpBackend(world, torch.device("cpu"), Libraries(fake, nccl))
    return fake.backend


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_cusolvermp_is_called_as_its_signature_says(size, dtype):
    matrix = symmetric(37).astype(dtype)

    def work(world):
        backend = gpus(world)
        layout = backend.layout(37)
        assert backend.eigen_bytes(layout, matrix.itemsize) == (
            layout.most_entries * matrix.itemsize + sum(FakeCusolverMp.workspace)
        )
        return backend.eigvalsh(scatter(matrix, layout), layout)

    expected = np.linalg.eigvalsh(matrix.astype(float))
    for found in on_each(size, work):
        bound = 37 * np.finfo(dtype).eps * np.abs(expected).max()
        assert found.dtype == np.float64
        assert np.abs(found - expected).max() <= bound


def test_a_failure_of_cusolvermp_is_an_error():
    def work(world):
        backend = gpus(world, info=3)
        layout = backend.layout(9)
        return backend.eigvalsh(scatter(symmetric(9), layout), layout)

    for error in on_each(2, work):
        assert isinstance(error, ConvergenceError)
        assert "info = 3" in str(error)


def test_missing_bindings_say_what_to_install():
    if find_spec("nvmath"):
        pytest.skip("nvmath-python is installed")
    with pytest.raises(DeviceError, match=r"pip install 'hessrmt\[cusolvermp12\]'"):
        import_libraries()


# The block-cyclic layout


sizes = st.integers(1, 200)
few = st.integers(1, 9)


def dealt(n, block, processes):
    """Whose each of n rows is: block after block, to one process after the other."""
    owners = []
    while len(owners) < n:
        owners += [(len(owners) // block) % processes] * block
    return np.array(owners[:n])


@given(n=sizes, block=few, processes=few)
def test_every_row_is_dealt_once_and_where_the_cards_say(n, block, processes):
    owners = dealt(n, block, processes)
    for process in range(processes):
        assert (
            owned(n, block, process, processes).tolist()
            == np.flatnonzero(owners == process).tolist()
        )


@given(n=sizes, block=few, rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_the_parts_make_up_the_matrix(n, block, rows, columns):
    grid = Grid(rows, columns)
    seen = np.zeros((n, n), dtype=int)
    layouts = [Layout(n, block, grid, rank) for rank in range(rows * columns)]
    for layout in layouts:
        seen[np.ix_(layout.rows, layout.columns)] += 1
    assert (seen == 1).all()
    assert max(layout.entries for layout in layouts) == layouts[0].most_entries


def test_processes_are_numbered_down_the_columns_as_blacs_does_with_order_c():
    grid = Grid(2, 3)
    assert [grid.place(rank) for rank in range(6)] == [(r, c) for c in range(3) for r in range(2)]


@pytest.mark.parametrize("processes", [*range(1, 65), 97, 144])
def test_the_grid_takes_all_processes_and_is_as_square_as_can_be(processes):
    grid = process_grid(processes)
    assert grid.rows * grid.columns == processes
    divisors = [r for r in range(1, processes + 1) if processes % r == 0]
    assert abs(grid.columns - grid.rows) == min(abs(processes // r - r) for r in divisors)
    assert grid.rows <= grid.columns


@given(n=st.integers(1, 3000), processes=st.integers(1, 40), largest=st.sampled_from([1, 32, 64]))
def test_no_process_stays_empty_and_blocks_are_powers_of_two(n, processes, largest):
    grid = process_grid(processes)
    if n < grid.columns:
        with pytest.raises(ConfigError, match="start fewer processes"):
            lay_out(n, grid, 0, largest)
        return
    for rank in range(processes):
        layout = lay_out(n, grid, rank, largest)
        assert layout.entries > 0
        assert layout.block <= largest
        assert layout.block & (layout.block - 1) == 0


def test_large_matrices_are_dealt_evenly():
    grid = process_grid(144)
    layouts = [lay_out(20_060, grid, rank, 64) for rank in range(144)]
    # in each direction at most one block more than the mean
    mean = (20_060 / 12) ** 2
    assert max(layout.entries for layout in layouts) <= (20_060 / 12 + 64) ** 2
    assert sum(layout.entries for layout in layouts) / 144 == pytest.approx(mean)
