"""Laws of the best validation loss against the budget, and ``reproduce training-budget``."""

import json
import math

import numpy as np
import pytest
from experiment_samples import run_twice, write_settings

from hessrmt import rng
from hessrmt.errors import DataError
from hessrmt.experiments.training_budget import scaled_rate
from hessrmt.generalization.fits import fit_budgets, fit_law
from hessrmt.problems import checkpoints

PAPER = np.array([15, 30, 45, 60, 90, 120, 150, 180, 210, 270, 300.0])
TRUE = {"exponential": (0.9, 0.6, 50.0), "power": (0.5, 0.8, 0.6)}
EPS = np.finfo(float).eps


def law(name, budgets):
    limit, amplitude, shape = TRUE[name]
    if name == "exponential":
        return limit + amplitude * np.exp(-budgets / shape)
    return limit + amplitude * (budgets / budgets.min()) ** -shape


@pytest.mark.parametrize("name", TRUE)
def test_an_exact_law_is_found_again(name):
    found = fit_budgets(PAPER, law(name, PAPER))
    fit = found.laws[name]
    # curve_fit ends when a step changes χ² or the parameters by less than √ε-ish: 1.5e-8
    assert (fit.limit, fit.amplitude, fit.shape) == pytest.approx(TRUE[name], rel=1e-6)
    assert found.preferred == name
    assert 1 - fit.r2 < 1e-12
    np.testing.assert_allclose(fit(PAPER), law(name, PAPER), rtol=1e-6)


@pytest.mark.parametrize("name", TRUE)
def test_errors_of_parameters_are_their_spread(name):
    """100 noisy ladders: mean and spread of the parameters, χ² of 8 degrees of freedom."""
    noise, n = 0.002, 100
    draw = rng.stream(0, "budget noise", name)
    fits = []
    for _ in range(n):
        values = law(name, PAPER) + noise * draw.normal(size=len(PAPER))
        fits.append(fit_law(name, PAPER, values, np.full(len(PAPER), noise)))
    for true, value in zip(TRUE[name], ("limit", "amplitude", "shape"), strict=True):
        pulls = np.array([(getattr(f, value) - true) / getattr(f, f"{value}_error") for f in fits])
        # linearised errors: the median is free of the skewness of τ and b; 1.25/√n is its error
        assert abs(np.median(pulls)) < 4 * 1.25 / n**0.5
        # a standard deviation from the quartiles has the relative error 1.17/√n
        spread = (np.quantile(pulls, 0.75) - np.quantile(pulls, 0.25)) / 1.349
        assert abs(spread - 1) < 4 * 1.17 / n**0.5
    assert abs(np.mean([fit.chi2 for fit in fits]) - 8) < 4 * (16 / n) ** 0.5
    assert abs(np.mean([fit.p_value for fit in fits]) - 0.5) < 4 / (12 * n) ** 0.5


@pytest.mark.parametrize("name", TRUE)
def test_the_law_behind_the_data_is_preferred(name):
    """The wrong law is never decisively preferred where noise is well below their difference."""
    draw = rng.stream(1, "budget comparison", name)
    names = []
    for _ in range(25):
        values = law(name, PAPER) + 0.003 * draw.normal(size=len(PAPER))
        names.append(fit_budgets(PAPER, values, np.full(len(PAPER), 0.003)).preferred)
    assert names.count(name) > 20
    assert set(names) <= {name, "neither"}


def test_criterion_by_hand():
    values = law("exponential", PAPER) + 0.01 * np.cos(PAPER)
    n = len(PAPER)
    plain = fit_budgets(PAPER, values)
    weighed = fit_budgets(PAPER, values, 0.01 * np.ones(n))
    for name, fit in plain.laws.items():
        residuals = values - fit(PAPER)
        rss = float(residuals @ residuals)
        # Burnham, Anderson eq. 2.4 with the variance as fourth parameter
        assert fit.aicc == pytest.approx(n * math.log(rss / n) + 8 + 2 * 4 * 5 / (n - 5))
        assert fit.chi2 is fit.p_value is None
        assert fit.r2 == pytest.approx(1 - rss / ((values - values.mean()) ** 2).sum())
        other = weighed.laws[name]
        residuals = (values - other(PAPER)) / 0.01
        assert other.chi2 == pytest.approx(residuals @ residuals)
        assert other.aicc == pytest.approx(other.chi2 + 6 + 2 * 3 * 4 / (n - 4))
    for fits in (plain, weighed):
        difference = fits.laws["power"].aicc - fits.laws["exponential"].aicc
        assert fits.difference == pytest.approx(difference)
    # four points: no correction exists, but it would be the same for both
    four = fit_budgets(PAPER[:4], np.array([4, 2, 1.2, 1.0]), np.full(4, 0.1))
    assert [fit.aicc for fit in four.laws.values()] == [None, None]
    assert four.difference == four.laws["power"].chi2 - four.laws["exponential"].chi2


def test_units_do_not_matter():
    values = law("exponential", PAPER) + 0.004 * np.sin(PAPER)
    days, hours = fit_budgets(PAPER, values), fit_budgets(24 * PAPER, 1e-6 * values)
    for name, fit in days.laws.items():
        other, unit = hours.laws[name], 24 if name == "exponential" else 1
        # both end within curve_fit's 1.5e-8 of the minimum, where χ² is flat to its square root
        assert other.limit == pytest.approx(1e-6 * fit.limit, rel=1e-5)
        assert other.shape == pytest.approx(fit.shape * unit, rel=1e-4)
    assert hours.difference == pytest.approx(days.difference, rel=1e-4)


@pytest.mark.parametrize(
    ("budgets", "values", "errors", "said"),
    [
        ([1, 2, 3], [3, 2, 1], None, "at least 4 budgets, got 3"),
        ([1, 2, 3, 4], [3, 2, 1], None, "4 budgets but 3 values"),
        ([1, 2, 3, 4], [3, 2, math.nan, 1], None, "leave out a run that diverged"),
        ([1, 2, 3, 4], [3, 2, math.inf, 1], None, "values must be finite"),
        ([1, 2, 2, 4], [3, 2, 2, 1], None, "budgets must differ"),
        ([0, 1, 2, 3], [3, 2, 2, 1], None, "budgets must be positive"),
        ([1, 2, 3, 4], [4, 3, 2, 1], [1, 1, 0, 1], "errors must be positive"),
        ([1, 2, 3, 4], [4, 3, 2, 1], [1, 1], "4 budgets but 2 errors"),
        ([1, 2, 3, 4], ["a"] * 4, None, "values must be real numbers"),
        ([1, 2, 3, 4], [[1], [2], [3], [4]], None, "values must have 1 dimension"),
        ([1, 2, 3, 4], [True, False, True, True], None, "values must be real numbers"),
    ],
)
def test_what_cannot_be_fitted(budgets, values, errors, said):
    with pytest.raises(DataError, match=said):
        fit_budgets(budgets, values, errors)


@pytest.mark.parametrize(
    ("values", "law", "said"),
    [
        (5 - 0.01 * PAPER, "exponential", "no limit is in sight; add larger budgets"),
        (5 - np.log(PAPER), "power", "no limit is in sight; add larger budgets"),
        (np.r_[3.0, np.ones(10)], "exponential", "the drop ends before the second budget"),
        (np.r_[3.0, np.ones(10)], "power", "the drop ends before the second budget"),
        (np.ones(11), "exponential", "all values are 1: there is no drop"),
    ],
)
def test_a_law_that_is_not_determined_is_left_out_with_the_reason(values, law, said):
    found = fit_budgets(PAPER, values)
    assert law not in found.laws
    assert said in found.reasons[law]
    assert found.difference is found.preferred is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_fit_that_does_not_converge_says_so(monkeypatch):
    def fails(*_args, **_options):
        raise RuntimeError("Optimal parameters not found: Number of calls has reached maxfev")

    monkeypatch.setattr("scipy.optimize.curve_fit", fails)
    found = fit_budgets(PAPER, law("power", PAPER))
    assert not found.laws
    assert "the exponential fit did not converge: Optimal" in found.reasons["exponential"]
    json.dumps(found.to_dict(), allow_nan=False)


def test_rates_fall_after_each_third():
    assert [scaled_rate(1.0, 6, e) for e in range(6)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    # He et al.: 30 and 60 of 90 epochs
    rates = [scaled_rate(0.1, 90, e) for e in (29, 30, 59, 60, 89)]
    assert rates == pytest.approx([0.1, 0.01, 0.01, 1e-3, 1e-3], rel=4 * EPS)


def test_everything_from_nothing_and_again(cli, tmp_path, digits):
    path = write_settings(tmp_path, "training-budget", ("seeds = 2", "seeds = 3"))
    found, _, out = run_twice(cli, path, "logistic-6-1.pt", ("lr = 0.02", "lr = 0.03"), "lr (0.02")
    assert [row["budget"] for row in found["runs"]] == [1, 2, 3, 4, 6]
    for row in found["runs"]:
        for number in range(3):
            content = checkpoints.read(out / f"checkpoints/logistic-{row['budget']}-{number}.pt")
            measured = content["extra"]["measured"]
            losses = [item["last"]["test_loss"] for item in measured]
            assert row["seeds"]["best_loss"][number] == min(losses)
            assert row["seeds"]["best_loss_epoch"][number] == 1 + losses.index(min(losses))
            rates = [scaled_rate(0.02, row["budget"], epoch) for epoch in range(row["budget"])]
            assert [item["lr"] for item in measured] == rates
        assert row["best_loss"] == pytest.approx(np.mean(row["seeds"]["best_loss"]))
    firsts = [row["seeds"]["best_loss"] for row in found["runs"]]
    assert len({value for row in firsts for value in row}) == 15  # no two runs share a seed
    assert set(found["fits"]) == {"loss", "error"}
    assert (out / "figures" / "budget.png").stat().st_size > 10_000


def test_too_few_budgets_are_run_and_the_fit_says_why_not(cli, tmp_path, digits):
    changes = ("[1, 2, 3, 4, 6]", "[1, 2, 3]"), ("seeds = 2", "seeds = 1")
    write_settings(tmp_path, "training-budget", *changes)
    result = cli("reproduce", "training-budget.toml", "--out", "few", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    for what in ("loss", "error"):
        assert "at least 4 budgets, got 3" in found["fits"][what]["reason"]
    assert "at least 4 budgets, got 3" in result.stderr
    assert found["runs"][0]["best_loss_error_of_mean"] is None
    assert (tmp_path / "few/figures/budget.png").exists()
