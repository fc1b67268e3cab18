"""Gauss-Newton spectra: of any loss, of networks that return anything, by the dual matrix."""

import collections
import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from network_samples import Called, at_double, disordered, mixing
from network_samples import network as sample
from samples import Once, by_double_backward, by_jacobian, labelled, network
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import hessrmt as hr
from hessrmt.backend.cpu import CpuBackend
from hessrmt.curvature import gauss_newton as ggn_module
from hessrmt.curvature import gram, reduction
from hessrmt.errors import DeviceError, ProblemError
from hessrmt.problems.models import Block
from hessrmt.problems.outputs import ignores_softmax_shift, in_one_tensor, loss_mass, softmax_rows

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


def product(outputs, targets):
    return (outputs[:, 0] * outputs[:, 1]).mean()


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
    "rounding alone": (lambda o, y: (o**3 - o * o * o).mean() + o.mean(), Y, 0, None),
    "focal": (focal, Y, 10, None),
    "product": (product, Y, 10, None),
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


def dense(problem):
    """JᵀSJ of a problem's network and loss themselves; the loss may work in place."""
    loss, (x, y) = problem.loss_function, problem.batch.pair
    with sdpa_kernel(SDPBackend.MATH):
        return by_jacobian(problem.model, lambda o, t: loss(o.clone(), t), x, y)


def agrees(problem, matrix=None):
    """The spectrum of at most as many levels as there are outputs is that of dense JᵀSJ."""
    found = hr.spectrum(problem, device="cpu", operator="ggn")
    exact = np.linalg.eigvalsh(dense(at_double(problem)) if matrix is None else matrix)
    norm = np.abs(exact).max()
    # the floor is of ours; a dense solver of P rows has its own
    assert np.abs(found.eigenvalues - exact).max() <= found.noise_floor + len(exact) * EPS * norm
    assert not np.isnan(found.check)
    return found


@pytest.mark.parametrize("name", LOSSES)
def test_any_loss(name):
    loss, targets, rank, mass = LOSSES[name]
    problem = hr.Problem(mlp(), loss, (X, targets))
    assert agrees(problem).rank == rank
    local = in_one_tensor(at_double(problem))
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
    found = agrees(problem)
    assert found.reduced_dimension == problem.dimension < X.shape[0] * K
    gap = torch.from_numpy(ggn_module.ggn(problem)) - dense(problem)
    assert float(gap.abs().max()) <= found.noise_floor + 1e-15
    if found.rank:
        real = ggn_module.ggn_product
        monkeypatch.setattr(ggn_module, "ggn_product", lambda p: lambda v: real(p)(v) * (1 + 1e-9))
        for road in (ggn_module.ggn, lambda p: hr.spectrum(p, operator="ggn")):
            with pytest.raises(ProblemError, match="does not act as the Gauss-Newton matrix"):
                road(problem)


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
    labels = Y % 2
    matrix = dense(hr.Problem(returns(lambda o: get(make(o))), loss, (X, labels)))
    problem = hr.Problem(returns(make), lambda o, y: loss(get(o), y), (X, labels))
    agrees(problem, matrix)
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
    matrix = dense(hr.Problem(beside, loss_of_flat, (X, REAL)))
    agrees(hr.Problem(net, loss, (X, REAL)), matrix)


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
    problem = hr.Problem(mlp(hidden=30), loss, (TOKENS, GAPS))
    assert agrees(problem).rank == 2 * rows
    local = at_double(problem)
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
    agrees(hr.Problem(net, loss, data))
    exact = np.linalg.eigvalsh(by_double_backward(net, loss, *data))
    found = hr.spectrum(hr.Problem(net, loss, data))
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


@pytest.fixture(scope="module")
def small_resnet():
    torch.manual_seed(0)
    first = nn.Conv2d(3, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2), nn.ReLU(inplace=True)
    blocks = Block(2, 2, 1), Block(2, 4, 2), Block(4, 8, 2)
    net = nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return hr.Problem(disordered(net).eval(), "cross-entropy", labelled((8, 3, 12, 12), 4))


def test_a_shrunken_resnet_against_the_dense_matrix(small_resnet):
    assert 1000 < small_resnet.dimension < 2000
    found = agrees(small_resnet)
    assert found.reduced_dimension == found.rank == 8 * 3
    # every parameter sits in a layer, so nothing took the slow way
    layers = gram.find_layers(at_double(small_resnet))
    assert sum(layer.row for layer in layers) == small_resnet.dimension
    assert {layer.keeps_rows for layer in layers} == {True, False}
    # the check is a residual of the size of rounding, and not of nothing
    assert 0 < found.check < 10 * small_resnet.dimension**0.5 * EPS


def test_a_tiny_working_memory_changes_nothing_but_rounding(small_resnet, monkeypatch):
    whole = hr.spectrum(small_resnet, operator="ggn")
    monkeypatch.setattr(ggn_module, "WORK_BYTES", 2**12)
    monkeypatch.setattr(gram, "_TILE", 5)
    # groups of one layer, one sample at a time, slices of outputs and ranges of coordinates
    problem = at_double(small_resnet)
    assert len(list(gram._groups(gram.find_layers(problem), 24, 8, 2**12))) > 10
    assert gram.saved_for_backward(problem.part(slice(0, 1))) > 2**12
    sliced = hr.spectrum(small_resnet, operator="ggn")
    # K is a sum of P products in another order: within its rounding, twice
    assert np.abs(whole.eigenvalues - sliced.eigenvalues).max() <= 2 * whole.noise_floor


def test_rounding_bound_holds_in_single_precision(small_resnet):
    """Float32 errors are known exactly from float64; the same formulas bound both."""
    exact = at_double(small_resnet)
    saddle, few = mlp().float(), (X.float(), Y)
    for model, loss, data in (  # parameters and data that float32 holds exactly
        (exact.model.float(), "cross-entropy", (exact.inputs.float(), exact.targets)),
        (saddle, product, few),
        (saddle, contrastive, few),
    ):
        problem = hr.Problem(model, loss, data)
        double, single = (hr.spectrum(problem, "cpu", f"float{n}", "ggn") for n in (64, 32))
        assert (double.eigenvalues[0] < 0) == (model is saddle)
        error = np.abs(double.eigenvalues - single.eigenvalues).max()
        assert 0 < error <= single.noise_floor
        if model is not saddle:  # changes by an ulp are drawn anew in each
            ratio = single.noise_floor / double.noise_floor
            np.testing.assert_allclose(ratio, np.finfo(np.float32).eps / EPS, rtol=0.3)


def eigenvalues_of_form(triangle, signs):
    """Of R diag(±1) Rᵀ in float64."""
    return torch.linalg.eigvalsh((triangle.double() * signs) @ triangle.double().T)


def test_rounding_of_matrices_of_many_terms():
    """The formulas against products and factors of float32 rows that are known in float64."""
    draw = torch.Generator().manual_seed(1)
    signs = torch.tensor([1.0, -1.0] * 20)
    for terms in (1_000, 30_000, 100_000):
        rows = torch.randn(terms, 40, generator=draw)
        found, exact = rows.T @ rows, rows.double().T @ rows.double()
        error = torch.linalg.matrix_norm(found.double() - exact, ord=2)
        assert 0 < float(error) <= ggn_module.rounding_of_gram(found, terms)
        factor, exact = (torch.linalg.qr(r, mode="r").R for r in (rows, rows.double()))
        gap = eigenvalues_of_form(factor, signs) - eigenvalues_of_form(exact, signs)
        assert 0 < float(gap.abs().max()) <= ggn_module.rounding_of_triangle(factor, terms)


@pytest.mark.parametrize("name", ["attention", "depthwise"])
def test_one_sample_and_single_precision(name):
    net, x, y = sample(name)
    agrees(hr.Problem(net, "cross-entropy", (x[:1], y[:1])))
    net = net.float()  # parameters that both precisions hold exactly
    problem = hr.Problem(net, "cross-entropy", (x, y))
    single = hr.spectrum(problem, operator="ggn", dtype="float32")
    double = hr.spectrum(problem, operator="ggn")
    assert single.reduced_dimension == double.reduced_dimension
    # the floor is of the formed matrix; rounding the data to float32 moves G by about as much
    assert np.abs(single.eigenvalues - double.eigenvalues).max() <= 3 * single.noise_floor
    assert 0 < single.check < 1e-5


def test_one_block_only():
    net, x, y = sample("strided")
    problem = hr.Problem(net, "cross-entropy", (x, y), only="0.*")
    assert [layer.name for layer in gram.find_layers(at_double(problem))] == ["0"]
    agrees(problem)


def coupled(outputs, targets):
    """Convex in the outputs, but their mean over the batch enters."""
    return outputs.square().mean() + outputs.mean(0).square().sum() + torch.logsumexp(outputs, 0)[0]


def test_samples_that_the_network_is_certain_of_keep_their_digits():
    """The curvature of softmax by differentiation would have an error of ε/B, not ε p(1 - p)/B."""
    net, x, y = sample("mlp")
    with torch.no_grad():
        net[2].bias.copy_(torch.tensor([30.0, 0.0, -3.0]))
    found = hr.spectrum(hr.Problem(net, "cross-entropy", (x, y)), operator="ggn")
    assert found.reduced_dimension == found.rank == 14
    assert found.eigenvalues[-1] < 1e-11

    exact = at_double(hr.Problem(net, "cross-entropy", (x, y)))
    theta = exact.theta
    jacobian = torch.autograd.functional.jacobian(exact.outputs, theta)
    p = np.exp(np.asarray(exact.outputs(theta).detach(), dtype=np.longdouble))
    p /= p.sum(1, keepdims=True)
    root = np.sqrt(p / len(x))[:, :, None] * (np.eye(3) - p[:, None, :])
    rows = (root.astype(np.float64) @ jacobian.numpy()).reshape(-1, len(theta))
    singular = np.linalg.svd(rows, compute_uv=False)[:14]
    # a relative error of |f| ε in p, f = 30, and the SVD's own
    assert np.abs(found.resolved[::-1] - singular**2).max() <= 1e3 * EPS * singular[0] ** 2


@pytest.mark.parametrize(
    "how",
    [
        lambda h: h - h.mean(0),
        lambda h: h + torch.roll(h, 1, 0),
        lambda h: torch.softmax(h @ h.T, -1) @ h,
        lambda h: h * len(h),
    ],
    ids=["mean", "roll", "attention over samples", "length"],
)
def test_networks_that_mix_samples_take_the_whole_batch(how):
    torch.manual_seed(0)
    pair = labelled((7, 6), 3)
    net = mixing(how)
    problem = hr.Problem(net, "cross-entropy", pair)
    local = at_double(problem)
    assert not gram.samples_are_apart(local, local.outputs(local.theta).detach())
    assert agrees(problem).reduced_dimension == 14
    agrees(hr.Problem(net, coupled, pair))


def test_a_network_that_mixes_unseen_is_refused(monkeypatch):
    """The trial is of a few samples; what it cannot see, the check does."""
    monkeypatch.setattr(ggn_module, "samples_are_apart", lambda problem, outputs: True)
    torch.manual_seed(0)
    problem = hr.Problem(mixing(lambda h: h - h.mean(0)), "cross-entropy", labelled((7, 6), 3))
    with pytest.raises(ProblemError, match="does not act as the Gauss-Newton matrix"):
        hr.spectrum(problem, operator="ggn")


def test_a_wrong_gram_matrix_is_refused(small_resnet, monkeypatch):
    def spoiled(*arguments, **options):
        found = gram.gram(*arguments, **options)
        found[3, 5] += 1e-9 * found[3, 3]
        found[5, 3] = found[3, 5]
        return found

    monkeypatch.setattr(ggn_module, "gram", spoiled)
    with pytest.raises(ProblemError, match="No level is reported"):
        hr.spectrum(small_resnet, operator="ggn")


def test_without_second_derivatives_there_is_no_check():
    spectra = []
    for how in (Once.apply, torch.tanh):
        torch.manual_seed(0)
        problem = hr.Problem(mixing(how), "cross-entropy", labelled((6, 6), 3))
        spectra.append(hr.spectrum(problem, operator="ggn"))
    found, expected = spectra
    assert np.isnan(found.check)
    np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, atol=expected.noise_floor)


def test_nothing_depends_on_the_parameters():
    net = Called(lambda _, x: x[:, :3], layer=nn.Linear(6, 3))
    found = hr.spectrum(hr.Problem(net, "cross-entropy", labelled((4, 6), 3)), operator="ggn")
    assert found.rank == 0
    assert found.check == 0
    assert not found.eigenvalues.any()


def test_too_little_memory_is_refused_with_numbers(small_resnet, monkeypatch):
    monkeypatch.setattr(CpuBackend, "free_memory", lambda self: 50_000)
    with pytest.raises(DeviceError, match=r"Gram matrix \(32 x 32\).*MiB.*smaller batch"):
        hr.spectrum(small_resnet, device="cpu", operator="ggn")


def test_a_loss_that_is_not_convex_needs_room_for_its_factor(small_resnet, monkeypatch):
    problem = hr.Problem(small_resnet.model, product, (small_resnet.inputs, small_resnet.targets))
    found = hr.spectrum(problem, device="cpu", operator="ggn")
    assert found.reduced_dimension == found.rank == 16
    monkeypatch.setattr(CpuBackend, "free_memory", lambda self: 2**24)
    monkeypatch.setattr(ggn_module, "_TRIANGLES", 2**12)
    with pytest.raises(DeviceError, match="'product' is not convex"):
        hr.spectrum(problem, device="cpu", operator="ggn")


def test_progress_ends_with_all_parameters(small_resnet):
    seen = []
    ggn_module.smallest_ggn(at_double(small_resnet), CpuBackend(), lambda *step: seen.append(step))
    assert seen[-1] == ("matrix", small_resnet.dimension, small_resnet.dimension)
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})


PEAK = """
import resource, sys, torch
import hessrmt as hr
from hessrmt.problems import models
torch.set_num_threads(1)
model = models.build("resnet56", (3, 32, 32), 10, 0).eval()
draw = torch.Generator().manual_seed(0)
x = torch.randn(64, 3, 32, 32, generator=draw, dtype=torch.float64)
found = hr.spectrum(hr.Problem(model, "cross-entropy", (x, torch.arange(64) % 10)), operator="ggn")
print(found.reduced_dimension, found.rank, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_peak_memory_of_resnet56():
    done = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, timeout=1800
    )
    rows, rank, peak = map(int, done.stdout.split())
    assert rows == rank == 576
    assert peak * 1024 < 3e9
