"""Bias-free networks, the losses that they are trained with, and separable tasks.

The networks are f(W; x) = W_K σ(W_{K-1} ··· σ(W_1 x)) with a positively homogeneous activation,
σ(αz) = ασ(z) for α >= 0. Network and gradient are written out in NumPy: an ODE solver asks for them
hundreds of thousands of times.

Gradient flow of a ReLU network is an equation with a discontinuous right-hand side, which only has
solutions in Filippov's sense: a unit's pre-activation of a sample can stay at zero, both sides
pushing towards it, and a solver that expects smoothness then stands still. ``smooth-relu`` is
smooth away from z = 0 and still homogeneous, so that everything holds that is proved from
homogeneity:

    σ(z)_j = (z_j + √(z_j² + ε² Σ_i z_i²/H))/2

for the H pre-activations z of a layer and one sample. It tends to the ReLU as ε → 0.

The losses have an exponential tail. Far along a gradient flow they underflow; their logarithms, and
the shares that the samples have in the gradient, don't.

Source: Poggio, Banburski and Liao 2020, §3 B; the tail: Soudry et al. 2018; maximum margins by
least-distance programming: Lawson and Hanson 1974, §23.4.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from scipy.optimize import nnls
from scipy.special import logsumexp
from torch import Tensor, nn

from hessrmt import rng
from hessrmt.checks import one_of, real, real_array, whole
from hessrmt.errors import DataError
from hessrmt.results import Result

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float, Float64, Int64
    from numpy.typing import ArrayLike

    from hessrmt.problems.losses import Loss

    Inputs = Float64[np.ndarray, "B d"]
    Hidden = Float64[np.ndarray, "B H"]
    Outputs = Float64[np.ndarray, "B C"]
    Scales = Float64[np.ndarray, " K"]

Layers = tuple["Float64[np.ndarray, 'out in']", ...]
"""W_1 ... W_K, the first layer first."""

Task = tuple["Float64[np.ndarray, 'B d']", "Float64[np.ndarray, ' B']"]
"""Inputs and labels -1 or 1."""

SMOOTHING = 0.01
"""ε of ``smooth-relu``."""

_TINY = 1e-300
"""Keeps the root's derivative finite where a whole layer is zero."""

_LARGEST_EXPONENT = 600.0
"""Of (1 + t) L in trial steps that the solver rejects; along a flow it is of order one."""

_TAIL = 37.0
"""Beyond this margin log(1 + e^-m) equals e^-m to the last digit: e^-37 < ε/2."""


def linear_task(samples: int, features: int, gap: float = 0.5, seed: int = 0) -> Task:
    """Normal inputs, moved apart until a random hyperplane through the origin separates them.

    Args:
        samples: How many.
        features: d.
        gap: Distance of the nearest possible sample from that hyperplane; the largest margin is at
            least as large.
        seed: Of the run.

    Returns:
        (samples, d) inputs; labels -1 and 1.
    """
    draw = _stream("linear task", samples, features, gap, seed)
    normal = draw.normal(size=features)
    normal /= np.linalg.norm(normal)
    x = draw.normal(size=(samples, features))
    y = np.where(x @ normal > 0, 1.0, -1.0)
    return x + gap * y[:, None] * normal, y


def quadrant_task(samples: int, features: int = 2, gap: float = 0.3, seed: int = 0) -> Task:
    """Normal inputs with the label sign(x_1 x_2), which no linear network separates.

    Args:
        samples: How many.
        features: d, at least 2.
        gap: How far the first two coordinates are moved from zero.
        seed: Of the run.

    Returns:
        (samples, d) inputs; labels -1 and 1.
    """
    draw = _stream("quadrant task", samples, features, gap, seed, least=2)
    x = draw.normal(size=(samples, features))
    x[:, :2] += gap * np.sign(x[:, :2])
    return x, np.sign(x[:, 0] * x[:, 1])


def _stream(
    name: str, samples: int, features: int, gap: float, seed: int, least: int = 1
) -> np.random.Generator:
    whole("samples", samples, 1)
    whole("features", features, least)
    real("gap", gap, above=0)
    return rng.stream(seed, name, samples, features)


def initial_layers(widths: Sequence[int], seed: int = 0, scale: float = 1.0) -> Layers:
    """Random layers with independent normal elements of standard deviation scale/√(inputs).

    Args:
        widths: Inputs, hidden units of each layer, outputs: K + 1 positive integers.
        seed: Of the run.
        scale: Factor of every element.

    Returns:
        K matrices.

    Raises:
        DataError: If there are fewer than two widths.
    """
    sizes = [whole("a width", width, 1) for width in widths]
    if len(sizes) < 2:
        raise DataError(f"give two or more widths, from inputs to outputs, got {list(widths)}")
    real("scale", scale, above=0)
    draw = rng.stream(seed, "bias-free layers", *sizes)
    pairs = itertools.pairwise(sizes)
    return tuple(draw.normal(size=(n, m)) * (scale / np.sqrt(m)) for m, n in pairs)


def checked_layers(layers: Sequence[ArrayLike], features: int) -> Layers:
    """Layers that fit each other and the inputs, none of them zero.

    Args:
        layers: W_1 ... W_K.
        features: Of an input.

    Returns:
        Copies in float64.

    Raises:
        DataError: If there is none, or one doesn't fit or is zero.
    """
    found = [real_array(f"layer {k}", w, dimensions=2) for k, w in enumerate(layers, 1)]
    if not found:
        raise DataError("there are no layers; give at least one matrix (outputs, inputs)")
    width, whose = features, "the features"
    for k, layer in enumerate(found, 1):
        if layer.shape[1] != width:
            fits = f"expected (outputs, {width}): its inputs are {whose}"
            raise DataError(f"layer {k} has the shape {layer.shape}, {fits}")
        if not layer.any():
            raise DataError(f"layer {k} is zero, which the gradient never leaves")
        width, whose = layer.shape[0], f"the outputs of layer {k}"
    return tuple(found)


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


ACTIVATIONS = {"relu": nn.ReLU, "smooth-relu": SmoothReLU, "linear": nn.Identity}
"""Positively homogeneous activations as torch modules."""


def _root(z: Hidden) -> Hidden:
    square = z * z
    return np.sqrt(square + (SMOOTHING**2 * square.mean(axis=1, keepdims=True) + _TINY))


def activate(activation: str, z: Hidden) -> Hidden:
    """σ(z).

    Args:
        activation: One of :data:`ACTIVATIONS`.
        z: (B, H) pre-activations of a layer.

    Returns:
        (B, H) activations.
    """
    if activation == "relu":
        return np.maximum(z, 0.0)
    return (z + _root(z)) / 2 if activation == "smooth-relu" else z


def pull_back(activation: str, z: Hidden, pull: Hidden) -> Hidden:
    """Gradient with respect to z of Σ pull · σ(z); the ReLU's derivative at 0 is 0, as torch's.

    Args:
        activation: One of :data:`ACTIVATIONS`.
        z: (B, H) pre-activations of a layer.
        pull: (B, H) gradient with respect to the activations.

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


def forward(layers: Layers, x: Inputs, activation: str) -> Outputs:
    """Evaluate the network.

    Args:
        layers: W_1 ... W_K.
        x: (B, d) inputs.
        activation: Of the hidden layers.

    Returns:
        (B, C) outputs.
    """
    for layer in layers[:-1]:
        x = activate(activation, x @ layer.T)
    return x @ layers[-1].T


def descent(
    layers: Layers, x: Inputs, y: np.ndarray, loss: str, activation: str, u: float | None = None
) -> Layers:
    """-∂log L/∂W_k, the negative gradients over the loss, without underflow.

    Args:
        layers: W_1 ... W_K.
        x: (B, d) inputs.
        y: (B,) labels.
        loss: One of :data:`LOSSES`.
        activation: Of the hidden layers.
        u: log(1 + t): multiply by (1 + t) L, which gives -(1 + t) ∂L/∂W_k.

    Returns:
        One matrix for each layer.
    """
    entering, before = [x], []
    for layer in layers[:-1]:
        before.append(entering[-1] @ layer.T)
        entering.append(activate(activation, before[-1]))
    log_loss, pull = log_loss_and_pull(loss, entering[-1] @ layers[-1].T, y)
    if u is not None:
        pull *= speed(u, log_loss)
    gradients = []
    for k in range(len(layers) - 1, -1, -1):
        gradients.append(pull.T @ entering[k])
        if k:
            pull = pull_back(activation, before[k - 1], pull @ layers[k])
    return tuple(reversed(gradients))


def speed(u: float, log_loss: float) -> float:
    """(1 + t) L, by which -∂log L/∂u is multiplied.

    Args:
        u: log(1 + t).
        log_loss: log L.

    Returns:
        The factor; of order one along a flow, and kept from overflowing in trial steps.
    """
    return float(np.exp(min(u + log_loss, _LARGEST_EXPONENT)))


def split_scales(layers: Layers) -> tuple[Scales, Layers]:
    """W_k = ρ_k V_k with Frobenius norms ‖V_k‖ = 1.

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
            parts.append(ACTIVATIONS[activation]())
        linear = nn.Linear(layer.shape[1], layer.shape[0], bias=False, dtype=torch.float64)
        linear.weight = nn.Parameter(torch.tensor(layer))
        parts.append(linear)
    return nn.Sequential(*parts)


class NormalizedDirections(nn.Module):
    """The network as a function of the directions of its layers: W_k = ρ_k v_k/‖v_k‖, ρ_k fixed.

    The gradient with respect to v_k is tangent to the sphere, and at a stationary point the Hessian
    is that of the constrained problem (Poggio, Banburski and Liao 2020, eq. 2, Lagrange term
    included), with an exact zero along every v_k. Away from one it also has
    -(v_k g_kᵀ + g_k v_kᵀ), g_k the gradient, in block k.

    Args:
        directions: v_1 ... v_K, the module's parameters.
        scales: (K,) ρ_k, which are constants.
        activation: Of the hidden layers.
    """

    scales: Tensor

    def __init__(self, directions: Layers, scales: Scales, activation: str) -> None:
        super().__init__()
        self.directions = nn.ParameterList([torch.tensor(v) for v in directions])
        self.register_buffer("scales", torch.tensor(scales))
        self.activation = ACTIVATIONS[activation]()

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


def exponential(outputs: Float[Tensor, "B 1"], targets: Float[Tensor, " B"]) -> Tensor:
    """Exponential loss, mean of e^{-y f} (Poggio, Banburski and Liao 2020, eq. 1).

    Args:
        outputs: (B, 1) outputs f.
        targets: (B,) labels y, -1 or 1.

    Returns:
        Scalar.
    """
    return (-targets * outputs[:, 0]).exp().mean()


def logistic(outputs: Float[Tensor, "B 1"], targets: Float[Tensor, " B"]) -> Tensor:
    """Logistic loss, mean of log(1 + e^{-y f}).

    Args:
        outputs: (B, 1) outputs f.
        targets: (B,) labels y, -1 or 1.

    Returns:
        Scalar.
    """
    return F.softplus(-targets * outputs[:, 0], threshold=_TAIL).mean()


LOSSES: Mapping[str, Loss] = {
    "exponential": exponential,
    "logistic": logistic,
    "cross-entropy": F.cross_entropy,
}


def checked_labels(loss: str, y: ArrayLike, samples: int, outputs: int) -> np.ndarray:
    """Labels that the loss can use.

    Args:
        loss: One of :data:`LOSSES`.
        y: (B,) labels: -1 and 1, or classes 0 ... C - 1 for cross-entropy.
        samples: B.
        outputs: C, the network's outputs: 1, or at least 2 for cross-entropy.

    Returns:
        The labels in float64, or int64 for cross-entropy.

    Raises:
        DataError: If the loss is unknown, or labels or outputs don't fit it.
    """
    one_of("loss", loss, LOSSES)
    labels = np.array(y)
    if labels.shape != (samples,):
        raise DataError(f"y must be one label for each of {samples} samples, got {labels.shape}")
    several = loss == "cross-entropy"
    if several == (outputs == 1):
        needed = "one output for each class" if several else "one output"
        raise DataError(f"the {loss} loss needs a network with {needed}, this has {outputs}")
    known = np.arange(outputs) if several else (-1, 1)
    if labels.dtype.kind not in ("iu" if several else "iuf") or not np.isin(labels, known).all():
        expected = f"integer labels 0 ... {outputs - 1}"
        if not several:
            expected = "labels -1 and 1 (of classes 0 and 1 take 2 y - 1)"
        few = ", ".join(map(str, np.unique(labels)[:4]))
        raise DataError(f"the {loss} loss needs {expected}, got {few} ...")
    return labels.astype(np.int64 if several else float)


def log_loss_and_pull(loss: str, outputs: Outputs, y: np.ndarray) -> tuple[float, Outputs]:
    """Logarithm of the loss, and its pull -∂log L/∂f on the outputs, without underflow.

    Args:
        loss: One of :data:`LOSSES`.
        outputs: (B, C).
        y: (B,) labels.

    Returns:
        log L of the mean loss; (B, C) pulls.
    """
    if loss == "exponential":
        exponents = -y * outputs[:, 0]
        total = logsumexp(exponents)
        return float(total - np.log(len(y))), (y * np.exp(exponents - total))[:, None]
    if loss == "logistic":
        soft, direction = y * outputs[:, 0], y[:, None]
    else:
        soft, direction = _soft_margins(outputs, y)
    # log of log(1 + e^-m), and of its derivative's size 1/(1 + e^m)
    log_terms = np.where(soft > _TAIL, -soft, np.log(np.logaddexp(0.0, -np.minimum(soft, _TAIL))))
    total = logsumexp(log_terms)
    shares = np.exp(-np.logaddexp(0.0, soft) - total)
    return float(total - np.log(len(y))), shares[:, None] * direction


def _soft_margins(outputs: Outputs, y: np.ndarray) -> tuple[Float64[np.ndarray, " B"], Outputs]:
    """f_y - log Σ_{c≠y} e^{f_c}, of which cross-entropy is the logistic loss, and its gradient."""
    rows = np.arange(len(y))
    others = outputs.copy()
    others[rows, y] = -np.inf
    total = np.asarray(logsumexp(others, axis=1))
    gradient = -np.exp(others - total[:, None])
    gradient[rows, y] = 1.0
    return outputs[rows, y] - total, gradient


@dataclass(frozen=True)
class MaximumMargin(Result, axes={"feature": "direction", "sample": "multipliers"}):
    """The hyperplane through the origin that is farthest from the nearest sample.

    Attributes:
        direction: (d,) unit normal v.
        margin: γ = min_n y_n vᵀx_n > 0.
        support: Indices of the samples with a positive multiplier.
        multipliers: (B,) α_n >= 0 of v/γ = Σ α_n y_n x_n.
    """

    direction: Float64[np.ndarray, " d"]
    margin: float
    support: Int64[np.ndarray, " k"]
    multipliers: Float64[np.ndarray, " B"]


def maximum_margin(x: ArrayLike, y: ArrayLike) -> MaximumMargin:
    """The hard-margin support vector machine through the origin, by a finite algorithm.

    It minimises ‖w‖ subject to y_n wᵀx_n >= 1 (Poggio, Banburski and Liao 2020, Lemma 4 for one
    layer). Let A have the columns y_n x_n, and u >= 0 minimise ‖A u‖² + (Σ u - 1)²: then
    w = A u/(1 - Σ u).

    Args:
        x: (B, d) inputs.
        y: (B,) labels, -1 or 1.

    Returns:
        Direction, margin and support.

    Raises:
        DataError: If no hyperplane through the origin separates the samples.
    """
    inputs = real_array("x", x, dimensions=2)
    labels = checked_labels("exponential", y, len(inputs), 1)
    pulled = labels[:, None] * inputs
    size = np.linalg.norm(pulled, axis=1).max() or 1.0
    scaled = pulled / size
    target = np.append(np.zeros(scaled.shape[1]), 1.0)
    system = np.vstack([scaled.T, np.ones(len(scaled))])
    u, _ = nnls(system, target, maxiter=30 * len(scaled) + 100)
    slack = 1.0 - u.sum()
    weights = scaled.T @ u
    norm = float(np.linalg.norm(weights))
    # without a hyperplane slack and weights are zero but for round-off
    if slack <= 0 or norm == 0 or (scaled @ weights).min() <= 0:
        raise DataError("no hyperplane through the origin separates these; append a constant")
    direction = weights / norm
    margin = float((pulled @ direction).min())
    return MaximumMargin(direction, margin, np.flatnonzero(u), u / (slack * size**2))
