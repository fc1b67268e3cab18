"""Checkpoints: read a state dict safely, put it into a model strictly, write files atomically."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hessrmt.errors import ProblemError, let_pass
from hessrmt.files import write_whole
from hessrmt.problems.adapters import Factor, low_rank
from hessrmt.problems.assembled import Assembled
from hessrmt.problems.plugins import is_plugin, sources
from hessrmt.problems.quantised import quantised
from hessrmt.problems.readers import AVERAGED, Reader, ValueT, listed, open_path, unwrap
from hessrmt.problems.readers import read as read  # noqa: PLC0414
from hessrmt.records import SOURCE

if TYPE_CHECKING:
    from pathlib import Path


def whole(reader: Reader, factor: Factor | None = None) -> Reader:
    """A container with the weights that its parts make.

    Args:
        reader: The container.
        factor: Of updates of low rank; by default as the files say.

    Returns:
        The same container if nothing is in parts.
    """
    if weights := list(quantised(reader)):
        kinds = Counter(weight.how for weight in weights if weight.make)
        notes = [f"{count} weights are dequantised: {how}" for how, count in kinds.items()]
        reader = Assembled(reader, weights, notes)
    if weights := list(low_rank(reader, factor)):
        unknown = sum(weight.make is not None and weight.factor is None for weight in weights)
        note = f"{unknown} LoRA updates are B A without the factor alpha/r, which isn't stated"
        notes = [f"{note}: exponents don't depend on it, norms do"] if unknown else []
        reader = Assembled(reader, weights, notes)
    return reader


@contextmanager
def _opened(path: Path) -> Iterator[Reader]:
    reader = whole(open_path(path))
    try:
        yield reader
    finally:
        reader.close()


def load_state(path: Path) -> dict[str, Tensor]:
    """State dict of a checkpoint, on the CPU, every value finite.

    Nothing stored in a file is executed: those of torch are read by
    ``torch.load(weights_only=True)``. Quantised weights are made whole where the files say how
    they were packed.

    Args:
        path: A ``.pt``, ``.pth``, ``.bin``, ``.ckpt``, ``.pth.tar``, ``.safetensors`` or ``.npz``
            file holding a state dict, or a dict with one under ``state_dict``, ``model`` and the
            like; a folder of shards, or the index of one.

    Returns:
        Entry name to tensor, without the prefixes of DataParallel, torch.compile or FSDP.

    Raises:
        ProblemError: If the file is missing, unreadable, refused or foreign, holds no tensors or
            only parts of them, or a tensor holds NaN or infinity.
    """
    with _opened(path) as reader:
        return _finite(reader, path)


def _finite(reader: Reader, path: Path) -> dict[str, Tensor]:
    state = {}
    for name, entry in reader.entries.items():
        if entry.part_of is not None:
            whole = reader.entries.get(entry.part_of)
            if whole is None or whole.part_of is not None:
                raise ProblemError(
                    f"{path} does not hold whole weights; {name!r}: {entry.unusable}"
                )
            continue
        if not hasattr(torch, entry.dtype):
            continue  # no tensor, e.g. text in an .npz file
        if entry.unusable is not None:
            raise ProblemError(f"{path} cannot be used: {name!r} is {entry.unusable}")
        state[name] = tensor = reader.read(name).clone()
        if not _is_number(tensor):
            continue
        wide = tensor if tensor.element_size() >= 4 else tensor.float()  # float8 has no isfinite
        if bad := wide.numel() - int(torch.isfinite(wide).sum()):
            raise ProblemError(
                f"{path} holds {bad} values that are NaN or infinite, of {tensor.numel()}, "
                f"in {name!r}; the training diverged or the file is damaged"
            )
    weights = getattr(reader, "weights", {})
    if any(weight.update for weight in weights.values()):
        raise ProblemError(
            f"{path} is an adapter: it holds LoRA updates of {len(weights)} weights, not a "
            "network; merge it into its base (PEFT: merge_and_unload) and give what that makes"
        )
    if not state:
        raise ProblemError(f"{path} holds no tensors; expected the weights of a network")
    state = unwrap(state)
    if any(name != AVERAGED for name in state):
        state.pop(AVERAGED, None)
    return state


def apply_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put a state dict into a model; every entry must match in name and shape.

    Weights that the model ties need be there only once. A prefix that all names of the state dict
    share, as that of a LightningModule around the model, may be missing in the model, as may the
    batch counters of BatchNorm, which old checkpoints lack, in the state dict.

    Args:
        model: The model; unchanged if the state does not fit.
        state: Entry name to tensor; cast to the model's dtype and device.

    Raises:
        ProblemError: If entries are missing, unexpected or of another shape, or differ where the
            model ties them.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    state = _named_alike(own, state)
    for names in _tied(own):
        there = [name for name in names if name in state]
        differing = [name for name in there[1:] if not _equal(state[name], state[there[0]])]
        if differing:
            raise ProblemError(
                f"{there[0]} and {listed(differing)} are one weight in the model "
                f"({type(model).__name__}), but differ in the checkpoint; give the model that was "
                "trained"
            )
        if there:
            state |= dict.fromkeys(names, state[there[0]])
    for name, value in own.items():
        if name not in state and name.endswith("num_batches_tracked"):
            state[name] = value
    found = {
        "missing from the checkpoint": [name for name in own if name not in state],
        "not in the model": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} where the model has {tuple(value.shape)}"
            for name, value in own.items()
            if name in state and state[name].shape != value.shape
        ],
        "complex where the model is real": [
            f"{name}, {state[name].dtype}"
            for name, value in own.items()
            if name in state and state[name].is_complex() and not value.is_complex()
        ],
        "of integers, as quantised weights are": [
            f"{name}, {state[name].dtype}"
            for name, value in own.items()
            if name in state and value.is_floating_point() and not _is_number(state[name])
        ],
    }
    faults = [f"{what}: {listed(names)}" for what, names in found.items() if names]
    if faults:
        raise ProblemError(
            f"the checkpoint does not fit the model ({type(model).__name__}): "
            f"{'; '.join(faults)}. Give the model that was trained"
        )
    others = {name: value for name, value in model.state_dict().items() if name not in own}
    try:
        model.load_state_dict({**others, **state}, strict=True)
    except RuntimeError as error:
        let_pass(error)
        raise ProblemError(f"the checkpoint does not fit the model: {error}") from error


def _named_alike(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under the model's names, where only what wraps either differs."""
    names = unwrap({name: name for name in own})
    for mine, theirs in ((names, state), (names, _inside(state)), (_inside(names), state)):
        if mine.keys() & theirs.keys():
            return {mine.get(name, name): value for name, value in theirs.items()}
    return dict(state)


def _inside(names: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """Names without the first part that all of them share, the name of a wrapper; else none."""
    # a number is no such name: it is a place among several layers
    first = next(iter(names), "").partition(".")[0]
    prefix = f"{first}."
    if not first.isidentifier() or not all(name.startswith(prefix) for name in names):
        return {}
    return {name.removeprefix(prefix): value for name, value in names.items()}


def _tied(own: Mapping[str, Tensor]) -> list[list[str]]:
    """Names in a model of the same numbers."""
    found: dict[object, list[str]] = {}
    for name, value in own.items():
        if value.numel() and not value.is_meta:
            place = value.device, value.data_ptr(), value.shape, value.stride()
            found.setdefault(place, []).append(name)
    return [names for names in found.values() if len(names) > 1]


def _is_number(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def load_into(model: nn.Module, path: Path) -> str:
    """Put the state dict of a checkpoint file into a model.

    Args:
        model: The model; unchanged on failure.
        path: Checkpoint, as for :func:`load_state`.

    Returns:
        Its :func:`sha256_of_all`.
    """
    with _opened(path) as reader:
        apply_state(model, _finite(reader, path))
        return sha256_of_all(reader.files)


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.
    """
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def source_digests(**specs: str) -> dict[str, str]:
    """What tells whether the code of a model or a loss is what it was.

    Args:
        specs: ``model`` and ``loss`` as settings name them, loaded.

    Returns:
        Of each ``file.py:name`` among them :func:`sha256_of_all` of its files, as
        ``model_source_sha256`` and so on.
    """
    return {
        f"{name}{SOURCE}": sha256_of_all(sources(spec))
        for name, spec in specs.items()
        if is_plugin(spec)
    }


def sha256_of_all(files: Sequence[Path]) -> str:
    """Hexadecimal sha256 of one file, or of what ``sha256sum`` prints of several.

    Args:
        files: At least one.

    Returns:
        64 hexadecimal digits.
    """
    if len(files) == 1:
        return sha256(files[0])
    lines = (f"{sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def save_atomic(obj: object, path: Path) -> None:
    """Write a checkpoint so that the file is always either the old one or the new one, complete.

    Args:
        obj: Tensors in containers of plain Python types.
        path: The file to write or replace.
    """
    buffer = io.BytesIO()  # so that the bytes do not depend on the file's name
    torch.save(obj, buffer)
    write_whole(path, buffer.getbuffer())
