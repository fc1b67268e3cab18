"""Results of :mod:`hessrmt.curvature.density` to density files and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.curvature.density import PLAIN, DensityResult
from hessrmt.curvature.lanczos import EdgeLevels
from hessrmt.curvature.stochastic import Quadrature, Traces
from hessrmt.errors import StoreError
from hessrmt.files import reason
from hessrmt.store.density import SCHEMA, VERSION, Content, read
from hessrmt.store.files import DAMAGE, attributes_of, provenance_of, text

if TYPE_CHECKING:
    from pathlib import Path


_ARRAYS = ("values", "residuals")


def content(result: DensityResult, identity: Mapping[str, Any]) -> Content:
    """A result as what a file holds.

    Args:
        result: Complete or not.
        identity: Plain values that a resumed run must share.

    Returns:
        Attributes and arrays.
    """
    source = result.provenance
    attributes: dict[str, Any] = {
        **attributes_of(SCHEMA, VERSION, source, identity),
        "seed": source.config.get("seed", 0),
        "checkpoint_sha256": identity.get("checkpoint_sha256", ""),
        **{name: getattr(result, name) for name in PLAIN},
    }
    done, steps = result.quadrature.nodes.shape
    arrays = {
        "nodes": np.full((result.planned, steps), np.nan),
        "weights": np.zeros((result.planned, steps)),
        "done": (np.arange(result.planned) < done).astype(np.uint8),
    }
    arrays["nodes"][:done] = result.quadrature.nodes
    arrays["weights"][:done] = result.quadrature.weights
    if result.edges is not None:
        for item in dataclasses.fields(EdgeLevels):
            value = getattr(result.edges, item.name)
            target = arrays if item.name in _ARRAYS else attributes
            target[f"edges/{item.name}"] = value
    if result.traces is not None:
        for item in dataclasses.fields(Traces):
            attributes[f"traces/{item.name}"] = getattr(result.traces, item.name)
    return Content(attributes, arrays)


def load_density(path: str | Path) -> DensityResult:
    """The result in a density file, as far as it is complete.

    Args:
        path: A file written by ``hessrmt density``.

    Returns:
        Its quadratures, edge levels and traces.

    Raises:
        StoreError: If the file is missing, damaged, foreign or of a newer schema.
    """
    found = read(path)
    try:
        return _result(found)
    except DAMAGE as error:
        raise StoreError(f"{path} is damaged: {reason(error)}") from error


def stored_identity(path: str | Path) -> dict[str, Any]:
    """What a run that continues a file must share with it.

    Args:
        path: The file.

    Returns:
        Plain values.

    Raises:
        StoreError: If the file cannot be read.
    """
    try:
        return json.loads(text(read(path).attributes["identity"]))
    except DAMAGE as error:
        raise StoreError(f"{path} cannot be continued: {reason(error)}") from error


def _result(found: Content) -> DensityResult:
    attributes, arrays = found
    done = int(arrays["done"].sum())
    plain = {name: _plain(attributes[name]) for name in PLAIN}
    edges = traced = None
    if "edges/values" in arrays:
        values: dict[str, Any] = {
            item.name: arrays[f"edges/{item.name}"]
            if item.name in _ARRAYS
            else _plain(attributes[f"edges/{item.name}"])
            for item in dataclasses.fields(EdgeLevels)
        }
        edges = EdgeLevels(**values)
    if "traces/method" in attributes:
        traced = Traces(
            **{
                item.name: _plain(attributes[f"traces/{item.name}"])
                for item in dataclasses.fields(Traces)
            }
        )
    return DensityResult(
        quadrature=Quadrature(
            arrays["nodes"][:done], arrays["weights"][:done], int(plain["dimension"])
        ),
        planned=len(arrays["done"]),
        edges=edges,
        traces=traced,
        provenance=provenance_of(attributes),
        **plain,
    )


def _plain(value: Any) -> Any:
    """An attribute as Python's own number or text."""
    if isinstance(value, bytes | str):
        return text(value)
    return value.item() if hasattr(value, "item") else value
