"""Data sets: where they are found, what they hold, what is refused, and real HTTP downloads."""

import dataclasses
import hashlib
import io
import json
import pickle
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from file_samples import not_refused, pack, write_batches
from numpy.lib import format as npy
from samples import write_idx, write_set
from scipy import stats
from typer.testing import CliRunner

from hessrmt.cli.data import app
from hessrmt.errors import DataError, ProblemError
from hessrmt.problems import data, madeup
from hessrmt.problems.checkpoints import load_state
from hessrmt.problems.formats import SETS

CIFAR = {name: known for name, known in SETS.items() if known.batches}

RNG = np.random.default_rng(0)


def savez(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


# The embedded subset


def test_embedded_mnist_is_the_default_and_says_so():
    train, test = parts = data.load("mnist", "train"), data.load("mnist")
    assert (len(train), len(test), test.split) == (8_000, 2_000, "test")
    assert train.embedded
    assert test.embedded
    assert "embedded subset of MNIST" in test.origin
    assert test.input_shape == (1, 28, 28)
    assert test.outputs == test.classes == 10
    assert (test.x.dtype, test.y.dtype) == (np.uint8, np.int64)
    y = np.concatenate([part.y for part in parts])
    counts = [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978]  # from the licence notice
    assert np.bincount(y).tolist() == counts
    images = np.concatenate([part.x for part in parts]).reshape(len(y), -1)
    assert len(np.unique(images, axis=0)) == len(y)  # no image in both, none twice
    # Hypergeometric: 2,000 of 10,000 drawn from a class of about 1,000 has σ < 12.7; 6 σ.
    assert np.abs(np.bincount(test.y) - 0.2 * np.array(counts)).max() < 6 * 12.7
    # Published numbers depend on this split: a change of it must be deliberate.
    assert hashlib.sha256(test.y.astype("<i8").tobytes()).hexdigest()[:16] == "8ccd6de9427965a1"


# Tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_are_scaled_in_the_requested_precision(tmp_path, dtype):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    x, y = data.load(savez(tmp_path / "a.npz", x=pixels, y=np.array([0]))).tensors(
        slice(None), dtype
    )
    exact = 2 * np.arange(256, dtype=np.longdouble) / 255 - 1
    # Three roundings of numbers at most 1, then an exact doubling: under 4 eps.
    assert np.abs(x.numpy().ravel() - exact).max() < 4 * torch.finfo(dtype).eps
    assert (x.shape, x.dtype, y.dtype) == ((1, 1, 16, 16), dtype, torch.int64)


def test_tensors_are_copies_in_the_order_asked(tmp_path):
    x, y = RNG.normal(size=(6, 3)), np.arange(6) % 3
    loaded = data.load(savez(tmp_path / "a.npz", x=x, y=y))
    order = np.array([4, 0, 4])
    inputs, labels = loaded.tensors(order, torch.float64)
    np.testing.assert_array_equal(inputs.numpy(), x[order])
    np.testing.assert_array_equal(labels.numpy(), y[order])
    everything, targets = loaded.tensors(slice(None), torch.float64)
    everything.zero_()
    targets.zero_()
    np.testing.assert_array_equal(loaded.x, x)
    np.testing.assert_array_equal(loaded.y, y)


# Names: where they are searched


def put(name, where, archive=False):
    """A small set in a folder, for CIFAR perhaps as its archive; returns where it is then found."""
    if name not in CIFAR:
        return write_set(where, end="" if where.name == "raw" else ".gz")
    if not archive:
        write_batches(where, name)
        return where
    write_batches(where / "unpacked", name)
    return pack(where / CIFAR[name].archive, where / "unpacked", CIFAR[name].folder)


LAYOUTS = [(name, layout) for name in data.NAMES for layout in ("torchvision", "named", "direct")]
LAYOUTS += [(name, layout) for name in CIFAR for layout in ("both", "packed")]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
@pytest.mark.parametrize("place", ["folder", "environment", "cache"])
def test_names_are_found_in_every_place_and_layout(tmp_path, monkeypatch, name, place, layout):
    root = data.user_cache() if place == "cache" else tmp_path / "root"
    if place == "environment":
        monkeypatch.setenv("HESSRMT_DATA", str(root))
    below = SETS[name].folder
    below = {"torchvision": below, "direct": ".", "both": f"{name}/{below}"}.get(layout, name)
    where = put(name, root / below, archive=layout == "packed")
    folder = root if place == "folder" else None
    assert data.locate(name, folder) == where
    found, train = data.load(name, folder=folder), data.load(name, "train", folder)
    classes = CIFAR[name].classes if name in CIFAR else 10
    about = (found.name, found.split, found.classes, found.embedded)
    assert about == (name, "test", classes, False)
    assert str(where) in found.origin
    of_cifar = (7, 35 if name == "cifar10" else 7)
    assert (len(found), len(train)) == (of_cifar if name in CIFAR else (5, 12))


def test_the_folder_wins_over_the_environment_over_the_cache(tmp_path, monkeypatch):
    write_set(data.user_cache() / "mnist", test=3)
    assert len(data.load("mnist")) == 3
    write_set(tmp_path / "env" / "mnist", test=4)
    monkeypatch.setenv("HESSRMT_DATA", str(tmp_path / "env"))
    assert len(data.load("mnist")) == 4
    write_set(tmp_path / "given" / "mnist", test=5)
    assert len(data.load("mnist", folder=tmp_path / "given")) == 5
    # A folder that lacks the set, or is not there, does not end the search.
    assert len(data.load("mnist", folder=tmp_path)) == 4
    assert len(data.load("mnist", folder=tmp_path / "absent")) == 4


def test_debian_folder_is_searched_for_fashion_mnist_only(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_DEBIAN", write_set(tmp_path))
    assert str(tmp_path) in data.load("fashion-mnist").origin
    assert data.load("mnist").embedded
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    assert data.load("mnist", folder=tmp_path).embedded  # an incomplete set is not taken


def test_fashion_files_are_not_taken_for_mnist(tmp_path):
    write_set(tmp_path, test=10)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.array([9, 2, 1, 1, 6, 1, 4, 6, 5, 7]))
    assert len(data.load("fashion-mnist", folder=tmp_path)) == 10
    with pytest.raises(DataError, match="are Fashion-MNIST, not MNIST"):
        data.load("mnist", folder=tmp_path)


REMEDIES = {
    "fashion-mnist": "dataset-fashion-mnist",
    "cifar100": "cifar-100-python.tar.gz, packed or unpacked",
}


@pytest.mark.parametrize(("name", "remedy"), REMEDIES.items())
def test_missing_set_names_places_and_remedies(tmp_path, monkeypatch, name, remedy):
    monkeypatch.setenv("HESSRMT_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match=remedy) as error:
        data.load(name, folder=tmp_path / "given")
    for part in ("given", "elsewhere", str(data.user_cache()), f"hessrmt data fetch {name}"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("spec", "split", "words"),
    [
        ("cifar", None, "unknown data set 'cifar'. Data are one of: mnist, fashion-mnist"),
        ("nowhere/file.npz", None, "no file or folder nowhere/file.npz.*mnist, fashion-mnist"),
        ("file.npz", None, "no file or folder file.npz"),
        ("cifar-10-python.tar.gz", None, "unknown data set"),
        ("", None, "IDX files"),
        ("mnist", "validation", "'validation'.*train, test"),
    ],
)
def test_unknown_data_lists_what_is_valid(spec, split, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=words):
        data.load(spec, split)


# Folders of IDX files


def test_folder_counts_classes_over_both_splits(tmp_path):
    folder = write_set(tmp_path / "letters", train=30, test=3, top=25)
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", np.array([0, 1, 2]))
    loaded = data.load(str(folder))
    assert (loaded.name, loaded.split, loaded.classes) == ("letters", "test", 26)
    write_set(tmp_path / "mnist", top=30)
    with pytest.raises(DataError, match="the label in row 0 is 30; with 10 classes"):
        data.load("mnist", folder=tmp_path)


@pytest.mark.parametrize(
    ("kind", "array", "words"),
    [
        ("labels-idx1", np.zeros(4), "5 samples but 4 targets"),
        ("labels-idx1", np.zeros((5, 28, 28)), "expected N integer labels"),
        ("images-idx3", np.zeros(5), "expected images"),
    ],
)
def test_images_and_labels_that_do_not_fit(tmp_path, kind, array, words):
    write_idx(write_set(tmp_path) / f"t10k-{kind}-ubyte.gz", array)
    with pytest.raises(DataError, match=words):
        data.load(str(tmp_path))
    (tmp_path / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"lacks train-images-idx3-ubyte"):
        data.load(str(tmp_path))


# npz files


def test_unsplit_npz(tmp_path):
    x = RNG.normal(size=(7, 2, 3)).astype(">f4")
    loaded = data.load(savez(tmp_path / "feat.npz", x=x, y=np.arange(7)[:, None] % 4))
    assert (loaded.name, loaded.split, loaded.classes) == ("feat.npz", "all", 4)
    assert (loaded.input_shape, loaded.y.shape) == ((2, 3), (7,))
    np.testing.assert_array_equal(loaded.tensors(slice(None), torch.float32)[0].numpy(), x)
    with pytest.raises(DataError, match="no splits"):
        data.load(str(tmp_path / "feat.npz"), "test")
    assert data.load(savez(tmp_path / "a.npz", x=np.eye(3), y=range(3), classes=100)).classes == 100


def test_split_npz_counts_classes_over_both_splits(tmp_path):
    x = np.eye(4)
    path = savez(
        tmp_path / "a.npz", x_train=x, y_train=[0, 1, 2, 7], x_test=x[:2], y_test=np.uint8([0, 1])
    )
    test, train = data.load(path), data.load(path, "train")
    assert (test.split, len(test), test.classes) == ("test", 2, 8)
    assert (train.split, len(train), train.classes) == ("train", 4, 8)


@pytest.mark.parametrize(
    ("shape", "outputs"), [((5,), 1), ((5, 1), 1), ((5, 3), 3), ((5, 2, 2), 4)]
)
def test_float_targets_are_regression(tmp_path, shape, outputs):
    y = RNG.normal(size=shape)
    loaded = data.load(savez(tmp_path / "a.npz", x=np.eye(5), y=y))
    assert (loaded.classes, loaded.outputs) == (None, outputs)
    target = loaded.tensors(slice(0, 2), torch.float32)[1]
    assert target.dtype == torch.float32
    np.testing.assert_array_equal(target.numpy(), y[:2].astype(np.float32))


def test_integers_stay_ids_for_networks_that_take_them(tmp_path):
    ids = np.arange(20).reshape(5, 4) % 6
    loaded = data.load(savez(tmp_path / "ids.npz", x=ids, y=np.arange(5) % 3))
    embedding, linear = torch.nn.Embedding(6, 2), torch.nn.Linear(4, 3)
    for model, kind in ((embedding, torch.int64), (linear, torch.float32), (None, torch.float32)):
        x = loaded.tensors(slice(0, 3), torch.float32, model)[0]
        assert x.dtype == kind
        np.testing.assert_array_equal(x.numpy(), ids[:3])


@pytest.mark.parametrize(
    ("x", "shape", "kind"),
    [
        (np.zeros((4, 8, 9), np.uint8), (1, 8, 9), np.uint8),
        (np.zeros((4, 3, 8, 9), np.uint8), (3, 8, 9), np.uint8),
        (np.zeros((4, 5), np.uint8), (5,), np.uint8),
        (np.zeros((4, 8, 9), np.int16), (8, 9), np.int64),
        (np.ones((4, 5), bool), (5,), np.float64),
        (np.zeros((4, 5), np.float16), (5,), np.float16),
        (np.zeros((4, 5), np.longdouble), (5,), np.float64),
    ],
)
def test_kinds_of_samples(tmp_path, x, shape, kind):
    loaded = data.load(savez(tmp_path / "a.npz", x=x, y=np.array([True, False, True, False])))
    assert (loaded.input_shape, loaded.x.dtype, loaded.classes) == (shape, kind, 2)
    assert loaded.tensors(slice(None), torch.float64)[0].dtype == torch.float64


def test_channels_last_images_are_turned(tmp_path):
    x = RNG.integers(0, 256, (4, 32, 32, 3), np.uint8)
    loaded = data.load(savez(tmp_path / "a.npz", x=x, y=np.arange(4)))
    np.testing.assert_array_equal(loaded.x, x.transpose(0, 3, 1, 2))


X, Y = np.eye(4), np.arange(4)
NAN = np.where(np.arange(8).reshape(4, 2) >= 5, np.nan, 1.0)  # 3 of 8, from row 2


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X}, "holds x; expected either x and y"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "expected either x and y"),
        ({"x": X, "y": Y, "x_train": X}, "expected either x and y"),
        ({"images": X}, "holds nothing"),
        ({"x": X, "y": Y[:3]}, "4 samples but 3 targets"),
        ({"x": X[:0], "y": Y[:0]}, "empty"),
        ({"x": X[:, :0], "y": Y}, "empty"),
        ({"x": NAN, "y": Y}, "3 of 8 values of x are NaN or infinite, the first in row 2"),
        ({"x": X, "y": np.array([1, np.inf, 2, -np.inf])}, "2 of 4 values of y .* in row 1"),
        ({"x": X, "y": np.array([0, 1, -1, 2])}, "row 2 is -1"),
        ({"x": X, "y": np.array([0, 1, 2, 2**63], np.uint64)}, "row 3 is 9223372036854775808"),
        ({"x": X, "y": np.eye(4, dtype=int)}, "argmax of one-hot"),
        ({"x": X, "y": np.float64(1)}, r"shape \(\)"),
        ({"x": X * 1j, "y": Y}, "x has dtype complex128"),
        ({"x": X, "y": np.array(list("abcd"))}, "y has dtype <U1"),
        ({"x": X, "y": np.array([1, None, 2, 3], object)}, "object arrays are refused"),
        ({"x": X, "y": Y * 0.5, "classes": 4}, "means regression"),
        ({"x": X, "y": Y, "classes": 2}, "row 2 is 2; with 2 classes"),
        *(({"x": X, "y": Y, "classes": wrong}, "one integer") for wrong in (0, 2.5, [3, 3])),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :2], "y_test": Y}, "splits do not match"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y * 0.5}, "splits do not match"),
    ],
)
def test_unusable_npz_is_refused(tmp_path, arrays, words):
    with pytest.raises(DataError, match=words) as error:
        data.load(savez(tmp_path / "bad.npz", **arrays))
    assert "bad.npz" in str(error.value)


def test_files_that_are_not_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.save(tmp_path / "a.npy", X)
    for content in (b"", b"x,y\n1,2\n", (tmp_path / "a.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npz is not an \.npz file"):
            data.load(str(path))


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 20, 1 << 20), (2,)])
def test_an_npz_that_claims_another_size_than_it_holds_is_refused(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for name, claimed in (("x", shape), ("y", (3,))):
            head = io.BytesIO()
            about = {"descr": "<i8", "fortran_order": False, "shape": claimed}
            npy.write_array_header_1_0(head, about)
            file.writestr(f"{name}.npy", head.getvalue() + bytes(24))
    with pytest.raises(DataError, match=r"a\.npz.*'x\.npy' has 24 bytes of numbers, its shape"):
        data.load(str(tmp_path / "a.npz"))
    with pytest.raises(ProblemError, match=r"a\.npz.*'x\.npy' has 24 bytes of numbers, its shape"):
        load_state(tmp_path / "a.npz")


def test_damaged_npz_never_escapes_as_another_error(tmp_path):
    whole = Path(savez(tmp_path / "a.npz", x=X, y=Y)).read_bytes()
    clean, path = data.load(str(tmp_path / "a.npz")), tmp_path / "damaged.npz"

    def load(raw):
        path.write_bytes(raw)
        return data.load(str(path))

    left = not_refused(load, whole, range(0, len(whole), 3))
    assert len(left) < len(whole) // 6
    for loaded in left.values():  # bytes that carry nothing, such as a date
        np.testing.assert_array_equal(loaded.x, clean.x)
        np.testing.assert_array_equal(loaded.y, clean.y)


# Downloads


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A web server on this machine with a small MNIST-like set, its hashes taken as published."""
    folder = write_set(tmp_path / "web")
    md5 = {
        file: hashlib.md5((folder / file).read_bytes()).hexdigest()
        for file in data.SETS["mnist"].md5
    }
    monkeypatch.setitem(data.SETS, "mnist", dataclasses.replace(data.SETS["mnist"], md5=md5))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_fetch_then_load(mirror, capfd):
    url, web = mirror
    folder = data.fetch("mnist", mirrors=[url])
    assert folder == data.user_cache() / "mnist"
    out, err = capfd.readouterr()
    assert not out
    assert "100%" in err
    loaded = data.load("mnist", "train")
    assert not loaded.embedded
    assert len(loaded) == 12
    for file in web.iterdir():
        file.unlink()
    assert data.fetch("mnist", progress=False, mirrors=[url]) == folder  # nothing fetched again


def test_fetch_goes_on_after_a_dead_mirror_and_a_wrong_file(mirror, tmp_path):
    url, web = mirror
    (web / "stale").mkdir()
    for file in data.SETS["mnist"].md5:
        (web / "stale" / file).write_bytes(b"an older file")
    dead = "http://127.0.0.1:1/"
    folder = data.fetch("mnist", progress=False, mirrors=[dead, f"{url}stale", f"{url}none", url])
    for file in data.SETS["mnist"].md5:
        assert (folder / file).read_bytes() == (web / file).read_bytes()


def test_fetch_refuses_a_wrong_hash(mirror):
    url, web = mirror
    with (web / "t10k-labels-idx1-ubyte.gz").open("ab") as file:
        file.write(b"!")
    with pytest.raises(DataError, match="published hash") as error:
        data.fetch("mnist", progress=False, mirrors=["http://127.0.0.1:1/", url])
    wrong = data.user_cache() / "mnist" / "t10k-labels-idx1-ubyte.gz"
    for part in ("127.0.0.1:1/", wrong.name, str(wrong.parent), "HESSRMT_DATA"):
        assert part in str(error.value)
    assert not wrong.exists()
    assert data.load("mnist").embedded  # three files of four are no set
    with pytest.raises(DataError, match="mnist, fashion-mnist, cifar10, cifar100"):
        data.fetch("imagenet")


def test_fetch_an_archive_then_load(mirror, monkeypatch):
    url, web = mirror
    archive = put("cifar10", web, archive=True)
    md5 = {archive.name: hashlib.md5(archive.read_bytes()).hexdigest()}
    monkeypatch.setitem(data.SETS, "cifar10", dataclasses.replace(data.SETS["cifar10"], md5=md5))
    folder = data.fetch("cifar10", progress=False, mirrors=[url])
    assert [path.name for path in folder.iterdir()] == [archive.name]
    assert data.locate("cifar10") == folder / archive.name
    assert len(data.load("cifar10", "train")) == 35


# The command


def test_command_list(tmp_path, monkeypatch):
    monkeypatch.setenv("HESSRMT_DATA", str(tmp_path))
    fashion = str(write_set(tmp_path / "fashion-mnist"))
    found = {
        "mnist": ("embedded subset", None),
        "fashion-mnist": ("on disk", fashion),
        "cifar10": ("not on disk", None),
        "cifar100": ("not on disk", None),
    }
    rows = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)["datasets"]
    assert {row["name"]: (row["status"], row["path"]) for row in rows} == found
    lines = CliRunner().invoke(app, ["list"]).stdout.splitlines()
    texts = [f"{name} {path or status}" for name, (status, path) in found.items()]
    assert [" ".join(line.split()) for line in lines] == texts


def test_command_fetch(mirror, monkeypatch):
    source = dataclasses.replace(data.SETS["mnist"], mirrors=(mirror[0],))
    monkeypatch.setitem(data.SETS, "mnist", source)
    result = CliRunner().invoke(app, ["fetch", "mnist", "--json", "--no-progress"])
    assert json.loads(result.stdout) == {"name": "mnist", "path": str(data.user_cache() / "mnist")}
    result = CliRunner().invoke(app, ["fetch", "mnist", "--no-progress"])
    assert result.stdout == f"mnist is in {data.user_cache() / 'mnist'}\n"


def test_a_network_is_trained_on_an_archive(tmp_path, cli):
    put("cifar10", tmp_path, archive=True)
    run = ("train", "--model", "conv5-2", "--epochs", "1", "--batch", "7", "--out", "a.pt")
    done = cli(*run, "--data", "cifar10", "--data-dir", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert "CIFAR-10" in done.stdout


def test_made_up_images_are_read_as_the_published_ones(tmp_path):
    """In the format of CIFAR-100's "python version", as torchvision opens it."""
    madeup.write_cifar100(tmp_path, {"train": 300, "test": 200}, seed=3)
    for split, count in (("train", 300), ("test", 200)):
        with (tmp_path / split).open("rb") as file:
            batch = pickle.load(file, encoding="latin1")
        found = data.load(str(tmp_path), split)
        assert found.classes == 100
        assert np.array_equal(found.x.reshape(count, 3072), batch["data"])
        assert found.y.tolist() == batch["fine_labels"]
        assert np.bincount(found.y).tolist() == [count // 100] * 100
        assert [label % 20 for label in batch["fine_labels"]] == batch["coarse_labels"]
    # images of a class are more alike than others: a nearest mean does better than chance
    train, test = (data.load(str(tmp_path), split) for split in ("train", "test"))
    means = [train.x[train.y == label].mean(axis=0).ravel() for label in range(100)]
    away = ((test.x.reshape(200, 1, -1) - np.array(means)[None]) ** 2).sum(axis=2)
    right = int((away.argmin(axis=1) == test.y).sum())
    assert stats.binom.sf(right - 1, 200, 0.01) < 1e-6


def test_made_up_data_by_their_name():
    found = data.load(madeup.MADE_UP, "test")
    assert (found.x.shape, found.classes, found.embedded) == ((500, 3, 32, 32), 100, True)
    assert "made-up" in found.origin
