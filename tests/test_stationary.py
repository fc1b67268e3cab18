"""Stationary kernels: derivatives, covariances between points, and what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_samples import SMOOTH, STATIONARY, derivative
from properties import examples
from scipy.integrate import quad

from hessrmt import lossmodel, rng
from hessrmt.errors import DataError

EPS = float(np.finfo(float).eps)
METHODS = {
    (0, 0): "value_covariance",
    (0, 1): "value_gradient_covariance",
    (1, 1): "gradient_covariance",
    (0, 2): "value_hessian_covariance",
    (1, 2): "gradient_hessian_covariance",
    (2, 2): "hessian_covariance",
}


def deviation(cov, orders):
    """Largest standard deviation of a derivative of ε of each order, multiplied.

    By Cauchy and Schwarz no covariance is larger; every term of its formula is of this size at
    most, up to a small number.
    """
    of_order = [cov.loss_variance, cov.gradient_variance, 3 * cov.a]
    return math.prod(of_order[order] ** 0.5 for order in orders)


@pytest.mark.parametrize("name", STATIONARY)
@pytest.mark.parametrize("orders", METHODS)
@pytest.mark.parametrize("n", [1, 3])
def test_covariances_between_points(name, orders, n):
    cov, k = STATIONARY[name]
    generator = rng.stream(5, "points", n)
    for _ in range(3):
        w, v = generator.normal(size=(2, n))
        ours = getattr(cov, METHODS[orders])(w, v)
        # hundreds of roundings; torch's Matérn sums powers up to x^-7 of x > 0.3
        atol = (1e3 if name in SMOOTH else 1e7) * EPS * deviation(cov, orders)
        np.testing.assert_allclose(ours, derivative(k, w, v, *orders), rtol=0, atol=atol)


@pytest.mark.parametrize("name", STATIONARY)
def test_hessians_at_one_point_have_the_law_of_the_class(name):
    cov = STATIONARY[name].cov
    assert cov.hessian_covariance([0.5, 2.0], [0.5, 2.0]).tolist() == cov.tensor(2).tolist()
    assert not cov.gradient_hessian_covariance([1.0, 2.0], [1.0, 2.0]).any()


@pytest.mark.parametrize("name", STATIONARY)
@pytest.mark.parametrize("pair", [(0, 1), (1, 1)])
def test_joint_matrix_holds_the_covariances_between_points(name, pair):
    cov, triangle = STATIONARY[name].cov, np.triu_indices(3)
    points = np.array([[0.0, 0.0, 0.0], [0.3, -1.0, 0.2]])
    joint = cov.joint(points)
    assert joint.shape == (20, 20)
    assert (joint == joint.T).all()
    w, v = points[list(pair)]
    block = joint.reshape(2, 10, 2, 10)[pair[0], :, pair[1], :]
    # the same sum of at most ten terms, in another order
    close = {"rtol": 0, "atol": 20 * EPS * max(deviation(cov, (0, 0)), deviation(cov, (2, 2)))}
    parts = slice(0, 1), slice(1, 4), slice(4, 10)
    for (i, j), method in METHODS.items():
        between = getattr(cov, method)(w, v)
        between = between[..., *triangle] if j == 2 else between
        between = between[triangle] if i == 2 else between
        np.testing.assert_allclose(block[parts[i], parts[j]].squeeze(), between, **close)
        # the other way round an odd number of derivatives changes the sign
        turned = block[parts[j], parts[i]].squeeze().T
        np.testing.assert_allclose(turned, (-1) ** (i + j) * between, **close)


KERNELS = [sample.cov for sample in STATIONARY.values()] + [
    lossmodel.matern(2.1),
    lossmodel.matern(3.0),
    lossmodel.matern(4.0, 2.0, 0.1),
    lossmodel.matern(80.0),
]


@settings(max_examples=examples(60))
@given(
    st.sampled_from(KERNELS),
    st.integers(0, 2**31),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([1e-200, 1e-90, 1e-8, 1e-2, 1.0, 1e3]),
    st.booleans(),
)
def test_joint_matrix_is_positive(cov, seed, m, n, size, twice):
    points = size * rng.stream(seed, "positive").normal(size=(m, n))
    points = np.concatenate([points, points[:1]]) if twice else points
    joint = cov.joint(points)
    # each element is within some tens of roundings of a covariance, and a Matérn's, which is an
    # exponential of a sum of logarithms up to log Γ(ν), within as many more; eigenvalues are within
    # the same share of the largest, which the trace bounds
    logarithms = math.lgamma(cov.parameters.get("nu", 1.0))
    bound = 4 * (25 + logarithms) * EPS * np.trace(joint)
    assert np.linalg.eigvalsh(joint)[0] > -bound
    assert np.isfinite(joint).all()


@pytest.mark.parametrize("nu", [2.05, 2.5, 3.0, 3.7, 12.0, 60.0, 100.0])
@pytest.mark.parametrize("q", [-1e-8, -1e-3, -0.4, -30.0])
def test_matern_is_a_mixture_of_squared_exponentials(nu, q):
    """The m-th derivative is E s^m exp(s q), s = ν/(length²·t), t of the Gamma law of shape ν."""
    cov, length = lossmodel.matern(nu, 1.5, 1.2), 1.2

    for m in range(5):

        def integrand(y, m=m):  # y = log t
            s = nu / length**2 * math.exp(-y)
            return 1.5 * s**m * math.exp(s * q + nu * y - math.exp(y) - math.lgamma(nu))

        exact, error = quad(integrand, -25, 7, limit=500, epsabs=0, epsrel=1e-11)
        # logarithms of some hundreds are exponentiated: their rounding, and the quadrature's error
        assert abs(cov.derivative(m, q) - exact) < 1e-11 * exact + error


@pytest.mark.parametrize("nu", [2.05, 2.5, 3.5, 40.0])
def test_matern_at_distance_zero(nu):
    """E s^m of the inverse Gamma law, and the limit of q → 0."""
    cov = lossmodel.matern(nu, 1.5, 1.2)
    exact = 1.5 * (nu / 1.2**2) ** 2 / ((nu - 1) * (nu - 2))
    assert cov.a == pytest.approx(exact, rel=1000 * EPS)
    assert cov.loss_variance == pytest.approx(1.5, rel=1000 * EPS)
    assert cov.derivative(2, -1e-200) == pytest.approx(cov.a, rel=1e-9)  # x^(2ν-4) ~ 1e-10 at 2.05
    if nu <= 3:
        with pytest.raises(DataError, match="derivative 3 of the kernel matern is not finite"):
            cov.derivative(3, 0.0)


@pytest.mark.parametrize("name", SMOOTH)
def test_named_kernels_agree_with_the_same_functions_differentiated(name):
    named, k = SMOOTH[name]
    function = lossmodel.stationary(k)
    assert function.a == pytest.approx(named.a, rel=100 * EPS)
    for order in range(5):
        ours, torchs = (cov.derivative(order, [0.0, -0.3, -50.0]) for cov in (named, function))
        # exponents up to |q|/length² ~ 100 carry their rounding
        np.testing.assert_allclose(ours, torchs, rtol=1e4 * EPS)


def test_given_derivatives_stand_in_for_automatic_ones():
    def x(q):
        return torch.sqrt(-10 * q)

    def k(q):
        return (1 + x(q) + x(q) ** 2 / 3) * torch.exp(-x(q))

    def first(q):
        return 5 / 3 * (1 + x(q)) * torch.exp(-x(q))

    def second(q):
        return 25 / 3 * torch.exp(-x(q))

    with pytest.raises(DataError, match="a square root"):
        lossmodel.stationary(k)
    function, named = lossmodel.stationary(k, derivatives=[first, second]), lossmodel.matern(2.5)
    points = [[0.0, 0.0], [1.0, 0.5], [1.0, 0.5]]
    atol = 1e3 * EPS * named.a
    np.testing.assert_allclose(function.joint(points), named.joint(points), rtol=0, atol=atol)
    with pytest.raises(DataError, match=r"the given k''.* but the difference quotient of k'"):
        lossmodel.stationary(k, derivatives=[first, lambda q: 8 * torch.exp(-x(q))])
    with pytest.raises(DataError, match="at most 4 derivatives"):
        lossmodel.stationary(k, derivatives=[first] * 5)
    with pytest.raises(DataError, match="k' must be a function of q, got float"):
        lossmodel.stationary(k, derivatives=[5 / 3])


@pytest.mark.parametrize("length", [1e-8, 1e8])
def test_scales_far_from_one_are_fine(length):
    cov = lossmodel.stationary(lambda q: torch.exp(q / length**2))
    assert cov.a == pytest.approx(lossmodel.rbf(length=length).a, rel=10 * EPS)


def test_functions_work_where_gradients_are_off():
    with torch.inference_mode():
        assert lossmodel.stationary(torch.exp).derivative(4, -1.0) == pytest.approx(math.exp(-1))


@pytest.mark.parametrize(
    ("k", "reason"),
    [
        (lambda q: torch.exp(-torch.sqrt(-2 * q)), "nu above 2"),
        (lambda q: (1 + torch.sqrt(-6 * q)) * torch.exp(-torch.sqrt(-6 * q)), "nu above 2"),
        (lambda q: torch.exp(-q.abs()), r"k'\(0\) = -?0, but 0.9999 and 1 at q = -0.0001 .* kink"),
        (lambda q: torch.exp(q) + q.abs() ** 1.5 * torch.exp(q), r"k''\(0\) = nan|k''\(0\) = inf"),
        (lambda q: torch.exp(q) + torch.relu(-q) * 0.01, r"k'\(0\) = 1, but 0.98.* kink"),
        (lambda q: torch.exp(q) - 1, "variance of the loss, expected positive, got 0"),
        (lambda q: 2 - torch.exp(q), "increases towards q = 0"),
        (lambda q: torch.exp(-(q**2)), "loss is constant; hessrmt.lossmodel.paper"),
        (lambda q: 1 + torch.sin(q), "Hessian's elements, expected positive, got -?0"),
        (lambda q: torch.cos(torch.sqrt(1e-2 - 2 * q)), "Cauchy and Schwarz"),
        (lambda q: 1 + q + 5 * q**2, "expected from 0 to k"),
        (lambda q: torch.where(q < -0.05, torch.nan, torch.exp(q)), "= nan, expected from 0"),
        (lambda q: q * float("nan"), r"k\(0\) = nan"),
        (lambda q: 1.0, "returned float, expected a float64 scalar"),
        (lambda q: torch.exp(q).float(), r"shape \(\) and torch.float32"),
        (lambda q: torch.exp(q.detach()), "constant, or torch cannot see"),
        (np.exp, r"k\(q\) failed at q = 0: RuntimeError"),
        (3.0, "k must be a function of q, got float"),
    ],
)
def test_kernels_without_a_hessian(k, reason):
    with pytest.raises(DataError, match=reason):
        lossmodel.stationary(k)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: lossmodel.rbf(length=-1.0), "length must be positive"),
        (lambda: lossmodel.rbf(length=1e-100), "a = Var H_12 must be a finite"),
        (lambda: lossmodel.rbf(length=1e100), "a = Var H_12 must be positive"),
        (lambda: lossmodel.rational_quadratic(alpha=0), "alpha must be positive"),
        (lambda: lossmodel.matern(2.0), "nu must be above 2.* no Hessian"),
        (lambda: lossmodel.matern(101), "at most 100, got 101"),
        (lambda: lossmodel.mixture([], []), "weights must not be empty"),
        (lambda: lossmodel.mixture([lossmodel.rbf()], [1, 2]), "as many weights, got 2"),
        (lambda: lossmodel.mixture([lossmodel.rbf()], [-1]), "weights must be positive"),
        (lambda: lossmodel.mixture([lossmodel.p_spin(3)], [1]), "got HessianCovariance p_spin"),
        (lambda: lossmodel.rbf().derivative(5, 0.0), "order must be at most 4"),
        (lambda: lossmodel.rbf().derivative(1, 0.1), "must be at most 0, got 0.1"),
        (lambda: lossmodel.rbf().gradient_covariance([0.0], [0.0, 1.0]), "same dimension"),
    ],
)
def test_arguments_that_cannot_be(make, reason):
    with pytest.raises(DataError, match=reason):
        make()
