"""What every measurement of a network starts with: checked inputs, double precision, one call."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.utils import _pytree

from hessrmt.errors import DataError, DeviceError, GeneralizationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_OLD_HOOKS = {"WeightNorm", "SpectralNorm"}


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, where DataParallel or torch.compile wraps it.

    Args:
        model: Any module.

    Returns:
        The module inside.

    Raises:
        GeneralizationError: If it is no module.
    """
    if not isinstance(model, nn.Module):
        raise GeneralizationError(
            f"the model is a {type(model).__name__}, not a torch.nn.Module; build it first"
        )
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif type(model).__name__ == "OptimizedModule":  # of torch.compile
            model = model.get_submodule("_orig_mod")
        else:
            return model


def working_copy(model: nn.Module) -> nn.Module:
    """A copy to compute with: float64, evaluation mode, weights without parametrisations.

    Args:
        model: The network; not changed.

    Returns:
        The copy, on the same device.

    Raises:
        GeneralizationError: If it cannot be copied, or a value is NaN, infinite or complex.
    """
    model = unwrapped(model)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(value):
            raise GeneralizationError(
                f"{name} has no shape yet; call the model once on a batch before normalising it"
            )
        if value.is_inference():
            raise GeneralizationError(
                f"{name} was made in torch.inference_mode, where nothing can be traced; build and "
                "load the model outside of it (torch.no_grad is enough)"
            )
        if value.is_complex():
            raise GeneralizationError(f"{name} is complex ({value.dtype}); expected real numbers")
        if value.is_floating_point() and not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            raise GeneralizationError(
                f"{name} has {bad} NaN or infinite values out of {value.numel()}; "
                "the training diverged or the checkpoint is damaged"
            )
    for name, module in model.named_modules():
        if any(type(hook).__name__ in _OLD_HOOKS for hook in module._forward_pre_hooks.values()):
            raise GeneralizationError(
                f"{name or 'the model'} has the weight_norm or spectral_norm of torch.nn.utils, "
                "which cannot be copied; remove it (remove_weight_norm, remove_spectral_norm), or "
                "use the one of torch.nn.utils.parametrizations"
            )
    try:
        duplicate = copy.deepcopy(model).double().eval()
    except Exception as error:
        raise GeneralizationError(
            f"the model ({type(model).__name__}) cannot be copied: {error}"
        ) from error
    for module in list(duplicate.modules()):
        if parametrize.is_parametrized(module):
            _settle(module)
    return duplicate


def _settle(module: nn.Module) -> None:
    """Put computed values in the place of parametrisations.

    ``torch.nn.utils.parametrize.remove_parametrizations`` would also change the class, which the
    copy shares with its original.
    """
    values = {
        name: getattr(module, name).detach()
        for name in module.get_submodule("parametrizations")._modules
    }
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter or buffer; the CPU where there is none."""
    values = [*model.parameters(), *model.buffers()]
    return values[0].device if values else torch.device("cpu")


def as_inputs(inputs: Any, device: torch.device, dtype: torch.dtype = torch.float64) -> Any:
    """Inputs as tensors that are ready for a model.

    Args:
        inputs: Tensor or NumPy array with the batch first, or a tuple or dict of them, passed as
            positional or keyword arguments.
        device: Where to move them.
        dtype: Of floating-point inputs; integers stay as they are.

    Returns:
        The same structure of tensors.

    Raises:
        DataError: If there are no samples, or a value is NaN or infinite.
    """

    def move(leaf: Any) -> Any:
        leaf = torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.dim() == 0 or leaf.numel() == 0:
            raise DataError(
                f"the inputs are empty (shape {tuple(leaf.shape)}); give a batch of real samples"
            )
        leaf = leaf.clone() if leaf.is_inference() else leaf.detach()
        if not leaf.is_floating_point():
            return leaf.to(device)
        if not torch.isfinite(leaf).all():
            row = int((~torch.isfinite(leaf)).nonzero()[0, 0])
            raise DataError(f"the inputs have NaN or infinite values, first in sample {row}")
        return leaf.to(device=device, dtype=dtype)

    moved = _pytree.tree_map(move, inputs)
    if not any(isinstance(leaf, Tensor) for leaf in _pytree.tree_leaves(moved)):
        raise DataError(
            f"the inputs are {type(inputs).__name__}; expected a tensor or array with the batch "
            "first, or a tuple or dict of them"
        )
    return moved


def moved(tree: Any, device: torch.device) -> Any:
    """Tensors on a device, as they are otherwise; arrays become tensors that share their memory.

    Returns:
        The same structure.
    """

    def move(leaf: Any) -> Any:
        leaf = torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf
        return leaf.to(device) if isinstance(leaf, Tensor) else leaf

    return _pytree.tree_map(move, tree)


def samples_in(inputs: Any) -> int:
    """Length of a batch.

    Returns:
        The first dimension of the first tensor.
    """
    leaves = _pytree.tree_leaves(inputs)
    return next(len(leaf) for leaf in leaves if isinstance(leaf, Tensor | np.ndarray))


def take(inputs: Any, samples: slice) -> Any:
    """Some samples of a batch; views, not copies.

    Returns:
        The same structure of tensors.
    """
    arrays = (Tensor, np.ndarray)
    return _pytree.tree_map(
        lambda leaf: leaf[samples] if isinstance(leaf, arrays) else leaf, inputs
    )


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
        DeviceError: If the batch does not fit into memory.
        GeneralizationError: If the model fails or returns no floating-point tensor.
    """
    arguments, keywords = (inputs,), {}
    if isinstance(inputs, tuple | list):
        arguments = tuple(inputs)
    elif isinstance(inputs, dict):
        arguments, keywords = (), inputs
    try:
        if parameters:
            result = functional_call(model, dict(parameters), arguments, keywords)
        else:
            result = model(*arguments, **keywords)
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"{device_of(model)} has too little memory for {samples_in(inputs)} samples at a time; "
            "try a smaller batch"
        ) from error
    except Exception as error:
        shapes = [
            tuple(leaf.shape) for leaf in _pytree.tree_leaves(inputs) if hasattr(leaf, "shape")
        ]
        raise GeneralizationError(
            f"the model failed on inputs of shape {', '.join(map(str, shapes))} with "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(result, Tensor) or not result.is_floating_point() or result.dim() == 0:
        got = (
            f"{result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result)
        )
        raise GeneralizationError(
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
    before = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in before.items():
            module.training = training
