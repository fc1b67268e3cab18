"""Products with a Hessian by central differences of the gradient, with a measured error.

Kernels without a second derivative (flash attention, fused normalisation, an ``autograd.Function``
marked ``once_differentiable``) have a gradient, and that is all that is needed. For a unit vector u

    H u = (4 D(h) - D(2h))/3 + O(h⁴),   D(t) = (g(θ + tu) - g(θ - tu))/2t

(Richardson 1911). One step h along unit vectors is used for all products, so that they are as
nearly those of one symmetric matrix as differences can be. It is the longest one whose truncation
is below rounding along random directions and one of large curvature.

- **Rounding**: how far the gradient moves if θ and every operation are rounded otherwise
  (``rounding.py``), over h.
- **Truncation**: the same product with h/2 differs from it by 15/16 of its truncation.
- **Kinks** (ReLU, max-pooling): what a jump of the gradient adds does not fall like h⁴ as the step
  gets shorter, it stays or grows until no kink is left between the points. Where the difference of
  two steps falls to rounding at once, kinks have been left behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from hessrmt.curvature.rounding import gaussian, length, norm_bound
from hessrmt.errors import NonFiniteError, ProblemError

if TYPE_CHECKING:
    from torch import Tensor

    from hessrmt.arrays import Vector, Vectors


DIFFERENTIATION = "differentiation"
FINITE_DIFFERENCE = "finite-difference"
PRODUCTS = (DIFFERENTIATION, FINITE_DIFFERENCE)
"""By what products with a Hessian are computed."""

_OFFSETS = (1.0, -1.0, 2.0, -2.0)
"""Where the gradient is taken, in steps."""

_SPREAD = math.sqrt(2 * (8**2 + 1)) / 12
"""‖(8, -8, -1, 1)‖/12: rounding of a product over that of one gradient, times h."""

_SAMPLES = 6
"""Gradients rounded otherwise; their largest change times 2.5 is a bound with probability 0.999."""

_SHORTEST = 40
"""Steps tried at most, each half as long as the one before."""

_ABRUPT = 200
"""Multiple of rounding from which truncation of a smooth gradient does not fall below rounding when
the step is halved: it falls by 16, and rounding doubles."""

_FALL = 4
"""How much the truncation of a smooth gradient falls at least when a step near the chosen one is
halved: by 16, or by 4 where only its third derivative jumps (ELU). That of kinks stays or grows."""

_BELOW_KINKS = 64
"""How much shorter the step is made then: a kink lies between the points of other vectors too."""

_USEFUL = 1e-6
"""Rounding over the norm up to which steps below the kinks are taken."""

_RETRIES = 3

_ADVICE = (
    "A network with kinks (ReLU, max-pooling, hard activations, a sort or a top-k choice) has a "
    "gradient that jumps between the points; take smooth activations, dtype='float64', whose steps "
    "can be short enough, or products='differentiation', if every operation can be differentiated "
    "twice"
)


class Differences:
    """Products with the Hessian of a loss whose gradient is all that can be had.

    Args:
        slopes: Gradients (m, P) at points (m, P); with a number as the second argument, those with
            points and all operations rounded otherwise (``rounding.Perturbed``).
        theta: (P,) the parameters.
        together: Whether the rows of a block should share passes over the data.

    Attributes:
        step: h, the distance of neighbouring points.
        rounding: Bound on the rounding error of a product with a unit vector, also of those so far
            that took a shorter step.
        kinked: Whether kinks were seen at longer steps: then every product is measured, and taken
            with a shorter step where it has to be.

    Raises:
        ProblemError: If no step gives products that agree with those of other steps, or they are
            not symmetric.
    """

    def __init__(
        self, slopes: Callable[..., Vectors], theta: Vector, *, together: bool = False
    ) -> None:
        self._slopes, self._theta, self._together = slopes, theta, together
        here = slopes(theta[None])
        moved = [length((slopes(theta[None], n) - here)[0]) for n in range(_SAMPLES)]
        self._of_slope = _SPREAD * norm_bound(moved)
        random = [_unit(gaussian(len(theta), theta, "differences", n)) for n in range(4)]
        self.kinked, self._shortened = False, 1.0
        self.step = torch.finfo(theta.dtype).eps ** 0.2 * max(1.0, length(theta))
        self._choose(random[:2])
        self._require_agreement(torch.stack([*random[2:], *self._tried]))

    @property
    def rounding(self) -> float:
        """Bound on the rounding error of the products so far with unit vectors."""
        return self._of_slope * self._shortened / self.step

    def __call__(self, block: Vectors) -> Vectors:
        """Products with the rows of a block.

        Args:
            block: (k, P).

        Returns:
            (k, P).
        """
        return self._scaled(block, self._below_kinks if self.kinked else self._products)

    def truncation(self, block: Vectors) -> Tensor:
        """Estimates of the truncation errors of products with unit vectors.

        Args:
            block: (k, P) unit vectors.

        Returns:
            (k,) in the 2-norm, 16/15 of the differences to products with half the step.
        """
        way = self._settled if self.kinked else self._measured
        return torch.cat([way(rows, self.step)[1] for rows in self._groups(block)])

    def _groups(self, block: Vectors) -> tuple[Vectors, ...]:
        return block.split(len(block) if self._together else 1)

    def _scaled(self, block: Vectors, way: Callable[[Vectors, float], Vectors]) -> Vectors:
        """A way for unit vectors, for vectors of any length."""
        found = []
        for rows in self._groups(block):
            lengths = rows.new_tensor([length(row) for row in rows])[:, None]
            units = rows / torch.where(lengths == 0, 1.0, lengths)
            found.append(way(units, self.step) * lengths)
        return torch.cat(found)

    def _quotients(self, units: Vectors, step: float, offsets: tuple[float, ...]) -> Tensor:
        """Central quotients (k, m/2, P), of which offsets come in pairs t and -t."""
        shifts = torch.tensor(offsets, dtype=units.dtype, device=units.device) * step
        points = self._theta + shifts[None, :, None] * units[:, None]
        slopes = self._slopes(points.flatten(0, 1)).view(len(units), -1, 2, units.shape[1])
        return (slopes[:, :, 0] - slopes[:, :, 1]) / (2 * shifts[::2, None])

    def _products(self, units: Vectors, step: float) -> Vectors:
        near, far = self._quotients(units, step, _OFFSETS).unbind(1)
        return _extrapolated(near, far)

    def _measured(self, units: Vectors, step: float) -> tuple[Vectors, Tensor]:
        """Products with unit vectors, and their truncation (k,)."""
        half, near, far = self._quotients(units, step, (0.5, -0.5, *_OFFSETS)).unbind(1)
        products = _extrapolated(near, far)
        apart = products - _extrapolated(half, near)
        return products, apart.new_tensor([16 / 15 * length(row) for row in apart])

    def _below_kinks(self, units: Vectors, step: float) -> Vectors:
        return self._settled(units, step)[0]

    def _settled(self, units: Vectors, step: float) -> tuple[Vectors, Tensor]:
        """Products each with a step at which no kink lies between the points, and truncation."""
        found, errors = [], []
        for unit in units:
            now = step
            for _ in range(_RETRIES):
                product, apart = self._measured(unit[None], now)
                if float(apart) <= 2 * self._of_slope / now:
                    found.append(product)
                    errors.append(apart)
                    self._shortened = max(self._shortened, step / now)
                    break
                now /= 8
            else:
                raise ProblemError(
                    "central differences of the gradient along a vector do not agree for any "
                    f"step from {step:.1g} down to {8 * now:.1g}. {_ADVICE}"
                )
        return torch.cat(found), torch.cat(errors)

    def _choose(self, directions: list[Vector]) -> None:
        """Find the step, and note the unit vectors along which it was tried."""
        moderate, stiff = self.step / 8, directions[0]
        for _ in range(2):
            image = self._products(stiff[None], moderate)[0]
            size = length(image)
            if not size or not math.isfinite(size):
                break
            stiff = image / size
        self._tried = torch.stack([*directions, stiff])
        far, near = self._pair(2 * self.step), self._pair(self.step)
        rejected: list[tuple[float, float]] = []
        digits = torch.finfo(self._theta.dtype).eps ** 0.5
        for _ in range(_SHORTEST):
            half = self._pair(self.step / 2)
            products, shorter = _extrapolated(near, far), _extrapolated(half, near)
            apart = max(length(row) for row in products - shorter)
            sizes = [length(row) for row in shorter]
            # kinks can't be told from truncation with less than half of the digits
            if rejected and self.rounding > digits * max(sizes):
                break
            if apart <= self.rounding:
                self._leave_kinks(rejected, max(sizes))
                return
            rejected.append((apart, self.rounding))
            self.step, far, near = self.step / 2, near, half
        raise ProblemError(
            "central differences of the gradient do not agree for any two steps: down to "
            f"{self.step:.1g} they differ by more than rounding of the gradient explains, and "
            f"shorter ones leave less than half of the digits. {_ADVICE}"
        )

    def _pair(self, step: float) -> Vectors:
        """Central quotients along the directions that are tried."""
        rows = [self._quotients(u[None], step, (1.0, -1.0))[0] for u in self._tried]
        return torch.cat(rows)

    def _leave_kinks(self, rejected: list[tuple[float, float]], norm: float) -> None:
        """Shorten the step, or refuse, if longer ones differed as they do across kinks.

        Args:
            rejected: What products with longer steps differed by, and their rounding.
            norm: The largest product.

        Raises:
            ProblemError: If the step below the kinks leaves too few digits.
        """
        last = [apart for apart, _ in rejected[-3:] if math.isfinite(apart)]
        if not last:
            return
        earlier = last[-1] / rejected[-1][1]
        if earlier <= _ABRUPT and last[0] >= _FALL ** (len(last) - 1) * last[-1]:
            return
        self.kinked = True
        seen, self.step = 2 * self.step, self.step / _BELOW_KINKS
        if self.rounding > _USEFUL * norm:
            raise ProblemError(
                f"the gradient jumps: with a step of {seen:.1g} central differences along a vector "
                f"differ from those with half of it by {earlier:.3g} times what rounding explains, "
                "as with longer steps, and then no more. Steps short enough for all vectors leave "
                f"an error of {self.rounding / norm:.1g} of the norm. {_ADVICE}"
            )

    def _require_agreement(self, units: Vectors) -> None:
        """Refuse products that depend on the step, or are not those of a symmetric matrix."""
        way = self._below_kinks if self.kinked else self._products
        products = self._scaled(units, way)
        if not bool(torch.isfinite(products).all()):
            raise NonFiniteError("a difference of gradients is NaN or infinite")
        fresh = len(units) - len(self._tried)
        quarter = torch.cat([way(u[None], self.step / 4) for u in units[:fresh]])
        apart = max(length(row) for row in products[:fresh] - quarter)
        allowed = (1 + 1 + 4) * self.rounding  # truncation, rounding, and that with h/4
        if apart > allowed:
            raise ProblemError(
                f"central differences of the gradient with steps of {self.step:.1g} and a quarter "
                f"of it differ by {apart:.3g} along a random unit vector, and their errors explain "
                f"{allowed:.3g}. {_ADVICE}"
            )
        inner = units @ products.T
        skew = float((inner - inner.T).abs().max())
        if skew > 4 * self.rounding:
            raise ProblemError(
                f"the changes of the gradient are not those of a symmetric matrix: wᵀ(Hv) and "
                f"vᵀ(Hw) differ by {skew:.3g} for unit vectors, and the errors of differences "
                f"explain {4 * self.rounding:.3g}. So torch's gradient is the gradient of no "
                "function: the backward pass of an operation is wrong (an autograd.Function, a "
                "custom kernel, a detach() or a straight-through estimator); replace it"
            )


def inexact_first(shown: dict[str, str]) -> dict[str, str]:
    """What a result's short text says: that products are not exact before anything else."""
    name = "products_by"
    return {name: shown[name]} | shown if shown[name] == FINITE_DIFFERENCE else shown


def _unit(vector: Vector) -> Vector:
    return vector / length(vector)


def _extrapolated(near: Tensor, far: Tensor) -> Tensor:
    """Of quotients with a step and twice the step, without the error of second order."""
    return (4 * near - far) / 3
