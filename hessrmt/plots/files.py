"""All pictures of one set of unfolded levels, as files in a folder."""

from __future__ import annotations

import io
import os
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib as mpl

from hessrmt.errors import ConfigError, LevelsError, StoreError
from hessrmt.plots import longrange, style
from hessrmt.plots.density import density_per_decade, spectral_density
from hessrmt.plots.picture import Picture
from hessrmt.plots.ratios import ratio_histogram
from hessrmt.plots.spacings import spacing_histogram
from hessrmt.plots.staircase import staircase

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hessrmt.levels.unfolding import Unfolded

_DPI = 150
_UNDATED = {
    "svg": {"Date": None},
    "svgz": {"Date": None},
    "pdf": {"CreationDate": None},
}


class Drawn(NamedTuple):
    """One picture of :func:`draw_all`.

    Attributes:
        name: What it shows, e.g. ``"number-variance"``.
        path: Its file, or None if it could not be computed.
        reason: Why not; empty otherwise.
    """

    name: str
    path: Path | None
    reason: str = ""


def draw_all(
    unfolded: Unfolded,
    folder: Path,
    ending: str = "png",
    title: str = "",
    *,
    surrogates: int = 0,
    seed: int = 0,
) -> list[Drawn]:
    """Draw everything there is to see of some levels, one file for each picture.

    The files are ``spacings``, ``ratios``, ``ratios-unfolded`` (r up to 10), ``density``,
    ``density-per-decade``, ``staircase`` (of the first spectrum that was unfolded),
    ``number-variance``, ``rigidity`` and ``form-factor``.

    Args:
        unfolded: The unfolded levels.
        folder: Where; made if it doesn't exist.
        ending: Of the files: png, pdf, svg or any other that matplotlib writes.
        title: Above every picture.
        surrogates: As for :func:`hessrmt.plots.spacings.spacing_histogram`.
        seed: Of the surrogates.

    Returns:
        For each picture its file, or the reason why there is none. A file is complete or absent;
        one that exists is replaced.

    Raises:
        ConfigError: If matplotlib doesn't know the ending.
        StoreError: If the folder cannot be made or written.
    """
    kind = checked_ending(ending)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    return draw_each(_pictures(unfolded, title, surrogates, seed), folder, kind)


def draw_each(
    pictures: Mapping[str, Callable[[], Picture]], folder: Path, kind: str
) -> list[Drawn]:
    """Draw pictures into an existing folder, each complete or absent.

    Args:
        pictures: Name of a file, without its ending, to what draws it.
        folder: Where.
        kind: Ending of the files.

    Returns:
        For each picture its file, or the reason why it could not be computed.
    """
    drawn = []
    for name, draw in pictures.items():
        try:
            picture = draw()
        except LevelsError as error:
            drawn.append(Drawn(name, None, str(error)))
            continue
        path = folder / f"{name}.{kind}"
        save(picture, path)
        drawn.append(Drawn(name, path))
    return drawn


def save(picture: Picture, path: Path) -> None:
    """Write a picture, completely or not at all; the same picture gives the same file.

    Args:
        picture: What to write.
        path: The file; its ending is the format.

    Raises:
        ConfigError: If matplotlib doesn't know the ending.
        StoreError: If the file cannot be written.
    """
    kind = checked_ending(path.suffix)
    content = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "hessrmt"}):
        picture.savefig(
            content, format=kind, dpi=_DPI, bbox_inches="tight", metadata=_UNDATED.get(kind)
        )
    draft = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}.part")
    try:
        draft.write_bytes(content.getbuffer())
        os.replace(draft, path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            draft.unlink()


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
    known = Picture().canvas.get_supported_filetypes()
    if kind not in known:
        raise ConfigError(f"no picture format {ending!r}; try png, pdf or svg")
    return kind


def _pictures(
    unfolded: Unfolded, title: str, surrogates: int, seed: int
) -> dict[str, Callable[[], Picture]]:
    selection = unfolded.selection
    spectra = len(selection.levels)
    levels = {style.of_spectra(spectra): selection.levels}
    first = next((i for i, row in enumerate(unfolded.levels) if row is not None), 0)
    return {
        "spacings": partial(spacing_histogram, unfolded, title, surrogates=surrogates, seed=seed),
        "ratios": partial(ratio_histogram, selection, title=title),
        "ratios-unfolded": partial(ratio_histogram, selection, folded=False, title=title),
        "density": partial(spectral_density, levels, title),
        "density-per-decade": partial(density_per_decade, levels, title),
        "staircase": partial(staircase, unfolded, first, title),
        "number-variance": partial(longrange.number_variance, unfolded, title=title),
        "rigidity": partial(longrange.rigidity, unfolded, title=title),
        "form-factor": partial(longrange.form_factor, unfolded, title=title),
    }
