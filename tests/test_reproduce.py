"""``hessrmt reproduce``: from nothing to table and figures, and again without doing it twice."""

import json
import os

import pytest
from hessrmt.cli.experiments import EXPERIMENTS, experiment_of
from hessrmt.workflows import reproduce, spacings

from hessrmt.experiments.spacings import SpacingsConfig
from hessrmt.store.spectra import load

SETTINGS = """
experiment = "hessian-spacings"
title = "a small one"
data = "clouds.npz"

[presets.small]
models = ["logistic"]
epochs = 2
splits = ["test"]
batch = 15
batches = "all"
unreduced = [{{ model = "logistic", dtype = "float32", batches = 2 }}]

[presets.full]
models = ["net.py:make"]
epochs = {epochs}
whole = false
batch = 15
"""

NETWORK = """
from torch import nn


def make():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
"""


@pytest.fixture
def experiment(tmp_path, digits):
    """A settings file beside its data and network."""
    assert digits.name == "clouds.npz"
    (tmp_path / "net.py").write_text(NETWORK)
    path = tmp_path / "mine.toml"
    path.write_text(SETTINGS.format(epochs=2))
    return path


def test_everything_from_nothing(cli, experiment, tmp_path):
    result = cli("reproduce", experiment, "--out", "done", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["preset"] == "small"
    names = [row["run"] for row in found["runs"]]
    # untrained and trained: batches, the whole split, and the published protocol
    assert len(names) == len(set(names)) == 2 * 3
    assert "logistic-trained-15-test-unreduced-float32" in names
    out = tmp_path / "done"
    assert json.loads((out / "results.json").read_text()) == found["runs"]
    table = (out / "results.md").read_text().splitlines()
    assert len(table) == 2 + len(names)
    for row in found["runs"]:
        spectra = load(out / "spectra" / f"{row['run']}.h5")
        assert len(spectra) == row["spectra"]
        # what is in the table is what is in the file
        certified = row["certified"]
        assert certified["n_levels"] == sum(item.rank for item in spectra)
        assert certified["n_levels"] + certified["n_discarded"] == spectra.eigenvalues.size
        assert spectra.provenance.config["reduce"] == ("auto" if row["reduced"] else "none")
        trained = row["parameters"] == "trained"
        assert bool(spectra.provenance.config["checkpoint_sha256"]) == trained
    figures = {path.name for path in (out / "figures").iterdir()}
    for name in names:
        assert {f"{name}-{kind}.png" for kind in ("ratios", "density", "spacings")} <= figures
    assert "logistic-trained-15-test-unreduced-float32-published-ratios.png" in figures
    assert "surmise.png" in figures


@pytest.mark.slow
def test_again_computes_nothing_and_says_the_same(cli, experiment, tmp_path):
    first = cli("reproduce", experiment, "--preset", "full", "--out", "done", "--json")
    files = [*(tmp_path / "done/spectra").iterdir(), *(tmp_path / "done/checkpoints").iterdir()]
    before = {path: os.stat(path).st_mtime_ns for path in files}
    # as if killed: one spectrum file is not there yet
    gone = tmp_path / "done/spectra/net.py_make-trained-15-test.h5"
    gone.unlink()
    second = cli("reproduce", experiment, "--preset", "full", "--out", "done", "--json")
    assert first.returncode == second.returncode == 0
    assert json.loads(first.stdout) == json.loads(second.stdout)
    kept = [path for path in files if path != gone]
    assert {path: os.stat(path).st_mtime_ns for path in kept} == {
        path: before[path] for path in kept
    }


def test_a_folder_of_another_experiment_is_left_alone(cli, experiment, tmp_path):
    assert cli("reproduce", experiment, "--preset", "full", "--out", "done").returncode == 0
    other = tmp_path / "other.toml"
    other.write_text(SETTINGS.format(epochs=1))
    result = cli("reproduce", other, "--preset", "full", "--out", "done")
    assert result.returncode == 2
    assert "trained with other settings" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "no experiment 'nonsense'; known are gp-loss-model, hessian-spacings"),
        (["hessian-spacings", "--preset", "huge"], "no preset 'huge'; it has small, full"),
        (["mine.toml", "--format", "bmp3"], "no picture format 'bmp3'"),
        (["mine.toml", "--out", "mine.toml"], "cannot make mine.toml/checkpoints"),
        (["broken.toml"], "broken.toml is not valid TOML"),
        (["empty.toml"], "experiment: Field required"),
    ],
)
def test_bad_input(cli, experiment, tmp_path, words, said):
    (tmp_path / "broken.toml").write_text("experiment = ")
    (tmp_path / "empty.toml").write_text("[presets.small]\nmodels = ['logistic']\n")
    result = cli("reproduce", *words)
    assert result.returncode == 2
    assert said in " ".join(result.stderr.split())
    assert result.stderr.count("error:") == 1


def test_the_list(cli):
    result = cli("reproduce", "--json")
    assert result.returncode == 0
    assert "hessian-spacings" in json.loads(result.stdout)["experiments"]


def test_shipped_settings_are_valid():
    found = {}
    for name, title in reproduce.names().items():
        file = reproduce.settings_file(name)
        settings = experiment_of(file).load(file)
        found[settings.experiment] = name
        assert {"small", "full"} <= set(settings.presets)
        assert settings.title == title != ""
    assert found.keys() == EXPERIMENTS.keys()


def test_seed_reaches_everything(tmp_path, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"only": {"models": ["logistic"], "epochs": 1, "batch": 15, "whole": False}}
    values = []
    for seed in (0, 1):
        settings = SpacingsConfig.model_validate(
            {"experiment": "hessian-spacings", "data": digits.name, "seed": seed, "presets": sizes}
        )
        entries = spacings.run(settings, "only", tmp_path / str(seed))
        values.append([entry.spectra.eigenvalues[0, -1] for entry in entries])
    assert all(a != b for a, b in zip(*values, strict=True))
