"""Networks to measure: checked inputs, copies in double precision, layers in order of depth.

BatchNorm in evaluation mode is x ↦ s x + t per channel, s = γ/√(σ² + ε), and a layer takes that in,
as Generalization puzzles (2020) does before taking norms ("absorbed into the network's weights and
biases", Fig. 5):

- behind a layer: W ↦ s W, b ↦ s (b - μ) + β;
- in front of it: W ↦ W s, b ↦ b + W t, exact unless zeros are padded.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils import _pytree

from hessrmt.errors import DataError, NoMemoryError, is_out_of_memory, let_pass
from hessrmt.problems.lifting import called
from hessrmt.problems.structure import hooked, reached

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from hessrmt.problems.structure import Hook

LAYERS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
"""Modules with a weight W and a bias b that act as x ↦ W x + b."""

ALTERNATIVE = (
    "Normalise by the norm of the output on a fixed image or batch instead: "
    "hr.generalization.output_normalize(model, inputs), on the command line --by output"
)

_LISTED = 4
ARRAYS = (Tensor, np.ndarray)
_Key = tuple[int, int, int]
"""Storage, size and version of a tensor."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, where DataParallel or torch.compile wraps it.

    Args:
        model: Any module.

    Returns:
        The module inside.

    Raises:
        DataError: If it is no module.
    """
    if not isinstance(model, nn.Module):
        raise DataError(f"the model is a {type(model).__name__}, not a torch.nn.Module")
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(model, parallel) or type(model).__name__ == "OptimizedModule":  # torch.compile
        model = model.module if isinstance(model, parallel) else model.get_submodule("_orig_mod")
    return model


def working_copy(model: nn.Module) -> nn.Module:
    """A copy to compute with: float64, evaluation mode, weights without parametrisations.

    Args:
        model: The network; not changed.

    Returns:
        The copy, on the same device.

    Raises:
        DataError: If it cannot be copied, or a value is NaN, infinite or complex.
    """
    model = unwrapped(model)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        _require_usable(name, value)
    for name, module in model.named_modules():
        hooks = {type(hook).__name__ for hook in module._forward_pre_hooks.values()}
        if hooks & {"WeightNorm", "SpectralNorm"}:
            raise DataError(
                f"{name or 'the model'} has the weight_norm or spectral_norm of torch.nn.utils, "
                "which cannot be copied; remove it (remove_weight_norm, remove_spectral_norm), or "
                "use the one of torch.nn.utils.parametrizations"
            )
    try:
        duplicate = copy.deepcopy(model).double().eval()
    except Exception as error:
        let_pass(error)
        raise DataError(f"the model ({type(model).__name__}) cannot be copied: {error}") from error
    for module in list(duplicate.modules()):
        if parametrize.is_parametrized(module):
            # remove_parametrizations would change the class that the copy shares with its original
            names = module.get_submodule("parametrizations")._modules
            values = {name: getattr(module, name).detach() for name in names}
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value))
    return duplicate


def _require_usable(name: str, value: Tensor) -> None:
    if nn.parameter.is_lazy(value):
        raise DataError(f"{name} has no shape yet; call the model once on a batch first")
    if value.is_inference():
        what = f"{name} was made in torch.inference_mode, where nothing can be traced"
        raise DataError(f"{what}; build and load the model outside (torch.no_grad is enough)")
    if value.is_complex():
        raise DataError(f"{name} is complex ({value.dtype}); expected real numbers")
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        what = f"{name} has {bad} NaN or infinite values out of {value.numel()}"
        raise DataError(f"{what}; the training diverged or the checkpoint is damaged")


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter or buffer; the CPU where there is none."""
    return next((v.device for v in [*model.parameters(), *model.buffers()]), torch.device("cpu"))


def moved(tree: Any, device: torch.device) -> Any:
    """Tensors on a device, as they are otherwise; arrays become tensors that share their memory.

    Returns:
        The same structure.
    """
    return _pytree.tree_map_only(ARRAYS, lambda leaf: torch.as_tensor(leaf).to(device), tree)


def as_inputs(inputs: Any, device: torch.device) -> Any:
    """Inputs as tensors that are ready for a model in double precision.

    Args:
        inputs: Tensor or NumPy array with the batch first, or a tuple or dict of them, passed as
            positional or keyword arguments.
        device: Where to move them.

    Returns:
        The same structure of tensors; integers stay as they are.

    Raises:
        DataError: If there are no samples, or a value is NaN or infinite.
    """

    def ready(leaf: Tensor) -> Tensor:
        if leaf.dim() == 0 or leaf.numel() == 0:
            raise DataError(f"the inputs are empty, of shape {tuple(leaf.shape)}; give samples")
        bad = (~torch.isfinite(leaf)).nonzero()
        if len(bad):
            raise DataError(f"the inputs have NaN or infinite values, first in sample {bad[0, 0]}")
        leaf = leaf.clone() if leaf.is_inference() else leaf.detach()
        return leaf.double() if leaf.is_floating_point() else leaf

    found = _pytree.tree_map_only(Tensor, ready, moved(inputs, device))
    if not any(isinstance(leaf, Tensor) for leaf in _pytree.tree_leaves(found)):
        raise DataError(
            f"the inputs are {type(inputs).__name__}; expected a tensor or array with the batch "
            "first, or a tuple or dict of them"
        )
    return found


def samples_in(inputs: Any) -> int:
    """The first dimension of the first tensor or array in a batch; 0 where there is none."""
    leaves = [leaf for leaf in _pytree.tree_leaves(inputs) if isinstance(leaf, ARRAYS)]
    return len(leaves[0]) if leaves and leaves[0].ndim else 0


def take(inputs: Any, samples: slice) -> Any:
    """Some samples of a batch; views, not copies.

    Returns:
        The same structure of tensors.
    """
    return _pytree.tree_map_only(ARRAYS, lambda leaf: leaf[samples], inputs)


def outputs(
    model: nn.Module, inputs: Any, parameters: Mapping[str, Tensor] | None = None
) -> Tensor:
    """The network's outputs on a batch.

    Args:
        model: The network.
        inputs: From :func:`as_inputs`.
        parameters: Values that take the place of the model's own, by name.

    Returns:
        (B, ...), as the model returns them.

    Raises:
        NoMemoryError: If the batch does not fit into memory.
        DataError: If the model fails or returns no floating-point tensor.
    """

    def run(*arguments: Any, **keywords: Any) -> Any:
        if parameters:
            return functional_call(model, dict(parameters), arguments, keywords)
        return model(*arguments, **keywords)

    try:
        result = called(run, inputs)
    except Exception as error:
        if is_out_of_memory(error):
            where, count = device_of(model), samples_in(inputs)
            raise NoMemoryError(f"{where} has no memory for {count} samples; try fewer") from error
        leaves = [leaf for leaf in _pytree.tree_leaves(inputs) if hasattr(leaf, "shape")]
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"the model failed on inputs of shape {shapes} with {what}") from error
    if not isinstance(result, Tensor) or not result.is_floating_point() or result.dim() == 0:
        got = f"{getattr(result, 'dtype', type(result))} {tuple(getattr(result, 'shape', ()))}"
        raise DataError(
            f"the model returned {got}; expected one real tensor (batch, outputs). Wrap it in a "
            "module that returns its outputs alone"
        )
    return result


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside a ``with`` block; every flag is restored.

    Yields:
        None.
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, training in before:
            module.training = training


def listed(names: Iterable[str]) -> str:
    """A few names in words.

    Returns:
        E.g. ``"a, b and 3 more"``.
    """
    names = list(names)
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


@dataclass(frozen=True)
class FoldedLayer:
    """A layer and the batch normalisations next to it.

    Attributes:
        name: Of the module, as in ``model.named_modules()``.
        before: Names of the BatchNorm modules whose output it takes, in order.
        after: Names of those that take its output, in order.
    """

    name: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name for people; ``model`` where the network is this layer."""
        return self.name or "model"

    @property
    def norms(self) -> tuple[str, ...]:
        """Names of all BatchNorm modules."""
        return (*self.before, *self.after)


def find_layers(network: nn.Module, inputs: Any) -> tuple[tuple[FoldedLayer, ...], Tensor]:
    """Run a network once and note its layers.

    Tensors are followed from layer to BatchNorm to layer by storage and version: a view (Flatten)
    and evaluation-mode Dropout share storage with what they take; an in-place ReLU does too, but
    raises the version.

    Args:
        network: From :func:`working_copy`; its parameters must be leaves, their ``requires_grad``
            is set.
        inputs: A batch.

    Returns:
        Layers in the order in which they were called; (B, ...) outputs of the network.

    Raises:
        DataError: If a weight is used twice, a parameter belongs to no layer, a BatchNorm has no
            fixed statistics or no layer next to it, or there is no layer.
    """
    for value in network.parameters():
        value.requires_grad_(value.is_floating_point())
    modules: dict[str, Any] = dict(network.named_modules())
    calls: list[tuple[Any, ...]] = []  # with the tensors, so that no storage is used again

    def noting(name: str) -> Hook:
        def note(taken: Tensor, out: Tensor) -> Tensor:
            calls.append((name, _key(taken), _key(out), taken, out))
            return out

        return note

    kinds = (*LAYERS, _BatchNorm, nn.PReLU)
    watched = {name: module for name, module in modules.items() if isinstance(module, kinds)}
    with torch.enable_grad(), hooked(watched, noting):
        found = outputs(network, inputs)
    layers: dict[str, FoldedLayer] = {}
    made: dict[_Key, str] = {}  # the layer that an output belongs to
    waiting: dict[_Key, tuple[str, ...]] = {}  # BatchNorms that no layer has taken in yet
    for name, taken, out, *_ in calls:
        if isinstance(modules[name], LAYERS):
            layers[name] = FoldedLayer(name, waiting.get(taken, ()))
            made[out] = name
        elif isinstance(modules[name], _BatchNorm):
            if modules[name].running_mean is None:
                _refuse_fold(name, modules, "keeps no running statistics")
            if taken in made:
                made[out] = made[taken]
                layer = layers[made[out]]
                layers[made[out]] = replace(layer, after=(*layer.after, name))
            else:
                waiting[out] = (*waiting.get(taken, ()), name)
    called = [name for name, *_ in calls]
    own = dict(network.named_parameters())
    used = reached([found], own)
    for name in own:
        holder, _, entry = name.rpartition(".")
        if name in used and (holder not in called or entry not in {"weight", "bias"}):
            raise DataError(
                f"the output depends on the parameter {name} of {_named(holder, modules)}, which "
                "is no weight or bias of a linear, convolution or BatchNorm module that was "
                f"called. {ALTERNATIVE}"
            )
    _refuse_repeated(modules, [n for n in called if not isinstance(modules[n], nn.PReLU)])
    placed = {name for layer in layers.values() for name in layer.norms}
    for name in called:
        if isinstance(modules[name], _BatchNorm) and name not in placed:
            why = "takes no output of a linear or convolution layer, nor gives one its own directly"
            _refuse_fold(name, modules, why)
    if not layers:
        raise DataError(f"the model called no linear or convolution layer. {ALTERNATIVE}")
    return tuple(layers.values()), found.detach()


def _key(tensor: Tensor) -> _Key:
    return tensor.untyped_storage().data_ptr(), tensor.numel(), tensor._version


def _refuse_repeated(modules: Mapping[str, Any], called: list[str]) -> None:
    repeated = [name for name, times in Counter(called).items() if times > 1]
    holders: dict[int, str] = {}
    for name in called:
        first = holders.setdefault(id(modules[name].weight), name)
        if first != name and isinstance(modules[name], LAYERS):
            repeated.append(f"{first} (its weight is also that of {name})")
    if repeated:
        raise DataError(
            f"used more than once in one run of the model: {listed(repeated)}. A shared weight has "
            f"no norm and bias of its own in Πρ_k. {ALTERNATIVE}"
        )


def _named(name: str, modules: Mapping[str, nn.Module]) -> str:
    return f"{name or 'the model'} ({type(modules[name]).__name__})"


def _refuse_fold(name: str, modules: Mapping[str, nn.Module], why: str) -> NoReturn:
    raise DataError(f"{_named(name, modules)} cannot be folded: it {why}. {ALTERNATIVE}")


def folded(layer: FoldedLayer, modules: Mapping[str, nn.Module]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer that does what it and its BatchNorm modules do together.

    Args:
        layer: Names of the layer and of the BatchNorm modules.
        modules: By name, in evaluation mode.

    Returns:
        Float64 weight, in the shape of the layer's, and bias (outputs,) or None.
    """
    module: Any = modules[layer.name]
    weight = module.weight.detach().double()
    bias = None if module.bias is None else module.bias.detach().double()
    groups, transposed = getattr(module, "groups", 1), getattr(module, "transposed", False)
    blocks = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    if transposed:
        blocks = blocks.transpose(1, 2)
    _, outs, ins, _ = blocks.shape  # groups, outputs and inputs of a group, positions
    for name in (*reversed(layer.before), *layer.after):
        in_front = name in layer.before
        shape = (groups, 1, ins, 1) if in_front else (groups, outs, 1, 1)
        scale, mean, shift = _statistics(modules[name])
        if in_front and isinstance(module, nn.Linear) and ins % len(scale) == 0:
            flattened = ins // len(scale)  # positions of each channel
            scale, mean, shift = (v.repeat_interleave(flattened) for v in (scale, mean, shift))
        if len(scale) != math.prod(shape):
            why = f"has {len(scale)} channels, but {layer.label} {math.prod(shape)}"
            _refuse_fold(name, modules, why)
        offset = shift - scale * mean
        if not in_front:
            bias = scale * ((0.0 if bias is None else bias) - mean) + shift
        elif torch.any(offset != 0):
            if _pads_with_zeros(module):
                what = _named(layer.name, modules)
                _refuse_fold(name, modules, f"shifts what {what} then pads with zeros")
            added = (blocks * offset.view(shape)).sum((2, 3)).flatten()
            bias = added if bias is None else bias + added
        blocks = blocks * scale.view(shape)
    if transposed:
        blocks = blocks.transpose(1, 2)
    return blocks.reshape(weight.shape), bias


def _statistics(norm: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Scale γ/√(σ² + ε), mean μ and shift β, each (channels,)."""
    mean = norm.running_mean.detach().double()
    spread = (norm.running_var.detach().double() + norm.eps).sqrt()
    scale = 1 / spread if norm.weight is None else norm.weight.detach().double() / spread
    shift = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().double()
    return scale, mean, shift


def _pads_with_zeros(module: Any) -> bool:
    """Whether a constant input does not give a constant output."""
    if isinstance(module, nn.Linear) or (not module.transposed and module.padding_mode != "zeros"):
        return False
    if isinstance(module.padding, str):
        return module.padding == "same" and max(module.kernel_size) > 1
    return module.transposed or max(module.padding) > 0
