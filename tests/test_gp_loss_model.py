"""``reproduce gp-loss-model``: what is sampled for each panel, its statistics and its figures."""

from dataclasses import replace

import numpy as np
import pytest
from experiment_samples import run_twice, write_settings

from hessrmt.config import load_settings
from hessrmt.errors import DataError
from hessrmt.experiments import settings_file
from hessrmt.experiments.loss_model import (
    LossModel,
    LossModelConfig,
    sampled_densities,
    sampled_ratios,
)
from hessrmt.lossmodel.sampler import sampled_density
from hessrmt.plots.lossmodel import densities
from hessrmt.runs import simulate
from hessrmt.store.spectra import load
from hessrmt.theory.ratios import MEAN_RATIO_GOE

FIGURES = {f"fig{n}-{kind}" for n in "56" for kind in ("paper", "stationary")}


pytestmark = pytest.mark.slow  # of an experiment in its published size


@pytest.fixture(scope="module")
def settings():
    return load_settings(LossModelConfig, settings_file("gp-loss-model"))


@pytest.fixture(scope="module")
def published(settings, tmp_path_factory):
    """The experiment in its published size."""
    return LossModel().run(settings, "small", tmp_path_factory.mktemp("published"))


def test_everything_from_nothing(cli, tmp_path):
    path = write_settings(
        tmp_path, "gp-loss-model", ("[{ k2", "[{ k2 = 0.1, degenerate = 4 }, { k2")
    )
    change = ('"gp-loss-model"', '"gp-loss-model"\nseed = 1')
    found, _, out = run_twice(cli, path, "stationary-c.h5", change, "seed (")
    for row in found["runs"]:
        spectra = load(out / "spectra" / f"{row['run']}.h5")
        assert len(spectra) == row["spectra"] == 3
        # outliers and degenerate directions are really there, in the ratio panels too
        drawn = spectra.provenance.config
        assert drawn["outliers"] == (row["outliers"] or [])
        assert spectra[0].dimension == 16 + row["degenerate"]
        zeros = np.count_nonzero(spectra.eigenvalues == 0, axis=1)
        assert set(zeros) == {row["degenerate"]}
    assert {path.stem for path in (out / "figures").iterdir()} == FIGURES


def test_the_published_panels(published):
    assert len(published) == 27
    wanted = {1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0}
    for figure in FIGURES:
        panels = [entry for entry in published if figure in entry.figures]
        assert {entry.k2 for entry in panels} == wanted
        assert [entry.settings.degenerate for entry in panels if entry.letter == "d"] == [100]
        marks = [(entry.settings.outliers, entry.settings.degenerate) for entry in panels]
        assert sorted(marks) == [(0, 0)] * 6 + [(0, 100), (20, 0), (20, 100)]
    for entry in published:
        assert (entry.settings.dimension, len(entry.spectra)) == (300, 100)
        if entry.convention == "stationary":  # a kernel with these derivatives exists
            covariance = simulate.covariance(entry.settings)
            assert covariance.gradient_variance == pytest.approx(1.0)
            assert (covariance.a, covariance.c) == pytest.approx((entry.k2, entry.k2))


def test_ratios_of_every_panel_are_those_of_the_goe(published):
    """⟨r̃⟩ of n = 300 GOE levels, ends included, is 0.53069 ± 0.00013 (20,000 samples).

    The large-matrix value is therefore that of this size to a tenth of a panel's standard error.
    """
    for entry in published:
        mean, error, _ = entry.ratios["bulk"]
        assert 0.001 < error < 0.0025
        assert abs(mean - MEAN_RATIO_GOE) < 4 * error
        # 20 of 300 levels repel less: their θ are independent and far apart compared to √a
        assert (entry.ratios["all levels"].mean < mean) == bool(entry.settings.outliers)
    # ratios don't change with scale and shift, so panels of one seed would all be the same
    assert len({entry.ratios["bulk"].mean for entry in published}) == 27
    sigmas = np.array([entry.sigmas for entry in published])
    # χ² of 27 independent panels
    assert abs(np.sum(sigmas**2) - 27) < 4 * 54**0.5


def test_levels_lie_where_the_law_has_them(published):
    for entry in published:
        if entry.settings.outliers:
            continue
        a, c, radius = entry.summary.a, entry.summary.c, entry.summary.radius
        levels = [row.eigenvalues[row.eigenvalues != 0] for row in entry.spectra]
        means = np.array([row.mean() for row in levels])
        # mean of a row: √c·ξ + tr(√a G)/n with variance c + 2a/n
        spread = (c + 2 * a / 300) ** 0.5
        assert abs(means.mean()) < 4 * spread / 10
        assert abs(means.std(ddof=1) / spread - 1) < 4 / 198**0.5
        # second moment about the mean of a row: a (n + 1), less that of the mean itself
        second = np.mean([row.var() for row in levels])
        expected = radius**2 / 4 * (1 + 1 / 300) - 2 * a / 300
        # its standard error: Var tr G² = 4n² for the GOE, over n² and 100 samples
        assert abs(second - expected) < 4 * a * 2 / 10


@pytest.mark.parametrize(
    ("draw", "name"), [(sampled_densities, "fig5-paper"), (sampled_ratios, "fig6-stationary")]
)
def test_figures_show_every_panel(settings, published, draw, name):
    pictures = LossModel().figures(published)
    assert set(pictures) == FIGURES
    assert pictures[name].func is draw
    picture = pictures[name]()
    assert len(picture.axes) == 9
    headings = [axes.get_title(loc="left") for axes in picture.axes]
    assert headings[3] == "(d) k''(0) = 0.1*"
    assert headings[8] == "(i) k''(0) = 0.1*†"
    words = " ".join(text.get_text() for axes in picture.axes for text in axes.texts)
    assert ("25% of the levels" in words) == (draw is sampled_densities)
    assert words.count("bulk") == (2 if draw is sampled_ratios else 0)


def test_the_law_is_drawn_through_the_histogram(published):
    """Area under both is 1, up to what the axis leaves out; degenerate levels have no area."""
    entries = [entry for entry in published if "fig5-stationary" in entry.figures]
    for entry, axes in zip(entries, sampled_densities(entries).axes, strict=True):
        (law,) = [line for line in axes.lines if line.get_label().startswith("large")]
        (steps,) = axes.patches
        values, edges, _ = steps.get_data()
        sampled = float(np.sum(values * np.diff(edges)))
        levels = entry.settings.dimension + entry.settings.degenerate
        share = entry.settings.dimension / levels
        missing = 0.02 * entry.settings.outliers / levels
        # the axis ends a little beyond 98 % of the outliers
        assert share - missing - 1e-9 < sampled < share + 1e-9
        area = np.trapezoid(law.get_ydata(), law.get_xdata())
        assert area == pytest.approx(share - missing, abs=missing + 2e-4)


def test_fixed_outliers_are_marked(published):
    covariance = simulate.covariance(published[0].settings)
    found = sampled_density(published[0].spectra, covariance, 300, (30.0, -25.0))
    (axes,) = densities({"fixed": found}).axes
    marks = sorted(line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2)
    a = covariance.a
    assert marks == pytest.approx([-25 - 300 * a / 25, 30 + 300 * a / 30])


def test_no_ratios_without_levels(published):
    with pytest.raises(DataError):
        sampled_ratios([replace(published[0], spectra=())])
