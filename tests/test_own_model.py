"""The Hessian is that of the user's own model, whatever state that is in; which stays as it is."""

import copy

import numpy as np
import pytest
import torch
from samples import by_double_backward, labelled
from torch import nn
from torch.nn import functional as F  # noqa: N812

import hessrmt as hr
from hessrmt.errors import ProblemError

X, Y = labelled((8, 5), 3)
ROADS = {
    "matrix": lambda p: np.linalg.eigvalsh(hr.hessian(p)),
    "spectrum": lambda p: hr.spectrum(p).eigenvalues,
    "products": lambda p: np.linalg.eigvalsh(hr.Hessian(p) @ np.eye(p.dimension)),
}


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def levels(model, loss=F.cross_entropy):
    return np.linalg.eigvalsh(by_double_backward(model, loss, X, Y))


def close(found, expected, digits=1e-13):
    return np.abs(found - expected).max() <= digits * np.abs(expected).max()


def patched():
    """A forward that is a closure over the user's own layer."""
    model = net()
    layer = model[0]
    layer.forward = lambda x: F.linear(x, layer.weight**3, layer.bias)
    return model


def clipped():
    model = patched()
    model[0].weight.register_hook(lambda g: g.clamp(-1e-3, 1e-3))
    return model


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.seen = net(), []

    def forward(self, x):
        self.last = self.net(x)
        self.seen.append(len(x))
        return self.last


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.norm = net(), nn.BatchNorm1d(3).double()
        self.norm(torch.randn(9, 3, dtype=torch.float64))
        self.eval()

    def forward(self, x):
        return self.norm(self.net(x))


def train_on(model):
    model.train()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(0.5)


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("make", [net, patched, clipped, Keeps, Normalised])
def test_a_model_that_is_used_on_is_measured_as_it_was(make, road):
    model = make()
    hooks = model[0].weight._backward_hooks if make is clipped else None
    if hooks is not None:
        model[0].weight._backward_hooks = None
    expected = levels(model)
    if hooks is not None:
        model[0].weight._backward_hooks = hooks
    for left in ("last", "seen"):
        if hasattr(model, left):
            setattr(model, left, []) if left == "seen" else delattr(model, left)
    problem = hr.Problem(model, "cross-entropy", (X, Y))
    train_on(model)
    before = copy.deepcopy(model.state_dict())
    assert close(ROADS[road](problem), expected)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(module.training for module in model.modules())
    assert not hasattr(model, "last")
    assert getattr(model, "seen", []) == []


def test_hooks_on_gradients_are_there_afterwards():
    model = clipped()
    hr.spectrum(hr.Problem(model, "cross-entropy", (X, Y)))
    model.zero_grad()
    F.cross_entropy(model(X), Y).backward()
    assert float(model[0].weight.grad.abs().max()) <= 1e-3


class ThroughList(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 5, dtype=torch.float64))
        self.also = [self.weight]

    def forward(self, x):
        return x @ self.weight.T + torch.tanh(x @ self.also[0].T)


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_labels_of_every_integer_type(kind):
    model = ThroughList()
    found = hr.spectrum(hr.Problem(model, "cross-entropy", (X, Y.to(kind)))).eigenvalues
    assert close(found, levels(model))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("road", ROADS)
def test_a_penalty_on_a_model_of_any_precision(kind, road):
    model = net().to(kind)

    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets) + 0.5 * sum(
            p.square().sum() for p in model.parameters()
        )

    found = ROADS[road](hr.Problem(model, loss, (X.to(kind), Y)))
    double = copy.deepcopy(model).double()
    x = X.to(kind).double()
    expected = np.linalg.eigvalsh(by_double_backward(double, F.cross_entropy, x, Y)) + 1
    assert close(found, expected)


class Temperature(nn.Module):
    def __init__(self):
        super().__init__()
        self.t = nn.Parameter(torch.tensor(1.5))

    def forward(self, outputs, targets):
        with torch.no_grad():
            self.logged = float(F.cross_entropy(outputs, targets))
        return F.cross_entropy(outputs / self.t, targets)


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_a_loss_with_a_parameter_of_its_own_and_a_log(operator):
    model, loss = net(), Temperature()
    found = hr.spectrum(hr.Problem(model, loss, (X, Y)), operator=operator)
    plain = hr.Problem(model, lambda o, t: F.cross_entropy(o / 1.5, t), (X, Y))
    assert close(found.eigenvalues, hr.spectrum(plain, operator=operator).eigenvalues)
    assert not hasattr(loss, "logged")


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_a_module_that_stands_in_two_places(operator):
    torch.manual_seed(1)
    layer = nn.Linear(5, 5)
    model = nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(5, 3)).double()
    problem = hr.Problem(model, "cross-entropy", (X, Y))
    if operator == "hessian":
        assert close(hr.spectrum(problem).eigenvalues, levels(model))
    assert hr.spectrum(problem, operator=operator).check < 1e-13


class DrawnAtFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.w = nn.Linear(4, 3), None

    def forward(self, x):
        if self.w is None:
            self.w = torch.randn(x.shape[1], 4)
        return self.head(torch.cos(x @ self.w))


def test_what_is_drawn_at_the_first_call():
    model = DrawnAtFirst()
    x = X.float()
    with pytest.raises(ProblemError, match=r"another function|not deterministic"):
        hr.spectrum(hr.Problem(model, "cross-entropy", (x, Y)))
    model(x)
    first, second = (hr.spectrum(hr.Problem(model, "cross-entropy", (x, Y))) for _ in range(2))
    assert np.array_equal(first.eigenvalues, second.eigenvalues)


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        return g * (1 - ctx.saved_tensors[0].tanh())


class Wrong(nn.Module):
    def forward(self, x):
        return WrongBackward.apply(x)


@pytest.mark.parametrize(
    "road",
    [hr.ggn, hr.GaussNewton, lambda p: hr.spectrum(p, operator="ggn")],
    ids=["matrix", "products", "spectrum"],
)
def test_a_wrong_first_derivative_is_seen_by_gauss_newton_too(road):
    model = nn.Sequential(nn.Linear(5, 4), Wrong(), nn.Linear(4, 3)).double()
    with pytest.raises(ProblemError, match="derivative of the outputs is wrong"):
        road(hr.Problem(model, "cross-entropy", (X, Y)))
    relu = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    road(hr.Problem(relu, "cross-entropy", (X, Y)))
