"""Deep tree networks against shallow ones: error against the number of units.

[P] Theorem 1 bounds what is needed for the accuracy ε: a shallow network of O(ε^-n) units, a deep
one of O((n - 1) ε^-2), for the worst constituents of bounded first derivatives. So the bounds on
the error fall like units^-1/n and units^-1/2.

Source: [P] (Poggio, Banburski, Liao, PNAS 117, 30039, 2020), §2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import qmc

from hessrmt import rng
from hessrmt.errors import GeneralizationError
from hessrmt.generalization.leastsquares import fit
from hessrmt.generalization.trees import Tree, checked_inputs, tree_function

if TYPE_CHECKING:
    from jaxtyping import Float64

    Errors = Float64[np.ndarray, " U"]

KINDS = ("deep", "shallow")
STARTS = ("nodes", "random")

_RESTARTS, _NODE_POINTS = 4, 512
"""Fits of one node to its constituent, of which the best is taken, and points of each."""


@dataclass(frozen=True)
class Exponent:
    """errors ∝ units^-exponent.

    Attributes:
        exponent: Mean over seeds of the slopes of log error against log units, times -1.
        error: Its standard error over seeds; NaN for one seed.
    """

    exponent: float
    error: float


@dataclass(frozen=True)
class ApproximationStudy:
    """Errors of networks that were fitted to one compositional function.

    Attributes:
        constituent: Of the function.
        inputs: n.
        units: (U,) ReLUs, equal for both kinds.
        l2: For ``"deep"`` and ``"shallow"`` (U, S) root mean squares of the error over the test
            points, relative to the function's standard deviation; one column for each seed.
        sup: The same for the largest error of a test point.
        fitted: As ``l2``, over the points that were fitted: far below ``l2`` where a network has
            too many parameters for them.
        parameters: For each kind (U,) numbers of parameters.
    """

    constituent: str
    inputs: int
    units: Float64[np.ndarray, " U"]
    l2: dict[str, Float64[np.ndarray, "U S"]] = field(repr=False)
    sup: dict[str, Float64[np.ndarray, "U S"]] = field(repr=False)
    fitted: dict[str, Float64[np.ndarray, "U S"]] = field(repr=False)
    parameters: dict[str, list[int]] = field(repr=False)

    def exponent(self, kind: str, norm: str = "l2") -> Exponent:
        """How fast the error falls with the units.

        Args:
            kind: ``"deep"`` or ``"shallow"``.
            norm: ``"l2"`` or ``"sup"``.

        Returns:
            The exponent; [P]'s bounds have 1/2 for deep and 1/n for shallow networks.
        """
        errors = self.l2[kind] if norm == "l2" else self.sup[kind]
        slopes = -np.polyfit(np.log(self.units), np.log(errors), 1)[0]
        spread = slopes.std(ddof=1) / np.sqrt(len(slopes)) if len(slopes) > 1 else float("nan")
        return Exponent(float(slopes.mean()), float(spread))

    def mean(self, kind: str, norm: str = "l2") -> tuple[Errors, Errors]:
        """Geometric mean of the errors over seeds.

        Args:
            kind: ``"deep"`` or ``"shallow"``.
            norm: ``"l2"`` or ``"sup"``.

        Returns:
            (U,) means and (U,) standard errors; zeros for one seed.
        """
        logs = np.log((self.l2 if norm == "l2" else self.sup)[kind])
        seeds, middle = logs.shape[1], np.exp(logs.mean(1))
        spread = logs.std(1, ddof=1) / np.sqrt(seeds) if seeds > 1 else np.zeros(len(logs))
        return middle, middle * spread

    def advantage(self, index: int = -1, norm: str = "l2") -> tuple[float, float]:
        """log(shallow error/deep error) at equal units.

        Args:
            index: Which number of units.
            norm: ``"l2"`` or ``"sup"``.

        Returns:
            Mean over seeds, and its standard error.
        """
        errors = self.l2 if norm == "l2" else self.sup
        gain = np.log(errors["shallow"][index]) - np.log(errors["deep"][index])
        spread = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else float("nan")
        return float(gain.mean()), float(spread)


def study(
    constituent: str = "sine",
    inputs: int = 4,
    widths: Sequence[int] = (2, 4, 8, 16),
    *,
    seeds: int = 5,
    samples: int = 2048,
    iterations: int = 100,
    start: str = "nodes",
    seed: int = 0,
) -> ApproximationStudy:
    """Fit deep and shallow networks of equal numbers of units to a compositional function.

    Every network is fitted by least squares to values at ``samples`` quasi-random points, and
    tested at as many others. The errors contain what the optimiser missed, so they are upper bounds
    on the best that a network of that size can do.

    Args:
        constituent: One of :data:`hessrmt.generalization.trees.CONSTITUENTS`.
        inputs: n, a power of two.
        widths: q, units at each of the n - 1 nodes of the deep network; increasing.
        seeds: Initialisations of each network.
        samples: Points to fit and points to test, each; a power of two.
        iterations: Of the optimiser.
        start: ``"nodes"``: every node of the deep network starts as the best of a few fits to the
            constituent alone, as in the proof of [P] Theorem 1; ``"random"``: as the shallow one.
        seed: Of the run.

    Returns:
        The errors.

    Raises:
        GeneralizationError: If a setting cannot be used.
    """
    n = checked_inputs(inputs)
    if start not in STARTS:
        raise GeneralizationError(f"unknown start {start!r}; known are {', '.join(STARTS)}")
    for name, value in (("seeds", seeds), ("samples", samples), ("iterations", iterations)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise GeneralizationError(f"{name} must be a positive integer, got {value!r}")
    sizes = [int(w) for w in widths]
    if len(sizes) < 2 or sizes[0] < 1 or list(widths) != sizes or (np.diff(sizes) <= 0).any():
        raise GeneralizationError(
            f"widths must be two or more increasing positive integers, got {list(widths)}"
        )
    points = _points(n, 2 * samples, rng.stream(seed, "points", n).uniform(size=n))
    values = tree_function(constituent, points)
    scale = values.std()
    networks = {
        "deep": [Tree(n, q) for q in sizes],
        "shallow": [Tree(n, (n - 1) * q, arity=n) for q in sizes],
    }
    parameters = {kind: [net.parameters for net in networks[kind]] for kind in KINDS}
    most = max(parameters["deep"][-1], parameters["shallow"][-1])
    if samples <= most:
        raise GeneralizationError(
            f"{samples} points cannot test a network of {most} parameters; give more samples or "
            f"smaller widths"
        )
    l2, sup, fitted = ({kind: np.empty((len(sizes), seeds)) for kind in KINDS} for _ in range(3))
    for kind in KINDS:
        for i, network in enumerate(networks[kind]):
            for s in range(seeds):
                draw = rng.stream(seed, "network", kind, n, network.width, s)
                theta = network.initial(draw)
                if kind == "deep" and start == "nodes":
                    theta = np.tile(_node(constituent, network.width, draw, iterations), n - 1)
                theta = fit(network, theta, points[:samples], values[:samples], iterations)
                missed = network.values(theta, points) - values
                wrong = missed[samples:]
                fitted[kind][i, s] = np.sqrt(np.mean(missed[:samples] ** 2)) / scale
                l2[kind][i, s] = np.sqrt(np.mean(wrong**2)) / scale
                sup[kind][i, s] = np.abs(wrong).max() / scale
    units = np.array([net.units for net in networks["deep"]], dtype=float)
    return ApproximationStudy(constituent, n, units, l2, sup, fitted, parameters)


def _points(n: int, count: int, shift: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, "B n"]:
    """Sobol points in [-1, 1]^n, shifted modulo 2; a power of two of them is balanced."""
    exponent = int(np.ceil(np.log2(count)))
    unit = qmc.Sobol(n, scramble=False).random_base2(exponent)[:count]
    return 2 * ((unit + shift) % 1) - 1


def _node(
    constituent: str, width: int, draw: np.random.Generator, iterations: int
) -> Float64[np.ndarray, " p"]:
    """Parameters of one node, fitted to its constituent: the best of a few starts."""
    node = Tree(2, width)
    points = _points(2, _NODE_POINTS, np.zeros(2))
    values = tree_function(constituent, points)

    def error(theta: Float64[np.ndarray, " p"]) -> float:
        return float(np.square(node.values(theta, points) - values).sum())

    found = [fit(node, node.initial(draw), points, values, iterations) for _ in range(_RESTARTS)]
    return min(found, key=error)
