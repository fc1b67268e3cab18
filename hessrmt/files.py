"""Files are written completely or not at all: the old one or the new one, whatever happens."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hessrmt.errors import ConfigError, StoreError, WriteError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


_DISK_FAILED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Errors of a run; others are those of a name that cannot be used."""


def require_new(path: Path, *, may_exist: bool, resumable: bool = True) -> None:
    """Refuse a name that is a folder's, or that of a file which is to stay.

    Args:
        path: The file.
        may_exist: Whether it is to be continued or replaced.
        resumable: Whether the command could continue it.

    Raises:
        StoreError: If it is taken.
    """
    if os.path.isdir(path):
        raise StoreError(f"{path} is a folder; --out takes the name of a file")
    if _is_special(path) or _is_of_the_system(path):
        raise StoreError(_special(path))
    if not may_exist and os.path.exists(path):
        raise StoreError(_exists(path, resumable))


def require_file(path: Path, option: str) -> None:
    """Refuse a file that cannot be written before minutes of work.

    Args:
        path: To be written.
        option: That names it.

    Raises:
        ConfigError: If it is a folder, a device or a pipe, or its folder is missing.
    """
    problem = ""
    if path.is_dir():
        problem = "is a folder"
    elif not path.absolute().parent.is_dir():
        problem = "lies in a folder that doesn't exist"
    elif _is_special(path) or _is_of_the_system(path):
        problem = "is a device or a pipe"
    if problem:
        raise ConfigError(f"{path} {problem}; {option} takes the name of a file")


def require_ordinary(path: Path) -> None:
    """Refuse to read a device or a pipe, which may never end or never begin.

    Args:
        path: To be read; nothing needs to be there.

    Raises:
        ConfigError: If it is one.
    """
    endless = os.path.realpath(path).startswith(_MADE_UP)  # some say that they are files
    if not path.is_dir() and (_is_special(path) or endless):
        raise ConfigError(f"{path} is a device or a pipe; give the name of a file")


def _is_special(path: Path) -> bool:
    """Whether something is there that is no file: replacing it would take it away from others."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def _is_of_the_system(path: Path) -> bool:
    """Whether a name, or one that it leads to as a link, lies where the system keeps devices."""
    # that of standard output may lead to a file, but is there for every program
    place = str(path)
    with suppress(OSError, ValueError):  # said when it is opened
        for _ in range(_LINKS):
            folder = os.path.realpath(os.path.dirname(place) or ".")
            if f"{folder}/".startswith(_SYSTEM) and not f"{folder}/".startswith("/dev/shm/"):
                return True
            place = os.path.join(folder, os.path.basename(place))
            if not os.path.islink(place):
                return False
            place = os.path.join(folder, os.readlink(place))
    return False


_MADE_UP = ("/proc/", "/sys/")
_SYSTEM = ("/dev/", *_MADE_UP)
_LINKS = 40
"""As many as Linux follows."""


def require_apart(written: Mapping[str, Path], read: Iterable[str | Path]) -> None:
    """Refuse to write onto what is read, by whatever name, or two results into one file.

    Args:
        written: Option to the file that it names.
        read: Files, some of which may not exist; words that are none don't matter.

    Raises:
        StoreError: If two of them are one file.
    """
    inputs = {_identity(path): path for path in read}
    taken: dict[Any, str] = {}
    for option, path in written.items():
        known = _identity(path)
        if known in inputs and known != _NOTHING:
            raise StoreError(f"{option} {path} is {inputs[known]}, which is read; name another")
        where = os.path.realpath(path) if known == _NOTHING else known
        if where in taken:
            raise StoreError(f"{taken[where]} and {option} both name {path}; name another")
        taken[where] = option


_NOTHING = (0, 0)


def _identity(path: str | Path) -> tuple[int, int]:
    """Device and number of a file, whichever link leads to it."""
    try:
        about = os.stat(path)
    except (OSError, ValueError):
        return _NOTHING
    return _NOTHING if stat.S_ISDIR(about.st_mode) else (about.st_dev, about.st_ino)


def _special(path: Path) -> str:
    return f"{path} is a device or a pipe; --out takes the name of a file"


def _exists(path: Path, resumable: bool = True) -> str:
    resume = "--resume continues it, " * resumable
    return f"{path} exists; {resume}--overwrite replaces it; or name another file"


def write_whole(
    path: Path, content: bytes | memoryview | str, *, replace: bool = True, follow: bool = True
) -> None:
    """Put a new file in a name's place: whatever happens, it holds all of the old or of the new.

    Args:
        path: The file.
        content: All of it.
        replace: Whether a file of that name may be replaced.
        follow: Whether a link stays one, and what it leads to is replaced.

    Raises:
        StoreError: If there is one that may not be.
        WriteError: If the disk refuses; an old file stays.
    """
    with new_file(path, replace=replace, follow=follow) as draft, draft.open("wb") as target:
        target.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def new_file(path: Path, *, replace: bool = True, follow: bool = True) -> Iterator[Path]:
    """A name beside a file, to write the new one under; it is put in place at the end.

    Args:
        path: The file.
        replace: Whether a file of that name may be replaced.
        follow: Whether a link stays one, and what it leads to is replaced.

    Yields:
        The name of the draft.

    Raises:
        StoreError: If there is one that may not be, or it is a name of the system's.
        WriteError: If the disk refuses; an old file stays.
    """
    if _is_of_the_system(path):
        raise StoreError(_special(path))
    named, linked = path, follow and path.is_symlink()
    path = Path(os.path.realpath(path)) if linked else path
    draft = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}.part")
    try:
        os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
        yield draft
        descriptor = os.open(draft, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if replace:
            os.replace(draft, path)
        else:
            _publish(draft, path)
    except FileExistsError as error:
        raise StoreError(_exists(named)) from error
    except OSError as error:
        fail_writing(named, error)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def fail_writing(path: Path, error: OSError) -> NoReturn:
    """Say that a name cannot be used, or that a disk failed.

    Args:
        path: The file or folder that was to be made.
        error: Of the system.

    Raises:
        WriteError: If the disk refused: the run failed.
        StoreError: If the name cannot be used.
    """
    if error.errno in _DISK_FAILED:
        old = "; what the file held before is untouched" * path.is_file()
        raise WriteError(f"writing {path} failed: {reason(error)}{old}") from error
    raise StoreError(
        f"cannot write {path}: {reason(error)}; give a name in a folder that exists and that you "
        "can write to"
    ) from error


def _publish(draft: Path, path: Path) -> None:
    """Give a finished draft its name without ever replacing another file."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(draft, path)


def reason(error: BaseException) -> str:
    """The short cause of a failed file operation.

    Returns:
        The system's words for its error number if it has one, else the message.
    """
    if isinstance(error, OSError) and error.errno and error.strerror:
        return os.strerror(error.errno)
    return str(error)
