"""What the pictures of families share: points coloured by what is varied, axes, words."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, ScalarFormatter

from hessrmt.config.puzzles import WIDTH
from hessrmt.plots import style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float64
    from matplotlib.axes import Axes

    from hessrmt.config.puzzles import Family
    from hessrmt.plots.picture import Picture
    from hessrmt.store.family import FamilyResult

    Values = Float64[np.ndarray, " n"]

TRAIN, TEST, GAP = ("#0072B2", "-", "o"), ("#D55E00", "--", "^"), ("#009E73", ":", "s")
"""Colour, dashes and marker of training, test, and their difference."""

RANDOM, TRAINED_ON_RANDOM = "#D55E00", "trained on random labels"
"""Of networks that were trained on random labels; their markers are crosses."""

_COLOURS = ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.92, 256)))
"""Without the bright yellow, which a white page swallows."""

WORDS = {
    "initial-scale": "standard deviation of the initial weights",
    "corruption": "share of labels permuted in pre-training",
    "width": "width",
    "samples": "training samples N",
}

_WIDE = 30
"""Largest over smallest value from which an axis is logarithmic."""

_ROOM = (0.17, 0.05)
"""Width and height of a point with its value, as shares of the panel."""

_PARTS = ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1, 3), (1,))
"""Leading digits of ticks on a logarithmic axis, from many to few."""


class Entry(Protocol):
    """One family with what came out."""

    @property
    def name(self) -> str:
        """Of the family."""
        ...

    @property
    def settings(self) -> Family:
        """Of the family."""
        ...

    @property
    def result(self) -> FamilyResult:
        """Its finished networks."""
        ...


class Colours(NamedTuple):
    """Colours of the members of a family.

    Attributes:
        norm: Value of what is varied to 0...1.
        bar: Whether there are two different values, so that a colour bar says something.
    """

    norm: Normalize
    bar: bool

    def __call__(self, value: float) -> tuple[float, float, float, float]:
        """RGBA of a value."""
        return _COLOURS(float(self.norm(value)))

    def draw_bar(self, picture: Picture, axes: Sequence[Axes], vary: str) -> None:
        """A colour bar at the right of some axes.

        Args:
            picture: Of the axes.
            axes: Beside which.
            vary: What is varied.
        """
        if not self.bar:
            return
        bar = picture.colorbar(
            ScalarMappable(self.norm, _COLOURS), ax=list(axes), pad=0.01, aspect=40, shrink=0.9
        )
        bar.set_label(WORDS[vary], fontsize=9)
        bar.ax.tick_params(labelsize=8)
        if isinstance(self.norm, LogNorm):
            tidy_log(bar.ax, "y")


def colours(entry: Entry) -> Colours:
    """Colours by what is varied, logarithmic for everything but shares.

    Args:
        entry: A family with at least one member.

    Returns:
        What maps values to colours.
    """
    values = entry.result.column("value")
    low, high = float(values.min()), float(values.max())
    if entry.settings.vary == "corruption":
        return Colours(Normalize(0, max(high, 0.01)), low < high)
    return Colours(LogNorm(low, high) if low < high else LogNorm(low / 2, low * 2), low < high)


def scatter(axes: Axes, x: Values, y: Values, values: Values, colour: Colours) -> None:
    """A point for each member.

    Args:
        axes: Where.
        x: (n,) places.
        y: (n,) heights.
        values: (n,) of what is varied.
        colour: Of the values.
    """
    axes.scatter(
        x, y, s=26, c=[colour(v) for v in values], edgecolors="white", linewidths=0.4, zorder=4
    )


def scatter_random(axes: Axes, x: Values, y: Values, label: str | None = None) -> None:
    """A cross for each member that was trained on random labels.

    Args:
        axes: Where.
        x: (n,) places.
        y: (n,) heights.
        label: In the legend.
    """
    axes.scatter(
        x, y, s=60, marker="X", color=RANDOM, edgecolors="black", linewidths=0.6, label=label,
        zorder=5,
    )  # fmt: skip


def name_points(axes: Axes, x: Values, y: Values, values: Values) -> None:
    """Values beside their points, if all of them find room.

    Args:
        axes: Where; its scales are final, and its limits become so.
        x: (n,) places.
        y: (n,) heights.
        values: (n,) what to write.
    """
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # matplotlib computes limits when asked
    inverse = axes.transAxes.inverted()
    places = inverse.transform(axes.transData.transform(np.column_stack([x, y])))
    apart = np.abs(places[:, None] - places[None]) / _ROOM
    if (apart < 1).all(-1).sum() > len(places):  # each point is near itself
        return
    for across, at, value in zip(places[:, 0], zip(x, y, strict=True), values, strict=True):
        left = across < 0.85
        axes.annotate(
            f"{value:g}",
            at,
            xytext=(5 if left else -5, -3),
            textcoords="offset points",
            ha="left" if left else "right",
            fontsize=7.5,
            color=style.INK,
        )


def ticks(axes: Axes, x: int = 5, y: int = 5) -> None:
    """Few ticks, written out: 2.3021, not 1e-4 + 2.302.

    Args:
        axes: With linear or logarithmic scales; a logarithmic one keeps its ticks.
        x: At most so many intervals.
        y: At most so many intervals.
    """
    for which, axis, number in (("x", axes.xaxis, x), ("y", axes.yaxis, y)):
        if axis.get_scale() == "linear":
            axis.set_major_locator(MaxNLocator(nbins=number))
            formatter = ScalarFormatter(useOffset=False)
            formatter.set_scientific(False)
            axis.set_major_formatter(formatter)
        else:
            tidy_log(axes, which, number + 1)
    style.bare(axes)
    axes.tick_params(labelsize=8)


def log_if_wide(axes: Axes, which: str, values: Values) -> None:
    """A logarithmic axis where positive values differ much.

    Args:
        axes: Whose.
        which: ``"x"`` or ``"y"``.
        values: On it.
    """
    if len(values) and values.min() > 0 and values.max() > _WIDE * values.min():
        axes.set(**{f"{which}scale": "log"})


def tidy_log(axes: Axes, which: str, most: int = 7) -> None:
    """Ticks of a logarithmic axis at round numbers.

    Args:
        axes: Whose; its limits become final.
        which: ``"x"`` or ``"y"``.
        most: Ticks.
    """
    axis, limits = (axes.xaxis, axes.get_xlim()) if which == "x" else (axes.yaxis, axes.get_ylim())
    low, high = sorted(limits)
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    choices = [[part * 10.0**k for k in decades for part in parts] for parts in _PARTS]
    choices += [[10.0**k for k in decades if k % step == 0] for step in range(2, len(decades) + 1)]
    seen = [[place for place in places if low <= place <= high] for places in choices]
    places = next((found for found in seen if len(found) <= most), [])
    axis.set_major_locator(FixedLocator(places) if len(places) > 1 else MaxNLocator(most - 1))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _round_number(value)))


def _round_number(value: float) -> str:
    power = int(np.floor(np.log10(value) + 1e-9)) if value > 0 else 0
    if -4 < power < 5:
        return f"{value:g}"
    digit = value / 10.0**power
    return ("" if abs(digit - 1) < 1e-6 else f"{digit:g}·") + f"$10^{{{power}}}$"


def norm_words(settings: Family) -> str:
    """What the networks are normalised by.

    Args:
        settings: Of the family.

    Returns:
        E.g. ``"layers' L2 norms"``.
    """
    if settings.by == "output":
        return "norm of the output on one image"
    return f"layers' L{'∞' if np.isinf(settings.norm) else f'{settings.norm:g}'} norms"


def title(entry: Entry, what: str) -> str:
    """First line of a picture.

    Args:
        entry: The family.
        what: The picture shows.

    Returns:
        What, of which model, on which data.
    """
    settings = entry.settings
    labels = ", random labels" if settings.labels == "random" else ""
    model = settings.model.replace(WIDTH, "w")
    return f"{what}: {model} on {settings.data}{labels}"


def training_samples(entry: Entry) -> int:
    """N, by the members' histograms of outputs, which hold every training sample once.

    Args:
        entry: A family with at least one member.

    Returns:
        Of the first member.
    """
    return round(float(entry.result.members[0].top_output_counts.sum()))


def key(axes: Axes) -> None:
    """A legend above the axes, one line for each entry.

    Args:
        axes: Whose.
    """
    axes.legend(
        frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=1,
        handlelength=2.4, borderaxespad=0.2, labelspacing=0.35,
    )  # fmt: skip
