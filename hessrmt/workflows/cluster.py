"""Where independent tasks are done: here and in turn, or by the workers of a pool.

A workflow takes ``pool: Pool = SERIAL``, hands it functions that can be pickled, and writes files
itself. The pool that uses Dask is in :mod:`hessrmt.workflows.dask_pool`, which needs the extra
``cluster``; this module needs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Pool(Protocol):
    """Somewhere to do independent tasks."""

    @property
    def local(self) -> bool:
        """Whether tasks run in this process, so that functions and items may hold anything."""
        ...

    @property
    def width(self) -> int:
        """How many tasks are done at the same time now, at least 1."""
        ...

    @property
    def words(self) -> str:
        """What it is, for people and for the provenance of a file; empty for this process."""
        ...

    def map_unordered(
        self, function: Callable[[T], R], items: Iterable[T]
    ) -> Iterator[tuple[int, R]]:
        """Apply a function to every item; the first error ends it and is raised as it was.

        Args:
            function: Can be pickled unless the pool is local: a function of a module, or a
                ``functools.partial`` of one with plain values. It may be called twice for an item.
            items: Likewise. They are taken as they are needed, so there may be very many.

        Returns:
            Index of the item and its result, in the order in which they are done.
        """
        ...


class SerialPool:
    """This process: one task after the other, in order."""

    local = True
    width = 1
    words = ""

    def map_unordered(
        self, function: Callable[[T], R], items: Iterable[T]
    ) -> Iterator[tuple[int, R]]:
        """See :class:`Pool`."""
        yield from enumerate(map(function, items))


SERIAL = SerialPool()
"""What every workflow uses unless it is given another."""


def only(pool: Pool, function: Callable[[T], R], item: T) -> R:
    """One task.

    Args:
        pool: Where.
        function: See :meth:`Pool.map_unordered`.
        item: Its argument.

    Returns:
        Its result.
    """
    ((_, found),) = pool.map_unordered(function, [item])
    return found
