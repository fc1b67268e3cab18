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
from hessrmt.errors import DataError, DeviceError, HessrmtError, NonFiniteError, ProblemError
from hessrmt.problems import data, models

EPS = float(np.finfo(np.float64).eps)


def oracle(problem: hr.Problem) -> np.ndarray:
    exact = problem.at(torch.float64, torch.device("cpu"))
    return torch.func.hessian(exact.loss)(exact.theta).numpy()


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(6, 3)
        self.idle = nn.Linear(4, 2)

    def forward(self, x):
        return self.used(x)


CASES = {
    "logistic": (lambda: nn.Linear(6, 3), "cross-entropy"),
    "relu": (lambda: network(6, 4, 5, 3, kind=nn.ReLU), "cross-entropy"),
    "tanh": (lambda: network(6, 4, 3), "cross-entropy"),
    "mse": (lambda: network(6, 4, 3, kind=nn.GELU), "mse"),
    "unused": (Unused, "cross-entropy"),
}


def make(name: str) -> hr.Problem:
    build, loss = CASES[name]
    torch.manual_seed(0)
    return hr.Problem(build(), loss, labelled((9, 6), 3))


@pytest.mark.parametrize("name", CASES)
def test_hessian_equals_torch_func_hessian(name):
    problem = make(name)
    found, expected = hr.hessian(problem), oracle(problem)
    assert found.shape == (problem.dimension, problem.dimension)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, found.T)
    assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()


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
    assert problem.dimension == 6 * 3 + 3 + 4 * 2 + 2
    assert not hr.hessian(problem)[21:].any()
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


def broken():
    model = nn.Linear(6, 3)
    model.weight.data[0, 0] = math.inf
    return model


def noisy(outputs, targets):
    return F.cross_entropy(outputs + 0.01 * torch.randn_like(outputs), targets)


def given(loss, model=None, **options):
    model = nn.Linear(6, 3) if model is None else model
    return lambda: hr.Problem(model, loss, labelled((9, 6), 3), **options)


@pytest.mark.parametrize(
    ("build", "options", "error", "words"),
    [
        (given("mse", broken()), {}, ProblemError, "weight has 1 NaN or infinite"),
        (given("mse", nn.Linear(6, 3).requires_grad_(False)), {}, ProblemError, "no trainable"),
        (given("mse", only="conv*"), {}, ProblemError, r"matches 'conv\*'.*weight"),
        (given("hinge"), {}, ProblemError, "unknown loss 'hinge'"),
        (given(lambda f, y: f.square()), {}, ProblemError, "must return one number"),
        (given(lambda f, y: f.sum() + math.inf), {}, NonFiniteError, "loss is inf"),
        (given(noisy), {}, ProblemError, "not deterministic"),
        (given("cross-entropy"), {"device": "tpu"}, DeviceError, "unknown device"),
        (given("cross-entropy"), {"dtype": "float16"}, ProblemError, "unknown"),
        (given("cross-entropy"), {"operator": "fisher"}, ProblemError, "unknown"),
        (given("cross-entropy"), {"reduce": "some"}, ProblemError, "unknown"),
    ],
)
def test_bad_problems_and_options_are_refused(build, options, error, words):
    with pytest.raises(error, match=words):
        hr.spectrum(build(), **options)


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
    problem = make("relu")
    whole = hr.hessian(problem)
    monkeypatch.setattr(plan, "_BLOCK_BYTES", 1)
    single = hr.hessian(problem)
    assert np.abs(whole - single).max() <= 1e-14 * np.abs(whole).max()


X, Y = labelled((6, 4), 3)


@pytest.mark.parametrize(
    ("loss", "data", "said"),
    [
        (nn.MSELoss, (X, Y), r"the loss is the class MSELoss; make one of it: MSELoss\(\)"),
        ("cross_entropy", (X, Y), r"unknown loss .* \(did you mean cross-entropy\?\)"),
        ("cross-entropy", (X, Y.double()), "labels of classes must be integers"),
        ("cross-entropy", (X, Y[:3]), "inputs have 6, targets 3"),
    ],
)
def test_common_slips_are_told_what_to_write(loss, data, said):
    with pytest.raises(HessrmtError, match=said):
        hr.spectrum(hr.Problem(nn.Linear(4, 3), loss, data))


def test_networks_and_their_classes_are_no_problems():
    with pytest.raises(HessrmtError, match=r"class Linear; make one of it: Linear\(\.\.\.\)"):
        hr.Problem(nn.Linear, "mse", (X, Y))
    with pytest.raises(HessrmtError, match=r"give hessrmt\.Problem\(model, loss"):
        hr.spectrum(nn.Linear(4, 3))


def test_a_token_beyond_the_vocabulary_is_explained():
    network = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3))
    problem = hr.Problem(network, "cross-entropy", (torch.tensor([[1, 5]]), Y[:1]))
    with pytest.raises(HessrmtError, match="a token beyond the vocabulary"):
        hr.eigsh(problem, k=1)


def test_the_squared_error_by_name_is_that_of_torch_times_the_outputs():
    network, wanted = nn.Linear(4, 3), torch.randn(6, 3, dtype=torch.float64)
    named, torchs = (
        hr.spectrum(hr.Problem(network, loss, (X, wanted))) for loss in ("mse", nn.MSELoss())
    )
    np.testing.assert_allclose(named.eigenvalues, 3 * torchs.eigenvalues, atol=1e-12)


def test_spectra_of_a_file_say_where_what_one_spectrum_has_is(tmp_path):
    hr.spectrum(hr.Problem(nn.Linear(4, 3), "cross-entropy", (X, Y))).save(tmp_path / "a.h5")
    found = hr.load(tmp_path / "a.h5")
    with pytest.raises(AttributeError, match=r"no 'rank'; each of them has, such as spectra\[0\]"):
        _ = found.rank
    assert found[0].rank == hr.load(tmp_path / "a.h5")[0].rank
    assert not hasattr(found, "anything")
