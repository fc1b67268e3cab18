"""The IDX reader: every array the format can hold comes back, damaged files are refused."""

import gzip
import os
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from properties import examples

from hessrmt.errors import DataError
from hessrmt.problems import formats

CODES = {
    "uint8": 0x08,
    "int8": 0x09,
    "int16": 0x0B,
    "int32": 0x0C,
    "float32": 0x0D,
    "float64": 0x0E,
}


def idx_bytes(array):
    head = struct.pack(
        f">BBBB{array.ndim}I", 0, 0, CODES[array.dtype.name], array.ndim, *array.shape
    )
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


arrays = st.sampled_from(sorted(CODES)).flatmap(
    lambda name: hnp.arrays(name, hnp.array_shapes(max_dims=4, max_side=6))
)


@settings(max_examples=examples(60), suppress_health_check=list(HealthCheck))
@given(array=arrays, zipped=st.booleans())
def test_round_trip(tmp_path, array, zipped):
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx_bytes(array), mtime=0) if zipped else idx_bytes(array))
    back = formats.read_idx(path)
    assert back.dtype == array.dtype
    assert back.dtype.isnative
    np.testing.assert_array_equal(back, array)


@settings(max_examples=examples(60), suppress_health_check=list(HealthCheck))
@given(cut=st.integers(0, 400), zipped=st.booleans())
def test_every_truncation_is_refused(tmp_path, cut, zipped):
    noise = np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8)  # incompressible
    whole = gzip.compress(idx_bytes(noise), mtime=0) if zipped else idx_bytes(noise)
    path = tmp_path / "cut-file"
    path.write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(DataError, match="cut-file"):
        formats.read_idx(path)


IMAGES = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x08", "not an IDX file"),
        (b"\x89PNG....", "not an IDX file"),
        (b"\0\0\x0a\x01\0\0\0\x01\0", "not an IDX file"),  # no such dtype code
        (b"\0\0\x08\0", "dimensions"),
        (b"\0\0\x08\x03\0\0", "dimensions"),  # header ends early
        (b"\0\0\x08\x02" + b"\xff" * 8 + b"12", "truncated"),  # announces 2^64 bytes
        (b"\0\0\x08\x02\0\0\0\0" + b"\xff" * 4, "no values"),
        (idx_bytes(IMAGES) + b"\0", "too long"),
        (b"\x1f\x8bgarbage", "damaged gzip"),
        (
            gzip.compress(idx_bytes(IMAGES), mtime=0)[:-4] + b"zzzz",
            "damaged gzip",
        ),  # wrong length field
        (gzip.compress(b"not idx", mtime=0), "not an IDX file"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, content, word):
    path = tmp_path / "bad-file.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=word) as error:
        formats.read_idx(path)
    assert str(path) in str(error.value)


def test_corrupted_gzip_body(tmp_path):
    whole = bytearray(gzip.compress(idx_bytes(IMAGES), mtime=0))
    whole[10] = 0xFF  # first deflate byte: an invalid block type, which is a zlib.error
    path = tmp_path / "images.gz"
    path.write_bytes(whole)
    with pytest.raises(DataError, match="damaged gzip"):
        formats.read_idx(path)


def test_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="absent"):
        formats.read_idx(tmp_path / "absent")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file_is_a_data_error(tmp_path):
    path = tmp_path / "locked"
    path.write_bytes(idx_bytes(IMAGES))
    path.chmod(0)
    with pytest.raises(DataError, match="locked"):
        formats.read_idx(path)


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_find_knows_the_usual_names(tmp_path, mark, end):
    names = (f"t10k-images{mark}idx3-ubyte{end}", f"t10k-labels{mark}idx1-ubyte{end}")
    (tmp_path / names[0]).touch()
    assert formats.find_idx(tmp_path, "test") is None  # images without labels
    (tmp_path / names[1]).touch()
    assert formats.find_idx(tmp_path, "test") == (tmp_path / names[0], tmp_path / names[1])
    assert formats.find_idx(tmp_path, "train") is None


@pytest.mark.parametrize(
    ("images", "labels", "word"),
    [
        (IMAGES, np.zeros(4, np.uint8), "3 images but .* 4 labels"),
        (np.zeros(3, np.uint8), np.zeros(3, np.uint8), "expected images"),  # labels given twice
        (IMAGES, IMAGES, "expected N integer labels"),
        (IMAGES, np.zeros(3, np.float32), "expected N integer labels"),
    ],
)
def test_pairs_that_do_not_fit(tmp_path, images, labels, word):
    (tmp_path / "i").write_bytes(idx_bytes(images))
    (tmp_path / "l").write_bytes(idx_bytes(labels))
    with pytest.raises(DataError, match=word):
        formats.read_idx_pair(tmp_path / "i", tmp_path / "l")
