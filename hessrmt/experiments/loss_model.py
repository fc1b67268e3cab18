"""``reproduce gp-loss-model``: sampled Hessians of a Gaussian-process loss.

Baskerville, Granziol and Keating (2022), Figs. 5 and 6. The panels are sampled in two conventions:
``paper`` has the covariance as printed, a = k''(0) and c = k'(0)²; ``stationary`` that of a
process, a = c = k''(0), which k'(0) doesn't enter: there one set of spectra serves both figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from hessrmt.config import OUTLIER_SCALE, Settings, SimulateConfig
from hessrmt.experiments.experiment import (
    Column,
    Estimate,
    Experiment,
    Pictures,
    Presets,
    Work,
    drawn_seed,
    keyed,
)
from hessrmt.levels.histograms import ratio_histogram
from hessrmt.levels.selection import select
from hessrmt.lossmodel.sampler import sampled_density
from hessrmt.plots import lossmodel
from hessrmt.runs import simulate
from hessrmt.runs.run import make_folders
from hessrmt.theory.ratios import MEAN_RATIO_GOE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hessrmt.records import Spectra
    from hessrmt.runs.simulate import Summary

_LETTERS = "abcdefghi"


_CONVENTIONS = {
    "paper": "Covariance as printed: a = k''(0), c = k'(0)²",
    "stationary": "Stationary process: a = c = k''(0)",
}
_MARKS = "* with degenerate directions, † with outliers"

_SUMMARY = (
    *("mean", "radius", "mean_ratio", "mean_ratio_error", "bulk_mean_ratio"),
    *("bulk_mean_ratio_error", "outside_expected", "outside_seen"),
)
"""What programs read of a panel's summary."""

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


class LossModelConfig(Presets[LossModelPreset]):
    """Settings of ``hessrmt reproduce gp-loss-model``.

    Attributes:
        device: Of the samples; they are small.
        outlier_scale: Of drawn outliers.
        density_k1: k'(0) of the figure of densities, with the covariance as printed.
        ratio_k1: k'(0) of the figure of ratios.
        panels: Of each figure.
    """

    device: str = "cpu"
    outlier_scale: float = Field(OUTLIER_SCALE, gt=0, allow_inf_nan=False)
    density_k1: float = Field(0.0, ge=0, allow_inf_nan=False)
    ratio_k1: float = Field(1.0, gt=0, allow_inf_nan=False)
    panels: tuple[LossModelPanel, ...] = Field(min_length=1, max_length=9)


@dataclass(frozen=True)
class SampledPanel:
    """One set of sampled Hessians.

    Attributes:
        name: Of the file.
        figures: Names of the figures that show it.
        letter: Of the panel.
        k1: k'(0); None where it doesn't matter.
        k2: k''(0).
        settings: Of the sampler.
        spectra: What was sampled.
    """

    name: str
    figures: tuple[str, ...]
    letter: str
    k1: float | None
    k2: float
    settings: SimulateConfig = field(repr=False)
    spectra: Spectra = field(repr=False)

    @cached_property
    def summary(self) -> Summary:
        """The spectra in a few numbers."""
        return simulate.summary(self.settings, self.spectra)

    @property
    def convention(self) -> str:
        """``paper`` or ``stationary``."""
        return self.figures[0].partition("-")[2]

    @property
    def label(self) -> str:
        """Heading of the panel, with the marks of the published figures."""
        marks = "*" * bool(self.settings.degenerate) + "†" * bool(self.settings.outliers)
        return f"({self.letter}) k''(0) = {self.k2:g}{marks}"

    @property
    def ratios(self) -> dict[str, Estimate]:
        """⟨r̃⟩ of all levels, and without the outliers."""
        found = self.summary
        return {
            "all levels": Estimate(found.mean_ratio, found.mean_ratio_error),
            "bulk": Estimate(found.bulk_mean_ratio, found.bulk_mean_ratio_error),
        }

    @property
    def sigmas(self) -> float:
        """(⟨r̃⟩ of the bulk - that of the GOE)/standard error; NaN where there is none."""
        found = self.summary
        return (found.bulk_mean_ratio - MEAN_RATIO_GOE) / found.bulk_mean_ratio_error


def _size(entry: SampledPanel) -> str:
    n, degenerate = entry.settings.dimension, entry.settings.degenerate
    return f"{n} + {degenerate}" if degenerate else str(n)


def _outside(entry: SampledPanel) -> str:
    found = entry.summary
    drawn = entry.settings.outliers
    return f"{found.outside_seen:.2f} ({found.outside_expected:.2f})" if drawn else "-"


class LossModel(Experiment[LossModelConfig, LossModelPreset, SampledPanel]):
    """Hessians of a Gaussian-process loss, as printed and stationary."""

    settings = LossModelConfig
    columns = (
        *keyed(run="name", figures="figures"),
        Column("convention", lambda e: e.convention, key="convention"),
        *keyed(panel="letter"),
        Column("panel", lambda e: f"({e.letter})"),
        *keyed(k1="k1"),
        Column("k'(0)", lambda e: "any" if e.k1 is None else f"{e.k1:g}"),
        Column("k''(0)", lambda e: e.k2, "g", key="k2", terminal="k''(0)"),
        *keyed(n="settings.dimension"),
        Column("n", _size, terminal="n"),
        *keyed(outliers="settings.outliers", degenerate="settings.degenerate"),
        Column("spectra", lambda e: len(e.spectra), ",", key="spectra"),
        Column("a", lambda e: e.summary.a, ".4g", key="a"),
        Column("c", lambda e: e.summary.c, ".4g", key="c"),
        *keyed(**{name: f"summary.{name}" for name in _SUMMARY}),
        Column("outside the bulk (expected)", _outside),
        Column("⟨r̃⟩ all", lambda e: e.ratios["all levels"], ".4f", terminal="⟨r̃⟩\n(all levels)"),
        Column("⟨r̃⟩ bulk", lambda e: e.ratios["bulk"], ".4f", terminal="⟨r̃⟩\n(bulk)"),
        Column(
            "standard errors from GOE",
            lambda e: e.sigmas,
            "+.1f",
            "sigmas_from_goe",
            terminal="errors\nfrom GOE",
        ),
    )

    def compute(self, work: Work[LossModelConfig, LossModelPreset]) -> list[SampledPanel]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        make_folders(work.out, "spectra")
        wanted, found = _wanted(work.settings, work.size), []
        for name in work.each("{}", wanted):
            file, config = work.out / "spectra" / f"{name}.h5", wanted[name][-1]
            spectra = simulate.run(config, file, resume=True, pool=work.pool)
            found.append(SampledPanel(name, *wanted[name], spectra))
        return found

    def figures(self, entries: Sequence[SampledPanel]) -> Pictures:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        pictures = {}
        for name in sorted({name for entry in entries for name in entry.figures}):
            draw = sampled_densities if name.startswith("fig5") else sampled_ratios
            title = f"{_CONVENTIONS[name.partition('-')[2]]}\n{_MARKS}"
            pictures[name] = partial(draw, [e for e in entries if name in e.figures], title)
        return pictures

    def conclusions(self, entries: Sequence[SampledPanel]) -> dict[str, str]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        found = {}
        for convention in dict.fromkeys(entry.convention for entry in entries):
            part = [entry for entry in entries if entry.convention == convention]
            far = max(part, key=lambda entry: abs(entry.sigmas))
            means, errors, _ = zip(*(entry.ratios["bulk"] for entry in part), strict=True)
            weights = np.array(errors) ** -2
            together = Estimate(weights @ means / weights.sum(), weights.sum() ** -0.5)
            found[convention] = (
                f"⟨r̃⟩ of the bulk = {together.text('.4f')} for all panels together; the bulk of "
                f"{far.name}, furthest from GOE of {len(part)}: "
                f"{simulate.statistics(far.settings, far.spectra).conclusion}."
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
            simulate.covariance(item.settings),
            item.settings.dimension,
            item.settings.outliers,
            simulate.scale(item.settings),
            item.settings.degenerate,
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
        means = {name: mean[:2] for name, mean in item.ratios.items()}
        if not item.settings.outliers:
            del means["bulk"]
        found[item.label] = shape, means
    return lossmodel.ratios(found, title)


def _wanted(
    settings: LossModelConfig, size: LossModelPreset
) -> dict[str, tuple[tuple[str, ...], str, float | None, float, SimulateConfig]]:
    """Name to figures, letter, k'(0), k''(0) and settings of each set of Hessians."""
    first, found = settings.ratio_k1, {}
    for kind, figures, k1 in (
        ("fig5-paper", ("fig5-paper",), settings.density_k1),
        ("fig6-paper", ("fig6-paper",), first),
        ("stationary", ("fig5-stationary", "fig6-stationary"), None),
    ):
        for letter, panel in zip(_LETTERS, settings.panels, strict=False):
            k2 = panel.k2
            kernel: dict[str, Any] = {"kernel": "paper", "k1": k1, "k2": k2}
            if k1 is None:
                # the squared exponential with these k'(0) and k''(0) that has the smallest k(0)
                kernel = {"kernel": "rbf", "variance": first**2 / k2, "length": (first / k2) ** 0.5}
            config = SimulateConfig(
                **kernel,
                dimension=size.dimension,
                samples=size.samples,
                outliers=panel.outliers,
                outlier_scale=settings.outlier_scale if panel.outliers else None,
                degenerate=panel.degenerate,
                device=settings.device,
                # each has random numbers of its own: scale and shift would not change a ratio
                seed=drawn_seed(settings.seed, "gp-loss-model", figures[0], letter),
            )
            found[f"{kind}-{letter}"] = figures, letter, k1, k2, config
    return found
