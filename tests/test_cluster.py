"""Workers of a Dask cluster: tasks, errors, the command line, runs, clusters that are there."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import dask.config
import numpy as np
import pytest
import torch
from cluster_samples import (
    HELD,
    as_one_worker,
    dask_pool,
    six_batches,
    two_workers,
    worker_processes,
)
from gate import PATIENCE, open_gate, wait_for
from level_samples import write_file
from store_samples import NET, contents

from hessrmt.config import LevelsConfig, SimulateConfig, SpectrumConfig
from hessrmt.ensembles import goe
from hessrmt.errors import (
    ClusterError,
    ConfigError,
    HessrmtWarning,
    NonFiniteError,
    ProblemError,
)
from hessrmt.runs import levels, simulate, spectrum
from hessrmt.runs.run import SERIAL, Run, absolute
from hessrmt.store.spectra import load

BATCHES = 6
PID = "__import__('os').getpid()"

# A scheduler or a worker that is nobody's child but the test's: arguments are the address of the
# scheduler (a worker's) and its number of threads
SERVER = """
import asyncio, sys
if {bare}:
    sys.modules["hessrmt"] = None
from distributed import Scheduler, Worker

async def main():
    if len(sys.argv) > 1:
        server = Worker(sys.argv[1], nthreads=int(sys.argv[2]), host="127.0.0.1",
                        dashboard_address="127.0.0.1:0")
    else:
        server = Scheduler(host="127.0.0.1", port=0, dashboard=False,
                           dashboard_address="127.0.0.1:0")
    async with server:
        print(server.address, flush=True)
        await server.finished()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    with two_workers(tmp_path_factory) as opened:
        yield opened


@pytest.fixture
def one_thread():
    with as_one_worker():
        yield


@pytest.fixture
def servers():
    """Starts a scheduler, or a worker of one; all end with the test."""
    running = []

    def start(*args, bare=False):
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER.format(bare=bare), *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        running.append(process)
        return process.stdout.readline().strip(), process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def config(tmp_path, tiny_npz):
    return six_batches(tmp_path, tiny_npz)


def wait_until_gone(pids):
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


# Tasks


def test_results_come_with_the_index_of_their_item(pool):
    found = list(pool.map_unordered(partial(pow, 3), range(9)))
    assert sorted(found) == [(k, 3**k) for k in range(9)]
    assert list(SERIAL.map_unordered(partial(pow, 3), range(3))) == [(0, 1), (1, 3), (2, 9)]
    assert list(pool.map_unordered(eval, [])) == []


def test_items_are_taken_as_they_are_needed(pool):
    taken = []

    def items():
        for number in range(10_000):
            taken.append(number)
            yield number

    results = pool.map_unordered(partial(pow, 2), items())
    for _ in range(5):
        next(results)
    results.close()
    assert len(taken) <= 5 + dask_pool._AHEAD * pool.width


# A task that waits until two processes are at one
MEET = """
import os, sys, torch
from pathlib import Path
sys.path.append({tests!r})
import gate
Path({folder!r}, str(os.getpid())).touch()
gate.wait_for(lambda: len(os.listdir({folder!r})) == 2)
found = os.getpid(), torch.get_num_threads()
"""


def test_work_is_done_by_two_processes_of_one_thread(pool, tmp_path):
    text = MEET.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    code = f"(lambda space: (exec({text!r}, space), space['found'])[1])({{}})"
    found = [result for _, result in pool.map_unordered(eval, [code] * 8)]
    assert {pid for pid, _ in found} == set(worker_processes(os.getpid()))
    assert {threads for _, threads in found} == {1}


@pytest.mark.slow
def test_results_that_workers_take_with_them_are_computed_again(pool):
    results = pool.map_unordered(partial(pow, 3), range(4))  # all are given out at once
    found = [next(results)]
    held = pool._client.futures
    wait_for(lambda: len(held) == 3 and all(one.status == "finished" for one in held.values()))
    for pid in worker_processes(os.getpid()):
        os.kill(pid, signal.SIGKILL)
    found += results  # the pool starts other workers, which do the three again
    assert sorted(found) == [(k, 3**k) for k in range(4)]


# Errors


@pytest.mark.slow
def test_an_error_of_a_task_is_that_of_one_process(tmp_path, pool):
    x = np.random.default_rng(0).normal(size=(40, 4))
    x[25] = 1e300  # the squared error of its batch overflows
    np.savez(tmp_path / "large.npz", x=x, y=np.arange(40) % 2)
    config = SpectrumConfig(
        model="logistic", data=str(tmp_path / "large.npz"), batch=10, loss="mse", device="cpu"
    )
    prepared = spectrum.prepare(config)
    messages = []
    for number, where in enumerate((SERIAL, pool)):
        with pytest.raises(NonFiniteError, match="batch 2: ") as caught:
            spectrum.run(prepared, tmp_path / f"{number}.h5", pool=where)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert list(pool.map_unordered(eval, ["1"])) == [(0, 1)]  # the workers are as before


def test_a_worker_that_finds_other_files_says_so(tmp_path, config, pool):
    prepared = spectrum.prepare(config)
    (tmp_path / "net.py").write_text(NET + "\n# edited\n")
    with pytest.raises(ClusterError, match=r"other source of the model than .* file system"):
        spectrum.run(prepared, tmp_path / "out.h5", pool=pool)
    (tmp_path / "net.py").unlink()
    work = Run(spectrum.prepare, config, pool=pool, prepared=prepared)
    with pytest.raises(ProblemError, match=r"worker on .*there is no file.*file system"):
        work.on_one(spectrum._examine, 0)
    assert not (tmp_path / "out.h5").exists()


def test_relative_paths_are_made_absolute(tmp_path, config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = config.model_copy(update={"model": "net.py:net", "data": "tiny.npz"})
    assert absolute(relative, Path("data")) == (config, tmp_path / "data")


def test_other_versions_are_refused(pool, monkeypatch):
    versions = pool._expected["versions"] | {"torch": "1.0.0"}
    monkeypatch.setitem(pool._expected, "versions", versions)
    with pytest.raises(ClusterError, match=r"torch \S+ \(1\.0\.0 where the command runs\)"):
        list(pool.map_unordered(eval, ["1"]))


# The command line


def test_no_scheduler_is_one_clear_error(cli, refused, monkeypatch, tiny_npz, tmp_path):
    monkeypatch.setattr(dask_pool, "TIMEOUT", 1.0)
    command = ["spectrum", "--model", "logistic", "--data", tiny_npz, "--batch", 10]
    result = cli(*command, "--scheduler", "tcp://127.0.0.1:9")
    assert result.returncode == 1
    assert "error: there is no Dask scheduler at tcp://127.0.0.1:9" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "spectra.h5").exists()
    words = ["error: scheduler: 'nonsense://there' cannot be used"]
    refused([*command, "--scheduler", "nonsense://there"], words)


ANSWERS = {
    "nothing": b"",
    "HTTP": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nbad",
    "SSH": b"SSH-2.0-OpenSSH_9.2p1\r\n",
    "lengths that are none": b"\xff" * 64,
    "a piece of a message": (1000).to_bytes(8, "little"),
}


@contextmanager
def answering(said):
    """An address where each connection is told the same and then kept."""
    held = []

    def serve():
        with suppress(OSError):  # the listener is closed
            while True:
                held.append(listener.accept()[0])
                held[-1].sendall(said)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)
    for connection in held:
        connection.close()


@pytest.mark.parametrize("kind", ["tcp", "tls"])
@pytest.mark.parametrize("said", ANSWERS)
def test_what_is_no_scheduler_is_one_error_in_time(kind, said, monkeypatch):
    monkeypatch.setattr(dask_pool, "TIMEOUT", 0.5)
    monkeypatch.setattr(  # as if certificates were named in Dask's settings
        dask_pool.Security,
        "get_connection_args",
        lambda self, role: {"ssl_context": ssl.create_default_context()},
    )
    monkeypatch.setattr(dask_pool, "Client", None)  # which would go on trying
    with (
        answering(ANSWERS[said]) as address,
        pytest.raises(ClusterError, match=f"there is no Dask scheduler at {kind}://{address} "),
        dask_pool.open_pool(scheduler=f"{kind}://{address}"),
    ):
        pass


def test_encrypted_addresses_need_certificates(monkeypatch):
    with pytest.raises(ConfigError, match=r"needs certificates.*TLS__CA_FILE"):
        dask_pool._require_scheduler("tls://127.0.0.1:9")
    with (
        dask.config.set(
            {
                f"distributed.comm.tls.{name}": "/nowhere/a.pem"
                for name in ("ca-file", "client.cert", "client.key")
            }
        ),
        pytest.raises(ConfigError, match="certificates in Dask's settings cannot be used"),
    ):
        dask_pool._require_scheduler("tls://127.0.0.1:9")


@pytest.mark.parametrize(
    ("address", "warned"),
    [
        ("tcp://node:8786", True),
        ("10.0.0.1:8786", True),
        ("tcp://[fe80::1]:8786", True),
        ("tls://node:8786", False),
        ("tcp://127.0.0.1:8786", False),
        ("tcp://localhost:8786", False),
        ("tcp://[::1]:8786", False),
    ],
)
def test_who_can_be_reached_from_elsewhere_is_told_what_that_means(address, warned, monkeypatch):
    async def found(*_, **__):
        raise OSError("not asked")

    monkeypatch.setattr(dask_pool, "connect", found)
    monkeypatch.setattr(
        dask_pool.Security, "get_connection_args", lambda self, role: {"ssl_context": 1}
    )
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(ClusterError):
            dask_pool._require_scheduler(address)
    said = [str(item.message) for item in seen if item.category is HessrmtWarning]
    assert [f"{address} is not encrypted" in words for words in said] == [True] * warned


def test_workers_of_no_use_are_usage_errors(refused, monkeypatch):
    for command in (["simulate"], ["levels", "any.h5"], ["reproduce", "any"]):
        refused([*command, "--workers", 0])
    refused(["simulate", "--workers", 2, "--scheduler", "tcp://127.0.0.1:9"], ["give one"])
    monkeypatch.delitem(sys.modules, "hessrmt.runs.dask_pool")
    monkeypatch.setitem(sys.modules, "distributed", None)
    refused(["simulate", "--samples", 2, "--workers", 2], ['pip install "hessrmt[cluster]"'])


@pytest.mark.slow
def test_interrupted_from_the_keyboard_and_resumed(tmp_path, config, cli, start_cli, one_thread):
    options = ["spectrum", "--model", config.model, "--data", config.data, "--batch", 10]
    options += ["--batches", "all", "--device", "cpu"]
    path = tmp_path / "stopped.h5"
    # the results are waited for: that of the examination, those of two batches, and one more
    stop = ("hessrmt.runs.dask_pool:DaskPool._next", 4)
    process = start_cli(*options, "--out", path, "--workers", 2, stop=stop)
    workers = worker_processes(process.pid)
    assert len(workers) == 2
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.count("error:") == 1
    assert "--resume" in err
    wait_until_gone(workers)
    assert len(load(path)) == 2
    assert cli(*options, "--out", path, "--resume").returncode == 0
    assert cli(*options, "--out", "serial.h5").returncode == 0
    assert contents(path) == contents(tmp_path / "serial.h5")


@pytest.mark.slow
def test_workers_end_with_the_command(config, tmp_path, start_cli):
    path = tmp_path / "killed.h5"
    (tmp_path / "distributed.py").write_text("1 / 0")  # no business of a worker started here
    process = start_cli(
        *("spectrum", "--model", config.model, "--data", config.data, "--batch", 10),
        *("--batches", 6, "--out", path, "--workers", 1, "--device", "cpu"),
        stop=("hessrmt.store.writing:SpectrumWriter.write", 2),
    )
    workers = worker_processes(process.pid)
    assert len(workers) == 1
    process.kill()
    process.wait()
    wait_until_gone(workers)


# Runs: bit for bit those of one process


@pytest.mark.slow
def test_workers_killed_mid_run_change_nothing_in_the_file(tmp_path, tiny_npz, pool, one_thread):
    prepared = spectrum.prepare(six_batches(tmp_path, tiny_npz, HELD))
    spectrum.run(prepared, tmp_path / "serial.h5")
    victims = []

    def kill(batch, found):
        if not victims:
            # both have a task in hand, and others wait beside it
            wait_for(lambda: len(list(tmp_path.glob("begun-*"))) == 2)
            victims.extend(worker_processes(os.getpid()))
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            open_gate(tmp_path)

    spectrum.run(prepared, tmp_path / "killed.h5", finished=kill, pool=pool)
    assert len(victims) == 2
    assert contents(tmp_path / "killed.h5") == contents(tmp_path / "serial.h5")
    assert not set(victims) & set(worker_processes(os.getpid()))


@pytest.mark.parametrize("choice", [{}, {"operator": "ggn"}, {"dtype": "float32"}], ids=str)
def test_spectra_equal_those_of_one_process(tmp_path, pool, one_thread, choice):
    config = SpectrumConfig(model="logistic", data="mnist", batch=12, batches=3, **choice)
    prepared = spectrum.prepare(config)
    spectrum.run(prepared, tmp_path / "serial.h5")
    spectrum.run(prepared, tmp_path / "pool.h5", pool=pool)
    assert contents(tmp_path / "pool.h5") == contents(tmp_path / "serial.h5")
    found = load(tmp_path / "pool.h5").provenance
    assert "computed by 2 local Dask worker(s), threads of each: 1" in found.notes
    assert found.device == "cpu (1 thread)"


@pytest.mark.parametrize("method", ["tridiagonal", "dense"])
def test_simulated_spectra_equal_those_of_one_process(tmp_path, pool, one_thread, method):
    # groups of one process hold all 40 samples, those of two workers three of them
    config = SimulateConfig(dimension=30, samples=40, outliers=2, method=method, device="cpu")
    counts = []
    simulate.run(config, tmp_path / "serial.h5")
    simulate.run(
        config, tmp_path / "pool.h5", tick=lambda _, done, __: counts.append(done), pool=pool
    )
    assert contents(tmp_path / "pool.h5") == contents(tmp_path / "serial.h5")
    assert len(counts) == 14
    assert counts[-1] == 40


def test_a_file_begun_by_one_is_finished_by_the_other(tmp_path, config, pool, one_thread):
    def stop(batch, found):
        raise KeyboardInterrupt

    prepared = spectrum.prepare(config)
    spectrum.run(prepared, tmp_path / "serial.h5")
    for first, second in ((pool, SERIAL), (SERIAL, pool)):
        path = tmp_path / f"{first.width}.h5"
        with pytest.raises(KeyboardInterrupt):
            spectrum.run(prepared, path, finished=stop, pool=first)
        assert len(load(path)) == 1
        spectrum.run(prepared, path, resume=True, pool=second)
        assert contents(path) == contents(tmp_path / "serial.h5")


@pytest.mark.slow
def test_statistics_equal_those_of_one_process(tmp_path, pool, one_thread):
    spectra = load(write_file(tmp_path / "goe.h5", [goe(40, 0, index=i) for i in range(6)]))
    # this unfolding follows the data, but not the surrogates of every law
    for unfold in ("auto", "polynomial:degree=9"):
        settings = LevelsConfig(compare=True, unfold=unfold, surrogates=10, seed=3)
        seen = []
        here = levels.run(settings, spectra)
        there = levels.run(settings, spectra, lambda *step, seen=seen: seen.append(step[1:]), pool)
        assert list(there) == list(here)
        for cutoff, statistics in here.items():
            np.testing.assert_equal(there[cutoff].to_dict(), statistics.to_dict())
        assert seen[-1] == (5, 5)


# A cluster that is there


@pytest.mark.slow
def test_a_cluster_that_is_there(tmp_path, servers, config):
    address, scheduler = servers(bare=True)  # the scheduler needs no hessrmt
    with dask_pool.open_pool(scheduler=address) as pool:
        assert pool.words.startswith("0 worker(s) of the Dask cluster tcp://127.0.0.1:")
        _, worker = servers(address, 1, bare=True)
        with pytest.raises(ClusterError, match="a worker has no module hessrmt: install"):
            list(pool.map_unordered(eval, ["1"]))
        worker.kill()
        worker.wait()

        servers(address, 2)
        # one task at a time, with the threads that the worker has
        code = "(t := __import__('time')) and (t.monotonic(), t.sleep(0.1), t.monotonic())"
        spans = sorted(found for _, found in pool.map_unordered(eval, [code] * 3))
        assert all(earlier[2] <= later[0] for earlier, later in pairwise(spans))
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        prepared = spectrum.prepare(config)
        spectrum.run(prepared, tmp_path / "serial.h5")
        torch.set_num_threads(before)
        spectrum.run(prepared, tmp_path / "pool.h5", pool=pool)
        assert contents(tmp_path / "pool.h5") == contents(tmp_path / "serial.h5")
        assert load(tmp_path / "pool.h5").provenance.device == "cpu (2 threads)"

        results = pool.map_unordered(eval, ["1", "__import__('time').sleep(600)"])
        assert next(results) == (0, 1)
        scheduler.kill()
        with pytest.raises(ClusterError, match="connection to the Dask scheduler was lost"):
            next(results)


@pytest.mark.slow
def test_workers_that_die_at_every_start_end_the_run():
    with (
        dask_pool.open_pool(1, device="cpu") as pool,
        pytest.raises(ClusterError, match="worker that took a certain task died"),
    ):
        list(pool.map_unordered(eval, ["__import__('os')._exit(3)"]))


@pytest.mark.slow
def test_workers_that_are_not_started_again_end_the_run(monkeypatch):
    async def fails(self):
        raise OSError("no process")

    monkeypatch.setattr(dask_pool, "_GONE", 1.0)
    with dask_pool.open_pool(1, device="cpu") as pool:
        monkeypatch.setattr("distributed.Nanny.instantiate", fails)
        with pytest.raises(ClusterError, match="were not started again"):
            list(pool.map_unordered(eval, ["__import__('os')._exit(3)"]))


@pytest.mark.slow
def test_workers_that_never_start_are_one_error(monkeypatch):
    monkeypatch.setitem(dask_pool._WORKER, "preload", ["import os; os._exit(3)"])
    with pytest.raises(ClusterError, match="worker processes do not start"), dask_pool.open_pool(1):
        pass
