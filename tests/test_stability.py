"""Cross-validation: errors left out by formula against leaving out, flows against closed forms."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from hessrmt import rng
from hessrmt.errors import DataError
from hessrmt.experiments.experiment import Estimate
from hessrmt.generalization import bias_free
from hessrmt.generalization.bias_free import initial_layers, linear_task, maximum_margin
from hessrmt.generalization.flow import gradient_flow
from hessrmt.generalization.stability import (
    leave_one_out,
    left_out_errors,
    normalized_margins,
    square_flow,
    square_loss_study,
)
from hessrmt.plots.generalization import square_loss, stability

EPS = np.finfo(float).eps


def problem(n, d, name="least squares"):
    draw = rng.stream(11, name, n, d)
    return draw.normal(size=(n, d)), draw.normal(size=n), draw.normal(size=d)


@pytest.mark.parametrize(("n", "d"), [(4, 9), (12, 5)])
def test_the_square_flow_solves_its_equation(n, d):
    x, y, start = problem(n, d)
    solved = solve_ivp(lambda _, w: x.T @ (y - x @ w), (0, 0.3), start, rtol=1e-11, atol=1e-12).y[
        :, -1
    ]
    np.testing.assert_allclose(square_flow(x, y, 0.3, start), solved, atol=1e-9)
    np.testing.assert_array_equal(square_flow(x, y, 0.0, start), start)


def test_the_flow_from_zero_ends_in_the_least_norm_solution_and_others_elsewhere():
    x, y, start = problem(4, 9)
    least = np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(square_flow(x, y), least, atol=1e3 * EPS * np.linalg.norm(least))
    other = square_flow(x, y, start=start)
    np.testing.assert_allclose(x @ other, y, atol=1e3 * EPS * np.linalg.norm(start))
    # the nearest interpolant to the start: what moved is seen by X
    assert np.linalg.norm(other) > np.linalg.norm(least)
    unseen = np.eye(9) - np.linalg.pinv(x) @ x
    np.testing.assert_allclose(unseen @ other, unseen @ start, atol=1e3 * EPS)


@pytest.mark.parametrize(("n", "d"), [(5, 9), (5, 6), (12, 5)])
@pytest.mark.parametrize("started", [False, True])
def test_errors_left_out_are_those_of_leaving_out(n, d, started):
    x, y, start = problem(n, d, "left out")
    start = start if started else np.zeros(d)
    found = left_out_errors(x, y, start)
    for i in range(n):
        kept = np.arange(n) != i
        w = square_flow(x[kept], y[kept], start=start)
        condition = np.linalg.cond(x) ** 2
        assert found[i] == pytest.approx(x[i] @ w - y[i], abs=1e3 * EPS * condition)


def test_sensitivity_and_expected_error_are_those_of_the_closed_forms():
    n, sigma, draws = 12, 0.5, 150
    found = square_loss_study(n, (4, 30, 60), noise=sigma, draws=draws, seed=2)
    zero = found.starts.index("zero")
    for i, d in enumerate((4, 30, 60)):
        of = Estimate.of(found.sensitivity[i])
        expected = d / (n - d - 1) if d < n else n / (d - n - 1)
        assert found.expected_sensitivity[i] == expected
        assert abs(of.mean - expected) < 4 * of.error
        error = Estimate.of(found.error[zero, i])
        # Hastie et al. 2022: bias of what X doesn't see, and the noise
        law = max(1 - n / d, 0) + sigma**2 * expected
        assert abs(error.mean - law) < 4 * error.error
        # one sample less: the left-out error is the expected error at n - 1 samples, noise included
        left = Estimate.of(found.left_out[zero, i])
        fewer = d / (n - 2 - d) if d < n else (n - 1) / (d - n)
        law = max(1 - (n - 1) / d, 0) + sigma**2 * (fewer + 1)
        assert abs(left.mean - law) < 4 * left.error
    assert found.off.max() < 1e-9
    # a random start adds what X doesn't see of it, 1 - n/d of its square
    added = Estimate.of(found.error[1, 2] - found.error[0, 2])
    assert abs(added.mean - (1 - n / 60)) < 4 * added.error


def test_leaving_out_along_a_flow_is_leaving_out():
    x, y = linear_task(5, 2, seed=4)
    layers = initial_layers([2, 1])
    fresh = linear_task(40, 2, seed=4)
    found = leave_one_out(layers, x, y, fresh, log_time=6, saved=4, rtol=1e-8, atol=1e-10)
    assert found.log_times.tolist() == [0, 2, 4, 6]
    kept = np.arange(5) != 2
    flow = gradient_flow(layers, x[kept], y[kept], log_time=6, saved=4)
    others = []
    for i in range(5):
        part = np.arange(5) != i
        one = gradient_flow(layers, x[part], y[part], log_time=6, saved=4)
        others.append(normalized_margins(one, x[[i]], y[[i]])[:, 0])
    assert others[2][-1] == pytest.approx(y[2] * (flow.directions[0][-1] @ x[2])[0], rel=1e-9)
    expected = np.exp(-np.array(others)).mean(axis=0)
    np.testing.assert_allclose(found.left_out_loss, expected, rtol=1e-5)
    np.testing.assert_array_equal(found.left_out_error, (np.array(others) <= 0).mean(axis=0))
    every = gradient_flow(layers, x, y, log_time=6, saved=4)
    np.testing.assert_allclose(found.margin, every.margin, rtol=1e-5)
    within = np.exp(-every.margins).T
    gap = np.abs(np.exp(-np.array(others)) - within).mean(axis=0)
    np.testing.assert_allclose(found.instability, gap, atol=1e-5)


def test_a_sample_that_supports_nothing_can_be_left_out():
    """Once a hyperplane has its maximum margin, only support vectors are worth anything."""
    x, y = linear_task(8, 2, gap=1.0, seed=3)
    best = maximum_margin(x, y)
    idle = [i for i in range(8) if i not in best.support]
    kept = np.arange(8) != idle[0]
    ends = [
        gradient_flow(initial_layers([2, 1]), x[k], y[k], log_time=2000, saved=2)
        for k in (np.ones(8, bool), kept)
    ]
    a, b = (end.linear_direction() for end in ends)
    assert np.linalg.norm(a - b) < 2e-2
    assert maximum_margin(x[kept], y[kept]).margin == pytest.approx(best.margin, rel=1e-9)


def test_pictures_of_stability():
    found = square_loss_study(4, (2, 8), draws=3)
    drawn = square_loss(found).axes[0].lines[0].get_ydata()
    np.testing.assert_array_equal(drawn, np.median(found.error[0], axis=1))
    x, y = linear_task(3, 2, seed=4)
    flow = leave_one_out(initial_layers([2, 1]), x, y, (x, y), log_time=1, saved=3)
    line = stability(flow).axes[0].lines[0]
    np.testing.assert_array_equal(line.get_ydata(), flow.instability)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: square_flow(np.eye(2), np.ones(3)), "expected"),
        (lambda: square_flow(np.eye(2), np.ones(2), -1.0), "time must be"),
        (lambda: left_out_errors(np.eye(3), np.ones(3)), "full rank"),
        (lambda: left_out_errors(np.ones((2, 5)), np.ones(2)), "full rank"),
        (lambda: square_loss_study(10, (11,)), "must not be 9, 10 or 11"),
        (lambda: square_loss_study(10, (5,), noise=-1.0), "noise"),
        (
            lambda: leave_one_out(initial_layers([2, 1]), np.eye(1, 2), [1], (np.eye(2), [1, 1])),
            "at least two",
        ),
        (
            lambda: leave_one_out(
                initial_layers([2, 1]), np.eye(2), [1, 1], (np.eye(2), [1, 1]), loss="cross-entropy"
            ),
            "known: exponential, logistic",
        ),
    ],
)
def test_what_has_no_stability_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()


def test_losses_of_the_bias_free_networks_are_those_of_margins():
    x, y = linear_task(6, 3, seed=9)
    layers = initial_layers([3, 2, 1])
    flow = gradient_flow(layers, x, y, activation="smooth-relu", log_time=0.1, saved=2)
    outputs = bias_free.forward(bias_free.split_scales(layers)[1], x, "smooth-relu")[:, 0]
    np.testing.assert_allclose(normalized_margins(flow, x, y)[0], y * outputs, atol=1e-12)
