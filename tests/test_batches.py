"""Data as people have them: pairs, loaders, dict-like batches, tensors that all samples share."""

import collections
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from samples import by_double_backward, labelled
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

import hessrmt as hr
from hessrmt.errors import DataError, ProblemError
from hessrmt.problems.batches import map_tensors, read_data, tensors_of


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


X, Y = labelled((6, 5), 3)


def close(found, expected):
    return np.abs(np.asarray(found) - np.asarray(expected)).max() <= 1e-13


LOADERS = {
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=4),
    "shuffled": lambda: DataLoader(TensorDataset(X, Y), batch_size=2, shuffle=True),
    "data set": lambda: TensorDataset(X, Y),
    "three pairs": lambda: [(X[:1], Y[:1]), (X[1:5], Y[1:5]), (X[5:], Y[5:])],
    "generator": lambda: ((X[i : i + 3], Y[i : i + 3]) for i in (0, 3)),
    "dicts": lambda: [{"input": X[i : i + 3], "labels": Y[i : i + 3]} for i in (0, 3)],
    "one dict": lambda: {"input": X, "labels": Y},
    "user dict": lambda: (collections.UserDict(input=X), Y),
    "arrays": lambda: (X.numpy(), Y.numpy()),
    "strides": lambda: (X.numpy()[:, ::-1][:, ::-1], Y.tolist()),
    "other bytes": lambda: (X.numpy().astype(">f8"), Y.numpy().astype(">i2")),
    "other order": lambda: (np.asfortranarray(X.numpy()), Y),
}


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, input):
        return self.net(input)


@pytest.mark.parametrize("kind", LOADERS)
def test_data_of_every_kind_are_the_same_samples(kind):
    problem = hr.Problem(Named(), "cross-entropy", LOADERS[kind]())
    assert problem.samples == 6
    assert close(hr.hessian(problem), by_double_backward(net(), F.cross_entropy, X, Y))


def test_what_is_no_data():
    several = {"labels": Y, "y": Y, "input": X}
    for data in (X, "mnist", (X, Y, Y), [], [(X, Y), (X, Y)], {"input": X}, several):
        with pytest.raises(DataError):
            hr.Problem(net(), "cross-entropy", data)
    for bad in (np.array([["a"] * 5] * 6), np.array([[None] * 5] * 6)):
        with pytest.raises(DataError, match="no numbers that torch knows"):
            hr.Problem(net(), "cross-entropy", (bad, Y))
    with pytest.raises(DataError, match="reads them one by one"):
        read_data([(torch.ones(2, 3), Y[:2]), (torch.ones(2, 4), Y[:2]), (X, Y)])
    with pytest.raises(DataError, match=r"hr\.shared"):
        hr.Problem(net(), lambda o, t: F.cross_entropy(o, t[0], t[1]), (X, (Y, torch.ones(3))))


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 4).double(), nn.Linear(4, 3).double()

    def forward(self, x, edges):
        hidden = self.first(x)
        gathered = torch.zeros_like(hidden).index_add(0, edges[1], hidden[edges[0]].tanh())
        return self.last(gathered)


class Masked(Graph):
    def forward(self, x, mask):
        weights = torch.softmax(x[:, :, None] * x[:, None] + mask, -1)
        return self.last(torch.tanh(self.first((weights * x[:, None]).sum(-1))))


class Scaled(Graph):
    def forward(self, x, scale):
        return self.last(torch.tanh(scale * self.first(x)))


GENERATOR = torch.Generator().manual_seed(1)
EDGES = torch.randint(0, 6, (2, 11), generator=GENERATOR)
SQUARE = torch.randint(0, 6, (6, 11), generator=GENERATOR)  # as long as the batch by accident
MASK = torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1)
SCALE = torch.tensor(0.5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "other", "given"),
    [
        (Graph, EDGES, EDGES),
        (Graph, SQUARE, hr.shared(SQUARE)),
        (Graph, SQUARE, SQUARE),  # never taken apart, since the samples are not independent
        (Masked, MASK, MASK),
        (Masked, MASK, hr.shared(MASK)),
        (Scaled, SCALE, SCALE),
    ],
)
def test_tensors_without_a_batch_axis(kind, other, given):
    model = kind()
    problem = hr.Problem(model, "cross-entropy", ((X, given), Y))
    exact = by_double_backward(model, F.cross_entropy, (X, other), Y)
    assert close(hr.spectrum(problem).eigenvalues, np.linalg.eigvalsh(exact))
    assert close(hr.Hessian(problem) @ np.eye(len(exact)), exact)
    if kind is not Graph:
        assert close(hr.Hessian(problem, batch=4) @ np.eye(len(exact)), exact)
    else:
        with pytest.raises((ProblemError, DataError)):
            hr.Hessian(problem, batch=4)


def test_shared_weights_of_a_loss():
    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets[0], targets[1], reduction="sum") / len(outputs)

    weights, model = torch.tensor([1.0, 2, 3], dtype=torch.float64), net()
    problem = hr.Problem(model, loss, (X, (Y, hr.shared(weights))))
    expected = by_double_backward(model, loss, X, (Y, weights))
    assert close(hr.hessian(problem), expected)
    assert close(hr.Hessian(problem, batch=4) @ np.eye(len(expected)), expected)


@dataclasses.dataclass
class Held:
    first: torch.Tensor
    rest: dict
    number: int = 3


def test_tensors_of_any_object_can_be_replaced():
    tensors = [torch.ones(2), torch.zeros(3, requires_grad=True) * 1, torch.arange(2)]
    held = Held(tensors[0], {"a": [tensors[1], None], "b": (tensors[2], tensors[0])})
    assert [id(t) for t in tensors_of(held)] == [id(t) for t in tensors]
    twice = map_tensors(held, lambda t: 2 * t)
    assert (type(twice), twice.number) == (Held, 3)
    assert torch.equal(twice.first, torch.full((2,), 2.0))
    assert twice.rest["b"][1] is twice.first
    assert twice.rest["a"][0].requires_grad
    assert held.first is tensors[0]


@dataclasses.dataclass
class Reused:
    """A loader that gives the same tensors again and again, with other contents."""

    x: torch.Tensor
    y: torch.Tensor

    def __iter__(self):
        for start in (0, 2, 4):
            self.x.copy_(X[start : start + 2])
            self.y.copy_(Y[start : start + 2])
            yield self.x, self.y


def test_data_are_copied():
    exact = by_double_backward(net(), F.cross_entropy, X, Y)
    x, y = X.clone(), Y.clone()
    problem = hr.Problem(net(), "cross-entropy", (x, y))
    x.mul_(3)
    y.zero_()
    assert close(hr.hessian(problem), exact)
    loader = Reused(X[:2].clone(), Y[:2].clone())
    assert close(hr.hessian(hr.Problem(net(), "cross-entropy", loader)), exact)
    streamed = hr.CurvatureOperator(net(), "cross-entropy", loader)
    assert close(streamed @ np.eye(len(exact)), exact)


class Tokens(nn.Module):
    """A small language model; its answer is an object with logits, as those of transformers."""

    def __init__(self, named=True):
        super().__init__()
        self.embed, self.head, self.named = nn.Embedding(7, 3), nn.Linear(3, 7), named

    def forward(self, input_ids):
        logits = self.head(self.embed(input_ids).cumsum(1).tanh())
        return SimpleNamespace(logits=logits) if self.named else logits


@pytest.mark.parametrize("named", [True, False])
def test_the_loss_of_language_models(named):
    torch.manual_seed(0)
    model = Tokens(named).double()
    tokens = torch.randint(0, 7, (5, 6))
    labels = torch.where(torch.rand(5, 6) < 0.3, -100, tokens)

    def by_hand(outputs, targets):  # token by token
        logits = outputs.logits if named else outputs
        log_p = logits.log_softmax(-1)
        each = [
            -log_p[row, place - 1, target]
            for row, line in enumerate(targets.tolist())
            for place, target in enumerate(line)
            if place and target != -100
        ]
        return torch.stack(each).mean()

    data = {"input_ids": tokens, "labels": labels}
    found = hr.spectrum(hr.Problem(model, "next-token", data))
    wanted = np.asarray(by_double_backward(model, by_hand, tokens, labels))
    atol = found.noise_floor + 1e-13
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(wanted), rtol=0, atol=atol)
    # sequences in several batches: the mean is over the tokens that count in all of them
    parts = [{name: value[rows] for name, value in data.items()} for rows in ([0, 1], [2, 3, 4])]
    vector = torch.randn(len(wanted), dtype=torch.float64, generator=torch.manual_seed(1))
    product = hr.CurvatureOperator(model, "next-token", parts) @ vector
    np.testing.assert_allclose(np.asarray(product), wanted @ vector.numpy(), rtol=0, atol=1e-12)
    with pytest.raises(ProblemError, match=r"next-token: .*expected logits \(B, T, V\)"):
        hr.spectrum(hr.Problem(model, "next-token", {"input_ids": tokens, "labels": labels[:, 0]}))
