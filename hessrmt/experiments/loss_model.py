"""``reproduce gp-loss-model``: sampled Hessians of a Gaussian-process loss.

Baskerville, Granziol and Keating (2022), Figs. 5 and 6. The panels are sampled in two conventions:
``paper`` has the covariance as printed, a = k''(0) and c = k'(0)²; ``stationary`` that of a
process, a = c = k''(0), which k'(0) doesn't enter: there one set of spectra serves both figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from hessrmt import rng
from hessrmt.config import Settings, SimulateConfig
from hessrmt.experiments.experiment import Column, Experiment, preset_of
from hessrmt.levels.histograms import ratio_histogram
from hessrmt.levels.selection import select
from hessrmt.lossmodel.sampler import sampled_density
from hessrmt.plots import lossmodel
from hessrmt.progress import silent
from hessrmt.runs import simulate
from hessrmt.runs.run import SERIAL, make_folders
from hessrmt.theory.ratios import MEAN_RATIO_GOE

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from hessrmt.lossmodel import HessianCovariance
    from hessrmt.progress import Tick
    from hessrmt.records import Spectra
    from hessrmt.runs.run import Pool
    from hessrmt.runs.simulate import Summary

_LETTERS = "abcdefghi"


_CONVENTIONS = {
    "paper": "Covariance as printed: a = k''(0), c = k'(0)²",
    "stationary": "Stationary process: a = c = k''(0)",
}
_MARKS = "* with degenerate directions, † with outliers"

_CUT, _RATIO_BINS = 5.0, 40
"""Of the pictures of ratios."""


class LossModelPanel(Settings):
    """One panel of the figures.

    Attributes:
        k2: k''(0).
        outliers: How many are drawn for each sample.
        degenerate: Directions in which the loss is constant.
    """

    k2: float = Field(gt=0, allow_inf_nan=False)
    outliers: int = Field(0, ge=0)
    degenerate: int = Field(0, ge=0)


class LossModelPreset(Settings):
    """One size of the experiment.

    Attributes:
        dimension: Directions in which the loss is random.
        samples: Hessians of each panel.
    """

    dimension: int = Field(300, ge=3)
    samples: int = Field(100, ge=1)


class LossModelConfig(Settings):
    """Settings of ``hessrmt reproduce gp-loss-model``.

    Attributes:
        experiment: Its name.
        title: What it is about.
        seed: Of everything.
        outlier_scale: Of drawn outliers.
        density_k1: k'(0) of the figure of densities, with the covariance as printed.
        ratio_k1: k'(0) of the figure of ratios.
        panels: Of each figure.
        presets: Name to size.
    """

    experiment: Literal["gp-loss-model"]
    title: str = ""
    seed: int = Field(0, ge=0)
    outlier_scale: float = Field(10.0, gt=0, allow_inf_nan=False)
    density_k1: float = Field(0.0, ge=0, allow_inf_nan=False)
    ratio_k1: float = Field(1.0, gt=0, allow_inf_nan=False)
    panels: tuple[LossModelPanel, ...] = Field(min_length=1, max_length=9)
    presets: dict[str, LossModelPreset] = Field(min_length=1)


@dataclass(frozen=True)
class SampledPanel:
    """One set of sampled Hessians.

    Attributes:
        figures: Names of the figures that show it.
        letter: Of the panel.
        k1: k'(0); None where it doesn't matter.
        k2: k''(0).
        settings: Of the sampler.
        spectra: What was sampled.
        summary: The same in a few numbers.
    """

    figures: tuple[str, ...]
    letter: str
    k1: float | None
    k2: float
    settings: SimulateConfig = field(repr=False)
    spectra: Spectra = field(repr=False)
    summary: Summary = field(repr=False)

    @property
    def name(self) -> str:
        """Of the file."""
        return _name(self.figures, self.letter)

    @property
    def convention(self) -> str:
        """``paper`` or ``stationary``."""
        return self.figures[0].partition("-")[2]

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


def _ratio(name: str) -> Callable[[SampledPanel], str]:
    def cell(entry: SampledPanel) -> str:
        mean, error = (getattr(entry.summary, found) for found in (name, f"{name}_error"))
        return f"{mean:.4f} ± {error:.4f}"

    return cell


def _outside(entry: SampledPanel) -> str:
    found = entry.summary
    return f"{found.outside_seen:.2f} ({found.outside_expected:.2f})" if entry.outliers else "-"


class LossModel(Experiment[LossModelConfig, SampledPanel]):
    """Hessians of a Gaussian-process loss, as printed and stationary."""

    settings = LossModelConfig
    columns = (
        Column("", lambda e: e.name, key="run"),
        Column("", lambda e: list(e.figures), key="figures"),
        Column("convention", lambda e: e.convention, key="convention"),
        Column("", lambda e: e.letter, key="panel"),
        Column("panel", lambda e: f"({e.letter})"),
        Column("", lambda e: e.k1, key="k1"),
        Column("k'(0)", lambda e: "any" if e.k1 is None else f"{e.k1:g}"),
        Column("k''(0)", lambda e: e.k2, "g", key="k2", terminal="k''(0)"),
        Column("", lambda e: e.n, key="n"),
        Column(
            "n", lambda e: f"{e.n} + {e.degenerate}" if e.degenerate else str(e.n), terminal="n"
        ),
        Column("", lambda e: e.outliers, key="outliers"),
        Column("", lambda e: e.degenerate, key="degenerate"),
        Column("spectra", lambda e: len(e.spectra), ",", key="spectra"),
        Column("a", lambda e: e.summary.a, ".4g", key="a"),
        Column("c", lambda e: e.summary.c, ".4g", key="c"),
        *(
            Column("", lambda e, name=name: getattr(e.summary, name), key=name)
            for name in (
                *("mean", "radius", "mean_ratio", "mean_ratio_error", "bulk_mean_ratio"),
                *("bulk_mean_ratio_error", "outside_expected", "outside_seen"),
            )
        ),
        Column("outside the bulk (expected)", _outside),
        Column("⟨r̃⟩ all", _ratio("mean_ratio"), terminal="⟨r̃⟩\n(all levels)"),
        Column("⟨r̃⟩ bulk", _ratio("bulk_mean_ratio"), terminal="⟨r̃⟩\n(bulk)"),
        Column(
            "σ from GOE",
            lambda e: e.sigmas,
            "+.1f",
            key="sigmas_from_goe",
            terminal="σ from\nGOE",
        ),
    )

    def run(  # noqa: D102 (see the base class)
        self,
        settings: LossModelConfig,
        preset: str,
        out: Path,
        *,
        folder: Path | None = None,  # noqa: ARG002 (no data are needed)
        tick: Tick | None = None,
        pool: Pool | None = None,
    ) -> list[SampledPanel]:
        size, tick, pool = preset_of(settings, preset), tick or silent, pool or SERIAL
        wanted = list(_wanted(settings, size))
        make_folders(out, "spectra")
        found = []
        for number, (figures, letter, k1, k2, config) in enumerate(wanted):
            name = _name(figures, letter)
            tick(name, number, len(wanted))
            file = out / "spectra" / f"{name}.h5"
            spectra = simulate.run(config, file, resume=True, pool=pool)
            summary = simulate.summary(config, spectra)
            found.append(SampledPanel(figures, letter, k1, k2, config, spectra, summary))
        tick("done", len(wanted), len(wanted))
        return found

    def figures(  # noqa: D102 (see the base class)
        self, settings: LossModelConfig, entries: Sequence[SampledPanel]
    ) -> Mapping[str, Callable[[], Any]]:
        shown = sorted({name for entry in entries for name in entry.figures})
        panels = {name: [e for e in entries if name in e.figures] for name in shown}
        assert all(len(found) == len(settings.panels) for found in panels.values())
        return {
            name: partial(
                sampled_densities if name.startswith("fig5") else sampled_ratios,
                found,
                f"{_CONVENTIONS[name.partition('-')[2]]}\n{_MARKS}",
            )
            for name, found in panels.items()
        }

    def conclusions(self, entries: Sequence[SampledPanel]) -> dict[str, str]:  # noqa: D102
        found = {}
        for convention in dict.fromkeys(entry.convention for entry in entries):
            part = [entry for entry in entries if entry.convention == convention]
            far = max(part, key=lambda entry: abs(entry.sigmas))
            weights = np.array([entry.summary.bulk_mean_ratio_error**-2 for entry in part])
            mean = weights @ [entry.summary.bulk_mean_ratio for entry in part] / weights.sum()
            found[convention] = (
                f"⟨r̃⟩ of the bulk = {mean:.4f} ± {weights.sum() ** -0.5:.4f} for all panels "
                f"together; furthest from GOE is {far.name}, {far.sigmas:+.1f} σ."
            )
        return found


def sampled_densities(panels: Sequence[SampledPanel], title: str = "") -> Figure:
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


def sampled_ratios(panels: Sequence[SampledPanel], title: str = "") -> Figure:
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


def _wanted(
    settings: LossModelConfig, size: LossModelPreset
) -> Iterator[tuple[tuple[str, ...], str, float | None, float, SimulateConfig]]:
    """Figures, letter, k'(0), k''(0) and settings of each set of Hessians."""
    panels = list(zip(_LETTERS, settings.panels, strict=False))
    for figure, k1 in (("fig5", settings.density_k1), ("fig6", settings.ratio_k1)):
        for letter, panel in panels:
            kernel = {"kernel": "paper", "k1": k1, "k2": panel.k2}
            figures = (f"{figure}-paper",)
            config = _config(settings, size, figures, letter, panel, kernel)
            yield figures, letter, k1, panel.k2, config
    figures = ("fig5-stationary", "fig6-stationary")
    for letter, panel in panels:
        # the squared exponential that has these k'(0) and k''(0); its k(0) is the smallest possible
        k1, k2 = settings.ratio_k1, panel.k2
        kernel = {"kernel": "rbf", "variance": k1**2 / k2, "length": (k1 / k2) ** 0.5}
        config = _config(settings, size, figures, letter, panel, kernel)
        yield figures, letter, None, k2, config


def _config(
    settings: LossModelConfig,
    size: LossModelPreset,
    figures: tuple[str, ...],
    letter: str,
    panel: LossModelPanel,
    kernel: Mapping[str, Any],
) -> SimulateConfig:
    # every panel has random numbers of its own: scale and shift alone would not change a ratio
    seed = rng.seed_sequence(settings.seed, "gp-loss-model", figures[0], letter)
    return SimulateConfig(
        **kernel,
        dimension=size.dimension,
        samples=size.samples,
        outliers=panel.outliers,
        outlier_scale=settings.outlier_scale if panel.outliers else None,
        degenerate=panel.degenerate,
        device="cpu",
        seed=int(seed.generate_state(1)[0]),
    )


def _name(figures: tuple[str, ...], letter: str) -> str:
    kind = figures[0] if len(figures) == 1 else figures[0].partition("-")[2]
    return f"{kind}-{letter}"
