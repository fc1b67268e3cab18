"""``reproduce iterate-averaging``: runs, averages, spectra, and the same numbers after kill -9."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from hessrmt.workflows import iterate_averaging, trajectory
from hessrmt.workflows.averaged import Entry, gains

from hessrmt.config import TrainConfig, load_settings
from hessrmt.errors import ConfigError, NonFiniteError, StoreError
from hessrmt.experiments.experiment import settings_file
from hessrmt.experiments.iterate_averaging import IterateAveragingConfig
from hessrmt.problems import checkpoints, data, losses, models
from hessrmt.store.spectra import load
from hessrmt.training.protocol import evaluate, train

CPU = torch.device("cpu")
EPS = np.finfo(float).eps
POINTS = ("last", "polyak", "tail")

SETTINGS = """
experiment = "iterate-averaging"
title = "a small one"
data = "{data}"
device = "cpu"
seed = {seed}

[presets.small]
networks = [{{ model = "{model}", spectra = {spectra}, batch = 20 }}]
rates = [{{ name = "high", lr = {high} }}, {{ name = "low", lr = 0.01, final_lr = 0.001 }}]
epochs = 4
tail_start = {tail}
batch = 32
seeds = 3
"""

NET = """
from torch import nn


def net():
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
"""


def write(path, data, model="logistic", high=0.05, tail=2, seed=0, spectra=2):
    text = SETTINGS.format(data=data, model=model, high=high, tail=tail, seed=seed, spectra=spectra)
    path.write_text(text)
    return path


@pytest.fixture
def experiment(tmp_path, digits):
    return write(tmp_path / "mine.toml", digits)


def test_everything_from_nothing(cli, experiment, tmp_path):
    result = cli("reproduce", experiment, "--out", "done", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    out = tmp_path / "done"
    assert json.loads((out / "results.json").read_text()) == found["runs"]
    names = [f"logistic-{rate}-{point}" for rate in ("high", "low") for point in POINTS]
    assert [row["run"] for row in found["runs"]] == names
    # 150 samples in batches of 32: five steps an epoch
    assert [row["averaged"] for row in found["runs"]] == [1, 20, 10] * 2
    for row in found["runs"]:
        assert (row["distance"] == 0) == (row["point"] == "last")
        assert len(row["seeds"]["test_loss"]) == 3
        for number, (largest, trace) in enumerate(
            zip(row["seeds"]["largest"], row["seeds"]["trace"], strict=True)
        ):
            stem = f"logistic-{row['rate']}-{number}-{row['point']}"
            spectra = load(out / "spectra" / f"{stem}.h5")
            assert len(spectra) == 1
            assert largest == spectra.eigenvalues[0, -1]
            assert trace == spectra.eigenvalues[0].sum()
            sha = spectra.provenance.config["checkpoint_sha256"]
            assert sha == checkpoints.sha256(out / "checkpoints" / f"{stem}.pt")
            assert spectra.provenance.config["split"] == "train"
        assert len(row["seeds"]["largest"]) == 2
        assert row["negative"] == 0  # softmax regression is convex
    assert len(found["fits"]) == 4
    figures = {path.name for path in (out / "figures").iterdir()}
    assert figures == {"logistic-losses.png", "logistic-spectra.png"}

    # again: nothing is computed, and a point that is gone comes back
    files = [path for folder in ("checkpoints", "spectra") for path in (out / folder).iterdir()]
    before = {path: os.stat(path).st_mtime_ns for path in files}
    gone = out / "checkpoints" / "logistic-low-1-tail.pt"
    content = gone.read_bytes()
    gone.unlink()
    again = cli("reproduce", experiment, "--out", "done", "--json")
    assert json.loads(again.stdout) == found
    assert gone.read_bytes() == content
    assert all(os.stat(p).st_mtime_ns == before[p] for p in files if p != gone)

    other = cli("reproduce", write(experiment, tmp_path / "clouds.npz", tail=1), "--out", "done")
    assert other.returncode == 2
    assert "logistic-high-0: " in other.stderr
    assert "averages was {'polyak': 0, 'tail': 2}" in other.stderr


def test_points_are_the_averages_of_the_run_and_do_not_disturb_it(tmp_path, digits):
    """The run again, by hand: the same last iterate, and np.mean of the stored iterates."""
    settings = TrainConfig(
        model="mlp2", data=str(digits), epochs=3, batch=32, lr=0.05, device="cpu", seed=4
    )
    plan = trajectory.Plan("run", settings, {"polyak": 0, "tail": 2})
    found = trajectory.run(plan, tmp_path)
    samples = data.load(str(digits), "train")
    model, loss = models.build("mlp2", samples.input_shape, 2, 4), losses.resolve("cross-entropy")
    iterates = []
    train(
        model,
        loss,
        samples,
        settings,
        device=CPU,
        on_step=lambda m: iterates.append(
            [p.detach().double().numpy().copy() for p in m.parameters()]
        ),
    )
    names = [name for name, _ in model.named_parameters()]
    for point, kept in (("last", iterates[-1:]), ("polyak", iterates), ("tail", iterates[10:])):
        state = checkpoints.load_state(found.files[point])
        for place, name in enumerate(names):
            values = np.array([item[place] for item in kept])
            # the running mean's roundings, and one to float32
            bound = (2 * len(kept) * EPS + np.finfo(np.float32).eps) * np.abs(values).max()
            np.testing.assert_allclose(state[name].numpy(), values.mean(0), rtol=0, atol=bound)
        model.load_state_dict(state)
        last = found.measured[-1][point]
        test = data.load(str(digits), "test")
        value, accuracy = evaluate(model, loss, test, device=CPU)
        assert (last["test_loss"], last["test_error"]) == (value, 1 - accuracy)
    epochs, values = found.curve("tail", "train_loss")
    assert epochs == [3]
    assert values == [found.measured[-1]["tail"]["train_loss"]]


def test_averages_with_batchnorm_have_statistics_of_their_own(tmp_path, digits):
    (tmp_path / "net.py").write_text(NET)
    settings = TrainConfig(
        model=f"{tmp_path / 'net.py'}:net", data=str(digits), epochs=2, batch=32, lr=0.1,
        device="cpu",
    )  # fmt: skip
    found = trajectory.run(trajectory.Plan("run", settings, {"polyak": 0}), tmp_path)
    state = checkpoints.load_state(found.files["polyak"])
    samples = data.load(str(digits), "train")
    inputs = samples.x @ state["0.weight"].double().numpy().T + state["0.bias"].double().numpy()
    # products of six terms in float32
    eps = 8 * np.finfo(np.float32).eps * np.abs(inputs).max()
    np.testing.assert_allclose(state["1.running_mean"], inputs.mean(0), rtol=0, atol=eps)
    variance = inputs.var(0, ddof=1)
    atol = 4 * eps * np.abs(inputs).max()
    np.testing.assert_allclose(state["1.running_var"], variance, rtol=0, atol=atol)
    last = checkpoints.load_state(found.files["last"])
    assert not torch.equal(last["1.running_mean"], state["1.running_mean"])
    # the last iterate is measured alike, and training goes on with its own statistics
    inputs = samples.x @ last["0.weight"].double().numpy().T + last["0.bias"].double().numpy()
    np.testing.assert_allclose(last["1.running_mean"], inputs.mean(0), rtol=0, atol=eps)
    trained = checkpoints.load_state(tmp_path / "run.pt")
    assert not torch.equal(trained["1.running_mean"], last["1.running_mean"])
    assert torch.equal(trained["0.weight"], last["0.weight"])


def test_gains_compare_runs_of_the_same_seed():
    def entry(point, losses, largest):
        rows = [{"epoch": 1, "lr": 1.0, point: dict.fromkeys(trajectory_keys, v)} for v in losses]
        runs = [trajectory.Trajectory(None, (row,), {}, "") for row in rows]  # type: ignore[arg-type]
        found = Entry("", "net", "high", 1.0, None, point, runs, [])
        object.__setattr__(found, "curvature", lambda _what: np.array(largest))
        return found

    trajectory_keys = ("train_loss", "test_loss", "train_error", "test_error")
    last = entry("last", [1.0, 3.0], [4.0, 8.0])
    tail = entry("tail", [0.5, 2.1], [2.0, 2.0])
    found = gains([last, tail])["net", "high"]["tail"]
    # gains 0.5 and 0.9, ratios 0.5 and 0.25
    assert found["test_loss"] == pytest.approx((0.7, 0.2))
    mean = 0.125**0.5  # geometric; the logarithms are ln 2 / 2 from theirs
    assert found["largest"] == pytest.approx((mean, mean * np.log(2) / 2))


def same(one, other) -> bool:
    """Two trees of plain values and tensors, bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.slow
def test_killed_and_run_again_ends_in_the_same_numbers(tmp_path, digits, cli, start_cli):
    """kill -9 in the second run's third epoch, where the tail average has begun."""
    (tmp_path / "net.py").write_text(NET)
    path = write(tmp_path / "mine.toml", digits, "net.py:net", high=0.1, spectra=1)
    whole = cli("reproduce", path, "--out", "whole", "--json")
    assert whole.returncode == 0, whole.stderr
    # five steps an epoch, four epochs a run
    third_epoch = ("hessrmt.training.protocol:_step", 5 * 4 + 5 * 2 + 3)
    process = start_cli("reproduce", path, "--out", "killed", "--json", stop=third_epoch)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert checkpoints.read(tmp_path / "killed/checkpoints/net-high-1.pt")["epoch"] == 2
    assert not (tmp_path / "killed/results.json").exists()
    again = cli("reproduce", path, "--out", "killed", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(whole.stdout)
    names = sorted(p.name for p in (tmp_path / "whole/checkpoints").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "killed/checkpoints").iterdir())
    for name in names:
        one, other = (tmp_path / out / "checkpoints" / name for out in ("whole", "killed"))
        assert same(checkpoints.read(one), checkpoints.read(other)), name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("tail_start = 2", "tail_start = 4"), "tail_start 4 leaves no iterate to average"),
        (("tail_start = 2", "tail_start = -1"), "greater than or equal to 0"),
        (('name = "low"', 'name = "high"'), "two rates have the same name"),
        (('name = "low"', 'name = "no/way"'), "match pattern"),
        (("batch = 20", "batch = 0"), "should be a positive integer, or 'all'"),
        (("seeds = 3", "seeds = 0"), "greater than or equal to 1"),
        (("epochs = 4", "epoch = 4"), "presets"),
    ],
)
def test_bad_settings(experiment, change, said):
    text = experiment.read_text()
    assert change[0] in text
    experiment.write_text(text.replace(*change))
    with pytest.raises(ConfigError, match=said):
        load_settings(IterateAveragingConfig, experiment)


def test_a_diverging_run_is_named_and_never_averaged(cli, tmp_path, digits):
    path = write(tmp_path / "mine.toml", digits, "mlp2", high=1e30)
    result = cli("reproduce", path, "--out", "done")
    assert result.returncode == NonFiniteError.exit_code
    assert "mlp2-high-0: " in result.stderr
    assert "try a smaller learning rate" in result.stderr.replace("\n", " ")
    assert not list((tmp_path / "done/checkpoints").glob("*-tail.pt"))
    assert not (tmp_path / "done/results.json").exists()


def test_foreign_and_newer_checkpoints_are_refused(tmp_path, digits):
    settings = TrainConfig(model="logistic", data=str(digits), epochs=1, batch=32, device="cpu")
    plan = trajectory.Plan("run", settings, {"polyak": 0})
    trajectory.run(plan, tmp_path)
    content = checkpoints.read(tmp_path / "run.pt")
    for changed, said in (
        ({"weights": torch.zeros(2)}, "run: .* is no checkpoint of this experiment"),
        (content | {"version": 99}, "written by a newer hessrmt"),
    ):
        checkpoints.save_atomic(changed, tmp_path / "run.pt")
        with pytest.raises(StoreError, match=said):
            trajectory.run(plan, tmp_path)


def test_runs_of_one_seed_begin_alike_at_all_rates():
    settings = load_settings(IterateAveragingConfig, settings_file("iterate-averaging"))
    size = settings.presets["small"]
    plans = [
        iterate_averaging._plan(settings, size, size.networks[0], rate, seed)
        for rate in size.rates
        for seed in range(2)
    ]
    seeds = [plan.settings.seed for plan in plans]
    assert seeds[:2] == seeds[2:4] == seeds[4:]
    assert seeds[0] != seeds[1]
    assert max(plan.averages["tail"] for plan in plans) < size.epochs
