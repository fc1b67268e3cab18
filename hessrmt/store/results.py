"""Any result in an HDF5 file and back: arrays as data sets, all else as one JSON attribute.

Spectra have a layout of their own (:mod:`hessrmt.store.spectra`), which other programs read.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hessrmt.errors import StoreError
from hessrmt.files import reason, write_whole
from hessrmt.records import Provenance, script
from hessrmt.results import Result, as_numpy, fields_of
from hessrmt.store.files import ResumableFile, attributes_of, reading
from hessrmt.store.hdf5 import dataset, hdf5_bytes, put_attributes

if TYPE_CHECKING:
    import h5py

SCHEMA, VERSION = "hessrmt/result", 2

_VALUE = "value"
"""Data set with everything but the arrays, as JSON; attributes hold 64 KiB at most."""


def save(result: Result, path: Path, *, overwrite: bool = False) -> None:
    """Write a result.

    Args:
        result: Any.
        path: The file.
        overwrite: Whether to replace a file of that name.

    Raises:
        StoreError: If there is one that may not be replaced, or that another process is writing.
        WriteError: If the disk refuses.
    """
    with ResumableFile(path):
        write(result, path, overwrite=overwrite)


def write(result: Result, path: Path, *, overwrite: bool = False) -> None:
    """The same for whoever holds the file's lock.

    Args:
        result: Any.
        path: The file.
        overwrite: Whether to replace a file of that name.
    """
    arrays: dict[str, np.ndarray] = {}
    value = json.dumps(_encoded(result, type(result).__name__, arrays))

    def fill(file: h5py.File) -> None:
        source = getattr(result, "provenance", None) or Provenance(script(), "unknown")
        put_attributes(file, attributes_of(SCHEMA, VERSION, source, {}))
        file[_VALUE] = np.bytes_(value.encode())
        for name, array in arrays.items():
            file[name] = array

    write_whole(path, hdf5_bytes(fill), replace=overwrite)


def load(path: str | Path) -> Result:
    """Read a result.

    Args:
        path: A file that ``save`` of a result wrote.

    Returns:
        The same result; functions in it are None.

    Raises:
        StoreError: If the file is missing, damaged, foreign or of a newer schema.
    """
    with reading(path, SCHEMA, VERSION) as file:
        try:
            found = _decoded(json.loads(dataset(file, _VALUE)[()]), file)
        except (AttributeError, ImportError) as error:
            raise StoreError(f"{path} is damaged: {reason(error)}") from error
        if not isinstance(found, Result):
            raise StoreError(f"{path} is damaged: it holds no result")
        return found


def _encoded(value: Any, place: str, arrays: dict[str, np.ndarray]) -> Any:
    """A value for JSON; its arrays are put aside under their places."""
    if value is None or isinstance(value, str | int | float | np.generic):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.ndarray | torch.Tensor):
        tensor = isinstance(value, torch.Tensor)
        arrays[place] = as_numpy(value)
        return {"tensor" if tensor else "array": place}
    if isinstance(value, Path):
        return {"path": str(value)}
    items, owner = fields_of(value), type(value)
    if items is None:  # a fitted law is a function, too, but one with fields
        parts = () if callable(value) else value
        found = [_encoded(part, f"{place}/{i}", arrays) for i, part in enumerate(parts)]
        kind = "list" if isinstance(value, list) else "items"
        return None if callable(value) else {kind: found}
    named = not isinstance(value, Mapping)  # keys may be anything
    places = [f"{place}/{key if named else i}" for i, key in enumerate(items)]
    values = map(_encoded, items.values(), places, itertools.repeat(arrays))
    pairs = [[key, found] for key, found in zip(items, values, strict=True)]
    if not named:
        return {"mapping": pairs}
    return {"class": f"{owner.__module__}:{owner.__qualname__}", "fields": dict(pairs)}


def _decoded(value: Any, file: h5py.File) -> Any:
    if not isinstance(value, dict):
        return value
    (name, content), *_ = value.items()
    if name == "mapping":
        return {key: _decoded(item, file) for key, item in content}
    if name in {"items", "list"}:
        return (list if name == "list" else tuple)(_decoded(item, file) for item in content)
    if name == "path":
        return Path(content)
    if name in {"array", "tensor"}:
        array = np.asarray(dataset(file, content))
        return array if name == "array" else torch.from_numpy(array)
    module, _, kind = content.partition(":")
    if not module.startswith("hessrmt."):
        raise ValueError(f"{content} is no result of hessrmt")
    found: Any = getattr(import_module(module), kind)
    if not (dataclasses.is_dataclass(found) or hasattr(found, "_fields")):
        raise ValueError(f"{content} is no result of hessrmt")
    values = {key: _decoded(item, file) for key, item in value["fields"].items()}
    return found(**values)  # pyright: ignore[reportCallIssue]
