"""The equations of the gradient flows of [P] in the variable u = log(1 + t).

With W_k = ρ_k V_k, ‖V_k‖ = 1, g_k = -∂L/∂W_k and S_k = I - V_k V_kᵀ, the flows are

- ``descent``: Ẇ_k = g_k, that is ρ̇_k = V_kᵀ g_k, V̇_k = S_k g_k/ρ_k ([P] eqs. 1, 14);
- ``constrained``: ρ̇_k = V_kᵀ g_k, V̇_k = ρ_k S_k g_k ([P] eqs. 6, 7);
- ``fixed-norm``: the same with ρ̇_k = 0 ([P] eq. 3);
- ``weight-normalization``: gradient descent in (s, v) of W_k = s_k v_k/‖v_k‖ (Salimans, Kingma,
  2016), started at v_k = W_k. It conserves ‖v_k‖, so that ρ̇_k = V_kᵀ g_k and
  V̇_k = ρ_k S_k g_k/‖v_k(0)‖²: the constrained flow, V_k slower by a constant factor.

Source: [P] (Poggio, Banburski, Liao, PNAS 117, 30039, 2020), §3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hessrmt.errors import ConvergenceError
from hessrmt.generalization import bias_free, exponential_type

if TYPE_CHECKING:
    from jaxtyping import Float64

    from hessrmt.generalization.bias_free import Layers

KINDS = ("descent", "constrained", "fixed-norm", "weight-normalization")

_LARGEST_EXPONENT = 600.0
"""Of (1 + t) L in trial steps that the solver rejects; along a flow it is of order one."""


class _Pull(NamedTuple):
    """(1 + t) g_k at one point, its part along v_k/‖v_k‖, the rest, and the factors ρ_k/‖v_k‖."""

    whole: Layers
    along: list[float]
    across: Layers
    factors: Float64[np.ndarray, " K"]


@dataclass(frozen=True)
class System:
    """One flow as dstate/du; the state holds scales (K,), if any, then all v_k flattened.

    Attributes:
        layers: W_1 ... W_K at t = 0.
        x: (B, d) inputs.
        y: (B,) labels.
        loss: One of :data:`hessrmt.generalization.exponential_type.LOSSES`.
        activation: Of the hidden layers.
        kind: One of :data:`KINDS`.
    """

    layers: Layers
    x: Float64[np.ndarray, "B d"]
    y: np.ndarray
    loss: str
    activation: str
    kind: str

    @property
    def has_scales(self) -> bool:
        """Whether the scales are variables of their own."""
        return self.kind in {"constrained", "weight-normalization"}

    def state(self) -> Float64[np.ndarray, " n"]:
        """The state at t = 0."""
        scales, directions = bias_free.split_scales(self.layers)
        if self.kind in {"descent", "weight-normalization"}:
            directions = self.layers
        flat = np.concatenate([v.ravel() for v in directions])
        return np.concatenate([scales, flat]) if self.has_scales else flat

    def parts(self, state: Float64[np.ndarray, " n"]) -> tuple[Float64[np.ndarray, " K"], Layers]:
        """Scales and vectors of a state.

        Args:
            state: The state.

        Returns:
            (K,) ρ_k, and the v_k of W_k = ρ_k v_k/‖v_k‖.
        """
        count = len(self.layers)
        flat = state[count:] if self.has_scales else state
        ends = np.cumsum([layer.size for layer in self.layers])
        pieces = np.split(flat, ends[:-1])
        vectors = tuple(p.reshape(w.shape) for p, w in zip(pieces, self.layers, strict=True))
        if self.has_scales:
            return state[:count], vectors
        norms = bias_free.split_scales(vectors if self.kind == "descent" else self.layers)[0]
        return norms, vectors

    def rate(self, u: float, state: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """dstate/du = (1 + t) dstate/dt.

        Args:
            u: log(1 + t).
            state: The state.

        Returns:
            Its derivative.
        """
        pull = self._pull(u, state)
        if self.kind == "descent":
            return np.concatenate([g.ravel() for g in pull.whole])
        moves = [c * g.ravel() for c, g in zip(pull.factors, pull.across, strict=True)]
        return np.concatenate([pull.along, *moves] if self.has_scales else moves)

    def sine(self, u: float, state: Float64[np.ndarray, " n"]) -> float:
        """Largest sine of the angle between a layer and its gradient.

        Args:
            u: log(1 + t).
            state: The state.

        Returns:
            A number in [0, 1], zero at a stationary direction ([P] eq. 5).
        """
        pull = self._pull(u, state)
        pairs = zip(pull.across, pull.whole, strict=True)
        return float(max(np.linalg.norm(a) / np.linalg.norm(g) for a, g in pairs))

    def _pull(self, u: float, state: Float64[np.ndarray, " n"]) -> _Pull:
        scales, vectors = self.parts(state)
        norms, units = bias_free.split_scales(vectors)
        weights = tuple(rho * v for rho, v in zip(scales, units, strict=True))
        passed = bias_free.forward(weights, self.x, self.activation)
        log_loss, pull = exponential_type.log_loss_and_pull(self.loss, passed.outputs, self.y)
        pull *= np.exp(min(u + log_loss, _LARGEST_EXPONENT))
        whole = bias_free.backward(weights, passed, pull, self.activation)
        along = [float(np.vdot(v, g)) for v, g in zip(units, whole, strict=True)]
        across = tuple(g - a * v for g, a, v in zip(whole, along, units, strict=True))
        return _Pull(whole, along, across, scales / norms)


class Counted:
    """A system's rate, for so many evaluations.

    Args:
        system: The flow.
        allowed: How many.

    Attributes:
        made: Evaluations so far.
    """

    def __init__(self, system: System, allowed: int) -> None:
        self.system, self.allowed, self.made = system, allowed, 0

    def __call__(self, u: float, state: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """As :meth:`System.rate`.

        Args:
            u: log(1 + t).
            state: The state.

        Returns:
            Its derivative.

        Raises:
            ConvergenceError: If it was called too often.
        """
        self.made += 1
        if self.made > self.allowed:
            hint = "relax rtol or shorten log_time"
            if self.system.activation == "relu" and len(self.system.layers) > 1:
                hint = (
                    "a ReLU network's flow may slide along a kink there, where it has a solution "
                    'in Filippov\'s sense only; take activation="smooth-relu"'
                )
            raise ConvergenceError(
                f"{self.allowed:,} evaluations of the gradient were not enough: they end at "
                f"log(1 + t) = {u:g}; {hint}"
            )
        return self.system.rate(u, state)
