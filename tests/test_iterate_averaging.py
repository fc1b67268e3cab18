"""``reproduce iterate-averaging``: runs, averages, spectra, and the same numbers after kill -9."""

import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from experiment_samples import numbers_of, run_twice, write_settings

from hessrmt.config import TrainConfig
from hessrmt.errors import NonFiniteError
from hessrmt.experiments.iterate_averaging import (
    POINTS,
    AveragedPoint,
    AveragedRate,
    IterateAveraging,
    gains,
)
from hessrmt.problems import checkpoints, data, losses, models
from hessrmt.runs import trajectory
from hessrmt.runs.trajectory import Trajectory, TrajectoryPlan
from hessrmt.store.spectra import load
from hessrmt.training.protocol import evaluate, train

CPU = torch.device("cpu")
EPS = np.finfo(float).eps
KIND = "iterate-averaging"

NET = """
from torch import nn


def net():
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
"""


@pytest.mark.slow
def test_everything_from_nothing(cli, tmp_path, digits):
    path = write_settings(
        tmp_path, KIND, ("spectra = 1", "spectra = 2"), ("seeds = 2", "seeds = 3")
    )
    change = ("tail_start = 1", "tail_start = 2")
    said = "logistic-high-0.pt was made with another configuration: averages tail (1 in the file"
    found, _, out = run_twice(cli, path, "logistic-low-1-tail.pt", change, said)
    names = [f"logistic-{rate}-{point}" for rate in ("high", "low") for point in POINTS]
    assert [row["run"] for row in found["runs"]] == names
    # 150 samples in batches of 32: five steps an epoch
    assert [row["averaged"] for row in found["runs"]] == [1, 15, 10] * 2
    for row in found["runs"]:
        assert (row["distance"] == 0) == (row["point"] == "last")
        assert [len(row["seeds"][what]) for what in ("test_loss", "largest")] == [3, 2]
        assert row["negative"] == 0  # softmax regression is convex
        for number, largest in enumerate(row["seeds"]["largest"]):
            stem = f"logistic-{row['rate']}-{number}-{row['point']}"
            spectra = load(out / "spectra" / f"{stem}.h5")
            assert spectra.eigenvalues[:, -1].tolist() == [largest]
            sha = spectra.provenance.config["checkpoint_sha256"]
            assert sha == checkpoints.sha256(out / "checkpoints" / f"{stem}.pt")
    assert len(found["fits"]) == 4
    # runs of one seed begin alike at all rates
    runs = [f"checkpoints/logistic-{rate}-{k}.pt" for rate in ("high", "low") for k in range(3)]
    seeds = [checkpoints.read(out / run)["identity"]["seed"] for run in runs]
    assert seeds[:3] == seeds[3:]
    assert len(set(seeds)) == 3


def test_points_are_the_averages_of_the_run_and_do_not_disturb_it(tmp_path, digits):
    """The run again, by hand: the same last iterate, and np.mean of the stored iterates."""
    settings = TrainConfig(
        model="mlp2", data=str(digits), epochs=3, batch=32, lr=0.05, device="cpu", seed=4
    )
    plan = TrajectoryPlan("run", settings, {"polyak": 0, "tail": 2})
    (found,) = trajectory.run_all([plan], tmp_path)
    samples = data.load(str(digits), "train")
    model, loss = models.build("mlp2", samples.input_shape, 2, 4), losses.resolve("cross-entropy")
    iterates = []

    def keep(model):
        iterates.append([p.detach().double().numpy().copy() for p in model.parameters()])

    train(model, loss, samples, settings, device=CPU, on_step=keep)
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
        value, accuracy = evaluate(model, loss, data.load(str(digits), "test"), device=CPU)
        assert (last["test_loss"], last["test_error"]) == (value, 1 - accuracy)
    epochs, values = trajectory.curves([found], "tail", "train_loss")
    assert (epochs, values) == ([3], [[found.measured[-1]["tail"]["train_loss"]]])


def test_averages_with_batchnorm_have_statistics_of_their_own(tmp_path, digits):
    (tmp_path / "net.py").write_text(NET)
    settings = TrainConfig(
        model=f"{tmp_path}/net.py:net", data=str(digits), epochs=2, batch=32, lr=0.1, device="cpu"
    )
    (found,) = trajectory.run_all([TrajectoryPlan("run", settings, {"polyak": 0})], tmp_path)
    x = data.load(str(digits), "train").x
    states = {point: checkpoints.load_state(file) for point, file in found.files.items()}
    # the last iterate is measured like the average
    for state in states.values():
        inputs = x @ state["0.weight"].double().numpy().T + state["0.bias"].double().numpy()
        # products of six terms in float32
        eps = 8 * np.finfo(np.float32).eps * np.abs(inputs).max()
        np.testing.assert_allclose(state["1.running_mean"], inputs.mean(0), rtol=0, atol=eps)
        variance, atol = inputs.var(0, ddof=1), 4 * eps * np.abs(inputs).max()
        np.testing.assert_allclose(state["1.running_var"], variance, rtol=0, atol=atol)
    last = states["last"]
    assert not torch.equal(last["1.running_mean"], states["polyak"]["1.running_mean"])
    # training goes on with its own statistics
    trained = checkpoints.load_state(tmp_path / "run.pt")
    assert not torch.equal(trained["1.running_mean"], last["1.running_mean"])
    assert torch.equal(trained["0.weight"], last["0.weight"])


def test_gains_compare_runs_of_the_same_seed():
    def entry(point, losses, largest):
        rows = [
            {point: dict.fromkeys(("train_loss", "test_loss", "test_error"), v)} for v in losses
        ]
        runs = [Trajectory(None, (row,), {}, "") for row in rows]  # type: ignore[arg-type]
        spectra = [[SimpleNamespace(eigenvalues=np.array([value]))] for value in largest]
        return AveragedPoint("", "net", AveragedRate(name="high", lr=1.0), point, runs, spectra)

    entries = [entry("last", [1.0, 3.0], [4.0, 8.0]), entry("tail", [0.5, 2.1], [2.0, 2.0])]
    found = gains(entries)["net", "high", "tail"]
    # gains 0.5 and 0.9, ratios 0.5 and 0.25
    assert found["test_loss"][:2] == pytest.approx((0.7, 0.2))
    mean = 0.125**0.5  # geometric; the logarithms are ln 2 / 2 from theirs
    assert found["largest"][:2] == pytest.approx((mean, mean * np.log(2) / 2))
    said = IterateAveraging().conclusions(entries)["net, high"]
    assert said.startswith("tail: test loss lower by 0.7000 ± 0.2000, error by 70.00 ± 20.00 %, λ")


@pytest.mark.slow
def test_killed_and_run_again_ends_in_the_same_numbers(tmp_path, digits, cli, start_cli):
    """kill -9 in the second run's third epoch, where the tail average has begun."""
    (tmp_path / "net.py").write_text(NET)
    path = write_settings(tmp_path, KIND, ('"logistic"', '"net.py:net"'), ("lr = 0.05", "lr = 0.1"))
    whole = cli("reproduce", path, "--out", "whole", "--json")
    assert whole.returncode == 0, whole.stderr
    # five steps an epoch, three epochs a run
    third_epoch = ("hessrmt.training.protocol:_step", 5 * 3 + 5 * 2 + 3)
    process = start_cli("reproduce", path, "--out", "killed", "--json", stop=third_epoch)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert checkpoints.read(tmp_path / "killed/checkpoints/net-high-1.pt")["epoch"] == 2
    assert not (tmp_path / "killed/results.json").exists()
    again = cli("reproduce", path, "--out", "killed", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(whole.stdout)
    one, other = (
        {file.name: numbers_of(file) for file in (tmp_path / out / "checkpoints").glob("[!.]*")}
        for out in ("whole", "killed")
    )
    assert one == other


def test_a_diverging_run_is_named_and_never_averaged(cli, tmp_path, digits):
    changes = ('"logistic"', '"mlp2"'), ("lr = 0.05", "lr = 1e30")
    result = cli("reproduce", write_settings(tmp_path, KIND, *changes), "--out", "done")
    assert result.returncode == NonFiniteError.exit_code
    assert "mlp2-high-0: " in result.stderr
    assert "try a smaller learning rate" in result.stderr.replace("\n", " ")
    assert not list((tmp_path / "done/checkpoints").glob("*-tail.pt"))
    assert not (tmp_path / "done/results.json").exists()
