"""How far rounding moves a product: measured by changing every operation's result by an ulp."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import hessrmt as hr
from hessrmt.curvature.certify import reference
from hessrmt.curvature.rounding import Perturbed, length, norm_bound, rounding_of
from hessrmt.errors import NonFiniteError

EPS = np.finfo(float).eps


def moved(function, *arguments, number=0):
    with Perturbed(number):
        return function(*arguments)


@pytest.mark.parametrize("value", [1.0, 2.0, 1.5, 1.999, -1.0, 3e-300, 0.1])
def test_every_number_moves_by_an_ulp_or_two(value):
    x = torch.full((64,), value, dtype=torch.float64)
    change = (moved(lambda: x * 1.0) - x).abs()
    assert (change > 0).all()
    assert (change <= 1.34 * EPS * abs(value)).all()  # 1.5 (1 + ε) is rounded to 1.5 + 2 ε


@pytest.mark.parametrize(
    "exact",
    [
        lambda x: x.clone(),
        lambda x: torch.where(x > 0, x, -x),
        lambda x: x.relu().max(),
        lambda x: x.reshape(3, 4).T.contiguous()[1],
        lambda x: torch.cat([x, x.flip(0)]),
        lambda x: x * 0.0,
        lambda x: x.new_zeros(2).scatter_reduce(0, (x > 0).long(), x, "amax"),
    ],
)
def test_what_rounds_nothing_is_left_alone(exact):
    x = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(moved(exact, x), exact(x))


def test_complex_numbers_move_and_what_has_no_memory_does_not():
    x = torch.randn(9, dtype=torch.complex128)
    change = (moved(lambda: x * 1j) - x * 1j).abs()
    assert (change > 0).all()
    assert (change <= 1.34 * EPS * x.abs()).all()
    zero = torch._efficientzerotensor(3, dtype=torch.float64)
    assert torch.equal(moved(lambda: zero * 2.0), torch.zeros(3, dtype=torch.float64))
    sparse = torch.eye(3, dtype=torch.float64).to_sparse()
    assert (moved(lambda: (sparse * 3.0) @ torch.ones(3, 1).double()) != 3).any()


def test_infinite_numbers_stay_as_they_are():
    x = torch.full((64,), -torch.inf, dtype=torch.float64)
    assert torch.equal(moved(lambda: x * 1.0), x)


def test_nothing_is_said_of_what_becomes_no_number():
    """The root of a square minus itself: zero, and below zero if it is rounded otherwise."""
    rows = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(NonFiniteError, match="rounded otherwise"):
        rounding_of(lambda v: (v.exp() - v.exp().mul(1.0)).sqrt(), rows, torch.zeros(2, 3))


def test_arguments_are_left_alone():
    x = torch.randn(40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = x.clone()
    moved(lambda: (x @ x).sum() + x.mean())
    assert torch.equal(x, before)


def test_the_same_number_gives_the_same_changes():
    x = torch.randn(70_000, dtype=torch.float64)
    one, same, other = (moved(x.exp, number=n) for n in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_in_place_results_move():
    x = torch.ones(5, dtype=torch.float64)
    with Perturbed(0):
        x.mul_(3.0)
    assert (x != 3).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cancellation_is_seen(dtype):
    """1 - p with p near one has the error of p."""
    logit = torch.tensor([12.0], dtype=dtype)
    change = moved(lambda: 1 - torch.sigmoid(logit)) - (1 - torch.sigmoid(logit))
    eps = torch.finfo(dtype).eps
    assert 0.4 * eps <= float(change.abs()) <= 1.5 * eps


def test_sums_that_cancel_are_seen():
    x = torch.tensor([[1e8, 1.0, -1e8]], dtype=torch.float64)
    one = torch.ones(3, 1, dtype=torch.float64)
    changes = [float((moved(lambda: x @ one, number=n) - 1).abs()) for n in range(5)]
    assert 1e-9 < max(changes) < 1e-7


def test_lengths_whose_squares_underflow():
    assert length(torch.full((4,), 1e-200, dtype=torch.float64)) == pytest.approx(2e-200)
    assert length(torch.full((4,), 1e200, dtype=torch.float64)) == pytest.approx(2e200)
    assert length(torch.zeros(3)) == length(torch.zeros(0)) == 0


@pytest.mark.parametrize("r", [2, 5])
def test_the_bound_holds_as_often_as_it_says(r):
    """A matrix of rank one is the worst case: ‖E ω‖ may be arbitrarily small."""
    draw = np.random.default_rng(r)
    first = np.abs(draw.standard_normal((20_000, r)))  # ‖E ω‖ with ‖E‖ = 1
    failed = np.mean([norm_bound(list(row)) < 1 for row in first])
    assert failed <= 1e-3 + 3 * (1e-3 / 20_000) ** 0.5
    assert norm_bound([]) == 0


def test_error_of_a_product_is_within_its_bound():
    """Of products whose exact result is known from wider arithmetic."""
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(200, 30, generator=draw, dtype=torch.float64).float()
    gram = lambda v: a.T @ (a @ v)  # noqa: E731
    rows = torch.randn(5, 30, generator=draw)
    bound = rounding_of(gram, rows, torch.stack([gram(row) for row in rows]))
    found = torch.stack([gram(row) for row in torch.eye(30)]).double()
    error = torch.linalg.matrix_norm(found - a.double().T @ a.double(), 2)
    assert 0 < error <= bound <= 1e-5 * torch.linalg.matrix_norm(found, 2)


@pytest.mark.parametrize(("samples", "features"), [(3000, 1), (20_640, 1), (20_640, 8)])
def test_sums_over_many_samples_are_no_fault(samples, features):
    torch.manual_seed(0)
    x, y = torch.randn(samples, features), torch.randn(samples, 1)
    found = hr.spectrum(hr.Problem(nn.Linear(features, 1), "mse", (x, y)))
    design = torch.cat([x.double(), torch.ones(samples, 1).double()], 1).numpy()
    exact = 2 / samples * np.linalg.svd(design, compute_uv=False)[::-1] ** 2
    assert found.rank == features + 1
    assert np.abs(found.eigenvalues - exact).max() <= found.noise_floor


@pytest.mark.parametrize("layer", [nn.GroupNorm(2, 4), nn.LayerNorm(2), nn.GroupNorm(1, 4)])
def test_what_happens_inside_a_network_is_in_the_floor(layer):
    """Norms over two values give ±1 whatever comes in: much of the Hessian is rounding."""
    torch.manual_seed(0)
    width = layer.weight.numel()
    model = nn.Sequential(nn.Linear(3, width), layer, nn.Linear(width, 2)).double()
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randint(0, 2, (5,))
    problem = hr.Problem(model, "cross-entropy", (x, y))
    known = reference(problem)
    reduced, whole = (hr.spectrum(problem, reduce=reduce) for reduce in ("auto", "none"))
    assert known.rounding <= whole.noise_floor
    assert reduced.rank == whole.rank
    gap = np.abs(reduced.eigenvalues - whole.eigenvalues).max()
    assert gap <= reduced.noise_floor + whole.noise_floor


def test_a_probability_that_is_gone_is_refused():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Sigmoid()).double()
    with torch.no_grad():
        model[0].weight.fill_(50.0)
    x = torch.tensor([[1.0], [0.1]], dtype=torch.float64)
    wrong = hr.Problem(model, nn.BCELoss(), (x, torch.zeros(2, 1).double()))
    with pytest.raises(NonFiniteError, match="BCEWithLogitsLoss the scores"):
        hr.spectrum(wrong)
    right = hr.spectrum(hr.Problem(model, nn.BCELoss(), (x, torch.ones(2, 1).double())))
    p = 1 / (1 + np.exp(-5.0))
    assert abs(right.eigenvalues[0] - 0.01 * p * (1 - p) / 2) <= right.noise_floor


@pytest.mark.parametrize("shift", [0.0, 20.0, 40.0])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda x: F.log_softmax(x, 1)[:, 0], lambda x: x[:, 0] - x.logsumexp(1)),
        (lambda x: F.softmax(x, -1)[:, 1], lambda x: (x[:, 1] - x.logsumexp(1)).exp()),
        (lambda x: torch.softmax(x, 1)[:, 1], lambda x: (x[:, 1] - x.logsumexp(1)).exp()),
        (lambda x: x.log_softmax(-1)[:, 1], lambda x: x[:, 1] - x.logsumexp(1)),
        (lambda x: F.logsigmoid(x)[:, 0], lambda x: -torch.log1p(torch.exp(-x[:, 0]))),
        (lambda x: F.gelu(x)[:, 1], lambda x: x[:, 1] * torch.erfc(-x[:, 1] / 2**0.5) / 2),
    ],
)
def test_equivalents_have_torchs_values_and_curvature(ours, theirs, shift):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 1] += shift
    model = nn.Linear(3, 3).double()
    with torch.no_grad():
        model.weight.copy_(torch.eye(3))
        model.bias.zero_()
    problem = hr.Problem(model, lambda o, _: ours(o).square().mean(), (x, torch.zeros(4)))
    H = hr.hessian(problem)

    def loss(theta):
        outputs = x @ theta[:9].view(3, 3).T + theta[9:]
        return theirs(outputs).square().mean()

    exact = torch.autograd.functional.hessian(loss, problem.theta).numpy()
    assert np.abs(H - exact).max() <= 1e-12 * max(1, np.abs(exact).max())


@pytest.mark.parametrize("far", [1e3, 1e4, 1e5])
def test_a_sample_of_little_curvature_and_large_features_counts(far):
    """What it adds to the Hessian is its curvature times its features' squares."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 3)).double()
    x = torch.randn(4, 8, dtype=torch.float64)
    x[0] *= far
    with torch.no_grad():  # certain of it up to about exp(-34), of the others not at all
        first, second = model(x)[0].topk(2).values.tolist()
        along = x[0] / x[0].norm()
        weight = model[0].weight
        weight.add_((34 / (first - second) - 1) * torch.outer(weight @ along, along))
    problem = hr.Problem(model, "cross-entropy", (x, model(x).argmax(1)), only="0.*")
    reduced, whole = (hr.spectrum(problem, reduce=reduce) for reduce in ("auto", "none"))
    assert reduced.noise_floor <= whole.noise_floor
    assert np.abs(reduced.eigenvalues - whole.eigenvalues).max() <= whole.noise_floor
