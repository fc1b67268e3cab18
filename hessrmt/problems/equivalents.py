"""Operations of torch without a right second derivative, by others that have one.

Each is the same function of its arguments, up to rounding. What a fused kernel, an in-place form or
a sparse gradient would save in time or memory is given up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from hessrmt.errors import DataError, ProblemError
from hessrmt.problems.losses import cross_entropy_in_full_digits


def _reduced(values: Tensor, size_average: Any, reduce: Any, reduction: str) -> Tensor:
    """The mean, the sum or all of some losses, as torch's arguments old and new say."""
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce, emit_warning=False)
    return {"mean": values.mean, "sum": values.sum}.get(reduction, lambda: values)()


def _squared_error(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """``F.mse_loss``, whose own derivative has a tangent that kills torch's tracer."""
    if weight is not None:
        return F.mse_loss(input, target, size_average, reduce, reduction, weight)
    if input.shape != target.shape:
        raise ProblemError(
            f"mean squared error of outputs of shape {tuple(input.shape)} against targets of shape "
            f"{tuple(target.shape)}: torch would compare every output with every target; give both "
            "the same shape"
        )
    return _reduced((input - target).square(), size_average, reduce, reduction)


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
    axis = 0 if outputs.dim() == 1 else 1
    if outputs.dim() == 0 or labels.shape != outputs.shape[:axis] + outputs.shape[axis + 1 :]:
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
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce, emit_warning=False)
    if target.is_floating_point() or target.dtype == torch.bool:
        return F.cross_entropy(
            input, target, weight, reduction=reduction, label_smoothing=label_smoothing
        )
    if check:
        require_labels(input, target, ignore_index)
    return cross_entropy_in_full_digits(
        input, target, weight, ignore_index, reduction, label_smoothing
    )


def _in_place(input: Tensor, result: Tensor, inplace: bool) -> Tensor:
    return input.copy_(result) if inplace else result


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return _in_place(input, F.relu6(input + 3) / 6, inplace)


def _hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    kept = input.clone() if inplace else input
    return _in_place(input, kept * F.relu6(kept + 3) / 6, inplace)


def _rrelu(
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    if training:
        return F.rrelu(input, lower, upper, training, inplace)
    return F.leaky_relu(input, (lower + upper) / 2, inplace)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Weight g v/‖v‖, the norm over all axes but one; torch's second derivative is wrong."""
    axes = [axis for axis in range(v.dim()) if dim == -1 or axis != dim % v.dim()]
    return v * (g / torch.linalg.vector_norm(v, dim=axes, keepdim=True).view_as(g))


def _norm(difference: Tensor, p: float) -> Tensor:
    """The p-norm over the last axis, with derivative zero where it is zero (as torch's kernels)."""
    if p == 0:
        return (difference != 0).to(difference.dtype).sum(-1)
    size = difference.abs()
    if p == 1:
        return size.sum(-1)
    if p == float("inf"):
        return size.amax(-1)
    apart = size > 0
    powers = torch.where(apart, size, 1).pow(p) * apart if p != 2 else difference.square()
    total = powers.sum(-1)
    apart = total > 0
    return torch.where(apart, torch.where(apart, total, 1).pow(1 / p), 0)


def _distances(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:  # noqa: ARG001
    """``torch.cdist``, whose backward pass torch cannot differentiate."""
    return _norm(x1[..., :, None, :] - x2[..., None, :, :], p)


def _own_distances(input: Tensor, p: float = 2.0) -> Tensor:
    one, other = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return _norm(input[one] - input[other], p)


def _pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    found = _norm(x1 - x2 + eps, p)
    return found[..., None] if keepdim else found


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,  # noqa: ARG001
) -> Tensor:
    """``F.embedding`` with a dense gradient."""
    return F.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq)


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,  # noqa: ARG001
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,  # noqa: ARG001
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """``F.embedding_bag`` by sums over the rows of every bag."""
    if scale_grad_by_freq or max_norm is not None:
        raise ProblemError(
            "EmbeddingBag with max_norm or scale_grad_by_freq: its gradient is that of no function"
        )
    if input.dim() == 2:
        bags, length = input.shape
        offsets = torch.arange(bags, device=input.device) * length
        input = input.reshape(-1)
    elif offsets is None:
        raise ProblemError("EmbeddingBag needs offsets for ids in one row")
    else:
        bags = len(offsets) - include_last_offset
    place = torch.arange(len(input), device=input.device)
    bag = torch.searchsorted(offsets[:bags].contiguous(), place.to(offsets.dtype), right=True) - 1
    rows = F.embedding(input, weight, padding_idx)
    used = torch.ones_like(input, dtype=torch.bool)
    if padding_idx is not None:
        used = input != padding_idx % len(weight)
    if mode == "max":
        low = torch.where(used[:, None], rows, -float("inf"))
        empty = rows.new_full((bags, rows.shape[1]), -float("inf"))
        found = empty.scatter_reduce(0, bag[:, None].expand_as(low), low, "amax")
        return torch.where(found == -float("inf"), 0, found)
    share = used.to(rows.dtype)
    if per_sample_weights is not None:
        share = share * per_sample_weights.reshape(-1)
    total = rows.new_zeros(bags, rows.shape[1]).index_add(0, bag, rows * share[:, None])
    if mode == "sum":
        return total
    return total / share.new_zeros(bags).index_add(0, bag, share).clamp(min=1)[:, None]


def _logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """``torch.logcumsumexp``, whose backward pass goes through logarithms and loses digits."""
    rows = input.movedim(dim, -1)[..., None, :]
    length = rows.shape[-1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=input.device).tril()
    return torch.where(earlier, rows, -float("inf")).logsumexp(-1).movedim(-1, dim)


def _multi_margin(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``F.multi_margin_loss``, whose backward pass torch cannot differentiate."""
    scores, label = input.reshape(-1, input.shape[-1]), target.reshape(-1, 1)
    beyond = (margin - scores.gather(1, label) + scores).relu().pow(p)
    if weight is not None:
        beyond = beyond * weight[label]
    others = torch.ones_like(scores).scatter(1, label, 0.0)
    loss = (beyond * others).sum(1) / scores.shape[1]
    return _reduced(loss.reshape(target.shape), size_average, reduce, reduction)


def _multilabel_margin(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``F.multilabel_margin_loss``: each row's labels end at its first -1."""
    scores, labels = (x.reshape(-1, input.shape[-1]) for x in (input, target))
    given = ((labels < 0).cumsum(1) == 0).to(scores.dtype)
    labels = labels.clamp(min=0)
    is_label = torch.zeros_like(scores).scatter_add(1, labels, given).clamp(max=1)
    beyond = (1 - scores.gather(1, labels)[:, :, None] + scores[:, None, :]).relu()
    pairs = beyond * given[:, :, None] * (1 - is_label)[:, None, :]
    loss = pairs.sum((1, 2)) / scores.shape[1]
    return _reduced(loss.reshape(input.shape[:-1]), size_average, reduce, reduction)


def _grouped_product(
    mat_a: Tensor,
    mat_b: Tensor,
    *,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``F.grouped_mm``, a kernel for bfloat16: a product a group; ``offs`` says where each ends."""
    if offs is None:
        found = mat_a @ mat_b
    elif mat_a.dim() == 2 and mat_b.dim() == 3:  # groups of rows
        found = _by_group(mat_a, mat_b, offs)
    elif mat_a.dim() == 3:  # groups of columns
        found = _by_group(mat_b.mT, mat_a.mT, offs).mT
    else:  # the inner axis is cut
        one, other = mat_a[None] * _groups(offs, mat_b).mT[:, None, :], mat_b[None]
        found = one @ other
    if bias is not None:
        found = found + bias
    return found if out_dtype is None else found.to(out_dtype)


def _groups(offs: Tensor, like: Tensor) -> Tensor:
    """(rows, groups) which row belongs to which group, as numbers."""
    rows = torch.arange(like.shape[0], device=like.device)
    group = torch.searchsorted(offs.contiguous(), rows.to(offs.dtype), right=True)
    return (group[:, None] == torch.arange(len(offs), device=like.device)).to(like.dtype)


def _by_group(rows: Tensor, matrices: Tensor, offs: Tensor) -> Tensor:
    member = _groups(offs, rows)
    return torch.einsum("rg,rgn->rn", member, torch.einsum("rk,gkn->rgn", rows, matrices))


def _plainly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Attention through torch's math kernel: the fused ones have no second derivative."""

    def by_math(*arguments: Any, **keywords: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return function(*arguments, **keywords)

    return by_math


def _without_fused_cells(function: Callable[..., Any]) -> Callable[..., Any]:
    """Recurrent layers by elementary operations: fused ones have no second derivative."""

    def by_steps(*arguments: Any, **keywords: Any) -> Any:
        enabled = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)
        try:
            with torch.backends.cudnn.flags(enabled=False):
                return function(*arguments, **keywords)
        finally:
            torch._C._set_mkldnn_enabled(enabled)

    return by_steps


EQUIVALENT: dict[Any, Callable[..., Any]] = {
    F.cross_entropy: cross_entropy,
    F.mse_loss: _squared_error,
    F.multi_margin_loss: _multi_margin,
    F.multilabel_margin_loss: _multilabel_margin,
    F.hardsigmoid: _hardsigmoid,
    F.hardswish: _hardswish,
    F.rrelu: _rrelu,
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    F.pdist: _own_distances,
    F.pairwise_distance: _pairwise_distance,
    torch.cdist: _distances,
    torch._weight_norm: _weight_norm,
    torch.logcumsumexp: _logcumsumexp,
    Tensor.logcumsumexp: _logcumsumexp,
    **{
        kernel: _plainly(kernel)
        for kernel in (F.scaled_dot_product_attention, F.multi_head_attention_forward)
    },
    **{
        layer: _without_fused_cells(layer)
        for layer in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
    },
    **{
        getattr(place, name): _grouped_product
        for place, name in ((torch, "_grouped_mm"), (F, "grouped_mm"))
        if hasattr(place, name)
    },
}
"""Function of torch to its equivalent."""
