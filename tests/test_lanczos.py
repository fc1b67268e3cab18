"""Extreme eigenvalues and eigenvectors: matrices whose spectrum is known, SciPy, dense networks."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from dense_operator import DenseOperator, hessian_like, with_spectrum
from samples import WrongForwardRule, by_double_backward, labelled, network
from scipy.sparse.linalg import eigsh
from torch import nn

import hessrmt as hr
from hessrmt.curvature import lanczos
from hessrmt.curvature.lanczos import EdgeLevels
from hessrmt.curvature.operators import CurvatureOperator
from hessrmt.curvature.stochastic import quadrature, traces
from hessrmt.errors import ConfigError, ConvergenceError, DeviceError, NonFiniteError, ProblemError
from hessrmt.problems import data, models

EPS = np.finfo(float).eps
SPECTRA = {
    "gaps": hessian_like(),
    "indefinite": np.sort(np.random.default_rng(0).normal(size=200)),
    "zero": np.zeros(50),
    "identity": np.ones(50),
    "low rank": np.concatenate([np.zeros(90), [1.0, 2.0, 4.0]]),
    "negative": -np.geomspace(1e-6, 3.0, 80),
    "cluster": np.concatenate([np.linspace(0, 1, 90), 2 + 1e-6 * np.arange(3)]),
    "one": np.array([-2.5]),
    "tiny numbers": 1e-100 * np.arange(1.0, 30.0),
}


def leading(values, k, which):
    """The k eigenvalues of an end, ascending."""
    order = {"LA": -values, "SA": values, "LM": -np.abs(values)}[which]
    return np.sort(values[np.argsort(order, kind="stable")[:k]])


def check(found, matrix, k, which):
    """Values within their bounds, residuals as stated, columns orthonormal to rounding."""
    size = len(matrix)
    exact = np.linalg.eigvalsh(matrix)
    norm = np.abs(exact).max()
    assert found.vectors.shape == (size, k)
    assert (np.diff(found.values) >= 0).all()
    slack = size * EPS * norm  # LAPACK's own
    assert (np.abs(found.values - leading(exact, k, which)) <= found.bounds + slack).all()
    vectors = found.vectors.double().numpy()
    digits = torch.finfo(found.vectors.dtype).eps
    # every vector is orthogonalised to √P ε or so; restarts rotate them by orthogonal matrices
    assert np.abs(vectors.T @ vectors - np.eye(k)).max() <= 10 * size**0.5 * digits
    residuals = np.linalg.norm(matrix @ vectors - vectors * found.values, axis=0)
    assert (residuals <= found.bounds + slack).all()
    assert (vectors[np.abs(vectors).argmax(axis=0), np.arange(k)] > 0).all()


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
@pytest.mark.parametrize("kind", SPECTRA)
def test_pairs_of_known_spectra(kind, which):
    matrix = with_spectrum(SPECTRA[kind])
    operator = DenseOperator(matrix)
    k = min(3, len(matrix))
    found = hr.eigsh(operator, k, which)
    assert found.converged
    check(found, matrix, k, which)
    assert found.products == operator.count
    assert (found.residuals <= 1e-8 * found.norm + found.round_off).all()
    assert found.norm <= np.abs(SPECTRA[kind]).max() * (1 + 10 * len(matrix) * EPS)


@pytest.mark.parametrize("size", [1, 2, 3, 9])
@pytest.mark.parametrize("short", [0, 1])
def test_all_pairs_of_a_small_matrix(size, short):
    k = max(1, size - short)
    matrix = with_spectrum(np.linspace(-1, 2, size))
    check(hr.eigsh(DenseOperator(matrix), k, "LM"), matrix, k, "LM")


MULTIPLE = np.concatenate([[3.0, 3.0, 3.0, 2.0], np.linspace(-1, 1, 196)])


@pytest.mark.parametrize("k", [1, 3, 4, 5])
def test_copies_of_a_multiple_eigenvalue_are_found(k):
    matrix = with_spectrum(MULTIPLE)
    check(hr.eigsh(DenseOperator(matrix), k), matrix, k, "LA")


def test_in_a_large_matrix_copies_are_looked_for_on_demand(monkeypatch):
    monkeypatch.setattr(lanczos, "_SMALL_MATRIX", 10)
    matrix = with_spectrum(MULTIPLE)
    plain = hr.eigsh(DenseOperator(matrix), 3)
    searched = hr.eigsh(DenseOperator(matrix), 3, check_multiplicity=True)
    check(searched, matrix, 3, "LA")
    assert plain.products < searched.products
    # without it every bound still holds for some eigenvalue
    assert [np.abs(MULTIPLE - v).min() < 1e-7 for v in plain.values] == [True] * 3


@pytest.mark.parametrize("outputs", [2, 10])
def test_linear_regression_has_a_copy_of_each_eigenvalue_for_each_output(outputs):
    torch.manual_seed(0)
    model, (x, _) = nn.Linear(20, outputs).double(), labelled((60, 20), 2)
    y = torch.randn(60, outputs, dtype=torch.float64)
    found = hr.eigsh(hr.Problem(model, "mse", (x, y)), 5, "LM")
    dense = by_double_backward(model, hr.Problem(model, "mse", (x, y)).loss_function, x, y)
    check(found, dense.numpy(), 5, "LM")


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6, 1e-10])
def test_no_more_products_than_arpack(tolerance, monkeypatch):
    monkeypatch.setattr(lanczos, "_SMALL_MATRIX", 10)
    matrix = with_spectrum(hessian_like())
    ours, peer = DenseOperator(matrix), DenseOperator(matrix)
    found = hr.eigsh(ours, 4, "LM", tolerance=tolerance)
    check(found, matrix, 4, "LM")
    assert (found.residuals <= tolerance * found.norm).all()
    start = np.random.default_rng(0).normal(size=400)
    eigsh(peer.to_scipy(), 4, which="LM", tol=tolerance, v0=start)
    assert ours.count <= peer.count


def test_single_precision():
    matrix = with_spectrum(hessian_like())
    found = hr.eigsh(DenseOperator(matrix, torch.float32), 5)
    assert found.vectors.dtype == torch.float32
    check(found, matrix, 5, "LA")


def test_a_function_with_its_dimension_is_an_operator():
    matrix = with_spectrum(SPECTRA["indefinite"])
    product = torch.from_numpy(matrix).mv
    pair = (product, len(matrix))
    check(hr.eigsh(pair, 2), matrix, 2, "LA")
    edges = hr.extremal_eigenvalues((lambda v: matrix @ v.numpy(), len(matrix)), bottom=2)
    assert np.abs(edges.values - SPECTRA["indefinite"][:2]).max() <= edges.bounds.max()
    assert traces(pair, 600).trace == pytest.approx(np.trace(matrix), abs=1e-10)
    assert quadrature(pair, 1, 200).nodes[0, 0] == pytest.approx(SPECTRA["indefinite"][0])
    assert hr.edge_levels is hr.extremal_eigenvalues


def mlp():
    return hr.Problem(network(6, 5, 3), "cross-entropy", labelled((30, 6), 3))


def test_pairs_of_a_network_have_its_parameters():
    problem, model = mlp(), network(6, 5, 3)
    dense = by_double_backward(model, nn.functional.cross_entropy, *labelled((30, 6), 3))
    found = hr.eigsh(problem, 4, "LM")
    check(found, dense.numpy(), 4, "LM")
    assert found.check <= 10 * len(dense) ** 0.5 * EPS
    named = found.as_parameters(-1)
    assert {k: v.shape for k, v in named.items()} == {
        k: v.shape for k, v in model.named_parameters()
    }
    assert torch.equal(torch.cat([v.reshape(-1) for v in named.values()]), found.vectors[:, -1])
    again = hr.eigsh(problem, 4, "LM")
    assert torch.equal(again.vectors, found.vectors)
    numbers = json.loads(json.dumps(found.to_dict()))
    assert numbers["values"] == found.values.tolist()
    streamed = CurvatureOperator.of(problem, batch=7)
    check(hr.eigsh(streamed, 4, "LM"), dense.numpy(), 4, "LM")
    gauss = CurvatureOperator.of(problem, "ggn")
    check(hr.eigsh(gauss, 2), hr.ggn(problem), 2, "LA")


def test_few_products_are_not_traced_and_many_are():
    operator = CurvatureOperator.of(mlp(), batch=20)
    before = hr.eigsh(operator, 1, tolerance=1e-4)
    assert not any(product.traced for _, product in operator._kept)
    assert operator.products < 40
    hr.density(operator, 2, 50)
    assert all(product.traced for _, product in operator._kept)
    assert hr.eigsh(operator, 1, tolerance=1e-4).values == pytest.approx(before.values, rel=1e-10)


def test_a_kept_graph_that_fails_later_is_left():
    operator = CurvatureOperator.of(mlp(), linearise=True)
    v = torch.randn(2, operator.dimension, dtype=torch.float64)
    expected = operator(v)
    (_, product), = operator._kept  # fmt: skip

    def broken(block):
        raise RuntimeError("view size is not compatible")

    assert product.traced
    product._quick = broken
    assert torch.allclose(operator(v), expected, rtol=1e-12, atol=1e-14)
    assert not product.traced


class Cubed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 3).double(), nn.Linear(3, 2).double()

    def forward(self, x):
        return self.last(WrongForwardRule.apply(self.first(x)))


def test_a_wrong_rule_of_forward_mode_does_not_matter():
    model, (x, y) = Cubed(), labelled((9, 6), 2)
    dense = by_double_backward(model, nn.functional.cross_entropy, x, y).numpy()
    operator = CurvatureOperator.of(hr.Problem(model, "cross-entropy", (x, y)))
    check(hr.eigsh(operator, 2), dense, 2, "LA")
    edges = hr.density(operator, 3, 40, top=2).edges  # enough products to be traced
    assert np.abs(edges.values - np.linalg.eigvalsh(dense)[-2:]).max() <= edges.bounds.max()


@pytest.mark.parametrize("search", [
    lambda pair: hr.eigsh(pair, 2),
    lambda pair: hr.extremal_eigenvalues(pair, top=2),
    lambda pair: quadrature(pair, 2, 9),
])  # fmt: skip
def test_a_matrix_that_is_not_symmetric_is_refused(search):
    matrix = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 40)))
    with pytest.raises(ProblemError, match="not symmetric"):
        search((matrix.mv, 40))
    almost = torch.from_numpy(with_spectrum(hessian_like())).clone()
    almost[0, 1] += 1e-3
    with pytest.raises(ProblemError, match="not symmetric"):
        search((almost.mv, 400))


@pytest.mark.parametrize(
    ("search", "words", "why"),
    [
        (hr.eigsh, {"k": 0}, "k must be a whole number from 1 on"),
        (hr.eigsh, {"k": True}, "whole number"),
        (hr.eigsh, {"k": 2.0}, "whole number"),
        (hr.eigsh, {"k": 41}, "k = 41 pairs are asked for, the matrix has 40"),
        (hr.eigsh, {"which": "LR"}, "known: LA, SA, LM"),
        (hr.eigsh, {"tolerance": 0.0}, "tolerance"),
        (hr.eigsh, {"tolerance": float("nan")}, "tolerance"),
        (hr.eigsh, {"operator": "a"}, "expected an operator, a matrix"),
        (hr.eigsh, {"operator": np.eye(3)}, "the matrix has 3"),
        (hr.eigsh, {"operator": (torch.sin, 0)}, "from 1 on, got 0"),
        (hr.eigsh, {"k": 1, "operator": (lambda v: v[:2], 3)}, "matvec must map"),
        (hr.extremal_eigenvalues, {}, "no level"),
        (hr.extremal_eigenvalues, {"top": -1}, "from 0 on"),
        (hr.extremal_eigenvalues, {"top": True}, "from 0 on"),
        (hr.extremal_eigenvalues, {"top": 30, "bottom": 11}, "41 eigenvalues are asked for"),
        (hr.extremal_eigenvalues, {"largest": 3, "top": 1}, "of both ends"),
        (hr.extremal_eigenvalues, {"top": 1, "tolerance": 0.0}, "tolerance"),
    ],
)
def test_what_cannot_be_asked_for(search, words, why):
    with pytest.raises(ConfigError, match=why):
        search(**{"operator": DenseOperator(np.eye(40)), **words})


def test_pairs_without_parameters_and_products_that_are_not_finite():
    found = hr.eigsh(DenseOperator(np.diag([1.0, 2.0])), 1)
    with pytest.raises(ConfigError, match="without named parameters"):
        found.as_parameters(0)
    with pytest.raises(NonFiniteError, match="matvec"):
        hr.eigsh((lambda v: v * np.nan, 4), 1)
    problem = mlp()
    with pytest.raises(ConfigError, match="index 1"):
        hr.eigsh(problem, 1).as_parameters(1)


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
@pytest.mark.parametrize("k", [1, 4, 20])
def test_leading_vectors_of_the_exact_spectrum(operator, k):
    problem = mlp()
    found = hr.spectrum(problem, operator=operator, vectors=k)
    dense = {"hessian": hr.hessian, "ggn": hr.ggn}[operator](problem)
    check(found.pairs, dense, k, "LM")
    assert found.vectors is found.pairs.vectors
    plain = hr.spectrum(problem, operator=operator)
    assert plain.vectors is None
    assert np.array_equal(plain.eigenvalues, found.eigenvalues)


def test_there_are_vectors_of_certified_levels_alone():
    x, y = labelled((4, 6), 2)
    problem = hr.Problem(nn.Linear(6, 2).double(), "cross-entropy", (x, y))
    found = hr.spectrum(problem, vectors=14)
    assert found.rank == found.vectors.shape[1] == 4
    flat = hr.Problem(nn.Linear(6, 1).double(), lambda outputs, _: outputs.mean(), (x, x))
    assert hr.spectrum(flat, vectors=3).pairs is None
    for wrong in (-1, 15, 2.0):
        with pytest.raises(ConfigError):
            hr.spectrum(problem, vectors=wrong)


def test_the_names_are_there_before_torch():
    code = "import sys, hessrmt; assert 'torch' not in sys.modules; assert 'eigsh' in dir(hessrmt)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Both ends, and what is certain of them


def within_bounds(found, exact):
    """Whether every level lies as near to the exact one of its rank as its bound says.

    The exact ones come from LAPACK on the dense matrix: n ε ‖H‖ more.
    """
    exact = np.sort(exact)
    lower, upper = found.n_lower, len(found) - found.n_lower
    own = np.concatenate([exact[:lower], exact[len(exact) - upper :]])
    slack = len(exact) * EPS * np.abs(exact).max()
    return (np.abs(found.values - own) <= found.bounds + slack).all()


def test_both_ends_lie_within_their_bounds():
    values = hessian_like()
    operator = DenseOperator(with_spectrum(values))
    found = hr.extremal_eigenvalues(operator, top=30, bottom=12)
    assert len(found) == 42
    assert found.n_lower == 12
    assert found.converged
    assert not found.exhausted
    assert within_bounds(found, values)
    assert found.norm == pytest.approx(7.0, rel=1e-12)
    assert (found.residuals <= 1e-10 * found.norm + found.round_off).all()
    assert found.round_off == 10 * 20 * EPS * found.norm
    assert found.products == operator.count
    # far fewer vectors than the matrix has
    assert operator.count < 250


def test_multiple_levels_show_all_their_copies():
    values = np.concatenate([[3, 3, 3, 2, 2, 1.5], np.linspace(-1, 1, 294)])
    found = hr.extremal_eigenvalues(DenseOperator(with_spectrum(values)), top=7)
    assert within_bounds(found, values)
    assert np.allclose(found.values, [1, 1.5, 2, 2, 3, 3, 3], rtol=0, atol=1e-9)
    # copies can't be told apart: their spacings are not certain and they are not resolved
    assert found.certain_spacings.tolist() == [True, True, False, True, False, False]
    assert found.is_resolved.tolist() == [True, True, False, False, False, False, False]
    assert found.joint_bound >= found.bounds.max()
    (run,) = found.runs(smallest=2)
    assert run.tolist() == found.values[:2].tolist()


def test_equal_levels_count_for_one_end_only():
    values = np.repeat([-1.0, 1.0], [5, 12])
    found = hr.extremal_eigenvalues(DenseOperator(np.diag(values), torch.float32), top=8, bottom=8)
    assert (len(found), found.n_lower) == (16, 8)
    assert within_bounds(found, values)


@pytest.mark.parametrize("request_", [{"largest": 40}, {"top": 20, "bottom": 5}])
def test_a_low_rank_ends_at_its_rank(request_):
    values = np.concatenate([np.linspace(1, 2, 7), [-2.0, -1.0], np.zeros(191)])
    found = hr.extremal_eigenvalues(DenseOperator(with_spectrum(values)), **request_)
    assert found.exhausted
    assert found.converged
    assert len(found) == 9
    assert found.n_lower == 2
    assert within_bounds(found, values)
    assert found.certified.all()


def test_the_zero_matrix_has_no_level():
    found = hr.extremal_eigenvalues(DenseOperator(np.zeros((30, 30))), top=3)
    assert found.exhausted
    assert len(found) == found.joint_bound == 0
    assert found.runs() == ()


def test_an_inexact_product_widens_the_bounds():
    # the bound comes from products with the vectors that were found, not from the recurrence
    class Noisy(DenseOperator):
        def __call__(self, block):
            noise = 1e-6 * torch.sin(1e6 * block)
            return super().__call__(block) + noise

    values = hessian_like()
    found = hr.extremal_eigenvalues(Noisy(with_spectrum(values)), top=5, tolerance=1e-4)
    assert found.bounds.max() > 1e-8
    assert within_bounds(found, values)


def test_too_few_products_keep_what_converged_or_say_so(monkeypatch):
    values = np.random.default_rng(0).normal(size=500)
    values[0] = 50.0
    operator = DenseOperator(with_spectrum(values))
    monkeypatch.setattr(lanczos, "PATIENCE", 0.1)  # products for each vector of a basis of 300
    found = hr.extremal_eigenvalues(operator, top=20)
    assert not found.converged
    assert 1 <= len(found.values) < 20
    assert found.values[-1] == pytest.approx(50, rel=1e-12)
    with pytest.raises(ConvergenceError, match="no extreme eigenvalue"):
        hr.extremal_eigenvalues(operator, bottom=1, tolerance=1e-13)


def test_resolved_levels_go_to_level_statistics():
    draw = np.random.default_rng(1).normal(size=(300, 300))
    matrix = (draw + draw.T) / 2
    found = hr.extremal_eigenvalues(DenseOperator(matrix), top=40, bottom=30)
    exact = np.linalg.eigvalsh(matrix)
    lower, upper = found.runs()
    assert (len(lower), len(upper)) == (30, 40)
    # a ratio moves by no more than the bounds over the spacings that it is of
    gaps = np.diff(exact[-40:])
    slack = 8 * found.bounds.max() / gaps.min()
    ours, theirs = hr.levels.ratios(upper), hr.levels.ratios(exact[-40:])
    assert np.abs(ours - theirs).max() <= slack < 1e-3


def test_close_levels_are_not_resolved():
    found = EdgeLevels(
        values=np.array([-2.0, -1.0, 1e-12, 1.0, 1.0 + 1e-9, 2.0, 3.0, 4.0]),
        residuals=np.full(8, 1e-9),
        round_off=1e-11,
        n_lower=2,
        dimension=100,
        norm=4.0,
        asked="",
    )
    assert found.certified.tolist() == [True, True, False, True, True, True, True, True]
    assert found.is_resolved.tolist() == [True, True, False, False, False, True, True, True]
    # nothing is known of what lies between the two ends
    assert found.certain_spacings.tolist() == [True, False, True, False, True, True, True]
    assert [run.tolist() for run in found.runs(smallest=2)] == [[-2.0, -1.0], [2.0, 3.0, 4.0]]


def test_memory_is_planned_before_any_work():
    operator = DenseOperator(with_spectrum(hessian_like()))
    with pytest.raises(DeviceError, match=r"100 eigenvalues need a basis of 116 vectors of 400"):
        hr.extremal_eigenvalues(operator, top=100, memory=300_000)
    assert operator.count == 0
    # little memory: a smaller basis, more products, the same levels
    found = hr.extremal_eigenvalues(operator, top=60, memory=700_000)
    assert within_bounds(found, hessian_like())


@pytest.mark.slow
def test_fifty_levels_of_lenet5_agree_with_arpack():
    split = data.load("mnist", "test")
    model = models.build("lenet5", split.input_shape, 10, 0)
    problem = hr.Problem(model, "cross-entropy", split.tensors(slice(64)))
    operator = CurvatureOperator.of(problem, device="cpu")
    found = hr.extremal_eigenvalues(operator, top=50)
    peer = eigsh(operator.to_scipy(), 50, which="LA")[0]
    assert found.values == pytest.approx(np.sort(peer), rel=1e-8)
    assert len(found.resolved) == 50


def test_what_acts_as_an_operator_is_one():
    class Scaled:
        dimension, dtype, device = 8, torch.float64, torch.device("cpu")

        def __call__(self, block):
            return block * torch.arange(1.0, 9.0, dtype=torch.float64)

    assert np.abs(hr.eigsh(Scaled(), 2).values - [7, 8]).max() < 1e-10
    with pytest.raises(ConfigError, match="expected an operator"):
        hr.eigsh("matrix", 2)


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize(
    ("dtype", "scale", "why"),
    [
        (torch.float64, 1e160, r"overflow in float64.*by 1e-160"),
        (torch.float64, 1e-170, r"underflow in float64.*by 1e\+170"),
        (torch.float32, 1e20, "overflow in float32"),
        (torch.float32, 1e-20, "underflow in float32"),
        (torch.float64, 1e150, None),
        (torch.float64, 1e-135, None),
        (torch.float32, 1e15, None),
        (torch.float32, 1e-12, None),
    ],
)
def test_numbers_whose_squares_do_not_fit_are_refused(dtype, scale, why, window):
    values = scale * np.linspace(0, 1, 200)
    operator = DenseOperator(np.diag(values), dtype)
    request = {"window": (0.98 * scale, None)} if window else {"k": 4}
    if why:
        with pytest.raises(ProblemError, match=why):
            hr.eigsh(operator, tolerance=1e-5, **request)
        return
    found = hr.eigsh(operator, tolerance=1e-5, **request)
    assert len(found) == 4
    assert found.converged
    slack = 200 * torch.finfo(dtype).eps * scale
    assert (np.abs(found.values - values[-4:]) <= found.bounds + slack).all()
