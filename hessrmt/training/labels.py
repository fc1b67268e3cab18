"""Wrong labels: some exchanged among themselves, or all drawn anew ([G] appendices B and C)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64

from hessrmt.errors import DataError

if TYPE_CHECKING:
    from numpy.random import Generator

Labels = Int64[np.ndarray, " n"]


def permuted(labels: Labels, share: float, generator: Generator) -> Labels:
    """A share of the labels permuted among themselves; how many there are of each stays the same.

    Those of a random subset are put into a random order, so that some of them stay right by
    chance: of ten equally frequent classes a tenth.

    Args:
        labels: (n,) labels.
        share: Of labels to permute, 0 to 1; rounded to a whole number of them.
        generator: Where the random numbers come from.

    Returns:
        (n,) labels, a copy.

    Raises:
        DataError: If the share is no share.
    """
    if isinstance(share, bool) or not 0 <= share <= 1:
        raise DataError(f"the share of permuted labels is {share!r}; expected a number 0 to 1")
    chosen = generator.permutation(len(labels))[: round(share * len(labels))]
    found = labels.copy()
    found[chosen] = labels[generator.permutation(chosen)]
    return found


def drawn(count: int, classes: int, generator: Generator) -> Labels:
    """Labels drawn at random, all classes equally likely.

    Args:
        count: How many.
        classes: Number of classes.
        generator: Where the random numbers come from.

    Returns:
        (count,) labels, 0 to ``classes - 1``.
    """
    return generator.integers(classes, size=count, dtype=np.int64)
