"""Data sets in ``.npz`` files: ``x`` and ``y``, or both for two splits."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from hessrmt.errors import DataError
from hessrmt.problems.dataset import MAX_CLASSES, SPLITS, Dataset, checked_dataset

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_DAMAGE = (ValueError, EOFError, RuntimeError, MemoryError, zlib.error, zipfile.BadZipFile)


def load(path: Path, split: str | None) -> Dataset:
    """The arrays in an ``.npz``, checked.

    Args:
        path: The file.
        split: ``train``, ``test``, or None for test, or everything where there are no splits.

    Returns:
        The data set.

    Raises:
        DataError: If the file is damaged, or holds something else.
    """
    content = _read_npz(path)
    unsplit, parted = {"x", "y"} & content.keys(), set(_KEYS) & content.keys()
    names = ", ".join(sorted(content)) or "nothing"
    if not ((len(unsplit) == 2 and not parted) or (len(parted) == 4 and not unsplit)):
        raise DataError(
            f"{path} holds {names}; expected either x and y, or {', '.join(_KEYS)} (and, if you "
            f"like, classes)."
        )
    if unsplit and split is not None:
        raise DataError(
            f"{path} has no splits (it holds {names}), so there is no {split} split. Leave the "
            f"split out to use everything, or store {', '.join(_KEYS)}."
        )
    suffixes = {"all": ""} if unsplit else {s: f"_{s}" for s in SPLITS}
    arrays = {s: (content[f"x{end}"], content[f"y{end}"]) for s, end in suffixes.items()}
    labels = {s: f"x{end} and y{end} of {path}" for s, end in suffixes.items()}
    classes = _stored_classes(content["classes"], path) if "classes" in content else None
    chosen = "all" if unsplit else split or "test"
    origin = f"{path}, {'everything' if unsplit else f'{chosen} split'}"
    return checked_dataset(arrays, path.name, chosen, classes, origin, labels)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    wanted = {"x", "y", "classes", *_KEYS}
    try:
        if not zipfile.is_zipfile(path):
            raise DataError(
                f"{path} is not an .npz file. Write one with numpy.savez(file, x=..., y=...); for "
                f"IDX files give the folder they are in."
            )
        with np.load(path, allow_pickle=False) as file:
            content = {key: file[key] for key in file.files if key in wanted}
    except (OSError, *_DAMAGE) as error:
        raise DataError(
            f"cannot read the arrays in {path} ({error}). Expected plain numeric arrays written "
            f"with numpy.savez; object arrays are refused, and a damaged file has to be made again."
        ) from error
    return {key: value for key, value in content.items() if isinstance(value, np.ndarray)}


def _stored_classes(value: np.ndarray, path: Path) -> int:
    if value.size != 1 or value.dtype.kind not in "iu" or not 1 <= int(value.item()) <= MAX_CLASSES:
        raise DataError(
            f"classes in {path} has dtype {value.dtype} and shape {value.shape}; expected one "
            f"integer from 1 to {MAX_CLASSES:,}."
        )
    return int(value.item())
