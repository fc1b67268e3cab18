"""What tests share: a machine without data sets, a small data set, and the command line."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from store_samples import BATCHES, create, spectrum

from hessrmt import rng
from hessrmt.cli.app import main
from hessrmt.problems import data

# as the command line does, before the first call of MKL: the same numbers in this process as in its
os.environ.setdefault("MKL_CBWR", "AUTO")

HESSRMT = Path(sys.executable).parent / "hessrmt"


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch, tmp_path_factory):
    """No data sets anywhere but in the package."""
    monkeypatch.delenv("HESSRMT_DATA", raising=False)
    monkeypatch.setattr(data, "_DEBIAN", tmp_path_factory.mktemp("no-debian"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def tiny_npz(tmp_path):
    """60 samples of 6 features in 3 classes."""
    rng = np.random.default_rng(5)
    path = tmp_path / "tiny.npz"
    np.savez(path, x=rng.normal(size=(60, 6)), y=rng.permutation(np.arange(60) % 3))
    return path


@pytest.fixture
def run_cli(tmp_path):
    """The installed console script in a process of its own, in tmp_path."""

    def run(*args):
        done = subprocess.run(
            [HESSRMT, *map(str, args)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def start_cli(tmp_path):
    """The console script started in tmp_path and left running; killed when the test ends."""
    running = []
    # a shell that runs the tests in the background lets them and their children ignore Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def start(*args):
        process = subprocess.Popen(
            [HESSRMT, *map(str, args)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """The console script's function in this process, in tmp_path: an unforeseen error escapes."""

    def call(*args):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["hessrmt", *map(str, args)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        else:
            code = 0
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def digits(tmp_path):
    """Two noisy clouds, 150 + 30 samples: small, and not a multiple of the batch size."""
    draw = rng.stream(0, "test clouds")
    y = draw.integers(0, 2, 180)
    x = draw.normal(size=(180, 6)) + 2.0 * y[:, None]
    path = tmp_path / "clouds.npz"
    np.savez(path, x_train=x[:150], y_train=y[:150], x_test=x[150:], y_test=y[150:])
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spectra.h5"


@pytest.fixture
def full(path):
    with create(path) as writer:
        for row in range(BATCHES):
            writer.write(row, spectrum(row))
    return path
