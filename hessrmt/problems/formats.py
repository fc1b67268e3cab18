"""Arrays out of files of data sets: IDX, ``.npz``, and CIFAR's batches of pickled arrays.

An IDX file (MNIST: LeCun, Cortes and Burges) is two zero bytes, a dtype code, the number of
dimensions, one big-endian uint32 per dimension, then the values in C order; plain or gzipped.

CIFAR-10 and CIFAR-100 (Krizhevsky 2009) are read in their "python version". A batch is a dictionary
with ``data``, (N, 3072) uint8, the red, green and blue 32 x 32 values of an image one after the
other, and ``labels`` or ``fine_labels``. It is pickled, in protocols 2 to 5, and read without
executing anything in it, also straight from the ``.tar.gz`` archive. ``batches.meta`` and ``meta``,
the names of the classes, are not needed.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import pickle
import pickletools
import re
import tarfile
import zipfile
import zlib
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn, cast

import numpy as np

from hessrmt.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPLITS = ("train", "test")
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
IDX_STEMS = {"train": "train", "test": "t10k"}

LARGEST_PICKLE = 1 << 29
"""Most bytes of a batch: CIFAR-100 has 155 MB, written by Python 3 in protocol 2 up to 310 MB."""

MOST_INSTRUCTIONS = 2_000_000
"""Most instructions of a pickle, which bound its memory: CIFAR-100 has about 300,000."""

_UNPACKED = 2 * LARGEST_PICKLE
_GZIP = b"\x1f\x8b"
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_DAMAGE = (ValueError, EOFError, RuntimeError, MemoryError, OverflowError, zlib.error)


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Say of which file it is that something is wrong."""
    try:
        yield
    except DataError:
        raise
    except (gzip.BadGzipFile, tarfile.TarError, *_DAMAGE) as error:
        raise DataError(f"{path} is a damaged {kind} ({error}). Download it again.") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from error


def find_idx(folder: Path, split: str) -> tuple[Path, Path] | None:
    """Image and label file of a split, as MNIST-like sets name them.

    Args:
        folder: Where to look (not in folders below it).
        split: ``train`` or ``test``.

    Returns:
        Paths like ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, or with a dot in
        ``images.idx3``, or with ``.gz`` at the end; None unless both are there.
    """
    ends = [f"{mark}idx{{}}-ubyte{zipped}" for mark in "-." for zipped in ("", ".gz")]
    found = []
    for kind, axes in (("images", 3), ("labels", 1)):
        paths = (folder / f"{IDX_STEMS[split]}-{kind}{end.format(axes)}" for end in ends)
        found.append(next(filter(os.path.isfile, paths), None))
    return None if None in found else (found[0], found[1])


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file; gzip is recognised by its content.

    Args:
        path: Plain or gzipped IDX file.

    Returns:
        Array in native byte order, with the dtype and shape that the header gives.

    Raises:
        DataError: If the file cannot be read, is damaged, or is not as long as its header says.
    """
    with _reading(path, "gzip file"):
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw.startswith(_GZIP) else raw
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_TYPES:
        codes = ", ".join(f"0x{code:02X}" for code in _IDX_TYPES)
        raise DataError(
            f"{path} is not an IDX file: it starts with {raw[:4].hex(' ') or 'nothing'}, expected "
            f"00 00, a dtype code ({codes}) and the number of dimensions. Download it again."
        )
    dtype, ndim = np.dtype(_IDX_TYPES[raw[2]]), raw[3]
    start = 4 + 4 * ndim
    if not 1 <= ndim <= 8 or len(raw) < start:
        raise DataError(
            f"{path} is not a usable IDX file: its header announces {ndim} dimensions (expected 1 "
            f"to 8) and the file has {len(raw)} bytes. Download it again."
        )
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", ndim, 4))
    expected = start + math.prod(shape) * dtype.itemsize
    if expected == start:
        raise DataError(f"{path} holds no values: its header announces the shape {shape}.")
    if len(raw) != expected:
        fault = "truncated" if len(raw) < expected else "too long"
        raise DataError(
            f"{path} is {fault}: its header announces {dtype.name} values of shape {shape}, "
            f"{expected} bytes in all, but there are {len(raw)}. Download it again."
        )
    return np.frombuffer(raw, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def read_idx_labels(path: Path) -> np.ndarray:
    """The labels in an IDX file.

    Args:
        path: Plain or gzipped IDX file.

    Returns:
        (N,) integers, as stored.

    Raises:
        DataError: If the file cannot be read, or holds something else.
    """
    y = read_idx(path)
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise DataError(
            f"{path} holds {y.dtype} values of shape {y.shape}, expected N integer labels."
        )
    return y


def read_idx_pair(images: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one split.

    Args:
        images: IDX file of shape (N, height, width) or more dimensions.
        labels: IDX file of N integers.

    Returns:
        The two arrays, as stored.

    Raises:
        DataError: If one cannot be read, has the wrong number of dimensions or dtype, or the two
            differ in N.
    """
    x, y = read_idx(images), read_idx_labels(labels)
    if x.ndim < 3:
        raise DataError(
            f"{images} holds an array of shape {x.shape}, expected images (N, height, width)."
        )
    if len(x) != len(y):
        raise DataError(
            f"{images} holds {len(x)} images but {labels} holds {len(y)} labels: they do not "
            f"belong together. Download both again."
        )
    return x, y


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a data set in an ``.npz`` file.

    Args:
        path: The file.

    Returns:
        ``x`` and ``y``, or all of ``NPZ_KEYS``; and ``classes`` if it is there.

    Raises:
        DataError: If the file is damaged, or holds something else.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise DataError(
                f"{path} is not an .npz file. Write one with numpy.savez(file, x=..., y=...); for "
                f"IDX files give the folder they are in."
            )
        with np.load(path, allow_pickle=False) as file:
            wanted = {"x", "y", "classes", *NPZ_KEYS} & set(file.files)
            found = {key: value for key in wanted if isinstance(value := file[key], np.ndarray)}
    except DataError:
        raise
    except (OSError, zipfile.BadZipFile, *_DAMAGE) as error:
        raise DataError(
            f"cannot read the arrays in {path} ({error}). Expected plain numeric arrays written "
            f"with numpy.savez; object arrays are refused, and a damaged file has to be made again."
        ) from error
    if found.keys() - {"classes"} not in ({"x", "y"}, set(NPZ_KEYS)):
        raise DataError(
            f"{path} holds {', '.join(sorted(found)) or 'nothing'}; expected either x and y, or "
            f"{', '.join(NPZ_KEYS)} (and, if you like, classes)."
        )
    return found


# CIFAR


class Cifar(NamedTuple):
    """How a set of CIFAR is published.

    Attributes:
        title: For people.
        folder: In the archive.
        archive: File name of the archive.
        batches: Split to the names of its batches, in order.
        labels: Key of the labels of a batch.
        classes: Number of classes.
    """

    title: str
    folder: str
    archive: str
    batches: dict[str, tuple[str, ...]]
    labels: str
    classes: int

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all batches."""
        return sum(self.batches.values(), ())

    def missing(self, folder: Path) -> list[str]:
        """Names of the batches that a folder lacks."""
        return [file for file in self.files if not os.path.isfile(folder / file)]


_TRAIN_10 = tuple(f"data_batch_{i}" for i in range(1, 6))
CIFAR = {
    f"cifar{n}": Cifar(
        f"CIFAR-{n}", folder, f"cifar-{n}-python.tar.gz", {"train": train, "test": test}, labels, n
    )
    for n, folder, train, test, labels in (
        (10, "cifar-10-batches-py", _TRAIN_10, ("test_batch",), "labels"),
        (100, "cifar-100-python", ("train",), ("test",), "fine_labels"),
    )
}
"""By name; CIFAR-100 with its 100 fine labels."""


def find_cifar(name: str, place: Path) -> Path | None:
    """Where in a folder a set is.

    Args:
        name: One of ``CIFAR``.
        place: A folder.

    Returns:
        The folder of all batches (``place`` itself, or below it in torchvision's layout or in a
        folder of the set's name), else the archive; None if neither is there.
    """
    known = CIFAR[name]
    folders = (place / known.folder, place / name, place / name / known.folder, place)
    complete = [folder for folder in folders if not known.missing(folder)]
    archives = (folder / known.archive for folder in (place, place / name))
    return next((path for path in (*complete, *filter(os.path.isfile, archives))), None)


def recognise_cifar(path: Path) -> str | None:
    """Which set a folder with batches or an archive is.

    Args:
        path: A folder, or a file.

    Returns:
        The name, by the names of files only; None if it is neither.
    """
    for name, known in CIFAR.items():
        if len(known.missing(path)) < len(known.files) or (
            path.name == known.archive and os.path.isfile(path)
        ):
            return name
    return None


def read_cifar(name: str, source: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one split.

    Args:
        name: One of ``CIFAR``.
        source: The folder of the batches, or the archive.
        split: ``train`` or ``test``.

    Returns:
        (N, 3, 32, 32) uint8 and (N,) int64.

    Raises:
        DataError: If a batch is missing, damaged, or does not hold what it should.
    """
    known = CIFAR[name]
    if not os.path.isdir(source):
        contents = _from_archive(known, source, split)
    elif missing := " and ".join(known.missing(source)):
        raise DataError(
            f"the folder {source} lacks {missing}; expected the batches of {known.title} "
            f"({', '.join(known.files)}). Unpack {known.archive} again, or put the archive itself "
            "there."
        )
    else:
        contents = {str(source / file): _bytes(source / file) for file in known.batches[split]}
    x, y = zip(*(_batch(known, raw, file) for file, raw in contents.items()), strict=True)
    return np.concatenate(x), np.concatenate(y)


def _bytes(path: Path) -> bytes:
    with _reading(path, "file"), path.open("rb") as file:
        raw = file.read(LARGEST_PICKLE + 1)
    _refuse_large(len(raw), str(path))
    return raw


def _refuse_large(size: int, source: str) -> None:
    if size > LARGEST_PICKLE:
        raise DataError(
            f"{source} is larger than {LARGEST_PICKLE >> 20} MiB, which no file of a CIFAR set is. "
            "Download it again."
        )


def _from_archive(known: Cifar, path: Path, split: str) -> dict[str, bytes]:
    """The batches of a split, read without writing anything to disk."""
    wanted = [f"{known.folder}/{file}" for file in known.batches[split]]
    found: dict[str, bytes] = {}
    with _reading(path, "archive"):
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP
        with gzip.open(path) if packed else path.open("rb") as file:
            content = file.read(_UNPACKED + 1)
        if len(content) > _UNPACKED:
            raise DataError(
                f"{path} unpacks to more than {_UNPACKED >> 20} MiB, which no archive of a CIFAR "
                "set does. Download it again."
            )
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                if member.name in wanted and member.isreg():
                    _refuse_large(member.size, f"{member.name} in {path}")
                    found[member.name] = cast("IO[bytes]", archive.extractfile(member)).read()
    if missing := " and ".join(name for name in wanted if name not in found):
        raise DataError(
            f"{path} lacks {missing}; expected the python version of {known.title}, as published. "
            "Download it again."
        )
    return {f"{name} in {path}": found[name] for name in wanted}


def _batch(known: Cifar, raw: bytes, file: str) -> tuple[np.ndarray, np.ndarray]:
    batch = read_pickle(raw, file, ("data", known.labels))
    lacking = " and ".join(key for key in ("data", known.labels) if key not in batch)
    if lacking:
        names = ", ".join(sorted(batch))[:200] or "nothing"
        raise DataError(
            f"{file} holds {names}, but not {lacking}; expected a batch of {known.title}."
        )
    x, y = batch["data"], batch[known.labels]
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.shape[1:] != (3072,):
        found = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise DataError(f"{file}: data is {found}, expected uint8 (N, 3072).")
    y = y.tolist() if isinstance(y, np.ndarray) and y.ndim == 1 else y
    if not isinstance(y, list) or not all(type(label) is int for label in y):
        raise DataError(f"{file}: {known.labels} is not a list of integers.")
    if len(y) != len(x) or not y:
        raise DataError(
            f"{file}: {len(x)} images but {len(y)} labels; expected as many, one or more."
        )
    row = next((row for row, label in enumerate(y) if not 0 <= label < known.classes), None)
    if row is not None:
        raise DataError(
            f"{file}: the label in row {row} is {y[row]}; expected 0 to {known.classes - 1}."
        )
    return x.reshape(-1, 3, 32, 32), np.array(y, np.int64)


# Pickles, read as data

_NAMED = {
    *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
    *("numpy.ndarray", "numpy.dtype", "_codecs.encode"),
}
"""What a pickle of dictionaries, lists, strings, integers and numpy arrays names."""

_REFUSED = {"DICT", "EMPTY_SET", "ADDITEMS", "FROZENSET", "EXT1", "EXT2", "EXT4"}
"""Instructions that hash what may take forever to hash, or name things in another way."""


class _Noted:
    """What a pickle names or calls: noted for :func:`_array`, never called."""

    def __init__(self, name: str, arguments: tuple[Any, ...] = ()) -> None:
        self.name, self.arguments = name, arguments
        self.state: Any = ()

    def __call__(self, *arguments: Any) -> _Noted:
        return _Noted(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


_Python: Any = pickle._Unpickler  # the one in C cannot look at a key before it is hashed


class _Reader(_Python):
    """Unpickles to plain data and notes of calls."""

    dispatch: ClassVar = dict(_Python.dispatch)

    def __init__(self, raw: bytes, source: str) -> None:
        super().__init__(io.BytesIO(raw), encoding="bytes")
        self.source = source

    def find_class(self, module: str, name: str) -> _Noted:
        if f"{module}.{name}" not in _NAMED:
            _refuse(f"{module}.{name}", self.source)
        return _Noted(f"{module}.{name}")

    def load_setitem(self) -> None:
        self.stack[-2] = _text(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        self.stack[::2] = map(_text, self.stack[::2])
        super().load_setitems()

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems


def read_pickle(raw: bytes, source: str, arrays: tuple[str, ...]) -> dict[str, Any]:
    """The dictionary in a pickle, in which nothing is ever imported or called.

    Args:
        raw: The whole pickle.
        source: Name of the file for messages.
        arrays: Names of the entries that may be arrays.

    Returns:
        Entries by name, keys of Python 2 decoded as latin-1. What is asked for is None, a bool,
        int, float, str, bytes, tuple, list, dict, or an array of integers.

    Raises:
        DataError: If it is damaged, too large, no dictionary, or asks for anything else.
    """
    _refuse_large(len(raw), source)
    try:
        for count, (opcode, *_) in enumerate(pickletools.genops(raw)):
            if opcode.name in _REFUSED:
                _refuse(f"instruction {opcode.name}", source)
            if count > MOST_INSTRUCTIONS:
                raise DataError(
                    f"{source} has more than {MOST_INSTRUCTIONS:,} pickle instructions, far more "
                    "than a CIFAR batch. Download it again."
                )
        found = _Reader(raw, source).load()
        if isinstance(found, dict):
            made = {key: found[key] for key in arrays if isinstance(found.get(key), _Noted)}
            return found | {key: _array(call, source) for key, call in made.items()}
    except DataError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(
            f"{source} is a damaged pickle ({type(error).__name__}: {error}). Download it again."
        ) from error
    kind = found.name if isinstance(found, _Noted) else type(found).__name__
    raise DataError(f"{source} holds a pickled {kind}, expected a dictionary.")


def _refuse(what: str, source: str) -> NoReturn:
    raise DataError(
        f"{source} is not plain data: its pickle asks for {what[:100]!r}, but only integer "
        "arrays, lists, text and numbers of pickle protocols 2 to 5 are read. Nothing in it "
        "was executed. Download it again from https://www.cs.toronto.edu/~kriz/cifar.html."
    )


def _array(call: _Noted, source: str) -> np.ndarray:
    """The array that numpy would have made."""
    if call.name.endswith("_frombuffer"):  # protocol 5
        raw, kind, shape, order = call.arguments
    else:
        _version, shape, kind, fortran, raw = call.state
        order = "F" if fortran else "C"
    code = _text(kind.arguments[0])
    if kind.name != "numpy.dtype" or not re.fullmatch("[iu][1248]", code):
        raise DataError(f"{source} holds an array of dtype {code[:20]!r}, expected integers (u1).")
    ends = _text(kind.state[1])
    dtype = np.dtype((ends if ends in {"<", ">"} else "=") + code)
    if isinstance(raw, _Noted):  # bytes of Python 3 in protocol 2
        text, encoding = raw.arguments
        if raw.name != "_codecs.encode" or encoding != "latin1":
            raise ValueError(f"bytes encoded as {str(encoding)[:20]}")
        raw = text.encode("latin-1")
    if len(shape) > 8 or min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {shape}"[:60])
    expected = math.prod(shape) * dtype.itemsize
    if expected != len(raw):
        raise DataError(
            f"{source} holds an array of shape {shape} and {dtype.name}, {expected} bytes, "
            f"but {len(raw)} bytes of values. Download it again."
        )
    return np.frombuffer(raw, dtype).astype(dtype.newbyteorder("=")).reshape(shape, order=order)


def _text(value: Any) -> str:
    """A short text, such as a key, by any Python and protocol."""
    if isinstance(value, _Noted):
        value = value.arguments[0]
    if not isinstance(value, str | bytes | int):
        raise TypeError(f"{type(value).__name__} where text belongs")
    return value[:200].decode("latin-1") if isinstance(value, bytes) else str(value)[:200]
