"""Results of a capacity analysis: records of layers and of a network, a series with accuracies."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.capacity.correlation import Correlation, correlate
from hessrmt.capacity.powerlaw import TailFit
from hessrmt.checks import one_of
from hessrmt.errors import DataError
from hessrmt.records import Provenance
from hessrmt.results import Result
from hessrmt.tables import at_most, html_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from jaxtyping import Float64

    from hessrmt.arrays import Levels
    from hessrmt.capacity.powerlaw import Comparison
    from hessrmt.capacity.spectra import MatrixSpectrum

NAN = math.nan

METRICS = ("alpha_hat", "alpha_weighted", "mean_alpha", "mean_log_norm")
"""Numbers of a network that are compared with its accuracy."""

_DERIVED = " ".join(("alpha_hat alpha_hat_log10", *METRICS[1:], "means counts"))

_NORMS = ("log_frobenius", "log_spectral", "stable_rank", "log_stable_rank")
_OF_ALL_WEIGHTS = ("lambda_max", *_NORMS, "entropy", "rank")
"""What a layer has of the spectrum of all its weights together."""

_FITTED = ("log_alpha_norm", "entropy", "soft_rank", "lambda_max", "ks_distance")
_AVERAGED = (
    "alpha",
    "alpha_weighted",
    *_NORMS,
    *_FITTED,
    "distance_frobenius",
    "distance_spectral",
)

_SHOWN = (
    *("name", "kind", "shape", "alpha", "ks_distance", "lambda_max", "log_frobenius"),
    *("stable_rank", "remark"),
)
_MOST_ROWS = 200
"""Of the table in a notebook."""


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _error_of_mean(errors: Sequence[float]) -> float:
    return math.hypot(*errors) / len(errors)


def _over(combine: Callable[[list[Any]], Any], of: str = "", default: Any = NAN) -> Any:
    """A number of a layer: of those of its matrices that are known, by default of the same name."""
    return field(default=default, metadata={"combine": combine, "of": of})


@dataclass(frozen=True)
class MatrixFit(TailFit, Result, omitted="eigenvalues"):
    """What is fitted to one spectrum of a layer, beside :class:`TailFit`. Logarithms are natural.

    Attributes:
        label: Which matrix of the layer, e.g. ``"0,2"`` for a kernel position, ``"q"`` for the
            queries of an attention; empty if the layer has one spectrum.
        p_value: Of the fit, from a bootstrap; NaN where not computed.
        lambda_max: Largest eigenvalue of X = WᵀW/N.
        alpha_log_lambda: α ln λ_max, the matrix's term in α̂.
        alpha_log10_norm: α log10 of weightwatcher's λ_max, the term of ``alpha_weighted``.
        log_alpha_norm: ln Σ λ^α.
        mp_variance: σ² of the Marchenko-Pastur bulk.
        mp_edge: λ₊, where the bulk ends.
        mp_distance: Kolmogorov-Smirnov distance of the bulk to its law.
        spikes: Eigenvalues above the bulk's edge and its fluctuations; None without a bulk.
        soft_rank: λ₊/λ_max.
        traps: Spikes that stay when the entries are permuted; None where not computed, or without a
            bulk then.
        random_lambda_max: Largest eigenvalue with the entries permuted; NaN where not computed.
        comparisons: Alternative to the comparison with it.
        fit_failed: Why there is no power law, else None.
        mp_failed: Why there is no bulk, else None.
        eigenvalues: (n,) of X, ascending; exactly zero below the noise floor.
    """

    label: str
    p_value: float
    lambda_max: float
    alpha_log_lambda: float
    alpha_log10_norm: float
    log_alpha_norm: float
    mp_variance: float
    mp_edge: float
    mp_distance: float
    spikes: int | None
    soft_rank: float
    traps: int | None
    random_lambda_max: float
    comparisons: Mapping[str, Comparison]
    fit_failed: str | None
    mp_failed: str | None
    eigenvalues: Levels

    def to_dict(self) -> dict[str, Any]:
        """All but the eigenvalues, as plain values."""
        found = super().to_dict()
        for item in found["comparisons"].values():
            del item["against"]
        return found


@dataclass(frozen=True)
class Layer(Result, picture="capacity.layer_density"):
    """One tensor of a network. Logarithms are natural unless the name says otherwise.

    Norms, ranks and entropy are those of all weights together: of the direct sum, where a layer is
    analysed as several matrices (the k² slices of a convolution). What is fitted is fitted to each
    matrix; the layer has the mean over the matrices whose fit succeeded, unless said otherwise
    below, and ``matrices`` the single values. Every number of a skipped layer is NaN or 0.

    Attributes:
        name: In the network's state dict.
        kind: Linear, Conv2d, Embedding and so on.
        shape: Of the stored tensor.
        alpha: Power-law exponent of the tail of the spectrum.
        x_min: Where the tail begins, in units of λ.
        ks_distance: Kolmogorov-Smirnov distance of the tail to the law.
        sigma: Standard error of ``alpha``: √(Σσ_i²)/k for k matrices.
        n_tail: Eigenvalues in the tails, of all matrices.
        p_value: Of the fit, from a bootstrap; NaN where not computed.
        lambda_max: Largest eigenvalue of X = WᵀW/N, of all matrices.
        log_frobenius: ln ‖W‖_F.
        log_spectral: ln ‖W‖₂.
        stable_rank: ‖W‖_F²/‖W‖₂².
        log_stable_rank: ln ‖W‖_F²/ln λ_max, Martin and Mahoney 2019, eq. (6).
        log_alpha_norm: ln Σ λ^α, summed over the matrices.
        entropy: -Σ p ln p/ln R of p = λ/Σλ; between 0 and 1.
        skipped: Why the tensor was not analysed, else None.
        dtype: Of the stored tensor.
        inferred: Whether ``kind`` was inferred from name and shape, for lack of modules.
        alpha_hat: The layer's term in α̂: α ln λ_max, summed over the matrices.
        alpha_weighted: α log10 of weightwatcher's λ_max, which has no 1/N.
        rank: Eigenvalues above the noise floor.
        mp_variance: σ² of the Marchenko-Pastur bulk.
        mp_edge: λ₊, where the bulk ends.
        spikes: Eigenvalues above the bulk, of all matrices that have one; None if none has.
        soft_rank: λ₊/λ_max.
        traps: Spikes that stay when the entries are permuted, of all matrices; None where not
            computed, or without a bulk then.
        distance_frobenius: ‖W - W₀‖_F/‖W₀‖_F, W₀ the initial weights; NaN where none were given.
        distance_spectral: ‖W - W₀‖₂/‖W₀‖₂.
        n_matrices: Spectra of the layer.
        n_failed: Those without a power law.
        fit_failed: The reason, or the most frequent one, else None.
        matrices: One entry for each spectrum.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    alpha: float = _over(fmean)
    x_min: float = _over(fmean)
    ks_distance: float = _over(fmean)
    sigma: float = _over(_error_of_mean)
    n_tail: int = _over(sum, default=0)
    p_value: float = _over(fmean)
    lambda_max: float = NAN
    log_frobenius: float = NAN
    log_spectral: float = NAN
    stable_rank: float = NAN
    log_stable_rank: float = NAN
    log_alpha_norm: float = _over(math.fsum)
    entropy: float = NAN
    skipped: str | None = None
    dtype: str = ""
    inferred: bool = False
    alpha_hat: float = _over(math.fsum, "alpha_log_lambda")
    alpha_weighted: float = _over(fmean, "alpha_log10_norm")
    rank: int = 0
    mp_variance: float = _over(fmean)
    mp_edge: float = _over(fmean)
    spikes: int | None = _over(sum, default=None)
    soft_rank: float = _over(fmean)
    traps: int | None = _over(sum, default=None)
    distance_frobenius: float = NAN
    distance_spectral: float = NAN
    n_matrices: int = 0
    n_failed: int = 0
    fit_failed: str | None = None
    matrices: tuple[MatrixFit, ...] = ()

    def with_fits(self, matrices: Sequence[MatrixFit], whole: MatrixSpectrum) -> Layer:
        """The layer with all that follows from its matrices.

        Args:
            matrices: What is fitted to each.
            whole: The spectrum of all weights together.

        Returns:
            A new record.
        """
        found = {name: getattr(whole, name) for name in _OF_ALL_WEIGHTS}
        for item in fields(self):
            if rule := item.metadata:
                known = _known(getattr(one, rule["of"] or item.name) for one in matrices)
                found[item.name] = rule["combine"](known) if known else item.default
        reasons = Counter(one.fit_failed for one in matrices if one.fit_failed is not None)
        return replace(
            self,
            **found,
            n_matrices=len(matrices),
            n_failed=reasons.total(),
            fit_failed=reasons.most_common(1)[0][0] if reasons else None,
            matrices=tuple(matrices),
        )

    def row(self) -> dict[str, Any]:
        """Everything but the single matrices, as plain values: a row of a table."""
        values = {k: v for k, v in self._values().items() if k != "matrices"}
        return values | {"shape": "x".join(map(str, self.shape))}

    def rows(self) -> list[dict[str, Any]]:
        """A table of the layer's matrices.

        Returns:
            One flat dictionary for each.
        """
        return [row for item in self.matrices for row in item.rows()]


@dataclass(frozen=True)
class CapacityReport(
    Result, derived=_DERIVED, omitted="layers provenance", picture="capacity.alpha_histogram"
):
    """Capacity metrics of a network, layer by layer.

    An average is over the analysed layers for which its quantity exists; layers that were skipped
    and fits that failed enter none.

    Attributes:
        source: Where the weights came from, in words.
        conv: How convolutions were cut: ``slices``, ``pooled`` or ``unfolded``.
        seed: Of everything random.
        layers: Every tensor of the source, in its order.
        device: Where it was computed, in words.
        notes: Anything a reader must know.
        provenance: Settings, machine, versions and time; None in files of the first versions.
    """

    source: str
    conv: str
    seed: int
    layers: tuple[Layer, ...]
    device: str = ""
    notes: tuple[str, ...] = ()
    provenance: Provenance | None = None

    @property
    def analyzed(self) -> tuple[Layer, ...]:
        """Layers that were not skipped."""
        return tuple(layer for layer in self.layers if layer.skipped is None)

    def p(self, of: Layer) -> float | None:
        """The p-value of a layer's power law as tables show it.

        Args:
            of: One of the layers.

        Returns:
            The value, an :class:`hessrmt.tables.AtMost` where it is the smallest that the bootstrap
            can show.
        """
        samples = self.provenance.config.get("p_values", 0) if self.provenance else 0
        return at_most(of.p_value, 1 / (1 + samples) if samples else 0.0)

    @property
    def alpha_hat(self) -> float:
        """α̂ = Σ α ln λ_max over layers, and over the slices of convolutions.

        Source: Martin and Mahoney 2019, eqs. (3) and (6).
        """
        known = _known(layer.alpha_hat for layer in self.layers)
        return math.fsum(known) if known else NAN

    @property
    def alpha_hat_log10(self) -> float:
        """α̂ with logarithms to the base of ten."""
        return self.alpha_hat / math.log(10)

    @property
    def alpha_weighted(self) -> float:
        """Mean over layers of α log10 λ_max as weightwatcher has it: λ_max without 1/N."""
        return self.mean("alpha_weighted")

    @property
    def mean_alpha(self) -> float:
        """Mean of α over layers."""
        return self.mean("alpha")

    @property
    def mean_log_norm(self) -> float:
        """⟨ln ‖W‖_F⟩ over layers; Martin and Mahoney 2019, below eq. (5)."""
        return self.mean("log_frobenius")

    def mean(self, name: str) -> float:
        """Mean over layers of one of their quantities.

        Args:
            name: Attribute of :class:`Layer`, e.g. ``"entropy"``.

        Returns:
            The mean; NaN if no layer has it. It's a DataError if layers have no such number.
        """
        one_of("mean", name, _AVERAGED)
        known = _known(getattr(layer, name) for layer in self.layers)
        return fmean(known) if known else NAN

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors, layers analysed and skipped, spectra, and fits that failed."""
        analyzed = len(self.analyzed)
        return {
            "tensors": len(self.layers),
            "analyzed": analyzed,
            "skipped": len(self.layers) - analyzed,
            "spectra": sum(layer.n_matrices for layer in self.layers),
            "fits_failed": sum(layer.n_failed for layer in self.layers),
        }

    @property
    def means(self) -> dict[str, float]:
        """Means over layers of all their quantities that have one."""
        return {name: self.mean(name) for name in _AVERAGED}

    def summary(self) -> dict[str, Any]:
        """The network's numbers without its layers, as plain values."""
        return super().to_dict()

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, e.g. for JSON.

        Returns:
            Everything of :meth:`summary`, and ``layers`` as a list of dictionaries.
        """
        return self.summary() | {"layers": [layer.to_dict() for layer in self.layers]}

    def rows(self) -> list[dict[str, Any]]:
        """A table of all tensors, the skipped ones included.

        Returns:
            One flat dictionary for each, all with the same keys.
        """
        return [layer.row() for layer in self.layers]

    def caption(self) -> str:
        """The network's numbers in a line."""
        counts = self.counts
        return (
            f"{self.source}: α̂ = {self.alpha_hat:.4g}, ⟨α⟩ = {self.mean_alpha:.4g}, "
            f"⟨ln‖W‖⟩ = {self.mean_log_norm:.4g}; {counts['analyzed']} layers, "
            f"{counts['skipped']} tensors skipped, {counts['fits_failed']} fits failed"
        )

    def _repr_html_(self) -> str:
        lines = []
        for row in self.rows()[:_MOST_ROWS]:
            row["remark"] = row["skipped"] or row["fit_failed"] or ""
            cells = (row[name] for name in _SHOWN)
            lines.append([f"{v:.4g}" if isinstance(v, float) else str(v) for v in cells])
        if len(self.layers) > _MOST_ROWS:
            lines.append([f"{len(self.layers) - _MOST_ROWS} more"])
        return html_table(lines, self.caption(), list(_SHOWN))


# Networks layer by layer

SIDE_BY_SIDE = ("alpha", "lambda_max", "log_frobenius", "log_alpha_norm", "stable_rank")
"""Numbers of layers that are compared between networks."""


@dataclass(frozen=True)
class SideBySide(Result, picture="capacity.side_by_side"):
    """Numbers of the layers of several networks, in the order of depth.

    Attributes:
        networks: What the networks are called.
        layers: What the layers are called; where networks share no names, by their places.
        by: How layers were matched: by ``name`` or by ``place``.
        values: Name of a number of a :class:`Layer` to (networks, layers) of it; NaN where a
            network lacks the layer, or its power law has failed.
    """

    networks: tuple[str, ...]
    layers: tuple[str, ...]
    by: str
    values: Mapping[str, Float64[np.ndarray, "n l"]]

    def rows(self) -> list[dict[str, Any]]:
        """A table of the layers.

        Returns:
            A row for each layer, with a column for each number of each network.
        """
        columns = {
            f"{name} {network}": of.tolist()
            for name, each in self.values.items()
            for network, of in zip(self.networks, each, strict=True)
        }
        return [
            {"layer": layer} | {name: column[place] for name, column in columns.items()}
            for place, layer in enumerate(self.layers)
        ]


def side_by_side(reports: Mapping[str, CapacityReport]) -> SideBySide:
    """Put the layers of networks beside each other.

    Args:
        reports: What the networks are called to their reports, two or more.

    Returns:
        Every analysed layer of any network; by its name, in the order of the first network that has
        it. Networks that have no name in common are compared by place: their first layers, second
        layers and so on.

    Raises:
        DataError: If there are fewer than two networks.

    Source: Martin and Mahoney 2019, Fig. 4, for α and λ_max of two networks.
    """
    if len(reports) < 2:
        raise DataError(f"{len(reports)} networks; two or more are compared layer by layer")
    layers = [{one.name: one for one in report.analyzed} for report in reports.values()]
    places = Counter(name for each in layers for name in each)
    shared = any(count > 1 for count in places.values())
    if not shared:
        layers = [dict(enumerate(each.values())) for each in layers]
        longest = max(map(len, layers))
        names: list[Any] = list(range(longest))
    else:
        names = _merged([list(each) for each in layers])
    values = {
        metric: np.array(
            [[getattr(each[n], metric) if n in each else NAN for n in names] for each in layers]
        ).reshape(len(layers), len(names))
        for metric in SIDE_BY_SIDE
    }
    called = tuple(names) if shared else tuple(f"layer {place + 1}" for place in names)
    return SideBySide(tuple(reports), called, "name" if shared else "place", values)


def _merged(orders: Sequence[Sequence[str]]) -> list[str]:
    """All names, those of a later list behind the one that precedes them there."""
    found: list[str] = []
    for order in orders:
        known, place = set(found), 0
        for name in order:
            if name in known:
                place = found.index(name) + 1
            else:
                found.insert(place, name)
                place += 1
    return found


# A series of networks


def correlations(
    reports: Sequence[CapacityReport], accuracies: Mapping[str, Sequence[float]]
) -> list[Correlation]:
    """Every metric with every accuracy, as in Martin and Mahoney 2019, Fig. 2.

    Args:
        reports: Of the networks.
        accuracies: Name to one value for each network; NaN where it is not known.

    Returns:
        Accuracy by accuracy, the metrics in the order of :data:`METRICS`.
    """
    return [
        correlate([getattr(report, metric) for report in reports], values, (metric, name))
        for name, values in accuracies.items()
        for metric in METRICS
    ]
