"""The IDX format of MNIST (LeCun, Cortes and Burges): big-endian arrays, plain or gzipped.

A file is two zero bytes, a dtype code, the number of dimensions, one uint32 per dimension, then
the values in C order.
"""

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np

from hessrmt.errors import DataError

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
STEMS = {"train": "train", "test": "t10k"}

_GZIP = b"\x1f\x8b"


def find(folder: Path, split: str) -> tuple[Path, Path] | None:
    """Image and label file of a split, as MNIST-like sets name them.

    Args:
        folder: Where to look (not in folders below it).
        split: ``train`` or ``test``.

    Returns:
        Paths like ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, or with a dot in
        ``images.idx3``, or with ``.gz`` at the end; None unless both are there.
    """
    images = _first(folder, f"{STEMS[split]}-images", "idx3-ubyte")
    labels = _first(folder, f"{STEMS[split]}-labels", "idx1-ubyte")
    return (images, labels) if images and labels else None


def read(path: Path) -> np.ndarray:
    """The array in an IDX file; gzip is recognised by its content.

    Args:
        path: Plain or gzipped IDX file.

    Returns:
        Array in native byte order, with the dtype and shape that the header gives.

    Raises:
        DataError: If the file cannot be read, is damaged, or is not as long as its header says.
    """
    raw = _bytes(path)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in DTYPES:
        codes = ", ".join(f"0x{code:02X}" for code in DTYPES)
        raise DataError(
            f"{path} is not an IDX file: it starts with {raw[:4].hex(' ') or 'nothing'}, expected "
            f"00 00, a dtype code ({codes}) and the number of dimensions. Download it again."
        )
    dtype, ndim = np.dtype(DTYPES[raw[2]]), raw[3]
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


def read_labels(path: Path) -> np.ndarray:
    """The labels in an IDX file.

    Args:
        path: Plain or gzipped IDX file.

    Returns:
        (N,) integers, as stored.

    Raises:
        DataError: If the file cannot be read, or holds something else.
    """
    y = read(path)
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise DataError(
            f"{path} holds {y.dtype} values of shape {y.shape}, expected N integer labels."
        )
    return y


def read_pair(images: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
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
    x, y = read(images), read_labels(labels)
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


def _first(folder: Path, stem: str, kind: str) -> Path | None:
    for name in (f"{stem}-{kind}", f"{stem}.{kind}"):
        for path in (folder / name, folder / f"{name}.gz"):
            if os.path.isfile(path):
                return path
    return None


def _bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw.startswith(_GZIP) else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file ({error}). Download it again.") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from error
