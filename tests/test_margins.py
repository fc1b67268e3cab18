"""Margins against a loop over samples and classes."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from hessrmt import rng
from hessrmt.errors import DataError, GeneralizationError, NonFiniteError
from hessrmt.generalization import MarginSummary, margins, normalize

DRAW = rng.stream(0, "test margins")
X = DRAW.normal(size=(50, 4))
Y = DRAW.integers(0, 3, 50)


def network(outputs=3):
    with rng.torch_seeded(1, "test margins"):
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, outputs))


def by_hand(model, x, y):
    weights = [value.detach().double().numpy() for value in model.parameters()]
    f = np.maximum(x @ weights[0].T + weights[1], 0) @ weights[2].T + weights[3]
    return np.array(
        [
            row[label] - max(row[j] for j in range(len(row)) if j != label)
            for row, label in zip(f, y, strict=True)
        ]
    )


@pytest.mark.parametrize("batch", [1, 7, 1024])
def test_margins_are_those_of_a_loop(batch):
    model = network()  # single precision: computed in double all the same
    found = margins(model, X, Y, batch=batch)
    expected = by_hand(model, X, Y)
    np.testing.assert_allclose(found.margins, expected, rtol=0, atol=1e-14)
    assert found.minimum == found.margins.min()
    assert found.error == np.mean(expected <= 0)
    order = np.argsort(expected)
    np.testing.assert_array_equal(found.support(5), order[:5])
    assert len(found.support(500)) == 50
    low, middle = found.quantiles([0.0, 0.5]).values()
    assert low == found.minimum
    assert middle == pytest.approx(np.median(expected), abs=1e-14)
    assert next(model.parameters()).dtype == torch.float32
    assert model.training


def test_margins_of_the_normalised_network_are_those_over_the_product():
    model = network().double()
    net = normalize(model, torch.from_numpy(X))
    own, normalised = margins(model, X, Y, product=net.product), margins(net.model, X, Y)
    # forty roundings at the size of the outputs
    np.testing.assert_allclose(
        normalised.margins * net.product, own.margins, rtol=0, atol=40 * 2.3e-16 * 10
    )
    assert own.normalized_minimum == pytest.approx(normalised.minimum, rel=1e-12)


def test_the_bound_exists_only_if_all_is_correct():
    right = MarginSummary(np.array([0.5, 2.0, 0.25]), product=8.0)
    assert (right.bound, right.normalized_bound) == (4.0, 32.0)
    assert right.normalized_minimum == 0.25 / 8
    assert right.error == 0
    wrong = MarginSummary(np.array([0.5, 0.0, -1.0]))
    assert wrong.bound == wrong.normalized_bound == math.inf
    assert wrong.error == pytest.approx(2 / 3)
    summary = right.to_dict()
    assert summary["support"] == [2, 0, 1]
    assert summary["support_margins"] == [0.25, 0.5, 2.0]
    assert (summary["min"], summary["inverse"], summary["normalized_inverse"]) == (0.25, 4.0, 32.0)
    assert summary["quantiles"]["0.5"] == 0.5


@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize(
    "labels", [Y > 0, (Y > 0).astype(int), np.where(Y > 0, 1, -1), np.where(Y > 0, 1.0, -1.0)]
)
def test_one_score_per_sample(squeezed, labels):
    model = network(1)
    with torch.no_grad():
        score = model.double()(torch.from_numpy(X))[:, 0].numpy()
    if squeezed:
        model = nn.Sequential(model, nn.Flatten(0))
    found = margins(model, X, labels)
    np.testing.assert_allclose(found.margins, np.where(Y > 0, score, -score), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("outputs", "y", "error", "why"),
    [
        (3, Y + 1, DataError, "labels run from 1 to 3, but the model has 3"),
        (3, -Y, DataError, "labels run from -2"),
        (3, Y.astype(float), DataError, "float64; expected one integer"),
        (3, Y > 0, DataError, "bool"),
        (3, np.eye(3, dtype=int)[Y], DataError, "argmax"),
        (3, Y[:-1], DataError, "50 samples but labels of shape .49"),
        (3, 1, DataError, "50 samples but labels"),
        (1, Y, DataError, "one output per sample.*0, 1, 2"),
        (1, np.where(Y > 0, 1.0, math.nan), DataError, "one output per sample"),
    ],
)
def test_labels_that_do_not_fit(outputs, y, error, why):
    with pytest.raises(error, match=why):
        margins(network(outputs), X, y)


def test_what_cannot_be_measured():
    with pytest.raises(GeneralizationError, match=r"shape .50, 2, 2."):
        margins(nn.Unflatten(1, (2, 2)), X, Y)
    with pytest.raises(NonFiniteError, match="first in sample 0"):
        margins(nn.Sequential(network(), nn.Threshold(1e9, math.inf)), X, Y)
    with pytest.raises(DataError, match="0 samples"):
        margins(network(), X[:0], Y[:0])
    with pytest.raises(DataError, match="0 samples"):
        margins(network(), None, Y)
    with pytest.raises(DataError, match="NaN or infinite values, first in sample 3"):
        margins(network(), np.where(np.arange(50)[:, None] == 3, np.nan, X), Y)
    for product in (0, -1, math.nan, math.inf, True):
        with pytest.raises(GeneralizationError, match="product"):
            margins(network(), X, Y, product=product)
    with pytest.raises(GeneralizationError, match="batch"):
        margins(network(), X, Y, batch=0)
    with pytest.raises(GeneralizationError, match="support"):
        margins(network(), X, Y).support(0)
