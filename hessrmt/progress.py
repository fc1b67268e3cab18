"""How a computation says how far it is: one kind of callback for everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Tick: TypeAlias = Callable[[str, int, int], None]
"""Told of progress: what is being done, steps done and steps in all of that."""


def silent(phase: str, done: int, total: int) -> None:
    """Report nothing."""
