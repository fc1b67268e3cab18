"""Pickles are read as data: equal to numpy's arrays, and never executed."""

import pickle
import struct

import numpy as np
import pytest
from cifar_samples import FORMS, batch, images, python2, write_batches

from hessrmt.errors import DataError
from hessrmt.problems import data, formats

ARRAYS = ("data", "labels")


def test_python_2_golden_bytes_are_what_pickle_takes_them_for():
    x, y = images(3), [4, 0, 9]
    expected = pickle.loads(python2(x, y, "labels"), encoding="bytes")
    np.testing.assert_array_equal(expected[b"data"], x)
    assert expected[b"labels"] == y
    found = formats.read_pickle(python2(x, y, "labels"), "golden", ARRAYS)
    np.testing.assert_array_equal(found["data"], x)
    assert (found["labels"], found["filenames"]) == (y, [b"a.png"])


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", "<i4", ">i4", "<u8", "i2"])
def test_arrays_of_integers_are_those_of_numpy(protocol, order, dtype):
    values = np.asarray(np.arange(24).reshape(2, 3, 4) * 5, dtype, order=order)
    found = formats.read_pickle(pickle.dumps({"a": values}, protocol), "test", ("a",))["a"]
    np.testing.assert_array_equal(found, values)
    assert found.dtype == values.dtype.newbyteorder("=")


class Planted:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


def programs(path):
    """Pickles that make a folder, in each of the ways that a pickle can call a function."""
    target = str(path).encode()
    text = b"X" + struct.pack("<i", len(target)) + target
    return {
        "reduce": pickle.dumps({"data": Planted(path)}, 2),
        "reduce with stack global": pickle.dumps({"data": Planted(path)}, 4),
        "inst": b"\x80\x02}(U\x04data(" + text + b"ios\nmkdir\nu.",
        "obj": b"\x80\x02}(U\x04data(cos\nmkdir\n" + text + b"ou.",
        "unicode name": b"\x80\x04\x8c\x02os\x94\x8c\x05mkdir\x94\x93" + text + b"\x85R.",
    }


def test_programs_in_pickles_are_not_executed(tmp_path):
    write_batches(tmp_path / "set", "cifar10")
    for name, raw in programs(tmp_path / "made").items():
        (tmp_path / "set" / "test_batch").write_bytes(raw)
        with pytest.raises(DataError, match=r"mkdir'") as error:
            data.load("cifar10", folder=tmp_path / "set")
        assert "mkdir" in str(error.value), name
        assert "Nothing in it was executed" in str(error.value)
        assert not (tmp_path / "made").exists()
        pickle.loads(raw)  # which does execute it
        (tmp_path / "made").rmdir()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\x80\x02cbuiltins\neval\nU\x011\x85R.", r"builtins\.eval"),
        (b"\x80\x02c__builtin__\ngetattr\n.", r"__builtin__\.getattr"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.", r"numpy\.ndarray\.dump"),
        (b"\x80\x02cnumpy.core.multiarray\nscalar\n.", r"numpy\.core\.multiarray\.scalar"),
        (b"\x80\x02cnumpy\nndarray\nK\x05\x85R.", "holds a pickled numpy.ndarray"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "damaged pickle"),
        (b"\x80\x04cnumpy\nndarray\n)}\x92.", "damaged pickle"),
        (b"\x80\x02K\x01Q.", "damaged pickle"),
        (b"Psome id\n.", "damaged pickle"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x02\x84\x01\x00\x00\x00.", "instruction EXT4"),
        (b"\x80\x05\x97.", "damaged pickle"),
        (b"\x80\x02cnumpy\nndarray\n}U\x01aK\x01sb.", "pickled numpy.ndarray"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aU\x05rot13\x86R.", "pickled _codecs.encode"),
        (b"\x80\x02}))\x86K\x01s.", "damaged pickle"),  # a tuple as key could take forever to hash
    ],
)
def test_what_only_programs_need_is_refused(raw, words):
    with pytest.raises(DataError, match=words):
        formats.read_pickle(raw, "a file", ARRAYS)


@pytest.mark.parametrize("form", FORMS)
def test_truncated_and_damaged_batches_never_escape_as_another_error(form):
    whole = batch(form, images(1), [3], "labels")
    clean = formats.read_pickle(whole, "whole", ARRAYS)
    ends = [*range(0, 300), *range(300, len(whole) - 300, 97), *range(len(whole) - 300, len(whole))]
    for end in ends:
        with pytest.raises(DataError, match="Download it again"):
            formats.read_pickle(whole[:end], "truncated", ARRAYS)
    refused = 0
    positions = [*range(400), *range(len(whole) - 200, len(whole))]
    for position in positions:
        for flip in (0xFF, 0x01):
            raw = bytearray(whole)
            raw[position] ^= flip
            try:
                formats._batch(formats.CIFAR["cifar10"], bytes(raw), "damaged")
            except DataError:
                refused += 1
    assert refused > len(positions) // 6
    np.testing.assert_array_equal(clean["data"], images(1))


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(formats, "MOST_INSTRUCTIONS", 100)
    with pytest.raises(DataError, match="more than 100 pickle instructions"):
        formats.read_pickle(b"\x80\x02" + b"]" * 101 + b".", "a file", ARRAYS)
    monkeypatch.undo()
    shape = b"\x80\x02" + python2(images(1), [1], "labels")[2:].replace(
        struct.pack("<i", 3072) + b"\x86", struct.pack("<i", 2**31 - 1) + b"\x86"
    )
    with pytest.raises(DataError, match="2147483647 bytes, but 3072 bytes of values"):
        formats.read_pickle(shape, "a file", ARRAYS)
