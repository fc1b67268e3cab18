"""H_true of the loss model: outliers drawn anew, given once and for all, or a whole matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.errors import LossModelError
from hessrmt.lossmodel.arguments import positive, real_array, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float64

    from hessrmt.arrays import Levels


@dataclass(frozen=True)
class TrueHessian:
    """The deterministic part of a sampled Hessian.

    Attributes:
        count: Outliers drawn anew for each sample, θ = scale·(1 + g²), g standard normal.
        scale: Of drawn outliers.
        values: Given outliers, the same in every sample, none of them zero.
        matrix: H_true itself, symmetric.
    """

    count: int = 0
    scale: float = 1.0
    values: tuple[float, ...] = ()
    matrix: Float64[np.ndarray, "size size"] | None = None

    @cached_property
    def spike(self) -> Levels:
        """The eigenvalues of ``matrix`` above its round-off, or the given outliers."""
        if self.matrix is None:
            return np.array(self.values, dtype=np.float64)
        levels = np.linalg.eigvalsh(self.matrix)
        floor = len(levels) * np.finfo(np.float64).eps * np.abs(levels).max(initial=0.0)
        return levels[np.abs(levels) > floor]

    @property
    def rank(self) -> int:
        """How many eigenvalues are not zero."""
        return self.count or len(self.spike)

    def draw(self, generator: np.random.Generator) -> Levels:
        """The non-zero eigenvalues in one sample.

        Args:
            generator: Source of randomness; used only if outliers are drawn.

        Returns:
            (rank,) eigenvalues in no order.
        """
        if not self.count:
            return self.spike
        return self.scale * (1 + generator.normal(size=self.count) ** 2)

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for, as plain values."""
        asked: dict[str, Any] = {"outliers": self.count or list(self.values)}
        if self.count:
            asked["outlier_scale"] = self.scale
        if self.matrix is not None:
            asked["h_true"] = {
                "shape": list(self.matrix.shape),
                "sha256": sha256(np.ascontiguousarray(self.matrix).tobytes()).hexdigest(),
            }
        return asked


def true_hessian(
    n: int,
    degenerate: int,
    outliers: int | Sequence[float] | Levels,
    outlier_scale: float,
    h_true: Float64[np.ndarray, "size size"] | None,
) -> TrueHessian:
    """Check how H_true was described.

    Args:
        n: Directions in which the loss is random.
        degenerate: Directions in which it is constant.
        outliers: How many are drawn, or their values.
        outlier_scale: Of drawn ones.
        h_true: (n, n), or (n + degenerate, n + degenerate), instead of outliers.

    Returns:
        The description.

    Raises:
        LossModelError: If there are more outliers than directions, a value is not finite, the
            matrix is not symmetric or of another shape, or both are given.
    """
    scale = positive("outlier_scale", outlier_scale)
    if isinstance(outliers, bool | str | bytes | float | np.floating) or outliers is None:
        raise LossModelError(f"outliers must be a count or a list of values, got {outliers!r}")
    if isinstance(outliers, int | np.integer):
        found = TrueHessian(count=whole("outliers", outliers), scale=scale)
    elif len(outliers):
        values = real_array("outliers", outliers, 1)
        found = TrueHessian(values=tuple(values[values != 0].tolist()))
    else:
        found = TrueHessian()
    if found.rank > n:
        raise LossModelError(
            f"{found.rank} outliers need as many directions, got n = {n}; give fewer or a larger n"
        )
    if h_true is None:
        return found
    if found.rank:
        raise LossModelError(
            f"h_true and {found.rank} outliers given: give one of them, or add the outliers to the "
            "matrix"
        )
    matrix = real_array("h_true", h_true, 2)
    if matrix.shape not in {(n, n), (n + degenerate, n + degenerate)}:
        also = f" or {(n + degenerate, n + degenerate)}" if degenerate else ""
        raise LossModelError(f"h_true must have shape {(n, n)}{also}, got {matrix.shape}")
    largest, skew = np.abs(matrix).max(), np.abs(matrix - matrix.T).max()
    if skew > len(matrix) * np.finfo(np.float64).eps * largest:
        raise LossModelError(
            f"h_true must be symmetric, got |h_true - h_trueᵀ| up to {skew:g}; try "
            "(h_true + h_true.T) / 2"
        )
    return TrueHessian(matrix=(matrix + matrix.T) / 2)
