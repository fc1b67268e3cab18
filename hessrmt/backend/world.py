"""Processes that work on one problem, and how they fail: together, never one waiting for another.

Work that a process does by itself is wrapped in :meth:`Processes.together`: if it fails anywhere,
the same error is raised everywhere. Whatever fails between the processes of an MPI run, or outside
such a block, ends the run on all of them with a message, since the others may wait for this one for
ever.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.errors import DeviceError, DistributedError, HessrmtError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Processes(ABC):
    """Processes that do one thing together, and fail together.

    Attributes:
        rank: This process, from 0.
        size: How many there are.
    """

    rank: int
    size: int
    _agreed: HessrmtError | None = None

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """Everybody's value on every process, in the order of their ranks.

        Args:
            value: Anything that pickles; small.

        Returns:
            One of each process.
        """

    @contextmanager
    def together(self, same: Any = None) -> Iterator[None]:
        """Run a block on every process; if it fails on one, it fails on all with that error.

        The block itself may use :meth:`together` and what else needs all processes only in ways in
        which all take part.

        Args:
            same: What must be equal on all, such as the step that they are at; small.

        Yields:
            None.

        Raises:
            HessrmtError: The error of the first process that failed.
            DistributedError: If it was another one, or the processes are not at the same step.
        """
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        kind = type(own) if isinstance(own, HessrmtError) else DistributedError
        found = self.gather((None if own is None else (kind, _words(own)), same))
        texts = [text for text, _ in found]
        failed = [rank for rank, text in enumerate(texts) if text is not None]
        if not failed:
            odd = [rank for rank, (_, theirs) in enumerate(found) if theirs != found[0][1]]
            if not odd:
                return
            self._agreed = DistributedError(
                f"process {odd[0]} of {self.size} is at {found[odd[0]][1]} and process 0 at "
                f"{found[0][1]}: all must make the same calls in the same order, with the same "
                "numbers to the last bit, which takes the same kind of hardware and the same "
                "number of threads"
            )
            raise self._agreed
        kind, words = texts[failed[0]]
        if len(failed) < self.size or len(set(texts)) > 1:
            words = f"process {failed[0]} of {self.size}: {words}"
        self._agreed = agreed = kind(words)
        raise agreed from own


class World(Processes):
    """The processes of an MPI run.

    Attributes:
        neighbours: How many of them share this machine, this one included.
        local_rank: This process among those, from 0.
    """

    def __init__(self, communicator: Any, neighbours: int = 1, local_rank: int = 0) -> None:
        """Take the processes of a communicator.

        Args:
            communicator: Of mpi4py.
            neighbours: How many of them share this machine.
            local_rank: This process among those.
        """
        self._communicator = communicator
        self.rank: int = communicator.Get_rank()
        self.size: int = communicator.Get_size()
        self.neighbours = neighbours
        self.local_rank = local_rank

    @property
    def fortran_handle(self) -> int:
        """The communicator as libraries written in Fortran take it."""
        return self._communicator.py2f()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """End the run on all processes if this one fails in a way the others cannot know of.

        Yields:
            None.
        """
        try:
            yield
        except BaseException as error:
            if self.size == 1 or any(cause is self._agreed for cause in _causes(error)):
                raise
            self.abort(_words(error))
            raise

    def abort(self, words: str) -> None:
        """Say why on standard error, and end every process of the run with exit code 1.

        Args:
            words: The reason.
        """
        where = f"process {self.rank} of {self.size}"
        print(f"hessrmt: {where} failed, the run ends: {words}", file=sys.stderr, flush=True)
        self._communicator.Abort(1)

    def gather(self, value: Any) -> list[Any]:
        """See :class:`Processes`."""
        with self._collective():
            return self._communicator.allgather(value)

    def share(self, value: Any) -> Any:
        """Process 0's value, on every process.

        Args:
            value: Anything that pickles; ignored on other processes.

        Returns:
            The value.
        """
        with self._collective():
            return self._communicator.bcast(value, root=0)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum of everybody's arrays, on every process.

        Args:
            values: Of one shape and type on all.

        Returns:
            A new array.
        """
        with self._collective():
            total = np.empty_like(values, order="C")
            self._communicator.Allreduce(np.ascontiguousarray(values), total)
            return total

    def exchange(
        self, parts: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]
    ) -> list[np.ndarray]:
        """Give every process its part, and take one from each.

        Args:
            parts: For each process what it gets, all of one type.
            shapes: For each process the shape of what it sends here.

        Returns:
            For each process what it sent.
        """
        with self._collective():
            given = np.concatenate([np.ravel(part) for part in parts])
            counts = [int(np.prod(shape)) for shape in shapes]
            taken = np.empty(sum(counts), dtype=given.dtype)
            self._communicator.Alltoallv([given, [part.size for part in parts]], [taken, counts])
            pieces = np.split(taken, np.cumsum(counts)[:-1])
            return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def split(self, colour: int, key: int) -> World:
        """The processes that give the same colour.

        Args:
            colour: Which part this process joins.
            key: Its order there.

        Returns:
            That part.
        """
        with self._collective():
            return World(self._communicator.Split(colour, key), self.neighbours, self.local_rank)

    @contextmanager
    def _collective(self) -> Iterator[None]:
        """What fails between processes cannot be told to them any more."""
        try:
            yield
        except Exception as error:
            if self.size > 1:
                self.abort(_words(error))
            raise


def connect() -> World:
    """The processes that ``mpirun`` or ``srun`` started; a single one where neither did.

    Returns:
        All of them.

    Raises:
        DeviceError: If mpi4py or an MPI library is missing.
    """
    try:
        from mpi4py import MPI  # starts MPI  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:
        raise DeviceError(
            f"a distributed run needs mpi4py and an MPI library ({error}). Try: "
            "pip install 'hessrmt[mpi]', and on Debian or Ubuntu apt-get install openmpi-bin"
        ) from error
    everybody: Any = MPI.COMM_WORLD
    here: Any = everybody.Split_type(MPI.COMM_TYPE_SHARED)
    return World(everybody, here.Get_size(), here.Get_rank())


def vendor() -> str:
    """The MPI library in one word.

    Returns:
        ``"openmpi"``, ``"mpich"``, or another name in lower case without spaces.
    """
    from mpi4py import MPI  # pyright: ignore[reportMissingImports]

    return MPI.get_vendor()[0].lower().replace(" ", "")


def _words(error: BaseException) -> str:
    if isinstance(error, HessrmtError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
