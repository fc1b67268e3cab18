"""Files of data sets: IDX, CIFAR's batches and archives, and pickles that are read as data."""

import gzip
import pickle
import re
import struct
import tarfile
import tracemalloc
from functools import partial

import numpy as np
import pytest
from file_samples import (
    FORMS,
    Planted,
    batch,
    images,
    not_refused,
    pack,
    python2,
    write_batches,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from properties import examples

from hessrmt.errors import DataError
from hessrmt.problems import archives, data, formats

CODES = {np.dtype(kind).name: code for code, kind in formats._IDX_TYPES.items()}
IMAGES = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)


# IDX


def idx_bytes(array, zipped=False):
    head = struct.pack(
        f">BBBB{array.ndim}I", 0, 0, CODES[array.dtype.name], array.ndim, *array.shape
    )
    raw = head + array.astype(array.dtype.newbyteorder(">")).tobytes()
    return gzip.compress(raw, mtime=0) if zipped else raw


ARRAYS = st.sampled_from(sorted(CODES)).flatmap(
    lambda name: hnp.arrays(name, hnp.array_shapes(max_dims=4, max_side=6))
)


@settings(max_examples=examples(60), suppress_health_check=list(HealthCheck))
@given(array=ARRAYS, zipped=st.booleans(), cut=st.integers(0, 400))
def test_idx_round_trip_and_truncation(tmp_path, array, zipped, cut):
    path = tmp_path / "cut-file"
    path.write_bytes(idx_bytes(array, zipped))
    back = formats.read_idx(path)
    assert back.dtype == array.dtype
    assert back.dtype.isnative
    np.testing.assert_array_equal(back, array)
    noise = np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8)  # incompressible
    whole = idx_bytes(noise, zipped)
    path.write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(DataError, match="cut-file"):
        formats.read_idx(path)


BAD_BLOCK = bytearray(idx_bytes(IMAGES, zipped=True))
BAD_BLOCK[10] = 0xFF  # first deflate byte: an invalid block type, which is a zlib.error


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not an IDX file"),
        (b"\x89PNG....", "not an IDX file"),
        (b"\0\0\x0a\x01\0\0\0\x01\0", "not an IDX file"),  # no such dtype code
        (b"\0\0\x08\0", "dimensions"),
        (b"\0\0\x08\x03\0\0", "dimensions"),  # header ends early
        (b"\0\0\x08\x02" + b"\xff" * 8 + b"12", "truncated"),  # announces 2^64 bytes
        (gzip.compress(b"\0\0\x08\x02" + b"\xff" * 8 + b"12", mtime=0), "truncated"),
        (gzip.compress(b"\0\0\x08\x01\xff\xff\xff\xff12", mtime=0), "truncated"),  # 4 GiB
        (b"\0\0\x08\x02\0\0\0\0" + b"\xff" * 4, "no values"),
        (idx_bytes(IMAGES) + b"\0", "too long"),
        (b"\x1f\x8bgarbage", "damaged IDX"),
        (idx_bytes(IMAGES, zipped=True)[:-4] + b"zzzz", "damaged IDX"),  # wrong length field
        (bytes(BAD_BLOCK), "damaged IDX"),
        (gzip.compress(b"not idx", mtime=0), "not an IDX file"),
        (None, "cannot read"),
    ],
)
def test_damaged_idx_files_are_refused_by_name(tmp_path, content, word):
    path = tmp_path / "bad-file.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=word) as error:
        formats.read_idx(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("pack", [bytes, partial(gzip.compress, mtime=0)])
@pytest.mark.parametrize("announced", ["less", "more"])
def test_memory_of_idx_files_is_bounded_by_what_they_announce_and_hold(tmp_path, pack, announced):
    path, size = tmp_path / "t10k-images-idx3-ubyte", 32 << 20
    if announced == "less":  # the rest isn't unpacked
        path.write_bytes(pack(idx_bytes(IMAGES) + bytes(size)))
    else:
        path.write_bytes(pack(b"\0\0\x08\1\x30\0\0\0" + bytes(9)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="too long" if announced == "less" else "truncated"):
            formats.read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < size // 8
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_find_knows_the_usual_names(tmp_path, mark, end):
    images, labels = (
        tmp_path / f"t10k-{n}{mark}idx{d}-ubyte{end}" for n, d in (("images", 3), ("labels", 1))
    )
    images.touch()
    assert formats.find_idx(tmp_path) == {}  # images without labels
    labels.touch()
    assert formats.find_idx(tmp_path) == {"test": (images, labels)}


# CIFAR


def assert_is(found, expected):
    for values, wanted, kind in zip(found, expected, (np.uint8, np.int64), strict=True):
        np.testing.assert_array_equal(values, wanted)
        assert values.dtype == kind


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", [None, "w:gz", "w"])
def test_round_trip_of_every_form(tmp_path, name, form, mode):
    known = formats.SETS[name]
    source = tmp_path / "mine"
    splits = write_batches(source, name, form)
    if mode:
        source = pack(tmp_path / known.archive, source, known.folder, mode)
    before = sorted(tmp_path.rglob("*"))
    for split, expected in splits.items():
        assert_is(formats.read_cifar(known, source, split), expected)
    loaded = data.load(str(source))
    assert (loaded.name, loaded.split, loaded.classes) == (source.name, "test", known.classes)
    assert known.title in loaded.origin
    assert sorted(tmp_path.rglob("*")) == before  # nothing was unpacked to disk


def test_pixels_are_red_green_blue_planes(tmp_path):
    write_batches(tmp_path, "cifar10")
    x = np.repeat(np.arange(3, dtype=np.uint8), 1024)[None]
    x[0, 32] = 99  # second row, first column of the red plane
    (tmp_path / "test_batch").write_bytes(python2(x, [1], "labels"))
    found = data.load("cifar10", folder=tmp_path)
    assert found.x[0, 0, 1, 0] == 99
    assert found.x[0, :, 5, 5].tolist() == [0, 1, 2]
    inputs, labels = found.tensors(slice(None))
    assert float(inputs[0, 0, 0, 0]) == -1.0
    assert labels.tolist() == [1]


def test_missing_batch_is_named(tmp_path):
    folder = tmp_path / "set"
    splits = write_batches(folder, "cifar10")
    archive = tmp_path / "cifar-10-python.tar.gz"
    pack(archive, folder, "cifar-10-batches-py")
    (folder / "data_batch_3").unlink()
    for split in ("train", "test"):
        with pytest.raises(DataError, match="lacks data_batch_3; expected the batches of CIFAR-10"):
            data.load(str(folder), split)
    with pytest.raises(DataError, match="cifar10 was not found"):
        data.load("cifar10", folder=folder)
    folder.rename(tmp_path / "cifar-10-batches-py")  # which gives way to the archive
    assert data.locate("cifar10", tmp_path) == archive
    np.testing.assert_array_equal(data.load("cifar10", "train", tmp_path).y, splits["train"][1])
    pack(archive, tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    with pytest.raises(DataError, match="lacks cifar-10-batches-py/data_batch_3"):
        data.load(str(archive), "train")


X = images(4)


def changed(**entries):
    """A batch of CIFAR-10 with some entries replaced, or left out if None."""
    content = {"data": X, "labels": [0, 1, 2, 3], **entries}
    return pickle.dumps({k: v for k, v in content.items() if v is not None}, 4)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (changed(data=None), "holds labels, but not data"),
        (changed(labels=None, fine_labels=[0, 1, 2, 3]), "holds data, fine_labels, but not labels"),
        (pickle.dumps({}), "holds nothing, but not data and labels"),
        (changed(data=X[:, :3071]), r"data is uint8 \(4, 3071\), expected uint8 \(N, 3072\)"),
        (changed(data=X.reshape(4, 3, 32, 32)), r"data is uint8 \(4, 3, 32, 32\)"),
        (changed(data=X.astype(np.int16)), r"data is int16 \(4, 3072\)"),
        (changed(data=X.astype(np.float32)), "dtype 'f4', expected integers"),
        (changed(data=X.astype(object)), "dtype 'O8', expected integers"),
        (changed(data=[1, 2]), "data is list"),
        (changed(data=X[:0], labels=[]), "0 images but 0 labels"),
        (changed(labels=[0, 1, 2]), "4 images but 3 labels"),
        (changed(labels=[0, 1, 10, 3]), "label in row 2 is 10; expected 0 to 9"),
        (changed(labels=[0, 1, 2, -1]), "label in row 3 is -1"),
        (changed(labels=[0, 1, 2, 2**70]), "label in row 3 is 1180591620717411303424"),
        (changed(labels=np.array([0, 1, 2, 30])), "label in row 3 is 30"),
        (changed(labels=np.eye(4, dtype=int)), "labels is not a list of integers"),
        (changed(labels=[0, 1, 2, 3.0]), "labels is not a list of integers"),
        (changed(labels=[0, 1, 2, True]), "labels is not a list of integers"),
        (pickle.dumps([X, X]), "holds a pickled list, expected a dictionary"),
        (pickle.dumps(X), "holds a pickled numpy.*expected a dictionary"),
        (pickle.dumps({"data": X}, 0), "instruction DICT"),
    ],
)
def test_unusable_batches_are_refused(tmp_path, raw, words):
    write_batches(tmp_path, "cifar10")
    (tmp_path / "test_batch").write_bytes(raw)
    with pytest.raises(DataError, match=words) as error:
        data.load("cifar10", folder=tmp_path)
    assert str(tmp_path / "test_batch") in str(error.value)


def test_cifar100_has_a_hundred_classes(tmp_path):
    write_batches(tmp_path, "cifar100")
    (tmp_path / "test").write_bytes(batch("str-4", X, [0, 99, 100, 3], "fine_labels"))
    with pytest.raises(DataError, match="label in row 2 is 100; expected 0 to 99"):
        data.load("cifar100", folder=tmp_path)


def test_files_and_archives_are_bounded(tmp_path, monkeypatch):
    known = formats.SETS["cifar100"]
    write_batches(tmp_path / "made", "cifar100")
    (tmp_path / "made" / "zeros").write_bytes(bytes(3 << 20))
    archive = pack(tmp_path / known.archive, tmp_path / "made", known.folder)
    assert archive.stat().st_size < 1 << 20
    assert len(data.load("cifar100", folder=tmp_path)) == 7
    monkeypatch.setattr(formats, "_UNPACKED", 1 << 20)
    with pytest.raises(DataError, match="unpacks to more than 1 MiB"):
        data.load("cifar100", folder=tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(formats, "LARGEST_PICKLE", 1 << 14)
    for source, name in ((archive, "cifar-100-python/test in .*"), (tmp_path / "made", "test")):
        with pytest.raises(DataError, match=f"{name} is larger than"):
            data.load(str(source))


def test_archives_are_unpacked_in_pieces(tmp_path, monkeypatch):
    known = formats.SETS["cifar10"]
    splits = write_batches(tmp_path / "made", "cifar10")
    (tmp_path / "made" / "zeros").write_bytes(bytes(32 << 20))  # packed first
    archive = pack(tmp_path / known.archive, tmp_path / "made", known.folder)
    tracemalloc.start()
    try:
        assert_is(formats.read_cifar(known, archive, "train"), splits["train"])
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    with tarfile.open(archive, "w:gz") as file:  # a member that isn't there
        member = tarfile.TarInfo(f"{known.folder}/other")
        member.size = 1 << 60
        file.addfile(member)
    with pytest.raises(DataError, match="unpacks to more than"):
        formats.read_cifar(known, archive, "train")


def test_damaged_archives_are_refused(tmp_path):
    known = formats.SETS["cifar10"]
    splits = write_batches(tmp_path / "made", "cifar10")
    path = pack(tmp_path / known.archive, tmp_path / "made", known.folder)
    whole = path.read_bytes()
    for raw in (b"", b"neither gzip nor tar" * 99, whole[: len(whole) // 2], whole[:9], whole[2:]):
        path.write_bytes(raw)
        with pytest.raises(DataError, match=r"damaged archive|lacks cifar-10-batches-py"):
            data.load(str(path), "train")

    def load(raw):
        path.write_bytes(raw)
        return formats.read_cifar(known, path, "test")

    left = not_refused(load, whole, range(0, len(whole), len(whole) // 150))
    assert len(left) < 10
    for position, found in left.items():
        assert position < 40  # gzip's header, such as a date
        assert_is(found, splits["test"])


def test_links_in_an_archive_are_not_followed(tmp_path):
    write_batches(tmp_path / "made", "cifar10")
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "made" / "test_batch")
        archive.addfile(link)
    with pytest.raises(DataError, match="lacks cifar-10-batches-py/test_batch"):
        data.load(str(path))


# Pickles


def unpickled(raw):
    return formats.read_pickle(raw, "a file", ("data",))


def test_the_bytes_of_python_2_are_what_pickle_takes_them_for():
    x, y = images(3), [4, 0, 9]
    expected = pickle.loads(python2(x, y, "labels"), encoding="bytes")
    np.testing.assert_array_equal(expected[b"data"], x)
    assert expected[b"labels"] == y
    assert unpickled(python2(x, y, "labels"))["filenames"] == [b"a.png"]


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", "<i4", ">i4", "<u8", "i2"])
def test_arrays_of_integers_are_those_of_numpy(protocol, order, dtype):
    values = np.asarray(np.arange(24).reshape(2, 3, 4) * 5, dtype, order=order)
    found = unpickled(pickle.dumps({"data": values}, protocol))["data"]
    np.testing.assert_array_equal(found, values)
    assert found.dtype == values.dtype.newbyteorder("=")


def test_programs_in_pickles_are_not_executed(tmp_path):
    made = tmp_path / "made"
    text = b"X" + struct.pack("<i", len(str(made))) + str(made).encode()
    programs = {  # each of the ways that a pickle can call a function
        "reduce": pickle.dumps({"data": Planted(made)}, 2),
        "reduce with stack global": pickle.dumps({"data": Planted(made)}, 4),
        "inst": b"\x80\x02}(U\x04data(" + text + b"ios\nmkdir\nu.",
        "obj": b"\x80\x02}(U\x04data(cos\nmkdir\n" + text + b"ou.",
        "unicode name": b"\x80\x04\x8c\x02os\x94\x8c\x05mkdir\x94\x93" + text + b"\x85R.",
    }
    write_batches(tmp_path / "set", "cifar10")
    for name, raw in programs.items():
        (tmp_path / "set" / "test_batch").write_bytes(raw)
        with pytest.raises(DataError, match=r"mkdir'.*Nothing in it was executed"):
            data.load("cifar10", folder=tmp_path / "set")
        assert not made.exists(), name
        pickle.loads(raw)  # which does execute it
        made.rmdir()


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
        (b"\x80\x02cnumpy\nndarray\n}U\x01aK\x01sb.", "holds a pickled numpy.ndarray"),
        (b"\x80\x02K\x01Q.", "damaged pickle"),
        (b"Psome id\n.", "damaged pickle"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x05\x97.", "damaged pickle"),
        # tuples of tuples could take forever to hash
        (b"\x80\x02}))\x86K\x01s.", "damaged pickle"),
        (b"\x80\x02}()K\x01u.", "damaged pickle"),
        (b"\x80\x02}]K\x01s.", "damaged pickle"),
        (b"\x80\x02]}s.", "damaged pickle"),
        (b"\x80\x02}(\x89", "damaged pickle"),
        (b"\x1f\x8b not a pickle", "damaged pickle"),
        (b"\x80\x04\x8f()\x90.", "instruction EMPTY_SET"),
        (b"\x80\x04()\x91.", "instruction FROZENSET"),
    ],
)
def test_what_only_programs_need_is_refused(raw, words):
    with pytest.raises(DataError, match=words):
        unpickled(raw)


@pytest.mark.parametrize("form", FORMS)
def test_truncated_and_damaged_batches_never_escape_as_another_error(form):
    known, whole = formats.SETS["cifar10"], batch(form, images(1), [3], "labels")
    ends = [*range(0, 300), *range(300, len(whole) - 300, 97), *range(len(whole) - 300, len(whole))]
    for end in ends:
        with pytest.raises(DataError, match="Download it again"):
            unpickled(whole[:end])
    positions = [*range(400), *range(len(whole) - 200, len(whole))]
    for flip in (0xFF, 0x01):
        left = not_refused(partial(formats._batch, known, file="damaged"), whole, positions, flip)
        assert len(left) < 11 * len(positions) // 12


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_one_long_text_named_often_is_not_made_often(tmp_path, name, split):
    known = formats.SETS[name]
    write_batches(tmp_path, name)
    long = b"X" + struct.pack("<i", 1 << 20) + b"a" * (1 << 20)
    names = b"".join(b"X\5\0\0\0%05dh\1h\2h\3\x86R" % k for k in range(1000))  # each encoded
    bomb = b"\x80\x02}(X\1\0\0\0xc_codecs\nencode\nq\1" + long + b"q\2X\6\0\0\0latin1q\3"
    bomb += b"\x87" + names + b"u."
    (tmp_path / known.batches[split][0]).write_bytes(bomb)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="but not data and"):
            data.load(name, split, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20  # and not a megabyte for each name
    finally:
        tracemalloc.stop()


def test_memory_is_bounded(monkeypatch):
    shape = b"\x80\x02" + python2(images(1), [1], "labels")[2:].replace(
        struct.pack("<i", 3072) + b"\x86", struct.pack("<i", 2**31 - 1) + b"\x86"
    )
    with pytest.raises(DataError, match=r"damaged pickle.*2147483647"):
        unpickled(shape)
    for announced in (b"\x8e", b"\x96"):  # more bytes than there are
        with pytest.raises(DataError, match="damaged pickle"):
            unpickled(b"\x80\x05" + announced + struct.pack("<Q", 2**50) + b"abc.")
    found = unpickled(b"\x80\x02}U\x01aK\x01sr" + struct.pack("<I", 2**32 - 1) + b".")
    assert found == {"a": 1}  # no list of four billion places for what is stored
    monkeypatch.setattr(formats, "MOST_INSTRUCTIONS", 100)
    with pytest.raises(DataError, match="more than 100 pickle instructions"):
        unpickled(b"\x80\x02" + b"]" * 101 + b".")


def test_gzipped_data_of_next_to_nothing_is_refused_in_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\1\0\x40\0\0" + bytes(1 << 22)))
    assert formats.read_idx(path).shape == (1 << 22,)
    monkeypatch.setattr(archives, "_MOST", 1 << 20)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))} claims to unpack to 4,194,304"):
        formats.read_idx(path)
