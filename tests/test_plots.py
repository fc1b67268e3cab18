"""Pictures: they show the data and the laws that other modules computed, and say what is missing.

Warnings are errors here: a picture must draw without any.
"""

import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from matplotlib.text import Text

from hessrmt import rng, theory
from hessrmt.errors import ConfigError, LevelsError, StoreError
from hessrmt.levels import form_factor, number_variance, resampling, rigidity, unfold_selection
from hessrmt.levels.resampling import with_error
from hessrmt.levels.selection import ratio_samples, select
from hessrmt.plots import longrange, style
from hessrmt.plots.density import density_per_decade, spectral_density
from hessrmt.plots.files import draw_all, save
from hessrmt.plots.ratios import ratio_histogram
from hessrmt.plots.spacings import spacing_histogram
from hessrmt.plots.staircase import staircase
from hessrmt.plots.surmise import surmise

pytestmark = pytest.mark.filterwarnings("error")

PICTURES = {
    "spacings",
    "ratios",
    "ratios-unfolded",
    "density",
    "density-per-decade",
    "staircase",
    "number-variance",
    "rigidity",
    "form-factor",
}
MAGIC = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@cache
def raw(kind):
    draw = rng.stream(11, "pictures", kind)
    if kind == "poisson":
        return draw.uniform(size=(31, 120))
    if kind == "decades":  # levels of both signs over ten decades, as Hessians have them
        return draw.choice([-1, 1], (12, 60)) * 10 ** draw.uniform(-8, 2, (12, 60))
    rows = 1 if kind == "single" else 20
    matrices = draw.normal(size=(rows, 150, 150))
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
    save(surmise(), first)
    save(surmise(), second)
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
    assert not (tmp_path / "pictures").exists()

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
    assert "form-factor.png" not in {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "spacings.png").exists()


def test_a_notebook_shows_a_picture():
    assert surmise()._repr_png_().startswith(MAGIC["png"])


def test_pictures_do_without_pyplot():
    code = "import sys, hessrmt.plots.files; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", ["goe", "single"])
def test_text_is_legible(kind):
    data = unfolded(kind)
    pictures = [
        spacing_histogram(data, "title", blocks=True),
        ratio_histogram(data.selection, title="title"),
        longrange.number_variance(data, title="title"),
        staircase(data, title="title"),
    ]
    for picture in pictures:
        picture.draw_without_rendering()
        texts = [one for one in picture.findobj(Text) if one.get_text().strip()]
        assert min(one.get_fontsize() for one in texts) >= 9
        width, height = picture.get_size_inches() * picture.dpi
        for axes in picture.axes:
            box = axes.get_tightbbox()  # with the legend and all labels
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= width
            assert box.y1 <= height
            if axes.get_legend():
                assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1 - 1


def test_spacings_of_one_spectrum():
    data = unfolded("single")
    axes = spacing_histogram(data, blocks=True).axes[0]
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
    assert axes.get_xlim() == (0, 4)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("s", "P(s)")
    assert "149 spacings of 1 spectrum" in axes.get_legend_handles_labels()[1]


def test_pooled_spacings_are_no_comb():
    # Independent levels, unfolded with M others: a spacing is k/M with the geometric probability
    # M^k/(M+1)^(k+1). The 31 spectra have pools of 20 and of 21, whose multiples beat.
    data = unfolded("poisson")
    density, edges, errors = bars(spacing_histogram(data).axes[0])
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
    data = unfolded("goe")
    axes = spacing_histogram(data, surrogates=5).axes[0]
    s, alike = law(axes, "GOE, unfolded")
    width = s[1] - s[0]
    # a thousandth of the exact law lies beyond its last quantile, where the curve ends
    assert alike.sum() * width == pytest.approx(1, abs=0.01)
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
    axes = spacing_histogram(data, surrogates=2).axes[0]
    assert "the unfolding cannot follow GOE spectra" in axes.get_legend_handles_labels()[1]


@pytest.mark.parametrize("folded", [True, False])
def test_ratios(folded):
    selection = unfolded("goe").selection
    axes = ratio_histogram(selection, folded, title="t").axes[0]
    density, edges, errors = bars(axes)
    end = 1.0 if folded else 10.0
    assert density @ np.diff(edges) == pytest.approx(1)
    samples = [one[one <= end] for one in ratio_samples(selection, folded)]
    np.testing.assert_allclose(errors, resampling.histogram(samples, edges)[1], atol=1e-12)
    shape = {"folded": True} if folded else {"cut": 10.0}
    for label, function in (
        ("GOE", lambda r: theory.ratio_law(r, corrected=True, **shape)),
        ("two GOE", lambda r: theory.block_ratio_law(r, **shape)),
        ("Poisson", lambda r: theory.poisson_ratio_law(r, **shape)),
    ):
        r, values = law(axes, label)
        np.testing.assert_allclose(values, function(r))
        # the trapezium rule is off by h²/12 |P'(end) - P'(0)|, and |P'| < 8
        assert np.trapezoid(values, r) == pytest.approx(1, abs=16 * (r[1] - r[0]) ** 2 / 12)
    if folded:
        assert axes.get_xlabel() == "r̃ = min(r, 1/r)"
        mean, error = resampling.mean_and_error(ratio_samples(selection))
        said = axes.get_legend_handles_labels()[1]
        assert any(f"⟨r̃⟩ = {mean:.4f} ± {error:.4f}" in label for label in said)
    else:
        assert axes.get_xlim() == (0, 10)


def test_ratios_that_cannot_be_drawn():
    selection = select([[0.0, 1.0, 101.0, 10201.0]], cutoff=None)
    with pytest.raises(LevelsError, match="below the cut 10; raise it"):
        ratio_histogram(selection, folded=False)
    with pytest.raises(LevelsError, match="positive"):
        ratio_histogram(selection, folded=False, cut=-1.0)


def test_density_of_goe_is_the_semicircle():
    rows = list(raw("goe"))
    axes = spectral_density({"GOE": rows}, bins=50).axes[0]
    values, edges, _ = axes.patches[0].get_data()
    assert values @ np.diff(edges) == pytest.approx(1)
    assert axes.get_yscale() == "log"
    x, curve = law(axes, "semicircle")
    every = np.concatenate(rows)
    np.testing.assert_allclose(curve, theory.semicircle(x - every.mean(), 2 * every.std()))
    outlier = [*rows, np.array([1e3, 1e4])]
    axes = spectral_density({"GOE": outlier}, clip=1e-3).axes[0]
    assert "not drawn" in axes.get_legend_handles_labels()[1][0]
    assert axes.get_xlim()[1] < 1e3


def test_density_per_decade_counts_every_level_once():
    rows = [np.append(row, 0.0) for row in raw("decades")]
    picture = density_per_decade({"a": rows, "b": raw("goe")})
    for axes, levels in zip(picture.axes, (rows, raw("goe")), strict=True):
        lines = [one for one in axes.patches if one.get_label().startswith(("a, ", "b, "))]
        assert len(lines) == 2
        every = np.concatenate(levels)
        for line, number in zip(lines, ((every > 0).sum(), (every < 0).sum()), strict=True):
            counts, edges, _ = line.get_data()
            assert counts @ np.diff(edges) == pytest.approx(number / len(levels))
            assert f"{number:,} with" in line.get_label()
    assert "exact zeros, not drawn: 12" in picture.axes[0].get_legend_handles_labels()[1]
    with pytest.raises(LevelsError, match="flat: a density needs"):
        density_per_decade({"flat": [np.ones(5)]})


def test_staircase():
    data = unfolded("goe")
    upper, lower = staircase(data, 3).axes
    levels, heights = data.selection.levels[3], data.levels[3]
    counted, curve = upper.get_lines()
    np.testing.assert_array_equal(counted.get_xdata(), levels)
    np.testing.assert_array_equal(counted.get_ydata(), np.arange(1, 151))
    np.testing.assert_array_equal(curve.get_ydata(), heights)
    np.testing.assert_allclose(lower.get_lines()[1].get_ydata(), np.arange(150) + 0.5 - heights)
    assert lower.get_xscale() == "linear"
    assert staircase(unfolded("decades")).axes[1].get_xscale() == "symlog"
    positive = unfold_selection(select(np.abs(raw("decades"))))
    assert staircase(positive).axes[1].get_xscale() == "log"


def test_staircase_of_a_spectrum_that_was_pool_only():
    data = unfolded("split")
    pool = next(i for i, levels in enumerate(data.levels) if levels is None)
    with pytest.raises(LevelsError, match="pool only; try"):
        staircase(data, pool)
    with pytest.raises(LevelsError, match="there is no spectrum 20"):
        staircase(data, 20)


@pytest.mark.parametrize(
    ("draw", "measure", "theirs", "label"),
    [
        (longrange.number_variance, number_variance, theory.number_variance, "Σ²(L)"),
        (longrange.rigidity, rigidity, theory.rigidity, "Δ₃(L)"),
    ],
)
def test_long_range(draw, measure, theirs, label):
    data = unfolded("goe")
    axes = draw(data).axes[0]
    L, values = law(axes, "3,000 levels of 20 spectra")
    shortest = min(levels[-1] - levels[0] for levels in data.levels)
    assert L[-1] == pytest.approx(shortest / 4)
    np.testing.assert_allclose(values, measure(data.levels, L))
    for name in ("goe", "goe2", "poisson"):
        x, curve = law(axes, style.LAWS[name].label)
        np.testing.assert_allclose(curve, theirs(x, name))
    assert "± one standard error" in axes.get_legend_handles_labels()[1]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("L", label)
    asked = draw(data, [1.0, 2.0], blocks=False).axes[0]
    np.testing.assert_array_equal(law(asked, "3,000 levels")[0], [1.0, 2.0])
    assert not any("two" in str(one.get_label()) for one in asked.get_lines())


def test_windows_that_the_unfolding_hides_are_shaded():
    said = longrange.number_variance(unfolded("single")).axes[0].get_legend_handles_labels()[1]
    assert "beyond the unfolding's 29 spacings" in said
    said = longrange.number_variance(unfolded("goe")).axes[0].get_legend_handles_labels()[1]
    assert not any("unfolding" in label for label in said)


@pytest.mark.parametrize("kind", ["goe", "single"])
def test_form_factor(kind):
    data = unfolded(kind)
    axes = longrange.form_factor(data).axes[0]
    for name in ("goe", "goe2", "poisson"):
        tau, curve = law(axes, style.LAWS[name].label)
        np.testing.assert_allclose(curve, theory.form_factor(tau, name))
    assert "± one standard error" in axes.get_legend_handles_labels()[1]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("τ", "K(τ)")
    asked = longrange.form_factor(data, [0.5, 1.5]).axes[0]
    measured = form_factor([one for one in data.levels if one is not None], [0.5, 1.5])
    np.testing.assert_allclose(asked.get_lines()[0].get_ydata(), measured)


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

    value, error = with_error(mean, rows)
    means = np.mean(rows, axis=1)
    assert value == pytest.approx(means.mean())
    assert error == pytest.approx(means.std(ddof=1) / 10**0.5)
    # one spectrum: its ten stretches of 40
    value, error = with_error(mean, [np.concatenate(rows)])
    assert value == pytest.approx(means.mean())
    assert error == pytest.approx(means.std(ddof=1) / 10**0.5)
    assert np.isnan(with_error(mean, [rows[0][:30]])[1]).all()
