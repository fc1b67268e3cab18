"""``hessrmt levels``: from a spectrum file to a statement about random matrix theory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hessrmt.cli import console
from hessrmt.cli.options import (
    Json,
    PictureFormat,
    PlotFolder,
    Scheduler,
    Workers,
    pool_of,
    with_settings,
)
from hessrmt.config import LevelsConfig

if TYPE_CHECKING:
    from rich.console import Console

    from hessrmt.levels import LawFit, LevelStatistics
    from hessrmt.records import Spectra

_NONE = "not computable"


@with_settings
def levels(
    file: Annotated[Path, typer.Argument(help="A spectrum file.")],
    settings: LevelsConfig,
    plot: PlotFolder = None,
    picture: PictureFormat = "png",
    workers: Workers = None,
    scheduler: Scheduler = None,
    json: Json = False,
) -> None:
    """Compare the levels of a spectrum file with the laws of random matrix theory.

    Ratios of neighbouring spacings, unfolded spacings, their distance to each law, p-values from
    surrogate spectra, and one sentence of conclusion.
    """
    from hessrmt.runs.levels import open_spectra, run

    if plot is not None:
        from hessrmt.plots.files import checked_ending, require_folder

        checked_ending(picture)
        require_folder(plot)
    spectra = open_spectra(file)
    with pool_of(workers, scheduler, "cpu") as pool, console.progress() as display:
        found = run(settings, spectra, console.Meter(display), pool)
    for statistics in found.values():
        for note in statistics.notes:
            console.note(note)
    to = console.results(json)
    if settings.compare:
        _show_comparison(found, spectra, to)
    else:
        _show(next(iter(found.values())), spectra, to)
    if plot is not None:
        _draw(settings, spectra, file, plot, picture)
    if json:
        plain = {name: statistics.to_dict() for name, statistics in found.items()}
        console.emit_json(plain if settings.compare else next(iter(plain.values())))


def _show(found: LevelStatistics, spectra: Spectra, to: Console) -> None:
    from hessrmt.levels.analysis import SHORT

    title = f"{_title(spectra)}, cutoff {_cutoff_in_words(found)}"
    to.print(console.escape(title), soft_wrap=True)
    table = console.table("", "⟨r̃⟩", "σ away", "D(r̃)", "p", "D(s)", "p")
    for name, law in found.laws.items():
        table.add_row(
            SHORT[name],
            f"{law.mean_ratio:.4f}",
            _number(law.sigmas, "+.1f"),
            _number(law.ratio_distance, ".4f"),
            _p(law.ratio_p_value, found),
            _number(law.spacing_distance, ".4f"),
            _p(law.spacing_p_value, found),
        )
    to.print(table)
    for name, value in _facts(found).items():
        to.print(f"{name}: {console.escape(value)}", soft_wrap=True)
    fifths = zip(found.mean_ratio_fifths, found.mean_ratio_fifths_error, strict=True)
    shown = ", ".join(_with_error(value, error) for value, error in fifths)
    to.print(f"⟨r̃⟩ by fifths, lowest levels first: {shown}", soft_wrap=True)
    to.print(f"[bold]{console.escape(_sentence(found))}[/bold]", soft_wrap=True)
    _show_reasons(found)


def _show_comparison(found: dict[str, LevelStatistics], spectra: Spectra, to: Console) -> None:
    from hessrmt.levels.analysis import SHORT

    to.print(console.escape(_title(spectra)), soft_wrap=True)
    headings = (f"{item.cutoff}\n{_cutoff_in_words(item)}" for item in found.values())
    table = console.table("", *headings)
    facts = [_facts(statistics) for statistics in found.values()]
    for name in facts[0]:
        if name != "unfolding":  # long, and the same for both
            table.add_row(name, *(fact[name] for fact in facts))
    for law in next(iter(found.values())).laws:
        table.add_row(
            f"{SHORT[law]}: D(r̃), p",
            *(_ratio_cell(item.laws[law], item) for item in found.values()),
        )
    for law in ("goe", "poisson"):
        table.add_row(
            f"{SHORT[law]}: D(s), p",
            *(_spacing_cell(item.laws[law], item) for item in found.values()),
        )
    to.print(table)
    to.print(f"unfolding: {console.escape(facts[0]['unfolding'])}", soft_wrap=True)
    for name, statistics in found.items():
        to.print(f"[bold]{name}[/bold]: {console.escape(_sentence(statistics))}", soft_wrap=True)
    to.print(console.escape(_round_off(found)), soft_wrap=True)
    for statistics in found.values():
        _show_reasons(statistics)


def _title(spectra: Spectra) -> str:
    source = console.source_in_words(spectra.provenance.config)
    return f"Levels of {source}: {len(spectra)} spectra"


def _cutoff_in_words(found: LevelStatistics) -> str:
    if found.cutoff == "certified":
        return "|λ| > noise floor"
    return "|λ| > 1e-20" if found.cutoff == "paper" else f"|λ| > {found.cutoff:g}"


def _facts(found: LevelStatistics) -> dict[str, str]:
    return {
        "levels used": f"{found.n_levels:,}",
        "discarded (exact zeros)": f"{found.n_discarded:,} ({found.n_zeros:,})",
        "ties, spacings below floor": f"{found.n_ties:,}, {found.n_unresolved:,}",
        "⟨r̃⟩": _with_error(found.mean_ratio, found.mean_ratio_error),
        "⟨r̃⟩ of GOE, this density": _number(found.mean_ratio_density, ".4f"),
        "unfolding": found.unfolding,
        "mean unfolded spacing": _number(found.mean_spacing, ".4f"),
        "Brody parameter": _with_error(found.brody, found.brody_error),
        "share of a 2nd block": _with_error(found.superposition, found.superposition_error),
    }


def _sentence(found: LevelStatistics) -> str:
    text = found.conclusion
    return text[0].upper() + text[1:] + "."


def _round_off(found: dict[str, LevelStatistics]) -> str:
    paper, certified = found["paper"], found["certified"]
    false = paper.n_levels - certified.n_levels
    if false > 0:
        return (
            f"{false:,} of the {paper.n_levels:,} levels that the published cutoff keeps "
            f"({false / paper.n_levels:.0%}) lie below the noise floor: they can't be told from "
            "round-off, whose statistics are no property of the network."
        )
    return (
        f"Both cutoffs keep the same levels: the {certified.n_zeros:,} null directions of this "
        "file were found exactly and removed before diagonalising. A file made with --reduce none "
        "shows what the published protocol takes for levels."
    )


def _show_reasons(found: LevelStatistics) -> None:
    named: dict[str, str] = {}
    for name, reason in found.not_computable.items():
        named.setdefault(reason, name)  # one line for each reason
    for reason, name in named.items():
        console.note(f"not computable: {name}: {reason}")


def _ratio_cell(law: LawFit, found: LevelStatistics) -> str:
    return f"{_number(law.ratio_distance, '.4f')}, {_p(law.ratio_p_value, found)}"


def _spacing_cell(law: LawFit, found: LevelStatistics) -> str:
    return f"{_number(law.spacing_distance, '.4f')}, {_p(law.spacing_p_value, found)}"


def _p(value: float | None, found: LevelStatistics) -> str:
    if value is None:
        return "not computable"
    smallest = 1 / (1 + found.surrogates)
    return f"≤ {smallest:.1g}" if value <= smallest else f"{value:.2g}"


def _number(value: float, form: str) -> str:
    return console.number(value, form, _NONE)


def _with_error(value: float, error: float) -> str:
    return console.with_error(value, error, otherwise=_NONE)


def _draw(settings: LevelsConfig, spectra: Spectra, file: Path, folder: Path, ending: str) -> None:
    from hessrmt.errors import DataError
    from hessrmt.plots.files import draw_each
    from hessrmt.runs.levels import pictures, unfolded

    try:
        found = unfolded(settings, spectra)
    except DataError as error:
        console.note(f"not drawn: {error}")
        return
    for name, item in found.items():
        target, title = folder / name if settings.compare else folder, f"{file.stem}, {name}"
        shown = pictures(item, title, surrogates=settings.surrogates, seed=settings.seed)
        console.drawn(draw_each(shown, target, ending))
