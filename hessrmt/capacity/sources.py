"""Where weights come from: modules, state dicts, files and folders, read one tensor at a time.

Every tensor of a network is delivered, or listed with the reason why not. Files are memory-mapped.
The pages that were read stay in a process's memory as long as their mapping does, so a mapping is
renewed after 32 MB: peak memory doesn't grow with the file.
"""

from __future__ import annotations

import json
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from math import prod
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args

import numpy as np
import safetensors
import torch
from numpy.lib import format as npy
from torch import Tensor, nn

from hessrmt import rng
from hessrmt.capacity.layers import (
    Conv,
    Shape,
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
from hessrmt.problems import checkpoints
from hessrmt.problems.plugins import is_plugin, load_object

if TYPE_CHECKING:
    from jaxtyping import Float64, Num

AnySource = nn.Module | Mapping[str, Any] | str | PathLike[str]
Handle = TypeVar("Handle")

_RENEW_AFTER = 32 * 2**20
_EXPECTED = (
    "a .pt, .pth, .safetensors or .npz file, a folder of .safetensors files, or file.py:factory"
)
_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "BOOL": "bool", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn_x2",
}  # fmt: skip
_DAMAGED = (
    *(ValueError, LookupError, TypeError, AttributeError, EOFError),
    *(zipfile.BadZipFile, zlib.error, safetensors.SafetensorError),
)


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
    _read: Callable[[], Tensor] | None = field(default=None, repr=False, compare=False)

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
        if self._read is None:
            raise DataError(self.skipped or "there is nothing to read")
        return self._read().reshape(len(self.parts), *self.part_shape)


class WeightSource(AbstractContextManager["WeightSource"]):
    """The layers of one network, all described at once and read one at a time.

    A context manager, since files stay open; made by :func:`open_source`.

    Attributes:
        label: What the network was given as: a path, or a class name.
        layers: All tensors in the network's order, the skipped ones too.
        close: Closes files; layers can't be loaded any more.
    """

    def __init__(
        self, label: str, layers: tuple[WeightTensor, ...], close: Callable[[], None]
    ) -> None:
        self.label, self.layers, self.close = label, layers, close
        self._by_name = {layer.name: layer for layer in layers}

    def __iter__(self) -> Iterator[WeightTensor]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

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
    try:
        layers = _layers(reader, owners, conv, min_size, only)
        if not layers:
            raise DataError(f"{label} holds no tensors; expected the weights of a network")
        if only and not any(fnmatchcase(layer.name, only) for layer in layers):
            names = ", ".join(layer.name for layer in layers[:5])
            raise DataError(
                f"no tensor of {label} has a name like {only!r}; its first names are {names}"
            )
    except BaseException:
        reader.close()
        raise
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
    if layers and not any(initial.get(layer.name) for layer in layers):
        raise DataError(
            f"{initial.label} and {source.label} have no layer name in common; give a checkpoint "
            "of the same network"
        )
    for layer in layers:
        other = initial.get(layer.name)
        if other is not None and other.shape != layer.shape:
            raise DataError(
                f"{layer.name} has the shape {other.shape} in {initial.label} but {layer.shape} "
                f"in {source.label}; give a checkpoint of the same network"
            )
        yield layer, other if other is not None and other.parts == layer.parts else None


def _layers(
    reader: Reader, owners: Mapping[str, nn.Module], conv: Conv, min_size: int, only: str | None
) -> tuple[WeightTensor, ...]:
    stored = checkpoints.unwrap({name: name for name in reader.entries})
    entries = {name: reader.entries[old] for name, old in stored.items()}
    shapes = {name: entry.shape for name, entry in entries.items()}
    seen: dict[Any, str] = {}
    layers = []
    for name, old in stored.items():
        entry = entries[name]
        role = recognise(name, shapes, owners.get(old.rpartition(".")[0]))
        if only is not None and not fnmatchcase(name, only):
            reason = f"its name does not match {only!r}"
        elif (reason := unusable(name, role, entries)) is None:
            if entry.storage in seen:
                reason = f"shares the storage of {seen[entry.storage]}"
            else:
                reason = too_small(role, entry.shape, conv, min_size)
        layer = WeightTensor(name, role.kind, entry.shape, entry.dtype, reason, role.inferred)
        if reason is None:
            seen[entry.storage] = name
            cut = split(role, entry.shape, conv)
            layer = replace(
                layer,
                parts=cut.parts,
                part_shape=cut.shape,
                pooled=conv == "pooled" and role.form == "convolution",
                _read=lambda old=old, cut=cut: cut.view(reader.read(old)),
            )
        layers.append(layer)
    return tuple(layers)


# What can be given


def _opened(source: AnySource, seed: int) -> tuple[str, Reader, dict[str, nn.Module]]:
    if isinstance(source, nn.Module):
        return type(source).__name__, *_module(source)
    if isinstance(source, Mapping):
        return "the state dict", _in_memory(_state_dict(source)), {}
    if not isinstance(source, str | PathLike):
        raise DataError(
            f"cannot read weights from a {type(source).__name__}; expected a torch.nn.Module, a "
            f"state dict, or the path of {_EXPECTED}"
        )
    spec = fspath(source)
    if is_plugin(spec):
        return spec, *_module(_built(spec, seed))
    path = Path(spec).expanduser()
    if path.is_dir():
        return spec, _folder(path), {}
    if not path.exists():
        raise ProblemError(f"there is no file or folder {spec}; expected {_EXPECTED}")
    if path.suffix.lower() not in _FILES:
        raise ProblemError(f"cannot tell what {spec} is; expected {_EXPECTED}")
    return spec, _FILES[path.suffix.lower()](path), {}


def _state_dict(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = (mapping.get(key) for key in checkpoints.NESTED_UNDER)
    state = next((found for found in inner if isinstance(found, Mapping)), mapping)
    if not any(isinstance(value, Tensor | np.ndarray) for value in state.values()):
        keys = ", ".join(map(str, list(mapping)[:5])) or "none"
        raise DataError(f"a state dict of tensors is needed, got one with the keys: {keys}")
    return state


def _module(module: nn.Module) -> tuple[Reader, dict[str, nn.Module]]:
    reader = _in_memory(module.state_dict())
    trained = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, entry in reader.entries.items():
        if name not in trained and len(entry.shape) > 1 and "float" in entry.dtype:
            reader.entries[name] = replace(entry, unusable="a buffer, not a trained weight")
    return reader, dict(module.named_modules(remove_duplicate=False))


def _built(spec: str, seed: int) -> nn.Module:
    factory = load_object(spec)
    try:
        with rng.torch_seeded(seed, "init"):
            model = factory()
    except Exception as error:
        raise ProblemError(
            f"the factory {spec!r}, called without arguments, failed with "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ProblemError(f"{spec!r} returned {type(model).__name__}, not a torch.nn.Module")
    return model


# Readers of what is given


@dataclass(frozen=True)
class Reader:
    """A container of tensors, lazily read.

    Attributes:
        entries: What is known of each before it is read, by name.
        read: Name to the tensor, on the CPU, not to be written to.
        close: Lets go of files and mappings; may be called twice.
    """

    entries: dict[str, Stored]
    read: Callable[[str], Tensor]
    close: Callable[[], None] = lambda: None


class _Mapping(Generic[Handle]):
    """One mapped file at a time, opened anew before more than 32 MB were read through it."""

    def __init__(self, opens: Callable[[Path], Handle]):
        self._opens = opens
        self._held: tuple[Path, Handle] | None = None
        self._used = 0

    def use(self, path: Path, entry: Stored) -> Handle:
        """The file, open for reading one tensor of it."""
        count = prod(entry.shape) * int(getattr(torch, entry.dtype).itemsize)
        if count > _RENEW_AFTER:  # a mapping of its own, gone with the tensor that is read from it
            self.close()
            return self._opens(path)
        if self._held is None or self._held[0] != path or self._used + count > _RENEW_AFTER:
            self.close()
            self._held = path, self._opens(path)
        self._used += count
        return self._held[1]

    def close(self) -> None:
        """Let go of the mapping: what was read from it keeps it, if anything does."""
        self._held, self._used = None, 0


@contextmanager
def _reading(path: Path, kind: str, instead: str = "copy or save it again") -> Iterator[None]:
    """What a library raises of a file, as a ProblemError that names it."""
    try:
        yield
    except OSError as error:
        raise ProblemError(f"cannot read {path}: {error.strerror or error}") from error
    except _DAMAGED as error:
        raise ProblemError(
            f"{path} is not a complete {kind} ({type(error).__name__}: {error}); {instead}"
        ) from error


def _in_memory(state: Mapping[str, object]) -> Reader:
    tensors = {str(name): _as_tensor(value) for name, value in state.items()}
    entries = {name: _described(value) for name, value in tensors.items()}
    return Reader(entries, lambda name: tensors[name].detach().cpu())


def _torch_file(path: Path) -> Reader:
    """A ``.pt`` or ``.pth`` checkpoint; nothing pickled in it is executed."""
    whole = cache(checkpoints.read)  # from before PyTorch 1.6: can't be mapped

    def opens(path: Path) -> dict[str, Tensor]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception:  # of an older format, or no checkpoint: `read` says what is wrong
            content = whole(path)
        return checkpoints.tensors(content, path)

    entries = {name: _described(value) for name, value in opens(path).items()}
    mapping = _Mapping(opens)
    return Reader(
        entries, lambda name: mapping.use(path, entries[name])[name].detach(), mapping.close
    )


def _safetensors_files(paths: Collection[Path]) -> tuple[Reader, dict[str, Path]]:
    """One or more ``.safetensors`` files, and which of them holds each tensor."""

    def opens(path: Path) -> Any:
        with _reading(path, "safetensors file"):
            return safetensors.safe_open(path, framework="pt", device="cpu")

    entries: dict[str, Stored] = {}
    places: dict[str, Path] = {}
    for path in paths:
        handle = opens(path)
        for name in handle.keys():  # noqa: SIM118
            if name in entries:
                raise ProblemError(
                    f"{path} and {places[name]} both hold a tensor {name!r}; keep the files of "
                    "one network in the folder, or give a single file"
                )
            about = handle.get_slice(name)
            dtype = str(about.get_dtype())
            known = _SAFETENSORS_DTYPES.get(dtype, dtype.lower())
            entries[name], places[name] = Stored(tuple(about.get_shape()), known), path
    mapping = _Mapping(opens)

    def read(name: str) -> Tensor:
        with _reading(places[name], "safetensors file"):
            return mapping.use(places[name], entries[name]).get_tensor(name)

    return Reader(entries, read, mapping.close), places


def _folder(folder: Path) -> Reader:
    """The network in a folder: the shards that its index lists, or else all safetensors files."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        raise ProblemError(
            f"{folder} holds several indices ({', '.join(i.name for i in indices)}); put each "
            "network into a folder of its own"
        )
    if not indices:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            suffixes = {".pt", ".pth", ".npz", ".bin", ".ckpt"}
            others = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in suffixes)
            but = f" (but {_first(others)})" if others else ""
            raise ProblemError(
                f"the folder {folder} holds no .safetensors files{but}; give the folder of a "
                "network's weights, or a single file"
            )
        return _safetensors_files(files)[0]
    index, again = indices[0], "download or save the folder again"
    kind = 'index of shards, a JSON object with a "weight_map" of tensor names to file names'
    with _reading(index, kind, again):
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        expected = {str(name): folder / file for name, file in places.items()}
    if not expected:
        raise ProblemError(f"{index} lists no tensors; {again}")
    shards = sorted(set(expected.values()))
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ProblemError(
            f"{folder} lacks {len(missing)} of the {len(shards)} shards that {index.name} lists: "
            f"{_first(missing)}; download the rest"
        )
    reader, found = _safetensors_files(shards)
    for name, path in expected.items():
        if found.get(name) != path:
            raise ProblemError(
                f"{path} does not hold {name!r}, which {index.name} places there; {again}"
            )
    return reader


def _npz_file(path: Path) -> Reader:
    """An ``.npz`` file of NumPy arrays; pickled objects in it are never executed."""

    def described(member: str) -> Stored:
        if not member.endswith(".npy"):
            return Stored((), "file", "not an array but a file of another kind")
        with archive.open(member) as handle:
            old = np.lib.format.read_magic(handle) == (1, 0)
            reads = (
                np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = reads(handle)
        if dtype.hasobject:
            return Stored(shape, "object", "pickled Python objects, which are never executed")
        return Stored(shape, dtype.newbyteorder("=").name)

    def read(name: str) -> Tensor:
        with _reading(path, ".npz file"), archive.open(f"{name}.npy") as handle:
            return _as_tensor(npy.read_array(handle, allow_pickle=False))

    with _reading(path, ".npz file, as numpy.savez writes it"):
        archive = zipfile.ZipFile(path)
        entries = {name.removesuffix(".npy"): described(name) for name in archive.namelist()}
    return Reader(entries, read, archive.close)


_FILES: dict[str, Callable[[Path], Reader]] = {
    **dict.fromkeys(checkpoints.TORCH_SUFFIXES, _torch_file),
    checkpoints.SAFETENSORS_SUFFIX: lambda path: _safetensors_files([path])[0],
    ".npz": _npz_file,
}


def _described(value: object) -> Stored:
    """What a value of a state dict in memory is; unusable unless a plain tensor with values."""
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
    return Stored(shape, dtype, None, (str(value.device), value.data_ptr(), value.numel(), dtype))


def _as_tensor(value: Any) -> Any:
    """Arrays that torch can hold as tensors; anything else as it is."""
    if isinstance(value, np.ndarray):
        with suppress(TypeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a read-only array; it is never written to
            return torch.from_numpy(np.asarray(value, value.dtype.newbyteorder("="), order="C"))
    return value


def _first(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if names[5:] else "")
