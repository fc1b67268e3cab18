"""What a gradient flow leaves: norms, directions and margins at the saved times.

Source: [P] (Poggio, Banburski, Liao, PNAS 117, 30039, 2020), §3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from hessrmt.errors import GeneralizationError
from hessrmt.generalization import bias_free, exponential_type
from hessrmt.problems.problem import Problem

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64

    from hessrmt.generalization.bias_free import Layers


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


@dataclass(frozen=True)
class Flow:
    """A gradient flow at T saved times.

    Attributes:
        kind: Which flow, one of :data:`hessrmt.generalization.flow.KINDS`.
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
    x: Float64[np.ndarray, "B d"] = field(repr=False)
    y: np.ndarray = field(repr=False)
    log_times: Float64[np.ndarray, " T"] = field(repr=False)
    log_losses: Float64[np.ndarray, " T"] = field(repr=False)
    scales: Float64[np.ndarray, "T K"] = field(repr=False)
    directions: tuple[Float64[np.ndarray, "T out in"], ...] = field(repr=False)
    margins: Float64[np.ndarray, "T B"] = field(repr=False)
    norm_drift: float
    solver: SolverStatistics

    @property
    def times(self) -> Float64[np.ndarray, " T"]:
        """(T,) t; infinite where float64 can't hold it."""
        with np.errstate(over="ignore"):
            return np.expm1(self.log_times)

    @property
    def losses(self) -> Float64[np.ndarray, " T"]:
        """(T,) mean losses; zero where float64 can't hold them."""
        with np.errstate(under="ignore"):
            return np.exp(self.log_losses)

    @property
    def rho(self) -> Float64[np.ndarray, " T"]:
        """(T,) ρ = Π_k ρ_k: f(W; x) = ρ f(V; x)."""
        return self.scales.prod(axis=1)

    @property
    def margin(self) -> Float64[np.ndarray, " T"]:
        """(T,) smallest normalised margin ([P] Fig. 3)."""
        return self.margins.min(axis=1)

    @property
    def support(self) -> Int64[np.ndarray, " T"]:
        """(T,) which sample has the smallest margin."""
        return self.margins.argmin(axis=1)

    @property
    def smoothed_margin(self) -> Float64[np.ndarray, " T"]:
        """(T,) -log(B L)/ρ; B L is Σ e^{-ρ y f(V)} for the exponential loss.

        It tends to the smallest margin as ρ → ∞ and, for the exponential loss, never decreases once
        it is positive (Lyu, Li, arXiv:1906.05890, Theorem 4.1), unlike the smallest margin.
        """
        return -(self.log_losses + np.log(len(self.y))) / self.rho

    @property
    def separated_from(self) -> int | None:
        """First saved time from which on all samples are classified correctly; None if none."""
        wrong = np.flatnonzero(self.margin <= 0)
        first = int(wrong[-1]) + 1 if len(wrong) else 0
        return first if first < len(self.margin) else None

    @property
    def largest_drop(self) -> float:
        """Largest fall of the smallest margin below an earlier one after separation, relative.

        Zero if it never decreases, NaN without separation.
        """
        first = self.separated_from
        if first is None:
            return float("nan")
        margin = self.margin[first:]
        return float((1 - margin / np.maximum.accumulate(margin)).max())

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
        layers = self.layers(index)
        passed = bias_free.forward(layers, self.x, self.activation)
        _, pull = exponential_type.log_loss_and_pull(self.loss, passed.outputs, self.y)
        return bias_free.backward(layers, passed, pull, self.activation)

    @cached_property
    def norm_growth(self) -> Float64[np.ndarray, "T K"]:
        """(T, K) dρ_k²/dt over the loss, 2 ρ_k V_kᵀ(-∂L/∂W_k)/L: the same for all k ([P] Lemma 1).

        It is what gradient descent, the constrained flow and weight normalisation share; the
        derivative of ρ_k² in the flow ``fixed-norm`` is zero.
        """
        return np.array(
            [
                [2 * np.vdot(w, g) for w, g in zip(self.layers(i), gradients, strict=True)]
                for i, gradients in enumerate(map(self.log_gradients, range(len(self.log_times))))
            ]
        )

    def misalignment(self, index: int = -1) -> Float64[np.ndarray, " K"]:
        """Sine of the angle between each layer and its negative gradient.

        Zero at the stationary directions, where S_k ∂L/∂W_k = 0 ([P] eq. 5, Lemma 5).

        Args:
            index: Which time.

        Returns:
            (K,) in [0, 1].
        """
        sines = []
        for v, g in zip(self.directions, self.log_gradients(index), strict=True):
            across = g - np.vdot(v[index], g) * v[index]
            sines.append(np.linalg.norm(across) / np.linalg.norm(g))
        return np.array(sines)

    def linear_direction(self, index: int = -1) -> Float64[np.ndarray, " d"]:
        """Unit vector β of a linear network with one output, f(W; x) = ‖W_K ··· W_1‖ βᵀx.

        Args:
            index: Which time.

        Returns:
            (d,) unit vector.

        Raises:
            GeneralizationError: If the network isn't linear or has several outputs.
        """
        if len(self.directions) > 1 and self.activation != "linear":
            raise GeneralizationError("a ReLU network has no single direction in input space")
        product = np.eye(self.x.shape[1])
        for v in self.directions:
            product = v[index] @ product
        if len(product) != 1:
            raise GeneralizationError(f"the network has {len(product)} outputs, expected one")
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
            :class:`hessrmt.generalization.bias_free.NormalizedDirections`, float64.
        """
        directions = tuple(v[index] for v in self.directions)
        return self._problem(
            bias_free.NormalizedDirections(directions, self.scales[index], self.activation)
        )

    def _problem(self, model: torch.nn.Module) -> Problem:
        data = (torch.tensor(self.x), torch.tensor(self.y))
        return Problem(model, exponential_type.LOSSES[self.loss], data)


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
