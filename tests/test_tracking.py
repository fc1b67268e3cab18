"""Curvature along a training loop: numbers of the weights of that step; training untouched."""

import copy

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import hessrmt as hr
from hessrmt.errors import (
    ConfigError,
    DataError,
    HessrmtWarning,
    ProblemError,
    StoreError,
)

RATE = 0.5


@pytest.fixture
def data():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(20, 5, generator=draw), torch.arange(20) % 3


@pytest.fixture
def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def trained(model, data, tracker=None, steps=7, start=0, **numbers):
    """Gradient descent; the models after each step."""
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    found = []
    for step in range(start, steps):
        found.append(copy.deepcopy(model))
        if tracker is not None:
            tracker(step, **numbers)
        optimiser.zero_grad()
        functional.cross_entropy(model(data[0]), data[1]).backward()
        optimiser.step()
    return found


def dense(model, data):
    """All eigenvalues by LAPACK from torch's own double backward, in float64."""
    model = copy.deepcopy(model).double()
    parameters = dict(model.named_parameters())
    theta = torch.cat([p.detach().reshape(-1) for p in parameters.values()])

    def loss(flat):
        pieces = flat.split([p.numel() for p in parameters.values()])
        named = {n: x.view(p.shape) for (n, p), x in zip(parameters.items(), pieces, strict=True)}
        outputs = torch.func.functional_call(model, named, (data[0].double(),))
        return functional.cross_entropy(outputs, data[1])

    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, theta)).numpy()


def test_a_closed_tracker_writes_nothing(model, data, tmp_path):
    path = tmp_path / "run.h5"
    problem = hr.Problem(model, "cross-entropy", data)
    tracker = hr.Tracker(problem, out=path)
    tracker(0)
    tracker.close()
    with hr.Tracker(problem, out=path, resume=True) as other:
        other(5)
        with pytest.raises(StoreError, match=r"closed; make another: resume=True"):
            tracker(1)
    assert hr.load(path).steps.tolist() == [0, 5]


def test_a_tracker_leaves_what_has_taken_its_place(model, data, tmp_path):
    path = tmp_path / "run.h5"
    problem = hr.Problem(model, "cross-entropy", data)
    with hr.Tracker(problem, out=path) as tracker:
        tracker(0)
        with pytest.raises(StoreError, match="another process is writing"):
            tracker.track.save(path, overwrite=True)
        path.unlink()
        tracker(1)
        assert hr.load(path).steps.tolist() == [0, 1]
        path.unlink()
        path.write_text("of someone else")
        with pytest.warns(HessrmtWarning, match=r"replaced by another program; the track is in"):
            tracker(2)
        tracker(3)
    assert path.read_text() == "of someone else"
    (moved,) = tmp_path.glob("run-*.h5")
    assert hr.load(moved).steps.tolist() == [0, 1, 2, 3]
    assert not list(tmp_path.glob(".*"))


def test_every_number_is_that_of_the_weights_of_its_step(model, data, tmp_path):
    untouched = trained(copy.deepcopy(model), data)
    path = tmp_path / "run.h5"
    what = ("edge", "trace", "rank", "density")
    problem = hr.Problem(model, "cross-entropy", data)
    with hr.Tracker(problem, every=3, what=what, out=path, products=60) as tracker:
        passed = trained(model, data, tracker, lr=RATE)
    for one, other in zip(passed, untouched, strict=True):  # bit for bit
        assert all(map(torch.equal, one.parameters(), other.parameters()))
    track = hr.load(path)
    assert track.steps.tolist() == [0, 3, 6]
    assert track.numbers["lr"].tolist() == [RATE] * 3
    for place, step in enumerate(track.steps):
        levels = dense(untouched[step], data)
        size = np.abs(levels).max()
        bounds = track.largest_bound[place], track.smallest_bound[place]
        rounding = 1e-12 * size
        assert abs(track.largest[place] - levels[-1]) < bounds[0] + rounding
        assert abs(track.smallest[place] - levels[0]) < bounds[1] + rounding
        assert abs(track.trace[place] - levels.sum()) < 5 * track.trace_error[place]
        assert 0 < track.trace_error[place] < 0.2 * levels.sum()
        assert track.rank[place] == np.count_nonzero(np.abs(levels) > track.noise_floor[place])
        assert track.loss[place] == pytest.approx(
            functional.cross_entropy(untouched[step](data[0]), data[1]).item(), rel=1e-6
        )
        known = np.isfinite(track.nodes[place])
        moment = (track.weights[place] * np.where(known, track.nodes[place], 0)).sum(axis=1)
        assert moment.mean() == pytest.approx(levels.mean(), abs=0.2 * size)
        assert track.weights[place].sum(axis=1) == pytest.approx(np.ones(4), rel=1e-12)
    assert [row["step"] if "step" in row else row["steps"] for row in track.rows()] == [0, 3, 6]
    assert len(track.plot().axes) == 5  # no empty panel


def test_buffers_are_those_of_the_step_and_modes_those_of_the_problem(data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).eval()
    tracker = hr.Tracker(hr.Problem(model, "cross-entropy", data))
    trained(model.train(), data, tracker, steps=3)
    model.eval()
    tracker.measure(3)
    assert model[1].running_mean.abs().sum() > 0
    fresh = hr.extremal_eigenvalues(hr.Problem(model, "cross-entropy", data), 1, 1)
    assert tracker.track.largest[-1] == pytest.approx(fresh.values[-1], rel=1e-10)


@pytest.mark.parametrize("kind", ["penalty", "weights of the loss", "parameters elsewhere"])
def test_what_the_loss_is_made_of_is_that_of_the_step(model, data, kind):
    class Elsewhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3)
            self.kept = [self.layer.weight]

        def forward(self, x):
            return torch.tanh(x @ self.kept[0].T + self.layer.bias)

    model = Elsewhere() if kind == "parameters elsewhere" else model
    loss = nn.CrossEntropyLoss(weight=torch.ones(3)) if "loss" in kind else "cross-entropy"
    how = {"l2": 0.3} if kind == "penalty" else {}
    tracker = hr.Tracker(hr.Problem(model, loss, data, **how))
    tracker(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.7)
        if isinstance(loss, nn.Module):
            loss.weight[1] = 5.0
    tracker(1)
    fresh = hr.extremal_eigenvalues(hr.Problem(model, loss, data, **how), 1, 0)
    assert tracker.track.largest[1] == pytest.approx(fresh.values[-1], rel=1e-10)
    assert tracker.track.largest[0] != pytest.approx(fresh.values[-1], rel=1e-3)


def test_a_training_that_was_resumed(model, data, tmp_path):
    path, problem = tmp_path / "run.h5", hr.Problem(model, "cross-entropy", data)
    with hr.Tracker(problem, every=2, out=path) as tracker:
        trained(model, data, tracker, steps=3, lr=RATE)
        with pytest.raises(StoreError, match="another process"):
            hr.Tracker(problem, out=path, overwrite=True)
    with pytest.raises(StoreError, match="exists"):
        hr.Tracker(problem, out=path)
    with pytest.raises(StoreError, match="another configuration"):
        hr.Tracker(problem, out=path, resume=True, what=("edge", "trace"))
    others = hr.Problem(model, "cross-entropy", (data[0] + 1, data[1]))
    with pytest.raises(StoreError, match="data_sha256"):
        hr.Tracker(others, out=path, resume=True)
    before = hr.load(path)
    with hr.Tracker(problem, every=2, out=path, resume=True) as tracker:
        assert not tracker(2)  # it is there
        assert tracker(4)
    track = hr.load(path)
    assert track.steps.tolist() == [0, 2, 4]
    assert track.largest[:2].tolist() == before.largest.tolist()
    np.testing.assert_equal(track.numbers["lr"], [RATE, RATE, np.nan])


def test_what_is_refused(model, data, tmp_path):
    problem = hr.Problem(model, "cross-entropy", data)
    with pytest.raises(ConfigError, match="unknown what 'edges'"):
        hr.Tracker(problem, what=("edges",))
    with pytest.raises(ConfigError, match="every"):
        hr.Tracker(problem, every=0)
    tracker = hr.Tracker(problem)
    with pytest.raises(StoreError, match="nothing has been measured"):
        tracker.track.plot()
    with pytest.raises(ConfigError, match="step"):
        tracker(-1)
    with pytest.raises(DataError, match="lr"):
        tracker(0, lr="fast")
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(ProblemError, match="NaN"):
        tracker(0)
    model[0].weight = nn.Parameter(torch.ones(4, 6))
    with pytest.raises(ProblemError, match="no longer what it was"):
        tracker(0)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["schema"] = "hessrmt/result"
    with pytest.raises(StoreError):
        hr.Tracker(problem, out=tmp_path / "other.h5", resume=True)


def test_as_callback_of_transformers(data, tmp_path):
    """After each optimiser step, by the trainer's own count and rate."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x, labels=None):
            logits = self.layer(x)
            loss = None if labels is None else functional.cross_entropy(logits, labels)
            return {"loss": loss, "logits": logits}

    network = Network()
    problem = hr.Problem(network.layer, "cross-entropy", data)
    tracker = hr.Tracker(problem, every=2)
    samples = [{"x": x, "labels": y} for x, y in zip(*data, strict=True)]
    how = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, report_to=[], use_cpu=True, learning_rate=0.1
    )
    callbacks = [tracker.huggingface()]
    transformers.Trainer(network, how, train_dataset=samples, callbacks=callbacks).train()
    assert tracker.track.steps.tolist() == [0, 2, 4]
    assert (tracker.track.numbers["lr"] >= 0).all()
    assert np.isnan(tracker.track.threshold).all()  # AdamW scales the gradient
    assert tracker.track.provenance.config["optimiser"] == "AdamW"
    assert tracker.track.numbers["minibatches"].tolist() == [3, 3, 3]  # 20 samples, 8 at a time


def test_as_callback_of_lightning(data):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def training_step(self, batch, _):
            return functional.cross_entropy(self.layer(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=RATE, momentum=0.9)

    module = Module()
    tracker = hr.Tracker(hr.Problem(module.layer, "cross-entropy", data), every=2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=5)
    trainer = lightning.Trainer(
        max_steps=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=[tracker.lightning()],
    )
    trainer.fit(module, loader)
    assert tracker.track.steps.tolist() == [0, 2, 4]
    assert tracker.track.numbers["momentum"].tolist() == [0.9] * 3
    assert tracker.track.threshold == pytest.approx([2 * 1.9 / RATE] * 3, rel=1e-15)
    assert tracker.track.provenance.config["optimiser"] == "SGD"
    assert tracker.track.numbers["minibatches"].tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.5, "dampening": 0.3},
    ],
)
@pytest.mark.parametrize("side", [0.99, 1.01])
def test_the_threshold_is_where_torch_begins_to_diverge(how, side):
    """Gradient descent on λθ²/2 shrinks below the threshold and grows above it."""
    told = {"lr": 0.3, **{name: float(value) for name, value in how.items()}}
    problem = hr.Problem(nn.Linear(1, 1), "mse", (torch.ones(1, 1), torch.ones(1, 1)))
    tracker = hr.Tracker(problem)
    tracker(0, **told)
    curvature = side * float(tracker.track.threshold[0])
    theta = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimiser = torch.optim.SGD([theta], lr=0.3, **how)
    for _ in range(2000):  # at 1 % from the threshold a factor of e or more in some hundred steps
        theta.grad = curvature * theta.detach()
        optimiser.step()
    assert (abs(theta.item()) < 1) == (side < 1)
