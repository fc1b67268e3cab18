"""Every kind of layer and of loss against double backward and differences of the gradient."""

import numpy as np
import pytest
import torch
from kind_samples import AS_A_FORMULA, BY_DIFFERENCES, LAYERS, LOSSES, LOSSES_BY_DIFFERENCES, normal
from samples import by_double_backward, by_jacobian
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

import hessrmt as hr
from hessrmt.curvature.stochastic import probe
from hessrmt.errors import ProblemError

EPS = float(np.finfo(np.float64).eps)
REFUSED = {"CTC": "_ctc_loss_backward"}
"""What torch cannot differentiate twice, and what the refusal names."""


def by_differences(model, loss, x, y):
    """Central differences of the gradient, and a bound on their error: that of twice the step."""
    parameters = list(model.parameters())
    theta = torch.nn.utils.parameters_to_vector(parameters).detach()
    step = EPS ** (1 / 3)

    def gradient(at):
        torch.nn.utils.vector_to_parameters(at, parameters)
        found = torch.autograd.grad(loss(model(x), y), parameters, materialize_grads=True)
        return torch.cat([g.to_dense().reshape(-1) for g in found])

    unit = torch.eye(len(theta), dtype=theta.dtype)
    once, twice = (
        torch.stack([(gradient(theta + h * e) - gradient(theta - h * e)) / (2 * h) for e in unit])
        for h in (step, 2 * step)
    )
    size = float(gradient(theta).abs().max())
    return once, float((once - twice).abs().max()) + 100 * EPS * size / step


def compare(model, loss, x, y, doubled, slack=0.0, oracle=None):
    oracle = oracle or loss
    inputs = x if len(x) > 1 else x[0]
    call = (lambda x: model(*x)) if len(x) > 1 else model
    call_of = type("Called", (), {"parameters": model.parameters, "__call__": lambda _, x: call(x)})
    user = call_of()
    problem = hr.Problem(model, loss, (inputs, y))
    matrix, levels = torch.from_numpy(hr.hessian(problem)), hr.spectrum(problem).eigenvalues
    quotient, bound = by_differences(user, loss, inputs, y)
    n, norm = len(matrix), float(torch.linalg.matrix_norm(matrix, 2))
    assert float((matrix - quotient).abs().max()) <= bound + slack * norm
    allowed = 50 * n * EPS * norm  # two ways of differentiating, and of adding up
    expected = np.linalg.eigvalsh(matrix.numpy())
    assert np.abs(levels - expected).max() <= allowed
    if doubled:
        with sdpa_kernel(SDPBackend.MATH):
            exact = by_double_backward(user, oracle, inputs, y)
            gauss_newton = by_jacobian(user, oracle, inputs, y)
        assert float((matrix - exact).abs().max()) <= allowed
        size = float(torch.linalg.matrix_norm(gauss_newton, 2))
        gap = torch.from_numpy(hr.ggn(problem)) - gauss_newton
        assert float(gap.abs().max()) <= 50 * n * EPS * size
    without_a_matrix(problem, matrix.numpy(), expected, allowed)


def without_a_matrix(problem, matrix, levels, allowed):
    """Leading eigenpairs, and Gauss quadrature of one random vector."""
    count = min(2, len(levels))
    pairs = hr.eigsh(problem, count, "LM")
    leading = np.sort(np.abs(levels))[-count:]
    assert np.abs(np.sort(np.abs(pairs.values)) - leading).max() <= pairs.bounds.max() + allowed
    operator = hr.Hessian(problem)
    steps = min(len(levels), 6)
    found = hr.density(operator, probes=1, steps=steps).quadrature
    v = probe(operator, 0, 0, "rademacher").numpy()
    v = v / np.linalg.norm(v)
    curved = matrix @ v
    for power, exact in ((1, v @ curved), (2, curved @ curved)):
        moment = float((found.weights[0] * found.nodes[0] ** power).sum())
        scale = max(np.abs(levels).max(), EPS) ** (power - 1)
        assert abs(moment - exact) <= power * scale * allowed


def layer(name, seed):
    torch.manual_seed(seed)
    model, *x = LAYERS[name]()
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    y = torch.randint(3, (len(model(*x)),))
    # torch's gradient of hardsigmoid has a sixth in single precision
    slack = 2.0**-24 if name == "Hardsigmoid" else 0.0
    compare(model, F.cross_entropy, x, y, name not in BY_DIFFERENCES, slack)


def loss(name, seed):
    torch.manual_seed(seed)
    function, targets = LOSSES[name]
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    doubled = name not in LOSSES_BY_DIFFERENCES
    compare(model, function, [normal(3)], targets(), doubled, oracle=AS_A_FORMULA.get(name))


SWEEP = [(layer, name) for name in LAYERS] + [(loss, name) for name in LOSSES]
QUICK = {
    "Hardswish in place", "sparse Embedding", "EmbeddingBag, ragged max", "weight_norm",
    "cdist, p = 2.0", "pdist", "RReLU", "multi margin, squared", "multilabel margin",
    "cross-entropy, weights and smoothed", "MSE", "Huber", "smooth L1", "BCE with logits",
    "Poisson", "RNN", "GRU", "RMSNorm", "Hardsigmoid", "Hardswish", "LayerNorm", "Conv2d",
    "MaxPool2d", "MultiheadAttention without weights",
}  # fmt: skip


@pytest.mark.parametrize(("sort", "name"), [pair for pair in SWEEP if pair[1] in QUICK])
def test_kinds_that_are_replaced(sort, name):
    sort(name, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("sort", "name"), SWEEP)
def test_every_kind(sort, name):
    for seed in range(3):
        if name in REFUSED:
            with pytest.raises(ProblemError, match=REFUSED[name]):
                sort(name, seed)
        else:
            sort(name, seed)
