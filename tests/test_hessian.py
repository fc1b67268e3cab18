"""Exact Hessians against closed forms and against torch's own, and the refusals."""

import math

import numpy as np
import pytest
import torch
from samples import WrongForwardRule, labelled, network
from torch import nn
from torch.nn import functional as F  # noqa: N812

import hessrmt as hr
from hessrmt.backend.cpu import CpuBackend
from hessrmt.curvature import dense as plan
from hessrmt.errors import DataError, DeviceError, NonFiniteError, ProblemError
from hessrmt.problems import data, models

EPS = float(np.finfo(np.float64).eps)


class WrittenOutNorm(nn.LayerNorm):
    """LayerNorm by elementary operations: torch.func.hessian is wrong for torch's own kernel."""

    def forward(self, input):
        centred = input - input.mean(-1, keepdim=True)
        scaled = centred * (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return scaled * self.weight + self.bias


def oracle(problem: hr.Problem) -> np.ndarray:
    exact = problem.at(torch.float64, torch.device("cpu"))
    for module in exact.model.modules():
        if type(module) is nn.LayerNorm:
            module.__class__ = WrittenOutNorm
    return torch.func.hessian(exact.loss)(exact.theta).numpy()


class Attention(nn.Module):
    """Self-attention written out, so that torch.func.hessian can serve as the oracle."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.Linear(4, 12)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = self.packed(x).chunk(3, dim=-1)
        weights = torch.softmax(q @ k.mT / 2, dim=-1)
        return self.head(self.norm(x + weights @ v).mean(dim=1))


class FusedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        attended = self.attend(x, x, x, need_weights=False)[0]
        return self.head(self.norm(x + attended).mean(dim=1))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(5, 3)
        self.idle = nn.Linear(4, 2)

    def forward(self, x):
        return self.used(x)


def small_lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2, 3, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


CASES = {
    "logistic": (lambda: nn.Linear(6, 3), (9, 6), "cross-entropy"),
    "relu": (lambda: network(6, 4, 5, 3, kind=nn.ReLU), (9, 6), "cross-entropy"),
    "tanh": (lambda: network(6, 4, 3), (9, 6), "cross-entropy"),
    "mse": (lambda: network(6, 4, 3, kind=nn.GELU), (9, 6), "mse"),
    "lenet": (small_lenet, (4, 1, 12, 12), "cross-entropy"),
    "layernorm": (
        lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3)),
        (9, 6),
        "cross-entropy",
    ),
    "attention": (Attention, (5, 6, 4), "cross-entropy"),
    "unused": (Unused, (9, 5), "cross-entropy"),
}


def make(name: str) -> hr.Problem:
    build, shape, loss = CASES[name]
    torch.manual_seed(0)
    return hr.Problem(build(), loss, labelled(shape, 3))


@pytest.mark.parametrize("name", CASES)
def test_hessian_equals_torch_func_hessian(name):
    problem = make(name)
    found, expected = hr.hessian(problem), oracle(problem)
    assert found.shape == (problem.dimension, problem.dimension)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, found.T)
    assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()


def test_fused_attention_equals_plain_double_backward_and_differences():
    """Not torch.func.hessian: it has no rule for fused attention, and a wrong one for LayerNorm."""
    torch.manual_seed(0)
    problem = hr.Problem(FusedAttention(), "cross-entropy", labelled((5, 6, 4), 3))
    exact = problem.at(torch.float64, torch.device("cpu"))
    found = hr.hessian(problem)
    plain = torch.autograd.functional.hessian(exact.loss, exact.theta).numpy()
    assert np.abs(found - plain).max() <= 1e-12 * np.abs(plain).max()
    gradient, step, theta = torch.func.grad(exact.loss), 1e-5, exact.theta
    v = torch.linspace(-1, 1, problem.dimension, dtype=torch.float64)
    central = (gradient(theta + step * v) - gradient(theta - step * v)) / (2 * step)
    # truncation is step² times a third derivative of order one, cancellation eps / step
    assert np.abs(found @ v.numpy() - central.numpy()).max() <= 1e2 * (step**2 + EPS / step)


def test_logistic_regression_on_mnist_equals_its_closed_form():
    """Σ_b x_b x_bᵀ ⊗ (diag p_b - p_b p_bᵀ) / B, [x, 1] for the bias."""
    split = data.load("mnist", "test")
    x, y = split.tensors(slice(0, 64), torch.float64)
    model = models.build("logistic", split.input_shape, 10, 0)
    problem = hr.Problem(model, "cross-entropy", (x, y))
    spectrum = hr.spectrum(problem)
    features = torch.cat([x.flatten(1), torch.ones(64, 1, dtype=torch.float64)], dim=1).numpy()
    exact = problem.at(torch.float64, torch.device("cpu"))
    p = torch.softmax(exact.outputs(exact.theta), dim=1).numpy()
    inner = (np.einsum("bi,ij->bij", p, np.eye(10)) - np.einsum("bi,bj->bij", p, p)) / 64
    # nonzero eigenvalues of Σ_b x xᵀ ⊗ M_b = those of the Gram matrix of √M_b ⊗ x_b
    w, u = np.linalg.eigh(inner)
    root = u * np.sqrt(np.clip(w, 0, None))[:, None, :]
    gram = np.einsum("bp,cp->bc", features, features)
    dual = np.einsum("bc,bik,cil->bkcl", gram, root, root).reshape(640, 640)
    levels = np.sort(np.concatenate([np.linalg.eigvalsh(dual), np.zeros(7850 - 640)]))
    tolerance = 10 * 7850 * EPS * levels[-1]
    assert np.abs(spectrum.eigenvalues - levels).max() <= tolerance
    assert spectrum.rank == spectrum.reduced_dimension == 576
    assert np.count_nonzero(spectrum.eigenvalues == 0.0) == 7850 - 576


def test_float32_is_float32_only_if_asked_for():
    problem = make("relu")
    assert hr.hessian(problem).dtype == np.float64
    single = hr.hessian(problem, dtype="float32")
    assert single.dtype == np.float32
    expected = oracle(problem)
    error = np.abs(single - expected).max()
    assert 1e-12 * np.abs(expected).max() < error < 1e-4 * np.abs(expected).max()


def test_frozen_parameters_are_constants_and_unused_ones_are_zero_rows():
    problem = make("unused")
    assert problem.dimension == 5 * 3 + 3 + 4 * 2 + 2
    assert not hr.hessian(problem)[18:].any()
    model = CASES["relu"][0]()
    model[0].requires_grad_(False)
    frozen = hr.Problem(model, "cross-entropy", labelled((9, 6), 3))
    assert frozen.dimension == 4 * 5 + 5 + 5 * 3 + 3
    np.testing.assert_allclose(hr.hessian(frozen), oracle(frozen), rtol=0, atol=1e-13)


def test_an_operation_with_a_wrong_forward_rule_takes_a_slower_way():
    def cubed(operation):
        return lambda f, y: operation(f).square().mean()

    torch.manual_seed(0)
    net, pair = nn.Linear(4, 3), labelled((5, 4), 3)
    right = hr.hessian(hr.Problem(net, cubed(lambda x: x**3), pair))
    found = hr.hessian(hr.Problem(net, cubed(WrongForwardRule.apply), pair))
    assert np.abs(found - right).max() <= 1e-14 * np.abs(right).max()


def test_an_operation_without_a_right_second_derivative_is_refused():
    """weight_norm's double backward is wrong in torch 2.13: not symmetric, whatever the way."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.Linear(5, 3))
    problem = hr.Problem(net, "cross-entropy", labelled((9, 6), 3))
    exact = problem.at(torch.float64, torch.device("cpu"))
    plain = torch.autograd.functional.hessian(exact.loss, exact.theta)
    if (plain - plain.T).abs().max() <= 1e-12 * plain.abs().max():  # a torch without that bug
        np.testing.assert_allclose(hr.hessian(problem), plain.numpy(), atol=1e-14)
        return
    for reduce in ("auto", "none"):
        with pytest.raises(ProblemError, match="not symmetric"):
            hr.spectrum(problem, reduce=reduce)


def test_ggn_is_the_hessian_of_a_linear_model():
    logistic = make("logistic")
    np.testing.assert_allclose(hr.ggn(logistic), hr.hessian(logistic), atol=1e-15)


@pytest.mark.parametrize(
    ("layer", "word"), [(nn.BatchNorm1d(4), "BatchNorm"), (nn.Dropout(0.5), "Dropout")]
)
def test_random_layers_in_training_mode_are_refused_and_fine_in_eval_mode(layer, word):
    model = nn.Sequential(nn.Linear(6, 4), layer, nn.Linear(4, 3))
    pair = labelled((9, 6), 3)
    with pytest.raises(ProblemError, match=rf"{word}.*training mode.*model\.eval\(\)"):
        hr.spectrum(hr.Problem(model, "cross-entropy", pair))
    assert hr.spectrum(hr.Problem(model.eval(), "cross-entropy", pair)).rank > 0


def test_a_random_loss_is_refused():
    def noisy(outputs, targets):
        return F.cross_entropy(outputs + 0.01 * torch.randn_like(outputs), targets)

    with pytest.raises(ProblemError, match="not deterministic"):
        hr.hessian(hr.Problem(nn.Linear(6, 3), noisy, labelled((9, 6), 3)))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda x, y: (x[:0], y[:0]), DataError, "empty"),
        (lambda x, y: (x, y[:4]), DataError, "batch length"),
        (lambda x, y: (x.index_fill(0, torch.tensor(2), math.nan), y), DataError, "sample 2"),
        (lambda x, y: (x, y + 2), DataError, "3 outputs"),
        (lambda x, y: (x, y - 1), DataError, "labels"),
        (lambda x, y: (x[:, :4], y), ProblemError, "failed"),
        (lambda x, y: x, DataError, "pair|batch length"),
    ],
)
def test_bad_data_is_refused(change, error, words):
    with pytest.raises(error, match=words):
        hr.spectrum(hr.Problem(nn.Linear(6, 3), "cross-entropy", change(*labelled((9, 6), 3))))


def test_bad_problems_are_refused():
    pair = labelled((9, 6), 3)
    broken = nn.Linear(6, 3)
    broken.weight.data[0, 0] = math.inf
    with pytest.raises(ProblemError, match="weight has 1 NaN or infinite"):
        hr.Problem(broken, "cross-entropy", pair)
    with pytest.raises(ProblemError, match="no trainable"):
        hr.Problem(nn.Linear(6, 3).requires_grad_(False), "cross-entropy", pair)
    with pytest.raises(ProblemError, match=r"no trainable parameter matches 'conv\*'.*weight"):
        hr.Problem(nn.Linear(6, 3), "cross-entropy", pair, only="conv*")
    with pytest.raises(ProblemError, match="unknown loss 'hinge'"):
        hr.Problem(nn.Linear(6, 3), "hinge", pair)
    with pytest.raises(ProblemError, match="must return one number"):
        hr.spectrum(hr.Problem(nn.Linear(6, 3), lambda f, y: f.square(), pair))
    with pytest.raises(NonFiniteError, match="loss is inf"):
        hr.spectrum(hr.Problem(nn.Linear(6, 3), lambda f, y: f.sum() + math.inf, pair))
    with pytest.raises(DeviceError, match="unknown device"):
        hr.spectrum(hr.Problem(nn.Linear(6, 3), "cross-entropy", pair), device="tpu")
    for option in ({"dtype": "float16"}, {"operator": "fisher"}, {"reduce": "some"}):
        with pytest.raises(ProblemError, match="unknown"):
            hr.spectrum(hr.Problem(nn.Linear(6, 3), "cross-entropy", pair), **option)


class _Cramped(CpuBackend):
    """A CPU with as much free memory as a test says."""

    def __init__(self, free: int) -> None:
        super().__init__()
        self._free = free

    def free_memory(self) -> int:
        return self._free


def test_too_little_memory_is_said_before_the_work():
    problem = make("relu").at(torch.float64, torch.device("cpu"))
    size = problem.dimension
    needed = 2 * 8 * size**2
    plan.require_dense(problem, _Cramped(int(needed / 0.95) + 100))
    with pytest.raises(DeviceError, match=rf"{size} x {size} matrix.*largest that fits here has"):
        plan.require_dense(problem, _Cramped(needed))
    with pytest.raises(DeviceError, match="one row"):
        plan.dense_block(problem, _Cramped(int(needed / 0.95) + 100))


def test_block_size_changes_no_number_beyond_rounding(monkeypatch):
    problem = make("lenet")
    whole = hr.hessian(problem)
    monkeypatch.setattr(plan, "_BLOCK_BYTES", 1)
    single = hr.hessian(problem)
    assert np.abs(whole - single).max() <= 1e-14 * np.abs(whole).max()
