"""Compositional functions on binary trees, and the networks that approximate them.

A function of n = 2^l variables in [-1, 1] has the n - 1 nodes of a binary tree, each the same
function of two variables with values in [-1, 1] ([P] Fig. 1 B). A deep network has q ReLUs at
every node, a shallow one all its ReLUs in one layer ([P] Fig. 1 A):

    node(a, b) = c_0 + Σ_j c_j max(0, w_j·(a, b) + b_j),   shallow(x) the same of all x.

Source: [P] (Poggio, Banburski, Liao, PNAS 117, 30039, 2020), §2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hessrmt.errors import GeneralizationError

if TYPE_CHECKING:
    from jaxtyping import Float64

Constituent = Callable[[np.ndarray, np.ndarray], np.ndarray]


def polynomial(a: Float64[np.ndarray, " B"], b: Float64[np.ndarray, " B"]) -> np.ndarray:
    """(a + b)²/2 - 1: the tree is in T_2^n, polynomials of two variables and degree 2."""
    return (a + b) ** 2 / 2 - 1


def sine(a: Float64[np.ndarray, " B"], b: Float64[np.ndarray, " B"]) -> np.ndarray:
    """Sine of 2a + b: smooth, no polynomial, not symmetric."""
    return np.sin(2 * a + b)


def cone(a: Float64[np.ndarray, " B"], b: Float64[np.ndarray, " B"]) -> np.ndarray:
    """√2 √(a² + b²) - 1: Lipschitz, not differentiable at zero."""
    return np.sqrt(2 * (a * a + b * b)) - 1


CONSTITUENTS: dict[str, Constituent] = {"polynomial": polynomial, "sine": sine, "cone": cone}


def checked_inputs(n: int) -> int:
    """n, if it is a power of two from 2 on.

    Args:
        n: Number of variables.

    Returns:
        The same.

    Raises:
        GeneralizationError: If it isn't.
    """
    good = isinstance(n, int | np.integer) and not isinstance(n, bool) and n >= 2
    if not good or int(n) & (int(n) - 1):
        raise GeneralizationError(
            f"a binary tree needs 2, 4, 8, 16, ... variables, got {n!r} of them"
        )
    return int(n)


def tree_function(constituent: str, x: Float64[np.ndarray, "B n"]) -> Float64[np.ndarray, " B"]:
    """The compositional function of a constituent.

    Args:
        constituent: One of :data:`CONSTITUENTS`.
        x: (B, n) points in [-1, 1]^n, n a power of two.

    Returns:
        (B,) values in [-1, 1].

    Raises:
        GeneralizationError: If the constituent is unknown or n no power of two.
    """
    if constituent not in CONSTITUENTS:
        raise GeneralizationError(
            f"unknown constituent {constituent!r}; known are {', '.join(CONSTITUENTS)}"
        )
    checked_inputs(x.shape[1])
    values = x
    while values.shape[1] > 1:
        values = CONSTITUENTS[constituent](values[:, ::2], values[:, 1::2])
    return values[:, 0]


@dataclass(frozen=True)
class Tree:
    """A network with q ReLUs at every node of a tree whose nodes have d inputs.

    ``Tree(n, q)`` is the deep network, d = 2; ``Tree(n, q, arity=n)`` has one node, the shallow
    network.

    Attributes:
        inputs: n, a power of d.
        width: q.
        arity: d, inputs of a node.
    """

    inputs: int
    width: int
    arity: int = 2

    @property
    def nodes(self) -> int:
        """(n - 1)/(d - 1) nodes."""
        return (self.inputs - 1) // (self.arity - 1)

    @property
    def units(self) -> int:
        """How many ReLUs."""
        return self.nodes * self.width

    @property
    def parameters(self) -> int:
        """How many parameters: q (d + 2) + 1 a node."""
        return self.nodes * (self.width * (self.arity + 2) + 1)

    def initial(self, draw: np.random.Generator) -> Float64[np.ndarray, " P"]:
        """Random parameters, the kink of every unit through a random point of [-1, 1]^d.

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

    def values(
        self, theta: Float64[np.ndarray, " P"], x: Float64[np.ndarray, "B n"]
    ) -> Float64[np.ndarray, " B"]:
        """The network's outputs.

        Args:
            theta: (P,) parameters.
            x: (B, n) points.

        Returns:
            (B,) outputs.
        """
        return self._forward(theta, x)[-1][:, 0]

    def jacobian(
        self, theta: Float64[np.ndarray, " P"], x: Float64[np.ndarray, "B n"]
    ) -> tuple[Float64[np.ndarray, " B"], Float64[np.ndarray, "B P"]]:
        """Outputs and their derivatives with respect to all parameters.

        Args:
            theta: (P,) parameters.
            x: (B, n) points.

        Returns:
            (B,) outputs and (B, P) derivatives.
        """
        d, q = self.arity, self.width
        levels = self._forward(theta, x)
        table = np.empty((len(x), self.nodes, q * (d + 2) + 1))
        slope, end = np.ones((len(x), 1)), self.nodes
        for entering in reversed(levels[:-1]):
            start = end - entering.shape[1] // d
            w, b, c, _ = self._node_parameters(theta, start, end)
            pairs = entering.reshape(len(x), -1, d)
            z = np.einsum("bmd,mqd->bmq", pairs, w) + b
            on = (z > 0) * c * slope[:, :, None]
            part = table[:, start:end]
            part[:, :, : q * d] = (on[..., None] * pairs[:, :, None, :]).reshape(*on.shape[:2], -1)
            part[:, :, q * d : q * d + q] = on
            part[:, :, q * d + q : -1] = np.maximum(z, 0) * slope[:, :, None]
            part[:, :, -1] = slope
            slope = np.einsum("bmq,mqd->bmd", on, w).reshape(len(x), -1)
            end = start
        return levels[-1][:, 0], table.reshape(len(x), -1)

    def _node_parameters(
        self, theta: Float64[np.ndarray, " P"], start: int, end: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        d, q = self.arity, self.width
        rows = theta.reshape(self.nodes, -1)[start:end]
        w = rows[:, : q * d].reshape(-1, q, d)
        return w, rows[:, q * d : q * d + q], rows[:, q * d + q : -1], rows[:, -1]

    def _forward(
        self, theta: Float64[np.ndarray, " P"], x: Float64[np.ndarray, "B n"]
    ) -> list[np.ndarray]:
        """What enters each level, and the output (B, 1)."""
        levels, start = [x], 0
        while levels[-1].shape[1] > 1:
            pairs = levels[-1].reshape(len(x), -1, self.arity)
            end = start + pairs.shape[1]
            w, b, c, c0 = self._node_parameters(theta, start, end)
            z = np.maximum(np.einsum("bmd,mqd->bmq", pairs, w) + b, 0)
            levels.append(np.einsum("bmq,mq->bm", z, c) + c0)
            start = end
        return levels
