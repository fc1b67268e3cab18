"""Gradient flow of bias-free networks, solved with error control.

With W_k = ρ_k V_k, ‖V_k‖ = 1, g_k = -∂L/∂W_k and S_k = I - V_k V_kᵀ, the flows are

- ``descent``: Ẇ_k = g_k, that is ρ̇_k = V_kᵀ g_k, V̇_k = S_k g_k/ρ_k (eqs. 1, 14);
- ``constrained``: ρ̇_k = V_kᵀ g_k, V̇_k = ρ_k S_k g_k (eqs. 6, 7);
- ``fixed-norm``: the same with ρ̇_k = 0 (eq. 3);
- ``weight-normalization``: gradient descent in (s, v) of W_k = s_k v_k/‖v_k‖ (Salimans and Kingma
  2016), started at v_k = W_k. It conserves ‖v_k‖, so that ρ̇_k = V_kᵀ g_k and
  V̇_k = ρ_k S_k g_k/‖v_k(0)‖²: the constrained flow, V_k slower by a constant factor.

Losses fall like 1/t, so the equations are integrated in u = log(1 + t), dW/du = (1 + t) dW/dt. It
is the same path, its rates in u stay near one, and since (1 + t) ∂L/∂W = exp(u + log L) · ∂log L/∂W
needs only log L, times far beyond the largest float64 are reached.

Source: Poggio, Banburski and Liao 2020, §3; equations, lemmas and figures are theirs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.special import softmax

from hessrmt.checks import one_of, real, real_array, whole
from hessrmt.errors import ConvergenceError, DataError
from hessrmt.generalization import bias_free
from hessrmt.generalization.normalization import margins_of_outputs
from hessrmt.problems.problem import Problem
from hessrmt.results import Result

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64
    from numpy.typing import ArrayLike

    from hessrmt.generalization.bias_free import Inputs, Layers, Scales

    Times = Float64[np.ndarray, " T"]
    State = Float64[np.ndarray, " n"]

FLOWS = ("descent", "constrained", "fixed-norm", "weight-normalization")
METHODS = ("LSODA", "DOP853", "RK45", "RK23", "Radau", "BDF")

_REST = 1e-9
"""Angle between directions and gradients at which the fixed-norm flow is at rest: its limit lies at
finite times, where (1 + t) times a gradient of round-off soon is motion."""


@dataclass(frozen=True)
class SolverStatistics:
    """How the equations were solved.

    Attributes:
        method: Of ``scipy.integrate.solve_ivp``.
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance of a step.
        evaluations: Of the right-hand side, all of them.
        jacobians: Of the right-hand side.
        factorizations: LU decompositions.
        message: What the solver said.
    """

    method: str
    rtol: float
    atol: float
    evaluations: int
    jacobians: int
    factorizations: int
    message: str


class Margins:
    """Size and margins along a flow of a network f(W; x) = ρ f(V; x).

    Attributes:
        y: (B,) labels.
        log_losses: (T,) logarithm of the mean loss.
        scales: (T, K) factors of ρ.
        margins: (T, B) normalised margins.
    """

    y: np.ndarray
    log_losses: Times
    scales: Float64[np.ndarray, "T K"]
    margins: Float64[np.ndarray, "T B"]

    @property
    def rho(self) -> Times:
        """(T,) ρ = Π_k ρ_k: f(W; x) = ρ f(V; x)."""
        return self.scales.prod(axis=1)

    @property
    def margin(self) -> Times:
        """(T,) smallest normalised margin (Fig. 3)."""
        return self.margins.min(axis=1)

    @property
    def smoothed_margin(self) -> Times:
        """(T,) -log(B L)/ρ; B L is Σ e^{-ρ y f(V)} for the exponential loss.

        It tends to the smallest margin as ρ → ∞ and, for the exponential loss, never decreases once
        it is positive (Lyu and Li 2019, Theorem 4.1), unlike the smallest margin.
        """
        return -(self.log_losses + np.log(len(self.y))) / self.rho


@dataclass(frozen=True)
class Flow(
    Margins,
    Result,
    axes={"time": "log_times log_losses", "time layer": "scales", "time sample": "margins"},
    derived="separated_from largest_drop",
    omitted="x y directions",
    picture="generalization.margin_growth",
):
    """A gradient flow at T saved times.

    Attributes:
        kind: Which flow, one of :data:`FLOWS`.
        loss: ``"exponential"``, ``"logistic"`` or ``"cross-entropy"``.
        activation: ``"relu"``, ``"smooth-relu"`` or ``"linear"``.
        x: (B, d) inputs.
        y: (B,) labels.
        log_times: (T,) log(1 + t).
        log_losses: (T,) logarithm of the mean loss.
        scales: (T, K) Frobenius norms ρ_k of the layers.
        directions: For each layer (T, outputs, inputs) its V_k of norm 1.
        margins: (T, B) normalised margins: y_n f(V; x_n), for cross-entropy the output of the class
            minus the largest other.
        norm_drift: Largest relative change of a ‖v_k‖ that the exact flow conserves: an error of
            the solver. Norms are taken out of V_k afterwards. Zero for ``descent``.
        solver: How the equations were solved.
    """

    kind: str
    loss: str
    activation: str
    x: Inputs
    y: np.ndarray
    log_times: Times
    log_losses: Times
    scales: Float64[np.ndarray, "T K"]
    directions: tuple[Float64[np.ndarray, "T out in"], ...]
    margins: Float64[np.ndarray, "T B"]
    norm_drift: float
    solver: SolverStatistics

    @property
    def times(self) -> Times:
        """(T,) t; infinite where float64 can't hold it."""
        with np.errstate(over="ignore"):
            return np.expm1(self.log_times)

    @property
    def losses(self) -> Times:
        """(T,) mean losses; zero where float64 can't hold them."""
        with np.errstate(under="ignore"):
            return np.exp(self.log_losses)

    @property
    def support(self) -> Int64[np.ndarray, " T"]:
        """(T,) which sample has the smallest margin."""
        return self.margins.argmin(axis=1)

    @property
    def separated_from(self) -> int | None:
        """First saved time from which on all samples are classified correctly; None if none."""
        first = _positive_from(self.margin)
        return first if first < len(self.margin) else None

    @property
    def largest_drop(self) -> float:
        """Largest fall of the smallest margin below an earlier one after separation, relative.

        Zero if it never decreases, NaN without separation.
        """
        return largest_drop(self.margin)

    def layers(self, index: int) -> Layers:
        """W_1 ... W_K at a saved time.

        Args:
            index: Which time.

        Returns:
            One matrix for each layer.
        """
        pairs = zip(self.scales[index], self.directions, strict=True)
        return tuple(rho * v[index] for rho, v in pairs)

    def log_gradients(self, index: int) -> Layers:
        """-∂log L/∂W_k at a saved time: the negative gradients over the loss.

        Args:
            index: Which time.

        Returns:
            One matrix for each layer.
        """
        return bias_free.descent(self.layers(index), self.x, self.y, self.loss, self.activation)

    @cached_property
    def norm_growth(self) -> Float64[np.ndarray, "T K"]:
        """(T, K) dρ_k²/dt over the loss, 2 ρ_k V_kᵀ(-∂L/∂W_k)/L: the same for all k (Lemma 1).

        It is what gradient descent, the constrained flow and weight normalisation share; the
        derivative of ρ_k² in the flow ``fixed-norm`` is zero.
        """
        return np.array(
            [
                [2 * np.vdot(w, g) for w, g in zip(self.layers(i), gradients, strict=True)]
                for i, gradients in enumerate(map(self.log_gradients, range(len(self.log_times))))
            ]
        )

    def misalignment(self, index: int = -1) -> Scales:
        """Sine of the angle between each layer and its negative gradient.

        Zero at the stationary directions, where S_k ∂L/∂W_k = 0 (eq. 5, Lemma 5).

        Args:
            index: Which time.

        Returns:
            (K,) in [0, 1].
        """
        pairs = zip(self.directions, self.log_gradients(index), strict=True)
        return np.array([_sine(g - np.vdot(v[index], g) * v[index], g) for v, g in pairs])

    def shares(self, index: int = -1) -> Float64[np.ndarray, " B"]:
        """Shares e^{-ρ y f(V)}/Σ e^{-ρ y f(V)} of the samples in the exponential loss.

        They are the coefficients of eq. 5; the support vectors are the samples that keep one.

        Args:
            index: Which time.

        Returns:
            (B,) shares, their sum 1.
        """
        return softmax(-self.rho[index] * self.margins[index])

    def support_size(self, index: int = -1) -> float:
        """How many samples carry the gradient, 1/Σ shares².

        Args:
            index: Which time.

        Returns:
            From 1 to B.
        """
        return float(1 / np.square(self.shares(index)).sum())

    def support_residual(self, index: int = -1) -> Scales:
        """Size of ∂f(V; x)/∂V_k - V_k f(V; x), x the nearest sample, over that of ∂f(V; x)/∂V_k.

        Zero for all layers is eq. 15: that sample alone holds the directions. The sine of the angle
        between V_k and the gradient of f; where several samples hold them, only
        :meth:`misalignment` vanishes.

        Args:
            index: Which time.

        Returns:
            (K,) in [0, 1].

        Raises:
            DataError: If the network has several outputs.
        """
        if self.loss == "cross-entropy":
            raise DataError("eq. 15 is about a network with one output, this has several")
        # of one sample log L is -y f
        directions, nearest = tuple(v[index] for v in self.directions), [self.support[index]]
        pulls = bias_free.descent(
            directions, self.x[nearest], self.y[nearest], "exponential", self.activation
        )
        pairs = zip(directions, pulls, strict=True)
        return np.array([_sine(g - np.vdot(v, g) * v, g) for v, g in pairs])

    def linear_direction(self, index: int = -1) -> Float64[np.ndarray, " d"]:
        """Unit vector β of a linear network with one output, f(W; x) = ‖W_K ··· W_1‖ βᵀx.

        Args:
            index: Which time.

        Returns:
            (d,) unit vector.

        Raises:
            DataError: If the network isn't linear or has several outputs.
        """
        if len(self.directions) > 1 and self.activation != "linear":
            raise DataError("a ReLU network has no single direction in input space")
        product = np.eye(self.x.shape[1])
        for v in self.directions:
            product = v[index] @ product
        if len(product) != 1:
            raise DataError(f"the network has {len(product)} outputs, expected one")
        return product[0] / np.linalg.norm(product[0])

    def problem(self, index: int = -1) -> Problem:
        """The loss as a function of W at a saved time, e.g. for ``hr.spectrum``.

        Args:
            index: Which time.

        Returns:
            A problem with the parameters W_1 ... W_K, float64.
        """
        return self._problem(bias_free.as_module(self.layers(index), self.activation))

    def normalized_problem(self, index: int = -1) -> Problem:
        """The loss as a function of the directions V at a saved time, with ρ_k kept fixed.

        Args:
            index: Which time.

        Returns:
            A problem with the parameters v_1 ... v_K of
            :class:`~hessrmt.generalization.bias_free.NormalizedDirections`, float64.
        """
        directions, scales = tuple(v[index] for v in self.directions), self.scales[index]
        return self._problem(bias_free.NormalizedDirections(directions, scales, self.activation))

    def _problem(self, model: torch.nn.Module) -> Problem:
        data = (torch.tensor(self.x), torch.tensor(self.y))
        return Problem(model, bias_free.LOSSES[self.loss], data)


def largest_drop(values: Times) -> float:
    """Largest relative fall below an earlier value after the last one that isn't positive.

    Args:
        values: (T,) along a flow.

    Returns:
        Zero if they never decrease, NaN if the last one isn't positive.
    """
    kept = values[_positive_from(values) :]
    return float((1 - kept / np.maximum.accumulate(kept)).max()) if len(kept) else float("nan")


def _positive_from(values: Times) -> int:
    """Place behind the last value that isn't positive."""
    wrong = np.flatnonzero(values <= 0)
    return int(wrong[-1]) + 1 if len(wrong) else 0


def gradient_flow(
    layers: Sequence[ArrayLike],
    x: ArrayLike,
    y: ArrayLike,
    *,
    loss: str = "exponential",
    kind: str = "descent",
    activation: str = "relu",
    log_time: float = 30.0,
    saved: int | ArrayLike = 301,
    method: str = "LSODA",
    rtol: float = 1e-10,
    atol: float = 1e-12,
    evaluations: int = 300_000,
) -> Flow:
    """Follow a gradient flow from given layers.

    Args:
        layers: W_1 ... W_K at t = 0, the first layer first; see
            :func:`hessrmt.generalization.bias_free.initial_layers`.
        x: (B, d) inputs. For biases in the first layer append a constant feature.
        y: (B,) labels: -1 and 1, or classes 0 ... C - 1 for cross-entropy.
        loss: ``"exponential"``, ``"logistic"`` or ``"cross-entropy"``, a mean over samples.
        kind: ``"descent"``, ``"constrained"``, ``"fixed-norm"`` or ``"weight-normalization"``.
        activation: ``"relu"``, ``"smooth-relu"`` where the flow of a ReLU network slides along a
            kink (:mod:`hessrmt.generalization.bias_free`), or ``"linear"``.
        log_time: log(1 + t) at the end: 30 is t = 1e13; linear networks may go to 1e5 and beyond.
        saved: How many times are saved, evenly in log(1 + t), or (T,) values of log(1 + t).
        method: Of ``scipy.integrate.solve_ivp``. LSODA switches to a stiff method by itself.
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance of a step.
        evaluations: How many evaluations of the gradient are allowed.

    Returns:
        The flow at the saved times.

    """
    inputs = real_array("x", x, dimensions=2, hint="expected a matrix (samples, features)")
    start = bias_free.checked_layers(layers, inputs.shape[1])
    labels = bias_free.checked_labels(loss, y, len(inputs), len(start[-1]))
    one_of("positively homogeneous activation", activation, bias_free.ACTIVATIONS)
    one_of("kind", kind, FLOWS)
    grid = time_grid(saved, log_time)
    system = System(start, inputs, labels, loss, activation, kind)
    rest = _Rest(system) if kind == "fixed-norm" else None
    kinks = activation == "relu" and len(start) > 1
    options = {"method": method, "rtol": rtol, "atol": atol, "evaluations": evaluations}
    states, statistics = solve(system.rate, system.state(), grid, kinks, rest, **options)
    return _record(system, grid, states, statistics)


def solve(
    rate: Callable[[float, State], State],
    state: State,
    grid: Times,
    kinks: bool = False,
    rest: Any = None,
    *,
    method: str,
    rtol: float,
    atol: float,
    evaluations: int,
) -> tuple[Float64[np.ndarray, "T n"], SolverStatistics]:
    """Solve dstate/du = rate(u, state) from u = 0 on.

    Args:
        rate: The right-hand side.
        state: (n,) at u = 0.
        grid: (T,) u at which the state is wanted.
        kinks: Whether the right-hand side has some, to say so where the solver gets stuck.
        rest: An event that ends the integration; the state stays as it is then.
        method: Of ``scipy.integrate.solve_ivp``.
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance of a step.
        evaluations: How many of the right-hand side are allowed.

    Returns:
        (T, n) states, and how they were found.

    Raises:
        ConvergenceError: If the solver gives up or needs too many evaluations.
    """
    one_of("method", method, METHODS)
    for name, value in (("rtol", rtol), ("atol", atol)):
        real(name, value, above=0)
    made = 0

    def counted(u: float, state: State) -> State:
        nonlocal made
        made += 1
        if made > evaluations:
            hint = "relax rtol or shorten log_time"
            if kinks:
                hint = "a ReLU's flow may slide along a kink there, a solution in Filippov's sense "
                hint += 'only; take activation="smooth-relu"'
            what = f"{evaluations:,} evaluations of the gradient were not enough: they end at"
            raise ConvergenceError(f"{what} log(1 + t) = {u:g}; {hint}")
        return rate(u, state)

    with (
        np.errstate(under="ignore", over="ignore", invalid="ignore"),  # in trial steps
        warnings.catch_warnings(
            action="ignore", category=UserWarning
        ),  # of LSODA: the error says it
    ):
        solution = solve_ivp(
            counted, (0.0, grid[-1]), state, method, grid, events=rest, rtol=rtol, atol=atol
        )
    states = solution.y.T
    if solution.status == 1:  # at rest: the states that are missing are the last one
        missing = np.repeat(solution.y_events[0], len(grid) - len(states), axis=0)
        states = np.concatenate([states.reshape(-1, missing.shape[1]), missing])
    if solution.status < 0 or len(states) != len(grid) or not np.isfinite(states).all():
        end = solution.t[-1] if len(solution.t) else 0
        where = f"{method} stopped at log(1 + t) = {end:g} of {grid[-1]:g}: {solution.message}"
        raise ConvergenceError(f"{where} Try another method, a shorter log_time or a larger rtol")
    counts = made, solution.njev, solution.nlu
    return states, SolverStatistics(method, rtol, atol, *counts, solution.message)


def time_grid(saved: int | ArrayLike, log_time: float) -> Times:
    """Values of log(1 + t) at which a flow is saved.

    Args:
        saved: How many, evenly from 0 to the end, or (T,) the values themselves, increasing.
        log_time: The end.

    Returns:
        (T,) values.

    Raises:
        DataError: If there are fewer than two, or they don't increase.
    """
    real("log_time", log_time, above=0)
    if isinstance(saved, int | np.integer):
        return np.linspace(0.0, log_time, whole("saved", saved, 2, hint="times"))
    grid = real_array("saved", saved, dimensions=1, least=0, hint="values of log(1 + t)")
    if len(grid) < 2 or not (np.diff(grid) > 0).all():
        raise DataError("the saved values of log(1 + t) must be two or more and must increase")
    return grid


@dataclass(frozen=True)
class System:
    """One flow as dstate/du; the state holds scales (K,), if any, then all v_k flattened.

    Attributes:
        layers: W_1 ... W_K at t = 0.
        x: (B, d) inputs.
        y: (B,) labels.
        loss: One of :data:`hessrmt.generalization.bias_free.LOSSES`.
        activation: Of the hidden layers.
        kind: One of :data:`FLOWS`.
    """

    layers: Layers
    x: Inputs
    y: np.ndarray
    loss: str
    activation: str
    kind: str

    @property
    def has_scales(self) -> bool:
        """Whether the scales are variables of their own."""
        return self.kind in {"constrained", "weight-normalization"}

    def state(self) -> State:
        """The state at t = 0."""
        scales, vectors = bias_free.split_scales(self.layers)
        if self.kind in {"descent", "weight-normalization"}:
            vectors = self.layers
        flat = [v.ravel() for v in vectors]
        return np.concatenate([scales, *flat] if self.has_scales else flat)

    def parts(self, state: State) -> tuple[Scales, Scales, Layers]:
        """A state as W_k = ρ_k v_k/‖v_k‖.

        Args:
            state: The state.

        Returns:
            (K,) ρ_k, (K,) ‖v_k‖, and the v_k/‖v_k‖.
        """
        scales, flat = np.split(state, [len(self.layers) if self.has_scales else 0])
        pieces = np.split(flat, np.cumsum([layer.size for layer in self.layers])[:-1])
        vectors = tuple(p.reshape(w.shape) for p, w in zip(pieces, self.layers, strict=True))
        norms, units = bias_free.split_scales(vectors)
        if not self.has_scales:
            fixed = self.kind == "fixed-norm"
            scales = bias_free.split_scales(self.layers)[0] if fixed else norms
        return scales, norms, units

    def rate(self, u: float, state: State) -> State:
        """dstate/du = (1 + t) dstate/dt.

        Args:
            u: log(1 + t).
            state: The state.

        Returns:
            Its derivative.
        """
        gradients, along, across, factors = self.pull(u, state)
        if self.kind == "descent":
            return np.concatenate([g.ravel() for g in gradients])
        moves = [c * g.ravel() for c, g in zip(factors, across, strict=True)]
        return np.concatenate([along, *moves] if self.has_scales else moves)

    def pull(self, u: float, state: State) -> tuple[Layers, list[float], Layers, Scales]:
        """(1 + t) g_k, its part along v_k/‖v_k‖, the rest, and the factors ρ_k/‖v_k‖."""
        scales, norms, units = self.parts(state)
        weights = tuple(rho * v for rho, v in zip(scales, units, strict=True))
        gradients = bias_free.descent(weights, self.x, self.y, self.loss, self.activation, u)
        along = [float(np.vdot(v, g)) for v, g in zip(units, gradients, strict=True)]
        across = tuple(g - a * v for g, a, v in zip(gradients, along, units, strict=True))
        return gradients, along, across, scales / norms


class _Rest:
    """The event that ends the integration of the fixed-norm flow: stationary directions (eq. 5)."""

    terminal, direction = True, -1

    def __init__(self, system: System) -> None:
        self.system = system

    def __call__(self, u: float, state: State) -> float:
        gradients, _, across, _ = self.system.pull(u, state)
        return max(map(_sine, across, gradients)) - _REST


def _sine(across: Float64[np.ndarray, "out in"], gradient: Float64[np.ndarray, "out in"]) -> float:
    return float(np.linalg.norm(across) / np.linalg.norm(gradient))


def _record(system: System, grid: Times, states: np.ndarray, solver: SolverStatistics) -> Flow:
    scales, norms, units = zip(*map(system.parts, states), strict=True)
    drift = np.abs(np.array(norms) / norms[0] - 1).max() if system.kind != "descent" else 0.0
    log_losses, margins, labels = [], [], torch.from_numpy(system.y)
    for rho, directions in zip(scales, units, strict=True):
        weights = tuple(r * v for r, v in zip(rho, directions, strict=True))
        outputs, normalized = (
            bias_free.forward(w, system.x, system.activation) for w in (weights, directions)
        )
        log_losses.append(bias_free.log_loss_and_pull(system.loss, outputs, system.y)[0])
        margins.append(margins_of_outputs(torch.from_numpy(normalized), labels))
    at_times = grid, np.array(log_losses), np.array(scales)
    along = tuple(map(np.array, zip(*units, strict=True))), np.array(margins)
    given = system.kind, system.loss, system.activation, system.x, system.y
    return Flow(*given, *at_times, *along, float(drift), solver)


def direction_distances(
    flow: Flow, direction: Float64[np.ndarray, " d"]
) -> Float64[np.ndarray, " T"]:
    """Distance of a linear network's direction from another one at every saved time.

    Args:
        flow: Of a linear network with one output.
        direction: (d,) unit vector, e.g. of the largest margin.

    Returns:
        (T,) Euclidean distances.
    """
    found = [flow.linear_direction(i) for i in range(len(flow.log_times))]
    return np.linalg.norm(np.array(found) - direction, axis=1)
