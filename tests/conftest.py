"""What tests share: a machine without data sets, a small data set, and the command line."""

import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import gate

# one thread a process, in this one and those that tests start: several run tests at the same time,
# and sums come out the same whatever the machine has. As the command line does, MKL is told to
# repeat itself before its first call. All of it is read when the libraries are loaded, below.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("MKL_CBWR", "AUTO")

import numpy as np  # noqa: E402
import properties  # noqa: E402
import pytest  # noqa: E402
import slowest  # noqa: E402
from host_kernels import share_builds  # noqa: E402
from store_samples import BATCHES, create, spectrum  # noqa: E402

from hessrmt import rng  # noqa: E402
from hessrmt.cli.app import main  # noqa: E402
from hessrmt.curvature.operators import CurvatureOperator  # noqa: E402
from hessrmt.problems import data  # noqa: E402

HESSRMT = Path(sys.executable).parent / "hessrmt"

MOST_PROCESSES = 8
"""Each holds torch and a few hundred MiB."""


# How the tests are run


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """As many processes as there are cores, unless the command line says otherwise (-n, --dist).

    Not in ``addopts``, where they would make ``-p no:xdist`` an error. Benchmarks and a debugger
    want one process.
    """
    options = config.option
    if "PYTEST_XDIST_WORKER" in os.environ or not config.pluginmanager.hasplugin("xdist"):
        return
    alone = options.usepdb or options.benchmark_enable or options.benchmark_only
    if options.numprocesses is None and options.dist == "no" and not options.tx and not alone:
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        options.numprocesses = min(cores, MOST_PROCESSES) if cores > 1 else 0
        options.dist = "worksteal"


def pytest_configure(config):
    properties.load_profile(config)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    properties.mark(items)
    slow = set(slowest.LIST.read_text(encoding="utf-8").splitlines())
    for item in items:
        if item.nodeid in slow:
            item.add_marker("slow")


@pytest.fixture(scope="session", autouse=True)
def builds(tmp_path_factory):
    """Kernels of csrc/ are compiled once, whichever process needs them first."""
    folder = tmp_path_factory.getbasetemp()
    share_builds(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)


# Fixtures


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def caches(tmp_path_factory):
    """Folders that are not there yet, one for each test. `mktemp` reads all names at every call."""
    folder = tmp_path_factory.mktemp("caches")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch, caches):
    """No data sets anywhere but in the package."""
    cache = next(caches)
    monkeypatch.delenv("HESSRMT_DATA", raising=False)
    monkeypatch.setattr(data, "_DEBIAN", cache / "no-debian")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture
def tiny_npz(tmp_path):
    """60 samples of 6 features in 3 classes."""
    rng = np.random.default_rng(5)
    path = tmp_path / "tiny.npz"
    np.savez(path, x=rng.normal(size=(60, 6)), y=rng.permutation(np.arange(60) % 3))
    return path


@pytest.fixture
def products_anew(monkeypatch):
    """Products are differentiated anew: tracing takes longer than a few hundred of them."""
    plain = CurvatureOperator.__init__

    def init(self, *args, **options):
        plain(self, *args, **{**options, "linearise": False})

    monkeypatch.setattr(CurvatureOperator, "__init__", init)


@pytest.fixture
def run_cli(tmp_path):
    """The installed console script in a process of its own, in tmp_path."""

    def run(*args):
        done = subprocess.run(
            [HESSRMT, *map(str, args)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,  # only what hangs takes so long
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def start_cli(tmp_path):
    """The console script started in tmp_path and left running; killed when the test ends.

    ``stop=("module:function", n)`` stops it before the n-th call of that function: see gate.py.
    """
    running = []
    # a shell that runs the tests in the background lets them and their children ignore Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def start(*args, stop=None):
        program = [HESSRMT] if stop is None else gate.program(tmp_path, *stop)
        process = subprocess.Popen(
            [*map(str, program), *map(str, args)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        if stop is not None:
            gate.wait(tmp_path, process)
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
def refused(cli, tmp_path):
    """Checks that a command ends with one error of bad input and leaves all files as they were."""

    def files():
        found = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
        return {path: content for path, content in found.items() if "__pycache__" not in str(path)}

    def check(arguments, words=()):
        before = files()
        result = cli(*arguments)
        assert result.returncode == 2, result.stderr
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        assert len(re.findall(r"^error: ", result.stderr, re.MULTILINE)) == 1, result.stderr
        assert result.stderr.count("error:") == 1
        said = result.stderr[result.stderr.index("error:") :]
        for word in words:
            assert word.lower() in said.lower(), said
        assert files() == before
        return said

    return check


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
