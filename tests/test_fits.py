"""Least-squares lines, against exact rational arithmetic, SciPy, NumPy and simulated coverage."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from hessrmt import rng
from hessrmt.errors import DataError
from hessrmt.generalization import fit_line

EPS = np.finfo(np.float64).eps


def exact(x, y):
    """Slope, intercept, residual and total sums of squares without any rounding."""
    x, y = [Fraction(float(v)) for v in x], [Fraction(float(v)) for v in y]
    n = len(x)
    mean_x, mean_y = sum(x) / n, sum(y) / n
    xx = sum((a - mean_x) ** 2 for a in x)
    xy = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    slope = xy / xx
    intercept = mean_y - slope * mean_x
    rest = sum((b - slope * a - intercept) ** 2 for a, b in zip(x, y, strict=True))
    return slope, intercept, rest, sum((b - mean_y) ** 2 for b in y), xx


def losses(n=25, spread=1e-4, noise=5e-6, at=2.3021):
    """Normalised losses as they are: close to each other, and close to ln 10."""
    draw = rng.stream(3, "lines")
    x = at + spread * draw.uniform(-1, 1, n)
    return x, 0.84 * x + 0.377 + noise * draw.normal(size=n)


@pytest.mark.parametrize(
    ("spread", "noise"), [(1e-4, 5e-6), (1e-10, 1e-11), (0.1, 0.0), (2.0, 3.0)]
)
def test_against_exact_arithmetic(spread, noise):
    x, y = losses(spread=spread, noise=noise)
    fit = fit_line(x, y)
    slope, intercept, rest, total, xx = exact(x, y)
    n = len(x)
    # differences to the means are exact up to n ε of the largest one, products and sums add 2n ε
    unit = 8 * n * EPS
    steep = math.sqrt(total / xx)
    assert abs(fit.slope - slope) <= unit * steep
    near = EPS * (abs(fit.y_mean) + abs(fit.slope * fit.x_mean))
    assert abs(fit.intercept - intercept) <= 4 * near + unit * steep * abs(fit.x_mean)
    assert abs(fit.r2 - (1 - rest / total)) <= 2 * unit
    assert abs(fit.rmse - math.sqrt(rest / n)) <= unit * math.sqrt(total)
    error = math.sqrt(rest / (n - 2) / xx)
    assert abs(fit.slope_error - error) <= unit * steep
    assert fit.deviation == pytest.approx(fit.rmse * math.sqrt(n / (n - 2)), rel=4 * EPS)


def test_against_scipy_and_numpy():
    draw = rng.stream(4, "lines")
    x = draw.uniform(-1, 3, 40)
    y = 0.7 * x - 2 + draw.normal(size=40)
    fit, line = fit_line(x, y), stats.linregress(x, y)
    # both are backward stable and the data well conditioned: n ε times the condition, about 10
    close = 10 * 40 * EPS
    found = fit.slope, fit.intercept, fit.slope_error, fit.intercept_error
    wanted = line.slope, line.intercept, line.stderr, line.intercept_stderr
    assert found == pytest.approx(wanted, rel=close)
    adjusted = 1 - (1 - line.rvalue**2) * 39 / 38
    assert (fit.r2, fit.adjusted_r2) == pytest.approx((line.rvalue**2, adjusted), rel=close)
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    assert fit.slope == pytest.approx(slope, rel=close)
    np.testing.assert_allclose(fit.covariance, covariance, rtol=close)
    # bands from NumPy's covariance
    assert fit(np.array([[0.0, 2.0]])).shape == (1, 2)
    at = np.linspace(-2, 4, 9)
    variance = at**2 * covariance[0, 0] + 2 * at * covariance[0, 1] + covariance[1, 1]
    noise = np.sum((y - fit(x)) ** 2) / 38
    for level in (0.5, 0.95):
        student = stats.t.ppf((1 + level) / 2, 38)
        for band, square in (
            (fit.confidence_band, variance),
            (fit.prediction_band, variance + noise),
        ):
            lower, upper = band(at, level)
            # subtracting the middle costs ε|y|, and the quantile of t has about 1e-12
            np.testing.assert_allclose((upper - lower) / 2, student * np.sqrt(square), rtol=1e-11)
            np.testing.assert_allclose((upper + lower) / 2, slope * at + line.intercept, rtol=1e-12)


def test_r2_is_never_negative():
    draw = rng.stream(6, "no slope")
    for _ in range(300):
        x, y = draw.normal(size=(2, 5))
        x -= x.mean()
        y -= y.mean()
        y -= (x @ y) / (x @ x) * x  # uncorrelated but for rounding, of 5 terms
        assert 0 <= fit_line(x, y).r2 <= (10 * EPS) ** 2


def test_equal_values_have_no_r2():
    fit = fit_line([1, 2, 3, 4], [7, 7, 7, 7])
    assert (fit.slope, fit.intercept, fit.rmse) == (0, 7, 0)
    assert math.isnan(fit.r2)
    written = json.dumps(fit.to_dict(), allow_nan=False)
    assert json.loads(written)["r2"] is None
    assert json.loads(written)["n"] == 4


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        ([], [], "at least 3 points, got 0"),
        ([1, 2], [1, 2], "at least 3 points, got 2"),
        ([1, 2, 3], [1, 2], "3 x but 2 y"),
        ([2.3, 2.3, 2.3], [1, 2, 3], "all 3 x are 2.3"),
        ([1, math.nan, 3], [1, 2, 3], "x must be finite"),
        ([1, 2, 3], [1, 2, math.inf], "y must be finite"),
        ([[1, 2, 3]], [1, 2, 3], r"x must have 1 dimension.* shape \(1, 3\)"),
        ([1, 2, 3], ["a", "b", "c"], "y must be real numbers"),
        ([1e308, -1e308, 1.7e308], [1, 2, 3], "too large"),
        ([0, 5e-324, 1e-323], [1e300, 2e300, 4e300], "too large"),
    ],
)
def test_refusals(x, y, said):
    with pytest.raises(DataError, match=said):
        fit_line(x, y)


@pytest.mark.parametrize("level", [0, 1, 95, -0.5, math.nan, True])
def test_a_level_is_a_probability(level):
    fit = fit_line([1, 2, 3], [1, 3, 2])
    for band in (fit.confidence_band, fit.prediction_band):
        with pytest.raises(DataError, match=r"expected a probability .* 0\.95"):
            band(1, level)
