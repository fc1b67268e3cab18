"""``hessrmt reproduce puzzles-...``: from nothing to lines, table and figures."""

from dataclasses import replace

import drawn_families as drawn
import numpy as np
import pytest
from experiment_samples import run_twice, write_images, write_settings

from hessrmt import rng
from hessrmt.experiments.puzzles import FamilyEntry, Puzzles, gap_law, lines
from hessrmt.generalization.fits import fit_line
from hessrmt.store.family import FamilyResult, load_family

LOSSES = [f"normalized_{split}_loss" for split in ("train", "test")]


def member(value, train, test, *, product=1.0):
    """A network with these normalised losses."""
    return replace(
        drawn.member(drawn.family(), 0, value),
        train_loss=train / product,
        test_loss=test * product,
        normalized_train_loss=train,
        normalized_test_loss=test,
        product=product,
    )


def entry(name, members, vary="initial-scale", **changes):
    """A family of these networks."""
    settings = drawn.family(vary, name=name, values=[m.value for m in members], **changes)
    result = FamilyResult(settings.model_dump(), tuple(members), "nowhere", "cpu", True)
    return FamilyEntry(name, settings, result)


def test_everything_from_nothing_and_again(cli, tmp_path):
    write_images(tmp_path / "images.npz")
    path = write_settings(tmp_path, "puzzles-initialization")
    change = ("[0.05, 0.01]", "[0.05, 0.02]")
    found, notes, out = run_twice(cli, path, "random.h5", change, "rates")
    assert "unnormalised R²" in notes
    natural, random = (load_family(out / f"families/{name}.h5") for name in ("natural", "random"))
    rows = [row["normalized_test_loss"] for row in found["runs"]]
    both = [family.column("normalized_test_loss") for family in (natural, random)]
    assert rows == np.concatenate(both).tolist()
    assert natural.complete
    # the line is that of the file's numbers
    x, y = (natural.column(name) for name in LOSSES)
    fit, fits = fit_line(x, y).to_dict(), found["fits"]
    assert {key: fits[key] for key in fit} == fit
    (line,) = fits["lines"]
    assert line["families"] == ["natural"]
    raw = fit_line(natural.column("train_loss"), natural.column("test_loss"))
    assert line["unnormalized"]["r2"] == raw.r2
    both = [np.append(natural.column(name), random.column(name)) for name in LOSSES]
    assert line["with_random"]["slope"] == fit_line(*both).slope
    (point,) = line["random_residuals"]
    assert point["test"] == random.members[0].normalized_test_loss
    assert line["random_in_prediction_band"] == point["inside"]
    assert fits["reference"][0]["slope"] == 1.1
    table = (out / "results.md").read_text()
    assert "published: somewhere" in table
    assert "natural: unnormalised" in table


# lines


def exact(values, slope=0.9, intercept=0.2):
    return [member(v, 1 + v, slope * (1 + v) + intercept, product=1 + v) for v in values]


def test_random_points_on_and_off_the_line():
    values = np.linspace(0.1, 1, 12)
    noise = 1e-3 * rng.stream(0, "line").normal(size=12)
    members = [
        member(v, 1 + v, 0.9 * (1 + v) + 0.2 + e) for v, e in zip(values, noise, strict=True)
    ]
    middle = 1 + 0.5 * (values[0] + values[-1])
    points = [member(0.5, middle, 0.9 * middle + 0.2 + away) for away in (0, 0.05)]
    entries = [entry("a", members), entry("r", points, labels="random")]
    (line,) = lines(entries)
    assert [point.inside for point in line.random_residuals] == [True, False]
    x, y = (entries[0].result.column(name) for name in LOSSES)
    fit = fit_line(x, y)
    assert line.normalized == fit
    for point, m in zip(line.random_residuals, points, strict=True):
        residual = m.normalized_test_loss - float(fit(middle))
        assert point.residual == residual
        assert point.sigmas == pytest.approx(residual / fit.deviation, rel=1e-12)
        assert point.relative == pytest.approx(residual / np.ptp(y), rel=1e-12)
        assert (point.lower, point.upper) == tuple(map(float, fit.prediction_band(middle)))
    assert not Puzzles().fits(entries)["lines"][0]["random_in_prediction_band"]
    text = Puzzles().conclusions(entries)["a"]
    assert "inside" in text
    assert "outside" in text


def test_families_of_one_network_share_a_line():
    entries = [
        entry("a", exact([0.1, 0.2])),
        entry("b", [*exact([0.3]), replace(exact([0.5])[0], train_error=0.1)]),
        entry("other", exact([0.1, 0.2, 0.4], slope=2), model="conv3-3"),
        entry("few", exact([0.1, 0.2]), norm=1),
    ]
    found = lines(entries)
    assert [line.families for line in found] == [("a", "b"), ("other",)]
    assert found[0].normalized.slope == pytest.approx(0.9, rel=1e-12)
    assert found[0].normalized.intercept == pytest.approx(0.2, rel=1e-11)
    assert found[1].normalized.slope == pytest.approx(2, rel=1e-12)
    assert found[0].random_residuals == ()
    assert (found[0].networks, found[0].zero_training_error) == (4, 3)
    assert "3 of them have no training error" in Puzzles().conclusions(entries)["a, b"]
    assert Puzzles().fits(entries)["slope"] == found[0].normalized.slope


def test_no_line_is_no_error():
    entries = [entry("same", [member(v, 1.0, 2.0) for v in (0.1, 0.2, 0.3)])]
    assert lines(entries) == []
    found = Puzzles().fits(entries)
    assert found["lines"] == []
    assert "slope" not in found
    assert "same" in Puzzles().markdown(entries)
    assert lines([entry("r", exact([0.1, 0.2, 0.3]), labels="random")]) == []


def test_gaps_as_a_power_of_the_samples():
    members = [member(n, 1.0, 1.0 + 3 * n**-0.5) for n in (100, 300, 1000, 5000)]
    found = entry("n", members, "samples")
    law = gap_law(found)
    assert law is not None
    assert law.slope == pytest.approx(-0.5, abs=1e-12)
    assert "samples^(-0.50" in Puzzles().conclusions([found])["n"]
    assert lines([found]) == []
    assert gap_law(entry("n", [*members[:3], member(5000, 1.0, 0.9)], "samples")) is None
    assert gap_law(entry("w", exact([0.1, 0.2, 0.3]))) is None
