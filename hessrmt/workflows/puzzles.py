"""``reproduce puzzles-...``: what training losses of normalised networks say about test losses.

[G] trains families of networks that differ in their initial scale, in wrong labels before training,
in width or in the number of samples. Divided by the norms of their layers, their test losses lie on
a line over their training losses, and networks trained on random labels lie on it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hessrmt.workflows import families
from hessrmt.workflows.cluster import SERIAL
from hessrmt.workflows.familyfits import Entry, Line, gap_law, gaps_of, lines
from hessrmt.workflows.reproduce import Observer, preset_of, silent, table_in_markdown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hessrmt.config import PuzzlesConfig
    from hessrmt.store.family import Member
    from hessrmt.workflows.cluster import Pool

__all__ = ["SHOWN", "Entry", "columns", "fits", "markdown", "run", "sentences", "table"]

SHOWN = {
    "no training error": "no training\nerror",
    "test error": "test error",
    "train loss of f̃": "train loss\nof f̃",
    "test loss of f̃": "test loss\nof f̃",
}
"""Columns for the terminal, and their headings there."""

_WORDS = {
    "initial-scale": "initial scale",
    "corruption": "corrupted share",
    "width": "width",
    "samples": "samples",
}


def run(
    settings: PuzzlesConfig,
    preset: str,
    out: Path,
    *,
    folder: Path | None = None,
    observer: Observer | None = None,
    pool: Pool = SERIAL,
) -> list[Entry]:
    """Train every network that is not trained yet, and read all of them.

    Args:
        settings: Of the experiment.
        preset: Which size.
        out: Folder for families and checkpoints; a folder of an earlier run is continued.
        folder: Where to look for data first.
        observer: Told of progress.
        pool: Where networks are trained; see :func:`hessrmt.workflows.families.run_all`.

    Returns:
        One entry for each family, in the order of the settings.
    """
    size = preset_of(settings, preset)
    observer = observer or silent
    for family in size.families:
        families.samples_of(family, settings.seed, folder)  # what is missing is said at once
    results = families.run_all(
        size.families,
        out,
        seed=settings.seed,
        device=settings.device,
        folder=folder,
        observer=observer,
        pool=pool,
    )
    found = [
        Entry(family.name, family, result, settings.reference)
        for family, result in zip(size.families, results, strict=True)
    ]
    observer("done", len(found), len(found))
    return found


def table(entries: list[Entry]) -> list[dict[str, Any]]:
    """Rows of the results table.

    Args:
        entries: From :func:`run`.

    Returns:
        One row for each network, as plain values.
    """
    return [
        {
            "run": f"{entry.name}-{index}",
            "family": entry.name,
            "vary": entry.settings.vary,
            "labels": entry.settings.labels,
            "value": member.value,
            "parameters": member.parameters,
            "epoch": member.epoch,
            "train_loss": member.train_loss,
            "test_loss": member.test_loss,
            "train_error": member.train_error,
            "test_error": member.test_error,
            "normalized_train_loss": member.normalized_train_loss,
            "normalized_test_loss": member.normalized_test_loss,
            "product": member.product,
            "factors": list(member.factors),
            "margin": member.margin,
            "normalized_margin": member.normalized_margin,
            "top_output_mean": member.top_output_mean,
            "top_output_std": member.top_output_std,
            "raw_top_output_mean": member.raw_top_output_mean,
            "raw_top_output_std": member.raw_top_output_std,
        }
        for entry in entries
        for index, member in enumerate(entry.result.members)
    ]


def columns(entry: Entry) -> dict[str, str]:
    """One family for people.

    Args:
        entry: A family.

    Returns:
        Heading to cell.
    """
    members = entry.result.members
    return {
        "family": entry.name,
        "network": entry.settings.model,
        "labels": entry.settings.labels,
        "varied": f"{_WORDS[entry.settings.vary]} {_range(members, 'value', 'g')}",
        "no training error": f"{entry.perfect} of {len(members)}",
        "train loss": _range(members, "train_loss", ".2g"),
        "test loss": _range(members, "test_loss", ".3g"),
        "test error": _range(members, "test_error", ".1%"),
        "train loss of f̃": _range(members, "normalized_train_loss", ".4f"),
        "test loss of f̃": _range(members, "normalized_test_loss", ".4f"),
        "product of norms": _range(members, "product", ".3g"),
    }


def markdown(entries: list[Entry]) -> str:
    """Families, lines beside the published ones, and networks, for people.

    Args:
        entries: From :func:`run`.

    Returns:
        Markdown.
    """
    parts = [table_in_markdown([columns(entry) for entry in entries])]
    rows = [row for line in lines(entries) for row in _rows(line)]
    rows += [
        {
            "line": f"[G] {line.label}",
            "slope": f"{line.slope:g}",
            "intercept": f"{line.intercept:g}",
            "R²": "-" if line.r2 is None else f"{line.r2:.4f}",
            "adjusted R²": "-",
            "RMSE": "-" if line.rmse is None else f"{line.rmse:.2g}",
            "networks": "-",
        }
        for line in (entries[0].reference if entries else ())
    ]
    if rows:
        parts.append(table_in_markdown(rows))
    parts += [
        table_in_markdown([_cells(entry, member) for member in entry.result.members])
        for entry in entries
    ]
    return "\n".join(parts)


def sentences(entries: list[Entry]) -> dict[str, str]:
    """What was found, in a sentence for each line, and for each family that has none.

    Args:
        entries: From :func:`run`.

    Returns:
        Name to sentence.
    """
    found = {", ".join(line.families): _sentence(line) for line in lines(entries)}
    for entry in entries:
        members = entry.result.members
        if entry.settings.vary not in {"width", "samples"}:
            continue
        errors = f"{members[0].test_error:.2%} to {members[-1].test_error:.2%}"
        gaps = gaps_of(members)
        text = (
            f"from {members[0].value:g} to {members[-1].value:g} ({_WORDS[entry.settings.vary]}) "
            f"the test error goes from {errors}, the gap between test and training loss from "
            f"{members[0].test_loss - members[0].train_loss:.3g} to "
            f"{members[-1].test_loss - members[-1].train_loss:.3g}, that of the normalised "
            f"networks from {gaps[0]:.2g} to {gaps[-1]:.2g}"
        )
        law = gap_law(entry)
        if law is not None:
            text += f", as samples^({law.slope:.2f} ± {law.slope_error:.2f})"
        found[entry.name] = (
            f"{text}; {entry.perfect} of {len(members)} networks have no training error."
        )
    return found


def fits(entries: list[Entry]) -> dict[str, Any]:
    """The lines as plain values.

    Args:
        entries: From :func:`run`.

    Returns:
        Slope, intercept, R², adjusted R² and RMSE of the first line of normalised losses, if there
        is one; ``lines`` with all of them; ``gaps`` with the exponents of families over samples;
        ``reference`` with the published lines.
    """
    found = lines(entries)
    first = found[0].normalized.to_dict() if found else {}
    laws = {entry.name: gap_law(entry) for entry in entries}
    return {
        **first,
        "lines": [line.to_dict() for line in found],
        "gaps": {name: law.to_dict() for name, law in laws.items() if law is not None},
        "reference": [line.model_dump() for line in (entries[0].reference if entries else ())],
    }


def _sentence(line: Line) -> str:
    fit, raw = line.normalized, line.unnormalized
    before = "has none" if raw is None else f"= {raw.r2:.4f}"
    text = (
        f"normalised, test loss = {fit.slope:.4f} · training loss {fit.intercept:+.4f} with "
        f"R² = {fit.r2:.5f} over {line.networks} networks; unnormalised R² {before}. "
        f"{line.perfect} of them have no training error."
    )
    for point in line.random:
        text += (
            f" Random labels ({point.family}): {point.sigmas:+.1f} standard deviations from the "
            f"line ({point.relative:+.1%} of its range), "
            f"{'inside' if point.inside else 'outside'} the 95 % prediction band."
        )
    if line.with_random is not None:
        text += f" With random labels in the fit R² = {line.with_random.r2:.5f}."
    return text


def _rows(line: Line) -> list[dict[str, str]]:
    kinds = {
        "normalised": line.normalized,
        "normalised, with random labels": line.with_random,
        "unnormalised": line.unnormalized,
        "unnormalised, with random labels": line.with_random_unnormalized,
    }
    return [
        {
            "line": f"{', '.join(line.families)}: {kind}",
            "slope": f"{fit.slope:.4f} ± {fit.slope_error:.4f}",
            "intercept": f"{fit.intercept:.4f} ± {fit.intercept_error:.4f}",
            "R²": f"{fit.r2:.5f}",
            "adjusted R²": f"{fit.adjusted_r2:.5f}",
            "RMSE": f"{fit.rmse:.2g}",
            "networks": str(fit.n),
        }
        for kind, fit in kinds.items()
        if fit is not None
    ]


def _cells(entry: Entry, member: Member) -> dict[str, str]:
    return {
        entry.name: f"{_WORDS[entry.settings.vary]} {member.value:g}",
        "parameters": f"{member.parameters:,}",
        "epoch": str(member.epoch),
        "train loss": f"{member.train_loss:.3g}",
        "test loss": f"{member.test_loss:.4g}",
        "train error": f"{member.train_error:.2%}",
        "test error": f"{member.test_error:.2%}",
        "train loss of f̃": f"{member.normalized_train_loss:.6f}",
        "test loss of f̃": f"{member.normalized_test_loss:.6f}",
        "product of norms": f"{member.product:.4g}",
        "smallest margin of f̃": f"{member.normalized_margin:.3g}",
    }


def _range(members: Sequence[Member], name: str, form: str) -> str:
    values = sorted(getattr(member, name) for member in members)
    low, high = f"{values[0]:{form}}", f"{values[-1]:{form}}"
    return low if low == high else f"{low}–{high}"
