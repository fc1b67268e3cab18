"""The streamed operator against the dense matrix of all data at once."""

import warnings

import numpy as np
import pytest
import torch
from samples import labelled
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hessrmt as hr
from hessrmt.curvature import operator as module
from hessrmt.curvature.lanczos import round_off
from hessrmt.curvature.operator import CurvatureOperator
from hessrmt.errors import DataError, DeviceError, NonFiniteError, ProblemError


def tanh_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def convolutional():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(27, 4),
    ).double()
    model(torch.randn(30, 1, 6, 6, dtype=torch.float64))  # statistics that are not 0 and 1
    return model.eval()


CASES = {
    "tanh": (tanh_network, (20, 5), 3),
    "convolutional": (convolutional, (11, 1, 6, 6), 4),
}


@pytest.mark.parametrize("linearise", [True, False])
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("case", CASES)
def test_products_are_those_of_the_dense_matrix(case, kind, linearise):
    build, shape, classes = CASES[case]
    problem = hr.Problem(build(), "cross-entropy", labelled(shape, classes))
    dense = {"hessian": hr.hessian, "ggn": hr.ggn}[kind](problem, device="cpu")
    batch = 3 * shape[0] // 4  # micro-batches of unequal size
    operator = CurvatureOperator.of(problem, kind, batch=batch, device="cpu", linearise=linearise)
    assert operator.parts == 2
    assert operator.kept == (operator.parts if linearise else 0)
    block = torch.from_numpy(np.random.default_rng(0).normal(size=(3, problem.dimension)))
    found = operator(block).numpy()
    norm = np.linalg.norm(dense, 2)
    allowed = round_off(norm, problem.dimension, torch.float64)
    size = np.linalg.norm(block, axis=1)
    assert (np.linalg.norm(found - block.numpy() @ dense, axis=1) <= allowed * size).all()
    assert operator.agreement(norm) <= allowed / norm
    loss, gradient = problem.evaluate()
    assert operator.loss == pytest.approx(loss, rel=1e-14)
    assert operator.gradient_norm == pytest.approx(gradient, rel=1e-13)
    # what is multiplied together does not matter, to the last bit
    alone = [operator(row[None])[0].numpy() for row in block]
    assert np.array_equal(found, alone)
    assert operator.products == 3 + 3 + 1


def test_what_memory_cannot_keep_is_read_anew(monkeypatch):
    problem = hr.Problem(tanh_network(), "cross-entropy", labelled((20, 5), 3))
    block = torch.randn(2, problem.dimension, dtype=torch.float64)
    kept = CurvatureOperator.of(problem, batch=10, device="cpu")
    saved = module._TRACED_COPIES * kept._saved
    monkeypatch.setattr(module, "_KEPT_BYTES", saved)
    half = CurvatureOperator.of(problem, batch=10, device="cpu")
    assert (kept.kept, half.kept) == (2, 1)
    norm = np.linalg.norm(hr.hessian(problem, device="cpu"), 2)
    allowed = round_off(norm, problem.dimension, torch.float64)
    assert float((kept(block) - half(block)).norm()) <= 2 * allowed * float(block.norm())


def test_a_loader_streams():
    x, y = labelled((20, 5), 3)
    loader = DataLoader(TensorDataset(x, y), batch_size=6)
    problem = hr.Problem(tanh_network(), "cross-entropy", (x, y))
    operator = CurvatureOperator(
        tanh_network(), "cross-entropy", loader, device="cpu", linearise=False
    )
    v = torch.randn(1, problem.dimension, dtype=torch.float64)
    dense = hr.hessian(problem, device="cpu")
    allowed = round_off(np.linalg.norm(dense, 2), problem.dimension, torch.float64)
    assert operator.samples == 20
    assert np.linalg.norm(operator(v)[0].numpy() - dense @ v[0].numpy()) <= allowed * v.norm()


def test_single_precision_and_one_sample_and_one_layer():
    problem = hr.Problem(tanh_network(), "cross-entropy", labelled((1, 5), 3), only="2.*")
    dense = hr.hessian(problem, device="cpu")
    operator = CurvatureOperator.of(problem, device="cpu", dtype="float32", linearise=False)
    assert operator.dimension == problem.dimension == 24
    v = torch.randn(1, 24)
    allowed = round_off(np.linalg.norm(dense, 2), 24, torch.float32)
    assert np.linalg.norm(operator(v)[0].numpy() - dense @ v[0].numpy()) <= allowed * v.norm()


class Branching(nn.Module):
    """Takes a path that depends on a value: no tracer can follow it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2).double()

    def forward(self, x):
        out = self.layer(x).tanh()
        return out * 2 if out.detach().sum() > 0 else out


def test_a_model_that_cannot_be_traced_is_differentiated_anew():
    torch.manual_seed(3)
    problem = hr.Problem(Branching(), "cross-entropy", labelled((6, 4), 2))
    dense = hr.hessian(problem, device="cpu")
    operator = CurvatureOperator.of(problem, device="cpu")
    v = torch.randn(1, 10, dtype=torch.float64)
    allowed = round_off(np.linalg.norm(dense, 2), 10, torch.float64)
    assert np.linalg.norm(operator(v)[0].numpy() - dense @ v[0].numpy()) <= allowed * v.norm()


def test_no_warning_of_the_tracer_reaches_the_user():
    problem = hr.Problem(tanh_network(), "cross-entropy", labelled((4, 5), 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CurvatureOperator.of(problem, device="cpu").kept == 1


def summed(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="sum")


def test_a_loss_that_is_no_mean_needs_one_batch():
    problem = hr.Problem(tanh_network(), summed, labelled((20, 5), 3))
    with pytest.raises(ProblemError, match="no mean over samples"):
        CurvatureOperator.of(problem, batch=10, device="cpu")
    assert CurvatureOperator.of(problem, device="cpu", linearise=False).parts == 1


class Wandering:
    """A loader that gives other data with every pass."""

    def __init__(self, sizes):
        self.passes, self.sizes = 0, sizes

    def __iter__(self):
        self.passes += 1
        for size in self.sizes(self.passes):
            yield labelled((size, 5), 3, seed=self.passes)


def test_data_that_change_are_noticed():
    options = {"device": "cpu", "linearise": False}
    model = tanh_network()
    other = CurvatureOperator(model, "cross-entropy", Wandering(lambda _: [6, 6]), **options)
    with pytest.raises(DataError, match="shuffle=False"):
        other(torch.ones(1, other.dimension, dtype=torch.float64))
    fewer = CurvatureOperator(
        model, "cross-entropy", Wandering(lambda turn: [6] * (1 + (turn < 3))), **options
    )
    with pytest.raises(DataError, match="every pass must"):
        fewer(torch.ones(1, fewer.dimension, dtype=torch.float64))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g


class OnceOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3).double()

    def forward(self, x):
        return Once.apply(self.layer(x))


def test_refusals(monkeypatch):
    pair = labelled((8, 5), 3)
    model = tanh_network()
    with pytest.raises(ProblemError, match="known are hessian, ggn, fisher"):
        CurvatureOperator(model, "mse", [pair], "jacobian")
    with pytest.raises(DataError, match="only once"):
        CurvatureOperator(model, "mse", iter([pair]))
    with pytest.raises(DataError, match="no batch"):
        CurvatureOperator(model, "mse", [])
    with pytest.raises(DataError, match="at least one sample"):
        CurvatureOperator.of(hr.Problem(model, "mse", pair), batch=0)
    with pytest.raises(ProblemError, match="once_differentiable"):
        CurvatureOperator(OnceOnly(), "cross-entropy", [pair], device="cpu", linearise=False)
    training = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)).double().train()
    with pytest.raises(ProblemError, match="BatchNorm in training mode"):
        CurvatureOperator(training, "cross-entropy", [pair], device="cpu")
    dropping = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3)).double().train()
    with pytest.raises(ProblemError, match="Dropout"):
        CurvatureOperator(dropping, "cross-entropy", [pair], device="cpu")
    huge = nn.Linear(5, 3).double()
    with torch.no_grad():
        huge.weight.fill_(1e308)
    with pytest.raises(NonFiniteError, match="loss"):
        CurvatureOperator(huge, "cross-entropy", [pair], device="cpu")
    monkeypatch.setattr(module, "usable_memory", lambda _: 100)
    with pytest.raises(DeviceError, match="smaller micro-batches"):
        CurvatureOperator(model, "cross-entropy", [pair], device="cpu")
