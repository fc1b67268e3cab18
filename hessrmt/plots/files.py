"""Pictures as files: endings, folders, whole files or none."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl

from hessrmt.errors import ConfigError, DataError
from hessrmt.files import fail_writing, write_whole
from hessrmt.plots.style import Picture, relook

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matplotlib.figure import Figure

_DPI = 150
_TEXT_AS_TEXT: Any = {"svg.hashsalt": "hessrmt", "svg.fonttype": "none", "pdf.fonttype": 42}
_UNDATED = {"svg": {"Date": None}, "svgz": {"Date": None}, "pdf": {"CreationDate": None}}


class Drawn(NamedTuple):
    """One picture of :func:`draw_each`.

    Attributes:
        name: What it shows, e.g. ``"number-variance"``.
        path: Its file, or None if it could not be computed.
        reason: Why not; empty otherwise.
    """

    name: str
    path: Path | None
    reason: str = ""


def draw_each(
    pictures: Mapping[str, Callable[[], Figure]],
    folder: Path,
    ending: str = "png",
    look: str = "screen",
) -> list[Drawn]:
    """Draw pictures, one file for each; a file is complete or absent, and one that exists replaced.

    Args:
        pictures: Name of a file, without its ending, to what computes and draws it.
        folder: Where; made if it doesn't exist.
        ending: Of the files: png, pdf, svg or any other that matplotlib writes.
        look: One of :data:`hessrmt.plots.style.LOOKS`.

    Returns:
        For each picture its file, or the reason why it could not be computed.

    Raises:
        StoreError: If the folder cannot be made or written.
    """
    kind, drawn = checked_ending(ending), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail_writing(folder, error)
    for name, draw in pictures.items():
        path = folder / f"{name}.{kind}"
        try:
            picture = draw()
        except DataError as error:
            drawn.append(Drawn(name, None, str(error)))
        else:
            relook(picture, look)
            save(picture, path, follow=False)  # nobody has given this name
            drawn.append(Drawn(name, path))
    return drawn


def save(picture: Figure, path: Path, *, replace: bool = True, follow: bool = True) -> None:
    """Write a picture, completely or not at all; the same picture gives the same file.

    Args:
        picture: What to write.
        path: The file; its ending is the format.
        replace: Whether a file of that name may be replaced.
        follow: Whether a link stays one, and what it leads to is replaced.

    Raises:
        ConfigError: If matplotlib lacks a program that the format needs.
        StoreError: If the file cannot be written.
    """
    kind = checked_ending(path.suffix)
    content = io.BytesIO()
    options = {"dpi": _DPI, "bbox_inches": "tight", "metadata": _UNDATED.get(kind)}
    with mpl.rc_context(_TEXT_AS_TEXT):
        try:
            picture.savefig(content, format=kind, **options)
        except RuntimeError as error:  # a format that needs another program, as .pgf needs TeX
            raise ConfigError(f"matplotlib can't write .{kind} here: {error}") from error
    write_whole(path, content.getbuffer(), replace=replace, follow=follow)


def require_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made before minutes of work.

    Args:
        folder: For pictures.

    Raises:
        ConfigError: If it, or one that it is to lie in, is a file.
    """
    nearest = next(p for p in (folder, *folder.absolute().parents) if os.path.exists(p))
    if not os.path.isdir(nearest):
        raise ConfigError(f"{nearest} is no folder; --plot takes the name of a folder")


def checked_ending(ending: str) -> str:
    """The format of an ending, with or without its dot.

    Args:
        ending: E.g. ``".png"``.

    Returns:
        E.g. ``"png"``.

    Raises:
        ConfigError: If matplotlib doesn't know it.
    """
    kind = ending.removeprefix(".").lower()
    if kind not in Picture().canvas.get_supported_filetypes():
        raise ConfigError(f"no picture format {ending!r}; try png, pdf or svg")
    return kind
