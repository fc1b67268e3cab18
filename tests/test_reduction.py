"""The reduction is exact: nonzero eigenvalues with it equal those without it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from network_samples import at_double, two
from properties import examples
from samples import labelled, network
from torch import nn
from torch.nn import functional as F  # noqa: N812

import hessrmt as hr
from hessrmt.backend.cpu import CpuBackend
from hessrmt.curvature import factored, reduction
from hessrmt.curvature.reduction import assemble_reduced, reduce_problem
from hessrmt.errors import ConvergenceError, ProblemError
from hessrmt.problems import models

EPS = float(np.finfo(np.float64).eps)


def assert_same_spectrum(problem):
    """Issue's contract: within 10·n·ε·‖H‖, and no more exact zeros than the true nullity."""
    full, small = hr.spectrum(problem, reduce="none"), hr.spectrum(problem)
    norm = float(np.abs(full.eigenvalues).max())
    tolerance = 10 * full.dimension * EPS * norm
    assert len(small.eigenvalues) == full.dimension == small.dimension
    assert np.abs(small.eigenvalues - full.eigenvalues).max() <= tolerance
    # dimension - reduced_dimension zeros are exact; the unreduced spectrum must have as many
    nullity = int((np.abs(full.eigenvalues) <= tolerance).sum())
    assert small.dimension - small.reduced_dimension <= nullity
    return full, small


@st.composite
def nets(draw):
    widths = draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    widths.append(draw(st.integers(2, 4)))
    kind = draw(st.sampled_from([nn.GELU, nn.LeakyReLU, nn.ReLU, nn.Tanh]))
    bias, seed = draw(st.booleans()), draw(st.integers(0, 10**6))
    model = network(*widths, kind=kind, bias=bias, seed=seed)
    batch = draw(st.integers(1, 20))
    x, y = labelled((batch, widths[0]), widths[-1], draw(st.integers(0, 10**6)))
    if draw(st.booleans()):  # constant and dead pixels
        x[:, 0] = draw(st.sampled_from([0.0, -1.0]))
    if draw(st.booleans()) and batch > 1:  # duplicate samples
        x[1], y[1] = x[0], y[0]
    if draw(st.booleans()):  # a unit that is never active
        model[0].weight.data[0] = 0
        if bias:
            model[0].bias.data[0] = -1
    return model, draw(st.sampled_from(["cross-entropy", "mse"])), (x, y)


@settings(max_examples=examples(30), suppress_health_check=list(HealthCheck))
@given(nets())
def test_random_small_nets(case):
    model, loss, pair = case
    assert_same_spectrum(hr.Problem(model, loss, pair))


@pytest.mark.parametrize("name", ["logistic", "mlp2", "mlp3"])
def test_the_papers_models_on_small_inputs(name):
    narrow = models.mlp((40,), 4, (10, 30, 30))
    model = narrow if name == "mlp3" else models.build(name, (40,), 4, 0)
    problem = hr.Problem(model, "cross-entropy", labelled((8, 40), 4))
    _, small = assert_same_spectrum(problem)
    assert small.reduced_dimension < 0.7 * problem.dimension
    assert small.check < 10 * problem.dimension**0.5 * EPS


def constant_pixel():
    x, y = labelled((900, 5), 3)
    x[:, 2] = -1.0  # collinear with the bias
    return network(5, 6, 3, kind=nn.ReLU), (x, y)


def frozen_extractor():
    body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten()).requires_grad_(False)
    return nn.Sequential(body, nn.Linear(48, 3)), labelled((7, 1, 6, 6), 3)


def layer_at_every_position():
    """Not factored: convolution behind a linear layer."""
    torch.manual_seed(0)
    call = lambda m, x: m.last(torch.tanh(m.first(x)).mT).mean(dim=-1)  # noqa: E731
    return two(inputs=20, call=call, last=nn.Conv1d(4, 3, 2)), labelled((3, 4, 20), 3)


@pytest.mark.parametrize(
    ("make", "dimension"),
    [
        (constant_pixel, 6 * 5 + 2 * 7),
        (frozen_extractor, 7 * 2),
        (layer_at_every_position, 4 * 12 + 3 * 4 * 2 + 3),
    ],
)
def test_the_span_of_the_data_is_enough(make, dimension):
    model, pair = make()
    _, small = assert_same_spectrum(hr.Problem(model, "cross-entropy", pair))
    assert small.reduced_dimension == dimension


def test_convolutional_net_uses_the_range_of_its_largest_layer():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3)
    )
    problem = hr.Problem(model, "cross-entropy", labelled((4, 1, 6, 6), 3))
    local = at_double(problem)
    basis = reduce_problem(local)
    blocks = assemble_reduced(local, basis, CpuBackend())
    assert len(blocks.stacked)
    assert len(blocks.signs) <= 4 * 2
    _, small = assert_same_spectrum(problem)
    assert small.reduced_dimension == blocks.turned().matrix().shape[0] < basis.reduced_dimension


ONE_PEAK = """
import resource, sys
from pathlib import Path
import torch
from torch import nn
import hessrmt as hr
from hessrmt.backend.cpu import CpuBackend
from hessrmt.memory import _address_space_left
from hessrmt.curvature import dense, reduction as r

dense._BLOCK_BYTES = 4 << 20  # rows in flight, which take what is left

def held(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(name))

def problem(samples, width):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, width), nn.ReLU(),
        nn.Linear(width, 10),
    )
    x, y = torch.randn(samples, 1, 26, 26), torch.arange(samples) % 10
    return hr.Problem(model, "cross-entropy", (x, y)).at(torch.float64, torch.device("cpu"))

backend = CpuBackend()

def diagonalised(local, limited):
    local.evaluate()
    basis = r.reduce_problem(local)
    route = r.choose_route(local, basis)
    assert route.own is not None
    needed = r.require_route(route, local, basis, backend)
    before = held("VmRSS")
    if limited:
        least = int((needed + dense.row_bytes(local)) / dense._MARGIN) + (16 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (held("VmSize") + least, -1))
        assert _address_space_left() < 1.2 * least
        Path("/proc/self/clear_refs").write_text("5")
    blocks = r.assemble_reduced(local, basis, backend, route=route).turned()
    matrix = blocks.matrix()
    del blocks
    backend.eigvalsh(matrix)
    return needed, held("VmHWM") - before

diagonalised(problem(2, 4), False)  # libraries and buffers
print(*diagonalised(problem(*map(int, sys.argv[1:])), True))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(("samples", "width"), [(12, 24), (4, 64)])  # diagonalising, or the QR
def test_memory_of_a_convolutional_net_is_planned_once(samples, width):
    # with barely what is planned the matrix isn't refused, and no more is taken
    command = [sys.executable, "-c", ONE_PEAK, str(samples), str(width)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    planned, taken = map(int, done.stdout.split())
    working = 24 << 20  # of products and of LAPACK
    assert taken <= planned + working
    assert planned <= 1.3 * taken


def test_range_of_a_layer_that_is_not_piecewise_linear():
    assert_same_spectrum(hr.Problem(network(3, 2, 8, 60, 2), "cross-entropy", labelled((2, 3), 2)))


@pytest.mark.parametrize(
    "between",
    [
        nn.LayerNorm(8, elementwise_affine=False),
        nn.Softmax(dim=-1),
        nn.GLU(),
        nn.Sequential(nn.Unflatten(1, (2, 4)), nn.MaxPool1d(2), nn.Flatten()),
        nn.BatchNorm1d(8, affine=False).eval(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_parameter_free_operations_between_linear_layers_are_factored(between):
    torch.manual_seed(0)
    width = between(torch.zeros(2, 8)).shape[1]
    model = nn.Sequential(nn.Linear(12, 8), between, nn.Linear(width, 3))
    problem = hr.Problem(model, "cross-entropy", labelled((5, 12), 3))
    local = at_double(problem)
    assert len(local.structure) == 2
    assert factored.samples_are_independent(local, local.structure)
    assert_same_spectrum(problem)


def test_a_loss_that_couples_samples_takes_the_general_path():
    def spread(outputs, targets):
        return F.cross_entropy(outputs, targets) + outputs.std(dim=0).sum()

    model = network(9, 4, 3)
    problem = hr.Problem(model, spread, labelled((6, 9), 3))
    local = at_double(problem)
    assert not factored.samples_are_independent(local, local.structure)
    assert_same_spectrum(problem)


def test_samples_are_streamed_where_the_loss_is_a_mean_and_nothing_changes(monkeypatch):
    pair = labelled((50, 9), 3)
    problem = hr.Problem(network(9, 4, 3, kind=nn.ReLU), "cross-entropy", pair)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 20.0]))
    no_mean = hr.Problem(network(9, 3), weighted, pair)
    whole = hr.spectrum(problem)
    monkeypatch.setattr(factored, "_WORK_BYTES", 4000)
    chunks = [
        len(factored.sample_chunks(local, reduce_problem(local).layers))
        for local in map(at_double, (problem, no_mean))
    ]
    assert chunks[0] > 5
    assert chunks[1] == 1
    gap = np.abs(whole.eigenvalues - hr.spectrum(problem).eigenvalues).max()
    assert gap <= 1e-13 * np.abs(whole.eigenvalues).max()
    assert_same_spectrum(no_mean)


@pytest.mark.parametrize(
    ("only", "rows"),
    [("2.*", np.r_[28:43]), ("*.weight", np.r_[0:24, 28:40]), ("*.bias", np.r_[24:28, 40:43])],
)
def test_only_a_part_of_the_parameters_is_that_block_of_the_hessian(only, rows):
    model, pair = network(6, 4, 3), labelled((9, 6), 3)
    full = hr.hessian(hr.Problem(model, "cross-entropy", pair))
    part = hr.Problem(model, "cross-entropy", pair, only=only)
    np.testing.assert_allclose(hr.hessian(part), full[np.ix_(rows, rows)], atol=1e-15)
    assert_same_spectrum(part)


@pytest.mark.parametrize(
    ("shape", "hidden", "ranged"), [((30,), (), False), ((5,), (3, 30, 30), True)]
)
def test_the_basis_is_orthonormal_and_reproduces_the_hessian(shape, hidden, ranged):
    torch.manual_seed(0)
    problem = hr.Problem(models.mlp(shape, 3, hidden), "cross-entropy", labelled((7, *shape), 3))
    basis = hr.reduction(problem)
    assert basis.dimension == problem.dimension
    assert basis.reduced_dimension == hr.spectrum(problem).reduced_dimension < problem.dimension
    assert (basis.layers[0].narrowed is not None) == ranged
    q = basis.lift(torch.eye(basis.reduced_dimension, dtype=torch.float64)).T
    assert (q.T @ q - torch.eye(q.shape[1], dtype=torch.float64)).abs().max() <= 64 * EPS
    assert torch.allclose(
        basis.project(q.T), torch.eye(q.shape[1], dtype=torch.float64), atol=1e-14
    )
    full = torch.from_numpy(hr.hessian(problem))
    assert (full - q @ (q.T @ full @ q) @ q.T).abs().max() <= 64 * EPS * full.abs().max()


@pytest.mark.parametrize("wrong", ["span", "shift", "zeros", "block"])
def test_a_wrong_reduction_is_caught(monkeypatch, wrong):
    model = network(12, 5, 3, kind=nn.ReLU)
    problem = hr.Problem(model, "mse", labelled((6, 12), 3))
    if wrong == "span":
        real = reduction.input_basis
        monkeypatch.setattr(reduction, "input_basis", lambda f: real(f)[:, :-1])
    elif wrong == "shift":  # mean squared error is not indifferent to a common shift
        monkeypatch.setattr(reduction, "ignores_softmax_shift", lambda problem: True)
    elif wrong == "zeros":
        real = reduction._zero_rows
        monkeypatch.setattr(
            reduction, "_zero_rows", lambda p: real(p).index_fill(0, torch.tensor([66]), True)
        )
    else:
        real = reduction.block
        spoiled = lambda *a: ((rows, values * (1 + 1e-9)) for rows, values in real(*a))  # noqa: E731
        monkeypatch.setattr(reduction, "block", spoiled)
    with pytest.raises(ProblemError, match="does not act as the Hessian"):
        hr.spectrum(problem)


def test_a_wrong_qr_is_caught(monkeypatch):
    model = network(4, 3, 20, 30, 3, kind=nn.ReLU)
    problem = hr.Problem(model, "cross-entropy", labelled((4, 4), 3))
    real = torch.linalg.qr

    def spoiled(a, mode="reduced"):
        result = real(a, mode=mode)
        if mode == "r" and a.shape[0] > 100:
            result.R[0, 0] *= 1 + 1e-8
        return result

    hr.spectrum(problem)
    monkeypatch.setattr(torch.linalg, "qr", spoiled)
    with pytest.raises(ConvergenceError, match="orthogonality"):
        hr.spectrum(problem)


def test_small_batches_of_eigenvectors_are_lapacks():
    """A GPU's library takes them one by one: they go to main memory, which "meta" can't."""
    layer = factored.LayerFactors(None, slice(0, 73), None, None, None)
    found = factored.Factors(torch.empty(64, 73, 73, device="meta"), (layer,))
    with pytest.raises(NotImplementedError, match="meta tensor"):
        factored.own_curvature(found, 0)
