"""``hessrmt levels``: from a spectrum file to a statement about random matrix theory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hessrmt.cli import console
from hessrmt.cli.options import (
    Out,
    Overwrite,
    PictureFormat,
    PlotFolder,
    Report,
    Scheduler,
    Workers,
    check_pictures,
    pool_of,
    require_result,
    with_settings,
)
from hessrmt.config import LevelsConfig

if TYPE_CHECKING:
    from hessrmt.levels import LevelStatistics
    from hessrmt.records import Spectra

_LAW = {
    "mean_ratio": ("⟨r̃⟩", ".4f"),
    "sigmas": ("σ away", "+.1f"),
    "ratio_distance": ("D(r̃)", ".4f"),
    "spacing_distance": ("D(s)", ".4f"),
}
"""Attributes of a comparison with a law that are columns: heading and format."""


@with_settings
def levels(
    file: Annotated[Path, typer.Argument(help="A spectrum file.")],
    settings: LevelsConfig,
    block: Annotated[
        str | None,
        typer.Option(
            "--block",
            metavar="NAME",
            help="Of a file of blocks (spectrum --blocks): one's name, or all, each by itself.",
        ),
    ] = None,
    out: Out = None,
    plot: PlotFolder = None,
    picture: PictureFormat = "png",
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> Report:
    """Compare the levels of a spectrum file with the laws of random matrix theory.

    Ratios of neighbouring spacings, unfolded spacings, their distance to each law, p-values from
    surrogate spectra, and one sentence of conclusion.

    Returns:
        What --json prints; --csv writes a row for each cutoff and block.

    Raises:
        ConfigError: If --out names a file that cannot be written, or several results are to go
            into it.
    """
    from hessrmt.errors import ConfigError
    from hessrmt.runs.levels import ALL, open_spectra

    check_pictures(plot, picture)
    if out is not None:
        require_result(out, may_exist=overwrite)
        if settings.compare or block == ALL:
            raise ConfigError("--out keeps one result; leave out --compare and --block all")
    results: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    blocks = open_spectra(file, block)
    for name, spectra in blocks.items():
        with pool_of(workers, scheduler, settings.device) as pool, console.Meter() as tick:
            given = {"file": str(file)} | ({"block": name} if name else {})
            found = _analysed(settings, spectra, given, len(blocks) > 1, tick, pool)
        if not found:
            results[name] = None
            continue
        _show(found, spectra, name)
        if plot is not None:
            _draw(settings, spectra, found, file, plot / name if name else plot, picture)
        plain = {cutoff: statistics.to_dict() for cutoff, statistics in found.items()}
        results[name] = plain if settings.compare else next(iter(plain.values()))
        if out is not None:
            next(iter(found.values())).save(out, overwrite=overwrite)
            console.note(f"written: {out}")
        rows += [({"block": name} if name else {}) | _flat_row(one) for one in plain.values()]
    plain = {"blocks": results} if block == ALL else next(iter(results.values()))
    return Report(plain, lambda: rows)


def _flat_row(plain: dict[str, Any]) -> dict[str, Any]:
    """Statistics side by side: numbers and words; places of fifths and of higher orders counted."""
    from hessrmt.results import flat

    counted = {
        name: dict(enumerate(value)) if isinstance(value, list) else value
        for name, value in plain.items()
        if name not in {"notes", "not_computable"}
    }
    return flat(counted)


def _analysed(
    settings: LevelsConfig,
    spectra: Spectra,
    given: dict[str, str],
    among_others: bool,
    tick: Any,
    pool: Any,
) -> dict[str, LevelStatistics]:
    """Statistics with each cutoff; none where a block among others has too few levels."""
    from hessrmt.errors import DataError
    from hessrmt.runs.levels import run

    try:
        return run(settings, spectra, tick, pool, given)
    except DataError as error:
        if not among_others:
            raise
        console.note(f"block {given['block']}: {error}")
        return {}


def _show(found: dict[str, LevelStatistics], spectra: Spectra, block: str) -> None:
    for statistics in found.values():
        console.note(*statistics.notes)
    source = console.source_in_words(spectra.provenance.config)
    source += f", block {block}" if block else ""
    facts = [_facts(statistics) for statistics in found.values()]
    rows = [(name, *(one[name] for one in facts)) for name in facts[0]]
    console.show(
        f"Levels of {source}: {console.counted(len(spectra), 'spectrum', 'spectra')}",
        console.table(("", *map(_cutoff_in_words, found.values())), rows),
        f"unfolding: {_unfolding_in_words(next(iter(found.values())))}",
    )
    for name, statistics in found.items():
        fifths = zip(statistics.mean_ratio_fifths, statistics.mean_ratio_fifths_error, strict=True)
        shown = ", ".join(console.with_error(value, error) for value, error in fifths)
        console.show(_laws(statistics, f"cutoff {name}" if len(found) > 1 else None))
        console.show(f"⟨r̃⟩ by fifths, lowest levels first: {shown}")
        if (beside := _beside(statistics)) is not None:
            console.show(beside)
        text = statistics.conclusion
        console.show(f"{text[0].upper()}{text[1:]}.", style="bold")
    if len(found) > 1:
        console.show(_round_off(found))
    for statistics in found.values():
        reasons: dict[str, str] = {}
        for name, reason in statistics.not_computable.items():
            reasons.setdefault(reason, name)  # one line for each reason
        console.note(*(f"not computable: {name}: {why}" for why, name in reasons.items()))


def _unfolding_in_words(found: LevelStatistics) -> str:
    failed = found.not_computable.get("spacings", "")
    return f"{found.unfolding}{failed and f' ({failed})'}"


def _laws(found: LevelStatistics, title: str | None) -> Any:
    from hessrmt.levels.analysis import SHORT
    from hessrmt.tables import probability

    rows = []
    for name, law in found.laws.items():
        *ratios, spacings = console.cells(law, _LAW)
        ps = [probability(found.p(law, name)) for name in ("p_value", "spacing_p_value")]
        excluded = {True: "yes", False: "no", None: "-"}[law.excluded]
        rows.append((SHORT[name], *ratios, ps[0], excluded, spacings, ps[1]))
    *ratios, spacings = console.headings(_LAW)
    return console.table(("", *ratios, "p", "excluded", spacings, "p"), rows, title)


_HIGHER = {
    "mean_ratio": "⟨r̃⟩ of every k-th level, k = {}",
    "overlapping": "⟨r̃⟩, overlapping, k = {}",
    "spacing_variance": "⟨(s - k)²⟩, k = {}",
}
"""Statistics of higher order as a table names them."""


def _row(words: str, found: Any, name: str, alike: Any) -> list[str]:
    value = console.with_error(getattr(found, name), getattr(found, f"{name}_error", None))
    return [words, value, *(console.number(x, ".4f") for x in alike)]


def _beside(found: LevelStatistics) -> Any:
    """What was measured beside what GOE and Poisson levels give in its place; None if nothing."""
    from hessrmt.levels.analysis import MEASURES
    from hessrmt.tables import probability

    rows = [[*_row(words, found, x, found.alike[x]), "-"] for x, words in MEASURES.items()]
    for one in found.higher:
        for name, words in _HIGHER.items():
            row = _row(words.format(one.order), one, name, getattr(one, f"{name}_alike"))
            p = f"{name}_p_value"
            rows.append([*row, probability(found.p(one, p) if hasattr(one, p) else None)])
    rows = [row for row in rows if row[1] != "-"]
    headings = "through the same unfolding", "data", "GOE", "Poisson", "p (GOE)"
    shown = slice(None if found.higher else -1)
    return console.table(headings[shown], [row[shown] for row in rows]) if rows else None


def _cutoff_in_words(found: LevelStatistics) -> str:
    if found.cutoff == "certified":
        return "certified:\n|λ| > noise floor"
    return "paper:\n|λ| > 1e-20" if found.cutoff == "paper" else f"|λ| > {found.cutoff:g}"


def _facts(found: LevelStatistics) -> dict[str, str]:
    return {
        "levels used (runs)": f"{found.n_levels:,} ({found.n_runs:,})",
        "discarded (exact zeros)": f"{found.n_discarded:,} ({found.n_zeros:,})",
        "ties, spacings below floor": f"{found.n_ties:,}, {found.n_unresolved:,}",
        "⟨r̃⟩": console.with_error(found.mean_ratio, found.mean_ratio_error),
        "⟨r̃⟩ of GOE, this density": console.number(found.mean_ratio_density, ".4f"),
        "mean unfolded spacing": console.number(found.mean_spacing, ".4f"),
        "Brody parameter": console.with_error(found.brody, found.brody_error),
    }


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
        f"Both cutoffs keep the same levels and leave out the {certified.n_zeros:,} exact zeros of "
        "this file; as such hessrmt stores null directions that it removes before diagonalising. A "
        "file made with --reduce none shows what the published protocol takes for levels."
    )


def _draw(
    settings: LevelsConfig,
    spectra: Spectra,
    statistics: dict[str, LevelStatistics],
    file: Path,
    folder: Path,
    ending: str,
) -> None:
    from hessrmt.errors import DataError
    from hessrmt.plots.files import draw_each
    from hessrmt.runs.levels import higher_orders, pictures, unfolded

    try:
        found = unfolded(settings, spectra)
    except DataError as error:
        console.note(f"not drawn: {error}")
        return
    for name, item in found.items():
        target, title = folder / name if settings.compare else folder, f"{file.stem}, {name}"
        count, seed, device = settings.surrogates, settings.seed, settings.device
        shown = pictures(item, title, surrogates=count, seed=seed, device=device)
        shown |= higher_orders(statistics[name], title)
        items = draw_each(shown, target, ending)
        console.drawn(items)
        console.note(*(f"written: {item.path}" for item in items if item.path))
