"""Pictures for print and for dark pages, and what a fresh look found wrong with them."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

import hessrmt as hr
from hessrmt.errors import ConfigError
from hessrmt.plots.certification import certification
from hessrmt.plots.files import save
from hessrmt.plots.levels import spectral_density
from hessrmt.plots.style import RED, panels, relook, to_phone

SPECTRA = [hr.ensembles.goe(40, seed=1, index=i) for i in range(2)]
RNG = np.random.default_rng(0)
HEAVY = [RNG.lognormal(-3, 2, 500) * RNG.choice([1, -1], 500, p=[0.9, 0.1]) for _ in range(6)]


def test_paper_is_a_column_wide_and_its_text_can_be_read(tmp_path):
    picture = certification(SPECTRA, "a title that is longer than a column of a journal is wide")
    relook(picture, "paper")
    picture.draw_without_rendering()
    assert picture.get_size_inches()[0] == pytest.approx(3.3)
    written = [text for text in picture.findobj(Text) if text.get_text()]
    assert min(text.get_fontsize() for text in written) >= 6
    # nothing sticks out of the column
    box = picture.get_tightbbox()
    assert box.x0 >= -0.02
    assert box.x1 <= 3.32
    save(picture, tmp_path / "a.svg")
    assert "noise floor" in re.sub("<[^>]*>", "", (tmp_path / "a.svg").read_text(encoding="utf-8"))


def test_on_a_phone_panels_stand_below_each_other():
    picture, grid = panels("a title", (2, 2), size=(8, 5), sharey="row")
    for number, axes in enumerate(grid.ravel()[:3]):
        axes.plot([1, 2], [number, number + 1])
    grid[0, 0].set_ylabel("said once")
    grid[1, 1].set_axis_off()
    to_phone(picture)
    picture.draw_without_rendering()
    assert picture.get_size_inches()[0] == pytest.approx(3.3)
    boxes = [axes.get_position() for axes in picture.axes]
    assert len(boxes) == 3
    assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(boxes))
    assert [axes.get_ylabel() for axes in picture.axes] == ["said once", "said once", ""]
    box = picture.get_tightbbox()
    assert box.x0 >= -0.02
    assert box.x1 <= 3.32


def test_dark_has_no_dark_ink():
    picture = certification(SPECTRA)
    relook(picture, "dark")
    ground = max(picture.get_facecolor()[:3])
    assert ground < 0.2
    inks = [text.get_color() for text in picture.findobj(Text) if text.get_text()]
    inks += [line.get_color() for line in picture.axes[0].lines]
    for ink in inks:
        assert max(int(to_hex(ink)[i : i + 2], 16) for i in (1, 3, 5)) / 255 > 0.5


def test_another_look_is_refused():
    with pytest.raises(ConfigError, match="unknown look 'neon'"):
        relook(certification(SPECTRA), "neon")


def test_networks_have_colours_of_their_own_and_the_floor_has_another():
    axes = certification({"before": SPECTRA[0], "after": SPECTRA[1:]}).axes[0]
    drawn = {
        line.get_label().partition(",")[0]: (line.get_color(), line.get_linestyle())
        for line in axes.lines
        if "certified" in line.get_label()
    }
    assert set(drawn) == {"before", "after"}
    assert len(set(drawn.values())) == 2
    assert RED not in {colour for colour, _ in drawn.values()}
    # the legend is above the axes, not in them
    axes.figure.draw_without_rendering()
    assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1 - 1


def test_each_network_has_the_floor_that_its_levels_are_certified_by():
    coarse = dataclasses.replace(SPECTRA[1], noise_floor=0.5)
    axes = certification({"fine": SPECTRA[0], "coarse": coarse}).axes[0]
    labels = [line.get_label() for line in axes.lines]
    for name, item in (("fine", SPECTRA[0]), ("coarse", coarse)):
        floors = [x for x in axes.lines if list(x.get_ydata()) == [item.noise_floor] * 2]
        (label,) = (text for text in labels if text.startswith(f"{name}, certified: {item.rank}"))
        (colour,) = (x.get_color() for x in axes.lines if x.get_label() == label)
        assert [line.get_color() for line in floors] == [colour]
        assert label.endswith(f"floor {item.noise_floor:.1e}")


def test_the_published_cutoff_is_shown_only_if_asked_for():
    tiny = dataclasses.replace(SPECTRA[0], eigenvalues=np.array([-1e-25, 1e-18, 0.5, 2.0]))
    for compare in (False, True):
        lines = certification(tiny, compare=compare).axes[0].lines
        assert any("published cutoff" in line.get_label() for line in lines) == compare
        assert any(list(line.get_ydata()) == [1e-20, 1e-20] for line in lines) == compare


def test_density_of_heavy_tails_has_even_bins_in_arsinh():
    found = hr.levels.density_histograms({"x": HEAVY})["x"]
    every = np.concatenate(HEAVY)
    assert found.edges[0] == every.min()
    assert found.edges[-1] == every.max()
    assert found.density @ np.diff(found.edges) == pytest.approx(1)
    steps = np.diff(np.arcsinh(found.edges / np.median(np.abs(every))))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)
    counted = np.histogram(every, found.edges)[0]
    assert counted.max() < np.histogram(every, len(counted))[0].max() / 4  # than bins of one width
    axes = spectral_density(found).axes[0]
    assert axes.get_xscale() == "asinh"
    widths = np.diff(axes.transData.transform(np.column_stack([found.edges, found.edges]))[:, 0])
    # the axis' scale is read off the narrowest bin, whose width is h up to h³/24
    np.testing.assert_allclose(widths, widths[0], rtol=0.02)


def test_asked_for_bins_have_one_width():
    found = hr.levels.density_histograms({"x": HEAVY}, bins=20)["x"]
    np.testing.assert_allclose(np.diff(found.edges), np.ptp(found.edges) / 20, rtol=1e-9)
