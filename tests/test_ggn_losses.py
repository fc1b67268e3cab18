"""The Gauss-Newton matrix of any loss, and of networks that return anything."""

import collections
import dataclasses

import numpy as np
import pytest
import torch
from network_samples import Called, at_double
from samples import by_double_backward, by_jacobian, labelled, network
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

import hessrmt as hr
from hessrmt.curvature import gauss_newton as ggn_module
from hessrmt.curvature import reduction
from hessrmt.curvature.gauss_newton import rounding_of_triangle
from hessrmt.errors import ProblemError
from hessrmt.problems.outputs import (
    ignores_softmax_shift,
    in_one_tensor,
    loss_mass,
    softmax_rows,
)

EPS = float(np.finfo(np.float64).eps)
B, K = 5, 3
X, Y = labelled((B, 4), K)
REAL = labelled((B, K), 2, seed=1)[0]
SHARES = REAL.softmax(1)
WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
HOLES = torch.where(torch.arange(B) == 2, -100, Y)


def mlp(outputs=K, hidden=14, inputs=4):
    return network(inputs, hidden, outputs, seed=1)


def focal(outputs, labels):
    each = F.cross_entropy(outputs, labels, reduction="none")
    return ((1 - torch.exp(-each)) ** 2 * each).mean()


def contrastive(outputs, labels):
    z = F.normalize(outputs, dim=1)
    return F.cross_entropy(z @ z.T - 1e9 * torch.eye(B, dtype=z.dtype), torch.arange(B).roll(1))


def regularised(outputs, labels):
    return F.cross_entropy(outputs, labels) + 0.1 * outputs.logsumexp(1).square().mean()


def in_place(outputs, targets):
    return outputs.sub_(targets).square().mean()


# loss, targets, rank, mass of the batch if it is a cross-entropy
LOSSES = {
    "MSE": (nn.MSELoss(), REAL, 15, None),
    "Huber": (nn.HuberLoss(), REAL, int((REAL - mlp()(X)).abs().lt(1).sum()), None),
    "soft margin": (nn.SoftMarginLoss(), REAL.sign(), 15, None),
    "Poisson": (nn.PoissonNLLLoss(), SHARES, 15, None),
    "in place": (in_place, REAL, 15, None),
    "L1": (nn.L1Loss(), REAL, 0, None),
    "NLL": (nn.NLLLoss(), Y, 0, None),
    "KL": (nn.KLDivLoss(reduction="batchmean"), SHARES, 0, None),
    "focal": (focal, Y, 10, None),
    "product": (lambda o, y: (o[:, 0] * o[:, 1]).mean(), Y, 10, None),
    "contrastive": (contrastive, Y, 15, None),
    "covariance": (lambda o, y: torch.cov(o.T).square().sum() + o.square().mean(), Y, 15, None),
    "regularised": (regularised, Y, 15, None),
    "squared": (lambda o, y: F.cross_entropy(o, y) ** 2, Y, 10, None),
    "cross-entropy": (nn.CrossEntropyLoss(), Y, 10, 5),
    "weights": (nn.CrossEntropyLoss(weight=WEIGHTS), Y, 10, float(WEIGHTS[Y].sum())),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), Y, 10, 5),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), Y, 10, 5),
    "shares": (nn.CrossEntropyLoss(), SHARES, 10, 5),
    "holes": (nn.CrossEntropyLoss(), HOLES, 8, 4),
    "two": (lambda o, y: 0.3 * F.cross_entropy(o, y) + 0.7 * F.cross_entropy(o, 2 - y), Y, 10, 5),
    "by parts": (lambda o, y: F.nll_loss(F.log_softmax(o, 1), y), Y, 10, 5),
    "divergence": (
        lambda o, q: F.kl_div(torch.log_softmax(o, 1), q, reduction="batchmean"), SHARES, 10, 5,
    ),
    "hardest": (
        lambda o, y: F.cross_entropy(o, y, reduction="none").topk(2).values.mean(), Y, 4, 2,
    ),
    "classes first": (lambda o, y: F.cross_entropy(o.T, torch.arange(K)), Y, 12, 3),
}  # fmt: skip


def dense(net, loss, x, y):
    """JᵀSJ of a network itself; the loss may work in place."""
    return by_jacobian(net, lambda o, t: loss(o.clone(), t), x, y)


def agrees(net, loss, x, y, matrix=None):
    found = hr.spectrum(hr.Problem(net, loss, (x, y)), operator="ggn")
    exact = np.linalg.eigvalsh(dense(net, loss, x, y) if matrix is None else matrix)
    norm = np.abs(exact).max()
    # the floor is of ours; a dense solver of P rows has its own
    assert np.abs(found.eigenvalues - exact).max() <= found.noise_floor + len(exact) * EPS * norm
    assert not np.isnan(found.check)
    return found


@pytest.mark.parametrize("name", LOSSES)
def test_any_loss(name):
    loss, targets, rank, mass = LOSSES[name]
    assert agrees(mlp(), loss, X, targets).rank == rank
    local = in_one_tensor(at_double(hr.Problem(mlp(), loss, (X, targets))))
    rows = softmax_rows(local, local.here())
    assert (rows is None) == (mass is None)
    counted = 1 if local.is_sum else B if mass is None or name == "hardest" else mass
    assert loss_mass(local) == pytest.approx(counted, rel=8 * EPS)
    invariant = mass is not None and name != "classes first"
    assert ignores_softmax_shift(local) == (invariant or name in ("focal", "squared"))


@pytest.mark.parametrize("name", ["MSE", "Huber", "focal", "weights", "L1"])
def test_more_outputs_than_parameters_are_checked_too(name, monkeypatch):
    loss, targets, _, _ = LOSSES[name]
    net = nn.Sequential(nn.Linear(4, 1), nn.Tanh(), nn.Linear(1, K, bias=False)).double()
    problem = hr.Problem(net, loss, (X, targets))
    found = agrees(net, loss, X, targets)
    assert found.reduced_dimension == problem.dimension < X.shape[0] * K
    gap = torch.from_numpy(ggn_module.ggn(problem)) - dense(net, loss, X, targets)
    assert float(gap.abs().max()) <= found.noise_floor + 1e-15
    if found.rank:
        real = ggn_module.ggn_product
        monkeypatch.setattr(ggn_module, "ggn_product", lambda p: lambda v: real(p)(v) * (1 + 1e-9))
        for road in (ggn_module.ggn, lambda p: hr.spectrum(p, operator="ggn")):
            with pytest.raises(ProblemError, match="does not act as the Gauss-Newton matrix"):
                road(problem)


@pytest.mark.parametrize("name", ["product", "contrastive"])
def test_rounding_of_losses_that_are_not_convex(name):
    """Float32 errors are known from float64; the same formulas bound both."""
    loss, targets, _, _ = LOSSES[name]
    exact = mlp().float()  # parameters and data that float32 holds exactly
    problem = hr.Problem(exact, loss, (X.float(), targets))
    double, single = (hr.spectrum(problem, operator="ggn", dtype=f"float{n}") for n in (64, 32))
    assert double.eigenvalues[0] < 0
    error = np.abs(double.eigenvalues - single.eigenvalues).max()
    assert 0 < error <= single.noise_floor


def test_rounding_of_a_factor_of_many_rows():
    draw = torch.Generator().manual_seed(1)
    signs = torch.tensor([1.0, -1.0] * 20)
    for terms in (1_000, 30_000):
        rows = torch.randn(terms, 40, generator=draw)
        factor = torch.linalg.qr(rows, mode="r").R
        exact = torch.linalg.qr(rows.double(), mode="r").R
        found, true = (
            torch.linalg.eigvalsh((r * signs.to(r)) @ r.T).double()
            for r in (factor.double(), exact)
        )
        assert 0 < float((found - true).abs().max()) <= rounding_of_triangle(factor, terms)


def test_a_saturated_loss_has_the_rounding_of_its_derivatives_in_its_floor():
    """All of the curvature is 1 - tanh², of numbers near one."""
    net = mlp(hidden=40)
    with torch.no_grad():
        net[2].weight.mul_(20)
    loss = lambda o, y: (torch.log1p(torch.exp(o)) - o * y).mean()  # noqa: E731
    found = hr.spectrum(hr.Problem(net, loss, (X, (REAL > 0).double())), operator="ggn")
    outputs = net(X).detach()
    p = torch.sigmoid(outputs)
    root = (p * torch.sigmoid(-outputs) / outputs.numel()).sqrt()
    slopes = torch.func.jacrev(lambda p: torch.func.functional_call(net, p, (X,)).flatten())
    parts = slopes({name: p.detach() for name, p in net.named_parameters()}).values()
    jacobian = torch.cat([part.flatten(1) for part in parts], dim=1)
    exact = torch.linalg.svdvals(root.reshape(-1, 1) * jacobian).square().flip(0).numpy()
    assert np.abs(found.eigenvalues[-15:] - exact).max() <= found.noise_floor


@dataclasses.dataclass
class Out:
    logits: torch.Tensor
    past: object = None
    count: int = 3


def returns(make):
    return Called(lambda m, x: make(m.net(x)), net=mlp(hidden=20))


def nested(o):
    return {"a": [o, None, 3], "cache": (torch.arange(3), o.detach() * 2, "text")}


STRUCTURES = {
    "dataclass": (Out, lambda o: o.logits),
    "nested": (nested, lambda o: o["a"][0]),
    "UserDict": (lambda o: collections.UserDict(logits=o), lambda o: o["logits"]),
    "views": (
        lambda o: (o[:, :1], {"more": o[:, 1:]}), lambda o: torch.cat([o[0], o[1]["more"]], 1),
    ),
    "classes first": (lambda o: (o.T,), lambda o: o[0].T),
    "distribution": (
        lambda o: torch.distributions.Normal(o, torch.ones(()), validate_args=False),
        lambda o: o.loc,
    ),
    "complex": (
        lambda o: torch.complex(o[:, 0], o[:, 1]), lambda o: torch.stack([o.real, o.imag], 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("loss", [F.cross_entropy, focal], ids=lambda loss: loss.__name__)
def test_structured_outputs(name, loss):
    make, get = STRUCTURES[name]
    labels, of_all = Y % 2, lambda o, y: loss(get(o), y)
    matrix = dense(returns(lambda o: get(make(o))), loss, X, labels)
    agrees(returns(make), of_all, X, labels, matrix)
    problem = hr.Problem(returns(make), of_all, (X, labels))
    operator = hr.CurvatureOperator.of(problem, "ggn", batch=3)  # micro-batches of 3 and 2
    v = torch.ones(1, problem.dimension, dtype=torch.float64)
    allowed = 100 * EPS * problem.dimension * float(torch.linalg.matrix_norm(matrix, 2))
    assert float((operator(v) - v @ matrix).norm()) <= allowed


def test_outputs_that_belong_to_no_sample():
    def outputs(m, x):
        return {"o": m.net(x), "scales": m.scales * 2, "ids": torch.arange(len(x))}

    def flat(m, x):
        return torch.cat([m.net(x).flatten(), m.scales * 2])

    def loss(o, t):
        return (o["o"] - t).square().mean() * (1 + o["scales"].square().sum())

    def loss_of_flat(o, t):
        return loss({"o": o[:-7].view(B, K), "scales": o[-7:]}, t)

    net, beside = Called(outputs, net=mlp()), Called(flat, net=mlp())
    for model in (net, beside):
        model.scales = nn.Parameter(torch.ones(7, dtype=torch.float64))
    agrees(net, loss, X, REAL, dense(beside, loss_of_flat, X, REAL))


def test_what_cannot_be_copied_is_said():
    net = returns(lambda o: (o, (i for i in range(2))))
    problem = hr.Problem(net, lambda o, y: F.cross_entropy(o[0], y), (X, Y))
    assert hr.spectrum(problem).rank > 0  # the Hessian needs no copy
    with pytest.raises(ProblemError, match="returns a tuple that cannot be copied"):
        hr.spectrum(problem, operator="ggn")


TOKENS = labelled((B, 6, 4), K)[0]
WORDS = torch.arange(B * 6).view(B, 6) % K
GAPS = torch.where(torch.arange(B * 6).view(B, 6) % 7 > 2, WORDS, -100)


@pytest.mark.parametrize(
    ("loss", "rows"),
    [
        (lambda o, y: F.cross_entropy(o.mT, y), int((GAPS >= 0).sum())),
        (lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten()), int((GAPS >= 0).sum())),
        (
            lambda o, y: F.cross_entropy(o[:, :-1].reshape(-1, K), y[:, 1:].reshape(-1)),
            int((GAPS[:, 1:] >= 0).sum()),
        ),
        (lambda o, y: F.cross_entropy(o[y >= 0], y[y >= 0]), int((GAPS >= 0).sum())),
    ],
    ids=["dim 1", "flat", "shifted", "masked"],
)
def test_tokens_count_in_the_mean_that_the_loss_takes(loss, rows):
    net = mlp(hidden=30)
    assert agrees(net, loss, TOKENS, GAPS).rank == 2 * rows
    local = at_double(hr.Problem(net, loss, (TOKENS, GAPS)))
    parts = [local.part(slice(0, 2)), local.part(slice(2, B))]
    masses = [loss_mass(part) for part in parts]
    assert sum(masses) == loss_mass(local) == rows
    mean = sum(m * float(p.loss(p.theta)) for m, p in zip(masses, parts, strict=True)) / rows
    assert mean == pytest.approx(float(local.loss(local.theta)), rel=8 * EPS)


def differentiating(m, x):
    x = x.clone().requires_grad_()
    u = m.net(x)
    first = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
    return torch.autograd.grad(first.sum(), x, create_graph=True)[0] + u


CHECKPOINTED = Called(lambda m, x: checkpoint(m.net, x, use_reentrant=False), net=mlp())
PHYSICS = Called(differentiating, net=mlp(1, 9, 1))


@pytest.mark.parametrize(
    ("net", "data"),
    [(CHECKPOINTED, (X, REAL)), (PHYSICS, (X[:, :1], REAL[:, :1]))],
    ids=["checkpoint", "physics"],
)
@pytest.mark.parametrize(
    "loss", [nn.MSELoss(), lambda o, t: (o - t).cos().mean()], ids=["mse", "cos"]
)
def test_networks_that_are_differentiated_by_plain_reverse_mode(net, data, loss):
    agrees(net, loss, *data)


def test_the_hessian_of_a_network_that_differentiates_itself():
    loss, x, t = nn.MSELoss(), X[:, :1], REAL[:, :1]
    exact = np.linalg.eigvalsh(by_double_backward(PHYSICS, loss, x, t))
    found = hr.spectrum(hr.Problem(PHYSICS, loss, (x, t)))
    allowed = 20 * len(exact) * EPS * np.abs(exact).max()
    assert np.abs(found.eigenvalues - exact).max() <= allowed


class Half(torch.autograd.Function):
    """x² whose second derivative torch gets wrong."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = 2 * x.detach()
        return x * x

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


def test_a_loss_with_a_wrong_second_derivative_is_refused():
    problem = hr.Problem(mlp(), lambda o, t: Half.apply(o - t).mean(), (X, REAL))
    with pytest.raises(ProblemError, match="second derivative of this loss is wrong"):
        hr.spectrum(problem, operator="ggn")


def test_a_basis_that_leaves_out_what_the_loss_depends_on_is_refused(monkeypatch):
    problem = hr.Problem(mlp(), regularised, (X, Y))
    assert hr.reduction(problem).reduced_dimension == problem.dimension
    monkeypatch.setattr(reduction, "ignores_softmax_shift", lambda problem: True)
    with pytest.raises(ProblemError, match="does not act as the Hessian"):
        hr.reduction(problem)
