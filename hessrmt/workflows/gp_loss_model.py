"""``reproduce gp-loss-model``: sampled Hessians of a Gaussian-process loss ([B], Figs. 5 and 6).

The panels are sampled in two conventions. ``paper`` has the covariance as printed, a = k''(0) and
c = k'(0)²; ``stationary`` that of a process, a = c = k''(0), which k'(0) doesn't enter: there one
set of spectra serves both figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt import rng
from hessrmt.config import SimulateConfig
from hessrmt.theory.ratios import MEAN_RATIO_GOE
from hessrmt.workflows import simulate
from hessrmt.workflows.cluster import SERIAL
from hessrmt.workflows.reproduce import (
    Observer,
    make_folders,
    preset_of,
    silent,
    table_in_markdown,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hessrmt.config import LossModelConfig, LossModelPanel, LossModelPreset
    from hessrmt.lossmodel import HessianCovariance
    from hessrmt.records import Spectra
    from hessrmt.workflows.cluster import Pool
    from hessrmt.workflows.simulate import Summary

SHOWN = {
    "k''(0)": "k''(0)",
    "n": "n",
    "⟨r̃⟩ bulk": "⟨r̃⟩\n(bulk)",
    "σ from GOE": "σ from\nGOE",
    "⟨r̃⟩ all": "⟨r̃⟩\n(all levels)",
}
"""Columns for the terminal, and their headings there."""

_LETTERS = "abcdefghi"


@dataclass(frozen=True)
class Entry:
    """One set of sampled Hessians.

    Attributes:
        name: Of the run, also of its file.
        figures: Figures that show it.
        convention: ``"paper"`` or ``"stationary"``.
        letter: Of the panel.
        k1: k'(0); None where it doesn't matter.
        k2: k''(0).
        settings: Of the simulation.
        spectra: The spectra.
        summary: What they hold.
    """

    name: str
    figures: tuple[str, ...]
    convention: str
    letter: str
    k1: float | None
    k2: float
    settings: SimulateConfig = field(repr=False)
    spectra: Spectra = field(repr=False)
    summary: Summary = field(repr=False)

    @property
    def label(self) -> str:
        """Heading of the panel, with the marks of the published figures."""
        marks = "*" * bool(self.degenerate) + "†" * bool(self.outliers)
        return f"({self.letter}) k''(0) = {self.k2:g}{marks}"

    @property
    def covariance(self) -> HessianCovariance:
        """Law of the random part of the Hessians."""
        return simulate.covariance(self.settings)

    @property
    def n(self) -> int:
        """Directions in which the loss is random."""
        return self.settings.dimension

    @property
    def degenerate(self) -> int:
        """Directions in which it is constant."""
        return self.settings.degenerate

    @property
    def outliers(self) -> int:
        """How many are drawn for each sample."""
        return self.settings.outliers

    @property
    def outlier_scale(self) -> float:
        """Their scale."""
        return simulate.scale(self.settings)

    @property
    def means(self) -> dict[str, tuple[float, float]]:
        """⟨r̃⟩ and its error: of all levels, and without the outliers if there are any."""
        found = self.summary
        means = {"all levels": (found.mean_ratio, found.mean_ratio_error)}
        if self.outliers:
            means["bulk"] = (found.bulk_mean_ratio, found.bulk_mean_ratio_error)
        return means

    @property
    def sigmas(self) -> float:
        """(⟨r̃⟩ of the bulk - that of the GOE)/standard error; NaN where there is none."""
        found = self.summary
        return (found.bulk_mean_ratio - MEAN_RATIO_GOE) / found.bulk_mean_ratio_error


@dataclass(frozen=True)
class _Run:
    """One spectrum file to be made."""

    figures: tuple[str, ...]
    convention: str
    letter: str
    k1: float | None
    k2: float
    settings: SimulateConfig

    @property
    def name(self) -> str:
        kind = self.figures[0] if len(self.figures) == 1 else self.convention
        return f"{kind}-{self.letter}"


def run(
    settings: LossModelConfig,
    preset: str,
    out: Path,
    *,
    folder: Path | None = None,  # noqa: ARG001 (no data are needed)
    observer: Observer | None = None,
    pool: Pool = SERIAL,
) -> list[Entry]:
    """Sample everything that is not there yet, and analyse all of it.

    Args:
        settings: Of the experiment.
        preset: Which size.
        out: Folder for spectra; a folder of an earlier run is continued.
        folder: Not used.
        observer: Told of progress.
        pool: Where Hessians are sampled.

    Returns:
        One entry for each spectrum file, in the order of the table.
    """
    size = preset_of(settings, preset)
    observer = observer or silent
    runs = _runs(settings, size)
    make_folders(out, "spectra")
    found = []
    for number, item in enumerate(runs):
        observer(item.name, number, len(runs))
        file = out / "spectra" / f"{item.name}.h5"
        spectra = simulate.run(item.settings, file, resume=True, pool=pool)
        found.append(
            Entry(
                item.name,
                item.figures,
                item.convention,
                item.letter,
                item.k1,
                item.k2,
                item.settings,
                spectra,
                simulate.summary(item.settings, spectra),
            )
        )
    observer("done", len(runs), len(runs))
    return found


def table(entries: list[Entry]) -> list[dict[str, Any]]:
    """Rows of the results table.

    Args:
        entries: From :func:`run`.

    Returns:
        One row for each entry, as plain values.
    """
    return [
        {
            "run": entry.name,
            "figures": list(entry.figures),
            "convention": entry.convention,
            "panel": entry.letter,
            "k1": entry.k1,
            "k2": entry.k2,
            "n": entry.n,
            "outliers": entry.outliers,
            "degenerate": entry.degenerate,
            "spectra": len(entry.spectra),
            **{k: v for k, v in entry.summary.to_dict().items() if k != "outliers"},
            "sigmas_from_goe": entry.sigmas,
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
    found = entry.summary
    outside = f"{found.outside_seen:.2f} ({found.outside_expected:.2f})"
    return {
        "convention": entry.convention,
        "panel": f"({entry.letter})",
        "k'(0)": "any" if entry.k1 is None else f"{entry.k1:g}",
        "k''(0)": f"{entry.k2:g}",
        "n": f"{entry.n} + {entry.degenerate}" if entry.degenerate else str(entry.n),
        "spectra": f"{len(entry.spectra):,}",
        "a": f"{found.a:.4g}",
        "c": f"{found.c:.4g}",
        "outside the bulk (expected)": outside if entry.outliers else "-",
        "⟨r̃⟩ all": f"{found.mean_ratio:.4f} ± {found.mean_ratio_error:.4f}",
        "⟨r̃⟩ bulk": f"{found.bulk_mean_ratio:.4f} ± {found.bulk_mean_ratio_error:.4f}",
        "σ from GOE": f"{entry.sigmas:+.1f}",
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
    """What was found, in a sentence for each convention.

    Args:
        entries: From :func:`run`.

    Returns:
        Convention to its sentence.
    """
    found = {}
    for convention in dict.fromkeys(entry.convention for entry in entries):
        part = [entry for entry in entries if entry.convention == convention]
        far = max(part, key=lambda entry: abs(entry.sigmas))
        weights = np.array([entry.summary.bulk_mean_ratio_error**-2 for entry in part])
        mean = weights @ [entry.summary.bulk_mean_ratio for entry in part] / weights.sum()
        found[convention] = (
            f"⟨r̃⟩ of the bulk = {mean:.4f} ± {weights.sum() ** -0.5:.4f} for all panels together; "
            f"furthest from GOE is {far.name}, {far.sigmas:+.1f} σ."
        )
    return found


def figures(settings: LossModelConfig, entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Which panels each figure has.

    Args:
        settings: Of the experiment.
        entries: From :func:`run`.

    Returns:
        Name of a figure (``fig5-...`` of densities, ``fig6-...`` of ratios) to its panels, in the
        order of the settings.
    """
    names = dict.fromkeys(name for entry in entries for name in entry.figures)
    found = {name: [entry for entry in entries if name in entry.figures] for name in sorted(names)}
    assert all(len(panels) == len(settings.panels) for panels in found.values())
    return found


def _runs(settings: LossModelConfig, size: LossModelPreset) -> list[_Run]:
    runs = []
    for figure, k1 in (("fig5", settings.density_k1), ("fig6", settings.ratio_k1)):
        for letter, panel in zip(_LETTERS, settings.panels, strict=False):
            kernel = {"kernel": "paper", "k1": k1, "k2": panel.k2}
            runs.append(_run(settings, size, (f"{figure}-paper",), letter, panel, k1, kernel))
    both = ("fig5-stationary", "fig6-stationary")
    for letter, panel in zip(_LETTERS, settings.panels, strict=False):
        # the squared exponential that has these k'(0) and k''(0); its k(0) is the smallest possible
        k1, k2 = settings.ratio_k1, panel.k2
        kernel = {"kernel": "rbf", "variance": k1**2 / k2, "length": (k1 / k2) ** 0.5}
        runs.append(_run(settings, size, both, letter, panel, None, kernel))
    return runs


def _run(
    settings: LossModelConfig,
    size: LossModelPreset,
    figures: tuple[str, ...],
    letter: str,
    panel: LossModelPanel,
    k1: float | None,
    kernel: Mapping[str, Any],
) -> _Run:
    # every panel has random numbers of its own: scale and shift alone would not change a ratio
    seed = rng.seed_sequence(settings.seed, "gp-loss-model", figures[0], letter)
    config = SimulateConfig(
        **kernel,
        dimension=size.dimension,
        samples=size.samples,
        outliers=panel.outliers,
        outlier_scale=settings.outlier_scale if panel.outliers else None,
        degenerate=panel.degenerate,
        device="cpu",
        seed=int(seed.generate_state(1)[0]),
    )
    convention = figures[0].partition("-")[2]
    return _Run(figures, convention, letter, k1, panel.k2, config)
