"""Sampled loss surfaces against automatic differentiation, their covariances and their spectra."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.func import grad

import hessrmt as hr
from hessrmt import rng
from hessrmt.errors import DataError, HessrmtError
from hessrmt.levels import mean_ratio
from hessrmt.lossmodel import (
    matern,
    mixture,
    monte_carlo,
    paper,
    rational_quadratic,
    rbf,
    stationary,
    surfaces,
)
from hessrmt.lossmodel.sampler import sample_spectra
from hessrmt.lossmodel.surfaces import covariance_root, quadratic, random_surface, sample_jets
from hessrmt.theory.densities import bbp_deviation, bbp_position
from hessrmt.theory.ratios import MEAN_RATIO_GOE

EPS = np.finfo(float).eps

KERNELS = {
    "rbf": rbf(2.0, 1.5),
    "rational_quadratic": rational_quadratic(1.5, 0.8, 6.0),
    "matern": matern(12.0, 0.7, 1.2),
    "mixture": mixture(
        [rbf(1.0, 0.7), rbf(2.0, 2.0), rational_quadratic(1.0, 1.0, 9.0)], [1, 2, 3]
    ),
}


def point(n, scale=1.0):
    return torch.from_numpy(scale * rng.stream(0, "point", n).normal(size=n))


def rounding(surface, w, power):
    """Error of a sum of waves: its terms', that of the phases, and those of the summation."""
    size = surface.frequencies.norm(dim=1)
    phase = surface.dimension * float(size.max() * w.norm())
    total = float((surface.amplitudes.abs().sum(1) * size**power).sum())
    return EPS * (surface.features + phase) * total


@pytest.mark.parametrize("true_loss", [None, quadratic([3.0, -1.0], 9), torch.sin])
def test_derivatives_of_a_surface_are_those_of_autodiff_and_of_the_problem(true_loss):
    loss = (lambda w: torch.sin(w).prod()) if true_loss is torch.sin else true_loss
    surface = random_surface(KERNELS["matern"], 9, 50, seed=1, true_loss=loss)
    w = point(9)
    exact = torch.func.hessian(surface)(w)
    # L_true is differentiated twice by torch in either case, with O(1) terms; the margin is 10
    allowed = 10 * (rounding(surface, w, 2) + 9 * EPS)
    np.testing.assert_allclose(surface.hessian(w), exact, atol=allowed, rtol=0)
    problem = surface.problem(w)
    np.testing.assert_allclose(hr.hessian(problem, device="cpu"), exact, atol=allowed, rtol=0)
    np.testing.assert_allclose(surface.gradient(w), grad(surface)(w), atol=allowed, rtol=0)
    spectrum = hr.spectrum(problem, device="cpu")
    expected = np.linalg.eigvalsh(exact.numpy())
    np.testing.assert_allclose(spectrum.eigenvalues, expected, atol=9 * allowed, rtol=0)
    assert spectrum.loss == pytest.approx(float(surface(w)), abs=10 * rounding(surface, w, 0))
    assert problem.dimension == 9


def test_batches_of_points_give_the_same_as_one_by_one():
    surface = random_surface(rbf(), 4, 30, true_loss=quadratic([1.0], 4))
    w = torch.stack([point(4), 2 * point(4), -point(4)])
    one = torch.stack([surface(x) for x in w])
    np.testing.assert_allclose(surface(w), one, rtol=1e-13)
    slopes = torch.stack([surface.gradient(x) for x in w])
    np.testing.assert_allclose(surface.gradient(w), slopes, rtol=1e-12)


@pytest.mark.parametrize(("count", "width"), [(100, 30), (12, 12)])
def test_only_directions_that_no_wave_has_are_removed(count, width):
    problem = random_surface(rbf(), 30, count, seed=2).problem(point(30))
    assert hr.reduction(problem, device="cpu").reduced_dimension == width
    spectrum = hr.spectrum(problem, device="cpu")
    assert spectrum.rank == width
    assert (spectrum.eigenvalues == 0).sum() == 30 - width


@pytest.mark.parametrize("name", list(KERNELS))
def test_rates_have_the_kernel_as_their_transform(name):
    cov, size = KERNELS[name], 200_000
    rates = cov.kernel.rates(size, rng.stream(3, name))
    for q in (-0.05, -0.5, -4.0):
        for order in range(3):
            terms = rates**order * np.exp(rates * q)
            wanted = cov.derivative(order, q) / cov.derivative(0, 0.0)
            error = terms.std() / np.sqrt(size)
            # the squared exponential has one rate: only rounding
            assert abs(terms.mean() - wanted) < 4 * error + 1e3 * EPS * wanted, (q, order)


@pytest.mark.parametrize("name", ["matern", "mixture"])
def test_surfaces_have_the_covariance_of_value_gradient_and_hessian(name):
    cov, samples = KERNELS[name], 2000
    points = np.array([[0.3, -0.2], [0.9, 0.5]])
    at, upper = torch.from_numpy(points), np.triu_indices(2)
    rows = []
    for index in range(samples):
        surface = random_surface(cov, 2, 16, seed=4, index=index)
        values, slopes = surface(at), surface.gradient(at)
        parts = [
            (float(values[i]), *slopes[i].tolist(), *surface.hessian(at[i]).numpy()[upper])
            for i in range(2)
        ]
        rows.append(np.concatenate(parts))
    found = np.array(rows)
    products = found[:, :, None] * found[:, None, :]
    error = products.std(axis=0) / np.sqrt(samples)
    deviation = np.abs(products.mean(axis=0) - cov.joint(points)) / error
    assert deviation.max() < 4  # 78 different numbers, each beyond 4 with probability 6e-5


def test_mixing_serves_kernels_given_as_functions_and_is_checked():
    cov = stationary(lambda q: torch.exp(4 * q))
    with pytest.raises(DataError, match="give mixing"):
        random_surface(cov, 3)
    surface = random_surface(cov, 3, 100, seed=5, mixing=lambda _, size: np.full(size, 4.0))
    expected = random_surface(rbf(length=0.5), 3, 100, seed=5)
    assert torch.equal(surface.frequencies, expected.frequencies)
    with pytest.raises(DataError, match="another kernel"):
        random_surface(cov, 3, mixing=lambda _, size: np.full(size, 2.0))
    with pytest.raises(DataError, match="finite rates"):
        random_surface(cov, 3, mixing=lambda _, size: np.full(size, -1.0))


def centred(spectra):
    """Levels less their mean, which takes ξ away."""
    return [s.eigenvalues - s.eigenvalues.mean() for s in spectra]


def distance(levels, reference):
    """Kolmogorov's distance of two sets of pooled levels."""
    return stats.ks_2samp(np.concatenate(levels), np.concatenate(reference)).statistic


@pytest.fixture(scope="module")
def surface_spectra():
    n, count = 200, 12
    drawn = [random_surface(rbf(1.0, 0.8), n, seed=6, index=i) for i in range(count)]
    return drawn, [hr.spectrum(s.problem(point(n)), device="cpu") for s in drawn]


@pytest.mark.slow
def test_spectra_of_surfaces_have_the_density_of_sampled_hessians(surface_spectra):
    drawn, spectra = surface_spectra
    n, count, cov = 200, len(spectra), rbf(1.0, 0.8)
    samples = centred(sample_spectra(cov, n, samples=count * 41, seed=7))
    reference = samples[: count * 20]
    groups = [samples[i : i + count] for i in range(count * 20, count * 41, count)]
    null = np.array([distance(group, reference) for group in groups])
    # finite F shifts the density by κ₄/(4πκ₂²), and lets the mean square Σ_j c_j²|ω_j|⁴ vary by
    # √(2/F) relatively: a radius off by half of that moves the distribution by max|xρ(x)| = 1/π
    surface = drawn[0]
    radius = 0.5 * np.sqrt(2 / surface.features / count)
    allowed = null.mean() + 4 * null.std(ddof=1) + surface.density_error + 4 * radius / np.pi
    found = distance(centred(spectra), reference)
    assert found < allowed
    # the test would see a variance of the Hessian that is wrong by a tenth
    assert distance([1.1**0.5 * x for x in centred(spectra)], reference) > allowed


@pytest.mark.slow
def test_spectra_of_surfaces_have_the_ratios_of_the_orthogonal_ensemble(surface_spectra):
    _, spectra = surface_spectra
    means = np.array([mean_ratio(s.resolved) for s in spectra])
    assert all(s.rank == 200 for s in spectra)
    error = means.std(ddof=1) / np.sqrt(len(means))
    assert abs(means.mean() - MEAN_RATIO_GOE) < 4 * error
    assert error < 0.01  # Poisson levels are 0.14 away, independent blocks 0.1


@pytest.mark.parametrize("features_per_dimension", [20, 40])
def test_few_features_shift_the_density_by_what_they_say(features_per_dimension):
    n, found = 200, []
    for index in range(8):
        surface = random_surface(rbf(), n, features_per_dimension * n, seed=9, index=index)
        levels = np.linalg.eigvalsh(surface.hessian(torch.zeros(n, dtype=torch.float64)).numpy())
        levels = levels - levels.mean()
        theta = np.arccos(np.clip(levels / (2 * np.sqrt(np.mean(levels**2))), -1, 1))
        semicircle = 1 - (theta - np.sin(2 * theta) / 2) / np.pi
        shift = (np.arange(n) + 0.5) / n - semicircle
        # Im G⁴ makes it -error·sin 4θ; ∫ sin² 4θ dθ = π/2
        order = np.argsort(theta)
        projected = np.trapezoid((shift * np.sin(4 * theta))[order], theta[order])
        found.append(-2 / np.pi * projected / surface.density_error)
    # next order: κ₆/κ₂³ = 15 n²/F² against κ₄/κ₂² = 3 n/F
    allowed = 5 / features_per_dimension + 4 * np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - 1) < allowed < 0.5


def test_true_loss_puts_its_outlier_beside_the_bulk():
    n, theta = 200, 45.0
    true_loss = quadratic([theta], n, seed=10)
    surface = random_surface(rbf(), n, 4000, seed=10, true_loss=true_loss)
    levels = np.linalg.eigvalsh(surface.hessian(point(n)).numpy())
    largest = levels[-1] - levels[:-1].mean()
    deviation = float(bbp_deviation(theta, n))
    # κ₄/θ³ is the waves' share at finite F
    allowed = 4 * deviation + 3 * n**3 / surface.features / theta**3
    assert abs(largest - float(bbp_position(theta, n))) < allowed
    np.testing.assert_allclose(
        torch.func.hessian(true_loss)(point(n)), true_loss.hessian(), atol=n * EPS * theta
    )
    eigenvalues = np.linalg.eigvalsh(quadratic([2.0, -3.0], 6, seed=1).hessian())
    np.testing.assert_allclose(eigenvalues, [-3, 0, 0, 0, 0, 2], atol=100 * EPS)


def test_a_surface_is_a_function_of_seed_and_index():
    one, same = (random_surface(rbf(), 3, 20, seed=11, index=2) for _ in range(2))
    assert torch.equal(one.frequencies, same.frequencies)
    assert torch.equal(one.amplitudes, same.amplitudes)
    for seed, index in ((11, 3), (12, 2)):
        other = random_surface(rbf(), 3, 20, seed=seed, index=index)
        assert not torch.equal(one.frequencies, other.frequencies)
    assert one.settings["kernel"] == "rbf"
    assert one.settings["features"] == 20


@pytest.mark.parametrize("name", ["rbf", "matern"])
def test_jets_have_the_joint_covariance(name):
    cov, samples = KERNELS[name], 20_000
    points = np.array([[0.1, 0.4], [-0.5, 0.9], [1.0, 1.0]])
    values, gradients, hessians = sample_jets(cov, points, samples, seed=12)
    assert (hessians == hessians.swapaxes(-1, -2)).all()
    triangles = hessians[..., *np.triu_indices(2)]
    flat = np.concatenate([values[..., None], gradients, triangles], axis=-1).reshape(samples, -1)
    exact = cov.joint(points)  # against automatic differentiation in test_stationary.py
    error = np.sqrt((np.outer(np.diag(exact), np.diag(exact)) + exact**2) / samples)
    assert (np.abs(flat.T @ flat / samples - exact) / error).max() < 4


def test_coincident_points_share_their_jet():
    values, gradients, hessians = sample_jets(matern(2.5), [[0.2, 0.1], [0.2, 0.1]], 5, seed=13)
    # directions of variance below 4mε of the largest are left out, so √(4mε) of a deviation
    allowed = 10 * np.sqrt(4 * 12 * EPS) * np.abs(hessians).max()
    for found in (values, gradients, hessians):
        np.testing.assert_allclose(found[:, 0], found[:, 1], atol=allowed)
    assert not np.allclose(values[0], values[1])


def test_small_components_keep_their_digits():
    # lengths of 1e-4: Hessian elements are 1e8 times larger than the loss
    jet = sample_jets(rbf(length=1e-4), [[0.0, 0.0], [0.0, 0.0]], 2000, seed=14)
    variance = (jet.values**2).mean()
    assert abs(variance - 1) < 4 * np.sqrt(2 / 2000)
    np.testing.assert_allclose(jet.values[:, 0], jet.values[:, 1], atol=1e-5)


SURFACE = random_surface(rbf(), 3, 20)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SURFACE(torch.zeros(4)), r"must be a tensor \(3,\) or \(batch, 3\), got \(4,\)"),
        (lambda: SURFACE(torch.zeros(3)), "must be float64"),
        (lambda: SURFACE(np.zeros(3)), "got ndarray"),
        (lambda: SURFACE.hessian(torch.zeros(2, 3).double()), "one point"),
        (lambda: SURFACE.problem([np.nan, 0.0, 0.0]), "NaN"),
        (lambda: random_surface(paper(1.0, 1.0), 3), "stationary"),
        (lambda: random_surface(rbf().given_loss(1.0), 3), "stationary"),
        (lambda: random_surface(rbf(), True), "n must be"),
        (lambda: random_surface(rbf(), 3, 0), "features must be"),
        (lambda: random_surface(rbf(), 3, true_loss=1.0), "true_loss must be callable"),
        (lambda: quadratic([1.0, 2.0], 1), "do not fit"),
        (lambda: sample_jets(paper(1.0, 1.0), [[0.0]]), "stationary"),
        (lambda: sample_jets(rbf(), [[0.0]], 0), "samples must be"),
        (lambda: sample_jets(rbf(), [0.0]), "points must have 2 dimension"),
        (lambda: covariance_root(np.array([[1.0, 2], [2, 1]])), "not positive semi-definite"),
    ],
)
def test_what_cannot_be_done_is_refused(call, message):
    with pytest.raises(HessrmtError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "memory", "message"),
    [
        (lambda: random_surface(rbf(), 1000), 2**20, r"enough for 65\. Take fewer features"),
        (lambda: sample_jets(rbf(), np.zeros((2, 12))), 48 * 100**2, "enough for 100"),
        (lambda: monte_carlo(rbf(), 9 * np.eye(12, 30)), 40 * 100**2, "enough for 100"),
    ],
)
def test_what_does_not_fit_into_memory_is_refused(monkeypatch, call, memory, message):
    monkeypatch.setattr(surfaces, "free_host_memory", lambda: memory)
    with pytest.raises(DataError, match=message):
        call()
