"""Which matrices a layer has: what a tensor is in its network, how it is cut, why it is left out.

The kind of a layer comes from its module where there is one, else from the tensor's name. GPT-2's
``Conv1D`` stores its weight (in, out), all other linear layers (out, in); singular values don't see
the difference, the packed q, k, v of ``c_attn`` do. Fused projections of other names (``qkv``,
``query_key_value``) stay one matrix: models order their rows differently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hessrmt.errors import DataError
from hessrmt.problems.readers import Entries, Shape

Conv = Literal["slices", "pooled", "unfolded"]

_FORMS = {
    **dict.fromkeys(("Linear", "Conv1D", "Embedding", "EmbeddingBag"), ("matrix", 2)),
    "Bilinear": ("stacked", 3),
    **{f"Conv{t}{n}d": ("convolution", n + 2) for t in ("", "Transpose") for n in (1, 2, 3)},
}
"""Class of a module to how matrices lie in its weight, and the weight's dimensions."""

_NAMED_TENSORS = ("MultiheadAttention", "LSTM", "GRU", "RNN")
"""Classes of which the tensors' own names tell them apart."""

_GATES = {"LSTM": ("i", "f", "g", "o"), "GRU": ("r", "z", "n")}
_QKV = ("q", "k", "v")

_RECURRENT_NAME = re.compile(r"(.*?)weight_(ih|hh|hr)(_l\d+(?:_reverse)?)?$")
_GPT2_NAME = re.compile(r"(?:^|\.)(?:c_attn|q_attn|c_fc|c_proj)\.weight$")
_EMBEDDING_WORD = re.compile(
    r"(?:.*_)?(?:wte|wpe|emb|embed|embeds|embedding|embeddings)|embed_(?:tokens|positions|in)"
    r"|shared|relative_attention_bias"
)
_REAL = ("float64", "float32", "float16", "bfloat16")
_INDICES = ("int16", "int64", "uint16", "uint64")
_QUANTISED = "quantised weights have no spectrum of their own; give them dequantised"
_PARAMETRISED = re.compile(r"\.parametrizations\.\w+\.original\d*$|weight_orig$")


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


def recognise(name: str, entries: Entries, module: nn.Module | None = None) -> Role:
    """Role of a tensor.

    Args:
        name: Of the tensor.
        entries: All tensors of the network, by name.
        module: That it belongs to, where there is one; may be a TorchScript one.

    Returns:
        Its role; inferred if there is no module or the module is of no known kind.
    """
    inferred, dimensions = _from_name(name, entries), len(entries[name].shape)
    scripted = getattr(module, "original_name", None)
    for known in [scripted] if scripted else [base.__name__ for base in type(module).__mro__]:
        kind = known.removesuffix("Bag").removesuffix("Cell")
        form, expected = _FORMS.get(known, ("none", -1))
        if name.rpartition(".")[2] == "weight" and dimensions == expected:
            if form == "matrix" and inferred.form == "packed":
                return replace(inferred, kind=kind, inferred=False)
            groups, transposed = getattr(module, "groups", 1), known.startswith("ConvTranspose")
            return Role(kind, form, (), 0, groups, transposed, inferred=False)
        if kind in _NAMED_TENSORS and dimensions == 2:
            return replace(inferred, kind=kind, inferred=False)
    # no convolution of torch's: what else has three dimensions multiplies matrices
    named = f"{name} {type(module).__name__}".lower()
    if module is not None and not scripted and dimensions == 3 and "conv" not in named:
        kinds = {"Conv1d": Role("Linear", "stacked")}
        return kinds.get(inferred.kind, inferred)
    return inferred


def _from_name(name: str, entries: Entries) -> Role:
    shape = entries[name].shape
    if len(shape) < 2:
        return Role("vector" if shape else "scalar", "none", inferred=False)
    *path, last = name.split(".")
    word = path[-1] if last == "weight" and path else last
    table = len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)
    if table and _EMBEDDING_WORD.fullmatch(word.lower()):
        return Role("Embedding", "matrix")
    if role := _experts(name, shape, entries):
        return role
    if len(shape) > 2:
        form = "convolution" if len(shape) < 6 else "none"
        return Role(f"Conv{len(shape) - 2}d" if len(shape) < 6 else f"{len(shape)}-D", form)
    recurrent = _RECURRENT_NAME.fullmatch(name)
    return _gates(recurrent, shape, entries) if recurrent else _linear(name, shape, entries)


def _experts(name: str, shape: Shape, entries: Entries) -> Role | None:
    """Of weights of several experts in one tensor: a stack, or with DBRX one below the other."""
    *path, last = name.split(".")
    if not any("expert" in part or part.endswith("moe") for part in path):
        return None
    if len(shape) == 3:
        return Role("Experts", "stacked")
    if len(shape) == 2 and last.endswith("bias"):
        return Role("biases", "none")
    layer, found, matrix = name.partition(".experts.mlp.")
    router = entries.get(f"{layer}.router.layer.weight")
    if len(shape) != 2 or not found or matrix not in {"w1", "v1", "w2"} or router is None:
        return None
    count = router.shape[0] if router.shape else 1
    labels = tuple(map(str, range(count)))
    return None if shape[0] % count else Role("Experts", "packed", labels)


def _linear(name: str, shape: Shape, entries: Entries) -> Role:
    if name.rpartition(".")[2] == "in_proj_weight":
        return _packed("MultiheadAttention", _QKV, shape, 0)
    if not _GPT2_NAME.search(name):
        return Role("Linear", "matrix")
    fused = [other.shape for key, other in entries.items() if key.endswith("c_attn.weight")]
    transposed = any(len(each) == 2 and each[0] < each[1] for each in fused)
    kind = "Conv1D" if transposed else "Linear"
    if "c_attn" not in name:
        return Role(kind, "matrix")
    # a cross-attention's queries have a layer of their own, q_attn
    return _packed(kind, _QKV[1:] if "crossattention" in name else _QKV, shape, 1, 0)


def _packed(kind: str, labels: tuple[str, ...], shape: Shape, *axes: int) -> Role:
    fitting = (axis for axis in axes if shape[axis] == len(labels) * shape[1 - axis])
    axis = next(fitting, None)
    return Role(kind, "matrix") if axis is None else Role(kind, "packed", labels, axis)


def _gates(found: re.Match[str], shape: Shape, entries: Entries) -> Role:
    prefix, which, suffix = found[1], found[2], found[3] or ""
    if which == "hr":
        return Role("LSTM", "matrix")
    inner = (entries.get(f"{prefix}weight_{other}{suffix}") for other in ("hr", "hh"))
    hidden = next((each.shape[-1] for each in inner if each and each.shape), 0)
    for kind, labels in _GATES.items():
        if shape[0] == len(labels) * hidden:
            return Role(kind, "packed", labels)
    return Role("RNN", "matrix")


@dataclass(frozen=True)
class Split:
    """Matrices of equal shape in one tensor.

    Attributes:
        parts: A label for each matrix, in order.
        shape: (rows, columns) of each.
        moves: The axis that is unfolded first, into how many, and which axes move where, to put
            the tensor's numbers into the order of (parts, rows, columns).
        pooled: Whether the eigenvalues of all make one spectrum.
    """

    parts: tuple[str, ...] = ()
    shape: Shape = ()
    moves: tuple[int, int, Any, Any] = (0, 1, 0, 0)
    pooled: bool = False

    def view(self, tensor: Tensor) -> Tensor:
        """The numbers of a tensor in that order."""
        axis, count, source, target = self.moves
        return tensor.unflatten(axis, (count, -1)).movedim(source, target)


def split(role: Role, shape: Shape, conv: Conv) -> Split:
    """How to cut a tensor.

    Convolutions, (c_out, c_in / groups, *kernel), or (c_in, c_out / groups, *kernel) if
    transposed: ``slices`` and ``pooled`` take the matrix at each kernel position (Martin and
    Mahoney 2019, below eq. 6), of each group by itself where the groups are known; ``unfolded``
    takes one matrix, a row for each output channel and a column for each of the inputs that its
    kernel meets. Pooled, the groups of a depthwise convolution, a number each, are one column for
    each kernel position.

    Args:
        role: Of the tensor; its form is not "none".
        shape: Of the tensor.
        conv: How to cut convolutions.

    Returns:
        The cut.
    """
    count, groups = len(role.labels), role.groups
    if role.form == "convolution" and conv == "pooled" and shape[1] == 1:
        groups = 1
    first = shape[0] // groups
    if role.form in {"matrix", "stacked"}:
        parts = ("",) if role.form == "matrix" else tuple(map(str, range(shape[0])))
        return Split(parts, shape[-2:])
    if role.form == "packed":
        sizes = tuple(n // count if i == role.axis else n for i, n in enumerate(shape))
        return Split(role.labels, sizes, (role.axis, count, role.axis, 0))
    if conv == "unfolded" and role.transposed:
        return Split(("",), (groups * shape[1], first * prod(shape[2:])), (0, groups, 2, 1))
    if conv == "unfolded":
        return Split(("",), (shape[0], prod(shape[1:])))
    labels = [",".join(map(str, at)) for at in product(*map(range, shape[2:]))]
    if groups > 1:
        labels = [f"g{group}:{at}" for group in range(groups) for at in labels]
    moves = 0, groups, (1, 2), (-2, -1)
    return Split(tuple(labels), (first, shape[1]), moves, conv == "pooled")


# Why a tensor isn't analysed


def unusable(name: str, role: Role, entries: Entries) -> str | None:
    """Why a tensor holds no matrix of weights, as far as that shows without reading it.

    Args:
        name: Of the tensor.
        role: Of the tensor.
        entries: All tensors of the network, by name.

    Returns:
        The reason, or None.
    """
    shape, dtype = entries[name].shape, entries[name].dtype
    float8 = dtype.startswith("float8")
    norm = name.endswith("weight_v") and f"{name[:-1]}g" in entries  # of weight_norm
    part = norm or _PARAMETRISED.search(name)
    reasons = (
        (entries[name].unusable is not None, entries[name].unusable),
        (not shape, "a single number"),
        (len(shape) == 1, "1-D: a vector has no spectrum"),
        (0 in shape, f"empty: its shape is {shape}"),
        (dtype == "bool", "bool: a mask, not weights"),
        (dtype.startswith("complex"), f"{dtype}: complex weights aren't analysed"),
        (dtype in _INDICES, f"{dtype}: integers such as indices or counters, not weights"),
        ("int" in dtype or dtype.startswith("float4"), f"{dtype}: {_QUANTISED}"),
        (dtype not in _REAL and not float8, f"{dtype}: expected {', '.join(_REAL)} or float8"),
        (part, "a part of a parametrised weight; remove the parametrisation, then save"),
        (role.kind == "biases", "biases, a row for each expert"),
        (role.form == "none", f"{len(shape)}-D: no rule how to make matrices of it"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def too_small(cut: Split, role: Role, shape: Shape, min_size: int) -> str | None:
    """Why the matrices of a tensor are too small to have a spectrum.

    Args:
        cut: How the tensor is cut.
        role: Of the tensor.
        shape: Of the tensor.
        min_size: The fewest eigenvalues that a spectrum must have.

    Returns:
        The reason, or None.
    """
    what, count = " x ".join(map(str, cut.shape)), min(cut.shape)
    count *= len(cut.parts) if cut.pooled else 1
    if len(cut.parts) > 1:
        what = f"each of its {len(cut.parts)} parts is {what}"
    if count == 1:
        several = role.form == "convolution" and min(split(role, shape, "unfolded").shape) > 1
        instead = "conv 'pooled' takes them together, 'unfolded' the whole layer as one matrix"
        whole = f"; {instead}" if several else ""
        return f"{what}: a single row or column has one eigenvalue{whole}"
    few = f"{what}: {count} eigenvalues, fewer than the {min_size} asked for by min_size"
    return few if count < min_size else None


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
        why = "the training diverged or the file is damaged"
        raise DataError(f"{bad} of {count} weights are NaN or infinite; {why}")
