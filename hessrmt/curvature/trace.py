"""Where the trainable parameters act: found by running the network, not by its name.

A *site* is a ``torch.nn.Linear`` whose weight and bias enter the loss through that layer's product
alone. Every site's output is cut and replaced by a fresh leaf; a parameter that still reaches the
loss is used elsewhere (tied, penalised, fused), and its layer is no site. An input that then
depends on no leaf and no trainable parameter is fed by the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from hessrmt.problems.problem import Problem

Hook = Callable[[Tensor, Tensor], Tensor]
"""Maps a layer's input and output to the output that the network goes on with."""

_LINEAR_TYPES = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)


@dataclass(frozen=True)
class Site:
    """One linear layer z = W a + b, its trainable part seen as one matrix [W, b] acting on [a; 1].

    Attributes:
        name: The module's name.
        weight: Name of the weight, None if it is not trainable.
        bias: Name of the bias, None if absent or not trainable.
        fan_out: Number of outputs d.
        fan_in: Number of inputs p.
        inputs: (m, p) all inputs it received.
        fed_by_data: Whether they are independent of every trainable parameter.
        once_per_sample: Whether it was called once, on a (B, p) input.
        is_output: Whether its output is the network's output.
    """

    name: str
    weight: str | None
    bias: str | None
    fan_out: int
    fan_in: int
    inputs: Tensor
    fed_by_data: bool
    once_per_sample: bool
    is_output: bool

    @property
    def width(self) -> int:
        """Columns of the trainable matrix [W, b]."""
        return (self.fan_in if self.weight else 0) + (1 if self.bias else 0)

    def features(self, inputs: Tensor, constant: float = 1.0) -> Tensor:
        """What the trainable matrix acts on: [a; 1], or the part that has a trainable factor.

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


@dataclass(frozen=True)
class Trace:
    """What one run of the network showed.

    Attributes:
        sites: Linear layers in the order of execution.
        others: Names of trainable parameters that belong to no site.
    """

    sites: tuple[Site, ...]
    others: tuple[str, ...]


def trace(problem: Problem) -> Trace:
    """Find the sites of a problem.

    Args:
        problem: In its final precision and place.

    Returns:
        The sites, and the parameters outside them.

    Raises:
        OutOfMemoryError: If a device has no room.
    """
    owners = {id(p): name for name, p in problem.model.named_parameters() if p.requires_grad}
    candidates: dict[str, nn.Linear] = {}
    uses: dict[str, int] = {}
    for name, module in problem.model.named_modules():
        found = _own_parameters(module, owners)
        if found is not None and any(found):
            assert isinstance(module, nn.Linear)
            candidates[name] = module
            for parameter in filter(None, found):
                uses[parameter] = uses.get(parameter, 0) + 1
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}  # in the order of execution

    def cut(name: str) -> Hook:
        def hook(entering: Tensor, leaving: Tensor) -> Tensor:
            cut_off = leaving.detach().requires_grad_().clone()  # the model may work in place
            calls.setdefault(name, []).append((entering, cut_off))
            return cut_off

        return hook

    pieces = problem.unflatten(problem.theta.requires_grad_())
    try:
        with hooked(candidates, cut):
            outputs = problem.call(pieces)
            loss = problem.loss_of_outputs(outputs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a network that differentiates itself misses what is cut
        return Trace((), problem.names)
    elsewhere = _reaching(loss, pieces)
    sites = []
    for name, made in calls.items():
        module = candidates[name]
        weight, bias = _own_parameters(module, owners) or (None, None)
        mine = {parameter for parameter in (weight, bias) if parameter}
        if mine & elsewhere or any(uses[p] > 1 for p in mine):
            continue
        seen = [arguments for arguments, _ in made]
        sites.append(
            Site(
                name=name,
                weight=weight,
                bias=bias,
                fan_out=module.out_features,
                fan_in=module.in_features,
                inputs=torch.cat([a.detach().reshape(-1, a.shape[-1]) for a in seen]),
                fed_by_data=not any(a.requires_grad for a in seen),
                once_per_sample=len(seen) == 1
                and seen[0].dim() == 2
                and seen[0].shape[0] == problem.samples,
                is_output=outputs is made[0][1] and outputs.dim() == 2 and not outputs._version,
            )
        )
    claimed = {p for site in sites for p in (site.weight, site.bias) if p}
    return Trace(tuple(sites), tuple(n for n in problem.names if n not in claimed))


@contextmanager
def hooked(modules: Mapping[str, nn.Module], make: Callable[[str], Hook]) -> Iterator[None]:
    """Replace the outputs of some linear layers for the time of a ``with`` block.

    Args:
        modules: Name to module.
        make: Makes the hook of a name.

    Yields:
        None.
    """

    def adapted(hook: Hook) -> Callable[..., Tensor]:
        def forward_hook(
            _module: nn.Module, arguments: tuple[Tensor, ...], keywords: dict, output: Tensor
        ) -> Tensor:
            return hook(arguments[0] if arguments else keywords["input"], output)

        return forward_hook

    with ExitStack() as stack:
        for name, module in modules.items():
            handle = module.register_forward_hook(adapted(make(name)), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _own_parameters(
    module: nn.Module, owners: dict[int, str]
) -> tuple[str | None, str | None] | None:
    """Names of a linear layer's trainable weight and bias; None for any other module."""
    if type(module) not in _LINEAR_TYPES:
        return None
    weight, bias = (module._parameters.get(kind) for kind in ("weight", "bias"))
    return owners.get(id(weight)), owners.get(id(bias))


def _reaching(loss: Tensor, pieces: dict[str, Tensor]) -> set[str]:
    """Names of the parameters on which the loss still depends."""
    if not loss.requires_grad:
        return set()
    gradients = torch.autograd.grad(loss, list(pieces.values()), allow_unused=True)
    return {name for name, g in zip(pieces, gradients, strict=True) if g is not None}
