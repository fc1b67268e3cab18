"""One family of networks: capacity, outputs and margins.

Source: [G] (Generalization Puzzles in Deep Networks, under review for ICLR 2020).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hessrmt.errors import GeneralizationError
from hessrmt.plots import puzzle_points as points
from hessrmt.plots import style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from hessrmt.plots.picture import Picture
    from hessrmt.plots.puzzle_points import Entry

_HISTOGRAMS = 3


def capacity(entry: Entry, random: Entry | None = None) -> Picture:
    """Normalised test loss and test error against the product of norms, and against each other.

    Args:
        entry: A family.
        random: A family of the same networks that was trained on random labels.

    Returns:
        The picture.

    Source: [G] Fig. 4.
    """
    picture = style.new_picture(
        points.title(entry, "Losses, errors and norms"), width=10.5, height=3.6
    )
    panels = picture.subplots(1, 3)
    loss, product, error = "normalized_test_loss", "product", "test_error"
    names = {
        loss: "normalised test loss",
        product: _product_words(entry),
        error: "test error",
    }
    for axes, (x, y) in zip(
        panels, ((product, loss), (loss, error), (product, error)), strict=True
    ):
        _against(axes, entry, random, x, y)
        axes.set(xlabel=names[x], ylabel=names[y])
    if random is not None:
        points.key(panels[0])
    points.colours(entry).draw_bar(picture, panels.tolist(), entry.settings.vary)
    return picture


def product_at_loss(entry: Entry) -> Picture:
    """Test error against the product of norms of networks with one training loss.

    Args:
        entry: A family with a reference loss.

    Returns:
        The picture; its title says how far the training losses differ.

    Source: [G] Fig. 13.
    """
    found = entry.result.column("train_loss")
    what = points.title(entry, "Test error against the product of norms")
    picture = style.new_picture(
        f"{what}\ntraining losses {found.min():.3g} to {found.max():.3g}, "
        f"asked for {entry.settings.reference_loss:g}"
    )
    axes = picture.subplots()
    _against(axes, entry, None, "product", "test_error")
    axes.set(xlabel=_product_words(entry), ylabel="test error")
    points.colours(entry).draw_bar(picture, [axes], entry.settings.vary)
    return picture


def _product_words(entry: Entry) -> str:
    by_output = entry.settings.by == "output"
    return "norm of the output" if by_output else "product of the layers' norms"


def _against(axes: Axes, entry: Entry, random: Entry | None, x: str, y: str) -> None:
    places = [family.result.column(x) for family in (entry, random) if family is not None]
    points.log_if_wide(axes, "x", np.concatenate(places))
    values = entry.result.column("value")
    first, second = entry.result.column(x), entry.result.column(y)
    points.scatter(axes, first, second, values, points.colours(entry))
    if random is not None:
        points.scatter_random(
            axes, random.result.column(x), random.result.column(y), points.TRAINED_ON_RANDOM
        )
    axes.margins(0.08)
    points.ticks(axes, x=4)
    points.name_points(axes, first, second, values)


def outputs(entry: Entry) -> Picture:
    """Histograms of the largest output of normalised networks over the training samples.

    Args:
        entry: A family; its smallest, middle and largest value have a panel.

    Returns:
        The picture.

    Source: [G] Fig. 20, Appendix K.
    """
    members = sorted(entry.result.members, key=lambda member: member.value)
    number = min(_HISTOGRAMS, len({member.value for member in members}))
    shown = [members[i] for i in np.linspace(0, len(members) - 1, number).round().astype(int)]
    picture = style.new_picture(
        points.title(entry, "Largest output of normalised networks"),
        width=max(style.WIDTH, 3.5 * number),
        height=3.8,
    )
    panels = picture.subplots(1, number, squeeze=False)[0]
    for axes, member in zip(panels, shown, strict=True):
        label = (
            f"{_short(entry)} {member.value:g}: mean {member.top_output_mean:.4g},\n"
            f"standard deviation {member.top_output_std:.4g}\n"
            f"as trained: {member.raw_top_output_mean:.4g} and {member.raw_top_output_std:.4g}"
        )
        axes.stairs(
            member.top_output_counts, member.top_output_edges, fill=True, color=style.FILL,
            label=label,
        )  # fmt: skip
        axes.axvline(member.top_output_mean, color=style.INK, lw=1.1)
        axes.set_xlabel("f̃ of the most likely class")
        points.ticks(axes, x=4)
        points.key(axes)
    panels[0].set_ylabel("training samples")
    return picture


def _short(entry: Entry) -> str:
    return {"initial-scale": "s =", "corruption": "corrupted", "width": "width"}.get(
        entry.settings.vary, "N ="
    )


def margins(entry: Entry, random: Entry | None = None) -> Picture:
    """Smallest normalised margins during training, and test errors against their inverse.

    A margin is drawn where all training samples are classified correctly: there it is positive.
    Curves have gaps where an epoch lost that again.

    Args:
        entry: A family.
        random: A family of the same networks that was trained on random labels.

    Returns:
        The picture; it says how many networks are left out.

    Raises:
        GeneralizationError: If no network ever classifies all training samples correctly.

    Source: [G] Appendix J.
    """
    families = [family for family in (entry, random) if family is not None]
    members = [member for family in families for member in family.result.members]
    if not any((member.history["margin"] > 0).any() or member.margin > 0 for member in members):
        raise GeneralizationError(
            f"{entry.name}: no network ever classifies all training samples correctly, so that "
            "no margin is positive; train for more epochs"
        )
    picture = style.new_picture(points.title(entry, "Smallest margins"), width=10.5, height=4.4)
    left, right = picture.subplots(1, 2)
    left.set(yscale="log", ylabel="normalised smallest margin")
    right.set_ylabel("test error")
    never = _growth(left, families)
    left.set_xlabel("epoch" + _left_out(never, "never separate the samples"))
    wrong = _bound(right, families)
    what = "1/η, inverse of the normalised smallest margin"
    right.set_xlabel(what + _left_out(wrong, "have a training error"))
    for axes in (left, right):
        axes.margins(0.06)
        points.ticks(axes)
        if random is not None:
            points.key(axes)
    points.colours(entry).draw_bar(picture, [left, right], entry.settings.vary)
    return picture


def _growth(axes: Axes, families: Sequence[Entry]) -> int:
    """Margins in time, random labels as the second family; returns how many networks have none."""
    colour, without = points.colours(families[0]), 0
    name: str | None = points.TRAINED_ON_RANDOM
    for number, family in enumerate(families):
        for member in family.result.members:
            size = member.history["margin"] / member.history["product"]
            good = size > 0
            if not good.any():
                without += 1
                continue
            line = {"lw": 1.1, "marker": ".", "ms": 3}
            epochs, size = member.history["epoch"], np.where(good, size, np.nan)
            if number:
                dashes = (0, (3, 2))
                axes.plot(epochs, size, color=points.RANDOM, ls=dashes, label=name, **line)
                name = None
            else:
                axes.plot(epochs, size, color=colour(member.value), **line)
    return without


def _bound(axes: Axes, families: Sequence[Entry]) -> int:
    """Test errors against 1/η; returns how many networks have no positive η."""
    good = [[m for m in family.result.members if m.normalized_margin > 0] for family in families]
    inverse = [np.array([1 / m.normalized_margin for m in found]) for found in good]
    errors = [np.array([m.test_error for m in found]) for found in good]
    points.log_if_wide(axes, "x", np.concatenate(inverse))
    values = np.array([m.value for m in good[0]])
    points.scatter(axes, inverse[0], errors[0], values, points.colours(families[0]))
    if len(families) > 1:
        points.scatter_random(axes, inverse[1], errors[1], points.TRAINED_ON_RANDOM)
    return sum(len(f.result.members) - len(x) for f, x in zip(families, inverse, strict=True))


def _left_out(number: int, why: str) -> str:
    return f"\nleft out: {number} that {why}" if number else ""
