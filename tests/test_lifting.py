"""Networks that ask for single precision inside: in float64 they are float64 throughout."""

import copy

import numpy as np
import pytest
import torch
from samples import by_double_backward, labelled
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

import hessrmt as hr
from hessrmt.errors import ProblemError

EPS = float(np.finfo(np.float64).eps)
CPU = torch.device("cpu")
DOUBLE = torch.float64


class Network(nn.Module):
    """Something done to the hidden layer of a small network."""

    def __init__(self, way, kind=torch.float64):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(5, 4, dtype=kind), nn.Linear(4, 3, dtype=kind)
        self.way = way

    def forward(self, x):
        return self.last(self.way(torch.tanh(self.first(x))).to(x.dtype))


X, Y = labelled((6, 5), 3)


def check(model, plain, loss=F.cross_entropy, x=X):
    """The spectrum of a network against double backward of one that is float64 as it stands."""
    problem = hr.Problem(model, loss, (x, Y))
    expected = np.linalg.eigvalsh(by_double_backward(plain, F.cross_entropy, x.double(), Y).numpy())
    allowed = 50 * len(expected) * EPS * np.abs(expected).max()
    assert np.abs(hr.spectrum(problem).eigenvalues - expected).max() <= allowed
    return problem


SINGLE = torch.full((4,), 0.1)
MATRIX = torch.arange(16.0).reshape(4, 4) / 7
CELL = nn.LSTMCell(4, 4, dtype=DOUBLE).requires_grad_(False)
NEXT = nn.LSTM(4, 4, batch_first=True, dtype=DOUBLE).requires_grad_(False)


def accumulated(h, kind):
    total = torch.zeros(h.shape, dtype=kind)
    total += h
    total[:, 0] = h[:, 1]
    return total


def normed(h, kind):
    z = h.to(kind)
    return (z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6)).to(h.dtype)


def normed_in_script(h: torch.Tensor) -> torch.Tensor:
    z = h.float()
    return z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6)


def of(function):
    """A cast, and the identity in its place."""
    return function, lambda h: h


CASTS = {
    "float": of(lambda h: h.float()),
    "half": of(lambda h: h.half()),
    "bfloat16": of(lambda h: h.bfloat16().float()),
    "to a type": of(lambda h: h.to(torch.float32)),
    "to dtype=": of(lambda h: h.to(dtype=torch.float16)),
    "to a place and a type": of(lambda h: h.to("cpu", torch.float32)),
    "to another": of(lambda h: h.to(SINGLE)),
    "type": of(lambda h: h.type(torch.float32)),
    "type by name": of(lambda h: h.type("torch.FloatTensor")),
    "type by class": of(lambda h: h.type(torch.HalfTensor)),
    "type_as": of(lambda h: h.type_as(SINGLE)),
    "softmax, dtype=": (
        lambda h: F.softmax(h, dim=-1, dtype=torch.float32), lambda h: h.softmax(-1)),
    "softmax, by place": (lambda h: torch.softmax(h, -1, torch.float32), lambda h: h.softmax(-1)),
    "sum": (lambda h: h + h.sum(1, keepdim=True, dtype=torch.float32),
            lambda h: h + h.sum(1, keepdim=True)),
    "complex": (
        lambda h: torch.view_as_real(torch.view_as_complex(h.view(-1, 2, 2)).to(torch.complex64)
                                     * torch.polar(torch.ones(2), torch.arange(2.0))).flatten(1),
        lambda h: torch.view_as_real(
            torch.view_as_complex(h.view(-1, 2, 2)) * torch.polar(
                torch.ones(2, dtype=DOUBLE), torch.arange(2, dtype=DOUBLE))).flatten(1)),
    "RMS norm": (lambda h: normed(h, torch.float32), lambda h: normed(h, DOUBLE)),
    "accumulator": (lambda h: accumulated(h, torch.float32), lambda h: accumulated(h, DOUBLE)),
    "then in place": (lambda h: h.float().mul_(2) + h, lambda h: 3 * h),
}  # fmt: skip
MADE = {
    "a number": (lambda h: h * torch.tensor(0.3), lambda h: h * 0.3),
    "zeros": (lambda h: h + torch.zeros(4).exp() / 3, lambda h: h + 1 / 3),
    "arange": (lambda h: h / torch.arange(1.0, 5).sqrt(),
               lambda h: h / torch.arange(1, 5, dtype=DOUBLE).sqrt()),
    "whole numbers": (lambda h: h * torch.arange(4).float().exp(),
                      lambda h: h * torch.arange(4).double().exp()),
    "quotient": (lambda h: h * (torch.arange(4) / 3), lambda h: h * (torch.arange(4).double() / 3)),
    "the default": (
        lambda h: h * torch.full((4,), 0.1, dtype=torch.get_default_dtype()), lambda h: h * 0.1),
    "matrix": (lambda h: h @ MATRIX, lambda h: h @ MATRIX.double()),
    "linear": (lambda h: F.linear(h, MATRIX, SINGLE),
               lambda h: F.linear(h, MATRIX.double(), SINGLE.double())),
    "from NumPy": (lambda h: h @ torch.from_numpy(MATRIX.numpy()), lambda h: h @ MATRIX.double()),
    "convolution": (lambda h: F.conv1d(h[:, None], MATRIX[:1, None, :3], padding=1)[:, 0],
                    lambda h: F.conv1d(h[:, None], MATRIX[:1, None, :3].double(), padding=1)[:, 0]),
    "cell": (lambda h: CELL(h, (torch.zeros(6, 4), MATRIX[:1].expand(6, 4)))[0],
             lambda h: CELL(h, (torch.zeros(6, 4, dtype=DOUBLE),
                                MATRIX[:1].double().expand(6, 4)))[0]),
    "LSTM": (lambda h: NEXT(h[:, None], (torch.zeros(1, 6, 4), torch.ones(1, 6, 4) / 3))[0][:, 0],
             lambda h: NEXT(h[:, None], (torch.zeros(1, 6, 4, dtype=DOUBLE),
                                         torch.ones(1, 6, 4, dtype=DOUBLE) / 3))[0][:, 0]),
}  # fmt: skip


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CASTS)
def test_casts(name, kind):
    way, plain = CASTS[name]
    if name == "then in place" and kind == torch.float32:  # no cast, and the same tensor
        plain = lambda h: h.clone().mul_(2) * 2  # noqa: E731
        way = lambda h: (h * 1).float().mul_(2) * 2  # noqa: E731
    problem = check(Network(way, kind), Network(plain, kind).double())
    assert problem.inside.lifted


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_in_the_default_precision(name):
    way, plain = MADE[name]
    check(Network(way), Network(plain))
    assert torch.get_default_dtype() == torch.float32


def test_a_loss_that_casts():
    model, loss = Network(lambda h: h), lambda o, t: F.cross_entropy(o.float(), t)
    check(model, model, loss)
    found = hr.spectrum(hr.Problem(model, loss, (X, Y)), operator="ggn")
    same = hr.spectrum(hr.Problem(model, F.cross_entropy, (X, Y)), operator="ggn")
    assert found.rank == same.rank
    allowed = 50 * found.dimension * EPS * same.eigenvalues.max()
    assert np.abs(found.eigenvalues - same.eigenvalues).max() <= allowed


@pytest.mark.parametrize("name", ["float", "bfloat16", "RMS norm", "accumulator"])
def test_nothing_is_lifted_in_single_precision(name):
    model = Network(CASTS[name][0], torch.float32)
    problem = hr.Problem(model, F.cross_entropy, (X, Y)).at(torch.float32, CPU)
    assert torch.equal(problem.outputs(problem.theta), model(X.float()))
    assert not problem.inside.lifted


def test_limits_of_a_type_and_bits_are_left():
    def way(h):
        assert torch.finfo(torch.float32).eps == 2.0**-23
        bits = h.detach().contiguous().view(torch.float32)
        assert bits.shape == (6, 8)
        return h

    model = Network(way)
    problem = hr.Problem(model, F.cross_entropy, (X, Y)).at(DOUBLE, CPU)
    assert problem.loss(problem.theta).dtype == DOUBLE
    assert not problem.inside.lifted


def test_an_error_of_another_kind_is_left():
    problem = hr.Problem(Network(lambda h: h @ MATRIX[:3]), F.cross_entropy, (X, Y))
    with pytest.raises(ProblemError, match="cannot be multiplied"):
        hr.spectrum(problem)


def test_under_the_transforms_of_torch():
    problem = hr.Problem(Network(CASTS["RMS norm"][0]), F.cross_entropy, (X, Y)).at(DOUBLE, CPU)
    theta = problem.theta
    H = by_double_backward(Network(CASTS["RMS norm"][1]), F.cross_entropy, X, Y)
    allowed = 50 * len(H) * EPS * float(H.norm())
    gradient = torch.func.grad(problem.loss)
    v = torch.ones_like(theta)
    ways = {
        "forward": torch.func.jvp(gradient, (theta,), (v,))[1],
        "reverse": torch.func.vjp(gradient, theta)[1](v)[0],
        "traced": torch.func.linearize(gradient, theta)[1](v),
        "batched": torch.func.vmap(lambda u: torch.func.jvp(gradient, (theta,), (u,))[1])(v[None]),
    }
    for product in ways.values():
        assert float((product.flatten() - H @ v).norm()) <= allowed * float(v.norm())


@pytest.mark.parametrize("way", ["no reentry", "reentry"])
@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_checkpoints(way, operator):
    class Kept(Network):
        def __init__(self):
            super().__init__(None, torch.float32)
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

        def forward(self, x):
            h = torch.tanh(self.first(x)).float()
            h = checkpoint(self.inner, h, use_reentrant=way == "reentry")
            return self.last(self.inner(h)).to(x.dtype)

    class Plain(Kept):
        def forward(self, x):
            h = self.inner(self.inner(torch.tanh(self.first(x))))
            return self.last(h)

    expected, found = (
        hr.spectrum(hr.Problem(kind(), F.cross_entropy, (X, Y)), operator=operator)
        for kind in (Plain, Kept)
    )
    allowed = 50 * found.dimension * EPS * expected.eigenvalues.max()
    assert np.abs(found.eigenvalues - expected.eigenvalues).max() <= allowed


class Custom(torch.autograd.Function):
    """A kernel in single precision."""

    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(x.detach().numpy().astype("float32"))

    @staticmethod
    def backward(ctx, g):
        return g.double()


def written(h):
    total = torch.from_numpy(np.zeros(h.shape, "float32"))
    total += h
    return total


SCRIPT = torch.jit.script(normed_in_script)
HIDDEN = {
    "written": written,
    "legacy": lambda h: torch.FloatTensor(6, 4).zero_().add_(h),
    "a slice": lambda h: torch.from_numpy(np.zeros((6, 4), "float32")).index_copy_(
        0, torch.arange(6), h.float()),
    "custom": Custom.apply,
    "script": lambda h: 2 * SCRIPT(h),
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_what_can_not_be_lifted_is_refused(name, operator):
    problem = hr.Problem(Network(HIDDEN[name]), F.cross_entropy, (X, Y))
    with pytest.raises(ProblemError, match=r"float32|Float"):
        hr.spectrum(problem, operator=operator)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_compiled_networks(whole):
    cast, plain = CASTS["RMS norm"]
    model = Network(cast, torch.float32)
    if whole:
        model = torch.compile(model, backend="eager")
    else:
        model.first = torch.compile(model.first, backend="eager")
    check(model, Network(plain, torch.float32).double())


# Data that a model or a loss writes into


class Cut(nn.Module):
    """A rectifier that autograd does not see."""

    def forward(self, x):
        x.data.clamp_(min=0)
        return x


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("first", [nn.ReLU(inplace=True), Cut()])
def test_a_model_that_works_in_place_on_its_inputs(first, kind):
    model, x = nn.Sequential(first, nn.Linear(5, 3)), X.to(kind)
    check(model, nn.Sequential(nn.ReLU(), copy.deepcopy(model[1])).double(), x=x)
    assert torch.equal(x, X.to(kind))


def test_a_loss_that_works_in_place_on_its_targets():
    def loss(outputs, targets):
        targets[targets == 2] = -100
        return F.cross_entropy(outputs, targets)

    y = Y.clone()
    found = hr.spectrum(hr.Problem(nn.Linear(5, 3), loss, (X, y)))
    assert torch.equal(y, Y)
    assert found.rank == 2 * int((y != 2).sum())


def test_infinite_masks_and_missing_numbers():
    class Masked(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.register_buffer("mask", torch.tensor([0, 0, value]))
            self.layer = nn.Linear(5, 3)

        def forward(self, x):
            return (self.layer(x) + self.mask).softmax(1)[:, :2].log()

    y = Y.clamp(max=1)
    assert hr.spectrum(hr.Problem(Masked(-torch.inf), F.nll_loss, (X, y))).rank > 0
    with pytest.raises(ProblemError, match="mask has 1 NaN"):
        hr.Problem(Masked(torch.nan), F.nll_loss, (X, y))
    broken = nn.Linear(5, 3)
    broken.bias.data[0] = torch.inf
    with pytest.raises(ProblemError, match="bias has 1 NaN or infinite"):
        hr.Problem(broken, F.cross_entropy, (X, y))
