"""Losses with an exponential tail, as torch functions and by their logarithms.

Far along a gradient flow the losses underflow; their logarithms, and the shares that the samples
have in the gradient, don't. Source: [P] §3 B; the tail: Soudry et al., JMLR 19, 2822 (2018).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F  # noqa: N812
from scipy.special import logsumexp
from torch import Tensor

from hessrmt.errors import GeneralizationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float, Float64
    from numpy.typing import ArrayLike

    from hessrmt.problems.losses import Loss

_TAIL = 37.0
"""Beyond this margin log(1 + e^-m) equals e^-m to the last digit: e^-37 < ε/2."""


def exponential(outputs: Float[Tensor, "B 1"], targets: Float[Tensor, " B"]) -> Tensor:
    """Exponential loss, mean of e^{-y f} ([P] eq. 1).

    Args:
        outputs: (B, 1) outputs f.
        targets: (B,) labels y, -1 or 1.

    Returns:
        Scalar.
    """
    return (-targets * outputs[:, 0]).exp().mean()


def logistic(outputs: Float[Tensor, "B 1"], targets: Float[Tensor, " B"]) -> Tensor:
    """Logistic loss, mean of log(1 + e^{-y f}).

    Args:
        outputs: (B, 1) outputs f.
        targets: (B,) labels y, -1 or 1.

    Returns:
        Scalar.
    """
    return F.softplus(-targets * outputs[:, 0], threshold=_TAIL).mean()


LOSSES: Mapping[str, Loss] = {
    "exponential": exponential,
    "logistic": logistic,
    "cross-entropy": F.cross_entropy,
}


def checked_data(
    loss: str, x: ArrayLike, y: ArrayLike, outputs: int
) -> tuple[Float64[np.ndarray, "B d"], np.ndarray]:
    """Inputs and labels that the loss can use.

    Args:
        loss: One of :data:`LOSSES`.
        x: (B, d) inputs.
        y: (B,) labels: -1 and 1, or classes 0 ... C - 1 for cross-entropy.
        outputs: C, the network's outputs: 1, or at least 2 for cross-entropy.

    Returns:
        x in float64; y in float64, or int64 for cross-entropy.

    Raises:
        GeneralizationError: If the loss is unknown, or data or outputs don't fit it.
    """
    if loss not in LOSSES:
        raise GeneralizationError(f"unknown loss {loss!r}; known are {', '.join(LOSSES)}")
    inputs, labels = np.array(x, dtype=float), np.array(y)
    if inputs.ndim != 2 or not inputs.size or not np.isfinite(inputs).all():
        raise GeneralizationError(
            f"x must be a matrix (samples, features) of finite numbers, got the shape "
            f"{inputs.shape}"
        )
    if labels.shape != (len(inputs),):
        raise GeneralizationError(
            f"y must hold one label for each of the {len(inputs)} samples, got the shape "
            f"{labels.shape}"
        )
    if loss == "cross-entropy":
        if outputs < 2:
            raise GeneralizationError(
                "cross-entropy needs a network with one output for each class, two or more; for "
                "one output take the logistic loss"
            )
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= outputs:
            raise GeneralizationError(
                f"cross-entropy needs integer labels 0 ... {outputs - 1}, got {_few(labels)}"
            )
        return inputs, labels.astype(np.int64)
    if outputs != 1:
        raise GeneralizationError(
            f"the {loss} loss needs a network with one output, this has {outputs}; take "
            f"cross-entropy for several classes"
        )
    if labels.dtype.kind not in "iuf" or not np.isin(labels, (-1, 1)).all():
        raise GeneralizationError(
            f"the {loss} loss needs labels -1 and 1, got {_few(labels)}; of classes 0 and 1 take "
            f"2 y - 1"
        )
    return inputs, labels.astype(float)


def margins(loss: str, outputs: Float64[np.ndarray, "B C"], y: np.ndarray) -> np.ndarray:
    """Margin of every sample: y f, or the output of its class minus the largest other.

    Args:
        loss: Which says what the labels are.
        outputs: (B, C).
        y: (B,) labels.

    Returns:
        (B,) margins, positive where the sample is classified correctly.
    """
    if loss != "cross-entropy":
        return y * outputs[:, 0]
    rows = np.arange(len(y))
    others = outputs.copy()
    others[rows, y] = -np.inf
    return outputs[rows, y] - others.max(1)


def log_loss_and_pull(
    loss: str, outputs: Float64[np.ndarray, "B C"], y: np.ndarray
) -> tuple[float, Float64[np.ndarray, "B C"]]:
    """Logarithm of the loss, and its pull -∂log L/∂f on the outputs, without underflow.

    Args:
        loss: One of :data:`LOSSES`.
        outputs: (B, C).
        y: (B,) labels.

    Returns:
        log L of the mean loss; (B, C) pulls.
    """
    if loss == "exponential":
        exponents = -y * outputs[:, 0]
        total = logsumexp(exponents)
        return float(total - np.log(len(y))), (y * np.exp(exponents - total))[:, None]
    if loss == "logistic":
        soft, direction = y * outputs[:, 0], y[:, None]
    else:
        soft, direction = _soft_margins(outputs, y)
    # log of log(1 + e^-m), and of its derivative's size 1/(1 + e^m)
    log_terms = np.where(soft > _TAIL, -soft, np.log(np.logaddexp(0.0, -np.minimum(soft, _TAIL))))
    total = logsumexp(log_terms)
    shares = np.exp(-np.logaddexp(0.0, soft) - total)
    return float(total - np.log(len(y))), shares[:, None] * direction


def _soft_margins(
    outputs: Float64[np.ndarray, "B C"], y: np.ndarray
) -> tuple[Float64[np.ndarray, " B"], Float64[np.ndarray, "B C"]]:
    """f_y - log Σ_{c≠y} e^{f_c}, of which cross-entropy is the logistic loss, and its gradient."""
    rows = np.arange(len(y))
    others = outputs.copy()
    others[rows, y] = -np.inf
    total = logsumexp(others, axis=1)
    gradient = -np.exp(others - total[:, None])
    gradient[rows, y] = 1.0
    return outputs[rows, y] - total, gradient


def _few(labels: np.ndarray) -> str:
    found = [str(value) for value in np.unique(labels)[:4]]
    return ", ".join(found) + (" ..." if len(np.unique(labels)) > 4 else "")
