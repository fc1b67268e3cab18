"""``hessrmt reproduce``: the experiments that come with the package, by name."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hessrmt.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from hessrmt.levels import LevelStatistics
    from hessrmt.levels.unfolding import Unfolded
    from hessrmt.records import Spectra

Observer = Callable[[str, int, int], None]
"""Progress: what is running, steps done and steps in all."""


@dataclass(frozen=True)
class Entry:
    """One spectrum file of an experiment, analysed.

    Attributes:
        name: Of the run, also of its file.
        model: Network.
        parameters: ``"untrained"`` or ``"trained"``.
        split: Of the data.
        batch: Samples in a batch, or ``"all"``.
        precision: ``"float64"`` or ``"float32"``.
        reduced: Whether exact null directions were removed before diagonalising.
        spectra: The spectra.
        statistics: Cutoff (``paper``, ``certified``) to level statistics.
        unfolded: Cutoff to unfolded levels.
    """

    name: str
    model: str
    parameters: str
    split: str
    batch: int | str
    precision: str
    reduced: bool
    spectra: Spectra = field(repr=False)
    statistics: Mapping[str, LevelStatistics] = field(repr=False)
    unfolded: Mapping[str, Unfolded] = field(repr=False)


def names() -> dict[str, str]:
    """Experiments that come with the package.

    Returns:
        Name to title.
    """
    texts = {file.stem: file.read_text("utf-8") for file in sorted(folder().glob("*.toml"))}
    settings = {name: tomllib.loads(text) for name, text in texts.items()}
    return {name: item["title"] for name, item in settings.items() if "experiment" in item}


def settings_file(name: str) -> Path:
    """Settings of an experiment.

    Args:
        name: One of :func:`names`, or the path of a TOML file like theirs.

    Returns:
        The file.

    Raises:
        ConfigError: If there is none.
    """
    for file in (folder() / f"{name}.toml", Path(name)):
        if file.suffix == ".toml" and file.is_file():
            return file
    raise ConfigError(
        f"there is no experiment {name!r}; known are {', '.join(names())}, or give a TOML file"
    )


def folder() -> Path:
    """Folder of the settings files: in the wheel, or beside the package in a source tree.

    Returns:
        An existing folder.

    Raises:
        ConfigError: If the installation lacks it.
    """
    package = Path(str(resources.files("hessrmt")))
    for found in (package / "configs", package.parent / "configs"):
        if (found / "hessian-spacings.toml").is_file():
            return found
    raise ConfigError("the settings files (configs/) are missing; reinstall hessrmt")


def preset_of(settings: Any, preset: str) -> Any:
    """One size of an experiment.

    Args:
        settings: Of the experiment.
        preset: Name of the size.

    Returns:
        Its settings.

    Raises:
        ConfigError: If there is none of that name.
    """
    if preset not in settings.presets:
        raise ConfigError(
            f"{settings.experiment} has no preset {preset!r}; it has {', '.join(settings.presets)}"
        )
    return settings.presets[preset]


def make_folders(out: Path, *names: str) -> None:
    """Make the folders of an experiment where they are not there yet.

    Args:
        out: Of the experiment.
        names: Of folders in it.

    Raises:
        StoreError: If one cannot be made.
    """
    for name in names:
        try:
            (out / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make {out / name}: {error.strerror or error}") from error


def table_in_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A table.

    Args:
        rows: Heading to cell; all have the same headings.

    Returns:
        Markdown.
    """
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def silent(phase: str, done: int, total: int) -> None:
    """An observer that reports nothing."""
