"""Weights that are stored in parts, and a container that puts them together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from hessrmt.problems.readers import Reader, Stored


@dataclass(frozen=True)
class Weight:
    """A weight and the tensors that it is stored in.

    Attributes:
        name: In the network.
        parts: Names of the tensors.
        how: What it is, in words; or why it can't be made whole.
        stored: What is known of the whole; None if it can't be made.
        make: Reads it.
        update: Whether it is to be added to a weight that is elsewhere.
        factor: Of such an update, alpha/r; None if it isn't known, and then not in it.
    """

    name: str
    parts: tuple[str, ...]
    how: str
    stored: Stored | None = None
    make: Callable[[], Tensor] | None = None
    update: bool = False
    factor: float | None = None


class Assembled(Reader):
    """A container whose parts are put together.

    Args:
        inner: With the parts.
        weights: What they make.
        notes: What a user must know of it.

    Attributes:
        weights: What was put together, by name.
    """

    def __init__(self, inner: Reader, weights: Iterable[Weight], notes: Iterable[str] = ()):
        self.inner, self.files = inner, inner.files
        self.notes = (*inner.notes, *notes)
        self.weights = {}
        known = dict(inner.entries)
        places: dict[str, Weight] = {}
        for weight in weights:
            reason = "a part of a weight, which is made whole" if weight.make else weight.how
            for part in weight.parts:
                known[part] = replace(known[part], unusable=reason, part_of=weight.name)
            if weight.make:
                self.weights[weight.name] = places[weight.parts[0]] = weight
        self.entries = {}
        for name, entry in known.items():
            if name in places and places[name].stored:
                self.entries[places[name].name] = places[name].stored  # pyright: ignore[reportArgumentType]
            if name not in self.weights:
                self.entries[name] = entry

    def read(self, name: str) -> Tensor:
        """See :class:`.Reader`."""
        weight = self.weights.get(name)
        return weight.make() if weight and weight.make else self.inner.read(name)

    def close(self) -> None:
        """See :class:`.Reader`."""
        self.inner.close()
