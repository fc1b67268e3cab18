"""Training: the published schedule, exact resumption, honest failures."""

import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hessrmt import rng
from hessrmt.config import TrainConfig, load_settings
from hessrmt.errors import (
    ConfigError,
    DataError,
    NonFiniteError,
    ProblemError,
    StoreError,
    WriteError,
)
from hessrmt.problems import checkpoints, data, losses, models
from hessrmt.runs.training import run
from hessrmt.training.protocol import evaluate, learning_rate, train

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


def settings_for(digits, **changes) -> TrainConfig:
    given = {"model": "logistic", "data": str(digits), "epochs": 8, "batch": 16, "device": "cpu"}
    return TrainConfig.model_validate(given | changes)


def assert_same_run(one: Path, other: Path):
    """Two checkpoints agree bit for bit, in all but where and when they were made."""
    a, b = (checkpoints.read(path) for path in (one, other))
    for key in ("state_dict", "optimizer", "epoch", "history", "config"):
        assert_same(a[key], b[key], key)


def assert_same(a, b, where):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}/{i}")
    else:
        assert a == b, where


# the protocol


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 3e-3), (149, 3e-3), (150, 3e-3), (210, (3e-3 + 3e-5) / 2), (270, 3e-5), (299, 3e-5)],
)
def test_learning_rate_of_the_published_protocol(epoch, rate):
    assert learning_rate(epoch, TrainConfig()) == pytest.approx(rate, rel=4 * np.finfo(float).eps)


def test_learning_rate_is_cut_not_squeezed_by_fewer_epochs():
    assert learning_rate(160, TrainConfig(epochs=161)) == learning_rate(160, TrainConfig())


def test_learning_rate_may_step():
    step = TrainConfig(decay_start=5, decay_end=5)
    assert [learning_rate(e, step) for e in (4, 5, 6)] == [step.lr, step.lr, step.final_lr]


def test_the_shipped_file_is_the_default_protocol():
    assert load_settings(TrainConfig, ROOT / "configs" / "train-mlp3-mnist.toml") == TrainConfig()


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
    train(model, losses.resolve("cross-entropy"), samples, settings, device=CPU)
    # every step adds the round-off of sums of at most 16 terms of size |x| (momentum: x 10)
    bound = steps * 16 * 10 * np.finfo(float).eps * np.abs(x).max()
    for ours, reference in zip(model.parameters(), (W, b), strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), reference, rtol=0, atol=bound)


def test_evaluate_weights_batches_by_size(digits):
    samples = data.load(str(digits), "train")
    model = models.build("logistic", samples.input_shape, samples.outputs, 0).double()
    loss = losses.resolve("cross-entropy")
    x, y = samples.tensors(slice(None), torch.float64)
    whole = float(loss(model(x), y).detach())
    hits = float((model(x).argmax(1) == y).double().mean())
    mean, accuracy = evaluate(model, loss, samples, device=CPU, dtype="float64", batch=64)
    # two orders of summation of 150 terms
    assert mean == pytest.approx(whole, rel=150 * np.finfo(float).eps)
    assert accuracy == hits


def test_evaluation_mode_is_used_and_left_again(digits):
    samples = data.load(str(digits), "train")
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 2)).train()
    loss = losses.resolve("cross-entropy")
    x, y = samples.tensors(slice(None), torch.float32)
    mean, _ = evaluate(model, loss, samples, device=CPU)
    assert mean == float(loss(model[1](x), y).detach())
    assert model.training


def test_regression_has_no_accuracy(tmp_path):
    draw = rng.stream(1, "test regression")
    np.savez(tmp_path / "r.npz", x=draw.normal(size=(20, 3)), y=draw.normal(size=(20, 2)))
    settings = TrainConfig(
        model="logistic", data=str(tmp_path / "r.npz"), loss="mse", epochs=2, batch=8, device="cpu"
    )
    result = run(settings, tmp_path / "r.pt")
    assert result.train_accuracy is None
    assert result.test_loss is None
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
    assert evaluate(twin, losses.resolve("cross-entropy"), test, device=CPU) == (
        result.test_loss,
        result.test_accuracy,
    )


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
    assert_same_run(killed, whole)


class Interrupt:
    """Presses Ctrl-C after some epochs."""

    def __init__(self, epochs):
        self.epochs = epochs

    def begin(self, origin, device, done, epochs):
        pass

    def epoch(self, entry):
        if entry["epoch"] == self.epochs:
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
        run(settings, stopped, observer=Interrupt(5), save_every=2)
    assert checkpoints.read(stopped)["epoch"] == 4
    run(settings, stopped, resume=True)
    run(settings, whole)
    assert_same_run(stopped, whole)


def test_a_finished_run_returns_at_once_and_can_be_extended(digits, tmp_path):
    short, longer, whole = settings_for(digits, epochs=3), settings_for(digits), tmp_path / "w.pt"
    out = tmp_path / "c.pt"
    first = run(short, out)
    again = run(short, out, resume=True)
    assert (again.sha256, again.epochs) == (first.sha256, 3)
    assert (again.train_loss, again.test_accuracy) == (first.train_loss, first.test_accuracy)
    run(longer, out, resume=True)
    run(longer, whole)
    assert_same_run(out, whole)


def test_resume_with_no_file_starts(digits, tmp_path):
    assert run(settings_for(digits, epochs=1), tmp_path / "c.pt", resume=True).epochs == 1


def test_resume_refuses_other_settings_data_and_files(digits, tmp_path):
    out = tmp_path / "c.pt"
    run(settings_for(digits), out)
    before = out.read_bytes()
    with pytest.raises(ConfigError, match=r"lr was 0\.003, now 0\.1; seed was 0, now 1"):
        run(settings_for(digits, lr=0.1, seed=1, epochs=9), out, resume=True)
    with pytest.raises(ConfigError, match="epochs was 8, now 2"):
        run(settings_for(digits, epochs=2), out, resume=True)
    with np.load(digits) as arrays:
        np.savez(digits, **(dict(arrays) | {"x_train": arrays["x_train"] + 1}))
    with pytest.raises(DataError, match="trained on other samples"):
        run(settings_for(digits), out, resume=True)
    assert out.read_bytes() == before

    torch.save(nn.Linear(2, 2).state_dict(), out)
    with pytest.raises(ConfigError, match="not a checkpoint written by hessrmt train"):
        run(settings_for(digits), out, resume=True)
    out.write_bytes(before[: len(before) // 2])
    with pytest.raises(ProblemError, match="damaged"):
        run(settings_for(digits), out, resume=True)


def test_an_existing_file_is_only_replaced_when_asked(digits, tmp_path):
    settings, out = settings_for(digits, epochs=1), tmp_path / "c.pt"
    run(settings, out)
    with pytest.raises(ConfigError, match="--resume, replace it with --overwrite"):
        run(settings, out)
    with pytest.raises(ConfigError, match="exclude each other"):
        run(settings, out, resume=True, overwrite=True)
    assert run(settings_for(digits, epochs=1, seed=1), out, overwrite=True).epochs == 1


def test_bad_places_to_write_fail_before_training(digits, tmp_path):
    settings = settings_for(digits)
    with pytest.raises(StoreError, match="cannot write into the folder"):
        run(settings, tmp_path / "none" / "c.pt")
    with pytest.raises(StoreError, match="cannot write into the folder"):
        run(settings, digits / "c.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(StoreError, match="it is a folder"):
        run(settings, tmp_path / "folder.pt")
    with pytest.raises(ConfigError, match=r"\.pt or \.pth"):
        run(settings, tmp_path / "c.safetensors")


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
    assert_same_run(out, tmp_path / "whole.pt")


def test_checkpoint_says_where_it_came_from(digits, tmp_path):
    run(settings_for(digits, epochs=2), tmp_path / "c.pt")
    content = checkpoints.read(tmp_path / "c.pt")
    assert (content["format"], content["version"]) == ("hessrmt/checkpoint", 1)
    assert TrainConfig.model_validate(content["config"]) == settings_for(digits, epochs=2)
    assert [entry["epoch"] for entry in content["history"]] == [1, 2]
    assert str(digits) in content["provenance"]["data"]
    assert {"versions", "created", "device"} <= content["provenance"].keys()
