"""The backend: a device and the few verbs whose implementation depends on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from jaxtyping import Float, Float64, Int64
    from torch import Tensor

    from hessrmt.arrays import Levels, Matrix


class Backend(Protocol):
    """A device plus verbs; the only place where hardware makes a difference.

    Arguments live on the backend's device. Results are float64 or int64 NumPy arrays, except where
    a tensor is asked for.

    Attributes:
        name: The device in words, for files and terminals.
        device: Where tensors live.
    """

    name: str
    device: torch.device

    @property
    def solver(self) -> str:
        """The route of the last :meth:`eigvalsh` in words; before it, the policy."""
        ...

    def free_memory(self) -> int:
        """Bytes that can be allocated now."""
        ...

    def eigen_bytes(self, n: int, itemsize: int) -> int:
        """Bytes held while an (n, n) matrix is diagonalised: the matrix and the solver's workspace.

        Args:
            n: Dimension.
            itemsize: Bytes of a number.
        """
        ...

    def solver_table(self) -> dict[str, str]:
        """Which route :meth:`eigvalsh` and :meth:`eigvalsh_batch` take: size range to words."""
        ...

    def symmetrize_(self, matrix: Matrix) -> float:
        """Replace A by (A + Aᵀ)/2 in place.

        Returns:
            The largest |A_ij - A_ji| before; NaN if any entry is not finite.
        """
        ...

    def eigvalsh(self, matrix: Matrix) -> Levels:
        """All eigenvalues of a symmetric matrix.

        Args:
            matrix: (n, n) float64 or float32. The lower triangle is read; may be overwritten.

        Returns:
            (n,) float64, ascending.

        Raises:
            ConfigError: If the matrix is not square or of another type.
            NonFiniteError: If an entry is NaN or infinite.
            ConvergenceError: If the solver fails.
        """
        ...

    def eigvalsh_batch(
        self, matrices: Float[Tensor, "batch n n"] | Sequence[Matrix]
    ) -> list[Levels]:
        """All eigenvalues of each of several symmetric matrices.

        Args:
            matrices: (batch, n, n), or matrices (n_i, n_i) of any sizes; float64 or float32. The
                lower triangles are read; may be overwritten.

        Returns:
            For each matrix, in the order given, (n_i,) float64, ascending; an empty list for none.

        Raises:
            ConfigError: If a matrix is not square or of another type.
            NonFiniteError: If an entry is NaN or infinite.
            ConvergenceError: If the solver fails.
        """
        ...

    def staircase(
        self, pool: Float64[Tensor, " m"], queries: Float64[Tensor, " n"]
    ) -> Int64[np.ndarray, " n"]:
        """Counting function of a pool of levels: how many are less than each query.

        Args:
            pool: (m,) float64, ascending.
            queries: (n,) float64, ascending.

        Returns:
            (n,) int64; equal levels are not counted.

        Raises:
            ConfigError: If an argument is not a vector of float64, or does not ascend.
            NonFiniteError: If a value is NaN or infinite.
        """
        ...

    def powerlaw_scan(
        self, values: Sequence[Float[Tensor, " n"]]
    ) -> list[tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]]:
        """Fit ρ(x) ~ x^(-α) to the tail of every layer that begins at each of its values.

        Definitions and sources: :func:`hessrmt.backend.reference.powerlaw_scan`.

        Args:
            values: For each layer (n_i,) ascending, positive; computed with in float64.

        Returns:
            For each layer α and the Kolmogorov-Smirnov distance of each candidate, (n_i,) float64,
            NaN where the tail holds fewer than two distinct values; an empty list for none.

        Raises:
            ConfigError: If a layer is not a vector of floating-point numbers, does not ascend, or
                holds a value that is not positive.
            NonFiniteError: If a value is NaN or infinite.
        """
        ...

    def sample_goe(
        self, n: int, count: int, key: int, dtype: torch.dtype, first: int = 0
    ) -> Float[Tensor, "count n n"]:
        """Draw matrices of the Gaussian orthogonal ensemble: N(0, 1), on the diagonal N(0, 2).

        The same on every device, up to the last bits of logarithm and cosine; see
        :func:`hessrmt.backend.reference.sample_goe`.

        Args:
            n: Dimension, at least 1.
            count: How many matrices, 0 or more.
            key: 64-bit word of a named stream.
            dtype: ``torch.float64`` or ``torch.float32``.
            first: Number of the first matrix in the key's sequence.

        Returns:
            (count, n, n) on the backend's device, symmetric to the bit.

        Raises:
            ConfigError: If a number is out of its range or ``dtype`` is another.
        """
        ...
