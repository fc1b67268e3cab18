"""The normalised loss in a training loop, against the network that ``normalize`` makes."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from hessrmt import rng
from hessrmt.errors import DataError, GeneralizationError, NonFiniteError
from hessrmt.generalization import NormalizedLoss, normalize, output_normalize

SINGLE = 1e-6
"""Relative, of losses from float32 outputs: ε = 6e-8 and some ten terms to a sum."""


@pytest.fixture
def data():
    draw = rng.stream(0, "test clouds")
    y = draw.integers(0, 3, 150)
    x = draw.normal(size=(150, 4)) + 2.0 * np.eye(4)[y]
    return torch.from_numpy(x).float(), torch.from_numpy(y)


@pytest.fixture
def model():
    with rng.torch_seeded(0, "test network"):
        return nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3)
        )


def train(model, data, steps):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()


def test_it_follows_a_training(model, data):
    monitor = NormalizedLoss(model)
    with rng.torch_seeded(0, "test training"):
        for _ in range(4):
            train(model, data, 5)
            value = monitor(*data)
            net = normalize(model, data[0])
            with torch.no_grad():
                expected = functional.cross_entropy(net.model(data[0]), data[1])
            assert value == pytest.approx(float(expected), rel=SINGLE)
            entry = monitor.history[-1]
            assert entry.factors == pytest.approx(net.factors, rel=1e-13)
            assert entry.normalized_loss == value
    assert [entry.step for entry in monitor.history] == [0, 1, 2, 3]
    assert len({entry.product for entry in monitor.history}) == 4
    assert monitor.history[0].loss > monitor.history[-1].loss
    assert entry.normalized_margin == entry.margin / entry.product
    outputs = model.eval()(data[0]).detach()
    assert entry.error == pytest.approx(float((outputs.argmax(1) != data[1]).float().mean()))


def test_it_leaves_the_training_as_it_is(model, data):
    model[3].eval()
    total = model(data[0]).sum()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    monitor = NormalizedLoss(model)
    monitor(*data)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    monitor(DataLoader(TensorDataset(*data), batch_size=64))
    assert [m.training for m in model] == [True, True, True, False, True]
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    total.backward()  # nothing that the graph needs was written to
    assert torch.isfinite(model[0].weight.grad).all()


def test_a_loader_gives_what_one_batch_does(model, data):
    monitor = NormalizedLoss(model, norm=1)
    whole = monitor(data)  # a pair
    batches = DataLoader(TensorDataset(*data), batch_size=64)  # 64 + 64 + 22
    assert monitor(batches) == pytest.approx(whole, rel=SINGLE)
    assert monitor(iter(batches)) == pytest.approx(whole, rel=SINGLE)
    assert [entry.samples for entry in monitor.history] == [150] * 3
    assert NormalizedLoss(model, norm=1)(iter(batches)) == pytest.approx(whole, rel=SINGLE)


def test_data_are_not_copied(model, data):
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].data_ptr()))
    monitor = NormalizedLoss(model)
    monitor(*data)
    seen.clear()
    monitor(*data)
    assert seen == [data[0].data_ptr()]


def test_every_tenth_call_measures(model, data):
    monitor = NormalizedLoss(model, every=10)
    values = []
    for _ in range(21):
        values.append(monitor(*data))
        train(model, data, 1)
    assert [entry.step for entry in monitor.history] == [0, 10, 20]
    assert values[0] == values[9] != values[10] == values[19] != values[20]


def test_a_network_that_is_not_homogeneous_needs_a_reference(data):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    with pytest.raises(GeneralizationError, match="Tanh"):
        NormalizedLoss(model)(*data)
    monitor = NormalizedLoss(model, reference=data[0][:1])
    value = monitor(*data)
    net = output_normalize(model, data[0][:1])
    with torch.no_grad():
        expected = functional.cross_entropy(net.model(data[0]), data[1])
    assert value == pytest.approx(float(expected), rel=SINGLE)
    assert monitor.history[0].factors == pytest.approx(net.factors, rel=SINGLE)


def test_regression_has_no_margins(data):
    model = nn.Linear(4, 1)
    targets = data[0][:, :1]
    monitor = NormalizedLoss(model, "mse")
    value = monitor(data[0], targets)
    with torch.no_grad():
        expected = (model(data[0]) / model.weight.norm() - targets).square().mean()
    assert value == pytest.approx(float(expected), rel=SINGLE)
    assert monitor.history[0].error is monitor.history[0].normalized_margin is None


def test_what_cannot_be_measured(model, data):
    for every in (0, -1, 1.5, True):
        with pytest.raises(GeneralizationError, match="every"):
            NormalizedLoss(model, every=every)
    with pytest.raises(GeneralizationError, match="norm"):
        NormalizedLoss(model, norm=0)
    for nothing in ([], iter(())):
        with pytest.raises(DataError, match="no samples"):
            NormalizedLoss(model)(nothing)
    with pytest.raises(DataError, match="expected a pair"):
        NormalizedLoss(model)(data[0])
    with pytest.raises(DataError, match="expected inputs and targets"):
        NormalizedLoss(model)(7)
    with pytest.raises(DataError, match="labels run from"):
        NormalizedLoss(model)(data[0], data[1] + 1)
    with pytest.raises(GeneralizationError, match="the loss failed"):
        NormalizedLoss(model)(data[0], data[0][:, :2])
    with pytest.raises(NonFiniteError, match="nan"):
        NormalizedLoss(model, lambda outputs, targets: outputs.sum() * math.nan)(*data)
    monitor = NormalizedLoss(model)
    with pytest.raises(DataError):
        monitor([])
    assert monitor(*data) == monitor.history[0].normalized_loss
