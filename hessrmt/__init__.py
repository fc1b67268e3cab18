"""Exact, certified Hessian spectra of neural networks, compared with random matrix theory.

>>> import hessrmt as hr
>>> problem = hr.Problem(model, "cross-entropy", (x, y))
>>> spectrum = hr.spectrum(problem)

Names are loaded on first use, so that importing the package (as the command line's ``--help``
does) does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hessrmt import capacity as capacity
    from hessrmt import ensembles as ensembles
    from hessrmt import generalization as generalization
    from hessrmt import levels as levels
    from hessrmt import lossmodel as lossmodel
    from hessrmt import theory as theory
    from hessrmt.curvature.dense import hessian as hessian
    from hessrmt.curvature.density import density as density
    from hessrmt.curvature.density import load_density as load_density
    from hessrmt.curvature.gauss_newton import ggn as ggn
    from hessrmt.curvature.lanczos import edge_levels as edge_levels
    from hessrmt.curvature.lanczos import eigsh as eigsh
    from hessrmt.curvature.lanczos import extremal_eigenvalues as extremal_eigenvalues
    from hessrmt.curvature.landscape import Landscape as Landscape
    from hessrmt.curvature.landscape import landscape as landscape
    from hessrmt.curvature.linear import Identity as Identity
    from hessrmt.curvature.linear import Operator as Operator
    from hessrmt.curvature.operators import CurvatureOperator as CurvatureOperator
    from hessrmt.curvature.operators import EmpiricalFisher as EmpiricalFisher
    from hessrmt.curvature.operators import GaussNewton as GaussNewton
    from hessrmt.curvature.operators import Hessian as Hessian
    from hessrmt.curvature.reduction import reduction as reduction
    from hessrmt.curvature.spectrum import spectrum as spectrum
    from hessrmt.problems.batches import shared as shared
    from hessrmt.problems.problem import Problem as Problem
    from hessrmt.records import Provenance as Provenance
    from hessrmt.records import Spectrum as Spectrum
    from hessrmt.runs.stored import load as load
    from hessrmt.runs.tracking import Track as Track
    from hessrmt.runs.tracking import Tracker as Tracker
    from hessrmt.store.history import load_history as load_history

_NAMES = {
    "curvature.density": "density load_density",
    "curvature.dense": "hessian",
    "curvature.landscape": "Landscape landscape",
    "curvature.lanczos": "edge_levels eigsh extremal_eigenvalues",
    "curvature.gauss_newton": "ggn",
    "curvature.linear": "Identity Operator",
    "curvature.operators": "CurvatureOperator EmpiricalFisher GaussNewton Hessian",
    "curvature.reduction": "reduction",
    "curvature.spectrum": "spectrum",
    "problems.batches": "shared",
    "problems.problem": "Problem",
    "records": "Provenance Spectrum",
    "runs.stored": "load",
    "runs.tracking": "Track Tracker",
    "store.history": "load_history",
}
"""Module to the names that are loaded from it when they are first used."""

_HOME = {name: f"hessrmt.{module}" for module, names in _NAMES.items() for name in names.split()}
_PACKAGES = ("capacity", "ensembles", "generalization", "levels", "lossmodel", "theory")

__all__ = [*_HOME, *_PACKAGES]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _PACKAGES:
        value = importlib.import_module(f"hessrmt.{name}")
    elif name == "__version__":
        value = importlib.import_module("importlib.metadata").version("hessrmt")
    else:
        raise AttributeError(f"module 'hessrmt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
