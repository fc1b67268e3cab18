"""``reproduce training-budget``: the best validation loss against the epochs spent ([B], Fig. 8).

Every budget has its own runs with seeds of their own, and a schedule scaled to it: the learning
rate is divided by ten after a third and after two thirds, as in 30, 60 of 90 epochs for ImageNet.
The test split of the data validates; nothing is chosen by it but the epoch, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt import rng
from hessrmt.config import TrainConfig
from hessrmt.errors import GeneralizationError
from hessrmt.generalization.fits import BudgetFit, fit_budgets
from hessrmt.workflows import trajectory
from hessrmt.workflows.cluster import SERIAL
from hessrmt.workflows.reproduce import (
    Observer,
    make_folders,
    preset_of,
    silent,
    table_in_markdown,
)
from hessrmt.workflows.trajectory import LAST, Plan, Trajectory

if TYPE_CHECKING:
    from pathlib import Path

    from hessrmt.config import BudgetConfig, BudgetPreset
    from hessrmt.workflows.cluster import Pool

QUANTITIES = ("loss", "error")
_FEWEST_SEEDS = 3
"""Below, a standard error over seeds is too uncertain to weigh a fit with."""

SHOWN = {
    "best loss": "best\nloss",
    "at epoch": "at epoch",
    "best error %": "best\nerror %",
    "last loss": "loss of\nlast epoch",
}
"""Columns for the terminal, and their headings there."""

_NAMES = {"loss": "best validation loss", "error": "best validation error"}


@dataclass(frozen=True)
class Entry:
    """The runs of one budget.

    Attributes:
        name: Of the budget.
        budget: Epochs.
        model: The network.
        runs: One for each seed.
    """

    name: str
    budget: int
    model: str
    runs: Sequence[Trajectory] = field(repr=False)

    def best(self, what: str) -> np.ndarray:
        """The lowest value of each run.

        Args:
            what: ``"loss"`` or ``"error"``, on the test split.

        Returns:
            (seeds,) values; NaN without classes.
        """
        return np.array([min(values) for values in self._curves(what)])

    def attained(self, what: str) -> np.ndarray:
        """When it was reached first.

        Args:
            what: As in :meth:`best`.

        Returns:
            (seeds,) epochs, from 1.
        """
        return np.array([1 + int(np.argmin(values)) for values in self._curves(what)])

    def last(self, what: str) -> np.ndarray:
        """Values after the last epoch.

        Args:
            what: As in :meth:`best`.

        Returns:
            (seeds,) values.
        """
        return np.array([values[-1] for values in self._curves(what)])

    def _curves(self, what: str) -> list[list[float]]:
        curves = [run.curve(LAST, f"test_{what}")[1] for run in self.runs]
        return [[np.nan if value is None else value for value in values] for values in curves]


def run(
    settings: BudgetConfig,
    preset: str,
    out: Path,
    *,
    folder: Path | None = None,
    observer: Observer | None = None,
    pool: Pool = SERIAL,
) -> list[Entry]:
    """Train what is not trained yet, and read all of it.

    Args:
        settings: Of the experiment.
        preset: Which size.
        out: Folder for checkpoints; a folder of an earlier run is continued.
        folder: Where to look for data first.
        observer: Told of progress.
        pool: Where networks are trained; see :func:`hessrmt.workflows.trajectory.run_all`.

    Returns:
        One entry for each budget, ascending.
    """
    size = preset_of(settings, preset)
    observer = observer or silent
    make_folders(out, "checkpoints")
    plans = [
        _plan(settings, size, budget, number)
        for budget in size.budgets
        for number in range(size.seeds)
    ]
    found = iter(
        trajectory.run_all(plans, out / "checkpoints", folder=folder, observer=observer, pool=pool)
    )
    entries = [
        Entry(f"{budget} epochs", budget, size.model, list(islice(found, size.seeds)))
        for budget in size.budgets
    ]
    observer("done", 1, 1)
    return entries


def table(entries: list[Entry]) -> list[dict[str, Any]]:
    """Rows of the results table.

    Args:
        entries: From :func:`run`.

    Returns:
        One row for each budget, as plain values: means over seeds with their standard errors, and
        under ``seeds`` the single values.
    """
    rows = []
    for entry in entries:
        values = {}
        for what in QUANTITIES:
            values |= {
                f"best_{what}": entry.best(what),
                f"best_{what}_epoch": entry.attained(what),
                f"last_{what}": entry.last(what),
            }
        rows.append(
            {
                "run": entry.name,
                "budget": entry.budget,
                "model": entry.model,
                "data": entry.runs[0].origin,
                **{name: float(np.mean(found)) for name, found in values.items()},
                **{f"{name}_error_of_mean": _error(found) for name, found in values.items()},
                "seeds": {name: found.tolist() for name, found in values.items()},
            }
        )
    return rows


def columns(entry: Entry) -> dict[str, str]:
    """One row of the table for people.

    Args:
        entry: One budget.

    Returns:
        Heading to cell.
    """
    return {
        "budget": str(entry.budget),
        "best loss": _cell(entry.best("loss"), 4),
        "at epoch": _cell(entry.attained("loss"), 1),
        "last loss": _cell(entry.last("loss"), 4),
        "best error %": _cell(100 * entry.best("error"), 2),
        "error at epoch": _cell(entry.attained("error"), 1),
    }


def markdown(entries: list[Entry]) -> str:
    """The results table for people.

    Args:
        entries: From :func:`run`.

    Returns:
        Markdown.
    """
    return table_in_markdown([columns(entry) for entry in entries])


def curves(entries: list[Entry]) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """What is fitted.

    Args:
        entries: From :func:`run`.

    Returns:
        ``"loss"`` and ``"error"`` to budgets, means over seeds, and standard errors: the pooled
        standard deviation over seeds, relative to the mean, since a few seeds don't give one for
        each budget; None with fewer than three seeds. Without classes there is no error.
    """
    found = {}
    budgets = np.array([entry.budget for entry in entries], dtype=np.float64)
    for what in QUANTITIES:
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


def fitted(entries: list[Entry]) -> tuple[dict[str, BudgetFit], dict[str, str]]:
    """Both laws, fitted to loss and error.

    Args:
        entries: From :func:`run`.

    Returns:
        Quantity to its fits, and quantity to the reason why there are none.
    """
    found, reasons = {}, {}
    for what, values in curves(entries).items():
        try:
            found[what] = fit_budgets(*values)
        except GeneralizationError as error:
            reasons[what] = str(error)
    return found, reasons


def fits(entries: list[Entry]) -> dict[str, Any]:
    """The fits as plain values.

    Args:
        entries: From :func:`run`.

    Returns:
        Quantity to both laws, their comparison, or the reason why there is none.
    """
    found, reasons = fitted(entries)
    plain: dict[str, Any] = {what: fit.to_dict() for what, fit in found.items()}
    return plain | {what: {"reason": reason} for what, reason in reasons.items()}


def sentences(entries: list[Entry]) -> dict[str, str]:
    """What the fits say, in a sentence for each quantity.

    Args:
        entries: From :func:`run`.

    Returns:
        Quantity to its sentence.
    """
    found, reasons = fitted(entries)
    said = {_NAMES[what]: reason for what, reason in reasons.items()}
    return said | {_NAMES[what]: _in_words(fit) for what, fit in found.items()}


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
        verdict = "neither is preferred" if fit.preferred == "neither" else (
            f"the {fit.preferred} is preferred"
        )  # fmt: skip
        parts.append(f"AICc of the power law less that of the exponential {fit.difference:+.1f}, "
                     f"{verdict}")  # fmt: skip
    return "; ".join(parts) + "."


def _plan(settings: BudgetConfig, size: BudgetPreset, budget: int, number: int) -> Plan:
    # independent runs, so that the errors of different budgets are
    words = rng.seed_sequence(settings.seed, "training-budget", budget, number).generate_state(1)
    training = TrainConfig(
        model=size.model,
        data=settings.data,
        epochs=budget,
        batch=size.batch,
        lr=size.lr,
        final_lr=size.lr / 100,
        decay_start=0,
        decay_end=0,
        momentum=size.momentum,
        weight_decay=size.weight_decay,
        device=settings.device,
        seed=int(words[0]),
    )
    name = f"{size.model.rpartition(':')[2].replace('/', '_')}-{budget}-{number}"
    rate = partial(scaled_rate, size.lr, budget)
    return Plan(name, training, {}, ("test",), rate=rate, rate_name="a tenth at each third")


def scaled_rate(lr: float, budget: int, epoch: int) -> float:
    """Learning rate of an epoch: a tenth of it after each third of the budget.

    Args:
        lr: Of the first third.
        budget: Epochs in all.
        epoch: Counted from 0.

    Returns:
        lr, lr/10 or lr/100.

    Source: [B] §8.1, scaling the schedule of He et al. (CVPR 2016), §3.4.
    """
    return lr / 10 ** (3 * epoch // budget)


def _error(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def _cell(values: np.ndarray, digits: int) -> str:
    if not np.isfinite(values).all():
        return "-"
    error = _error(values)
    return f"{values.mean():.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
