"""The experiments that ``hessrmt reproduce`` knows: for each its settings, conductor and pictures.

A new experiment is one line in :data:`EXPERIMENTS`: the name of its settings class in
:mod:`hessrmt.config`, a module in ``hessrmt/workflows`` that is a :class:`Conductor`, and a
function that draws its figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from hessrmt.plots.files import Drawn

Draw = Callable[[Any, Sequence[Any], Path, str], "list[Drawn]"]
"""Settings, entries, an existing folder and the ending of the files to the figures."""


class Conductor(Protocol):
    """What a module of an experiment has; its entries are its own, each with a ``name``.

    It may also have ``fits(entries)``, further results as plain values for ``--json``.
    """

    SHOWN: Mapping[str, str]
    """Columns for the terminal, and their headings there."""

    def run(
        self,
        settings: Any,
        preset: str,
        out: Path,
        *,
        folder: Path | None = None,
        observer: Callable[[str, int, int], None] | None = None,
    ) -> list[Any]:
        """Do what is not done yet, and analyse all of it."""
        ...

    def table(self, entries: list[Any]) -> list[dict[str, Any]]:
        """Rows of the results table as plain values."""
        ...

    def columns(self, entry: Any) -> dict[str, str]:
        """One row for people, heading to cell."""
        ...

    def markdown(self, entries: list[Any]) -> str:
        """The results table for people."""
        ...

    def sentences(self, entries: list[Any]) -> dict[str, str]:
        """What was found, by the name of the entry it is about."""
        ...


class Experiment(NamedTuple):
    """One experiment.

    Attributes:
        settings: Name of its class in :mod:`hessrmt.config`.
        module: Name of its conductor.
        draw: Draws its figures.
    """

    settings: str
    module: str
    draw: Draw

    @property
    def conductor(self) -> Conductor:
        """The module, imported only now."""
        return cast("Conductor", import_module(self.module))

    def load(self, file: Path) -> Any:
        """Settings from a TOML file.

        Returns:
            An object of the experiment's settings class.
        """
        from hessrmt import config

        return config.load_settings(getattr(config, self.settings), file)


def experiment_of(file: Path) -> Experiment:
    """Which experiment a TOML file is for.

    Args:
        file: Settings.

    Returns:
        The experiment.

    Raises:
        ConfigError: If the file cannot be read or names none that is known.
    """
    from hessrmt.config import AnyExperiment, load_settings
    from hessrmt.errors import ConfigError

    name = load_settings(AnyExperiment, file).experiment
    if name not in EXPERIMENTS:
        raise ConfigError(
            f"experiment: {file} is for {name!r}; known are {', '.join(sorted(EXPERIMENTS))}"
        )
    return EXPERIMENTS[name]


def _draw_spacings(settings: Any, entries: Sequence[Any], folder: Path, ending: str) -> list[Drawn]:
    from hessrmt.ensembles import goe
    from hessrmt.workflows.figures import spacings_figures

    unfolded = {}
    for entry in entries:
        unfolded[entry.name] = entry.unfolded["certified"]
        if not entry.reduced:
            unfolded[f"{entry.name}-published"] = entry.unfolded["paper"]
    control = [goe(1000, settings.seed, index) for index in range(20)]
    return spacings_figures(unfolded, control, folder, ending, seed=settings.seed)


def _draw_loss_model(
    settings: Any, entries: Sequence[Any], folder: Path, ending: str
) -> list[Drawn]:
    from hessrmt.workflows.figures import loss_model_figures
    from hessrmt.workflows.gp_loss_model import figures

    return loss_model_figures(figures(settings, entries), folder, ending)


def _draw_puzzles(settings: Any, entries: Sequence[Any], folder: Path, ending: str) -> list[Drawn]:
    from hessrmt.workflows.figures import puzzles_figures

    return puzzles_figures(settings, entries, folder, ending)


def _draw_averaging(
    _settings: Any, entries: Sequence[Any], folder: Path, ending: str
) -> list[Drawn]:
    from hessrmt.workflows.figures import averaging_figures

    return averaging_figures(entries, folder, ending)


def _draw_budget(_settings: Any, entries: Sequence[Any], folder: Path, ending: str) -> list[Drawn]:
    from hessrmt.workflows.figures import budget_figures
    from hessrmt.workflows.training_budget import curves, fitted

    return budget_figures(curves(list(entries)), fitted(list(entries))[0], folder, ending)


EXPERIMENTS = {
    "hessian-spacings": Experiment("SpacingsConfig", "hessrmt.workflows.spacings", _draw_spacings),
    "gp-loss-model": Experiment(
        "LossModelConfig", "hessrmt.workflows.gp_loss_model", _draw_loss_model
    ),
    "iterate-averaging": Experiment(
        "IterateAveragingConfig", "hessrmt.workflows.iterate_averaging", _draw_averaging
    ),
    "training-budget": Experiment(
        "BudgetConfig", "hessrmt.workflows.training_budget", _draw_budget
    ),
    "puzzles": Experiment("PuzzlesConfig", "hessrmt.workflows.puzzles", _draw_puzzles),
}
