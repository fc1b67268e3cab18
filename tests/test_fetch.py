"""Downloads over HTTP, and ``hessrmt data``."""

import hashlib
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cifar_samples import pack, write_batches
from samples import write_set
from typer.testing import CliRunner

from hessrmt.cli.data import app
from hessrmt.errors import DataError
from hessrmt.problems import data


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A web server on this machine with a small MNIST-like set, its hashes taken as published."""
    folder = write_set(tmp_path / "web")
    md5 = {
        file: hashlib.md5((folder / file).read_bytes()).hexdigest()
        for file in data.SOURCES["mnist"].md5
    }
    monkeypatch.setitem(data.SOURCES, "mnist", data.SOURCES["mnist"]._replace(md5=md5))
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
    for file in data.SOURCES["mnist"].md5:
        (web / "stale" / file).write_bytes(b"an older file")
    dead = "http://127.0.0.1:1/"
    folder = data.fetch("mnist", progress=False, mirrors=[dead, f"{url}stale", f"{url}none", url])
    for file in data.SOURCES["mnist"].md5:
        assert (folder / file).read_bytes() == (web / file).read_bytes()


def test_fetch_refuses_a_wrong_hash(mirror):
    url, web = mirror
    with (web / "t10k-labels-idx1-ubyte.gz").open("ab") as file:
        file.write(b"!")
    with pytest.raises(DataError, match="published hash") as error:
        data.fetch("mnist", progress=False, mirrors=[url])
    for part in ("t10k-labels-idx1-ubyte.gz", str(data.user_cache() / "mnist"), "HESSRMT_DATA"):
        assert part in str(error.value)
    assert not (data.user_cache() / "mnist" / "t10k-labels-idx1-ubyte.gz").exists()
    assert data.load("mnist").embedded  # three files of four are no set


def test_fetch_without_network():
    with pytest.raises(DataError, match="Check the network"):
        data.fetch("mnist", progress=False, mirrors=["http://127.0.0.1:1/"])


def test_fetch_unknown_name():
    with pytest.raises(DataError, match="mnist, fashion-mnist, cifar10, cifar100"):
        data.fetch("imagenet")


def test_every_name_has_a_source():
    assert tuple(data.SOURCES) == data.NAMES


def test_fetch_an_archive_then_load(mirror, monkeypatch):
    url, web = mirror
    archive = web / "cifar-10-python.tar.gz"
    write_batches(web / "made", "cifar10")
    pack(archive, web / "made", "cifar-10-batches-py")
    md5 = {archive.name: hashlib.md5(archive.read_bytes()).hexdigest()}
    source = data.SOURCES["cifar10"]._replace(md5=md5)
    monkeypatch.setitem(data.SOURCES, "cifar10", source)
    folder = data.fetch("cifar10", progress=False, mirrors=[url])
    assert [path.name for path in folder.iterdir()] == [archive.name]
    assert data.locate("cifar10") == folder / archive.name
    assert len(data.load("cifar10", "train")) == 35


# The command


def test_command_list(tmp_path):
    write_set(tmp_path / "fashion-mnist")
    result = CliRunner().invoke(app, ["list", "--json"])
    assert json.loads(result.stdout) == {
        "datasets": [
            {"name": "mnist", "status": "embedded subset", "path": None},
            *(
                {"name": name, "status": "not on disk", "path": None}
                for name in ("fashion-mnist", "cifar10", "cifar100")
            ),
        ]
    }
    result = CliRunner().invoke(app, ["list"], env={"HESSRMT_DATA": str(tmp_path)})
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines == [
        ["mnist", "embedded", "subset"],
        ["fashion-mnist", str(tmp_path / "fashion-mnist")],
        ["cifar10", "not", "on", "disk"],
        ["cifar100", "not", "on", "disk"],
    ]


def test_command_fetch(mirror, monkeypatch):
    source = data.SOURCES["mnist"]._replace(mirrors=(mirror[0],))
    monkeypatch.setitem(data.SOURCES, "mnist", source)
    result = CliRunner().invoke(app, ["fetch", "mnist", "--json", "--no-progress"])
    assert json.loads(result.stdout) == {
        "name": "mnist",
        "path": str(data.user_cache() / "mnist"),
    }
    result = CliRunner().invoke(app, ["fetch", "mnist", "--no-progress"])
    assert result.stdout == f"mnist is in {data.user_cache() / 'mnist'}\n"
    result = CliRunner().invoke(app, ["fetch", "imagenet"])
    assert isinstance(result.exception, DataError)
    assert not result.stdout
