"""Updates of low rank: LoRA adapters by themselves, and on the network that they are for.

The update of an adapter is the product (alpha/r) B A of its two factors, of rank r.

Sources: Hu et al. 2022; Kalajdzievski 2023 for alpha/√r. Names are those of PEFT, loralib, kohya's
scripts and diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod, sqrt
from typing import NamedTuple

from torch import Tensor, nn

from hessrmt.errors import ProblemError
from hessrmt.problems.assembled import Assembled, Weight
from hessrmt.problems.readers import Entries, Reader, Shape, Stored, listed

_FACTOR = re.compile(
    r"(?P<layer>(?:.+?\.)??)(?:"
    r"lora_(?P<pair>A|B|down|up)(?:\.(?P<adapter>\w+?))?\.weight"
    r"|(?P<of>\w*?)_?lora(?:_linear_layer)?\.(?P<unet>down|up)\.weight"
    r"|lora_(?P<table>embedding_)?(?P<bare>A|B)(?:\.(?P<named>\w+))?)$"
)
_OTHER_UPDATE = re.compile(
    r"(?P<layer>(?:.+?\.)??)(?P<what>lora_magnitude_vector|dora_scale|lora_E|lora_mid|hada_\w+|lokr_\w+|"
    r"ia3_l|vera_\w+|b?oft_\w+|fourierft_\w+|randlora_\w+|hra_\w+|waveft_\w+)(?:\..+)?$"
)
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "eva_residual")
_NO_PRODUCT = 'of an update that is no product of two factors (it has "{}"); merge it into its base'


Factor = Callable[[str, str, int], tuple[float | None, bool]]
"""Path of a layer, with a dot behind it, name of an adapter and rank to alpha/r, None if that isn't
known, and whether the layer keeps its weight transposed, as GPT-2's do."""


@dataclass
class _Pair:
    """Two factors of an update, by name."""

    table: bool = False
    names: dict[str, str] = field(default_factory=dict)


def low_rank(reader: Reader, factor: Factor | None = None) -> Iterator[Weight]:
    """Updates of low rank in a container.

    Args:
        reader: The container.
        factor: Of each; by default as ``adapter_config.json`` beside it says.

    Yields:
        Each, as the product of its factors or with the reason why not.
    """
    factor = factor or _stated_factor(reader)
    layers: dict[str, dict[str, _Pair]] = {}
    others: dict[str, list[tuple[str, str]]] = {}
    for name in reader.entries:
        if found := _FACTOR.match(name):
            which = found["pair"] or found["unet"] or found["bare"]
            layer = found["layer"] + (f"{found['of']}." if found["of"] else "")
            adapter = found["adapter"] or found["named"] or ""
            pair = layers.setdefault(layer, {}).setdefault(adapter, _Pair())
            pair.table |= found["table"] is not None
            pair.names["A" if which in {"A", "down"} else "B"] = name
        elif found := _OTHER_UPDATE.match(name):
            others.setdefault(found["layer"], []).append((name, found["what"]))
    kind = str(reader.stated("adapter_config.json").get("peft_type", "LORA"))
    for layer, found in others.items():
        names = [pair.names[key] for pair in layers.pop(layer, {}).values() for key in pair.names]
        base = {f"{layer}base_layer.weight"} & reader.entries.keys()
        parts = (*base, *names, *(name for name, _ in found))
        yield Weight(f"{layer}weight", parts, _NO_PRODUCT.format(found[0][1]))
    for layer, adapters in layers.items():
        if kind != "LORA":
            names = tuple(name for pair in adapters.values() for name in pair.names.values())
            yield Weight(f"{layer}weight", names, f"parts of an update by {kind}; merge it first")
        else:
            yield from _updates(reader, layer, adapters, factor)


class _Update(NamedTuple):
    """An update of low rank that can be read."""

    parts: tuple[str, ...]
    shape: Shape
    factor: float | None
    make: Callable[[], Tensor]


def _updates(
    reader: Reader, layer: str, adapters: Mapping[str, _Pair], factor: Factor
) -> Iterator[Weight]:
    found: dict[str, _Update] = {}
    for adapter, pair in adapters.items():
        whole = f"{layer}{adapter}.weight" if len(adapters) > 1 else f"{layer}weight"
        update = _update(reader, layer, adapter, pair, factor)
        if isinstance(update, str):
            yield Weight(whole, tuple(pair.names.values()), update)
        else:
            found[whole] = update
    places = (f"{layer}base_layer.weight", f"{layer}weight")
    base = next((name for name in places if name in reader.entries), None)
    every = list(found.values())
    unknown = any(update.factor is None for update in every) or not every
    if base is None or unknown or reader.entries[base].unusable is not None:
        for name, update in found.items():
            name = f"{layer}lora.weight" if name == base else name  # noqa: PLW2901
            stored = Stored(update.shape, "float64")
            about = update.make, base is None, update.factor
            yield Weight(name, update.parts, "a LoRA update", stored, *about)
        return
    parts = (base, *(name for update in every for name in update.parts))
    shape = reader.entries[base].shape
    if any(update.shape not in {shape, shape[::-1]} for update in every):
        yield Weight(f"{layer}weight", parts, "a LoRA update of another shape than its base")
        return
    make = partial(_summed, partial(reader.read, base), [update.make for update in every])
    stored = Stored(shape, "float64")
    yield Weight(f"{layer}weight", parts, "a weight and its LoRA update", stored, make, factor=1)


def _update(reader: Reader, layer: str, adapter: str, pair: _Pair, factor: Factor) -> _Update | str:
    """An update, or why it can't be read."""
    entries = reader.entries
    if len(pair.names) < 2:
        return "one factor of a LoRA update, whose other one isn't there"
    first, second = pair.names["A"], pair.names["B"]
    a, b = entries[first].shape, entries[second].shape
    if len(a) < 2 or len(b) != len(a) or b[1] != a[0] or prod(b[2:]) != 1:
        return f"factors of a LoRA update of the shapes {a} and {b}, which can't be multiplied"
    parts = (first, second, *({f"{layer}alpha"} & entries.keys()))
    scale, transposed = factor(layer, adapter, a[0])
    if len(parts) > 2 and prod(entries[parts[2]].shape) == 1:
        scale = float(reader.read(parts[2])) / a[0]
    shape = (b[0], *a[1:])
    turned = pair.table or (transposed and len(shape) == 2)
    make = partial(_product, reader, first, second, scale, turned, shape)
    return _Update(parts, shape[::-1] if turned else shape, scale, make)


def _product(
    reader: Reader, first: str, second: str, factor: float | None, turned: bool, shape: Shape
) -> Tensor:
    a, b = (reader.read(name).double().flatten(1) for name in (first, second))
    product = (b @ a) * (1.0 if factor is None else factor)
    return product.T if turned else product.reshape(shape)


def _summed(base: Callable[[], Tensor], updates: Iterable[Callable[[], Tensor]]) -> Tensor:
    total = base().double()
    for make in updates:
        update = make()
        # layers as GPT-2's keep the transposed weight
        total = total + (update if update.shape == total.shape else update.T)
    return total


def _stated_factor(reader: Reader) -> Factor:
    """As ``adapter_config.json`` says."""
    config = reader.stated("adapter_config.json")
    turned = config.get("fan_in_fan_out") is True

    def factor(layer: str, _: str, rank: int) -> tuple[float | None, bool]:
        alpha = config.get("lora_alpha")
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            try:
                matches = re.match(rf"(?:.*\.)?(?:{pattern})$", layer.rstrip("."))
            except re.error as error:
                raise ProblemError(f"alpha_pattern {pattern!r} is no pattern: {error}") from error
            alpha = value if matches else alpha
        if not isinstance(alpha, int | float):
            return None, turned
        return alpha / (sqrt(rank) if config.get("use_rslora") else rank), turned

    return factor


def factor_of(modules: Mapping[str, nn.Module]) -> Factor:
    """As the layers of a network with adapters have it; 0 for one that isn't active or is merged.

    Args:
        modules: All modules of the network, by path.

    Returns:
        The factor of each layer and adapter.
    """

    def factor(layer: str, adapter: str, _: int) -> tuple[float | None, bool]:
        module = modules.get(layer.rstrip("."))
        turned = getattr(module, "fan_in_fan_out", False) is True
        scaling = getattr(module, "scaling", None)
        if not isinstance(scaling, Mapping):
            known = isinstance(scaling, int | float)
            merged = getattr(module, "merged", False) is True  # loralib's, in evaluation mode
            return (scaling * (not merged) if known else None), turned
        off = getattr(module, "disable_adapters", False)
        active = adapter in getattr(module, "active_adapters", scaling)
        merged = adapter in getattr(module, "merged_adapters", ())
        return (0.0 if off or merged or not active else scaling.get(adapter)), turned

    return factor


# Updates on a base


class Updated(Reader):
    """A base network with the updates of an adapter added, and its own weights in their places.

    Args:
        base: The base network.
        adapter: Its adapter.
        name: What errors call the adapter.

    Raises:
        ProblemError: If the adapter has no updates, one can't be added, or one belongs nowhere.
    """

    def __init__(self, base: Reader, adapter: Reader, name: str):
        self.base, self.adapter = base, adapter
        self.files = (*base.files, *adapter.files)
        self.notes = (*base.notes, *adapter.notes)
        weights = adapter.weights if isinstance(adapter, Assembled) else {}
        updates = [weight for weight in weights.values() if weight.update]
        for key, entry in adapter.entries.items():
            if entry.part_of is not None and entry.part_of not in weights:
                raise ProblemError(f"{name}: {key}: {entry.unusable}")
        if not updates:
            raise ProblemError(f"{name} holds no LoRA update that could be added to a base")
        said = adapter.stated("adapter_config.json").get("init_lora_weights")
        if isinstance(said, str) and said.lower().startswith(_CHANGED_BASE):
            raise ProblemError(
                f"{name} was initialised by {said}, which changes the base: B A is not its update"
            )
        self._updates = {_place(base.entries, each.name, name): each for each in updates}
        if unknown := [place for place, each in self._updates.items() if each.factor is None]:
            raise ProblemError(
                f"the factor alpha/r of {listed(unknown)} isn't stated; give {name} together with "
                "its adapter_config.json"
            )
        self._instead = {}
        for key, entry in adapter.entries.items():
            own = key not in weights and entry.part_of is None and entry.unusable is None
            place = _match(base.entries, key.replace(".modules_to_save", "")) if own else ()
            if len(place) == 1 and base.entries[place[0]].shape == entry.shape:
                self._instead[place[0]] = key
        self.entries = dict(base.entries)
        for place, each in self._updates.items():
            shape, update = base.entries[place].shape, each.stored.shape if each.stored else ()
            if update not in {shape, shape[::-1]}:
                raise ProblemError(f"{each.name} updates {update}, but {place} has {shape}")
            self.entries[place] = Stored(shape, "float64", base.entries[place].unusable)
        for place, key in self._instead.items():
            self.entries[place] = adapter.entries[key]

    def read(self, name: str) -> Tensor:
        """See :class:`.Reader`."""
        if name in self._instead:
            return self.adapter.read(self._instead[name])
        if name not in self._updates:
            return self.base.read(name)
        update = partial(self.adapter.read, self._updates[name].name)
        return _summed(partial(self.base.read, name), [update])

    def close(self) -> None:
        """See :class:`.Reader`."""
        self.base.close()
        self.adapter.close()


def _match(entries: Entries, name: str) -> tuple[str, ...]:
    """Entries that a name of an adapter means, whatever stands before either."""
    path = name.removeprefix("base_model.model.")
    if path in entries:
        return (path,)
    found = tuple(key for key in entries if f".{key}".endswith(f".{path}"))
    found = found or tuple(key for key in entries if f".{path}".endswith(f".{key}"))
    flat = re.sub(r"^lora_[a-z0-9]+_", "", path.removesuffix(".weight"))
    plain = (key for key in entries if key.removesuffix(".weight").replace(".", "_") == flat)
    return found or tuple(plain)


def _place(entries: Entries, name: str, adapter: str) -> str:
    found = _match(entries, name)
    if len(found) != 1:
        how = f"{len(found)} of its tensors ({listed(found)})" if found else "none of its tensors"
        raise ProblemError(
            f"{adapter} updates {name}, and the base has {how} of that name; give the base that "
            "the adapter was trained on"
        )
    return found[0]
