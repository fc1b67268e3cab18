"""Hutch++ and XTrace against traces that are known exactly."""

import numpy as np
import pytest
from dense_operator import DenseOperator, hessian_like, with_spectrum

from hessrmt.curvature.stochastic import METHODS, traces
from hessrmt.errors import ConfigError

EPS = np.finfo(float).eps
TRIALS = 150


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
def test_zero_and_tiny_matrices(method):
    zero = traces(DenseOperator(np.zeros((9, 9))), 12, method)
    assert (zero.trace, zero.square, zero.frobenius, zero.frobenius_error) == (0, 0, 0, 0)
    tiny = traces(DenseOperator(np.diag([1.0, 2.0])), 60, method)
    assert tiny.trace == pytest.approx(3, abs=100 * EPS)
    assert tiny.square == pytest.approx(5, abs=100 * EPS)
    assert set(tiny.to_dict()) >= {"trace", "frobenius_error", "method", "products"}


@pytest.mark.parametrize(
    ("products", "method", "why"),
    [
        (60, "hutchinson", "known: "),
        (5, "hutch++", "at least 6"),
        (3, "xtrace", "at least 4"),
        (True, "xtrace", "whole number"),
        (6.0, "xtrace", "whole number"),
    ],
)
def test_what_cannot_be_asked_for(products, method, why):
    with pytest.raises(ConfigError, match=why):
        traces(DenseOperator(np.eye(3)), products, method)
