"""What stands in for an operation of torch has its values and its gradient, option by option."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import hessrmt as hr
from hessrmt.errors import DataError, ProblemError
from hessrmt.problems.equivalents import EQUIVALENT

EPS = torch.finfo(torch.float64).eps
N = 5


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


def same(function, arguments, options, allowed=200 * EPS, constant=None):
    """Values and gradients of a function of torch and of its equivalent."""
    found = []
    for way in (function, EQUIVALENT[function]):
        leaves = [
            a.clone().requires_grad_()
            if isinstance(a, torch.Tensor) and a.is_floating_point() and a is not constant
            else a
            for a in arguments
        ]
        value = way(*leaves, **options)
        weights = torch.linspace(1, 2, value.numel(), dtype=value.dtype).view_as(value)
        wanted = [a for a in leaves if isinstance(a, torch.Tensor) and a.requires_grad]
        slopes = [torch.zeros_like(a) for a in wanted]
        if value.requires_grad:
            slopes = torch.autograd.grad((value * weights).sum(), wanted, materialize_grads=True)
        found.append([value.detach(), *(slope.to_dense() for slope in slopes)])
    if bool(found[0][0].isnan().all()):  # a mean over nothing
        assert bool(found[1][0].isnan().all())
        return
    for theirs, ours in zip(*found, strict=True):
        assert theirs.shape == ours.shape
        finite = torch.isfinite(theirs)
        assert torch.allclose(theirs[~finite], ours[~finite], equal_nan=True)
        size = 1 + float(theirs[finite].abs().sum())
        assert bool(((theirs - ours)[finite].abs() <= allowed * size).all())


def choices(**options):
    names = list(options)
    return [
        dict(zip(names, picked, strict=True)) for picked in itertools.product(*options.values())
    ]


REDUCTIONS = ("mean", "sum", "none")
WEIGHT = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("shape", [(N, 3), (N, 3, 2), (N, 3, 2, 2), (3,)])
def test_cross_entropy(shape):
    torch.manual_seed(0)
    scores, labels = (
        5 * normal(*shape),
        torch.randint(3, (*shape[:1], *shape[2:])[len(shape) == 1 :]),
    )
    for options in choices(
        weight=(None, WEIGHT),
        reduction=REDUCTIONS,
        label_smoothing=(0.0, 0.2),
        ignore_index=(-100, 1),
    ):
        same(F.cross_entropy, (scores, labels), options)
    same(F.cross_entropy, (scores, labels), {"size_average": False})
    left_out = labels.clone()
    left_out.view(-1)[0] = -100
    same(F.cross_entropy, (scores, left_out), {"reduction": "sum"})
    if len(shape) > 1:
        same(F.cross_entropy, (scores, scores.detach().softmax(1)), {"label_smoothing": 0.1})


def test_classes_that_are_masked_out():
    scores = normal(N, 3)
    scores[:, 0] = -torch.inf
    labels = torch.tensor([1, 2, 1, -100, 2])
    same(F.cross_entropy, (scores, labels), {})


@pytest.mark.parametrize("options", choices(p=(1, 2), reduction=REDUCTIONS, weight=(None, WEIGHT)))
def test_multi_margin(options):
    torch.manual_seed(0)
    same(F.multi_margin_loss, (normal(N, 3), torch.randint(3, (N,))), options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_elementwise_losses(reduction):
    torch.manual_seed(0)
    outputs, targets = 2 * normal(N, 3), normal(N, 3)
    for size in (0.0, 0.7, 1.0):
        same(F.smooth_l1_loss, (outputs, targets), {"reduction": reduction, "beta": size})
    for size in (0.7, 1.0):
        same(F.huber_loss, (outputs, targets), {"reduction": reduction, "delta": size})
    signs = targets.sign()
    same(F.soft_margin_loss, (10 * outputs, signs), {"reduction": reduction}, constant=signs)
    same(F.mse_loss, (outputs, targets), {"reduction": reduction})


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_multilabel_margin(reduction):
    torch.manual_seed(0)
    labels = torch.tensor([[2, 0, -1, 1], [-1, 0, 1, 2], [0, 1, 2, 3], [3, -1, 3, -1]])
    same(F.multilabel_margin_loss, (normal(4, 4), labels), {"reduction": reduction})
    if reduction == "sum":
        same(F.multilabel_margin_loss, (normal(4), labels[0]), {"reduction": reduction})


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, float("inf")])
@pytest.mark.parametrize("shapes", [((4, 3), (2, 3)), ((2, 1, 4, 3), (5, 2, 3)), ((4, 1), (2, 1))])
def test_distances(p, shapes):
    torch.manual_seed(0)
    options = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    one, other = (normal(*shape) for shape in shapes)
    same(torch.cdist, (one, other, p), options)
    other[..., 0, :] = one[..., 0, :] if one.dim() == 2 else other[..., 0, :]  # a distance of zero
    if p >= 1:  # below one torch's gradient has no number there
        same(torch.cdist, (one, other, p), options)
    if one.dim() == 2:
        same(F.pdist, (one, p), {})


@pytest.mark.parametrize(
    "options", choices(mode=("sum", "mean", "max"), padding_idx=(None, 2, -1), sparse=(False, True))
)
def test_bags_of_rows(options):
    torch.manual_seed(0)
    if options["sparse"] and options["mode"] == "max":
        return  # torch has none
    table = normal(6, 3)
    same(F.embedding_bag, (torch.randint(6, (4, 3)), table), options)
    for offsets, last in (([0, 2, 2, 5], False), ([0, 3, 3, 7], True)):
        more = {"offsets": torch.tensor(offsets), "include_last_offset": last}
        same(F.embedding_bag, (torch.tensor([5, 2, 0, 4, 4, 1, 3]), table), options | more)
    if options["mode"] == "sum" and not options["sparse"]:
        more = {"per_sample_weights": normal(4, 3)}
        same(F.embedding_bag, (torch.randint(6, (4, 3)), table), options | more)


@pytest.mark.parametrize("dim", [0, 1, -1, None])
def test_weight_norm(dim):
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 2), dim=dim).double()
    g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    same(torch._weight_norm, (v, g, -1 if dim is None else dim), {})


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


@pytest.mark.parametrize("eps", [None, 0.1])
@pytest.mark.parametrize("axes", [1, 2])
def test_rms_norm(eps, axes):
    torch.manual_seed(0)
    shape = (3, 2)[2 - axes :]
    x, weight = normal(N, 3, 2), normal(*shape)
    same(F.rms_norm, (x, shape, weight), {"eps": eps})
    same(F.rms_norm, (x, shape), {"eps": eps})


def test_logcumsumexp():
    torch.manual_seed(0)
    same(torch.logcumsumexp, (10 * normal(3, 4, 2), 1), {})


def test_products_of_groups():
    torch.manual_seed(0)
    ends, parts = torch.tensor([2, 2, 5], dtype=torch.int32), [slice(0, 2), slice(0), slice(2, 5)]
    a, b = normal(5, 8), normal(3, 8, 8)
    found = EQUIVALENT[torch._grouped_mm](a, b, offs=ends)
    expected = torch.cat([a[part] @ w for part, w in zip(parts, b, strict=True)])
    torch.testing.assert_close(found, expected, rtol=20 * EPS, atol=20 * EPS)
    theirs = torch._grouped_mm(a.float(), b.float(), offs=ends)
    torch.testing.assert_close(found.float(), theirs)


def tokens(outputs, labels):
    return F.cross_entropy(outputs.unflatten(0, (2, 3)).transpose(1, 2), labels.view(2, 3))


SPELLINGS = {
    "by name": "cross-entropy",
    "function": F.cross_entropy,
    "module": nn.CrossEntropyLoss(),
    "lambda": lambda outputs, labels: F.cross_entropy(input=outputs, target=labels),
    "tokens": tokens,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_labels_out_of_range(spelling):
    x, y = torch.randn(6, 5), torch.arange(6) % 3
    for wrong in (3, -1):
        y[1] = wrong
        with pytest.raises(DataError, match=r"labels run from .* 3 outputs"):
            hr.spectrum(hr.Problem(nn.Linear(5, 3), SPELLINGS[spelling], (x, y)))
    y[1] = -100
    found = hr.spectrum(hr.Problem(nn.Linear(5, 3), SPELLINGS[spelling], (x, y)))
    assert found.rank == 5 * 2


def test_outputs_without_classes():
    with pytest.raises(ProblemError, match=r"needs outputs \(batch, classes\)"):
        hr.spectrum(
            hr.Problem(
                nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)),
                "cross-entropy",
                (torch.randn(6, 5), torch.arange(6) % 3),
            )
        )
