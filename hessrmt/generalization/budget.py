"""How the best validation loss falls with the training budget ([B] §8.1, Fig. 8).

[B] reports that the lowest validation loss "closely follows an exponential drop" in the epochs of
training. Two laws with three parameters each are fitted,

    exponential   L(T) = L∞ + A exp(-T/τ)
    power         L(T) = L∞ + A (T/T_1)^(-b),   T_1 the smallest budget,

and compared by Akaike's criterion with its correction for few points. Both have as many parameters,
so that the difference is that of their likelihoods alone.

Source: [B] (Baskerville, Granziol, Keating), §8.1; Burnham, Anderson, Model selection and
multimodel inference (2nd ed., 2002), §2.4 and §2.6.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike
from scipy import optimize, stats

from hessrmt.errors import ConvergenceError, GeneralizationError

Values = Float64[np.ndarray, " n"]

FEWEST = 4
"""Budgets; with three every law of three parameters goes through all points."""

DECISIVE = 2.0
"""Difference of AICc below which neither law is preferred."""

PARAMETERS = 3
_GRID = 400


@dataclass(frozen=True)
class LawFit:
    """One law, fitted by least squares.

    Attributes:
        law: ``"exponential"`` or ``"power"``.
        limit: L∞.
        amplitude: A.
        shape: τ in epochs, or the exponent b.
        limit_error: Standard error of L∞.
        amplitude_error: That of A.
        shape_error: That of τ or b.
        first: T_1, the smallest budget.
        r2: R² = 1 - Σ w (L - fit)²/Σ w (L - mean)², w the weights of the fit.
        rmse: √(Σ (L - fit)²/n).
        chi2: Σ ((L - fit)/error)²; None without errors.
        p_value: Probability of a larger χ² if the law is true; None without errors.
        aicc: Akaike's criterion with its correction; None where there are too few points for it.
    """

    law: str
    limit: float
    amplitude: float
    shape: float
    limit_error: float
    amplitude_error: float
    shape_error: float
    first: float
    r2: float
    rmse: float
    chi2: float | None
    p_value: float | None
    aicc: float | None

    def __call__(self, budgets: ArrayLike) -> Values:
        """The law at some budgets.

        Returns:
            (n,) values.
        """
        at = np.asarray(budgets, dtype=np.float64)
        return _LAWS[self.law](at / self.first, self.limit, self.amplitude, self._scaled)

    @property
    def _scaled(self) -> float:
        return self.shape / self.first if self.law == "exponential" else self.shape


@dataclass(frozen=True)
class BudgetFit:
    """Both laws and which of them the data prefer.

    Attributes:
        laws: Law to its fit; a law that could not be fitted is missing.
        reasons: Law to the reason why it is missing.
        difference: AICc of the power law less that of the exponential; None unless both are there.
        preferred: ``"exponential"``, ``"power"``, or ``"neither"`` where the difference is below
            :data:`DECISIVE`; None unless both are there.
    """

    laws: Mapping[str, LawFit]
    reasons: Mapping[str, str]
    difference: float | None
    preferred: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, none of them NaN or infinite.

        Returns:
            ``laws``, ``reasons``, ``aicc_difference`` and ``preferred``.
        """
        return {
            "laws": {
                name: {key: _finite(value) for key, value in asdict(law).items()}
                for name, law in self.laws.items()
            },
            "reasons": dict(self.reasons),
            "aicc_difference": self.difference,
            "preferred": self.preferred,
        }


def fit_budgets(
    budgets: ArrayLike, values: ArrayLike, errors: ArrayLike | None = None
) -> BudgetFit:
    """Fit both laws and compare them.

    Args:
        budgets: (n,) T > 0, e.g. epochs, n >= 4, all different.
        values: (n,) best validation loss (or error) of each.
        errors: (n,) standard errors > 0 of the values; None for an ordinary least squares fit,
            whose residuals then say how large errors are.

    Returns:
        The fits. A law whose parameters the data don't determine is missing, with the reason.

    Raises:
        GeneralizationError: If there are too few budgets, or an argument cannot be used.
    """
    T, y = _vector("budgets", budgets), _vector("values", values)
    sigma = None if errors is None else _vector("errors", errors)
    for name, given in (("values", y), ("errors", sigma)):
        if given is not None and len(given) != len(T):
            raise GeneralizationError(f"{len(T)} budgets but {len(given)} {name}")
    if len(T) < FEWEST:
        raise GeneralizationError(
            f"an exponential fit needs at least {FEWEST} budgets, got {len(T)}; lengthen the ladder"
        )
    if (T <= 0).any() or len(np.unique(T)) < len(T):
        raise GeneralizationError(
            f"budgets are {', '.join(f'{t:g}' for t in T)}; expected different positive numbers"
        )
    if sigma is not None and (sigma <= 0).any():
        raise GeneralizationError("errors must be positive; leave them out if there are none")
    laws, reasons = {}, {}
    for law in _LAWS:
        try:
            laws[law] = fit_law(law, T, y, sigma)
        except ConvergenceError as error:
            reasons[law] = str(error)
    difference = preferred = None
    if len(laws) == len(_LAWS):
        # the correction for few points is the same for both, and cancels
        difference = _criterion(laws["power"], len(T)) - _criterion(laws["exponential"], len(T))
        better = "exponential" if difference > 0 else "power"
        preferred = better if abs(difference) >= DECISIVE else "neither"
    return BudgetFit(laws, reasons, difference, preferred)


def fit_law(law: str, budgets: Values, values: Values, errors: Values | None = None) -> LawFit:
    """Fit one law.

    For a given τ or b a law is linear in L∞ and A: a scan of the shape gives the point from which
    ``scipy.optimize.curve_fit`` starts.

    Args:
        law: ``"exponential"`` or ``"power"``.
        budgets: (n,) T > 0.
        values: (n,) values.
        errors: (n,) standard errors, or None.

    Returns:
        The fit.

    Raises:
        ConvergenceError: If the data don't determine the parameters.
    """
    first = float(budgets.min())
    t = budgets / first
    weight = np.ones_like(values) if errors is None else 1 / errors
    if np.ptp(values) == 0:
        raise ConvergenceError(f"all values are {values[0]:g}: there is no drop to fit")
    shapes = _shapes(law, t)
    costs = [_linear(law, t, values, weight, shape)[0] for shape in shapes]
    best = int(np.argmin(costs))
    if best in {0, _GRID - 1}:
        raise ConvergenceError(_undetermined(law, shapes[best] * _unit(law, first), best == 0))
    start = [*_linear(law, t, values, weight, shapes[best])[1], shapes[best]]
    try:
        with warnings.catch_warnings(), np.errstate(over="ignore", invalid="ignore"):
            warnings.simplefilter("error", optimize.OptimizeWarning)
            found, covariance = optimize.curve_fit(
                _LAWS[law], t, values, start, errors, absolute_sigma=errors is not None
            )
    except (RuntimeError, optimize.OptimizeWarning) as error:
        raise ConvergenceError(f"the {law} fit did not converge: {error}") from error
    spread = np.sqrt(np.diag(covariance))
    if not (np.isfinite(found).all() and np.isfinite(spread).all() and found[2] > 0):
        raise ConvergenceError(f"the {law} fit did not converge to finite parameters and errors")
    unit = _unit(law, first)
    return _described(
        law, first, budgets, values, errors, found * [1, 1, unit], spread * [1, 1, unit]
    )


def _described(
    law: str,
    first: float,
    T: Values,
    y: Values,
    sigma: Values | None,
    found: Values,
    spread: Values,
) -> LawFit:
    limit, amplitude, shape = map(float, found)
    scaled = shape / _unit(law, first)
    residuals = y - _LAWS[law](T / first, limit, amplitude, scaled)
    weight = np.ones_like(y) if sigma is None else sigma**-2
    rest = float(weight @ residuals**2)
    total = float(weight @ (y - np.average(y, weights=weight)) ** 2)
    n, chi2 = len(y), None if sigma is None else rest
    # the variance is one more parameter where it is estimated
    k = PARAMETERS + (sigma is None)
    aicc = None
    if n - k - 1 > 0:
        goodness = rest if sigma is not None else n * math.log(max(rest, np.finfo(float).tiny) / n)
        aicc = goodness + 2 * k + 2 * k * (k + 1) / (n - k - 1)
    errors = map(float, spread)
    return LawFit(
        law,
        limit,
        amplitude,
        shape,
        *errors,
        first=first,
        r2=1 - rest / total,
        rmse=float(np.sqrt(np.mean(residuals**2))),
        chi2=chi2,
        p_value=None if chi2 is None else float(stats.chi2.sf(chi2, n - PARAMETERS)),
        aicc=aicc,
    )


def _exponential(t: Values, limit: float, amplitude: float, tau: float) -> Values:
    return limit + amplitude * np.exp(-t / tau)


def _power(t: Values, limit: float, amplitude: float, b: float) -> Values:
    return limit + amplitude * t**-b


_LAWS: Mapping[str, Callable[..., Values]] = {"exponential": _exponential, "power": _power}


def _shapes(law: str, t: Values) -> Values:
    # τ (in units of the smallest budget) far below the first gap leaves one point above the limit,
    # far above the range a straight line; the same holds for the exponents
    ordered = np.sort(t)
    if law == "exponential":
        return np.geomspace((ordered[1] - ordered[0]) / 10, 20 * np.ptp(ordered), _GRID)
    spans = np.log(ordered[1] / ordered[0]), np.log(ordered[-1] / ordered[0])
    return np.geomspace(1 / (20 * spans[1]), 10 / spans[0], _GRID)


def _undetermined(law: str, shape: float, smallest: bool) -> str:
    name = "τ" if law == "exponential" else "b"
    sudden = smallest == (law == "exponential")
    looks = (
        "the drop ends before the second budget; add smaller budgets"
        if sudden
        else "no limit is in sight; add larger budgets"
    )
    side = "below" if smallest else "above"
    return f"the {law} fit is not determined: {name} would be {side} {shape:.3g}, {looks}"


def _unit(law: str, first: float) -> float:
    return first if law == "exponential" else 1.0


def _linear(
    law: str, t: Values, y: Values, weight: Values, shape: float
) -> tuple[float, tuple[float, float]]:
    """Weighted sum of squares, and the best L∞ and A for a shape."""
    basis = _LAWS[law](t, 0.0, 1.0, shape)
    table = np.column_stack([weight, weight * basis])
    solution = np.linalg.lstsq(table, weight * y, rcond=None)[0]
    rest = weight * y - table @ solution
    return float(rest @ rest), (float(solution[0]), float(solution[1]))


def _criterion(fit: LawFit, n: int) -> float:
    if fit.chi2 is not None:
        return fit.chi2
    return 2 * n * math.log(max(fit.rmse, np.finfo(float).tiny))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _vector(name: str, given: ArrayLike) -> Values:
    try:
        values = np.asarray(given)
    except (TypeError, ValueError) as error:
        raise GeneralizationError(f"{name} are no row of numbers: {error}") from error
    if values.dtype.kind not in "iuf" or values.ndim != 1:
        raise GeneralizationError(
            f"{name} have type {values.dtype} and shape {values.shape}; expected a row of numbers"
        )
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        place = int(np.flatnonzero(~np.isfinite(values))[0])
        raise GeneralizationError(
            f"{name} hold {values[place]} at position {place}; a run diverged, leave it out"
        )
    return values
