"""What kind of layer a tensor belongs to: from its module where there is one, else from its name.

GPT-2's ``Conv1D`` stores its weight (in, out), all other linear layers (out, in); singular values
don't see the difference, the packed q, k, v of ``c_attn`` do. Fused projections of other names
(``qkv``, ``query_key_value``) stay one matrix: models order their rows differently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

Shapes = Mapping[str, tuple[int, ...]]
Form = Literal["matrix", "packed", "stacked", "convolution", "none"]

_CONVOLUTIONS = {f"Conv{t}{n}d": n for t in ("", "Transpose") for n in (1, 2, 3)}
_PLAIN = {
    "Linear": "Linear",
    "Conv1D": "Conv1D",
    "Embedding": "Embedding",
    "EmbeddingBag": "Embedding",
}
_NAMED_TENSORS = {  # of these the tensors' own names tell them apart
    "MultiheadAttention": "MultiheadAttention",
    **{f"{kind}{cell}": kind for kind in ("LSTM", "GRU", "RNN") for cell in ("", "Cell")},
}
_GATES = {4: ("LSTM", ("i", "f", "g", "o")), 3: ("GRU", ("r", "z", "n")), 1: ("RNN", ("",))}
_QKV = ("q", "k", "v")

_RECURRENT_NAME = re.compile(r"(.*?)weight_(ih|hh|hr)(_l\d+(?:_reverse)?)?$")
_GPT2_NAME = re.compile(r"(?:^|\.)(?:c_attn|q_attn|c_fc|c_proj)\.weight$")
_EMBEDDING_WORD = re.compile(
    r"(?:.*_)?(?:wte|wpe|emb|embed|embeds|embedding|embeddings)|embed_(?:tokens|positions|in)"
    r"|shared|relative_attention_bias"
)


@dataclass(frozen=True)
class Role:
    """What a tensor is in its network.

    Attributes:
        kind: Name of the kind of layer.
        form: How matrices lie in the tensor: it is one; ``labels`` of them are packed along
            ``axis``; they are stacked along the first axis; it is a convolution; or none.
        labels: Of packed matrices, in order.
        axis: Along which they are packed.
        groups: Of a convolution; 1 where only the tensor is known.
        transposed: Whether a convolution's first axis is c_in rather than c_out.
        inferred: Whether name and number of dimensions are all that was known.
    """

    kind: str
    form: Form
    labels: tuple[str, ...] = ()
    axis: int = 0
    groups: int = 1
    transposed: bool = False
    inferred: bool = True


@dataclass(frozen=True)
class Owner:
    """The module that a tensor belongs to: names of its class and base classes, and its groups."""

    classes: tuple[str, ...]
    groups: int = 1


def owner(module: nn.Module) -> Owner:
    """What is needed of a module, also of a TorchScript one, to know its tensors' kinds.

    Args:
        module: Any module.

    Returns:
        Its class names and groups.
    """
    scripted = getattr(module, "original_name", None)  # of a ScriptModule
    classes = (scripted,) if scripted else tuple(base.__name__ for base in type(module).__mro__)
    groups = getattr(module, "groups", 1)
    return Owner(classes, groups if isinstance(groups, int) else 1)


def recognise(name: str, shapes: Shapes, of: Owner | None = None) -> Role:
    """Role of a tensor.

    Args:
        name: Of the tensor.
        shapes: Shapes of all tensors of the network, by name.
        of: Its module, where there is one.

    Returns:
        Its role; inferred if there is no module or the module is of no known kind.
    """
    inferred = _from_name(name, shapes)
    if of is None:
        return inferred
    tensor, dimensions = name.rpartition(".")[2], len(shapes[name])
    known = (_of_class(one, tensor, dimensions, of.groups, inferred) for one in of.classes)
    return next((role for role in known if role), inferred)


def _of_class(name: str, tensor: str, dimensions: int, groups: int, inferred: Role) -> Role | None:
    weight = tensor == "weight"
    if weight and name in _PLAIN and dimensions == 2:
        packed = inferred if inferred.form == "packed" else Role("", "matrix")
        return replace(packed, kind=_PLAIN[name], inferred=False)
    if weight and _CONVOLUTIONS.get(name) == dimensions - 2:
        transposed = name.startswith("ConvTranspose")
        return Role(name, "convolution", (), 0, groups, transposed, inferred=False)
    if weight and name == "Bilinear":
        return Role(name, "stacked", inferred=False)
    if name in _NAMED_TENSORS and dimensions == 2:
        return replace(inferred, kind=_NAMED_TENSORS[name], inferred=False)
    return None


def _from_name(name: str, shapes: Shapes) -> Role:
    shape = shapes[name]
    if len(shape) < 2:
        return Role("vector" if shape else "scalar", "none", inferred=False)
    *path, last = name.split(".")
    word = path[-1] if last == "weight" and path else last
    table = len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)
    if table and _EMBEDDING_WORD.fullmatch(word.lower()):
        return Role("Embedding", "matrix")
    if len(shape) == 2:
        return _two_dimensional(name, last, shapes)
    if len(shape) == 3 and "experts" in path:
        return Role("Experts", "stacked")
    if len(shape) > 5:
        return Role(f"{len(shape)}-D", "none")
    return Role(f"Conv{len(shape) - 2}d", "convolution")


def _two_dimensional(name: str, last: str, shapes: Shapes) -> Role:
    recurrent = _RECURRENT_NAME.fullmatch(name)
    if recurrent:
        return _gates(recurrent, shapes[name], shapes)
    if last == "in_proj_weight":
        return _packed("MultiheadAttention", _QKV, shapes[name], axes=(0,))
    if _GPT2_NAME.search(name):
        return _gpt2(name, shapes)
    return Role("Linear", "matrix")


def _packed(
    kind: str, labels: tuple[str, ...], shape: tuple[int, ...], axes: tuple[int, ...]
) -> Role:
    for axis in axes:
        if shape[axis] == len(labels) * shape[1 - axis]:
            return Role(kind, "packed", labels, axis)
    return Role(kind, "matrix")


def _gates(found: re.Match[str], shape: tuple[int, ...], shapes: Shapes) -> Role:
    prefix, which, suffix = found[1], found[2], found[3] or ""
    projection = shapes.get(f"{prefix}weight_hr{suffix}")
    recurrent = shapes.get(f"{prefix}weight_hh{suffix}")
    if which == "hr":
        return Role("LSTM", "matrix")
    hidden = (projection or recurrent or (0, 0))[1]
    kind, labels = _GATES.get(shape[0] // hidden if hidden else 0, ("RNN", ("",)))
    if shape[0] != len(labels) * hidden or len(labels) == 1:
        return Role(kind, "matrix")
    return Role(kind, "packed", labels)


def _gpt2(name: str, shapes: Shapes) -> Role:
    kind = "Conv1D" if any(_stored_transposed(*other) for other in shapes.items()) else "Linear"
    if "c_attn" not in name:
        return Role(kind, "matrix")
    # a cross-attention's queries have a layer of their own, q_attn
    labels = _QKV[1:] if "crossattention" in name else _QKV
    return _packed(kind, labels, shapes[name], axes=(1, 0))


def _stored_transposed(name: str, shape: tuple[int, ...]) -> bool:
    return name.endswith("c_attn.weight") and len(shape) == 2 and shape[0] < shape[1]
