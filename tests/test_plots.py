"""Pictures: they show the data and the laws that other modules computed, and say what is missing.

Warnings are errors here: a picture must draw without any.
"""

import ast
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from drawn_families import DEFAULTS, entry
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

from hessrmt import rng, theory
from hessrmt.errors import ConfigError, DataError, StoreError
from hessrmt.experiments.puzzles import (
    Puzzles,
    ReferenceLine,
    family_losses,
    margin_error,
    random_partner,
)
from hessrmt.generalization import fit_line
from hessrmt.levels import (
    decade_histograms,
    density_histograms,
    form_factor,
    long_range,
    number_variance,
    ratio_histogram,
    resampling,
    rigidity,
    spacing_histogram,
)
from hessrmt.levels.analysis import Alike
from hessrmt.levels.resampling import with_error
from hessrmt.levels.selection import ratio_samples, select
from hessrmt.levels.unfolding import unfold_selection
from hessrmt.plots import puzzles, style
from hessrmt.plots.files import draw_each, save
from hessrmt.plots.levels import (
    density_per_decade,
    higher_orders,
    spectral_density,
    staircase,
    surmise,
)
from hessrmt.plots.training import averaged_spectra
from hessrmt.runs.levels import pictures

pytestmark = pytest.mark.filterwarnings("error")

PICTURES = "density-per-decade density form-factor number-variance ratios-unfolded ratios rigidity"
MAGIC = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


REFERENCE = ReferenceLine(label="Fig. 15", slope=1.0075, intercept=-0.0174, r2=1.0)
SPLITS = (("training", "train"), ("test", "test"))
NATURAL = entry(name="scale")
CORRUPTED = entry("corruption", name="corr", reference_loss=0.006, values=(0, 0.1, 0.1, 0.5, 1))
MINUS, TINY = "\N{MINUS SIGN}", "$10^{-6}$"
RANDOM = entry(name="rl", labels="random", values=(0.05, 0.1))
SAMPLES = [entry("samples"), entry("samples", name="samples-random", labels="random")]


def draw_all(levels, folder, ending="png", title=""):
    return draw_each(pictures(levels, title), folder, ending)


@cache
def raw(kind):
    draw = rng.stream(11, "pictures", kind)
    if kind == "poisson":
        return draw.uniform(size=(31, 120))
    if kind == "decades":  # levels of both signs over ten decades, as Hessians have them
        return draw.choice([-1, 1], (12, 60)) * 10 ** draw.uniform(-8, 2, (12, 60))
    matrices = draw.normal(size=(1 if kind == "single" else 20, 150, 150))
    return np.linalg.eigvalsh(matrices + matrices.transpose(0, 2, 1))


@cache
def unfolded(kind):
    if kind == "split":  # only a third of the spectra is unfolded, with the others
        return unfold_selection(select(raw("goe")), "pooled", rotate=False)
    return unfold_selection(select(raw(kind)), "pooled" if len(raw(kind)) > 1 else "window")


def line(axes, label):
    """The x and y of a curve, by the beginning of its name in the legend."""
    (found,) = [one for one in axes.get_lines() if str(one.get_label()).startswith(label)]
    return np.array(found.get_data())


def check_laws(axes, **laws):
    """Each law, by its name in style.LAWS, is drawn as its function has it."""
    for name, function in laws.items():
        x, values = line(axes, style.LAWS[name]["label"])
        np.testing.assert_allclose(values, function(x))


def check_points(axes, *entries, names):
    """A scatter plot of each family, one of its columns against another."""
    for drawn, made in zip(scattered(axes), entries, strict=True):
        np.testing.assert_array_equal(drawn, columns(made, *names))


def said(axes):
    """All that the legend says."""
    return "\n".join(axes.get_legend_handles_labels()[1])


def scattered(axes):
    """Places of the points of each scatter plot, in the order drawn."""
    found = [one for one in axes.collections if isinstance(one, PathCollection)]
    return [np.asarray(one.get_offsets()) for one in found]


def columns(made, *names):
    return np.column_stack([made.result.column(name) for name in names])


def bars(axes):
    """Height and edges of a histogram, and its error bars."""
    values, edges, _ = axes.patches[0].get_data()
    return (
        values,
        edges,
        np.array([np.ptp(end[:, 1]) / 2 for end in axes.collections[0].get_segments()]),
    )


@pytest.mark.parametrize("kind", ["split", "poisson", "single", "decades"])
def test_every_picture_is_drawn(kind, tmp_path):
    folder = tmp_path / "new" / "folder"
    drawn = draw_all(unfolded(kind), folder, title="A title long enough to need two lines " * 3)
    assert {one.name for one in drawn} == {*PICTURES.split(), "spacings", "staircase"}
    assert not any(one.reason for one in drawn)
    assert sorted(folder.iterdir()) == sorted(one.path for one in drawn)  # no draft is left
    assert all(one.path.read_bytes().startswith(MAGIC["png"]) for one in drawn)


def test_higher_orders_beside_surrogates_and_the_approximate_law():
    fit = {k: SimpleNamespace(mean_ratio_alike=v) for k, v in (("goe", 0.53), ("poisson", 0.39))}
    second = SimpleNamespace(
        mean_ratio=0.67, mean_ratio_error=np.nan, mean_ratio_alike=Alike(0.672, 0.5)
    )
    found = SimpleNamespace(
        mean_ratio=0.52, mean_ratio_error=0.01, higher=(second,), laws=fit, n_levels=90, n_spectra=2
    )
    (axes,) = higher_orders(found).axes
    for label, values in (
        ("GOE surrogates", (0.53, 0.672)),
        ("Poisson surrogates", (0.39, 0.5)),
        ("GOE, approximate law", [theory.higher_mean_ratio(k) for k in (1, 2)]),
    ):
        np.testing.assert_allclose(line(axes, label), [[1, 2], values])
    ((data, _, _),) = axes.containers
    np.testing.assert_array_equal(data.get_data(), [[1, 2], [0.52, 0.67]])
    found.higher = ()
    with pytest.raises(DataError, match="orders=2"):
        higher_orders(found)


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_formats_and_the_same_picture_gives_the_same_file(kind, tmp_path):
    first, second = tmp_path / f"a.{kind}", tmp_path / f"b.{kind.upper()}"
    for path in (first, second):
        save(surmise(), path)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(MAGIC[kind])
    save(surmise("replaced"), first)
    assert first.read_bytes() != second.read_bytes()


def test_a_folder_or_ending_that_cannot_be_used(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        draw_all(unfolded("single"), blocked / "pictures")
    with pytest.raises(ConfigError, match="no picture format 'doc'; try png, pdf or svg"):
        draw_all(unfolded("single"), tmp_path / "pictures", "doc")
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("os.replace", Mock(side_effect=full))
    with pytest.raises(StoreError, match=r"writing .* failed: No space left"):
        save(surmise(), tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == [blocked]


def test_what_cannot_be_computed_is_named(tmp_path):
    few = unfold_selection(select([[0.0, 1.0, 2.5, 3.0]], cutoff=None))
    (missing,) = [one for one in draw_all(few, tmp_path) if one.path is None]
    assert (missing.name, "at least 10" in missing.reason) == ("form-factor", True)
    assert not (tmp_path / "form-factor.png").exists()


def test_a_notebook_shows_a_picture_without_pyplot():
    assert surmise()._repr_png_().startswith(MAGIC["png"])
    code = "import sys, hessrmt.runs.levels; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pictures_are_drawn_into_given_axes():
    own = Figure(figsize=(16, 5), layout="constrained")
    left, right, *pair = own.subplots(1, 4)
    assert ratio_histogram(unfolded("goe").selection).plot("not shown", ax=left) is own
    assert surmise(ax=pair) is own
    own.draw_without_rendering()
    assert (left.get_xlabel(), own.get_suptitle()) == ("r̃ = min(r, 1/r)", "")
    with pytest.raises(DataError, match="ax holds 3 axes; expected 2 × 1 panels"):
        surmise(ax=[left, *pair])
    assert surmise(ax=right) is own  # two panels in the place of one
    assert len(own.axes) == 5


@pytest.mark.parametrize(
    ("draw", "smallest"),
    [
        (lambda: spacing_histogram(unfolded("goe")).plot("title", blocks=True), 9),
        (lambda: ratio_histogram(unfolded("single").selection).plot("title"), 9),
        (lambda: long_range(unfolded("single"), "number_variance").plot("title"), 9),
        (lambda: staircase(unfolded("goe"), title="title"), 9),
        (lambda: family_losses(NATURAL, RANDOM, [REFERENCE]), 7),
        (lambda: puzzles.capacity(NATURAL, RANDOM), 7),
        (lambda: puzzles.margins(NATURAL, RANDOM), 7),
        (lambda: margin_error(NATURAL, RANDOM), 7),
        (lambda: puzzles.sample_errors(SAMPLES), 7),
    ],
)
def test_texts_are_legible_apart_and_inside(draw, smallest):
    """Of ticks, labels and legends no two overlap; none is smaller than some points."""
    picture = draw()
    picture.draw_without_rendering()
    texts = [one for one in picture.findobj(Text) if one.get_text().strip() and one.get_visible()]
    assert min(one.get_fontsize() for one in texts) >= smallest
    width, height = picture.get_size_inches() * picture.dpi
    shown = []  # annotations may lie on one another's empty corners; ticks carry texts out of view
    for axes in picture.axes:
        box = axes.get_tightbbox()  # with the legend and all labels
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 0
        shown += [axes.xaxis.label, axes.yaxis.label]
        shown += [one for one in axes.get_xticklabels() if one.get_visible()]
        if axes.get_legend():
            assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1 - 1
            shown += axes.get_legend().get_texts()
    boxes = [text.get_window_extent() for text in shown if text.get_text()]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_spacings_of_one_spectrum():
    data = unfolded("single")
    axes = spacing_histogram(data).plot(blocks=True).axes[0]
    density, edges, errors = bars(axes)
    expected = resampling.histogram(data.spacings, edges)
    np.testing.assert_allclose([density, errors], expected, atol=1e-12)
    inside = np.mean(np.concatenate(data.spacings) <= edges[-1])
    assert density @ np.diff(edges) == pytest.approx(inside)
    two_blocks = partial(theory.superposed_spacing, fractions=2)
    laws = {"wigner": theory.wigner_surmise, "poisson": theory.poisson_spacing, "goe2": two_blocks}
    check_laws(axes, goe=theory.goe_spacing, **laws)
    assert (axes.get_xlim(), axes.get_xlabel(), axes.get_ylabel()) == ((0, 4), "s", "P(s)")
    assert "149 spacings of 1 spectrum" in said(axes)


def test_pooled_spacings_are_no_comb():
    # Independent levels, unfolded with M others: a spacing is k/M with the geometric probability
    # M^k/(M+1)^(k+1). The 31 spectra have pools of 20 and of 21, whose multiples beat.
    data = unfolded("poisson")
    found = spacing_histogram(data)
    density, edges, step, widths = found.density, found.edges, data.resolution, np.diff(found.edges)
    assert (step, edges[0]) == (1 / 20, -1 / 40)
    np.testing.assert_allclose(widths / step, np.rint(widths / step))
    pools = [20 if np.allclose(x * 20, np.rint(x * 20)) else 21 for x in data.levels]
    k, expected = np.arange(400), np.zeros(len(density))
    for pool in (20, 21):
        weights = (pool / (pool + 1)) ** k / (pool + 1)
        low, high = k / pool - step / 2, k / pool + step / 2
        held = np.minimum(edges[1:, None], high) - np.maximum(edges[:-1, None], low)
        share = np.clip(held, 0, None) @ weights / step
        expected += pools.count(pool) / len(pools) * share / widths
    # 5 standard errors; where they are tiny by chance, those that independent spacings would have
    independent = np.sqrt(expected / widths / sum(map(len, data.spacings)))
    assert (np.abs(density - expected) <= 5 * np.maximum(found.error, independent)).all()
    # neighbouring bins differ by noise only; a comb of whole multiples would show a tenth or more
    assert np.abs(expected[1:] / expected[:-1] - np.exp(-widths[1:])).max() < 0.02


def test_spacings_of_goe_spectra_unfolded_alike():
    axes = spacing_histogram(unfolded("goe"), surrogates=5).plot().axes[0]
    s, alike = line(axes, "GOE, unfolded")
    # a thousandth of the exact law lies beyond its last quantile, where the curve ends
    assert alike.sum() * (s[1] - s[0]) == pytest.approx(1, abs=0.01)
    # a pool of 13 spectra adds noise of variance Σ²(s)/13, which lowers the peak ...
    exact = theory.goe_spacing(s)
    assert alike.max() < exact.max()
    # ... so that the data lie closer to this curve than to the exact law
    density = bars(axes)[0][: len(s)]
    assert np.abs(density - alike).sum() < np.abs(density - exact).sum()


def test_an_unfolding_that_goe_spectra_do_not_fit():
    # a polynomial that just follows even levels over three decades
    data = unfold_selection(select(10 ** np.linspace(0, 3, 200)), "polynomial")
    axes = spacing_histogram(data, surrogates=2).plot().axes[0]
    assert "the unfolding cannot follow GOE spectra" in said(axes)


@pytest.mark.parametrize(("folded", "end"), [(True, 1.0), (False, 10.0)])
def test_ratios(folded, end):
    selection = unfolded("goe").selection
    axes = ratio_histogram(selection, folded).plot("t").axes[0]
    density, edges, errors = bars(axes)
    assert (axes.get_xlim(), density @ np.diff(edges)) == ((0, end), pytest.approx(1))
    samples = [one[one <= end] for one in ratio_samples(selection, folded)]
    np.testing.assert_allclose(errors, resampling.histogram(samples, edges)[1], atol=1e-12)
    shape = {"folded": True} if folded else {"cut": 10.0}
    laws = {"goe2": theory.block_ratio_law, "poisson": theory.poisson_ratio_law}
    laws["goe"] = partial(theory.ratio_law, corrected=True)
    check_laws(axes, **{name: partial(law, **shape) for name, law in laws.items()})
    for label in ("GOE", "two GOE", "Poisson"):
        r, values = line(axes, label)
        # the trapezium rule is off by h²/12 |P'(end) - P'(0)|, and |P'| < 8
        assert np.trapezoid(values, r) == pytest.approx(1, abs=16 * (r[1] - r[0]) ** 2 / 12)
    mean, error = resampling.mean_and_error(ratio_samples(selection))
    assert (f"⟨r̃⟩ = {mean:.4f} ± {error:.4f}" in said(axes)) == folded


def test_density_of_goe_is_the_semicircle():
    rows = list(raw("goe"))
    axes = spectral_density(density_histograms({"GOE": rows}, bins=50)).axes[0]
    values, edges, _ = axes.patches[0].get_data()
    assert values @ np.diff(edges) == pytest.approx(1)
    mean, radius = np.mean(rows), 2 * np.std(rows)
    check_laws(axes, semicircle=lambda x: theory.semicircle(x - mean, radius))
    outlier = [*rows, np.array([1e3, 1e4])]
    axes = spectral_density(density_histograms({"GOE": outlier}, clip=1e-3)).axes[0]
    assert "not drawn" in said(axes)
    assert axes.get_xlim()[1] < 1e3


def test_density_per_decade_counts_every_level_once():
    groups = {"a": [np.append(row, 0.0) for row in raw("decades")], "b": raw("goe")}
    picture = density_per_decade(decade_histograms(groups))
    for axes, levels in zip(picture.axes, groups.values(), strict=True):
        lines = [one for one in axes.patches if one.get_label().startswith(("a, ", "b, "))]
        every = np.concatenate(levels)
        for line, number in zip(lines, ((every > 0).sum(), (every < 0).sum()), strict=True):
            counts, edges, _ = line.get_data()
            assert counts @ np.diff(edges) == pytest.approx(number / len(levels))
            assert f"{number:,} with" in line.get_label()
    assert "exact zeros, not drawn: 12" in said(picture.axes[0])


def test_staircase():
    data = unfolded("goe")
    upper, lower = staircase(data, 3).axes
    levels, heights = data.selection.levels[3], data.levels[3]
    counted, curve = upper.get_lines()
    np.testing.assert_array_equal(counted.get_data(), [levels, np.arange(1, 151)])
    np.testing.assert_array_equal(curve.get_ydata(), heights)
    np.testing.assert_allclose(lower.get_lines()[1].get_ydata(), np.arange(150) + 0.5 - heights)
    positive = unfold_selection(select(np.abs(raw("decades"))))
    for found, scale in ((data, "linear"), (unfolded("decades"), "symlog"), (positive, "log")):
        assert staircase(found).axes[1].get_xscale() == scale


FAR = [[0.0, 1.0, 101.0, 10201.0]]


@pytest.mark.parametrize(
    ("draw", "match"),
    [
        (lambda: [staircase(unfolded("split"), i) for i in range(3)], "pool only; try"),
        (lambda: staircase(unfolded("split"), 20), "there is no spectrum 20"),
        (lambda: ratio_histogram(select(FAR), False), "below the cut 10; raise it"),
        (lambda: ratio_histogram(select(FAR), False, -1.0), "positive"),
        (lambda: density_histograms({"a": FAR}, clip=0.5), "clip must be a share"),
        (lambda: decade_histograms({"flat": [np.ones(5)]}), "flat: a density needs"),
        (lambda: long_range(unfolded("goe"), "variance"), "known: number_variance"),
    ],
)
def test_what_cannot_be_drawn(draw, match):
    with pytest.raises(DataError, match=match):
        draw()


@pytest.mark.parametrize(
    ("measure", "theirs", "labels"),
    [
        (number_variance, theory.number_variance, ("L", "Σ²(L)")),
        (rigidity, theory.rigidity, ("L", "Δ₃(L)")),
        (form_factor, theory.form_factor, ("τ", "K(τ)")),
    ],
)
def test_long_range(measure, theirs, labels):
    data, name = unfolded("goe"), measure.__name__
    axes = long_range(data, name).plot().axes[0]
    at, values = line(axes, "3,000 levels of 20 spectra")
    if measure is not form_factor:  # whose values are averages over bins of τ
        spans = np.array([x[-1] - x[0] for x in data.levels]) / 4
        # of spectra with equally many levels half span no less, and half no more
        assert min(np.mean(spans >= at[-1] - 1e-9), np.mean(spans <= at[-1] + 1e-9)) >= 0.5
        np.testing.assert_allclose(values, measure(data.levels, at))
    check_laws(axes, **{law: partial(theirs, law=law) for law in ("goe", "goe2", "poisson")})
    assert "± one standard error" in said(axes)
    assert (axes.get_xlabel(), axes.get_ylabel()) == labels
    asked = long_range(data, name, [0.5, 1.5]).plot(blocks=False).axes[0]
    np.testing.assert_allclose(line(asked, "3,000")[1], measure(data.levels, [0.5, 1.5]))
    assert "two" not in said(asked)


def test_one_spectrum_windows_that_its_unfolding_hides_and_its_form_factor():
    for kind, hidden in (("single", True), ("goe", False)):
        axes = long_range(unfolded(kind), "number_variance").plot().axes[0]
        assert ("beyond the unfolding's 29 spacings" in said(axes)) == hidden
    axes = long_range(unfolded("single"), "form_factor").plot().axes[0]
    assert "± one standard error" in said(axes)


def test_surmise():
    upper, lower = surmise().axes
    check_laws(upper, goe=theory.goe_spacing)
    s, difference = line(lower, "Wigner")
    error = theory.wigner_surmise(s) - theory.goe_spacing(s)
    np.testing.assert_allclose(difference, error, atol=1e-14)


def test_jackknife_of_a_mean_is_its_standard_error():
    def mean(given):
        return np.array([np.mean(np.concatenate(given))])

    rows = list(rng.stream(2, "jackknife").normal(size=(10, 40)))
    means = np.mean(rows, axis=1)
    for given in (rows, [np.concatenate(rows)]):  # one spectrum: its ten stretches of 40
        value, error = with_error(mean, given)
        assert value == pytest.approx(means.mean())
        assert error == pytest.approx(means.std(ddof=1) / 10**0.5)
    assert np.isnan(with_error(mean, [rows[0][:30]])[1]).all()


# Families of networks: every member is there, and lines are those of the fits


@pytest.mark.parametrize("prefix", ["", "normalized_"])
def test_losses_hold_every_member_the_fitted_line_and_its_bands(prefix):
    picture = family_losses(NATURAL, RANDOM, [REFERENCE])
    upper, lower = picture.axes[bool(prefix) : 4 : 2]
    names = (f"{prefix}train_loss", f"{prefix}test_loss")
    points, others = columns(NATURAL, *names), columns(RANDOM, *names)
    fit, both = fit_line(*points.T), fit_line(*np.concatenate([points, others]).T)
    check_points(upper, NATURAL, RANDOM, names=names)
    for drawn, (x, y) in zip(scattered(lower), (points.T, others.T), strict=True):
        np.testing.assert_array_equal(drawn[:, 1], y - fit(x))  # residuals below
    laws = {puzzles.LINE: fit, puzzles.WITH_RANDOM: both, puzzles.DIAGONAL: lambda x: x}
    for name, law in laws.items():
        x, y = line(upper, name)
        np.testing.assert_array_equal(y, law(x))
    words = said(upper)
    told = re.findall(r"R² (\S+), adjusted R² (\S+), RMSE (\S+)", words)
    wanted = [(law.r2, law.adjusted_r2, law.rmse) for law in (fit, both)]
    for one, numbers in zip(told, wanted, strict=True):  # three digits of R², or six close to 1
        closeness = [1e-6 if float(r2) > 0.99 else 1e-3 for r2 in one[:2]]
        np.testing.assert_array_less(np.abs(np.array(one[:2], float) - numbers[:2]), closeness)
        assert one[2] == f"{numbers[2]:.2g}"
    assert ("Fig. 15:\nslope 1.0075, intercept -0.0174, R² 1.0000" in words) == bool(prefix)
    bands = {one.get_label(): one for one in upper.collections if isinstance(one, PolyCollection)}
    laws = {puzzles.CONFIDENCE: fit.confidence_band, puzzles.PREDICTION: fit.prediction_band}
    for label, band in laws.items():
        x, y = bands[label].get_paths()[0].vertices.T
        away = np.abs(np.subtract(band(x), y)).min(axis=0)
        assert away.max() <= 4 * np.finfo(float).eps * np.abs(y).max()


def test_a_reference_or_diagonal_out_of_view_is_said_to_be():
    away = ReferenceLine(label="elsewhere", slope=0.836, intercept=3.0)
    left, right = map(said, family_losses(CORRUPTED, None, [away]).axes[:2])
    assert "elsewhere:\nslope 0.836, intercept 3 (out of view)" in right
    assert f"{puzzles.DIAGONAL} (out of view)" in left
    assert f"{puzzles.DIAGONAL} (out of view)" not in right


def test_without_a_line_the_points_are_still_there():
    for axes in family_losses(entry(name="two", values=(0.1, 0.2))).axes[:2]:
        assert line(axes, "no line: a line and its errors need at least 3 points, got 2").size == 0
        assert len(scattered(axes)[0]) == 2


def test_ticks_of_losses_are_written_out():
    picture = family_losses(entry(name="near", values=(0.1, 0.11, 0.12, 0.13)))
    picture.draw_without_rendering()
    for axes in picture.axes[:4]:
        for axis in (axes.xaxis, axes.yaxis):
            assert not axis.get_offset_text().get_text()
            texts = [tick.get_text() for tick in axis.get_ticklabels() if tick.get_visible()]
            assert len(set(texts)) == len(texts)
    spacing = np.diff([float(t.get_text()) for t in picture.axes[3].xaxis.get_ticklabels()])
    np.testing.assert_allclose(spacing, spacing[0], rtol=1e-6)  # no digit is lost
    assert spacing[0] < np.ptp(picture.axes[3].get_xlim())


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ((2.3021, 2.3029), ["2.3022", "2.3024", "2.3026", "2.3028"]),
        ((0, 410_000), ["0", "100,000", "200,000", "300,000", "400,000"]),
        ((1_234_560, 1_234_565), [f"1.23456{digit}·$10^{{6}}$" for digit in ("", *"12345")]),
        (
            (-2e-6, 2e-6),
            [f"{MINUS}1.6·{TINY}", f"{MINUS}8·$10^{{-7}}$", "0", "8·$10^{-7}$", f"1.6·{TINY}"],
        ),
    ],
)
def test_ticks_of_linear_axes_can_be_read(limits, wanted):
    axes = style.single("", None)
    axes.set_xlim(limits)
    style.few_ticks(axes)
    axes.figure.draw_without_rendering()
    shown = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    assert [t.get_text() for at, t in shown if limits[0] <= at <= limits[1]] == wanted


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ((400, 2e5), ["1,000", "3,000", "10,000", "30,000", "100,000"]),
        ((50, 3e7), ["100", "1,000", "$10^{4}$", "$10^{5}$", "$10^{6}$", "$10^{7}$"]),
        ((2e-5, 3e-3), ["3·$10^{-5}$", "$10^{-4}$", "3·$10^{-4}$", "0.001", "0.003"]),
    ],
)
def test_ticks_of_logarithmic_axes_can_be_read(limits, wanted):
    axes = style.single("", None)
    axes.set(xscale="log", xlim=limits)
    style.log_ticks(axes.xaxis, 6)
    axes.figure.draw_without_rendering()
    assert [t.get_text() for t in axes.get_xticklabels()] == wanted


def test_epochs_are_whole_numbers():
    left = puzzles.margins(NATURAL, RANDOM).axes[0]
    left.figure.draw_without_rendering()
    np.testing.assert_array_equal(left.get_xticks() % 1, 0)


def test_no_column_cuts_the_histograms_of_another():
    ranked = np.arange(1, 4), np.array([9.0, 3.0, 1.0]), None
    edges, heights = np.arange(-3.0, 2.0), np.array([1.0, 4.0, 9.0, 2.0])
    rates = {
        name: {"last": (ranked, {"λ > 0": factor * heights, "λ < 0": heights})}
        for name, factor in (("low", 1), ("high", 50), ("falling", 1))
    }
    axes = averaged_spectra(rates, edges).axes
    for row, peak in ((axes[3:6], 450), (axes[6:9], 9)):
        for low, high in (panel.get_ylim() for panel in row):
            assert low == 0
            assert peak < high < 1.2 * peak
    assert [panel.get_ylabel() for panel in axes[::3]] == [
        *("largest eigenvalues", "eigenvalues\nper decade, λ > 0", "eigenvalues\nper decade, λ < 0")
    ]


def test_pictures_say_levels_only_where_statistics_are_meant():
    folder, found = Path(style.__file__).parent, set()
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        said = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
        words = {node.value for node in said if isinstance(node.value, str)}
        words -= {ast.get_docstring(node, clean=False) for node in documented(tree)}
        found |= {(path.stem, text) for text in words if re.search(r"\blevels?\b", text)}
    assert {text for module, text in found if module not in {"levels", "__init__"}} == {
        "⟨r̃⟩ of certified levels",
        "sampled, all levels",
    }


def documented(tree):
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def test_capacity():
    picture = puzzles.capacity(NATURAL, RANDOM)
    loss, product, error = "normalized_test_loss", "product", "test_error"
    wanted = [(product, loss), (loss, error), (product, error)]
    for axes, names, scale in zip(picture.axes, wanted, ("log", "linear", "log"), strict=False):
        check_points(axes, NATURAL, RANDOM, names=names)
        assert axes.get_xscale() == scale
    by_output = puzzles.capacity(entry(name="resnet", by="output"))
    assert by_output.axes[0].get_xlabel() == "norm of the output"


def test_errors_against_margins_and_bounds():
    left, right = margin_error(NATURAL, RANDOM).axes[:2]
    x, y = NATURAL.separating
    assert any(np.array_equal(one, np.column_stack([x, y])) for one in scattered(left))
    check_points(right, NATURAL, RANDOM, names=("complexity_over_margin", "test_error"))
    assert right.get_xscale() == "log"
    rho, fit = NATURAL.correlations["margin"], fit_line(x, y)
    assert rho.n == len(x)
    assert f"slope {fit.slope:.2g}" in said(left)
    low, high = rho.spearman_interval
    assert f"{rho.spearman:+.2f} [{low:+.2f}, {high:+.2f}]" in said(left)
    assert (
        f"the bound on the error is below 1 for 0 of {len(NATURAL.result.members)} networks"
        in said(right)
    )
    unproven = entry(name="resnet", by="output")
    members = [replace(m, rademacher=np.nan) for m in unproven.result.members]
    unproven = replace(unproven, result=replace(unproven.result, members=tuple(members)))
    assert "no bound is proven" in said(margin_error(unproven).axes[1])
    wrong = tuple(replace(m, normalized_margin=-1.0) for m in members)
    wrong = replace(unproven, result=replace(unproven.result, members=wrong))
    with pytest.raises(DataError, match="no network classifies"):
        margin_error(wrong)


def test_product_at_a_common_loss():
    picture = puzzles.product_at_loss(CORRUPTED)
    check_points(picture.axes[0], CORRUPTED, names=("product", "test_error"))
    loss = CORRUPTED.result.column("train_loss")
    words = f"training losses {loss.min():.3g} to {loss.max():.3g}, asked for 0.006"
    assert words in picture.get_suptitle()


@pytest.mark.parametrize(("vary", "scale"), [("initial-scale", "log"), ("corruption", "linear")])
def test_losses_and_errors_against_what_is_varied(vary, scale):
    made = NATURAL if vary == "initial-scale" else CORRUPTED
    value = made.result.column("value")
    for axes, what in zip(puzzles.against_value(made).axes, ("loss", "error"), strict=True):
        for label, split in SPLITS:
            x, y = line(axes, label)
            np.testing.assert_array_equal(x, np.unique(value))
            points = columns(made, "value", f"{split}_{what}")
            np.testing.assert_allclose(y, [points[value == v, 1].mean() for v in x], rtol=1e-14)
            repeated = any(np.array_equal(one, points) for one in scattered(axes))
            assert repeated == (len(x) < len(value))  # repeated values: also every single network
        assert (axes.get_xlabel(), axes.get_xscale()) == (puzzles.WORDS[vary], scale)


def test_width():
    made = entry("width")
    axes = puzzles.width(made).axes[0]
    for label, split in SPLITS:
        wanted = columns(made, "parameters", f"{split}_error")
        np.testing.assert_array_equal(line(axes, label).T, wanted)
    assert (line(axes, "N = 50,000")[0] == 50000).all()


def test_samples():
    errors = puzzles.sample_errors(SAMPLES)
    grid = np.array(puzzles.sample_losses(SAMPLES).axes).reshape(3, 2)
    gap = "test - training"
    for axes, (upper, middle, lower), made in zip(errors.axes, grid.T, SAMPLES, strict=True):
        assert axes.get_xlabel() == f"training samples N, {made.settings.labels} labels"
        for each, what, labels in (
            (axes, "{}_error", ("training", "test", gap)),
            (upper, "{}_loss", ("training", "test")),
            (middle, "normalized_{}_loss", ("training", "test")),
            (lower, "normalized_{}_loss", (gap,)),
        ):
            n, train, test = columns(made, "value", what.format("train"), what.format("test")).T
            values = {"training": train, "test": test, gap: test - train}
            for label in labels:
                (drawn,) = [
                    one for one in each.get_lines() if one.get_label().split(",")[0] == label
                ]
                np.testing.assert_array_equal(drawn.get_data(), [n, values[label]])
    assert errors.axes[0].get_ylim() == errors.axes[1].get_ylim()


def test_outputs():
    members = [NATURAL.result.members[i] for i in (0, 4, 7)]
    for axes, member in zip(puzzles.outputs(NATURAL).axes, members, strict=True):
        counts, edges, _ = axes.patches[0].get_data()
        np.testing.assert_array_equal(counts, member.top_output_counts)
        np.testing.assert_array_equal(edges, member.top_output_edges)
        mean, deviation = f"{member.top_output_mean:.4g}", f"{member.top_output_std:.4g}"
        assert f"s = {member.value:g}: mean {mean},\nstandard deviation {deviation}" in said(axes)
    assert len(puzzles.outputs(entry(name="one", values=(0.1,))).axes) == 1


def test_margins_count_what_they_leave_out():
    wrong = entry(name="wrong", separated=False, values=(0.03, 0.3))
    members = NATURAL.result.members
    result = type(NATURAL.result)({}, (*members, *wrong.result.members), "made up", "cpu", True)
    left, right = puzzles.margins(replace(NATURAL, result=result), RANDOM).axes[:2]
    assert len(left.get_lines()) == len(members) + len(RANDOM.result.members)
    for curve, member in zip(left.get_lines(), members, strict=False):
        size = member.history["margin"] / member.history["product"]
        assert set(size > 0) == {True, False}
        wanted = [member.history["epoch"], np.where(size > 0, size, np.nan)]  # NaN: a gap
        np.testing.assert_array_equal(curve.get_data(), wanted)
    for drawn, made in zip(scattered(right), (NATURAL, RANDOM), strict=True):
        margin, error = columns(made, "normalized_margin", "test_error").T
        np.testing.assert_allclose(drawn, np.column_stack([1 / margin, error]))
    assert "left out: 2 that never separate" in left.get_xlabel()
    assert "left out: 2 that have a training error" in right.get_xlabel()
    with pytest.raises(DataError, match="wrong: no network ever classifies all"):
        puzzles.margins(wrong)


def test_values_are_written_beside_points_only_where_they_find_room():
    few = family_losses(NATURAL).axes[1]
    assert {text.get_text() for text in few.texts} == {f"{v:g}" for v in NATURAL.settings.values}
    crowd = family_losses(entry(name="crowd", values=tuple(np.geomspace(0.1, 0.2, 30))))
    assert not crowd.axes[1].texts


def test_all_pictures_of_a_preset():
    corrupted = replace(CORRUPTED, reference=(REFERENCE,))
    pictures = Puzzles().figures([RANDOM, corrupted, *SAMPLES])
    kinds = ("losses", "capacity", "outputs", "margins", "trend", "product", "bounds")
    wanted = {*(f"corr-{kind}" for kind in kinds), "samples-errors", "samples-losses"}
    assert set(pictures) == wanted  # the random families have no pictures of their own


def test_partners_are_networks_of_the_same_kind():
    everything = [NATURAL, CORRUPTED, RANDOM]
    assert [random_partner(one, everything) for one in everything] == [RANDOM, RANDOM, None]
    for change in ({"model": "conv3-24"}, {"data": "cifar10"}, {"norm": 1}, {"by": "output"}):
        other = entry(name="other", **change)
        assert random_partner(other, [other, RANDOM]) is None
    assert random_partner(SAMPLES[0], [SAMPLES[0], RANDOM, SAMPLES[1]]) is SAMPLES[1]
    model = DEFAULTS["width"]["model"]
    made, partner = entry("width"), entry("width", name="partner", labels="random", model=model)
    assert random_partner(made, [made, RANDOM, partner]) is None
