"""Networks that are certain of every sample: a Hessian of tiny numbers, and no digit lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import hessrmt as hr
from hessrmt.problems.equivalents import cross_entropy
from hessrmt.problems.outputs import ignores_softmax_shift

SAMPLES, FEATURES, CLASSES = 12, 30, 4


def usual(outputs, labels):
    """The same loss, of which hessrmt knows nothing."""
    return (outputs.logsumexp(1) - outputs.gather(1, labels[:, None])[:, 0]).mean()


def certain(scale):
    """Softmax regression that fits its samples, with all scores multiplied by a number."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SAMPLES, FEATURES, generator=generator, dtype=torch.float64)
    y = torch.arange(SAMPLES) % CLASSES
    model = torch.nn.Linear(FEATURES, CLASSES, bias=False).double()
    wanted = 8.0 * F.one_hot(y, CLASSES).double() + torch.rand(
        SAMPLES, CLASSES, generator=generator, dtype=torch.float64
    )
    with torch.no_grad():
        model.weight.copy_(scale * torch.linalg.lstsq(x, wanted).solution.T)
    return model, x, y


def exact_levels(model, x):
    """Nonzero levels of XᵀSX/B by the dual, S in extended precision without cancellation."""
    outputs = (x @ model.weight.detach().T).numpy().astype(np.longdouble)
    e = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    lower = np.linalg.cholesky((x @ x.T).numpy() / SAMPLES)
    curvature = np.zeros((SAMPLES, CLASSES, CLASSES))
    for i in range(SAMPLES):
        block = -np.outer(p[i], p[i])
        for k in range(CLASSES):
            block[k, k] = p[i, k] * np.delete(e[i], k).sum() / e[i].sum()
        curvature[i] = block
    dual = np.einsum("ia,icd,ib->acbd", lower, curvature, lower)
    return np.linalg.eigvalsh(dual.reshape(SAMPLES * CLASSES, -1))[SAMPLES:]


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("loss", ["cross-entropy", usual])
def test_every_error_is_below_the_floor(scale, loss):
    model, x, y = certain(scale)
    found = hr.spectrum(hr.Problem(model, loss, (x, y)))
    expected = exact_levels(model, x)
    # the reference's own rounding: n ε of its largest level
    slack = SAMPLES * CLASSES * np.finfo(float).eps * expected[-1]
    top = found.eigenvalues[-len(expected) :]
    assert np.abs(top - expected).max() <= found.noise_floor + slack


def as_tokens(outputs, labels):
    """Classes on the second axis of three."""
    scores = outputs.view(2, -1, CLASSES).transpose(1, 2)
    return F.cross_entropy(scores, labels.view(2, -1), ignore_index=-1)


SPELLINGS = {
    "by name": "cross-entropy",
    "function": F.cross_entropy,
    "module": torch.nn.CrossEntropyLoss(),
    "lambda": lambda outputs, labels: F.cross_entropy(outputs.float(), labels),
    "weights": lambda f, y: F.cross_entropy(f, y, torch.ones(CLASSES), reduction="sum") / SAMPLES,
    "tokens": as_tokens,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_cross_entropy_keeps_all_digits(spelling):
    model, x, y = certain(3.0)
    found = hr.spectrum(hr.Problem(model, SPELLINGS[spelling], (x, y)))
    assert found.loss < 1e-9
    assert found.rank == SAMPLES * (CLASSES - 1)
    # n ε for 120 parameters is 2.7e-14; what is measured of the matrix may be some times that
    assert found.noise_floor < 2e-13 * found.eigenvalues[-1]
    expected = exact_levels(model, x)
    slack = SAMPLES * CLASSES * np.finfo(float).eps * expected[-1]
    top = found.eigenvalues[-len(expected) :]
    assert np.abs(top - expected).max() <= found.noise_floor + slack


def test_another_loss_gets_a_higher_floor():
    model, x, y = certain(3.0)
    known = hr.spectrum(hr.Problem(model, "cross-entropy", (x, y)))
    other = hr.spectrum(hr.Problem(model, usual, (x, y)))
    assert other.noise_floor > 1e3 * known.noise_floor
    model, x, y = certain(4.0)
    known = hr.spectrum(hr.Problem(model, "cross-entropy", (x, y)))
    other = hr.spectrum(hr.Problem(model, usual, (x, y)))
    assert other.rank < known.rank


def test_a_loss_with_relative_precision_is_not_punished():
    """The exponential loss loses no digits however small it is."""
    model, x, y = certain(1.0)
    signs = torch.where(y % 2 == 0, 1.0, -1.0).double()

    def exponential(outputs, targets):
        return torch.exp(-20 - targets * outputs[:, 0] * 0).mul(outputs.square().sum(1)).mean()

    problem = hr.Problem(model, exponential, (x, signs))
    found = hr.spectrum(problem)
    assert found.noise_floor <= 1e-13 * found.eigenvalues.max()
    assert found.rank == model.weight.numel() * SAMPLES // FEATURES


@pytest.mark.parametrize("far", [100.0, 200.0])
def test_a_certain_network_does_not_make_another_loss_invariant(far):
    """Its binary cross-entropy is that of softmax up to exp(-far), but adds up to no zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 2)).double()
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([-far, far]))
    model[0].requires_grad_(False)
    x, y = torch.randn(2, 1, dtype=torch.float64), torch.tensor([[1.0, 0.0]] * 2).double()
    problem = hr.Problem(model, nn.BCEWithLogitsLoss(), (x, y))
    assert not ignores_softmax_shift(problem)
    reduced, whole = (hr.spectrum(problem, reduce=reduce) for reduce in ("auto", "none"))
    assert np.abs(reduced.eigenvalues - whole.eigenvalues).max() <= whole.noise_floor


def test_same_value_and_derivatives_as_torch():
    generator = torch.Generator().manual_seed(0)
    outputs = 5 * torch.randn(40, 6, generator=generator, dtype=torch.float64)
    outputs[0] = 0  # all equal: any class may count as the likeliest
    labels = torch.randint(0, 6, (40,), generator=generator)
    ours = lambda f: cross_entropy(f, labels)  # noqa: E731
    theirs = lambda f: F.cross_entropy(f, labels)  # noqa: E731
    eps, size = np.finfo(float).eps, float(outputs.abs().max())
    assert abs(ours(outputs) - theirs(outputs)) < 40 * eps * size
    for derivative in (torch.func.grad, torch.func.hessian):
        difference = derivative(ours)(outputs) - derivative(theirs)(outputs)
        assert difference.abs().max() < 40 * eps * size / 40


@pytest.mark.parametrize("scale", [10.0, 40.0, 100.0])
def test_a_gradient_that_is_tiny_has_all_its_digits(scale):
    """Of a sample of which the network is certain: p_j, and minus their sum."""
    outputs = scale * torch.tensor([[1.0, 0.3, -0.2], [0.1, 0.0, 1.0]], dtype=torch.float64)
    labels = outputs.argmax(1)
    gradient = torch.func.grad(lambda f: cross_entropy(f, labels))(outputs)
    rest = torch.exp(outputs - outputs.gather(1, labels[:, None])).scatter(1, labels[:, None], 0.0)
    expected = rest / (1 + rest.sum(1, keepdim=True)) / 2
    expected = expected.scatter(1, labels[:, None], -expected.sum(1, keepdim=True))
    # the exponential of a number of size 2·scale, rounded
    allowed = 10 * scale * np.finfo(float).eps
    assert bool(((gradient - expected).abs() <= allowed * expected.abs()).all())


def test_extreme_scores_give_finite_derivatives():
    outputs = torch.tensor([[1e4, -1e4, 0.0], [-1e300, 1e300, 0.0]], dtype=torch.float64)
    labels = torch.tensor([1, 0])
    gradient = torch.func.grad(lambda f: cross_entropy(f, labels))(outputs)
    expected = torch.func.grad(lambda f: F.cross_entropy(f, labels))(outputs)
    torch.testing.assert_close(gradient, expected)
