"""Gradient flows against autodiff, conservation laws, support vector machines and exact limits.

Lemmas, theorems and figures are those of Poggio, Banburski and Liao 2020.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import hessrmt as hr
from hessrmt import rng
from hessrmt.errors import ConvergenceError, DataError
from hessrmt.generalization import bias_free
from hessrmt.generalization.bias_free import (
    ACTIVATIONS,
    LOSSES,
    initial_layers,
    linear_task,
    maximum_margin,
    quadrant_task,
)
from hessrmt.generalization.flow import FLOWS, System, direction_distances, gradient_flow
from hessrmt.plots.generalization import curvature, distances, margin_growth, norms

EPS = np.finfo(float).eps
THREE = ("descent", "constrained", "weight-normalization")
RTOL = 1e-10
"""Of the flows' steps by default; what is conserved may drift by some hundreds of steps' errors."""


def follow(widths, task, seed=0, scale=1.0, activation="smooth-relu", **options):
    start = initial_layers(widths, seed, scale)
    return gradient_flow(start, *task, activation=activation, **options)


def task(loss):
    """Small task, and the number of outputs a network needs for it."""
    if loss == "cross-entropy":
        return (rng.stream(7, "classes").normal(size=(12, 4)), np.arange(12) % 3), 3
    return quadrant_task(12, 4, seed=7), 1


def unflattened(flat, layers):
    pieces = flat.split([w.size for w in layers])
    return [p.reshape(w.shape) for p, w in zip(pieces, layers, strict=True)]


def require_equal_growth(flow):
    """The norms that the solver integrated: their squares grow alike (Lemma 1)."""
    grown = flow.scales[-1] ** 2 - flow.scales[0] ** 2
    assert np.ptp(grown) / grown.mean() < 1e-6


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [[], [5], [5, 3]])
def test_loss_and_gradient_are_those_of_torch(loss, activation, hidden):
    given, outputs = task(loss)
    options = {"loss": loss, "activation": activation, "log_time": 1e-3, "saved": 2}
    flow = follow([4, *hidden, outputs], given, 1, 2.0, **options)
    problem, normalised = flow.problem(0), flow.normalized_problem(0)
    value = float(problem.loss(problem.theta))
    assert float(normalised.loss(normalised.theta)) == pytest.approx(value, rel=1000 * EPS)
    gradient = torch.func.grad(problem.loss)(problem.theta).numpy()
    ours = np.concatenate([g.ravel() for g in flow.log_gradients(0)])
    # some hundred additions and multiplications for each number
    assert flow.log_losses[0] == pytest.approx(np.log(value), abs=1000 * EPS)
    np.testing.assert_allclose(-ours * value, gradient, atol=1000 * EPS * np.abs(gradient).max())


@pytest.mark.parametrize("loss", LOSSES)
def test_logarithms_of_losses_survive_where_losses_underflow(loss):
    outputs = np.array([[900.0, 0.0], [950.0, 0.0]])
    y = np.array([0, 0])
    if loss != "cross-entropy":
        outputs, y = outputs[:, :1], np.array([1.0, 1.0])
    log_loss, pull = bias_free.log_loss_and_pull(loss, outputs, y)
    # the mean of e^-900 and e^-950, whose shares are 1 and e^-50
    assert log_loss == pytest.approx(-900 - np.log(2), abs=1e-12)
    np.testing.assert_allclose(pull[:, 0], [1, np.exp(-50)], rtol=1e-12)


@pytest.mark.parametrize("kind", FLOWS)
def test_equations_are_the_gradients_of_their_coordinates(kind):
    x, y = quadrant_task(9, 3, seed=2)
    layers = initial_layers([3, 4, 1], seed=3)
    system = System(layers, x, y, "logistic", "smooth-relu", kind)
    u, state = 0.7, system.state()
    scales, _, units = system.parts(state)
    problem = follow([3, 4, 1], (x, y), 3, loss="logistic", log_time=1e-3, saved=2).problem(0)

    def loss(rho, flat, normalised):
        found = zip(rho, unflattened(flat, layers), strict=True)
        found = [r * v / v.norm() if normalised else r * v for r, v in found]
        return problem.loss(torch.cat([w.reshape(-1) for w in found]))

    flat = torch.tensor(state[-sum(w.size for w in layers) :])
    rho = torch.tensor(scales if kind != "descent" else np.ones(2))
    g_rho, g_flat = torch.func.grad(loss, (0, 1))(rho, flat, kind == "weight-normalization")
    moves = [-g.numpy() for g in unflattened(g_flat, layers)]
    if kind in {"constrained", "fixed-norm"}:
        # the Lagrange multiplier takes away what would change ‖V_k‖ = 1 (eqs. 3, 7)
        moves = [g - np.vdot(g, v) * v for g, v in zip(moves, units, strict=True)]
    expected = np.concatenate([g.ravel() for g in moves])
    if system.has_scales:
        expected = np.concatenate([-g_rho.numpy(), expected])
    size = np.abs(expected).max()
    np.testing.assert_allclose(system.rate(u, state), np.exp(u) * expected, atol=1000 * EPS * size)


@pytest.mark.parametrize(
    ("loss", "kind", "hidden"),
    [
        *itertools.product(["exponential"], THREE, [[6, 5]]),
        ("logistic", "descent", [6, 5]),
        ("logistic", "weight-normalization", [6, 5]),
        ("cross-entropy", "descent", [8]),
        ("cross-entropy", "weight-normalization", [8]),
    ],
)
@pytest.mark.slow
def test_squared_norms_of_all_layers_grow_alike(loss, kind, hidden):
    given, outputs = task(loss)
    flow = follow([4, *hidden, outputs], given, 3, 1.5, loss=loss, kind=kind, log_time=8)
    assert flow.separated_from is not None
    # Lemma 1 from the gradients, relative to the layers' sizes: before separation growth can
    # vanish
    pulls = [[np.linalg.norm(g) for g in flow.log_gradients(i)] for i in range(301)]
    size = 2 * (flow.scales * np.array(pulls)).max(axis=1)
    assert (np.ptp(flow.norm_growth, axis=1) / size).max() < 1e-12
    after = flow.norm_growth[flow.separated_from :]
    assert (np.ptp(after, axis=1) / after.mean(axis=1)).max() < 1e-6
    require_equal_growth(flow)


@pytest.mark.slow
def test_lemma_1_is_2_rho_times_the_mean_of_margins_and_losses():
    flow = follow([4, 5, 1], quadrant_task(12, 4, seed=7), 5, log_time=5)
    for i in (0, 150, 300):
        terms = flow.rho[i] * flow.margins[i] * np.exp(-flow.rho[i] * flow.margins[i])
        # the printed sum; a sum of terms of both signs is known to ε times the sum of sizes
        bound = 1000 * EPS * np.abs(terms).mean()
        assert flow.norm_growth[i] * flow.losses[i] == pytest.approx(2 * terms.mean(), abs=bound)


def test_exact_relu_without_kinks_on_its_way_and_a_margin_that_falls():
    # one unit for each class, each silent on the other class: no unit ever changes its mind
    x, y = linear_task(20, 4, gap=1.0, seed=1)
    direction = maximum_margin(x, y).direction
    layers = [np.stack([direction, -direction]), np.array([[1.0, -1.0]])]
    flow = gradient_flow(layers, x, y, activation="relu", log_time=100)
    assert np.all((x @ flow.directions[0][-1].T > 0) == (y[:, None] * [1, -1] > 0))
    require_equal_growth(flow)
    # separated from the start, and yet the smallest margin falls at first: Lemma 3 speaks of
    # late times, when one support vector dominates. What never falls is the smoothed margin
    assert flow.separated_from == 0
    assert flow.largest_drop > 0.01
    smooth = flow.smoothed_margin[flow.smoothed_margin > 0]
    assert len(smooth) > 290
    assert np.diff(smooth).min() > -100 * RTOL
    late = flow.margin[flow.log_times > 50]
    assert np.diff(late).min() > -100 * RTOL


@pytest.mark.slow
def test_relu_that_slides_along_a_kink_is_told():
    with pytest.raises(ConvergenceError, match=r"Filippov.*smooth-relu"):
        follow([8, 8, 1], quadrant_task(10, 8), activation="relu", evaluations=3000)


@pytest.mark.parametrize("kind", THREE)
@pytest.mark.slow
def test_margin_never_decreases_after_separation(kind):
    flow = follow([2, 10, 1], quadrant_task(24, 2, seed=3), kind=kind, log_time=40)
    assert 0 < flow.separated_from < 20
    assert flow.largest_drop < 100 * RTOL
    # it grows by half and changes its support, so that there was something to see (Fig. 3)
    assert flow.margin[-1] > 1.5 * flow.margin[flow.separated_from]
    assert np.count_nonzero(np.diff(flow.support[flow.separated_from :])) >= 1
    smooth = flow.smoothed_margin[flow.separated_from :]
    smooth = smooth[smooth > 0]
    assert np.diff(smooth).min() > -100 * RTOL
    assert flow.norm_drift < 1000 * RTOL


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_three_flows_of_a_relu_network_end_at_one_margin_and_are_stationary(seed):
    given = quadrant_task(24, 2, seed=3)
    flows = [follow([2, 10, 1], given, seed, kind=kind, log_time=50) for kind in THREE]
    # what is missing at log t = u is of order 1/u of the margin
    assert np.ptp([flow.margin[-1] for flow in flows]) < flows[0].margin[-1] / 50
    for flow in flows:
        middle = np.searchsorted(flow.log_times, 20)
        # it ends at 0, as a power of 1/u that theory leaves open: at least the root
        assert (flow.misalignment() < (20 / 50) ** 0.5 * flow.misalignment(middle)).all()
        assert flow.misalignment().max() < 0.1


def slsqp(x, y):
    """Direction and margin of the support vector machine by a general solver."""
    limits = {"fun": lambda w: y * (x @ w) - 1, "jac": lambda w: y[:, None] * x}
    options = {"options": {"ftol": 1e-15, "maxiter": 500}, "jac": lambda w: w, "method": "SLSQP"}
    start = np.zeros(x.shape[1])
    found = minimize(lambda w: w @ w / 2, start, constraints={"type": "ineq", **limits}, **options)
    assert found.success
    return found.x / np.linalg.norm(found.x), 1 / np.linalg.norm(found.x)


@pytest.mark.parametrize(("samples", "features"), [(1, 1), (2, 5), (30, 3), (60, 10), (8, 40)])
def test_maximum_margin_is_that_of_a_general_solver(samples, features):
    x, y = linear_task(samples, features, gap=0.3, seed=4)
    ours, (direction, margin) = maximum_margin(x, y), slsqp(x, y)
    # the margin is stationary: SLSQP's 1e-8 in the direction are 1e-16 in the margin
    assert ours.margin == pytest.approx(margin, rel=1e-7)
    np.testing.assert_allclose(ours.direction, direction, atol=1e-6)
    combined = ours.margin * (ours.multipliers * y) @ x
    np.testing.assert_allclose(ours.direction, combined, atol=1e4 * EPS)
    nearest = (y * (x @ ours.direction))[ours.support]
    np.testing.assert_allclose(nearest, ours.margin, rtol=1e5 * EPS)


@pytest.mark.parametrize(
    ("widths", "kind", "loss"),
    [
        *itertools.product([[5, 1]], THREE, ["exponential", "logistic"]),
        *itertools.product([[5, 4, 1]], THREE, ["exponential"]),
        ([5, 4, 1], "descent", "logistic"),
        ([5, 4, 4, 1], "constrained", "exponential"),
    ],
)
@pytest.mark.slow
def test_linear_networks_become_support_vector_machines(widths, kind, loss):
    x, y = linear_task(30, 5, seed=1)
    # the direction's error falls like 1/log t for one layer and for constrained flows
    log_time = 3e4 if kind == "descent" else 3e3
    options = {"loss": loss, "kind": kind, "log_time": log_time}
    flow = follow(widths, (x, y), activation="linear", **options)
    assert np.linalg.norm(flow.linear_direction() - slsqp(x, y)[0]) < 1e-3
    assert flow.largest_drop < 100 * RTOL
    assert np.isinf(flow.times[-1])
    assert flow.losses[-1] == 0.0


def test_cross_entropy_becomes_a_support_vector_machine_of_two_classes():
    x, y = linear_task(30, 5, seed=1)
    flow = follow([5, 2], (x, (y > 0).astype(int)), loss="cross-entropy", log_time=3e3)
    weights = flow.directions[0][-1]
    difference = weights[1] - weights[0]
    found = difference / np.linalg.norm(difference)
    assert np.linalg.norm(found - slsqp(x, y)[0]) < 1e-3


@pytest.mark.parametrize("loss", ["exponential", "logistic"])
def test_norm_of_one_layer_is_log_t_over_the_margin(loss):
    x, y = linear_task(30, 5, seed=1)
    flow = follow([5, 1], (x, y), loss=loss, log_time=1e3)
    late = flow.log_times > 500
    slope = np.polyfit(flow.log_times[late], flow.rho[late], 1)[0]
    # w(t) = (log t/γ + a) v + b + o(1) with b across v: ‖w‖ = log t/γ + a + γ‖b‖²/(2 log t) + ...
    best = maximum_margin(x, y)
    w = flow.layers(-1)[0][0]
    b = np.linalg.norm(w - (w @ best.direction) * best.direction)
    assert slope * best.margin == pytest.approx(1, abs=(best.margin * b) ** 2 / 500**2)


def test_norm_of_a_deep_network_grows_faster_and_its_layers_slower():
    x, y = linear_task(30, 5, seed=1)
    flow = follow([5, 4, 1], (x, y), activation="linear", log_time=1e4)
    u, gamma = flow.log_times[1:], maximum_margin(x, y).margin
    # L ~ 1/(t (log t)^(2 - 2/K)) (Lyu, Li, Theorem 4.3), so that γρ - log t ~ log log t for K = 2:
    # the slope of γρ against log log t, log t taken away, between u = 1e3 and 1e4
    late = u > 1e3
    excess = -flow.log_losses[1:] - u
    slope = np.polyfit(np.log(u[late]), excess[late], 1)[0]
    assert slope == pytest.approx(1, abs=0.05)
    assert flow.rho[-1] * gamma > u[-1]
    # each layer like √(log t)
    slopes = np.polyfit(np.log(u[late]), np.log(flow.scales[1:][late]), 1)[0]
    np.testing.assert_allclose(slopes, 0.5, atol=0.01)


def test_hessian_fades_along_the_flow_and_keeps_its_positive_part_in_directions():
    flow = follow([2, 6, 1], quadrant_task(16, 2, seed=3), log_time=24, saved=5)
    assert flow.separated_from <= 2
    plain = [hr.spectrum(flow.problem(i)) for i in range(5)]
    within = [hr.spectrum(flow.normalized_problem(i)) for i in range(5)]
    sizes = [np.abs(s.eigenvalues).max() for s in plain]
    # H = O(L) times powers of log t, L = O(1/t)
    assert sizes[-1] < 1e-6 * sizes[0]
    assert (np.diff(sizes[1:]) < 0).all()
    positive = [np.count_nonzero(s.resolved > 0) for s in within]
    assert min(positive) >= 1
    assert positive[-1] >= positive[0]
    relative = [s.eigenvalues[-1] / flow.losses[i] for i, s in enumerate(within)]
    # over the loss, as ρ² in the limit
    assert (np.diff(relative) > 0).all()
    # ... and never less than the gradient's share: the directions move ever less
    lowest = [-s.eigenvalues[0] / s.eigenvalues[-1] for s in within]
    assert lowest[-1] < lowest[1] < lowest[0]


@pytest.mark.slow
def test_directions_alone_reach_a_minimum():
    given = quadrant_task(16, 2, seed=3)
    flow = follow([2, 4, 1], given, 0, 2.0, kind="fixed-norm", log_time=40)
    np.testing.assert_array_equal(flow.scales, np.tile(flow.scales[0], (301, 1)))
    assert flow.misalignment().max() < 1e-8
    problem = flow.normalized_problem()
    spectrum = hr.spectrum(problem)
    # Theorem 4.1: positive semidefinite; the gradient that is left is an error of 1e-9 of the
    # gradient along, which is ρ_k times the loss or so
    rest = 1e-8 * spectrum.eigenvalues[-1]
    assert spectrum.eigenvalues[0] > -rest
    assert spectrum.eigenvalues[-1] > 0
    hessian = hr.hessian(problem)
    for place, v in zip(problem.places().values(), flow.directions, strict=True):
        along = np.zeros(problem.dimension)
        along[place] = v[-1].ravel()
        assert np.abs(np.asarray(hessian) @ along).max() < rest


def test_solvers_agree():
    given = quadrant_task(12, 4, seed=7)
    one, two = (follow([4, 5, 1], given, 5, log_time=2, method=m) for m in ("LSODA", "DOP853"))
    for a, b in zip(one.layers(-1), two.layers(-1), strict=True):
        np.testing.assert_allclose(a, b, atol=1e4 * RTOL * np.abs(a).max())
    assert one.solver.method == "LSODA"
    assert two.solver.jacobians == 0
    assert two.solver.evaluations > 50


TWO, CROSS = {"layers": [np.ones((2, 2))]}, {"loss": "cross-entropy"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "mse"}, "known: exponential"),
        ({"kind": "momentum"}, "known: descent"),
        ({"activation": "tanh"}, "positively homogeneous"),
        ({"method": "Euler"}, "known: LSODA"),
        ({"rtol": 0.0}, "rtol must be positive"),
        ({"log_time": np.inf}, "log_time must be"),
        ({"saved": 1}, "from 2 on"),
        ({"saved": [0.0, 2.0, 1.0]}, "must increase"),
        ({"y": np.array([0, 1, 1])}, r"2 y - 1"),
        ({"y": np.ones(2)}, "one label for each of 3"),
        ({"x": np.zeros((0, 2))}, "samples, features"),
        ({"layers": []}, "no layers"),
        ({"layers": [np.ones((1, 3))]}, r"expected \(outputs, 2\)"),
        ({"layers": [np.zeros((1, 2))]}, "is zero"),
        (TWO, "one output, this has 2"),
        (CROSS, "one output for each class"),
        ({**CROSS, **TWO, "y": np.arange(3)}, r"0 \.\.\. 1"),
        ({**CROSS, **TWO, "y": np.ones(3)}, "integer labels"),
    ],
)
def test_what_cannot_be_followed_is_refused(change, message):
    given = {"layers": [np.ones((1, 2))], "x": np.eye(3, 2), "y": np.array([1, -1, 1]), **change}
    with pytest.raises(DataError, match=message):
        gradient_flow(**given)


def test_bad_tasks_and_inseparable_samples_are_refused():
    flow = gradient_flow(initial_layers([2, 2, 1]), *quadrant_task(5), log_time=0.01, saved=2)
    for call, message in [
        (lambda: maximum_margin(*quadrant_task(40, 2)), "no hyperplane"),
        (lambda: maximum_margin(np.zeros((2, 2)), [1, -1]), "no hyperplane"),
        (lambda: linear_task(0, 3), "samples"),
        (lambda: linear_task(3, True), "features"),
        (lambda: linear_task(3, 3, gap=-1.0), "gap"),
        (lambda: quadrant_task(3, 1), "from 2 on"),
        (lambda: initial_layers([3]), "two or more"),
        (lambda: initial_layers([3, 0]), "from 1 on"),
        (lambda: initial_layers([3, 1], scale=0.0), "scale"),
        (flow.linear_direction, "no single direction"),
    ]:
        with pytest.raises(DataError, match=message):
            call()


def test_a_flow_that_never_separates_says_so():
    flow = follow([2, 1], quadrant_task(40, 2), log_time=8, saved=9)
    assert flow.separated_from is None
    assert np.isnan(flow.largest_drop)
    with pytest.raises(DataError, match="no margin to draw"):
        margin_growth(flow)


def test_pictures_show_the_flow():
    x, y = linear_task(20, 3, seed=2)
    flow = gradient_flow(initial_layers([3, 1]), x, y, log_time=50, saved=40)
    first = flow.separated_from
    curve = margin_growth(flow).axes[0].lines[0]
    np.testing.assert_array_equal(curve.get_ydata(), flow.margin[first:])
    direction = maximum_margin(x, y).direction
    away = flow.log_times, direction_distances(flow, direction)
    drawn = distances({"one layer": away}).axes[0].lines[0]
    assert drawn.get_ydata()[-1] == np.linalg.norm(flow.linear_direction() - direction)
    right = norms({"one layer": flow}).axes[1]
    np.testing.assert_array_equal(right.lines[0].get_ydata(), flow.scales[:, 0])
    indices = [0, 20, 39]
    spectra = [hr.spectrum(flow.problem(i)) for i in indices]
    panels = curvature(flow, indices, spectra, spectra).axes
    sizes = panels[0].lines[-3].get_ydata()
    np.testing.assert_array_equal(sizes, [np.abs(s.eigenvalues).max() for s in spectra])
