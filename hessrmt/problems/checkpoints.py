"""Checkpoints: read a state dict safely, put it into a model strictly, write files atomically."""

from __future__ import annotations

import errno
import hashlib
import io
import pickle
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hessrmt.errors import ProblemError
from hessrmt.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ValueT = TypeVar("ValueT")

TORCH_SUFFIXES = (".pt", ".pth")
SAFETENSORS_SUFFIX = ".safetensors"
NESTED_UNDER = ("state_dict", "model_state_dict", "model")
"""Keys under which programs keep a state dict inside a checkpoint."""

_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and torch.compile prefix every name
_LISTED = 8


def load_state(path: Path) -> dict[str, Tensor]:
    """State dict of a checkpoint file, on the CPU, every value finite.

    Nothing stored in the file is executed: ``.pt`` and ``.pth`` files are read by
    ``torch.load(weights_only=True)``.

    Args:
        path: ``.pt``, ``.pth`` or ``.safetensors`` file holding a state dict, or a dict with one
            under ``state_dict``, ``model_state_dict`` or ``model``.

    Returns:
        Entry name to tensor, without the prefix of DataParallel or torch.compile.

    Raises:
        ProblemError: If the file is missing, unreadable, refused or foreign, holds no tensors, or
            a tensor holds NaN or infinity.
    """
    state = unwrap(tensors(read(path), path))
    for name, tensor in state.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        wide = tensor if tensor.element_size() >= 4 else tensor.float()  # float8 has no isfinite
        if bad := wide.numel() - int(torch.isfinite(wide).sum()):
            raise ProblemError(
                f"{path} holds {bad} values that are NaN or infinite, of {tensor.numel()}, "
                f"in {name!r}; the training diverged or the file is damaged"
            )
    return state


def read(path: Path, *, mapped: bool = False) -> Any:
    """Content of a checkpoint file as it was saved, tensors on the CPU; executes nothing in it.

    Args:
        path: ``.pt``, ``.pth`` or ``.safetensors`` file.
        mapped: Whether tensors of a ``.pt`` or ``.pth`` file stay in the file until their values
            are used; torch's older format doesn't allow that.

    Returns:
        The saved object: tensors in containers of plain Python types.

    Raises:
        ProblemError: If the file is missing, unreadable, refused or foreign.
    """
    suffix = path.suffix.lower()
    if suffix not in {*TORCH_SUFFIXES, SAFETENSORS_SUFFIX}:
        raise ProblemError(
            f"cannot tell what kind of checkpoint {path} is: "
            f"expected a name ending in .pt, .pth or .safetensors, got {path.suffix or 'none'!r}"
        )
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ProblemError(f"the checkpoint {path} {what}; expected a file holding a state dict")
    try:
        if suffix == SAFETENSORS_SUFFIX:
            return load_file(path, device="cpu")
        with warnings.catch_warnings():  # torch's remarks on foreign files; ours are errors
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a foreign file makes torch.load raise almost anything
        raise ProblemError(_why_unreadable(path, error)) from error


def apply_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put a state dict into a model; every entry must match in name and shape.

    Args:
        model: The model; unchanged if the state does not fit.
        state: Entry name to tensor; cast to the model's dtype and device.

    Raises:
        ProblemError: If entries are missing, unexpected or of another shape.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    found = {
        "missing from the checkpoint": [name for name in own if name not in state],
        "not in the model": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} where the model has {tuple(value.shape)}"
            for name, value in own.items()
            if name in state and state[name].shape != value.shape
        ],
    }
    faults = [f"{what}: {listed(names)}" for what, names in found.items() if names]
    if faults:
        raise ProblemError(
            f"the checkpoint does not fit the model ({type(model).__name__}): "
            f"{'; '.join(faults)}. Give the model that was trained"
        )
    try:
        model.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise ProblemError(f"the checkpoint does not fit the model: {error}") from error


def load_into(model: nn.Module, path: Path) -> str:
    """Put the state dict of a checkpoint file into a model.

    Args:
        model: The model; unchanged on failure.
        path: Checkpoint file, as for :func:`load_state`.

    Returns:
        The file's sha256, hexadecimal.
    """
    apply_state(model, load_state(path))
    return sha256(path)


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.
    """
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def save_atomic(obj: object, path: Path) -> None:
    """Write a checkpoint so that the file is always either the old one or the new one, complete.

    Args:
        obj: Tensors in containers of plain Python types.
        path: The file to write or replace.
    """
    buffer = io.BytesIO()  # so that the bytes do not depend on the file's name
    torch.save(obj, buffer)
    write_whole(path, buffer.getbuffer())


def innermost(content: Any) -> Any:
    """The state dict inside a checkpoint, by :data:`NESTED_UNDER`; else the whole of it.

    Args:
        content: The saved object.

    Returns:
        A mapping, if there is one.
    """
    inner = map(content.get, NESTED_UNDER) if isinstance(content, Mapping) else ()
    return next((state for state in inner if isinstance(state, Mapping)), content)


def tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what :func:`read` found.

    Args:
        content: The saved object.
        path: The file, for messages.

    Returns:
        Entry name to tensor, as named in the file.

    Raises:
        ProblemError: If there is none, or it holds no tensors.
    """
    content = innermost(content)
    if not isinstance(content, Mapping):
        raise ProblemError(
            f"{path} holds no state dict but a {type(content).__name__}; "
            "save one with torch.save(model.state_dict(), path)"
        )
    found = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not found:
        raise ProblemError(
            f"{path} holds no tensors (its keys: {listed(map(str, content)) or 'none'}); expected "
            f"a state dict, at the top or under {', '.join(map(repr, NESTED_UNDER))}"
        )
    return found


def unwrap(state: dict[str, ValueT]) -> dict[str, ValueT]:
    """Entry names without the prefix of DataParallel or torch.compile.

    Args:
        state: Entry name to anything.

    Returns:
        The same values, renamed where every name has the prefix.
    """
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, safetensors.SafetensorError):
        return f"{path} is not a complete safetensors file ({error}); copy or save it again"
    # torch raises EINVAL for some files that were cut short
    if isinstance(error, OSError) and error.errno != errno.EINVAL:
        return f"cannot read the checkpoint {path}: {error.strerror or error}"
    with path.open("rb") as handle:
        start = handle.read(4)
    foreign = ""
    if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
        foreign = f"holds pickled Python objects ({named[1]}), not only tensors"
    elif "TorchScript" in str(error):
        foreign = "is a TorchScript archive, not a state dict"
    elif start[:1] == b"\x80" and isinstance(error, pickle.UnpicklingError):
        foreign = "is a pickle that was not written by torch.save"
    if foreign:
        return (
            f"{path} {foreign}; nothing in it was executed. In the program that made it, save "
            "only its tensors: torch.save(model.state_dict(), path)"
        )
    if start == b"PK\x03\x04":
        return (
            f"{path} is cut short or damaged, or is a zip file of another program; "
            "copy or save it again"
        )
    return (
        f"{path} is not a PyTorch checkpoint, or is damaged ({path.stat().st_size} bytes); "
        "expected a file written by torch.save(model.state_dict(), path)"
    )


def listed(names: Iterable[str]) -> str:
    """The first of some names, and how many more there are."""
    names = list(names)
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
