"""The line test loss = slope · training loss + intercept over a family of networks ([G] Fig. 2).

Normalised losses lie within 1e-4 of each other near ln 10, so that sums of squares of the losses
themselves would keep few digits: everything here is computed from differences to the means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike
from scipy import special

from hessrmt.errors import GeneralizationError

Values = Float64[np.ndarray, " n"]

FEWEST = 3
"""Points; with two the line goes through both and nothing says how well it fits."""


@dataclass(frozen=True)
class LineFit:
    """A line y = slope · x + intercept by ordinary least squares, with independent equal errors.

    Attributes:
        slope: Of the line.
        intercept: Value at x = 0.
        r2: R² = 1 - Σ residuals² / Σ(y - ȳ)²; NaN if all y are equal.
        adjusted_r2: 1 - (1 - R²)(n - 1)/(n - 2).
        rmse: √(Σ residuals²/n). [G] does not say whether it divides by n or by n - 2; for the
            latter see :attr:`deviation`.
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

        Source: Draper, Smith, Applied Regression Analysis (3rd ed., 1998), eq. (3.1.2).
        """
        return self._band(x, level, 0.0)

    def prediction_band(self, x: ArrayLike, level: float = 0.95) -> tuple[Any, Any]:
        """Where one more point lies, with a probability for each single x.

        Args:
            x: Points, of any shape.
            level: The probability, between 0 and 1.

        Returns:
            Lower and upper end at every x, by Student's t with n - 2 degrees of freedom.

        Source: Draper, Smith, Applied Regression Analysis (3rd ed., 1998), eq. (3.1.4).
        """
        return self._band(x, level, 1.0)

    def to_dict(self) -> dict[str, float | int | None]:
        """The fit as plain values, e.g. for JSON; None instead of NaN.

        Returns:
            Name to value.
        """
        found: dict[str, float | int] = {
            "slope": self.slope,
            "intercept": self.intercept,
            "r2": self.r2,
            "adjusted_r2": self.adjusted_r2,
            "rmse": self.rmse,
            "slope_error": self.slope_error,
            "intercept_error": self.intercept_error,
            "n": self.n,
        }
        return {name: value if math.isfinite(value) else None for name, value in found.items()}

    def _band(self, x: ArrayLike, level: float, own: float) -> tuple[Any, Any]:
        if isinstance(level, bool) or not 0 < level < 1:
            raise GeneralizationError(
                f"level is {level!r}; expected a probability between 0 and 1, e.g. 0.95"
            )
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
        GeneralizationError: If there are too few points, or x and y are not finite real numbers of
            one length, or all x are equal.

    Source: Draper, Smith, Applied Regression Analysis (3rd ed., 1998), §1.2-1.4.
    """
    first, second = _values("x", x), _values("y", y)
    n = len(first)
    if n != len(second):
        raise GeneralizationError(
            f"{n} x but {len(second)} y; expected one y for every x of the line"
        )
    if n < FEWEST:
        raise GeneralizationError(f"a line and its errors need at least {FEWEST} points, got {n}")
    if (first == first[0]).all():
        raise GeneralizationError(
            f"all {n} x are {first[0]:g}; a line needs points with different x"
        )
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        found = _fit(first, second)
    needed = (found.slope, found.intercept, found.x_spread, found.intercept_error, found.rmse)
    if not np.isfinite(needed).all():
        raise GeneralizationError("the numbers are too large for a line in float64; rescale them")
    return found


def _fit(x: Values, y: Values) -> LineFit:
    n = len(x)
    x_mean, dx, x_spread = _centred(x)
    y_mean, dy, y_spread = _centred(y)
    correlation = float(dx @ dy)
    residuals = dy - correlation * dx
    rest = float(np.linalg.norm(residuals))  # relative to y_spread
    # the sum of these squares is 1: the smaller one is free of cancellation, and R² in [0, 1]
    r2 = (correlation**2 if rest > 0.8 else 1 - rest**2) if y_spread else math.nan
    slope = correlation * y_spread / x_spread
    deviation = y_spread * rest / math.sqrt(n - 2)
    slope_error = deviation / x_spread
    return LineFit(
        slope=slope,
        intercept=y_mean - slope * x_mean,
        r2=r2,
        adjusted_r2=1 - (1 - r2) * (n - 1) / (n - 2),
        rmse=y_spread * rest / math.sqrt(n),
        slope_error=slope_error,
        intercept_error=math.hypot(deviation / math.sqrt(n), slope_error * x_mean),
        n=n,
        x_mean=x_mean,
        y_mean=y_mean,
        x_spread=x_spread,
    )


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


def _values(name: str, given: ArrayLike) -> Values:
    try:
        array = np.asarray(given)
    except (TypeError, ValueError) as error:  # rows of different lengths
        raise GeneralizationError(f"{name} is no array of numbers: {error}") from error
    if array.dtype.kind not in "iuf":
        raise GeneralizationError(f"{name} is of type {array.dtype}; expected real numbers")
    if array.ndim != 1:
        raise GeneralizationError(f"{name} has shape {array.shape}; expected one row of numbers")
    values = array.astype(np.float64)
    if not np.isfinite(values).all():
        place = int(np.flatnonzero(~np.isfinite(values))[0])
        raise GeneralizationError(f"{name} is {values[place]} at position {place}; leave it out")
    return values
