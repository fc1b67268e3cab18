"""Published experiments, each from nothing to a table, figures and sentences: one file each.

Here stands which there are, and where their settings are.
"""

from __future__ import annotations

import tomllib
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hessrmt.config import Settings, load_settings
from hessrmt.errors import ConfigError

if TYPE_CHECKING:
    from hessrmt.experiments.experiment import Experiment

EXPERIMENTS = {
    "hessian-spacings": "hessrmt.experiments.spacings:Spacings",
    "controls": "hessrmt.experiments.controls:Controls",
    "gp-loss-model": "hessrmt.experiments.loss_model:LossModel",
    "iterate-averaging": "hessrmt.experiments.iterate_averaging:IterateAveraging",
    "averaging-theory": "hessrmt.experiments.averaging_theory:AveragingTheory",
    "training-budget": "hessrmt.experiments.training_budget:TrainingBudget",
    "compression": "hessrmt.experiments.compression:Compression",
    "puzzles": "hessrmt.experiments.puzzles:Puzzles",
    "approximation": "hessrmt.experiments.approximation:Approximation",
    "flow": "hessrmt.experiments.flow:GradientFlows",
    "stability": "hessrmt.experiments.stability:Stability",
}
"""Word after ``experiment =`` in a settings file to the class of the experiment."""


def names() -> dict[str, str]:
    """Experiments that come with the package.

    Returns:
        Name to title.
    """
    texts = {file.stem: file.read_text("utf-8") for file in sorted(_folder().glob("*.toml"))}
    settings = {name: tomllib.loads(text) for name, text in texts.items()}
    return {name: item["title"] for name, item in settings.items() if "experiment" in item}


def settings_file(name: str) -> Path:
    """Settings of an experiment.

    Args:
        name: One that comes with the package, or a TOML file.

    Returns:
        The file.

    Raises:
        ConfigError: If there is none.
    """
    for file in (_folder() / f"{name}.toml", Path(name)):
        if file.suffix == ".toml" and file.is_file():
            return file
    raise ConfigError(
        f"there is no experiment {name!r}; known are {', '.join(names())}, or give a TOML file"
    )


def load(file: Path) -> tuple[Experiment[Any, Any, Any], Any]:
    """The experiment that a settings file is for.

    Args:
        file: A TOML file with a line ``experiment = "..."``.

    Returns:
        The experiment and its settings.

    Raises:
        ConfigError: If the file can't be read or is for no known experiment.
    """
    word = load_settings(_Any, file).experiment
    if word not in EXPERIMENTS:
        raise ConfigError(
            f"experiment: {file} is for {word!r}; known are {', '.join(sorted(EXPERIMENTS))}"
        )
    module, _, name = EXPERIMENTS[word].partition(":")
    found = getattr(import_module(module), name)()
    return found, load_settings(found.settings, file)


class _Any(Settings, extra="ignore"):
    """The one thing that the settings files of all experiments share."""

    experiment: str


def _folder() -> Path:
    """Folder of the settings files: in the wheel, or beside the package in a source tree."""
    package = Path(str(resources.files("hessrmt")))
    for found in (package / "configs", package.parent / "configs"):
        if (found / "hessian-spacings.toml").is_file():
            return found
    raise ConfigError("the settings files (configs/) are missing; reinstall hessrmt")
