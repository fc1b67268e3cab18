"""Files as others write them: CIFAR of Python 2 and 3, damaged files, pickles with programs."""

import os
import pickle
import struct
import tarfile

import numpy as np

from hessrmt.errors import DataError
from hessrmt.problems import formats


class Planted:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def not_refused(load, whole, positions, flip=0xFF):
    """Which bytes of a file can be changed without a DataError, and what is then read."""
    found = {}
    for position in positions:
        raw = bytearray(whole)
        raw[position] ^= flip
        try:
            found[position] = load(bytes(raw))
        except DataError:
            continue
    return found


FORMS = ["python2", "bytes-2", "str-2", "str-3", "str-4", "str-5"]


def images(samples):
    return np.random.default_rng(0).integers(0, 256, (samples, 3072), np.uint8)


def python2(x, y, key):
    """As cPickle of Python 2 and numpy of its time write a batch, instruction by instruction."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85q\x09"
        + text(b"b")
        + b"q\x0a\x87q\x0bRq\x0c(K\x01"
        + b"".join(b"J" + struct.pack("<i", n) for n in x.shape)
        + b"\x86q\x0dcnumpy\ndtype\nq\x0e"
        + text(b"u1")
        + b"q\x0fK\x00K\x01\x87q\x10Rq\x11(K\x03"
        + text(b"|")
        + b"q\x12NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x13b\x89T"
        + struct.pack("<i", x.size)
        + x.tobytes()
        + b"q\x14tq\x15b"
    )
    labels = b"]q\x05(" + b"".join(b"K" + bytes([label]) for label in y) + b"e"
    return (
        b"\x80\x02}q\x01("
        + text(b"batch_label")
        + text(b"testing batch 1 of 1")
        + text(key.encode())
        + labels
        + text(b"data")
        + array
        + text(b"filenames")
        + b"]q\x16"
        + text(b"a.png")
        + b"au."
    )


def batch(form, x, y, key):
    if form == "python2":
        return python2(x, y, key)
    kind, protocol = form.split("-")
    content = {"batch_label": "a batch", key: list(map(int, y)), "data": x, "filenames": ["a.png"]}
    if kind == "bytes":
        content = {name.encode(): value for name, value in content.items()}
    return pickle.dumps(content, int(protocol))


def write_batches(folder, name, form="python2"):
    """All batches of a small set: 7 samples each; returns what the two splits hold."""
    folder.mkdir(parents=True, exist_ok=True)
    known = formats.SETS[name]
    splits = {}
    for split, files in known.batches.items():
        draw = np.random.default_rng(split == "test")
        x = draw.integers(0, 256, (7 * len(files), 3072), np.uint8)
        y = draw.integers(0, known.classes, len(x))
        for file, part in zip(files, range(0, len(x), 7), strict=True):
            rows = slice(part, part + 7)
            (folder / file).write_bytes(batch(form, x[rows], y[rows], known.key))
        splits[split] = x.reshape(-1, 3, 32, 32), y
    return splits


def pack(archive, folder, prefix, mode="w:gz"):
    with tarfile.open(archive, mode) as file:
        for path in sorted(folder.iterdir(), reverse=True):
            file.add(path, f"{prefix}/{path.name}")
    return archive
