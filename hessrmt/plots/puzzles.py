"""Pictures of the experiments ``puzzles-*``: families of networks, in the manner of [G].

Source: [G] (Generalization Puzzles in Deep Networks, under review for ICLR 2020).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from hessrmt.errors import GeneralizationError
from hessrmt.plots import puzzle_families as families
from hessrmt.plots import puzzle_trends as trends
from hessrmt.plots.files import Drawn, checked_ending, draw_each
from hessrmt.plots.puzzle_losses import losses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from hessrmt.config.puzzles import PuzzlesConfig
    from hessrmt.plots.picture import Picture
    from hessrmt.plots.puzzle_points import Entry

_ON_THE_LINE = {"initial-scale", "corruption"}
"""What is varied in families whose losses [G] puts on one line."""


def puzzles_figures(
    settings: PuzzlesConfig, entries: Sequence[Entry], folder: Path, ending: str = "png"
) -> list[Drawn]:
    """Draw everything there is to see of some families, one file for each picture.

    Families of initial scales and corruption: ``NAME-losses``, ``NAME-capacity``, ``NAME-outputs``,
    ``NAME-margins``, ``NAME-trend``, and ``NAME-product`` where there is a reference loss. The
    members of a family with random labels are crosses in the pictures of the same networks with
    natural labels. Families of widths: ``NAME-width``; of samples: ``NAME-errors`` and
    ``NAME-losses``, natural and random labels side by side.

    Args:
        settings: Of the experiment; the published lines are taken from it.
        entries: Families with their finished networks, of which there may be none yet.
        folder: An existing folder.
        ending: Of the files.

    Returns:
        For each picture its file, or the reason why there is none; for a family without finished
        networks one such reason.

    Source: [G] Figs. 1 to 6, 10 to 16, 19, 20, Appendix J.
    """
    kind = checked_ending(ending)
    drawn = [
        Drawn(entry.name, None, "no network of this family is finished")
        for entry in entries
        if not entry.result.members
    ]
    for name, draw in _pictures(settings, [e for e in entries if e.result.members]).items():
        try:
            drawn += draw_each({name: draw}, folder, kind)
        except GeneralizationError as error:
            drawn.append(Drawn(name, None, str(error)))
    return drawn


def random_partner(entry: Entry, entries: Sequence[Entry]) -> Entry | None:
    """The family with random labels that belongs into the pictures of one with natural labels.

    Args:
        entry: A family.
        entries: All families.

    Returns:
        The first one of the same networks, data and normalisation, where both vary the samples, or
        each the initial scale or the corruption; None if there is none.
    """
    for other in entries:
        if other.settings.labels == "random" and _alike(entry, other):
            return other if entry.settings.labels == "natural" else None
    return None


def _alike(entry: Entry, other: Entry) -> bool:
    one, two = entry.settings, other.settings
    same = all(getattr(one, x) == getattr(two, x) for x in ("model", "data", "norm", "by"))
    return same and (one.vary == two.vary == "samples" or {one.vary, two.vary} <= _ON_THE_LINE)


def _pictures(
    settings: PuzzlesConfig, entries: Sequence[Entry]
) -> dict[str, Callable[[], Picture]]:
    partners = {entry.name: random_partner(entry, entries) for entry in entries}
    shown = {partner.name for partner in partners.values() if partner is not None}
    pictures: dict[str, Callable[[], Picture]] = {}
    for entry in entries:
        name, partner = entry.name, partners[entry.name]
        if name in shown:
            continue
        if entry.settings.vary == "width":
            pictures[f"{name}-width"] = partial(trends.width, entry)
        elif entry.settings.vary == "samples":
            both = [entry] if partner is None else [entry, partner]
            pictures[f"{name}-errors"] = partial(trends.sample_errors, both)
            pictures[f"{name}-losses"] = partial(trends.sample_losses, both)
        else:
            lines = settings.reference if entry.settings.by == "layers" else ()
            pictures |= {
                f"{name}-losses": partial(losses, entry, partner, lines),
                f"{name}-capacity": partial(families.capacity, entry, partner),
                f"{name}-outputs": partial(families.outputs, entry),
                f"{name}-margins": partial(families.margins, entry, partner),
                f"{name}-trend": partial(trends.against_value, entry),
            }
            if entry.settings.reference_loss is not None:
                pictures[f"{name}-product"] = partial(families.product_at_loss, entry)
    return pictures
