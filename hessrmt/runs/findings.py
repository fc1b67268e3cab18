"""What a result says, in sentences with their numbers: the first thing that a reader looks for.

Level statistics conclude in :mod:`hessrmt.levels.analysis`; here is what everything else says.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.capacity.report import CapacityReport
from hessrmt.curvature.density import DensityResult
from hessrmt.curvature.lanczos import EdgeLevels, Eigenpairs
from hessrmt.curvature.landscape import Landscape
from hessrmt.levels.analysis import LevelStatistics
from hessrmt.records import Spectra, in_range
from hessrmt.runs.capacity import Series
from hessrmt.runs.tracking import Track
from hessrmt.runs.training import Checkpoint
from hessrmt.store.family import FamilyResult
from hessrmt.store.history import History
from hessrmt.tables import counted, measured

if TYPE_CHECKING:
    from collections.abc import Sequence

_LAST = 0.25
"""Share of the measurements of a training that are called its end; three at least."""

_NEAR = 0.2
"""Relative distance from the threshold within which λ_max counts as being there, and relative
spread within which it counts as settled."""

_HOLDS = 0.1
"""Deviation of the loss from its parabola, over what the parabola adds, up to which it holds."""

_CLEAR = 0.05
"""Probability of a rank correlation by chance below which it is called one."""

_FEW = 10
"""Eigenvalues in the tails of a layer below which its α says little."""


@singledispatch
def findings(found: Any) -> Iterator[str]:
    """What a result says.

    Args:
        found: Any result.

    Yields:
        Sentences, the most important first; of a kind that isn't known here those of its own
        ``conclusions``, if it has them.
    """
    for name, text in getattr(found, "conclusions", {}).items():
        yield sentence(f"{name}: {text}")


@findings.register
def _of_statistics(found: LevelStatistics) -> Iterator[str]:
    yield sentence(found.conclusion)


@findings.register
def _of_spectra(found: Spectra) -> Iterator[str]:
    first, items = found[0], found.items
    of = "one matrix" if len(items) == 1 else f"each of {len(items):,} matrices"
    ranks, zeros = [one.rank for one in items], [one.dimension - one.rank for one in items]
    floors = [one.noise_floor for one in items]
    if max(floors) > 0 and max(zeros) == 0:
        yield (
            f"All {first.dimension:,} eigenvalues of {of} lie above the noise floor of "
            f"{_range(floors, '.1g')}: full rank."
        )
    elif max(floors) > 0:
        yield (
            f"All {first.dimension:,} eigenvalues of {of}: {in_range(ranks)} above the noise floor "
            f"of {_range(floors, '.1g')}, so that the rank is {in_range(ranks)}; the other "
            f"{in_range(zeros)} can't be told from zero."
        )
    else:
        yield f"All {first.dimension:,} eigenvalues of {of}."
    lowest, highest = zip(
        *((one.eigenvalues[0], one.eigenvalues[-1]) for one in items), strict=True
    )
    if max(lowest) < -max(floors):
        below = f"the smallest {_lies(lowest)}"
        negative = [int(np.count_nonzero(one.resolved < 0)) for one in items]
        below += f", {in_range(negative)} are below zero"
    else:
        below = (
            "none is certainly below zero" if min(lowest) >= -max(floors) else "some are below 0"
        )
    yield f"The largest eigenvalue {_lies(highest)}; {below}."
    if len(found) < found.planned:
        yield f"Not finished: {len(found):,} of {counted(found.planned, 'spectrum', 'spectra')}."


@findings.register
def _of_density(found: DensityResult) -> Iterator[str]:
    if (edges := found.edges) is not None and len(edges):
        top, bound = edges.values[-1], edges.bounds[-1]
        if len(edges) > edges.n_lower:
            yield f"The largest eigenvalue is {measured(top, bound, ', to within')}."
        if edges.n_lower:
            yield f"The smallest is {measured(edges.values[0], edges.bounds[0], ', to within')}."
        clear = int(edges.is_resolved.sum())
        yield (
            f"{clear:,} of {counted(len(edges), 'eigenvalue', 'eigenvalues')} found are resolved: "
            "certainly not zero, and apart from their neighbours by more than both bounds."
        )
    if (traces := found.traces) is not None:
        mean = traces.trace / found.dimension
        yield (
            f"The trace is {measured(traces.trace, traces.trace_error)} (standard error), so that "
            f"the mean of the {found.dimension:,} eigenvalues is {mean:.4g}; "
            f"the Frobenius norm is {measured(traces.frobenius, traces.frobenius_error)}."
        )
    else:
        mean, error = (part[0] for part in found.quadrature.moments())
        yield f"The mean of the {found.dimension:,} eigenvalues is {measured(mean, error)}."
    if len(found.quadrature) < found.planned:
        yield f"Not finished: {len(found.quadrature)} of {found.planned} random vectors are done."
    if found.products_by == "finite-difference":
        yield "Not exact: products are finite differences of the gradient; the bounds contain that."


@findings.register(Eigenpairs)
@findings.register(EdgeLevels)
def _of_found(found: Eigenpairs | EdgeLevels) -> Iterator[str]:
    if not len(found):
        yield "No eigenvalue was found."
        return
    yield (
        f"{counted(len(found), 'eigenvalue', 'eigenvalues')} from {found.values[0]:.6g} to "
        f"{found.values[-1]:.6g}; some eigenvalue of the matrix lies within "
        f"{found.bounds.max():.1g} of each."
    )


@findings.register
def _of_landscape(found: Landscape) -> Iterator[str]:
    middle = found.distances.shape[1] // 2
    for place, value in enumerate(found.eigenvalues):
        along = (slice(None), middle) if place == 0 else (middle, slice(None))
        if found.losses.ndim == 1:
            along = (slice(None),)
        losses, parabola = found.losses[along], found.parabola[along]
        a, added = found.distances[place], found.parabola[along] - found.loss
        with np.errstate(invalid="ignore"):
            holds = np.abs(losses - parabola) <= _HOLDS * np.abs(added).max()
        reach = min(
            _reach(np.abs(a[middle:]), holds[middle:]), _reach(-a[middle::-1], holds[middle::-1])
        )
        ends = f"{losses[0]:.4g} and {losses[-1]:.4g}"
        said = f"{parabola[0]:.4g} and {parabola[-1]:.4g}"
        yield (
            f"Along the eigenvector of λ = {value:.4g} the loss, {found.loss:.4g} "
            f"at the network itself, follows its parabola up to a distance of {reach:.3g} (within "
            f"{_HOLDS:.0%} of what that adds at most); at {a[0]:.3g} and {a[-1]:.3g} it is {ends}, "
            f"the parabola {said}."
        )


def _reach(distances: np.ndarray, holds: np.ndarray) -> float:
    """The last distance before the first that does not hold."""
    broken = np.flatnonzero(~holds)
    return float(distances[-1] if not len(broken) else distances[max(0, broken[0] - 1)])


@findings.register
def _of_capacity(found: CapacityReport) -> Iterator[str]:
    known = [layer for layer in found.analyzed if np.isfinite(layer.alpha)]
    counts = found.counts
    yield (
        f"α̂ = {found.alpha_hat:.4g} (sum of α ln λ_max), mean α = {found.mean_alpha:.4g}, mean "
        f"ln‖W‖ = {found.mean_log_norm:.4g}, over {counted(counts['analyzed'], 'layer', 'layers')} "
        f"of {counted(counts['tensors'], 'tensor', 'tensors')}."
    )
    if known:
        low, high = (f(known, key=lambda layer: layer.alpha) for f in (min, max))
        text = f"α lies between {low.alpha:.3g} ({low.name}) and {high.alpha:.3g} ({high.name})"
        few = [layer for layer in known if layer.n_tail < _FEW]
        if len(known) == 1:
            text = f"α = {low.alpha:.3g} ± {low.sigma:.2g} ({low.name})"
        if few:
            text += (
                f"; in {len(few)} of {counted(len(known), 'layer', 'layers')} it rests on fewer "
                f"than {_FEW} eigenvalues and says little"
            )
        yield f"{text}."
    bulk = [layer for layer in found.analyzed if layer.spikes is not None]
    if bulk:
        above = sum(layer.spikes or 0 for layer in bulk)
        yield (
            f"{counted(above, 'eigenvalue lies', 'eigenvalues lie')} above the Marchenko-Pastur "
            f"bulk of {counted(len(bulk), 'layer', 'layers')}, as those of pure noise would not."
        )


@findings.register
def _of_series(found: Series) -> Iterator[str]:
    values = {
        label: report.mean_alpha for label, report in zip(found.labels, found.networks, strict=True)
    }
    known = {label: value for label, value in values.items() if np.isfinite(value)}
    if known:
        low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
        yield (
            f"Mean α of {counted(len(found.networks), 'network', 'networks')}: from "
            f"{known[low]:.4g} ({low}) to {known[high]:.4g} ({high})."
        )
    told = [one for one in found.correlations if one.failed is None and np.isfinite(one.kendall)]
    if told:
        best = max(told, key=lambda one: abs(one.kendall))
        words = "" if best.kendall_p < _CLEAR else "; chance alone may do that"
        yield (
            f"Of the metrics {best.metric.replace('_', ' ')} orders the networks by "
            f"{best.accuracy.replace('_', ' ')} "
            f"best: Kendall's τ = {best.kendall:+.2f}, p = {best.kendall_p:.2g} (of one comparison "
            f"among {len(told)}){words}; {best.n} networks."
        )


@findings.register
def _of_history(found: History) -> Iterator[str]:
    first, last = found.spectra[0], found.spectra[-1]
    ends = [first.eigenvalues[-1], last.eigenvalues[-1]]
    between = f"epoch {found.epochs[0]} to epoch {found.epochs[-1]}"
    yield (
        f"From {between} the largest eigenvalue {_course(ends)}, the rank "
        f"{_course([first.rank, last.rank])} of {first.dimension:,}."
    )
    for name, words in (("test_loss", "test loss"), ("test_accuracy", "test accuracy")):
        values = found.training[name]
        if np.isfinite(values[[0, -1]]).all():
            yield f"The {words} {_course(values)}."
    alphas = found.network["mean_alpha"]
    if np.isfinite(alphas[[0, -1]]).all():
        yield f"The mean exponent α of the layers {_course(alphas)}."


@findings.register
def _of_checkpoint(found: Checkpoint) -> Iterator[str]:
    if not len(found.epochs):
        yield "No epoch is finished yet."
        return
    yield (
        f"The training loss {_course(found.train_loss)} (means over epochs {found.epochs[0]} and "
        f"{found.epochs[-1]}); the learning rate was {_range(found.rate)}."
    )


@findings.register
def _of_family(found: FamilyResult) -> Iterator[str]:
    count = counted(len(found.members), "trained network", "trained networks")
    yield f"{count}, {'all that were planned' if found.complete else 'more are to come'}."
    for row in found.rows()[:1]:
        for name in ("train_loss", "test_loss", "train_error", "test_error"):
            if name in row and len(found.members):
                yield f"The {name.replace('_', ' ')} {_lies(found.column(name))}."


# A training


@findings.register
def _of_track(found: Track) -> Iterator[str]:
    if not len(found):
        yield "Nothing has been measured yet."
        return
    known = np.isfinite(found.largest)
    if known.any():
        yield from _of_threshold(found)
        yield _of_end(found.steps[known], found.largest[known], found.threshold[known])
    if found.steps[0] > 0:
        yield (
            f"The first measurement is at step {found.steps[0]:,}: the network before the first "
            "update was not measured."
        )
    below = found.smallest < -found.smallest_bound
    if below.any():
        low = int(np.nanargmin(found.smallest))
        yield (
            f"The smallest eigenvalue is negative at {int(below.sum())} of "
            f"{counted(len(found), 'measurement', 'measurements')}, {found.smallest[low]:.4g} at "
            f"the lowest (step {found.steps[low]:,})."
        )
    for name, words in (("loss", "loss"), ("trace", "trace"), ("rank", "rank")):
        values = getattr(found, name)
        if len(found) > 1 and np.isfinite(values[[0, -1]]).all():
            yield f"The {words} {_course(values)}."


def _of_threshold(found: Track) -> Iterator[str]:
    """Where λ_max lies against the threshold of gradient descent, and when it passes it."""
    edge, steps = found.threshold, found.steps
    known = np.isfinite(found.largest) & np.isfinite(edge)
    name = threshold_name(found)
    if not known.any():
        if "lr" in found.numbers:
            yield (
                "λ_max is not compared with 2/η: no rate above 0 was told, or the optimiser is "
                "one, such as Adam, for which the Hessian alone sets no threshold."
            )
        else:
            yield (
                "Not compared with 2/η, since the loop told no learning rate: "
                "tracker(step, lr=...) does."
            )
        return
    place, value, bound = steps[known], found.largest[known], found.largest_bound[known]
    edge = edge[known]
    side = np.where(value - bound > edge, 1, np.where(value + bound < edge, -1, 0))
    above = np.flatnonzero(side > 0)
    limit = f"{name} = {_range(edge)}"
    if not len(above):
        top = int(np.argmax(value / edge))
        yield (
            f"λ_max is never measured above {limit}: it comes nearest at step {place[top]:,}, with "
            f"{value[top]:.4g}, {value[top] / edge[top]:.0%} of it."
        )
        return
    first = int(above[0])
    if first == 0:
        when = f"is above {limit} from the first measurement on (step {place[0]:,}: {value[0]:.4g})"
    else:
        when = (
            f"rises above {limit} between steps {place[first - 1]:,} ({value[first - 1]:.4g}) and "
            f"{place[first]:,} ({value[first]:.4g})"
        )
    lie = "lies" if len(above) == 1 else "lie"
    count = counted(len(value), "measurement", "measurements")
    text = f"λ_max {when}; {len(above)} of {count} {lie} above"
    under = np.flatnonzero(side < 0)
    if len(under) and under[-1] > above[-1]:
        last = int(above[-1])
        text += f", the last at step {place[last]:,} ({value[last]:.4g})"
    yield f"{text}."


def _of_end(steps: np.ndarray, values: np.ndarray, edges: np.ndarray) -> str:
    """Where λ_max is at the end of a training."""
    count = min(len(values), max(3, round(_LAST * len(values))))
    last, at = values[-count:], edges[-count:]
    if len(values) < 3:
        return f"λ_max is {_range(values)}: too few measurements to say where it settles."
    middle = float(last.mean())
    spread = float(np.ptp(last)) / abs(middle) if middle else float("inf")
    span = f"over the last {count} measurements (steps {steps[-count]:,} to {steps[-1]:,})"
    share = last / at
    compared = ""
    if np.isfinite(share).all():
        part = float(share.mean())
        compared = (
            f", {part:.0%} of the threshold" if part < 10 else f", {part:.3g} times the threshold"
        )
        if (np.abs(share - 1) <= _NEAR).all():
            compared += ": the edge of stability"
        elif (share < 1).any() and (share > 1).any():
            compared += ", on both sides of it"
    if spread <= _NEAR:
        return f"λ_max settles at {middle:.4g} {span}{compared}."
    up = np.all(np.diff(last) > 0) or np.all(np.diff(last) < 0)
    word = ("still rises" if last[-1] > last[0] else "still falls") if up else "still moves"
    return (
        f"λ_max has not settled: {span} it {word} between {last.min():.4g} and {last.max():.4g}, "
        f"{middle:.4g} on average{compared}."
    )


def threshold_name(found: Track) -> str:
    """What the threshold of a track is in symbols: ``2/η``, or with the momentum β."""
    told = {
        name: np.nan_to_num(found.numbers.get(name, 0.0)).any() for name in ("momentum", "nesterov")
    }
    if not told["momentum"]:
        return "2/η"
    return "2(1 + β)/((1 + 2β) η)" if told["nesterov"] else "2(1 + β)/η"


# Words


def sentence(text: str) -> str:
    """A text with a capital and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _course(values: Sequence[float] | np.ndarray) -> str:
    """From where to where it goes."""
    first, last = f"{values[0]:,.4g}", f"{values[-1]:,.4g}"
    return f"stays at {first}" if first == last else f"goes from {first} to {last}"


def _lies(values: Sequence[float] | np.ndarray) -> str:
    text = _range(values)
    return f"lies between {text.replace(' to ', ' and ')}" if " to " in text else f"is {text}"


def _range(values: Sequence[float] | np.ndarray, form: str = ".4g") -> str:
    """``"3 to 5"``, or one number where all are written alike."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return "unknown"
    ends = dict.fromkeys(format(value, form) for value in (known.min(), known.max()))
    return " to ".join(ends)
