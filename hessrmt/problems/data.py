"""Data sets: found by name or path, downloaded, checked once, handed out as tensors.

``mnist`` falls back to 10,000 real digits shipped with the package, so that everything runs
without a download.
"""

import copy
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from hessrmt import rng
from hessrmt.checks import one_of
from hessrmt.errors import DataError
from hessrmt.problems import formats, madeup
from hessrmt.problems.formats import NPZ_KEYS, SETS, SPLITS, Published

MAX_CLASSES = 1_000_000

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_EMBEDDED_TRAIN = 8_000


NAMES = tuple(SETS)


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
        embedded: Whether these are no published data: the subset of MNIST shipped with the package,
            or made-up images.
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
        x, y = (torch.from_numpy(np.array(part[indices], order="C")) for part in (self.x, self.y))
        pixels = x.dtype == torch.uint8
        if x.dtype != torch.int64 or not _takes(model, x[:1]):
            x = x.to(dtype)
        if pixels:
            x = x.div_(255).sub_(0.5).div_(0.5)
        return x, y.to(dtype) if self.classes is None else y


def _takes(model: nn.Module | None, x: Tensor) -> bool:
    """Whether a network can be run on some samples as they are."""
    if model is not None:
        with suppress(Exception), torch.no_grad():  # whatever the user's network raises
            copy.deepcopy(model).eval()(x.to(next(model.parameters()).device))
            return True
    return False


# Where data are


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
    given = [folder, os.environ.get("HESSRMT_DATA") or None]
    found = [Path(os.path.expanduser(place)) for place in given if place is not None]
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
    known = SETS[name]
    for place in places(name, folder):
        below = place / name
        folders = (place / known.folder, below, below / known.folder, place)
        archives = (place / known.archive, below / known.archive)
        complete = [path for path in folders if not known.missing(path)]
        if found := [*complete, *filter(os.path.isfile, archives)]:
            return found[0]
    return None


def files_below(folder: Path) -> list[Path]:
    """What :func:`locate` and :func:`load` would read in a folder, whichever data set is meant.

    Args:
        folder: Given as data, or as where to look for them.

    Returns:
        The files that are there.
    """
    found: list[Path] = []
    for name, known in SETS.items():
        below = folder / name
        for place in (folder, below, folder / known.folder, below / known.folder):
            found += [place / file for file in (*known.files, *filter(None, [known.archive]))]
            found += sum(formats.find_idx(place).values(), ())
    return [file for file in dict.fromkeys(found) if os.path.isfile(file)]


def fetch(name: str, progress: bool = True, mirrors: Sequence[str] | None = None) -> Path:
    """Download the files of a set, checked against published hashes; right ones there are kept.

    Args:
        name: One of ``NAMES``.
        progress: Show a progress bar on standard error.
        mirrors: Base addresses to try, in order, instead of the published ones.

    Returns:
        Folder of the files in the user cache, where :func:`load` finds them.

    Raises:
        DataError: If the name is unknown, or no mirror gave a file with the published hash.
    """
    from pooch import HTTPDownloader, retrieve

    one_of("data set", name, NAMES)
    source, folder = SETS[name], user_cache() / name
    for file, md5 in source.md5.items():
        failures = []
        for mirror in mirrors or source.mirrors:
            url = mirror.rstrip("/") + "/" + file
            downloader = HTTPDownloader(progressbar=progress, chunk_size=1 << 16)
            try:
                retrieve(url, f"md5:{md5}", fname=file, path=folder, downloader=downloader)  # pyright: ignore[reportArgumentType]
                break
            except (OSError, ValueError) as error:  # of requests, and of a wrong hash
                failures.append(f"{url}: {error}")
        else:
            raise DataError(
                f"could not download {file} of {name} with its published hash (MD5 {md5}); tried "
                f"{'; '.join(failures)}. Check the network and try again, or download "
                f"{', '.join(source.md5)} elsewhere and put them into {folder}, or into a folder "
                f"{name}/ below one that HESSRMT_DATA names."
            )
    return folder


def load(spec: str, split: str | None = None, folder: Path | None = None) -> Dataset:
    """Load and check a data set.

    Args:
        spec: ``mnist``, ``fashion-mnist``, ``cifar10``, ``cifar100`` (fine labels), an ``.npz``
            file with ``x`` and ``y`` or with ``x_train``, ``y_train``, ``x_test`` and ``y_test``,
            a folder with the four IDX files of an MNIST-like set or with CIFAR's batches, or
            CIFAR's archive; ``made-up-cifar100`` for images that are none, see
            :mod:`hessrmt.problems.madeup`. In an ``.npz``, uint8 ``x`` are pixels, integer ``y``
            are class labels (their number is the largest label of the file plus one, or the entry
            ``classes``) and float ``y`` are regression targets.
        split: ``train`` or ``test``; None means test, or everything where data have no splits.
        folder: A folder to search first for the names.

    Returns:
        The split, with every value checked.

    Raises:
        DataError: If the data are not there, not readable, or hold values that cannot be used.
    """
    one_of("split", split, (*SPLITS, None))
    if spec in NAMES:
        return _registered(spec, split or "test", folder)
    if spec == madeup.MADE_UP:
        return _made_up(split or "test")
    path = Path(os.path.expanduser(spec))
    for known in SETS.values():  # by the names of files only
        if known.batches and (
            len(known.missing(path)) < len(known.files)
            or (path.name == known.archive and os.path.isfile(path))
        ):
            return _from_cifar(known, path, path.resolve().name, split or "test")
    if os.path.isdir(path):
        return _from_idx(None, path, path.resolve().name, split or "test")
    if os.path.isfile(path):
        return _from_npz(path, split)
    named = path.suffix == ".npz" or len(path.parts) > 1
    raise DataError(
        f"{f'no file or folder {spec}' if named else f'unknown data set {spec!r}'}. Data are one "
        f"of: {', '.join(NAMES)}, an .npz file with x and y, or a folder of IDX files or CIFAR "
        "batches."
    )


def _registered(name: str, split: str, folder: Path | None) -> Dataset:
    known, found = SETS[name], locate(name, folder)
    if found is not None:
        return (_from_cifar if known.batches else _from_idx)(known, found, name, split)
    if name == "mnist":
        return _embedded(split)
    remedy = "install Debian's package dataset-fashion-mnist, or put its four IDX files"
    if known.batches:
        remedy = f"put {known.archive}, packed or unpacked,"
    raise DataError(
        f"{name} was not found in {', '.join(map(str, places(name, folder)))}. Run `hessrmt data "
        f"fetch {name}`, or {remedy} into a folder {name}/ below one that HESSRMT_DATA names."
    )


def _made_up(split: str) -> Dataset:
    """Written and read as the published files are."""
    with TemporaryDirectory() as folder:
        madeup.write_cifar100(Path(folder))
        found = _from_cifar(SETS["cifar100"], Path(folder), madeup.MADE_UP, split)
    counts = " and ".join(f"{count:,} {name}" for name, count in madeup.COUNTS.items())
    origin = f"made-up images in CIFAR-100's format, {counts}: no photographs ({split} split)"
    return replace(found, origin=origin, embedded=True)


# From files


def _from_cifar(known: Published, source: Path, name: str, split: str) -> Dataset:
    arrays = {split: (str(source), *formats.read_cifar(known, source, split))}
    origin = f"{known.title} from {source}, {split} split"
    return _checked(arrays, name, split, known.classes, origin)


def _from_idx(known: Published | None, folder: Path, name: str, split: str) -> Dataset:
    if missing := " and ".join(SETS["mnist"].missing(folder)):
        raise DataError(
            f"the folder {folder} lacks {missing} (a dot before idx and .gz at the end are fine); "
            f"expected the four IDX files of an MNIST-like set, or CIFAR's batches."
        )
    files = formats.find_idx(folder)
    if known is None:  # counted over both splits, though only one is read in full
        classes = 1 + max(int(formats.read_idx_labels(y).max()) for _, y in files.values())
    else:
        classes, first = known.classes, tuple(formats.read_idx_labels(files["test"][1])[:10])
        for other, published in SETS.items():
            if published is not known and published.first == first:
                raise DataError(
                    f"the files in {folder} are {published.title}, not {known.title} (both use the "
                    f"same file names). Move them into a subfolder {other}/."
                )
    images, labels = files[split]
    x, y = formats.read_idx(images), formats.read_idx_labels(labels)
    if x.ndim < 3:
        raise DataError(
            f"{images} holds an array of shape {x.shape}, expected images (N, height, width)."
        )
    origin = f"{known.title + ', ' if known else ''}IDX files from {folder}, {split} split"
    return _checked({split: (f"{images} with {labels}", x, y)}, name, split, classes, origin)


def _from_npz(path: Path, split: str | None) -> Dataset:
    content = formats.read_npz(path)
    if "x" in content and split is not None:
        raise DataError(
            f"{path} has no splits (it holds {', '.join(sorted(content))}), so there is no {split} "
            f"split. Leave the split out to use everything, or store {', '.join(NPZ_KEYS)}."
        )
    classes = content.get("classes")
    if classes is not None and (
        classes.size != 1 or classes.dtype.kind not in "iu" or not 1 <= classes <= MAX_CLASSES
    ):
        raise DataError(
            f"classes in {path} has dtype {classes.dtype} and shape {classes.shape}; expected one "
            f"integer from 1 to {MAX_CLASSES:,}."
        )
    chosen = "all" if "x" in content else split or "test"
    ends = {"all": ""} if chosen == "all" else {name: f"_{name}" for name in SPLITS}
    arrays = {
        name: (f"x{end} and y{end} of {path}", content[f"x{end}"], content[f"y{end}"])
        for name, end in ends.items()
    }
    origin = f"{path}, {'everything' if chosen == 'all' else f'{chosen} split'}"
    count = None if classes is None else int(classes.item())
    return _checked(arrays, path.name, chosen, count, origin)


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


# Checks of all that comes from files


def _checked(
    arrays: dict[str, tuple[str, np.ndarray, np.ndarray]],
    name: str,
    split: str,
    classes: int | None,
    origin: str,
) -> Dataset:
    """One of the splits that have been read, each with a label for messages."""
    checked = {s: (_features(x, label), _targets(y, label)) for s, (label, x, y) in arrays.items()}
    for s, (x, y) in checked.items():
        fault, labelled = "", y.dtype == np.int64
        if len(x) != len(y):
            fault = f"{len(x)} samples but {len(y)} targets; expected as many."
        elif not x.size or not y.size:
            fault = f"empty (shapes {x.shape} and {y.shape}); expected one sample or more."
        elif labelled and classes is not None and y.max() >= classes:
            row = int(np.flatnonzero(y >= classes)[0])
            fault = f"the label in row {row} is {y[row]}; with {classes} classes, expected 0 to "
            fault += f"{classes - 1}."
        elif not labelled and classes is not None:
            fault = f"y is {y.dtype}, which means regression, but the file also holds classes. "
            fault += "Store y as integers, or leave classes out."
        if fault:
            raise DataError(f"{arrays[s][0]}: {fault}")
    if len({(x.shape[1:], x.dtype, y.shape[1:], y.dtype) for x, y in checked.values()}) > 1:
        each = "; ".join(
            f"{s}: x {x.dtype} {x.shape}, y {y.dtype} {y.shape}" for s, (x, y) in checked.items()
        )
        raise DataError(f"the splits do not match in {arrays['train'][0]}: {each}.")
    x, y = checked[split]
    if y.dtype == np.int64 and classes is None:
        classes = 1 + max(int(y.max()) for _, y in checked.values())
    return Dataset(name, split, x, y, classes, origin)


def _features(x: np.ndarray, label: str) -> np.ndarray:
    x = _numbers(x, label, "x")
    if x.dtype == np.uint8:
        if x.ndim == 3:
            return x[:, None]
        # (N, height, width, channels), as Keras stores CIFAR-10
        last = x.ndim == 4 and x.shape[3] in {1, 3, 4} and x.shape[1] not in {1, 3, 4}
        return np.ascontiguousarray(np.moveaxis(x, 3, 1)) if last else x
    return x if x.dtype.kind == "f" else x.astype(np.float64 if x.dtype == bool else np.int64)


def _targets(y: np.ndarray, label: str) -> np.ndarray:
    y = _numbers(y, label, "y")
    if y.dtype.kind == "f":
        return y
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise DataError(
            f"{label}: integer y has shape {y.shape}; expected one class label per sample. Take "
            f"the argmax of one-hot labels; store regression targets as floats."
        )
    bad = np.flatnonzero((y < 0) | (y >= MAX_CLASSES))
    if len(bad):
        raise DataError(
            f"{label}: y in row {bad[0]} is {y[bad[0]]}; integer y are class labels, expected 0 to "
            f"{MAX_CLASSES - 1:,}. Store regression targets as floats."
        )
    return y.astype(np.int64)


def _numbers(values: np.ndarray, label: str, key: str) -> np.ndarray:
    if values.dtype.kind not in "biuf" or values.ndim < 1:
        raise DataError(
            f"{label}: {key} has dtype {values.dtype} and shape {values.shape}; expected numbers "
            "(N, ...)."
        )
    if values.dtype.kind != "f":
        return values
    if values.dtype.itemsize > 8:
        values = values.astype(np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        raise DataError(
            f"{label}: {int(bad.sum())} of {bad.size} values of {key} are NaN or infinite, the "
            f"first in row {np.argwhere(bad)[0, 0]}. Remove or repair those samples."
        )
    return values.astype(values.dtype.newbyteorder("="), copy=False)
