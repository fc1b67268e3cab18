"""Kernels written twice, in the package and in torch, and what automatic differentiation says."""

from typing import NamedTuple

import torch
from torch.func import jacrev

from hessrmt import lossmodel


class Sample(NamedTuple):
    """A covariance of the package and the same kernel as a torch function of q."""

    cov: lossmodel.Stationary
    k: object


def _matern(polynomial, twice_nu, variance, length):
    def k(q):
        x = torch.sqrt(-2 * twice_nu * q) / length
        return variance * sum(c * x**m for m, c in enumerate(polynomial)) * torch.exp(-x)

    return k


SMOOTH = {
    "rbf": Sample(lossmodel.rbf(1.7, 0.8), lambda q: 1.7 * torch.exp(q / 0.64)),
    "rational_quadratic": Sample(
        lossmodel.rational_quadratic(0.6, 1.3, 0.7), lambda q: 0.6 * (1 - q / (0.7 * 1.69)) ** -0.7
    ),
    "mixture": Sample(
        lossmodel.mixture([lossmodel.rbf(), lossmodel.rational_quadratic(2.0, 0.5, 3.0)], [0.3, 2]),
        lambda q: 0.3 * torch.exp(q) + 4 * (1 - q / 0.75) ** -3,
    ),
}
"""Kernels whose formulas torch can differentiate at q = 0."""

ROUGH = {
    "matern-5/2": Sample(
        lossmodel.matern(2.5, 1.2, 0.9), _matern((1, 1, 1 / 3), 5, variance=1.2, length=0.9)
    ),
    "matern-7/2": Sample(
        lossmodel.matern(3.5, 0.8, 1.4), _matern((1, 1, 2 / 5, 1 / 15), 7, variance=0.8, length=1.4)
    ),
}
"""Kernels with a square root, whose formulas torch can differentiate at q < 0 only."""

STATIONARY = SMOOTH | ROUGH

SPHERICAL = {
    "p_spin-2": (lossmodel.p_spin(2), lambda t: t**2),
    "p_spin-3": (lossmodel.p_spin(3), lambda t: t**3),
    "p_spin-5": (lossmodel.p_spin(5), lambda t: t**5),
    "mixed": (lossmodel.mixed_spherical([0.5, 0, 2]), lambda t: 0.5 * t**2 + 2 * t**4),
    "mixed-function": (
        lossmodel.mixed_spherical(lambda t: torch.exp(t) - 1),
        lambda t: t.exp() - 1,
    ),
}


def derivative(k, w, v, at_w, at_v):
    """∂^at_w ∂'^at_v k(-½|w - v|²) by torch alone, indices of w first."""

    def f(w, v):
        return k(-((w - v) ** 2).sum() / 2)

    for _ in range(at_w):
        f = jacrev(f, argnums=0)
    for _ in range(at_v):
        f = jacrev(f, argnums=1)
    return f(torch.as_tensor(w), torch.as_tensor(v)).numpy()


def riemannian_hessian(f, w):
    """P∇²fP - (w·∇f)P of a function on the sphere, in the first coordinates, w along the last."""
    m = len(w) - 1
    gradient, hessian = jacrev(f)(w), jacrev(jacrev(f))(w)
    return hessian[..., :m, :m] - (gradient @ w)[..., None, None] * torch.eye(m, dtype=w.dtype)


def _pole(n):
    return torch.eye(n + 1, dtype=torch.float64)[-1]


def spherical_covariance(nu, n):
    """Cov(H_ij, H_kl) of the n × n Riemannian Hessian of Cov(ε(x), ε(y)) = ν(x·y), by torch."""
    w = _pole(n)
    return riemannian_hessian(lambda x: riemannian_hessian(lambda y: nu(x @ y), w), w).numpy()


def spherical_value_covariance(nu, n):
    """Cov(ε, H_ij) of the same Hessian."""
    w = _pole(n)
    return riemannian_hessian(lambda y: nu(w @ y), w).numpy()
