"""What every result can do: be shown, turned into plain values or tables, kept in a file, drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from hessrmt.errors import DataError, StoreError
from hessrmt.files import write_whole
from hessrmt.tables import counted, html_table, to_csv, to_markdown

_SHOWN = 8
"""Values in a result's short text."""

_WRITTEN = {".json", ".csv", ".md", ".h5", ".hdf5"}


class Result:
    """Base of the frozen dataclasses that public functions return.

    What is special about a class is said in its definition::

        @dataclass(frozen=True)
        class Histogram(Result, axes={"bin": "density error"}, picture="levels.spacings"): ...

    Args:
        axes: Name of an axis, or of several, separated by blanks, to the names of the arrays that
            have them. The first one is that of the table: its arrays are the columns.
        derived: Names of properties that belong to the plain values.
        omitted: Names of fields that do not, e.g. since they are large or no values.
        picture: Module and function of ``hessrmt.plots`` that draws it, with a dot between. It
            takes the result, and axes as ``ax``. Without one the table's columns are drawn.
        writer: Module whose ``save`` writes it to HDF5, where it has a layout of its own.
    """

    _axes: Mapping[str, str]
    _derived: str
    _omitted: str
    _picture: str
    _writer: str

    def __init_subclass__(
        cls,
        axes: Mapping[str, str] | None = None,
        derived: str = "",
        omitted: str = "",
        picture: str = "",
        writer: str = "",
        **options: Any,
    ) -> None:
        """Keep what the class says of itself; what it leaves out is its base's."""
        super().__init_subclass__(**options)
        given = {"_axes": axes, "_derived": derived, "_omitted": omitted, "_picture": picture}
        given["_writer"] = writer
        for name, value in given.items():
            if value or not hasattr(cls, name):
                setattr(cls, name, value or ({} if name == "_axes" else ""))
        # dataclasses write one that spells out whole arrays unless the class itself has one
        if "__repr__" not in vars(cls):
            cls.__repr__ = Result.__repr__

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, as JSON knows them.

        Returns:
            Name to a finite number, text, None, or lists and dictionaries of them. None is what
            does not exist or is infinite; where a result has ``not_computable``, it says why.
        """
        return finite(plain(self._values()))

    def rows(self) -> list[dict[str, Any]]:
        """Its table: a row for each place along its first axis, or one row of its plain values.

        Returns:
            Flat dictionaries with the same keys; those of nested values are joined by dots.
        """
        for names in self._axes.values():
            columns = {name: plain(getattr(self, name)) for name in names.split()}
            lines = zip(*columns.values(), strict=True)
            return [dict(zip(columns, line, strict=True)) for line in lines]
        return [flat(self.to_dict())]

    def to_pandas(self) -> Any:
        """Its table for pandas.

        Returns:
            A ``pandas.DataFrame`` of :meth:`rows`.

        Raises:
            DataError: If pandas is not installed.
        """
        return library("pandas", "rows()").DataFrame(self.rows())

    def to_xarray(self) -> Any:
        """Its arrays with the names of their axes; other values are attributes.

        Axes without a name of their own are ``NAME 0``, ``NAME 1``, ... of the array.

        Returns:
            An ``xarray.Dataset``.

        Raises:
            DataError: If xarray is not installed.
        """
        arrays = {
            name: (tuple(axes.split()), as_numpy(getattr(self, name)))
            for axes, names in self._axes.items()
            for name in names.split()
        }
        for name, value in self._values().items():
            if name not in arrays and getattr(value, "ndim", 0):
                axes = tuple(f"{name} {number}" for number in range(value.ndim))
                arrays[name] = axes, as_numpy(value)
        others = flat({k: v for k, v in self.to_dict().items() if k not in arrays})
        return library("xarray", "to_dict()").Dataset(arrays, attrs=others)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write it to a file, completely or not at all.

        Args:
            path: ``.json`` for the plain values (NaN and infinity become null), ``.csv`` or ``.md``
                for the table, ``.h5`` or ``.hdf5`` for all of it, which ``hessrmt.load`` gives
                back.
            overwrite: Whether to replace a file of that name.

        Raises:
            DataError: If the name has another ending.
            StoreError: If there is a file of that name, it cannot be written, or another process is
                writing it.
        """
        path = Path(path)
        if (ending := path.suffix.lower()) not in _WRITTEN:
            raise DataError(f"{path} must end in one of {', '.join(sorted(_WRITTEN))}")
        if path.is_dir() or (path.exists() and not overwrite):
            what = "is a folder" if path.is_dir() else "exists; overwrite=True replaces it"
            raise StoreError(f"{path} {what}")
        if ending == ".json":
            write_whole(path, to_json(self.to_dict(), indent=1) + "\n", replace=overwrite)
        elif ending == ".csv":
            write_whole(path, to_csv(self.rows()), replace=overwrite)
        elif ending == ".md":
            rows = self.rows()
            lines = ([_cell(value) for value in row.values()] for row in rows)
            write_whole(path, to_markdown(list(rows[0]) if rows else [], lines), replace=overwrite)
        else:
            writer = import_module(self._writer or "hessrmt.store.results")
            writer.save(self, path, overwrite=overwrite)

    def plot(self, *arguments: Any, ax: Any = None, **options: Any) -> Any:
        """Draw it.

        Args:
            *arguments: What the drawing function of ``hessrmt.plots`` takes beside the result.
            ax: matplotlib axes to draw into; None for a new picture.
            **options: Likewise.

        Returns:
            The matplotlib figure, with ``ax`` the one that these axes are in: a notebook shows it,
            and ``figure.savefig`` writes it.
        """
        module, function = (self._picture or "results.columns").split(".")
        drawn = getattr(import_module(f"hessrmt.plots.{module}"), function)
        return drawn(self, *arguments, ax=ax, **options)

    def shown(self) -> dict[str, str]:
        """What its short text and its table in a notebook say.

        Returns:
            Name to value, in words.
        """
        found = {name: _short(value) for name, value in self._values().items()}
        return {name: text for name, text in found.items() if text}

    def caption(self) -> str:
        """What stands above its table in a notebook."""
        return type(self).__name__

    def __repr__(self) -> str:
        parts = [f"{name}={value}" for name, value in self.shown().items()]
        more = ["..."] * (len(parts) > _SHOWN)
        return f"{type(self).__name__}({', '.join([*parts[:_SHOWN], *more])})"

    def _repr_html_(self) -> str:
        return html_table([[name, value] for name, value in self.shown().items()], self.caption())

    def _values(self) -> dict[str, Any]:
        names = [*(fields_of(self) or ()), *self._derived.split()]
        return {name: getattr(self, name) for name in names if name not in self._omitted.split()}


def plain(value: Any) -> Any:
    """A value as what JSON knows; NaN and infinity stay.

    Returns:
        Dictionaries, lists, texts, numbers, truth values and None.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Result):
        return value.to_dict()
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    items = fields_of(value)
    if items is not None:
        return {str(key): plain(item) for key, item in items.items()}
    return [plain(item) for item in value] if isinstance(value, Iterable) else str(value)


def fields_of(value: Any) -> Mapping[Any, Any] | None:
    """Name to value of a dictionary, a dataclass or a named tuple; None of anything else."""
    if is_dataclass(value):
        return {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Mapping):
        return value
    return value._asdict() if hasattr(value, "_asdict") else None


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: NaN and infinity become null.

    Returns:
        The text.
    """
    return json.dumps(finite(plain(value)), allow_nan=False, indent=indent)


def finite(value: Any) -> Any:
    """A plain value with None in place of NaN and infinity.

    Returns:
        The value.
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values side by side, their names joined by dots.

    Args:
        value: Dictionaries of dictionaries.
        prefix: Of the names.

    Returns:
        Name to value.
    """
    found: dict[str, Any] = {}
    for key, item in value.items():
        nested = isinstance(item, dict)
        found |= flat(item, f"{prefix}{key}.") if nested else {f"{prefix}{key}": item}
    return found


def as_numpy(value: Any) -> np.ndarray:
    """An array, or a tensor wherever it is; numpy has no half precision with a long exponent."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().resolve_conj().resolve_neg()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    return np.asarray(value)


def _cell(value: Any) -> str:
    """A plain value as people read it."""
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else "-"
    return "-" if value is None else str(value)


def _short(value: Any) -> str:
    """A value in a few words; empty for what has none."""
    if value is None or callable(value):
        return ""
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
    if hasattr(value, "shape"):
        size = " × ".join(f"{length:,}" for length in value.shape)
        numbers = as_numpy(value).ravel()
        known = numbers[np.isfinite(numbers)] if numbers.dtype.kind in "fiu" else []
        text = f"{size} {'value' if numbers.size == 1 else 'values'}" + (
            f", {min(known):.3g} to {max(known):.3g}" if len(known) else ""
        )
    elif isinstance(value, Mapping | list | tuple) and not hasattr(value, "_asdict"):
        text = counted(len(value), "item", "items") if value else ""
    else:
        text = type(value).__name__
    return text


def library(name: str, otherwise: str) -> Any:
    """A package that may be missing.

    Args:
        name: Of the package.
        otherwise: What does without it.

    Returns:
        The package.

    Raises:
        DataError: If it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise DataError(f"{name} is not installed; install it, or take {otherwise}") from error
