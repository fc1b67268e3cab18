"""Operations of torch without a right second derivative, by others that have one.

Each is the same function of its arguments, up to rounding. What a fused kernel or a sparse gradient
would save in time or memory is given up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from hessrmt.errors import DataError, NonFiniteError, ProblemError
from hessrmt.problems.losses import cross_entropy_in_full_digits


def _named(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """How losses are reduced, by torch's arguments of today from the older ones."""
    if size_average is None and reduce is None:
        return reduction
    return _reduction.legacy_get_string(size_average, reduce, emit_warning=False)


def _reduced(values: Tensor, *options: Any) -> Tensor:
    """The mean, the sum or all of some losses."""
    return {"mean": values.mean, "sum": values.sum}.get(_named(*options), lambda: values)()


def require_labels(outputs: Tensor, labels: Tensor, ignored: int) -> None:
    """Refuse class labels that cross-entropy would index out of bounds.

    Args:
        outputs: (B, K, ...) scores, or (K,).
        labels: (B, ...) integer labels.
        ignored: Label of what is left out.

    Raises:
        ProblemError: If the shapes do not fit.
        DataError: If a label is out of range.
    """
    axis = min(1, outputs.dim() - 1)
    if axis < 0 or labels.shape != outputs.shape[:axis] + outputs.shape[axis + 1 :]:
        raise ProblemError(
            "cross-entropy needs outputs (batch, classes) or (batch, classes, ...) and labels "
            f"(batch) or (batch, ...), got shapes {tuple(outputs.shape)} and {tuple(labels.shape)}"
        )
    used, classes = labels[labels != ignored], outputs.shape[axis]
    low, high = (int(used.min()), int(used.max())) if used.numel() else (0, 0)
    if low < 0 or high >= classes:
        raise DataError(
            f"labels run from {low} to {high}, but the model has {classes} outputs; "
            f"labels must lie in 0..{classes - 1} (or be {ignored}, which is left out)"
        )


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    check: bool = False,
) -> Tensor:
    """``F.cross_entropy``, for class labels in a form that keeps all digits.

    Args:
        input: Scores.
        target: Labels or probabilities.
        weight: Of the classes.
        size_average: Old form of ``reduction``.
        ignore_index: Label of what is left out.
        reduce: Old form of ``reduction``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: Part of the target that is spread evenly over all classes.
        check: Whether to look at the labels' values.

    Returns:
        As torch's.
    """
    reduction = _named(size_average, reduce, reduction)
    if target.is_floating_point() or target.dtype == torch.bool:
        if target.shape != input.shape or not input.dim():
            return F.cross_entropy(input, target, weight, reduction=reduction)  # raises
        return _soft_cross_entropy(input, target, weight, reduction, label_smoothing)
    if check:
        require_labels(input, target, ignore_index)
    return cross_entropy_in_full_digits(
        input, target, weight, ignore_index, reduction, label_smoothing
    )


def _soft_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, smoothing: float
) -> Tensor:
    """``F.cross_entropy`` for probabilities of the classes."""
    axis = min(1, input.dim() - 1)
    target = target.to(input.dtype) * (1 - smoothing) + smoothing / input.shape[axis]
    if weight is not None:
        target = target * weight.to(input.dtype).view(-1, *[1] * (input.dim() - 1 - axis))
    losses = -(target * _log_softmax(input, axis)).sum(axis)
    if reduction == "mean":
        return losses.sum() / (input.numel() // input.shape[axis])
    return losses.sum() if reduction == "sum" else losses


def _log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
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


def _softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    if dim is None or not input.dim() or not input.numel():
        return F.softmax(input, dim, _stacklevel, dtype)
    return torch.exp(_log_softmax(input, dim, dtype=dtype))


def _as_method(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same with the arguments of ``torch.softmax`` and of the method."""

    def method(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return function(input, dim, dtype=dtype)

    return method


def _softplus(input: Tensor) -> Tensor:
    """log(1 + exp x), smooth and in full digits everywhere."""
    up = input > 0
    above = torch.where(up, input, 0)
    below = torch.where(up, 0, input)
    return torch.where(up, above + torch.log1p(torch.exp(-above)), torch.log1p(torch.exp(below)))


def _logsigmoid(input: Tensor) -> Tensor:
    return -_softplus(-input)


def _binary_cross_entropy_of_scores(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average=None, reduce=None,
    reduction="mean", pos_weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``F.binary_cross_entropy_with_logits`` as two terms of one sign."""
    if target.shape != input.shape:
        return F.binary_cross_entropy_with_logits(input, target)  # raises
    share = target if pos_weight is None else target * pos_weight
    loss = (1 - target) * _softplus(input) + share * _softplus(-input)
    loss = loss if weight is None else loss * weight
    return _reduced(loss, size_average, reduce, reduction)


_LEAST_LOG = -100.0
"""What the logarithm of a probability is in torch's binary cross-entropy at least."""


def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average=None, reduce=None,
    reduction="mean", *, check: bool = False,
) -> Tensor:  # fmt: skip
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
    loss = loss if weight is None else loss * weight
    return _reduced(loss, size_average, reduce, reduction)


def _log(probability: Tensor) -> Tensor:
    some = probability > 0
    found = torch.log(torch.where(some, probability, 1))
    # the derivative goes on as 1/p there, as torch's own does
    least = (found.clamp(min=_LEAST_LOG) - found).detach()
    return torch.where(some, found + least, _LEAST_LOG)


def _gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """``F.gelu``, of which torch computes 1 + erf, without digits on the left."""
    if approximate != "none":
        return F.gelu(input, approximate=approximate)
    return input * torch.erfc(input * -(0.5**0.5)) / 2


def _squared_error(
    input: Tensor, target: Tensor, size_average=None, reduce=None, reduction="mean", **more: Any
) -> Tensor:
    """``F.mse_loss``, whose own derivative has a tangent that kills torch's tracer."""
    if input.shape != target.shape:
        raise ProblemError(
            f"mean squared error of outputs of shape {tuple(input.shape)} against targets of shape "
            f"{tuple(target.shape)}: torch would compare every output with every target; give both "
            "the same shape"
        )
    if any(option is not None for option in more.values()):
        return F.mse_loss(input, target, size_average, reduce, reduction, **more)
    return _reduced((input - target).square(), size_average, reduce, reduction)


def _huber(
    input: Tensor, target: Tensor, reduction="mean", delta: float = 1.0, *weight: Any, **more: Any
) -> Tensor:
    """``F.huber_loss``, as the next two without a forward-mode rule in torch."""
    if weight or more:
        return F.huber_loss(input, target, reduction, delta, *weight, **more)
    gap = input - target
    small, large = gap.square() / 2, delta * (gap.abs() - delta / 2)
    return _reduced(torch.where(gap.abs() <= delta, small, large), None, None, reduction)


def _smooth_l1(
    input: Tensor, target: Tensor, size_average=None, reduce=None, reduction="mean", beta=1.0
) -> Tensor:
    gap = input - target
    loss = gap.abs() if beta == 0 else _huber(input, target, "none", beta) / beta
    return _reduced(loss, size_average, reduce, reduction)


def _soft_margin(
    input: Tensor, target: Tensor, size_average=None, reduce=None, reduction="mean"
) -> Tensor:
    return _reduced(-F.logsigmoid(target * input), size_average, reduce, reduction)


def _multi_margin(
    input: Tensor, target: Tensor, p=1, margin=1.0, weight: Tensor | None = None, *options: Any,
    size_average=None, reduce=None, reduction="mean",
) -> Tensor:  # fmt: skip
    """``F.multi_margin_loss``, whose backward pass torch cannot differentiate."""
    scores, label = input.reshape(-1, input.shape[-1]), target.reshape(-1, 1)
    beyond = (margin - scores.gather(1, label) + scores).relu().pow(p)
    beyond = beyond if weight is None else beyond * weight[label]
    loss = beyond.scatter(1, label, 0.0).sum(1) / scores.shape[1]
    options = options + (size_average, reduce, reduction)[len(options) :]
    return _reduced(loss.reshape(target.shape), *options)


def _multilabel_margin(
    input: Tensor, target: Tensor, size_average=None, reduce=None, reduction="mean"
) -> Tensor:
    """``F.multilabel_margin_loss``: each row's labels end at its first -1."""
    scores, labels = (x.reshape(-1, input.shape[-1]) for x in (input, target))
    given = ((labels < 0).cumsum(1) == 0).to(scores.dtype)
    labels = labels.clamp(min=0)
    other = 1 - torch.zeros_like(scores).scatter_add(1, labels, given).clamp(max=1)
    beyond = (1 - scores.gather(1, labels)[:, :, None] + scores[:, None, :]).relu()
    loss = (beyond * given[:, :, None] * other[:, None, :]).sum((1, 2)) / scores.shape[1]
    return _reduced(loss.reshape(input.shape[:-1]), size_average, reduce, reduction)


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    gate = F.relu6(input + 3) / 6
    return input.copy_(gate) if inplace else gate


def _rrelu(input: Tensor, lower=1 / 8, upper=1 / 3, training=False, inplace=False) -> Tensor:
    if training:
        return F.rrelu(input, lower, upper, training, inplace)
    return F.leaky_relu(input, (lower + upper) / 2, inplace)


def _rms_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """``F.rms_norm``, of which torch's tracer makes something that has lost half its digits."""
    axes = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    normed = input * torch.rsqrt(input.square().mean(axes, keepdim=True) + eps)
    return normed if weight is None else normed * weight


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


def _distances(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:  # noqa: ARG001
    """``torch.cdist``, whose backward pass torch cannot differentiate."""
    return _norm(x1[..., :, None, :] - x2[..., None, :, :], p)


def _own_distances(input: Tensor, p: float = 2.0) -> Tensor:
    one, other = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return _norm(input[one] - input[other], p)


def _require_plain(max_norm: Any, scale_grad_by_freq: bool) -> None:
    if scale_grad_by_freq or max_norm is not None:
        raise ProblemError(
            "an Embedding with max_norm changes its parameters when it is used, and with "
            "scale_grad_by_freq its gradient is that of no function: take the option away"
        )


def embedding(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm=None, norm_type=2.0,  # noqa: ARG001
    scale_grad_by_freq=False, sparse=False, *, own: tuple[tuple[Tensor, Tensor], ...] = (),  # noqa: ARG001
) -> Tensor:  # fmt: skip
    """``F.embedding`` with a dense gradient, and a row for padding that is the constant it is.

    Torch gives that row no gradient, but would still look it up in parameters that moved.

    Args:
        input: Indices.
        weight: (rows, width).
        padding_idx: The row.
        max_norm: Refused.
        norm_type: Of ``max_norm``.
        scale_grad_by_freq: Refused.
        sparse: Without effect.
        own: Pairs of a table that may have moved and of what it is for the problem.

    Returns:
        The rows.
    """
    _require_plain(max_norm, scale_grad_by_freq)
    for moved, table in own if padding_idx is not None else ():
        if moved is weight:
            padding = (input == padding_idx)[..., None]
            return torch.where(padding, table.detach()[padding_idx], F.embedding(input, weight))
    return F.embedding(input, weight, padding_idx)


def _embedding_bag(
    input: Tensor, weight: Tensor, offsets: Tensor | None = None, max_norm=None, norm_type=2,  # noqa: ARG001
    scale_grad_by_freq=False, mode="mean", sparse=False, per_sample_weights: Tensor | None = None,  # noqa: ARG001
    include_last_offset=False, padding_idx: int | None = None,
) -> Tensor:  # fmt: skip
    """``F.embedding_bag`` by sums over the rows of every bag."""
    _require_plain(max_norm, scale_grad_by_freq)
    if input.dim() == 2:
        offsets = torch.arange(len(input), device=input.device) * input.shape[1]
        include_last_offset = False
    assert offsets is not None
    ids, bags = input.reshape(-1), len(offsets) - include_last_offset
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
    if per_sample_weights is not None:
        share = share * per_sample_weights.reshape(-1)
    total = rows.new_zeros(bags, rows.shape[1]).index_add(0, bag, rows * share[:, None])
    if mode == "sum":
        return total
    return total / share.new_zeros(bags).index_add(0, bag, share).clamp(min=1)[:, None]


def _grouped_product(mat_a: Tensor, mat_b: Tensor, *, offs=None, **options: Any) -> Tensor:
    """``F.grouped_mm`` of rows in groups, for which torch has kernels in narrow types alone."""
    if offs is None or mat_a.dim() != 2 or mat_b.dim() != 3 or any(options.values()):
        return getattr(torch, "_grouped_mm")(mat_a, mat_b, offs=offs, **options)  # noqa: B009
    row = torch.arange(len(mat_a), device=offs.device, dtype=offs.dtype)
    group = torch.searchsorted(offs.contiguous(), row, right=True)
    mine = group[:, None] == torch.arange(len(offs), device=offs.device)
    return torch.einsum("rk,rg,gkn->rn", mat_a, mine.to(mat_a.dtype), mat_b)


def _logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """``torch.logcumsumexp``, whose backward pass goes through logarithms and loses digits."""
    rows = input.movedim(dim, -1)[..., None, :]
    earlier = rows.new_ones(rows.shape[-1], rows.shape[-1]).tril() > 0
    return torch.where(earlier, rows, -torch.inf).logsumexp(-1).movedim(-1, dim)


def _within(function: Callable[..., Any], context: Callable[[], Any]) -> Callable[..., Any]:
    def inside(*arguments: Any, **keywords: Any) -> Any:
        with context():
            return function(*arguments, **keywords)

    return inside


_FUSED = (F.scaled_dot_product_attention, F.multi_head_attention_forward)
_CUDNN = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
"""Kernels without a second derivative, which can be told to take elementary operations."""

EQUIVALENT: dict[Any, Callable[..., Any]] = {
    F.log_softmax: _log_softmax, F.softmax: _softmax, F.logsigmoid: _logsigmoid, F.gelu: _gelu,
    **dict.fromkeys((torch.log_softmax, Tensor.log_softmax), _as_method(_log_softmax)),
    **dict.fromkeys((torch.softmax, Tensor.softmax), _as_method(_softmax)),
    F.binary_cross_entropy: binary_cross_entropy,
    F.binary_cross_entropy_with_logits: _binary_cross_entropy_of_scores,
    F.cross_entropy: cross_entropy, F.mse_loss: _squared_error, F.huber_loss: _huber,
    F.smooth_l1_loss: _smooth_l1, F.soft_margin_loss: _soft_margin,
    F.multi_margin_loss: _multi_margin, F.multilabel_margin_loss: _multilabel_margin,
    F.hardsigmoid: _hardsigmoid, F.rrelu: _rrelu, F.rms_norm: _rms_norm, torch.rms_norm: _rms_norm,
    vars(torch)["_weight_norm"]: _weight_norm, torch.cdist: _distances, F.pdist: _own_distances,
    F.embedding: embedding, F.embedding_bag: _embedding_bag,
    torch.logcumsumexp: _logcumsumexp, Tensor.logcumsumexp: _logcumsumexp,
    **{kernel: _within(kernel, lambda: sdpa_kernel(SDPBackend.MATH)) for kernel in _FUSED},
    **{k: _within(k, lambda: torch.backends.cudnn.flags(enabled=False)) for k in _CUDNN},
    **{vars(m)[name]: _grouped_product for m, name in ((torch, "_grouped_mm"), (F, "grouped_mm"))
       if hasattr(m, name)},
}  # fmt: skip
"""Function of torch to its equivalent."""
