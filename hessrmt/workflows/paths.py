"""Settings as workers on a shared file system get them: with absolute paths."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from hessrmt.problems import data
from hessrmt.problems.plugins import is_plugin

if TYPE_CHECKING:
    from pathlib import Path

    from hessrmt.config import Family, TrainConfig

SettingsT = TypeVar("SettingsT", "Family", "TrainConfig")


def absolute(settings: SettingsT, folder: Path | None) -> tuple[SettingsT, Path | None]:
    """The same model and data, wherever a process is started.

    Args:
        settings: With ``model`` and ``data``.
        folder: Searched first for data sets.

    Returns:
        Settings whose files have absolute paths, and the folder in which a data set of the registry
        was found.
    """
    paths = {}
    if is_plugin(settings.model):
        paths["model"] = os.path.abspath(os.path.expanduser(settings.model))
    if settings.data in data.NAMES:
        folder = data.locate(settings.data, folder)
    else:
        paths["data"] = os.path.abspath(os.path.expanduser(settings.data))
    return settings.model_copy(update=paths), folder.absolute() if folder else None
