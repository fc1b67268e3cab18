"""Gradient flow of networks with batch normalisation.

Every hidden layer is normalised over the samples, all of which are one batch:

    h = σ(γ ∘ (z - mean z)/s),   z = W h',   s² = mean (z - mean z)²,

with a factor γ for each unit and no shift; the last layer is linear. The output depends neither on
the sizes of the rows of W nor, where another normalisation follows, on that of γ, so that the flow
conserves each of them. It is positively homogeneous of degree one in the γ of the last hidden layer
and in the last layer. With ρ the product of their norms, the squares of the norms grow alike (as in
Lemma 1), and -log(B L)/ρ never falls once it is positive: what is conserved only adds to |∇L|² in
the argument of Lyu and Li (2019).

With linear units the network is a hyperplane w whose scale is taken out by the standard deviation
of w·x instead of by ‖w‖. Its margin is that of the whitened samples, and so is the hyperplane where
the flow ends.

Source: Poggio, Banburski and Liao 2020, §3 (batch normalisation is said to control complexity as
weight normalisation does); Ioffe and Szegedy 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.linalg import sqrtm

from hessrmt.checks import one_of, real_array
from hessrmt.errors import DataError
from hessrmt.generalization import bias_free
from hessrmt.generalization.flow import Margins, SolverStatistics, largest_drop, solve, time_grid
from hessrmt.results import Result

if TYPE_CHECKING:
    from jaxtyping import Float64
    from numpy.typing import ArrayLike

    from hessrmt.generalization.bias_free import Inputs, Layers

    Times = Float64[np.ndarray, " T"]
    State = Float64[np.ndarray, " n"]


_CONSTANT = 1e-12
"""Standard deviation over the size of what is summed that is round-off of a constant."""


class _Normalized(NamedTuple):
    """A hidden layer on its way: what enters, z without mean over s, s, and before σ."""

    entering: np.ndarray
    unit: np.ndarray
    deviation: np.ndarray
    before: np.ndarray


@dataclass(frozen=True)
class BatchNormFlow(
    Margins,
    Result,
    axes={
        "time": "log_times log_losses",
        "time factor": "scales",
        "time sample": "margins folded_margins",
    },
    derived="largest_drop smoothed_drop growth_difference",
    omitted="x y weights",
    picture="generalization.batch_norm_margins",
):
    """Gradient flow of a network with batch normalisation at T saved times.

    Attributes:
        loss: ``"exponential"`` or ``"logistic"``.
        activation: Of the hidden layers.
        x: (B, d) inputs.
        y: (B,) labels.
        log_times: (T,) log(1 + t).
        log_losses: (T,) logarithm of the mean loss.
        scales: (T, 2) norms of γ_{K-1} and of the last layer.
        weights: W_1 ... W_{K-1} at the end.
        margins: (T, B) y_n f(x_n) over the product of the scales.
        folded_margins: (T, B) the same over the Frobenius norms of the layers with the
            normalisation folded into them, which is how trained networks are normalised.
        row_drift: Largest relative change of the norm of a row of W_k or of one of γ_1 ...
            γ_{K-2}, which the exact flow conserves: an error of the solver.
        solver: How the equations were solved.
    """

    loss: str
    activation: str
    x: Inputs
    y: np.ndarray
    log_times: Times
    log_losses: Times
    scales: Float64[np.ndarray, "T 2"]
    weights: Layers
    margins: Float64[np.ndarray, "T B"]
    folded_margins: Float64[np.ndarray, "T B"]
    row_drift: float
    solver: SolverStatistics

    @property
    def largest_drop(self) -> float:
        """Largest relative fall of the smallest margin below an earlier positive one."""
        return largest_drop(self.margin)

    @property
    def smoothed_drop(self) -> float:
        """The same of the smoothed margin."""
        return largest_drop(self.smoothed_margin)

    @property
    def growth_difference(self) -> float:
        """Largest difference of what the squared scales have grown by, over the mean growth."""
        grown = self.scales[-1] ** 2 - self.scales[0] ** 2
        return float(np.ptp(grown) / abs(grown.mean()))


def batch_norm_flow(
    layers: Sequence[ArrayLike],
    x: ArrayLike,
    y: ArrayLike,
    *,
    loss: str = "exponential",
    activation: str = "smooth-relu",
    log_time: float = 30.0,
    saved: int | ArrayLike = 301,
    method: str = "LSODA",
    rtol: float = 1e-10,
    atol: float = 1e-12,
    evaluations: int = 300_000,
) -> BatchNormFlow:
    """Follow the gradient flow of a network with batch normalisation; γ starts at 1.

    Args:
        layers: W_1 ... W_K at t = 0, at least two, the last with one output.
        x: (B, d) inputs.
        y: (B,) labels -1 and 1.
        loss: ``"exponential"`` or ``"logistic"``, a mean over samples.
        activation: ``"smooth-relu"``, ``"relu"`` or ``"linear"``.
        log_time: log(1 + t) at the end.
        saved: How many times are saved, evenly in log(1 + t), or (T,) values of log(1 + t).
        method: Of ``scipy.integrate.solve_ivp``.
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance of a step.
        evaluations: How many evaluations of the gradient are allowed.

    Returns:
        The flow at the saved times.

    Raises:
        DataError: If layers, data and settings don't fit together, or a unit is the same for all
            samples.
    """
    inputs = real_array("x", x, dimensions=2, hint="expected a matrix (samples, features)")
    start = bias_free.checked_layers(layers, inputs.shape[1])
    if len(start) < 2:
        raise DataError("batch normalisation needs a hidden layer; give two layers or more")
    one_of("loss", loss, ("exponential", "logistic"))
    labels = bias_free.checked_labels(loss, y, len(inputs), len(start[-1]))
    one_of("positively homogeneous activation", activation, bias_free.ACTIVATIONS)
    grid = time_grid(saved, log_time)
    network = _Network(start, inputs, labels, loss, activation)
    state = network.state()
    parts = network.parts(state)
    with np.errstate(invalid="ignore", divide="ignore"):
        hidden = network.forward(parts)[1]
    for w, layer in zip(parts[0], hidden, strict=True):
        size = np.linalg.norm(w, axis=1) * np.linalg.norm(layer.entering, axis=1).max()
        if not (layer.deviation > _CONSTANT * size).all():
            raise DataError("a unit has the same value for all samples, so that it has no scale")
    kinks = activation == "relu"
    options = {"method": method, "rtol": rtol, "atol": atol, "evaluations": evaluations}
    states, statistics = solve(network.rate, state, grid, kinks, **options)
    return network.record(grid, states, statistics)


Parts = tuple[list[np.ndarray], list[np.ndarray], np.ndarray]
"""W_1 ... W_{K-1}, γ_1 ... γ_{K-1}, W_K."""


@dataclass(frozen=True)
class _Network:
    """The equations; the state holds W_1, γ_1, ..., W_{K-1}, γ_{K-1}, W_K one after the other."""

    layers: Layers
    x: Inputs
    y: np.ndarray
    loss: str
    activation: str

    def state(self) -> State:
        pieces = [piece for w in self.layers[:-1] for piece in (w.ravel(), np.ones(len(w)))]
        return np.concatenate([*pieces, self.layers[-1].ravel()])

    def parts(self, state: State) -> Parts:
        weights, factors, at = [], [], 0
        for w in self.layers[:-1]:
            weights.append(state[at : at + w.size].reshape(w.shape))
            factors.append(state[at + w.size : at + w.size + len(w)])
            at += w.size + len(w)
        return weights, factors, state[at:].reshape(self.layers[-1].shape)

    def forward(self, parts: Parts) -> tuple[np.ndarray, list[_Normalized], np.ndarray]:
        """Outputs, the hidden layers on their way, and what enters the last layer."""
        entering, found = self.x, []
        weights, factors, last = parts
        for w, gamma in zip(weights, factors, strict=True):
            z = entering @ w.T
            z = z - z.mean(axis=0)
            deviation = np.sqrt(np.square(z).mean(axis=0))
            unit = z / deviation
            found.append(_Normalized(entering, unit, deviation, gamma * unit))
            entering = bias_free.activate(self.activation, gamma * unit)
        return entering @ last.T, found, entering

    def rate(self, u: float, state: State) -> State:
        """(1 + t) times the negative gradient of the loss."""
        parts = self.parts(state)
        weights, factors, last = parts
        outputs, hidden, entering = self.forward(parts)
        log_loss, pull = bias_free.log_loss_and_pull(self.loss, outputs, self.y)
        pull = pull * bias_free.speed(u, log_loss)
        pieces = [(pull.T @ entering).ravel()]
        pull = pull @ last
        for layer, w, gamma in zip(hidden[::-1], weights[::-1], factors[::-1], strict=True):
            pull = bias_free.pull_back(self.activation, layer.before, pull)
            pieces.append((pull * layer.unit).sum(axis=0))
            pull = pull * gamma
            along = (pull * layer.unit).mean(axis=0)
            pull = (pull - pull.mean(axis=0) - along * layer.unit) / layer.deviation
            pieces.append((pull.T @ layer.entering).ravel())
            pull = pull @ w
        return np.concatenate(pieces[::-1])

    def record(self, grid: Times, states: np.ndarray, solver: SolverStatistics) -> BatchNormFlow:
        log_losses, scales, margins, folded, rows = [], [], [], [], []
        for state in states:
            parts = self.parts(state)
            weights, factors, last = parts
            outputs, hidden, _ = self.forward(parts)
            log_losses.append(bias_free.log_loss_and_pull(self.loss, outputs, self.y)[0])
            scales.append([np.linalg.norm(factors[-1]), np.linalg.norm(last)])
            triples = zip(weights, factors, hidden, strict=True)
            norms = [np.linalg.norm((g / h.deviation)[:, None] * w) for w, g, h in triples]
            margins.append(self.y * outputs[:, 0] / np.prod(scales[-1]))
            folded.append(self.y * outputs[:, 0] / np.prod([*norms, np.linalg.norm(last)]))
            sizes = [np.linalg.norm(w, axis=1) for w in weights]
            rows.append(np.concatenate([*sizes, [*map(np.linalg.norm, factors[:-1])]]))
        drift = float(np.abs(np.array(rows) / rows[0] - 1).max())
        arrays = np.array(log_losses), np.array(scales), tuple(self.parts(states[-1])[0])
        given = self.loss, self.activation, self.x, self.y, grid
        return BatchNormFlow(*given, *arrays, np.array(margins), np.array(folded), drift, solver)


def whitened(x: ArrayLike) -> Inputs:
    """Samples without their mean, in the metric of their covariance: (x - mean) C^{-1/2}.

    The maximum margin of these is where one linear unit with batch normalisation ends; its
    direction there is C^{1/2} w.

    Args:
        x: (B, d), B > d.

    Returns:
        (B, d), their covariance the identity.

    Raises:
        DataError: If the covariance has no inverse.
    """
    inputs = real_array("x", x, dimensions=2)
    centred = inputs - inputs.mean(axis=0)
    covariance = centred.T @ centred / len(centred)
    if np.linalg.matrix_rank(covariance) < len(covariance):
        raise DataError("the samples lie in a hyperplane; give more samples or fewer features")
    return centred @ np.linalg.inv(np.real(sqrtm(covariance)))
