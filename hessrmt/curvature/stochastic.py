"""Estimates from random vectors: the density of all eigenvalues, traces and Frobenius norms.

**Stochastic Lanczos quadrature.** For a random unit vector v, vᵀ f(H) v has the mean tr f(H)/P.
Lanczos from v gives the Gauss quadrature of that form: nodes are the eigenvalues of the tridiagonal
matrix, weights the squared first components of its eigenvectors, exact for polynomials of degree
2m - 1 (Golub and Meurant 2010; Ubaru, Chen and Saad 2017).

**Traces**, with error bars. tr H and ‖H‖_F² = tr H² come from the same products, by way of ‖Hv‖².
The dominant part of the spectrum is taken out exactly and only the rest is estimated:

- Hutch++: Meyer, Musco, Musco and Woodruff 2021, algorithm 1;
- XTrace: Epperly, Tropp and Webber 2024, §2 and (with vectors that are uniform on a sphere) §2.3:
  every vector is used for the dominant part of all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal

from hessrmt import rng
from hessrmt.arrays import sample_mean
from hessrmt.checks import one_of, require_whole
from hessrmt.curvature.differences import DIFFERENTIATION
from hessrmt.curvature.foreign import as_operator
from hessrmt.curvature.lanczos import tridiagonal
from hessrmt.curvature.rounding import gaussian
from hessrmt.errors import ConfigError
from hessrmt.problems.differentiation import ordinary_mode
from hessrmt.progress import Tick, silent
from hessrmt.results import Result

if TYPE_CHECKING:
    from jaxtyping import Float64

    from hessrmt.arrays import Vector, Vectors
    from hessrmt.curvature.linear import Operator
    from hessrmt.problems.problem import Problem

    Grid = Float64[np.ndarray, " n"]
    Table = Float64[np.ndarray, "probes steps"]


LAWS = ("rademacher", "gaussian")


@dataclass(frozen=True)
class Curve(Result, axes={"point": "x density error"}, picture="certification.curve"):
    """A density with its error.

    Attributes:
        x: (n,) eigenvalues, ascending.
        density: (n,) share of the eigenvalues per unit of ``asinh(x/scale)``, or of ``x`` if
            ``scale`` is infinite; its integral is 1.
        error: (n,) standard error over the probes; NaN from one probe.
        scale: Below it the axis is linear in x, above it logarithmic.
        width: Standard deviation of the kernel on that axis.
    """

    x: Grid
    density: Grid
    error: Grid
    scale: float
    width: float


@dataclass(frozen=True)
class Quadrature(Result, axes={"probe step": "nodes weights"}, picture="certification.quadrature"):
    """Gauss quadratures of the spectral density, one for each random vector.

    Attributes:
        nodes: (probes, steps) float64, ascending; NaN behind the last node of a probe whose Krylov
            space was exhausted before.
        weights: (probes, steps), positive, with sum 1; 0 there.
        dimension: P.
    """

    nodes: Table
    weights: Table
    dimension: int

    @classmethod
    def none(cls, steps: int, dimension: int) -> Quadrature:
        """The quadratures before the first probe.

        Args:
            steps: Of each probe to come.
            dimension: P.

        Returns:
            No row.
        """
        return cls(np.empty((0, steps)), np.empty((0, steps)), dimension)

    def __len__(self) -> int:
        return len(self.nodes)

    def mean(self, function: Callable[[Table], Table]) -> tuple[float, float]:
        """Mean of f over the spectrum, tr f(H)/P.

        Args:
            function: f, elementwise.

        Returns:
            Mean over the probes and its standard error; NaN from one probe.
        """
        values = np.where(np.isnan(self.nodes), 0.0, function(np.nan_to_num(self.nodes)))
        return sample_mean((self.weights * values).sum(axis=1))

    def moments(self, count: int = 4) -> tuple[Grid, Grid]:
        """Moments tr(H^k)/P, k = 1 to ``count``.

        Args:
            count: Of them; at most 2m - 1 are exact for each probe.

        Returns:
            (count,) means and standard errors over the probes, in powers of the eigenvalues' unit.
        """
        found = [self.mean(lambda x, k=k: x**k) for k in range(1, count + 1)]
        return np.array([m for m, _ in found]), np.array([e for _, e in found])

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest node."""
        return float(np.nanmin(self.nodes)), float(np.nanmax(self.nodes))

    @property
    def resolution(self) -> float:
        """Distance of the neighbours of the node nearest to zero, the widest of all probes."""
        found = [1e-6 * (max(map(abs, self.range)) or 1.0)]
        # a probe with fewer nodes has as many as eigenvalues that differ: nothing lies between them
        for nodes in self.nodes[~np.isnan(self.nodes).any(axis=1)]:
            middle = int(np.argmin(np.abs(nodes)))
            near = nodes[max(0, middle - 1) : middle + 2]
            found.append(float(near[-1] - near[0]))
        return max(found)

    def density(
        self, points: int = 1001, *, scale: float | None = None, width: float | None = None
    ) -> Curve:
        """A smooth density on an axis that is linear near zero and logarithmic beyond.

        Every node becomes a Gaussian of its weight on the axis u = asinh(λ/scale).

        Args:
            points: Of the curve.
            scale: In the units of the eigenvalues; infinite for an axis that is linear everywhere.
                If None, what the nodes next to zero can resolve: the quadrature knows of no
                structure below that.
            width: Standard deviation of the Gaussian on that axis; 1/80 of its length if None.

        Returns:
            The curve.

        Raises:
            ConfigError: If a number is not positive.
        """
        scale = self.resolution if scale is None else float(scale)
        if not scale > 0 or points < 2 or (width is not None and not width > 0):
            raise ConfigError(
                f"scale, width and points of a density must be positive, got {scale!r}, {width!r} "
                f"and {points!r}"
            )

        def axis(x: np.ndarray) -> np.ndarray:
            return x if np.isinf(scale) else np.arcsinh(x / scale)

        ends = axis(np.array(self.range))
        length = float(ends[1] - ends[0]) or 1.0
        width = length / 80 if width is None else float(width)
        u = np.linspace(ends[0] - 4 * width, ends[1] + 4 * width, points)
        centres = axis(np.nan_to_num(self.nodes))
        bells = (np.exp(-(((u[:, None] - row) / width) ** 2) / 2) for row in centres)
        pairs = zip(bells, self.weights, strict=True)
        curves = np.array([bell @ weights for bell, weights in pairs])
        mean, error = sample_mean(curves / (width * np.sqrt(2 * np.pi)))
        x = u if np.isinf(scale) else scale * np.sinh(u)
        return Curve(x, mean, error, scale, width)

    def share_above(self, cutoff: float) -> tuple[float, float]:
        """Share of the eigenvalues with |λ| > cutoff.

        A step is no polynomial: besides the error over probes the share carries that of the
        quadrature, at most the weight of the nodes next to ±cutoff.

        Args:
            cutoff: In the units of the eigenvalues.

        Returns:
            The share and its standard error over the probes.
        """
        return self.mean(lambda x: (np.abs(x) > cutoff).astype(np.float64))


def probe(
    operator: Operator, seed: int, number: int, law: str, purpose: str = "probe"
) -> torch.Tensor:
    """A random vector of independent entries with mean 0 and variance 1.

    Args:
        operator: Says of what size, type and place.
        seed: The run's.
        number: Of the probe.
        law: ``"rademacher"`` or ``"gaussian"``.
        purpose: Vectors for different purposes are independent.

    Returns:
        (P,). Raises ConfigError if the law is unknown.
    """
    one_of("law of probes", law, LAWS, error=ConfigError)
    if law == "gaussian":
        return gaussian(operator.dimension, operator, purpose, law, number, seed=seed)
    generator = rng.torch_generator(seed, purpose, law, number)
    bits = torch.randint(0, 2, (operator.dimension,), generator=generator)
    return (2.0 * bits.to(torch.float64) - 1.0).to(dtype=operator.dtype, device=operator.device)


@ordinary_mode()
def quadrature(
    operator: Operator | Problem | tuple[Callable[[Vector], Vector], int],
    probes: int = 10,
    steps: int = 100,
    *,
    law: str = "rademacher",
    seed: int = 0,
    together: int = 1,
    tick: Tick | None = None,
) -> Quadrature:
    """Stochastic Lanczos quadrature.

    Args:
        operator: H: an operator, a problem, or a pair (matvec, n).
        probes: Random vectors; from two on there are standard errors.
        steps: m of each; P if that is less.
        law: Of their entries: ``"rademacher"`` (±1) or ``"gaussian"``.
        seed: Of the probes. A probe depends on its number and on nothing else.
        together: Probes that share the passes over the data; changes no result.
        tick: Told of progress.

    Returns:
        Nodes and weights.

    Raises:
        ConfigError: If a number is not positive.
        ProblemError: If the matrix is not symmetric.
    """
    require_whole(probes=probes, steps=steps, together=together)
    matrix = as_operator(operator)
    matrix.expect(probes * min(steps, matrix.dimension))
    empty = Quadrature.none(steps, matrix.dimension)
    *_, found = extended(matrix, empty, probes, law, seed, together, tick or silent)
    return found


def extended(
    operator: Operator,
    found: Quadrature,
    probes: int,
    law: str,
    seed: int,
    together: int,
    tick: Tick,
) -> Iterator[Quadrature]:
    """A quadrature that has ever more probes.

    Args:
        operator: H.
        found: What there is already.
        probes: How many there are to be.
        law: Of their entries.
        seed: The run's.
        together: Probes that share the passes over the data.
        tick: Told of progress.

    Yields:
        The quadrature after every group of probes.
    """
    steps = found.nodes.shape[1]
    for first in range(len(found), probes, together):
        numbers = range(first, min(first + together, probes))

        def progress(step: int, first: int = first, group: int = len(numbers)) -> None:
            tick("density", first * steps + step * group, probes * steps)

        starts = torch.stack([probe(operator, seed, number, law) for number in numbers])
        more = ((0, len(numbers)), (0, 0))
        nodes = np.pad(found.nodes, more, constant_values=np.nan)
        weights = np.pad(found.weights, more)
        length = min(steps, operator.dimension)
        for row, small in enumerate(tridiagonal(operator, starts, length, progress), first):
            values, vectors = eigh_tridiagonal(*small)
            nodes[row, : len(values)], weights[row, : len(values)] = values, vectors[0] ** 2
        found = Quadrature(nodes, weights, operator.dimension)
        yield found


METHODS = ("hutch++", "xtrace")

_FEWEST = {"xtrace": 4, "hutch++": 6}
"""Products from which there is an error bar: two random vectors."""

_BLOCK = 8


@dataclass(frozen=True)
class Traces(Result, derived="frobenius frobenius_error"):
    """Estimates of tr H and tr H².

    Attributes:
        trace: Of H.
        trace_error: Its standard error. By finite differences n e is added, e the error of each
            product with a unit vector.
        square: tr H² = ‖H‖_F².
        square_error: Its standard error; by finite differences 2 √n ‖H‖_F e + n e² is added.
        method: ``"xtrace"`` or ``"hutch++"``.
        products: Products with H that they took.
        products_by: ``"differentiation"`` or ``"finite-difference"``.
    """

    trace: float
    trace_error: float
    square: float
    square_error: float
    method: str
    products: int
    products_by: str = DIFFERENTIATION

    @property
    def frobenius(self) -> float:
        """‖H‖_F."""
        return max(self.square, 0.0) ** 0.5

    @property
    def frobenius_error(self) -> float:
        """Its standard error, to first order."""
        return self.square_error / (2 * self.frobenius) if self.frobenius else 0.0


@ordinary_mode()
def traces(
    operator: Operator | Problem | tuple[Callable[[Vector], Vector], int],
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
    matrix.expect(products)
    tick, done = tick or silent, 0

    def apply(block: Vectors) -> Vectors:
        nonlocal done
        if not len(block):
            return block
        found = []
        for part in block.split(_BLOCK):
            found.append(matrix(part))
            done += len(part)
            tick("trace", min(done, products), products)
        return torch.cat(found)

    law = "gaussian" if method == "xtrace" else "rademacher"
    count = min(products // (2 if method == "xtrace" else 3), matrix.dimension)
    draw = [probe(matrix, seed, number, law, "trace") for number in range(2 * count)]
    vectors = torch.stack(draw)
    if method == "hutch++":
        both = _hutchpp(apply, vectors[:count], vectors[count:])
    else:
        both = _xtrace(apply, vectors[:count])
    (mean, error), (square, spread) = (map(float, sample_mean(values)) for values in both)
    size, each = matrix.dimension, matrix.product_error
    if each:
        unit = vectors[:1] / vectors[0].norm()
        each += float(matrix.truncation(unit))
        error += size * each
        spread += 2 * (size * max(square, 0.0)) ** 0.5 * each + size * each**2
    return Traces(mean, error, square, spread, method, done, matrix.products_by)


def check_products(method: str, products: int) -> None:
    """Refuse a method or a number of products that cannot be.

    Args:
        method: ``"hutch++"`` or ``"xtrace"``.
        products: Of the operator.

    Raises:
        ConfigError: If the method is unknown or the products too few.
    """
    one_of("method", method, METHODS, error=ConfigError)
    require_whole(products=products)
    if products < _FEWEST[method]:
        raise ConfigError(f"{method} needs at least {_FEWEST[method]} products, got {products}")


def _hutchpp(
    apply: Callable[[Vectors], Vectors], sketch: Vectors, rest: Vectors
) -> tuple[np.ndarray, np.ndarray]:
    """tr(QᵀHQ) + mean of gᵀ(I - QQᵀ)H(I - QQᵀ)g, and the same of H²."""
    basis = _span(apply(sketch))[0]
    image = apply(basis)
    probes = rest - (rest @ basis.T) @ basis
    moved = apply(probes)
    projected = moved - (moved @ basis.T) @ basis
    first = (basis * image).sum().double() + (probes * projected).sum(dim=1).double()
    second = image.square().sum().double() + moved.square().sum(dim=1).double()
    return first.cpu().numpy(), second.cpu().numpy()


def _xtrace(apply: Callable[[Vectors], Vectors], probes: Vectors) -> tuple[np.ndarray, np.ndarray]:
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
    return np.array(firsts), np.array(seconds)


def _span(images: Vectors) -> tuple[Vectors, Vectors]:
    """Orthonormal rows that span the given ones, and the coordinates of the latter.

    Returns:
        (r, P) basis and (k, r) coordinates; r is the numerical rank.
    """
    left, sizes, right = torch.linalg.svd(images, full_matrices=False)
    floor = max(images.shape) ** 0.5 * torch.finfo(images.dtype).eps * float(sizes.max())
    keep = sizes > 10 * floor
    return right[keep], left[:, keep] * sizes[keep]
