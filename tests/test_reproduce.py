"""``hessrmt reproduce``: settings of every experiment, what is refused, and level spacings."""

import json

import h5py
import numpy as np
import pytest
from experiment_samples import run_twice, write_images, write_settings

from hessrmt.backend.host import THREADS
from hessrmt.config import load_settings
from hessrmt.experiments import EXPERIMENTS, load, names, settings_file
from hessrmt.experiments.experiment import Experiment
from hessrmt.experiments.puzzles import PuzzlesConfig
from hessrmt.experiments.spacings import Spacings, SpacingsConfig
from hessrmt.experiments.training_budget import BudgetConfig
from hessrmt.problems.madeup import COUNTS, MADE_UP
from hessrmt.store.spectra import load as load_spectra


@pytest.mark.slow
def test_spacings_from_nothing(cli, tmp_path, digits):
    few = ("batches = 1 }]", "batches = 2 }]\nwhole = false")
    path = write_settings(tmp_path, "hessian-spacings", few)
    gone, change = "logistic-trained-15-test.h5", ("epochs = 2", "epochs = 1")
    found, _, out = run_twice(cli, path, gone, change, "epochs (2 in the file, only 1 now)")
    names = [row["run"] for row in found["runs"]]
    # untrained and trained: reduced, and by the published protocol
    assert len(names) == len(set(names)) == 2 * 2
    assert len((out / "results.md").read_text().splitlines()) == 2 + len(names)
    assert len((out / "results.csv").read_text().splitlines()) == 1 + len(names)
    figures = {path.name for path in (out / "figures").iterdir()}
    for row in found["runs"]:
        spectra = load_spectra(out / "spectra" / f"{row['run']}.h5")
        assert len(spectra) == row["spectra"]
        assert row["certified"]["n_levels"] == sum(item.rank for item in spectra)
        trained = row["parameters"] == "trained"
        assert bool(spectra.provenance.config["checkpoint_sha256"]) == trained
        kinds = ("ratios", "density", "spacings")
        kinds += () if row["reduced"] else ("published-ratios",)
        assert {f"{row['run']}-{kind}.png" for kind in kinds} <= figures


@pytest.mark.slow
def test_seed_reaches_everything(tmp_path, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"only": {"models": ["logistic"], "epochs": 1, "batch": 15, "whole": False}}
    values = []
    for seed in (0, 1):
        settings = SpacingsConfig.model_validate(
            {"experiment": "hessian-spacings", "data": digits.name, "seed": seed, "presets": sizes}
        )
        entries = Spacings().run(settings, "only", tmp_path / str(seed))
        values.append([entry.spectra.eigenvalues[0, -1] for entry in entries])
    assert all(a != b for a, b in zip(*values, strict=True))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "nonsense",
            "no experiment 'nonsense'; known are approximation, averaging-theory",
        ),
        ("hessian-spacings --preset huge", "no preset 'huge'; it has small, full"),
        ("puzzles-initialization.toml --preset middle", "no preset 'middle'"),
        ("hessian-spacings.toml --format bmp3", "no picture format 'bmp3'"),
        ("hessian-spacings.toml --style print", "unknown --style 'print'"),
        ("hessian-spacings.toml --out mine", "cannot write mine/checkpoints"),
        ("broken.toml", "broken.toml is not valid TOML"),
        ("empty.toml", "experiment: Field required"),
        ("other.toml", "other.toml is for 'gp-loss'; known are approximation, averaging-theory"),
        ("number.toml", "experiment: Input should be a valid string"),
        (
            "controls.toml",
            "presets.small.sets: Input should be greater than or equal to 10 (got 3)",
        ),
        ("controls.toml", "presets.small.wrong: there is no such setting"),
    ],
)
def test_bad_words(cli, tmp_path, words, said):
    (tmp_path / "mine").touch()
    write_settings(tmp_path, "hessian-spacings")
    write_settings(tmp_path, "puzzles-initialization")
    for name, text in {
        "broken": "experiment = ",
        "empty": "[presets.small]\nmodels = ['logistic']\n",
        "other": 'experiment = "gp-loss"\n',
        "number": "experiment = 3\n",
        "controls": 'experiment = "controls"\n[presets]\nsmall = {sizes=[[1, 9]], sets=3, wrong=1}',
    }.items():
        (tmp_path / f"{name}.toml").write_text(text)
    result = cli("reproduce", *words.split())
    assert result.returncode == 2
    assert said in " ".join(result.stderr.split())
    assert result.stderr.count("error:") == 1


SIZES = "[presets.small]\ndimension = 16\nsamples = 3"
PANELS = "panels = [{ k2 = 0.01 }, { k2 = 0.1, outliers = 2, degenerate = 3 }]"


@pytest.mark.parametrize(
    ("kind", "old", "new", "said"),
    [
        ("gp-loss-model", PANELS, "panels = []", "panels: "),
        ("gp-loss-model", PANELS, "panels = [{ k2 = 0.0 }]", "panels: "),
        ("gp-loss-model", PANELS, "panels = [{ k2 = 1.0, outlier = 3 }]", "panels: "),
        ("gp-loss-model", PANELS, f"{PANELS}\noutlier_scale = -1.0", "outlier_scale: "),
        ("gp-loss-model", PANELS, f"{PANELS}\nratio_k1 = 0.0", "ratio_k1: "),
        ("gp-loss-model", SIZES, "presets = {}", "presets: "),
        ("iterate-averaging", "tail_start = 1", "tail_start = 3", "3 leaves no iterate to average"),
        ("iterate-averaging", "tail_start = 1", "tail_start = -1", "greater than or equal to 0"),
        ("iterate-averaging", '"low"', '"high"', "two rates have the same name"),
        ("iterate-averaging", '"low"', '"no/way"', "match pattern"),
        ("iterate-averaging", "batch = 20", "batch = 0", "should be a positive integer, or 'all'"),
        ("iterate-averaging", "seeds = 2", "seeds = 0", "greater than or equal to 1"),
        ("iterate-averaging", "epochs = 3", "epoch = 3", "presets.small.epochs: Field required"),
        *(
            ("training-budget", "[1, 2, 3, 4, 6]", budgets, "presets.small.budgets: ")
            for budgets in ("[]", "[0, 1]", "[3, 2]", "[2, 2]", "[1.5]")
        ),
        ("puzzles-initialization", '"random"\nvary', '"natural"\nvary', "different names"),
        (
            "puzzles-initialization",
            "presets.small.families",
            "presets.families",
            "presets.families: ",
        ),
        ("puzzles-samples", '"images.npz"', '"cifar10"', "cifar10"),
        ("approximation", '["parity"]', '["maximum"]', "no 'maximum'; known are polynomial, sine"),
        ("approximation", "inputs = [2, 4]", "inputs = [3]", "2, 4, 8, 16, ... variables, not 3"),
        ("approximation", "seeds = 2", "seeds = 1", "greater than or equal to 2"),
        ("flow", 'name = "hidden"', 'name = "line"', "different names"),
        ("flow", "hidden = [1]\nkinds", "kinds", "batch-normalization needs a hidden layer"),
        ("stability", "[2, 10, 20]", "[2, 7]", "differ from 6 samples by more"),
    ],
)
def test_bad_settings(cli, tmp_path, kind, old, new, said):
    write_images(tmp_path / "images.npz")
    path = write_settings(tmp_path, kind)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    result = cli("reproduce", path, "--out", "done")
    assert result.returncode == 2
    assert said in " ".join(result.stderr.split())
    assert not (tmp_path / "done").exists()  # nothing is trained before


@pytest.mark.parametrize("name", names())
def test_shipped_settings_are_valid(name):
    file = settings_file(name)
    experiment, settings = load(file)
    assert isinstance(experiment, Experiment)
    assert name.startswith(settings.experiment)
    assert settings.experiment in EXPERIMENTS
    assert {"small", "full"} <= set(settings.presets)
    assert settings.title == names()[name] != ""
    if not isinstance(settings, PuzzlesConfig):
        return
    for family in settings.presets["small"].families:
        there = {"mnist": 8000, MADE_UP: COUNTS["train"]}[family.data]  # embedded digits
        sizes = family.values if family.vary == "samples" else (family.samples,)
        assert all(size != "all" and size <= there for size in sizes)
    for preset in ("small", "full"):
        for family in settings.presets[preset].families:
            assert family.rate(family.epochs - 1) == family.rates[-1]


def test_every_experiment_has_shipped_settings(cli):
    assert {load(settings_file(name))[1].experiment for name in names()} == EXPERIMENTS.keys()
    assert json.loads(cli("reproduce", "--json").stdout) == {"experiments": names()}


def test_settings_that_are_published():
    ladder = (15, 30, 45, 60, 90, 120, 150, 180, 210, 270, 300)
    settings = load_settings(BudgetConfig, settings_file("training-budget"))
    assert settings.presets["full"].budgets == ladder


# the same command again


@pytest.mark.slow
def test_the_same_command_writes_the_same_numbers(run_cli, tmp_path, monkeypatch):
    """mlp2's reduced matrix has about 2,060 rows, where MKL left to itself does not repeat."""
    for name in THREADS:  # as many threads as the machine has
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # threads that wait leave the cores to others
    for name in ("one.h5", "two.h5"):
        result = run_cli("spectrum", "--model", "mlp2", "--batches", 1, "--out", name)
        assert result.returncode == 0, result.stderr
    with h5py.File(tmp_path / "one.h5") as one, h5py.File(tmp_path / "two.h5") as two:
        names = [name for name in one if not name.startswith("seconds_")]
        assert {"hessian_evals", "loss", "check"} <= set(names)
        for name in names:
            a, b = one[name][()], two[name][()]
            assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), name
