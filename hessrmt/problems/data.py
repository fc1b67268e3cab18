"""Data sets: found by name or path, checked once, handed out as tensors.

``mnist`` falls back to 10,000 real digits shipped with the package, so that everything runs
without a download.
"""

import os
from importlib import resources
from pathlib import Path

import numpy as np

from hessrmt import rng
from hessrmt.errors import DataError
from hessrmt.problems import cifar, idx, npz
from hessrmt.problems.dataset import SPLITS, Dataset, checked_dataset

NAMES = ("mnist", "fashion-mnist", *cifar.SETS)

_TITLES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
_TORCHVISION = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
# Both sets use the same file names; their first ten test labels tell them apart.
_TEST_LABELS = {
    "mnist": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9],
    "fashion-mnist": [9, 2, 1, 1, 6, 1, 4, 6, 5, 7],
}
_EMBEDDED_TRAIN = 8_000


def user_cache() -> Path:
    """The folder that downloads go to.

    Returns:
        This user's cache folder for hessrmt; it need not exist.
    """
    from pooch import os_cache  # a package that GPU machines without a network may lack

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
    """Where all files of a registry name are.

    Args:
        name: One of ``NAMES``.
        folder: A folder to search first.

    Returns:
        The first of :func:`places` that has them, in torchvision's layout (``MNIST/raw``,
        ``cifar-10-batches-py``), in a subfolder of that name, or directly: the folder of the IDX
        files or CIFAR batches, or CIFAR's archive. None if there is none.
    """
    for place in places(name, folder):
        if name in cifar.SETS:
            if found := cifar.find(name, place):
                return found
            continue
        for candidate in (place / _TORCHVISION[name], place / name, place):
            if all(idx.find(candidate, split) for split in SPLITS):
                return candidate
    return None


def load(spec: str, split: str | None = None, folder: Path | None = None) -> Dataset:
    """Load and check a data set.

    Args:
        spec: ``mnist``, ``fashion-mnist``, ``cifar10``, ``cifar100`` (fine labels), an ``.npz``
            file with ``x`` and ``y`` or with ``x_train``, ``y_train``, ``x_test`` and ``y_test``,
            a folder with the four IDX files of an MNIST-like set or with CIFAR's batches, or
            CIFAR's archive. In an ``.npz``, uint8 ``x`` are pixels, integer ``y`` are class labels
            (their number is the largest label of the file plus one, or the entry ``classes``) and
            float ``y`` are regression targets.
        split: ``train`` or ``test``; None means test, or everything where data have no splits.
        folder: A folder to search first for the names.

    Returns:
        The split, with every value checked.

    Raises:
        DataError: If the data are not there, not readable, or hold values that cannot be used.
    """
    if split not in {*SPLITS, None}:
        raise DataError(f"no split {split!r}: expected train or test, or none for the default.")
    if spec in NAMES:
        return _registered(spec, split or "test", folder)
    path = Path(os.path.expanduser(spec))
    if known := cifar.recognise(path):
        return _from_cifar(known, path, path.resolve().name, split or "test")
    if os.path.isdir(path):
        return _from_folder(path, path.resolve().name, split or "test", "IDX files")
    if os.path.isfile(path):
        return npz.load(path, split)
    wanted = (
        f"{', '.join(NAMES)}, an .npz file with x and y, or a folder of IDX files or CIFAR batches"
    )
    if path.suffix == ".npz" or len(path.parts) > 1:
        raise DataError(f"no file or folder {spec}. Data are one of: {wanted}.")
    raise DataError(f"unknown data set {spec!r}. Data are one of: {wanted}.")


# Registry names and folders


def _registered(name: str, split: str, folder: Path | None) -> Dataset:
    found = locate(name, folder)
    if found is not None and name in cifar.SETS:
        return _from_cifar(name, found, name, split)
    if found is not None:
        first = idx.read_labels(_files(found)["test"][1])[:10].tolist()
        for other, labels in _TEST_LABELS.items():
            if other != name and first == labels:
                raise DataError(
                    f"the files in {found} are {_TITLES[other]}, not {_TITLES[name]} (both use "
                    f"the same file names). Move them into a subfolder {other}/."
                )
        return _from_folder(found, name, split, f"{_TITLES[name]}, IDX files", 10)
    if name == "mnist":
        return _embedded(split)
    searched = ", ".join(str(place) for place in places(name, folder))
    raise DataError(
        f"{name} was not found in {searched}. Run `hessrmt data fetch {name}`, {_remedy(name)} "
        f"into a folder {name}/ below one that HESSRMT_DATA names."
    )


def _remedy(name: str) -> str:
    if name in cifar.SETS:
        return f"or put {cifar.SETS[name].archive}, packed or unpacked,"
    return "or install Debian's package dataset-fashion-mnist, or put its four IDX files"


def _from_cifar(known: str, source: Path, name: str, split: str) -> Dataset:
    arrays = {split: cifar.read(known, source, split)}
    origin = f"{cifar.SETS[known].title} from {source}, {split} split"
    classes = cifar.SETS[known].classes
    return checked_dataset(arrays, name, split, classes, origin, {split: str(source)})


def _files(folder: Path) -> dict[str, tuple[Path, Path]]:
    files = {s: pair for s in SPLITS if (pair := idx.find(folder, s)) is not None}
    missing = " and ".join(
        f"{idx.STEMS[s]}-images-idx3-ubyte with {idx.STEMS[s]}-labels-idx1-ubyte"
        for s in SPLITS
        if s not in files
    )
    if missing:
        raise DataError(
            f"the folder {folder} lacks {missing} (a dot before idx and .gz at the end are fine); "
            f"expected the four IDX files of an MNIST-like set, or CIFAR's batches."
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
    return checked_dataset(arrays, name, split, classes, origin, {split: str(files[split][0])})


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
