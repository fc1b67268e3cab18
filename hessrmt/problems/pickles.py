"""Arrays out of a pickle that is read as data: nothing in it is ever imported or called.

A pickle is a program for a stack machine (see :mod:`pickletools`). This reader runs the few
instructions that dictionaries, lists, strings, integers and numpy arrays need. Of the functions
that a pickle may name it knows those that numpy writes for an array, by name only, and does their
work itself; anything else is refused. Memory is bounded by the size of the file.

Protocols 2 to 5 are read: Python 2 with numpy of its time, and every Python 3.
"""

from __future__ import annotations

import math
import pickletools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST = 1 << 29
"""Most bytes of a file: CIFAR-100 has 155 MB, written by Python 3 in protocol 2 up to 310 MB."""

MOST_INSTRUCTIONS = 2_000_000
"""Most instructions that are executed: CIFAR-100 has about 300,000."""

_PACKAGES = ("numpy.core", "numpy._core")
_FUNCTIONS = {
    **{f"{package}.multiarray _reconstruct": "empty" for package in _PACKAGES},
    **{f"{package}.numeric _frombuffer": "filled" for package in _PACKAGES},
    "numpy ndarray": "class",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
}
_INTEGERS = re.compile("[iu][1248]")
_DAMAGE = (ValueError, TypeError, IndexError, KeyError, AttributeError, EOFError, OverflowError)


@dataclass(frozen=True)
class _Function:
    """A name that a pickle may mention."""

    name: str


@dataclass
class _Kind:
    """A dtype: ``u1``, ``i8``, and its byte order."""

    code: str
    order: str = "="


@dataclass
class _Array:
    """An array before its values are there, and after."""

    shape: tuple[int, ...] = ()
    kind: _Kind | None = None
    fortran: bool = False
    raw: bytes | bytearray = b""


class _Mark:
    """Where a tuple, a list's or a dictionary's items begin on the stack."""


def read(raw: bytes, source: str) -> dict[str, Any]:
    """The dictionary in a pickle.

    Args:
        raw: The whole pickle.
        source: Name of the file for messages.

    Returns:
        Entries by name, keys of Python 2 decoded as latin-1. Values are None, bool, int, float,
        str, bytes, tuple, list, dict, or integer arrays.

    Raises:
        DataError: If it is damaged, too large, no dictionary, or asks for anything else.
    """
    refuse_large(len(raw), source)
    try:
        found = _Machine(raw, source).run()
        if isinstance(found, dict):
            names = (
                (k.decode("latin-1") if isinstance(k, bytes) else k, v) for k, v in found.items()
            )
            return {k: _array(v, source) if isinstance(v, _Array) else v for k, v in names}
    except (*_DAMAGE, MemoryError) as error:
        raise DataError(
            f"{source} is a damaged pickle ({type(error).__name__}: {error}). Download it again."
        ) from error
    raise DataError(f"{source} holds a pickled {type(found).__name__}, expected a dictionary.")


def refuse_large(size: int, source: str) -> None:
    """Refuse a file that no data set of this kind has.

    Args:
        size: In bytes.
        source: Name of the file.

    Raises:
        DataError: If that is more than ``LARGEST``.
    """
    if size > LARGEST:
        raise DataError(
            f"{source} is larger than {LARGEST >> 20} MiB, which no file of a CIFAR set is. "
            "Download it again."
        )


class _Machine:
    """The stack machine of one pickle."""

    def __init__(self, raw: bytes, source: str) -> None:
        self.raw = raw
        self.source = source
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.encoded = 0

    def run(self) -> Any:
        """Execute until STOP, which :func:`pickletools.genops` makes sure of.

        Returns:
            What is then on top of the stack.

        Raises:
            DataError: If an instruction is not one of those known, or there are too many.
        """
        for count, (opcode, value, _) in enumerate(pickletools.genops(self.raw)):
            if opcode.name == "STOP":
                break
            step = _STEPS.get(opcode.name)
            if step is None:
                named = opcode.name == "INST"
                raise self.refusal(_dotted(str(value)) if named else f"instruction {opcode.name}")
            step(self, value)
            if count >= MOST_INSTRUCTIONS:
                raise DataError(
                    f"{self.source} has more than {MOST_INSTRUCTIONS:,} pickle instructions, far "
                    "more than a CIFAR batch. Download it again."
                )
        return self.stack.pop()

    def refusal(self, what: str) -> DataError:
        """The error for what only a program needs.

        Returns:
            The error, to be raised.
        """
        return DataError(
            f"{self.source} is not plain data: its pickle asks for {what[:100]!r}, but only "
            "integer arrays, lists, text and numbers of pickle protocols 2 to 5 are read. Nothing "
            "in it was executed. Download it again from https://www.cs.toronto.edu/~kriz/cifar.html."
        )

    def last(self, number: int) -> list[Any]:
        """Take the topmost entries off the stack.

        Returns:
            That number of them, the topmost last.

        Raises:
            IndexError: If there are fewer.
        """
        cut = len(self.stack) - number
        if cut < 0:
            raise IndexError("stack underflow")
        items = self.stack[cut:]
        del self.stack[cut:]
        return items

    def since_mark(self) -> list[Any]:
        """Take everything down to the last mark off the stack.

        Returns:
            What was above the mark.
        """
        cut = next(i for i in range(1, len(self.stack) + 2) if self.stack[-i] is _Mark)
        return self.last(cut)[1:]

    def recall(self, key: int) -> None:
        """Push what was stored."""
        self.stack.append(self.memo[key])

    def store(self, key: int | None) -> None:
        """Store the top of the stack, without a key under the next one."""
        self.memo[len(self.memo) if key is None else key] = self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        """Append to the list on top of the stack."""
        _expect(self.stack[-1], list).extend(items)

    def update(self, items: list[Any]) -> None:
        """Set keys and values, in turn, of the dictionary on top of the stack."""
        keys = [_expect(key, str, bytes, int) for key in items[::2]]
        _expect(self.stack[-1], dict).update(zip(keys, items[1::2], strict=True))

    def name(self, name: str) -> None:
        """Push a function, if it is known.

        Raises:
            DataError: If not.
        """
        if name not in _FUNCTIONS:
            raise self.refusal(_dotted(name))
        self.stack.append(_Function(_FUNCTIONS[name]))

    def reduce(self) -> None:
        """Replace a function and its arguments by the result."""
        function, arguments = self.last(2)
        self.stack.append(self._call(_expect(function, _Function), _expect(arguments, tuple)))

    def _call(self, function: _Function, arguments: tuple[Any, ...]) -> Any:
        """What numpy's functions for pickled arrays would give, as a record."""
        if function.name == "encode":  # bytes of Python 3 in protocol 2
            text, encoding = arguments
            if encoding != "latin1":
                raise ValueError(f"bytes encoded as {str(encoding)[:20]}")
            self.encoded += len(_expect(text, str))
            if self.encoded > len(self.raw):
                raise ValueError("more encoded bytes than the file has")
            return text.encode("latin-1")
        if function.name == "dtype":
            code = _text(arguments[0])
            if not _INTEGERS.fullmatch(code):
                raise DataError(
                    f"{self.source} holds an array of dtype {code[:20]!r}, expected integers (u1)."
                )
            return _Kind(code)
        if function.name == "empty":  # _reconstruct(ndarray, (0,), b'b')
            return _Array()
        if function.name == "filled":  # _frombuffer(bytes, dtype, shape, order), protocol 5
            raw, kind, shape, order = arguments
            return _Array(_shape(shape), _expect(kind, _Kind), order == "F", _bytes(raw))
        raise self.refusal("a call of numpy.ndarray")

    def complete(self) -> None:
        """Give the array or dtype below the top its state, as numpy's ``__setstate__`` does."""
        (state,) = self.last(1)
        state, target = _expect(state, tuple), self.stack[-1]
        if isinstance(target, _Kind):
            target.order = _text(state[1])
            return
        array = _expect(target, _Array)
        _version, shape, kind, fortran, raw = state
        array.shape, array.kind = _shape(shape), _expect(kind, _Kind)
        array.fortran, array.raw = bool(fortran), _bytes(raw)


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _skip(machine: _Machine, value: Any) -> None:
    pass


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(["PROTO", "FRAME"], _skip),
    **dict.fromkeys(["BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"], _push),
    **dict.fromkeys(["BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"], _push),
    **dict.fromkeys(["BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"], _push),
    # strings of Python 2, which pickletools decodes
    "BINSTRING": lambda machine, value: _push(machine, value.encode("latin-1")),
    "SHORT_BINSTRING": lambda machine, value: _push(machine, value.encode("latin-1")),
    "NONE": lambda machine, _: _push(machine, None),
    "NEWTRUE": lambda machine, _: _push(machine, True),
    "NEWFALSE": lambda machine, _: _push(machine, False),
    "MARK": lambda machine, _: _push(machine, _Mark),
    "EMPTY_TUPLE": lambda machine, _: _push(machine, ()),
    "TUPLE1": lambda machine, _: _push(machine, tuple(machine.last(1))),
    "TUPLE2": lambda machine, _: _push(machine, tuple(machine.last(2))),
    "TUPLE3": lambda machine, _: _push(machine, tuple(machine.last(3))),
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.since_mark())),
    "EMPTY_LIST": lambda machine, _: _push(machine, []),
    "APPEND": lambda machine, _: machine.extend(machine.last(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "EMPTY_DICT": lambda machine, _: _push(machine, {}),
    "SETITEM": lambda machine, _: machine.update(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.since_mark()),
    **dict.fromkeys(["BINGET", "LONG_BINGET"], _Machine.recall),
    **dict.fromkeys(["BINPUT", "LONG_BINPUT", "MEMOIZE"], _Machine.store),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": lambda machine, _: machine.name(
        " ".join(_expect(part, str) for part in machine.last(2))
    ),
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.complete(),
}
"""The instructions that are executed."""


def _array(record: _Array, source: str) -> np.ndarray:
    if record.kind is None:
        raise ValueError("an array without values")
    order = record.kind.order if record.kind.order in {"<", ">"} else "="
    dtype = np.dtype(order + record.kind.code)
    expected = math.prod(record.shape) * dtype.itemsize
    if expected != len(record.raw):
        raise DataError(
            f"{source} holds an array of shape {record.shape} and {dtype.name}, {expected} bytes, "
            f"but {len(record.raw)} bytes of values. Download it again."
        )
    values = np.frombuffer(record.raw, dtype).astype(dtype.newbyteorder("="))
    return values.reshape(record.shape, order="F" if record.fortran else "C")


def _dotted(name: str) -> str:
    return name.replace(" ", ".")


def _expect(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise TypeError(f"{type(value).__name__} where {kinds[0].__name__} belongs")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    shape = tuple(_expect(n, int) for n in _expect(value, tuple))
    if len(shape) > 8 or any(n < 0 for n in shape):
        raise ValueError(f"an array of shape {shape}"[:60])
    return shape


def _text(value: Any) -> str:
    value = _expect(value, str, bytes)
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _bytes(value: Any) -> bytes | bytearray:
    return _expect(value, bytes, bytearray)
