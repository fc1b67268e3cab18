"""What a network is made of, found by running it, not by its name.

A :class:`Layer` is a module z = W u with trainable parameters that enter the loss through its
product alone: a linear layer, a convolution, the affine part of a normalisation. u_b holds what
each of T positions of sample b sees; W mixes the p entries of u into d outputs, separately in each
of g groups. A cotangent of sample b's outputs that arrives at z as δ_b (d, T) gives the row δ_b u_b
(d, p) of the Jacobian (per-sample gradients: Goodfellow 2015).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    from jaxtyping import Float

Hook = Callable[[Tensor, Tensor], Tensor]
"""Maps a layer's input and output to the output that the network goes on with."""

LINEAR = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_TYPES = (*LINEAR, *_CONVOLUTIONS, *_BATCH_NORMS, nn.LayerNorm, nn.GroupNorm)
"""Modules that are such layers, if their normalisation is of fixed statistics."""


@dataclass(frozen=True)
class Layer:
    """One layer z = W u with at least one trainable parameter.

    Attributes:
        name: The module's name.
        module: The module.
        weight: Name of the weight, None if it is not trainable.
        bias: Name of the bias, None if absent or not trainable.
        groups: g.
        outputs: d, outputs of one group.
        width: p, columns of the trainable matrix [W, bias] of one group.
        positions: T; 0 if it was not called once with the batch first.
        inputs: (m, p) all inputs of a linear layer, none of which depends on a trainable parameter;
            else None.
        once_per_sample: Whether it is linear and was called once, on a (B, p) input.
        is_output: Whether its output is the network's output, (B, d).
    """

    name: str
    module: nn.Module
    weight: str | None
    bias: str | None
    groups: int
    outputs: int
    width: int
    positions: int
    inputs: Tensor | None
    once_per_sample: bool
    is_output: bool

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of its trainable parameters."""
        return tuple(name for name in (self.weight, self.bias) if name)

    @property
    def like(self) -> Tensor:
        """A tensor of the precision and in the place of the layer: its weight."""
        return cast("Tensor", self.module.weight)

    @property
    def row(self) -> int:
        """Numbers in one row of the Jacobian, the trainable parameters of the layer."""
        return self.groups * self.outputs * self.width

    @property
    def signal(self) -> int:
        """Numbers in what comes back for one row."""
        return self.groups * self.outputs * self.positions

    @property
    def keeps_rows(self) -> bool:
        """Whether rows take less memory than what they are products of."""
        return self.row <= self.signal

    def augmented(self, inputs: Tensor, constant: float = 1.0) -> Tensor:
        """What the trainable matrix of a linear layer acts on: [a; 1], or its trainable part.

        Args:
            inputs: (..., p).
            constant: What the bias acts on; 0 turns tangents of a into tangents of [a; 1].

        Returns:
            (..., width).
        """
        parts = [inputs] if self.weight else []
        if self.bias:
            parts.append(torch.full_like(inputs[..., :1], constant))
        return torch.cat(parts, dim=-1)

    def features(self, entering: Tensor) -> Float[Tensor, "B g T p"]:
        """What the trainable matrix acts on, u, with a 1 for the bias.

        Args:
            entering: (B, ...) the layer's input.

        Returns:
            (B, g, T, p).
        """
        parts = []
        if self.weight:
            parts.append(_seen(self.module, entering, self.groups))
        if self.bias:
            shape = (len(entering), self.groups, 1, self.positions)
            parts.append(entering.new_ones(()).expand(shape))
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)).mT

    def signals(self, leaving: Tensor) -> Float[Tensor, "B g d T"]:
        """What comes back to z, by groups, outputs and positions.

        Args:
            leaving: (B, ...) derivative in the layer's output.

        Returns:
            (B, g, d, T).
        """
        if isinstance(self.module, nn.Linear | nn.LayerNorm):  # channels last
            leaving = leaving.reshape(len(leaving), self.positions, -1).mT
        return leaving.reshape(len(leaving), self.groups, self.outputs, self.positions)


@dataclass(frozen=True)
class Structure:
    """What one run of the network showed.

    Attributes:
        layers: In the order of execution.
        others: Names of trainable parameters that belong to no layer.
    """

    layers: tuple[Layer, ...]
    others: tuple[str, ...]

    def linear(self) -> Structure:
        """The linear layers alone; what belongs to others counts as outside."""
        layers = tuple(layer for layer in self.layers if isinstance(layer.module, nn.Linear))
        inside = {name for layer in self.layers if layer not in layers for name in layer.parameters}
        return Structure(layers, (*self.others, *inside))


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module.

    Attributes:
        entering: Its first argument.
        leaving: What it gave.
        faithful: Whether that is what its class computes: nobody replaced its ``forward``.
        replaced: What the network went on with.
    """

    entering: Tensor
    leaving: Tensor
    faithful: bool
    replaced: Tensor


def structure_of(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    run: Callable[[dict[str, Tensor]], tuple[Any, list[Tensor]]],
    samples: int,
) -> Structure:
    """Run a network once and find its layers.

    Every layer's output is cut and replaced by a fresh leaf. A parameter that still reaches the
    ends, or what enters a layer, is used elsewhere too (tied, penalised, fused), and its layer is
    none. An input that then depends on no leaf and no parameter is fed by the data.

    Args:
        model: The network.
        parameters: Its trainable parameters by name.
        run: Runs it at given parameters, and returns its outputs and the tensors of interest.
        samples: Length of the batch.

    Returns:
        Its layers, and the parameters outside them.

    Raises:
        OutOfMemoryError: If a device has no room.
    """
    owned = _candidates(model)
    modules = dict(model.named_modules())
    calls: dict[str, list[ModuleCall]] = {}

    def cut(name: str) -> Hook:
        def hook(entering: Tensor, leaving: Tensor) -> Tensor:
            with torch.no_grad():
                plain = type(modules[name]).forward(modules[name], entering)  # type: ignore[arg-type]
                same = plain.shape == leaving.shape and bool(
                    (plain - leaving).abs().max()
                    <= torch.finfo(plain.dtype).eps ** 0.5 * plain.abs().max()
                )
            replaced = leaving.detach().requires_grad_().clone()  # the model may work in place
            kept = entering if entering.requires_grad else entering.detach().clone()
            calls.setdefault(name, []).append(ModuleCall(kept, leaving, same, replaced))
            return replaced

        return hook

    leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    try:
        with hooked({name: modules[name] for name in owned}, cut):
            outputs, ends = run(leaves)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a network that differentiates itself misses what is cut
        return Structure((), tuple(parameters))
    seen = [call.entering for made in calls.values() for call in made]
    elsewhere = reached([*ends, *seen], leaves)
    layers = []
    for name, made in calls.items():
        if not elsewhere & set(owned[name].values()) and all(call.faithful for call in made):
            layers.append(_describe(name, modules[name], owned[name], made, samples, outputs))
    layers = [layer for layer in layers if layer is not None]
    inside = {name for layer in layers for name in layer.parameters}
    return Structure(tuple(layers), tuple(n for n in parameters if n not in inside))


@contextmanager
def hooked(modules: Mapping[str, nn.Module], make: Callable[[str], Hook]) -> Iterator[None]:
    """Replace the outputs of some modules for the time of a ``with`` block, before other hooks.

    Args:
        modules: Name to module.
        make: Makes the hook of a name.

    Yields:
        None.
    """
    with ExitStack() as stack:
        for name, module in modules.items():
            hook = partial(_call, make(name))
            handle = module.register_forward_hook(hook, with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        yield


def _call(hook: Hook, _module: Any, arguments: Any, keywords: Any, leaving: Tensor) -> Tensor:
    return hook(arguments[0] if arguments else next(iter(keywords.values())), leaving)


def in_order(modules: Mapping[str, nn.Module], run: Callable[[], Any]) -> list[str]:
    """Names of modules as a network calls them; those it never calls are left out.

    Args:
        modules: Name to module.
        run: Calls the network.

    Returns:
        Each name once.
    """
    called: dict[str, None] = {}

    def note(name: str) -> Hook:
        def hook(_entering: Tensor, leaving: Tensor) -> Tensor:
            called.setdefault(name)
            return leaving

        return hook

    with hooked(modules, note):
        run()
    return list(called)


def _candidates(model: nn.Module) -> dict[str, dict[str, str]]:
    """Names of modules of known types that share no parameter, with those of their parameters."""
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    found = {}
    for name, module in model.named_modules():
        mine = {
            kind: names[id(p)]
            for kind, p in module._parameters.items()
            if p is not None and id(p) in names
        }
        if type(module) not in _TYPES or not mine or not mine.keys() <= {"weight", "bias"}:
            continue
        if any(uses[id(module._parameters[kind])] > 1 for kind in mine):
            continue
        if isinstance(module, _BATCH_NORMS) and (module.training or module.running_mean is None):
            continue
        found[name] = mine
    return found


def reached(sinks: Iterable[Any], leaves: Mapping[str, Tensor]) -> set[str]:
    """Names of the leaves from which there is a way to one of some tensors.

    Args:
        sinks: The tensors; anything else among them is passed over.
        leaves: Name to leaf.

    Returns:
        The names.
    """
    names = {id(leaf): name for name, leaf in leaves.items()}
    found, seen = set(), set()
    waiting = [s.grad_fn for s in sinks if isinstance(s, Tensor) and s.requires_grad]
    found |= {names[id(s)] for s in sinks if id(s) in names}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found |= {names[id(v)] for v in [getattr(node, "variable", None)] if id(v) in names}
        waiting += [following for following, _ in node.next_functions]
    return found


def _describe(
    name: str,
    module: nn.Module,
    mine: Mapping[str, str],
    calls: list[ModuleCall],
    samples: int,
    outputs: Any,
) -> Layer | None:
    """A layer's dimensions from its calls; None if nothing is known of such a use of it."""
    first = calls[0]
    entering, leaving = first.entering, first.leaving
    linear = isinstance(module, nn.Linear)
    once = len(calls) == 1 and leaving.dim() > 1 and len(entering) == len(leaving) == samples
    groups, count, width = 1, 1, 1
    if isinstance(module, nn.Linear):
        count, width = module.out_features, module.in_features
    elif not once:
        return None
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        if entering.dim() != 2 + _CONVOLUTIONS[type(module)]:
            return None
        groups, width = module.groups, module.weight[0].numel()
        count = module.out_channels // groups
    elif isinstance(module, nn.LayerNorm):
        if entering.dim() <= len(module.normalized_shape):
            return None
        groups = math.prod(module.normalized_shape)
    else:
        groups = entering.shape[1]
    weight, bias = mine.get("weight"), mine.get("bias")
    fed = linear and not any(call.entering.requires_grad for call in calls)
    return Layer(
        name=name,
        module=module,
        weight=weight,
        bias=bias,
        groups=groups,
        outputs=count,
        width=(width if weight else 0) + (1 if bias else 0),
        positions=leaving[0].numel() // (groups * count) if once else 0,
        inputs=torch.cat([call.entering.reshape(-1, width) for call in calls]) if fed else None,
        once_per_sample=linear and once and entering.dim() == 2,
        is_output=outputs is first.replaced and outputs.dim() == 2 and not outputs._version,
    )


def _seen(module: nn.Module, entering: Tensor, groups: int) -> Float[Tensor, "B g p T"]:
    """What the weight of a layer acts on."""
    samples = len(entering)
    if isinstance(module, nn.Linear):
        return entering.reshape(samples, 1, -1, module.in_features).mT
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        padded = F.pad(entering, module._reversed_padding_repeated_twice, mode=mode)
        kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
        if isinstance(module, nn.Conv1d):
            padded = padded.unsqueeze(2)
            kernel, stride, dilation = (1, *kernel), (1, *stride), (1, *dilation)
        columns = F.unfold(padded, kernel, dilation=dilation, stride=stride)
        return columns.view(samples, groups, -1, columns.shape[-1])
    if isinstance(module, nn.LayerNorm):
        normal = F.layer_norm(entering, module.normalized_shape, eps=module.eps)
        return normal.reshape(samples, -1, groups).mT.unsqueeze(2)
    if isinstance(module, nn.GroupNorm):
        normal = F.group_norm(entering, module.num_groups, eps=module.eps)
    else:
        assert isinstance(module, _BATCH_NORMS)
        normal = F.batch_norm(entering, module.running_mean, module.running_var, eps=module.eps)
    return normal.reshape(samples, groups, 1, -1)
