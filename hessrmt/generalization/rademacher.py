"""Rademacher complexity of normalised networks, and the bounds on their errors that it gives.

The empirical Rademacher complexity of functions f on N samples is R̂ = E_σ sup_f Σ σ_n f(x_n)/N
with random signs σ_n. For networks of K layers without biases whose matrices have Frobenius norms
M_k at most, with ReLUs between them (Golowich, Rakhlin and Shamir 2018, Theorem 1; for K = 1
without the factor before the product, by Jensen's inequality),

    R̂ <= (√(2 K ln 2) + 1) Π M_k √(Σ ‖x_n‖²)/N.

So R̂ = Π M_k R̂₁, as Generalization puzzles (2020), eq. (4), has it, with R̂₁ that of the unit ball.
What the paper leaves open is done here:

- A convolution is the matrix that it is on all positions: an element of its kernel counts as often
  as it meets an input that is no padding. That norm is much larger than the kernel's.
- Biases are weights of a unit that is constant: 1 at the input, handed from layer to layer. How
  large it is in between is free; the sizes with the smallest product are taken, and all are valid.

The error on all samples to come is, with probability 1 - δ over the N that are there and for all
networks and all γ = 2^j at once (Mohri, Rostamizadeh and Talwalkar 2018, Theorem 9.2, with shares
δ/(3 (1 + |j|)²) of δ),

    error <= share of margins of f/ΠM_k below γ + 4 C R̂₁/γ + 3 √(ln(6 (1 + |j|)²/δ)/2N)

for C classes, and the mean cross-entropy L of f exceeds that of the N samples by at most 4 C R̂ and
a term that does not depend on the network's complexity: softmax cross-entropy changes by at most √2
times the Euclidean distance of the outputs, and Maurer 2016 gives the rest.

How far R̂ is below its bound is seen by :func:`attained`: the unit ball is searched for the network
that follows random signs best, which gives a number from below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import optimize
from torch import Tensor, nn

from hessrmt import rng
from hessrmt.arrays import sample_mean
from hessrmt.checks import real, whole
from hessrmt.errors import DataError
from hessrmt.generalization import networks
from hessrmt.generalization.networks import FoldedLayer
from hessrmt.results import Result

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hessrmt.generalization.normalization import Margins

DELTA = 0.05
"""Probability with which a bound may fail."""

_PLAIN = (nn.ReLU, nn.Identity, nn.Flatten, nn.Dropout, nn.BatchNorm1d, nn.BatchNorm2d)
"""Modules beside layers for which the theorem holds, BatchNorm as part of a layer."""

_HALVINGS = 200
"""Of γ, both ways from 1: 1e-60 to 1e60."""


@dataclass(frozen=True)
class RademacherBound(Result, derived="product complexity"):
    """A bound on the Rademacher complexity of all networks that are no larger than a given one.

    Attributes:
        samples: N.
        depth: K, number of layers.
        factors: Name of the layer to the Frobenius norm of its matrix on all positions, with the
            constant unit that biases need.
        unit: Bound on R̂₁, of the networks whose product of these norms is 1.
        biases: Whether there are any.
    """

    samples: int
    depth: int
    factors: Mapping[str, float]
    unit: float
    biases: bool

    @property
    def product(self) -> float:
        """Π M_k."""
        return math.prod(self.factors.values())

    @property
    def complexity(self) -> float:
        """Bound on R̂, of the networks with at most this product."""
        return self.unit * self.product

    def error_bound(self, margins: Margins, classes: int, delta: float = DELTA) -> ErrorBound:
        """Bound on the classification error on samples to come.

        Args:
            margins: (N,) margins of the network on the samples, as trained.
            classes: C, at least 2.
            delta: Probability with which it may fail.

        Returns:
            The smallest bound over γ; above 1 it says nothing.

        Raises:
            DataError: If there are not as many margins as samples, or delta is no probability.

        Source: Mohri, Rostamizadeh and Talwalkar 2018, Theorem 9.2.
        """
        classes = whole("classes", classes, 2)
        if len(margins) != self.samples:
            raise DataError(f"{len(margins)} margins, but the bound is for {self.samples} samples")
        if not 0 < real("delta", delta) < 1:
            raise DataError(f"delta is {delta!r}; expected a probability between 0 and 1, as 0.05")
        j = np.arange(-_HALVINGS, _HALVINGS + 1)
        gamma = 2.0**j
        ordered = np.sort(np.asarray(margins, dtype=np.float64)) / self.product
        shares = np.searchsorted(ordered, gamma, side="right") / self.samples
        capacity = 4 * classes * self.unit / gamma
        chance = 3 * np.sqrt(np.log(6 * (1 + np.abs(j)) ** 2 / delta) / (2 * self.samples))
        best = int(np.argmin(shares + capacity + chance))
        parts = (float(part[best]) for part in (gamma, shares, capacity, chance))
        return ErrorBound(*parts, delta=delta)

    def loss_gap(self, classes: int) -> float:
        """How far, by its complexity, the mean cross-entropy to come may exceed that of training.

        Args:
            classes: C.

        Returns:
            4 C R̂ of the network as trained; for f/Πρ divide by Πρ. The term of chance is not in it.
        """
        return 4 * whole("classes", classes, 2) * self.complexity


@dataclass(frozen=True)
class ErrorBound(Result, derived="value says_something"):
    """A bound on the share of samples to come that are classified wrongly, and its parts.

    Attributes:
        margin: γ, in units of the network with product 1.
        below: Share of training samples with at most this margin.
        capacity: 4 C R̂₁/γ.
        chance: What the number of samples adds.
        delta: Probability with which the bound may fail.
    """

    margin: float
    below: float
    capacity: float
    chance: float
    delta: float

    @property
    def value(self) -> float:
        """The bound."""
        return self.below + self.capacity + self.chance

    @property
    def says_something(self) -> bool:
        """Whether it is below 1, which no error exceeds anyway."""
        return self.value < 1


@torch.inference_mode(False)
def rademacher_bound(model: nn.Module, inputs: Any) -> RademacherBound:
    """Bound the Rademacher complexity of the networks that are no larger than this one.

    Args:
        model: A sequence of linear and convolution layers, ReLUs, BatchNorms that can be folded,
            Dropout and Flatten; not changed, taken in evaluation mode.
        inputs: (N, ...) all training samples, one tensor or array.

    Returns:
        The bound, for each output of the network.

    Raises:
        DataError: If there is anything else in the network, for which the theorem is not proven.

    Source: Golowich, Rakhlin and Shamir 2018, Theorem 1.
    """
    network = networks.working_copy(model)
    data = networks.as_inputs(inputs, networks.device_of(network))
    if not isinstance(data, Tensor):
        raise DataError("the complexity is that of networks with one tensor of inputs")
    _require_plain(network)
    sizes, weights, biases = [], [], []
    layers, _ = networks.find_layers(network, data[:1])
    modules: dict[str, Any] = dict(network.named_modules())
    uses = _uses(network, layers, data[:1])
    for layer in layers:
        weight, bias = networks.folded(layer, modules)
        times, positions = uses[layer.name]
        weights.append(float((weight.square() * times).sum()))
        biases.append(0.0 if bias is None else float(bias.square().sum()) * positions)
        sizes.append(layer.label)
    squares = float(data.square().sum())
    last = max((k + 1 for k, size in enumerate(biases) if size), default=0)
    norms = _with_constants(np.array(weights), np.array(biases), last)
    samples, depth = len(data), len(layers)
    squares += samples if last else 0.0
    factor = 1.0 if depth == 1 else math.sqrt(2 * depth * math.log(2)) + 1
    unit = factor * math.sqrt(squares) / samples
    return RademacherBound(samples, depth, dict(zip(sizes, norms, strict=True)), unit, last > 0)


def _require_plain(network: nn.Module) -> None:
    """Refuse a network for which the theorem is not proven."""
    known = {kind.forward for kind in (nn.Sequential, *_PLAIN, *networks.LAYERS)}
    for name, module in network.named_modules():
        if type(module).forward not in known:
            raise DataError(
                f"{name or 'the model'} ({type(module).__name__}): the bound on the complexity is "
                "proven for nn.Sequential of linear and convolution layers with ReLUs only"
            )


def _uses(
    network: nn.Module, layers: tuple[FoldedLayer, ...], sample: Tensor
) -> dict[str, tuple[Tensor, int]]:
    """How often each weight of a layer is in its matrix on all positions, and each bias."""
    shapes: dict[str, torch.Size] = {}
    modules: dict[str, Any] = dict(network.named_modules())

    def noting(name: str) -> Any:
        def note(_: nn.Module, taken: tuple[Tensor, ...]) -> None:
            shapes[name] = taken[0].shape

        return note

    hooks = [modules[layer.name].register_forward_pre_hook(noting(layer.name)) for layer in layers]
    networks.outputs(network, sample)
    for hook in hooks:
        hook.remove()
    found = {}
    for name, shape in shapes.items():
        module = modules[name]
        with torch.enable_grad():
            weight = torch.zeros_like(module.weight, requires_grad=True)
            ones = torch.ones(shape, dtype=weight.dtype, device=weight.device)
            values = {"weight": weight, **({} if module.bias is None else {"bias": module.bias})}
            outputs = torch.func.functional_call(module, values, ones)
            (times,) = torch.autograd.grad(outputs.sum(), weight)
        channel = outputs.dim() - 1 if isinstance(module, nn.Linear) else 1
        found[name] = times.detach(), outputs.numel() // outputs.shape[channel]
    return found


def _with_constants(weights: np.ndarray, biases: np.ndarray, last: int) -> list[float]:
    """Frobenius norms √(‖W_k‖² + (‖b_k‖² + c_k²)/c_{k-1}²); the constant unit has the size c_k."""
    if not (weights > 0).all():
        raise DataError("a layer's weights are all zero, so that the product of the norms is too")

    def squares(logarithms: np.ndarray) -> np.ndarray:
        constants = np.exp(2 * np.concatenate([[0.0], logarithms]))  # c_0 = 1 to c_{last-1}
        handed = np.append(constants[1:], 0.0)
        found = weights.copy()
        found[:last] += (biases[:last] + handed) / constants
        return found

    if last == 0:
        return np.sqrt(weights).tolist()
    start = np.zeros(last - 1)
    if last > 1:
        # the logarithm of the product is convex in those of the constants
        best = optimize.minimize(lambda at: 0.5 * np.log(squares(at)).sum(), start, method="BFGS")
        start = best.x if np.isfinite(best.x).all() else start
    return np.sqrt(squares(start)).tolist()


@dataclass(frozen=True)
class Attained(Result):
    """How well networks of the unit ball follow random signs: R̂₁ from below.

    Attributes:
        mean: Mean over the draws of the largest Σ σ_n f(x_n)/N that was found.
        error: Its standard error; NaN of one draw.
        values: What was found in each draw.
    """

    mean: float
    error: float
    values: tuple[float, ...]


@torch.inference_mode(False)
def attained(
    model: nn.Module,
    inputs: Any,
    *,
    draws: int = 8,
    steps: int = 200,
    rate: float = 0.3,
    seed: int = 0,
) -> Attained:
    """Search the networks whose layers have Frobenius norm 1 for those that follow random signs.

    Each draw starts from another random network; every step moves all layers along their gradients
    of unit length and divides by their norms. Norms are those of the kernels, as in f/Πρ.

    Args:
        model: The architecture, without biases, that can be normalised; not changed.
        inputs: (N, ...) samples.
        draws: Of the signs.
        steps: Of the ascent.
        rate: Length of the first step of each layer; it falls to zero linearly.
        seed: Of everything.

    Returns:
        A number that R̂₁ exceeds, but for the error of the mean over draws.

    Raises:
        DataError: If the network has biases or BatchNorm, for which the norms say too little.
    """
    draws, steps = whole("draws", draws, 1), whole("steps", steps, 1)
    rate = real("rate", rate, above=0)
    network = networks.working_copy(model)
    data = networks.as_inputs(inputs, networks.device_of(network))
    layers, found = networks.find_layers(network, data)
    modules: dict[str, Any] = dict(network.named_modules())
    for layer in layers:
        if modules[layer.name].bias is not None or layer.norms:
            raise DataError(f"{layer.label} has a bias or BatchNorm; expected a network without")
    names = [f"{layer.name}.weight" if layer.name else "weight" for layer in layers]
    shapes = [modules[layer.name].weight.shape for layer in layers]
    values = []
    for draw in range(draws):
        generator = rng.torch_generator(seed, "rademacher", draw)
        signs = 2.0 * torch.randint(2, (len(found),), generator=generator) - 1
        signs = signs.to(found)
        drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        weights = [_unit(weight.to(found)) for weight in drawn]
        best = 0.0  # of the network that is zero
        for step in range(steps + 1):
            with torch.enable_grad():
                leaves = [weight.requires_grad_() for weight in weights]
                outputs = networks.outputs(network, data, dict(zip(names, leaves, strict=True)))
                value = signs @ outputs.flatten(1)[:, 0] / len(signs)
                gradients = torch.autograd.grad(value, leaves)
            best = max(best, float(value.detach()))
            length = rate * (1 - step / steps)
            weights = [
                _unit(weight.detach() + length * _unit(gradient))
                for weight, gradient in zip(weights, gradients, strict=True)
            ]
        values.append(best)
    return Attained(*sample_mean(values), tuple(values))


def _unit(values: Tensor) -> Tensor:
    return values / values.norm().clamp_min(torch.finfo(values.dtype).tiny)
