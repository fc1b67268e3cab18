"""Pictures: they show the data and the laws that other modules computed, and say what is missing.

Warnings are errors here: a picture must draw without any.
"""

import subprocess
import sys
from functools import cache, partial

import numpy as np
import pytest
from hessrmt.workflows.figures import draw_all
from matplotlib.figure import Figure
from matplotlib.text import Text

from hessrmt import rng, theory
from hessrmt.errors import ConfigError, DataError, StoreError
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
from hessrmt.levels.analysis import ratio_samples, unfold_selection
from hessrmt.levels.jackknife import with_error
from hessrmt.levels.selection import select
from hessrmt.plots import style
from hessrmt.plots.files import save
from hessrmt.plots.levels import density_per_decade, spectral_density, staircase, surmise

pytestmark = pytest.mark.filterwarnings("error")

PICTURES = set(
    "spacings ratios ratios-unfolded density density-per-decade staircase number-variance rigidity "
    "form-factor".split()
)
MAGIC = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


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


def law(axes, label):
    """The curve of a law, by the beginning of its name in the legend."""
    (line,) = [one for one in axes.get_lines() if str(one.get_label()).startswith(label)]
    return line.get_xdata(), line.get_ydata()


def said(axes):
    return axes.get_legend_handles_labels()[1]


def bars(axes):
    """Height and edges of a histogram, and its error bars."""
    values, edges, _ = axes.patches[0].get_data()
    segments = axes.collections[0].get_segments()
    return values, edges, np.array([(end[1, 1] - end[0, 1]) / 2 for end in segments])


@pytest.mark.parametrize("kind", ["split", "poisson", "single", "decades"])
def test_every_picture_is_drawn(kind, tmp_path):
    folder = tmp_path / "new" / "folder"
    drawn = draw_all(unfolded(kind), folder, title="A title long enough to need two lines " * 3)
    assert {one.name for one in drawn} == PICTURES
    assert [one.reason for one in drawn] == [""] * len(PICTURES)
    assert sorted(folder.iterdir()) == sorted(one.path for one in drawn)  # no draft is left
    assert all(one.path.read_bytes().startswith(MAGIC["png"]) for one in drawn)


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_formats_and_the_same_picture_gives_the_same_file(kind, tmp_path):
    first, second = tmp_path / f"a.{kind}", tmp_path / f"b.{kind.upper()}"
    for path in (first, second):
        save(surmise(), path)
    assert first.read_bytes().startswith(MAGIC[kind])
    assert first.read_bytes() == second.read_bytes()
    save(surmise("replaced"), first)
    assert first.read_bytes() != second.read_bytes()


def test_a_folder_or_ending_that_cannot_be_used(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StoreError, match="cannot make the folder"):
        draw_all(unfolded("single"), blocked / "pictures")
    with pytest.raises(ConfigError, match="no picture format 'doc'; try png, pdf or svg"):
        draw_all(unfolded("single"), tmp_path / "pictures", "doc")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StoreError, match=r"cannot write .*No space left"):
        save(surmise(), tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == [blocked]


def test_what_cannot_be_computed_is_named(tmp_path):
    few = unfold_selection(select([[0.0, 1.0, 2.5, 3.0]], cutoff=None))
    reasons = {one.name: one.reason for one in draw_all(few, tmp_path) if one.path is None}
    assert "at least 10" in reasons["form-factor"]
    assert not (tmp_path / "form-factor.png").exists()
    assert (tmp_path / "spacings.png").exists()
    with pytest.raises(DataError, match="unknown statistic 'variance'; known are number_variance"):
        long_range(few, "variance")


def test_a_notebook_shows_a_picture_without_pyplot():
    assert surmise()._repr_png_().startswith(MAGIC["png"])
    code = "import sys, hessrmt.workflows.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pictures_are_drawn_into_given_axes():
    own = Figure(layout="constrained")
    left, right, *pair = own.subplots(1, 4)
    assert long_range(unfolded("goe"), "rigidity", [1.0, 2.0]).plot(ax=left) is own
    assert ratio_histogram(unfolded("goe").selection).plot("not shown", ax=right) is own
    assert surmise(ax=pair) is own
    assert (left.get_xlabel(), right.get_xlabel()) == ("L", "r̃ = min(r, 1/r)")
    assert not own.get_suptitle()
    own.draw_without_rendering()
    with pytest.raises(DataError, match="ax holds 1 axes; expected 2 × 1 panels"):
        surmise(ax=left)


@pytest.mark.parametrize("kind", ["goe", "single"])
def test_text_is_legible(kind):
    data = unfolded(kind)
    for picture in (
        spacing_histogram(data).plot("title", blocks=True),
        ratio_histogram(data.selection).plot("title"),
        long_range(data, "number_variance").plot("title"),
        staircase(data, title="title"),
    ):
        picture.draw_without_rendering()
        texts = [one for one in picture.findobj(Text) if one.get_text().strip()]
        assert min(one.get_fontsize() for one in texts) >= 9
        width, height = picture.get_size_inches() * picture.dpi
        for axes in picture.axes:
            box = axes.get_tightbbox()  # with the legend and all labels
            assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 0
            if axes.get_legend():
                assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1 - 1


def test_spacings_of_one_spectrum():
    data = unfolded("single")
    axes = spacing_histogram(data).plot(blocks=True).axes[0]
    density, edges, errors = bars(axes)
    expected, expected_error = resampling.histogram(data.spacings, edges)
    np.testing.assert_allclose(density, expected)
    np.testing.assert_allclose(errors, expected_error, atol=1e-12)
    assert errors.max() > 0
    inside = np.mean(np.concatenate(data.spacings) <= edges[-1])
    assert density @ np.diff(edges) == pytest.approx(inside)
    for label, function in (
        ("GOE, exact", theory.goe_spacing),
        ("Wigner", theory.wigner_surmise),
        ("Poisson", theory.poisson_spacing),
        ("two GOE", lambda s: theory.superposed_spacing(s, 2)),
    ):
        s, values = law(axes, label)
        np.testing.assert_allclose(values, function(s))
    assert (axes.get_xlim(), axes.get_xlabel(), axes.get_ylabel()) == ((0, 4), "s", "P(s)")
    assert "149 spacings of 1 spectrum" in said(axes)


def test_pooled_spacings_are_no_comb():
    # Independent levels, unfolded with M others: a spacing is k/M with the geometric probability
    # M^k/(M+1)^(k+1). The 31 spectra have pools of 20 and of 21, whose multiples beat.
    data = unfolded("poisson")
    density, edges, errors = bars(spacing_histogram(data).plot().axes[0])
    step = data.resolution
    assert step == 1 / 20
    assert edges[0] == -step / 2
    np.testing.assert_allclose(np.diff(edges) / step, np.rint(np.diff(edges) / step))
    pools = [20 if np.allclose(x * 20, np.rint(x * 20)) else 21 for x in data.levels]
    assert set(pools) == {20, 21}
    k = np.arange(400)
    expected = np.zeros(len(density))
    for pool in (20, 21):
        weights = (pool / (pool + 1)) ** k / (pool + 1)
        low, high = k / pool - step / 2, k / pool + step / 2
        held = np.minimum(edges[1:, None], high) - np.maximum(edges[:-1, None], low)
        share = np.clip(held, 0, None) @ weights / step
        expected += pools.count(pool) / len(pools) * share / np.diff(edges)
    # 5 standard errors; where they are tiny by chance, those that independent spacings would have
    count = sum(map(len, data.spacings))
    independent = np.sqrt(expected / np.diff(edges) / count)
    assert (np.abs(density - expected) <= 5 * np.maximum(errors, independent)).all()
    # neighbouring bins differ by noise only; a comb of whole multiples would show a tenth or more
    smooth = np.abs(expected[1:] / expected[:-1] - np.exp(-np.diff(edges)[1:]))
    assert smooth.max() < 0.02


def test_spacings_of_goe_spectra_unfolded_alike():
    axes = spacing_histogram(unfolded("goe"), surrogates=5).plot().axes[0]
    s, alike = law(axes, "GOE, unfolded")
    # a thousandth of the exact law lies beyond its last quantile, where the curve ends
    assert alike.sum() * (s[1] - s[0]) == pytest.approx(1, abs=0.01)
    # a pool of 13 spectra adds noise of variance Σ²(s)/13, which lowers the peak ...
    exact = theory.goe_spacing(s)
    assert alike.max() < exact.max()
    # ... so that the data lie closer to this curve than to the exact law
    density = bars(axes)[0][: len(s)]
    assert np.abs(density - alike).sum() < np.abs(density - exact).sum()


def test_an_unfolding_that_goe_spectra_do_not_fit():
    # levels of a Wishart matrix, unfolded by the Marchenko-Pastur law
    x = rng.stream(4, "wishart").normal(size=(3, 60, 120))
    levels = np.linalg.eigvalsh(x @ x.transpose(0, 2, 1) / 120)
    data = unfold_selection(select(levels), "analytic", law="marchenko-pastur", ratio=0.5, scale=1)
    axes = spacing_histogram(data, surrogates=2).plot().axes[0]
    assert "the unfolding cannot follow GOE spectra" in said(axes)


@pytest.mark.parametrize("folded", [True, False])
def test_ratios(folded):
    selection = unfolded("goe").selection
    axes = ratio_histogram(selection, folded).plot("t").axes[0]
    density, edges, errors = bars(axes)
    end = 1.0 if folded else 10.0
    assert axes.get_xlim() == (0, end)
    assert density @ np.diff(edges) == pytest.approx(1)
    samples = [one[one <= end] for one in ratio_samples(selection, folded)]
    np.testing.assert_allclose(errors, resampling.histogram(samples, edges)[1], atol=1e-12)
    shape = {"folded": True} if folded else {"cut": 10.0}
    for label, function in (
        ("GOE", partial(theory.ratio_law, corrected=True)),
        ("two GOE", theory.block_ratio_law),
        ("Poisson", theory.poisson_ratio_law),
    ):
        r, values = law(axes, label)
        np.testing.assert_allclose(values, function(r, **shape))
        # the trapezium rule is off by h²/12 |P'(end) - P'(0)|, and |P'| < 8
        assert np.trapezoid(values, r) == pytest.approx(1, abs=16 * (r[1] - r[0]) ** 2 / 12)
    mean, error = resampling.mean_and_error(ratio_samples(selection))
    assert any(f"⟨r̃⟩ = {mean:.4f} ± {error:.4f}" in label for label in said(axes)) == folded


def test_ratios_that_cannot_be_drawn():
    selection = select([[0.0, 1.0, 101.0, 10201.0]], cutoff=None)
    for cut, match in ((10.0, "below the cut 10; raise it"), (-1.0, "positive")):
        with pytest.raises(DataError, match=match):
            ratio_histogram(selection, folded=False, cut=cut)


def test_density_of_goe_is_the_semicircle():
    rows = list(raw("goe"))
    axes = spectral_density(density_histograms({"GOE": rows}, bins=50)).axes[0]
    values, edges, _ = axes.patches[0].get_data()
    assert values @ np.diff(edges) == pytest.approx(1)
    assert axes.get_yscale() == "log"
    x, curve = law(axes, "semicircle")
    every = np.concatenate(rows)
    np.testing.assert_allclose(curve, theory.semicircle(x - every.mean(), 2 * every.std()))
    outlier = [*rows, np.array([1e3, 1e4])]
    axes = spectral_density(density_histograms({"GOE": outlier}, clip=1e-3)).axes[0]
    assert "not drawn" in said(axes)[0]
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
    with pytest.raises(DataError, match="flat: a density needs"):
        decade_histograms({"flat": [np.ones(5)]})


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


def test_staircase_of_a_spectrum_that_was_pool_only():
    data = unfolded("split")
    pool = next(i for i, levels in enumerate(data.levels) if levels is None)
    for number, match in ((pool, "pool only; try"), (20, "there is no spectrum 20")):
        with pytest.raises(DataError, match=match):
            staircase(data, number)


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
    at, values = law(axes, "3,000 levels of 20 spectra")
    if measure is not form_factor:  # whose values are averages over bins of τ
        assert at[-1] == pytest.approx(min(x[-1] - x[0] for x in data.levels) / 4)
        np.testing.assert_allclose(values, measure(data.levels, at))
    for kind in ("goe", "goe2", "poisson"):
        x, curve = law(axes, style.LAWS[kind].label)
        np.testing.assert_allclose(curve, theirs(x, kind))
    assert "± one standard error" in said(axes)
    assert (axes.get_xlabel(), axes.get_ylabel()) == labels
    asked = long_range(data, name, [0.5, 1.5]).plot(blocks=False).axes[0]
    np.testing.assert_array_equal(law(asked, "3,000 levels")[0], [0.5, 1.5])
    np.testing.assert_allclose(law(asked, "3,000 levels")[1], measure(data.levels, [0.5, 1.5]))
    assert not any("two" in label for label in said(asked))


def test_one_spectrum_windows_that_its_unfolding_hides_and_its_form_factor():
    axes = long_range(unfolded("single"), "number_variance").plot().axes[0]
    assert "beyond the unfolding's 29 spacings" in said(axes)
    axes = long_range(unfolded("goe"), "number_variance").plot().axes[0]
    assert not any("unfolding" in label for label in said(axes))
    axes = long_range(unfolded("single"), "form_factor").plot().axes[0]
    assert "± one standard error" in said(axes)


def test_surmise():
    upper, lower = surmise("title").axes
    s, exact = law(upper, "GOE")
    np.testing.assert_allclose(exact, theory.goe_spacing(s))
    s, difference = law(lower, "Wigner")
    np.testing.assert_allclose(difference, theory.wigner_surmise(s) - exact, atol=1e-14)


def test_jackknife_of_a_mean_is_its_standard_error():
    rows = list(rng.stream(2, "jackknife").normal(size=(10, 40)))

    def mean(given):
        return np.array([np.mean(np.concatenate(given))])

    means = np.mean(rows, axis=1)
    for given in (rows, [np.concatenate(rows)]):  # one spectrum: its ten stretches of 40
        value, error = with_error(mean, given)
        assert value == pytest.approx(means.mean())
        assert error == pytest.approx(means.std(ddof=1) / 10**0.5)
    assert np.isnan(with_error(mean, [rows[0][:30]])[1]).all()
