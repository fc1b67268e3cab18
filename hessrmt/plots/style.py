"""What every picture shares: how the laws look and are called, panels, legends, axes.

The colours are told apart by people who don't see all of them, and no law by its colour alone: each
has dashes of its own. Source: Okabe and Ito, Color Universal Design (2008).
"""

from __future__ import annotations

import io
import textwrap
from functools import cache
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.collections import Collection
from matplotlib.colors import to_hex, to_rgb, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.mathtext import MathTextParser
from matplotlib.patches import Patch
from matplotlib.spines import Spine
from matplotlib.text import Text
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
    ScalarFormatter,
)

from hessrmt.checks import one_of
from hessrmt.errors import ConfigError, DataError
from hessrmt.results import Result
from hessrmt.tables import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float64
    from matplotlib.axes import Axes

    Values = Float64[np.ndarray, " n"]

Dashes = str | tuple[float, tuple[float, ...]]
"""A matplotlib line style."""

BLUE, RED, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
COLOURS = (BLUE, RED, GREEN, PINK, "#E69F00", "#56B4E9", "#000000")
"""Of one curve after the other."""

DASHED: Dashes = (0, (6, 2))
DOT_DASHED: Dashes = (0, (5, 1.5, 1, 1.5))


def _look(label: str, colour: str, dashes: Dashes, width: float) -> dict[str, Any]:
    return {"label": label, "color": colour, "ls": dashes, "lw": width}


LAWS = {
    "goe": _look("GOE", RED, "-", 1.8),
    "goe, unfolded alike": _look("GOE, unfolded as the data", RED, (0, (1, 1.2)), 1.5),
    "goe2": _look("two GOE blocks", GREEN, DASHED, 1.5),
    "poisson": _look("Poisson", BLUE, DOT_DASHED, 1.5),
    "wigner": _look("Wigner surmise", "#000000", (0, (3, 2)), 0.9),
    "semicircle": _look("semicircle", RED, "-", 1.5),
}
"""How laws look: their options of ``Axes.plot``."""

FILL, INK, MUTED = "#c5ccd6", "#3a4354", "#9a9a9a"
"""Area of a histogram, its error bars and measured curves, and what is beside the point."""

NEGATIVE, POSITIVE = PINK, BLUE
"""Eigenvalues below and above zero."""

BAND = 0.3
"""Opacity of a band of one standard error."""

ONE_SIGMA = "± one standard error"

Shape = tuple[int, int]
Size = tuple[float, float]
WIDTH = 7.0
SIZE: Size = (WIDTH, 4.5)
"""Width and height of a picture with one panel, in inches."""

_TITLE_CHARACTERS, _LEGEND_CHARACTERS, _HANDLE = 84, 84, 7
"""How much text fits: in a line of the title, and side by side in the columns
of a legend, where a line's sample and margin take the place of seven."""

_LEADING = ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,))
"""Leading digits of ticks on a logarithmic axis, from many to few."""


_WRITTEN_OUT = 1e6
"""From here on ticks are powers of ten; on logarithmic axes that reach so far, from 10,000 on."""


class Picture(Figure):
    """A matplotlib figure without pyplot's global state; notebooks show it, ``savefig`` writes."""

    def draw(self, renderer: Any) -> None:
        """Draw it; names that come from files are shown as they are, without harm."""
        for text in self.findobj(Text):
            words = text.get_text()
            if (seen := printable(words, lines=True)) != words:
                text.set_text(seen)
            if "$" in seen:
                text.set_parse_math(_is_mathematics(seen))
        super().draw(renderer)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
        return buffer.getvalue()


@cache
def _is_mathematics(words: str) -> bool:
    """Whether matplotlib can set what stands between dollar signs: a name may have some, too."""
    try:
        MathTextParser("path").parse(words)
    except ValueError:
        return False
    return True


def panels(
    title: str = "", shape: Shape = (1, 1), *, ax: Any = None, size: Size = SIZE, **options: Any
) -> tuple[Any, Any]:
    """An empty picture with panels, or the panels that are given.

    Args:
        title: Above everything, from the left; left out where panels are given.
        shape: Rows and columns of panels.
        ax: matplotlib axes to draw into, as many as there are panels, or one pair in whose place
            the panels are put; None for a new picture.
        size: Width and height of a new picture in inches.
        **options: Of ``Figure.subplots``.

    Returns:
        The figure and its (rows, columns) axes.

    Raises:
        DataError: If ``ax`` holds another number of axes.
    """
    if ax is not None:
        given = np.array(ax, dtype=object)
        if given.size == 1 and prod(shape) > 1 and given.item().get_subplotspec() is not None:
            given = _divided(given.item(), shape, **options)
        if given.size != prod(shape):
            raise DataError(f"ax holds {given.size} axes; expected {shape[0]} × {shape[1]} panels")
        return given.flat[0].figure, given.reshape(shape)
    picture = Picture(figsize=size, layout="constrained")
    lines = [part for line in title.splitlines() for part in textwrap.wrap(line, _TITLE_CHARACTERS)]
    if lines:
        picture.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10)
    return picture, picture.subplots(*shape, squeeze=False, **options)


def _divided(axes: Axes, shape: tuple[int, int], **options: Any) -> Any:
    """Panels in the place of one pair of axes."""
    place: Any = axes.get_subplotspec()
    axes.remove()
    ratios = {name: options.pop(name, None) for name in ("width_ratios", "height_ratios")}
    return place.subgridspec(*shape, **ratios).subplots(squeeze=False, **options)


def by_label(found: Any, label: str) -> Any:
    """Results by what they are called: a dictionary of them as it is, a single one labelled."""
    return {label: found} if isinstance(found, Result) else found


def single(title: str, ax: Any, size: Size = SIZE) -> Any:
    """The axes of a picture with one panel, or those that are given."""
    return panels(title, ax=ax, size=size)[1].item()


def panels_for(
    count: int,
    title: str,
    size: Size,
    columns: int = 0,
    *,
    ax: Any,
    head: float = 0,
    **options: Any,
) -> tuple[Any, Any]:
    """Panels of one size, row by row; those that are left over in the last row are hidden.

    Args:
        count: How many.
        title: Above everything.
        size: Width and height of a panel in inches.
        columns: Panels side by side; 0, or if axes are given: all.
        ax: As for :func:`panels`.
        head: Height above the panels, in inches.
        **options: Of ``Figure.subplots``.

    Returns:
        The figure and (count,) axes.
    """
    columns = min(columns, count) if columns and ax is None else count
    rows = ceil(count / columns)
    whole = size[0] * columns, size[1] * rows + head
    picture, grid = panels(title, (rows, columns), ax=ax, size=whole, **options)
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    return picture, grid.ravel()[:count]


def bare(axes: Axes, size: float = 9, **settings: Any) -> None:
    """Properties of the axes, no frame above and at the right, the size of numbers in points."""
    axes.set(**settings)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=size)


def finish(axes: Axes, **settings: Any) -> Any:
    """As :func:`bare`, with a legend of all that has a label: above, so it hides nothing.

    Returns:
        The picture.
    """
    bare(axes, **settings)
    labels = axes.get_legend_handles_labels()[1]
    lengths = [max(map(len, label.splitlines()), default=0) for label in labels]
    fitting = (n for n in (3, 2) if _width(lengths, n) <= _LEGEND_CHARACTERS)
    legend_above(axes, fontsize=9, ncols=next(fitting, 1), handlelength=2.6, columnspacing=1.6)
    return axes.figure


def legend_above(axes: Axes, **options: Any) -> None:
    """A legend above the axes, with some options of matplotlib's."""
    place = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "borderaxespad": 0.2}
    axes.legend(frameon=False, **place, **options)


def legend_below(axes: Axes, columns: int) -> Any:
    """One legend for a whole picture, below it, of the labels of one panel; returns the picture."""
    place = {"loc": "outside lower center", "ncols": columns, "fontsize": 9}
    picture: Any = axes.figure
    picture.legend(*axes.get_legend_handles_labels(), frameon=False, **place)
    return picture


def _width(lengths: Sequence[int], columns: int) -> int:
    """Characters side by side, those of a line's handle and margin included."""
    parts = [part for part in np.array_split(lengths, columns) if len(part)]
    return sum(int(part.max()) + _HANDLE for part in parts)


def note(axes: Axes, text: str) -> None:
    """Words in the upper right corner."""
    place = {"transform": axes.transAxes, "ha": "right", "va": "top"}
    axes.text(0.97, 0.95, text, fontsize=7.5, **place)


def draw_law(axes: Axes, name: str, x: Values, y: Values, note: str = "", **changes: Any) -> None:
    """A law as a curve.

    Args:
        axes: Where.
        name: One of :data:`LAWS`.
        x: (n,) points.
        y: (n,) values of the law.
        note: Put behind the law's name in the legend.
        **changes: Options of ``Axes.plot`` that are to differ.
    """
    look = LAWS[name] | {"label": LAWS[name]["label"] + note, "zorder": 3}
    axes.plot(x, y, **(look | changes))


def draw_area(axes: Axes, edges: Values, heights: Values, label: str = "", **more: Any) -> None:
    """A filled histogram."""
    axes.stairs(heights, edges, fill=True, color=FILL, label=label, **more)


def draw_histogram(axes: Axes, edges: Values, density: Values, error: Values, label: str) -> None:
    """A histogram with a bar of one standard error on every bin.

    Args:
        axes: Where.
        edges: (k + 1,) of the bins.
        density: (k,) of the values.
        error: (k,) its standard error; NaN where there is none.
        label: Of the data in the legend.
    """
    draw_area(axes, edges, density, label)
    bars = {"fmt": "none", "ecolor": INK, "elinewidth": 0.9, "zorder": 2, "label": ONE_SIGMA}
    if np.isfinite(error).any():
        axes.errorbar((edges[1:] + edges[:-1]) / 2, density, yerr=error, **bars)


def draw_band(axes: Axes, x: Values, low: Values, high: Values) -> None:
    """A band of one standard error around a measured curve, if there is any error."""
    if np.isfinite(high).any():
        look = {"color": INK, "alpha": BAND, "lw": 0, "zorder": 2, "label": ONE_SIGMA}
        axes.fill_between(x, low, high, **look)


def top_of(density: Values, error: Values) -> float:
    """The upper end of the highest error bar."""
    return float((density + np.nan_to_num(error)).max())


def counted(number: int, what: str, spectra: int) -> str:
    """The data in words, for a legend.

    Args:
        number: How many values.
        what: What they are, in the plural.
        spectra: How many spectra they come from.

    Returns:
        E.g. ``"17,825 spacings of 31 spectra"``.
    """
    return f"{number:,} {what} of {of_spectra(spectra)}"


def of_spectra(number: int) -> str:
    """``"1 spectrum"``, ``"31 spectra"``."""
    return "1 spectrum" if number == 1 else f"{number:,} spectra"


def name_points(axes: Axes, x: Values, y: Values, names: Sequence[str], offsets: Any) -> None:
    """Words beside points.

    Args:
        axes: Where.
        x: (n,) places.
        y: (n,) heights.
        names: What to write.
        offsets: For each how far away, (right, up) in points; words go where that points.
    """
    for at, name, (right, up) in zip(zip(x, y, strict=True), names, offsets, strict=True):
        side = {0: "center", 1: "left", -1: "right"}[np.sign(right)]
        place = {"xytext": (right, up), "textcoords": "offset points", "ha": side}
        axes.annotate(name, at, fontsize=7.5, color=INK, **place)


def log_decades(axes: Axes, edges: Values) -> None:
    """An axis of log₁₀ x from the first edge to the last whose ticks say x."""
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_formatter(lambda value, _: f"$10^{{{value:.0f}}}$")


def few_ticks(axes: Axes, x: int = 5, y: int = 5) -> None:
    """A bare frame with few ticks, written out: 2.3021, not 1e-4 + 2.302, and 100,000.

    Args:
        axes: With linear or logarithmic scales; the limits of a logarithmic one become final.
        x: At most so many intervals.
        y: At most so many intervals.
    """
    for axis, number in ((axes.xaxis, x), (axes.yaxis, y)):
        if axis.get_scale() == "linear":
            axis.set_major_locator(MaxNLocator(nbins=number))
            axis.set_major_formatter(_Written())
        else:
            log_ticks(axis, number + 1)
    bare(axes, 8)


def log_ticks(axis: Any, most: int = 7) -> None:
    """Ticks of a logarithmic axis, whose limits become final, at ``most`` round numbers or less."""
    low, high = sorted(axis.get_view_interval())
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    choices = [[part * 10.0**k for k in decades for part in parts] for parts in _LEADING]
    choices += [[10.0**k for k in decades if k % step == 0] for step in range(2, len(decades) + 1)]
    seen = [[place for place in places if low <= place <= high] for places in choices]
    places = next((found for found in seen if len(found) <= most), [])
    axis.set_major_locator(FixedLocator(places) if len(places) > 1 else MaxNLocator(most - 1))
    axis.set_minor_locator(NullLocator())
    largest = _WRITTEN_OUT if high < _WRITTEN_OUT else 1e4
    axis.set_major_formatter(FuncFormatter(lambda value, _: _round_number(value, largest)))


class _Written(ScalarFormatter):
    """Ticks of a linear axis: written out, or powers of ten where all are tiny."""

    def __init__(self) -> None:
        super().__init__(useOffset=False)
        self.set_scientific(False)

    def __call__(self, x: float, pos: int | None = None) -> str:
        axis: Any = self.axis
        size = np.abs(axis.get_view_interval()).max()
        return _round_number(x) if size < 1e-3 or size >= 1e4 else super().__call__(x, pos)


def _round_number(value: float, largest: float = _WRITTEN_OUT) -> str:
    """A number with few digits; a power of ten below 0.001 and from ``largest`` on."""
    sign, size = "\N{MINUS SIGN}" if value < 0 else "", abs(value)
    power = int(np.floor(np.log10(size) + 1e-9)) if size else 0
    if power > -4 and size < largest * (1 - 1e-9):
        return f"{sign}{size:,.10g}"
    digit = size / 10.0**power
    factor = "" if abs(digit - 1) < 1e-6 else f"{digit:.10g}·"
    return f"{sign}{factor}$10^{{{power}}}$"


LOOKS = ("screen", "paper", "dark")
"""How a finished picture can be changed: not, to a column of a journal, to a dark ground."""

_COLUMN = 3.3
"""Width of a column of a journal in inches."""

_SMALLEST = 6.0
"""Points below which text can't be read in print."""

NIGHT = "#1b1f27", "#e3e6eb"
"""Ground and ink of the dark look."""

_DARK = 0.45
"""Largest share of red, green and blue of what counts as ink."""

_LIFTED = {BLUE: "#5fb1e6", RED: "#ff9a4d", GREEN: "#3ccf9d", FILL: "#4c5666", MUTED: "#8d95a3"}
"""Colours that are too dark on a dark ground to those in their place."""


def relook(picture: Figure, look: str) -> None:
    """Change a finished picture for print in a column, or for a dark page.

    Args:
        picture: Changed in place.
        look: One of :data:`LOOKS`. ``"paper"`` is 3.3 inches wide, twice
            that if panels stand side by side, with text of 6 points at least;
            ``"dark"`` has light ink on a dark ground.

    Raises:
        ConfigError: If there is no such look.
    """
    one_of("look", look, LOOKS, error=ConfigError)
    if look == "paper":
        _to_column(picture)
    elif look == "dark":
        _to_night(picture)


def to_phone(picture: Figure) -> None:
    """Change a finished picture for a narrow screen: panels below each other, as for a column.

    Args:
        picture: Changed in place.
    """
    _stack(picture)
    _to_column(picture)


def _stack(picture: Figure) -> None:
    """Put the panels of a picture that stand side by side one below the other."""
    for axes in [axes for axes in picture.axes if not axes.axison]:
        axes.remove()
    places = {axes: axes.get_subplotspec() for axes in picture.axes}
    known = {axes: place for axes, place in places.items() if place is not None}
    grids = {place.get_gridspec() for place in known.values()}
    columns = max((grid.ncols for grid in grids), default=1)
    if columns == 1 or len(grids) > 1 or any(x.num1 != x.num2 for x in known.values()):
        return
    numbers = sorted({place.num1 for place in known.values()})
    labels = {
        p.rowspan.start: axes.get_ylabel() for axes, p in known.items() if not p.colspan.start
    }
    new = picture.add_gridspec(len(numbers), 1)
    for axes, place in known.items():
        axes.set_subplotspec(new[numbers.index(place.num1), 0])
        if place.colspan.start:  # what the one at the left said for both
            axes.tick_params(labelleft=True)
            axes.set_ylabel(axes.get_ylabel() or labels.get(place.rowspan.start, ""))
    (width, height), (grid,) = picture.get_size_inches(), grids
    picture.set_size_inches(width / columns, height * len(numbers) / grid.nrows)


def _to_column(picture: Figure) -> None:
    places = [axes.get_subplotspec() for axes in picture.axes]
    columns = max((place.get_gridspec().ncols for place in places if place is not None), default=1)
    (width, height), new = picture.get_size_inches(), _COLUMN * min(columns, 2)
    for item in picture.findobj(Line2D):
        item.set_linewidth(0.8 * item.get_linewidth())
        item.set_markersize(0.75 * item.get_markersize())
    for item in picture.findobj(Text):
        item.set_fontsize(max(_SMALLEST, 0.72 * float(item.get_fontsize())))
    title, entries = picture.get_suptitle(), {}
    if title:
        lines = textwrap.wrap(title, int(_TITLE_CHARACTERS * new / WIDTH / 0.8))
        picture.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=_SMALLEST + 1)
    for axes in picture.axes:
        if (legend := axes.get_legend()) is not None:
            words = [text.get_text() for text in legend.get_texts()]
            place = axes.get_subplotspec()
            row, lines = place and place.rowspan.start, sum(1 + w.count("\n") for w in words)
            entries[row] = max(entries.get(row, 0), lines)  # of legends side by side the longest
            look = {"fontsize": _SMALLEST, "ncols": 1, "handlelength": 2.2, "labelspacing": 0.3}
            legend_above(axes, handles=legend.legend_handles, labels=words, **look)
    body = max(height * new / width, 0.6 * new / min(columns, 2))
    picture.set_size_inches(new, body + 0.12 * sum(entries.values()))


def _to_night(picture: Figure) -> None:
    kinds = Line2D, Text, Patch, Collection, Spine
    names = "color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"
    for item in picture.findobj(lambda part: isinstance(part, kinds)):
        for name in names:
            if hasattr(item, f"get_{name}") and hasattr(item, f"set_{name}"):
                _lighten(item, name)
    for axes in picture.axes:
        axes.tick_params(which="both", colors=NIGHT[1])
        axes.set_facecolor(NIGHT[0])
    picture.set_facecolor(NIGHT[0])


def at_night(colour: str) -> str:
    """The counterpart of a colour of a picture on a dark ground.

    Args:
        colour: As ``#rrggbb``.

    Returns:
        The same, for what is light or bright enough.
    """
    lifted = {to_hex(old): new for old, new in _LIFTED.items()}
    return lifted.get(colour, NIGHT[1] if max(to_rgb(colour)) < _DARK else colour)


def _lighten(item: Any, name: str) -> None:
    """Give one colour of an artist its counterpart on a dark ground; others stay."""
    found = getattr(item, f"get_{name}")()
    if isinstance(found, str) and found in {"none", "auto"}:
        return
    colours = to_rgba_array(found)
    changed = colours.copy()
    changed[:, :3] = [to_rgb(at_night(to_hex(colour))) for colour in colours]
    if not np.array_equal(changed, colours):
        getattr(item, f"set_{name}")(changed if np.ndim(found) > 1 else tuple(changed[0]))
