"""``reproduce hessian-spacings``: train, compute spectra, analyse, tabulate ([B], Figs. 1-4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hessrmt.config import LevelsConfig, SpectrumConfig, TrainConfig, load_settings
from hessrmt.workflows import levels, spectrum, train
from hessrmt.workflows.cluster import SERIAL
from hessrmt.workflows.reproduce import (
    Entry,
    Observer,
    make_folders,
    preset_of,
    silent,
    table_in_markdown,
)

if TYPE_CHECKING:
    from pathlib import Path

    from hessrmt.config import SpacingsConfig, SpacingsPreset
    from hessrmt.levels import LevelStatistics
    from hessrmt.workflows.cluster import Pool

PARAMETERS = ("untrained", "trained")

SHOWN = {
    "⟨r̃⟩ published": "⟨r̃⟩\n(1e-20)",
    "certified": "levels\n(certified)",
    "⟨r̃⟩ certified": "⟨r̃⟩\n(certified)",
    "σ from GOE": "σ from\nGOE",
}
"""Columns for the terminal, and their headings there."""


@dataclass(frozen=True)
class _Run:
    """One spectrum file to be made."""

    parameters: str
    settings: SpectrumConfig

    @property
    def name(self) -> str:
        s = self.settings
        parts = [s.model, self.parameters, str(s.batch), str(s.split)]
        if s.reduce == "none":
            parts.append("unreduced" if s.dtype == "float64" else f"unreduced-{s.dtype}")
        return "-".join(part.replace("/", "_").replace(":", "_") for part in parts)


def run(
    settings: SpacingsConfig,
    preset: str,
    out: Path,
    *,
    folder: Path | None = None,
    observer: Observer | None = None,
    pool: Pool = SERIAL,
) -> list[Entry]:
    """Do everything that is not done yet, and analyse all of it.

    Args:
        settings: Of the experiment.
        preset: Which size.
        out: Folder for checkpoints and spectra; a folder of an earlier run is continued.
        folder: Where to look for data first.
        observer: Told of progress.
        pool: Where spectra are computed and surrogates drawn.

    Returns:
        One entry for each spectrum file, in the order of the table.
    """
    size = preset_of(settings, preset)
    observer = observer or silent
    make_folders(out, "checkpoints", "spectra")
    for number, model in enumerate(size.models):
        observer(f"training {model}", number, len(size.models))
        train.run(
            load_settings(
                TrainConfig,
                model=model,
                data=settings.data,
                epochs=size.epochs,
                seed=settings.seed,
            ),
            _checkpoint(out, model),
            resume=True,
            folder=folder,
        )
    runs = _runs(settings, size, out)
    for number, item in enumerate(runs):
        observer(f"spectra of {item.name}", number, len(runs))
        prepared = spectrum.prepare(item.settings, folder)
        spectrum.run(prepared, _file(out, item), resume=True, pool=pool)
    found = []
    for number, item in enumerate(runs):
        observer(f"levels of {item.name}", number, len(runs))
        found.append(_entry(item, _file(out, item), settings.seed, pool))
    observer("done", len(runs), len(runs))
    return found


def table(entries: list[Entry]) -> list[dict[str, Any]]:
    """Rows of the results table.

    Args:
        entries: From :func:`run`.

    Returns:
        One row for each entry, as plain values; ``paper`` and ``certified`` hold the numbers.
    """
    return [
        {
            "run": entry.name,
            "model": entry.model,
            "parameters": entry.parameters,
            "split": entry.split,
            "batch": entry.batch,
            "precision": entry.precision,
            "reduced": entry.reduced,
            "spectra": len(entry.spectra),
            **{cutoff: _numbers(found) for cutoff, found in entry.statistics.items()},
        }
        for entry in entries
    ]


def columns(entry: Entry) -> dict[str, str]:
    """One row of the table for people.

    Args:
        entry: One spectrum file.

    Returns:
        Heading to cell.
    """
    paper, certified = entry.statistics["paper"], entry.statistics["certified"]
    goe = certified.laws["goe"]
    return {
        "network": f"{entry.model}, {entry.parameters}",
        "batch": f"{entry.batch}, {entry.split}",
        "matrix": f"{'reduced' if entry.reduced else 'whole'}, {entry.precision}",
        "spectra": str(certified.n_spectra),
        "levels: published": f"{paper.n_levels:,}",
        "certified": f"{certified.n_levels:,}",
        "⟨r̃⟩ published": _with_error(paper),
        "⟨r̃⟩ certified": _with_error(certified),
        "GOE, this density": f"{certified.mean_ratio_density:.4f}",
        "σ from GOE": f"{goe.sigmas:+.1f}",
        "p(r̃)": _p(goe.ratio_p_value, certified.surrogates),
        "p(s)": _p(goe.spacing_p_value, certified.surrogates),
        "Brody": f"{certified.brody:.3f}",
    }


def markdown(entries: list[Entry]) -> str:
    """The results table for people.

    Args:
        entries: From :func:`run`.

    Returns:
        Markdown.
    """
    return table_in_markdown([columns(entry) for entry in entries])


def sentences(entries: list[Entry]) -> dict[str, str]:
    """What was found, in a sentence each.

    Args:
        entries: From :func:`run`.

    Returns:
        Name of a run to its conclusion.
    """
    return {entry.name: entry.statistics["certified"].conclusion for entry in entries}


def _with_error(found: LevelStatistics) -> str:
    return f"{found.mean_ratio:.4f} ± {found.mean_ratio_error:.4f}"


def _p(value: float | None, surrogates: int) -> str:
    if value is None:
        return "-"
    smallest = 1 / (1 + surrogates)
    return f"≤ {smallest:.1g}" if value <= smallest else f"{value:.2g}"


def _numbers(found: LevelStatistics) -> dict[str, Any]:
    goe, two = found.laws["goe"], found.laws["goe2"]
    return {
        "n_levels": found.n_levels,
        "n_discarded": found.n_discarded,
        "n_zeros": found.n_zeros,
        "n_ties": found.n_ties,
        "n_unresolved": found.n_unresolved,
        "mean_ratio": found.mean_ratio,
        "mean_ratio_error": found.mean_ratio_error,
        "mean_ratio_density": found.mean_ratio_density,
        "mean_ratio_fifths": found.mean_ratio_fifths,
        "mean_ratio_fifths_error": found.mean_ratio_fifths_error,
        "sigmas_from_goe": goe.sigmas,
        "goe_ratio_distance": goe.ratio_distance,
        "goe_ratio_p_value": goe.ratio_p_value,
        "goe_spacing_distance": goe.spacing_distance,
        "goe_spacing_p_value": goe.spacing_p_value,
        "goe2_ratio_p_value": two.ratio_p_value,
        "brody": found.brody,
        "brody_error": found.brody_error,
        "superposition": found.superposition,
        "superposition_error": found.superposition_error,
        "unfolding": found.unfolding,
        "conclusion": found.conclusion,
    }


def _runs(settings: SpacingsConfig, size: SpacingsPreset, out: Path) -> list[_Run]:
    def of(parameters: str, model: str, **choice: Any) -> _Run:
        checkpoint = _checkpoint(out, model) if parameters == "trained" else None
        return _Run(
            parameters,
            SpectrumConfig(
                model=model, data=settings.data, seed=settings.seed, checkpoint=checkpoint, **choice
            ),
        )

    runs = []
    for model in size.models:
        for parameters in PARAMETERS:
            for split in size.splits:
                runs.append(
                    of(parameters, model, split=split, batch=size.batch, batches=size.batches)
                )
                if size.whole:
                    runs.append(of(parameters, model, split=split, batch="all"))
    for item in size.unreduced:
        for parameters in PARAMETERS:
            runs.append(
                of(
                    parameters,
                    item.model,
                    split=size.splits[0],
                    batch=size.batch,
                    batches=item.batches,
                    dtype=item.dtype,
                    reduce="none",
                )
            )
    return runs


def _checkpoint(out: Path, model: str) -> Path:
    return out / "checkpoints" / f"{model.rpartition(':')[2]}.pt"


def _file(out: Path, item: _Run) -> Path:
    return out / "spectra" / f"{item.name}.h5"


def _entry(item: _Run, file: Path, seed: int, pool: Pool) -> Entry:
    spectra = levels.open_spectra(file)
    settings = load_settings(LevelsConfig, compare=True, seed=seed)
    chosen = item.settings
    return Entry(
        name=item.name,
        model=chosen.model,
        parameters=item.parameters,
        split=str(chosen.split),
        batch=chosen.batch,
        precision=chosen.dtype,
        reduced=chosen.reduce == "auto",
        spectra=spectra,
        statistics=levels.run(settings, spectra, pool=pool),
        unfolded=levels.unfolded(settings, spectra),
    )
