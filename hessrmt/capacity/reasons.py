"""Why a tensor isn't analysed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hessrmt.capacity.splitting import Conv, split

if TYPE_CHECKING:
    from hessrmt.capacity.kinds import Role
    from hessrmt.capacity.readers import Entry

_REAL = ("float64", "float32", "float16", "bfloat16")
_SCALES = ("_scale_inv", "_scale")  # as DeepSeek and compressed-tensors name them
_PARAMETRISED = re.compile(r"\.parametrizations\.\w+\.original\d*$|weight_orig$")


def unusable(name: str, role: Role, entries: Mapping[str, Entry]) -> str | None:
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
    coarse = not dtype.startswith("float8")
    scale = next((name + end for end in _SCALES if name + end in entries), None)
    scaled = next((name.removesuffix(end) for end in _SCALES if name.endswith(end)), "")
    quantised = scaled in entries and entries[scaled].dtype not in _REAL
    part = name.endswith("weight_v") and f"{name[:-1]}g" in entries  # of weight_norm
    reasons = (
        (entry.unusable is not None, entry.unusable),
        (not shape, "a single number"),
        (len(shape) == 1, "1-D: a vector has no spectrum"),
        (0 in shape, f"empty: its shape is {shape}"),
        (coarse and dtype not in _REAL, _wrong(dtype)),
        (not coarse and scale, f"{dtype}, to be scaled by {scale}; give the weights dequantised"),
        (quantised, f"the scales of the quantised {scaled}"),
        (
            part or _PARAMETRISED.search(name),
            "a part of a parametrised weight; remove the parametrisation, then save",
        ),
        (role.form == "none", f"{len(shape)}-D: no rule how to make matrices of it"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def too_small(role: Role, shape: tuple[int, ...], conv: Conv, min_size: int) -> str | None:
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


def _wrong(dtype: str) -> str:
    if dtype == "bool":
        return "bool: a mask, not weights"
    if dtype.startswith("complex"):
        return f"{dtype}: complex weights aren't analysed"
    if dtype in {"int16", "int64", "uint16", "uint64"}:
        return f"{dtype}: integers such as indices or counters, not weights"
    if "int" in dtype or dtype.startswith("float4"):
        return (
            f"{dtype}: quantised weights have no spectrum of their own; give the weights from "
            "before quantisation, or dequantised"
        )
    return f"{dtype}: expected float64, float32, float16, bfloat16 or float8"
