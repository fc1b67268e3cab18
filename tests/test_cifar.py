"""CIFAR-10 and CIFAR-100: found, read from folders and archives, and checked."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from cifar_samples import FORMS, LABELS, batch, images, pack, python2, write_batches

from hessrmt.errors import DataError
from hessrmt.problems import data, formats


def assert_is(found, expected):
    x, y = expected
    np.testing.assert_array_equal(found.x, x)
    np.testing.assert_array_equal(found.y, y)
    assert (found.x.dtype, found.y.dtype) == (np.uint8, np.int64)


# What is read


@pytest.mark.parametrize("name", formats.CIFAR)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", [False, True])
def test_round_trip_of_every_form(tmp_path, name, form, packed):
    known = formats.CIFAR[name]
    folder = tmp_path / known.folder
    splits = write_batches(folder, name, form)
    if packed:
        pack(tmp_path / known.archive, folder, known.folder)
        for file in folder.iterdir():
            file.unlink()
    for split, expected in splits.items():
        found = data.load(name, split, folder=tmp_path)
        assert_is(found, expected)
        assert (found.name, found.split, found.classes) == (name, split, LABELS[name][1])
        assert known.title in found.origin
        assert str(tmp_path / (known.archive if packed else known.folder)) in found.origin
    assert data.load(name, folder=tmp_path).split == "test"
    assert not packed or not list(folder.iterdir())  # nothing was unpacked to disk


def test_pixels_are_red_green_blue_planes(tmp_path):
    write_batches(tmp_path, "cifar10")
    x = np.repeat(np.arange(3, dtype=np.uint8), 1024)[None]
    x[0, 32] = 99  # second row, first column of the red plane
    (tmp_path / "test_batch").write_bytes(python2(x, [1], "labels"))
    found = data.load("cifar10", folder=tmp_path)
    assert found.input_shape == (3, 32, 32)
    assert found.x[0, 0, 1, 0] == 99
    assert found.x[0, :, 5, 5].tolist() == [0, 1, 2]
    inputs, labels = found.tensors(slice(None))
    assert float(inputs[0, 0, 0, 0]) == -1.0
    assert labels.tolist() == [1]


# Where it is found


@pytest.mark.parametrize("name", formats.CIFAR)
@pytest.mark.parametrize("place", ["folder", "environment", "cache"])
@pytest.mark.parametrize(
    "layout", ["torchvision", "named", "both", "direct", "archive", "named archive"]
)
def test_names_are_found_in_every_place_and_layout(tmp_path, monkeypatch, name, place, layout):
    known, root = formats.CIFAR[name], tmp_path / "root"
    if place == "cache":
        root = data.user_cache()
    elif place == "environment":
        monkeypatch.setenv("HESSRMT_DATA", str(root))
    below = {"torchvision": known.folder, "named": name, "both": f"{name}/{known.folder}"}
    where = root / below.get(layout, ".")
    if "archive" in layout:
        write_batches(tmp_path / "made", name)
        where = root / (name if layout == "named archive" else ".")
        where.mkdir(parents=True)
        where = pack(where / known.archive, tmp_path / "made", known.folder)
    else:
        write_batches(where, name)
    folder = root if place == "folder" else None
    assert data.locate(name, folder) == where
    assert len(data.load(name, "train", folder)) == 7 * len(known.batches["train"])


def test_an_incomplete_folder_gives_way_to_the_archive(tmp_path):
    known = formats.CIFAR["cifar10"]
    folder = tmp_path / known.folder
    splits = write_batches(folder, "cifar10")
    archive = pack(tmp_path / known.archive, folder, known.folder)
    (folder / "data_batch_4").unlink()
    assert data.locate("cifar10", tmp_path) == archive
    assert_is(data.load("cifar10", "train", tmp_path), splits["train"])


@pytest.mark.parametrize("name", formats.CIFAR)
@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_a_path_may_be_a_folder_of_batches_or_an_archive(tmp_path, name, mode):
    known = formats.CIFAR[name]
    splits = write_batches(tmp_path / "mine", name)
    found = data.load(str(tmp_path / "mine"), "train")
    assert_is(found, splits["train"])
    assert (found.name, found.classes) == ("mine", LABELS[name][1])
    archive = pack(tmp_path / known.archive, tmp_path / "mine", known.folder, mode)
    found = data.load(str(archive))
    assert_is(found, splits["test"])
    assert found.name == known.archive


def test_missing_set_names_places_and_remedies(tmp_path):
    with pytest.raises(DataError) as error:
        data.load("cifar100", folder=tmp_path / "given")
    for part in ("given", str(data.user_cache()), "hessrmt data fetch cifar100", "HESSRMT_DATA"):
        assert part in str(error.value)
    assert "cifar-100-python.tar.gz, packed or unpacked" in str(error.value)
    with pytest.raises(DataError, match="no file or folder"):
        data.load(str(tmp_path / "cifar-10-python.tar.gz"))


def test_missing_batch_is_named(tmp_path):
    folder = tmp_path / "set"
    write_batches(folder, "cifar10")
    (folder / "data_batch_3").unlink()
    for split in ("train", "test"):
        with pytest.raises(DataError, match="lacks data_batch_3; expected the batches of CIFAR-10"):
            data.load(str(folder), split)
    with pytest.raises(DataError, match="cifar10 was not found"):
        data.load("cifar10", folder=folder)
    archive = pack(tmp_path / "cifar-10-python.tar.gz", folder, "cifar-10-batches-py")
    with pytest.raises(DataError, match="lacks cifar-10-batches-py/data_batch_3"):
        data.load(str(archive), "train")
    with pytest.raises(DataError, match="lacks cifar-10-batches-py/test_batch"):
        data.load(str(pack(archive, folder, "../cifar-10-batches-py")))


# What is refused

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
        (changed(data=X[0]), r"data is uint8 \(3072,\)"),
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
        (changed(labels=(0, 1, 2, 3)), "labels is not a list of integers"),
        (changed(labels="0123"), "labels is not a list of integers"),
        (pickle.dumps([X, X]), "holds a pickled list, expected a dictionary"),
        (b"", "damaged pickle"),
        (b"\x1f\x8b not a pickle", "damaged pickle"),
        (b"\x80\x02.", "damaged pickle"),
        (b"\x80\x02}(\x89", "damaged pickle"),
        (b"\x80\x02]}s.", "damaged pickle"),
        (b"\x80\x02}]K\x01s.", "damaged pickle"),
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


# Sizes


def test_files_are_bounded(tmp_path, monkeypatch):
    write_batches(tmp_path, "cifar10")
    monkeypatch.setattr(formats, "LARGEST_PICKLE", 1 << 14)
    with pytest.raises(DataError, match="test_batch is larger than"):
        data.load("cifar10", folder=tmp_path)


def test_archives_are_bounded(tmp_path, monkeypatch):
    known = formats.CIFAR["cifar100"]
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
    with pytest.raises(DataError, match=r"cifar-100-python/test in .* is larger than"):
        data.load("cifar100", folder=tmp_path)


def test_damaged_archives_are_refused(tmp_path):
    known = formats.CIFAR["cifar10"]
    splits = write_batches(tmp_path / "made", "cifar10")
    whole = pack(tmp_path / known.archive, tmp_path / "made", known.folder).read_bytes()
    path = tmp_path / known.archive
    for raw in (b"", b"neither gzip nor tar" * 99, whole[: len(whole) // 2], whole[:9], whole[2:]):
        path.write_bytes(raw)
        with pytest.raises(DataError, match=r"damaged archive|lacks cifar-10-batches-py"):
            data.load("cifar10", "train", folder=tmp_path)
    refused = 0
    for position in range(0, len(whole), len(whole) // 150):
        raw = bytearray(whole)
        raw[position] ^= 0xFF
        path.write_bytes(raw)
        try:
            found = data.load("cifar10", folder=tmp_path)
        except DataError:
            refused += 1
        else:  # gzip's header, such as a date
            assert_is(found, splits["test"])
            assert position < 40
    assert refused > 140


def test_links_in_an_archive_are_not_followed(tmp_path):
    write_batches(tmp_path / "made", "cifar10")
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "made" / "test_batch")
        archive.addfile(link)
        other = tarfile.TarInfo("cifar-10-batches-py/readme.html")
        other.size = 5
        archive.addfile(other, io.BytesIO(b"hello"))
    with pytest.raises(DataError, match="lacks cifar-10-batches-py/test_batch"):
        data.load(str(path))


# The command line


def test_a_network_is_trained_on_an_archive(tmp_path, cli):
    known = formats.CIFAR["cifar10"]
    write_batches(tmp_path / "made", "cifar10")
    pack(tmp_path / known.archive, tmp_path / "made", known.folder)
    run = ["--data", "cifar10", "--data-dir", tmp_path, "--json"]
    done = cli(
        *("train", "--model", "conv5-2", "--epochs", "1", "--batch", "7"),
        *("--out", "a.pt", *run),
    )
    assert done.returncode == 0, done.stderr
    assert "CIFAR-10" in done.stdout
    listed = json.loads(cli("data", "list", "--data-dir", tmp_path, "--json").stdout)["datasets"]
    where = {row["name"]: (row["status"], row["path"]) for row in listed}
    assert where["cifar10"] == ("on disk", str(tmp_path / known.archive))
    assert where["cifar100"] == ("not on disk", None)
