"""Figures of level statistics and of the experiments: what they show is computed here and drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.errors import DataError
from hessrmt.generalization.lines import LineFit, fit_line
from hessrmt.levels.analysis import long_range, ratio_histogram, spacing_histogram
from hessrmt.levels.density import decade_histograms, density_histograms, mean_counts
from hessrmt.levels.selection import select
from hessrmt.lossmodel.bulk import sampled_density
from hessrmt.plots import levels, lossmodel, puzzles, training
from hessrmt.plots.files import Drawn, draw_each
from hessrmt.plots.style import of_spectra

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from hessrmt.config import PuzzlesConfig, ReferenceLine
    from hessrmt.generalization.budget import BudgetFit
    from hessrmt.levels.analysis import Unfolded
    from hessrmt.records import Spectrum
    from hessrmt.workflows import averaged, familyfits, gp_loss_model

Pictures = dict[str, Callable[[], "Figure"]]
"""Name of a picture to what computes and draws it."""

_CUT, _RATIO_BINS = 5.0, 40
"""Of the ratios of sampled Hessians."""

_CONVENTIONS = {
    "paper": "Covariance as printed: a = k''(0), c = k'(0)²",
    "stationary": "Stationary process: a = c = k''(0)",
}
_MARKS = "* with degenerate directions, † with outliers"

_RANKS, _PER_DECADE = 40, 3
_AVERAGED = ("test_loss", "test_error", "train_loss")

_ON_THE_LINE = {"initial-scale", "corruption"}
"""What is varied in families whose losses lie on one line."""


def draw_all(
    unfolded: Unfolded,
    folder: Path,
    ending: str = "png",
    title: str = "",
    *,
    surrogates: int = 0,
    seed: int = 0,
) -> list[Drawn]:
    """Draw everything there is to see of some levels, one file for each picture.

    The files are ``spacings``, ``ratios``, ``ratios-unfolded`` (r up to 10), ``density``,
    ``density-per-decade``, ``staircase`` (of the first spectrum that was unfolded),
    ``number-variance``, ``rigidity`` and ``form-factor``.

    Args:
        unfolded: The unfolded levels.
        folder: Where; made if it doesn't exist.
        ending: Of the files: png, pdf, svg or any other that matplotlib writes.
        title: Above every picture.
        surrogates: As for :func:`hessrmt.levels.spacing_histogram`.
        seed: Of the surrogates.

    Returns:
        For each picture its file, or the reason why there is none.
    """
    rows = unfolded.selection.levels
    group = {of_spectra(len(rows)): rows}
    first = next((i for i, row in enumerate(unfolded.levels) if row is not None), 0)
    pictures = _histograms(unfolded, title, surrogates, seed) | {
        "density": partial(_densities, group, title),
        "density-per-decade": partial(_decades, group, title),
        "staircase": lambda: levels.staircase(unfolded, first, title),
        "number-variance": lambda: long_range(unfolded, "number_variance").plot(title),
        "rigidity": lambda: long_range(unfolded, "rigidity").plot(title),
        "form-factor": lambda: long_range(unfolded, "form_factor").plot(title),
    }
    return draw_each(pictures, folder, ending)


def spacings_figures(
    unfolded: Mapping[str, Unfolded],
    control: Sequence[Spectrum],
    folder: Path,
    ending: str = "png",
    *,
    surrogates: int = 200,
    seed: int = 0,
) -> list[Drawn]:
    """Densities, the surmise, and histograms of spacings and ratios of every run.

    Args:
        unfolded: Name of a run to its unfolded levels.
        control: Spectra of the GOE, drawn beside the densities.
        folder: Where; made if it doesn't exist.
        ending: Of the files.
        surrogates: As for :func:`hessrmt.levels.spacing_histogram`.
        seed: Of the surrogates.

    Returns:
        For each picture its file, or the reason why there is none.

    Source: Baskerville, Granziol and Keating (2022), Figs. 1 to 4.
    """
    goe = [item.eigenvalues for item in control]
    pictures: Pictures = {
        "surmise": partial(levels.surmise, "Wigner's surmise and the exact GOE law")
    }
    for name, item in unfolded.items():
        pictures |= {
            f"{name}-density": partial(_densities, {"GOE": goe, name: item.selection.levels}, name),
            f"{name}-density-per-decade": partial(_decades, {name: item.selection.levels}, name),
        }
        found = _histograms(item, name, surrogates, seed)
        pictures |= {f"{name}-{kind}": draw for kind, draw in found.items()}
    return draw_each(pictures, folder, ending)


def _densities(groups: Mapping[str, Sequence[Any]], title: str) -> Figure:
    return levels.spectral_density(density_histograms(groups), title)


def _decades(groups: Mapping[str, Sequence[Any]], title: str) -> Figure:
    return levels.density_per_decade(decade_histograms(groups), title)


def _histograms(unfolded: Unfolded, title: str, surrogates: int, seed: int) -> Pictures:
    alike, selection = {"surrogates": surrogates, "seed": seed}, unfolded.selection
    return {
        "spacings": lambda: spacing_histogram(unfolded, **alike).plot(title),
        "ratios": lambda: ratio_histogram(selection).plot(title),
        "ratios-unfolded": lambda: ratio_histogram(selection, folded=False).plot(title),
    }


def loss_model_figures(
    figures: Mapping[str, Sequence[gp_loss_model.Entry]], folder: Path, ending: str = "png"
) -> list[Drawn]:
    """Densities and ratios of sampled Hessians.

    Args:
        figures: Name of a figure to its panels; densities where it begins with ``fig5``, else
            ratios.
        folder: Where; made if it doesn't exist.
        ending: Of the files.

    Returns:
        For each picture its file, or the reason why there is none.
    """
    pictures: Pictures = {}
    for name, panels in figures.items():
        convention = name.partition("-")[2]
        title = f"{_CONVENTIONS.get(convention, convention)}\n{_MARKS}"
        draw = sampled_densities if name.startswith("fig5") else sampled_ratios
        pictures[name] = partial(draw, panels, title)
    return draw_each(pictures, folder, ending)


def sampled_densities(panels: Sequence[gp_loss_model.Entry], title: str = "") -> Figure:
    """Density of the levels of each panel, beside its large-matrix law.

    Args:
        panels: At least one.
        title: Above the picture.

    Returns:
        The picture.
    """
    found = {
        item.label: sampled_density(
            item.spectra,
            item.covariance,
            item.n,
            item.outliers,
            item.outlier_scale,
            item.degenerate,
        )
        for item in panels
    }
    return lossmodel.densities(found, title)


def sampled_ratios(panels: Sequence[gp_loss_model.Entry], title: str = "") -> Figure:
    """Ratios of neighbouring spacings of each panel, beside the laws of the GOE.

    Args:
        panels: At least one.
        title: Above the picture.

    Returns:
        The picture: r up to 5.
    """
    found = {}
    for item in panels:
        selection = select(list(item.spectra))
        shape = ratio_histogram(selection, folded=False, cut=_CUT, bins=_RATIO_BINS)
        found[item.label] = shape, item.means
    return lossmodel.ratios(found, title)


def averaging_figures(
    entries: Sequence[averaged.Entry], folder: Path, ending: str = "png"
) -> list[Drawn]:
    """Losses and errors over the epochs, and spectra, of each network.

    Args:
        entries: All points of all networks and rates.
        folder: Where; made if it doesn't exist.
        ending: Of the files.

    Returns:
        For each picture its file, or the reason why there is none.
    """
    pictures: Pictures = {}
    for model in dict.fromkeys(entry.model for entry in entries):
        part = [entry for entry in entries if entry.model == model]
        stem = model.rpartition(":")[2].replace("/", "_")
        pictures[f"{stem}-losses"] = partial(_averaged_losses, part, model)
        pictures[f"{stem}-spectra"] = partial(_averaged_spectra, part, model)
    return draw_each(pictures, folder, ending)


def _averaged_losses(entries: Sequence[averaged.Entry], title: str) -> Figure:
    curves = [{what: entry.curve(what) for what in _AVERAGED} for entry in entries]
    known = [
        what for what in _AVERAGED if all(np.isfinite(found[what][1]).all() for found in curves)
    ]
    means = [{what: _mean_curve(*found[what]) for what in known} for found in curves]
    return training.averaged_losses(_by_rate(entries, means), title)


def _averaged_spectra(entries: Sequence[averaged.Entry], title: str) -> Figure:
    if not all(entry.spectra for entry in entries):
        raise DataError("no Hessians were computed for this network")
    certified = [[seed[0].resolved for seed in entry.spectra] for entry in entries]
    every = np.concatenate([row for rows in certified for row in rows])
    low, high = np.floor(np.log10(np.abs(every).min())), np.ceil(np.log10(np.abs(every).max()))
    edges = np.arange(low, high + 0.5 / _PER_DECADE, 1 / _PER_DECADE)
    sides = {"λ > 0": 1} | ({"λ < 0": -1} if (every < 0).any() else {})
    found = []
    for rows in certified:
        top = min(_RANKS, *(int((row > 0).sum()) for row in rows))
        ranked = _mean_curve(np.arange(1, top + 1), np.array([row[::-1][:top] for row in rows]))
        logs = {s: [np.log10(x * row[x * row > 0]) for row in rows] for s, x in sides.items()}
        found.append((ranked, {side: mean_counts(part, edges)[0] for side, part in logs.items()}))
    return training.averaged_spectra(_by_rate(entries, found), edges, title)


def _mean_curve(x: np.ndarray, values: np.ndarray) -> tuple[Any, Any, Any]:
    """Means over the rows of values, and their standard errors, None of one row."""
    error = values.std(axis=0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
    return x, values.mean(axis=0), error


def _by_rate(entries: Sequence[averaged.Entry], found: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Learning rate in words to point to what was found there."""
    rates: dict[str, dict[str, Any]] = {}
    for entry, item in zip(entries, found, strict=True):
        lr = f"{entry.lr:g}" if entry.final_lr is None else f"{entry.lr:g} to {entry.final_lr:g}"
        rates.setdefault(f"{entry.rate}, {lr}", {})[entry.point] = item
    return rates


def budget_figures(
    curves: Mapping[str, training.Curve],
    fits: Mapping[str, BudgetFit],
    folder: Path,
    ending: str = "png",
) -> list[Drawn]:
    """The best validation loss and error against the budget, with the fitted laws.

    Args:
        curves: ``"loss"`` and ``"error"`` to budgets, means over seeds and standard errors.
        fits: The same names to their fits, where there are any.
        folder: Where; made if it doesn't exist.
        ending: Of the file.

    Returns:
        The picture's file.
    """
    return draw_each({"budget": partial(training.budget, curves, fits)}, folder, ending)


def puzzles_figures(
    settings: PuzzlesConfig,
    entries: Sequence[familyfits.Entry],
    folder: Path,
    ending: str = "png",
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
        folder: Where; made if it doesn't exist.
        ending: Of the files.

    Returns:
        For each picture its file, or the reason why there is none; for a family without finished
        networks one such reason.

    Source: Generalization Puzzles (2020), Figs. 1 to 6, 10 to 16, 19, 20, Appendix J.
    """
    finished = [entry for entry in entries if entry.result.members]
    drawn = draw_each(_family_pictures(settings, finished), folder, ending)
    missing = "no network of this family is finished"
    return [Drawn(e.name, None, missing) for e in entries if not e.result.members] + drawn


def random_partner(
    entry: familyfits.Entry, entries: Sequence[familyfits.Entry]
) -> familyfits.Entry | None:
    """The family with random labels that belongs into the pictures of one with natural labels.

    Args:
        entry: A family.
        entries: All families.

    Returns:
        The first one of the same networks, data and normalisation, where both vary the samples, or
        each the initial scale or the corruption; None if there is none.
    """
    one = entry.settings
    for other in entries:
        two = other.settings
        same = all(getattr(one, x) == getattr(two, x) for x in ("model", "data", "norm", "by"))
        alike = one.vary == two.vary == "samples" or {one.vary, two.vary} <= _ON_THE_LINE
        if two.labels == "random" and same and alike:
            return other if one.labels == "natural" else None
    return None


def family_losses(
    entry: familyfits.Entry,
    random: familyfits.Entry | None = None,
    references: Sequence[ReferenceLine] = (),
) -> Figure:
    """Test against training losses of a family, with the line fitted to it.

    Args:
        entry: A family.
        random: A family of the same networks that was trained on random labels.
        references: Published lines of normalised networks.

    Returns:
        The picture, see :func:`hessrmt.plots.puzzles.losses`.
    """
    lines = {prefix: _lines(entry, random, prefix) for prefix in ("", "normalized_")}
    return puzzles.losses(entry, lines, random, references)


def _lines(
    entry: familyfits.Entry, random: familyfits.Entry | None, prefix: str
) -> tuple[LineFit | str, LineFit | None]:
    """The line of a family, or why there is none, and that of all points."""
    names = [f"{prefix}{split}_loss" for split in ("train", "test")]
    own = [entry.result.column(name) for name in names]
    try:
        line = fit_line(*own)
    except DataError as error:
        return str(error), None
    if random is None:
        return line, None
    others = [random.result.column(name) for name in names]
    return line, fit_line(*map(np.append, own, others))


def _family_pictures(settings: PuzzlesConfig, entries: Sequence[familyfits.Entry]) -> Pictures:
    partners = {entry.name: random_partner(entry, entries) for entry in entries}
    shown = {partner.name for partner in partners.values() if partner is not None}
    pictures: Pictures = {}
    for entry in entries:
        name, partner = entry.name, partners[entry.name]
        if name in shown:
            continue
        if entry.settings.vary == "width":
            pictures[f"{name}-width"] = partial(puzzles.width, entry)
        elif entry.settings.vary == "samples":
            both = [entry] if partner is None else [entry, partner]
            pictures[f"{name}-errors"] = partial(puzzles.sample_errors, both)
            pictures[f"{name}-losses"] = partial(puzzles.sample_losses, both)
        else:
            lines = settings.reference if entry.settings.by == "layers" else ()
            pictures |= {
                f"{name}-losses": partial(family_losses, entry, partner, lines),
                f"{name}-capacity": partial(puzzles.capacity, entry, partner),
                f"{name}-outputs": partial(puzzles.outputs, entry),
                f"{name}-margins": partial(puzzles.margins, entry, partner),
                f"{name}-trend": partial(puzzles.against_value, entry),
            }
            if entry.settings.reference_loss is not None:
                pictures[f"{name}-product"] = partial(puzzles.product_at_loss, entry)
    return pictures
