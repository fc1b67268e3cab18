"""f(x) = Πρ_k f̃(x), ρ_k = ‖W_k‖: a trained network with its scale taken out, and its margins.

A network of linear layers, convolutions, ReLUs and poolings is positively homogeneous in every
weight: f(α₁W₁, …, α_K W_K) = Πα_k f(W₁, …, W_K) for all α_k > 0, where the bias b_k is multiplied
by Π_{j≤k} α_j. So the exact rescaling is W_k ↦ W_k/ρ_k, b_k ↦ b_k/Π_{j≤k} ρ_j; BatchNorm is folded
into the layers first. What the network predicts does not change, its loss does.

Margins are η_n = f_{y_n}(x_n) - max_{j≠y_n} f_j(x_n), η = min_n η_n. An example is classified
correctly if η_n > 0. The margin of the normalised network is η/Πρ_k, and the bound of
Generalization puzzles (2020), eq. (13), on the classification error is proportional to its inverse.

Source: Generalization puzzles (2020), §2, appendices A and J; Poggio, Banburski and Liao 2020, §3.
"""

from __future__ import annotations

import itertools
import math
import operator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from hessrmt import rng
from hessrmt.checks import real, whole
from hessrmt.errors import DataError, NonFiniteError, let_pass
from hessrmt.generalization import networks
from hessrmt.generalization.networks import ALTERNATIVE, ARRAYS, FoldedLayer, listed
from hessrmt.problems.losses import resolve
from hessrmt.results import Result, finite

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hessrmt.problems.losses import Loss

    Layers = Sequence[FoldedLayer]

Margins = Float64[np.ndarray, "n"]
Positions = Int64[np.ndarray, "count"]

OUTPUT = "output"
"""Name of the only factor where the output was normalised."""

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)

TOLERANCE = math.sqrt(torch.finfo(torch.float64).eps)
"""Half of the digits must agree: far above round-off, far below what a nonlinearity does."""

_FAR = 30
"""Exponent of the first layer's factor: what has a scale of its own shows it within 2^±30."""

_CHECKED = 64
"""Samples of the first batch on which :class:`NormalizedLoss` checks homogeneity."""

_run = torch.no_grad()(networks.outputs)
_NOTHING = "there are no samples to measure; give at least one batch (x, y)"
_LABELS = "expected one integer label per sample, from 0 on"


@dataclass(frozen=True, eq=False)
class Normalized(Result, derived="product", omitted="model"):
    """A normalised network and what it was divided by.

    Attributes:
        model: f̃, in evaluation mode, in the precision and on the device of the original.
        factors: Name of the layer to ρ_k, in the order of depth; after :func:`output_normalize`
            only ``output``.
        norm: p of the norms, at least 1, possibly infinite.
        layers: Layers and the BatchNorm modules folded into them.
        deviation: Largest |f̃ Πρ_k - f| on the inputs over the largest |f|, in float64.
    """

    model: nn.Module
    factors: Mapping[str, float]
    norm: float
    layers: tuple[FoldedLayer, ...]
    deviation: float

    @property
    def product(self) -> float:
        """Πρ_k, so that f = Πρ_k f̃."""
        return math.prod(self.factors.values())


class Scaled(nn.Module):
    """A network whose outputs are divided by a constant.

    Args:
        model: The network.
        factor: The constant.
    """

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model = model
        self.factor = factor

    def forward(self, *arguments: Any, **keywords: Any) -> Tensor:
        """The model's outputs over the constant.

        Returns:
            (B, ...).
        """
        return self.model(*arguments, **keywords) / self.factor


@torch.inference_mode(False)
def normalize(model: nn.Module, inputs: Any, norm: float = 2) -> Normalized:
    """Divide every layer's weight by its norm, exactly; refuse a network where that is not exact.

    Linear and convolution layers are found by running the model, so that it may be any module.
    That it is homogeneous is checked on the inputs with weights scaled by powers of two, and the
    result is compared with the original there. All of it is computed in float64.

    Args:
        model: The trained network; not changed. It is taken in evaluation mode.
        inputs: A batch of real samples, (B, ...), or a tuple or dict of tensors.
        norm: p of the norm ‖W_k‖_p = (Σ|w|^p)^(1/p) over all elements of the weight, at least 1;
            2 is the Frobenius norm, ``math.inf`` the largest element.

    Returns:
        The normalised network, ρ_k by layer and their product.

    Raises:
        DataError: If the network is not homogeneous, holds a weight that is zero, NaN or shared,
            or a BatchNorm that cannot be folded exactly.
    """
    norm = _checked_norm(norm)
    network = networks.working_copy(model)
    data = networks.as_inputs(inputs, networks.device_of(network))
    layers, original = networks.find_layers(network, data)
    modules: dict[str, Any] = dict(network.named_modules())
    own = [modules[layer.name] for layer in layers]
    for layer, module in zip(layers, own, strict=True):
        weight, bias = networks.folded(layer, modules)
        module.weight = nn.Parameter(weight)
        module.bias = None if bias is None else nn.Parameter(bias)
    norms = [name for layer in layers for name in layer.norms]
    for name in norms:
        network.set_submodule(name, nn.Identity().eval())
    plain = _run(network, data)
    off = relative_difference(plain, original)
    if norms and original.any() and not off <= TOLERANCE:
        raise DataError(
            f"BatchNorm ({listed(norms)}) cannot be folded: outputs differ by {off:.1g} of the "
            f"largest then; is a layer's output also used without it? {ALTERNATIVE}"
        )
    _require_homogeneous(network, layers, data, plain)
    weights = {layer.label: module.weight for layer, module in zip(layers, own, strict=True)}
    factors = layer_factors(weights, norm)
    for name, value in _divided(network, layers, list(factors.values())).items():
        network.get_parameter(name).data = value
    deviation = relative_difference(_run(network, data) * math.prod(factors.values()), original)
    if deviation > TOLERANCE:
        raise DataError(
            f"the normalised network is homogeneous but off by {deviation:.1g} of the largest "
            f"output: its weights are too badly scaled. {ALTERNATIVE}"
        )
    _restore(network, networks.unwrapped(model), _largest(original) / math.prod(factors.values()))
    return Normalized(network, factors, norm, layers, deviation)


def output_normalize(model: nn.Module, inputs: Any, norm: float = 2) -> Normalized:
    """Divide a network by the norm of its output on a fixed image or batch.

    The way of Generalization puzzles (2020), Fig. 2 and appendix H, for ResNets, whose residual
    branches have no product of norms. Use the same inputs for all networks that are to be compared.

    Args:
        model: Any network; not changed. It is taken in evaluation mode.
        inputs: One image as a batch of one, or a batch: then the norms of its samples are averaged.
        norm: p of the norm of a sample's outputs, at least 1, possibly infinite.

    Returns:
        The network over ρ; ``factors`` is ``{"output": ρ}``.
    """
    norm = _checked_norm(norm)
    network = networks.working_copy(model)
    data = networks.as_inputs(inputs, networks.device_of(network))
    original = _run(network, data)
    factor = output_factor(original, norm)
    deviation = relative_difference((original / factor) * factor, original)
    _restore(network, networks.unwrapped(model), _largest(original) / factor)
    return Normalized(Scaled(network, factor).eval(), {OUTPUT: factor}, norm, (), deviation)


def _checked_norm(norm: float) -> float:
    hint = "the p of an L_p norm, 2 for Frobenius, or math.inf"
    return norm if norm == math.inf else real("norm", norm, least=1, hint=hint)


def layer_factors(weights: Mapping[str, Tensor], norm: float) -> dict[str, float]:
    """ρ_k of weights.

    Args:
        weights: Name of the layer to its weight, of any shape, BatchNorm folded.
        norm: p.

    Returns:
        Name of the layer to ‖W_k‖_p.

    Raises:
        DataError: If a weight is all zero or not finite, or the product of the norms lies outside
            of float64.
    """
    factors = {name: _norm(weight, norm) for name, weight in weights.items()}
    for name, factor in factors.items():
        if not 0 < factor < math.inf:
            what = "not finite" if factor else "all zero"
            raise DataError(f"the weights of {name} are {what}, so that they have no direction")
    product = math.prod(factors.values())
    if not 0 < product < math.inf:
        raise DataError(f"the product of the layers' norms is {product}; take another norm")
    return factors


def output_factor(found: Tensor, norm: float) -> float:
    """Mean over the samples of the norm of their outputs.

    Args:
        found: (B, ...) outputs.
        norm: p.

    Returns:
        ρ.

    Raises:
        DataError: If the outputs are all zero or not finite.
    """
    factor = sum(_norm(row, norm) for row in found) / len(found)
    if not 0 < factor < math.inf:
        raise DataError(f"the norm of the outputs on the fixed inputs is {factor}; take others")
    return factor


def effective_weights(model: nn.Module, layers: Layers) -> dict[str, Tensor]:
    """Weights of a network's layers with their BatchNorm folded; nothing is changed.

    Args:
        model: The network that the layers were found in, at any parameters.
        layers: In the order of their depth.

    Returns:
        Name of the layer to its float64 weight.
    """
    modules = dict(model.named_modules())
    return {layer.label: networks.folded(layer, modules)[0] for layer in layers}


def _norm(values: Tensor, norm: float) -> float:
    values = values.detach().double()
    largest = _largest(values)
    if not 0 < largest < math.inf:
        return largest
    return largest * float(torch.linalg.vector_norm(values.abs().flatten() / largest, ord=norm))


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _restore(network: nn.Module, model: nn.Module, largest: float) -> None:
    """Put the copy back into the precision of the original, if that can hold it."""
    own = dict(model.named_parameters())
    kinds = {name: v.dtype for name, v in [*own.items(), *model.named_buffers()]}
    main = next((p.dtype for p in own.values() if p.is_floating_point()), torch.float64)
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if not value.is_floating_point():
            continue
        kind = kinds.get(name, main)
        exact = value.detach()
        cast, limits = exact.to(kind), torch.finfo(kind)
        lost = _largest(cast.double() - exact) > 2 * limits.eps * _largest(exact)
        if lost or 0 < largest < limits.tiny / limits.eps:
            raise DataError(f"{name} becomes too small or too large for {kind}; try model.double()")
        if isinstance(value, nn.Parameter):
            value.requires_grad_(own[name].requires_grad if name in own else True)
        value.data = cast


def _require_homogeneous(
    network: nn.Module, layers: Layers, inputs: Any, reference: Tensor
) -> None:
    """Refuse a network whose outputs do not scale with its layers."""
    if not torch.isfinite(reference).all():
        raise DataError("the model's outputs on these inputs are NaN or infinite")
    if not reference.any():
        raise DataError("the model's outputs on these inputs are all zero; give other inputs")
    off, count = partial(deviation, network, layers, inputs, reference), len(layers)
    if off([0] * count) > TOLERANCE:
        raise DataError("the model is random: two runs on the same inputs differ; remove the noise")
    # all alike: no branch with a layer in it can keep step with one that has fewer
    draw = rng.stream(0, "homogeneity")
    far = [[first, *draw.integers(-3, 4, count - 1).tolist()] for first in (_FAR, -_FAR)]
    worst = max(map(off, [[1] * count, *far]))
    if worst <= TOLERANCE:
        return
    alone = zip(layers, np.eye(count, dtype=int).tolist(), strict=True)
    failing = [layer.label for layer, one in alone if off(one) > TOLERANCE]
    which = f"the weights of {listed(failing)}" if failing else "all weights together"
    cause = "residual or parallel branches, a softmax or another function in forward may be why"
    culprits = _culprits(network, inputs)
    if culprits:
        cause = f"the cause is {listed(culprits)}"
    raise DataError(
        f"the network is not positively homogeneous: scaling {which} does not scale the outputs "
        f"alike (they are off by {worst:.1g} of the largest); {cause}. {ALTERNATIVE}"
    )


def deviation(
    network: nn.Module, layers: Layers, inputs: Any, reference: Tensor, exponents: Sequence[int]
) -> float:
    """How far the outputs are from 2^Σe times those of the unscaled network.

    Powers of two commute with rounding, so that this is exactly zero for a homogeneous network,
    whatever its condition.

    Args:
        network: The network.
        layers: In the order of their depth.
        inputs: A batch.
        reference: (B, ...) outputs of the unscaled network.
        exponents: e_k of each layer.

    Returns:
        Largest difference over the largest output; infinite if an output is not finite.
    """
    factors = [2.0**-exponent for exponent in exponents]
    found = _run(network, inputs, _divided(network, layers, factors)) * math.prod(factors)
    return relative_difference(found, reference)


def _divided(network: nn.Module, layers: Layers, factors: Sequence[float]) -> dict[str, Tensor]:
    """Weights over their layers' factors, biases over those of all layers up to theirs."""
    own, found = dict(network.named_parameters()), {}
    depths = itertools.accumulate(factors, operator.mul)
    for layer, factor, depth in zip(layers, factors, depths, strict=True):
        for entry, divisor in (("weight", factor), ("bias", depth)):
            name = f"{layer.name}.{entry}" if layer.name else entry
            if name in own:
                found[name] = own[name].detach() / divisor
    return found


def relative_difference(found: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest magnitude of the reference.

    Returns:
        A ratio; infinite if shapes differ or a value is not finite.
    """
    if found.shape != reference.shape:
        return math.inf
    value = float((found - reference).abs().max() / reference.abs().max())
    return value if math.isfinite(value) else math.inf


def _culprits(network: nn.Module, inputs: Any) -> list[str]:
    """Modules without weights that are not homogeneous on what they are given."""
    leaves = {
        module: name or "model"
        for name, module in network.named_modules()
        if not list(module.children()) and not list(module.parameters())
    }
    found: dict[str, None] = {}

    def probe(module: nn.Module, args: tuple[Any, ...], _: Any) -> None:
        if len(args) != 1 or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
            return
        plain = module.forward(args[0].clone())
        for factor in (2.0**_FAR, 2.0**-_FAR):
            other = module.forward(args[0] * factor) / factor
            if plain.any() and relative_difference(other, plain) > TOLERANCE:
                found[f"{leaves[module]} ({type(module).__name__})"] = None

    with suppress(DataError), ExitStack() as stack:
        for module in leaves:
            stack.enter_context(module.register_forward_hook(probe))
        _run(network, inputs)
    return list(found)


@dataclass(frozen=True, eq=False)
class MarginSummary(Result, axes={"sample": "margins"}):
    """The margins of a network on some samples.

    Attributes:
        margins: (n,) η_n in the order of the samples, in the units of the outputs.
        product: Πρ_k of the network; 1 if it is normalised itself or no product was given.
    """

    margins: Margins
    product: float = 1.0

    @property
    def minimum(self) -> float:
        """η, the smallest margin; negative if an example is classified wrongly."""
        return float(self.margins.min())

    @property
    def normalized_minimum(self) -> float:
        """η/Πρ_k, the smallest margin of the normalised network."""
        return self.minimum / self.product

    @property
    def error(self) -> float:
        """Share of samples with η_n <= 0."""
        return float(np.mean(self.margins <= 0))

    @property
    def bound(self) -> float:
        """1/η; infinite if an example is not classified correctly."""
        return 1 / self.minimum if self.minimum > 0 else math.inf

    @property
    def normalized_bound(self) -> float:
        """Πρ_k/η: the classification error grows with it, Generalization puzzles (2020), eq. 13."""
        return self.bound * self.product

    def quantiles(self, at: Sequence[float] = QUANTILES) -> dict[float, float]:
        """Quantiles of the margins.

        Args:
            at: Shares, 0 to 1.

        Returns:
            Share to margin.
        """
        values = np.quantile(self.margins, at)
        return dict(zip(map(float, at), values.tolist(), strict=True))

    def support(self, count: int = 10) -> Positions:
        """The examples that the margin rests on.

        Args:
            count: How many at most, at least 1.

        Returns:
            Indices of the samples with the smallest margins, smallest first.
        """
        count = whole("the count of support examples", count, 1)
        return np.argsort(self.margins, kind="stable")[:count].astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain values, e.g. for JSON; the margins of single samples are left out.

        Returns:
            Name to value.
        """
        support = self.support()
        numbers = {
            "samples": len(self.margins),
            "min": self.minimum,
            "normalized_min": self.normalized_minimum,
            "mean": float(self.margins.mean()),
            "quantiles": {f"{share:g}": value for share, value in self.quantiles().items()},
            "support": support.tolist(),
            "support_margins": self.margins[support].tolist(),
            "inverse": self.bound,
            "normalized_inverse": self.normalized_bound,
        }
        return finite(numbers)


def margins(
    model: nn.Module, x: Any, y: Any, *, product: float = 1.0, batch: int = 1024
) -> MarginSummary:
    """Margins of a network on labelled samples, computed in float64.

    Args:
        model: The network, in evaluation mode or not; not changed. Its outputs are (B, K), K >= 2,
            or one score per sample, (B,) or (B, 1), whose sign is the class: then η_n = y_n f(x_n).
        x: Samples with the batch first, or a tuple or dict of them.
        y: (n,) labels 0 to K - 1; for one score per sample -1 and 1, or 0 and 1.
        product: Πρ_k, for the margin of the normalised network.
        batch: Samples computed at a time.

    Returns:
        Margins in the order of the samples.

    Raises:
        DataError: If there are not as many labels as samples.
    """
    product = real("product", product, above=0, hint="expected Πρ_k")
    batch = whole("batch", batch, 1, hint="samples")
    network = networks.working_copy(model)
    labels, samples = torch.as_tensor(y), networks.samples_in(x)
    if labels.dim() == 0 or len(labels) != samples or not samples:
        shape = tuple(labels.shape)
        raise DataError(f"{samples} samples but labels of shape {shape}; {_LABELS}")
    device, found = networks.device_of(network), []
    for first in range(0, samples, batch):
        part = networks.as_inputs(networks.take(x, slice(first, first + batch)), device)
        found.append(_run(network, part).cpu())
    return MarginSummary(margins_of_outputs(torch.cat(found), labels.cpu()), product)


def margins_of_outputs(outputs: Tensor, labels: Tensor) -> Margins:
    """Margins from outputs.

    Args:
        outputs: (n, K), K >= 2, or one score per sample, (n,) or (n, 1).
        labels: (n,) integer labels 0 to K - 1; for one score -1 and 1, or 0 and 1, of any type.

    Returns:
        (n,) η_n.

    Raises:
        DataError: If labels do not fit the outputs, or these have another shape.
        NonFiniteError: If an output is NaN or infinite.
    """
    if not torch.isfinite(outputs).all():
        row = int((~torch.isfinite(outputs)).nonzero()[0, 0])
        raise NonFiniteError(f"the outputs are NaN or infinite, first in sample {row}")
    outputs, labels = outputs.detach().double(), labels.detach()
    if outputs.dim() not in {1, 2}:
        raise DataError(f"margins need outputs (batch, classes), got {tuple(outputs.shape)}")
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dim() != 1 or len(labels) != len(outputs):
        shapes = f"labels have shape {tuple(labels.shape)} for outputs {tuple(outputs.shape)}"
        raise DataError(f"{shapes}; {_LABELS} (take the argmax of one-hot labels)")
    if outputs.dim() == 1 or outputs.shape[1] == 1:
        values = set(labels.unique().tolist())
        if not (values <= {-1, 1} or values <= {0, 1}):
            few = ", ".join(f"{value:g}" for value in sorted(values)[:5])
            raise DataError(f"of one output per sample labels are -1 and 1, or 0 and 1; got {few}")
        signs = labels if values <= {-1, 1} else 2 * labels.long() - 1
        return (signs.double() * outputs.flatten()).cpu().numpy()
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(f"labels are {labels.dtype}; {_LABELS}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= outputs.shape[1]:
        count = outputs.shape[1]
        raise DataError(f"labels run from {low} to {high}, but the model has {count} outputs")
    index = labels.long()[:, None]
    others = outputs.scatter(1, index, -math.inf).amax(dim=1)
    return (outputs.gather(1, index)[:, 0] - others).cpu().numpy()


@dataclass(frozen=True, eq=False)
class Evaluation(Result, derived="error"):
    """A network measured on some samples.

    Attributes:
        samples: How many.
        loss: Mean loss of f.
        normalized_loss: Mean loss of f̃ = f/Πρ_k.
        margins: Margins; None where targets are no class labels.
    """

    samples: int
    loss: float
    normalized_loss: float
    margins: MarginSummary | None

    @property
    def error(self) -> float | None:
        """Share of samples that are classified wrongly, the same for f and f̃."""
        return None if self.margins is None else self.margins.error


def evaluate(
    model: nn.Module, batches: Iterable[tuple[Any, Any]], loss: Loss, product: float
) -> Evaluation:
    """Losses of a network and of its normalised form, and its margins, in one pass over the data.

    Args:
        model: The network, run as it is in evaluation mode; its flags are restored.
        batches: Inputs and targets; moved to the model's device.
        loss: (outputs, targets) -> scalar mean over the batch.
        product: Πρ_k; f̃ is what f gives, divided in float64.

    Returns:
        Means over all samples, each counted once.

    Raises:
        DataError: If there are no samples, or the loss fails.
        NonFiniteError: If a loss is NaN or infinite.
    """
    device, totals, samples = networks.device_of(model), np.zeros(2), 0
    found: list[np.ndarray] | None = []
    with networks.evaluating(model):
        for batch in batches:
            x, targets = networks.moved(_pair(batch), device)
            outputs = networks.outputs(model, x).double()
            if isinstance(targets, Tensor) and targets.is_floating_point():
                found, targets = None, targets.double()
            if found is not None and isinstance(targets, Tensor) and outputs.dim() <= 2:
                found.append(margins_of_outputs(outputs, targets))
            else:
                found = None
            try:
                losses = [float(loss(f, targets)) for f in (outputs, outputs / product)]
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                let_pass(error)
                shape = tuple(outputs.shape)
                raise DataError(f"the loss failed on outputs {shape}: {error}") from error
            totals += len(outputs) * np.array(losses)
            samples += len(outputs)
    if not samples:
        raise DataError(_NOTHING)
    mean, normalized = (totals / samples).tolist()
    if not np.isfinite(totals).all():
        values = f"{mean}, of the normalised network {normalized}"
        raise NonFiniteError(f"the mean loss is {values}; parameters or data are out of range")
    summary = MarginSummary(np.concatenate(found), product) if found else None
    return Evaluation(samples, mean, normalized, summary)


def _pair(batch: Any) -> tuple[Any, Any]:
    """A batch as inputs and targets."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise DataError(f"a batch is a {type(batch).__name__}; expected a pair (inputs, targets)")
    return batch[0], batch[1]


@dataclass(frozen=True)
class Measurement(Result, derived="product normalized_margin"):
    """One entry of the history of a :class:`NormalizedLoss`.

    Attributes:
        step: Which call it was, from 0.
        samples: How many samples were measured.
        loss: Mean loss of f.
        normalized_loss: Mean loss of f̃ = f/Πρ_k.
        factors: Name of the layer to ρ_k.
        error: Share of samples classified wrongly; None where targets are no class labels.
        margin: Smallest margin of f; None where targets are no class labels.
    """

    step: int
    samples: int
    loss: float
    normalized_loss: float
    factors: Mapping[str, float]
    error: float | None
    margin: float | None

    @property
    def product(self) -> float:
        """Πρ_k."""
        return math.prod(self.factors.values())

    @property
    def normalized_margin(self) -> float | None:
        """Smallest margin of f̃, or None."""
        return None if self.margin is None else self.margin / self.product


class NormalizedLoss:
    """Measures the loss of the normalised network in a training loop of one's own.

    It is what Generalization puzzles (2020) advises practitioners to watch (discussion).

    >>> monitor = NormalizedLoss(model, "cross-entropy")
    >>> for epoch in range(epochs):
    ...     train(model)
    ...     print(monitor(test_loader))

    f̃ = f/Πρ_k, so that nothing is rescaled: the network is run in evaluation mode without
    gradients, and its flags are restored. The data are not copied. Layers are found, and the
    network is checked to be homogeneous, in the first call.

    Args:
        model: The network in training; its parameters are read afresh in every call.
        loss: ``"cross-entropy"``, ``"mse"``, ``"file.py:function"`` or a callable
            (outputs, targets) -> scalar mean over the batch.
        norm: p of the norms of the weights, at least 1.
        every: Measure in every so manieth call, the first included, and give the last value in
            between.
        reference: A fixed image or batch: normalise by the norm of the output on it, as
            :func:`output_normalize`, for networks that are not homogeneous.

    Attributes:
        history: What was measured, in order.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str | Loss = "cross-entropy",
        norm: float = 2,
        every: int = 1,
        reference: Any = None,
    ) -> None:
        self.model = networks.unwrapped(model)
        self.loss = resolve(loss)
        self.norm = _checked_norm(norm)
        self.every = whole("every", every, 1, hint="calls")
        self.reference = reference
        self.history: list[Measurement] = []
        self._calls = 0
        self._layers: tuple[FoldedLayer, ...] | None = None

    def __call__(self, x: Any, y: Any = None) -> float:
        """Measure on a batch, or on all batches of a loader.

        Args:
            x: Inputs; without ``y`` a pair (inputs, targets), or an iterable of such pairs, which
                is gone through once.
            y: Targets.

        Returns:
            Mean loss of the normalised network; the last value where this call is left out.

        Raises:
            DataError: If there are no samples, or it is neither a batch nor a loader.
        """
        step, self._calls = self._calls, self._calls + 1
        if step % self.every and self.history:
            return self.history[-1].normalized_loss
        if y is not None:
            x = [(x, y)]
        elif isinstance(x, tuple | list) and [isinstance(v, ARRAYS) for v in x] == [True, True]:
            x = [x]
        if not hasattr(x, "__iter__"):
            raise DataError(f"got {x!r}; expected inputs and targets, or a loader of them")
        batches = iter(x)
        if self.reference is None and self._layers is None:
            first = next(batches, None)
            if first is None:
                raise DataError(_NOTHING)
            some = networks.take(_pair(first)[0], slice(_CHECKED))
            self._layers = normalize(self.model, some, self.norm).layers
            batches = itertools.chain([first], batches)
        with networks.evaluating(self.model):
            if self._layers is not None:
                factors = layer_factors(effective_weights(self.model, self._layers), self.norm)
            else:
                inputs = networks.moved(self.reference, networks.device_of(self.model))
                factor = output_factor(networks.outputs(self.model, inputs), self.norm)
                factors = {OUTPUT: factor}
        found = evaluate(self.model, batches, self.loss, math.prod(factors.values()))
        margin = None if found.margins is None else found.margins.minimum
        losses = found.samples, found.loss, found.normalized_loss
        self.history.append(Measurement(step, *losses, factors, found.error, margin))
        return found.normalized_loss
