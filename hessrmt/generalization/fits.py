"""Fits to families of training runs: lines through losses, laws of the training budget.

A line is the test loss against the training loss over a family of networks (Generalization puzzles
(2020), Fig. 2). Normalised losses lie within 1e-4 of each other near ln 10, so that sums of squares
of the losses themselves would keep few digits: everything is computed from differences to the
means. ``scipy.stats.linregress`` takes 1 - R² for the residuals, which has no digits left on such
lines.

A budget is the number of epochs of a run. Baskerville, Granziol and Keating 2022 (§8.1, Fig. 8)
report that the lowest validation loss "closely follows an exponential drop" in it. Two laws with
three parameters each are fitted,

    exponential   L(T) = L∞ + A exp(-T/τ)
    power         L(T) = L∞ + A (T/T_1)^(-b),   T_1 the smallest budget,

and compared by Akaike's criterion with its correction for few points. Both have as many parameters,
so that the difference is that of their likelihoods alone.

Source: Draper and Smith 1998, §1.2-1.4; Burnham and Anderson 2002, §2.4 and §2.6.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from hessrmt.checks import real_array
from hessrmt.errors import ConvergenceError, DataError
from hessrmt.results import Result

Values = Float64[np.ndarray, " n"]

FEWEST_POINTS = 3
"""Of a line; with two it goes through both and nothing says how well it fits."""

FEWEST_BUDGETS = 4
"""With three every law of three parameters goes through all points."""

DECISIVE = 2.0
"""Difference of AICc below which neither law is preferred."""

_PARAMETERS = 3
_GRID = 400


@dataclass(frozen=True)
class LineFit(Result, omitted="x_mean y_mean x_spread"):
    """A line y = slope · x + intercept by ordinary least squares, with independent equal errors.

    Attributes:
        slope: Of the line.
        intercept: Value at x = 0.
        r2: R² = 1 - Σ residuals² / Σ(y - ȳ)²; NaN if all y are equal.
        adjusted_r2: 1 - (1 - R²)(n - 1)/(n - 2).
        rmse: √(Σ residuals²/n). Generalization puzzles (2020) does not say whether it divides by n
            or by n - 2; for the latter see :attr:`deviation`.
        slope_error: Standard error of the slope.
        intercept_error: Standard error of the intercept.
        n: Points.
        x_mean: Mean of x.
        y_mean: Mean of y; the line goes through both means.
        x_spread: √Σ(x - x̄)².
    """

    slope: float
    intercept: float
    r2: float
    adjusted_r2: float
    rmse: float
    slope_error: float
    intercept_error: float
    n: int
    x_mean: float
    y_mean: float
    x_spread: float

    @property
    def deviation(self) -> float:
        """√(Σ residuals²/(n - 2)), the estimate of a single point's standard deviation."""
        return self.rmse * math.sqrt(self.n / (self.n - 2))

    @property
    def covariance(self) -> Float64[np.ndarray, "2 2"]:
        """Of slope and intercept, in this order."""
        variance = self.slope_error**2
        mixed = -self.x_mean * variance
        return np.array([[variance, mixed], [mixed, self.intercept_error**2]])

    def __call__(self, x: ArrayLike) -> Any:
        """The line.

        Args:
            x: Points, of any shape.

        Returns:
            Its values, of the shape of x.
        """
        return self.y_mean + self.slope * (np.asarray(x, dtype=np.float64) - self.x_mean)

    def confidence_band(self, x: ArrayLike, level: float = 0.95) -> tuple[Any, Any]:
        """Where the line itself lies, with a probability for each single x.

        Args:
            x: Points, of any shape.
            level: The probability, between 0 and 1.

        Returns:
            Lower and upper end at every x, by Student's t with n - 2 degrees of freedom.

        Source: Draper and Smith 1998, eqs. (3.1.2) and (3.1.4).
        """
        return self._band(x, level, 0.0)

    def prediction_band(self, x: ArrayLike, level: float = 0.95) -> tuple[Any, Any]:
        """Where one more point lies; arguments and result as of :meth:`confidence_band`."""
        return self._band(x, level, 1.0)

    def _band(self, x: ArrayLike, level: float, own: float) -> tuple[Any, Any]:
        if isinstance(level, bool) or not 0 < level < 1:
            raise DataError(f"level is {level!r}; expected a probability between 0 and 1, as 0.95")
        away = (np.asarray(x, dtype=np.float64) - self.x_mean) / self.x_spread
        student = float(special.stdtrit(self.n - 2, (1 + level) / 2))
        half = student * self.deviation * np.sqrt(own + 1 / self.n + away**2)
        middle = self(x)
        return middle - half, middle + half


def fit_line(x: ArrayLike, y: ArrayLike) -> LineFit:
    """Ordinary least squares of y on x.

    Args:
        x: (n,) points, n >= 3, e.g. training losses; not all equal.
        y: (n,) values, e.g. test losses.

    Returns:
        The line, how well it fits and the errors of its parameters.

    Raises:
        DataError: If there are too few points, or x and y are not finite real numbers of one
            length, or all x are equal.
    """
    first = real_array("x", x, dimensions=1, empty=True)
    second, n = real_array("y", y, dimensions=1, empty=True), len(first)
    if n != len(second):
        raise DataError(f"{n} x but {len(second)} y; expected one y for every x of the line")
    if n < FEWEST_POINTS:
        raise DataError(f"a line and its errors need at least {FEWEST_POINTS} points, got {n}")
    if (first == first[0]).all():
        raise DataError(f"all {n} x are {first[0]:g}; a line needs points with different x")
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        x_mean, dx, x_spread = _centred(first)
        y_mean, dy, y_spread = _centred(second)
        correlation = float(dx @ dy)
        rest = float(np.linalg.norm(dy - correlation * dx))  # residuals, relative to y_spread
        # the sum of these squares is 1: the smaller one is free of cancellation, and R² in [0, 1]
        r2 = (correlation**2 if rest > 0.8 else 1 - rest**2) if y_spread else math.nan
        slope = correlation * y_spread / x_spread
        deviation = y_spread * rest / math.sqrt(n - 2)
        error = deviation / x_spread
        errors = error, math.hypot(deviation / math.sqrt(n), error * x_mean)
        line, rmse = (slope, y_mean - slope * x_mean), y_spread * rest / math.sqrt(n)
    if not np.isfinite([*line, *errors, x_spread, rmse]).all():
        raise DataError("the numbers are too large for a line in float64; rescale them")
    adjusted = 1 - (1 - r2) * (n - 1) / (n - 2)
    return LineFit(*line, r2, adjusted, rmse, *errors, n, x_mean, y_mean, x_spread)


def log_slopes(x: ArrayLike, y: ArrayLike) -> Any:
    """Exponents of powers: slopes of least-squares lines through log y against log x.

    Args:
        x: (n,) positive points.
        y: (n,) or (n, S) positive values, a column for each of S powers.

    Returns:
        The slope, or (S,) slopes.
    """
    return np.polyfit(np.log(x), np.log(y), 1)[0]


def _centred(values: Values) -> tuple[float, Values, float]:
    """Mean, differences to it as a vector of length 1, and their length; zeros if all are equal."""
    if (values == values[0]).all():
        return float(values[0]), np.zeros_like(values), 0.0
    mean = float(np.mean(values))
    away = values - mean
    rest = float(np.mean(away))  # what rounding took from the mean
    away -= rest
    largest = float(np.abs(away).max())
    away /= largest  # or the squares of small differences would underflow
    length = float(np.linalg.norm(away))
    return mean + rest, away / length, largest * length


@dataclass(frozen=True)
class BudgetLaw(Result):
    """One law of the training budget, fitted by least squares.

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

        Args:
            budgets: (n,) T.

        Returns:
            (n,) values.
        """
        t = np.asarray(budgets, dtype=np.float64) / self.first
        scaled = self.shape / _unit(self.law, self.first)
        return _LAWS[self.law](t, self.limit, self.amplitude, scaled)


@dataclass(frozen=True)
class BudgetFit(Result, derived="aicc_difference", omitted="difference"):
    """Both laws and which of them the data prefer.

    Attributes:
        laws: Law to its fit; a law that could not be fitted is missing.
        reasons: Law to the reason why it is missing.
        difference: AICc of the power law less that of the exponential; None unless both are there.
        preferred: ``"exponential"``, ``"power"``, or ``"neither"`` where the difference is below
            :data:`DECISIVE`; None unless both are there.
    """

    laws: Mapping[str, BudgetLaw]
    reasons: Mapping[str, str]
    difference: float | None
    preferred: str | None

    @property
    def aicc_difference(self) -> float | None:
        """:attr:`difference` by the name that it has among the plain values."""
        return self.difference


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
        DataError: If there are too few budgets, or an argument cannot be used.
    """
    T = real_array("budgets", budgets, dimensions=1, above=0)
    y = real_array("values", values, dimensions=1, hint="leave out a run that diverged")
    sigma = None if errors is None else real_array("errors", errors, dimensions=1, above=0)
    for name, given in (("values", y), ("errors", sigma)):
        if given is not None and len(given) != len(T):
            raise DataError(f"{len(T)} budgets but {len(given)} {name}")
    if len(T) < FEWEST_BUDGETS:
        few = f"an exponential fit needs at least {FEWEST_BUDGETS} budgets, got {len(T)}"
        raise DataError(f"{few}; lengthen the ladder")
    if len(np.unique(T)) < len(T):
        raise DataError(f"budgets must differ from each other, got {T.tolist()}")
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


def fit_law(law: str, budgets: Values, values: Values, errors: Values | None = None) -> BudgetLaw:
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
    if np.ptp(values) == 0:
        raise ConvergenceError(f"all values are {values[0]:g}: there is no drop to fit")
    first = float(budgets.min())
    t, curve, unit = budgets / first, _LAWS[law], _unit(law, first)
    weight = np.ones_like(values) if errors is None else 1 / errors
    shapes = _shapes(law, t)
    scan = [_linear(curve(t, 0.0, 1.0, shape), values, weight) for shape in shapes]
    best = int(np.argmin([cost for cost, *_ in scan]))
    if best in {0, _GRID - 1}:
        raise ConvergenceError(_undetermined(law, shapes[best] * unit, best == 0))
    start = [*scan[best][1:], shapes[best]]
    try:
        with warnings.catch_warnings(), np.errstate(over="ignore", invalid="ignore"):
            warnings.simplefilter("error", optimize.OptimizeWarning)
            found, covariance = optimize.curve_fit(
                curve, t, values, start, errors, absolute_sigma=errors is not None
            )
    except (RuntimeError, optimize.OptimizeWarning) as error:
        raise ConvergenceError(f"the {law} fit did not converge: {error}") from error
    spread = np.sqrt(np.diag(covariance))
    if not (np.isfinite(found).all() and np.isfinite(spread).all() and found[2] > 0):
        raise ConvergenceError(f"the {law} fit did not converge to finite parameters and errors")
    parameters, spread = (found * [1, 1, unit]).tolist(), (spread * [1, 1, unit]).tolist()
    residuals = values - curve(t, *parameters[:2], parameters[2] / unit)
    weight = np.ones_like(values) if errors is None else errors**-2
    rest = float(weight @ residuals**2)
    total = float(weight @ (values - np.average(values, weights=weight)) ** 2)
    n, chi2 = len(values), None if errors is None else rest
    # the variance is one more parameter where it is estimated
    k = _PARAMETERS + (errors is None)
    aicc = None
    if n - k - 1 > 0:
        goodness = n * math.log(max(rest, np.finfo(float).tiny) / n) if chi2 is None else rest
        aicc = goodness + 2 * k + 2 * k * (k + 1) / (n - k - 1)
    p_value = None if chi2 is None else float(stats.chi2.sf(chi2, n - _PARAMETERS))
    known = {"first": first, "r2": 1 - rest / total, "rmse": float(np.sqrt(np.mean(residuals**2)))}
    return BudgetLaw(law, *parameters, *spread, **known, chi2=chi2, p_value=p_value, aicc=aicc)


def _exponential(t: Values, limit: float, amplitude: float, tau: float) -> Values:
    return limit + amplitude * np.exp(-t / tau)


def _power(t: Values, limit: float, amplitude: float, b: float) -> Values:
    return limit + amplitude * t**-b


_LAWS: Mapping[str, Callable[..., Values]] = {"exponential": _exponential, "power": _power}


def _unit(law: str, first: float) -> float:
    """Of the shape: τ is fitted in units of the smallest budget."""
    return first if law == "exponential" else 1.0


def _shapes(law: str, t: Values) -> Values:
    # τ far below the first gap leaves one point above the limit, far above the range a straight
    # line; the same holds for the exponents
    ordered = np.sort(t)
    if law == "exponential":
        return np.geomspace((ordered[1] - ordered[0]) / 10, 20 * np.ptp(ordered), _GRID)
    spans = np.log(ordered[1] / ordered[0]), np.log(ordered[-1] / ordered[0])
    return np.geomspace(1 / (20 * spans[1]), 10 / spans[0], _GRID)


def _undetermined(law: str, shape: float, smallest: bool) -> str:
    looks = "no limit is in sight; add larger budgets"
    if smallest == (law == "exponential"):
        looks = "the drop ends before the second budget; add smaller budgets"
    name, side = "τ" if law == "exponential" else "b", "below" if smallest else "above"
    return f"the {law} fit is not determined: {name} would be {side} {shape:.3g}, {looks}"


def _linear(basis: Values, y: Values, weight: Values) -> tuple[float, float, float]:
    """Weighted sum of squares, and the best L∞ and A for a shape."""
    table = np.column_stack([weight, weight * basis])
    limit, amplitude = solution = np.linalg.lstsq(table, weight * y, rcond=None)[0]
    rest = weight * y - table @ solution
    return float(rest @ rest), float(limit), float(amplitude)


def _criterion(fit: BudgetLaw, n: int) -> float:
    plain = 2 * n * math.log(max(fit.rmse, np.finfo(float).tiny))
    return plain if fit.chi2 is None else fit.chi2
