"""Polynomials by smooth units and squares by ReLUs, against monomials and closed forms.

Theorems are those of Poggio, Banburski and Liao 2020.
"""

import itertools
from math import comb

import numpy as np
import pytest

from hessrmt import rng
from hessrmt.errors import DataError
from hessrmt.generalization.approximation import ACTIVATIONS, Tree, study, tree_function
from hessrmt.generalization.polynomials import SMOOTH, realize, squared_relu, squares
from hessrmt.plots.generalization import polynomial_errors, square_errors

EPS = np.finfo(float).eps


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize(("kind", "inputs", "degree"), [("shallow", 3, 2), ("deep", 4, 2)])
def test_the_units_of_theorems_2_and_3_are_enough_and_one_less_is_not(
    kind, inputs, degree, activation
):
    scales = 2.0 ** -np.arange(6, 13)
    found = realize(kind, inputs, degree, activation=activation, scales=scales, polynomials=3)
    each = comb((2 if kind == "deep" else inputs) + degree, degree)
    assert found.units == each * (inputs - 1 if kind == "deep" else 1)
    # O(h) for h → 0: the last halving of h by a factor of 2^0.7 at least
    errors, fewer = (np.exp(np.log(x).mean(1)) for x in (found.errors, found.fewer))
    assert (np.diff(errors) < 0).all()
    assert errors[-1] < errors[-2] / 2**0.7
    # with one unit less the span lacks a polynomial, which no scale makes up for
    assert fewer[-1] > 0.9 * fewer[-2]
    assert fewer[-1] > 5 * errors[-1]


def test_units_of_a_degree_are_exact_for_what_their_series_ends_with():
    """tanh and softplus have a linear part: one unit does for a linear polynomial up to O(h²)."""
    found = realize("shallow", 1, 1, scales=[1e-3, 1e-4], polynomials=4)
    assert found.units == 2
    assert found.errors.max() < 0.1


@pytest.mark.parametrize("levels", [1, 2, 5, 9])
def test_squares_of_relus_have_yarotskys_error_exactly(levels):
    x = np.linspace(-1, 1, 4097)
    found, exact = squared_relu(x, levels), np.maximum(x, 0) ** 2
    assert np.abs(found - exact).max() <= 4.0 ** -(levels + 1) + 4 * EPS
    knots = np.arange(2**levels + 1) / 2.0**levels
    np.testing.assert_allclose(squared_relu(knots, levels), knots**2, atol=4 * EPS)
    middles = (knots[1:] + knots[:-1]) / 2
    off = squared_relu(middles, levels) - middles**2
    np.testing.assert_allclose(off, 4.0 ** -(levels + 1), atol=4 * EPS)
    study_ = squares(levels)
    np.testing.assert_allclose(study_.deep, 4.0 ** -np.arange(2.0, levels + 2), atol=4 * EPS)
    assert (study_.bound < study_.shallow).all()


def test_no_shallow_network_is_below_the_bound():
    """The best piecewise linear fit with p pieces of x², by linear programming's answer 1/(8p²)."""
    units = squares(3).units
    for u, bound in zip(units, squares(3).bound, strict=True):
        knots = np.arange(u + 2) / (u + 1)
        x = np.linspace(0, 1, 20_001)
        # interpolation, lowered by half of its error: equal errors above and below
        best = np.interp(x, knots, knots**2 - 1 / (8 * (u + 1) ** 2))
        assert np.abs(best - x**2).max() == pytest.approx(bound, rel=1e-3)


def test_parity_needs_n_units_of_one_layer_and_two_at_each_node():
    n = 8
    cube = np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
    parity = tree_function("parity", cube)
    np.testing.assert_array_equal(parity, cube.prod(axis=1))
    # kinks at -n, -n + 2, ..., n - 2 of Σx; the slope changes by 1, then by 2 with changing sign
    sums, signs = np.arange(-n, n, 2.0), (-1.0) ** np.arange(n)
    c = signs * np.r_[1, np.full(n - 1, 2.0)] * -1
    shallow = Tree(n, n, n)
    theta = np.concatenate([np.ones(n * n), -sums, c, [1.0]])
    np.testing.assert_allclose(shallow.values(theta, cube), parity, atol=100 * EPS)
    # ab = |a + b| - 1 for a, b = ±1
    node = np.array([1.0, 1.0, -1.0, -1.0, 0.0, 0.0, 1.0, 1.0, -1.0])
    found = Tree(n, 2).values(np.tile(node, n - 1), cube)
    np.testing.assert_allclose(found, parity, atol=100 * EPS)


def test_boolean_functions_are_fitted_and_tested_at_all_points():
    found = study("parity", 4, (1, 2), seeds=2, iterations=40)
    assert found.enough("deep") == 6
    for kind in ("deep", "shallow"):
        np.testing.assert_array_equal(found.l2[kind], found.fitted[kind])
    with pytest.raises(DataError, match="at most 12 inputs"):
        study("parity", 16, (1, 2))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_jacobians_of_all_units_are_those_of_central_differences(activation):
    draw = rng.stream(3, "jacobian", activation)
    network = Tree(4, 3, activation=activation)
    theta = network.initial(draw)
    x = draw.uniform(-1, 1, size=(10, 4))
    _, table = network.jacobian(theta, x)
    h = 1e-6
    for j, unit in enumerate(np.eye(network.parameters)):
        step = (network.values(theta + h * unit, x) - network.values(theta - h * unit, x)) / (2 * h)
        # round-off ε/h and a third derivative times h²/6, both of tens of the largest entry at most
        atol = 100 * (EPS / h + h * h) * np.abs(table).max()
        np.testing.assert_allclose(table[:, j], step, atol=atol)


def test_smooth_units_do_better_for_smooth_functions():
    errors = {
        activation: study(
            "sine", 2, (2, 4), seeds=2, samples=64, iterations=20, activation=activation
        ).mean("deep")[0][-1]
        for activation in ("relu", "softplus")
    }
    assert errors["softplus"] < errors["relu"] / 3


def test_pictures_of_polynomials_and_squares():
    found = realize("shallow", 2, 1, scales=[0.5, 0.25], polynomials=2)
    axes = polynomial_errors(found).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), np.exp(np.log(found.errors).mean(1)))
    drawn = square_errors(squares(3)).axes[0].lines[0]
    np.testing.assert_array_equal(drawn.get_ydata(), squares(3).deep)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("tree", 2, 2), {}, "known: deep, shallow"),
        (("shallow", 0, 2), {}, "inputs must be"),
        (("shallow", 2, 0), {}, "degree must be"),
        (("deep", 3, 2), {}, "2, 4, 8, 16"),
        (("shallow", 2, 2), {"activation": "relu"}, "known: softplus, tanh"),
        (("shallow", 2, 2), {"scales": [0.1, 0.2]}, "must fall"),
        (("shallow", 2, 2), {"polynomials": 0}, "polynomials must be"),
        (("shallow", 16, 8), {}, "735,471 units are too many"),
    ],
)
def test_polynomials_that_cannot_be(arguments, options, message):
    with pytest.raises(DataError, match=message):
        realize(*arguments, **options)


def test_levels_beyond_round_off_are_refused():
    with pytest.raises(DataError, match="at most 20"):
        squares(21)
