"""Density, extremal eigenvalues and traces of a matrix that is never formed, and their file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.backend.select import select
from hessrmt.checks import one_of, require_whole
from hessrmt.curvature.dense import Device, Dtype, dtype_name, gib, usable_memory
from hessrmt.curvature.differences import DIFFERENTIATION, inexact_first
from hessrmt.curvature.foreign import as_operator
from hessrmt.curvature.lanczos import (
    EdgeLevels,
    check_request,
    extremal_eigenvalues,
    plan_width,
    window_eigenvalues,
)
from hessrmt.curvature.linear import Operator
from hessrmt.curvature.operators import CurvatureOperator
from hessrmt.curvature.rounding import round_off
from hessrmt.curvature.stochastic import LAWS, Quadrature, Traces, check_products, extended, traces
from hessrmt.curvature.windows import Window, check_window, vectors_that_fit
from hessrmt.errors import ConfigError, DataError, DeviceError, StoreError
from hessrmt.files import reason
from hessrmt.problems.differentiation import ordinary_mode
from hessrmt.problems.problem import Problem
from hessrmt.progress import Tick, silent
from hessrmt.records import Provenance, Spectra, Spectrum, from_python
from hessrmt.results import Result, finite, plain
from hessrmt.store.density import SCHEMA, VERSION, Content, DensityWriter, read
from hessrmt.store.files import DAMAGE, attributes_of, provenance_of
from hessrmt.store.hdf5 import text

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = (
    "dimension",
    "samples",
    "loss",
    "gradient_norm",
    "operator",
    "dtype",
    "check",
    "products_by",
    "product_error",
)
"""Numbers and words of a result."""

_LATER = ("products_by", "product_error")
"""Those that older files lack."""

_PARTS = {"edges": EdgeLevels, "traces": Traces}
"""Parts of a result that need not be there."""

_TOGETHER = 8
"""Probes that share passes over data which are read anew for every product, if memory allows."""


@dataclass(frozen=True)
class DensityPlan:
    """What is to be computed.

    Attributes:
        probes: Random vectors of the quadrature.
        steps: Lanczos steps from each.
        law: ``"rademacher"`` or ``"gaussian"``.
        top: Largest eigenvalues.
        bottom: Smallest eigenvalues.
        largest: Eigenvalues of largest magnitude instead.
        window: All eigenvalues between two bounds instead, as of ``hessrmt.eigsh``.
        failure_probability: That the window's completeness may fail with.
        tolerance: Largest residual of a level over ‖H‖₂.
        check_multiplicity: Search for further copies of multiple eigenvalues.
        trace: ``"hutch++"`` or ``"xtrace"``; None for no trace.
        trace_products: Products for it.
        seed: Of all random vectors.
    """

    probes: int = 10
    steps: int = 100
    law: str = "rademacher"
    top: int = 0
    bottom: int = 0
    largest: int = 0
    window: tuple[float | None, float | None] | None = None
    failure_probability: float = 1e-6
    tolerance: float = 1e-10
    check_multiplicity: bool = True
    trace: str | None = None
    trace_products: int = 60
    seed: int = 0

    @property
    def levels(self) -> int:
        """Extremal eigenvalues that are asked for, those of a window not counted."""
        return self.top + self.bottom + self.largest

    def products(self, size: int) -> int:
        """Products that it takes at least, with a matrix of that size.

        Returns:
            A number that depends on the plan alone, whatever of it has been done.
        """
        traced = self.trace_products if self.trace else 0
        return self.probes * min(self.steps, size) + traced + 2 * self.levels


@dataclass(frozen=True)
class DensityResult(
    Result, picture="certification.lanczos_density", writer="hessrmt.curvature.density"
):
    """The density of a spectrum, and what is known of its ends.

    Attributes:
        quadrature: Gauss quadratures, one for each probe that is done.
        planned: Probes that the run was to do.
        dimension: P, the number of trainable parameters.
        samples: N, samples that the loss is a mean over; 0 for a matrix of no loss.
        loss: Mean loss.
        gradient_norm: Euclidean norm of its gradient.
        operator: ``"hessian"``, ``"ggn"`` or ``"fisher"``; ``"matrix"`` for any other.
        dtype: Precision.
        edges: Extremal eigenvalues; None if not asked for or not done.
        traces: tr H and ‖H‖_F; None if not asked for or not done.
        check: ‖Hv - H'v‖/‖H‖₂ for a random v and another way of differentiating, or half the step
            of finite differences. It may lie below the machine precision: most random v are
            stretched far less than by ‖H‖₂.
        products_by: ``"differentiation"``; or ``"finite-difference"``: then no product is exact.
        product_error: Bound e on the error of each product with a unit vector. The quadrature of m
            steps is that of a symmetric matrix which lies within 2 √m e of H in the 2-norm.
        provenance: Where it came from.
    """

    quadrature: Quadrature
    planned: int
    dimension: int
    samples: int
    loss: float
    gradient_norm: float
    operator: str
    dtype: str
    edges: EdgeLevels | None = None
    traces: Traces | None = None
    check: float = float("nan")
    products_by: str = DIFFERENTIATION
    product_error: float = float("nan")
    provenance: Provenance = field(default_factory=Provenance)

    def shown(self) -> dict[str, str]:
        """What its short text says."""
        return inexact_first(super().shown())

    def spectra(self) -> Spectra:
        """The resolved extremal eigenvalues as spectra for :mod:`hessrmt.levels`.

        Every stretch of resolved neighbours is a spectrum of its own, and so is the complete part
        of a window. Its noise floor is twice the largest bound: a spacing above it is certain.

        Returns:
            One spectrum for each stretch of three or more levels.

        Raises:
            DataError: If there is none.
        """
        runs = () if self.edges is None else self.edges.runs()
        window = None if self.edges is None else self.edges.window
        if self.edges is not None and window is not None and not runs:
            known = int(np.count_nonzero(window.reaches(self.edges.values)))
            raise DataError(
                f"statistics need three neighbouring levels, and the window's complete part holds "
                f"{known}; take a wider window"
            )
        if self.edges is None or not runs:
            raise DataError(
                "there are no three resolved neighbouring levels; ask for extremal eigenvalues "
                "(--top K), or for all of a window (--window LOW:HIGH)"
            )
        names = ("dimension", "loss", "gradient_norm", "operator", "dtype", "provenance")
        shared: dict[str, Any] = {name: getattr(self, name) for name in names} | {
            "noise_floor": self.edges.certain_spacing,
            "solver": "thick-restart Lanczos",
            "check": self.edges.check,
        }
        items = tuple(Spectrum(run, reduced_dimension=len(run), **shared) for run in runs)
        nobody = np.zeros((len(items), 0), dtype=np.int64)
        return Spectra(items, nobody, planned=len(items), provenance=self.provenance)

    @property
    def window_count(self) -> tuple[float, float] | None:
        """Between which numbers the quadratures count the eigenvalues of the window.

        An estimate that has nothing to do with the search. What of a probe's spectral measure lies
        in an interval differs from the sum of weights there by those of the nodes beside its bounds
        (Chebyshev, Markov and Stieltjes: Szegő 1975, §3.41). The ends are those of the mean over
        the probes, two standard errors further apart on either side; of one probe the variance is
        taken for its largest value, twice the count.
        """
        window = None if self.edges is None else self.edges.window
        if window is None:
            return None
        size, probes = self.dimension, len(self.quadrature)
        counts = np.array([self._measure(probe, window) for probe in range(probes)]) * size
        mean, spread = counts.mean(axis=0), np.sqrt(2 * counts[0])
        if probes > 1:
            spread = counts.std(axis=0, ddof=1) / probes**0.5
        low, high = np.clip(mean + 2 * spread * [-1, 1], 0, size)
        return float(low), float(high)

    def _measure(self, probe: int, window: Window) -> tuple[float, float]:
        """Bounds on a probe's spectral measure of the window."""
        known = ~np.isnan(self.quadrature.nodes[probe])
        nodes, weights = self.quadrature.nodes[probe][known], self.quadrature.weights[probe][known]
        inside = (nodes >= window.low) & (nodes <= window.high)
        total = float(weights[inside].sum())
        if not known.all() or len(nodes) == self.dimension:  # an invariant space: no error
            return total, total
        first, last = (
            np.searchsorted(nodes, window.low),
            np.searchsorted(nodes, window.high, "right"),
        )
        # a measure between two nodes differs by the weights at both, so one more node at each bound
        wide = slice(max(0, first - 1), last + 1)
        narrow = slice(first + (window.low > -np.inf), max(0, last - (window.high < np.inf)))
        return float(weights[narrow].sum()), float(weights[wide].sum())

    @property
    def not_computable(self) -> dict[str, str]:
        """Quantity that is NaN to the reason."""
        why = "the matrix belongs to no loss: it is known by its products alone"
        unknown = ("loss", "gradient_norm", "check") if self.operator == "matrix" else ()
        return dict.fromkeys(unknown, why)

    def to_dict(self) -> dict[str, Any]:
        """Its numbers as plain values, e.g. for JSON.

        Returns:
            Name to value; nodes and weights are left to the file.
        """
        moments, errors = self.quadrature.moments()
        low, high = self.quadrature.range
        numbers = {
            **{name: getattr(self, name) for name in PLAIN},
            "probes": len(self.quadrature),
            "probes_planned": self.planned,
            "steps": self.quadrature.nodes.shape[1],
            "moments": moments.tolist(),
            "moments_error": errors.tolist(),
            "node_min": low,
            "node_max": high,
            **{name: getattr(self, name) for name in (*_PARTS, "window_count", "not_computable")},
        }
        return finite(plain(numbers))


@ordinary_mode()
def density(
    problem: Any,
    probes: int = 10,
    steps: int = 100,
    *,
    operator: str = "hessian",
    device: Device = "auto",
    dtype: Dtype = "float64",
    batch: int | None = None,
    products: str = DIFFERENTIATION,
    tick: Tick | None = None,
    **options: Any,
) -> DensityResult:
    """The spectral density of a network's curvature by stochastic Lanczos quadrature.

    Args:
        problem: Model, loss and samples; or an operator, which may stream its data from a loader;
            or any other symmetric matrix, as for :func:`~hessrmt.curvature.lanczos.eigsh`.
        probes: Random vectors.
        steps: Lanczos steps from each.
        operator: ``"hessian"`` or ``"ggn"``; like the next four, for a problem.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        dtype: ``"float64"`` or ``"float32"``.
        batch: Samples differentiated at a time; all if None.
        products: ``"differentiation"`` or ``"finite-difference"``.
        tick: Told of progress: phase, steps done, steps in all.
        options: Further fields of :class:`DensityPlan`, e.g. ``top=50``, ``trace="hutch++"``.

    Returns:
        Density, and extremal eigenvalues and traces if asked for. Raises TypeError for an unknown
        option, ConfigError for what is no matrix, ProblemError for one that is not symmetric.
    """
    plan, matrix = DensityPlan(probes, steps, **options), problem
    if isinstance(problem, Problem):
        how: dict[str, Any] = {"batch": batch, "device": device, "dtype": dtype}
        matrix = CurvatureOperator.of(problem, operator, products=products, **how)
    matrix = as_operator(matrix)
    source = problem if isinstance(problem, Problem) else matrix
    config = plain(asdict(plan)) | from_python("hessrmt.density", source)
    provenance = Provenance(config, _backend_of(matrix).name)
    return complete(matrix, plan, tick=tick, provenance=provenance)


@ordinary_mode()
def complete(
    operator: Operator,
    plan: DensityPlan,
    found: DensityResult | None = None,
    *,
    save: Callable[[DensityResult], None] | None = None,
    tick: Tick | None = None,
    provenance: Provenance | None = None,
) -> DensityResult:
    """Do what of a plan has not been done.

    Args:
        operator: H.
        plan: What to compute.
        found: What an earlier run with the same plan has done.
        save: Called whenever a probe, the trace or the extremal eigenvalues are complete.
        tick: Told of progress.
        provenance: Stored in a new result.

    Returns:
        The complete result.
    """
    together = _plan(operator, plan)
    result = found or DensityResult(
        quadrature=Quadrature.none(plan.steps, operator.dimension),
        planned=plan.probes,
        dimension=operator.dimension,
        **_about(operator),
        products_by=operator.products_by,
        provenance=provenance or Provenance(device=_backend_of(operator).name),
    )

    def keep(**parts: Any) -> None:
        nonlocal result
        result = replace(result, **parts)
        if save:
            save(result)

    operator.expect(plan.products(operator.dimension))
    common: dict[str, Any] = {"seed": plan.seed, "tick": tick or silent}
    before = result.quadrature
    for now in extended(operator, before, plan.probes, law=plan.law, together=together, **common):
        check, error = result.check, result.product_error
        norm = max(map(abs, now.range))
        if not isinstance(operator, CurvatureOperator):
            error = max(operator.product_error, round_off(norm, now.dimension, operator.dtype))
        elif np.isnan(check):
            error = operator.rounding()
            check = operator.agreement(norm, rounding=error)
            if operator.products_by != DIFFERENTIATION:
                error += check * norm  # of rounding and of truncation
        keep(quadrature=now, check=check, product_error=error)
    if plan.trace and result.traces is None:
        keep(traces=traces(operator, plan.trace_products, plan.trace, **common))
    if plan.window is not None and result.edges is None:
        how = {name: getattr(plan, name) for name in ("tolerance", "failure_probability")}
        keep(edges=window_eigenvalues(operator, plan.window, **how, **common))
    if plan.levels and result.edges is None:
        how = {name: getattr(plan, name) for name in ("tolerance", "check_multiplicity")}
        ends = (plan.top, plan.bottom, plan.largest)
        keep(edges=extremal_eigenvalues(operator, *ends, **how, **common))
    return result


def _about(operator: Operator) -> dict[str, Any]:
    """What is known of a matrix beside its products; of one that belongs to no loss, no samples."""
    if isinstance(operator, CurvatureOperator):
        names = ("samples", "loss", "gradient_norm")
        known = {name: getattr(operator, name) for name in names}
        return known | {"operator": operator.kind, "dtype": operator.precision}
    unknown = float("nan")
    about = {"operator": "matrix", "dtype": dtype_name(operator.dtype)}
    return {"samples": 0, "loss": unknown, "gradient_norm": unknown, **about}


def _backend_of(operator: Operator) -> Any:
    return getattr(operator, "backend", None) or select(operator.device)


def _plan(operator: Operator, plan: DensityPlan) -> int:
    """Probes that go together; refuses what cannot be done before anything is."""
    require_whole(probes=plan.probes, steps=plan.steps)
    one_of("law of probes", plan.law, LAWS, error=ConfigError)
    if plan.window is not None:
        check_window(plan.window, plan.failure_probability)
        vectors_that_fit(operator)
        if plan.levels:
            raise ConfigError(
                "a window takes all its eigenvalues; leave out top, bottom and largest"
            )
    if plan.levels:
        check_request(operator, plan.top, plan.bottom, plan.largest, plan.tolerance)
        plan_width(operator, plan.levels)
    if plan.trace:
        check_products(plan.trace, plan.trace_products)
    each = operator.dimension * operator.dtype.itemsize * (min(plan.steps, operator.dimension) + 4)
    usable = usable_memory(_backend_of(operator))
    if each > usable:
        raise DeviceError(
            f"{plan.steps:,} Lanczos vectors of {operator.dimension:,} numbers take {gib(each)} "
            f"and there are {gib(usable)}; take fewer steps"
        )
    # nothing is shared then
    if not isinstance(operator, CurvatureOperator) or operator.kept == operator.parts:
        return 1
    return max(1, min(_TOGETHER, plan.probes, usable // 2 // each))


def content(result: DensityResult, identity: Mapping[str, Any]) -> Content:
    """A result as what a file holds.

    Args:
        result: Complete or not.
        identity: Plain values that a resumed run must share.

    Returns:
        Attributes and arrays.
    """
    source, quadrature = result.provenance, result.quadrature
    attributes: dict[str, Any] = {
        **attributes_of(SCHEMA, VERSION, source, identity),
        "seed": source.config.get("seed", 0),
        "checkpoint_sha256": identity.get("checkpoint_sha256", ""),
        **{name: getattr(result, name) for name in PLAIN},
    }
    missing = ((0, result.planned - len(quadrature)), (0, 0))
    arrays = {
        "nodes": np.pad(quadrature.nodes, missing, constant_values=np.nan),
        "weights": np.pad(quadrature.weights, missing),
        "done": (np.arange(result.planned) < len(quadrature)).astype(np.uint8),
    }
    for name in _PARTS:
        part = getattr(result, name)
        found = {} if part is None else asdict(part)
        window = found.pop("window", None) or {}
        found |= {f"window/{key}": value for key, value in window.items()}
        for key, value in found.items():
            target = arrays if isinstance(value, np.ndarray) else attributes
            target[f"{name}/{key}"] = value
    return Content(attributes, arrays)


def save(result: DensityResult, path: Path, *, overwrite: bool = False) -> None:
    """Write a density that was computed in a program as the command would have written it.

    Args:
        result: The density.
        path: The file.
        overwrite: Whether to replace a file of that name.
    """
    with DensityWriter(path, overwrite=overwrite) as file:
        file.write(content(result, {}))


def load_density(path: str | Path) -> DensityResult:
    """The result in a density file, as far as it is complete.

    Args:
        path: A file written by ``hessrmt density``.

    Returns:
        Its quadratures, extremal eigenvalues and traces.

    Raises:
        StoreError: If the file is missing, damaged, foreign or of a newer schema.
    """
    attributes, arrays = read(path)
    try:
        values: dict[str, Any] = {name: _plain(value) for name, value in attributes.items()}
        values |= arrays
        done, dimension = arrays["done"] > 0, values["dimension"]
        if "edges/window/low" in values:
            values["edges/window"] = _part(Window, "edges/window", values)
        parts = {
            name: _part(kind, name, values)
            for name, kind in _PARTS.items()
            if any(key.startswith(f"{name}/") for key in values)
        }
        return DensityResult(
            quadrature=Quadrature(arrays["nodes"][done], arrays["weights"][done], dimension),
            planned=len(done),
            provenance=provenance_of(attributes),
            **parts,
            **{name: values[name] for name in PLAIN if name in values or name not in _LATER},
        )
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


def _part(kind: type[Any], name: str, values: Mapping[str, Any]) -> Any:
    """A part of a result; older files lack what there was no choice of."""
    stored = {item.name: f"{name}/{item.name}" for item in fields(kind)}
    optional = {item.name for item in fields(kind) if item.default is not MISSING}
    return kind(**{k: values[at] for k, at in stored.items() if k not in optional or at in values})


def _plain(value: Any) -> Any:
    """An attribute as Python's own number or text."""
    if isinstance(value, bytes | str):
        return text(value)
    return value.item() if hasattr(value, "item") else value
