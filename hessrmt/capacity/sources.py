"""Where weights come from: modules, state dicts, files and folders, read one tensor at a time.

Every tensor of a network is delivered, or listed with the reason why not. Files are memory-mapped.
The pages that were read stay in a process's memory as long as their mapping does, so a mapping is
renewed after 32 MB: peak memory doesn't grow with the file.
"""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from math import prod
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from zipfile import ZipFile

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hessrmt import rng
from hessrmt.capacity.layers import (
    Conv,
    Shape,
    Split,
    Stored,
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
from hessrmt.problems.plugins import is_plugin

if TYPE_CHECKING:
    from jaxtyping import Float64, Num

AnySource = nn.Module | Mapping[str, Any] | str | PathLike[str]

_RENEW_AFTER = 32 * 2**20
_EXPECTED = "a .pt, .pth, .safetensors or .npz file, a folder of safetensors, or file.py:factory"


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
        close: Closes files; layers can't be loaded any more.
    """

    def __init__(self, label: str, layers: Iterable[WeightTensor], close: Callable[[], None]):
        self.label, self.layers, self.close = label, tuple(layers), close
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
) -> WeightSource:
    """Describe the layers of a network, without reading their values.

    Kinds of layers are those of the modules, where there are modules. In files and state dicts
    they are inferred from names and numbers of dimensions; there the groups of a convolution and
    whether it is transposed are unknown, and each tensor is taken as it is stored.

    Args:
        source: A module; a state dict; the path of a ``.pt``, ``.pth``, ``.safetensors`` or
            ``.npz`` file, or of a folder of safetensors shards; or ``file.py:factory``, whose
            factory is called without arguments and returns a module.
        conv: Convolutions as ``slices`` (a matrix for each kernel position, Martin and Mahoney
            2019, below eq. 6), ``pooled`` (the eigenvalues of all slices in one spectrum) or
            ``unfolded`` (one c_out × c_in·k² matrix).
        min_size: The fewest eigenvalues that a spectrum must have; layers with fewer are skipped.
        only: Pattern of the names to analyse, with ``*``, ``?`` and ``[...]``; the others are
            listed as skipped.
        seed: Of the random initialisation of ``file.py:factory``.

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
    if not reader.entries:
        raise DataError(f"{label} holds no tensors; expected the weights of a network")
    layers = _layers(reader, owners, conv, min_size, only)
    if only and not any(fnmatchcase(layer.name, only) for layer in layers):
        names = checkpoints.listed([layer.name for layer in layers])
        raise DataError(f"no tensor of {label} is named like {only!r}; its first names are {names}")
    return WeightSource(label, layers, reader.close)


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
    stored = checkpoints.unwrap({name: name for name in reader.entries})
    entries = {name: reader.entries[old] for name, old in stored.items()}
    seen: dict[Any, str] = {}
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
        if reason is None:
            seen[storage] = name
        else:
            cut = Split()
        about = name, role.kind, shape, dtype, reason, role.inferred
        where = cut.parts, cut.shape, cut.pooled
        layers.append(WeightTensor(*about, *where, _origin=(reader, old, cut)))
    return layers


# What can be given


def _opened(source: AnySource, seed: int) -> tuple[str, Reader, dict[str, nn.Module]]:
    if isinstance(source, nn.Module):
        return type(source).__name__, *_module(source)
    if isinstance(source, Mapping):
        state = checkpoints.innermost(source)
        if not any(isinstance(value, Tensor | np.ndarray) for value in state.values()):
            keys = checkpoints.listed(map(str, source)) or "none"
            raise DataError(f"a state dict of tensors is needed, got one with the keys: {keys}")
        return "the state dict", _StateDict(state), {}
    if not isinstance(source, str | PathLike):
        expected = f"a torch.nn.Module, a state dict, or the path of {_EXPECTED}"
        raise DataError(f"cannot read weights from a {type(source).__name__}; expected {expected}")
    spec = fspath(source)
    if is_plugin(spec):
        with rng.torch_seeded(seed, "init"):
            return spec, *_module(models.from_factory(spec))
    return spec, _file(Path(spec).expanduser(), spec), {}


def _file(path: Path, spec: str) -> Reader:
    suffix = path.suffix.lower()
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise ProblemError(f"there is no file or folder {spec}; expected {_EXPECTED}")
    if suffix == ".npz":
        return _Npz(path)
    if suffix not in {*checkpoints.TORCH_SUFFIXES, checkpoints.SAFETENSORS_SUFFIX}:
        raise ProblemError(f"cannot tell what {spec} is; expected {_EXPECTED}")
    return _Checkpoints([path])


def _module(module: nn.Module) -> tuple[Reader, dict[str, nn.Module]]:
    reader = _StateDict(module.state_dict())
    trained = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, entry in reader.entries.items():
        if name not in trained and len(entry.shape) > 1 and "float" in entry.dtype:
            reader.entries[name] = replace(entry, unusable="a buffer, not a trained weight")
    return reader, dict(module.named_modules(remove_duplicate=False))


# Readers of what is given


class Reader(ABC):
    """A container of tensors, lazily read: what is known of each before it is read, by name."""

    entries: dict[str, Stored]

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """The tensor of that name, on the CPU, not to be written to."""

    def close(self) -> None:  # noqa: B027
        """Let go of files and mappings; may be called twice."""


@contextmanager
def _reading(path: Path, kind: str, instead: str = "copy or save it again") -> Iterator[None]:
    """What a library raises of a file, as a ProblemError that names it."""
    try:
        yield
    except OSError as error:
        raise ProblemError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # of a foreign file almost anything
        what = f"{path} is not a complete {kind} ({type(error).__name__}: {error})"
        raise ProblemError(f"{what}; {instead}") from error


class _StateDict(Reader):
    """A state dict in memory."""

    def __init__(self, state: Mapping[str, object]):
        self._tensors = {str(name): _as_tensor(value) for name, value in state.items()}
        self.entries = {name: _described(value) for name, value in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        return self._tensors[name].detach().cpu()


class _Checkpoints(Reader):
    """Files of torch or safetensors: one is mapped, anew before more than 32 MB were read."""

    def __init__(self, paths: Iterable[Path]):
        self.entries: dict[str, Stored] = {}
        self.places: dict[str, Path] = {}
        self._path, self._tensors, self._used = None, {}, 0
        self._whole = cache(checkpoints.read)
        for path in paths:
            for name, value in self._mapped(path).items():
                if name in self.entries:
                    both = f"{path} and {self.places[name]} both hold a tensor {name!r}"
                    raise ProblemError(f"{both}; give the files of one network, or a single file")
                known = value if isinstance(value, Stored) else _described(value, path)
                self.entries[name], self.places[name] = known, path

    def _mapped(self, path: Path) -> dict[str, Any]:
        if path.suffix.lower() == checkpoints.SAFETENSORS_SUFFIX:
            found = {}
            with _reading(path, "safetensors file"), safe_open(path, "pt") as handle:
                for name in handle.keys():  # noqa: SIM118
                    about = handle.get_slice(name)
                    found[name] = Stored(tuple(about.get_shape()), str(about.get_dtype()).lower())
                    with suppress(SafetensorError):  # of a type that torch lacks
                        found[name] = handle.get_tensor(name)
            return found
        try:
            content = checkpoints.read(path, mapped=True)
        except ProblemError:  # of an older format, or no checkpoint: this says what is wrong
            content = self._whole(path)
        return checkpoints.tensors(content, path)

    def read(self, name: str) -> Tensor:
        path, entry = self.places[name], self.entries[name]
        count = prod(entry.shape) * getattr(torch, entry.dtype).itemsize
        if path != self._path or self._used + count > _RENEW_AFTER:
            self.close()
            self._path, self._tensors = path, self._mapped(path)
        self._used += count
        return self._tensors[name].detach()

    def close(self) -> None:
        self._path, self._tensors, self._used = None, {}, 0


class _Npz(Reader):
    """An ``.npz`` file of NumPy arrays; pickled objects in it are never executed."""

    def __init__(self, path: Path):
        self._path = path
        with _reading(path, ".npz file, as numpy.savez writes it"):
            self._archive = ZipFile(path)
            names = self._archive.namelist()
            self.entries = {name.removesuffix(".npy"): self._described(name) for name in names}

    def _described(self, member: str) -> Stored:
        if not member.endswith(".npy"):
            return Stored((), "file", "not an array but a file of another kind")
        with self._archive.open(member) as handle:
            first = npy.read_magic(handle) == (1, 0)
            reads = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
            shape, _, dtype = reads(handle)
        if dtype.hasobject:
            return Stored(shape, "object", "pickled Python objects, which are never executed")
        return Stored(shape, dtype.newbyteorder("=").name)

    def read(self, name: str) -> Tensor:
        with _reading(self._path, ".npz file"), self._archive.open(f"{name}.npy") as handle:
            return _as_tensor(npy.read_array(handle, allow_pickle=False))

    def close(self) -> None:
        self._archive.close()


def _folder(folder: Path) -> Reader:
    """The network in a folder: the shards that its index lists, or else all safetensors files."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    files = sorted(folder.glob("*.safetensors"))
    if len(indices) > 1:
        names = checkpoints.listed([index.name for index in indices])
        raise ProblemError(f"{folder} holds several indices ({names}); give each its own folder")
    if indices:
        return _indexed(indices[0])
    if not files:
        suffixes = {".pt", ".pth", ".npz", ".bin", ".ckpt"}
        others = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in suffixes)
        but = f" (but {checkpoints.listed(others)})" if others else ""
        raise ProblemError(f"the folder {folder} holds no .safetensors files{but}; give a file")
    return _Checkpoints(files)


def _indexed(index: Path) -> Reader:
    folder, again = index.parent, "download or save the folder again"
    kind = 'index of shards, JSON with a "weight_map" of tensor names to file names'
    with _reading(index, kind, again):
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        expected = {str(name): folder / file for name, file in places.items()}
    if not expected:
        raise ProblemError(f"{index} lists no tensors; {again}")
    shards = sorted(set(expected.values()))
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        lacks = f"{folder} lacks {len(missing)} of the {len(shards)} shards that {index.name} lists"
        raise ProblemError(f"{lacks}: {checkpoints.listed(missing)}; download the rest")
    reader = _Checkpoints(shards)
    for name, path in expected.items():
        if reader.places.get(name) != path:
            where = f"which {index.name} places there"
            raise ProblemError(f"{path} does not hold the tensor {name!r}, {where}; {again}")
    return reader


def _described(value: object, place: object = None) -> Stored:
    """What a value of a state dict is; unusable unless a plain tensor with values."""
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        return Stored((), kind, f"not a tensor, but of type {kind}")
    if nn.parameter.is_lazy(value):
        return Stored((), "uninitialised", "not initialised yet: run the network on data once")
    shape, dtype = tuple(value.shape), str(value.dtype).removeprefix("torch.")
    if value.layout is not torch.strided:
        layout = str(value.layout).removeprefix("torch.")
        return Stored(shape, dtype, f"{layout}: sparse tensors aren't analysed; use to_dense()")
    if value.is_meta:
        return Stored(shape, dtype, "on the meta device, where tensors have no values")
    if value.is_quantized or not value.numel():
        return Stored(shape, dtype)
    storage = place, str(value.device), value.data_ptr(), value.numel(), dtype
    return Stored(shape, dtype, None, storage)


def _as_tensor(value: Any) -> Any:
    """Arrays that torch can hold as tensors; anything else as it is."""
    if isinstance(value, np.ndarray):
        with suppress(TypeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a read-only array; it is never written to
            return torch.from_numpy(np.asarray(value, value.dtype.newbyteorder("="), order="C"))
    return value
