"""Training: the published schedule, exact resumption, honest failures, averages of iterates."""

import copy
import datetime as dt
import json
import math
import os
import signal
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from experiment_samples import numbers_of
from torch import nn

import hessrmt as hr
from hessrmt import records, rng
from hessrmt.config import TrainConfig
from hessrmt.errors import (
    ConfigError,
    NonFiniteError,
    ProblemError,
    StoreError,
    WriteError,
)
from hessrmt.problems import checkpoints, data, losses, models
from hessrmt.problems.data import Dataset
from hessrmt.runs.training import TrainingFile, run
from hessrmt.training.averaging import IterateAverage, recompute_batchnorm
from hessrmt.training.protocol import TrainState, evaluate, learning_rate, train

CPU = torch.device("cpu")
EPS = np.finfo(float).eps
LOSS = losses.resolve("cross-entropy")


def settings_for(digits, **changes) -> TrainConfig:
    given = {"model": "logistic", "data": str(digits), "epochs": 8, "batch": 16, "device": "cpu"}
    return TrainConfig.model_validate(given | changes)


# the protocol


def test_learning_rate_of_the_published_protocol():
    rates = {0: 3e-3, 149: 3e-3, 150: 3e-3, 210: (3e-3 + 3e-5) / 2, 270: 3e-5, 299: 3e-5}
    for epoch, rate in rates.items():
        assert learning_rate(epoch, TrainConfig()) == pytest.approx(rate, rel=4 * EPS)
    # fewer epochs cut it, and do not squeeze it; it may be a step
    assert learning_rate(160, TrainConfig(epochs=161)) == learning_rate(160, TrainConfig())
    step = TrainConfig(decay_start=5, decay_end=5)
    assert [learning_rate(e, step) for e in (4, 5, 6)] == [step.lr, step.lr, step.final_lr]


def test_steps_equal_momentum_sgd_written_out(digits):
    """v <- mu v + (g + lambda w), w <- w - eta v, on the batches of the named shuffle stream."""
    settings = settings_for(digits, epochs=3, dtype="float64", decay_start=0, decay_end=2)
    samples = data.load(str(digits), "train")
    model = models.build("logistic", samples.input_shape, samples.outputs, 0)
    W, b = (p.detach().double().numpy().copy() for p in model.parameters())
    x, y = samples.x, samples.y
    vW, vb, steps = np.zeros_like(W), np.zeros_like(b), 0
    for epoch in range(3):
        eta = learning_rate(epoch, settings)
        order = rng.stream(0, "shuffle", epoch).permutation(150)
        for first in range(0, 150, 16):
            chunk = order[first : first + 16]
            z = x[chunk] @ W.T + b
            p = np.exp(z - z.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(len(chunk)), y[chunk]] -= 1
            p /= len(chunk)
            vW = 0.9 * vW + p.T @ x[chunk] + 5e-4 * W
            vb = 0.9 * vb + p.sum(0) + 5e-4 * b
            W, b, steps = W - eta * vW, b - eta * vb, steps + 1
    train(model, LOSS, samples, settings, device=CPU)
    # every step adds the round-off of sums of at most 16 terms of size |x| (momentum: x 10)
    bound = steps * 16 * 10 * EPS * np.abs(x).max()
    for ours, reference in zip(model.parameters(), (W, b), strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), reference, rtol=0, atol=bound)


def test_evaluate_weights_batches_by_size_and_uses_evaluation_mode(digits):
    samples = data.load(str(digits), "train")
    model = models.build("logistic", samples.input_shape, samples.outputs, 0).double()
    x, y = samples.tensors(slice(None), torch.float64)
    mean, accuracy = evaluate(model, LOSS, samples, device=CPU, dtype="float64", batch=64)
    # two orders of summation of 150 terms
    assert mean == pytest.approx(float(LOSS(model(x), y).detach()), rel=150 * EPS)
    assert accuracy == float((model(x).argmax(1) == y).double().mean())
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 2)).train()
    mean, _ = evaluate(model, LOSS, samples, device=CPU)
    assert mean == float(LOSS(model[1](x.float()), y).detach())
    assert model.training


def test_regression_has_no_accuracy(tmp_path):
    draw = rng.stream(1, "test regression")
    np.savez(tmp_path / "r.npz", x=draw.normal(size=(20, 3)), y=draw.normal(size=(20, 2)))
    result = run(settings_for(tmp_path / "r.npz", loss="mse", epochs=2, batch=8), tmp_path / "r.pt")
    assert result.train_accuracy is result.test_loss is None
    assert math.isfinite(result.train_loss)


def test_divergence_names_epoch_and_batch_and_keeps_the_last_checkpoint(digits, tmp_path):
    out = tmp_path / "c.pt"
    with pytest.raises(NonFiniteError, match=r"at batch \d+ of 10 in epoch \d+ .*smaller"):
        run(settings_for(digits, lr=1e30, model="mlp2"), out)
    if out.exists():
        checkpoints.load_state(out)


def test_parameters_that_overflow_under_a_finite_loss_are_never_saved(digits, tmp_path):
    with np.load(digits) as arrays:
        np.savez(digits, **{k: a * 1000 if k[0] == "x" else a for k, a in arrays.items()})
    with pytest.raises(NonFiniteError, match="parameters became NaN or infinite after batch 1 in"):
        run(settings_for(digits, lr=1e38, batch=150), tmp_path / "c.pt")
    with pytest.raises(NonFiniteError, match="a step of SGD failed"):  # no float32 at all
        run(settings_for(digits, lr=1e39, batch=150), tmp_path / "c.pt")
    assert not (tmp_path / "c.pt").exists()


def test_failures_of_a_users_model_and_loss_are_explained(digits, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def narrow():\n    return torch.nn.Linear(5, 2)\n"
        "def vector(outputs, targets):\n    return outputs.sum(1)\n"
        "def frozen():\n    return torch.nn.Linear(6, 2).requires_grad_(False)\n"
        "def flat(outputs, targets):\n    return outputs.detach().sum()\n"
    )
    mine = f"{tmp_path / 'mine.py'}:"
    for changes, message in (
        ({"model": mine + "narrow"}, r"failed on inputs \(16, 6\)"),
        ({"loss": mine + "vector"}, r"must be a scalar mean over the batch, but it gave \(16,\)"),
        ({"model": mine + "frozen"}, "no trainable parameters"),
        ({"loss": mine + "flat"}, "cannot be differentiated"),
    ):
        with pytest.raises(ProblemError, match=message):
            run(settings_for(digits, **changes), tmp_path / "c.pt")
    assert not (tmp_path / "c.pt").exists()


# acceptance


def test_logistic_regression_learns_the_embedded_digits(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "locate", lambda *_: None)
    settings = TrainConfig(model="logistic", epochs=20, device="cpu")
    result = run(settings, tmp_path / "logistic.pt")
    assert result.test_accuracy is not None
    assert result.test_accuracy >= 0.88
    assert any("embedded" in note for note in result.notes)
    assert result.sha256 == checkpoints.sha256(result.checkpoint)
    twin = models.build("logistic", (1, 28, 28), 10, 1)
    checkpoints.load_into(twin, result.checkpoint)
    test = data.load("mnist", "test")
    found = evaluate(twin, LOSS, test, device=CPU)
    assert found == (result.test_loss, result.test_accuracy)


# interruption


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(digits, tmp_path, start_cli):
    settings, killed, whole = settings_for(digits), tmp_path / "killed.pt", tmp_path / "whole.pt"
    options = ["--model", "logistic", "--data", digits, "--epochs", 8, "--batch", 16]
    # in the fourth epoch, of ten steps
    step = ("hessrmt.training.protocol:_step", 35)
    child = start_cli("train", *options, "--device", "cpu", "--out", killed, stop=step)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.returncode == -signal.SIGKILL
    assert checkpoints.read(killed)["epoch"] == 3
    run(settings, whole)
    run(settings, killed, resume=True)
    assert numbers_of(killed) == numbers_of(whole)


def interrupt(phase, done, total):
    """Press Ctrl-C after five epochs."""
    if done == 5:
        raise KeyboardInterrupt


def test_resumption_is_exact_for_dropout_and_batch_norm(digits, tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(),\n"
        "                         nn.Dropout(0.3), nn.Linear(8, 2))\n"
    )
    settings = settings_for(digits, model=f"{tmp_path / 'net.py'}:net", epochs=6)
    stopped, whole = tmp_path / "stopped.pt", tmp_path / "whole.pt"
    with pytest.raises(KeyboardInterrupt):
        run(settings, stopped, tick=interrupt)
    assert checkpoints.read(stopped)["epoch"] == 5
    run(settings, stopped, resume=True)
    run(settings, whole)
    assert numbers_of(stopped) == numbers_of(whole)


def test_a_finished_run_returns_at_once_and_can_be_extended(digits, tmp_path):
    short, longer, whole = settings_for(digits, epochs=3), settings_for(digits), tmp_path / "w.pt"
    out = tmp_path / "c.pt"
    first = run(short, out)
    again = run(short, out, resume=True)
    assert (again.sha256, again.epochs) == (first.sha256, 3)
    assert (again.train_loss, again.test_accuracy) == (first.train_loss, first.test_accuracy)
    run(longer, out, resume=True)
    run(longer, whole)
    assert numbers_of(out) == numbers_of(whole)


def test_resume_refuses_other_settings_data_and_files(digits, tmp_path):
    out = tmp_path / "c.pt"
    run(settings_for(digits), out)
    before = out.read_bytes()
    for changes, message in (
        (
            {"lr": 0.1, "seed": 1, "epochs": 9},
            r"lr \(0\.003 in the file, 0\.1 now\); seed \(0 in the file, 1 now\)",
        ),
        ({"epochs": 2}, r"epochs \(8 in the file, only 2 now\)"),
    ):
        with pytest.raises(StoreError, match=message):
            run(settings_for(digits, **changes), out, resume=True)
    with np.load(digits) as arrays:
        np.savez(digits, **(dict(arrays) | {"x_train": arrays["x_train"] + 1}))
    with pytest.raises(StoreError, match="another configuration: data_sha256"):
        run(settings_for(digits), out, resume=True)
    assert out.read_bytes() == before

    torch.save(nn.Linear(2, 2).state_dict(), out)
    with pytest.raises(StoreError, match="not a checkpoint written by hessrmt"):
        run(settings_for(digits), out, resume=True)
    out.write_bytes(before[: len(before) // 2])
    with pytest.raises(ProblemError, match="damaged"):
        run(settings_for(digits), out, resume=True)


DAMAGES = {
    "None": None,
    "text": "x",
    "list": [],
    "dict": {},
    "negative": -1,
    "true": True,
    "nan": float("nan"),
    "huge": 10**30,
    "tensor": torch.zeros(7),
}


def places_of(content, at=()):
    """Every place of a checkpoint: lists and dicts, and what is in them."""
    inside = content.items() if isinstance(content, dict) else enumerate(content)
    for name, value in inside:
        yield (*at, name)
        if isinstance(value, dict | list) and name not in {"versions", "config"}:
            yield from places_of(value, (*at, name))


def replaced(content, place, value):
    made = copy.deepcopy(content)
    inner = made
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return made


def is_shown_alone(place, value):
    """Whether a value is only shown, or could be: rates and losses of the past, settings."""
    if place[0] in {"config", "provenance"}:
        return len(place) > 1 or isinstance(value, dict)
    past = place[0] == "history" and place[-1] in {"lr", "train_loss"}
    future = place[-1] == "lr" and place[0] == "optimizer"  # set before each epoch
    number = type(value) in {int, float} and math.isfinite(value)
    return place == ("extra",) or ((past or future) and number)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_checkpoint_with_another_value_anywhere_is_never_continued(digits, tmp_path, dtype):
    out = tmp_path / "c.pt"
    run(settings_for(digits, epochs=2, dtype=dtype), out)
    content = torch.load(out, weights_only=True)
    longer, tried = settings_for(digits, epochs=3, dtype=dtype), 0
    for place in places_of(content):
        old = content
        for name in place:
            old = old[name]
        damages = dict(DAMAGES)
        if isinstance(old, torch.Tensor):
            other = torch.float32 if dtype == "float64" else torch.float64
            damages = {name: damages[name] for name in ("None", "text", "huge", "tensor")}
            damages |= {"type": old.to(other), "shape": old[None], "integers": old.long()}
            damages |= {"NaN": torch.full_like(old, torch.nan), "sparse": old.to_sparse()}
            damages |= {"nowhere": old.to("meta")}
        for name, value in damages.items():
            if is_shown_alone(place, value) or repr(value) == repr(old):
                continue
            torch.save(replaced(content, place, value), out)
            before, tried = out.read_bytes(), tried + 1
            with pytest.raises((StoreError, ProblemError)) as error:
                run(longer, out, resume=True)
            assert "\n" not in str(error.value)
            assert out.read_bytes() == before, (place, name)
    assert tried > 300


def test_the_same_run_makes_the_same_file(digits, tmp_path, monkeypatch):
    run(settings_for(digits, epochs=2), tmp_path / "a.pt")
    later = SimpleNamespace(
        UTC=dt.UTC, datetime=SimpleNamespace(now=lambda zone: dt.datetime(2100, 1, 1, tzinfo=zone))
    )
    monkeypatch.setattr(records, "dt", later)
    assert records.Provenance().created.startswith("2100")
    run(settings_for(digits, epochs=2), tmp_path / "b.pt")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_other_names_of_the_same_data_are_the_same_run(digits, tmp_path, monkeypatch):
    out = tmp_path / "c.pt"
    monkeypatch.chdir(digits.parent)
    names = [digits.name, f"./{digits.name}", str(digits), f"../{digits.parent.name}/{digits.name}"]
    for epochs, name in enumerate(names, 1):
        run(settings_for(name, epochs=epochs), out, resume=True)
    monkeypatch.chdir("/")  # where the stored name is that of nothing
    assert run(settings_for(digits, epochs=5), out, resume=True).epochs == 5
    with np.load(digits) as arrays:
        np.savez(digits, **(dict(arrays) | {"x_train": arrays["x_train"] + 1}))
    with pytest.raises(StoreError, match="data_sha256"):
        run(settings_for(digits, epochs=6), out, resume=True)


def test_an_existing_file_is_only_replaced_when_asked(digits, tmp_path):
    settings, out = settings_for(digits, epochs=1), tmp_path / "c.pt"
    assert run(settings, out, resume=True).epochs == 1  # no file: it starts
    with pytest.raises(StoreError, match="--resume continues it, --overwrite replaces it"):
        run(settings, out)
    with pytest.raises(ConfigError, match="exclude each other"):
        run(settings, out, resume=True, overwrite=True)
    assert run(settings_for(digits, epochs=1, seed=1), out, overwrite=True).epochs == 1


def test_bad_places_to_write_fail_before_training(digits, tmp_path):
    settings = settings_for(digits)
    (tmp_path / "folder.pt").mkdir()
    for place, error, message in (
        (tmp_path / "none" / "c.pt", StoreError, "No such file .* in a folder that exists"),
        (digits / "c.pt", StoreError, "Not a directory"),
        (tmp_path / "folder.pt", StoreError, "is a folder"),
        (tmp_path / "c.safetensors", ConfigError, r"\.pt or \.pth"),
    ):
        with pytest.raises(error, match=message):
            run(settings, place)


def test_a_full_disk_keeps_the_last_saved_epoch(digits, tmp_path, monkeypatch):
    settings, out, replace, calls = settings_for(digits), tmp_path / "c.pt", os.replace, []

    def fills_up(source, target):
        calls.append(target)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("os.replace", fills_up)
    with pytest.raises(WriteError, match="No space left"):
        run(settings, out)
    monkeypatch.undo()
    assert checkpoints.read(out)["epoch"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.pt", "clouds.npz"]
    run(settings, out, resume=True)
    run(settings, tmp_path / "whole.pt")
    assert numbers_of(out) == numbers_of(tmp_path / "whole.pt")


def test_checkpoint_says_where_it_came_from(digits, tmp_path):
    run(settings_for(digits, epochs=2), tmp_path / "c.pt")
    content = checkpoints.read(tmp_path / "c.pt")
    assert (content["format"], content["version"]) == ("hessrmt/checkpoint", 1)
    assert TrainConfig.model_validate(content["config"]) == settings_for(digits, epochs=2)
    assert [entry["epoch"] for entry in content["history"]] == [1, 2]
    assert str(digits) in content["provenance"]["data"]
    assert {"versions", "device"} <= content["provenance"].keys()


# averages of iterates


def flat(parameters) -> np.ndarray:
    return torch.cat([value.detach().double().flatten() for value in parameters]).numpy().copy()


def gaussian(count: int, *shape: int, name: str = "samples") -> Dataset:
    x = rng.stream(3, name).normal(size=(count, *shape)) * 2 + 1
    y = rng.stream(3, name, "labels").integers(0, 3, count)
    return Dataset("noise", "train", x, y, 3, "noise")


@pytest.mark.parametrize(("start", "dtype"), [(0, "float32"), (37, "float32"), (37, "float64")])
def test_it_is_the_mean_of_the_iterates(digits, start, dtype):
    samples = data.load(str(digits), "train")
    settings = settings_for(digits, model="mlp2", lr=0.05, dtype=dtype)
    model = models.build("mlp2", samples.input_shape, 2, 0).to(dtype=getattr(torch, dtype))
    average, iterates = IterateAverage(model, start), []

    def step(trained):
        average.update(trained)
        iterates.append(flat(trained.parameters()))

    train(model, LOSS, samples, settings, device=CPU, on_step=step)
    assert average.steps == len(iterates) == 8 * 10
    kept = np.array(iterates[start:])
    assert average.count == len(kept)
    # a running mean of n numbers makes n roundings of the size ε·max|w|, as does np.mean
    bound = 2 * len(kept) * EPS * np.abs(kept).max()
    found = flat(average.parameters().values())
    np.testing.assert_allclose(found, kept.mean(axis=0), rtol=0, atol=bound)
    distance = np.linalg.norm(kept.mean(axis=0) - iterates[-1])
    assert average.distance(model) == pytest.approx(distance, abs=bound * kept.shape[1] ** 0.5)
    other = models.build("mlp2", samples.input_shape, 2, 1).to(dtype=getattr(torch, dtype))
    average.copy_to(other)
    assert all(value.dtype == getattr(torch, dtype) for value in other.parameters())
    rounding = np.finfo(dtype).eps * np.abs(kept).max()
    np.testing.assert_allclose(flat(other.parameters()), found, rtol=0, atol=rounding)


def test_a_continued_average_is_the_same_bit_for_bit():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    whole, parts = IterateAverage(model, 2), IterateAverage(model, 2)
    for step in range(12):
        with torch.no_grad():
            for parameter in model.parameters():
                generator = rng.torch_generator(0, "step", step, *parameter.shape)
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        whole.update(model)
        parts.update(model)
        saved = copy.deepcopy(parts.state_dict())
        parts = IterateAverage(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), 2)
        parts.load_state_dict(saved)
    assert parts.count == whole.count == 10
    for name, value in whole.parameters().items():
        assert torch.equal(parts.parameters()[name], value)
    before = whole.state_dict()
    whole.update(model)
    assert not torch.equal(whole.state_dict()["mean"]["0.weight"], before["mean"]["0.weight"])


def test_what_cannot_be_averaged_is_refused():
    model = nn.Linear(2, 2)
    late, narrow = IterateAverage(model, 5), IterateAverage(nn.Linear(2, 3), 5)
    for _ in range(5):
        late.update(model)
    for use, message in (
        *((partial(IterateAverage, model, s), "start must be") for s in (-1, 1.5, True, None)),
        (lambda: IterateAverage(nn.ReLU()), "no parameters to average"),
        (late.parameters, "5 steps were made and the average begins after"),
        (lambda: late.copy_to(model), "5 steps were made"),
        (lambda: late.distance(model), "5 steps were made"),
        (lambda: narrow.load_state_dict(late.state_dict()), "differ in bias, weight"),
        (lambda: late.load_state_dict({"weight": torch.zeros(2)}), "no state of an average"),
        (
            lambda: IterateAverage(model, 4).load_state_dict(late.state_dict()),
            "begins after step 5, this one after step 4",
        ),
    ):
        with pytest.raises(ProblemError, match=message):
            use()
    late.update(model)
    with pytest.raises(ProblemError, match="differ in bias, weight"):
        late.copy_to(nn.Linear(3, 3))
    for value in (torch.nan, 0.0):  # once NaN, always NaN
        nn.init.constant_(model.weight, value)
        late.update(model)
    with pytest.raises(NonFiniteError, match="the average of weight is NaN or infinite"):
        late.parameters()


# BatchNorm measured anew


def network() -> nn.Sequential:
    with rng.torch_seeded(0, "batchnorm"):
        first = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)
        second = nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.Flatten()
        return nn.Sequential(*first, *second, nn.Linear(12, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize(("batch", "order"), [(70, 1), (16, 1), (7, -1)])
def test_statistics_are_those_of_the_whole_training_set(batch, order):
    """Every layer's input, computed of all samples at once by hand, layer by layer."""
    samples = gaussian(70, 2, 6, 6)
    given = replace(samples, x=samples.x[::order].copy(), y=samples.y[::order].copy())
    model = network().double().train()
    assert recompute_batchnorm(model, given, device=CPU, dtype="float64", batch=batch) == 3
    assert model.training
    values, _ = samples.tensors(slice(None))
    for layer in model.eval():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            channels = values.transpose(0, 1).flatten(1).detach().numpy()
            mean, variance = channels.mean(axis=1), channels.var(axis=1, ddof=1)
            # sums of n terms of the size of the largest value, in two orders
            scale = channels.shape[1] * EPS * np.abs(channels).max()
            found = layer.running_mean.numpy(), layer.running_var.numpy()
            np.testing.assert_allclose(found[0], mean, rtol=0, atol=2 * scale)
            atol = 8 * scale * np.abs(channels).max()
            np.testing.assert_allclose(found[1], variance, rtol=0, atol=atol)
        values = layer(values)


def test_networks_without_running_statistics_are_left_alone():
    samples = gaussian(20, 5)
    plain = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=False))
    before = copy.deepcopy(plain.state_dict())
    assert recompute_batchnorm(plain, samples, device=CPU) == 0
    assert all(torch.equal(before[k], v) for k, v in plain.state_dict().items())


def test_statistics_that_do_not_exist_are_refused():
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    with pytest.raises(ProblemError, match="BatchNorm '1' saw 1 value per channel"):
        recompute_batchnorm(model, gaussian(1, 5), device=CPU)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match="what reaches BatchNorm '1' is NaN or infinite"):
        recompute_batchnorm(model, gaussian(20, 5), device=CPU)
    assert bool(torch.isfinite(model[1].running_var).all())


# the command


def test_the_command_names_the_checkpoint_after_the_model(digits, tmp_path, cli):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef tiny():\n    return torch.nn.Linear(6, 2)\n"
    )
    (tmp_path / "run.toml").write_text(f'model = "logistic"\ndata = "{digits}"\nepochs = 5\n')
    for words, name in (([], "logistic.pt"), (["--model", "mine.py:tiny"], "tiny.pt")):
        done = cli("train", "--config", "run.toml", "--epochs", 2, *words, "--json")
        assert done.returncode == 0
        answer = json.loads(done.stdout)
        assert answer["epochs"] == answer["config"]["epochs"] == 2
        assert answer["sha256"] == checkpoints.sha256(tmp_path / name)
        assert str(digits) in done.stderr


def test_a_bad_setting_of_the_command(refused, digits):
    refused(["train", "--data", digits, "--lr", "-1"], ["lr"])


# checkpoints of every kind of training


IDENTITY = {"model": "mine", "epochs": 3}
EXTRA = {"averages": {"tail": 1.0}, "measured": [{"epoch": 1}]}
MEMBER = {"phase": 1, "measured": {"epoch": [1.0]}, "kept": None, "seconds": 2.0}


def saved(path, **extra):
    """A checkpoint after one epoch; what its file holds."""
    state = TrainState(1, {"w": torch.ones(2)}, {"state": {}}, ({"epoch": 1, "lr": 0.1},))
    with TrainingFile(path, IDENTITY) as file:
        file.save(state, **extra)
    return checkpoints.read(path)


def as_trajectory(content):
    names = ("version", "identity", "epoch", "state_dict", "optimizer", "history")
    return {"format": "hessrmt/trajectory", **{k: content[k] for k in names}, **content["extra"]}


def as_member(content):
    state = {name: content[name] for name in ("epoch", "optimizer", "history")}
    return {
        "format": "hessrmt/member",
        "version": 1,
        "identity": json.dumps(content["identity"]),
        "state": {**state, "model": content["state_dict"]},
        **content["extra"],
    }


@pytest.mark.parametrize(("older", "extra"), [(as_trajectory, EXTRA), (as_member, MEMBER)])
def test_checkpoints_of_the_first_versions_are_continued(tmp_path, older, extra):
    path = tmp_path / "run.pt"
    torch.save(older(saved(path, **extra)), path)
    with TrainingFile(path, IDENTITY, resume=True) as file:
        assert (file.start.epoch, file.start.history) == (1, ({"epoch": 1, "lr": 0.1},))
        assert torch.equal(file.start.model["w"], torch.ones(2))
        assert file.extra == extra
    with pytest.raises(StoreError, match="model"):
        TrainingFile(path, IDENTITY | {"model": "other"}, resume=True)


@pytest.mark.parametrize(
    "part", ["format", "version", "identity", "state_dict", "optimizer", "epoch", "history"]
)
def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path, part):
    path = tmp_path / "run.pt"
    content = saved(path)
    torch.save({k: v for k, v in content.items() if k != part}, path)
    with pytest.raises(StoreError, match="is not a checkpoint written by hessrmt"):
        TrainingFile(path, IDENTITY, resume=True)
    for version, said in (("a", "is not a checkpoint written by"), (99, "by a newer hessrmt")):
        torch.save(content | {"version": version}, path)
        with pytest.raises(StoreError, match=said):
            TrainingFile(path, IDENTITY, resume=True)


@pytest.mark.parametrize("part", ["identity", "config", "provenance", "extra", "history"])
def test_a_checkpoint_whose_parts_share_parts_is_refused(tmp_path, part):
    """A message that says what differs would show 2⁴⁰ of them."""
    path = tmp_path / "run.pt"
    content, shared, around = saved(path), {}, {}
    for _ in range(40):
        shared = {"a": shared, "b": shared}
    around["around"] = around
    for inside in (shared, around):
        changed = [inside] if part == "history" else content[part] | {"model": inside}
        torch.save(content | {part: changed}, path)
        for read in (partial(TrainingFile, path, IDENTITY, resume=True), lambda: hr.load(path)):
            with pytest.raises(StoreError, match="is not a checkpoint written by hessrmt"):
                read()


def test_what_a_model_keeps_beside_its_tensors_has_no_numbers(tmp_path):
    path = tmp_path / "run.pt"
    content = saved(path)
    with pytest.raises(StoreError, match="is not a checkpoint written by hessrmt"):
        hr.load(path)  # its history has no loss
    content["history"] = [{"epoch": 1, "lr": 0.1, "train_loss": 0.5}]
    torch.save(content | {"state_dict": content["state_dict"] | {"_extra_state": {}}}, path)
    assert hr.load(path).numbers == 2


def test_only_training_itself_is_continued_with_more_epochs(tmp_path):
    path = tmp_path / "run.pt"
    saved(path)
    TrainingFile(path, IDENTITY | {"epochs": 4}, resume=True, longer=True).close()
    with pytest.raises(StoreError, match=r"epochs \(3 in the file, 4 now\)"):
        TrainingFile(path, IDENTITY | {"epochs": 4}, resume=True)
