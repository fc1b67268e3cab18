"""The law of a Hessian at one point, against automatic differentiation."""

import json

import numpy as np
import pytest
import torch
from kernel_samples import (
    SMOOTH,
    SPHERICAL,
    derivative,
    spherical_covariance,
    spherical_value_covariance,
)

from hessrmt import lossmodel
from hessrmt.errors import DataError

EPS = float(np.finfo(float).eps)
N = 3


def printed(k1, k2, n):
    """Equation 17 of Baskerville, Granziol and Keating 2022, element by element."""
    tensor = np.zeros((n, n, n, n))
    for i, j, k, m in np.ndindex(n, n, n, n):
        tensor[i, j, k, m] = k2 * ((i == k) * (j == m) + (i == m) * (j == k))
        tensor[i, j, k, m] += k1**2 * (i == j) * (k == m)
    return tensor


def cases():
    """Covariances, Cov(H, H) and Cov(ε, H) of each, none from the package's own formulas."""
    origin = np.zeros(N)
    for name, (cov, k) in SMOOTH.items():
        tensors = (derivative(k, origin, origin, order, 2) for order in (2, 0))
        yield pytest.param(cov, *tensors, id=name)
    for name, (cov, nu) in SPHERICAL.items():
        tensors = spherical_covariance(nu, N), spherical_value_covariance(nu, N)
        yield pytest.param(cov, *tensors, id=name)
    for k1, k2 in [(0.0, 1e-2), (1.0, 0.1), (0.7, 3.0)]:
        cross = -k1 * np.eye(N)
        yield pytest.param(lossmodel.paper(k1, k2), printed(k1, k2, N), cross, id=f"{k1}-{k2}")


each_case = pytest.mark.parametrize(("cov", "exact", "cross"), list(cases()))


@each_case
def test_tensor_is_what_automatic_differentiation_says(cov, exact, cross):
    # some tens of operations for each element, all of the size of the largest
    np.testing.assert_allclose(cov.tensor(N), exact, rtol=0, atol=100 * EPS * exact.max())
    for index in np.ndindex(2, 3, 2, 3):
        assert cov.entry(*index) == cov.tensor(N)[index]


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


@each_case
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


def test_given_loss_of_the_printed_covariance():
    given = lossmodel.paper(2.0, 1.0, k0=4.0).given_loss(3.0)
    assert (given.a, given.c, given.mean) == (1.0, 2.0**2 * (1 - 1 / 4), -2.0 * 3.0 / 4)
    assert lossmodel.paper(2.0, 1.0).given_loss(1.0).c == 0
    assert lossmodel.paper(0.0, 1.0, k0=0.1).given_loss(1.0).c == 0
    with pytest.raises(DataError, match="variance of the loss must be at least 1"):
        lossmodel.paper(2.0, 1.0, k0=0.5).given_loss(1.0)


def test_the_loss_is_known_only_once():
    given = lossmodel.rbf().given_loss(0.5)
    for u in (0.5, 0.6):
        with pytest.raises(DataError, match=r"known already \(given_loss = 0.5\)"):
            given.given_loss(u)
    with pytest.raises(DataError, match="no law of the loss value"):
        lossmodel.HessianCovariance(1.0, 1.0).given_loss(0.0)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: lossmodel.HessianCovariance(0.0, 1.0), "Var H_12 must be positive"),
        (lambda: lossmodel.HessianCovariance(1.0, -0.1), "must be non-negative, got -0.1"),
        (lambda: lossmodel.HessianCovariance(1, 1, loss_variance=-1.0), "loss_variance must be"),
        (lambda: lossmodel.paper(-1.0, 1.0), "non-negative, got -1.*variance of a gradient"),
        (lambda: lossmodel.paper(1.0, 1.0, 0.0), "k0 = k.0. must be positive"),
        (lambda: lossmodel.p_spin(1), "p must be a whole number from 2"),
        (lambda: lossmodel.mixed_spherical([0, 0.0]), "not be all zero"),
        (lambda: lossmodel.mixed_spherical([1, -0.1]), "must be non-negative"),
        (lambda: lossmodel.mixed_spherical(lambda t: 5 - t), "ν'.1. is the variance of the grad"),
        (lambda: lossmodel.mixed_spherical(lambda t: t**4 - 0.8), "spheres of every dimension"),
        (lambda: lossmodel.mixed_spherical(lambda t: 2 - (1 - t) ** 0.5), "finite and continuous"),
        (lambda: lossmodel.mixed_spherical(lambda t: torch.exp(2 - (t - 1).abs())), "kink"),
        (lambda: lossmodel.mixed_spherical(lambda t: t / 0 * float("nan")), "= nan"),
        (lambda: lossmodel.rbf().entry(0, 0, -1, 0), "index must be a whole number"),
        (lambda: lossmodel.rbf().given_loss(float("nan")), "loss value u must be a finite"),
    ],
)
def test_models_that_do_not_exist(make, reason):
    with pytest.raises(DataError, match=reason):
        make()


@each_case
def test_settings_are_plain_and_complete(cov, exact, cross):
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
