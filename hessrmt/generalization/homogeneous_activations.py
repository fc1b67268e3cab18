"""Positively homogeneous activations σ(αz) = ασ(z), α >= 0: the ReLU, a smooth one, the identity.

Gradient flow of a ReLU network is an equation with a discontinuous right-hand side, which only has
solutions in Filippov's sense ([P] §3 B): a unit's pre-activation of a sample can stay at zero, both
sides pushing towards it, and a solver that expects smoothness then stands still. ``smooth-relu`` is
smooth away from z = 0 and still homogeneous, so that everything [P] proves from homogeneity holds:

    σ(z)_j = (z_j + √(z_j² + ε² Σ_i z_i²/H))/2

for the H pre-activations z of a layer and one sample. It tends to the ReLU as ε → 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from hessrmt.errors import GeneralizationError

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

ACTIVATIONS = ("relu", "smooth-relu", "linear")

SMOOTHING = 0.01
"""ε of ``smooth-relu``."""

_TINY = 1e-300
"""Keeps the root's derivative finite where a whole layer is zero."""


def checked_activation(activation: str) -> str:
    """The name, if it is one of :data:`ACTIVATIONS`.

    Args:
        activation: Given.

    Returns:
        The same.

    Raises:
        GeneralizationError: If it is unknown.
    """
    if activation not in ACTIVATIONS:
        raise GeneralizationError(
            f"unknown activation {activation!r}; positively homogeneous ones here are "
            f"{', '.join(ACTIVATIONS)}"
        )
    return activation


def activate(activation: str, z: Float64[np.ndarray, "B H"]) -> Float64[np.ndarray, "B H"]:
    """σ(z).

    Args:
        activation: One of :data:`ACTIVATIONS`.
        z: (B, H) pre-activations.

    Returns:
        (B, H) activations.
    """
    if activation == "relu":
        return np.maximum(z, 0.0)
    return (z + _root(z)) / 2 if activation == "smooth-relu" else z


def pull_back(
    activation: str, z: Float64[np.ndarray, "B H"], pull: Float64[np.ndarray, "B H"]
) -> Float64[np.ndarray, "B H"]:
    """Gradient with respect to z of Σ pull · σ(z).

    The ReLU's derivative at zero is 0, as in torch.

    Args:
        activation: One of :data:`ACTIVATIONS`.
        z: (B, H) pre-activations.
        pull: (B, H) weight of each activation.

    Returns:
        (B, H) gradient.
    """
    if activation == "relu":
        return pull * (z > 0)
    if activation == "linear":
        return pull
    root = _root(z)
    shared = SMOOTHING**2 * (pull / root).mean(axis=1, keepdims=True)
    return (pull * (1 + z / root) + shared * z) / 2


def _root(z: Float64[np.ndarray, "B H"]) -> Float64[np.ndarray, "B H"]:
    square = z * z
    return np.sqrt(square + (SMOOTHING**2 * square.mean(axis=1, keepdims=True) + _TINY))


class SmoothReLU(nn.Module):
    """``smooth-relu`` as a torch module."""

    def forward(self, z: Float[Tensor, "B H"]) -> Float[Tensor, "B H"]:
        """The activations.

        Args:
            z: (B, H) pre-activations.

        Returns:
            (B, H) activations.
        """
        square = z * z
        return (z + (square + (SMOOTHING**2 * square.mean(1, keepdim=True) + _TINY)).sqrt()) / 2


def module(activation: str) -> nn.Module:
    """An activation as a torch module.

    Args:
        activation: One of :data:`ACTIVATIONS`.

    Returns:
        The module.
    """
    return {"relu": nn.ReLU, "smooth-relu": SmoothReLU, "linear": nn.Identity}[activation]()
