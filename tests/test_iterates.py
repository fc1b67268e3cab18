"""Theorem 8.1: moments of SGD's iterates on a quadratic, as printed, exact and sampled."""

import numpy as np
import pytest

from hessrmt import rng
from hessrmt.errors import DataError
from hessrmt.lossmodel import (
    descend,
    iterate_moments,
    quadratic,
    random_surface,
    rbf,
    sampled_iterates,
    theorem_8_1,
)

EPS = np.finfo(float).eps
VALUES, START = np.array([-0.3, 0.0, 1e-9, 0.05, 0.7, 2.5]), np.array([1.0, -2, 3, 0.5, -1, 0])
NOISE = 0.4


def linear_map(value, alpha, steps):
    """(n, n + 1) matrix from (w_0, noise of each step) to the iterates, by the recursion itself."""
    rows = [np.eye(1, steps + 1)[0]]
    for step in range(steps):
        rows.append((1 - alpha * value) * rows[-1])
        rows[-1][step + 1] -= alpha
    return np.array(rows[1:])


@pytest.mark.parametrize("rates", [0.6, np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])])
@pytest.mark.parametrize("begin", [None, 0, 7, 29])
def test_moments_are_those_of_the_linear_recursion(rates, begin):
    steps, batch = 30, 4
    found = iterate_moments(VALUES, START, rates, steps, NOISE, batch=batch, begin=begin)
    for i, alpha in enumerate(np.broadcast_to(rates, VALUES.shape)):
        iterates = linear_map(VALUES[i], alpha, steps)
        row = iterates[-1] if begin is None else iterates[begin:].mean(axis=0)
        # n terms, each rounded n times, all of them in magnitude
        size = np.abs(iterates).max()
        assert found.mean[i] == pytest.approx(START[i] * row[0], abs=steps**2 * EPS * size * 3)
        variance = NOISE**2 / batch * (row[1:] ** 2).sum()
        assert found.variance[i] == pytest.approx(variance, rel=steps**2 * EPS)


def test_one_curvature_in_closed_form():
    lam, alpha, n = 0.5, 0.1, 4000
    last, average = (
        iterate_moments([lam], [1.0], alpha, n, 1.0, begin=begin) for begin in (None, 0)
    )
    # r^n = exp(-205): the stationary value, and σ²/(nλ²) less two geometric sums
    assert last.variance[0] == pytest.approx(alpha / (lam * (2 - alpha * lam)), rel=n * EPS)
    r = 1 - alpha * lam
    exact = (n - 2 * r / (1 - r) + r**2 / (1 - r**2)) / (n * lam) ** 2
    assert average.variance[0] == pytest.approx(exact, rel=n * EPS)
    assert exact == pytest.approx(1e-3, rel=0.02)
    paper = theorem_8_1([lam], [1.0], alpha, n, 1.0, convention="paper")
    exactly = theorem_8_1([lam], [1.0], alpha, n, 1.0)
    assert paper.last == pytest.approx(exactly.last, rel=n * EPS)
    # a factor α too much in the variance; (w_0/(λnα))² = 2.5e-5 is left of the start in both
    assert paper.average**2 == pytest.approx(alpha / (n * lam**2) + 2.5e-5, rel=4 * EPS)
    assert exactly.average**2 == pytest.approx(average.squared_norm, rel=4 * EPS)


def test_averages_forget_the_rates():
    """σ²/(Bnλ²) up to a share 1/(nαλ), whatever multiplies the gradients: plain or H⁻¹."""
    values, n = np.geomspace(0.05, 1, 9), 20_000
    for rates in (0.2, 0.9, 0.1 / values, 0.5 / values):
        found = iterate_moments(values, np.zeros(9), rates, n, NOISE, batch=2, begin=0)
        wanted = NOISE**2 / (2 * n * values**2)
        missing = 1 - found.variance / wanted
        assert (missing > 0).all()
        assert (missing * n * rates * values < 2).all()
    last = [iterate_moments(values, np.zeros(9), r, n, NOISE).variance for r in (0.2, 0.9)]
    assert (last[1] > 4 * last[0]).all()


@pytest.mark.parametrize("method", ["plain", "newton"])
def test_sampled_runs_meet_the_moments(method):
    values, start, steps, samples = np.geomspace(0.1, 1, 5), np.full(5, 0.5), 60, 3000
    rates = 0.5 if method == "plain" else 0.3 / values
    given = rates if method == "plain" else lambda w: 0.3 / np.broadcast_to(values, w.shape)
    drawn = sampled_iterates(
        lambda w: values * w, start, given, steps, NOISE, batch=2, begin=20, samples=samples, seed=3
    )
    for begin, found in ((None, drawn.last), (20, drawn.average), (0, drawn.average_of_all)):
        exact = iterate_moments(values, start, rates, steps, NOISE, batch=2, begin=begin)
        error = np.sqrt(exact.variance / samples)
        assert (np.abs(found.mean(axis=0) - exact.mean) < 4 * error).all()
        spread = found.var(axis=0, ddof=1) / exact.variance - 1
        assert (np.abs(spread) < 4 * np.sqrt(2 / (samples - 1))).all()


def test_the_theorem_holds_with_exact_moments_and_fails_as_printed():
    values, n, alpha = np.geomspace(0.2, 1, 60), 400, 0.1
    start = np.zeros(60)
    drawn = sampled_iterates(lambda w: values * w, start, alpha, n, 1.0, samples=1000, seed=4)
    exact, paper = (
        theorem_8_1(values, start, alpha, n, 1.0, convention=kind) for kind in ("exact", "paper")
    )
    norms = np.linalg.norm(drawn.average, axis=1)
    law = iterate_moments(values, start, alpha, n, 1.0, begin=0)
    for chance in (0.5, 0.1, 0.01):
        share = np.mean(norms > exact.average + law.excess(chance))
        assert share <= chance + 4 * np.sqrt(chance / 1000)
        # the printed radius is √α of the right one: more runs lie beyond it than the theorem allows
        assert np.mean(norms > paper.average + law.excess(chance)) > chance + 4 * 0.5 / 1000**0.5
    assert (norms**2).mean() == pytest.approx(
        exact.average**2, abs=4 * (norms**2).std(ddof=1) / 1000**0.5
    )
    assert iterate_moments([1.0], [0.0], 0.5, 9, 1.0).excess(1.0) == 0


def test_descent_with_the_inverse_hessian():
    n, damping, lr = 6, 0.3, 0.5
    values = np.array([3.0, 1.0, -0.5, 0.2, 2.0, 0.7])
    true = quadratic(values, n, seed=1)
    surface = random_surface(rbf(1e-30), n, 8, true_loss=true)
    start = rng.stream(5, "start").normal(size=n)
    path = descend(surface, start, lr, 4, damping=damping)
    # along each eigenvector every step multiplies by 1 - αλ/(|λ| + δ)
    directions = true.directions.numpy()
    factors = 1 - lr * values / (np.abs(values) + damping)
    wanted = (directions @ start) * factors ** np.arange(1, 5)[:, None]
    np.testing.assert_allclose(path @ directions.T, wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: iterate_moments([1.0], [1.0, 2.0], 0.1, 5, 1.0), "1 eigenvalues need a start"),
        (lambda: iterate_moments([1.0, 2.0], [1.0, 2.0], [0.1], 5, 1.0), "one rate or as"),
        (lambda: iterate_moments([1.0], [1.0], 0.1, 5, 1.0, begin=5), "none of 5 iterates"),
        (lambda: iterate_moments([1.0], [1.0], 0.1, 0, 1.0), "steps must be"),
        (lambda: iterate_moments([1.0], [1.0], 0.1, 5, -1.0), "noise must be non-negative"),
        (lambda: iterate_moments([1e3], [1.0], 1.0, 500, 1.0), "diverge: αλ must be below 2"),
        (lambda: theorem_8_1([1.0], [1.0], 0.1, 5, 1.0, convention="16"), "known: exact, paper"),
        (lambda: theorem_8_1([0.0], [1.0], 0.1, 5, 1.0, convention="paper"), "must be positive"),
        (lambda: theorem_8_1([3.0], [1.0], 1.0, 5, 1.0, convention="paper"), "αλ below 2"),
        (lambda: sampled_iterates(lambda w: -w, [1.0], 5.0, 900, 1.0, samples=2), "diverge at"),
        (lambda: sampled_iterates(lambda w: w, [1.0], [1.0, 1], 9, 1.0), "rates must be one"),
        (lambda: sampled_iterates(lambda w: w, [1.0], 1.0, 9, 1.0, begin=9), "none of 9"),
        (lambda: iterate_moments([1.0], [1.0], 0.1, 5, 1.0).excess(0.0), "probability must be"),
    ],
)
def test_what_cannot_be_used_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
