"""The user's own code: objects given as ``file.py:name``, and what goes wrong in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from hessrmt.errors import HessrmtError, ProblemError


@contextmanager
def explained(
    kinds: Any, why: str, passing: Any = (torch.OutOfMemoryError, HessrmtError)
) -> Iterator[None]:
    """Errors of torch or of the user's code as errors of ours.

    Args:
        kinds: Of errors.
        why: What could not be done.
        passing: Kinds of errors that stay as they are.

    Yields:
        None.

    Raises:
        ProblemError: In place of an error of these kinds.
    """
    try:
        yield
    except passing:
        raise
    except kinds as error:
        said = (str(error).strip().splitlines() or [""])[0]
        raise ProblemError(f"{why}: {type(error).__name__}: {said}") from error


def is_plugin(spec: str) -> bool:
    """Whether a specification has the form ``file.py:name``.

    Returns:
        True if the part before the last colon ends in ``.py``.
    """
    return spec.rpartition(":")[0].endswith(".py")


def load_object(spec: str) -> Any:
    """Object named by ``file.py:name``; the file is executed as a module.

    Args:
        spec: Path of a Python file, a colon, and a name defined in it.

    Returns:
        The object.

    Raises:
        ProblemError: If the file is missing, fails to run, or lacks the name.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file).expanduser()
    if not is_plugin(spec) or not name:
        raise ProblemError(f"{spec!r} is not of the form file.py:name")
    if not path.is_file():
        raise ProblemError(f"{spec!r}: there is no file {file}")
    module_name = f"_hessrmt_user_{path.stem}"
    loader = SourceFileLoader(module_name, str(path))
    module = sys.modules[module_name] = ModuleType(module_name)
    module.__file__ = str(path)
    with explained(Exception, f"{spec!r}: running {file} failed", ()):
        loader.exec_module(module)
    if not hasattr(module, name):
        public = sorted(n for n in vars(module) if not n.startswith("_"))
        raise ProblemError(f"{spec!r}: {file} defines no {name!r}; it has {', '.join(public)}")
    return getattr(module, name)
