"""Whether a user's function is the kernel of a process with Hessians, in every dimension."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hessrmt.errors import LossModelError
from hessrmt.lossmodel.callables import MARKS, Differentiated, jet_at_end
from hessrmt.lossmodel.covariance import ROUNDING

if TYPE_CHECKING:
    from jaxtyping import Float64

_APPROACH = tuple(-(10.0**-decades) for decades in range(4, 44, 4))
"""Points q at which the derivatives are compared with those at 0, for length scales above 1e-20."""

_TRIALS = (0.1, 1.0, 10.0)
"""Points -q in units of k(0)/k'(0) at which the signs and given derivatives are tried."""

_STEP = 1e-4
"""Step of the difference quotients in the same units: truncation error step² ≈ 1e-8."""

_SLACK = 1e-4
"""Relative error of a given derivative that is called wrong, far above the quotients' error."""


def checked_moments(k: Differentiated) -> Float64[np.ndarray, " 3"]:
    """k(0), k'(0) and k''(0) of a kernel.

    Args:
        k: The kernel as a function of q = -½|w - w'|².

    Returns:
        The three numbers, all positive.

    Raises:
        LossModelError: With the reason, if there is no such process.
    """
    moments = jet_at_end(
        k,
        0.0,
        _APPROACH,
        "a process with Hessians has a covariance that is four times differentiable at distance "
        "zero, k'' finite and continuous at q = 0 (a Matérn kernel needs nu above 2)",
    )
    k0, k1, k2 = moments.tolist()
    if k0 <= 0:
        raise LossModelError(f"k(0) is the variance of the loss, expected positive, got {k0:g}")
    if k1 < 0:
        raise LossModelError(
            f"k'(0) is the variance of a gradient's component, expected positive, got {k1:g}; k is "
            "a function of q = -½|w - w'|², which increases towards q = 0"
        )
    if k1 == 0:
        raise LossModelError(
            "k'(0) = 0: the gradient would have variance zero at every point, so that the loss is "
            "constant; hessrmt.lossmodel.paper(0, k2) has the covariance printed for that case"
        )
    if k2 <= 0:
        raise LossModelError(
            f"k''(0) is the variance of the Hessian's elements, expected positive, got {k2:g}"
        )
    if k0 * k2 < k1**2 * (1 - ROUNDING):
        raise LossModelError(
            f"k(0)·k''(0) = {k0 * k2:g} is less than k'(0)² = {k1**2:g}: no stationary process in "
            "every dimension has this kernel, since k(q) = ∫ exp(s q) dμ(s) with a positive "
            "measure μ, and the moments of μ obey Cauchy and Schwarz's inequality"
        )
    _check_inside(k, moments)
    return moments


def _check_inside(k: Differentiated, moments: Float64[np.ndarray, " 3"]) -> None:
    """Signs of k, k', k'' away from zero, and given derivatives against difference quotients."""
    scale = moments[0] / moments[1]
    q = -scale * np.array(_TRIALS)
    given = len(k.functions) - 1
    jet = k.jet(q, max(given, 2))
    limits = moments[:, None]
    bad = ~((jet[:3] >= -ROUNDING * limits) & (jet[:3] <= (1 + ROUNDING) * limits))
    if bad.any():
        m, point = np.argwhere(bad)[0]
        raise LossModelError(
            f"k{MARKS[m]}({q[point]:g}) = {jet[m, point]:g}, expected from 0 to k{MARKS[m]}(0) = "
            f"{moments[m]:g}: no stationary process in every dimension has this kernel, since "
            "k(q) = ∫ exp(s q) dμ(s) with a positive measure μ"
        )
    step = _STEP * scale
    with np.errstate(invalid="ignore"):
        slopes = (k.jet(q + step, given) - k.jet(q - step, given)) / (2 * step)
    for m in range(1, given + 1):
        with np.errstate(invalid="ignore"):
            error = np.abs(jet[m] - slopes[m - 1])
        size = np.maximum(np.abs(jet[m]), np.abs(slopes[m - 1]))
        # the quotient's own rounding, ε·k^(m-1)/step, where the derivative is nothing
        rounding = np.finfo(float).eps * np.abs(jet[m - 1]) / _STEP / scale
        wrong = ~(error <= _SLACK * size + 10 * rounding)
        if wrong.any():
            point = int(np.argmax(wrong))
            raise LossModelError(
                f"the given k{MARKS[m]}({q[point]:g}) = {jet[m, point]:g}, but the difference "
                f"quotient of k{MARKS[m - 1]} there is {slopes[m - 1, point]:g}"
            )
