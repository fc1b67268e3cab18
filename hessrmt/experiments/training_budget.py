"""``reproduce training-budget``: the best validation loss against the epochs spent.

Baskerville, Granziol and Keating (2022), section 8 and Fig. 8. Every budget has its own runs with
seeds of their own, and a schedule scaled to it: the learning rate is divided by ten after a third
and after two thirds, as in 30, 60 of 90 epochs for ImageNet. The test split of the data validates;
nothing is chosen by it but the epoch, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from hessrmt.errors import DataError
from hessrmt.experiments.experiment import (
    Column,
    Estimate,
    Experiment,
    Pictures,
    TrainedPreset,
    TrainedSettings,
    Work,
    keyed,
    stem,
)
from hessrmt.generalization.fits import BudgetFit, fit_budgets
from hessrmt.plots import training as plots
from hessrmt.runs import trajectory
from hessrmt.runs.trajectory import Trajectory, TrajectoryPlan

_QUANTITIES = {"loss": "best validation loss", "error": "best validation error"}

_FEWEST_SEEDS = 3
"""Below, a standard error over seeds is too uncertain to weigh a fit with."""


class BudgetPreset(TrainedPreset):
    """One size of the experiment.

    Attributes:
        model: Registry name or ``file.py:factory``.
        budgets: Epochs, ascending.
        lr: Learning rate of the first third.
    """

    model: str
    budgets: tuple[int, ...] = Field(min_length=1)
    lr: float = Field(0.1, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False)

    @field_validator("budgets")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if value[0] < 1 or any(b <= a for a, b in pairwise(value)):
            raise ValueError("should be positive numbers of epochs, ascending")
        return value


class BudgetConfig(TrainedSettings[BudgetPreset]):
    """Settings of ``hessrmt reproduce training-budget``."""


@dataclass(frozen=True)
class BudgetRuns:
    """The runs of one budget.

    Attributes:
        budget: Epochs of each.
        model: What was trained.
        runs: One for each seed.
    """

    budget: int
    model: str
    runs: Sequence[Trajectory] = field(repr=False)

    @property
    def name(self) -> str:
        """The budget in words."""
        return f"{self.budget} epochs"

    def best(self, what: str) -> np.ndarray:
        """The lowest value of each run.

        Args:
            what: ``loss`` or ``error``, of the test split.

        Returns:
            (seeds,).
        """
        return self._curves(what).min(axis=1)

    def attained(self, what: str) -> np.ndarray:
        """When it was reached first (arguments and result as of :meth:`best`)."""
        return 1 + self._curves(what).argmin(axis=1)

    def last(self, what: str) -> np.ndarray:
        """Values after the last epoch (arguments and result as of :meth:`best`)."""
        return self._curves(what)[:, -1]

    def _curves(self, what: str) -> np.ndarray:
        return trajectory.curves(self.runs, trajectory.LAST, f"test_{what}")[1]


def _over_seeds(
    name: str, of: str, what: str, form: str, key: str, **options: Any
) -> Column[BudgetRuns]:
    return Column(name, lambda e: Estimate.of(getattr(e, of)(what)), form, key, **options)


class TrainingBudget(Experiment[BudgetConfig, BudgetPreset, BudgetRuns]):
    """The best validation loss against the epochs spent."""

    settings = BudgetConfig
    columns = (
        *keyed(run="name"),
        Column("budget", lambda e: e.budget, key="budget"),
        *keyed(model="model"),
        Column("", lambda e: e.runs[0].origin, key="data"),
        _over_seeds("best loss", "best", "loss", ".4f", "best_loss", terminal="best\nloss"),
        _over_seeds("at epoch", "attained", "loss", ".1f", "best_loss_epoch", terminal="at epoch"),
        _over_seeds(
            "last loss", "last", "loss", ".4f", "last_loss", terminal="loss of\nlast epoch"
        ),
        _over_seeds(
            *("best error %", "best", "error", ".2f", "best_error"),
            percent=True,
            terminal="best\nerror %",
        ),
        _over_seeds("error at epoch", "attained", "error", ".1f", "best_error_epoch"),
        _over_seeds("", "last", "error", "", "last_error"),
    )

    def compute(self, work: Work[BudgetConfig, BudgetPreset]) -> list[BudgetRuns]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        runs = work.trajectories(work.size.budgets, partial(_plan, work.settings, work.size))
        pairs = zip(work.size.budgets, runs, strict=True)
        return [BudgetRuns(budget, work.size.model, found) for budget, found in pairs]

    def fits(self, entries: Sequence[BudgetRuns]) -> dict[str, Any]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        return {
            what: {"reason": fit} if isinstance(fit, str) else fit.to_dict()
            for what, fit in fitted(entries).items()
        }

    def conclusions(self, entries: Sequence[BudgetRuns]) -> dict[str, str]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        return {
            _QUANTITIES[what]: fit if isinstance(fit, str) else _in_words(fit)
            for what, fit in fitted(entries).items()
        }

    def figures(self, entries: Sequence[BudgetRuns]) -> Pictures:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        laws = {what: fit for what, fit in fitted(entries).items() if isinstance(fit, BudgetFit)}
        title = f"Best validation loss and error of {entries[0].model}"
        return {"budget": partial(plots.budget, curves(entries), laws, title)}


def curves(
    entries: Sequence[BudgetRuns],
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """What is fitted.

    Args:
        entries: All budgets.

    Returns:
        ``loss`` and ``error``, where they are known, to (n,) budgets, (n,) means over seeds of the
        best value, and their standard errors, of one relative size for all, where there are enough
        seeds.
    """
    found = {}
    budgets = np.array([entry.budget for entry in entries], dtype=np.float64)
    for what in _QUANTITIES:
        values = np.array([entry.best(what) for entry in entries])
        if not np.isfinite(values).all():
            continue
        means = values.mean(axis=1)
        errors = None
        if values.shape[1] >= _FEWEST_SEEDS and (means > 0).all():
            relative = np.sqrt(np.mean((values.std(axis=1, ddof=1) / means) ** 2))
            errors = means * relative / values.shape[1] ** 0.5 if relative > 0 else None
        found[what] = (budgets, means, errors)
    return found


def fitted(entries: Sequence[BudgetRuns]) -> dict[str, BudgetFit | str]:
    """Both laws, fitted to loss and error.

    Args:
        entries: All budgets.

    Returns:
        ``loss`` and ``error``, where they are known, to the fit, or to why there is none.
    """
    found: dict[str, BudgetFit | str] = {}
    for what, values in curves(entries).items():
        try:
            found[what] = fit_budgets(*values)
        except DataError as error:
            found[what] = str(error)
    return found


def _in_words(fit: BudgetFit) -> str:
    parts = []
    for name, law in fit.laws.items():
        symbol, unit = ("τ", " epochs") if name == "exponential" else ("b", "")
        text = (
            f"{name}: limit {law.limit:.4f} ± {law.limit_error:.4f}, "
            f"{symbol} = {law.shape:.3g} ± {law.shape_error:.2g}{unit}, R² = {law.r2:.4f}"
        )
        if law.p_value is not None and law.chi2 is not None:
            text += f", χ² = {law.chi2:.1f} (p = {law.p_value:.2g})"
        parts.append(text)
    parts += list(fit.reasons.values())
    if fit.difference is not None:
        neither = fit.preferred == "neither"
        verdict = "neither is preferred" if neither else f"the {fit.preferred} is preferred"
        difference = f"{fit.difference:+.1f}"
        parts.append(f"AICc of the power law less that of the exponential {difference}, {verdict}")
    return "; ".join(parts) + "."


def _plan(settings: BudgetConfig, size: BudgetPreset, budget: int, number: int) -> TrajectoryPlan:
    # independent runs, so that the errors of different budgets are
    schedule = {"lr": size.lr, "final_lr": size.lr / 100, "decay_start": 0, "decay_end": 0}
    training = settings.training(size, budget, number, model=size.model, epochs=budget, **schedule)
    name = f"{stem(size.model)}-{budget}-{number}"
    rate = partial(scaled_rate, size.lr, budget)
    words_of_rate = "a tenth at each third"
    return TrajectoryPlan(name, training, {}, ("test",), rate=rate, rate_name=words_of_rate)


def scaled_rate(lr: float, budget: int, epoch: int) -> float:
    """Learning rate of an epoch: a tenth of it after each third of the budget.

    Args:
        lr: Of the first third.
        budget: Epochs in all.
        epoch: Counted from 0.

    Returns:
        The learning rate.
    """
    return lr / 10 ** (3 * epoch // budget)
