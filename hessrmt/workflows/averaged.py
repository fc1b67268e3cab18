"""The points of averaged runs: what was measured there, seed by seed, and what averages gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hessrmt.workflows.trajectory import LAST, Trajectory

if TYPE_CHECKING:
    from hessrmt.records import Spectra, Spectrum

POLYAK, TAIL = "polyak", "tail"
POINTS = (LAST, POLYAK, TAIL)

QUANTITIES = ("train_loss", "test_loss", "train_error", "test_error", "distance")
CURVATURES = ("largest", "trace", "smallest", "certified", "negative")

Estimate = tuple[float, float]
"""Mean over seeds and its standard error; NaN where there is none."""


@dataclass(frozen=True)
class Entry:
    """One point of the runs of a network at a learning rate.

    Attributes:
        name: Network, rate and point.
        model: The network.
        rate: Name of the learning rate.
        lr: At the start.
        final_lr: At the end; None where it is constant.
        point: ``"last"``, ``"polyak"`` or ``"tail"``.
        runs: One for each seed.
        spectra: Of the first seeds, in their order.
    """

    name: str
    model: str
    rate: str
    lr: float
    final_lr: float | None
    point: str
    runs: Sequence[Trajectory] = field(repr=False)
    spectra: Sequence[Spectra] = field(repr=False)

    def values(self, what: str) -> np.ndarray:
        """A quantity at the end of each run.

        Args:
            what: One of :data:`QUANTITIES`.

        Returns:
            (seeds,) values; zeros for the distance of the last iterate; NaN without classes.
        """
        found = [run.measured[-1][self.point].get(what, 0.0) for run in self.runs]
        return np.array([np.nan if value is None else value for value in found])

    def curvature(self, what: str) -> np.ndarray:
        """A property of the Hessians, averaged over a seed's batches.

        Args:
            what: One of :data:`CURVATURES`; ``negative`` counts certified levels.

        Returns:
            (seeds with spectra,) values.
        """
        return np.array([np.mean([_of(item, what) for item in rows]) for rows in self.spectra])

    def curve(self, what: str) -> tuple[np.ndarray, np.ndarray]:
        """A quantity over the epochs.

        Args:
            what: One of :data:`QUANTITIES`.

        Returns:
            (m,) epochs, (seeds, m) values.
        """
        found = [run.curve(self.point, what) for run in self.runs]
        rows = [[np.nan if v is None else v for v in values] for _, values in found]
        return np.array(found[0][0]), np.array(rows, dtype=np.float64)


def gains(entries: list[Entry]) -> dict[tuple[str, str], dict[str, dict[str, Estimate]]]:
    """What averages gain over the last iterate of the same run.

    Args:
        entries: From :func:`run`.

    Returns:
        (network, rate) to average to: ``test_loss``, ``test_error`` and ``train_loss``, the last
        iterate's less the average's; ``largest`` and ``trace``, the average's over the last
        iterate's. Pairs of the same seed are compared, then averaged; ratios as logarithms.
    """
    by = {(entry.model, entry.rate, entry.point): entry for entry in entries}
    found: dict[tuple[str, str], dict[str, dict[str, Estimate]]] = {}
    for (model, rate, point), entry in by.items():
        if point == LAST:
            continue
        last = by[model, rate, LAST]
        differences = {
            what: estimate(last.values(what) - entry.values(what))
            for what in ("train_loss", "test_loss", "test_error")
        }
        ratios = {
            what: _ratio(entry.curvature(what), last.curvature(what))
            for what in ("largest", "trace")
        }
        found.setdefault((model, rate), {})[point] = differences | ratios
    return found


def estimate(values: np.ndarray) -> Estimate:
    """Mean and standard error of some values.

    Args:
        values: (n,) of the seeds.

    Returns:
        Both; NaN where there are too few values.
    """
    if not len(values):
        return float("nan"), float("nan")
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(np.mean(values)), float(error)


def _ratio(values: np.ndarray, others: np.ndarray) -> Estimate:
    # geometric mean: a ratio and its inverse count alike; none where a trace is negative
    if not ((values > 0) & (others > 0)).all():
        return float("nan"), float("nan")
    mean, error = estimate(np.log(values / others))
    return float(np.exp(mean)), float(np.exp(mean)) * error


def _of(item: Spectrum, what: str) -> float:
    found = {
        "largest": float(item.eigenvalues[-1]),
        "smallest": float(item.eigenvalues[0]),
        "trace": float(item.eigenvalues.sum()),
        "certified": float(item.rank),
        "negative": float(np.count_nonzero(item.resolved < 0)),
    }
    return found[what]
