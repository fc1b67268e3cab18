"""Operations of torch without a right second derivative, by others that have one.

Each is the same function of its arguments, up to rounding. What a fused kernel or a sparse gradient
would save in time or memory is given up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from hessrmt.arrays import fetched
from hessrmt.errors import DataError, NonFiniteError, ProblemError

EQUIVALENT: dict[Any, Callable[..., Any]] = {}
"""Function of torch to its equivalent, which gets the arguments that torch hands on."""


def _replaces(*originals: Any, reduced: bool = False) -> Callable[..., Any]:
    """Register what stands in for functions of torch, perhaps before its results are reduced."""

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def loss(*data: Any, size_average=None, reduce=None, reduction="mean", **more: Any):
            return _reduced(function(*data, **more), size_average, reduce, reduction)

        EQUIVALENT.update(dict.fromkeys(originals, loss if reduced else function))
        return function

    return register


def _named(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """How losses are reduced, by torch's arguments of today from the older ones."""
    if size_average is None and reduce is None:
        return reduction
    return _reduction.legacy_get_string(size_average, reduce, emit_warning=False)


def _reduced(values: Tensor, size_average=None, reduce=None, reduction="mean") -> Tensor:
    """The mean, the sum or all of some losses."""
    ways = {"mean": values.mean, "sum": values.sum}
    return ways.get(_named(size_average, reduce, reduction), lambda: values)()


@_replaces(F.cross_entropy)
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    size_average: bool | None = None,
    reduce: bool | None = None,
    check: bool = False,
) -> Tensor:
    """``F.cross_entropy``, whose derivatives lose no digits where the network is certain.

    With m the likeliest class, L = log(1 + Σ_{j≠m} exp(f_j - f_m)) + f_m - f_y: every second
    derivative is made of small numbers that are small from the start. In the usual form they are
    differences p_m - p_m² of numbers near one, with an error of ε however small they are.

    Args:
        input: (B, K, ...) scores, or (K,).
        target: (B, ...) integer labels, or probabilities.
        weight: (K,) weights of the classes.
        ignore_index: Label of what is left out.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: Part of the target that is spread evenly over all classes.
        size_average: Old form of ``reduction``.
        reduce: Likewise.
        check: Whether to look at the labels' values.

    Returns:
        As torch's, up to rounding.

    Raises:
        ProblemError: If the shapes do not fit.
        DataError: If a label is out of range.
    """
    reduction = _named(size_average, reduce, reduction)
    _require_scores(input)
    axis = min(1, input.dim() - 1)
    if target.is_floating_point() or target.dtype == torch.bool:
        if target.shape != input.shape or not input.dim():
            return F.cross_entropy(input, target, weight, reduction=reduction)  # raises
        target = (
            target.to(input.dtype) * (1 - label_smoothing) + label_smoothing / input.shape[axis]
        )
        if weight is not None:
            target = target * weight.to(input.dtype).view(-1, *[1] * (input.dim() - 1 - axis))
        losses = -(target * _log_softmax(input, axis)).sum(axis)
        if reduction == "mean":
            return losses.sum() / (input.numel() // input.shape[axis])
        return losses.sum() if reduction == "sum" else losses
    if check:
        _check_labels(input, target, axis, ignore_index)
    scores = input
    if input.dim() != 2:
        scores = input.movedim(axis, -1)
        scores = scores.reshape(-1, scores.shape[-1])
    column = target.reshape(-1, 1).long()
    used = column[:, 0] != ignore_index
    likeliest = scores.detach().argmax(dim=1, keepdim=True)
    label = torch.where(used[:, None], column, likeliest)
    others = torch.ones_like(scores).scatter(1, likeliest, 0.0)
    shifted = scores - scores.gather(1, likeliest)
    # zero where the label is the likeliest class, and no 1 - 1 in the derivatives there
    behind = torch.where(label == likeliest, 0, shifted.gather(1, label))[:, 0]
    rest = torch.log1p((others * torch.exp(shifted)).sum(dim=1))
    share = used.to(scores.dtype)
    if weight is not None:
        share = share * weight.to(scores.dtype)[label[:, 0]]
    whole = share.sum() if reduction == "mean" else 1
    loss = share / whole * (rest - behind)
    if label_smoothing:
        surprise = rest[:, None] - shifted
        surprise = surprise if weight is None else surprise * weight
        smooth = used / whole * surprise.mean(dim=1)
        loss = (1 - label_smoothing) * loss + label_smoothing * smooth
    return loss.reshape(target.shape) if reduction == "none" else loss.sum()


def logits_of(outputs: Any) -> Any:
    """What a network returns under the name of logits, as models of transformers do; else all."""
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return outputs["logits"]
    return getattr(outputs, "logits", outputs)


def _require_scores(outputs: Any) -> None:
    """Refuse what a network returns around its scores, and say which loss takes it."""
    if isinstance(outputs, Tensor):
        return
    scores = logits_of(outputs)
    hint = "give a loss of your own that takes the scores out of it"
    if isinstance(scores, Tensor):
        where = "outputs.logits" if hasattr(outputs, "logits") else 'outputs["logits"]'
        own = f"lambda outputs, labels: F.cross_entropy({where}, labels)"
        hint = f"its logits have the shape {tuple(scores.shape)}: " + (
            f"{_NEXT_TOKEN}; otherwise give {own}" if scores.dim() == 3 else f"give the loss {own}"
        )
    raise ProblemError(
        f"cross-entropy takes a tensor and the network returns a {type(outputs).__name__}; {hint}"
    )


_NEXT_TOKEN = (
    'the loss "next-token" takes logits (batch, length, vocabulary) and the tokens '
    "(batch, length), and shifts them by one"
)


def _check_labels(scores: Tensor, labels: Tensor, axis: int, ignored: int) -> None:
    """Refuse class labels that cross-entropy would index out of bounds."""
    if axis < 0 or labels.shape != scores.shape[:axis] + scores.shape[axis + 1 :]:
        raise ProblemError(
            "cross-entropy needs outputs (batch, classes) or (batch, classes, ...) and labels "
            f"(batch) or (batch, ...), got shapes {tuple(scores.shape)} and {tuple(labels.shape)}"
            + f"; {_NEXT_TOKEN}"
            * (scores.dim() == 3 and labels.shape == scores.shape[:2])
        )
    used, classes = labels != ignored, scores.shape[axis]
    if not labels.numel():
        return
    # between the smallest and the largest label that is used; 0 if there is none
    known = torch.where(used, labels, torch.where(used, labels, 0).amax())
    low, high = map(int, fetched(*torch.aminmax(known)))
    if low < 0 or high >= classes:
        raise DataError(
            f"labels run from {low} to {high}, but the model has {classes} outputs; "
            f"labels must lie in 0..{classes - 1} (or be {ignored}, which is left out)"
        )


@_replaces(F.log_softmax, torch.log_softmax, Tensor.log_softmax)
def _log_softmax(input: Tensor, dim=None, dtype=None, _stacklevel: int = 3) -> Tensor:
    """``F.log_softmax`` with derivatives that keep all digits where one class has all the weight.

    With m the likeliest class it is f_j - f_m - log(1 + Σ_{k≠m} exp(f_k - f_m)): derivatives are
    made of numbers that are small from the start.

    Returns:
        Of the shape of the scores.
    """
    if dim is None or not input.dim() or not input.numel():
        return F.log_softmax(input, dim, _stacklevel, dtype)
    scores = input if dtype is None else input.to(dtype)
    likeliest = scores.detach().argmax(dim, keepdim=True)
    first = torch.zeros_like(scores, dtype=torch.bool).scatter(dim, likeliest, value=True)
    # zero, and not f_m - f_m, for the likeliest: no 1 - 1 in its derivatives
    behind = torch.where(first, 0, scores - scores.gather(dim, likeliest))
    others = torch.where(first, 0, torch.exp(behind))
    return behind - torch.log1p(others.sum(dim, keepdim=True))


@_replaces(F.softmax, torch.softmax, Tensor.softmax)
def _softmax(input: Tensor, dim=None, dtype=None, _stacklevel: int = 3) -> Tensor:
    return torch.exp(_log_softmax(input, dim, dtype, _stacklevel))


def _softplus(input: Tensor) -> Tensor:
    """log(1 + exp x), smooth and in full digits everywhere."""
    up = input > 0
    above = torch.where(up, input, 0)
    below = torch.where(up, 0, input)
    return torch.where(up, above + torch.log1p(torch.exp(-above)), torch.log1p(torch.exp(below)))


@_replaces(F.logsigmoid)
def _logsigmoid(input: Tensor) -> Tensor:
    return -_softplus(-input)


@_replaces(F.binary_cross_entropy_with_logits, reduced=True)
def _bce_of_scores(input: Tensor, target: Tensor, weight=None, pos_weight=None) -> Tensor:
    """``F.binary_cross_entropy_with_logits`` as two terms of one sign."""
    if target.shape != input.shape:
        return F.binary_cross_entropy_with_logits(input, target)  # raises
    share = target if pos_weight is None else target * pos_weight
    loss = (1 - target) * _softplus(input) + share * _softplus(-input)
    return loss if weight is None else loss * weight


_LEAST_LOG = -100.0
"""What the logarithm of a probability is in torch's binary cross-entropy at least."""


@_replaces(F.binary_cross_entropy, reduced=True)
def _bce(input: Tensor, target: Tensor, weight=None, *, check: bool = False) -> Tensor:
    """``F.binary_cross_entropy``, in whose derivatives torch divides by p (1 - p) + 1e-12.

    Returns:
        Of the shape of the probabilities, or a scalar.

    Raises:
        NonFiniteError: If a probability has become 0 or 1 where the target is another.
    """
    if target.shape != input.shape:
        return F.binary_cross_entropy(input, target)  # raises
    if check and bool((((input == 0) & (target > 0)) | ((input == 1) & (target < 1))).any()):
        raise NonFiniteError(
            "binary cross-entropy of a probability that has been rounded to 0 or 1 where the "
            "target is another: the loss is infinite, and torch's, which ends at 100, has lost its "
            "derivatives. Give nn.BCEWithLogitsLoss the scores before the sigmoid"
        )
    loss = -(target * _log(input) + (1 - target) * _log(1 - input))
    return loss if weight is None else loss * weight


def _log(probability: Tensor) -> Tensor:
    some = probability > 0
    found = torch.log(torch.where(some, probability, 1))
    # the derivative goes on as 1/p there, as torch's own does
    least = (found.clamp(min=_LEAST_LOG) - found).detach()
    return torch.where(some, found + least, _LEAST_LOG)


@_replaces(F.gelu)
def _gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """``F.gelu``, of which torch computes 1 + erf, without digits on the left."""
    if approximate != "none":
        return F.gelu(input, approximate=approximate)
    return input * torch.erfc(input * -(0.5**0.5)) / 2


@_replaces(F.mse_loss)
def _squared_error(input: Tensor, target: Tensor, *, weight: Tensor | None = None, **how: Any):
    """``F.mse_loss``, whose own derivative has a tangent that kills torch's tracer."""
    if input.shape != target.shape:
        raise ProblemError(
            f"mean squared error of outputs of shape {tuple(input.shape)} against targets of shape "
            f"{tuple(target.shape)}: torch would compare every output with every target; give both "
            "the same shape"
        )
    if weight is not None:
        return F.mse_loss(input, target, weight=weight, **how)  # pyright: ignore[reportCallIssue]
    return _reduced((input - target).square(), **how)


@_replaces(F.huber_loss, reduced=True)
def _huber(input: Tensor, target: Tensor, delta: float = 1.0, weight: Tensor | None = None):
    """``F.huber_loss``, as the next two without a forward-mode rule in torch."""
    if weight is not None:
        return F.huber_loss(input, target, "none", delta, weight)  # pyright: ignore[reportCallIssue]
    gap = input - target
    small, large = gap.square() / 2, delta * (gap.abs() - delta / 2)
    return torch.where(gap.abs() <= delta, small, large)


@_replaces(F.smooth_l1_loss, reduced=True)
def _smooth_l1(input: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    return _huber(input, target, beta) / beta if beta else (input - target).abs()


@_replaces(F.soft_margin_loss, reduced=True)
def _soft_margin(input: Tensor, target: Tensor) -> Tensor:
    return -F.logsigmoid(target * input)


@_replaces(F.multi_margin_loss, reduced=True)
def _multi_margin(input: Tensor, target: Tensor, p=1, margin=1.0, weight: Tensor | None = None):
    """``F.multi_margin_loss``, whose backward pass torch cannot differentiate."""
    scores, label = input.reshape(-1, input.shape[-1]), target.reshape(-1, 1)
    beyond = (margin - scores.gather(1, label) + scores).relu().pow(p)
    beyond = beyond if weight is None else beyond * weight[label]
    loss = beyond.scatter(1, label, 0.0).sum(1) / scores.shape[1]
    return loss.reshape(target.shape)


@_replaces(F.multilabel_margin_loss, reduced=True)
def _multilabel_margin(input: Tensor, target: Tensor) -> Tensor:
    """``F.multilabel_margin_loss``: each row's labels end at its first -1."""
    scores, labels = (x.reshape(-1, input.shape[-1]) for x in (input, target))
    given = ((labels < 0).cumsum(1) == 0).to(scores.dtype)
    labels = labels.clamp(min=0)
    other = 1 - torch.zeros_like(scores).scatter_add(1, labels, given).clamp(max=1)
    beyond = (1 - scores.gather(1, labels)[:, :, None] + scores[:, None, :]).relu()
    loss = (beyond * given[:, :, None] * other[:, None, :]).sum((1, 2)) / scores.shape[1]
    return loss.reshape(input.shape[:-1])


@_replaces(F.hardsigmoid)
def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    gate = F.relu6(input + 3) / 6
    return input.copy_(gate) if inplace else gate


@_replaces(F.rrelu)
def _rrelu(input: Tensor, lower=1 / 8, upper=1 / 3, training=False, inplace=False) -> Tensor:
    if training:
        return F.rrelu(input, lower, upper, training, inplace)
    return F.leaky_relu(input, (lower + upper) / 2, inplace)


@_replaces(F.rms_norm, torch.rms_norm)
def _rms_norm(input: Tensor, normalized_shape: Any, weight=None, eps=None) -> Tensor:
    """``F.rms_norm``, of which torch's tracer makes something that has lost half its digits."""
    axes = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    normed = input * torch.rsqrt(input.square().mean(axes, keepdim=True) + eps)
    return normed if weight is None else normed * weight


@_replaces(vars(torch)["_weight_norm"])
def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Weight g v/‖v‖, the norm over all axes but one; torch's second derivative is wrong."""
    axes = [axis for axis in range(v.dim()) if dim == -1 or axis != dim]
    return v * (g / torch.linalg.vector_norm(v, dim=axes, keepdim=True).view_as(g))


def _norm(difference: Tensor, p: float) -> Tensor:
    """The p-norm over the last axis, with derivative zero where it is zero (as torch's kernels)."""
    size = difference.abs()
    if p in (0, 1):
        return (size if p else (size > 0).to(size.dtype)).sum(-1)
    if p == float("inf"):
        return size.amax(-1)
    apart = size > 0
    powers = torch.where(apart, size, 1).pow(p) * apart if p != 2 else difference.square()
    total = powers.sum(-1)
    return torch.where(total > 0, torch.where(total > 0, total, 1).pow(1 / p), 0)


@_replaces(torch.cdist)
def _distances(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:  # noqa: ARG001
    """``torch.cdist``, whose backward pass torch cannot differentiate."""
    return _norm(x1[..., :, None, :] - x2[..., None, :, :], p)


@_replaces(F.pdist)
def _own_distances(input: Tensor, p: float = 2.0) -> Tensor:
    one, other = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return _norm(input[one] - input[other], p)


def _require_plain(max_norm: Any = None, scale_grad_by_freq: bool = False, **_: Any) -> None:
    if scale_grad_by_freq or max_norm is not None:
        raise ProblemError(
            "an Embedding with max_norm changes its parameters when it is used, and with "
            "scale_grad_by_freq its gradient is that of no function: take the option away"
        )


@_replaces(F.embedding)
def _embedding(input: Tensor, weight: Tensor, padding_idx=None, own=(), **more: Any) -> Tensor:
    """``F.embedding`` with a dense gradient, and a row for padding that is the constant it is.

    Torch gives that row no gradient, but would still look it up in parameters that moved: ``own``
    are pairs of a table that may have moved and of what it is for the problem.

    Returns:
        The rows.
    """
    _require_plain(**more)
    for moved, table in own if padding_idx is not None else ():
        if moved is weight:
            padding = (input == padding_idx)[..., None]
            return torch.where(padding, table.detach()[padding_idx], F.embedding(input, weight))
    return F.embedding(input, weight, padding_idx)


@_replaces(F.embedding_bag)
def _embedding_bag(
    input: Tensor, weight: Tensor, offsets=None, mode="mean", padding_idx=None, **more: Any
) -> Tensor:
    """``F.embedding_bag`` by sums over the rows of every bag."""
    _require_plain(**more)
    last, weights = more.get("include_last_offset", False), more.get("per_sample_weights")
    if input.dim() == 2:
        offsets = torch.arange(len(input), device=input.device) * input.shape[1]
        last = False
    assert offsets is not None
    ids, bags = input.reshape(-1), len(offsets) - last
    place = torch.arange(len(ids), device=ids.device, dtype=offsets.dtype)
    bag = torch.searchsorted(offsets[:bags].contiguous(), place, right=True) - 1
    rows = F.embedding(ids, weight, padding_idx)
    used = torch.ones_like(ids) if padding_idx is None else ids != padding_idx % len(weight)
    if mode == "max":
        rows = torch.where(used[:, None] > 0, rows, -torch.inf)
        empty = rows.new_full((bags, rows.shape[1]), -torch.inf)
        found = empty.scatter_reduce(0, bag[:, None].expand_as(rows), rows, "amax")
        return torch.where(found == -torch.inf, 0, found)
    share = used.to(rows.dtype)
    if weights is not None:
        share = share * weights.reshape(-1)
    total = rows.new_zeros(bags, rows.shape[1]).index_add(0, bag, rows * share[:, None])
    if mode == "sum":
        return total
    return total / share.new_zeros(bags).index_add(0, bag, share).clamp(min=1)[:, None]


@_replaces(*(vars(m)[n] for m, n in ((torch, "_grouped_mm"), (F, "grouped_mm")) if hasattr(m, n)))
def _grouped_product(mat_a: Tensor, mat_b: Tensor, *, offs=None, **options: Any) -> Tensor:
    """``F.grouped_mm`` of rows in groups, for which torch has kernels in narrow types alone."""
    if offs is None or mat_a.dim() != 2 or mat_b.dim() != 3 or any(options.values()):
        return getattr(torch, "_grouped_mm")(mat_a, mat_b, offs=offs, **options)  # noqa: B009
    row = torch.arange(len(mat_a), device=offs.device, dtype=offs.dtype)
    group = torch.searchsorted(offs.contiguous(), row, right=True)
    mine = group[:, None] == torch.arange(len(offs), device=offs.device)
    return torch.einsum("rk,rg,gkn->rn", mat_a, mine.to(mat_a.dtype), mat_b)


@_replaces(torch.logcumsumexp, Tensor.logcumsumexp)
def _logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """``torch.logcumsumexp``, whose backward pass goes through logarithms and loses digits."""
    rows = input.movedim(dim, -1)[..., None, :]
    earlier = rows.new_ones(rows.shape[-1], rows.shape[-1]).tril() > 0
    return torch.where(earlier, rows, -torch.inf).logsumexp(-1).movedim(-1, dim)


KERNELS = (
    F.scaled_dot_product_attention,
    F.multi_head_attention_forward,
    torch.lstm,
    torch.gru,
    torch.rnn_tanh,
    torch.rnn_relu,
)
"""Functions whose fused kernels torch cannot differentiate twice, all digits of which are right."""

_plain_attention = sdpa_kernel(SDPBackend.MATH)


@contextmanager
def _plain_recurrence() -> Iterator[None]:
    """Without cuDNN; its own context also reads settings that newer names may have split in two."""
    library: Any = torch.backends.cudnn
    before = library.enabled
    library.enabled = False
    try:
        yield
    finally:
        library.enabled = before


for _kernel in KERNELS[:2]:
    EQUIVALENT[_kernel] = _plain_attention(_kernel)
for _kernel in KERNELS[2:]:
    EQUIVALENT[_kernel] = _plain_recurrence()(_kernel)
