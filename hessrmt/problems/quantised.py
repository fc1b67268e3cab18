"""Quantised weights, made whole with their scales.

That is done where the files themselves say how the weights were packed: a JSON file beside them, or
(bitsandbytes) the tensors. Elsewhere, and for other formats, the parts are listed by name with the
reason; scales are never taken for weights by themselves.

Sources: Frantar et al. 2023 (GPTQ), Lin et al. 2024 (AWQ), Dettmers et al. 2022 and 2023
(bitsandbytes). Layouts of bits are those that AutoGPTQ, AutoAWQ, bitsandbytes, compressed-tensors
and transformers write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterator, Mapping
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hessrmt.errors import ProblemError
from hessrmt.problems.assembled import Weight
from hessrmt.problems.readers import Reader, Shape, Stored

Make = Callable[[], Tensor]

_PACKED = ("int8", "uint8", "int16", "int32", "uint32", "float4_e2m1fn_x2")
"""Types of packed weights; indices and masks mostly are of others."""

_SCALE_WORD = re.compile(
    r"(?:^|_)(?:scales?|zeros?|zero|point|absmax|codebooks?|centroids|shift|mins?|max|lut|scb)"
    r"(?:_|\d|$)"
)
"""In the names of what unpacks them."""

_GIVE = "give the folder with the files that say it, or the weights dequantised"

_BITS = {"gptq": (2, 3, 4, 8), "awq": (4,)}
_LAYOUTS = {"gptq": ("gptq", "gptq_v2"), "awq": ("awq", "gemm")}
_EIGHT_BITS = ("fp8", "fbgemm_fp8", "compressed-tensors")
_INTEGERS_OF_8 = ("compressed-tensors",)
"""Values of ``quant_method`` by which scales multiply floats and integers of eight bits."""

# values of the sixteen numbers of four bits E2M1, and the column of eight that each four bits of
# an integer of AWQ hold, lowest first
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)


class _Part(NamedTuple):
    """A tensor that a quantised weight may be stored in, with others.

    Attributes:
        reader: Of all tensors.
        config: What is said of how they are packed.
        name: Of this one.
    """

    reader: Reader
    config: Mapping[str, Any]
    name: str

    @property
    def entry(self) -> Stored:
        return self.reader.entries[self.name]

    @property
    def last(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def method(self) -> str:
        return str(self.config.get("quant_method", "")).lower()

    def beside(self, *names: str) -> tuple[str, ...]:
        """Those of some names that are there in the same layer."""
        paths = map(self.path, names)
        return tuple(path for path in paths if path in self.reader.entries)

    def path(self, name: str) -> str:
        """Of another tensor of the same layer."""
        prefix = self.name.rpartition(".")[0]
        return f"{prefix}.{name}" if prefix else name

    def shape(self, name: str) -> Shape:
        return self.reader.entries[name].shape


class _UnreadError(Exception):
    """Why a quantised weight can't be made whole."""


def quantised(reader: Reader) -> Iterator[Weight]:
    """Quantised weights of a container.

    Args:
        reader: The container.

    Yields:
        Each, made whole or with the reason why not.
    """
    types = {entry.dtype for entry in reader.entries.values()}
    if not any(dtype in _PACKED or "float8" in dtype for dtype in types):
        return
    config, done = _stated(reader), set()
    packed = {
        name.rpartition(".")[0]
        for name, entry in reader.entries.items()
        if entry.dtype in _PACKED and len(entry.shape) > 1 and "." in name
    }
    for name, entry in reader.entries.items():
        part = _Part(reader, config, name)
        weight = next(filter(None, (rule(part) for rule in _RULES)), None)
        if weight is None and name not in done and _unpacks(name, entry, packed):
            why = "the scales of quantised weights, whose format isn't known"
            weight = Weight(part.path("weight"), (name,), f"{why}; give the weights dequantised")
        if weight is not None:
            done |= {*weight.parts}
            yield weight


def _stated(reader: Reader) -> dict[str, Any]:
    """What stands beside the weights about how they are packed, by whichever name."""
    config = reader.stated("config.json")
    for place in (config, config.get("text_config") or {}):
        found = place.get("quantization_config") or place.get("compression_config")
        if isinstance(found, dict):
            return found
    if found := reader.stated("quantize_config.json"):
        return {"quant_method": "gptq"} | found
    if found := reader.stated("quant_config.json"):
        return {"quant_method": "awq"} | found
    return {}


def _unpacks(name: str, entry: Stored, packed: Container[str]) -> bool:
    """Whether a tensor is named like a scale and lies beside integers of its layer."""
    *path, last = name.split(".")
    if entry.part_of or len(entry.shape) < 2 or "float" not in entry.dtype:
        return False
    places = [(path, last)] + ([(path[:-1], path[-1])] if last == "weight" and path else [])
    return any(
        _SCALE_WORD.search(word.lower()) and ".".join(prefix) in packed for prefix, word in places
    )


def _made(name: str, parts: tuple[str, ...], how: Callable[[], tuple[str, Shape, Make]]) -> Weight:
    """A weight, or why there is none."""
    try:
        words, shape, make = how()
    except _UnreadError as error:
        return Weight(name, parts, str(error))
    return Weight(name, parts, words, Stored(shape, "float32"), make)


def _gptq_or_awq(part: _Part) -> Weight | None:
    if part.last != "qweight":
        return None
    parts = part.beside("qweight", "qzeros", "scales", "g_idx")
    return _made(part.path("weight"), parts, partial(_integers, part, parts))


def _integers(part: _Part, parts: tuple[str, ...]) -> tuple[str, Shape, Make]:
    method, config = part.method, part.config
    if method not in {"gptq", "awq"}:
        said = f"quant_method {method!r}" if method else "nothing"
        raise _UnreadError(
            "packed integers, as of GPTQ or AWQ: how they are packed must stand in config.json "
            f"or quantize_config.json beside them, where there is {said}; {_GIVE}"
        )
    bits = config.get("bits", config.get("w_bit"))
    size = config.get("group_size", config.get("q_group_size"))
    kind = str(config.get("checkpoint_format") or config.get("version") or method).lower()
    readable = bits in _BITS[method] and kind in _LAYOUTS[method] and isinstance(size, int)
    if not readable or len({*parts} & {*part.beside("qzeros", "scales")}) < 2:
        raise _UnreadError(
            f"packed integers of {method.upper()} in {bits} bits, groups of {size}, layout "
            f"{kind!r}, with {len(parts)} tensors, which aren't read; give them dequantised"
        )
    stored, zeros, scales = map(part.shape, parts[:3])
    across, down = (32, bits) if method == "awq" else (bits, 32)
    rows, columns = stored[0] * down // bits, stored[-1] * across // bits
    size = rows if size == -1 else size
    groups = -(-rows // max(size, 1))
    if (scales, zeros) != ((groups, columns), (groups, columns * bits // 32)):
        raise _UnreadError(
            f"{stored}, {zeros} and {scales} are not the shapes of {bits} bits in groups of {size}"
        )
    make = partial(
        _awq if method == "awq" else _gptq, part.reader, parts, bits, size, kind != "gptq_v2"
    )
    return f"{method.upper()}, {bits} bits, groups of {size}", (columns, rows), make


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """Numbers that lie one after the other in 32-bit words, lowest bits first, along axis 0."""
    mask = 2**bits - 1
    if not 32 % bits:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32).reshape(1, -1, 1)
        return ((words.int()[:, None] >> shifts) & mask).to(torch.uint8).flatten(0, 1)
    wide = words.long() & 0xFFFFFFFF
    place = torch.arange(len(words) * 32 // bits) * bits
    word, shift = place // 32, (place % 32)[:, None]
    after = wide[(word + 1).clamp(max=len(words) - 1)]
    return ((wide[word] >> shift | after << (32 - shift)) & mask).to(torch.uint8)


def _gptq(reader: Reader, parts: tuple[str, ...], bits: int, size: int, less: bool) -> Tensor:
    """(q - z) s, zero points z stored less one by all but the second version of the format."""
    words, packed, scales = map(reader.read, parts[:3])
    zeros = _unpacked(packed.T, bits).T.float()
    if less and bool((zeros == 2**bits - 1).any()):
        raise ProblemError(
            f"{parts[1]} has zero points of {2**bits}, which programs read differently; "
            "give the weights dequantised"
        )
    found = _unpacked(words, bits).float()
    groups = torch.arange(len(found)) // size
    if len(parts) > 3:
        groups = reader.read(parts[3]).long()
        if groups.shape != (len(found),) or not 0 <= groups.min() <= groups.max() < len(scales):
            raise ProblemError(f"{parts[3]} names groups that don't exist; the file is damaged")
    return ((found - (zeros + less)[groups]) * scales.float()[groups]).T


def _awq(reader: Reader, parts: tuple[str, ...], bits: int, size: int, _: bool) -> Tensor:
    words, packed, scales = map(reader.read, parts[:3])

    def columns(of: Tensor) -> Tensor:
        eights = _unpacked(of.T, bits).reshape(-1, 8, len(of)).float()
        found = torch.empty_like(eights)
        found[:, list(_AWQ_COLUMNS)] = eights
        return found.flatten(0, 1)

    groups = torch.arange(len(words)) // size
    return (columns(words) - columns(packed)[:, groups]) * scales.float().T[:, groups]


def _bitsandbytes_4(part: _Part) -> Weight | None:
    if f"{part.name}.absmax" not in part.reader.entries:
        return None
    inside = (key for key in part.reader.entries if key.startswith(f"{part.name}."))
    parts = (part.name, *inside)
    return _made(part.name, parts, partial(_blocks_of_4, part, parts))


def _blocks_of_4(part: _Part, parts: tuple[str, ...]) -> tuple[str, Shape, Make]:
    name = part.name
    state = next((key for key in parts if ".quant_state.bitsandbytes__" in key), None)
    if state is None or f"{name}.quant_map" not in parts:
        raise _UnreadError("four bits of bitsandbytes without their quant_state and quant_map")
    try:
        said = json.loads(bytes(part.reader.read(state).tolist()))
        shape, block = tuple(map(int, said["shape"])), int(said["blocksize"])
        nested = int(said.get("nested_blocksize", 0)), float(said.get("nested_offset", 0))
        how = f"bitsandbytes, {said['quant_type']}, blocks of {block}"
    except (ValueError, KeyError, TypeError) as error:
        raise _UnreadError(f"four bits of bitsandbytes, whose {state} is damaged") from error
    bounds = -(-prod(shape) // max(block, 1))
    if prod(part.entry.shape) != -(-prod(shape) // 2) or part.shape(f"{name}.absmax") != (bounds,):
        raise _UnreadError(f"four bits of bitsandbytes of other shapes than {shape}")
    return how, shape, partial(_four_bits, part.reader, name, shape, block, nested)


def _four_bits(
    reader: Reader, name: str, shape: Shape, block: int, nested: tuple[int, float]
) -> Tensor:
    code, bound = reader.read(f"{name}.quant_map").float(), reader.read(f"{name}.absmax")
    if f"{name}.nested_absmax" in reader.entries:
        outer = reader.read(f"{name}.nested_absmax").float()
        values = reader.read(f"{name}.nested_quant_map").float()[bound.long()]
        bound = values * _spread(outer, nested[0], len(values)) + nested[1]
    pairs = reader.read(name).flatten()
    numbers = torch.stack((pairs >> 4, pairs & 15), 1).flatten()[: prod(shape)].long()
    return (code[numbers] * _spread(bound.float(), block, len(numbers))).reshape(shape)


def _spread(values: Tensor, block: int, count: int) -> Tensor:
    return values.repeat_interleave(block)[:count]


def _bitsandbytes_8(part: _Part) -> Weight | None:
    scale = part.beside("SCB")
    if part.last != "weight" or not scale or part.entry.dtype != "int8":
        return None
    form = part.beside("weight_format")
    if form and int(part.reader.read(form[0])) != 0:
        why = "int8 of bitsandbytes in tiles of a GPU; give the weights dequantised"
        return Weight(part.name, (part.name, *scale, *form), why)
    make = partial(_eight_bits, part.reader, part.name, scale[0])
    whole = Stored(part.entry.shape, "float32")
    return Weight(part.name, (part.name, *scale, *form), "bitsandbytes, int8", whole, make)


def _eight_bits(reader: Reader, name: str, scale: str) -> Tensor:
    return reader.read(name).float() * (reader.read(scale).float() / 127)[:, None]


def _scaled(part: _Part) -> Weight | None:
    """Weights of eight bits times scales: of all, of each row, or of each block."""
    name, entries = part.name, part.reader.entries
    scale = next((name + end for end in ("_scale_inv", "_scale") if name + end in entries), None)
    eight = "float8" in part.entry.dtype or part.entry.dtype == "int8"
    if scale is None or len(part.entry.shape) < 2 or not (eight or part.entry.dtype in _PACKED):
        return None
    ends = ("_scale_2", "_zero_point", "_global_scale")
    more = tuple(name + end for end in ends if name + end in entries)
    known = _INTEGERS_OF_8 if part.entry.dtype == "int8" else _EIGHT_BITS
    readable = eight and not more and part.method in known
    return _made(name, (name, scale, *more), partial(_scales, part, scale, readable))


def _scales(part: _Part, scale: str, readable: bool) -> tuple[str, Shape, Make]:
    dtype, shape, scales = part.entry.dtype, part.entry.shape, part.shape(scale)
    if not readable:
        said = f" by quant_method {part.method!r}" if part.method else ""
        raise _UnreadError(f"{dtype}, to be scaled by tensors beside it{said}; {_GIVE}")
    block = part.config.get("weight_block_size")
    if isinstance(block, list) and len(block) == 2 and len(scales) == len(shape):
        blocks = tuple(-(-n // b) for n, b in zip(shape[-2:], block, strict=True))
        if scales == (*shape[:-2], *blocks):
            make = partial(_times_scale, part.reader, part.name, scale, block)
            return f"{dtype} in blocks of {block[0]} x {block[1]}", shape, make
    if prod(scales) != 1 and scales not in {(*shape[:-1], 1), shape[:-1]}:
        raise _UnreadError(
            f"{dtype}, to be scaled by tensors of shapes as {scales}, not known here"
        )
    how = "one scale" if prod(scales) == 1 else "a scale for each row"
    return f"{dtype} with {how}", shape, partial(_times_scale, part.reader, part.name, scale, None)


def _times_scale(reader: Reader, name: str, scale: str, block: list[int] | None) -> Tensor:
    weight, factors = reader.read(name).float(), reader.read(scale).float()
    if block is not None:
        factors = factors.repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)
        factors = factors[..., : weight.shape[-2], : weight.shape[-1]]
    elif factors.numel() == 1:
        factors = factors.reshape(())
    else:
        factors = factors.reshape(*weight.shape[:-1], 1)
    return weight * factors


def _mxfp4(part: _Part) -> Weight | None:
    whole = part.name.removesuffix("_blocks")
    if whole == part.name or f"{whole}_scales" not in part.reader.entries:
        return None
    parts = (part.name, f"{whole}_scales")
    shape, scales = map(part.shape, parts)
    if part.method != "mxfp4" or len(shape) != 4 or shape[3] != 16 or scales != shape[:3]:
        return Weight(whole, parts, f"blocks of numbers and their scales, as of MXFP4; {_GIVE}")
    stored = Stored((shape[0], shape[2] * 32, shape[1]), "float32")
    return Weight(whole, parts, "MXFP4", stored, partial(_floats_of_4, part.reader, whole))


def _floats_of_4(reader: Reader, whole: str) -> Tensor:
    """As transformers keeps them: (experts, columns, rows)."""
    blocks, scales = reader.read(f"{whole}_blocks"), reader.read(f"{whole}_scales")
    values = torch.tensor([*_E2M1, *(-value for value in _E2M1)])
    numbers = torch.stack((values[(blocks & 15).long()], values[(blocks >> 4).long()]), -1)
    found = torch.ldexp(numbers.flatten(-2), scales.int()[..., None] - 127)
    return found.flatten(-2).transpose(1, 2)


def _compressed(part: _Part) -> Weight | None:
    """Integers that compressed-tensors packs into 32 bits, plus half of their range."""
    if part.last != "weight_packed":
        return None
    more = ("scale", "shape", "zero_point", "g_idx", "global_scale", "scale_2")
    parts = (part.name, *part.beside(*(f"weight_{end}" for end in more)))
    return _made(part.path("weight"), parts, partial(_offset, part, parts))


def _offset(part: _Part, parts: tuple[str, ...]) -> tuple[str, Shape, Make]:
    groups = part.config.get("config_groups") or {}
    bits = {(group.get("weights") or {}).get("num_bits") for group in groups.values()}
    symmetric = len(parts) == 3 and len(part.beside("weight_scale", "weight_shape")) == 2
    if part.config.get("format") != "pack-quantized" or bits not in ({4}, {8}) or not symmetric:
        raise _UnreadError(
            "packed integers of compressed-tensors, of which only symmetric ones of 4 or 8 bits "
            f"are read, with the config.json that says so; {_GIVE}"
        )
    width = 4 if bits == {4} else 8
    rows, columns = part.reader.read(parts[2]).tolist()
    stored, scales = map(part.shape, parts[:2])
    if stored != (rows, -(-columns * width // 32)) or scales[0] != rows or columns % scales[1]:
        raise _UnreadError(f"{stored} and {scales} are not the shapes of {width} bits")
    make = partial(_offset_integers, part.reader, parts, columns, width)
    return f"compressed-tensors, {width} bits", (rows, columns), make


def _offset_integers(reader: Reader, parts: tuple[str, ...], columns: int, bits: int) -> Tensor:
    words, scales = reader.read(parts[0]), reader.read(parts[1]).float()
    numbers = _unpacked(words.T, bits)[:columns].T.float() - 2 ** (bits - 1)
    return numbers * scales.repeat_interleave(columns // scales.shape[1], 1)


_RULES = (_gptq_or_awq, _bitsandbytes_4, _bitsandbytes_8, _mxfp4, _compressed, _scaled)
