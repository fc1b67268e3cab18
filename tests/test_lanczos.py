"""Lanczos and edge levels against matrices whose spectrum is known."""

import numpy as np
import pytest
import torch
from dense_operator import DenseOperator, hessian_like, with_spectrum
from samples import labelled
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

import hessrmt as hr
from hessrmt.curvature import lanczos
from hessrmt.curvature.lanczos import EdgeLevels, edge_levels, round_off
from hessrmt.curvature.operators import CurvatureOperator
from hessrmt.errors import ConfigError, ConvergenceError, DeviceError
from hessrmt.problems import data, models

EPS = np.finfo(float).eps


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
    found = edge_levels(operator, top=30, bottom=12)
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


def test_largest_magnitudes_are_those_of_arpack():
    matrix = with_spectrum(hessian_like())
    found = edge_levels(DenseOperator(matrix), largest=25)
    peer = np.sort(eigsh(matrix, 25, which="LM")[0])
    assert np.abs(found.values - peer).max() <= found.bounds.max() + 400 * EPS * 7
    assert found.n_lower == np.count_nonzero(peer < 0)


def test_multiple_levels_show_all_their_copies():
    values = np.concatenate([[3, 3, 3, 2, 2, 1.5], np.linspace(-1, 1, 294)])
    found = edge_levels(DenseOperator(with_spectrum(values)), top=7)
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
    found = edge_levels(DenseOperator(np.diag(values), torch.float32), top=8, bottom=8)
    assert (len(found), found.n_lower) == (16, 8)
    assert within_bounds(found, values)


@pytest.mark.parametrize("request_", [{"largest": 40}, {"top": 20, "bottom": 5}])
def test_a_low_rank_ends_at_its_rank(request_):
    values = np.concatenate([np.linspace(1, 2, 7), [-2.0, -1.0], np.zeros(191)])
    found = edge_levels(DenseOperator(with_spectrum(values)), **request_)
    assert found.exhausted
    assert found.converged
    assert len(found) == 9
    assert found.n_lower == 2
    assert within_bounds(found, values)
    assert found.certified.all()


def test_the_zero_matrix_has_no_level():
    found = edge_levels(DenseOperator(np.zeros((30, 30))), top=3)
    assert found.exhausted
    assert len(found) == 0
    assert found.to_dict()["values"] == []
    assert found.joint_bound == 0
    assert found.runs() == ()


def test_an_inexact_product_widens_the_bounds():
    # the bound comes from products with the vectors that were found, not from the recurrence
    class Noisy(DenseOperator):
        def __call__(self, block):
            noise = 1e-6 * torch.sin(1e6 * block)
            return super().__call__(block) + noise

    values = hessian_like()
    found = edge_levels(Noisy(with_spectrum(values)), top=5, tolerance=1e-4)
    assert found.bounds.max() > 1e-8
    assert within_bounds(found, values)


def test_single_precision_has_wider_bounds():
    values = hessian_like()
    operator = DenseOperator(with_spectrum(values), torch.float32)
    found = edge_levels(operator, top=10, bottom=3)
    assert within_bounds(found, values)
    assert found.round_off == pytest.approx(10 * 20 * 2.0**-23 * 7, rel=1e-5)


def test_too_few_products_keep_what_converged_or_say_so(monkeypatch):
    values = np.random.default_rng(0).normal(size=500)
    values[0] = 50.0
    operator = DenseOperator(with_spectrum(values))
    monkeypatch.setattr(lanczos, "_PATIENCE", 0.1)  # products for each vector of a basis of 300
    found = edge_levels(operator, top=20)
    assert not found.converged
    assert 1 <= len(found.values) < 20
    assert found.values[-1] == pytest.approx(50, rel=1e-12)
    with pytest.raises(ConvergenceError, match="no extreme eigenvalue"):
        edge_levels(operator, bottom=1, tolerance=1e-13)


def test_resolved_levels_go_to_level_statistics():
    draw = np.random.default_rng(1).normal(size=(300, 300))
    matrix = (draw + draw.T) / 2
    found = edge_levels(DenseOperator(matrix), top=40, bottom=30)
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


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "no level"),
        ({"top": -1}, "from 0 on"),
        ({"top": True}, "from 0 on"),
        ({"top": 2.0}, "from 0 on"),
        ({"top": 30, "bottom": 11}, "41 levels are asked for, the matrix has 40"),
        ({"largest": 3, "top": 1}, "of both ends"),
        ({"top": 1, "tolerance": 0.0}, "tolerance"),
    ],
)
def test_what_cannot_be_asked_for(options, why):
    with pytest.raises(ConfigError, match=why):
        edge_levels(DenseOperator(np.eye(40)), **options)


def test_memory_is_planned_before_any_work():
    operator = DenseOperator(with_spectrum(hessian_like()))
    with pytest.raises(DeviceError, match=r"100 levels need a basis of 116 vectors of 400"):
        edge_levels(operator, top=100, memory=300_000)
    assert operator.count == 0
    # little memory: a smaller basis, more products, the same levels
    found = edge_levels(operator, top=60, memory=700_000)
    assert within_bounds(found, hessian_like())


def test_a_network_against_its_dense_spectrum():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 3)).double()
    problem = hr.Problem(model, "cross-entropy", labelled((40, 12), 3))
    spectrum = hr.spectrum(problem, device="cpu")
    operator = CurvatureOperator.of(problem, batch=15, device="cpu", linearise=False)
    found = edge_levels(operator, top=25, bottom=15)
    assert within_bounds(found, spectrum.eigenvalues)
    assert found.check <= round_off(1.0, problem.dimension, torch.float64)
    assert len(found.resolved) == 40


@pytest.mark.slow
def test_fifty_levels_of_lenet5_agree_with_arpack():
    split = data.load("mnist", "test")
    model = models.build("lenet5", split.input_shape, 10, 0)
    problem = hr.Problem(model, "cross-entropy", split.tensors(slice(64)))
    operator = CurvatureOperator.of(problem, device="cpu")
    found = edge_levels(operator, top=50)

    def product(v):
        return operator(torch.from_numpy(np.array(v, ndmin=2)))[0].numpy()

    size = operator.dimension
    peer = eigsh(LinearOperator((size, size), product, dtype=float), 50, which="LA")[0]
    assert found.values == pytest.approx(np.sort(peer), rel=1e-8)
    assert len(found.resolved) == 50
