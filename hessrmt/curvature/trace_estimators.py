"""Trace and Frobenius norm of a matrix that is known through products, with error bars.

Both come from the same products: tr H, and ‖H‖_F² = tr H² by way of ‖Hv‖². The dominant part of the
spectrum is taken out exactly and only the rest is estimated from random vectors:

- Hutch++: Meyer, Musco, Musco & Woodruff, SOSA 2021, algorithm 1;
- XTrace: Epperly, Tropp & Webber, SIAM J. Matrix Anal. Appl. 45 (2024) 1, §2 and (with vectors that
  are uniform on a sphere) §2.3: every vector is used for the dominant part of all others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hessrmt.checks import require_whole
from hessrmt.curvature.dense import Tick
from hessrmt.curvature.krylov import announce, as_operator
from hessrmt.curvature.quadrature import probe
from hessrmt.errors import ConfigError
from hessrmt.problems.problem import ordinary_mode

if TYPE_CHECKING:
    from hessrmt.arrays import Vector, Vectors
    from hessrmt.curvature.operators import SymmetricOperator
    from hessrmt.problems.problem import Problem

METHODS = ("hutch++", "xtrace")

_FEWEST = {"xtrace": 4, "hutch++": 6}
"""Products from which there is an error bar: two random vectors."""

_BLOCK = 8


@dataclass(frozen=True)
class Traces:
    """Estimates of tr H and tr H².

    Attributes:
        trace: Of H.
        trace_error: Its standard error.
        square: tr H² = ‖H‖_F².
        square_error: Its standard error.
        method: ``"xtrace"`` or ``"hutch++"``.
        products: Products with H that they took.
    """

    trace: float
    trace_error: float
    square: float
    square_error: float
    method: str
    products: int

    @property
    def frobenius(self) -> float:
        """‖H‖_F."""
        return max(self.square, 0.0) ** 0.5

    @property
    def frobenius_error(self) -> float:
        """Its standard error, to first order."""
        return self.square_error / (2 * self.frobenius) if self.frobenius else 0.0

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, e.g. for JSON.

        Returns:
            Name to value.
        """
        return asdict(self) | {
            "frobenius": self.frobenius,
            "frobenius_error": self.frobenius_error,
        }


@ordinary_mode()
def traces(
    operator: SymmetricOperator | Problem | tuple[Callable[[Vector], Vector], int],
    products: int = 60,
    method: str = "hutch++",
    *,
    seed: int = 0,
    tick: Tick | None = None,
) -> Traces:
    """Estimate tr H and ‖H‖_F² from a number of products.

    Args:
        operator: H: an operator, a problem, or a pair (matvec, n).
        products: m; no more than P are of use.
        method: ``"xtrace"`` or ``"hutch++"``.
        seed: Of the random vectors.
        tick: Told of progress.

    Returns:
        The estimates; exact up to rounding, with an error near zero, if the rank of H is below
        the number of vectors. Raises ConfigError if the method is unknown or the products too few.
    """
    check_products(method, products)
    matrix = as_operator(operator)
    announce(matrix, products)
    done = 0

    def apply(block: Vectors) -> Vectors:
        nonlocal done
        if not len(block):
            return block
        found = []
        for part in block.split(_BLOCK):
            found.append(matrix(part))
            done += len(part)
            if tick:
                tick("trace", min(done, products), products)
        return torch.cat(found)

    law = "gaussian" if method == "xtrace" else "rademacher"
    count = min(products // (2 if method == "xtrace" else 3), matrix.dimension)
    draw = [probe(matrix, seed, number, law, "trace") for number in range(2 * count)]
    vectors = torch.stack(draw)
    if method == "hutch++":
        first, second = _hutchpp(apply, vectors[:count], vectors[count:])
    else:
        first, second = _xtrace(apply, vectors[:count])
    return Traces(*first, *second, method, done)


def check_products(method: str, products: int) -> None:
    """Refuse a method or a number of products that cannot be.

    Args:
        method: ``"hutch++"`` or ``"xtrace"``.
        products: Of the operator.

    Raises:
        ConfigError: If the method is unknown or the products too few.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}; known are {', '.join(METHODS)}")
    require_whole(products=products)
    if products < _FEWEST[method]:
        raise ConfigError(f"{method} needs at least {_FEWEST[method]} products, got {products}")


def _hutchpp(
    apply: Callable[[Vectors], Vectors], sketch: Vectors, rest: Vectors
) -> tuple[tuple[float, float], tuple[float, float]]:
    """tr(QᵀHQ) + mean of gᵀ(I - QQᵀ)H(I - QQᵀ)g, and the same of H²."""
    basis = _span(apply(sketch))[0]
    image = apply(basis)
    probes = rest - (rest @ basis.T) @ basis
    moved = apply(probes)
    projected = moved - (moved @ basis.T) @ basis
    inside = float((basis * image).sum()), float(image.square().sum())
    outside = (probes * projected).sum(dim=1), moved.square().sum(dim=1)
    return tuple(  # type: ignore[return-value]
        _with_error(start + part.to(torch.float64).cpu().numpy())
        for start, part in zip(inside, outside, strict=True)
    )


def _xtrace(
    apply: Callable[[Vectors], Vectors], probes: Vectors
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The mean over i of tr(Q_iᵀHQ_i) + ω_iᵀ(I - Q_iQ_iᵀ)H(I - Q_iQ_iᵀ)ω_i, and the same of H²."""
    # Q_i spans the images of all vectors but ω_i. With Y = HΩ = QR, Q_i Q_iᵀ = Q(I - s_i s_iᵀ)Qᵀ,
    # s_i the normalised columns of R⁻ᵀ; everything follows from Q, HQ and their inner products.
    size, count = probes.shape[1], len(probes)
    images = apply(probes)
    basis, coordinates = _span(images)
    moved = apply(basis)
    rank = len(basis)
    inner = probes @ basis.T  # (i, r) Qᵀω_i
    core = basis @ moved.T  # QᵀHQ
    left_out = torch.zeros_like(inner)
    if rank == count:  # else the others already span the range
        inverse = torch.linalg.inv(coordinates)  # rows of coordinates: Qᵀy_i
        left_out = (inverse / inverse.norm(dim=0)).T
    firsts, seconds = [], []
    for number in range(count):
        s, w = left_out[number], inner[number]
        x = w - (s @ w) * s
        mu = probes[number] - x @ basis
        h_mu = images[number] - x @ moved
        length = float(mu @ mu)
        left = size - rank + float(s @ s)  # dimension of what is not taken out
        # the mean of a quadratic form over a sphere in that space
        scale = left / length if left > 0.5 and length > 0 else 0.0
        firsts.append(float(core.trace() - s @ core @ s) + scale * float(mu @ h_mu))
        seconds.append(
            float(moved.square().sum() - (s @ moved).square().sum()) + scale * float(h_mu @ h_mu)
        )
    return _with_error(np.array(firsts)), _with_error(np.array(seconds))


def _span(images: Vectors) -> tuple[Vectors, Vectors]:
    """Orthonormal rows that span the given ones, and the coordinates of the latter.

    Returns:
        (r, P) basis and (k, r) coordinates; r is the numerical rank.
    """
    left, sizes, right = torch.linalg.svd(images, full_matrices=False)
    floor = max(images.shape) ** 0.5 * torch.finfo(images.dtype).eps * float(sizes.max())
    keep = sizes > 10 * floor
    return right[keep], left[:, keep] * sizes[keep]


def _with_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)
