"""Containers of tensors: described when opened, read one tensor at a time.

Files are memory-mapped. The pages that were read stay in a process's memory as long as their
mapping does, so a mapping is renewed after 32 MB: peak memory doesn't grow with the file.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from hessrmt.errors import CapacityError, ProblemError
from hessrmt.problems import checkpoints

_RENEW_AFTER = 32 * 2**20
_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "BOOL": "bool", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn_x2",
}  # fmt: skip
Handle = TypeVar("Handle")


@dataclass(frozen=True)
class Entry:
    """What is known of a stored value before it is read.

    Attributes:
        shape: () for a single number and for what is no tensor.
        dtype: torch's name of it, e.g. "bfloat16".
        unusable: Why it can't be read as weights, or None.
        storage: Equal for tensors that share all their numbers; None where that isn't known.
    """

    shape: tuple[int, ...]
    dtype: str
    unusable: str | None = None
    storage: Hashable = None


class Reader(Protocol):
    """A container of tensors, lazily read."""

    entries: dict[str, Entry]

    def read(self, name: str) -> Tensor:
        """The tensor of that name, on the CPU, not to be written to."""
        ...

    def close(self) -> None:
        """Let go of files and mappings; may be called twice."""
        ...


def describe(value: object) -> Entry:
    """What a value of a state dict in memory is.

    Args:
        value: Usually a tensor.

    Returns:
        Its description; unusable for what is no plain tensor with values.
    """
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        return Entry((), kind, f"not a tensor, but of type {kind}")
    if nn.parameter.is_lazy(value):
        return Entry((), "uninitialised", "not initialised yet: run the network on data once")
    shape, dtype = tuple(value.shape), str(value.dtype).removeprefix("torch.")
    if value.layout is not torch.strided:
        layout = str(value.layout).removeprefix("torch.")
        return Entry(shape, dtype, f"{layout}: sparse tensors aren't analysed; use to_dense()")
    if value.is_quantized:
        return Entry(shape, dtype)
    if value.is_meta:
        return Entry(shape, dtype, "on the meta device, where tensors have no values")
    storage = (str(value.device), value.data_ptr(), value.numel(), dtype)
    return Entry(shape, dtype, storage=storage if value.numel() else None)


class TensorReader:
    """A state dict in memory."""

    def __init__(self, state: Mapping[str, object]):
        self._state = {str(name): _as_tensor(value) for name, value in state.items()}
        self.entries = {name: describe(value) for name, value in self._state.items()}

    def read(self, name: str) -> Tensor:
        """The tensor of that name, on the CPU."""
        return self._state[name].detach().cpu()

    def close(self) -> None:
        """Nothing to close."""


class _Renewable(Generic[Handle]):
    """A mapping of a file that is opened anew before more than 32 MB were read through it."""

    def __init__(self, opens: Callable[[], Handle], closes: Callable[[Handle], object]):
        self._opens, self._closes = opens, closes
        self._handle: Handle | None = None
        self._used = 0

    def use(self, count: int) -> Handle:
        if self._used + count > _RENEW_AFTER:
            self.close()
        if count > _RENEW_AFTER:  # a mapping of its own, gone with the tensor that is read from it
            return self._opens()
        if self._handle is None:
            self._handle = self._opens()
        self._used += count
        return self._handle

    def close(self) -> None:
        if self._handle is not None:
            self._closes(self._handle)
        self._handle, self._used = None, 0


class TorchReader:
    """A ``.pt`` or ``.pth`` checkpoint; nothing pickled in it is executed.

    Args:
        path: The file. One from before PyTorch 1.6 can't be mapped and is read as a whole.

    Raises:
        ProblemError: If it is missing, unreadable, refused or foreign, or holds no tensors.
    """

    def __init__(self, path: Path):
        self._path = path
        self._mapping = _Renewable(self._open, dict.clear)
        self._whole: dict[str, Tensor] | None = None
        state = self._mapping.use(0)
        self.entries = {name: describe(value) for name, value in state.items()}

    def _open(self) -> dict[str, Tensor]:
        if self._whole is not None:
            return dict(self._whole)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(self._path, map_location="cpu", weights_only=True, mmap=True)
        except (
            Exception
        ) as error:  # of an older format, or no checkpoint: `read` says what is wrong
            if _cut_short(self._path):
                raise ProblemError(
                    f"{self._path} is cut short or damaged; copy or save it again"
                ) from error
            content = checkpoints.read(self._path)
            self._whole = checkpoints.tensors(content, self._path)
            return dict(self._whole)
        return checkpoints.tensors(content, self._path)

    def read(self, name: str) -> Tensor:
        """The tensor of that name, in the mapped file."""
        entry = self.entries[name]
        return self._mapping.use(_bytes(entry))[name].detach()

    def close(self) -> None:
        """Let go of the mapping."""
        self._mapping.close()
        self._whole = None


class SafetensorsReader:
    """One or more ``.safetensors`` files, of which one at a time is mapped.

    Args:
        paths: The files.
        expected: For a folder with an index: tensor name to the file it must be in.

    Raises:
        ProblemError: If a file is missing or damaged, two files hold the same name, or a tensor
            of the index isn't where it says.
    """

    def __init__(self, paths: Collection[Path], expected: Mapping[str, Path] | None = None):
        self.entries: dict[str, Entry] = {}
        self._where: dict[str, Path] = {}
        self._mapping: _Renewable[Any] | None = None
        self._mapped: Path | None = None
        for path in paths:
            for name, entry in _safetensors_entries(path).items():
                if name in self.entries:
                    raise ProblemError(
                        f"{path} and {self._where[name]} both hold a tensor {name!r}; keep the "
                        "files of one network in the folder, or give a single file"
                    )
                self.entries[name], self._where[name] = entry, path
        for name, path in (expected or {}).items():
            if self._where.get(name) != path:
                raise ProblemError(
                    f"{path} does not hold the tensor {name!r}, which the folder's index places "
                    "there; download or save the folder again"
                )

    def read(self, name: str) -> Tensor:
        """The tensor of that name, in the mapped file."""
        path = self._where[name]
        if path != self._mapped or self._mapping is None:
            self.close()
            self._mapping = _Renewable(
                lambda: _open_safetensors(path), lambda handle: handle.__exit__(None, None, None)
            )
            self._mapped = path
        try:
            return self._mapping.use(_bytes(self.entries[name])).get_tensor(name)
        except safetensors.SafetensorError as error:
            raise ProblemError(f"cannot read {name!r} of {path}: {error}") from error

    def close(self) -> None:
        """Let go of the mapping."""
        if self._mapping is not None:
            self._mapping.close()
        self._mapping = self._mapped = None


class NpzReader:
    """An ``.npz`` file of NumPy arrays; pickled objects in it are never executed.

    Args:
        path: The file.

    Raises:
        ProblemError: If it is missing, damaged, or holds no arrays.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            loaded = np.load(path, allow_pickle=False)
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise self._unreadable(error) from error
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ProblemError(f"{path} is not an .npz file; write one with numpy.savez")
        self._file = loaded
        try:
            self.entries = {name: self._describe(name) for name in loaded.files}
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            loaded.close()
            raise self._unreadable(error) from error
        if not self.entries:
            loaded.close()
            raise ProblemError(f"{path} holds no arrays; expected one for each layer, by name")

    def _describe(self, name: str) -> Entry:
        archive = self._file.zip
        assert archive is not None  # closed only by close()
        member = f"{name}.npy"
        if member not in archive.namelist():
            return Entry((), "file", "not an array but a file of another kind")
        with archive.open(member) as handle:
            version = np.lib.format.read_magic(handle)
            headers = {1: np.lib.format.read_array_header_1_0}
            shape, _, dtype = headers.get(version[0], np.lib.format.read_array_header_2_0)(handle)
        if dtype.hasobject:
            return Entry(shape, "object", "pickled Python objects, which are never executed")
        return Entry(shape, dtype.newbyteorder("=").name)

    def read(self, name: str) -> Tensor:
        """The array of that name."""
        try:
            array = self._file[name]
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise self._unreadable(error) from error
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _unreadable(self, error: Exception) -> ProblemError:
        return ProblemError(
            f"cannot read {self._path} as an .npz file ({error}); copy or save it again"
        )


def _as_tensor(value: object) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    native = value.astype(value.dtype.newbyteorder("="), copy=False)
    if native.ndim:
        native = np.ascontiguousarray(native)
    try:
        with warnings.catch_warnings():  # of a read-only array; it is never written to
            warnings.simplefilter("ignore")
            return torch.from_numpy(native)
    except TypeError:
        return value


def _cut_short(path: Path) -> bool:
    if not path.is_file() or zipfile.is_zipfile(path):
        return False
    with path.open("rb") as handle:
        return handle.read(4) == b"PK\x03\x04"


def _bytes(entry: Entry) -> int:
    return prod(entry.shape) * int(getattr(torch, entry.dtype).itemsize)


def _open_safetensors(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, framework="pt", device="cpu").__enter__()
    except OSError as error:
        raise ProblemError(f"cannot read {path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise ProblemError(
            f"{path} is not a complete safetensors file ({error}); copy or save it again"
        ) from error


def _safetensors_entries(path: Path) -> dict[str, Entry]:
    handle = _open_safetensors(path)
    entries = {}
    for name in handle.keys():  # noqa: SIM118
        about = handle.get_slice(name)
        dtype = str(about.get_dtype())
        entries[name] = Entry(
            tuple(about.get_shape()), _SAFETENSORS_DTYPES.get(dtype, dtype.lower())
        )
    handle.__exit__(None, None, None)
    if not entries:
        raise CapacityError(f"{path} holds no tensors; expected the weights of a network")
    return entries
