"""What rounding does: measured by changing every result by an ulp, and where networks saturate."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import hessrmt as hr
from hessrmt.curvature.certify import reference
from hessrmt.curvature.rounding import Perturbed, length, norm_bound, rounding_of
from hessrmt.errors import NonFiniteError
from hessrmt.problems.equivalents import cross_entropy
from hessrmt.problems.outputs import ignores_softmax_shift

EPS = np.finfo(float).eps


def moved(function, *arguments, number=0):
    with Perturbed(number):
        return function(*arguments)


VALUES = [1.0, 2.0, 1.5, 1.999, -1.0, 3e-300, 0.1, 1 + 2j]


@pytest.mark.parametrize("value", VALUES)
def test_every_number_moves_by_an_ulp_or_two_and_its_source_stays(value):
    x = torch.full((64,), value, dtype=torch.complex128 if value == 1 + 2j else torch.float64)
    change = (moved(lambda: x * 1.0) - x).abs()
    assert (change > 0).all()
    assert (change <= 1.34 * EPS * abs(value)).all()  # 1.5 (1 + ε) is rounded to 1.5 + 2 ε
    assert (x == value).all()
    moved(x.mul_, 1.0)
    assert (x != value).all()


@pytest.mark.parametrize(
    "exact",
    [
        lambda x: x.clone(),
        lambda x: torch.where(x > 0, x, -x),
        lambda x: x.relu().max(),
        lambda x: x.reshape(3, 4).T.contiguous()[1],
        lambda x: torch.cat([x, x.flip(0)]),
        lambda x: x * 0.0,
        lambda x: torch.full_like(x, -torch.inf) * 1.0,
        lambda x: x.new_zeros(2).scatter_reduce(0, (x > 0).long(), x, "amax"),
        lambda x: torch._efficientzerotensor(3, dtype=x.dtype) * 2.0,
    ],
)
def test_what_rounds_nothing_is_left_alone(exact):
    x = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(moved(exact, x), exact(x))


def test_products_of_sparse_matrices_move():
    sparse = torch.eye(3, dtype=torch.float64).to_sparse()
    assert (moved(lambda: (sparse * 3.0) @ torch.ones(3, 1).double()) != 3).any()


def test_nothing_is_said_of_what_becomes_no_number():
    """The root of a square minus itself: zero, and below zero if it is rounded otherwise."""
    rows = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(NonFiniteError, match="rounded otherwise"):
        rounding_of(lambda v: (v.exp() - v.exp().mul(1.0)).sqrt(), rows, torch.zeros(2, 3))


def test_the_same_number_gives_the_same_changes():
    x = torch.randn(70_000, dtype=torch.float64)
    one, same, other = (moved(x.exp, number=n) for n in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


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


# Networks that are certain of every sample: tiny numbers, and no digit lost

SAMPLES, FEATURES, CLASSES = 12, 30, 4


def usual(outputs, labels):
    """The same loss, of which hessrmt knows nothing."""
    return (outputs.logsumexp(1) - outputs.gather(1, labels[:, None])[:, 0]).mean()


def certain(scale):
    """Softmax regression that fits its samples, with all scores multiplied by a number."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SAMPLES, FEATURES, generator=generator, dtype=torch.float64)
    y = torch.arange(SAMPLES) % CLASSES
    model = nn.Linear(FEATURES, CLASSES, bias=False).double()
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


def within_the_floor(loss, scale):
    """Its spectrum, whose errors are below the floor."""
    model, x, y = certain(scale)
    found = hr.spectrum(hr.Problem(model, loss, (x, y)))
    expected = exact_levels(model, x)
    # the reference's own rounding: n ε of its largest level
    slack = SAMPLES * CLASSES * EPS * expected[-1]
    top = found.eigenvalues[-len(expected) :]
    assert np.abs(top - expected).max() <= found.noise_floor + slack
    return found


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.0, 4.0])
def test_another_loss_gets_a_higher_floor_and_every_error_is_below(scale):
    known, other = (within_the_floor(loss, scale) for loss in ("cross-entropy", usual))
    assert scale < 3 or other.noise_floor > 1e3 * known.noise_floor
    assert scale < 4 or other.rank < known.rank


def as_tokens(outputs, labels):
    """Classes on the second axis of three."""
    scores = outputs.view(2, -1, CLASSES).transpose(1, 2)
    return F.cross_entropy(scores, labels.view(2, -1), ignore_index=-1)


SPELLINGS = {
    "by name": "cross-entropy",
    "function": F.cross_entropy,
    "module": nn.CrossEntropyLoss(),
    "lambda": lambda outputs, labels: F.cross_entropy(outputs.float(), labels),
    "weights": lambda f, y: F.cross_entropy(f, y, torch.ones(CLASSES), reduction="sum") / SAMPLES,
    "tokens": as_tokens,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_cross_entropy_keeps_all_digits(spelling):
    found = within_the_floor(SPELLINGS[spelling], 3.0)
    assert found.loss < 1e-9
    assert found.rank == SAMPLES * (CLASSES - 1)
    # n ε for 120 parameters is 2.7e-14; what is measured of the matrix may be some times that
    assert found.noise_floor < 2e-13 * found.eigenvalues[-1]


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
    allowed = 10 * scale * EPS
    assert bool(((gradient - expected).abs() <= allowed * expected.abs()).all())


def test_extreme_scores_give_finite_derivatives():
    outputs = torch.tensor([[1e4, -1e4, 0.0], [-1e300, 1e300, 0.0]], dtype=torch.float64)
    labels = torch.tensor([1, 0])
    ours, theirs = (
        torch.func.grad(lambda f, of=of: of(f, labels))(outputs)
        for of in (cross_entropy, F.cross_entropy)
    )
    torch.testing.assert_close(ours, theirs)
