"""Data sets: found by name or path, checked once, handed out as tensors.

``mnist`` falls back to 10,000 real digits shipped with the package, so that everything runs
without a download.
"""

import math
import os
import zipfile
import zlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from pooch import os_cache
from torch import Tensor

from hessrmt import rng
from hessrmt.errors import DataError
from hessrmt.problems import idx

NAMES = ("mnist", "fashion-mnist")
MAX_CLASSES = 1_000_000

_TITLES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
_TORCHVISION = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
# Both sets use the same file names; their first ten test labels tell them apart.
_TEST_LABELS = {
    "mnist": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9],
    "fashion-mnist": [9, 2, 1, 1, 6, 1, 4, 6, 5, 7],
}
_EMBEDDED_TRAIN = 8_000
_SPLITS = ("train", "test")
_KEYS = ("x_train", "y_train", "x_test", "y_test")

_DAMAGE = (ValueError, EOFError, RuntimeError, MemoryError, zlib.error, zipfile.BadZipFile)

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples and targets of one split, in memory.

    Attributes:
        name: ``mnist``, ``fashion-mnist``, or the name of the file or folder.
        split: ``train``, ``test``, or ``all`` for data without splits.
        x: (N, ...) samples: uint8 pixels, images as (N, channels, height, width), or float
            features of any shape.
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
        self, indices: slice | np.ndarray, dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor, Tensor]:
        """Some samples, ready for a model.

        Args:
            indices: Slice, or (B,) integer positions.
            dtype: Floating-point type to compute and return in.

        Returns:
            (B, ...) inputs, where uint8 pixels v have become (v / 255 - 0.5) / 0.5 in ``dtype``
            arithmetic; and (B,) int64 labels or (B, ...) float targets. Both are copies.
        """
        x = torch.from_numpy(np.array(self.x[indices], order="C"))
        y = torch.from_numpy(np.array(self.y[indices], order="C"))
        pixels = x.dtype == torch.uint8
        x = x.to(dtype)
        if pixels:
            x = x.div_(255).sub_(0.5).div_(0.5)
        return x, y.to(dtype) if self.classes is None else y


def user_cache() -> Path:
    """The folder that downloads go to.

    Returns:
        This user's cache folder for hessrmt; it need not exist.
    """
    return Path(os_cache("hessrmt"))


def places(name: str, folder: Path | None = None) -> list[Path]:
    """Folders searched for a registry name, in order.

    Args:
        name: One of ``NAMES``.
        folder: A folder to search first.

    Returns:
        ``folder``, ``$HESSRMT_DATA``, the user cache, and Debian's folder for Fashion-MNIST.
    """
    given = os.environ.get("HESSRMT_DATA")
    found = [Path(os.path.expanduser(folder))] if folder is not None else []
    found += [Path(os.path.expanduser(given))] if given else []
    return [*found, user_cache(), *([_DEBIAN] if name == "fashion-mnist" else [])]


def locate(name: str, folder: Path | None = None) -> Path | None:
    """The folder that holds all four IDX files of a registry name.

    Args:
        name: One of ``NAMES``.
        folder: A folder to search first.

    Returns:
        The first of :func:`places` that has them, in torchvision's layout (``MNIST/raw``), in a
        subfolder of that name, or directly; None if there is none.
    """
    for place in places(name, folder):
        for candidate in (place / _TORCHVISION[name], place / name, place):
            if all(idx.find(candidate, split) for split in _SPLITS):
                return candidate
    return None


def load(spec: str, split: str | None = None, folder: Path | None = None) -> Dataset:
    """Load and check a data set.

    Args:
        spec: ``mnist``, ``fashion-mnist``, an ``.npz`` file with ``x`` and ``y`` or with
            ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or a folder with the four IDX
            files of an MNIST-like set. In an ``.npz``, uint8 ``x`` are pixels, integer ``y`` are
            class labels (their number is the largest label of the file plus one, or the entry
            ``classes``) and float ``y`` are regression targets.
        split: ``train`` or ``test``; None means test, or everything where data have no splits.
        folder: A folder to search first for the two names.

    Returns:
        The split, with every value checked.

    Raises:
        DataError: If the data are not there, not readable, or hold values that cannot be used.
    """
    if split not in {*_SPLITS, None}:
        raise DataError(f"no split {split!r}: expected train or test, or none for the default.")
    if spec in NAMES:
        return _registered(spec, split or "test", folder)
    path = Path(os.path.expanduser(spec))
    if os.path.isdir(path):
        return _from_folder(path, path.resolve().name, split or "test", "IDX files")
    if os.path.isfile(path):
        return _from_npz(path, split)
    wanted = f"{', '.join(NAMES)}, an .npz file with x and y, or a folder of IDX files"
    if path.suffix == ".npz" or len(path.parts) > 1:
        raise DataError(f"no file or folder {spec}. Data are one of: {wanted}.")
    raise DataError(f"unknown data set {spec!r}. Data are one of: {wanted}.")


# Registry names and folders of IDX files


def _registered(name: str, split: str, folder: Path | None) -> Dataset:
    found = locate(name, folder)
    if found is not None:
        first = idx.read_labels(_files(found)["test"][1])[:10].tolist()
        for other in NAMES:
            if other != name and first == _TEST_LABELS[other]:
                raise DataError(
                    f"the files in {found} are {_TITLES[other]}, not {_TITLES[name]} (both use "
                    f"the same file names). Move them into a subfolder {other}/."
                )
        return _from_folder(found, name, split, f"{_TITLES[name]}, IDX files", 10)
    if name == "mnist":
        return _embedded(split)
    searched = ", ".join(str(place) for place in places(name, folder))
    raise DataError(
        f"{name} was not found in {searched}. Run `hessrmt data fetch {name}`, or install "
        f"Debian's package dataset-fashion-mnist, or put its four IDX files into a folder "
        f"{name}/ below one that HESSRMT_DATA names."
    )


def _files(folder: Path) -> dict[str, tuple[Path, Path]]:
    files = {s: pair for s in _SPLITS if (pair := idx.find(folder, s)) is not None}
    missing = " and ".join(
        f"{idx.STEMS[s]}-images-idx3-ubyte with {idx.STEMS[s]}-labels-idx1-ubyte"
        for s in _SPLITS
        if s not in files
    )
    if missing:
        raise DataError(
            f"the folder {folder} lacks {missing} (a dot before idx and .gz at the end are fine); "
            f"expected the four IDX files of an MNIST-like set."
        )
    return files


def _from_folder(
    folder: Path, name: str, split: str, title: str, classes: int | None = None
) -> Dataset:
    files = _files(folder)
    if classes is None:  # counted over both splits, though only one is read in full
        classes = 1 + max(int(idx.read_labels(labels).max()) for _, labels in files.values())
    origin = f"{title} from {folder}, {split} split"
    arrays = {split: idx.read_pair(*files[split])}
    return _dataset(arrays, name, split, classes, origin, {split: str(files[split][0])})


def _embedded(split: str) -> Dataset:
    asset = resources.files("hessrmt.problems") / "assets" / "mnist10k.npz"
    with asset.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        x, y = arrays["x"][:, None], arrays["y"].astype(np.int64)
    order = rng.stream(0, "embedded-mnist-split").permutation(len(x))  # the same for every seed
    chosen = order[:_EMBEDDED_TRAIN] if split == "train" else order[_EMBEDDED_TRAIN:]
    origin = (
        "embedded subset of MNIST: 10,000 real digits, fixed shuffle, 8,000 train / 2,000 test "
        "(full MNIST was not found on disk)"
    )
    return Dataset("mnist", split, x[chosen], y[chosen], 10, origin, embedded=True)


# npz files


def _from_npz(path: Path, split: str | None) -> Dataset:
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
    suffixes = {"all": ""} if unsplit else {s: f"_{s}" for s in _SPLITS}
    arrays = {s: (content[f"x{end}"], content[f"y{end}"]) for s, end in suffixes.items()}
    labels = {s: f"x{end} and y{end} of {path}" for s, end in suffixes.items()}
    classes = _stored_classes(content["classes"], path) if "classes" in content else None
    chosen = "all" if unsplit else split or "test"
    origin = f"{path}, {'everything' if unsplit else f'{chosen} split'}"
    return _dataset(arrays, path.name, chosen, classes, origin, labels)


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


# Checks that every file passes through


def _dataset(
    arrays: Arrays,
    name: str,
    split: str,
    classes: int | None,
    origin: str,
    labels: dict[str, str],
) -> Dataset:
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
    return _floats(x, label, "x")


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
