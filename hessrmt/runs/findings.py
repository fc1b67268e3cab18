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
from hessrmt.plots.training import FEW
from hessrmt.records import Spectra, in_range
from hessrmt.runs.capacity import Series
from hessrmt.runs.tracking import Track
from hessrmt.runs.training import Checkpoint
from hessrmt.store.family import FamilyResult
from hessrmt.store.history import History
from hessrmt.tables import counted, measured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hessrmt.curvature.windows import Window

_LAST = 0.25
"""Share of the measurements of a training that are called its end; three at least."""

_NEAR = 0.2
"""Relative distance from the threshold within which λ_max counts as being there, and relative
spread within which it counts as settled."""

_OUTSIDE = 0.1
"""Share of the range of a curve by which it must leave that of its two ends to be told."""

_HOLDS = 0.1
"""Deviation of the loss from its parabola, over what the parabola adds, up to which it holds."""

_CLEAR = 0.05
"""Probability of a rank correlation by chance below which it is called one."""

_NAMED = 3
"""Layers that a sentence names."""


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
    of, several = _matrices(found)
    ranks, zeros = [one.rank for one in items], [one.dimension - one.rank for one in items]
    floors = [one.noise_floor for one in items]
    if max(floors) > 0 and max(zeros) == 0:
        yield (
            f"All {first.dimension:,} eigenvalues of {of} lie above the noise floor of "
            f"{in_words(floors, '.1g')}: full rank."
        )
    elif max(floors) > 0:
        yield (
            f"All {first.dimension:,} eigenvalues of {of}: {in_range(ranks)} above the noise floor "
            f"of {in_words(floors, '.1g')}, so that the rank is {in_range(ranks)}; the other "
            f"{in_range(zeros)} can't be told from zero."
        )
    else:
        yield f"All {first.dimension:,} eigenvalues of {of}."
    lowest, highest = zip(
        *((one.eigenvalues[0], one.eigenvalues[-1]) for one in items), strict=True
    )
    if max(lowest) < -max(floors):
        negative = [int(np.count_nonzero(one.resolved < 0)) for one in items]
        be = "is" if max(negative) == 1 else "are"
        below = f"{_ranges(lowest, 'the smallest')}, and {in_range(negative)} {be} below zero"
    else:
        below = (
            "none is certainly below zero" if min(lowest) >= -max(floors) else "some are below 0"
        )
    yield f"{_over(highest, 'the largest eigenvalue', several)}; {below}."
    if len(found) < found.planned:
        yield f"Not finished: {len(found):,} of {counted(found.planned, 'spectrum', 'spectra')}."


_OPERATORS = {"hessian": "the Hessian", "ggn": "the Gauss-Newton matrix"}
"""Operators as a sentence names them."""


def _matrices(found: Spectra) -> tuple[str, str]:
    """What the eigenvalues are of, and over what numbers of several spectra range."""
    count, settings = len(found), found.provenance.config
    what = _OPERATORS.get(found[0].operator, "the matrix")
    if "block" in settings:
        what = f"block {settings['block'] or '(root)'} of {what}"
    if settings.get("ensemble"):
        of = "one random matrix" if count == 1 else f"each of {count:,} random matrices"
        return of, f"the {count:,} matrices"
    if settings.get("batch"):
        if count == 1:
            return f"{what}{_of_samples(found)}", "the batch"
        samples = counted(settings["batch"], "sample", "samples")
        return f"{what} of each of {count:,} batches of {samples}", f"the {count:,} batches"
    if count == 1:
        return f"{what}{_of_samples(found)}", "the matrix"
    return f"each of {count:,} matrices", f"the {count:,} matrices"


def _of_samples(found: Any) -> str:
    """Over which samples the loss of a matrix is the mean; empty if that isn't known."""
    settings = found.provenance.config
    if settings.get("batch") and isinstance(found, Spectra):
        return f" of one batch of {counted(settings['batch'], 'sample', 'samples')}"
    count = getattr(found, "samples", 0) or settings.get("samples")
    if not isinstance(count, int) or not count:
        return ""
    return f" of the mean loss over {counted(count, 'sample', 'samples')}"


@findings.register
def _of_density(found: DensityResult) -> Iterator[str]:
    of = f" of {_OPERATORS.get(found.operator, 'the matrix')}{_of_samples(found)}"
    if (edges := found.edges) is not None and len(edges):
        top, bound = edges.values[-1], edges.bounds[-1]
        if len(edges) > edges.n_lower:
            yield f"The largest eigenvalue{of} is {measured(top, bound, ', to within')}."
            of = ""
        if edges.n_lower:
            low = measured(edges.values[0], edges.bounds[0], ", to within")
            yield f"The smallest{' eigenvalue' * bool(of)}{of} is {low}."
            of = ""
    if edges is not None:
        yield from of_edges(edges, found.window_count)
    if (traces := found.traces) is not None:
        mean = traces.trace / found.dimension
        yield (
            f"The trace{of} is {measured(traces.trace, traces.trace_error)} (standard error), so "
            f"that the mean of the {found.dimension:,} eigenvalues is {mean:.4g}; "
            f"the Frobenius norm is {measured(traces.frobenius, traces.frobenius_error)}."
        )
    else:
        mean, error = (part[0] for part in found.quadrature.moments())
        yield f"The mean of the {found.dimension:,} eigenvalues{of} is {measured(mean, error)}."
    if len(found.quadrature) < found.planned:
        yield f"Not finished: {len(found.quadrature)} of {found.planned} random vectors are done."
    if found.products_by == "finite-difference":
        yield "Not exact: products are finite differences of the gradient; the bounds contain that."


def of_edges(edges: EdgeLevels, counts: tuple[float, float] | None = None) -> Iterator[str]:
    """How far eigenvalues at the ends of a spectrum, or in a window, are known.

    Args:
        edges: The eigenvalues.
        counts: Between what the quadratures count in a window, as of
            ``hessrmt.curvature.density.DensityResult.window_count``.

    Yields:
        Sentences, as the terminal and the page have them.
    """
    if len(edges):
        verb = "is" if len(edges) == 1 else "are"
        yield (
            f"{int(edges.is_resolved.sum()):,} of "
            f"{counted(len(edges), 'eigenvalue', 'eigenvalues')} found {verb} resolved: certainly "
            "not zero, and apart from their neighbours by more than both bounds."
        )
    if edges.window is not None:
        yield from _completeness(edges.window, len(edges), counts)
    elif len(edges):
        yield (
            "A bound holds for some eigenvalue; further copies of a multiple one may be missing."
        )
    if edges.exhausted:
        yield (
            f"Only {len(edges) - edges.n_lower:,} eigenvalues at the top and {edges.n_lower:,} at "
            f"the bottom lie above the floor {edges.round_off:.1g}: what follows is zero or cannot "
            "be told from it."
        )
    if not edges.converged:
        yield "Not all that were asked for converged; allow a larger --tolerance."


def _completeness(window: Window, found: int, counts: tuple[float, float] | None) -> Iterator[str]:
    """What is known of a window, sentence by sentence."""
    side = "above" if window.low > 0 else "below"
    trust = f"up to a failure probability of {window.failure_probability:.1g}"
    if window.complete and not found:
        yield f"The window is complete: no eigenvalue lies in it, {trust}."
    elif window.complete:
        yield (
            f"The window is complete: these {found:,} are all, counted with multiplicity, each "
            f"within {window.matched_bound:.1g} of its eigenvalue, {trust}."
        )
    else:
        yield (
            f"Completeness not proved: eigenvalues may be missing unless they lie {side} "
            f"{window.complete_from:.6g}, where these are all {trust}."
        )
    if window.ambiguous:
        yield f"{window.ambiguous:,} of them lie so close to a bound that they may be outside."
    if window.beyond:
        yield f"{window.beyond:,} more lie {side} the window, up to the end of the spectrum."
    if counts is not None:
        yield (
            f"The quadratures count between {counts[0]:.4g} and {counts[1]:.4g}, two standard "
            "errors included."
        )


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
        few = [layer for layer in known if layer.n_tail <= FEW]
        if len(known) == 1:
            text = f"α = {low.alpha:.3g} ± {low.sigma:.2g} ({low.name})"
        if few:
            text += (
                f"; in {_share_of(len(few), len(known))} it rests on {FEW} eigenvalues or fewer "
                "and says little"
            )
        yield f"{text}."
    bulk = [layer for layer in found.analyzed if layer.spikes is not None]
    if bulk:
        above = {layer.name: layer.spikes for layer in bulk if layer.spikes}
        have = "the one layer that has" if len(bulk) == 1 else f"the {len(bulk):,} layers that have"
        if not above:
            yield f"No eigenvalue lies above the Marchenko-Pastur bulk, in {have} one: as of noise."
            return
        names = ", ".join(list(above)[:_NAMED]) + (", ..." if len(above) > _NAMED else "")
        yield (
            f"{counted(sum(above.values()), 'eigenvalue lies', 'eigenvalues lie')} above the "
            f"Marchenko-Pastur bulk, as those of pure noise would not: in {len(above):,} of {have} "
            f"one ({names})."
        )


def _share_of(part: int, whole: int) -> str:
    """How many layers of all."""
    if part == whole:
        return "that layer" if whole == 1 else f"all {whole:,} layers"
    return f"{part:,} of {whole:,} layers"


@findings.register
def _of_series(found: Series) -> Iterator[str]:
    values = {
        label: report.mean_alpha for label, report in zip(found.labels, found.networks, strict=True)
    }
    known = {label: value for label, value in values.items() if np.isfinite(value)}
    if known:
        low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
        ends = [f"{known[label]:.4g}" for label in (low, high)]
        course = f"from {ends[0]} ({low}) to {ends[1]} ({high})"
        course = f"{ends[0]} in each" if ends[0] == ends[1] else course
        yield f"Mean α of {counted(len(known), 'network', 'networks')}: {course}."
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
    def course(values: Sequence[float] | np.ndarray) -> str:
        return _course(values, found.epochs, "epoch")

    items = found.spectra.items
    yield (
        f"From epoch {found.epochs[0]} to epoch {found.epochs[-1]} the largest eigenvalue of the "
        f"Hessian{_of_samples(found.spectra)} {course([one.eigenvalues[-1] for one in items])}; "
        f"its rank {course([one.rank for one in items])}, of {items[0].dimension:,}."
    )
    for name, words in (
        ("train_loss", "loss over the training samples, after the epoch,"),
        ("test_loss", "test loss"),
        ("test_accuracy", "test accuracy"),
    ):
        values = found.training[name]
        if np.isfinite(values[[0, -1]]).all():
            yield f"The {words} {course(values)}."
    alphas = found.network["mean_alpha"]
    if np.isfinite(alphas[[0, -1]]).all():
        yield f"The mean exponent α of the layers {course(alphas)}."


@findings.register
def _of_checkpoint(found: Checkpoint) -> Iterator[str]:
    if not len(found.epochs):
        yield "No epoch is finished yet."
        return
    first, last = found.epochs[0], found.epochs[-1]
    over = f"From epoch {first} to epoch {last}" if first != last else f"In epoch {first}"
    yield (
        f"{over} the loss over an epoch's minibatches, taken while the weights changed, "
        f"{_course(found.train_loss, found.epochs, 'epoch')}."
    )
    yield f"{_over(found.rate, 'the learning rate', 'the epochs')}."


@findings.register
def _of_family(found: FamilyResult) -> Iterator[str]:
    count = counted(len(found.members), "trained network", "trained networks")
    yield f"{count}, {'all that were planned' if found.complete else 'more are to come'}."
    for row in found.rows()[:1]:
        for name in ("train_loss", "test_loss", "train_error", "test_error"):
            if name in row and len(found.members):
                what = f"the {name.replace('_', ' ')}"
                yield f"{_over(found.column(name), what, 'the networks')}."


# A training


@findings.register
def _of_track(found: Track) -> Iterator[str]:
    if not len(found):
        yield "Nothing has been measured yet."
        return
    known = np.isfinite(found.largest)
    if known.any():
        yield from _of_threshold(found)
        yield _of_end(found, known)
    yield from _of_loop(found)
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
            yield f"The {words} {_course(values, found.steps, 'step')}."


def _of_loop(found: Track) -> Iterator[str]:
    """What the training loop told of its optimiser, and what follows for 2/η."""
    told = []
    for name, words in (("lr", "learning rate"), ("momentum", "momentum")):
        if (values := found.numbers.get(name)) is not None and np.nan_to_num(values).any():
            told.append(f"{words} {in_words(values)}")
    optimiser = str(found.provenance.config.get("optimiser", ""))
    if not optimiser and _scales_the_gradient(found):
        optimiser = "an optimiser other than SGD"
    told = [optimiser, *told] if optimiser else told
    batches = found.numbers.get("minibatches", np.empty(0))
    batches = batches[np.isfinite(batches)]
    if len(batches) and batches.max() > 1:
        told.append(f"{in_words(batches)} minibatches an epoch")
    elif len(batches):
        told.append("all samples in every step")
    if not told:
        return
    name = threshold_name(found)
    text = f"Trained with {', '.join(told)}" if optimiser else f"The loop told: {', '.join(told)}"
    if np.isfinite(found.threshold).any():
        if len(batches) and batches.max() > 1:
            text += f"; with minibatches {name} is a yardstick and no threshold"
        elif not len(batches):
            text += (
                f". The file doesn't say whether minibatches were taken; with them {name} is a "
                "yardstick and no threshold"
            )
    yield f"{text}."


def _scales_the_gradient(found: Track) -> bool:
    """Whether the loop told that its optimiser is no gradient descent: Adam and its like."""
    sgd = found.numbers.get("sgd", np.empty(0))
    return bool((sgd == 0).any() and not (sgd > 0).any())


def _of_threshold(found: Track) -> Iterator[str]:
    """Where λ_max lies against the threshold of gradient descent, and when it passes it."""
    edge, steps = found.threshold, found.steps
    known = np.isfinite(found.largest) & np.isfinite(edge)
    name = threshold_name(found)
    if not known.any():
        if "lr" not in found.numbers:
            why = "the loop told no learning rate; tracker(step, lr=...) does"
        elif _scales_the_gradient(found):
            why = "the optimiser is not SGD, and for others the Hessian alone sets no threshold"
        elif not (found.numbers["lr"] > 0).any():
            why = "no learning rate above 0 was told"
        else:
            why = "no step has both λ_max and the learning rate of an SGD"
        yield f"λ_max is not compared with 2/η: {why}."
        return
    place, value, bound = steps[known], found.largest[known], found.largest_bound[known]
    edge = edge[known]
    side = np.where(value - bound > edge, 1, np.where(value + bound < edge, -1, 0))
    above = np.flatnonzero(side > 0)
    limit = _limit(name, edge)
    if not len(above):
        top = int(np.argmax(value / edge))
        yield (
            f"λ_max is never measured above {limit}: it comes nearest at step {place[top]:,}, with "
            f"{value[top]:.4g}, {value[top] / edge[top]:.0%} of it."
        )
        return
    first = int(above[0])
    if first == 0:
        when = (
            f"is already above {limit} at the first measurement (step {place[0]:,}: {value[0]:.4g})"
        )
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


def _limit(name: str, edge: np.ndarray) -> str:
    """The threshold in words; of one that changes from where to where it goes."""
    text = in_words(edge)
    return f"{name} ({text} over the steps)" if " to " in text else f"{name} = {text}"


def _of_end(found: Track, known: np.ndarray) -> str:
    """Where λ_max is at the end of a training."""
    steps, values, edges = (of[known] for of in (found.steps, found.largest, found.threshold))
    count = min(len(values), max(3, round(_LAST * len(values))))
    last, at = values[-count:], edges[-count:]
    if len(values) < 3:
        return f"{_ranges(values, 'λ_max')}: too few measurements to say where it settles."
    middle = float(last.mean())
    spread = float(np.ptp(last)) / abs(middle) if middle else float("inf")
    span = f"over the last {count} measurements (steps {steps[-count]:,} to {steps[-1]:,})"
    share = last / at
    compared = ""
    if np.isfinite(share).all():
        part = float(share.mean())
        name = threshold_name(found)
        compared = f", {part:.0%} of {name}" if part < 10 else f", {part:.3g} times {name}"
        minibatches = (np.nan_to_num(found.numbers.get("minibatches", 0.0)) > 1).any()
        if (np.abs(share - 1) <= _NEAR).all() and not minibatches:
            compared += ": the edge of stability"
        elif (share < 1).any() and (share > 1).any():
            compared += ", on both sides of it"
    if spread <= _NEAR:
        return f"λ_max settles at {middle:.4g} {span}{compared}."
    first, final = (f"{value:.4g}" for value in last[[0, -1]])
    if np.all(np.diff(last) > 0):
        course = f"still rises from {first} to {final}"
    elif np.all(np.diff(last) < 0):
        course = f"still falls from {first} to {final}"
    else:
        course = f"still moves between {last.min():.4g} and {last.max():.4g}"
    return f"λ_max has not settled: {span} it {course}, {middle:.4g} on average{compared}."


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
    first = text[:1].upper() if text[:1].isascii() else text[:1]  # λ, α and σ are names
    return first + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _course(
    values: Sequence[float] | np.ndarray, places: Sequence[int] | np.ndarray, unit: str
) -> str:
    """From where to where it goes, and where (at which step) it lies far outside on its way."""
    known = np.asarray(values, dtype=np.float64)
    first, last = f"{known[0]:,.4g}", f"{known[-1]:,.4g}"
    low, high = int(np.nanargmin(known)), int(np.nanargmax(known))
    outside = _OUTSIDE * float(known[high] - known[low])
    extremes = []
    for place, word, beyond in (
        (high, "highest", known[high] - known[[0, -1]].max()),
        (low, "lowest", known[[0, -1]].min() - known[low]),
    ):
        if beyond > outside and f"{known[place]:,.4g}" not in {first, last}:
            extremes.append(f"{known[place]:,.4g} at the {word} ({unit} {places[place]:,})")
    if first != last:
        return ", ".join([f"goes from {first} to {last}", *extremes])
    return ", ".join(
        [f"begins and ends at {first}", *extremes] if extremes else [f"stays at {first}"]
    )


def _ranges(values: Sequence[float] | np.ndarray, what: str) -> str:
    """``"the smallest is 3"``, or ``"the smallest ranges from 3 to 5"``."""
    text = in_words(values)
    return f"{what} {f'ranges from {text}' if ' to ' in text else f'is {text}'}"


def _over(values: Sequence[float] | np.ndarray, what: str, several: str) -> str:
    """The same as the beginning of a sentence, which says over what the values range."""
    text = _ranges(values, what)
    return f"Over {several} {text}" if " ranges from " in text else sentence(text).rstrip(".")


def in_words(values: Sequence[float] | np.ndarray, form: str = ".4g") -> str:
    """Numbers in words.

    Args:
        values: The numbers; NaN is left out.
        form: How each is written.

    Returns:
        ``"3 to 5"``, or one number where all are written alike.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return "unknown"
    ends = dict.fromkeys(format(value, form) for value in (known.min(), known.max()))
    return " to ".join(ends)
