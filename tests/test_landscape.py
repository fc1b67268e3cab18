"""The loss along eigenvectors: exact where it is a parabola, the network's own elsewhere."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import hessrmt as hr
from hessrmt.errors import ConfigError


@pytest.fixture
def data():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(30, 5, generator=draw, dtype=torch.float64)
    return x, torch.randn(30, 2, generator=draw, dtype=torch.float64)


def network(*layers):
    torch.manual_seed(1)
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("directions", [1, 2])
def test_a_square_loss_of_a_linear_network_is_its_parabola(data, directions):
    problem = hr.Problem(network(nn.Linear(5, 2)), "mse", data)
    found = hr.landscape(problem, directions, points=9, span=3.0)
    levels = np.linalg.eigvalsh(hr.hessian(problem))[::-1][:directions]
    np.testing.assert_allclose(found.eigenvalues, levels, atol=found.bounds.max())
    assert found.losses.shape == (9,) * directions
    # rounding, and what the bound on an eigenvector's residual leaves of the parabola
    allowed = 1e-12 * found.losses.max() + 10 * found.bounds.max()
    np.testing.assert_allclose(found.losses, found.parabola, atol=allowed, rtol=0)
    assert found.losses[(4,) * directions] == pytest.approx(found.loss, rel=1e-12)
    assert len(found.rows()) == 9**directions
    assert found.distances[:, [0, -1]].tolist() == [[-3.0, 3.0]] * directions


def test_every_point_is_the_networks_own_loss(data):
    model = network(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    problem = hr.Problem(model, "mse", data)
    found = hr.landscape(problem, 2, points=5)
    values, vectors = np.linalg.eigh(hr.hessian(problem))
    v = torch.from_numpy(vectors[:, [-1, -2]].copy())
    v = v * v.gather(0, v.abs().argmax(dim=0, keepdim=True)).sign()
    theta = problem.theta
    for i, a in enumerate(found.distances[0]):
        for k, b in enumerate(found.distances[1]):
            pieces = problem.unflatten(theta + a * v[:, 0] + b * v[:, 1])
            outputs = torch.func.functional_call(model, pieces, (data[0],))
            expected = (outputs - data[1]).square().sum(dim=1).mean().item()
            assert found.losses[i, k] == pytest.approx(expected, rel=1e-6)
    # of each direction, where its parabola alone has added the loss
    np.testing.assert_allclose(
        found.eigenvalues * found.distances[:, -1] ** 2 / 2, found.loss, rtol=1e-7
    )
    assert values[-1] == pytest.approx(found.eigenvalues[0], abs=2 * found.bounds[0])


def test_the_ends_may_overflow_and_are_left_out_of_the_picture(data):
    class Steep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 2).double()

        def forward(self, x):
            return torch.exp(self.layer(x) * 9)

    torch.manual_seed(0)
    found = hr.landscape(hr.Problem(Steep(), "mse", data), points=11, span=1e4)
    assert not np.isfinite(found.losses).all()
    assert found.plot().axes


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"directions": 3}, "one or two can be drawn"),
        ({"points": 8}, "odd number"),
        ({"points": 1}, "points"),
        ({"span": 0.0}, "span"),
    ],
)
def test_what_is_refused(data, options, match):
    with pytest.raises(ConfigError, match=match):
        hr.landscape(hr.Problem(network(nn.Linear(5, 2)), "mse", data), **options)


def test_the_command(cli, tmp_path):
    words = ("landscape", "--model", "logistic", "--batch", 8, "--directions", 2, "--points", 3)
    found = json.loads(cli(*words, "--plot", "picture.png", "--json").stdout)
    assert (tmp_path / "picture.png").stat().st_size > 5_000
    kept = hr.load(tmp_path / "landscape.h5")
    assert kept.losses.tolist() == found["losses"]
    assert kept.provenance.config["model"] == "logistic"
    again = cli(*words)
    assert again.returncode == 2
    assert "landscape.h5 exists" in again.stderr
