"""The layers of a network in the order of their depth, found by running it once with hooks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hessrmt.errors import GeneralizationError
from hessrmt.generalization.networks import outputs
from hessrmt.problems.structure import hooked

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hessrmt.problems.structure import Hook

LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
"""Modules with a weight W and a bias b that act as x ↦ W x + b."""

ALTERNATIVE = (
    "Normalise by the norm of the output on a fixed image or batch instead: "
    "hr.generalization.output_normalize(model, inputs), on the command line --by output"
)

_LISTED = 4


@dataclass(frozen=True)
class Layer:
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


@dataclass(frozen=True, eq=False)
class Trace:
    """What one run of a network showed.

    Attributes:
        layers: In the order in which they were called.
        outputs: (B, ...) of the network.
    """

    layers: tuple[Layer, ...]
    outputs: Tensor


def listed(names: Iterable[str]) -> str:
    """A few names in words.

    Returns:
        E.g. ``"a, b and 3 more"``.
    """
    names = list(names)
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def trace(network: nn.Module, inputs: Any) -> Trace:
    """Run a network once and note its layers.

    Args:
        network: From :func:`~hessrmt.generalization.networks.working_copy`; its parameters must be
            leaves, their ``requires_grad`` is set.
        inputs: A batch.

    Returns:
        Layers and outputs.

    Raises:
        GeneralizationError: If a weight is used twice, a parameter belongs to no layer, a
            BatchNorm has no fixed statistics or no layer next to it, or there is no layer.
    """
    for value in network.parameters():
        value.requires_grad_(value.is_floating_point())
    recorder = _Recorder()
    kinds = (*LAYERS, _BatchNorm, nn.PReLU)
    watched = {name: m for name, m in network.named_modules() if isinstance(m, kinds)}
    with torch.enable_grad(), hooked(watched, partial(recorder.hook, watched)):
        found = outputs(network, inputs)
    _refuse_unknown_parameters(network, found, recorder.seen)
    modules = dict(network.named_modules())
    _refuse_repeated(modules, recorder)
    if recorder.unplaced:
        name = recorder.unplaced[0]
        raise GeneralizationError(
            f"{name or 'the model'} ({type(modules[name]).__name__}) cannot be folded: it neither "
            "takes the output of a linear or convolution layer nor gives its own to one "
            f"directly. {ALTERNATIVE}"
        )
    if not recorder.order:
        raise GeneralizationError(
            f"the model ({type(network).__name__}) called no linear or convolution layer on these "
            f"inputs, so there is nothing to normalise. {ALTERNATIVE}"
        )
    layers = tuple(
        Layer(name, tuple(recorder.before.get(name, ())), tuple(recorder.after.get(name, ())))
        for name in recorder.order
    )
    return Trace(layers, found.detach())


@dataclass
class _Recorder:
    """Follows tensors from layer to BatchNorm to layer by storage and version.

    A view (Flatten) and evaluation-mode Dropout share storage with what they take; an in-place
    ReLU does too, but raises the version.
    """

    order: list[str] = field(default_factory=list)
    before: dict[str, list[str]] = field(default_factory=dict)
    after: dict[str, list[str]] = field(default_factory=dict)
    norms: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    made: dict[tuple[int, int, int], str] = field(default_factory=dict)
    waiting: dict[tuple[int, int, int], list[str]] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)

    @property
    def unplaced(self) -> list[str]:
        """BatchNorm modules that no layer can take in."""
        placed = {n for names in (*self.before.values(), *self.after.values()) for n in names}
        return [name for name in self.norms if name not in placed]

    def hook(self, modules: Mapping[str, nn.Module], name: str) -> Hook:
        module = modules[name]

        def note(taken: Tensor, out: Tensor) -> Tensor:
            self.seen.add(name)
            self.alive += [out, taken]  # so that no storage is used again
            if isinstance(module, _BatchNorm):
                self._norm(name, module, _key(taken), _key(out))
            elif isinstance(module, LAYERS):
                self.order.append(name)
                if _key(taken) in self.waiting:
                    self.before[name] = self.waiting[_key(taken)]
                self.made[_key(out)] = name
            return out

        return note

    def _norm(
        self, name: str, module: _BatchNorm, taken: tuple[int, int, int], out: tuple[int, int, int]
    ) -> None:
        if module.running_mean is None:
            raise GeneralizationError(
                f"{name or 'the model'} ({type(module).__name__}) keeps no running statistics, so "
                "its output depends on the whole batch and cannot be folded into a layer. "
                f"{ALTERNATIVE}"
            )
        self.norms.append(name)
        if taken in self.made:
            self.after.setdefault(self.made[taken], []).append(name)
            self.made[out] = self.made[taken]
        else:
            self.waiting[out] = [*self.waiting.get(taken, ()), name]


def _key(tensor: Tensor) -> tuple[int, int, int]:
    return tensor.untyped_storage().data_ptr(), tensor.numel(), tensor._version


def _refuse_unknown_parameters(network: nn.Module, found: Tensor, seen: set[str]) -> None:
    used = _leaves(found)
    modules = dict(network.named_modules())
    for name, value in network.named_parameters():
        holder, _, entry = name.rpartition(".")
        if id(value) not in used or (holder in seen and entry in {"weight", "bias"}):
            continue
        raise GeneralizationError(
            f"the output depends on the parameter {name} of {holder or 'the model'} "
            f"({type(modules[holder]).__name__}), which is no weight or bias of a linear, "
            f"convolution or BatchNorm module that was called. {ALTERNATIVE}"
        )


def _leaves(found: Tensor) -> set[int]:
    """Identities of the tensors that a result was computed from, by its graph."""
    nodes, seen, leaves = [found.grad_fn], set(), set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)  # that of a node that accumulates gradients
        if variable is not None:
            leaves.add(id(variable))
        nodes += [following for following, _ in node.next_functions]
    return leaves


def _refuse_repeated(modules: dict[str, nn.Module], recorder: _Recorder) -> None:
    repeated = [n for n, times in Counter([*recorder.order, *recorder.norms]).items() if times > 1]
    holders: dict[int, str] = {}
    for name in dict.fromkeys(recorder.order):
        first = holders.setdefault(id(modules[name].weight), name)
        if first != name:
            repeated.append(f"{first} (its weight is also that of {name})")
    if repeated:
        raise GeneralizationError(
            f"used more than once in one run of the model: {listed(repeated)}. A shared weight has "
            f"no norm and bias of its own in Πρ_k. {ALTERNATIVE}"
        )
