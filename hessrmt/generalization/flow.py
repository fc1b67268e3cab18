"""Gradient flow of bias-free networks, solved with error control.

Losses fall like 1/t, so the equations (:mod:`hessrmt.generalization.equations`) are integrated in
u = log(1 + t), dW/du = (1 + t) dW/dt. It is the same path, its rates in u stay near one, and since
(1 + t) ∂L/∂W = exp(u + log L) · ∂log L/∂W needs only log L, times far beyond the largest float64
are reached.

Source: [P] (Poggio, Banburski, Liao, PNAS 117, 30039, 2020), §3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.integrate import solve_ivp

from hessrmt.errors import ConvergenceError, GeneralizationError
from hessrmt.generalization import bias_free, exponential_type
from hessrmt.generalization.equations import KINDS, Counted, System
from hessrmt.generalization.homogeneous_activations import checked_activation
from hessrmt.generalization.trajectory import Flow, SolverStatistics

if TYPE_CHECKING:
    from jaxtyping import Float64
    from numpy.typing import ArrayLike

METHODS = ("LSODA", "DOP853", "RK45", "RK23", "Radau", "BDF")


_REST = 1e-9
"""Angle between directions and gradients at which the fixed-norm flow is at rest: its limit lies at
finite times, where (1 + t) times a gradient of round-off soon is motion."""


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
            kink (:mod:`hessrmt.generalization.homogeneous_activations`), or ``"linear"``.
        log_time: log(1 + t) at the end: 30 is t = 1e13; linear networks may go to 1e5 and beyond.
        saved: How many times are saved, evenly in log(1 + t), or (T,) values of log(1 + t).
        method: Of ``scipy.integrate.solve_ivp``. LSODA switches to a stiff method by itself.
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance of a step.
        evaluations: How many evaluations of the gradient are allowed.

    Returns:
        The flow at the saved times.

    Raises:
        GeneralizationError: If layers, data and settings don't fit together.
        ConvergenceError: If the solver gives up or needs too many evaluations.
    """
    inputs = np.array(x, dtype=float)
    features = inputs.shape[1] if inputs.ndim == 2 else 0
    start = bias_free.checked_layers(layers, features) if features else ()
    outputs = start[-1].shape[0] if start else 1
    inputs, labels = exponential_type.checked_data(loss, inputs, y, outputs)
    checked_activation(activation)
    for name, value, known in (("kind", kind, KINDS), ("method", method, METHODS)):
        if value not in known:
            raise GeneralizationError(f"unknown {name} {value!r}; known are {', '.join(known)}")
    for name, value in (("rtol", rtol), ("atol", atol), ("log_time", log_time)):
        if not (np.isfinite(value) and value > 0):
            raise GeneralizationError(f"{name} must be a positive number, got {value!r}")
    grid = _grid(saved, log_time)
    system = System(start, inputs, labels, loss, activation, kind)
    counted = Counted(system, evaluations)
    with np.errstate(under="ignore", over="ignore", invalid="ignore"):  # in trial steps
        solution = solve_ivp(
            counted,
            (0.0, grid[-1]),
            system.state(),
            t_eval=grid,
            method=method,
            rtol=rtol,
            atol=atol,
            events=_Rest(system) if kind == "fixed-norm" else None,
        )
    states = solution.y.T
    if solution.status == 1:  # at rest: the states that are missing are the last one
        rest = np.repeat(solution.y_events[0], len(grid) - len(states), axis=0)
        states = np.concatenate([states.reshape(-1, rest.shape[1]), rest])
    if solution.status < 0 or len(states) != len(grid) or not np.isfinite(states).all():
        raise ConvergenceError(
            f"{method} stopped at log(1 + t) = {solution.t[-1] if len(solution.t) else 0:g} of "
            f"{grid[-1]:g}: {solution.message} Try another method, a shorter log_time or a larger "
            f"rtol"
        )
    return _record(system, grid, states, _statistics(solution, counted.made, method, rtol, atol))


class _Rest:
    """The event that ends the integration of the fixed-norm flow."""

    terminal, direction = True, -1

    def __init__(self, system: System) -> None:
        self.system = system

    def __call__(self, u: float, state: Float64[np.ndarray, " n"]) -> float:
        return self.system.sine(u, state) - _REST


def _grid(saved: int | ArrayLike, log_time: float) -> Float64[np.ndarray, " T"]:
    if isinstance(saved, int | np.integer) and not isinstance(saved, bool):
        if saved < 2:
            raise GeneralizationError(f"saved must be at least 2 times, got {saved}")
        return np.linspace(0.0, log_time, int(saved))
    grid = np.array(saved, dtype=float)
    if grid.ndim != 1 or len(grid) < 2 or not np.isfinite(grid).all() or grid[0] < 0:
        raise GeneralizationError(
            "saved must be a number of times or two or more values of log(1 + t) >= 0"
        )
    if not (np.diff(grid) > 0).all():
        raise GeneralizationError("the saved values of log(1 + t) must increase")
    return grid


def _record(
    system: System,
    grid: Float64[np.ndarray, " T"],
    states: Float64[np.ndarray, "T n"],
    solver: SolverStatistics,
) -> Flow:
    log_losses, margins, scales = [], [], []
    directions: list[list[np.ndarray]] = [[] for _ in system.layers]
    drift = 0.0
    first = [float(np.linalg.norm(v)) for v in system.parts(states[0])[1]]
    for state in states:
        rho, vectors = system.parts(state)
        unit = bias_free.split_scales(vectors)
        if system.kind != "descent":
            drift = max(drift, *np.abs(unit[0] / first - 1))
        weights = tuple(r * v for r, v in zip(rho, unit[1], strict=True))
        outputs = bias_free.forward(weights, system.x, system.activation).outputs
        log_losses.append(exponential_type.log_loss_and_pull(system.loss, outputs, system.y)[0])
        normalized = bias_free.forward(unit[1], system.x, system.activation).outputs
        margins.append(exponential_type.margins(system.loss, normalized, system.y))
        scales.append(rho)
        for kept, v in zip(directions, unit[1], strict=True):
            kept.append(v)
    return Flow(
        kind=system.kind,
        loss=system.loss,
        activation=system.activation,
        x=system.x,
        y=system.y,
        log_times=grid,
        log_losses=np.array(log_losses),
        scales=np.array(scales),
        directions=tuple(np.array(kept) for kept in directions),
        margins=np.array(margins),
        norm_drift=float(drift),
        solver=solver,
    )


def _statistics(
    solution: object, evaluations: int, method: str, rtol: float, atol: float
) -> SolverStatistics:
    return SolverStatistics(
        method=method,
        rtol=rtol,
        atol=atol,
        evaluations=evaluations,
        jacobians=int(getattr(solution, "njev", 0)),
        factorizations=int(getattr(solution, "nlu", 0)),
        message=str(getattr(solution, "message", "")),
    )
