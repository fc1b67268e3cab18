"""Tasks done by the workers of a Dask cluster: processes of this machine, or any cluster there is.

Dask moves tasks, repeats those of lost workers, and starts worker processes of this machine again
if they die (its nannies do). What is added: a bounded number of tasks in flight, one task at a time
for each worker with a known number of threads, and errors that say what to do.

Processes of this machine are started as :mod:`multiprocessing` starts them: a script that opens a
pool needs ``if __name__ == "__main__":`` around what it does.

Neither functions nor items are unpickled by the scheduler, which needs no hessrmt. Only someone who
may run code on the workers anyway can send them tasks: Dask's own rule.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import pickle
import socket
import ssl
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import metadata
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import dask.config
import torch
from dask.system import CPU_COUNT
from distributed import Client, Future, Nanny, Scheduler, Security, SpecCluster, get_worker
from distributed.comm.addressing import get_address_host, parse_address
from distributed.comm.core import connect
from distributed.core import send_recv
from distributed.protocol.pickle import dumps
from distributed.scheduler import KilledWorker
from distributed.utils import silence_logging_cmgr

from hessrmt.backend.host import environments
from hessrmt.errors import ClusterError, ConfigError, HessrmtWarning
from hessrmt.runs.run import Pool

T = TypeVar("T")
R = TypeVar("R")

TIMEOUT = 10.0
"""Seconds within which a scheduler must answer."""

_AHEAD = 2
"""Tasks in flight for each worker: one that is done, and one that waits beside it."""

_LOOK = 0.5
"""Seconds between two looks at the workers while nothing happens."""

_GONE = 30.0
"""Seconds without any process of ours after which none is expected to start again."""

_ATTEMPTS = 3
"""How often a task is given to the scheduler, which repeats it on other workers (three times by
default) before it gives up."""

_SCHEDULER = {
    "host": "127.0.0.1",
    "port": 0,
    "dashboard": False,
    "dashboard_address": "127.0.0.1:0",
}

_WORKER: dict[str, Any] = {
    "nthreads": 1,
    "host": "127.0.0.1",
    "dashboard_address": None,
    # Dask would pause or kill a worker that holds one large matrix, which hessrmt has already
    # compared with the free memory
    "memory_limit": 0,
    "silence_logs": logging.CRITICAL,
    # Ctrl-C is the business of the process that started them alone; standard output is for results
    "preload": ["import os, signal; signal.signal(signal.SIGINT, signal.SIG_IGN); os.dup2(2, 1)"],
}

_ENCRYPTED = ("tls", "wss")
"""Kinds of addresses whose connections are encrypted, both ends having certificates."""

_EQUAL = ("hessrmt", "torch", "numpy", "scipy")
"""Packages that client and workers must have the same version of."""

_one_task = threading.Lock()
"""Held by the task that a worker is at; Dask may hand it several."""


class DaskPool(Pool):
    """The workers of a Dask cluster; see :class:`hessrmt.runs.run.Pool`.

    Args:
        client: Connected.
        cluster: Of processes of this machine, if it is one.
        threads: Of each of these.
    """

    local = False

    def __init__(
        self, client: Client, cluster: SpecCluster | None = None, threads: int | None = None
    ) -> None:
        self._client = client
        self._processes = len(cluster.workers) if cluster else 0
        self._threads = threads
        self._expected = {"threads": threads, "versions": _versions()}
        self._cluster = cluster
        self._width, self._counted = 1, -float("inf")

    @property
    def width(self) -> int:
        """Workers that are there now, at least 1."""
        if self._processes:
            return self._processes
        if time.monotonic() > self._counted + _LOOK:
            self._width = max(1, len(self._reach(self._client.nthreads)))
            self._counted = time.monotonic()
        return self._width

    @property
    def words(self) -> str:
        """What it is, with the number of threads of each worker."""
        if self._processes:
            return f"{self._processes} local Dask worker(s), threads of each: {self._threads}"
        found = self._reach(self._client.nthreads)
        threads = ", ".join(map(str, sorted(set(found.values())))) or "none has started yet"
        address = self._client.scheduler.address if self._client.scheduler else "?"
        return f"{len(found)} worker(s) of the Dask cluster {address}, threads of each: {threads}"

    def map_unordered(
        self, function: Callable[[T], R], items: Iterable[T]
    ) -> Iterator[tuple[int, R]]:
        """See :class:`hessrmt.runs.run.Pool`.

        Yields:
            Index of an item and its result.

        Raises:
            ClusterError: If the cluster is lost or cannot do the work.
        """
        given = enumerate(items)
        done: SimpleQueue[Future] = SimpleQueue()
        running: dict[str, tuple[Future, int, Callable[[], Any], int]] = {}

        def submit(index: int, task: Callable[[], Any], attempt: int) -> None:
            future = self._submit(task)
            running[str(future.key)] = (future, index, task, attempt)
            future.add_done_callback(done.put)

        try:
            while True:
                while len(running) < _AHEAD * self.width and (found := next(given, None)):
                    index, item = found
                    submit(index, partial(_perform, function, item, **self._expected), 1)
                if not running:
                    return
                future, index, task, attempt = running.pop(str(self._next(done).key))
                if attempt < _ATTEMPTS and isinstance(_error_of(future), KilledWorker):
                    submit(index, task, attempt + 1)
                    continue
                result = self._result(future)
                future.release()
                yield index, result
        finally:
            if running and self._client.status == "running":
                self._client.cancel([future for future, *_ in running.values()], force=True)

    def _submit(self, task: Callable[[], Any]) -> Future:
        key = f"hessrmt-{uuid.uuid4().hex}"
        submit = partial(self._client.submit, _opener(), dumps(task), key=key, pure=False)
        return self._reach(submit)

    def _next(self, done: SimpleQueue[Future]) -> Future:
        """The next future that is done."""
        gone = float("inf")
        while True:
            try:
                return done.get(timeout=_LOOK)
            except Empty:
                if self._client.status in {"closed", "closing"}:
                    raise self._lost() from None
            now, nannies = time.monotonic(), self._cluster.workers.values() if self._cluster else ()
            alive = not self._cluster or any(nanny.is_alive() for nanny in nannies)
            gone = float("inf") if alive else min(gone, now)
            if now > gone + _GONE:  # Dask has given up to start them again
                raise ClusterError(
                    "the worker processes died and were not started again; finished batches are "
                    "on disk, start again with --resume"
                )

    def _result(self, future: Future) -> Any:
        """What a task gave; if its worker dies before that is here, the task is done again."""
        patience = _LOOK
        while future.status != "error" and not future.cancelled():
            try:
                return future.result(timeout=patience)
            except TimeoutError as error:
                if self._client.status in {"closed", "closing"}:
                    raise self._lost() from error
                patience *= 2  # a large result may take long
            except Exception as lost:  # whatever the wire raises, unless the task failed this time
                if future.status != "error":
                    raise self._lost(lost) from lost
        error = _error_of(future)
        if error is None or future.cancelled():
            raise self._lost()
        if isinstance(error, KilledWorker):
            raise ClusterError(
                f"every worker that took a certain task died ({error.args[-1] + 1} of them, "
                f"{_ATTEMPTS} times); if for lack of memory, take fewer workers of more memory"
            ) from error
        if isinstance(error, ModuleNotFoundError):
            raise ClusterError(
                f"a worker has no module {(error.name or str(error)).partition('.')[0]}: install "
                "hessrmt in the environment of the workers, in the version of this machine"
            ) from error
        raise error

    def _reach(self, ask: Callable[[], Any]) -> Any:
        """What the scheduler answers."""
        try:
            return ask()
        except Exception as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception | None = None) -> ClusterError:
        why = f" ({error})" if error else ""
        return ClusterError(
            f"the connection to the Dask scheduler was lost{why}; finished batches are on disk, "
            "start again with --resume"
        )


@contextmanager
def open_pool(
    workers: int | None = None, scheduler: str | None = None, device: str = "auto"
) -> Iterator[DaskPool]:
    """A pool of Dask workers, closed at the end.

    Args:
        workers: Processes of this machine: one a GPU, or the cores divided among them.
        scheduler: Address of a scheduler that is there, e.g. ``tcp://node:8786``; its workers are
            used, one task at a time each with as many threads as the worker has.
        device: What ``workers`` will compute on; see :func:`hessrmt.backend.host.environments`.

    Yields:
        The pool.

    Raises:
        ConfigError: If not exactly one of both is given, or it cannot be used.
        ClusterError: If the scheduler cannot be reached.
    """
    if (workers is None) == (scheduler is None):
        raise ConfigError("give either a number of workers on this machine, or a scheduler")
    with ExitStack() as stack:
        for name in ("distributed", "distributed.client", "tornado.application", "asyncio"):
            stack.enter_context(silence_logging_cmgr(logging.CRITICAL, root=name))
        if scheduler is not None:
            _require_scheduler(scheduler)
            yield DaskPool(stack.enter_context(_connected(scheduler)))
            return
        assert workers is not None
        if workers < 1:
            raise ConfigError(f"workers: {workers}; give at least 1")
        environment = environments(workers, CPU_COUNT, device)
        # numerical libraries read these when they are loaded: set before a worker starts
        common = {k: v for k, v in environment[0].items() if k != "CUDA_VISIBLE_DEVICES"}
        settings = {
            "distributed.scheduler.worker-ttl": None,  # a worker that is busy is not lost
            # nor is one that starts again while this time runs out; Dask would end its nanny
            "distributed.deploy.lost-worker-timeout": "1000 days",
            "distributed.nanny.pre-spawn-environ": common,
        }
        stack.enter_context(dask.config.set(settings))
        # LocalCluster gives all workers one environment; with several GPUs each has its own
        options = [{**_WORKER, "env": variables} for variables in environment]
        specification = {k: {"cls": Nanny, "options": found} for k, found in enumerate(options)}
        scheduler_of_ours: dict[str, Any] = {"cls": Scheduler, "options": _SCHEDULER}
        try:
            with _environment(common):  # where both have a variable, Dask takes this process's
                cluster = SpecCluster(specification, scheduler_of_ours)
        except RuntimeError as error:
            raise ClusterError(
                f"the worker processes do not start ({error}); a script that opens a pool needs "
                'if __name__ == "__main__":'
            ) from error
        stack.enter_context(cluster)
        client = stack.enter_context(_connected(cluster.scheduler_address))
        yield DaskPool(client, cluster, int(environment[0]["OMP_NUM_THREADS"]))


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables of this process while a block runs."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _require_scheduler(address: str) -> None:
    """Refuse an address at which no scheduler answers in time: Dask's client may wait for ever."""
    try:
        kind, host = parse_address(address)[0], get_address_host(address)
    except Exception as error:
        raise ConfigError(
            f"scheduler: {address!r} cannot be used ({error}); give the address that `dask "
            "scheduler` prints, e.g. tcp://node:8786"
        ) from error
    try:
        options = Security().get_connection_args("client")
    except (OSError, ValueError) as error:  # also those of ssl
        raise ConfigError(
            f"scheduler: the certificates in Dask's settings cannot be used ({error})"
        ) from error
    if kind in _ENCRYPTED and options.get("ssl_context") is None:
        raise ConfigError(
            f"scheduler: {address} needs certificates, and Dask's settings name none: "
            "distributed.comm.tls.ca-file, .client.cert and .client.key, or "
            "DASK_DISTRIBUTED__COMM__TLS__CA_FILE and so on in the environment"
        )
    if kind not in _ENCRYPTED and not _is_loopback(host):
        warnings.warn(
            f"{address} is not encrypted, and nobody there has to say who they are: whoever "
            "reaches that port or the network between can run code on the workers and here; use a "
            "tls:// address beyond a network that you trust",
            HessrmtWarning,
            stacklevel=4,
        )

    async def ask() -> Any:
        comm = await connect(address, TIMEOUT, deserialize=False, **options)
        try:
            return await send_recv(comm, op="identity")
        finally:
            comm.abort()

    try:
        with ThreadPoolExecutor(1) as thread:  # a notebook's own thread has a loop that is running
            found = thread.submit(asyncio.run, asyncio.wait_for(ask(), TIMEOUT)).result()
        why = "" if found["type"] == "Scheduler" else f"but a {found['type']}"
    except TimeoutError:
        why = f"no answer within {TIMEOUT:g} s"
    except (OSError, ssl.SSLError) as error:
        why = str(error.__cause__ or error)
    except Exception:  # what other programs say is taken for lengths and for pieces of messages
        why = "what answers doesn't speak Dask's protocol"
    if why:
        other = "tcp" if kind in _ENCRYPTED else "tls"
        raise ClusterError(
            f"there is no Dask scheduler at {address} ({why}); start one with `dask scheduler`, "
            f"give its {other}:// address if it prints one, or use --workers for processes of this "
            "machine"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    with Client(address, timeout=TIMEOUT, set_as_default=False) as client:
        yield client


def _error_of(future: Future) -> BaseException | None:
    """What a task that is done raised."""
    if future.status != "error":
        return None
    error = future.exception()
    assert error is None or isinstance(error, BaseException)
    return error


def _versions() -> dict[str, str]:
    """Versions of :data:`_EQUAL`, without the local part, which names a build."""
    return {name: metadata.version(name).partition("+")[0] for name in _EQUAL}


def _opener() -> Callable[[bytes], Any]:
    """A function that opens and calls a pickled function; pickled itself by value.

    Returns:
        What neither the scheduler nor a worker needs hessrmt for, until it is called.
    """

    def open_and_call(task: bytes) -> Any:
        return pickle.loads(task)()

    return open_and_call


def _perform(
    function: Callable[[T], R], item: T, threads: int | None, versions: Mapping[str, str]
) -> R:
    """A task, as a worker does it."""
    here = _versions()
    if here != dict(versions):
        differing = [
            f"{name} {here[name]} ({versions[name]} where the command runs)"
            for name in _EQUAL
            if here[name] != versions[name]
        ]
        raise ClusterError(
            f"the worker on {socket.gethostname()} has {', '.join(differing)}: install the same "
            "versions, or results would not be those of one machine"
        )
    os.environ.setdefault("MKL_CBWR", "AUTO")  # before MKL's first use, as the command line does
    with _one_task:
        torch.set_num_threads(threads or get_worker().state.nthreads)
        return function(item)
