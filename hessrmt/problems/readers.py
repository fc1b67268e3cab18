"""Tensors by name in whatever people keep them in: files, shards, folders, state dicts.

A :class:`Reader` knows every tensor before it reads any. Files are memory-mapped. The pages that
were read stay in a process's memory as long as their mapping does, so a mapping is renewed after
32 MB: peak memory doesn't grow with the file. No code in a pickle is executed.
"""

from __future__ import annotations

import errno
import json
import pickle
import re
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from hessrmt.errors import DeviceError, HessrmtError, ProblemError
from hessrmt.files import require_ordinary
from hessrmt.problems.archives import (
    EndlessError,
    Inert,
    look_through,
    npy_header,
    require_end,
    require_memory,
)
from hessrmt.problems.protocols import in_protocol_2, is_newer, is_old_format
from hessrmt.tables import printable

ValueT = TypeVar("ValueT")
Shape = tuple[int, ...]

WRITTEN = (".pt", ".pth")
"""Endings of the files that a training writes."""

WHOLE = (*WRITTEN, ".ckpt", ".pth.tar", ".npz")
"""Endings of files each of which holds a network; those of others may also be of one shard."""

SAFETENSORS = ".safetensors"

_KINDS = {
    **dict.fromkeys((*WRITTEN, ".ckpt", ".tar", ".bin", ".th", ".pkl"), "torch"),
    SAFETENSORS: "safetensors",
    ".npz": "npz",
}
"""Ending of a name to what is in the file; ``.pth.tar`` and its like end in ``.tar``."""

INDEX = ".index.json"
"""Ending of the file that lists shards."""

EXPECTED = (
    "a .pt, .pth, .bin, .ckpt, .pth.tar, .safetensors or .npz file, or a folder of shards or its "
    f"*{INDEX} file"
)

_FOREIGN = {
    ".gguf": "a GGUF file of llama.cpp",
    ".h5": "an HDF5 file, as Keras writes it",
    ".hdf5": "an HDF5 file, as Keras writes it",
    ".keras": "a Keras file",
    ".onnx": "an ONNX file",
    ".msgpack": "a msgpack file of flax",
    ".tflite": "a TensorFlow Lite file",
}
_MAGIC = {b"GGUF": ".gguf", b"\x89HDF": ".h5"}
"""First four bytes of files that may go by other names."""

NESTED_UNDER = (
    *("state_dict", "model_state_dict", "model_state", "model", "net_state_dict", "net"),
    *("network", "module", "params", "weights", "ema", "model_ema", "ema_state_dict"),
    *("state_dict_ema", "params_ema"),
)
"""Keys under which programs keep a state dict inside a checkpoint; the first of them counts."""

_INERT = (
    *("argparse.Namespace", "types.SimpleNamespace", "pathlib.PosixPath", "pathlib.WindowsPath"),
    *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *("datetime.datetime", "datetime.date", "datetime.time", "datetime.timedelta"),
    *("datetime.timezone", "pathlib.PurePosixPath", "pathlib.PureWindowsPath", "decimal.Decimal"),
    *("fractions.Fraction", "uuid.UUID", "uuid.SafeUUID"),
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
"""Classes of what training scripts keep beside tensors: read as placeholders without content. None
of them may hold weights: NumPy's arrays do, and would be lost without a word."""

_INSERTED = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""What torch.compile, FSDP and activation checkpointing put into names, wherever they wrap."""

_BEFORE_ALL = ("module.", "base_model.model.")
"""What DataParallel, AveragedModel and PEFT put before every name."""

AVERAGED = "n_averaged"
"""What AveragedModel counts beside the network."""

SHARD = re.compile(r"-(\d{1,6})-of-(\d{1,6})\.")
"""Number of a file of weights and of all of them, in its name."""

_WEIGHT_FILES = ("model", "pytorch_model", "adapter_model", "diffusion_pytorch_model")
"""Beginnings of the names of files of weights, where others of the same ending lie beside them."""

_MOST_EXPANDED, _TIMES_STORED = 1 << 30, 3
"""Bytes that tensors of few stored numbers may always take, and how many times the file's."""

_DEEPEST = 20
"""Mappings inside each other in which a state dict is looked for."""

_RENEW_AFTER = 32 * 2**20
_LISTED = 8


@dataclass(frozen=True)
class Stored:
    """What is known of a stored value before it is read.

    Attributes:
        shape: () for a single number and for what is no tensor.
        dtype: torch's name of it, e.g. "bfloat16".
        unusable: Why it can't be read as weights, or None.
        storage: Equal for tensors that are known to share all their numbers.
        part_of: The weight that it makes only together with others, or None.
    """

    shape: Shape
    dtype: str
    unusable: str | None = None
    storage: Hashable = field(default_factory=object)
    part_of: str | None = None


Entries = Mapping[str, Stored]


class Reader(ABC):
    """A container of tensors, lazily read.

    Attributes:
        entries: What is known of each tensor before it is read, by name.
        files: All that it reads from.
        notes: What a user must know of how it was read.
    """

    entries: dict[str, Stored]
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """The tensor of that name, on the CPU, not to be written to."""

    def close(self) -> None:  # noqa: B027
        """Let go of files and mappings; may be called twice."""

    def stated(self, name: str) -> dict[str, Any]:
        """What a JSON file beside the weights says.

        Args:
            name: Of the file.

        Returns:
            Its content; empty if there is none.

        Raises:
            ProblemError: If it is no such file.
        """
        path = self.files[0].parent / name if self.files else None
        if path is None or not path.is_file():
            return {}
        with _reading(path, "JSON file"):
            found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ProblemError(f"{path} is not a JSON object; download or save it again")
        return found


@contextmanager
def _reading(path: Path, kind: str, instead: str = "copy or save it again") -> Iterator[None]:
    """What a library raises of a file, as a ProblemError that names it."""
    try:
        yield
    except OSError as error:
        raise ProblemError(f"cannot read {path}: {error.strerror or error}") from error
    except HessrmtError:
        raise
    except Exception as error:  # of a foreign file almost anything
        what = f"{path} is not a complete {kind} ({type(error).__name__}: {error})"
        raise ProblemError(f"{what}; {instead}") from error


def open_path(path: Path) -> Reader:
    """The tensors of a file or folder.

    Args:
        path: A file; the index of shards; or a folder of shards, with an index or without.

    Returns:
        Their reader.

    Raises:
        ProblemError: If it is missing, damaged, foreign or refused.
    """
    require_ordinary(path)
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise ProblemError(f"there is no file or folder {path}; expected {EXPECTED}")
    if path.name.lower().endswith(INDEX):
        return _indexed(path)
    return Npz(path) if kind_of(path) == "npz" else Files([path])


def kind_of(path: Path) -> str:
    """What a file of weights is, by its first bytes where they tell, else by its name.

    Args:
        path: An existing file.

    Returns:
        ``torch``, ``safetensors`` or ``npz``.

    Raises:
        ProblemError: If it is none of these.
    """
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as handle:
            start = handle.read(32)
    except OSError as error:
        raise ProblemError(f"cannot read {path}: {error.strerror or error}") from error
    kind = _KINDS.get(suffix) or ("torch" if is_old_format(start) else None)
    if foreign := _FOREIGN.get(_MAGIC.get(start[:4], "" if kind else suffix)):
        advice = "convert the weights to safetensors"
        raise ProblemError(f"{path} is {foreign}, of which nothing is read; {advice}")
    header = int.from_bytes(start[:8], "little") if start[8:9] == b"{" else 0
    if 0 < header < path.stat().st_size:
        return "safetensors"
    if kind is None and start[:4] == b"PK\x03\x04":
        with _reading(path, "zip file"), ZipFile(path) as archive:
            names = archive.namelist()
        kind = "npz" if all(name.endswith(".npy") for name in names) else None
        kind = "torch" if any(name.endswith("/data.pkl") for name in names) else kind
    if kind is None:
        raise ProblemError(f"cannot tell what {path} is; expected {EXPECTED}")
    return kind


def read(path: Path, *, mapped: bool = False) -> Any:
    """Content of a checkpoint file as it was saved, tensors on the CPU; executes nothing in it.

    Arguments of the training script, paths, NumPy numbers and their like beside the tensors are
    placeholders.

    Args:
        path: A file of torch or safetensors.
        mapped: Whether tensors of a file of torch stay in the file until their values are used;
            torch's older format doesn't allow that.

    Returns:
        The saved object: tensors in containers of plain Python types.

    Raises:
        ProblemError: If the file is missing, unreadable, refused or foreign.
        DeviceError: If it is packed and memory has no room for it.
    """
    require_ordinary(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ProblemError(f"the checkpoint {path} {what}; expected a file holding a state dict")
    kind = kind_of(path)
    try:
        if kind == "safetensors":
            return load_file(path, device="cpu")
        known: Any = [(Inert, name) for name in _INERT]
        with warnings.catch_warnings(), torch.serialization.safe_globals(known):
            warnings.simplefilter("ignore")  # torch's remarks on foreign files; ours are errors
            if is_zipfile(path):
                mapped &= look_through(path)
                if not mapped:
                    with ZipFile(path) as archive:
                        require_memory(path, sum(one.file_size for one in archive.infolist()))
            else:
                require_end(path)
            source: Any = path
            if is_newer(path):
                if mapped:
                    raise ProblemError(f"{path} is of a pickle protocol that can't be mapped")
                require_memory(path, 2 * path.stat().st_size)
                source = in_protocol_2(path)
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except (DeviceError, ProblemError):
        raise
    except EndlessError as error:
        why = f"{path} isn't read: {error}, which takes for ever; save it again"
        raise ProblemError(why) from error
    except Exception as error:  # a foreign file makes torch.load raise almost anything
        kind = ForeignError if _what_else(path, error) else ProblemError
        raise kind(_why_unreadable(path, error)) from error


class ForeignError(ProblemError):
    """A checkpoint that may be whole, but isn't read: it holds more than tensors."""


def _what_else(path: Path, error: Exception) -> str:
    """What a checkpoint is that holds more than tensors; else empty."""
    with path.open("rb") as handle:
        start = handle.read(1)
    if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"holds pickled Python objects ({named[1]}), not only tensors"
    if "TorchScript" in str(error):
        return "is a TorchScript archive, not a state dict"
    if start == b"\x80" and isinstance(error, pickle.UnpicklingError):
        return "is a pickle that was not written by torch.save"
    return ""


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, SafetensorError | BadZipFile):
        kind = "safetensors" if isinstance(error, SafetensorError) else "zip"
        return f"{path} is not a whole {kind} file ({error}); copy or save it again"
    # torch raises EINVAL for some files that were cut short
    if isinstance(error, OSError) and error.errno != errno.EINVAL:
        return f"cannot read the checkpoint {path}: {error.strerror or error}"
    with path.open("rb") as handle:
        start = handle.read(4)
        handle.seek(257)
        archive = handle.read(5) == b"ustar"
    if foreign := _what_else(path, error):
        return (
            f"{path} {foreign}; nothing in it was executed. In the program that made it, save "
            "only its tensors: torch.save(model.state_dict(), path)"
        )
    if archive:
        return f"{path} is a tar archive; unpack it and give the file or folder in it"
    if start == b"PK\x03\x04":
        return (
            f"{path} is cut short or damaged, or is a zip file of another program; "
            "copy or save it again"
        )
    return (
        f"{path} is not a PyTorch checkpoint, or is damaged ({path.stat().st_size} bytes); "
        "expected a file written by torch.save(model.state_dict(), path)"
    )


# State dicts, however they are wrapped


def innermost(content: Any) -> tuple[Any, str, list[str]]:
    """The state dict inside a checkpoint.

    Args:
        content: The saved object.

    Returns:
        A mapping, if there is one; the keys that lead to it, joined by dots; and the keys of other
        mappings beside it that hold tensors, in which there may be other networks.
    """
    path: list[str] = []
    others: list[str] = []
    while isinstance(content, Mapping) and len(path) < _DEEPEST:  # it may hold itself
        inside = [key for key, value in content.items() if _holds_tensors(value)]
        known = [key for key in NESTED_UNDER if key in inside]
        values = content.values()
        flat = any(isinstance(value, Tensor | np.ndarray) and value.ndim for value in values)
        if not known and (flat or len(inside) != 1):
            return content, ".".join(path), list(map(str, inside)) + others
        chosen = known[0] if known else inside[0]
        others = [str(key) for key in inside if key != chosen] + others
        path.append(str(chosen))
        content = content[chosen]
    return content, ".".join(path), others


def _holds_tensors(value: Any) -> bool:
    """Whether a value is a mapping with tensors in it, of a network rather than an optimiser."""
    waiting, seen = [value], set()  # one mapping may stand in many places, and in itself
    while waiting:
        one = waiting.pop()
        if not isinstance(one, Mapping) or "param_groups" in one or id(one) in seen:
            continue
        seen.add(id(one))
        if any(isinstance(part, Tensor | np.ndarray) for part in one.values()):
            return True
        waiting += one.values()
    return False


def state_dict(content: Any, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict in what :func:`read` found.

    Args:
        content: The saved object.
        path: The file, for messages.

    Returns:
        Entry name to tensor, as named in the file; and what a user must know of where it was.

    Raises:
        ProblemError: If there is none, or it holds no tensors, or there are several.
    """
    state, under, others = innermost(content)
    if not isinstance(state, Mapping):
        raise ProblemError(
            f"{path} holds no state dict but a {type(state).__name__}; "
            "save one with torch.save(model.state_dict(), path)"
        )
    found = by_name(state, str(path))
    found = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if not any(value.ndim for value in found.values()) and len(others) > 1:
        raise ProblemError(
            f"{path} holds several state dicts, under {listed(others)}; save the one that is meant "
            "by itself"
        )
    if not found:
        raise ProblemError(
            f"{path} holds no tensors (its keys: {listed(map(str, state)) or 'none'}); expected "
            f"a state dict, at the top or under {', '.join(map(repr, NESTED_UNDER))}"
        )
    beside = f"{path}: the weights under {under!r} are taken; there are others under"
    return found, (f"{beside} {listed(others)}",) if others else ()


def by_name(state: Mapping[Any, ValueT], source: str) -> dict[str, ValueT]:
    """The same values under names that are text.

    Args:
        state: Anything to anything.
        source: What an error calls it.

    Returns:
        Its values by name.

    Raises:
        ProblemError: If two keys are one text, as 1 and "1".
    """
    found = {str(name): value for name, value in state.items()}
    if len(found) < len(state):
        twice = Counter(map(str, state)).most_common(1)[0][0]
        raise ProblemError(f"two keys of {source} are {printable(twice)!r} as text; rename one")
    return found


def unwrap(state: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """Entry names without what DataParallel, torch.compile, FSDP and PEFT add to them.

    Args:
        state: Entry name to anything.

    Returns:
        The same values in the same order; a prefix is removed where every name has it.
    """
    found = {_INSERTED.sub("", name): value for name, value in state.items()}
    found = found if len(found) == len(state) else dict(state)
    for prefix in _BEFORE_ALL:
        names = [name for name in found if name != AVERAGED]
        while names and all(name.startswith(prefix) for name in names):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
            names = [name.removeprefix(prefix) for name in names]
    return found


def listed(names: Iterable[str]) -> str:
    """The first of some names, on one line, and how many more there are."""
    names = list(names)
    rest = len(names) - _LISTED
    return ", ".join(map(printable, names[:_LISTED])) + (f" and {rest} more" if rest > 0 else "")


# Readers


class StateDict(Reader):
    """A state dict in memory.

    Args:
        state: Entry name to tensor or array; other values are described as unusable.
    """

    def __init__(self, state: Mapping[Any, object]):
        named = by_name(state, "the state dict")
        self._tensors = {name: as_tensor(value) for name, value in named.items()}
        self.entries = {name: _described(value) for name, value in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """See :class:`Reader`."""
        return self._tensors[name].detach().cpu()


class Files(Reader):
    """Files of torch or safetensors: one is mapped, anew before more than 32 MB were read.

    Args:
        paths: The files, which hold different tensors of one network.

    Raises:
        ProblemError: If one can't be read, or two hold a tensor of the same name.
    """

    def __init__(self, paths: Iterable[Path]):
        self.entries: dict[str, Stored] = {}
        self.places: dict[str, Path] = {}
        self.files = tuple(paths)
        self._path, self._tensors, self._used = None, {}, 0
        self._whole = cache(read)
        notes: list[str] = []
        for path in self.files:
            content, expanded = self._mapped(path, notes), 0
            for name, value in content.items():
                expanded += _expanded(value)
                if expanded > max(_MOST_EXPANDED, _TIMES_STORED * path.stat().st_size):
                    raise ProblemError(
                        f"{path}: the tensor {name!r} of shape {tuple(value.shape)} repeats few "
                        f"stored numbers; with others of its kind it would take {expanded:,} "
                        "bytes. Save tensors that hold their numbers: tensor.contiguous()"
                    )
                if name in self.entries:
                    both = f"{path} and {self.places[name]} both hold a tensor {name!r}"
                    raise ProblemError(f"{both}; give the files of one network, or a single file")
                known = value if isinstance(value, Stored) else _described(value, path)
                self.entries[name], self.places[name] = known, path
        self.notes = tuple(notes)

    def _mapped(self, path: Path, notes: list[str] | None = None) -> dict[str, Any]:
        if kind_of(path) == "safetensors":
            found = {}
            with _reading(path, "safetensors file"), safe_open(path, "pt") as handle:
                for name in handle.keys():  # noqa: SIM118
                    about = handle.get_slice(name)
                    found[name] = Stored(tuple(about.get_shape()), str(about.get_dtype()).lower())
                    with suppress(SafetensorError):  # of a type that torch lacks
                        found[name] = handle.get_tensor(name)
            return found
        try:
            content = read(path, mapped=True)
        except ProblemError:  # of an older format, or no checkpoint: this says what is wrong
            content = self._whole(path)
        found, said = state_dict(content, path)
        if notes is not None:
            notes += said
        return found

    def read(self, name: str) -> Tensor:
        """See :class:`Reader`."""
        path, entry = self.places[name], self.entries[name]
        count = prod(entry.shape) * getattr(torch, entry.dtype).itemsize
        if path != self._path or self._used + count > _RENEW_AFTER:
            self.close()
            self._path, self._tensors = path, self._mapped(path)
        self._used += count
        return self._tensors[name].detach()

    def close(self) -> None:
        """See :class:`Reader`."""
        self._path, self._tensors, self._used = None, {}, 0


class Npz(Reader):
    """An ``.npz`` file of NumPy arrays; pickled objects in it are never executed.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        self.files = (path,)
        with _reading(path, ".npz file, as numpy.savez writes it"):
            look_through(path)
            self._archive = ZipFile(path)
            names = self._archive.namelist()
            self.entries = {name.removesuffix(".npy"): self._described(name) for name in names}

    def _described(self, member: str) -> Stored:
        if not member.endswith(".npy"):
            return Stored((), "file", "not an array but a file of another kind")
        shape, dtype = npy_header(self._archive, member)
        if dtype.hasobject:
            return Stored(shape, "object", "pickled Python objects, which are never executed")
        return Stored(shape, dtype.newbyteorder("=").name)

    def read(self, name: str) -> Tensor:
        """See :class:`Reader`."""
        with _reading(self.files[0], ".npz file"), self._archive.open(f"{name}.npy") as handle:
            require_memory(self.files[0], self._archive.getinfo(f"{name}.npy").file_size)
            return as_tensor(npy.read_array(handle, allow_pickle=False))

    def close(self) -> None:
        """See :class:`Reader`."""
        self._archive.close()


STATED = ("config.json", "adapter_config.json", "quantize_config.json", "quant_config.json")
"""Files beside weights that say how they are packed or what they are added to."""


def files_beside(path: Path) -> list[Path]:
    """What may be read where a file, a folder, or an index of shards is given as a network.

    Args:
        path: One of them.

    Returns:
        What stands beside the weights about them; of a folder or index also files of weights and
        indices.
    """
    folder = path if path.is_dir() else path.parent
    said = [folder / name for name in STATED]
    if folder != path and not path.name.endswith(INDEX):
        return said
    endings = (SAFETENSORS, ".bin", INDEX)
    return said + sorted(file for file in folder.glob("*.*") if file.name.endswith(endings))


def _folder(folder: Path) -> Reader:
    """The network in a folder: the shards that its index lists, or else all files of one kind."""
    for ending in (SAFETENSORS, ".bin"):
        indices = sorted(file for file in folder.glob(f"*{ending}{INDEX}") if file.is_file())
        files = sorted(path for path in folder.glob(f"*{ending}") if path.is_file())
        if len(indices) > 1:
            names = listed([index.name for index in indices])
            raise ProblemError(f"{folder} holds several indices ({names}); give one of them")
        if indices:
            return _indexed(indices[0])
        if ending == ".bin":  # optimisers, schedulers and arguments of the training too
            files = [path for path in files if path.name.startswith(_WEIGHT_FILES)]
        if files:
            _require_all_shards(folder, files)
            return Files(files)
    others = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in _KINDS)
    but = f" (but {listed(others)})" if others else ""
    raise ProblemError(
        f"the folder {folder} holds no .safetensors files and no .bin files of weights{but}; "
        "give a file"
    )


def _require_all_shards(folder: Path, files: list[Path]) -> None:
    """Shards without an index say in their names how many they are."""
    numbered = [match for path in files if (match := SHARD.search(path.name))]
    for total in {match[2] for match in numbered}:
        there = {int(match[1]) for match in numbered if match[2] == total}
        missing = sorted(set(range(1, int(total) + 1)) - there)
        if missing:
            raise ProblemError(
                f"{folder} lacks {len(missing)} of the {int(total)} shards that the names of its "
                f"files speak of: {listed([str(number) for number in missing])}; download the rest"
            )


def _indexed(index: Path) -> Reader:
    folder, again = index.parent, "download or save the folder again"
    kind = 'index of shards, JSON with a "weight_map" of tensor names to file names'
    with _reading(index, kind, again):
        places = {
            str(name): str(file)
            for name, file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
        }
    if not places:
        raise ProblemError(f"{index} lists no tensors; {again}")
    for name in places.values():
        if re.search(r"[/\\:\0]", name) or name in {"", ".", ".."}:
            raise ProblemError(
                f"{index} names the file {name!r}, which is none in its own folder; only files "
                "beside an index are read"
            )
    expected = {name: folder / file for name, file in places.items()}
    shards = sorted(set(expected.values()))
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        lacks = f"{folder} lacks {len(missing)} of the {len(shards)} shards that {index.name} lists"
        raise ProblemError(f"{lacks}: {listed(missing)}; download the rest")
    reader = Files(shards)
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
    dtype = str(value.dtype).removeprefix("torch.")
    shape = () if value.is_nested else tuple(value.shape)
    if value.is_nested or value.layout is not torch.strided:
        layout = str(value.layout).removeprefix("torch.")
        sparse = f"{layout}: sparse tensors aren't analysed; use to_dense()"
        nested = "a nested tensor, which has no shape; save its parts"
        return Stored(shape, dtype, nested if value.is_nested else sparse)
    if value.is_meta:
        return Stored(shape, dtype, "on the meta device, where tensors have no values")
    if value.is_quantized or not value.numel():
        return Stored(shape, dtype)
    # in which order the dimensions are named makes no other weight: W and its transpose
    steps = tuple(sorted(step for step in zip(shape, value.stride(), strict=True) if step[0] > 1))
    storage = place, str(value.device), value.data_ptr(), steps, dtype
    return Stored(shape, dtype, None, storage)


def _expanded(value: object) -> int:
    """Bytes of a tensor that repeats what is stored, once its numbers are written out; else 0."""
    if not isinstance(value, Tensor) or nn.parameter.is_lazy(value) or value.is_nested:
        return 0
    if value.layout is not torch.strided or value.is_meta:
        return 0
    needed = value.numel() * value.element_size()
    return needed if needed > value.untyped_storage().nbytes() else 0


def as_tensor(value: Any) -> Any:
    """Arrays that torch can hold as tensors; anything else as it is."""
    if isinstance(value, np.ndarray) and not np.ma.is_masked(value):
        with suppress(TypeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a read-only array; it is never written to
            return torch.from_numpy(np.asarray(value, value.dtype.newbyteorder("="), order="C"))
    return value
