"""The user's own code: objects given as ``file.py:name``, and what goes wrong in it.

A file may import its neighbours, as it could if Python ran it from its own folder. What it has
imported from there is kept apart from what files of other folders have under the same names:
between two pieces of user's code neither ``sys.path`` nor ``sys.modules`` knows of any of it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import random
import signal
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from hessrmt.errors import HessrmtError, ProblemError, let_pass

RAISED = (Exception, SystemExit)
"""What user's code ends with where it fails; a program of theirs may end the process."""

_neighbours: dict[str, dict[str, tuple[ModuleType, int]]] = {}
"""Folder to the modules that were imported from it, by name, and when their files were written."""


_MEANT = {
    "expected target dtype": "labels of classes must be integers",
    "expected scalar type Long": "labels of classes must be integers",
    "index out of range in self": "an embedding has no such row: a token beyond the vocabulary, or "
    "a text longer than the model's positions",
}
"""What errors of torch say to those who haven't met them."""

_CHANGED: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, torch.set_default_device),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (np.geterr, lambda known: np.seterr(**known)),
)
"""What user's code may change for the whole process: how it is asked for and put back."""

_DRAWN: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (torch.get_rng_state, torch.set_rng_state),
)
"""The same of random numbers, whose states aren't compared."""


@contextmanager
def same_folder() -> Iterator[None]:
    """While user's code is executed: the working folder, which names of files count from, stays.

    Yields:
        None.
    """
    # its name may be another's meanwhile; not every system can go back to a folder unread
    folder = os.open(".", getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)
    try:
        yield
    finally:
        os.fchdir(folder)
        os.close(folder)


@contextmanager
def contained() -> Iterator[None]:
    """While user's code is executed: what it changes for the whole process is put back.

    What it prints goes to standard error: standard output is for results.

    Yields:
        None.
    """
    changed = [(get, put, get()) for get, put in _CHANGED]
    drawn = [(put, get()) for get, put in _DRAWN]
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        with same_folder(), redirect_stdout(sys.stderr), warnings.catch_warnings():
            yield
    finally:
        for get, put, before in changed:
            if get() != before:
                put(before)
        for put, before in drawn:
            put(before)
        for number, before in handlers.items():
            # None: not of Python. Another thread can neither have changed them nor put them back
            if before is not None and signal.getsignal(number) is not before:
                signal.signal(number, before)


@contextmanager
def explained(kinds: Any, why: str, passing: Any = HessrmtError) -> Iterator[None]:
    """Errors of torch or of the user's code as errors of ours.

    Args:
        kinds: Of errors.
        why: What could not be done.
        passing: Kinds of errors that stay as they are, beside a lack of memory.

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
        let_pass(error)
        said = (str(error).strip().splitlines() or [""])[0]
        meant = "".join(f"; {words}" for part, words in _MEANT.items() if part in said)
        raise ProblemError(f"{why}: {type(error).__name__}: {said}{meant}") from error


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
        The object. Load and call it within :func:`contained`, call it within
        :func:`among_neighbours`.

    Raises:
        ProblemError: If the file is missing, fails to run, or lacks the name.
    """
    file, _, name = spec.rpartition(":")
    if not is_plugin(spec) or not name:
        raise ProblemError(f"{spec!r} is not of the form file.py:name")
    path = _path(spec)
    if not path.is_file():
        raise ProblemError(f"{spec!r}: there is no file {file}")
    unique = hashlib.sha256(str(path.parent).encode()).hexdigest()[:8]
    module_name = f"_hessrmt_user_{path.stem}_{unique}"
    loader = SourceFileLoader(module_name, str(path))
    module = sys.modules[module_name] = ModuleType(module_name)
    module.__file__, module.__package__ = str(path), _package(path)[1]
    with explained(RAISED, f"{spec!r}: running {file} failed", ()), among_neighbours(spec):
        loader.exec_module(module)
    if not hasattr(module, name):
        public = sorted(n for n in vars(module) if not n.startswith("_"))
        raise ProblemError(f"{spec!r}: {file} defines no {name!r}; it has {', '.join(public)}")
    return getattr(module, name)


@contextmanager
def among_neighbours(spec: str) -> Iterator[None]:
    """While a user's file or an object of it runs: what stands beside the file can be imported.

    Args:
        spec: ``file.py:name``.

    Yields:
        None.
    """
    path = _path(spec)
    folders = list(dict.fromkeys(map(str, (path.parent, _package(path)[0]))))
    kept = _neighbours.setdefault(folders[0], {})
    if any(_written(module) != when for module, when in kept.values()):
        kept.clear()  # edited since
    foreign = _foreign(folders)
    hidden = {
        name: module
        for name, module in list(sys.modules.items())
        if name in kept or name.partition(".")[0] in foreign
    }
    before = list(sys.path)
    for name in hidden:
        del sys.modules[name]
    sys.path[:0] = folders
    sys.modules.update({name: module for name, (module, _) in kept.items()})
    importlib.invalidate_caches()
    known = dict(sys.modules)
    try:
        yield
    finally:
        places = [*folders, *(entry for entry in sys.path if entry not in before)]
        found = [name for name, module in sys.modules.items() if known.get(name) is not module]
        mine = {
            first
            for first in {name.partition(".")[0] for name in found}
            if not first.startswith("_hessrmt_") and _lies_in(first, places)
        }
        sys.path[:] = before
        kept |= {
            name: (sys.modules[name], _written(sys.modules[name]))
            for name in found
            if name.partition(".")[0] in mine
        }
        for name in kept:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


def sources(spec: str) -> list[Path]:
    """The files that an object of a user's file was made from.

    Args:
        spec: ``file.py:name``, loaded.

    Returns:
        The file, and those beside it that it imports, in the order of their names.
    """
    path = _path(spec)
    kept = _neighbours.get(str(path.parent), {})
    found, waiting = {path}, [(path, _package(path)[1])]
    while waiting:
        file, package = waiting.pop()
        for name in _imported(file, package) & kept.keys():
            module = kept[name][0]
            if module.__file__ and Path(module.__file__) not in found:
                found.add(Path(module.__file__))
                waiting.append((Path(module.__file__), module.__package__ or ""))
    return [path, *sorted(found - {path})]


def neighbours(spec: str) -> list[Path]:
    """The files that a user's file may import from beside it, without running it.

    Args:
        spec: ``file.py:name``.

    Returns:
        Python files that it names, and those that they name.
    """
    path = _path(spec)
    root, package = _package(path)
    found, waiting = dict.fromkeys([path]), [(path, package)]
    while waiting:
        file, package = waiting.pop()
        with suppress(OSError, SyntaxError, ValueError, RecursionError):  # said when it is run
            places = [
                (folder.joinpath(*name.split(".")), name)
                for name in sorted(_imported(file, package))
                for folder in dict.fromkeys((path.parent, root))
            ]
            for place, name in places:
                inside = place / "__init__.py", name
                beside = place.with_name(f"{place.name}.py"), name.rpartition(".")[0]
                new = [x for x in (inside, beside) if x[0].is_file() and x[0] not in found]
                found |= dict.fromkeys(file for file, _ in new)
                waiting += new
    return list(found)[1:]


def _imported(file: Path, package: str) -> set[str]:
    """Names of modules that a file may import."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())) if file.suffix == ".py" else ():
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join(
                [*(parts if node.level else []), *([node.module] if node.module else [])]
            )
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found | {name.rpartition(".")[0] for name in found}


def _path(spec: str) -> Path:
    return Path(spec.rpartition(":")[0]).expanduser().absolute()


def _foreign(folders: list[str]) -> set[str]:
    """Names in some folders that modules from elsewhere have, other than installed ones."""
    here = {path.stem for folder in folders for path in Path(folder).iterdir()}
    names = {name for name in sys.modules if "." not in name} & here
    return {
        name
        for name in names - set(sys.stdlib_module_names)
        if not _lies_in(name, folders) and not _installed(sys.modules[name])
    }


def _installed(module: ModuleType) -> bool:
    places = sysconfig.get_paths()
    file = getattr(module, "__file__", None) or ""
    return any(file.startswith(places[kind]) for kind in ("purelib", "platlib", "stdlib"))


def _package(path: Path) -> tuple[Path, str]:
    """The folder that the package of a file lies in, and its name; empty if it is in none."""
    folder, names = path.parent, []
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        names.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(names)


def _lies_in(name: str, folders: list[str]) -> bool:
    """Whether a module of that name was imported from one of some folders."""
    module, found = sys.modules.get(name), PathFinder.find_spec(name, folders)
    spec = getattr(module, "__spec__", None)
    if spec is None or found is None:
        return False
    if found.origin is not None:
        return spec.origin == found.origin
    places = set(found.submodule_search_locations or ())
    return bool(places & set(spec.submodule_search_locations or ()))


def _written(module: ModuleType) -> int:
    file = getattr(module, "__file__", None)
    try:
        return Path(file).stat().st_mtime_ns if file else 0
    except OSError:
        return 0
