"""How a computation says how far it is: one kind of callback for everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Tick: TypeAlias = Callable[[str, int, int], None]
"""Told of progress: what is being done, steps done and steps in all of that."""


def silent(phase: str, done: int, total: int) -> None:
    """Report nothing."""


def under(tick: Tick | None, words: str) -> Tick | None:
    """The callback of a part of what is told of.

    Args:
        tick: Of the whole, if there is one.
        words: Put before what the part says that it is doing.

    Returns:
        A callback; None without one.
    """
    if tick is None:
        return None
    return lambda phase, done, total: tick(words + phase, done, total)
