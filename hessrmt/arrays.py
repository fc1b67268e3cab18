"""Names for the shapes that appear everywhere, and the way of numbers from a device to here.

``P`` counts parameters, ``n`` any matrix dimension, ``B`` the samples of a batch, ``k`` vectors
treated together. Results handed to users are float64 NumPy; everything inside is ``torch.Tensor``.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy.typing import ArrayLike
from torch import Tensor

Levels = Float64[np.ndarray, "n"]
"""Eigenvalues of one matrix, ascending."""

Stack = Float64[np.ndarray, "batches P"]
"""One row of ascending eigenvalues for each batch."""

Indices = Int64[np.ndarray, "batches B"]
"""Positions of each batch's samples in its split."""

Vector = Float[Tensor, "P"]
Vectors = Float[Tensor, "k P"]
Matrix = Float[Tensor, "n n"]


def fetched(*parts: Tensor) -> list[np.ndarray]:
    """Some numbers in main memory by one copy: every copy, each ``float(x)``, waits for the device.

    Args:
        parts: At least one tensor of real numbers or truth values, all on one device.

    Returns:
        Of each a float64 array of its shape.
    """
    flat = torch.cat([part.detach().to(torch.float64).reshape(-1) for part in parts])
    host, found, start = flat.cpu().numpy(), [], 0
    for part in parts:
        found.append(host[start : start + part.numel()].reshape(part.shape))
        start += part.numel()
    return found


def sample_mean(values: ArrayLike) -> tuple[Any, Any]:
    """Mean of independent values, and its standard error.

    Args:
        values: (draws, ...).

    Returns:
        Both, of the shape of one draw; the error is NaN for a single one.
    """
    rows = np.asarray(values, dtype=np.float64)
    mean, count = rows.mean(axis=0), len(rows)
    error = rows.std(axis=0, ddof=1) / count**0.5 if count > 1 else np.full_like(mean, np.nan)
    return (mean, error) if rows.ndim > 1 else (float(mean), float(error))
