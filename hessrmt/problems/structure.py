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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hessrmt.arrays import fetched
from hessrmt.errors import let_pass

if TYPE_CHECKING:
    from jaxtyping import Float

Hook = Callable[[Tensor, Tensor], Tensor]
"""Maps a layer's input and output to the output that the network goes on with."""

LINEAR = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_TYPES = (*LINEAR, *_CONVOLUTIONS, *_BATCH_NORMS, nn.LayerNorm, nn.GroupNorm)
"""Modules that are such layers, if their normalisation is of fixed statistics."""


@dataclass(frozen=True)
class Layer:
    """One layer z = W u with at least one trainable parameter.

    Attributes:
        name: The module's name.
        module: The module.
        parameters: Its trainable parameters: ``"weight"`` and ``"bias"``, in this order, to their
            names.
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
    parameters: Mapping[str, str]
    groups: int
    outputs: int
    width: int
    positions: int
    inputs: Tensor | None
    once_per_sample: bool
    is_output: bool

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

    def augmented(self, inputs: Tensor, constant: float = 1.0, axis: int = -1) -> Tensor:
        """What the trainable matrix acts on: [a; 1], or its trainable part.

        Args:
            inputs: a, what the weight acts on.
            constant: What the bias acts on; 0 turns tangents of a into tangents of [a; 1].
            axis: Along which a has p entries.

        Returns:
            Of length ``width`` along that axis.
        """
        parts = [inputs] if "weight" in self.parameters else []
        if "bias" in self.parameters:
            parts.append(torch.full_like(inputs.narrow(axis, 0, 1), constant))
        return parts[0] if len(parts) == 1 else torch.cat(parts, axis)

    def features(self, entering: Tensor) -> Float[Tensor, "B g T p"]:
        """What the trainable matrix acts on, u, with a 1 for the bias.

        Args:
            entering: (B, ...) the layer's input.

        Returns:
            (B, g, T, p).
        """
        return self.augmented(_seen(self.module, entering, self.groups), axis=2).mT

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


Structure = tuple[Layer, ...]
"""The layers that one run of a network showed, in the order of execution."""

_Call = tuple[Tensor, Tensor, Tensor]
"""The first argument of one call of a module, what it gave, what the network went on with."""


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
        Its layers; all other parameters belong to none.

    """
    owned = _candidates(model)
    modules = dict(model.named_modules())
    calls: dict[str, list[_Call]] = {}
    unfaithful = set()  # somebody has replaced their ``forward``
    near: list[tuple[str, Tensor]] = []  # whether it gave what the plain one gives

    def cut(name: str, entering: Tensor, leaving: Tensor) -> Tensor:
        with torch.no_grad():
            plain = type(modules[name]).forward(modules[name], entering)  # type: ignore[arg-type]
            if plain.shape == leaving.shape:
                allowed = torch.finfo(plain.dtype).eps ** 0.5 * plain.abs().max()
                near.append((name, (plain - leaving).abs().max() <= allowed))
            else:
                unfaithful.add(name)
        replaced = leaving.detach().requires_grad_().clone()  # the model may work in place
        kept = entering if entering.requires_grad else entering.detach().clone()
        calls.setdefault(name, []).append((kept, leaving, replaced))
        return replaced

    leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    try:
        with hooked({name: modules[name] for name in owned}, lambda name: partial(cut, name)):
            outputs, ends = run(leaves)
    except RuntimeError as error:  # a network that differentiates itself misses what is cut
        let_pass(error)
        return ()
    if near:
        names, same = zip(*near, strict=True)
        pairs = zip(names, fetched(*same), strict=True)
        unfaithful |= {name for name, plain in pairs if not plain}
    entering = [call[0] for made in calls.values() for call in made]
    elsewhere = reached([*ends, *entering], leaves)
    layers = [
        _describe(name, modules[name], owned[name], made, samples, outputs)
        for name, made in calls.items()
        if name not in unfaithful and elsewhere.isdisjoint(owned[name].values())
    ]
    return tuple(layer for layer in layers if layer is not None)


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

    def note(name: str, _entering: Tensor, leaving: Tensor) -> Tensor:
        called.setdefault(name)
        return leaving

    with hooked(modules, lambda name: partial(note, name)):
        run()
    return list(called)


def _candidates(model: nn.Module) -> dict[str, dict[str, str]]:
    """Names of modules of known types that share no parameter, with those of their parameters."""
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    found = {}
    for name, module in model.named_modules():
        own = module._parameters
        pairs = sorted(own.items(), reverse=True)  # the weight, then the bias
        mine = {kind: names[id(p)] for kind, p in pairs if id(p) in names}
        shared = any(uses[id(own[kind])] > 1 for kind in mine)
        moving = isinstance(module, _BATCH_NORMS) and (
            module.training or module.running_mean is None
        )
        known = type(module) in _TYPES and mine and mine.keys() <= {"weight", "bias"}
        if known and not shared and not moving:
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
    calls: list[_Call],
    samples: int,
    outputs: Any,
) -> Layer | None:
    """A layer's dimensions from its calls; None if nothing is known of such a use of it."""
    entering, leaving, replaced = calls[0]
    once = len(calls) == 1 and leaving.dim() > 1 and len(entering) == len(leaving) == samples
    groups, count, width, inputs = 1, 1, 1, None
    linear = isinstance(module, nn.Linear)
    if isinstance(module, nn.Linear):
        count, width = module.out_features, module.in_features
        if not any(given.requires_grad for given, *_ in calls):
            inputs = torch.cat([given.reshape(-1, width) for given, *_ in calls])
    elif not once:
        return None
    elif isinstance(module, _CONVOLUTIONS):
        if entering.dim() != module.weight.dim():
            return None
        groups, width = module.groups, module.weight[0].numel()
        count = module.out_channels // groups
    elif isinstance(module, nn.LayerNorm):
        if entering.dim() <= len(module.normalized_shape):
            return None
        groups = math.prod(module.normalized_shape)
    else:
        groups = entering.shape[1]
    return Layer(
        name=name,
        module=module,
        parameters=mine,
        groups=groups,
        outputs=count,
        width=width * ("weight" in mine) + ("bias" in mine),
        positions=leaving[0].numel() // (groups * count) if once else 0,
        inputs=inputs,
        once_per_sample=linear and once and entering.dim() == 2,
        is_output=outputs is replaced and outputs.dim() == 2 and not outputs._version,
    )


def _seen(module: nn.Module, entering: Tensor, groups: int) -> Float[Tensor, "B g p T"]:
    """What the weight of a layer acts on."""
    samples = len(entering)
    if isinstance(module, nn.Linear):
        return entering.reshape(samples, 1, -1, module.in_features).mT
    if isinstance(module, _CONVOLUTIONS):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        padded = F.pad(entering, module._reversed_padding_repeated_twice, mode=mode)
        padded = padded.unsqueeze(2) if padded.dim() == 3 else padded  # F.unfold knows images
        sizes = (module.kernel_size, module.stride, module.dilation)
        kernel, stride, dilation = ((1, *given)[-2:] for given in sizes)
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
