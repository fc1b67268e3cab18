"""The flow of batch normalisation against torch, conservation laws and support vector machines."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch.nn import functional

from hessrmt.errors import DataError
from hessrmt.generalization import bias_free
from hessrmt.generalization.batch_norm import _Network, batch_norm_flow, whitened
from hessrmt.generalization.bias_free import (
    ACTIVATIONS,
    initial_layers,
    linear_task,
    maximum_margin,
    quadrant_task,
)
from hessrmt.plots.generalization import batch_norm_margins

EPS = np.finfo(float).eps


def outputs_of(layers, activation, flat, x):
    """The network by torch's batch normalisation without its ε and shift."""
    h, at = torch.tensor(x), 0
    for w in layers[:-1]:
        weight = flat[at : at + w.size].reshape(w.shape)
        gamma = flat[at + w.size : at + w.size + len(w)]
        at += w.size + len(w)
        z = functional.batch_norm(h @ weight.T, None, None, gamma, None, True, 0.1, 1e-300)
        h = ACTIVATIONS[activation]()(z)
    return h @ flat[at:].reshape(layers[-1].shape).T


@pytest.mark.parametrize("loss", ["exponential", "logistic"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [[4], [4, 3]])
def test_the_equations_are_the_gradients_of_torchs_batch_normalisation(loss, activation, hidden):
    x, y = quadrant_task(9, 3, seed=2)
    layers = initial_layers([3, *hidden, 1], 3)
    network = _Network(layers, x, y, loss, activation)
    state = network.state() + 0.1

    def value(flat):
        outputs = outputs_of(layers, activation, flat, x)
        return bias_free.LOSSES[loss](outputs, torch.tensor(y))

    expected = -np.exp(0.7) * torch.func.grad(value)(torch.tensor(state)).numpy()
    found = network.rate(0.7, state)
    # the normalisation takes differences of sums of nine terms
    np.testing.assert_allclose(found, expected, atol=1e4 * EPS * np.abs(expected).max())


@pytest.fixture(scope="module", params=[[2, 4, 1], [2, 4, 3, 1]], ids=["one layer", "two layers"])
def flow(request):
    return batch_norm_flow(initial_layers(request.param), *quadrant_task(12, seed=3), log_time=12)


def test_rows_keep_their_norms_and_scales_grow_alike(flow):
    assert flow.row_drift < 1e-7
    assert flow.growth_difference < 1e-6
    assert np.ptp(flow.scales[:, 0]) > 0.5  # there was something to conserve
    assert flow.margin[-1] > 0
    assert flow.smoothed_drop < 1e-8
    np.testing.assert_allclose(flow.rho, flow.scales.prod(axis=1))


def test_margins_are_those_of_the_network_at_the_end(flow):
    # folded margins differ by the layers' norms only, so that both have the same shape
    ratio = flow.folded_margins[-1] / flow.margins[-1]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-10)
    losses = -flow.rho[:, None] * flow.margins
    mean = np.log(np.exp(losses).mean(axis=1))
    np.testing.assert_allclose(flow.log_losses, mean, atol=1e-9)


def test_one_linear_unit_ends_at_the_maximum_margin_of_the_whitened_samples():
    x, y = linear_task(30, 3, seed=1)
    x[:, 0] *= 4
    found = batch_norm_flow(
        initial_layers([3, 1, 1]), x, y, activation="linear", log_time=2000, saved=5
    )
    w = found.weights[0][0]
    best = maximum_margin(whitened(x), y)
    direction = np.real(sqrtm(np.cov(x.T, bias=True))) @ w
    direction *= np.sign(direction @ best.direction) / np.linalg.norm(direction)
    # what is missing at log t = u is of the order 1/u
    assert np.linalg.norm(direction - best.direction) < 0.01
    assert found.margin[-1] == pytest.approx(best.margin, rel=0.01)
    # not that of the samples as they are, which weight normalisation finds
    plain = maximum_margin(x - x.mean(axis=0), y)
    away = w * np.sign(w @ plain.direction) / np.linalg.norm(w) - plain.direction
    assert np.linalg.norm(away) > 0.05


def test_whitened_samples_have_the_identity_as_their_covariance():
    x = whitened(linear_task(20, 4, seed=2)[0] * [1, 5, 0.2, 1])
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e3 * EPS)
    np.testing.assert_allclose(np.cov(x.T, bias=True), np.eye(4), atol=1e5 * EPS)
    with pytest.raises(DataError, match="hyperplane"):
        whitened(np.ones((5, 2)))


def test_the_picture_shows_the_margin(flow):
    drawn = batch_norm_margins(flow).axes[0].lines[0]
    np.testing.assert_array_equal(drawn.get_ydata(), flow.margin)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": initial_layers([2, 1])}, "a hidden layer"),
        ({"loss": "cross-entropy"}, "known: exponential, logistic"),
        ({"activation": "tanh"}, "positively homogeneous"),
        ({"x": np.ones((4, 2))}, "the same value for all samples"),
        ({"saved": [0.0]}, "two or more"),
        ({"log_time": -1.0}, "log_time"),
        ({"method": "Euler"}, "known: LSODA"),
        ({"rtol": 0.0}, "rtol"),
    ],
)
def test_what_cannot_be_followed_is_refused(change, message):
    x, y = quadrant_task(4)
    given = {"layers": initial_layers([2, 2, 1]), "x": x, "y": y, **change}
    with pytest.raises(DataError, match=message):
        batch_norm_flow(**given)
