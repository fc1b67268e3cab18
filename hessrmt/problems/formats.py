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
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, ClassVar, NoReturn, cast

import numpy as np

from hessrmt.errors import DataError
from hessrmt.problems.archives import look_through, most_unpacked, npy_header, require_memory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPLITS = ("train", "test")
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
_NPZ_READ = {"x", "y", "classes", *NPZ_KEYS}
IDX_STEMS = {"train": "train", "test": "t10k"}

LARGEST_PICKLE = 1 << 29
"""Most bytes of a batch: CIFAR-100 has 155 MB, written by Python 3 in protocol 2 up to 310 MB."""

MOST_INSTRUCTIONS = 2_000_000
"""Most instructions of a pickle, which bound its memory: CIFAR-100 has about 300,000."""

_UNPACKED = 2 * LARGEST_PICKLE
_PIECE = 1 << 20
_PACKED_AT_BEST = 1032
"""What deflate unpacks to what is stored, at most."""

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


def _unpacked(path: Path) -> IO[bytes]:
    """A file open for reading, unpacked if it begins as gzip does."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast("IO[bytes]", gzip.open(path)) if packed else path.open("rb")


def _read(file: IO[bytes], most: int) -> bytes | bytearray:
    """So many bytes, or as many as there are: memory is taken for those alone."""
    if not isinstance(file, gzip.GzipFile):
        return file.read(min(most, os.fstat(file.fileno()).st_size))
    found = bytearray()
    while piece := file.read(min(_PIECE, most - len(found))):
        found += piece
    return found


# What is published


@dataclass(frozen=True)
class Published:
    """A data set as it is published: in four IDX files, or as CIFAR's archive of batches.

    Attributes:
        title: For people.
        folder: Where torchvision keeps the files.
        mirrors: Base addresses, tried in order for each file.
        md5: Name of a file at these addresses to its MD5, as torchvision or, for CIFAR, the authors
            publish them.
        first: The first ten labels of the test split, which tell sets in IDX files apart.
        batches: Split to the names of CIFAR's batches, in order.
        key: Of the labels in a batch.
        classes: Number of classes.
    """

    title: str
    folder: str
    mirrors: tuple[str, ...]
    md5: dict[str, str]
    first: tuple[int, ...] = ()
    batches: dict[str, tuple[str, ...]] = field(default_factory=dict)
    key: str = "labels"
    classes: int = 10

    @property
    def archive(self) -> str:
        """Name of CIFAR's archive, otherwise empty."""
        return next(iter(self.md5)) if self.batches else ""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all batches."""
        return sum(self.batches.values(), ())

    def missing(self, folder: Path) -> list[str]:
        """Names of the files that a folder lacks."""
        if self.batches:
            return [file for file in self.files if not os.path.isfile(folder / file)]
        lacking = [stem for split, stem in IDX_STEMS.items() if split not in find_idx(folder)]
        return [f"{stem}-images-idx3-ubyte with {stem}-labels-idx1-ubyte" for stem in lacking]


_KRIZHEVSKY = ("https://www.cs.toronto.edu/~kriz/",)
SETS = {
    "mnist": Published(
        "MNIST",
        "MNIST/raw",
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        first=(7, 2, 1, 0, 4, 1, 4, 9, 5, 9),
    ),
    "fashion-mnist": Published(
        "Fashion-MNIST",
        "FashionMNIST/raw",
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        first=(9, 2, 1, 1, 6, 1, 4, 6, 5, 7),
    ),
    "cifar10": Published(
        "CIFAR-10",
        "cifar-10-batches-py",
        _KRIZHEVSKY,
        {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
        batches={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    ),
    "cifar100": Published(
        "CIFAR-100",
        "cifar-100-python",
        _KRIZHEVSKY,
        {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"},
        batches={"train": ("train",), "test": ("test",)},
        key="fine_labels",
        classes=100,
    ),
}
"""By name; CIFAR-100 with its 100 fine labels."""


# IDX


def find_idx(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Image and label file of the splits, as MNIST-like sets name them.

    Args:
        folder: Where to look (not in folders below it).

    Returns:
        For each split that has both, paths like ``train-images-idx3-ubyte`` and
        ``train-labels-idx1-ubyte``, or with a dot in ``images.idx3``, or with ``.gz`` at the end.
    """
    ends = [f"{mark}idx{{}}-ubyte{zipped}" for mark in "-." for zipped in ("", ".gz")]
    found = {}
    for split, stem in IDX_STEMS.items():
        pair = []
        for kind, axes in (("images", 3), ("labels", 1)):
            paths = (folder / f"{stem}-{kind}{end.format(axes)}" for end in ends)
            pair += list(filter(os.path.isfile, paths))[:1]
        if len(pair) == 2:
            found[split] = pair[0], pair[1]
    return found


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file; gzip is recognised by its content.

    Args:
        path: Plain or gzipped IDX file.

    Returns:
        Array in native byte order, with the dtype and shape that the header gives.

    Raises:
        DataError: If the file cannot be read, is damaged, or is not as long as its header says.
    """
    with _reading(path, "IDX file"), _unpacked(path) as file:
        head = file.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_TYPES:
            codes = ", ".join(f"0x{code:02X}" for code in _IDX_TYPES)
            raise DataError(
                f"{path} is not an IDX file: it starts with {head.hex(' ') or 'nothing'}, expected "
                f"00 00, a dtype code ({codes}) and the number of dimensions. Download it again."
            )
        dtype, ndim = np.dtype(_IDX_TYPES[head[2]]), head[3]
        sizes = file.read(4 * ndim)
        if not 1 <= ndim <= 8 or len(sizes) < 4 * ndim:
            raise DataError(
                f"{path} is not a usable IDX file: its header announces {ndim} dimensions "
                f"(expected 1 to 8) and the file has {4 + len(sizes)} bytes. Download it again."
            )
        shape = tuple(int(n) for n in np.frombuffer(sizes, ">u4"))
        count = math.prod(shape) * dtype.itemsize
        if not count:
            raise DataError(f"{path} holds no values: its header announces the shape {shape}.")
        stored = os.stat(path).st_size
        possible = stored
        if isinstance(file, gzip.GzipFile):
            possible = most_unpacked(stored)
            require_memory(path, min(count, possible))
            if possible < count < _PACKED_AT_BEST * stored:
                raise DataError(
                    f"{path} claims to unpack to {count:,} bytes, {count // stored:,} times the "
                    "file, which no data set does. Download it again."
                )
        content = _read(file, count) if count <= possible else b""
        more = len(file.read(1)) if len(content) == count else 0
        if len(content) != count or more:
            fault = "too long" if more else "truncated"
            raise DataError(
                f"{path} is {fault}: its header announces {dtype.name} values of shape {shape}, "
                f"{count} bytes, and there are {'more' if more else 'fewer'}. Download it again."
            )
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))


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


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a data set in an ``.npz`` file.

    Args:
        path: The file.

    Returns:
        ``x`` and ``y``, or all of ``NPZ_KEYS``; and ``classes`` if it is there.

    Raises:
        DataError: If the file is damaged, or holds something else.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} is not an .npz file. Write one with numpy.savez(file, x=..., y=...); for "
            f"IDX files give the folder they are in."
        )
    try:
        look_through(path)
        with zipfile.ZipFile(path) as archive:
            names = {f"{key}.npy" for key in _NPZ_READ} & set(archive.namelist())
            for name in names:
                npy_header(archive, name)
            require_memory(path, sum(archive.getinfo(name).file_size for name in names))
        with np.load(path, allow_pickle=False) as file:
            wanted = _NPZ_READ & set(file.files)
            found = {key: value for key in wanted if isinstance(value := file[key], np.ndarray)}
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


def read_cifar(known: Published, source: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one split.

    Args:
        known: The set.
        source: The folder of the batches, or the archive.
        split: ``train`` or ``test``.

    Returns:
        (N, 3, 32, 32) uint8 and (N,) int64.

    Raises:
        DataError: If a batch is missing, damaged, or does not hold what it should.
    """
    if not os.path.isdir(source):
        contents = _from_archive(known, source, split)
    elif missing := " and ".join(known.missing(source)):
        raise DataError(
            f"the folder {source} lacks {missing}; expected the batches of {known.title} "
            f"({', '.join(known.files)}). Unpack {known.archive} again, or put the archive itself "
            "there."
        )
    else:
        paths = [source / file for file in known.batches[split]]
        contents = {}
        for path in paths:
            with _reading(path, "file"), _unpacked(path) as file:
                contents[str(path)] = bytes(_read(file, LARGEST_PICKLE + 1))
    x, y = zip(*(_batch(known, raw, file) for file, raw in contents.items()), strict=True)
    return np.concatenate(x), np.concatenate(y)


class _Unpacking:
    """An archive as it is unpacked: nothing of it is kept, and it comes to an end.

    Args:
        file: Of what is in the archive.
        path: Of the archive.
    """

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path, self.tell = file, path, file.tell

    def read(self, count: int = _PIECE) -> bytes:
        self._require(self.tell() + count, count)
        return self._file.read(count)

    def seek(self, place: int) -> int:
        self._require(place)
        return self._file.seek(place)

    def _require(self, place: int, count: int = 0) -> None:
        if place > _UNPACKED + _PIECE or count > LARGEST_PICKLE:
            raise DataError(
                f"{self._path} unpacks to more than {_UNPACKED >> 20} MiB, or claims a member of "
                f"more than {LARGEST_PICKLE >> 20} MiB, which no archive of a CIFAR set does. "
                "Download it again."
            )


def _from_archive(known: Published, path: Path, split: str) -> dict[str, bytes]:
    """The batches of a split, read without writing anything to disk."""
    wanted = [f"{known.folder}/{file}" for file in known.batches[split]]
    found: dict[str, bytes] = {}
    with _reading(path, "archive"), _unpacked(path) as file:
        unpacking: Any = _Unpacking(file, path)
        with tarfile.open(fileobj=unpacking, mode="r:") as archive:
            for member in archive:
                if member.name in wanted and member.isreg():
                    _require_size(member.size, f"{member.name} in {path}")
                    found[member.name] = cast("IO[bytes]", archive.extractfile(member)).read()
        while unpacking.read():  # the checksum is at the end
            pass
    if missing := " and ".join(name for name in wanted if name not in found):
        raise DataError(
            f"{path} lacks {missing}; expected the python version of {known.title}, as published. "
            "Download it again."
        )
    return {f"{name} in {path}": found[name] for name in wanted}


def _batch(known: Published, raw: bytes, file: str) -> tuple[np.ndarray, np.ndarray]:
    batch = read_pickle(raw, file, ("data", known.key))
    lacking = " and ".join(key for key in ("data", known.key) if key not in batch)
    if lacking:
        names = ", ".join(sorted(batch))[:200] or "nothing"
        raise DataError(
            f"{file} holds {names}, but not {lacking}; expected a batch of {known.title}."
        )
    x, y = batch["data"], batch[known.key]
    fault = ""
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.shape[1:] != (3072,):
        found = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        fault = f"data is {found}, expected uint8 (N, 3072)."
    elif not isinstance(y, list) and (not isinstance(y, np.ndarray) or y.ndim != 1):
        fault = f"{known.key} is not a list of integers."
    elif len(y) != len(x) or not len(y):
        fault = f"{len(x)} images but {len(y)} labels; expected as many, one or more."
    elif not all(type(label) is int or isinstance(label, np.integer) for label in y):
        fault = f"{known.key} is not a list of integers."
    elif bad := [row for row, label in enumerate(y) if not 0 <= label < known.classes]:
        fault = f"the label in row {bad[0]} is {y[bad[0]]}; expected 0 to {known.classes - 1}."
    if fault:
        raise DataError(f"{file}: {fault}")
    return x.reshape(-1, 3, 32, 32), np.array(y, np.int64)


# Pickles, read as data

_NAMED = {
    *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
    *("numpy.ndarray", "numpy.dtype", "_codecs.encode"),
}
"""What a pickle of dictionaries, lists, strings, integers and numpy arrays names.

numpy's own functions must not be called: they believe what a pickle says of a type, and may then
take values for addresses.
"""

_REFUSED = {"DICT", "EMPTY_SET", "ADDITEMS", "FROZENSET", "EXT1", "EXT2", "EXT4"}
"""Instructions that hash what may take forever to hash, or name things in another way."""


class _Noted:
    """What a pickle names or calls: noted for :func:`_array`, never called."""

    def __init__(self, name: str, arguments: tuple[Any, ...] = ()) -> None:
        self.name, self.arguments = name, arguments
        self.state: Any = ()

    def __call__(self, *arguments: Any) -> Any:
        # nor are bytes made of text here: a pickle may call any number of times with one long text
        return _Noted(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def encoded(self, most: int | None = None) -> bytes:
        """The bytes, or so many, that Python 3 writes as a call in protocol 2."""
        if self.name != "_codecs.encode" or self.arguments[1:] != ("latin1",):
            raise TypeError(f"{self.name} where bytes belong")
        return self.arguments[0][:most].encode("latin1")


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
    _require_size(len(raw), source)
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


def _require_size(size: int, source: str) -> None:
    if size > LARGEST_PICKLE:
        raise DataError(
            f"{source} is larger than {LARGEST_PICKLE >> 20} MiB, which no file of a CIFAR set is. "
            "Download it again."
        )


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
        raw = raw.encoded() if isinstance(raw, _Noted) else raw
        order = "F" if fortran else "C"
    code = _text(kind.arguments[0])
    if kind.name != "numpy.dtype" or not re.fullmatch("[iu][1248]", code):
        raise DataError(f"{source} holds an array of dtype {code[:20]!r}, expected integers (u1).")
    ends = _text(kind.state[1])
    dtype = np.dtype((ends if ends in {"<", ">"} else "=") + code)
    values = np.frombuffer(raw, dtype).reshape(shape, order=order)
    return values.astype(dtype.newbyteorder("="))


def _text(value: Any) -> str:
    """A short text, such as a key, by any Python and protocol."""
    value = value.encoded(200) if isinstance(value, _Noted) else value
    if not isinstance(value, str | bytes | int):
        raise TypeError(f"{type(value).__name__} where text belongs")
    return value[:200].decode("latin-1") if isinstance(value, bytes) else str(value)[:200]
