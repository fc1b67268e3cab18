"""Rademacher complexities: matrices written out, sign by sign, bounds that hold."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from hessrmt.errors import DataError
from hessrmt.generalization import attained, normalize, rademacher_bound
from hessrmt.generalization.normalization import margins
from hessrmt.problems import models


def images(count, size=6, channels=2, seed=0):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def written_out(module, shape):
    """The matrix of a layer on one sample of that shape, a column for each element."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    zero = module(torch.zeros(1, *shape, dtype=torch.float64))
    return (module(basis) - zero).flatten(1).T, zero.flatten()


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(2, 3, 3, padding=1, stride=2, bias=False), nn.Linear(27, 4, bias=False)),
        (nn.Conv2d(2, 4, 3, groups=2, bias=False), nn.Linear(64, 4, bias=False)),
        (nn.ConvTranspose2d(2, 3, 2, stride=2, bias=False), nn.Linear(432, 4, bias=False)),
    ],
)
def test_norms_are_those_of_the_matrices_on_all_positions(layers):
    first, second = (layer.double() for layer in layers)
    x = images(5).double()
    found = rademacher_bound(nn.Sequential(first, nn.ReLU(), nn.Flatten(), second), x)
    matrices = [written_out(first, (2, 6, 6))[0], second.weight]
    expected = [float(torch.linalg.norm(matrix.detach())) for matrix in matrices]
    assert list(found.factors.values()) == pytest.approx(expected, rel=1e-12)
    unit = (math.sqrt(4 * math.log(2)) + 1) * math.sqrt(float(x.square().sum())) / 5
    assert found.unit == pytest.approx(unit, rel=1e-12)
    assert found.complexity == pytest.approx(unit * math.prod(expected), rel=1e-12)


def test_biases_are_weights_of_a_constant_unit():
    """Any sizes of the constant give a network of this class; no product is below the one found."""
    torch.manual_seed(1)
    model = nn.Sequential(
        *(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5), nn.ReLU()),
        nn.Linear(5, 2),
    ).double()
    x = images(4).double()
    found = rademacher_bound(model, x)
    assert found.biases
    conv, one, two = model[0], model[3], model[5]
    matrix, shift = written_out(conv, (2, 6, 6))
    parts = [(matrix, shift), (one.weight, one.bias), (two.weight, two.bias)]

    def product(a, b):
        """Of the norms of [[W, b/c_before], [0, c_after/c_before]], the outputs being checked."""
        hidden = torch.cat([x.flatten(1), torch.ones(4, 1, dtype=torch.float64)], 1)
        norms, before = [], 1.0
        for (weight, bias), after in zip(parts, (a, b, 0.0), strict=True):
            last = torch.zeros(weight.shape[1] + 1, dtype=torch.float64)
            last[-1] = after / before
            whole = torch.cat([torch.cat([weight, bias[:, None] / before], 1), last[None]])
            norms.append(float(torch.linalg.norm(whole.detach())))
            hidden = hidden @ whole.T
            hidden, before = (torch.relu(hidden) if after else hidden), after
        assert torch.allclose(hidden[:, :-1], model(x), rtol=1e-10, atol=1e-12)
        return math.prod(norms)

    others = [product(a, b) for a in (0.1, 0.5, 1, 3, 10) for b in (0.1, 0.5, 1, 3, 10)]
    assert found.product <= min(others) * (1 + 1e-6)
    assert found.product >= 0.5 * min(others)
    # f changes by no more than the product times the change of the inputs
    largest = (model(x).abs().amax(1) / (x.flatten(1).square().sum(1) + 1).sqrt()).max()
    assert float(largest) <= found.product


def test_rescaled_layers_and_folded_batch_norms_are_the_same_network():
    x = images(20)
    model = models.build("conv5", (2, 6, 6), 3, 0).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    found = rademacher_bound(model, x)
    net = normalize(model.double(), x)
    scaled = rademacher_bound(net.model, x)
    assert scaled.complexity * net.product == pytest.approx(found.complexity, rel=1e-6)


def signs_of(count):
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=count)), dtype=torch.float64)


def test_one_linear_layer_sign_by_sign():
    """sup over ‖w‖ <= 1 of Σ σ w·x/N is ‖Σ σ x‖/N."""
    x = images(8, size=2).flatten(1).double()
    every = (signs_of(8) @ x).norm(dim=1) / 8
    exact, spread = float(every.mean()), float(every.std())
    model = nn.Linear(8, 3, bias=False)
    bound = rademacher_bound(nn.Sequential(model), x)
    size = float(torch.linalg.norm(model.weight.double()))
    assert bound.complexity / size == pytest.approx(float(x.norm()) / 8, rel=1e-6)
    assert exact <= bound.unit <= 1.3 * exact  # Jensen's inequality is all that is lost
    found = attained(model.double(), x, draws=40, steps=30)
    # the ascent ends at the maximum, so that only the signs are left to chance
    assert found.mean == pytest.approx(exact, abs=4 * spread / math.sqrt(40))


def test_networks_that_are_found_stay_below_the_bound():
    x = images(12)
    model = models.build("conv3s2-2", (2, 6, 6), 2, 0)
    bound, net = rademacher_bound(model, x), normalize(model.double(), x)
    found = attained(model, x, draws=3, steps=60)
    # of the class with this network's kernels: their norms 1, those on all positions larger
    assert 0 < found.mean < bound.complexity / net.product
    one, many = (attained(model, x, draws=1, steps=steps).mean for steps in (1, 60))
    assert many > 1.2 * one
    assert attained(model, x, draws=3, steps=60).values == found.values


def test_error_bounds_hold_and_can_say_something():
    """A linear network on many samples of two separate clouds."""
    draw = np.random.default_rng(3)

    def samples(count):
        labels = draw.integers(2, size=count)
        x = draw.normal(size=(count, 2)) * 0.2
        x[:, 0] += np.where(labels == 1, 1.0, -1.0)
        return torch.tensor(x), labels

    x, y = samples(200_000)
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    found = rademacher_bound(model, x)
    values = margins(model, x, y).margins
    bound = found.error_bound(values, 2)
    assert bound.says_something
    test, labels = samples(20_000)
    assert margins(model, test, labels).error <= bound.value < 0.2
    # by hand at the margin that was chosen
    size = found.product
    assert bound.below == np.mean(values / size <= bound.margin)
    assert bound.capacity == pytest.approx(8 * found.complexity / size / bound.margin)
    # whatever the scale of the network, and the less, the fewer samples there are
    with torch.no_grad():
        model[0].weight.mul_(1024)
    again = rademacher_bound(model, x).error_bound(1024 * values, 2)
    assert again.value == pytest.approx(bound.value, rel=1e-12)
    few = rademacher_bound(model, x[:100]).error_bound(1024 * values[:100], 2)
    assert few.value > bound.value
    assert not few.says_something


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2)), "1 "),
        (nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.Tanh(), nn.Linear(4, 2)), "Tanh"),
        (models.build("resnet8", (2, 6, 6), 2, 0), "ResNet|Block|Global|Avg"),
    ],
)
def test_networks_without_a_theorem_are_refused(model, match):
    with pytest.raises(DataError, match=match):
        rademacher_bound(model, images(3))


def test_arguments():
    x = images(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 2))
    with pytest.raises(DataError, match="2 margins"):
        rademacher_bound(model, x).error_bound(np.ones(2), 2)
    with pytest.raises(DataError, match="delta is 1"):
        rademacher_bound(model, x).error_bound(np.ones(3), 2, delta=1)
    with pytest.raises(DataError, match="bias"):
        attained(model, x)
