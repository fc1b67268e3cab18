"""The stationary directions that flows of normalised weights have in common, counted.

Poggio, Banburski and Liao 2020 compare gradient descent, descent under ‖V_k‖ = 1 and weight
normalisation (Lemma 5), and the last ones with the minimisation at a fixed ρ in the limit ρ → ∞
(Lemma 2), by their sets of stationary directions. Here every flow starts from the same many points;
where it ends is taken on to the nearest minimum of the loss on the spheres ‖V_k‖ = 1 at one large ρ
that all share, since a flow is only within 1/log t of its limit. Minima are told apart by what the
network gives on the samples: units may be exchanged, or split in two without a difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize

from hessrmt import rng
from hessrmt.checks import one_of, real, real_array, whole
from hessrmt.errors import ConvergenceError, DataError
from hessrmt.generalization import bias_free
from hessrmt.generalization.flow import FLOWS, gradient_flow
from hessrmt.results import Result

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64
    from numpy.typing import ArrayLike

    from hessrmt.generalization.bias_free import Layers

FIXED = "fixed-norm"
COUNTED = ("descent", "constrained", "weight-normalization", FIXED)

_SAME = 1e-3
"""Largest difference of normalised outputs, over the largest, of two minima that are the same."""

_REST = 1e-5
"""Sine of the angle between directions and gradients below which a point is stationary."""

_RTOL, _ATOL = 1e-6, 1e-8
"""Of the flows, which end nowhere in particular."""

_STEPS = 3000

_EVALUATIONS = 20_000
"""Of the gradient, for one flow. Ordinary ones need some thousands; one that slides along the kink
where all units of a layer are zero for a sample has no end."""


@dataclass(frozen=True)
class StationarySets(
    Result,
    axes={"flow start": "classes misalignment moved", "class sample": "outputs"},
    derived="counts stationary",
    picture="generalization.stationary_counts",
):
    """Where flows from S starts end.

    Attributes:
        flows: F kinds of flows; of ``"fixed-norm"`` ρ was that of the comparison from the start.
        rho: ρ at which they are compared.
        classes: (F, S) number of the minimum; -1 where not all samples are classified correctly,
            -2 where no minimum was reached, or the flow could not be followed to its end.
        outputs: (C, B) y_n f(V; x_n) at the C minima, the largest margin first.
        misalignment: (F, S) sine of the angle between directions and gradients at the end; NaN
            where the flow could not be followed.
        moved: (F, S) distance of f(V; x) at the end of the flow from the minimum, over the largest
            output there; NaN likewise.
    """

    flows: tuple[str, ...]
    rho: float
    classes: Int64[np.ndarray, "F S"]
    outputs: Float64[np.ndarray, "C B"]
    misalignment: Float64[np.ndarray, "F S"]
    moved: Float64[np.ndarray, "F S"]

    @property
    def counts(self) -> Int64[np.ndarray, "F C"]:
        """(F, C) how often each flow ended in each minimum."""
        known = range(len(self.outputs))
        return np.array([[np.count_nonzero(row == c) for c in known] for row in self.classes])

    @property
    def stationary(self) -> float:
        """Share of the ends that are stationary and separate the samples."""
        return float((self.classes >= 0).mean())

    @property
    def margins(self) -> Float64[np.ndarray, " C"]:
        """(C,) smallest margin of each minimum."""
        return self.outputs.min(axis=1) if len(self.outputs) else np.zeros(0)

    def alone(self, one: str, other: str) -> list[tuple[int, int, float]]:
        """Minima in which one flow ended, and never the other.

        Args:
            one: A flow.
            other: Another.

        Returns:
            For each its number, how often the one ended there, and the probability that the other
            misses it if both end there equally often: of all arrivals in the two flows' samples
            each falls on either flow alike.
        """
        first, second = (self.counts[self.flows.index(name)] for name in (one, other))
        totals = first.sum(), second.sum()
        share = totals[0] / max(sum(totals), 1)
        return [
            (int(c), int(first[c]), float(share ** first[c]))
            for c in np.flatnonzero((first > 0) & (second == 0))
        ]


def relax(
    directions: Layers, x: ArrayLike, y: ArrayLike, rho: float, loss: str, activation: str
) -> tuple[Layers, float]:
    """The nearest minimum of the loss over directions at a fixed ρ.

    Args:
        directions: V_1 ... V_K; normalised here.
        x: (B, d) inputs.
        y: (B,) labels.
        rho: ρ, the product of the norms, of which each layer has an equal share.
        loss: One of :data:`hessrmt.generalization.bias_free.LOSSES`.
        activation: Positively homogeneous.

    Returns:
        The directions, and the largest sine of the angle between one and its gradient.
    """
    inputs = real_array("x", x, dimensions=2)
    start = bias_free.checked_layers(directions, inputs.shape[1])
    labels = bias_free.checked_labels(loss, y, len(inputs), len(start[-1]))
    scale = real("rho", rho, above=0) ** (1 / len(start))
    ends = np.cumsum([v.size for v in start])[:-1]

    def units(flat: np.ndarray) -> tuple[np.ndarray, Layers]:
        pieces = np.split(flat, ends)
        return bias_free.split_scales(
            tuple(p.reshape(v.shape) for p, v in zip(pieces, start, strict=True))
        )

    def pulls(v: Layers) -> tuple[float, Layers, Layers]:
        """Loss as log L, its negative gradient in V, and what of that is across V."""
        weights = tuple(scale * one for one in v)
        outputs = bias_free.forward(weights, inputs, activation)
        log_loss = bias_free.log_loss_and_pull(loss, outputs, labels)[0]
        found = bias_free.descent(weights, inputs, labels, loss, activation)
        across = tuple(g - np.vdot(one, g) * one for g, one in zip(found, v, strict=True))
        return log_loss, found, across

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        norms, v = units(flat)
        log_loss, _, across = pulls(v)
        slopes = [-scale * a.ravel() / norm for a, norm in zip(across, norms, strict=True)]
        return log_loss, np.concatenate(slopes)

    flat = np.concatenate([v.ravel() for v in bias_free.split_scales(start)[1]])
    options = {"gtol": 1e-10, "maxiter": _STEPS}
    best = minimize(value, flat, jac=True, method="BFGS", options=options)
    v = units(best.x)[1]
    _, gradients, across = pulls(v)
    pairs = zip(across, gradients, strict=True)
    return v, float(max(np.linalg.norm(a) / np.linalg.norm(g) for a, g in pairs))


def stationary_sets(
    widths: Sequence[int],
    x: ArrayLike,
    y: ArrayLike,
    *,
    starts: int = 20,
    flows: Sequence[str] = COUNTED,
    log_time: float = 20.0,
    rho: float = 200.0,
    loss: str = "exponential",
    activation: str = "smooth-relu",
    scale: float = 1.0,
    seed: int = 0,
) -> StationarySets:
    """Follow several flows from the same starts, and count the minima in which they end.

    Args:
        widths: Of the network, from inputs to outputs.
        x: (B, d) inputs.
        y: (B,) labels -1 and 1.
        starts: S random starts.
        flows: Kinds; ``"fixed-norm"`` minimises at ρ from the start.
        log_time: log(1 + t) where the other flows are stopped.
        rho: ρ at which all are compared.
        loss: ``"exponential"`` or ``"logistic"``.
        activation: Positively homogeneous.
        scale: Of the starts, see :func:`hessrmt.generalization.bias_free.initial_layers`.
        seed: Of the run.

    Returns:
        The minima and how often each flow ended in each.

    Raises:
        DataError: If a setting cannot be used.
    """
    count = whole("starts", starts, 1)
    for name in flows:
        one_of("flow", name, FLOWS)
    if not flows:
        raise DataError(f"give one flow or more of {', '.join(FLOWS)}")
    inputs, labels = real_array("x", x, dimensions=2), np.asarray(y, dtype=float)
    found = np.empty((len(flows), count, len(inputs)))
    rest, moved = np.empty((2, len(flows), count))
    for s in range(count):
        own = int(rng.seed_sequence(seed, "stationary start", s).generate_state(1)[0])
        layers = bias_free.initial_layers(widths, own, scale)
        for f, kind in enumerate(flows):
            directions = bias_free.split_scales(layers)[1]
            if kind != FIXED:
                try:
                    flow = gradient_flow(
                        layers,
                        inputs,
                        labels,
                        kind=kind,
                        loss=loss,
                        activation=activation,
                        log_time=log_time,
                        saved=2,
                        rtol=_RTOL,
                        atol=_ATOL,
                        evaluations=_EVALUATIONS,
                    )
                except ConvergenceError:
                    found[f, s] = rest[f, s] = moved[f, s] = np.nan
                    continue
                directions = tuple(v[-1] for v in flow.directions)
            before = labels * bias_free.forward(directions, inputs, activation)[:, 0]
            ends, rest[f, s] = relax(directions, inputs, labels, rho, loss, activation)
            found[f, s] = labels * bias_free.forward(ends, inputs, activation)[:, 0]
            moved[f, s] = np.abs(before - found[f, s]).max() / np.abs(found[f, s]).max()
    classes, outputs = _told_apart(found, rest)
    return StationarySets(tuple(flows), rho, classes, outputs, rest, moved)


def _told_apart(
    found: Float64[np.ndarray, "F S B"], rest: Float64[np.ndarray, "F S"]
) -> tuple[Int64[np.ndarray, "F S"], Float64[np.ndarray, "C B"]]:
    """Numbers of the minima, those of the largest margins first, and outputs at each."""
    classes = np.full(rest.shape, -2)
    classes[(found.min(axis=2) <= 0) & (rest <= _REST)] = -1
    waiting = np.argwhere((found.min(axis=2) > 0) & (rest <= _REST))
    order = sorted(map(tuple, waiting), key=lambda place: -found[place].min())
    outputs: list[np.ndarray] = []
    for place in order:
        values = found[place]
        near = [np.abs(values - one).max() <= _SAME * np.abs(one).max() for one in outputs]
        if not any(near):
            outputs.append(values)
            near.append(True)
        classes[place] = near.index(True)
    return classes, np.array(outputs).reshape(len(outputs), found.shape[2])
