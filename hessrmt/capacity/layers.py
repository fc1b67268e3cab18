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
    from jaxtyping import Float64

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
        if self.skipped is not None or self._read is None or self._split is None:
            raise CapacityError(self.skipped or "there is nothing to read")
        view = self._split.view(self._read())
        stack = torch.empty(view.shape, dtype=torch.float64)
        stack.copy_(view)  # casts and reorders in one pass, without a second copy
        del view
        stack = stack.view(len(self.parts), *self.part_shape)
        _refuse_nonfinite(stack)
        return stack.numpy()


def _refuse_nonfinite(stack: Tensor) -> None:
    if bool(torch.isfinite(stack.sum())):  # quick, and without a second array
        return
    bad = sum(part.numel() - int(torch.isfinite(part).sum()) for part in stack)
    if bad:
        raise CapacityError(
            f"{bad} of {stack.numel()} weights are NaN or infinite; the training diverged or the "
            "file is damaged"
        )
