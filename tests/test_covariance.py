"""The law of a Hessian at one point, against automatic differentiation and by Monte Carlo."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from kernel_samples import (
    SMOOTH,
    SPHERICAL,
    STATIONARY,
    derivative,
    spherical_covariance,
    spherical_value_covariance,
)

from hessrmt import lossmodel, rng
from hessrmt.errors import LossModelError
from hessrmt.lossmodel.sampler import sample_hessian

EPS = float(np.finfo(float).eps)
N = 3


def printed(k1, k2, n):
    """[B] equation (17), element by element."""
    tensor = np.zeros((n, n, n, n))
    for i, j, k, m in np.ndindex(n, n, n, n):
        tensor[i, j, k, m] = k2 * ((i == k) * (j == m) + (i == m) * (j == k))
        tensor[i, j, k, m] += k1**2 * (i == j) * (k == m)
    return tensor


def cases():
    """Covariances and the tensors that they must have, none from the package's own formulas."""
    origin = np.zeros(N)
    for name, (cov, k) in SMOOTH.items():
        yield name, cov, derivative(k, origin, origin, 2, 2)
    for name, (cov, nu) in SPHERICAL.items():
        yield name, cov, spherical_covariance(nu, N)
    for k1, k2 in [(0.0, 1e-2), (1.0, 0.1), (0.7, 3.0)]:
        yield f"paper-{k1}-{k2}", lossmodel.paper(k1, k2), printed(k1, k2, N)


CASES = list(cases())
each_case = pytest.mark.parametrize(
    ("cov", "exact"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)


def draw(cov, samples, generator, n=N):
    """(samples, n, n) Hessians mean·I + √a·G + √c·ξ·I."""
    square = generator.normal(size=(samples, n, n))
    shift = cov.mean + cov.c**0.5 * generator.normal(size=samples)
    g = (square + square.transpose(0, 2, 1)) / 2**0.5
    return cov.a**0.5 * g + shift[:, None, None] * np.eye(n)


def assert_moments(hessians, exact, mean=0.0):
    """Sample means and covariances of the upper triangle within four standard errors of each."""
    samples, n = hessians.shape[:2]
    rows, columns = np.triu_indices(n)
    entries = hessians[:, rows, columns]
    law = exact[rows, columns][:, rows, columns]
    variance = np.diag(law)
    error = np.abs(entries.mean(0) - mean * (rows == columns))
    assert (error < 4 * np.sqrt(variance / samples)).all()
    # for normal x, y a sample covariance has variance (Var x Var y + Cov(x, y)²)/samples
    standard = np.sqrt((np.outer(variance, variance) + law**2) / samples)
    assert (np.abs(np.cov(entries.T) - law) < 4 * standard).all()


@each_case
def test_tensor_is_what_automatic_differentiation_says(cov, exact):
    # some tens of operations for each element, all of the size of the largest
    np.testing.assert_allclose(cov.tensor(N), exact, rtol=0, atol=100 * EPS * exact.max())
    for index in [
        (0, 0, 0, 0),
        (0, 1, 0, 1),
        (0, 1, 1, 0),
        (0, 0, 1, 1),
        (0, 1, 2, 2),
        (0, 1, 1, 2),
    ]:
        assert cov.entry(*index) == cov.tensor(N)[index]


@each_case
def test_sampled_entries_have_the_exact_covariance(cov, exact):
    name = json.dumps(cov.settings)
    assert_moments(draw(cov, 100_000, rng.stream(1, "covariance", name)), exact)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixture", "p_spin-3"])
def test_the_sampler_has_the_exact_covariance(name):
    cov, exact = next((cov, exact) for label, cov, exact in CASES if label == name)
    hessians = np.array([sample_hessian(cov, N, seed=3, index=i) for i in range(20_000)])
    assert_moments(hessians, exact)


def test_the_test_of_moments_can_fail():
    """Eight per cent of c in excess, eight standard errors of Cov(H_11, H_22), are noticed."""
    cov = lossmodel.rbf()
    more = dataclasses.replace(cov, c=1.08 * cov.c)
    with pytest.raises(AssertionError):
        assert_moments(draw(more, 100_000, rng.stream(2, "covariance")), cov.tensor(N))


@pytest.mark.parametrize("name", STATIONARY)
def test_stationary_has_both_moments_from_the_second_derivative(name):
    cov = STATIONARY[name].cov
    assert cov.a == cov.c == cov.derivative(2, 0.0)
    assert cov.loss_variance == cov.derivative(0, 0.0)
    assert cov.gradient_variance == cov.derivative(1, 0.0)


def test_paper_differs_from_the_process_unless_the_squares_agree():
    process = lossmodel.stationary(lambda q: 2 / (1 - q))  # k' = 2, k'' = 4 at 0
    same = lossmodel.paper(process.derivative(1, 0.0), process.derivative(2, 0.0))
    assert same.tensor(2).tolist() == process.tensor(2).tolist()
    process = lossmodel.stationary(lambda q: 1 / (1 - q))  # k' = 1, k'' = 2
    other = lossmodel.paper(process.derivative(1, 0.0), process.derivative(2, 0.0))
    assert other.a == process.a
    assert (other.c, process.c) == (1.0, 2.0)
    assert other.entry(0, 0, 0, 0) == 5
    assert process.entry(0, 0, 0, 0) == 6


@pytest.mark.parametrize("p", [2, 3, 7])
def test_pure_p_spin_obeys_the_printed_equation(p):
    cov = lossmodel.p_spin(p)
    assert cov.tensor(2).tolist() == lossmodel.paper(p, p * (p - 1)).tensor(2).tolist()
    same = lossmodel.mixed_spherical([0] * (p - 2) + [1])
    assert (cov.a, cov.c, cov.gradient_variance) == (same.a, same.c, same.gradient_variance)


def test_the_hessian_of_the_sphere_does_not_depend_on_the_extension():
    """The oracle of the spherical tests: two extensions of ε off the sphere, one Hessian."""
    cosine = spherical_covariance(
        lambda t: t**3, N, extend=lambda x, y: x @ y / ((x @ x) * (y @ y)) ** 0.5
    )
    # some hundreds of operations on numbers of the size of the largest element
    np.testing.assert_allclose(
        cosine, spherical_covariance(lambda t: t**3, N), rtol=0, atol=1e3 * EPS * cosine.max()
    )


def conditional_cases():
    origin = np.zeros(N)
    for name, (cov, k) in SMOOTH.items():
        cross = derivative(k, origin, origin, 0, 2)
        yield name, cov, derivative(k, origin, origin, 2, 2), cross
    for name, (cov, nu) in SPHERICAL.items():
        yield name, cov, spherical_covariance(nu, N), spherical_value_covariance(nu, N)


CONDITIONAL = list(conditional_cases())


@pytest.mark.parametrize(
    ("cov", "exact", "cross"), [c[1:] for c in CONDITIONAL], ids=[c[0] for c in CONDITIONAL]
)
@pytest.mark.parametrize("u", [0.0, -1.3, 4.0])
def test_given_loss_is_the_gaussian_conditional_law(cov, exact, cross, u):
    given = cov.given_loss(u)
    law = exact - np.multiply.outer(cross, cross) / cov.loss_variance
    bound = 100 * EPS * exact.max()
    np.testing.assert_allclose(given.tensor(N), law, rtol=0, atol=bound)
    mean = cross * u / cov.loss_variance
    np.testing.assert_allclose(given.mean * np.eye(N), mean, rtol=100 * EPS, atol=bound)
    assert given.settings["given_loss"] == u
    assert given.gradient_variance == cov.gradient_variance


@pytest.mark.parametrize("cov", [lossmodel.rbf(3.1, 0.7), lossmodel.p_spin(2), lossmodel.p_spin(9)])
def test_the_loss_fixes_the_trace_of_a_model_with_one_scale(cov):
    assert cov.given_loss(0.3).c == 0.0


@pytest.mark.parametrize("name", STATIONARY)
def test_hessians_of_joint_samples_have_the_conditional_law(name):
    """Regression of H on ε over samples of (ε, ∇ε, H) at one point; what is left is the law."""
    cov, samples, n, u = STATIONARY[name].cov, 100_000, 2, 1.1
    root = np.linalg.cholesky(cov.joint(np.zeros((1, n))))
    numbers = rng.stream(4, "conditional", name).normal(size=(samples, len(root))) @ root.T
    loss, triangle = numbers[:, 0], numbers[:, 1 + n :]
    given = cov.given_loss(u)
    slope = triangle.T @ loss / (loss @ loss)
    rows, columns = np.triu_indices(n)
    law = given.tensor(n)[rows, columns][:, rows, columns]
    # the error of a regression's slope: residual variance over the sum of squares of ε
    error = np.abs(slope - given.mean / u * (rows == columns))
    assert (error < 4 * np.sqrt(np.diag(law) / (samples * cov.loss_variance))).all()
    rest = triangle - loss[:, None] * slope
    hessians = np.zeros((samples, n, n))
    hessians[:, rows, columns] = rest
    assert_moments(hessians, given.tensor(n))


def test_given_loss_of_the_printed_covariance():
    given = lossmodel.paper(2.0, 1.0, k0=4.0).given_loss(3.0)
    assert (given.a, given.c, given.mean) == (1.0, 2.0**2 * (1 - 1 / 4), -2.0 * 3.0 / 4)
    assert lossmodel.paper(2.0, 1.0).given_loss(1.0).c == 0
    assert lossmodel.paper(0.0, 1.0, k0=0.1).given_loss(1.0).c == 0
    with pytest.raises(LossModelError, match="variance of the loss must be at least 1"):
        lossmodel.paper(2.0, 1.0, k0=0.5).given_loss(1.0)


@pytest.mark.parametrize("u", [float("nan"), float("inf"), 1j, True, None, "1", [1.0]])
def test_a_loss_value_must_be_a_number(u):
    with pytest.raises(LossModelError, match="loss value u must be a finite real number"):
        lossmodel.rbf().given_loss(u)


def test_the_loss_is_known_only_once():
    given = lossmodel.rbf().given_loss(0.5)
    for u in (0.5, 0.6):
        with pytest.raises(LossModelError, match=r"known already \(given_loss = 0.5\)"):
            given.given_loss(u)
    with pytest.raises(LossModelError, match="no law of the loss value"):
        lossmodel.HessianCovariance(1.0, 1.0).given_loss(0.0)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"a": 0.0, "c": 1.0}, "Var H_12 must be positive"),
        ({"a": float("nan"), "c": 1.0}, "Var H_12 must be a finite"),
        ({"a": 1.0, "c": -0.1}, "must not be negative, got -0.1"),
        ({"a": 1.0, "c": float("inf")}, "must be a finite"),
        ({"a": True, "c": 1.0}, "must be a finite"),
        ({"a": 1.0, "c": 1.0, "mean": "0"}, "mean must be a finite"),
        ({"a": 1.0, "c": 1.0, "loss_variance": -1.0}, "loss_variance must not be negative"),
        ({"a": 1.0, "c": 1.0, "gradient_variance": float("nan")}, "gradient_variance must be a"),
    ],
)
def test_laws_that_do_not_exist(arguments, reason):
    with pytest.raises(LossModelError, match=reason):
        lossmodel.HessianCovariance(**arguments)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: lossmodel.paper(-1.0, 1.0), "variance of a gradient, got -1"),
        (lambda: lossmodel.paper(1.0, 0.0), "k2 = k''.0. must be positive"),
        (lambda: lossmodel.paper(1.0, 1.0, 0.0), "k0 = k.0. must be positive"),
        (lambda: lossmodel.paper(float("nan"), 1.0), "k1 = k'.0. must be a finite"),
        (lambda: lossmodel.p_spin(1), "p must be an integer of at least 2"),
        (lambda: lossmodel.p_spin(2.5), "p must be an integer"),
        (lambda: lossmodel.p_spin(True), "p must be an integer"),
        (lambda: lossmodel.mixed_spherical([]), "non-empty"),
        (lambda: lossmodel.mixed_spherical([0, 0.0]), "not all zero"),
        (lambda: lossmodel.mixed_spherical([1, -0.1]), "must not be negative"),
        (lambda: lossmodel.mixed_spherical([1, float("nan")]), "must be finite"),
        (lambda: lossmodel.mixed_spherical(3.0), "1 dimension"),
        (lambda: lossmodel.mixed_spherical(lambda t: t), "ν''.1. is the variance of the Hessian"),
        (lambda: lossmodel.mixed_spherical(lambda t: 5 - t), "ν'.1. is the variance of the grad"),
        (lambda: lossmodel.mixed_spherical(lambda t: t**2 - 2), "ν.1. is the variance of the loss"),
        (lambda: lossmodel.mixed_spherical(lambda t: t**4 - 0.8), "spheres of every dimension"),
        (lambda: lossmodel.mixed_spherical(lambda t: 2 - (1 - t) ** 0.5), "finite and continuous"),
        (lambda: lossmodel.mixed_spherical(lambda t: torch.exp(2 - (t - 1).abs())), "kink"),
        (lambda: lossmodel.mixed_spherical(lambda t: t / 0 * float("nan")), "= nan"),
        (lambda: lossmodel.rbf().entry(0, 0, -1, 0), "index must be an integer of at least 0"),
        (lambda: lossmodel.rbf().tensor(0), "n must be an integer of at least 1"),
    ],
)
def test_models_that_do_not_exist(make, reason):
    with pytest.raises(LossModelError, match=reason):
        make()


@pytest.mark.parametrize("cov", [c[1] for c in CASES], ids=[c[0] for c in CASES])
def test_settings_are_plain_and_complete(cov):
    settings = cov.settings
    assert json.loads(json.dumps(settings)) == settings
    assert (settings["a"], settings["c"], settings["mean"]) == (cov.a, cov.c, cov.mean)
    assert settings["kernel"] == cov.name


def test_settings_name_the_parameters():
    assert lossmodel.matern(2.5, 2, 3).settings.items() >= {
        "kernel": "matern", "nu": 2.5, "variance": 2.0, "length": 3.0
    }.items()  # fmt: skip
    assert lossmodel.mixture([lossmodel.rbf(length=2)], [3]).settings["parts"][0]["length"] == 2.0
    assert lossmodel.stationary(torch.exp, name="exp").settings["function"] == "exp"
