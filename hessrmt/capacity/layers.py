"""One tensor of a network and the real matrices whose spectra stand for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hessrmt.errors import CapacityError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float64, Num

    from hessrmt.capacity.splitting import Split


@dataclass(frozen=True)
class Matrix:
    """One tensor of a network: a layer ready for analysis, or the reason why it is skipped.

    Only the description is in memory; the numbers are read by every call of :meth:`load`.

    Attributes:
        name: In the network's state dict, without the prefix of DataParallel or torch.compile.
        kind: What the layer is ("Linear", "Conv2d", "ConvTranspose2d", "Embedding",
            "MultiheadAttention", "LSTM", "GRU", "Conv1D" for GPT-2's, "Experts", ...; of what is
            skipped also "vector", "scalar", ...).
        shape: Of the stored tensor.
        dtype: Of the stored tensor, e.g. "bfloat16".
        skipped: Why the layer can't be analysed; None if it can (its values may still turn out
            not to be finite when they are read).
        inferred: Whether ``kind`` was inferred from the name and the number of dimensions,
            because the source holds tensors only and no modules.
        parts: A label for each matrix that :meth:`load` returns, in order: ``("",)`` for a whole
            matrix, ``("q", "k", "v")``, ``("i", "f", "g", "o")``, kernel positions
            ``("0,0", "0,1", ...)``. Empty if skipped.
        part_shape: (rows, columns) of every one of these matrices.
        pooled: Whether the eigenvalues of all parts make one spectrum (``conv="pooled"``);
            otherwise each part has its own.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    skipped: str | None = None
    inferred: bool = False
    parts: tuple[str, ...] = ()
    part_shape: tuple[int, int] = (0, 0)
    pooled: bool = False
    _read: Callable[[], Tensor] | None = field(default=None, repr=False, compare=False)
    _split: Split | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Number of weights of the stored tensor."""
        return prod(self.shape)

    def load(self) -> Float64[np.ndarray, "parts rows columns"]:
        """Read the weights and cut them into the matrices whose spectra are meant.

        Returns:
            (parts, rows, columns) float64, C-contiguous and owned by the caller; iterate it for
            the single matrices.

        Raises:
            CapacityError: If the layer is skipped, or if weights are NaN or infinite. Its message
                is the reason to list the layer with. (A file that can't be read is a ProblemError:
                it ends the run.)
        """
        view = self._cut()
        stack = torch.empty(view.shape, dtype=torch.float64)
        stack.copy_(view)  # casts and reorders in one pass, without a second copy
        del view
        stack = stack.view(len(self.parts), *self.part_shape)
        bad = count_nonfinite(stack)
        if bad:
            raise CapacityError(nonfinite(bad, stack.numel()))
        return stack.numpy()

    def view(self) -> Num[Tensor, "parts rows columns"]:
        """The same matrices as they are stored, not copied where the file is mapped.

        Returns:
            (parts, rows, columns) in the stored precision and order; not to be written to, and
            unchecked: weights may be NaN or infinite.

        Raises:
            CapacityError: If the layer is skipped.
        """
        return self._cut().reshape(len(self.parts), *self.part_shape)

    def _cut(self) -> Tensor:
        if self.skipped is not None or self._read is None or self._split is None:
            raise CapacityError(self.skipped or "there is nothing to read")
        return self._split.view(self._read())


def count_nonfinite(values: Tensor) -> int:
    """How many values are NaN or infinite.

    Args:
        values: (..., n), float64 or float32.

    Returns:
        A count.
    """
    if bool(torch.isfinite(values.sum())):  # quick, and without a second array
        return 0
    return sum(part.numel() - int(torch.isfinite(part).sum()) for part in values)


def nonfinite(bad: int, count: int) -> str:
    """Why a layer with such weights is skipped.

    Args:
        bad: How many are NaN or infinite.
        count: Of how many.

    Returns:
        The reason.
    """
    return (
        f"{bad} of {count} weights are NaN or infinite; the training diverged or the file is "
        "damaged"
    )
