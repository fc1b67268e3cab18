"""What stands in for an operation of torch has its values and its gradient, option by option."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import hessrmt as hr
from hessrmt.errors import DataError, ProblemError
from hessrmt.problems.differentiation import derivatives
from hessrmt.problems.equivalents import EQUIVALENT

EPS = torch.finfo(torch.float64).eps
N = 5


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


def found_by(way, arguments, options):
    """A value and its gradients."""
    leaves = [
        a.clone().requires_grad_() if torch.is_tensor(a) and a.is_floating_point() else a
        for a in arguments
    ]
    value = way(*leaves, **options)
    weights = torch.linspace(1, 2, value.numel(), dtype=value.dtype).view_as(value)
    wanted = [a for a in leaves if torch.is_tensor(a) and a.requires_grad]
    slopes = derivatives((value * weights).sum(), wanted)
    return [value.detach(), *(slope.to_dense() for slope in slopes)]


def same(function, arguments, options):
    """Values and gradients of a function of torch and of its equivalent."""
    ours, theirs = (found_by(f, arguments, options) for f in (EQUIVALENT[function], function))
    if bool(theirs[0].isnan().all()):  # a mean over nothing
        ours, theirs = ours[:1], theirs[:1]
    for mine, torchs in zip(ours, theirs, strict=True):
        allowed = 200 * EPS * (1 + float(torchs[torchs.isfinite()].abs().sum()))
        torch.testing.assert_close(mine, torchs, rtol=0, atol=allowed, equal_nan=True)


def choices(**options):
    every = itertools.product(*options.values())
    return [dict(zip(options, picked, strict=True)) for picked in every]


REDUCTIONS = ("mean", "sum", "none")
WEIGHT = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


def of_cross_entropy():
    every = choices(
        weight=(None, WEIGHT),
        reduction=REDUCTIONS,
        label_smoothing=(0.0, 0.2),
        ignore_index=(-100, 1),
    )
    for shape in [(N, 3), (N, 3, 2), (N, 3, 2, 2), (3,)]:
        scores = 5 * normal(*shape)
        labels = torch.randint(3, (*shape[:1], *shape[2:])[len(shape) == 1 :])
        left_out = labels.clone()
        left_out.view(-1)[0] = -100
        for options in [*every, {"size_average": False}]:
            yield F.cross_entropy, (scores, labels), options
        yield F.cross_entropy, (scores, left_out), {"reduction": "sum"}
        if len(shape) > 1:
            yield F.cross_entropy, (scores, scores.softmax(1)), {"label_smoothing": 0.1}
    masked = normal(N, 3)
    masked[:, 0] = -torch.inf
    yield F.cross_entropy, (masked, torch.tensor([1, 2, 1, -100, 2])), {}


def of_losses():
    outputs, targets = 2 * normal(N, 3), normal(N, 3)
    words = torch.tensor([[2, 0, -1, 1], [-1, 0, 1, 2], [0, 1, 2, 3], [3, -1, 3, -1]])
    for how in choices(reduction=REDUCTIONS):
        for size in (0.0, 0.7, 1.0):
            yield F.smooth_l1_loss, (outputs, targets), how | {"beta": size}
        for size in (0.7, 1.0):
            yield F.huber_loss, (outputs, targets), how | {"delta": size}
        for loss in (F.mse_loss, F.huber_loss):
            yield loss, (outputs, targets), how
            yield loss, (outputs, targets), how | {"weight": targets.square()}
        yield F.soft_margin_loss, (10 * outputs, (targets > 0).int() * 2 - 1), how
        for options in choices(p=(1, 2), weight=(None, WEIGHT)):
            yield F.multi_margin_loss, (normal(N, 3), torch.randint(3, (N,))), options | how
        yield F.multilabel_margin_loss, (normal(4, 4), words), how
    yield F.multilabel_margin_loss, (normal(4), words[0]), {"reduction": "sum"}


def of_distances():
    options = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    shapes = [((4, 3), (2, 3)), ((2, 1, 4, 3), (5, 2, 3)), ((4, 1), (2, 1))]
    for p, (first, second) in itertools.product((0.0, 0.5, 1.0, 1.5, 2.0, 3.0, torch.inf), shapes):
        one, other = normal(*first), normal(*second)
        yield torch.cdist, (one, other, p), options
        if p >= 1:  # below one torch's gradient has no number at a distance of zero
            same = other.clone()
            same[..., 0, :] = one[..., 0, :] if one.dim() == 2 else other[..., 0, :]
            yield torch.cdist, (one, same, p), options
        if one.dim() == 2:
            yield F.pdist, (one, p), {}


def of_bags():
    table = normal(6, 3)
    modes, rows = ("sum", "mean", "max"), torch.tensor([5, 2, 0, 4, 4, 1, 3])
    for options in choices(mode=modes, padding_idx=(None, 2, -1), sparse=(False, True)):
        if options["sparse"] and options["mode"] == "max":  # torch has none
            continue
        yield F.embedding_bag, (torch.randint(6, (4, 3)), table), options
        for offsets, last in (([0, 2, 2, 5], False), ([0, 3, 3, 7], True)):
            more = {"offsets": torch.tensor(offsets), "include_last_offset": last}
            yield F.embedding_bag, (rows, table), options | more
        if options["mode"] == "sum" and not options["sparse"]:
            more = {"per_sample_weights": normal(4, 3)}
            yield F.embedding_bag, (torch.randint(6, (4, 3)), table), options | more


def of_norms():
    for dim in (0, 1, -1, None):
        layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 2), dim=dim).double()
        g, v = (p.detach() for p in layer.parametrizations.weight.parameters())
        yield torch._weight_norm, (v, g, -1 if dim is None else dim), {}
    x = normal(N, 3, 2)
    for eps, shape in itertools.product((None, 0.1), ((2,), (3, 2))):
        yield F.rms_norm, (x, shape, normal(*shape)), {"eps": eps}
        yield F.rms_norm, (x, shape), {"eps": eps}
    yield torch.logcumsumexp, (10 * x, 1), {}


@pytest.mark.parametrize("calls", [of_cross_entropy, of_losses, of_distances, of_bags, of_norms])
def test_values_and_gradients_are_torchs(calls):
    torch.manual_seed(0)
    for function, arguments, options in calls():
        same(function, arguments, options)


@pytest.mark.parametrize("function", [F.hardsigmoid, F.rrelu])
@pytest.mark.parametrize("inplace", [False, True])
def test_activations(function, inplace):
    x = torch.linspace(-4, 4, 30, dtype=torch.float64)
    for way in (function, EQUIVALENT[function]):
        given = x.clone()
        found = way(given, inplace=inplace)
        assert (found is given) == inplace
        assert torch.equal(given, found if inplace else x)
        expected = function(x)
        # torch has a sixth in single precision
        assert float((found - expected).abs().max()) <= torch.finfo(torch.float32).eps


def test_products_of_groups():
    torch.manual_seed(0)
    ends, parts = torch.tensor([2, 2, 5], dtype=torch.int32), [slice(0, 2), slice(0), slice(2, 5)]
    a, b = normal(5, 8), normal(3, 8, 8)
    found = EQUIVALENT[torch._grouped_mm](a, b, offs=ends)
    expected = torch.cat([a[part] @ w for part, w in zip(parts, b, strict=True)])
    torch.testing.assert_close(found, expected, rtol=20 * EPS, atol=20 * EPS)
    theirs = torch._grouped_mm(a.float(), b.float(), offs=ends)
    torch.testing.assert_close(found.float(), theirs)


SPELLINGS = {
    "by name": "cross-entropy",
    "function": F.cross_entropy,
    "module": nn.CrossEntropyLoss(),
    "lambda": lambda outputs, labels: F.cross_entropy(input=outputs, target=labels),
    "tokens": lambda outputs, labels: F.cross_entropy(
        outputs.unflatten(0, (2, 3)).transpose(1, 2), labels.view(2, 3)
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_labels_out_of_range(spelling):
    x, y = torch.randn(6, 5), torch.arange(6) % 3
    for wrong in (3, -1, -100):
        y[1] = wrong
        problem = hr.Problem(nn.Linear(5, 3), SPELLINGS[spelling], (x, y))
        if wrong == -100:
            assert hr.spectrum(problem).rank == 5 * 2
            continue
        with pytest.raises(DataError, match=r"labels run from .* 3 outputs"):
            hr.spectrum(problem)


@pytest.mark.parametrize("kind", ["tensor", "dict", "object"])
def test_a_language_model_is_sent_to_its_own_loss(kind):
    class Model(nn.Sequential):
        def forward(self, tokens):
            logits = super().forward(tokens)
            whole = {"dict": {"logits": logits}, "object": SimpleNamespace(logits=logits)}
            return whole.get(kind, logits)

    torch.manual_seed(0)
    net = Model(nn.Embedding(7, 3), nn.Linear(3, 7))
    tokens = torch.randint(0, 7, (4, 5))
    for loss in ("cross-entropy", nn.CrossEntropyLoss()):
        with pytest.raises(ProblemError, match='the loss "next-token" takes logits'):
            hr.spectrum(hr.Problem(net, loss, (tokens, tokens)))
    if kind != "object":
        own = hr.spectrum(hr.Problem(net, "next-token", (tokens, tokens)))

        def by_hand(outputs, tokens):
            logits = outputs["logits"] if kind == "dict" else outputs
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

        expected = hr.spectrum(hr.Problem(net, by_hand, (tokens, tokens)))
        np.testing.assert_array_equal(own.eigenvalues, expected.eigenvalues)


def test_scores_that_lie_within_what_a_classifier_returns():
    class Model(nn.Linear):
        def forward(self, x):
            return {"logits": super().forward(x)}

    problem = hr.Problem(Model(5, 3), "cross-entropy", (torch.randn(6, 5), torch.arange(6) % 3))
    with pytest.raises(ProblemError, match=r'returns a dict.*cross_entropy\(outputs\["logits"\]'):
        hr.spectrum(problem)


def test_outputs_without_classes():
    net = nn.Sequential(nn.Linear(5, 1), nn.Flatten(0))
    problem = hr.Problem(net, "cross-entropy", (torch.randn(6, 5), torch.arange(6) % 3))
    with pytest.raises(ProblemError, match=r"needs outputs \(batch, classes\)"):
        hr.spectrum(problem)
