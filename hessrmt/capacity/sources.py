"""Networks, wherever they are: every tensor is delivered, or listed with the reason why not."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
from torch import Tensor, nn

from hessrmt import rng
from hessrmt.capacity.folders import read_folder
from hessrmt.capacity.kinds import Owner, owner, recognise
from hessrmt.capacity.layers import Matrix
from hessrmt.capacity.readers import (
    NpzReader,
    Reader,
    SafetensorsReader,
    TensorReader,
    TorchReader,
)
from hessrmt.capacity.reasons import too_small, unusable
from hessrmt.capacity.splitting import Conv, split
from hessrmt.errors import CapacityError, ProblemError
from hessrmt.problems import checkpoints
from hessrmt.problems.plugins import is_plugin, load_object

AnySource = nn.Module | Mapping[str, Any] | str | PathLike[str]
_FILES = {
    **dict.fromkeys(checkpoints.TORCH_SUFFIXES, TorchReader),
    checkpoints.SAFETENSORS_SUFFIX: lambda path: SafetensorsReader([path]),
    ".npz": NpzReader,
}
_EXPECTED = (
    "a .pt, .pth, .safetensors or .npz file, a folder of .safetensors files, or file.py:factory"
)


class Source:
    """The layers of one network, all described at once and read one at a time.

    A context manager, since files stay open; made by :func:`open_source`.

    Attributes:
        label: What the network was given as: a path, or a class name.
        layers: All tensors in the network's order, the skipped ones too.
    """

    def __init__(self, label: str, layers: tuple[Matrix, ...], reader: Reader):
        self.label = label
        self.layers = layers
        self._by_name = {layer.name: layer for layer in layers}
        self._reader = reader

    def __iter__(self) -> Iterator[Matrix]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def get(self, name: str) -> Matrix | None:
        """The layer of that name; None if the network has none."""
        return self._by_name.get(name)

    def close(self) -> None:
        """Close files; layers can't be loaded any more."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        self.close()


def open_source(
    source: AnySource,
    *,
    conv: Conv = "slices",
    min_size: int = 2,
    only: str | None = None,
    seed: int = 0,
) -> Source:
    """Describe the layers of a network, without reading their values.

    Kinds of layers are those of the modules, where there are modules. In files and state dicts
    they are inferred from names and numbers of dimensions; there the groups of a convolution and
    whether it is transposed are unknown, and each tensor is taken as it is stored.

    Args:
        source: A module; a state dict; the path of a ``.pt``, ``.pth``, ``.safetensors`` or
            ``.npz`` file, or of a folder of safetensors shards; or ``file.py:factory``, whose
            factory is called without arguments and returns a module.
        conv: Convolutions as ``slices`` (a matrix for each kernel position, [M] below eq. 6),
            ``pooled`` (the eigenvalues of all slices in one spectrum) or ``unfolded`` (one
            c_out × c_in·k² matrix).
        min_size: The fewest eigenvalues that a spectrum must have; layers with fewer are skipped.
        only: Pattern of the names to analyse, with ``*``, ``?`` and ``[...]``; the others are
            listed as skipped.
        seed: Of the random initialisation of ``file.py:factory``.

    Returns:
        The source. Close it, or use it in a ``with`` block.

    Raises:
        CapacityError: If an option is unusable, ``only`` matches nothing, or there are no tensors.
        ProblemError: If a file is missing, damaged, refused or foreign.
    """
    if conv not in get_args(Conv):
        raise CapacityError(f"conv must be one of {', '.join(get_args(Conv))}, got {conv!r}")
    if not isinstance(min_size, int) or isinstance(min_size, bool) or min_size < 1:
        raise CapacityError(f"min_size must be a whole number of at least 1, got {min_size!r}")
    if only is not None and not isinstance(only, str):
        raise CapacityError(f"only must be a pattern such as 'features.*', got {only!r}")
    label, reader, owners = _opened(source, seed)
    try:
        layers = _layers(reader, owners, conv, min_size, only)
        if not layers:
            raise CapacityError(f"{label} holds no tensors; expected the weights of a network")
        if all(only and not fnmatchcase(layer.name, only) for layer in layers):
            names = ", ".join(layer.name for layer in layers[:5])
            raise CapacityError(
                f"no tensor of {label} has a name like {only!r}; its first names are {names}"
            )
    except BaseException:
        reader.close()
        raise
    return Source(label, layers, reader)


def pairs(source: Source, initial: Source) -> Iterator[tuple[Matrix, Matrix | None]]:
    """Layers of a network beside the same ones of another state of it, its initialisation.

    Args:
        source: The network.
        initial: The other state of it, opened with the same ``conv``.

    Yields:
        Each layer of ``source`` that isn't skipped, and the one of the same name in ``initial``;
        None if that lacks it or skips it.

    Raises:
        CapacityError: If no name agrees, or layers of the same name differ in shape.
    """
    layers = [layer for layer in source if layer.skipped is None]
    if layers and not any(initial.get(layer.name) for layer in layers):
        raise CapacityError(
            f"{initial.label} and {source.label} have no layer name in common; give a checkpoint "
            "of the same network"
        )
    for layer in layers:
        other = initial.get(layer.name)
        if other is not None and other.shape != layer.shape:
            raise CapacityError(
                f"{layer.name} has the shape {other.shape} in {initial.label} but {layer.shape} "
                f"in {source.label}; give a checkpoint of the same network"
            )
        if other is not None and (other.skipped or other.parts != layer.parts):
            other = None
        yield layer, other


def _opened(source: AnySource, seed: int) -> tuple[str, Reader, dict[str, Owner] | None]:
    if isinstance(source, nn.Module):
        return _module(source, type(source).__name__)
    if isinstance(source, Mapping):
        return "the state dict", TensorReader(_tensors(source)), None
    if not isinstance(source, str | PathLike):
        raise CapacityError(
            f"cannot read weights from a {type(source).__name__}; expected a torch.nn.Module, a "
            f"state dict, or the path of {_EXPECTED}"
        )
    spec = fspath(source)
    if is_plugin(spec):
        return _module(_built(spec, seed), spec)
    path = Path(spec).expanduser()
    if path.is_dir():
        return spec, read_folder(path), None
    if not path.exists():
        raise ProblemError(f"there is no file or folder {spec}; expected {_EXPECTED}")
    reads = _FILES.get(path.suffix.lower())
    if reads is None:
        raise ProblemError(f"cannot tell what {spec} is; expected {_EXPECTED}")
    return spec, reads(path), None


def _tensors(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = (mapping.get(key) for key in checkpoints.NESTED_UNDER)
    state = next((found for found in inner if isinstance(found, Mapping)), mapping)
    if not any(isinstance(value, Tensor | np.ndarray) for value in state.values()):
        keys = ", ".join(map(str, list(mapping)[:5])) or "none"
        raise CapacityError(f"a state dict of tensors is needed, got one with the keys: {keys}")
    return state


def _unwrapped(reader: Reader) -> dict[str, str]:
    names: dict[str, Any] = {name: name for name in reader.entries}
    return checkpoints.unwrap(names)


def _module(module: nn.Module, label: str) -> tuple[str, Reader, dict[str, Owner]]:
    reader = TensorReader(module.state_dict())
    trained = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, entry in reader.entries.items():
        if name not in trained and len(entry.shape) > 1 and "float" in entry.dtype:
            reader.entries[name] = replace(entry, unusable="a buffer, not a trained weight")
    owners = {name: owner(part) for name, part in module.named_modules(remove_duplicate=False)}
    return label, reader, owners


def _built(spec: str, seed: int) -> nn.Module:
    factory = load_object(spec)
    if not callable(factory):
        raise ProblemError(f"{spec!r} is not callable; a factory returns a torch.nn.Module")
    needed = [
        name
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
    ]
    if needed:
        raise ProblemError(
            f"the factory {spec!r} needs {', '.join(needed)}; here it is called without arguments: "
            "give them default values, or wrap it in a function"
        )
    try:
        with rng.torch_seeded(seed, "init"):
            model = factory()
    except Exception as error:
        raise ProblemError(
            f"the factory {spec!r} failed with {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ProblemError(
            f"the factory {spec!r} returned {type(model).__name__}, not a torch.nn.Module"
        )
    return model


def _layers(
    reader: Reader,
    owners: dict[str, Owner] | None,
    conv: Conv,
    min_size: int,
    only: str | None,
) -> tuple[Matrix, ...]:
    stored = _unwrapped(reader)
    entries = {name: reader.entries[old] for name, old in stored.items()}
    shapes = {name: entry.shape for name, entry in entries.items()}
    seen: dict[Any, str] = {}
    layers = []
    for name, old in stored.items():
        entry = entries[name]
        of = owners.get(old.rpartition(".")[0]) if owners is not None else None
        role = recognise(name, shapes, of)
        described = Matrix(name, role.kind, entry.shape, entry.dtype, inferred=role.inferred)
        if only is not None and not fnmatchcase(name, only):
            layers.append(replace(described, skipped=f"its name does not match {only!r}"))
            continue
        reason = unusable(name, role, entries)
        if reason is None and entry.storage in seen:
            reason = f"shares the storage of {seen[entry.storage]}"
        if reason is None:
            reason = too_small(role, entry.shape, conv, min_size)
        if reason is not None:
            layers.append(replace(described, skipped=reason))
            continue
        if entry.storage is not None:
            seen[entry.storage] = name
        cut = split(role, entry.shape, conv)
        layers.append(
            replace(
                described,
                parts=cut.parts,
                part_shape=cut.shape,
                pooled=conv == "pooled" and role.form == "convolution",
                _read=partial(reader.read, old),
                _split=cut,
            )
        )
    return tuple(layers)
