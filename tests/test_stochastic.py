"""Densities, moments and traces from random vectors against what is known exactly."""

import numpy as np
import pytest
import torch
from dense_operator import DenseOperator, hessian_like, with_spectrum
from samples import labelled, network

import hessrmt as hr
from hessrmt.curvature.operators import CurvatureOperator
from hessrmt.curvature.stochastic import LAWS, METHODS, Quadrature, probe, quadrature, traces
from hessrmt.errors import ConfigError
from hessrmt.problems import data, models

EPS = np.finfo(float).eps
TRIALS = 150


@pytest.mark.parametrize("law", LAWS)
def test_a_probe_is_integrated_exactly(law):
    matrix = with_spectrum(hessian_like(120, zeros=40))
    operator = DenseOperator(matrix)
    steps = 6
    found = quadrature(operator, 3, steps, law=law, seed=4)
    assert found.nodes.shape == found.weights.shape == (3, steps)
    for number in range(3):
        v = probe(operator, 4, number, law).numpy()
        v /= np.linalg.norm(v)
        nodes, weights = found.nodes[number], found.weights[number]
        assert (np.diff(nodes) > 0).all()
        image = v
        for power in range(2 * steps):  # exact up to degree 2m - 1
            # every product rounds by up to n ε ‖H‖, ‖H‖ = 7
            slack = 120 * EPS * (power + 1) * 7.0**power
            assert weights @ nodes**power == pytest.approx(v @ image, abs=slack)
            image = matrix @ image


def test_a_probe_is_an_independent_vector_of_its_number():
    operator = DenseOperator(np.zeros((4000, 4000)))
    signs = torch.stack([probe(operator, 0, number, "rademacher") for number in range(2)])
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    bell = probe(operator, 0, 0, "gaussian")
    # means and correlations of 4,000 numbers: standard error 1/√4000, fourfold
    for value in (*signs.mean(1), (signs[0] * signs[1]).mean(), bell.mean()):
        assert abs(float(value)) < 4 / 4000**0.5
    assert float(bell.var()) == pytest.approx(1, abs=4 * (2 / 4000) ** 0.5)
    assert torch.equal(signs[1], probe(operator, 0, 1, "rademacher"))
    assert not torch.equal(signs[1], probe(operator, 1, 1, "rademacher"))


def test_standard_errors_are_those_of_the_mean():
    values = hessian_like(200, zeros=60)
    operator = DenseOperator(with_spectrum(values))
    trials = [quadrature(operator, 4, 5, seed=seed).moments(2) for seed in range(60)]
    means, errors = (np.array(part) for part in zip(*trials, strict=True))
    exact = np.array([np.mean(values), np.mean(values**2)])
    # 60 trials: the mean within 4 standard errors, the spread known to 4/√120
    spread = means.std(axis=0, ddof=1)
    assert (np.abs(means.mean(axis=0) - exact) < 4 * spread / 60**0.5).all()
    ratio = (errors**2).mean(axis=0) ** 0.5 / spread
    assert (np.abs(ratio - 1) < 4 / 120**0.5).all()


def test_a_krylov_space_that_ends_leaves_the_rest_empty():
    values = np.concatenate([[2.0, -1.0], np.zeros(38)])
    operator = DenseOperator(with_spectrum(values))
    found = quadrature(operator, 3, 20)
    assert np.isnan(found.nodes[:, 6:]).all()
    assert (found.weights[np.isnan(found.nodes)] == 0).all()
    assert found.weights.sum(axis=1) == pytest.approx(np.ones(3), abs=20 * EPS)
    assert found.range == pytest.approx((-1, 2), abs=1e-12)
    # weights are the shares of the probe in the two eigenspaces
    high = np.where(found.nodes > 1, found.weights, 0).sum(axis=1)
    eigenvector = np.linalg.eigh(with_spectrum(values))[1][:, -1]
    probes = [probe(operator, 0, number, "rademacher").numpy() for number in range(3)]
    shares = (np.array(probes) @ eigenvector) ** 2 / 40
    assert high == pytest.approx(shares, rel=1e-10)


def test_quadrature_of_zero_and_tiny_matrices():
    found = quadrature(DenseOperator(np.zeros((5, 5))), 2, 10)
    assert found.range == (0, 0)
    assert found.moments()[0].tolist() == [0, 0, 0, 0]
    curve = found.density(scale=1.0)
    assert np.trapezoid(curve.density, np.arcsinh(curve.x)) == pytest.approx(1, abs=1e-3)
    one = quadrature(DenseOperator(np.array([[3.0]])), 1, 5)
    assert one.nodes[0, 0] == 3
    assert np.isnan(one.moments()[1]).all()  # one probe has no error


@pytest.mark.parametrize("scale", [None, 1e-3, np.inf])
def test_a_density_has_unit_integral_and_sits_on_its_levels(scale):
    values = np.repeat([-2.0, 0.0, 5.0], [30, 60, 10])
    found = quadrature(DenseOperator(with_spectrum(values)), 20, 10)
    curve = found.density(4001, scale=scale, width=0.1)
    u = curve.x if np.isinf(curve.scale) else np.arcsinh(curve.x / curve.scale)
    # Gaussians cut at 4 σ: 6e-5 outside; trapezia of width σ/10 or less: exponentially small
    assert np.trapezoid(curve.density, u) == pytest.approx(1, abs=1e-4)
    assert (curve.error >= 0).all()
    centre = 5.0 if np.isinf(curve.scale) else np.arcsinh(5.0 / curve.scale)
    near = np.abs(u - centre) < 0.5
    share = np.trapezoid(curve.density[near], u[near])
    mean, error = found.share_above(4.0)
    assert share == pytest.approx(mean, rel=1e-3)
    assert abs(mean - 0.1) < 4 * error


def test_products_of_a_network_do_not_depend_on_grouping():
    problem = hr.Problem(network(6, 5, 3), "cross-entropy", labelled((20, 6), 3))
    operator = CurvatureOperator.of(problem, batch=8, device="cpu", linearise=False)
    alone, grouped = (quadrature(operator, 5, 7, together=group) for group in (1, 3))
    assert np.array_equal(alone.nodes, grouped.nodes)
    assert np.array_equal(alone.weights, grouped.weights)


def test_a_density_needs_positive_widths():
    found = Quadrature(np.array([[0.0, 1.0]]), np.array([[0.5, 0.5]]), 2)
    for options in ({"scale": 0.0}, {"width": -1.0}, {"points": 1}, {"scale": np.nan}):
        with pytest.raises(ConfigError):
            found.density(**options)


# Traces


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["hessian", "flat"])
def test_both_traces_are_unbiased_and_their_errors_honest(method, kind):
    flat = np.random.default_rng(0).normal(size=80)
    values = hessian_like(160, zeros=50) if kind == "hessian" else flat
    operator = DenseOperator(with_spectrum(values))
    found = [traces(operator, 24, method, seed=seed) for seed in range(TRIALS)]
    for name, exact in (("trace", values.sum()), ("square", values @ values)):
        estimates = np.array([getattr(one, name) for one in found])
        errors = np.array([getattr(one, f"{name}_error") for one in found])
        spread = estimates.std(ddof=1)
        assert abs(estimates.mean() - exact) < 4 * spread / TRIALS**0.5
        ratio = (errors**2).mean() ** 0.5 / spread
        if method == "hutch++":
            # independent samples: the spread itself is known to 1/√(2·150), fourfold; the tails of
            # quadratic forms make it no better than twice that
            assert abs(ratio - 1) < 8 / (2 * TRIALS) ** 0.5
        else:
            # vectors share the rest of the space: the published error is on the low side
            assert 0.5 < ratio < 1.25


@pytest.mark.parametrize("method", METHODS)
def test_a_low_rank_is_exact(method):
    values = np.concatenate([[3.0, -2.0, 1.0, 0.5], np.zeros(96)])
    found = traces(DenseOperator(with_spectrum(values)), 30, method)
    # a few dozen sums of n = 100 terms
    assert found.trace == pytest.approx(2.5, abs=30 * 100 * EPS * 3)
    assert found.square == pytest.approx(14.25, abs=30 * 100 * EPS * 9)
    assert found.trace_error < 30 * 100 * EPS * 3
    assert found.frobenius == pytest.approx(14.25**0.5, rel=1e-12)
    assert found.products <= 30


@pytest.mark.parametrize("method", METHODS)
def test_few_products_beat_plain_sampling(method):
    # 90 products: a decaying spectrum leaves almost nothing to the random part
    values = hessian_like()
    found = traces(DenseOperator(with_spectrum(values)), 90, method)
    plain = (2 * values @ values / 90) ** 0.5  # Hutchinson's standard error for dense matrices
    assert found.trace_error < plain / 2
    assert abs(found.trace - values.sum()) < 5 * found.trace_error
    assert found.products == 90


@pytest.mark.parametrize("method", METHODS)
def test_traces_of_zero_and_tiny_matrices(method):
    zero = traces(DenseOperator(np.zeros((9, 9))), 12, method)
    assert (zero.trace, zero.square, zero.frobenius, zero.frobenius_error) == (0, 0, 0, 0)
    tiny = traces(DenseOperator(np.diag([1.0, 2.0])), 60, method)
    assert tiny.trace == pytest.approx(3, abs=100 * EPS)
    assert tiny.square == pytest.approx(5, abs=100 * EPS)


@pytest.mark.parametrize(
    ("estimate", "options", "why"),
    [
        (quadrature, {"probes": 0}, "from 1 on"),
        (quadrature, {"probes": True}, "whole number"),
        (quadrature, {"steps": 2.5}, "whole number"),
        (quadrature, {"together": 0}, "from 1 on"),
        (quadrature, {"law": "x"}, "known: rademacher, gaussian"),
        (traces, {"method": "hutchinson"}, "known: "),
        (traces, {"products": 5}, "at least 6"),
        (traces, {"products": 3, "method": "xtrace"}, "at least 4"),
        (traces, {"products": True}, "whole number"),
    ],
)
def test_what_cannot_be_asked_for(estimate, options, why):
    with pytest.raises(ConfigError, match=why):
        estimate(DenseOperator(np.eye(3)), **options)


@pytest.mark.slow
def test_mlp2_against_its_exact_spectrum():
    split = data.load("mnist", "test")
    model = models.build("mlp2", split.input_shape, 10, 0)
    problem = hr.Problem(model, "cross-entropy", split.tensors(slice(64)))
    exact = hr.spectrum(problem, device="cpu")
    levels = exact.eigenvalues
    operator = CurvatureOperator.of(problem, device="cpu")
    moments, errors = quadrature(operator, 10, 60).moments(4)
    assert (np.abs(moments - [np.mean(levels**k) for k in (1, 2, 3, 4)]) <= 3 * errors).all()
    edges = hr.extremal_eigenvalues(operator, top=60, bottom=40)
    own = np.concatenate([levels[:40], levels[-60:]])
    # the noise floor is what LAPACK may have done to the exact ones
    assert (np.abs(edges.values - own) <= edges.bounds + exact.noise_floor).all()
    assert len(edges.resolved) > 90
