"""The streamed operator against the dense matrix of all data at once."""

import re
import warnings

import numpy as np
import pytest
import torch
from samples import by_double_backward, labelled, network
from scipy.sparse.linalg import eigsh
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

import hessrmt as hr
from hessrmt.curvature import operators as module
from hessrmt.curvature.lanczos import round_off
from hessrmt.curvature.operators import CurvatureOperator
from hessrmt.errors import (
    ConfigError,
    DataError,
    DeviceError,
    HessrmtError,
    NonFiniteError,
    ProblemError,
)


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


def tanh_network():
    return network(5, 7, 3)


PAIR = labelled((8, 5), 3)


def small(loss="cross-entropy", pair=PAIR):
    return hr.Problem(tanh_network(), loss, pair)


def exact_matrix(loss=F.cross_entropy, pair=PAIR):
    """The Hessian of :func:`small`, from a module of its own."""
    return by_double_backward(tanh_network(), loss, *pair).numpy()


def same(found, expected):
    return np.abs(found @ np.eye(len(expected)) - expected).max() <= 1e-13 * abs(expected).max()


class Branching(nn.Module):
    """Takes a path that depends on a value: no tracer can follow it."""

    def __init__(self):
        super().__init__()
        self.net = tanh_network()

    def forward(self, x):
        out = self.net(x)
        return out * 2 if out.detach().sum() > 0 else out


CASES = {"tanh": (tanh_network, (20, 5), 3), "convolutional": (convolutional, (11, 1, 6, 6), 4)}


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
    problem = small(pair=labelled((20, 5), 3))
    block = torch.randn(2, problem.dimension, dtype=torch.float64)
    kept = CurvatureOperator.of(problem, batch=10, device="cpu")
    saved = module._TRACED_COPIES * kept._saved
    monkeypatch.setattr(module, "_KEPT_BYTES", saved)
    half = CurvatureOperator.of(problem, batch=10, device="cpu")
    assert (kept.kept, half.kept) == (2, 1)
    norm = np.linalg.norm(hr.hessian(problem, device="cpu"), 2)
    allowed = round_off(norm, problem.dimension, torch.float64)
    assert float((kept(block) - half(block)).norm()) <= 2 * allowed * float(block.norm())


def streamed(problem):
    loader = DataLoader(TensorDataset(problem.inputs, problem.targets), batch_size=6)
    return CurvatureOperator(problem.model, "cross-entropy", loader, linearise=False)


@pytest.mark.parametrize(
    ("build", "samples", "only", "make"),
    [
        (tanh_network, 20, None, streamed),
        (tanh_network, 1, "2.*", lambda p: hr.Hessian(p, dtype="float32", linearise=False)),
        (Branching, 6, None, hr.Hessian),
    ],
    ids=["loader", "one sample and layer in single precision", "cannot be traced"],
)
def test_a_product_is_that_of_the_dense_matrix(build, samples, only, make):
    problem = hr.Problem(build(), "cross-entropy", labelled((samples, 5), 3), only=only)
    dense, operator = hr.hessian(problem), make(problem)
    assert operator.samples == samples
    v = torch.randn(1, problem.dimension).to(operator.dtype)
    allowed = round_off(np.linalg.norm(dense, 2), problem.dimension, operator.dtype)
    assert np.linalg.norm(operator(v)[0].numpy() - dense @ v[0].numpy()) <= allowed * v.norm()


def test_no_warning_of_the_tracer_reaches_the_user():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert hr.Hessian(small(), linearise=True).kept == 1


class Wandering:
    """A loader that gives other data with every pass."""

    def __init__(self, sizes):
        self.passes, self.sizes = 0, sizes

    def __iter__(self):
        self.passes += 1
        for size in self.sizes(self.passes):
            yield labelled((size, 5), 3, seed=self.passes)


def test_operators_are_matrices():
    problem, exact = small(), exact_matrix()
    n = len(exact)
    for batch in (None, 3):
        hessian = hr.Hessian(problem, batch=batch)
        assert hessian.shape == (n, n)
        v = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert np.abs((hessian @ v).numpy() - exact @ v.numpy()).max() < 1e-14
        assert np.abs((hessian @ v[:, 0].numpy()) - exact @ v[:, 0].numpy()).max() < 1e-14
        assert np.abs(hessian.diagonal().numpy() - exact.diagonal()).max() < 1e-14
        shifted = 2 * hessian - hr.GaussNewton(problem) + 0.1 * hr.Identity(n)
        expected = 2 * exact - hr.ggn(problem) + 0.1 * np.eye(n)
        assert np.abs(shifted @ np.eye(n) - expected).max() < 1e-14
        values = eigsh(hessian.to_scipy(), 3, which="LA")[0]
        assert np.abs(values - np.linalg.eigvalsh(exact)[-3:]).max() < 1e-12


def test_blocks_of_an_operator_and_of_the_spectrum():
    problem, exact = small(), exact_matrix()
    hessian, places = hr.Hessian(problem), problem.places()
    layers = {name.rpartition(".")[0] for name in problem.names}
    blocks = hr.spectrum(problem, blocks="layer")
    assert blocks.keys() == layers
    for layer in layers:
        inside = [p for name, p in places.items() if name.startswith(f"{layer}.")]
        part = slice(inside[0].start, inside[-1].stop)
        both = [f"{layer}.weight", f"{layer}.bias"]
        for only in (f"{layer}.*", re.compile(rf"{layer}\..*"), both):
            assert same(hessian.block(only), exact[part, part])
        levels = np.linalg.eigvalsh(exact[part, part])
        assert np.abs(blocks[layer].eigenvalues - levels).max() < 1e-14
    named = hr.spectrum(problem, blocks={"weights": ["*.weight"]})["weights"]
    assert named.dimension == sum(p.stop - p.start for n, p in places.items() if "weight" in n)


@pytest.mark.parametrize("loss", ["cross-entropy", "mse", nn.CrossEntropyLoss(reduction="sum")])
def test_the_empirical_fisher_matrix(loss):
    (x, y), model, problem = PAIR, tanh_network(), small(loss)
    parameters = list(model.parameters())
    rows = [
        torch.autograd.grad(problem.loss_function(model(x[b : b + 1]), y[b : b + 1]), parameters)
        for b in range(8)
    ]
    slopes = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    expected = (slopes.T @ slopes).numpy() / (1 if isinstance(loss, nn.Module) else 8)
    fisher = hr.EmpiricalFisher(problem)
    assert same(fisher, expected)
    assert fisher.agreement(float(np.linalg.norm(expected, 2))) < 1e-14
    assert same(hr.EmpiricalFisher(problem, batch=3), expected)


def test_a_loss_that_couples_samples_needs_one_batch_and_has_no_fisher_matrix():
    def coupled(outputs, targets):
        return F.cross_entropy(outputs - outputs.mean(0), targets)

    problem = small(coupled)
    for make in (lambda p: hr.Hessian(p, batch=4), hr.EmpiricalFisher):
        with pytest.raises(ProblemError, match="no mean over samples"):
            make(problem)
    assert hr.Hessian(problem, linearise=False).parts == 1


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


class Heads(nn.Module):
    """Two outputs, of which the second has targets for some samples alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(5, 3).double(), nn.Linear(5, 1).double()

    def forward(self, x):
        return self.first(x), self.second(x)


def of_heads(outputs, targets):
    labels, values, given = targets
    loss = F.cross_entropy(outputs[0], labels)
    if given.any():
        loss = loss + ((outputs[1] - values)[given] ** 2).sum() / len(labels)
    return loss


def test_gauss_newton_of_outputs_that_some_batches_do_not_use():
    x, y = PAIR
    values = torch.randn(8, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    problem = hr.Problem(Heads(), of_heads, (x, (y, values, torch.arange(8) >= 4)))
    exact = hr.ggn(problem)
    for batch in (8, 4, 2):
        assert same(hr.GaussNewton(problem, batch=batch), exact)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("where", [slice(2), slice(3, 5), slice(6, None)])
def test_batches_in_which_no_label_counts(reduction, where):
    x, y = PAIR[0], PAIR[1].clone()
    y[where] = -100
    loss = nn.CrossEntropyLoss(reduction=reduction)
    problem, exact = small(loss, (x, y)), exact_matrix(loss, (x, y))
    whole, value = hr.Hessian(problem), float(loss(tanh_network()(x), y).detach())
    for batch in (1, 3):
        found = hr.Hessian(problem, batch=batch)
        assert same(found, exact)
        assert found.loss == pytest.approx(value, rel=1e-13)
        assert found.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-13)
    fishers = [hr.EmpiricalFisher(problem, batch=b) @ np.eye(len(exact)) for b in (None, 3)]
    assert np.ptp([fisher.trace() for fisher in fishers]) <= 1e-13 * fishers[0].trace()


def test_texts_of_many_lengths():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 6)).double()
    batches = [[torch.randint(0, 6, (1, length)) for _ in range(2)] for length in (4, 5, 3)]
    batches[1][1][0, 2:] = -100

    def tokens(reduction):
        return lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten(), reduction=reduction)

    hessians = [by_double_backward(model, tokens("sum"), *batch).numpy() for batch in batches]
    mean = CurvatureOperator(model, tokens("mean"), batches)
    assert same(mean, sum(hessians) / 9)
    assert same(CurvatureOperator(model, tokens("sum"), batches), sum(hessians))
    with pytest.raises(DataError, match="pad them to one shape"):
        CurvatureOperator(model, lambda o, t: tokens("none")(o, t).mean(), batches)


def test_vectors_of_every_kind():
    hessian = hr.Hessian(small())
    n = hessian.dimension
    assert np.array_equal(hessian @ ([1 / 3] * n), hessian @ (np.ones(n) / 3))
    assert (hessian @ np.zeros((n, 0))).shape == (n, 0)
    single = hr.Hessian(small(), dtype="float32")
    assert (0.1 * hr.Identity(n) + single).dtype == torch.float32


class Even(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = tanh_network()

    def forward(self, x):
        assert len(x) % 2 == 0
        return self.net(x)


def test_a_network_that_needs_an_even_number_of_samples():
    problem = hr.Problem(Even(), "cross-entropy", PAIR)
    for operator in ("hessian", "ggn"):
        found, expected = (hr.spectrum(p, operator=operator) for p in (problem, small()))
        assert np.abs(found.eigenvalues - expected.eigenvalues).max() <= 1e-14
    for road in (lambda p: hr.Hessian(p, batch=2), hr.EmpiricalFisher):
        with pytest.raises(ProblemError, match="on a part of the data"):
            road(problem)


def huge():
    model = nn.Linear(5, 3).double()
    nn.init.constant_(model.weight, 1e308)
    return model


@pytest.mark.parametrize(
    ("wrong", "error", "named"),
    [
        (lambda p, h: hr.spectrum("h"), ConfigError, "expected an operator, a matrix"),
        (lambda p, h: hr.density(3.0), ConfigError, "expected an operator, a matrix"),
        (lambda p, h: hr.spectrum(p, blocks="layers"), ConfigError, "unknown blocks"),
        (lambda p, h: hr.eigsh(h, 1, seed=-1), HessrmtError, "seed must be a whole number"),
        (lambda p, h: hr.eigsh(h, 1, tolerance=None), ConfigError, "between 0 and 1"),
        (lambda p, h: h.block(3), HessrmtError, "by a pattern or a list"),
        (lambda p, h: h.block("nothing.*"), ProblemError, "no trainable parameter matches"),
        (lambda p, h: h + 1, TypeError, "unsupported operand"),
        (lambda p, h: h - 1.0, TypeError, "unsupported operand"),
        (lambda p, h: h * "2", TypeError, "multiply"),
        (lambda p, h: h + hr.Identity(3), ConfigError, "cannot be added"),
        (lambda p, h: h @ np.ones(3), ConfigError, "can multiply"),
        (lambda p, h: h @ np.ones((2, h.dimension)), ConfigError, "can multiply"),
        (lambda p, h: h @ np.ones((h.dimension, 1, 1)), ConfigError, "can multiply"),
        (lambda p, h: h @ (1j * np.ones(h.dimension)), ConfigError, "real"),
        (lambda p, h: h.to_scipy() @ (1j * np.ones(h.dimension)), ConfigError, "real"),
        *((lambda p, h, n=n: hr.Hessian(p, batch=n), DataError, "at least one sample")
          for n in (2.5, "3", True, 0)),
        (lambda p, h: CurvatureOperator.of(p, "jacobian"), ProblemError, "hessian, ggn, fisher"),
        (lambda p, h: CurvatureOperator(p.model, "mse", [PAIR], "x"), ProblemError, "hessian, ggn"),
        (lambda p, h: CurvatureOperator(p.model, "mse", iter([PAIR])), DataError, "only once"),
        (lambda p, h: CurvatureOperator(p.model, "mse", []), DataError, "no batch"),
        (lambda p, h: CurvatureOperator(huge(), "mse", [PAIR]), NonFiniteError, "loss"),
    ],
)  # fmt: skip
def test_what_is_refused(wrong, error, named):
    problem = small()
    with pytest.raises(error, match=named):
        wrong(problem, hr.Hessian(problem))


def test_micro_batches_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(module, "usable_memory", lambda _: 100)
    with pytest.raises(DeviceError, match="smaller micro-batches"):
        hr.Hessian(small())
