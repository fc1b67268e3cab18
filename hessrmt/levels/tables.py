"""Eigenvalues in tables: of pandas, polars or xarray, to arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np

from hessrmt.errors import DataError
from hessrmt.records import Spectrum

_EIGENVALUES = ("hessian_evals", "eigenvalues", "eigenvalue", "levels", "level")
"""Names of variables of a data set, and of columns, that hold eigenvalues."""

_LEVELS = ("level", "levels", "index", "eigenvalue", "eigenvalues")
"""Names of the axis along one spectrum."""


def from_table(given: Any) -> Any:
    """Eigenvalues of a table of pandas, polars or xarray, or of a mapping, as arrays.

    Args:
        given: A table, with a row for each spectrum; a series, of numbers for one spectrum, of
            arrays or with an index of two levels for several; a mapping of arrays; or anything
            else.

    Returns:
        An array or a list of them (or of spectra, where noise floors are known); anything else as
        it is.

    Raises:
        DataError: If a table holds other columns than eigenvalues, spectra in columns, or masked
            values.
    """
    kinds: dict[str, Callable[[Any], Any]] = {
        "data_vars": _of_dataset,
        "to_dataset": _of_array,
        "columns": _of_frame,
        "to_numpy": _of_series,
    }
    if isinstance(given, np.ndarray):
        return _of_numpy(given)
    if isinstance(given, Spectrum | str | bytes):
        return given
    for attribute, read in kinds.items():  # pandas, polars and xarray need not be installed
        if hasattr(given, attribute):
            return read(given)
    return list(given.values()) if isinstance(given, Mapping) else given


def _of_numpy(array: np.ndarray) -> Any:
    if np.ma.is_masked(array):
        raise DataError("masked eigenvalues can't be used; give a list of arrays without them")
    return list(array) if array.dtype == object and array.ndim == 1 else np.asarray(array)


def _of_array(array: Any) -> Any:
    levels = [axis for axis, name in enumerate(array.dims) if str(name) in _LEVELS]
    values = np.asarray(array.to_numpy())
    return values.T if values.ndim == 2 and levels == [0] else values


def _of_dataset(dataset: Any) -> Any:
    names = [name for name in dataset.data_vars if str(name) in _EIGENVALUES]
    names = names or (list(dataset.data_vars) if len(dataset.data_vars) == 1 else [])
    if len(names) != 1:
        wanted, found = " or ".join(_EIGENVALUES), ", ".join(map(str, dataset.data_vars))
        raise DataError(f"the dataset has the variables {found or 'none'}; expected {wanted}")
    rows = _of_array(dataset[names[0]])
    floors = dataset.get("noise_floor", dataset.attrs.get("noise_floor"))
    if floors is None:
        return rows
    rows, floors = np.atleast_2d(rows), np.atleast_1d(np.asarray(floors, dtype=np.float64))
    if len(floors) != len(rows):
        raise DataError(f"{len(rows)} spectra with {len(floors)} noise floors; give one for each")
    size = rows.shape[1]
    return [
        Spectrum(row, float(floor), size, size) for row, floor in zip(rows, floors, strict=True)
    ]


def _of_frame(frame: Any) -> Any:
    columns = [str(name) for name in frame.columns]
    values = frame.to_numpy()
    if values.dtype == object and all(isinstance(x, Real) for x in values.ravel()):
        values = values.astype(np.float64)  # of pandas' own types for numbers
    if values.dtype.kind not in "fiu":
        raise DataError(
            f"a table with the columns {', '.join(columns[:6])} holds other things than numbers; "
            "give one of eigenvalues alone, a row for each spectrum"
        )
    if len(columns) == 1:
        return values[:, 0]
    named = [name for name in columns if not any(map(str.isdigit, name))]
    if len(named) == 1 and len(columns) > 3:
        raise DataError(
            f"the column {named[0]} of the table looks like a label beside eigenvalues; leave it "
            f"out: table.drop(columns={named[0]!r})"
        )
    if named:
        of = next((name for name in _EIGENVALUES if name in named), named[-1])
        by = next(name for name in columns if name != of)
        more = ", ..." if len(columns) > 6 else ""
        raise DataError(
            f"a table with the columns {', '.join(columns[:6])}{more} seems to have a row for each "
            f"eigenvalue; give a list of the spectra, e.g. [group[{of!r}] for _, group in "
            f"table.groupby({by!r})]"
        )
    ordered = [bool((np.diff(values, axis=axis) >= 0).all()) for axis in (0, 1)]
    if ordered == [True, False] and len(values) > 2:
        raise DataError(
            "the columns of the table ascend and its rows do not, as if each column were a "
            "spectrum; give its transpose (table.T), with a row for each"
        )
    return values


def _of_series(series: Any) -> Any:
    index, values = getattr(series, "index", None), series.to_numpy()
    if getattr(index, "nlevels", 1) == 2:
        groups = series.groupby(level=0, sort=False)
        return [group.to_numpy() for _, group in groups]
    if not getattr(index, "is_unique", True):
        raise DataError(
            "the index of the series has entries that repeat, as if several spectra stood below "
            "each other; give it an index of two levels (spectrum, eigenvalue), a list of the "
            "spectra, or series.to_numpy() if it is one"
        )
    return list(values) if values.dtype == object else values
