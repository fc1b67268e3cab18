"""A series of networks: do capacity metrics follow the reported accuracies? [M] Fig. 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from hessrmt.errors import CapacityError

if TYPE_CHECKING:
    from hessrmt.capacity.report import CapacityReport

METRICS = ("alpha_hat", "alpha_weighted", "mean_alpha", "mean_log_norm")
"""Numbers of a network that are compared with its accuracy."""

FEWEST = 3
"""Networks below which nothing is said."""

_NAN = float("nan")


@dataclass(frozen=True)
class Correlation:
    """How one metric goes with one accuracy along a series of networks.

    Attributes:
        metric: Name of the metric, one of :data:`METRICS`.
        accuracy: Name of the accuracy.
        n: Networks with both.
        slope: Of the least-squares line, accuracy for each unit of the metric.
        slope_error: Its standard error.
        intercept: Of the line.
        r_squared: R² of the line.
        kendall: Kendall's τ_b.
        kendall_p: Probability of such a τ without a connection.
        spearman: Spearman's ρ.
        spearman_p: Probability of such a ρ without a connection.
        failed: Why there are no numbers, else None.
    """

    metric: str
    accuracy: str
    n: int
    slope: float = _NAN
    slope_error: float = _NAN
    intercept: float = _NAN
    r_squared: float = _NAN
    kendall: float = _NAN
    kendall_p: float = _NAN
    spearman: float = _NAN
    spearman_p: float = _NAN
    failed: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)


def correlate(
    metric: Sequence[float], accuracy: Sequence[float], names: tuple[str, str] = ("", "")
) -> Correlation:
    """Least-squares line and rank correlations of two columns.

    Args:
        metric: (n,) of the networks.
        accuracy: (n,) of the same networks.
        names: Of metric and accuracy.

    Returns:
        The correlation; networks that lack one of the two are left out. With fewer than three, or
        where one of the two never changes, numbers are NaN and ``failed`` says why.

    Raises:
        CapacityError: If the columns differ in length.
    """
    x, y = np.asarray(metric, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise CapacityError(f"{x.shape} metrics and {y.shape} accuracies; give one of each")
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    n = len(x)
    if n < FEWEST:
        return Correlation(*names, n, failed=f"{n} networks with both; {FEWEST} are needed")
    for values, name in zip((x, y), names, strict=True):
        if np.ptp(values) == 0:
            return Correlation(*names, n, failed=f"{name or 'a column'} is the same for all")
    line: Any = stats.linregress(x, y)
    kendall: Any = stats.kendalltau(x, y)
    spearman: Any = stats.spearmanr(x, y)
    return Correlation(
        *names,
        n,
        slope=float(line.slope),
        slope_error=float(line.stderr),
        intercept=float(line.intercept),
        r_squared=float(line.rvalue) ** 2,
        kendall=float(kendall.statistic),
        kendall_p=float(kendall.pvalue),
        spearman=float(spearman.statistic),
        spearman_p=float(spearman.pvalue),
    )


def correlations(
    reports: Sequence[CapacityReport], accuracies: Mapping[str, Sequence[float]]
) -> list[Correlation]:
    """Every metric with every accuracy.

    Args:
        reports: Of the networks.
        accuracies: Name to one value for each network; NaN where it is not known.

    Returns:
        Accuracy by accuracy, the metrics in the order of :data:`METRICS`.
    """
    return [
        correlate([getattr(report, metric) for report in reports], values, (metric, name))
        for name, values in accuracies.items()
        for metric in METRICS
    ]
