"""Samples and targets in memory, and the checks that they pass through."""

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hessrmt.errors import DataError

MAX_CLASSES = 1_000_000
SPLITS = ("train", "test")

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples and targets of one split, in memory.

    Attributes:
        name: Registry name such as ``mnist``, or the name of the file or folder.
        split: ``train``, ``test``, or ``all`` for data without splits.
        x: (N, ...) samples: uint8 pixels, images as (N, channels, height, width), or float
            or int64 features of any shape.
        y: (N,) int64 class labels, or float targets (N, ...) for regression.
        classes: Number of classes, labels being 0 to ``classes - 1``; None for regression.
        origin: One sentence saying where the data came from.
        embedded: Whether this is the subset of MNIST shipped with the package.
    """

    name: str
    split: str
    x: np.ndarray
    y: np.ndarray
    classes: int | None
    origin: str
    embedded: bool = False

    def __len__(self) -> int:
        """Number of samples.

        Returns:
            N.
        """
        return len(self.x)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.x.shape[1:]

    @property
    def outputs(self) -> int:
        """Outputs a model needs: the number of classes, or of regression targets per sample."""
        return math.prod(self.y.shape[1:]) if self.classes is None else self.classes

    def tensors(
        self,
        indices: slice | np.ndarray,
        dtype: torch.dtype = torch.float64,
        model: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Some samples, ready for a model.

        Args:
            indices: Slice, or (B,) integer positions.
            dtype: Floating-point type to compute and return in.
            model: Whose inputs they are to be: integer features stay integers, such as ids of
                tokens, if it can take them.

        Returns:
            (B, ...) inputs, where uint8 pixels v have become (v / 255 - 0.5) / 0.5 in ``dtype``
            arithmetic; and (B,) int64 labels or (B, ...) float targets. Both are copies.
        """
        x = torch.from_numpy(np.array(self.x[indices], order="C"))
        y = torch.from_numpy(np.array(self.y[indices], order="C"))
        pixels = x.dtype == torch.uint8
        if x.dtype != torch.int64 or not _takes(model, x[:1]):
            x = x.to(dtype)
        if pixels:
            x = x.div_(255).sub_(0.5).div_(0.5)
        return x, y.to(dtype) if self.classes is None else y


def _takes(model: nn.Module | None, x: Tensor) -> bool:
    """Whether a network can be run on some samples as they are."""
    if model is None:
        return False
    try:
        with torch.no_grad():
            copy.deepcopy(model).eval()(x.to(next(model.parameters()).device))
    except Exception:  # whatever the user's network raises
        return False
    return True


def checked_dataset(
    arrays: Arrays,
    name: str,
    split: str,
    classes: int | None,
    origin: str,
    labels: dict[str, str],
) -> Dataset:
    """One split of arrays from a file, after the checks that every file passes through.

    Args:
        arrays: Split to its samples and targets; all splits that have been read.
        name: Of the data set.
        split: The one wanted.
        classes: Number of classes; None to count them, and for regression.
        origin: One sentence saying where the data came from.
        labels: Split to the name of its arrays, for messages.

    Returns:
        The data set.

    Raises:
        DataError: If a value, shape or type cannot be used.
    """
    checked = {s: (_features(x, labels[s]), _targets(y, labels[s])) for s, (x, y) in arrays.items()}
    for s, (x, y) in checked.items():
        if len(x) != len(y):
            raise DataError(
                f"{labels[s]}: {len(x)} samples but {len(y)} targets; expected as many."
            )
        if x.size == 0 or y.size == 0:
            raise DataError(
                f"{labels[s]}: empty (shapes {x.shape} and {y.shape}); expected one sample or more."
            )
    kinds = {(x.shape[1:], x.dtype, y.shape[1:], y.dtype) for x, y in checked.values()}
    if len(kinds) > 1:
        each = "; ".join(
            f"{s}: x {x.dtype} {x.shape}, y {y.dtype} {y.shape}" for s, (x, y) in checked.items()
        )
        raise DataError(f"the splits do not match in {labels['train']}: {each}.")
    x, y = checked[split]
    if y.dtype == np.int64:
        classes = _count(checked, classes, labels)
    elif classes is not None:
        raise DataError(
            f"{labels[split]}: y is {y.dtype}, which means regression, but the file also holds "
            f"classes. Store y as integers, or leave classes out."
        )
    return Dataset(name, split, x, y, classes, origin)


def _features(x: np.ndarray, label: str) -> np.ndarray:
    if x.dtype.kind not in "biuf" or x.ndim < 1:
        raise DataError(
            f"{label}: x has dtype {x.dtype} and shape {x.shape}; expected numbers (N, ...)."
        )
    if x.dtype == np.uint8:
        if x.ndim == 3:
            return x[:, None]
        # (N, height, width, channels), as Keras stores CIFAR-10
        last = x.ndim == 4 and x.shape[3] in {1, 3, 4} and x.shape[1] not in {1, 3, 4}
        return np.ascontiguousarray(np.moveaxis(x, 3, 1)) if last else x
    return x.astype(np.int64) if x.dtype.kind in "iu" else _floats(x, label, "x")


def _targets(y: np.ndarray, label: str) -> np.ndarray:
    if y.dtype.kind not in "biuf" or y.ndim < 1:
        raise DataError(
            f"{label}: y has dtype {y.dtype} and shape {y.shape}; expected numbers (N, ...)."
        )
    if y.dtype.kind == "f":
        return _floats(y, label, "y")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise DataError(
            f"{label}: integer y has shape {y.shape}; expected one class label per sample. Take "
            f"the argmax of one-hot labels; store regression targets as floats."
        )
    if y.size and (y.min() < 0 or y.max() >= MAX_CLASSES):
        row = int(np.flatnonzero((y < 0) | (y >= MAX_CLASSES))[0])
        raise DataError(
            f"{label}: y in row {row} is {y[row]}; integer y are class labels, expected 0 to "
            f"{MAX_CLASSES - 1:,}. Store regression targets as floats."
        )
    return y.astype(np.int64)


def _floats(values: np.ndarray, label: str, key: str) -> np.ndarray:
    if values.dtype.kind != "f" or values.dtype.itemsize > 8:
        values = values.astype(np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argwhere(bad)[0, 0])
        raise DataError(
            f"{label}: {int(bad.sum())} of {bad.size} values of {key} are NaN or infinite, the "
            f"first in row {row}. Remove or repair those samples."
        )
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _count(checked: Arrays, classes: int | None, labels: dict[str, str]) -> int:
    if classes is None:
        return 1 + max(int(y.max()) for _, y in checked.values())
    for s, (_, y) in checked.items():
        if y.max() >= classes:
            row = int(np.flatnonzero(y >= classes)[0])
            raise DataError(
                f"{labels[s]}: the label in row {row} is {y[row]}; with {classes} classes, "
                f"expected 0 to {classes - 1}."
            )
    return classes
