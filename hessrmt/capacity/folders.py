"""Folders of ``.safetensors`` files in Hugging Face's layout."""

from __future__ import annotations

import json
from pathlib import Path

from hessrmt.capacity.readers import SafetensorsReader
from hessrmt.errors import ProblemError

_INDEX = "*.safetensors.index.json"


def read_folder(folder: Path) -> SafetensorsReader:
    """The network in a folder: the shards that its index lists, or else all safetensors files.

    Args:
        folder: With ``*.safetensors`` and, if there are several, ``*.safetensors.index.json``.

    Returns:
        A reader over all files.

    Raises:
        ProblemError: If there are no weights, several indices, the index is damaged, or a shard
            or tensor that it lists is missing.
    """
    indices = sorted(folder.glob(_INDEX))
    if len(indices) > 1:
        raise ProblemError(
            f"{folder} holds several indices ({', '.join(i.name for i in indices)}); put each "
            "network into a folder of its own"
        )
    if indices:
        return _indexed(indices[0])
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ProblemError(
            f"the folder {folder} holds no .safetensors files{_instead(folder)}; give the folder "
            "of a network's weights, or a single file"
        )
    return SafetensorsReader(files)


def _indexed(index: Path) -> SafetensorsReader:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        expected = {str(name): index.parent / file for name, file in places.items()}
    except OSError as error:
        raise ProblemError(f"cannot read {index}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProblemError(
            f"{index} is not an index of shards ({type(error).__name__}: {error}); expected JSON "
            'with a "weight_map" of tensor names to file names; download or save the folder again'
        ) from error
    if not expected:
        raise ProblemError(f"{index} lists no tensors; download or save the folder again")
    shards = sorted(set(expected.values()))
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ProblemError(
            f"{index.parent} lacks {len(missing)} of the {len(shards)} shards that {index.name} "
            f"lists: {', '.join(missing[:5])}{', ...' if missing[5:] else ''}; download the rest"
        )
    return SafetensorsReader(shards, expected)


def _instead(folder: Path) -> str:
    others = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in {".pt", ".pth", ".npz", ".bin", ".ckpt"}
    )
    return f" (but {', '.join(others[:5])}{', ...' if others[5:] else ''})" if others else ""
