"""Tree networks against their formulas, finite differences and shallow networks."""

import numpy as np
import pytest

from hessrmt import rng
from hessrmt.errors import ConvergenceError, DataError
from hessrmt.generalization.approximation import (
    TARGETS,
    ApproximationStudy,
    Tree,
    fit,
    study,
    tree_function,
)
from hessrmt.plots.generalization import approximation_errors

EPS = np.finfo(float).eps


@pytest.mark.parametrize("name", TARGETS)
def test_tree_functions_are_nested_constituents_within_their_bounds(name):
    h = (TARGETS[name].constituents * 7)[:7]
    x = rng.stream(1, "points").uniform(-1, 1, size=(500, 8))
    x = np.sign(x) if TARGETS[name].boolean else x
    x[:2] = [[1] * 8, [-1] * 8]
    a, b, c, d = (h[i](x[:, 2 * i], x[:, 2 * i + 1]) for i in range(4))
    expected = h[6](h[4](a, b), h[5](c, d))
    found = tree_function(name, x)
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found).max() <= 1 + 4 * EPS


def test_tree_networks_count_their_units_as_the_theorem_does():
    for n, q in [(2, 3), (4, 5), (16, 2)]:
        deep, shallow = Tree(n, q), Tree(n, (n - 1) * q, arity=n)
        assert deep.units == shallow.units == (n - 1) * q
        assert len(deep.initial(rng.stream(0))) == deep.parameters == (n - 1) * (4 * q + 1)
        assert shallow.parameters == shallow.units * (n + 2) + 1


def test_a_tree_of_absolute_differences_is_exact():
    # |a - b| = max(0, a - b) + max(0, b - a) at every node, the order of the nodes included:
    # the node of the first two inputs is multiplied by 2
    node = np.array([1, -1, -1, 1, 0, 0, 1, 1, 0], dtype=float)
    theta = np.tile(node, (3, 1))
    theta[0, 6:8] = 2
    x = rng.stream(2, "points").uniform(-1, 1, size=(50, 4))
    expected = np.abs(2 * np.abs(x[:, 0] - x[:, 1]) - np.abs(x[:, 2] - x[:, 3]))
    found = Tree(4, 2).values(theta.ravel(), x)
    np.testing.assert_allclose(found, expected, atol=10 * EPS)


@pytest.mark.parametrize("network", [Tree(2, 4), Tree(8, 3), Tree(4, 5, arity=4), Tree(9, 2, 3)])
def test_jacobian_is_that_of_central_differences(network):
    draw = rng.stream(3, "jacobian")
    theta = network.initial(draw)
    x = draw.uniform(-1, 1, size=(20, network.inputs))
    value, table = network.jacobian(theta, x)
    np.testing.assert_array_equal(value, network.values(theta, x))
    # piecewise multilinear: differences are exact but for round-off ε/h, unless a kink is within h
    h = 1e-6
    for j, unit in enumerate(np.eye(network.parameters)):
        step = (network.values(theta + h * unit, x) - network.values(theta - h * unit, x)) / (2 * h)
        np.testing.assert_allclose(table[:, j], step, atol=100 * EPS / h * np.abs(table).max())


def test_fit_recovers_a_teacher_and_never_goes_uphill():
    draw = rng.stream(4, "teacher")
    network = Tree(4, 3)
    teacher = network.initial(draw)
    x = draw.uniform(-1, 1, size=(600, 4))
    y = network.values(teacher, x)
    start = teacher + 0.02 * draw.normal(size=len(teacher))
    fitted = [fit(network, start, x, y, steps) for steps in (0, 1, 2, 4, 8, 60)]
    costs = [float(np.square(network.values(theta, x) - y).sum()) for theta in fitted]
    assert (np.diff(costs) <= 0).all()
    assert costs[-1] < 1e-12 * costs[0]
    with pytest.raises(ConvergenceError, match="first parameters"):
        fit(network, np.full(len(teacher), np.inf), x, y, 3)


def test_exponents_of_power_laws_are_exact():
    units = np.array([6.0, 12, 24, 48])
    slopes = np.array([0.4, 0.5, 0.9])
    power = 3 * units[:, None] ** -slopes
    errors = {"deep": power, "shallow": 2 * power}
    found = ApproximationStudy("sine", 4, units, errors, errors, errors, {})
    exponent = found.exponent("deep")
    assert exponent.exponent == pytest.approx(0.6, rel=1e-12)
    assert exponent.error == pytest.approx(slopes.std(ddof=1) / np.sqrt(3), rel=1e-12)
    gain, spread = found.advantage()
    assert gain == pytest.approx(np.log(2), rel=1e-12)
    assert spread < 1e-12
    panel = approximation_errors([found]).axes[0]
    for kind, container in zip(("deep", "shallow"), panel.containers, strict=True):
        line = container.lines[0]
        np.testing.assert_allclose(line.get_ydata(), np.exp(np.log(errors[kind]).mean(1)))


@pytest.mark.parametrize(("constituent", "inputs"), [("polynomial", 8), ("sine", 4), ("cone", 4)])
def test_deep_beats_shallow_at_equal_units(constituent, inputs):
    widths = (3, 6) if inputs == 8 else (3, 9)
    found = study(constituent, inputs, widths, seeds=4, samples=1024, iterations=40)
    for norm in ("l2", "sup"):
        gain, error = found.advantage(norm=norm)
        # Student's t of 3 degrees of freedom: 4.5 standard errors are p = 0.01, one-sided
        assert gain > 4.5 * error, norm
    assert found.l2["deep"][-1].mean() < 0.6 * found.l2["deep"][0].mean()
    assert found.parameters["deep"][-1] < found.parameters["shallow"][-1]
    assert (found.sup["deep"] > found.l2["deep"]).all()


def test_a_study_repeats_itself():
    options = {"seeds": 2, "samples": 128, "iterations": 5, "start": "random"}
    one, two, other = (study("sine", 2, (1, 2), seed=s, **options) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.l2["deep"], two.l2["deep"])
    assert not np.isclose(one.l2["deep"], other.l2["deep"]).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"constituent": "max"}, "known: polynomial"),
        ({"inputs": 6}, "2, 4, 8, 16"),
        ({"inputs": 1}, "2, 4, 8, 16"),
        ({"widths": (4,)}, "two or more increasing"),
        ({"widths": (4, 2)}, "increasing"),
        ({"widths": (1.5, 2)}, "a width must be"),
        ({"seeds": 0}, "seeds must be"),
        ({"samples": 64}, "cannot test"),
        ({"start": "warm"}, "known: nodes"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        study(**{"widths": (2, 4), "samples": 512, "seeds": 1, "iterations": 1, **change})
