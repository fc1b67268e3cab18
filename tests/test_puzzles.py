"""``hessrmt reproduce puzzles-...``: from nothing to lines, table and figures; bad input."""

import json

import numpy as np
import pytest
from family_samples import write_images
from hessrmt.workflows import puzzles, reproduce
from hessrmt.workflows.familyfits import Entry, gap_law, lines

from hessrmt import rng
from hessrmt.config import load_settings
from hessrmt.experiments.families import Family
from hessrmt.experiments.puzzles import PuzzlesConfig
from hessrmt.generalization.fits import fit_line
from hessrmt.store.family import HISTORY, FamilyResult, Member, load_family

SETTINGS = """
experiment = "puzzles"
title = "a small one"
reference = [{ label = "somewhere", slope = 1.1, intercept = -0.2, r2 = 0.99 }]

[[presets.small.families]]
name = "natural"
vary = "initial-scale"
values = [0.1, 0.2, 0.3]
model = "conv3s2-2"
data = "images.npz"
epochs = 2
batch = 16
rates = [0.05, 0.01]

[[presets.small.families]]
name = "random"
vary = "initial-scale"
values = [0.2]
model = "conv3s2-2"
data = "images.npz"
labels = "random"
epochs = 2
batch = 16
rates = [0.05, 0.01]

[[presets.small.families]]
name = "sizes"
vary = "samples"
values = [16, 32, 64]
model = "conv3s2-2"
data = "images.npz"
epochs = 1
batch = 8
rates = [0.05]

[[presets.full.families]]
name = "big"
vary = "initial-scale"
values = [0.1]
model = "conv3-24"
data = "cifar10"
epochs = 2
rates = [0.05]
"""


@pytest.fixture
def experiment(tmp_path):
    """A settings file beside its data."""
    write_images(tmp_path / "images.npz")
    path = tmp_path / "mine.toml"
    path.write_text(SETTINGS)
    return path


def member(value, train, test, *, product=1.0, error=0.0):
    """A network with these normalised losses."""
    return Member(
        value=value,
        parameters=10,
        epoch=1,
        train_loss=train / product,
        test_loss=test * product,
        normalized_train_loss=train,
        normalized_test_loss=test,
        train_error=error,
        test_error=0.5,
        product=product,
        factors=(product,),
        margin=product,
        normalized_margin=1.0,
        margin_quantiles=np.arange(7.0),
        top_output_mean=1.0,
        top_output_std=0.1,
        top_output_edges=np.arange(61.0),
        top_output_counts=np.ones(60),
        raw_top_output_mean=product,
        raw_top_output_std=0.1 * product,
        history={name: np.ones(1) for name in HISTORY},
    )


def entry(name, members, **changes):
    """A family of these networks."""
    settings = Family.model_validate(
        {
            "name": name,
            "vary": "initial-scale",
            "values": [m.value for m in members],
            "model": "conv3-2",
            "epochs": 1,
            "rates": [0.1],
        }
        | changes
    )
    result = FamilyResult(settings.model_dump(), tuple(members), "nowhere", "cpu", True)
    return Entry(name, settings, result)


def test_everything_from_nothing_and_again(cli, experiment, tmp_path):
    result = cli("reproduce", experiment, "--out", "done", "--json")
    assert result.returncode == 0, result.stderr
    assert "unnormalised R²" in result.stderr
    found = json.loads(result.stdout)
    out = tmp_path / "done"
    families = {
        name: load_family(out / "families" / f"{name}.h5") for name in ("natural", "random")
    }
    runs = {row["run"]: row for row in found["runs"]}
    assert len(runs) == 3 + 1 + 3
    for name, family in families.items():
        assert family.complete
        for index, network in enumerate(family.members):
            row = runs[f"{name}-{index}"]
            assert row["normalized_test_loss"] == network.normalized_test_loss
            assert row["product"] == network.product
    # the line is that of the file's numbers
    natural = families["natural"]
    x, y = (natural.column(f"normalized_{split}_loss") for split in ("train", "test"))
    fit = fit_line(x, y).to_dict()
    fits = found["fits"]
    assert {key: fits[key] for key in fit} == fit
    (line,) = fits["lines"]
    assert line["families"] == ["natural"]
    raw = fit_line(natural.column("train_loss"), natural.column("test_loss"))
    assert line["unnormalized"]["r2"] == raw.r2
    both = [
        np.append(part, families["random"].column(name))
        for part, name in ((x, "normalized_train_loss"), (y, "normalized_test_loss"))
    ]
    assert line["with_random"]["slope"] == fit_line(*both).slope
    (point,) = line["random_residuals"]
    assert point["test"] == families["random"].members[0].normalized_test_loss
    assert line["random_in_prediction_band"] == point["inside"]
    assert fits["reference"][0]["slope"] == 1.1
    table = (out / "results.md").read_text()
    assert "[G] somewhere" in table
    assert "natural: unnormalised" in table
    assert json.loads((out / "results.json").read_text()) == found["runs"]
    assert list((out / "figures").iterdir())
    before = {path: path.stat().st_mtime_ns for path in (out / "families").iterdir()}
    again = puzzles.run(load_settings(PuzzlesConfig, experiment), "small", out)
    assert puzzles.table(again) == found["runs"]
    assert json.loads(json.dumps(puzzles.fits(again))) == fits
    assert {path: path.stat().st_mtime_ns for path in (out / "families").iterdir()} == before


def test_other_settings_for_the_same_folder_are_refused(cli, experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    puzzles.run(load_settings(PuzzlesConfig, experiment), "small", tmp_path / "done")
    experiment.write_text(SETTINGS.replace("[0.05, 0.01]", "[0.05, 0.02]"))
    result = cli("reproduce", experiment, "--out", "done")
    assert result.returncode == 2
    assert "another configuration" in result.stderr
    assert "rates" in result.stderr


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("", "", "no preset 'middle'"),
        ("values = [0.1, 0.2, 0.3]", "values = [0.1, -1]", "standard deviations"),
        ("epochs = 2", "epochs = 0", "greater than or equal to 1"),
        ('model = "conv3s2-2"', 'model = "conv3s2-{width}"', "widths are varied"),
        ("[16, 32, 64]", "[16, 32, 65]", "65 training samples, but there are 64"),
    ],
)
def test_bad_input(cli, experiment, old, new, words):
    if old:
        experiment.write_text(SETTINGS.replace(old, new, 1))
    result = cli("reproduce", experiment, *(() if old else ("--preset", "middle")))
    assert result.returncode == 2
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_missing_data_are_named_before_anything_is_trained(cli, experiment, tmp_path):
    result = cli("reproduce", experiment, "--preset", "full", "--out", "done")
    assert result.returncode == 2
    assert "cifar10" in result.stderr
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("file", sorted(reproduce.folder().glob("puzzles-*.toml")))
def test_shipped_settings(file):
    settings = load_settings(PuzzlesConfig, file)
    assert {"small", "full"} <= set(settings.presets)
    for preset in ("small", "full"):
        for family in settings.presets[preset].families:
            if preset == "small":
                assert family.data == "mnist"
                sizes = family.values if family.vary == "samples" else (family.samples,)
                assert all(size != "all" and size <= 8000 for size in sizes)  # embedded digits
            assert family.rate(family.epochs - 1) == family.rates[-1]


# lines


def exact(values, slope=0.9, intercept=0.2):
    return [member(v, 1 + v, slope * (1 + v) + intercept, product=1 + v) for v in values]


def test_random_points_on_and_off_the_line():
    draw = rng.stream(0, "line")
    values = np.linspace(0.1, 1, 12)
    noise = 1e-3 * draw.normal(size=12)
    members = [
        member(v, 1 + v, 0.9 * (1 + v) + 0.2 + e) for v, e in zip(values, noise, strict=True)
    ]
    middle = 1 + 0.5 * (values[0] + values[-1])
    on = member(0.5, middle, 0.9 * middle + 0.2)
    off = member(0.5, middle, 0.9 * middle + 0.2 + 0.05)
    entries = [entry("a", members), entry("r", [on, off], labels="random")]
    (line,) = lines(entries)
    assert [point.inside for point in line.random] == [True, False]
    fit = fit_line(
        [m.normalized_train_loss for m in members], [m.normalized_test_loss for m in members]
    )
    assert line.normalized == fit
    for point, m in zip(line.random, (on, off), strict=True):
        residual = m.normalized_test_loss - float(fit(middle))
        assert point.residual == residual
        assert point.sigmas == pytest.approx(residual / fit.deviation, rel=1e-12)
        span = np.ptp([m.normalized_test_loss for m in members])
        assert point.relative == pytest.approx(residual / span, rel=1e-12)
        assert (point.lower, point.upper) == tuple(map(float, fit.prediction_band(middle)))
    assert not puzzles.fits(entries)["lines"][0]["random_in_prediction_band"]
    text = puzzles.sentences(entries)["a"]
    assert "inside" in text
    assert "outside" in text


def test_families_of_one_network_share_a_line():
    one, two = exact([0.1, 0.2]), exact([0.3, 0.5])
    entries = [
        entry("a", one),
        entry("b", two),
        entry("other", exact([0.1, 0.2, 0.4], slope=2), model="conv3-3"),
        entry("few", exact([0.1, 0.2]), norm=1),
    ]
    found = lines(entries)
    assert [line.families for line in found] == [("a", "b"), ("other",)]
    assert found[0].normalized.slope == pytest.approx(0.9, rel=1e-12)
    assert found[0].normalized.intercept == pytest.approx(0.2, rel=1e-11)
    assert found[1].normalized.slope == pytest.approx(2, rel=1e-12)
    assert found[0].random == ()
    assert puzzles.fits(entries)["slope"] == found[0].normalized.slope


def test_no_line_is_no_error():
    entries = [entry("same", [member(v, 1.0, 2.0) for v in (0.1, 0.2, 0.3)])]
    assert lines(entries) == []
    found = puzzles.fits(entries)
    assert found["lines"] == []
    assert "slope" not in found
    assert "same" in puzzles.markdown(entries)
    only = [entry("r", exact([0.1, 0.2, 0.3]), labels="random")]
    assert lines(only) == []


def test_training_errors_are_counted():
    members = [*exact([0.1, 0.2]), member(0.3, 1.3, 1.0, error=0.1)]
    (line,) = lines([entry("a", members)])
    assert (line.networks, line.perfect) == (3, 2)
    assert "2 of them have no training error" in puzzles.sentences([entry("a", members)])["a"]


def test_gaps_as_a_power_of_the_samples():
    sizes = [100, 300, 1000, 5000]
    members = [member(n, 1.0, 1.0 + 3 * n**-0.5) for n in sizes]
    found = entry("n", members, vary="samples")
    law = gap_law(found)
    assert law is not None
    assert law.slope == pytest.approx(-0.5, abs=1e-12)
    assert "samples^(-0.50" in puzzles.sentences([found])["n"]
    assert lines([found]) == []
    negative = entry("n", [*members[:3], member(5000, 1.0, 0.9)], vary="samples")
    assert gap_law(negative) is None
    assert gap_law(entry("w", exact([0.1, 0.2, 0.3]))) is None
