"""Where weights come from: modules, state dicts, files and folders, read one tensor at a time.

Every tensor of a network is delivered, or listed with the reason why not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from hessrmt import rng
from hessrmt.capacity.layers import (
    Conv,
    Split,
    count_nonfinite,
    recognise,
    require_finite,
    split,
    too_small,
    unusable,
)
from hessrmt.checks import one_of, whole
from hessrmt.errors import DataError, ProblemError
from hessrmt.problems import checkpoints, models
from hessrmt.problems.adapters import Updated, factor_of
from hessrmt.problems.plugins import is_plugin
from hessrmt.problems.readers import (
    EXPECTED,
    Reader,
    Shape,
    StateDict,
    innermost,
    listed,
    open_path,
    unwrap,
)

if TYPE_CHECKING:
    from jaxtyping import Float64, Num

AnySource = nn.Module | Mapping[str, Any] | str | PathLike[str]

_TIED = ("Embedding", "Linear")
"""Kinds of layers of which one may have the weights of the other."""

_COMPARED = 2**16
"""Numbers of a weight that are compared with another one's at first."""


@dataclass(frozen=True)
class WeightTensor:
    """One tensor of a network: a layer ready for analysis, or the reason why it is skipped.

    Only the description is in memory; the numbers are read by every call of :meth:`load`.

    Attributes:
        name: In the network's state dict, without the prefix of DataParallel or torch.compile.
        kind: What the layer is ("Linear", "Conv2d", "ConvTranspose2d", "Embedding",
            "MultiheadAttention", "LSTM", "GRU", "Conv1D" for GPT-2's, "Experts", ...; of what is
            skipped also "vector", "scalar", ...).
        shape: Of the stored tensor.
        dtype: Of the stored tensor, e.g. "bfloat16".
        skipped: Why the layer can't be analysed; None if it can (its values may still turn out
            not to be finite when they are read).
        inferred: Whether ``kind`` was inferred from the name and the number of dimensions,
            because the source holds tensors only and no modules.
        parts: A label for each matrix that :meth:`load` returns, in order: ``("",)`` for a whole
            matrix, ``("q", "k", "v")``, ``("i", "f", "g", "o")``, kernel positions
            ``("0,0", "0,1", ...)``. Empty if skipped.
        part_shape: (rows, columns) of every one of these matrices.
        pooled: Whether the eigenvalues of all parts make one spectrum (``conv="pooled"``);
            otherwise each part has its own.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    skipped: str | None = None
    inferred: bool = False
    parts: tuple[str, ...] = ()
    part_shape: Shape = ()
    pooled: bool = False
    _origin: tuple[Reader, str, Split] = field(repr=False, compare=False, kw_only=True)

    def load(self) -> Float64[np.ndarray, "parts rows columns"]:
        """Read the weights and cut them into the matrices whose spectra are meant.

        Returns:
            (parts, rows, columns) float64, C-contiguous and owned by the caller; iterate it for
            the single matrices.

        Raises a DataError if the layer is skipped, or if weights are NaN or infinite; its message
        is the reason to list the layer with. (A file that can't be read is a ProblemError: it ends
        the run.)
        """
        view = self.view()
        stack = torch.empty(view.shape, dtype=torch.float64)
        stack.copy_(view)
        require_finite(count_nonfinite(stack), stack.numel())
        return stack.numpy()

    def view(self) -> Num[Tensor, "parts rows columns"]:
        """The same matrices as they are stored, not copied where the file is mapped.

        Returns:
            (parts, rows, columns) in the stored precision and order; not to be written to, and
            unchecked: weights may be NaN or infinite.

        Raises:
            DataError: If the layer is skipped.
        """
        if self.skipped:
            raise DataError(self.skipped)
        reader, name, cut = self._origin
        return cut.view(reader.read(name)).reshape(len(self.parts), *self.part_shape)


class WeightSource(AbstractContextManager["WeightSource"]):
    """The layers of one network, all described at once and read one at a time.

    A context manager, since files stay open; made by :func:`open_source`.

    Attributes:
        label: What the network was given as: a path, or a class name.
        layers: All tensors in the network's order, the skipped ones too.
        notes: What a user must know of how it was read.
        close: Closes files; layers can't be loaded any more.
    """

    def __init__(
        self,
        label: str,
        layers: Iterable[WeightTensor],
        close: Callable[[], None],
        notes: tuple[str, ...] = (),
    ):
        self.label, self.layers, self.close, self.notes = label, tuple(layers), close, notes
        self._by_name = {layer.name: layer for layer in self.layers}

    def __iter__(self) -> Iterator[WeightTensor]:
        return iter(self.layers)

    def get(self, name: str) -> WeightTensor | None:
        """The layer of that name; None if the network has none."""
        return self._by_name.get(name)

    def __exit__(self, *about: object) -> None:
        self.close()


def open_source(
    source: AnySource,
    *,
    conv: Conv = "slices",
    min_size: int = 2,
    only: str | None = None,
    seed: int = 0,
    base: AnySource | None = None,
) -> WeightSource:
    """Describe the layers of a network, without reading their values.

    Kinds of layers are those of the modules, where there are modules. In files and state dicts
    they are inferred from names and numbers of dimensions; there the groups of a convolution and
    whether it is transposed are unknown, and each tensor is taken as it is stored.

    Args:
        source: A module; a state dict; the path of a ``.pt``, ``.pth``, ``.bin``, ``.ckpt``,
            ``.pth.tar``, ``.safetensors`` or ``.npz`` file, of a folder of shards or of their
            index; or ``file.py:factory``, whose factory is called without arguments and returns a
            module. Of a LoRA adapter the layers are its updates (alpha/r) B A.
        conv: Convolutions as ``slices`` (a matrix for each kernel position, Martin and Mahoney
            2019, below eq. 6), ``pooled`` (the eigenvalues of all slices in one spectrum) or
            ``unfolded`` (one c_out × c_in·k² matrix).
        min_size: The fewest eigenvalues that a spectrum must have; layers with fewer are skipped.
        only: Pattern of the names to analyse, with ``*``, ``?`` and ``[...]``; the others are
            listed as skipped.
        seed: Of the random initialisation of ``file.py:factory``.
        base: The network that ``source`` is a LoRA adapter of: the layers are those of the base,
            with the updates added.

    Returns:
        The source. Close it, or use it in a ``with`` block.

    Raises:
        DataError: If an option is unusable, ``only`` matches nothing, or there are no tensors. A
            file that is missing, damaged, refused or foreign is a ProblemError.
    """
    one_of("conv", conv, get_args(Conv))
    whole("min_size", min_size, 1)
    if only is not None and not isinstance(only, str):
        raise DataError(f"only must be a pattern such as 'features.*', got {only!r}")
    label, reader, owners = _opened(source, seed)
    if base is not None:
        on, below, owners = _opened(base, seed)
        reader, label = Updated(below, reader, label), f"{label} on {on}"
    if not reader.entries:
        raise DataError(f"{label} holds no tensors; expected the weights of a network")
    layers = _layers(reader, owners, conv, min_size, only)
    if only and not any(fnmatchcase(layer.name, only) for layer in layers):
        names = listed([layer.name for layer in layers])
        raise DataError(f"no tensor of {label} is named like {only!r}; its first names are {names}")
    return WeightSource(label, layers, reader.close, reader.notes)


def pairs(
    source: WeightSource, initial: WeightSource
) -> Iterator[tuple[WeightTensor, WeightTensor | None]]:
    """Layers of a network beside the same ones of another state of it, its initialisation.

    Args:
        source: The network.
        initial: The other state of it, opened with the same ``conv``.

    Yields:
        Each layer of ``source`` that isn't skipped, and the one of the same name in ``initial``;
        None if that lacks it or skips it.

    Raises:
        DataError: If no name agrees, or layers of the same name differ in shape.
    """
    layers = [layer for layer in source if layer.skipped is None]
    instead = "give a checkpoint of the same network"
    if layers and not any(initial.get(layer.name) for layer in layers):
        raise DataError(f"{initial.label} and {source.label} share no layer name; {instead}")
    for layer in layers:
        other = initial.get(layer.name)
        if other is not None and other.shape != layer.shape:
            shapes = f"{layer.shape} in {source.label}, {other.shape} in {initial.label}"
            raise DataError(f"{layer.name} has the shape {shapes}; {instead}")
        yield layer, other if other is not None and other.parts == layer.parts else None


def _layers(
    reader: Reader, owners: Mapping[str, nn.Module], conv: Conv, min_size: int, only: str | None
) -> list[WeightTensor]:
    stored = unwrap({name: name for name in reader.entries})
    entries = {name: reader.entries[old] for name, old in stored.items()}
    seen: dict[Any, str] = {}
    alike: dict[Shape, list[tuple[str, str]]] = {}
    layers = []
    for name, old in stored.items():
        shape, dtype, storage = entries[name].shape, entries[name].dtype, entries[name].storage
        role = recognise(name, entries, owners.get(old.rpartition(".")[0]))
        reason, cut = unusable(name, role, entries), Split()
        if only is not None and not fnmatchcase(name, only):
            reason = f"its name does not match {only!r}"
        elif reason is None and storage in seen:
            reason = f"shares the storage of {seen[storage]}"
        elif reason is None:
            cut = split(role, shape, conv)
            reason = too_small(cut, role, shape, min_size)
        if reason is None and role.kind in _TIED:
            reason = _same_numbers(reader, old, role.kind, alike.setdefault(shape, []))
        if reason is None:
            seen[storage] = name
        else:
            cut = Split()
        about = name, role.kind, shape, dtype, reason, role.inferred
        where = cut.parts, cut.shape, cut.pooled
        layers.append(WeightTensor(*about, *where, _origin=(reader, old, cut)))
    return layers


def _same_numbers(
    reader: Reader, name: str, kind: str, others: list[tuple[str, str]]
) -> str | None:
    """Whether an embedding is stored once more, as the weights of a linear layer or of another."""
    for other, its_kind in others:
        if "Embedding" not in {kind, its_kind}:
            continue
        # a few rows first: those of two trained weights always differ
        rows = max(1, _COMPARED // max(1, reader.entries[name].shape[-1]))
        for part in (slice(rows), slice(None)):
            one, another = reader.read(name)[part], reader.read(other)[part]
            if one.dtype != another.dtype or not torch.equal(one, another):
                break
        else:
            return f"has the numbers of {other}: one weight, stored twice"
    others.append((name, kind))
    return None


# What can be given


def _opened(source: AnySource, seed: int) -> tuple[str, Reader, dict[str, nn.Module]]:
    if isinstance(source, nn.Module):
        return type(source).__name__, *_module(source)
    if isinstance(source, Mapping):
        state, _, others = innermost(source)
        if not any(isinstance(value, Tensor | np.ndarray) for value in state.values()):
            keys = listed(map(str, source)) or "none"
            several = f"; there are several, under {listed(others)}" if len(others) > 1 else ""
            raise DataError(
                f"a state dict of tensors is needed, got one with the keys: {keys}{several}"
            )
        return "the state dict", checkpoints.whole(StateDict(state)), {}
    if not isinstance(source, str | PathLike):
        expected = f"a torch.nn.Module, a state dict, or the path of {EXPECTED}"
        raise DataError(f"cannot read weights from a {type(source).__name__}; expected {expected}")
    spec = fspath(source)
    if is_plugin(spec):
        with rng.torch_seeded(seed, "init"):
            return spec, *_module(models.from_factory(spec))
    path = Path(spec).expanduser()
    if not path.exists():
        expected = f"{EXPECTED}, or file.py:factory"
        raise ProblemError(f"there is no file or folder {spec}; expected {expected}")
    return spec, checkpoints.whole(open_path(path)), {}


def _module(module: nn.Module) -> tuple[Reader, dict[str, nn.Module]]:
    reader = StateDict(module.state_dict())
    trained = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, entry in reader.entries.items():
        if name not in trained and len(entry.shape) > 1 and "float" in entry.dtype:
            reader.entries[name] = replace(entry, unusable="a buffer, not a trained weight")
    modules = dict(module.named_modules(remove_duplicate=False))
    return checkpoints.whole(reader, factor_of(modules)), modules
