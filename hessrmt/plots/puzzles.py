"""Families of networks that differ in one thing: losses, capacity, outputs, margins, trends.

A family is any object with a ``name``, ``settings`` (as ``hessrmt.experiments.families.Family``)
and a ``result`` (:class:`hessrmt.store.family.FamilyResult`). Members are coloured by what is
varied; those that were trained on random labels are crosses.

Source: Generalization puzzles (2020).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.ticker import MaxNLocator

from hessrmt.errors import DataError
from hessrmt.plots import style

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float64
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Values = Float64[np.ndarray, " n"]
    Points = Sequence[Values]
    Lines = Mapping[str, tuple[Any, Any]]

_TRAIN = {"color": style.BLUE, "ls": "-", "marker": "o"}
_TEST = {"color": style.RED, "ls": "--", "marker": "^"}
_GAP = {"color": style.GREEN, "ls": ":", "marker": "s"}
_SPLITS = (("training", "train", _TRAIN), ("test", "test", _TEST))

TRAINED_ON_RANDOM = "trained on random labels"
LINE, WITH_RANDOM = "line of the natural labels", "line of all points"
CONFIDENCE, PREDICTION = "95 % confidence band of the line", "95 % prediction band"
DIAGONAL = "test = training"
_SHARED = TRAINED_ON_RANDOM, CONFIDENCE, PREDICTION, DIAGONAL
"""What the legend of the left panel says for both."""

_REFERENCES = (style.DOT_DASHED, (0, (1, 1.2)), (0, (8, 2)))

_COLOURS = ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.92, 256)))
"""Without the bright yellow, which a white page swallows."""

WORDS = {
    "initial-scale": "standard deviation of the initial weights",
    "corruption": "share of labels permuted in pre-training",
    "width": "width",
    "samples": "training samples N",
}
_SHORT = {"initial-scale": "s =", "corruption": "corrupted", "width": "width", "samples": "N ="}
_NAMES = {"normalized_test_loss": "normalised test loss", "test_error": "test error"}

_WIDE = 30
"""Largest over smallest value from which an axis is logarithmic."""

_ROOM = (0.17, 0.05)
"""Width and height of a point with its value, as shares of the panel."""

_HISTOGRAMS = 3


def losses(
    entry: Any, lines: Lines, random: Any = None, references: Sequence[Any] = (), *, ax: Any = None
) -> Figure:
    """Test against training losses of all members, as trained and normalised; below, residuals.

    Args:
        entry: A family.
        lines: ``""`` and ``"normalized_"`` (as trained, normalised) to the
            :class:`hessrmt.generalization.fits.LineFit` of the family, or in words why there is
            none, and to the line of all points, those with random labels included.
        random: A family of the same networks that was trained on random labels.
        references: Published lines of normalised networks.
        ax: Four axes to draw into; None for a new picture.

    Returns:
        The picture. Where there is no line, the legend says why.

    Source: Generalization puzzles (2020), Figs. 2, 10, 12, 15, 16.
    """
    title, options = _title(entry, "Test against training loss"), {"height_ratios": (3, 1)}
    picture, grid = style.panels(title, (2, 2), ax=ax, size=(10.5, 7.4), sharex="col", **options)
    for (upper, lower), prefix in zip(grid.T, ("", "normalized_"), strict=True):
        _loss_panel(upper, lower, entry, random, *lines[prefix], prefix)
        for reference, dashes in zip(references if prefix else (), _REFERENCES, strict=False):
            r2 = "" if reference.r2 is None else f", R² {reference.r2:.4f}"
            words = f"slope {reference.slope:.5g}, intercept {reference.intercept:.5g}{r2}"
            _guide(upper, reference, f"{reference.label}:\n{words}", style.PINK, dashes)
        _guide(upper, lambda x: x, DIAGONAL, style.MUTED, "-")
        _name_values(upper, entry, f"{prefix}train_loss", f"{prefix}test_loss")
        what = f"normalised by {_norm_words(entry.settings)}" if prefix else "as trained"
        lower.set_xlabel(f"training loss, {what}")
        style.few_ticks(upper)
        style.few_ticks(lower, y=3)
        _key(upper, _SHARED if prefix else ())
    grid[0, 0].set_ylabel("test loss")
    grid[1, 0].set_ylabel("test loss - line")
    picture.align_ylabels(grid[:, 0])
    return _colour_bar(entry, grid.ravel())


def _loss_panel(
    upper: Axes, lower: Axes, entry: Any, random: Any, line: Any, both: Any, prefix: str
) -> None:
    names = f"{prefix}train_loss", f"{prefix}test_loss"
    (x, y), others = _columns(entry, *names), _columns(random, *names)
    every_x, every_y = (np.concatenate(pair) for pair in zip((x, y), others, strict=True))
    upper.set(xlim=_limits(every_x), ylim=_limits(every_y))
    _scatter(upper, entry, (x, y), others)
    if isinstance(line, str):
        upper.plot([], [], " ", label=f"no line: {line}")
        lower.yaxis.set_visible(False)
        lower.spines["left"].set_visible(False)
        return
    ends = np.linspace(*upper.get_xlim(), 101)
    middle, label = line(ends), f"{LINE}:\n{line_words(line)}"
    bands = (line.confidence_band, CONFIDENCE, 0.25), (line.prediction_band, PREDICTION, 0.1)
    for axes, around in ((upper, 0.0), (lower, middle)):
        axes.plot(ends, middle - around, color=style.BLUE, lw=1.3, label=label)
        for band, name, opacity in bands:
            area = {"color": style.BLUE, "alpha": opacity, "lw": 0, "zorder": 1, "label": name}
            axes.fill_between(ends, *(edge - around for edge in band(ends)), **area)
    _scatter(lower, entry, (x, y - line(x)), (others[0], others[1] - line(others[0])))
    if both is not None:
        look = {"color": style.INK, "lw": 0.9, "ls": (0, (4, 2)), "zorder": 3}
        upper.plot(ends, both(ends), label=f"{WITH_RANDOM}:\n{line_words(both)}", **look)
    band = [end - line(x) for end in line.confidence_band(x)]
    lower.set_ylim(_limits(np.concatenate([every_y - line(every_x), *band])))


def _guide(axes: Axes, line: Any, name: str, colour: str, dashes: style.Dashes) -> None:
    """A line, which the legend says to be out of view if it is."""
    x = np.linspace(*axes.get_xlim(), 101)
    y, (low, high) = line(x), axes.get_ylim()
    label = name if ((y >= low) & (y <= high)).any() else f"{name} (out of view)"
    axes.plot(x, y, color=colour, lw=1.0, ls=dashes, label=label, zorder=2)


def line_words(line: Any) -> str:
    """Slope, intercept, R² and root mean square error of a line, in two lines of a legend."""
    digits = 4 if line.slope_error < 1 else 0
    slope, error = f"{line.slope:.{digits}f}", f"{line.slope_error:.{digits}f}"
    intercept = f"{line.intercept:.{digits or 2}f}"
    r2, adjusted = (
        f"{value:.6f}" if value > 0.99 else f"{value:.3f}" for value in (line.r2, line.adjusted_r2)
    )
    return (
        f"slope {slope} ± {error}, intercept {intercept},\n"
        f"R² {r2}, adjusted R² {adjusted}, RMSE {line.rmse:.2g}"
    )


def _limits(values: Values) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 1e-3 * max(abs(low), 1e-3)
    return low - margin, high + margin


def capacity(entry: Any, random: Any = None, *, ax: Any = None) -> Figure:
    """Normalised test loss and test error against the product of norms, and against each other.

    Args:
        entry: A family.
        random: A family of the same networks that was trained on random labels.
        ax: Three axes to draw into; None for a new picture.

    Returns:
        The picture.

    Source: Generalization puzzles (2020), Fig. 4.
    """
    title = _title(entry, "Losses, errors and norms")
    _, row = style.panels_for(3, title, (3.5, 3.6), ax=ax)
    loss, product, error = "normalized_test_loss", "product", "test_error"
    for axes, x, y in zip(row, (product, loss, product), (loss, error, error), strict=True):
        _against(axes, entry, random, x, y)
    if random is not None:
        _key(row[0])
    return _colour_bar(entry, row)


def product_at_loss(entry: Any, *, ax: Any = None) -> Figure:
    """Test error against the product of norms of networks with one training loss.

    Args:
        entry: A family with a reference loss.
        ax: Axes to draw into; None for a new picture.

    Returns:
        The picture; its title says how far the training losses differ.

    Source: Generalization puzzles (2020), Fig. 13.
    """
    loss = entry.result.column("train_loss")
    what = _title(entry, "Test error against the product of norms")
    asked = f"asked for {entry.settings.reference_loss:g}"
    title = f"{what}\ntraining losses {loss.min():.3g} to {loss.max():.3g}, {asked}"
    axes = style.single(title, ax)
    _against(axes, entry, None, "product", "test_error")
    return _colour_bar(entry, [axes])


def _against(axes: Axes, entry: Any, random: Any, x: str, y: str) -> None:
    places, others = _columns(entry, x, y), _columns(random, x, y)
    _log_if_wide(axes, np.append(places[0], others[0]))
    _scatter(axes, entry, places, others)
    axes.margins(0.08)
    style.few_ticks(axes, x=4)
    _name_values(axes, entry, x, y)
    by_output = entry.settings.by == "output"
    product = "norm of the output" if by_output else "product of the layers' norms"
    axes.set(xlabel=_NAMES.get(x, product), ylabel=_NAMES[y])


def outputs(entry: Any, *, ax: Any = None) -> Figure:
    """Histograms of the largest output of normalised networks over the training samples.

    Args:
        entry: A family; its smallest, middle and largest value have a panel.
        ax: Axes to draw into, one for each of them; None for a new picture.

    Returns:
        The picture.

    Source: Generalization puzzles (2020), Fig. 20, Appendix K.
    """
    members = sorted(entry.result.members, key=lambda member: member.value)
    number = min(_HISTOGRAMS, len({member.value for member in members}))
    title = _title(entry, "Largest output of normalised networks")
    picture, row = style.panels_for(number, title, (3.5 if number > 1 else style.WIDTH, 3.8), ax=ax)
    shown = np.linspace(0, len(members) - 1, number).round().astype(int)
    for axes, member in zip(row, [members[i] for i in shown], strict=True):
        label = (
            f"{_SHORT[entry.settings.vary]} {member.value:g}: mean {member.top_output_mean:.4g},\n"
            f"standard deviation {member.top_output_std:.4g}\n"
            f"as trained: {member.raw_top_output_mean:.4g} and {member.raw_top_output_std:.4g}"
        )
        style.draw_area(axes, member.top_output_edges, member.top_output_counts, label)
        axes.axvline(member.top_output_mean, color=style.INK, lw=1.1)
        axes.set_xlabel("f̃ of the most likely class")
        style.few_ticks(axes, x=4)
        _key(axes)
    row[0].set_ylabel("training samples")
    return picture


def margins(entry: Any, random: Any = None, *, ax: Any = None) -> Figure:
    """Smallest normalised margins during training, and test errors against their inverse.

    A margin is drawn where all training samples are classified correctly: there it is positive.
    Curves have gaps where an epoch lost that again.

    Args:
        entry: A family.
        random: A family of the same networks that was trained on random labels.
        ax: Two axes to draw into; None for a new picture.

    Returns:
        The picture; it says how many networks are left out.

    Raises:
        DataError: If no network ever classifies all training samples correctly.

    Source: Generalization puzzles (2020), Appendix J.
    """
    families = [family for family in (entry, random) if family is not None]
    members = [member for family in families for member in family.result.members]
    if not any((member.history["margin"] > 0).any() or member.margin > 0 for member in members):
        raise DataError(
            f"{entry.name}: no network ever classifies all training samples correctly, so that "
            "no margin is positive; train for more epochs"
        )
    title = _title(entry, "Smallest margins")
    _, ((left, right),) = style.panels(title, (1, 2), ax=ax, size=(10.5, 4.4))
    never = _growth(left, families)
    xlabel = "epoch" + _left_out(never, "never separate the samples")
    left.set(yscale="log", xlabel=xlabel, ylabel="normalised smallest margin")
    names = "normalized_margin", "test_error", "value"
    every = [np.array(_columns(family, *names)) for family in (entry, random)]
    (x, y, values), (others_x, others_y, _) = (found[:, found[0] > 0] for found in every)
    _log_if_wide(right, 1 / np.append(x, others_x))
    _scatter(right, entry, (1 / x, y), (1 / others_x, others_y), values)
    wrong = _left_out(len(members) - len(x) - len(others_x), "have a training error")
    what = "1/η, inverse of the normalised smallest margin"
    right.set(xlabel=what + wrong, ylabel="test error")
    for axes in (left, right):
        axes.margins(0.06)
        style.few_ticks(axes)
        if random is not None:
            _key(axes)
    left.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    return _colour_bar(entry, [left, right])


def margin_error(
    entry: Any, line: Any, correlations: Mapping[str, Any], random: Any = None, *, ax: Any = None
) -> Figure:
    """Test errors against 1/η of the normalised networks, and against R̂/η, R̂ a proven bound.

    Args:
        entry: A family.
        line: The :class:`hessrmt.generalization.fits.LineFit` of test error against 1/η over the
            networks that separate the training samples, or in words why there is none.
        correlations: ``margin`` and ``bound`` to the
            :class:`hessrmt.capacity.correlation.Correlation` of the test error with each.
        random: A family of the same networks that was trained on random labels.
        ax: Two axes to draw into; None for a new picture.

    Returns:
        The picture; where no bound is known, its panel says so.

    Raises:
        DataError: If no network classifies all training samples correctly.

    Source: Generalization puzzles (2020), eq. (13) and Appendix J.
    """
    names = "normalized_margin", "test_error", "value"
    every = [np.array(_columns(family, *names)) for family in (entry, random)]
    (x, y, values), others = (found[:, found[0] > 0] for found in every)
    if not len(x):
        raise DataError(f"{entry.name}: no network classifies all training samples correctly")
    title = _title(entry, "Test error against margins and bounds")
    _, ((left, right),) = style.panels(title, (1, 2), ax=ax, size=(10.5, 4.6))
    places = (1 / x, y), (1 / others[0], others[1])
    _scatter(left, entry, *places, values)
    _limit(left, *places)
    if isinstance(line, str):
        left.plot([], [], " ", label=f"no line: {line}")
    else:
        low, high = left.get_xlim()
        ends = np.linspace(low, high, 101)
        words = f"slope {line.slope:.2g} ± {line.slope_error:.1g}, intercept {line.intercept:.2g}"
        left.plot(ends, line(ends), color=style.BLUE, lw=1.3, label=f"{words}, R² {line.r2:.2f}")
        area = {"color": style.BLUE, "alpha": 0.1, "lw": 0, "zorder": 1, "label": PREDICTION}
        left.fill_between(ends, *line.prediction_band(ends), **area)
    left.plot([], [], " ", label=_correlation_words(correlations["margin"]))
    wrong = _left_out(len(every[0][0]) - len(x), "have a training error")
    style.few_ticks(left, x=4)
    left.set(xlabel=f"1/η, inverse of the normalised smallest margin{wrong}", ylabel="test error")
    ratios = _columns(entry, "complexity_over_margin", "test_error")
    known = np.isfinite(ratios[0])
    theirs = _columns(random, "complexity_over_margin", "test_error")
    seen = np.isfinite(theirs[0])
    places = tuple(part[known] for part in ratios), tuple(part[seen] for part in theirs)
    _scatter(right, entry, *places, entry.result.column("value")[known])
    if known.any():
        right.set_xscale("log")
        _limit(right, *places)
        right.plot([], [], " ", label=_correlation_words(correlations["bound"]))
        proven = int(np.sum(entry.result.column("error_bound") < 1))
        words = f"is below 1 for {proven} of {len(known)} networks"
        right.plot([], [], " ", label=f"the bound on the error {words}")
    else:
        right.plot([], [], " ", label="no bound is proven for this network")
        right.xaxis.set_ticks([])
    style.few_ticks(right, x=4)
    right.set(xlabel="R̂/η, complexity over smallest margin", ylabel="test error")
    for axes in (left, right):
        _key(axes)
    return _colour_bar(entry, [left, right])


def _limit(axes: Axes, *places: Points) -> None:
    """Fix the limits around all points."""
    x, y = (np.concatenate(parts) for parts in zip(*places, strict=True))
    if axes.get_xscale() == "log":
        axes.set_xlim(x.min() / 1.6, x.max() * 1.6)
    else:
        axes.set_xlim(_limits(x))
    axes.set_ylim(_limits(y))


def _correlation_words(found: Any) -> str:
    """Spearman's ρ with its interval and p-value, for a legend."""
    if found.failed is not None:
        return found.failed
    low, high = found.spearman_interval
    known = f" [{low:+.2f}, {high:+.2f}]" if np.isfinite(low) else ""
    return f"Spearman ρ {found.spearman:+.2f}{known}, p {found.spearman_p:.2g}, n = {found.n}"


def _growth(axes: Axes, families: Sequence[Any]) -> int:
    """Margins in time, random labels as the second family; returns how many networks have none."""
    without, name, colours = 0, TRAINED_ON_RANDOM, _colours(families[0])
    for number, family in enumerate(families):
        for member in family.result.members:
            size = member.history["margin"] / member.history["product"]
            if not (size > 0).any():
                without += 1
                continue
            look: dict[str, Any] = {"color": colours.to_rgba(member.value)}
            if number:
                look, name = {"color": style.RED, "ls": (0, (3, 2)), "label": name}, ""
            seen = np.where(size > 0, size, np.nan)
            axes.plot(member.history["epoch"], seen, lw=1.1, marker=".", ms=3, **look)
    return without


def _left_out(number: int, why: str) -> str:
    return f"\nleft out: {number} that {why}" if number else ""


def against_value(entry: Any, *, ax: Any = None) -> Figure:
    """Losses and errors, as trained, against the share of corrupted labels or the initial scale.

    Args:
        entry: A family.
        ax: Two axes to draw into; None for a new picture.

    Returns:
        The picture.

    Source: Generalization puzzles (2020), Figs. 5 and 6.
    """
    title, reference = _title(entry, "Losses and errors"), entry.settings.reference_loss
    if reference is not None:
        title += f"\nat the epoch whose training loss is closest to {reference:g}"
    picture, (row,) = style.panels(title, (1, 2), ax=ax, size=(9.0, 4.0))
    for axes, what in zip(row, ("loss", "error"), strict=True):
        _both(axes, entry, what)
        _finish(axes, xlabel=WORDS[entry.settings.vary], ylabel=what)
    return picture


def family(found: Any, title: str = "", *, ax: Any = None) -> Figure:
    """:func:`against_value` of a family that was read from its file.

    Args:
        found: A :class:`hessrmt.store.family.FamilyResult`.
        title: Above the picture; what the networks are if empty.
        ax: Two axes to draw into; None for a new picture.

    Returns:
        The picture.

    Raises:
        DataError: If no network is finished.
    """
    if not found.members:
        raise DataError("no network of the family is finished yet")
    settings = SimpleNamespace(**found.family)
    entry = SimpleNamespace(name=settings.name, settings=settings, result=found)
    picture = against_value(entry, ax=ax)
    if title and ax is None:
        picture.suptitle(title, x=0.01, ha="left", fontsize=10)
    return picture


def width(entry: Any, *, ax: Any = None) -> Figure:
    """Errors against the number of parameters; N is marked.

    Args:
        entry: A family of widths.
        ax: Axes to draw into; None for a new picture.

    Returns:
        The picture.

    Source: Generalization puzzles (2020), Fig. 3.
    """
    axes = style.single(_title(entry, "Errors against the number of parameters"), ax)
    # its histogram of outputs holds every training sample once
    n = round(float(entry.result.members[0].top_output_counts.sum()))
    _both(axes, entry, "error", x="parameters")
    _log_if_wide(axes, np.append(entry.result.column("parameters"), n))
    axes.axvline(n, color=style.MUTED, lw=1.0, ls=(0, (4, 2)), label=f"N = {n:,}", zorder=1)
    _finish(axes, xlabel="parameters", ylabel="error")
    return axes.figure


def sample_errors(entries: Sequence[Any], *, ax: Any = None) -> Figure:
    """Errors and their difference against the number of training samples.

    Args:
        entries: Families of samples, e.g. with natural and random labels: a panel each.
        ax: Axes to draw into, one for each family; None for a new picture.

    Returns:
        The picture.

    Source: Generalization puzzles (2020), Fig. 1.
    """
    picture, grid = _side_by_side(entries, 1, "Errors against training samples", ax)
    for axes, entry in zip(grid[0], entries, strict=True):
        _both(axes, entry, "error")
        _gap(axes, entry, "test_error", "train_error", "test - training")
    limits = np.array([axes.get_ylim() for axes in grid[0]])
    for axes in grid[0]:
        axes.set_ylim(min(0.0, limits[:, 0].min()), limits[:, 1].max())
    grid[0, 0].set_ylabel("error")
    return picture


def sample_losses(entries: Sequence[Any], *, ax: Any = None) -> Figure:
    """Losses, losses of the normalised networks, and their difference, against samples.

    Args:
        entries: Families of samples, e.g. with natural and random labels: a column each.
        ax: Three axes for each family; None for a new picture.

    Returns:
        The picture.

    Source: Generalization puzzles (2020), Fig. 19.
    """
    picture, grid = _side_by_side(entries, 3, "Losses against training samples", ax)
    for (upper, middle, lower), entry in zip(grid.T, entries, strict=True):
        _both(upper, entry, "loss")
        _finish(upper)
        _both(middle, entry, "loss", "normalized_")
        _finish(middle)
        lower.axhline(0, color=style.MUTED, lw=0.9, zorder=1)
        names = "normalized_test_loss", "normalized_train_loss"
        _gap(lower, entry, *names, "test - training, normalised")
    labels = ("loss, as trained", "loss, normalised", "difference")
    for axes, label in zip(grid[:, 0], labels, strict=True):
        axes.set_ylabel(label)
    picture.align_ylabels(grid[:, 0])
    return picture


def _side_by_side(entries: Sequence[Any], rows: int, what: str, ax: Any) -> tuple[Figure, Any]:
    title = _title(entries[0], what).removesuffix(", random labels")
    size = max(style.WIDTH, 4.5 * len(entries)), 1.2 + 2.7 * rows
    return style.panels(title, (rows, len(entries)), ax=ax, size=size)


def _both(axes: Axes, entry: Any, what: str, prefix: str = "", x: str = "value") -> None:
    """Training and test."""
    for label, split, look in _SPLITS:
        y = entry.result.column(f"{prefix}{split}_{what}")
        _curve(axes, entry.result.column(x), y, label, look)


def _gap(axes: Axes, entry: Any, test: str, train: str, label: str) -> None:
    gap = entry.result.column(test) - entry.result.column(train)
    _curve(axes, entry.result.column("value"), gap, label, _GAP)
    _finish(axes, xlabel=f"{WORDS['samples']}, {entry.settings.labels} labels")


def _curve(axes: Axes, x: Values, y: Values, label: str, look: dict[str, Any]) -> None:
    """Every point, and a line through the means of those with the same x."""
    places = np.unique(x)
    means = [y[x == place].mean() for place in places]
    axes.plot(places, means, lw=1.3, ms=4, label=label, **look)
    if len(places) < len(x):
        axes.scatter(x, y, 9, color=look["color"], marker=look["marker"], alpha=0.5, linewidths=0)
    _log_if_wide(axes, x)


def _finish(axes: Axes, **settings: Any) -> None:
    axes.margins(0.06)
    style.finish(axes, **settings)
    style.few_ticks(axes)


def _key(axes: Axes, without: Sequence[str] = ()) -> None:
    """A legend above the axes, one line for each entry that no other panel's legend has."""
    pairs = zip(*axes.get_legend_handles_labels(), strict=True)
    shown = [(handle, label) for handle, label in pairs if label not in without]
    handles, labels = (list(part) for part in zip(*shown, strict=True)) if shown else ([], [])
    look: dict[str, Any] = {"fontsize": 8, "ncols": 1, "handlelength": 2.4, "labelspacing": 0.35}
    style.legend_above(axes, handles=handles, labels=labels, **look)


def _columns(entry: Any, *names: str) -> list[Values]:
    """Columns of a family; empty ones where there is none."""
    return [np.empty(0) if entry is None else entry.result.column(name) for name in names]


def _colours(entry: Any) -> ScalarMappable:
    """Colours by what is varied, logarithmic for everything but shares."""
    values = entry.result.column("value")
    low, high = float(values.min()), float(values.max())
    if entry.settings.vary == "corruption":
        return ScalarMappable(Normalize(0, max(high, 0.01)), _COLOURS)
    spread = 1 if low < high else 2
    return ScalarMappable(LogNorm(low / spread, high * spread), _COLOURS)


def _colour_bar(entry: Any, panels: Any) -> Any:
    """A colour bar beside some axes, if there are two different values; returns the picture."""
    picture = panels[0].figure
    if len(set(entry.result.column("value"))) > 1:
        colours = _colours(entry)
        bar = picture.colorbar(colours, ax=list(panels), pad=0.01, aspect=40, shrink=0.9)
        bar.set_label(WORDS[entry.settings.vary], fontsize=9)
        bar.ax.tick_params(labelsize=8)
        if isinstance(colours.norm, LogNorm):
            style.log_ticks(bar.ax.yaxis)
    return picture


def _scatter(
    axes: Axes, entry: Any, places: Points, others: Points, values: Values | None = None
) -> None:
    """A point for each member, and a cross for each that was trained on random labels."""
    colours = _colours(entry).to_rgba(entry.result.column("value") if values is None else values)
    axes.scatter(*places, s=26, c=colours, edgecolors="white", linewidths=0.4, zorder=4)
    crosses = {"marker": "X", "color": style.RED, "edgecolors": "black", "linewidths": 0.6}
    if len(others[0]):
        axes.scatter(*others, s=60, label=TRAINED_ON_RANDOM, zorder=5, **crosses)


def _name_values(axes: Axes, entry: Any, x: str, y: str) -> None:
    """Values beside their points, if all of them find room; limits become final."""
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # matplotlib computes limits when asked
    points, values = np.column_stack(_columns(entry, x, y)), entry.result.column("value")
    places = axes.transAxes.inverted().transform(axes.transData.transform(points))
    apart = np.abs(places[:, None] - places[None]) / _ROOM
    if (apart < 1).all(-1).sum() > len(places):  # each point is near itself
        return
    offsets = [(5 if across < 0.85 else -5, -3) for across in places[:, 0]]
    names = [f"{value:g}" for value in values]
    style.name_points(axes, points[:, 0], points[:, 1], names, offsets)


def _log_if_wide(axes: Axes, x: Values) -> None:
    """A logarithmic axis where positive places differ much."""
    if len(x) and x.min() > 0 and x.max() > _WIDE * x.min():
        axes.set_xscale("log")


def _norm_words(settings: Any) -> str:
    """What the networks are normalised by, e.g. ``"layers' L2 norms"``."""
    if settings.by == "output":
        return "norm of the output on one image"
    return f"layers' L{'∞' if np.isinf(settings.norm) else f'{settings.norm:g}'} norms"


def _title(entry: Any, what: str) -> str:
    settings = entry.settings
    labels = ", random labels" if settings.labels == "random" else ""
    return f"{what}: {settings.model.replace('{width}', 'w')} on {settings.data}{labels}"
