"""Pictures of families of networks: every member is there, and lines are those of the fits."""

from functools import cache

import numpy as np
import pytest
from drawn_families import DEFAULTS, entry
from hessrmt.config.puzzles import PuzzlesConfig, PuzzlesPreset, ReferenceLine
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.text import Text

from hessrmt.errors import ConfigError, GeneralizationError
from hessrmt.generalization import fit_line
from hessrmt.plots import puzzle_families, puzzle_losses, puzzle_points, puzzle_trends
from hessrmt.plots.puzzles import puzzles_figures, random_partner

pytestmark = pytest.mark.filterwarnings("error")

REFERENCE = ReferenceLine(label="[G] Fig. 15", slope=1.0075, intercept=-0.0174, r2=1.0)


@cache
def natural():
    return entry(name="scale")


@cache
def corrupted():
    return entry("corruption", name="corr", reference_loss=0.006, values=(0, 0.1, 0.1, 0.5, 1))


@cache
def random():
    return entry(name="rl", labels="random", values=(0.05, 0.1))


def config(entries):
    families = tuple(one.settings for one in entries)
    preset = PuzzlesPreset(families=families)
    return PuzzlesConfig(experiment="puzzles", presets={"small": preset}, reference=(REFERENCE,))


def scattered(axes):
    """Places of the points of each scatter plot, in the order drawn."""
    return [
        np.asarray(one.get_offsets()) for one in axes.collections if isinstance(one, PathCollection)
    ]


def line(axes, label):
    (found,) = [one for one in axes.get_lines() if str(one.get_label()).startswith(label)]
    return np.asarray(found.get_xdata()), np.asarray(found.get_ydata())


def columns(made, *names):
    return np.column_stack([made.result.column(name) for name in names])


@pytest.mark.parametrize("prefix", ["", "normalized_"])
def test_losses_hold_every_member_and_the_fitted_line(prefix):
    picture = puzzle_losses.losses(natural(), random(), [REFERENCE])
    upper, lower = picture.axes[0::2][:2] if not prefix else picture.axes[1::2][:2]
    names = (f"{prefix}train_loss", f"{prefix}test_loss")
    points, others = columns(natural(), *names), columns(random(), *names)
    np.testing.assert_array_equal(scattered(upper)[0], points)
    np.testing.assert_array_equal(scattered(upper)[1], others)
    fit = fit_line(*points.T)
    x, y = line(upper, puzzle_losses.LINE)
    np.testing.assert_array_equal(y, fit(x))
    assert x[0] < points[:, 0].min() < others[:, 0].max() < x[-1] or not prefix
    both = fit_line(*np.concatenate([points, others]).T)
    x, y = line(upper, puzzle_losses.WITH_RANDOM)
    np.testing.assert_array_equal(y, both(x))
    # residuals below, of random labels too
    np.testing.assert_array_equal(scattered(lower)[0][:, 1], points[:, 1] - fit(points[:, 0]))
    np.testing.assert_array_equal(scattered(lower)[1][:, 1], others[:, 1] - fit(others[:, 0]))
    said = "\n".join(upper.get_legend_handles_labels()[1])
    assert f"R² {fit.r2:.6g}, adjusted R² {fit.adjusted_r2:.6g}, RMSE {fit.rmse:.2g}" in said
    assert f"R² {both.r2:.6g}" in said
    assert ("[G] Fig. 15:\nslope 1.0075, intercept -0.0174, R² 1.0000" in said) == bool(prefix)
    x, y = line(upper, puzzle_losses.DIAGONAL)
    np.testing.assert_array_equal(x, y)


def test_bands_are_those_of_the_fit():
    axes = puzzle_losses.losses(natural()).axes[1]
    fit = fit_line(*columns(natural(), "normalized_train_loss", "normalized_test_loss").T)
    bands = {one.get_label(): one for one in axes.collections if isinstance(one, PolyCollection)}
    for label, band in (
        (puzzle_losses.CONFIDENCE, fit.confidence_band),
        (puzzle_losses.PREDICTION, fit.prediction_band),
    ):
        corners = bands[label].get_paths()[0].vertices
        low, high = band(corners[:, 0])
        on = np.minimum(np.abs(corners[:, 1] - low), np.abs(corners[:, 1] - high))
        assert on.max() <= 4 * np.finfo(float).eps * 2.31


def test_a_reference_or_diagonal_out_of_view_is_said_to_be():
    away = ReferenceLine(label="elsewhere", slope=0.836, intercept=3.0)
    left, right = puzzle_losses.losses(corrupted(), None, [away]).axes[:2]
    said = right.get_legend_handles_labels()[1]
    assert "elsewhere:\nslope 0.836, intercept 3 (out of view)" in said
    assert puzzle_losses.DIAGONAL in said
    assert f"{puzzle_losses.DIAGONAL} (out of view)" in left.get_legend_handles_labels()[1]


def test_without_a_line_the_points_are_still_there():
    made = entry(name="two", values=(0.1, 0.2))
    picture = puzzle_losses.losses(made)
    for axes in picture.axes[:2]:
        assert "no line: a line and its errors need at least 3 points, got 2" in [
            str(one.get_label()) for one in axes.get_lines()
        ]
        assert len(scattered(axes)[0]) == 2


def test_ticks_of_losses_are_written_out():
    made = entry(name="near", values=(0.1, 0.11, 0.12, 0.13))
    picture = puzzle_losses.losses(made)
    picture.draw_without_rendering()
    for axes in picture.axes[:4]:
        for axis in (axes.xaxis, axes.yaxis):
            assert not axis.get_offset_text().get_text()
            texts = [tick.get_text() for tick in axis.get_ticklabels() if tick.get_visible()]
            assert len(set(texts)) == len(texts)
    labels = [tick.get_text() for tick in picture.axes[3].xaxis.get_ticklabels()]
    low, high = picture.axes[3].get_xlim()
    spacing = np.diff([float(text) for text in labels])
    np.testing.assert_allclose(spacing, spacing[0], rtol=1e-6)  # no digit is lost
    assert spacing[0] < high - low


def test_capacity():
    picture = puzzle_families.capacity(natural(), random())
    wanted = [
        ("product", "normalized_test_loss"),
        ("normalized_test_loss", "test_error"),
        ("product", "test_error"),
    ]
    for axes, names in zip(picture.axes, wanted, strict=False):
        np.testing.assert_array_equal(scattered(axes)[0], columns(natural(), *names))
        np.testing.assert_array_equal(scattered(axes)[1], columns(random(), *names))
    assert [axes.get_xscale() for axes in picture.axes[:3]] == ["log", "linear", "log"]
    by_output = puzzle_families.capacity(entry(name="resnet", by="output"))
    assert by_output.axes[0].get_xlabel() == "norm of the output"


def test_product_at_a_common_loss():
    picture = puzzle_families.product_at_loss(corrupted())
    np.testing.assert_array_equal(
        scattered(picture.axes[0])[0], columns(corrupted(), "product", "test_error")
    )
    found = corrupted().result.column("train_loss")
    said = picture.get_suptitle()
    assert f"training losses {found.min():.3g} to {found.max():.3g}, asked for 0.006" in said


@pytest.mark.parametrize("vary", ["initial-scale", "corruption"])
def test_losses_and_errors_against_what_is_varied(vary):
    made = natural() if vary == "initial-scale" else corrupted()
    left, right = puzzle_trends.against_value(made).axes
    value = made.result.column("value")
    for axes, what in ((left, "loss"), (right, "error")):
        for label, split in (("training", "train"), ("test", "test")):
            x, y = line(axes, label)
            np.testing.assert_array_equal(x, np.unique(value))
            found = made.result.column(f"{split}_{what}")
            np.testing.assert_allclose(y, [found[value == v].mean() for v in x], rtol=1e-14)
            if len(x) < len(value):  # repeated values: also every single network
                points = columns(made, "value", f"{split}_{what}")
                assert any(np.array_equal(one, points) for one in scattered(axes))
        assert axes.get_xlabel() == puzzle_points.WORDS[vary]
    assert left.get_xscale() == ("log" if vary == "initial-scale" else "linear")


def test_width():
    made = entry("width")
    axes = puzzle_trends.width(made).axes[0]
    for label, name in (("training", "train_error"), ("test", "test_error")):
        np.testing.assert_array_equal(
            np.column_stack(line(axes, label)), columns(made, "parameters", name)
        )
    x, _ = line(axes, "N = 50,000")
    assert (x == 50000).all()


def test_samples():
    both = [entry("samples"), entry("samples", name="samples-random", labels="random")]
    errors = puzzle_trends.sample_errors(both)
    grid = np.array(puzzle_trends.sample_losses(both).axes).reshape(3, 2)
    for i, made in enumerate(both):
        n = made.result.column("value")
        axes = errors.axes[i]
        assert axes.get_xlabel() == f"training samples N, {made.settings.labels} labels"
        train, test = made.result.column("train_error"), made.result.column("test_error")
        for label, wanted in (("training", train), ("test - training", test - train)):
            np.testing.assert_array_equal(line(axes, label), [n, wanted])
        for row, prefix in ((0, ""), (1, "normalized_")):
            for label, split in (("training", "train"), ("test", "test")):
                wanted = [n, made.result.column(f"{prefix}{split}_loss")]
                np.testing.assert_array_equal(line(grid[row, i], label), wanted)
        gap = columns(made, "normalized_test_loss", "normalized_train_loss") @ [1, -1]
        np.testing.assert_allclose(line(grid[2, i], "test - training")[1], gap, rtol=1e-14)
    assert errors.axes[0].get_ylim() == errors.axes[1].get_ylim()


def test_outputs():
    picture = puzzle_families.outputs(natural())
    members = [natural().result.members[i] for i in (0, 4, 7)]
    for axes, member in zip(picture.axes, members, strict=True):
        counts, edges, _ = axes.patches[0].get_data()
        np.testing.assert_array_equal(counts, member.top_output_counts)
        np.testing.assert_array_equal(edges, member.top_output_edges)
        said = axes.get_legend_handles_labels()[1][0]
        assert f"s = {member.value:g}: mean {member.top_output_mean:.4g}" in said
        assert f"standard deviation {member.top_output_std:.4g}" in said
    assert len(puzzle_families.outputs(entry(name="one", values=(0.1,))).axes) == 1


def test_margins_count_what_they_leave_out():
    wrong = entry(name="wrong", separated=False, values=(0.03, 0.3))
    members = (*natural().result.members, *wrong.result.members)
    result = type(natural().result)({}, members, "made up", "cpu", True)
    left, right = puzzle_families.margins(natural()._replace(result=result), random()).axes[:2]
    curves = left.get_lines()
    assert len(curves) == len(natural().result.members) + len(random().result.members)
    for curve, member in zip(curves, natural().result.members, strict=False):
        size = member.history["margin"] / member.history["product"]
        assert (size > 0).any()
        assert not (size > 0).all()
        wanted = [member.history["epoch"], np.where(size > 0, size, np.nan)]  # NaN: a gap
        np.testing.assert_array_equal(curve.get_data(), wanted)
    points = scattered(right)[0]
    wanted = columns(natural(), "normalized_margin", "test_error")
    np.testing.assert_allclose(points, np.column_stack([1 / wanted[:, 0], wanted[:, 1]]))
    assert len(scattered(right)[1]) == len(random().result.members)
    assert "left out: 2 that never separate" in left.get_xlabel()
    assert "left out: 2 that have a training error" in right.get_xlabel()
    with pytest.raises(GeneralizationError, match="wrong: no network ever classifies all"):
        puzzle_families.margins(wrong)


def test_values_are_written_beside_points_only_where_they_find_room():
    few = puzzle_losses.losses(natural()).axes[1]
    assert {text.get_text() for text in few.texts} == {f"{v:g}" for v in natural().settings.values}
    crowd = puzzle_losses.losses(entry(name="crowd", values=tuple(np.geomspace(0.1, 0.2, 30))))
    assert not crowd.axes[1].texts


def test_texts_stay_apart_and_inside():
    """Of ticks, labels and legends no two overlap, and none is smaller than 7 points."""
    for picture in (
        puzzle_losses.losses(natural(), random(), [REFERENCE]),
        puzzle_families.capacity(natural(), random()),
        puzzle_families.margins(natural(), random()),
        puzzle_trends.sample_errors([entry("samples"), entry("samples", labels="random")]),
    ):
        picture.draw_without_rendering()
        texts = [t for t in picture.findobj(Text) if t.get_text().strip() and t.get_visible()]
        assert all(text.get_fontsize() >= 7 for text in texts)
        # annotations may lie on one another's empty corners; ticks carry texts out of view
        boxes = [
            text.get_window_extent()
            for axes in picture.axes
            for text in (
                axes.xaxis.label,
                axes.yaxis.label,
                *([] if axes.get_legend() is None else axes.get_legend().get_texts()),
                *(t for t in axes.get_xticklabels() if t.get_visible()),
            )
            if text.get_text()
        ]
        overlaps = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
        assert not overlaps


def test_all_pictures_of_a_preset(tmp_path):
    families = [
        random(),
        corrupted(),
        entry("width"),
        entry("samples"),
        entry("samples", name="samples-random", labels="random"),
        entry(name="wrong", separated=False, model="other", values=(0.1, 0.2)),
    ]
    planned = entry(name="planned", model="other2")
    planned = planned._replace(
        result=type(planned.result)({}, (), "made up", "cpu", complete=False)
    )
    entries = [*families, planned]
    drawn = {one.name: one for one in puzzles_figures(config(entries), entries, tmp_path)}
    kinds = ("losses", "capacity", "outputs", "margins", "trend")
    wanted = {f"{name}-{kind}" for name in ("corr", "wrong") for kind in kinds}
    wanted |= {"corr-product", "width-width", "samples-errors", "samples-losses", "planned"}
    assert set(drawn) == wanted  # the random families have no pictures of their own
    missing = {name: one.reason for name, one in drawn.items() if one.path is None}
    assert set(missing) == {"wrong-margins", "planned"}
    assert "no network of this family is finished" in missing["planned"]
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {f"{name}.png" for name in wanted - set(missing)}
    with pytest.raises(ConfigError, match="no picture format"):
        puzzles_figures(config(entries), entries, tmp_path, "doc")


def test_partners_are_networks_of_the_same_kind():
    everything = [natural(), corrupted(), random()]
    assert random_partner(natural(), everything) is random()
    assert random_partner(corrupted(), everything) is random()
    assert random_partner(random(), everything) is None
    for change in ({"model": "conv3-24"}, {"data": "cifar10"}, {"norm": 1}, {"by": "output"}):
        other = entry(name="other", **change)
        assert random_partner(other, [other, random()]) is None
    for vary in ("samples", "width"):
        model = DEFAULTS[vary].get("model", "conv3-34")
        made = entry(vary)
        partner = entry(vary, name="partner", labels="random", model=model)
        assert random_partner(made, [made, random(), partner]) is (
            partner if vary == "samples" else None
        )
