"""What a network is made of is found by running it: spectra of networks whose types mislead."""

import types

import numpy as np
import pytest
import torch
from samples import by_double_backward, by_jacobian, labelled
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations

import hessrmt as hr

X, Y = labelled((8, 5), 3)
IDS = torch.randint(0, 5, (12, 4), generator=torch.Generator().manual_seed(0))
NEXT = torch.randint(0, 5, (12,), generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two linear layers, from which others are made."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)
        self.double()

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


class TiedUpstream(nn.Module):
    """The head is the embedding's weight, behind a layer whose output is cut."""

    def __init__(self, functional=False):
        super().__init__()
        torch.manual_seed(3)
        self.functional = functional
        self.embedding, self.middle, self.head = nn.Embedding(5, 3), nn.Linear(3, 3), None
        self.head = nn.Linear(3, 5)
        if not functional:
            self.head.weight = self.embedding.weight
        self.double()

    def forward(self, ids):
        rows = F.embedding(ids, self.head.weight) if self.functional else self.embedding(ids)
        return self.head(torch.tanh(self.middle(rows.mean(1))))


class Penalised(Net):
    def forward(self, x):
        return super().forward(x) + self.last.weight.square().sum()


class Twice(Net):
    def __init__(self):
        super().__init__()
        self.middle = nn.Linear(4, 4).double()

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return self.last(torch.tanh(self.middle(torch.tanh(self.middle(hidden)))))


class Centred(Net):
    def forward(self, x):
        hidden = self.first(x)
        return self.last(torch.tanh(hidden - hidden.mean(0)))


class CentredZero(Centred):
    """Coupled samples of which no gradient tells, since the head is zero."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.last.weight)


class Differences(nn.Module):
    """Coupled samples that a shift of all hidden units alike does not show."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Linear(5, 4).double(), nn.Linear(2, 3).double()

    def forward(self, x):
        hidden = self.first(x)
        d = hidden[:, :2] - hidden[:, 2:]
        return self.last(d * d.mean(0))


def hooked():
    net = Net()
    net.first.register_forward_hook(lambda module, inputs, output: output.sin() + output)
    return net


def hooked_before():
    net = Net()
    net.first.register_forward_pre_hook(lambda module, inputs: (inputs[0] ** 2,))
    return net


def patched():
    net = Net()

    def forward(module, x):
        return F.linear(x, module.weight**3, module.bias)

    net.first.forward = types.MethodType(forward, net.first)
    return net


class SubclassedLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, torch.tanh(self.weight), self.bias)


def subclassed():
    net = Net()
    torch.manual_seed(4)
    net.first = SubclassedLinear(5, 4).double()
    return net


def parametrised():
    net = Net()
    parametrizations.orthogonal(net.first)
    return net


def zero_head(width):
    net = Net()
    torch.manual_seed(4)
    net.first, net.last = nn.Linear(5, width).double(), nn.Linear(width, 3).double()
    nn.init.zeros_(net.last.weight)
    return net


NETWORKS = {
    "plain": (Net, X, Y),
    "tied embedding": (TiedUpstream, IDS, NEXT),
    "weight used upstream": (lambda: TiedUpstream(functional=True), IDS, NEXT),
    "penalised weight": (Penalised, X, Y),
    "layer called twice": (Twice, X, Y),
    "hook": (hooked, X, Y),
    "hook before": (hooked_before, X, Y),
    "forward of an instance replaced": (patched, X, Y),
    "subclass": (subclassed, X, Y),
    "parametrisation": (parametrised, X, Y),
    "coupled samples": (Centred, X, Y),
    "coupled samples behind a zero head": (CentredZero, X, Y),
    "coupled differences": (Differences, X, Y),
    "zero head": (lambda: zero_head(4), X, Y),
    "wide, zero head": (lambda: zero_head(24), X, Y),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_spectra_of_networks_whose_types_mislead(name, operator):
    make, x, y = NETWORKS[name]
    net = make()
    problem = hr.Problem(net, "cross-entropy", (x, y))
    dense = by_double_backward if operator == "hessian" else by_jacobian
    exact = np.linalg.eigvalsh(dense(net, F.cross_entropy, x, y))
    found = hr.spectrum(problem, operator=operator)
    assert np.abs(found.eigenvalues - exact).max() <= 10 * len(exact) * 2.3e-16 * abs(exact).max()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_reduced_basis_loses_nothing(name):
    make, x, y = NETWORKS[name]
    net = make()
    matrix = by_double_backward(net, F.cross_entropy, x, y)
    basis = hr.reduction(hr.Problem(net, "cross-entropy", (x, y)))
    q = basis.lift(torch.eye(basis.reduced_dimension, dtype=torch.float64)).T
    kept = q @ (q.T @ matrix @ q) @ q.T
    assert float((kept - matrix).abs().max()) <= 1e-12 * float(matrix.abs().max())


def test_layers_are_found_by_what_they_do():
    layers = {
        name: {layer.name for layer in hr.Problem(make(), "cross-entropy", (x, y)).structure.layers}
        for name, (make, x, y) in NETWORKS.items()
    }
    both = {"first", "last"}
    assert layers["plain"] == layers["hook"] == layers["hook before"] == both
    assert layers["tied embedding"] == layers["weight used upstream"] == {"middle"}
    assert layers["penalised weight"] == {"first"}
    assert layers["layer called twice"] == {*both, "middle"}
    for changed in ("forward of an instance replaced", "subclass", "parametrisation"):
        assert layers[changed] == {"last"}
