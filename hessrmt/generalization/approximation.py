"""Deep tree networks against shallow ones: error against the number of units.

A function of n = 2^l variables in [-1, 1] has the n - 1 nodes of a binary tree, each a function of
two variables with values in [-1, 1] (Poggio, Banburski and Liao 2020, Fig. 1 B). A deep network has
q units at every node, a shallow one all its units in one layer (Fig. 1 A):

    node(a, b) = c_0 + Σ_j c_j σ(w_j·(a, b) + b_j),   shallow(x) the same of all x.

Their Theorem 1 bounds what is needed for the accuracy ε: a shallow network of O(ε^-n) units, a deep
one of O((n - 1) ε^-2), for the worst constituents of bounded first derivatives. So the bounds on
the error fall like units^-1/n and units^-1/2. Theorems 2 and 3 are about polynomials and smooth
units: :mod:`hessrmt.generalization.polynomials`.

Source: Poggio, Banburski and Liao 2020, §2; Boolean functions: Mhaskar, Liao and Poggio 2016.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import linalg
from scipy.special import expit
from scipy.stats import qmc

from hessrmt import rng
from hessrmt.arrays import sample_mean
from hessrmt.checks import one_of, whole
from hessrmt.errors import ConvergenceError, DataError
from hessrmt.generalization.fits import log_slopes
from hessrmt.results import Result

if TYPE_CHECKING:
    from jaxtyping import Float64

    Points = Float64[np.ndarray, "B n"]
    Values = Float64[np.ndarray, " B"]
    Theta = Float64[np.ndarray, " P"]
    Errors = dict[str, Float64[np.ndarray, "U S"]]
    MeanErrors = Float64[np.ndarray, " U"]

Constituent = Callable[[np.ndarray, np.ndarray], np.ndarray]
Function = Callable[[np.ndarray], np.ndarray]

ACTIVATIONS: dict[str, tuple[Function, Function]] = {
    "relu": (lambda z: np.maximum(z, 0.0), lambda z: (z > 0).astype(float)),
    "squared-relu": (lambda z: np.maximum(z, 0.0) ** 2, lambda z: 2 * np.maximum(z, 0.0)),
    "softplus": (lambda z: np.logaddexp(0.0, z), expit),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
}
"""σ and σ'. The last two are infinitely differentiable and no polynomials, as Theorems 1 to 3 ask;
(z₊)² is the square of the ReLU of the text."""

KINDS = ("deep", "shallow")
STARTS = ("nodes", "random")

_RESTARTS, _NODE_POINTS = 4, 512
"""Fits of one node to its constituent, of which the best is taken, and points of each."""

_SMALLEST_DAMPING, _LARGEST_DAMPING = 1e-10, 1e10

_MOST_VARIABLES = 12
"""Of a Boolean function, which is fitted at all its points."""

_EPS = float(np.finfo(float).eps)


def polynomial(a: Values, b: Values) -> Values:
    """(a + b)²/2 - 1: the tree is in T_2^n, polynomials of two variables and degree 2."""
    return (a + b) ** 2 / 2 - 1


def sine(a: Values, b: Values) -> Values:
    """Sine of 2a + b: smooth, no polynomial, not symmetric."""
    return np.sin(2 * a + b)


def cone(a: Values, b: Values) -> Values:
    """√2 √(a² + b²) - 1: Lipschitz, not differentiable at zero."""
    return np.sqrt(2 * (a * a + b * b)) - 1


def product(a: Values, b: Values) -> Values:
    """The product: the tree is x_1 ··· x_n, of ±1 their parity."""
    return a * b


def gap(a: Values, b: Values) -> Values:
    """|a - b| - 1, which two ReLUs are."""
    return np.abs(a - b) - 1


def bell(a: Values, b: Values) -> Values:
    """2 exp(-a² - b²) - 1."""
    return 2 * np.exp(-a * a - b * b) - 1


def wave(a: Values, b: Values) -> Values:
    """Cosine of a - 2b."""
    return np.cos(a - 2 * b)


class Target(NamedTuple):
    """A function with the graph of a binary tree.

    Attributes:
        constituents: Of the nodes, from the inputs up and from left to right; again from the first
            where there are more nodes.
        boolean: Whether it is a function of the 2^n points ±1 only.
    """

    constituents: tuple[Constituent, ...]
    boolean: bool = False


TARGETS: dict[str, Target] = {
    **{f.__name__: Target((f,)) for f in (polynomial, sine, cone, product)},
    "different": Target((polynomial, sine, cone, product, gap, bell, wave)),
    "parity": Target((product,), boolean=True),
    "gates": Target((product, np.minimum, np.maximum), boolean=True),
}
"""Those whose nodes are all alike; one with seven different nodes, as h_11 ... h_3 of the text; and
two Boolean functions of ±1: parity, and a tree of XNOR, AND and OR gates."""


def tree_function(target: str, x: Points) -> Values:
    """A function with the graph of a binary tree.

    Args:
        target: One of :data:`TARGETS`.
        x: (B, n) points in [-1, 1]^n, n a power of two.

    Returns:
        (B,) values in [-1, 1].
    """
    values, nodes = x, iter(_constituents(target, x.shape[1]))
    while values.shape[1] > 1:
        pairs = zip(values[:, ::2].T, values[:, 1::2].T, nodes, strict=False)
        values = np.stack([constituent(a, b) for a, b, constituent in pairs], axis=1)
    return values[:, 0]


def _constituents(target: str, inputs: int) -> list[Constituent]:
    """The functions of all nodes, from the inputs up."""
    return list(itertools.islice(itertools.cycle(TARGETS[target].constituents), inputs - 1))


@dataclass(frozen=True)
class Tree:
    """A network with q units at every node of a tree whose nodes have d inputs.

    ``Tree(n, q)`` is the deep network, d = 2; ``Tree(n, q, arity=n)`` has one node, the shallow
    network.

    Attributes:
        inputs: n, a power of d.
        width: q.
        arity: d, inputs of a node.
        activation: σ, one of :data:`ACTIVATIONS`.
    """

    inputs: int
    width: int
    arity: int = 2
    activation: str = "relu"

    @property
    def nodes(self) -> int:
        """(n - 1)/(d - 1) nodes."""
        return (self.inputs - 1) // (self.arity - 1)

    @property
    def units(self) -> int:
        """How many units."""
        return self.nodes * self.width

    @property
    def parameters(self) -> int:
        """How many parameters: q (d + 2) + 1 a node."""
        return self.nodes * (self.width * (self.arity + 2) + 1)

    def initial(self, draw: np.random.Generator) -> Theta:
        """Random parameters, z = 0 of every unit through a random point of [-1, 1]^d.

        Args:
            draw: Source of randomness.

        Returns:
            (P,) parameters: for each node, from the inputs up, w, b, c, c_0.
        """
        shape = (self.nodes, self.width)
        w = draw.normal(size=(*shape, self.arity))
        w /= np.linalg.norm(w, axis=2, keepdims=True)
        b = -(w * draw.uniform(-1, 1, size=w.shape)).sum(2)
        c = draw.normal(size=shape) / np.sqrt(self.width)
        pieces = [w.reshape(self.nodes, -1), b, c, np.zeros((self.nodes, 1))]
        return np.concatenate(pieces, axis=1).ravel()

    def values(self, theta: Theta, x: Points) -> Values:
        """The network's outputs.

        Args:
            theta: (P,) parameters.
            x: (B, n) points.

        Returns:
            (B,) outputs.
        """
        return self._forward(theta, x)[0]

    def jacobian(self, theta: Theta, x: Points) -> tuple[Values, Float64[np.ndarray, "B P"]]:
        """Outputs and their derivatives with respect to all parameters.

        Args:
            theta: (P,) parameters.
            x: (B, n) points.

        Returns:
            (B,) outputs and (B, P) derivatives.
        """
        output, layers = self._forward(theta, x)
        activate, derivative = ACTIVATIONS[self.activation]
        table = np.empty((len(x), len(theta)))
        slope = np.ones((len(x), 1))
        for nodes, pairs, z in reversed(layers):
            w, _, c, _ = self._node_parameters(theta, nodes)
            on = derivative(z) * c * slope[:, :, None]
            by_w, by_b, by_c, by_c0 = self._node_parameters(table, nodes)
            by_w[...] = on[..., None] * pairs[:, :, None, :]
            by_b[...] = on
            by_c[...] = activate(z) * slope[:, :, None]
            by_c0[...] = slope
            slope = np.einsum("bmq,mqd->bmd", on, w).reshape(len(x), -1)
        return output, table

    def _node_parameters(self, theta: np.ndarray, nodes: slice) -> tuple[np.ndarray, ...]:
        """Views of w, b, c and c_0 of some nodes, or of derivatives by them."""
        d, q = self.arity, self.width
        rows = theta.reshape(*theta.shape[:-1], self.nodes, -1)[..., nodes, :]
        w, b, c, c0 = np.split(rows, [q * d, q * d + q, q * d + 2 * q], axis=-1)
        return w.reshape(*w.shape[:-1], q, d), b, c, c0[..., 0]

    def _forward(
        self, theta: Theta, x: Points
    ) -> tuple[Values, list[tuple[slice, np.ndarray, np.ndarray]]]:
        """The outputs; for each layer which nodes it has, their inputs, and those of its units."""
        activate, _ = ACTIVATIONS[self.activation]
        layers, start, entering = [], 0, x
        while entering.shape[1] > 1:
            pairs = entering.reshape(len(x), -1, self.arity)
            nodes = slice(start, start + pairs.shape[1])
            w, b, c, c0 = self._node_parameters(theta, nodes)
            z = np.einsum("bmd,mqd->bmq", pairs, w) + b
            layers.append((nodes, pairs, z))
            entering = np.einsum("bmq,mq->bm", activate(z), c) + c0
            start = nodes.stop
        return entering[:, 0], layers


class Exponent(NamedTuple):
    """errors ∝ units^-exponent.

    Attributes:
        exponent: Mean over seeds of the slopes of log error against log units, times -1.
        error: Its standard error over seeds; NaN for one seed.
    """

    exponent: float
    error: float


@dataclass(frozen=True)
class ApproximationStudy(
    Result, axes={"width": "units"}, picture="generalization.approximation_errors"
):
    """Errors of networks that were fitted to one compositional function.

    Attributes:
        constituent: The function, one of :data:`TARGETS`.
        inputs: n.
        units: (U,) units, equal for both kinds.
        l2: For ``"deep"`` and ``"shallow"`` (U, S) root mean squares of the error over the test
            points, relative to the function's standard deviation; one column for each seed.
        sup: The same for the largest error of a test point.
        fitted: As ``l2``, over the points that were fitted: far below ``l2`` where a network has
            too many parameters for them. A Boolean function is fitted at all its points.
        parameters: For each kind (U,) numbers of parameters.
        activation: Of the units.
    """

    constituent: str
    inputs: int
    units: Float64[np.ndarray, " U"]
    l2: Errors
    sup: Errors
    fitted: Errors
    parameters: dict[str, list[int]]
    activation: str = "relu"

    @property
    def seeds(self) -> int:
        """S, starts of each network."""
        return next(iter(self.l2.values())).shape[1]

    def exponent(self, kind: str, norm: str = "l2") -> Exponent:
        """How fast the error falls with the units.

        Args:
            kind: ``"deep"`` or ``"shallow"``.
            norm: ``"l2"`` or ``"sup"``.

        Returns:
            The exponent; the bounds of Poggio, Banburski and Liao 2020 have 1/2 for deep and 1/n
            for shallow networks.
        """
        errors = self.l2[kind] if norm == "l2" else self.sup[kind]
        return Exponent(*sample_mean(-log_slopes(self.units, errors)))

    def mean(self, kind: str, norm: str = "l2") -> tuple[MeanErrors, MeanErrors]:
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

    def enough(self, kind: str, accuracy: float = 1e-6) -> int | None:
        """The fewest units with which the best of the seeds is that accurate.

        Args:
            kind: ``"deep"`` or ``"shallow"``.
            accuracy: Relative root mean square of the error.

        Returns:
            Units; None if no number that was tried is enough.
        """
        found = np.flatnonzero(self.l2[kind].min(axis=1) <= accuracy)
        return int(self.units[found[0]]) if len(found) else None

    def has_power(self, kind: str) -> bool:
        """Whether errors of a kind of networks can follow a power of the units.

        Args:
            kind: ``"deep"`` or ``"shallow"``.

        Returns:
            Not for Boolean functions, nor where a number of units is :meth:`enough`.
        """
        return not TARGETS[self.constituent].boolean and self.enough(kind) is None

    def advantage(self, index: int = -1, norm: str = "l2") -> tuple[float, float]:
        """log(shallow error/deep error) at equal units.

        Args:
            index: Which number of units.
            norm: ``"l2"`` or ``"sup"``.

        Returns:
            Mean over seeds, and its standard error.
        """
        errors = self.l2 if norm == "l2" else self.sup
        return sample_mean(np.log(errors["shallow"][index]) - np.log(errors["deep"][index]))


def study(
    constituent: str = "sine",
    inputs: int = 4,
    widths: Sequence[int] = (2, 4, 8, 16),
    *,
    seeds: int = 5,
    samples: int = 2048,
    iterations: int = 100,
    start: str = "nodes",
    activation: str = "relu",
    seed: int = 0,
) -> ApproximationStudy:
    """Fit deep and shallow networks of equal numbers of units to a compositional function.

    Every network is fitted by least squares to values at ``samples`` quasi-random points, and
    tested at as many others; for a Boolean function both are all its 2^n points. The errors contain
    what the optimiser missed, so they are upper bounds on the best that a network of that size can
    do. Errors below ε are given as ε.

    Args:
        constituent: The function, one of :data:`TARGETS`.
        inputs: n, a power of two.
        widths: q, units at each of the n - 1 nodes of the deep network; increasing.
        seeds: Initialisations of each network.
        samples: Points to fit and points to test, each; a power of two.
        iterations: Of the optimiser.
        start: ``"nodes"``: every node of the deep network starts as the best of a few fits to the
            constituent alone, as in the proof of Theorem 1; ``"random"``: as the shallow one.
        activation: Of all units, one of :data:`ACTIVATIONS`.
        seed: Of the run.

    Returns:
        The errors.

    Raises:
        DataError: If a setting cannot be used.
    """
    one_of("constituent", constituent, TARGETS)
    one_of("activation", activation, ACTIVATIONS)
    one_of("start", start, STARTS)
    n = whole("inputs", inputs, 2, hint="a binary tree has 2, 4, 8, 16, ... variables")
    if n & (n - 1):
        raise DataError(f"a binary tree needs 2, 4, 8, 16, ... variables, got {n} of them")
    for name, value in (("seeds", seeds), ("samples", samples), ("iterations", iterations)):
        whole(name, value, 1)
    sizes = [whole("a width", width, 1) for width in widths]
    if len(sizes) < 2 or (np.diff(sizes) <= 0).any():
        raise DataError(f"widths must be two or more increasing numbers, got {list(widths)}")
    networks = {
        "deep": [Tree(n, q, activation=activation) for q in sizes],
        "shallow": [Tree(n, (n - 1) * q, n, activation) for q in sizes],
    }
    parameters = {kind: [net.parameters for net in networks[kind]] for kind in KINDS}
    if TARGETS[constituent].boolean:
        if n > _MOST_VARIABLES:
            raise DataError(
                f"{constituent} has 2^{n} points; take at most {_MOST_VARIABLES} inputs"
            )
        cube = np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
        fitted_at, tested_at = cube, cube
    else:
        most = max(parameters["deep"][-1], parameters["shallow"][-1])
        if samples <= most:
            raise DataError(f"{samples} points cannot test {most} parameters; give more samples")
        points = quasi_random(n, 2 * samples, rng.stream(seed, "points", n).uniform(size=n))
        fitted_at, tested_at = np.split(points, 2)
    values, expected = (tree_function(constituent, at) for at in (fitted_at, tested_at))
    errors = {kind: np.empty((3, len(sizes), seeds)) for kind in KINDS}
    for kind, i, s in itertools.product(KINDS, range(len(sizes)), range(seeds)):
        network = networks[kind][i]
        draw = rng.stream(seed, "network", kind, n, network.width, s)
        theta = network.initial(draw)
        if kind == "deep" and start == "nodes":
            theta = _nodes(constituent, network, draw, iterations)
        theta = fit(network, theta, fitted_at, values, iterations)
        within = _root_mean_square(network.values(theta, fitted_at) - values)
        missed = network.values(theta, tested_at) - expected
        errors[kind][:, i, s] = _root_mean_square(missed), np.abs(missed).max(), within
    scale = np.concatenate([values, expected]).std()
    l2, sup, fitted = (
        {kind: np.maximum(errors[kind][j] / scale, _EPS) for kind in KINDS} for j in range(3)
    )
    units = np.array([net.units for net in networks["deep"]], dtype=float)
    return ApproximationStudy(constituent, n, units, l2, sup, fitted, parameters, activation)


def _root_mean_square(values: Values) -> float:
    return float(np.sqrt((values**2).mean()))


def fit(network: Tree, theta: Theta, x: Points, y: Values, iterations: int) -> Theta:
    """Fit a network by Levenberg and Marquardt; the sum of squared errors never increases.

    Source: Moré 1978, with Marquardt's scaling, on the normal equations.

    Args:
        network: What is fitted.
        theta: (P,) first parameters.
        x: (B, n) points.
        y: (B,) values there.
        iterations: How many steps are tried.

    Returns:
        (P,) parameters.

    Raises:
        ConvergenceError: If the error is NaN or infinite at the first parameters.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        output, table = network.jacobian(theta, x)
        residual = output - y
        cost = float(residual @ residual)
    if not np.isfinite(cost):
        raise ConvergenceError(f"the network's error is {cost} at the first parameters")
    normal, gradient = table.T @ table, table.T @ residual
    damping = 1e-2
    largest = np.maximum(np.diag(normal), 1e-12 * np.diag(normal).max())
    for _ in range(iterations):
        largest = np.maximum(largest, np.diag(normal))
        new, step = np.inf, theta
        damped = normal.copy()
        damped[np.diag_indices_from(damped)] += damping * largest
        with suppress(linalg.LinAlgError):  # no longer positive: damp it more
            step = linalg.cho_solve(linalg.cho_factor(damped, check_finite=False), -gradient)
            with np.errstate(over="ignore", invalid="ignore"):
                tried = network.values(theta + step, x) - y
                new = float(tried @ tried)
        if not new < cost:
            damping = min(damping * 4, _LARGEST_DAMPING)
            continue
        theta, cost = theta + step, new
        damping = max(damping / 3, _SMALLEST_DAMPING)
        output, table = network.jacobian(theta, x)
        normal, gradient = table.T @ table, table.T @ (output - y)
    return theta


def quasi_random(n: int, count: int, shift: Float64[np.ndarray, " n"]) -> Points:
    """Sobol points in [-1, 1]^n, shifted modulo 2; a power of two of them is balanced.

    Args:
        n: Variables.
        count: How many.
        shift: (n,) in units of the cube's edge.

    Returns:
        (count, n) points.
    """
    exponent = int(np.ceil(np.log2(count)))
    unit = qmc.Sobol(n, scramble=False).random_base2(exponent)[:count]
    return 2 * ((unit + shift) % 1) - 1


def _nodes(target: str, network: Tree, draw: np.random.Generator, iterations: int) -> Theta:
    """Parameters of a tree, every node fitted to its constituent: the best of a few starts."""
    node = Tree(2, network.width, activation=network.activation)
    domain = TARGETS[target].boolean
    points = np.array(list(itertools.product((-1.0, 1.0), repeat=2)))
    points = points if domain else quasi_random(2, _NODE_POINTS, np.zeros(2))

    def fitted(constituent: Constituent) -> Theta:
        values = constituent(*points.T)
        found = [
            fit(node, node.initial(draw), points, values, iterations) for _ in range(_RESTARTS)
        ]
        missed = [np.square(node.values(theta, points) - values).sum() for theta in found]
        return found[int(np.argmin(missed))]

    nodes = _constituents(target, network.inputs)
    of = {constituent: fitted(constituent) for constituent in dict.fromkeys(nodes)}
    return np.concatenate([of[constituent] for constituent in nodes])
