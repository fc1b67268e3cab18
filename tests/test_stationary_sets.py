"""Stationary directions: minima against the flow that ends in them, and how sets are told apart.

Lemmas are those of Poggio, Banburski and Liao 2020.
"""

import numpy as np
import pytest

from hessrmt.errors import DataError
from hessrmt.generalization import bias_free
from hessrmt.generalization.bias_free import initial_layers, linear_task, quadrant_task
from hessrmt.generalization.flow import gradient_flow
from hessrmt.generalization.stationary import (
    StationarySets,
    _told_apart,
    relax,
    stationary_sets,
)
from hessrmt.plots.generalization import stationary_counts


def test_a_minimum_on_the_spheres_is_where_the_fixed_norm_flow_rests():
    x, y = linear_task(8, 3, seed=2)
    start = initial_layers([3, 1], 1)
    rho = 5.0
    scaled = [rho * v for v in bias_free.split_scales(start)[1]]
    flow = gradient_flow(scaled, x, y, kind="fixed-norm", log_time=60, saved=2)
    assert flow.misalignment().max() < 1e-8
    (found,), rest = relax(start, x, y, rho, "exponential", "linear")
    assert rest < 1e-7
    # one minimum, of a convex function on a half sphere; both to the square root of ε in the value
    np.testing.assert_allclose(found, flow.directions[0][-1], atol=1e-6)


@pytest.mark.slow
def test_a_minimum_of_a_relu_network_is_where_the_fixed_norm_flow_rests():
    x, y = quadrant_task(10, 2, seed=3)
    start = initial_layers([2, 4, 1], 0)
    near, _ = relax(start, x, y, 20.0, "exponential", "smooth-relu")
    shaken = [v + 0.01 * w for v, w in zip(near, initial_layers([2, 4, 1], 9), strict=True)]
    units = bias_free.split_scales(tuple(shaken))[1]
    scaled = [20.0**0.5 * v for v in units]
    flow = gradient_flow(
        scaled, x, y, kind="fixed-norm", activation="smooth-relu", log_time=60, saved=2
    )
    outputs = y * bias_free.forward(near, x, "smooth-relu")[:, 0]
    np.testing.assert_allclose(flow.margins[-1], outputs, atol=1e-5)


def test_a_linear_network_has_one_minimum_for_every_flow():
    x, y = linear_task(8, 3, seed=2)
    found = stationary_sets([3, 1], x, y, starts=3, log_time=10, activation="linear", rho=50)
    assert found.classes.tolist() == [[0, 0, 0]] * 4
    assert found.counts.tolist() == [[3]] * 4
    assert found.misalignment.max() < 1e-5
    assert found.stationary == 1
    assert not found.alone("descent", "fixed-norm")
    bars = stationary_counts(found).axes[0].patches
    assert [bar.get_height() for bar in bars] == [3] * 4


def test_a_flow_that_cannot_be_followed_takes_no_other_with_it(monkeypatch):
    x, y = linear_task(8, 3, seed=2)
    options = {"starts": 2, "log_time": 10, "activation": "linear", "rho": 50}
    whole = stationary_sets([3, 1], x, y, **options)
    # fewer evaluations than descent needs, and enough for none: minimising alone is left
    monkeypatch.setattr("hessrmt.generalization.stationary._EVALUATIONS", 3)
    found = stationary_sets([3, 1], x, y, **options)
    assert found.classes.tolist() == [[-2, -2]] * 3 + [[0, 0]]
    assert found.counts.tolist() == [[0]] * 3 + [[2]]
    assert np.isnan(found.misalignment[:3]).all()
    np.testing.assert_array_equal(found.misalignment[3], whole.misalignment[3])
    np.testing.assert_array_equal(found.outputs, whole.outputs[:1])


def test_minima_are_told_apart_by_their_outputs_in_the_order_of_their_margins():
    low, high = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.5, 3.0])
    found = np.array([[low, high * 1.0005, -low], [high, low, low * 1.5]])
    rest = np.array([[1e-8, 1e-8, 1e-8], [1e-8, 1e-8, 1e-2]])
    classes, outputs = _told_apart(found, rest)
    # separated ones by number, -1 where a sample is wrong, -2 where nothing is at rest
    assert classes.tolist() == [[1, 0, -1], [0, 1, -2]]
    np.testing.assert_allclose(outputs, [high * 1.0005, low])


def test_what_one_flow_alone_found_has_the_probability_of_chance():
    classes = np.array([[0, 0, 1, 1], [0, 0, 0, 0]])
    sets = StationarySets(
        ("descent", "constrained"), 9.0, classes, np.ones((2, 3)), *np.zeros((2, 2, 4))
    )
    # two arrivals in minimum 1, each on one of two flows with four arrivals
    assert sets.alone("descent", "constrained") == [(1, 2, 0.25)]
    assert sets.alone("constrained", "descent") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"starts": 0}, "starts must be"),
        ({"flows": ("momentum",)}, "known: descent"),
        ({"flows": ()}, "one flow or more"),
        ({"rho": -1.0}, "rho must be"),
    ],
)
def test_sets_that_cannot_be_counted_are_refused(change, message):
    x, y = linear_task(4, 2, seed=2)
    with pytest.raises(DataError, match=message):
        stationary_sets([2, 1], x, y, **{"starts": 1, "log_time": 0.1, **change})
