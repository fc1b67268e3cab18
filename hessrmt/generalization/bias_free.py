"""Bias-free networks f(W; x) = W_K σ(W_{K-1} ··· σ(W_1 x)), σ positively homogeneous.

Source: [P] (Poggio, Banburski, Liao, PNAS 117, 30039, 2020), §3 B. In NumPy with the gradient
written out: an ODE solver asks for it hundreds of thousands of times.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hessrmt import rng
from hessrmt.errors import GeneralizationError
from hessrmt.generalization import homogeneous_activations as activations

if TYPE_CHECKING:
    from jaxtyping import Float, Float64
    from numpy.typing import ArrayLike

Layers = tuple["Float64[np.ndarray, 'out in']", ...]
"""W_1 ... W_K, the first layer first."""


def initial_layers(widths: Sequence[int], seed: int = 0, scale: float = 1.0) -> Layers:
    """Random layers with independent normal elements of standard deviation scale/√(inputs).

    Args:
        widths: Inputs, hidden units of each layer, outputs: K + 1 positive integers.
        seed: Of the run.
        scale: Factor of every element.

    Returns:
        K matrices.

    Raises:
        GeneralizationError: If there are fewer than two widths, one is not a positive integer, or
            the scale is not a positive number.
    """
    good = all(
        isinstance(w, int | np.integer) and not isinstance(w, bool) and w > 0 for w in widths
    )
    if len(widths) < 2 or not good:
        raise GeneralizationError(
            f"widths must be two or more positive integers (inputs, hidden units, outputs), "
            f"got {list(widths)}"
        )
    if not (np.isfinite(scale) and scale > 0):
        raise GeneralizationError(f"scale must be a positive number, got {scale!r}")
    draw = rng.stream(seed, "bias-free layers", *(int(w) for w in widths))
    pairs = itertools.pairwise(widths)
    return tuple(draw.normal(size=(n, m)) * (scale / np.sqrt(m)) for m, n in pairs)


def checked_layers(layers: Sequence[ArrayLike], features: int) -> Layers:
    """Layers that fit each other and the inputs, none of them zero.

    Args:
        layers: W_1 ... W_K.
        features: Of an input.

    Returns:
        Copies in float64.

    Raises:
        GeneralizationError: If there is none, or one is no finite matrix, doesn't fit, or is zero.
    """
    found = tuple(np.array(layer, dtype=float) for layer in layers)
    if not found:
        raise GeneralizationError("there are no layers; give at least one matrix (outputs, inputs)")
    width = features
    for k, layer in enumerate(found, 1):
        if layer.ndim != 2 or layer.shape[1] != width or not layer.shape[0]:
            raise GeneralizationError(
                f"layer {k} has the shape {layer.shape}, expected (outputs, {width}): its inputs "
                f"are {'the features' if k == 1 else f'the outputs of layer {k - 1}'}"
            )
        if not np.isfinite(layer).all():
            raise GeneralizationError(f"layer {k} has NaN or infinite elements")
        if not layer.any():
            raise GeneralizationError(
                f"layer {k} is zero: it has no direction, and the gradient never leaves zero"
            )
        width = layer.shape[0]
    return found


class Pass(NamedTuple):
    """What one evaluation leaves for the gradient.

    Attributes:
        outputs: (B, C).
        entering: For each layer its (B, inputs) inputs.
        before: For each hidden layer its (B, H) pre-activations.
    """

    outputs: Float64[np.ndarray, "B C"]
    entering: list[Float64[np.ndarray, "B m"]]
    before: list[Float64[np.ndarray, "B H"]]


def forward(layers: Layers, x: Float64[np.ndarray, "B d"], activation: str) -> Pass:
    """Evaluate the network.

    Args:
        layers: W_1 ... W_K.
        x: (B, d) inputs.
        activation: Of the hidden layers.

    Returns:
        Its outputs, and what :func:`backward` needs.
    """
    entering, before = [x], []
    for layer in layers[:-1]:
        before.append(entering[-1] @ layer.T)
        entering.append(activations.activate(activation, before[-1]))
    return Pass(entering[-1] @ layers[-1].T, entering, before)


def backward(
    layers: Layers, passed: Pass, pull: Float64[np.ndarray, "B C"], activation: str
) -> Layers:
    """Gradient of Σ_n pull_n · f(W; x_n) with respect to every layer.

    Args:
        layers: W_1 ... W_K.
        passed: From :func:`forward`.
        pull: (B, C) weight of each output.
        activation: Of the hidden layers.

    Returns:
        One matrix for each layer.
    """
    gradients = []
    for k in range(len(layers) - 1, -1, -1):
        gradients.append(pull.T @ passed.entering[k])
        if k:
            pull = activations.pull_back(activation, passed.before[k - 1], pull @ layers[k])
    return tuple(reversed(gradients))


def split_scales(layers: Layers) -> tuple[Float64[np.ndarray, " K"], Layers]:
    """W_k = ρ_k V_k with Frobenius norms ‖V_k‖ = 1 ([P] §3 B).

    Args:
        layers: W_1 ... W_K.

    Returns:
        (K,) ρ_k; the V_k.
    """
    scales = np.array([np.linalg.norm(layer) for layer in layers])
    return scales, tuple(layer / rho for layer, rho in zip(layers, scales, strict=True))


def as_module(layers: Layers, activation: str) -> nn.Sequential:
    """The network as a torch module in float64, its parameters W_1 ... W_K.

    Args:
        layers: W_1 ... W_K.
        activation: Of the hidden layers.

    Returns:
        Linear layers without biases, activations between them.
    """
    parts: list[nn.Module] = []
    for k, layer in enumerate(layers):
        if k and activation != "linear":
            parts.append(activations.module(activation))
        linear = nn.Linear(layer.shape[1], layer.shape[0], bias=False, dtype=torch.float64)
        linear.weight = nn.Parameter(torch.tensor(layer))
        parts.append(linear)
    return nn.Sequential(*parts)


class NormalizedDirections(nn.Module):
    """The network as a function of the directions of its layers: W_k = ρ_k v_k/‖v_k‖, ρ_k fixed.

    The gradient with respect to v_k is tangent to the sphere, and at a stationary point the Hessian
    is that of the constrained problem ([P] eq. 2, Lagrange term included), with an exact zero along
    every v_k. Away from one it also has -(v_k g_kᵀ + g_k v_kᵀ), g_k the gradient, in block k.

    Args:
        directions: v_1 ... v_K, the module's parameters.
        scales: (K,) ρ_k, which are constants.
        activation: Of the hidden layers.
    """

    scales: Tensor

    def __init__(
        self, directions: Layers, scales: Float64[np.ndarray, " K"], activation: str
    ) -> None:
        super().__init__()
        self.directions = nn.ParameterList([torch.tensor(v) for v in directions])
        self.register_buffer("scales", torch.tensor(scales))
        self.activation = activations.module(activation)

    def forward(self, x: Float[Tensor, "B d"]) -> Float[Tensor, "B C"]:
        """The outputs.

        Args:
            x: (B, d) inputs.

        Returns:
            (B, C) outputs.
        """
        found: Any = list(self.directions)
        for k, v in enumerate(found):
            if k:
                x = self.activation(x)
            x = x @ (v * (self.scales[k] / (v * v).sum().sqrt())).T
        return x
