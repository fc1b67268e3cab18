"""Which matrices a layer has: what a tensor is in its network, how it is cut, why it is left out.

The kind of a layer comes from its module where there is one, else from the tensor's name. GPT-2's
``Conv1D`` stores its weight (in, out), all other linear layers (out, in); singular values don't see
the difference, the packed q, k, v of ``c_attn`` do. Fused projections of other names (``qkv``,
``query_key_value``) stay one matrix: models order their rows differently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from hessrmt.errors import DataError

Conv = Literal["slices", "pooled", "unfolded"]
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

_MODULES = {
    **{name: (name, "matrix", 2) for name in ("Linear", "Conv1D", "Embedding")},
    "EmbeddingBag": ("Embedding", "matrix", 2),
    "Bilinear": ("Bilinear", "stacked", 3),
    **{
        name: (name, "convolution", n + 2)
        for n in (1, 2, 3)
        for name in (f"Conv{n}d", f"ConvTranspose{n}d")
    },
}
"""Class to the kind of layer, how its matrices lie in its weight, and the weight's dimensions."""

_NAMED_TENSORS = {  # of these the tensors' own names tell them apart
    "MultiheadAttention": "MultiheadAttention",
    **{f"{kind}{cell}": kind for kind in ("LSTM", "GRU", "RNN") for cell in ("", "Cell")},
}
_GATES = {4: ("LSTM", ("i", "f", "g", "o")), 3: ("GRU", ("r", "z", "n"))}
_QKV = ("q", "k", "v")

_RECURRENT_NAME = re.compile(r"(.*?)weight_(ih|hh|hr)(_l\d+(?:_reverse)?)?$")
_GPT2_NAME = re.compile(r"(?:^|\.)(?:c_attn|q_attn|c_fc|c_proj)\.weight$")
_EMBEDDING_WORD = re.compile(
    r"(?:.*_)?(?:wte|wpe|emb|embed|embeds|embedding|embeddings)|embed_(?:tokens|positions|in)"
    r"|shared|relative_attention_bias"
)
_REAL = ("float64", "float32", "float16", "bfloat16")
_INDICES = ("int16", "int64", "uint16", "uint64")
_SCALES = ("_scale_inv", "_scale")  # as DeepSeek and compressed-tensors name them
_PARAMETRISED = re.compile(r"\.parametrizations\.\w+\.original\d*$|weight_orig$")


@dataclass(frozen=True)
class Stored:
    """What is known of a stored value before it is read.

    Attributes:
        shape: () for a single number and for what is no tensor.
        dtype: torch's name of it, e.g. "bfloat16".
        unusable: Why it can't be read as weights, or None.
        storage: Equal for tensors that are known to share all their numbers.
    """

    shape: Shape
    dtype: str
    unusable: str | None = None
    storage: Hashable = field(default_factory=object)


@dataclass(frozen=True)
class Role:
    """What a tensor is in its network.

    Attributes:
        kind: Name of the kind of layer.
        form: How matrices lie in the tensor: it is one (``matrix``); ``labels`` of them are
            ``packed`` along ``axis``; they are ``stacked`` along the first axis; it is a
            ``convolution``; or ``none``.
        labels: Of packed matrices, in order.
        axis: Along which they are packed.
        groups: Of a convolution; 1 where only the tensor is known.
        transposed: Whether a convolution's first axis is c_in rather than c_out.
        inferred: Whether name and number of dimensions are all that was known.
    """

    kind: str
    form: str
    labels: tuple[str, ...] = ()
    axis: int = 0
    groups: int = 1
    transposed: bool = False
    inferred: bool = True


def recognise(name: str, shapes: Shapes, module: nn.Module | None = None) -> Role:
    """Role of a tensor.

    Args:
        name: Of the tensor.
        shapes: Shapes of all tensors of the network, by name.
        module: That it belongs to, where there is one; may be a TorchScript one.

    Returns:
        Its role; inferred if there is no module or the module is of no known kind.
    """
    inferred, dimensions = _from_name(name, shapes), len(shapes[name])
    scripted = getattr(module, "original_name", None)
    for known in [scripted] if scripted else [base.__name__ for base in type(module).__mro__]:
        kind, form, expected = _MODULES.get(known, ("", "", 0))
        if name.rpartition(".")[2] == "weight" and dimensions == expected:
            if form == "matrix" and inferred.form == "packed":
                return replace(inferred, kind=kind, inferred=False)
            groups, transposed = getattr(module, "groups", 1), known.startswith("ConvTranspose")
            return Role(kind, form, (), 0, groups, transposed, inferred=False)
        if known in _NAMED_TENSORS and dimensions == 2:
            return replace(inferred, kind=_NAMED_TENSORS[known], inferred=False)
    return inferred


def _from_name(name: str, shapes: Shapes) -> Role:
    shape = shapes[name]
    if len(shape) < 2:
        return Role("vector" if shape else "scalar", "none", inferred=False)
    *path, last = name.split(".")
    word = path[-1] if last == "weight" and path else last
    table = len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)
    if table and _EMBEDDING_WORD.fullmatch(word.lower()):
        return Role("Embedding", "matrix")
    if len(shape) == 3 and "experts" in path:
        return Role("Experts", "stacked")
    if len(shape) > 5:
        return Role(f"{len(shape)}-D", "none")
    if len(shape) > 2:
        return Role(f"Conv{len(shape) - 2}d", "convolution")
    recurrent = _RECURRENT_NAME.fullmatch(name)
    return _gates(recurrent, shape, shapes) if recurrent else _linear(name, shape, shapes)


def _linear(name: str, shape: Shape, shapes: Shapes) -> Role:
    if name.rpartition(".")[2] == "in_proj_weight":
        return _packed("MultiheadAttention", _QKV, shape, 0)
    if not _GPT2_NAME.search(name):
        return Role("Linear", "matrix")
    transposed = any(
        other.endswith("c_attn.weight") and len(s) == 2 and s[0] < s[1]
        for other, s in shapes.items()
    )
    kind = "Conv1D" if transposed else "Linear"
    if "c_attn" not in name:
        return Role(kind, "matrix")
    # a cross-attention's queries have a layer of their own, q_attn
    return _packed(kind, _QKV[1:] if "crossattention" in name else _QKV, shape, 1, 0)


def _packed(kind: str, labels: tuple[str, ...], shape: Shape, *axes: int) -> Role:
    for axis in axes:
        if shape[axis] == len(labels) * shape[1 - axis]:
            return Role(kind, "packed", labels, axis)
    return Role(kind, "matrix")


def _gates(found: re.Match[str], shape: Shape, shapes: Shapes) -> Role:
    prefix, which, suffix = found[1], found[2], found[3] or ""
    if which == "hr":
        return Role("LSTM", "matrix")
    inner = (shapes.get(f"{prefix}weight_{other}{suffix}") for other in ("hr", "hh"))
    hidden = next((each[1] for each in inner if each), 0)
    kind, labels = _GATES.get(shape[0] // hidden if hidden else 0, ("RNN", ()))
    packed = labels and shape[0] == len(labels) * hidden
    return Role(kind, "packed", labels) if packed else Role(kind, "matrix")


@dataclass(frozen=True)
class Split:
    """Matrices of equal shape in one tensor.

    Attributes:
        parts: A label for each matrix, in order.
        shape: (rows, columns) of each.
        view: Tensor to a view of it, in the order of (parts, rows, columns).
    """

    parts: tuple[str, ...]
    shape: Shape
    view: Callable[[Tensor], Tensor] = lambda tensor: tensor


def split(role: Role, shape: Shape, conv: Conv) -> Split:
    """How to cut a tensor.

    Convolutions, (c_out, c_in / groups, *kernel), or (c_in, c_out / groups, *kernel) if
    transposed: ``slices`` and ``pooled`` take the matrix at each kernel position (Martin and
    Mahoney 2019, below eq. 6), of each group by itself where the groups are known; ``unfolded``
    takes one matrix, a row for each output channel and a column for each of the inputs that its
    kernel meets.

    Args:
        role: Of the tensor; its form is not "none".
        shape: Of the tensor.
        conv: How to cut convolutions.

    Returns:
        The cut.
    """
    axis, count, groups, kernel = role.axis, len(role.labels), role.groups, shape[2:]
    first = shape[0] // groups
    if role.form == "stacked":
        return Split(tuple(map(str, range(shape[0]))), shape[1:])
    if role.form == "packed":
        sizes = [size // count if i == axis else size for i, size in enumerate(shape)]
        return Split(
            role.labels,
            tuple(sizes),
            lambda tensor: tensor.unflatten(axis, (count, -1)).movedim(axis, 0),
        )
    if role.form == "matrix":
        return Split(("",), shape[-2:])
    if conv == "unfolded" and role.transposed:
        return Split(
            ("",),
            (groups * shape[1], first * prod(kernel)),
            lambda tensor: tensor.unflatten(0, (groups, first)).movedim(2, 1),
        )
    if conv == "unfolded":
        return Split(("",), (shape[0], prod(shape[1:])))
    labels = [",".join(map(str, at)) for at in product(*map(range, kernel))]
    if groups > 1:
        labels = [f"g{group}:{at}" for group in range(groups) for at in labels]
    return Split(
        tuple(labels),
        (first, shape[1]),
        lambda tensor: tensor.unflatten(0, (groups, first)).movedim((1, 2), (-2, -1)),
    )


# Why a tensor isn't analysed


def unusable(name: str, role: Role, entries: Mapping[str, Stored]) -> str | None:
    """Why a tensor holds no matrix of weights, as far as that shows without reading it.

    Args:
        name: Of the tensor.
        role: Of the tensor.
        entries: All tensors of the network, by name.

    Returns:
        The reason, or None.
    """
    entry = entries[name]
    shape, dtype = entry.shape, entry.dtype
    float8 = dtype.startswith("float8")
    scale = next((name + end for end in _SCALES if name + end in entries), None)
    scaled = next((name.removesuffix(end) for end in _SCALES if name.endswith(end)), "")
    part = name.endswith("weight_v") and f"{name[:-1]}g" in entries  # of weight_norm
    reasons = (
        (entry.unusable is not None, entry.unusable),
        (not shape, "a single number"),
        (len(shape) == 1, "1-D: a vector has no spectrum"),
        (0 in shape, f"empty: its shape is {shape}"),
        (dtype == "bool", "bool: a mask, not weights"),
        (dtype.startswith("complex"), f"{dtype}: complex weights aren't analysed"),
        (dtype in _INDICES, f"{dtype}: integers such as indices or counters, not weights"),
        (
            "int" in dtype or dtype.startswith("float4"),
            f"{dtype}: quantised weights have no spectrum of their own; give the weights from "
            "before quantisation, or dequantised",
        ),
        (dtype not in _REAL and not float8, f"{dtype}: expected {', '.join(_REAL)} or float8"),
        (float8 and scale, f"{dtype}, to be scaled by {scale}; give the weights dequantised"),
        (
            scaled in entries and entries[scaled].dtype not in _REAL,
            f"the scales of the quantised {scaled}",
        ),
        (
            part or _PARAMETRISED.search(name),
            "a part of a parametrised weight; remove the parametrisation, then save",
        ),
        (role.form == "none", f"{len(shape)}-D: no rule how to make matrices of it"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def too_small(role: Role, shape: Shape, conv: Conv, min_size: int) -> str | None:
    """Why the matrices of a tensor are too small to have a spectrum.

    Args:
        role: Of the tensor.
        shape: Of the tensor.
        conv: How convolutions are cut.
        min_size: The fewest eigenvalues that a spectrum must have.

    Returns:
        The reason, or None.
    """
    cut = split(role, shape, conv)
    what = " x ".join(map(str, cut.shape))
    if len(cut.parts) > 1:
        what = f"each of its {len(cut.parts)} parts is {what}"
    if min(cut.shape) == 1:
        unfolds = conv != "unfolded" and min(split(role, shape, "unfolded").shape) > 1
        return f"{what}: a single row or column has one eigenvalue" + (
            "; conv='unfolded' takes the whole layer as one matrix" if unfolds else ""
        )
    pooled = conv == "pooled" and role.form == "convolution"
    count = min(cut.shape) * (len(cut.parts) if pooled else 1)
    if count < min_size:
        return f"{what}: {count} eigenvalues, fewer than the {min_size} asked for by min_size"
    return None


def count_nonfinite(values: Tensor) -> int:
    """How many values, (..., n) in float64 or float32, are NaN or infinite."""
    if bool(torch.isfinite(values.sum())):  # quick, and without a second array
        return 0
    return sum(part.numel() - int(torch.isfinite(part).sum()) for part in values)


def require_finite(bad: int, count: int) -> None:
    """Refuse weights that are NaN or infinite.

    Args:
        bad: How many are.
        count: Of how many.

    Raises:
        DataError: If any is; the reason to skip the layer.
    """
    if bad:
        raise DataError(
            f"{bad} of {count} weights are NaN or infinite; the training diverged or the file is "
            "damaged"
        )
