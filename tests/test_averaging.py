"""Averaged gradients: exact covariance, Theorem 8.2 and where it fails, Monte Carlo, descent."""

import numpy as np
import pytest

from hessrmt import rng
from hessrmt.errors import DataError
from hessrmt.lossmodel import matern, paper, rational_quadratic, rbf
from hessrmt.lossmodel.averaging import (
    averaged_covariance_matrix,
    averaged_gradient_covariance,
    guaranteed_bound,
    large_dimension_scaling,
    monte_carlo,
    sampled_gradients,
    theorem_8_2_applies,
    theorem_8_2_bound,
    weight_decay_matrices,
)
from hessrmt.lossmodel.surfaces import (
    descend,
    iterate_average,
    quadratic,
    random_surface,
    true_losses,
)

EPS = np.finfo(float).eps
COVARIANCES = [rbf(1.3, 1.5), rational_quadratic(0.7, 1.0, 2.0), matern(3.0, 1.0, 2.0)]
KINDS = ("identity", "scalars", "diagonals", "dense")


def walk(T, P, step, *names):
    return step * rng.stream(1, "walk", *names).normal(size=(T, P)).cumsum(axis=0)


def drawn_matrices(kind, T, P, *names):
    draw = rng.stream(2, "matrices", *names)
    if kind == "dense":
        a = draw.normal(size=(T, P, P))
        return a + a.transpose(0, 2, 1)
    shapes = {"scalars": (T,), "diagonals": (T, P)}
    return draw.normal(size=shapes[kind]) if kind in shapes else None


def as_dense(matrices, T, P):
    values = np.ones(T) if matrices is None else matrices
    if values.ndim == 3:
        return values
    return np.array([np.diag(np.broadcast_to(a, (P,))) for a in values])


def gradients_covariance(cov, points):
    """(T P, T P) from the covariance of each pair of points."""
    return np.block([[cov.gradient_covariance(w, v) for v in points] for w in points])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cov", COVARIANCES, ids=lambda cov: cov.name)
@pytest.mark.parametrize(("T", "P"), [(1, 3), (6, 1), (5, 4), (3, 9)])
def test_exact_covariance_is_that_of_the_joint_gradient(cov, kind, T, P):
    points, matrices = walk(T, P, 0.7, T, P), drawn_matrices(kind, T, P, T)
    dense = as_dense(matrices, T, P)
    row = np.concatenate(list(dense), axis=1) / T  # g_avg = row @ (g_1, ..., g_T)
    expected = row @ gradients_covariance(cov, points) @ row.T
    # sums of (T P)² terms no larger than a² k'(0) each
    size = np.linalg.norm(dense, ord=2, axis=(1, 2)).max() ** 2 * cov.gradient_variance
    allowed = (T * P) ** 2 * EPS * size
    exact = averaged_gradient_covariance(cov, points, matrices)
    assert exact == pytest.approx(np.trace(expected) / P, abs=allowed)
    found = averaged_covariance_matrix(cov, points, matrices)
    np.testing.assert_allclose(found, expected, atol=allowed, rtol=0)
    by_dense = averaged_gradient_covariance(cov, points, dense)
    assert by_dense == pytest.approx(exact, abs=allowed)


@pytest.mark.parametrize(("T", "P"), [(3, 5), (5, 2), (1, 3)])
def test_sampled_gradients_have_their_joint_covariance(T, P):
    cov, samples = COVARIANCES[1], 6000
    points = walk(T, P, 0.6, "sampled")
    flat = np.array([g.ravel() for g in sampled_gradients(cov, points, samples, seed=3)])
    exact = gradients_covariance(cov, points)
    diagonal = np.diag(exact)
    error = np.sqrt((np.outer(diagonal, diagonal) + exact**2) / samples)
    assert (np.abs(flat.T @ flat / samples - exact) / error).max() < 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("T", "P", "step"), [(12, 3, 0.4), (4, 300, 0.05), (5, 4, 0.0)])
def test_monte_carlo_meets_the_exact_value(kind, T, P, step):
    cov, points = COVARIANCES[0], walk(T, P, step, "carlo")
    matrices = drawn_matrices(kind, T, P, "carlo")
    samples = 300
    estimate = monte_carlo(cov, points, matrices, samples=samples, seed=4)
    exact = averaged_gradient_covariance(cov, points, matrices)
    assert abs(estimate.value - exact) < 4 * estimate.standard_error
    # |g_avg|² is Σ μ χ²₁ with Σ μ = P·exact, so its relative deviation is at most √2
    assert estimate.standard_error < 1.5 * np.sqrt(2 / samples) * exact


def test_bounds_over_random_trajectories():
    applied = 0
    for trial in range(240):
        draw = rng.stream(5, "trial", trial)
        cov = COVARIANCES[trial % 3]
        T, P = int(draw.integers(2, 12)), int(draw.integers(1, 9))
        points = walk(T, P, 10 ** draw.uniform(-1.5, 0.6), trial)
        matrices = drawn_matrices(KINDS[trial // 3 % 4], T, P, trial)
        exact = averaged_gradient_covariance(cov, points, matrices)
        for norm in ("operator", "trace"):
            stated = theorem_8_2_bound(cov, points, matrices, norm=norm)
            assert exact <= guaranteed_bound(cov, points, matrices, norm=norm) * (1 + T * P * EPS)
            assert stated >= 0
            if theorem_8_2_applies(cov, points, matrices, norm=norm):
                applied += 1
                assert exact <= stated * (1 + T * P * EPS)
    assert applied > 240


def test_theorem_applies_to_every_short_trajectory_and_every_common_matrix():
    for trial in range(100):
        draw = rng.stream(6, "short", trial)
        T, P = int(draw.integers(2, 9)), int(draw.integers(1, 7))
        points = walk(T, P, 1.0, "short", trial)
        matrices = drawn_matrices(KINDS[trial % 4], T, P, trial)
        # within one length: k' - k'' d² = exp(q) (1 - d²) / length² is not negative
        diameter = np.linalg.norm(points[:, None] - points[None], axis=-1).max()
        assert theorem_8_2_applies(rbf(1.0, diameter), points, matrices)
        # one matrix for all, at any distance
        common = as_dense(matrices, T, P)[[0] * T]
        far = rbf(1.0, diameter / 4)
        exact = averaged_gradient_covariance(far, points, common)
        assert theorem_8_2_applies(far, points, common)
        assert exact <= theorem_8_2_bound(far, points, common) * (1 + T * P * EPS)


@pytest.mark.parametrize("P", [1, 2, 10, 100])
def test_theorem_fails_for_matrices_that_change_sign_along_the_separation(P):
    # two points √3 apart; k = k' = k'' = exp(q), C = exp(-3/2) (I - 3 e₁e₁ᵀ), A = I and I - 2 e₁e₁ᵀ
    points, matrices = np.zeros((2, P)), np.ones((2, P))
    points[1, 0], matrices[1, 0] = 3**0.5, -1
    e = np.exp(-1.5)
    exact = averaged_gradient_covariance(rbf(), points, matrices)
    stated = theorem_8_2_bound(rbf(), points, matrices)
    assert exact == pytest.approx((1 + e * (P + 1) / P) / 2, rel=8 * EPS)
    assert stated == pytest.approx((1 + e * (P - 3) / P) / 2, rel=8 * EPS)
    assert exact > 1.007 * stated
    assert not theorem_8_2_applies(rbf(), points, matrices)
    # these matrices are the worst ones
    assert guaranteed_bound(rbf(), points, matrices) == pytest.approx(exact, rel=8 * EPS)
    # and Monte Carlo, which knows no formula of the bound, sees it
    estimate = monte_carlo(rbf(), points, matrices, samples=100, seed=7)
    assert abs(estimate.value - exact) < 4 * estimate.standard_error


def test_theorem_fails_for_the_trace_norm_on_a_square():
    side = 1.6
    points = side * np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    matrices = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    exact = averaged_gradient_covariance(rbf(), points, matrices)
    stated = theorem_8_2_bound(rbf(), points, matrices, norm="trace")
    assert 1.26 < exact / stated < 1.27
    assert exact <= guaranteed_bound(rbf(), points, matrices, norm="trace")
    assert not theorem_8_2_applies(rbf(), points, matrices, norm="trace")


def test_waves_of_signs_on_a_line_exceed_the_bound_without_limit():
    # in one dimension the mean gradient telescopes, so that the bound falls like 1/T²; signs that
    # follow a wave of three lengths leave a variance that falls like 1/T
    factors = []
    for T in (32, 128, 512):
        points = 0.75 * np.arange(T)[:, None]
        signs = np.tile([1.0, 1.0, -1.0, -1.0], T // 4)
        exact = averaged_gradient_covariance(rbf(), points, signs)
        factors.append(exact / theorem_8_2_bound(rbf(), points, signs))
    assert factors[0] > 5
    # four times for each step of T, less what the ends add
    assert factors[1] > 3 * factors[0]
    assert factors[2] > 3 * factors[1]


@pytest.mark.parametrize("cov", COVARIANCES, ids=lambda cov: cov.name)
def test_gradients_that_cancel_have_no_variance(cov):
    draw = rng.stream(9, "cancel")
    for T in (2, 3, 5, 8):
        for _ in range(20):
            factors = draw.normal(size=T)
            factors[-1] = -factors[:-1].sum()
            points = np.tile(draw.normal(size=3), (T, 1))  # one point, T times
            found = averaged_gradient_covariance(cov, points, factors)
            # T² terms of at most max a² k'(0), each rounded a few times
            assert 0 <= found <= 8 * EPS * T**2 * (factors**2).max() * cov.derivative(1, 0.0)


def test_bound_is_the_exact_value_for_multiples_of_the_identity_and_tight_beside_it():
    cov, T, P = rbf(2.0, 3.0), 20, 50
    points = walk(T, P, 0.15, "tight")
    scaled = np.full(T, 0.3)
    exact = averaged_gradient_covariance(cov, points, scaled)
    bound = theorem_8_2_bound(cov, points, scaled)
    assert bound == pytest.approx(exact, rel=T * P * EPS)
    decayed = weight_decay_matrices(0.1, 0.2, T)
    estimate = monte_carlo(cov, points, decayed, samples=400, seed=8)
    bound = theorem_8_2_bound(cov, points, decayed)
    assert estimate.value - 4 * estimate.standard_error < bound < 3 * estimate.value


@pytest.mark.parametrize("kind", KINDS)
def test_norms_are_those_of_the_eigenvalues(kind):
    matrices = drawn_matrices(kind, 3, 4, "norms")
    sizes = np.abs(np.linalg.eigvalsh(as_dense(matrices, 3, 4)))
    unit = theorem_8_2_bound(rbf(), walk(3, 4, 1, "norms"))
    for norm, a in (("operator", sizes.max()), ("trace", sizes.sum(axis=1).max())):
        found = theorem_8_2_bound(rbf(), walk(3, 4, 1, "norms"), matrices, norm=norm)
        assert found == pytest.approx(a**2 * unit, rel=100 * EPS)


@pytest.mark.parametrize("cov", [rbf(1.0, 0.9), rational_quadratic(1.0, 1.0, 1.0)])
def test_correlated_part_decays_with_dimension_uniformly_in_time(cov):
    eta, a = 0.4, 0.7
    previous = np.inf
    for P in (16, 64, 256):
        for T in (2, 5, 16):
            points = P**eta / 2**0.5 * np.eye(T, P)  # a simplex, all P^η apart
            exact = averaged_gradient_covariance(cov, points, np.full(T, a))
            part = large_dimension_scaling(cov, P, T, eta, a)
            independent = a**2 * cov.gradient_variance / T
            assert exact == pytest.approx(independent + part, rel=T * P * EPS)
        largest = large_dimension_scaling(cov, P, 10**9, eta, a)
        assert all(large_dimension_scaling(cov, P, T, eta, a) <= largest for T in (2, 5, 16))
        assert 0 < largest < previous / 2
        previous = largest


def test_weight_decay_form():
    alpha, lam, T, cov = 0.1, 0.5, 30, rbf(2.0, 2.0)
    matrices = weight_decay_matrices(alpha, lam, T)
    r, g = 1 - lam * alpha, cov.gradient_variance
    # far apart the gradients are independent (exp(-10⁴/2) underflows), at one point they are equal
    far = 200.0 * np.arange(T)[:, None] * np.ones(3)
    squares = alpha**2 * r**2 * (1 - r ** (2 * T)) / (1 - r**2)
    total = alpha * r * (1 - r**T) / (1 - r)
    rel = 3 * T * EPS
    assert averaged_gradient_covariance(cov, far, matrices) == pytest.approx(
        g * squares / T**2, rel=rel
    )
    assert averaged_gradient_covariance(cov, 0 * far, matrices) == pytest.approx(
        g * (total / T) ** 2, rel=rel
    )


def test_iterates_on_a_quadratic_with_noise_are_those_of_the_linear_recursion():
    n, lr, sigma, decay, steps = 400, 0.3, 0.5, 0.2, 120
    # a loss with all but no random part; (1 + decay) is the curvature with weight decay
    surface = random_surface(rbf(1e-30), n, 8, true_loss=quadratic(np.ones(n), n))
    quiet = descend(surface, np.ones(n), lr, 10, weight_decay=decay)
    r = 1 - lr * (1 + decay)
    np.testing.assert_allclose(quiet, np.outer(r ** np.arange(1, 11), np.ones(n)), atol=1e-12)
    noisy = descend(surface, np.zeros(n), lr, steps, weight_decay=decay, noise=sigma, seed=9)
    # stationary variance α²σ²/(1-r²) of each component, by theorem 8.1; r^240 is nothing
    variance = (lr * sigma) ** 2 / (1 - r**2)
    assert abs((noisy[-1] ** 2).mean() / variance - 1) < 4 * np.sqrt(2 / n)
    # the mean of T iterates of an AR(1) process has the variance times Σ_ij r^|i-j| / T²
    T = steps // 2
    lags = np.abs(np.subtract.outer(np.arange(T), np.arange(T)))
    reduced = variance * (r**lags).mean()
    tail = iterate_average(noisy, 0.5)
    assert abs((tail**2).mean() / reduced - 1) < 4 * np.sqrt(2 / n)


def test_averaging_removes_noise_at_high_learning_rate_in_high_dimension():
    """As Baskerville, Granziol and Keating 2022, section 8, say; full batches: no other noise."""
    cov, gains = rbf(16.0, 4.0), {}
    for P in (4, 64):
        for lr, steps in ((0.1, 300), (1.0, 100)):
            pairs = []
            for index in range(6):
                surface = random_surface(
                    cov, P, 512, seed=10, index=index, true_loss=quadratic(np.ones(P), P)
                )
                found = true_losses(surface, descend(surface, np.zeros(P), lr, steps))
                pairs.append((found.last, found.tail_average))
            last, tail = np.array(pairs).T
            gains[P, lr] = last.mean() / tail.mean()
    # slow descent ends in a minimum of L_emp, where there is nothing to average
    assert abs(gains[64, 0.1] - 1) < 0.1
    # fast descent leaps over distances beyond the length, the more so the higher the dimension:
    # 50 independent gradients would give 50
    assert gains[4, 1.0] < 3
    assert gains[64, 1.0] > 15


def test_iterate_average_takes_the_tail():
    points = np.arange(10.0)[:, None]
    assert iterate_average(points) == pytest.approx([4.5])
    assert iterate_average(points, 0.5) == pytest.approx([7.0])
    assert iterate_average(points, 0.01) == pytest.approx([9.0])


POINTS, SURFACE = np.zeros((3, 2)), random_surface(rbf(), 2, 16, true_loss=quadratic([1.0], 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: averaged_gradient_covariance(rbf(), POINTS, [np.tri(2)] * 3), "symmetric"),
        (lambda: averaged_gradient_covariance(rbf(), POINTS, np.ones(4)), "need matrices of shape"),
        (lambda: monte_carlo(rbf(), POINTS, np.ones((3, 2, 3))), "need matrices of shape"),
        (lambda: theorem_8_2_bound(rbf(), POINTS, [np.nan] * 3), "matrices must be finite"),
        (lambda: theorem_8_2_bound(paper(1.0, 1.0), POINTS), "stationary"),
        (lambda: theorem_8_2_bound(rbf(), POINTS, norm="nuclear"), "unknown norm"),
        (lambda: guaranteed_bound(rbf(), np.zeros(3)), "points must have 2 dimension"),
        (lambda: weight_decay_matrices(0.0, 0.1, 3), "alpha must be positive"),
        (lambda: weight_decay_matrices(1.0, 1.5, 3), "lam·alpha must be .* at most 1"),
        (lambda: iterate_average(POINTS, 1.5), "tail must be .* at most 1"),
        (lambda: descend(SURFACE, np.ones(2), 1e200, 5), "diverge"),
        (lambda: descend(SURFACE, np.ones(2), 0.1, 5, noise=-1.0), "noise must be non-negative"),
        (lambda: true_losses(random_surface(rbf(), 2, 16), POINTS), "no true_loss"),
    ],
)
def test_what_cannot_be_used_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
