"""``reproduce gp-loss-model``: what is sampled for each panel, its statistics and its figures."""

import json
import os

import numpy as np
import pytest
from hessrmt.cli.experiments import Conductor, experiment_of
from hessrmt.workflows import gp_loss_model

from hessrmt.config import load_settings
from hessrmt.errors import LevelsError
from hessrmt.experiments.experiment import names, settings_file
from hessrmt.experiments.loss_model import LossModelConfig, sampled_densities, sampled_ratios
from hessrmt.store.spectra import load
from hessrmt.theory.ratios import MEAN_RATIO_GOE

SETTINGS = """
experiment = "gp-loss-model"
title = "a small one"
seed = {seed}
panels = [
    {{ k2 = 0.01 }},
    {{ k2 = 0.1, degenerate = 6 }},
    {{ k2 = 0.1, outliers = 3, degenerate = 6 }},
]

[presets.small]
dimension = 30
samples = 12
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(SETTINGS.format(seed=0))
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The experiment in its published size."""
    settings = load_settings(LossModelConfig, settings_file("gp-loss-model"))
    return gp_loss_model.run(settings, "small", tmp_path_factory.mktemp("published"))


def test_everything_from_nothing(cli, experiment, tmp_path):
    result = cli("reproduce", experiment, "--out", "done", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["experiment"], found["preset"]) == ("gp-loss-model", "small")
    out = tmp_path / "done"
    assert json.loads((out / "results.json").read_text()) == found["runs"]
    names = [row["run"] for row in found["runs"]]
    kinds = ("fig5-paper", "fig6-paper", "stationary")
    assert names == [f"{kind}-{letter}" for kind in kinds for letter in "abc"]
    assert len((out / "results.md").read_text().splitlines()) == 2 + len(names)
    for row in found["runs"]:
        spectra = load(out / "spectra" / f"{row['run']}.h5")
        assert len(spectra) == row["spectra"] == 12
        # outliers and degenerate directions are really there, in the ratio panels too
        drawn = spectra.provenance.config
        assert drawn["outliers"] == (row["outliers"] or [])
        assert spectra[0].dimension == 30 + row["degenerate"]
        zeros = np.count_nonzero(spectra.eigenvalues == 0, axis=1)
        assert set(zeros) == {row["degenerate"]}
        if row["outliers"]:
            assert row["outside_expected"] == pytest.approx(3)
            assert row["mean_ratio"] != row["bulk_mean_ratio"]
        else:
            assert row["mean_ratio"] == row["bulk_mean_ratio"]
        assert row["a"] == pytest.approx(row["k2"])
        moments = {"fig5-paper": 0.0, "fig6-paper": 1.0, "stationary": row["k2"]}
        assert row["c"] == pytest.approx(moments[row["run"][:-2]])
    figures = {path.name for path in (out / "figures").iterdir()}
    assert figures == {f"fig{n}-{kind}.png" for n in "56" for kind in ("paper", "stationary")}


def test_again_computes_nothing_and_says_the_same(cli, experiment, tmp_path):
    first = cli("reproduce", experiment, "--out", "done", "--json")
    files = sorted((tmp_path / "done/spectra").iterdir())
    before = {path: os.stat(path).st_mtime_ns for path in files}
    gone = files.pop()
    gone.unlink()
    second = cli("reproduce", experiment, "--out", "done", "--json")
    assert first.returncode == second.returncode == 0
    assert json.loads(first.stdout) == json.loads(second.stdout)
    assert {path: os.stat(path).st_mtime_ns for path in files} == {p: before[p] for p in files}
    experiment.write_text(SETTINGS.format(seed=1))
    other = cli("reproduce", experiment, "--out", "done")
    assert other.returncode == 2
    assert "made with another configuration" in other.stderr


def test_the_published_panels(published):
    assert len(published) == 27
    wanted = {1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0}
    for figure in ("fig5-paper", "fig6-paper", "fig5-stationary", "fig6-stationary"):
        panels = [entry for entry in published if figure in entry.figures]
        assert {entry.k2 for entry in panels} == wanted
        assert [entry.degenerate for entry in panels if entry.letter == "d"] == [100]
        marks = [(entry.outliers, entry.degenerate) for entry in panels]
        assert sorted(marks) == [(0, 0)] * 6 + [(0, 100), (20, 0), (20, 100)]
        assert all(entry.n == 300 and len(entry.spectra) == 100 for entry in panels)


def test_a_stationary_kernel_with_those_derivatives_exists(published):
    for entry in published:
        if entry.convention == "stationary":
            assert entry.covariance.gradient_variance == pytest.approx(1.0)
            assert entry.covariance.a == pytest.approx(entry.k2)
            assert entry.covariance.c == pytest.approx(entry.k2)


def test_panels_are_independent(published):
    # ratios don't change with scale and shift, so panels of one seed would all be the same
    first = [entry.summary.bulk_mean_ratio for entry in published]
    assert len(set(first)) == len(first)


def test_ratios_of_every_panel_are_those_of_the_goe(published):
    """⟨r̃⟩ of n = 300 GOE levels, ends included, is 0.53069 ± 0.00013 (20,000 samples).

    The large-matrix value is therefore that of this size to a tenth of a panel's standard error.
    """
    for entry in published:
        found = entry.summary
        assert 0.001 < found.bulk_mean_ratio_error < 0.0025
        assert abs(found.bulk_mean_ratio - MEAN_RATIO_GOE) < 4 * found.bulk_mean_ratio_error
    sigmas = np.array([entry.sigmas for entry in published])
    # χ² of 27 independent panels
    assert abs(np.sum(sigmas**2) - 27) < 4 * 54**0.5


def test_outliers_lower_the_mean_ratio_of_all_levels(published):
    """20 of 300 levels repel less: their θ are independent and far apart compared to √a."""
    for entry in published:
        lowered = entry.summary.mean_ratio < entry.summary.bulk_mean_ratio
        assert lowered == bool(entry.outliers)


@pytest.mark.slow
def test_ratios_with_ten_times_the_samples(tmp_path):
    settings = load_settings(LossModelConfig, settings_file("gp-loss-model"))
    for entry in gp_loss_model.run(settings, "full", tmp_path):
        found = entry.summary
        # 0.0001: rounding of the tabulated mean
        allowed = 4 * found.bulk_mean_ratio_error + 1e-4
        assert abs(found.bulk_mean_ratio - MEAN_RATIO_GOE) < allowed
        assert found.bulk_mean_ratio_error < 1e-3


def test_levels_lie_where_the_law_has_them(published):
    for entry in published:
        c, radius = entry.summary.c, entry.summary.radius
        levels = [row.eigenvalues[row.eigenvalues != 0] for row in entry.spectra]
        means = np.array([row.mean() for row in levels])
        if entry.outliers:
            continue
        # mean of a row: √c·ξ + tr(√a G)/n with variance c + 2a/n
        spread = (c + 2 * entry.summary.a / 300) ** 0.5
        assert abs(means.mean()) < 4 * spread / 10
        assert abs(means.std(ddof=1) / spread - 1) < 4 / 198**0.5
        # second moment about the mean of a row: a (n + 1), less that of the mean itself
        second = np.mean([row.var() for row in levels])
        expected = radius**2 / 4 * (1 + 1 / 300) - 2 * entry.summary.a / 300
        # its standard error: Var tr G² = 4n² for the GOE, over n² and 100 samples
        assert abs(second - expected) < 4 * entry.summary.a * 2 / 10


def test_figures_show_every_panel(published):
    settings = load_settings(LossModelConfig, settings_file("gp-loss-model"))
    panels = gp_loss_model.figures(settings, published)
    assert set(panels) == {f"fig{n}-{kind}" for n in "56" for kind in ("paper", "stationary")}
    for draw, name in ((sampled_densities, "fig5-paper"), (sampled_ratios, "fig6-stationary")):
        picture = draw(panels[name], "a title")
        assert len(picture.axes) == 9
        headings = [axes.get_title(loc="left") for axes in picture.axes]
        assert headings[3] == "(d) k''(0) = 0.1*"
        assert headings[8] == "(i) k''(0) = 0.1*†"
        words = " ".join(text.get_text() for axes in picture.axes for text in axes.texts)
        assert ("25% of the levels" in words) == (draw is sampled_densities)
        assert words.count("bulk") == (2 if draw is sampled_ratios else 0)


def test_the_law_is_drawn_through_the_histogram(published):
    """Area under both is 1, up to what the axis leaves out; degenerate levels have no area."""
    settings = load_settings(LossModelConfig, settings_file("gp-loss-model"))
    entries = gp_loss_model.figures(settings, published)["fig5-stationary"]
    for entry, axes in zip(entries, sampled_densities(entries).axes, strict=True):
        (law,) = [line for line in axes.lines if line.get_label().startswith("large")]
        (steps,) = axes.patches
        values, edges, _ = steps.get_data()
        sampled = float(np.sum(values * np.diff(edges)))
        share = entry.n / (entry.n + entry.degenerate)
        missing = 0.02 * entry.outliers / (entry.n + entry.degenerate)
        # the axis ends a little beyond 98 % of the outliers
        assert share - missing - 1e-9 < sampled < share + 1e-9
        area = np.trapezoid(law.get_ydata(), law.get_xdata())
        assert area == pytest.approx(share - missing, abs=missing + 2e-4)


def test_fixed_outliers_are_marked(published):
    class Fixed:
        def __init__(self, entry):
            self.label, self.spectra = "fixed", entry.spectra
            self.covariance, self.n, self.degenerate = entry.covariance, 300, 0
            self.outliers, self.outlier_scale, self.means = (30.0, -25.0), 1.0, {}

    (axes,) = sampled_densities([Fixed(published[0])]).axes
    marks = sorted(line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2)
    a = published[0].covariance.a
    assert marks == pytest.approx([-25 - 300 * a / 25, 30 + 300 * a / 30])


def test_no_panel_without_levels(published):
    class Empty:
        label, spectra, n, outliers, means = "empty", (), 3, 0, {}

    with pytest.raises(LevelsError):
        sampled_ratios([Empty()])


def test_a_wrong_experiment(cli, tmp_path):
    (tmp_path / "other.toml").write_text('experiment = "gp-loss"\n')
    result = cli("reproduce", "other.toml")
    assert result.returncode == 2
    assert "known are gp-loss-model, hessian-spacings" in result.stderr
    (tmp_path / "number.toml").write_text("experiment = 3\n")
    assert "experiment: Input should be a valid string" in cli("reproduce", "number.toml").stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("panels = []", "panels"),
        ("panels = [{ k2 = 0.0 }]", "panels"),
        ("panels = [{ k2 = 1.0, outlier = 3 }]", "panels"),
        ("outlier_scale = -1.0", "outlier_scale"),
        ("ratio_k1 = 0.0", "ratio_k1"),
    ],
)
def test_bad_settings(cli, tmp_path, line, said):
    text = SETTINGS.format(seed=0)
    if said == "panels":
        text = text[: text.index("panels")] + text[text.index("[presets") :]
    (tmp_path / "bad.toml").write_text(f"{line}\n{text}")
    result = cli("reproduce", "bad.toml")
    assert result.returncode == 2
    assert f"error: {said}:" in result.stderr


@pytest.mark.parametrize("name", names())
def test_every_experiment_has_what_reproduce_needs(name):
    experiment = experiment_of(settings_file(name))
    settings = experiment.load(settings_file(name))
    assert name.startswith(settings.experiment)
    assert {"small", "full"} <= set(settings.presets)
    for attribute in ("SHOWN", "run", "table", "columns", "markdown", "sentences"):
        assert hasattr(Conductor, attribute) or attribute in Conductor.__annotations__
        assert hasattr(experiment.conductor, attribute)
