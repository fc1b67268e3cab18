"""A model, a loss and a batch of data as one function θ ↦ loss of the flat parameter vector."""

from __future__ import annotations

import copy
import fnmatch
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from hessrmt import rng
from hessrmt.errors import DataError, NonFiniteError, ProblemError
from hessrmt.problems.losses import (
    LOSSES,
    Loss,
    cross_entropy_in_full_digits,
    is_plain_cross_entropy,
    resolve,
)

if TYPE_CHECKING:
    from hessrmt.arrays import Vector

_FEWEST_DIGITS = 2.0**-6
"""A few units of bfloat16, in which some networks compute inside whatever their parameters are."""

_EVALUATION_ULPS = 64
"""Two evaluations may differ by so many ulps (summation order); randomness differs by far more."""


@contextmanager
def ordinary_mode() -> Iterator[None]:
    """Gradients on, inference mode and mixed precision off, whatever mode the caller is in.

    Also a decorator, of every public function that differentiates. Under ``torch.no_grad()`` every
    second derivative would silently be zero. What torch cannot do becomes an error of ours here.

    Yields:
        None.

    Raises:
        ProblemError: If torch raises an error.
        OutOfMemoryError: If a device has no room.
    """
    try:
        with (
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # NotImplementedError is one
        said = str(error).strip().split("\n")[0]
        raise ProblemError(
            f"torch cannot differentiate this loss as it must be: {type(error).__name__}: {said}"
        ) from error


class Problem:
    """The loss of a network on a batch, as a function of its trainable parameters.

    The user's model is copied, never changed. Parameters with ``requires_grad=False`` are
    constants. Parameters that the loss does not use are kept: their curvature is exactly zero.

    Args:
        model: Any ``torch.nn.Module``.
        loss: ``"cross-entropy"``, ``"mse"``, ``"file.py:function"`` or a callable
            (outputs, targets) -> scalar mean over the batch.
        data: Inputs and targets, each a tensor or NumPy array with the batch first. Inputs may
            also be a tuple or dict of them, passed as positional or keyword arguments.
        only: Pattern (``*``, ``?``) of the parameter names to take; all others are constants, so
            that the Hessian is that block's.

    Attributes:
        dimension: P, the number of trainable parameters.
        names: Names of the trainable parameters, in ``model.parameters()`` order.
        loss_name: The loss in words.
        loss_function: The callable.
        samples: B, the length of the batch.

    Raises:
        ProblemError: If nothing is trainable or matches, or a parameter is NaN or infinite.
        DataError: If inputs and targets are empty, of different lengths, NaN or infinite, or
            labels do not fit the outputs.
    """

    @ordinary_mode()
    def __init__(
        self,
        model: nn.Module,
        loss: str | Loss,
        data: tuple[Any, Any],
        *,
        only: str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ProblemError(f"the model is a {type(model).__name__}, not a torch.nn.Module")
        try:
            inputs, targets = data
        except (TypeError, ValueError) as error:
            raise DataError("data must be a pair (inputs, targets)") from error
        try:
            self.model = copy.deepcopy(model)
        except RuntimeError as error:
            raise ProblemError(
                "the model cannot be copied, since it holds a tensor that was computed from others "
                "(a pruned layer, weight_norm of older kind, a kept activation): make that "
                "permanent (torch.nn.utils.prune.remove, remove_weight_norm) or don't keep it: "
                f"{str(error).splitlines()[0]}"
            ) from error
        _hold_padding(self.model)
        self.loss_name = loss if isinstance(loss, str) else getattr(loss, "__name__", repr(loss))
        self.loss_function = resolve(loss)
        self.inputs = _pytree.tree_map(_tensor, inputs)
        self.targets = _pytree.tree_map(_tensor, targets)
        trainable = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if not trainable:
            raise ProblemError(
                "the model has no trainable parameters; set requires_grad=True on those whose "
                "curvature you want"
            )
        if only is not None:
            matching = fnmatch.filter(trainable, only)
            if not matching:
                raise ProblemError(
                    f"no trainable parameter matches {only!r}; there are {', '.join(trainable)}"
                )
            for name in trainable.keys() - matching:
                trainable[name].requires_grad_(False)
            trainable = {name: trainable[name] for name in matching}
        self.names = tuple(trainable)
        self._shapes = [p.shape for p in trainable.values()]
        self._sizes = [p.numel() for p in trainable.values()]
        self.dimension = sum(self._sizes)
        _check_finite_parameters(self.model)
        self.samples = _check_data(self.inputs, self.targets)
        self.own: Own | None = Own(model, self.loss_function)
        # seen once: losses are also traced, where no decision may depend on values
        self._no_label_left_out = isinstance(self.targets, Tensor) and bool(
            (self.targets >= 0).all()
        )

    @property
    def theta(self) -> Vector:
        """The trainable parameters as one flat vector (P,), a copy."""
        found = dict(self.model.named_parameters())
        return torch.cat([found[name].detach().reshape(-1) for name in self.names])

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the parameters."""
        return dict(self.model.named_parameters())[self.names[0]].dtype

    @ordinary_mode()
    def at(self, dtype: torch.dtype, device: torch.device) -> Problem:
        """A copy of the problem in another precision and on another device.

        Args:
            dtype: Floating-point type of parameters, buffers, inputs and real targets.
            device: Where the copy lives.

        Returns:
            The copy.
        """
        moved = copy.copy(self)

        def move(leaf: Any) -> Any:
            return _moved(leaf, dtype, device) if isinstance(leaf, Tensor) else leaf

        # Module.to would drop the imaginary part of complex buffers
        moved.model = copy.deepcopy(self.model)._apply(move)
        moved.inputs = _pytree.tree_map(move, self.inputs)
        moved.targets = _pytree.tree_map(move, self.targets)
        if isinstance(self.loss_function, nn.Module):  # class weights move along
            moved.loss_function = copy.deepcopy(self.loss_function)._apply(move)
        return moved

    def unflatten(self, theta: Vector) -> dict[str, Tensor]:
        """Flat vector (P,) to named parameters.

        Returns:
            Parameter name to tensor, views of ``theta``.
        """
        pieces = theta.split(self._sizes)
        return {
            name: piece.view(shape)
            for name, piece, shape in zip(self.names, pieces, self._shapes, strict=True)
        }

    def outputs(self, theta: Vector) -> Any:
        """The network's outputs on the batch at parameters ``theta`` (P,).

        Returns:
            Whatever the model returns, usually (B, K).
        """
        return self.call(self.unflatten(theta))

    def call(self, parameters: dict[str, Tensor]) -> Any:
        """The network's outputs on the batch at named trainable parameters.

        Returns:
            Whatever the model returns, usually (B, K).
        """

        def model(*arguments: Any, **keywords: Any) -> Any:
            return functional_call(self.model, parameters, arguments, keywords)

        return _call(model, self.inputs)

    def places(self) -> dict[str, slice]:
        """Where each trainable parameter lies in θ.

        Returns:
            Parameter name to its slice of the flat vector.
        """
        ends = itertools.accumulate(self._sizes)
        pairs = zip(self.names, ends, self._sizes, strict=True)
        return {name: slice(end - size, end) for name, end, size in pairs}

    def part(self, samples: slice) -> Problem:
        """The problem of some of the batch's samples.

        Args:
            samples: Which.

        Returns:
            A problem that shares the model.
        """
        part = copy.copy(self)

        def take(leaf: Any) -> Any:
            return leaf[samples] if isinstance(leaf, Tensor) else leaf

        part.inputs = _pytree.tree_map(take, self.inputs)
        part.targets = _pytree.tree_map(take, self.targets)
        part.samples = len(range(*samples.indices(self.samples)))
        return part

    def loss_of_outputs(self, outputs: Any) -> Tensor:
        """The scalar loss of given outputs on the batch's targets.

        Plain cross-entropy is computed in a form whose derivatives keep all digits.

        Returns:
            A scalar tensor.
        """
        if self._no_label_left_out and is_plain_cross_entropy(
            self.loss_function, outputs, self.targets
        ):
            return cross_entropy_in_full_digits(outputs, self.targets)
        with _Equivalents():
            return self.loss_function(outputs, self.targets)

    def loss(self, theta: Vector) -> Tensor:
        """The scalar mean loss of the batch at parameters ``theta`` (P,).

        Returns:
            A scalar tensor.
        """
        return self.loss_of_outputs(self.outputs(theta))

    @ordinary_mode()
    def evaluate(self) -> tuple[float, float]:
        """Loss and gradient norm at the current parameters, after checking that both exist.

        Before anything else the copy that is differentiated is compared with the user's own model.

        Returns:
            The mean loss and the Euclidean norm of its gradient.

        Raises:
            ProblemError: If the loss is random, changes the model, is not a scalar, fails, does not
                depend on the parameters as far as torch sees, or is not that of the user's model.
            DataError: If class labels do not fit the outputs.
            NonFiniteError: If the loss or its gradient is NaN or infinite.
        """
        _refuse_random_layers(self.model)
        theta = self.theta.requires_grad_()
        try:
            outputs = self.outputs(theta)
            self._check_labels(outputs)
            loss = self.loss_of_outputs(outputs)
            again = self.loss(theta.detach())
        except (DataError, ProblemError):
            raise
        except Exception as error:
            raise ProblemError(
                f"evaluating the loss failed with {type(error).__name__}: {error}"
            ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ProblemError(
                f"the loss {self.loss_name!r} returned {shape}; it must return one number, "
                "the mean over the batch"
            )
        value, second = float(loss.detach()), float(again.detach())
        if not math.isfinite(value):
            raise NonFiniteError(f"the loss is {value} at these parameters")
        if abs(value - second) > _EVALUATION_ULPS * torch.finfo(loss.dtype).eps * abs(value):
            raise ProblemError(
                f"the loss is not deterministic: two evaluations gave {value!r} and "
                f"{second!r}. Call model.eval(), and remove dropout, noise and random "
                "augmentation: a Hessian needs one fixed function"
            )
        if not loss.requires_grad and self._changes(value):
            raise ProblemError(
                "the loss changes with the parameters, but torch sees no way from them to it: the "
                "forward pass runs under torch.no_grad(), detaches its result, works on .data "
                "or goes through NumPy. So it has no derivatives; take that out"
            )
        gradient = (
            torch.autograd.grad(loss, theta, allow_unused=True)[0] if loss.requires_grad else None
        )
        norm = 0.0 if gradient is None else float(gradient.norm())
        if not math.isfinite(norm):
            raise NonFiniteError(f"the gradient's norm is {norm} at these parameters")
        self._require_own_loss(value)
        return value, norm

    def _changes(self, value: float) -> bool:
        """Whether the loss is another one at other parameters."""
        theta = self.theta
        draw = rng.torch_generator(0, "other parameters")
        other = torch.randn(len(theta), generator=draw, dtype=torch.float64)
        with torch.no_grad():
            return float(self.loss(other.to(theta))) != value

    def _require_own_loss(self, value: float) -> None:
        """Refuse a copy that is another function than the user's own model and loss.

        Both are evaluated in the model's own precision, by the same kernels: what differs then is
        no rounding.

        Args:
            value: The loss in the precision of the computation.

        Raises:
            ProblemError: If loss or gradient differ.
        """
        found = None if self.own is None else self.own.beside(self)
        if self.own is None or found is None:
            return
        loss, again, theirs, mine = found
        digits = max(torch.finfo(kind).eps for kind in (self.own.dtype, self.dtype)) ** 0.5
        same = abs(loss - again) <= digits * (1 + abs(loss))
        # where the copy agrees in the model's own precision, a part may have still fewer digits
        most = max(digits, _FEWEST_DIGITS) if same else digits
        if abs(loss - value) > most * (1 + abs(loss)):
            raise ProblemError(
                f"the loss of the model as it is given is {loss!r}; computed on a copy of it in "
                f"{str(self.dtype).removeprefix('torch.')} it is {value!r}. The copy is another "
                "function: some part of the model does not survive being copied or cast"
            )
        allowed = digits * max(float(theirs.norm()), float(mine.norm()))
        gap = float((theirs - mine).norm())
        if not gap > allowed:
            return
        repeated = self.own.beside(self)
        if repeated is None or gap <= 10 * float((repeated[2] - theirs).norm()):
            return  # sums in another order every time, of a gradient that is all round-off
        parts = zip(self.unflatten(theirs).items(), self.unflatten(mine).values(), strict=True)
        name, one, other = max(
            ((name, one, other) for (name, one), other in parts),
            key=lambda part: float((part[1] - part[2]).norm()),
        )
        why = (
            "the loss depends on it in another way than through the model's outputs"
            if bool(other.any())
            else "it is reached by another way than as a parameter of its module: through a list, "
            "a dict, an attribute of another object, or by the loss itself"
        )
        raise ProblemError(
            f"the gradient of the loss in {name} is another one for the model as it is given (norm "
            f"{float(one.norm()):.6g}) than for the copy that is differentiated "
            f"({float(other.norm()):.6g}): {why}. Register parameters in nn.ParameterList or "
            "nn.ModuleList, and give the loss as a function of outputs and targets alone"
        )

    def _check_labels(self, outputs: Any) -> None:
        """Refuse class labels that cross-entropy would index out of bounds."""
        if self.loss_function is not LOSSES["cross-entropy"] or not isinstance(
            self.targets, Tensor
        ):
            return
        if self.targets.is_floating_point() or not isinstance(outputs, Tensor):
            return
        if outputs.dim() < 2:
            raise ProblemError(
                f"cross-entropy needs outputs (batch, classes), got shape {tuple(outputs.shape)}"
            )
        low, high = int(self.targets.min()), int(self.targets.max())
        if low < 0 or high >= outputs.shape[1]:
            raise DataError(
                f"labels run from {low} to {high}, but the model has {outputs.shape[1]} outputs; "
                f"labels must lie in 0..{outputs.shape[1] - 1}"
            )


class Own:
    """The user's own model and loss: called, its buffers put back, never changed.

    Args:
        model: As it was given.
        loss: The callable.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self._model, self._loss = model, loss

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the model."""
        return next(p.dtype for p in self._model.parameters() if p.is_floating_point())

    def beside(self, problem: Problem) -> tuple[float, float, Vector, Vector] | None:
        """What the user's model and a problem's copy of it say of the problem's data.

        Both in the precision and the place of the user's, by the user's form of the loss.

        Args:
            problem: Whose parameters are asked for.

        Returns:
            The losses and the gradients (P,) of the user's model and of the copy. None if the model
            can't be run as it is, is no longer what was copied, or its numbers overflow.

        Raises:
            OutOfMemoryError: If the device has no room for it.
        """
        parameters = dict(self._model.named_parameters())
        copies = dict(problem.model.named_parameters())
        if parameters.keys() != copies.keys() or not all(
            bool((parameters[name].detach().to(copy.device, copy.dtype) == copy).all())
            for name, copy in copies.items()
        ):
            return None  # trained further since
        wanted = [parameters[name] for name in problem.names]
        if not all(p.requires_grad and not p.is_inference() for p in wanted):
            return None
        if any(p._backward_hooks for p in wanted):
            return None  # what the user makes of a gradient is no gradient
        kept = [(b, b.clone()) for b in self._model.buffers() if not b.is_inference()]
        try:
            copied = problem.at(self.dtype, wanted[0].device)
            loss = self._loss(_call(self._model, copied.inputs), copied.targets)
            theta = copied.theta.requires_grad_()
            again = copied.loss_function(copied.outputs(theta), copied.targets)
            slopes = [_gradient(loss, wanted), _gradient(again, [theta])]
        except torch.OutOfMemoryError:
            raise
        except Exception:  # as it is given it can't be run: there is nothing to compare with
            return None
        finally:
            with torch.no_grad():
                for buffer, before in kept:
                    buffer.copy_(before)
        if not all(bool(torch.isfinite(part).all()) for part in (loss, *slopes)):
            return None
        return float(loss.detach()), float(again.detach()), slopes[0], slopes[1]


def _gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Vector:
    """The gradient as one vector; zeros where there is no way to a parameter."""
    found = [torch.zeros_like(p) for p in parameters]
    if loss.requires_grad:
        found = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
    return torch.cat([part.detach().reshape(-1) for part in found])


def _call(model: Callable[..., Any], inputs: Any) -> Any:
    """A network on a batch: a tuple is positional, a dict keyword arguments."""
    arguments, keywords = (inputs,), {}
    if isinstance(inputs, tuple | list):
        arguments = tuple(inputs)
    elif isinstance(inputs, dict):
        arguments, keywords = (), inputs
    with _twice_differentiable():
        return model(*arguments, **keywords)


def _moved(leaf: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor in another precision and place; integers stay integers, complex numbers complex."""
    if leaf.is_complex():
        dtype = torch.complex(*torch.zeros(2, dtype=dtype)).dtype
    elif not leaf.is_floating_point():
        dtype = leaf.dtype
    found = leaf.to(device=device, dtype=dtype)
    return found.clone() if found.is_inference() else found


class _Equivalents(TorchFunctionMode):
    """Operations that torch cannot differentiate twice in every way, by those that it can."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        return _EQUIVALENT.get(function, function)(*arguments, **(keywords or {}))


def _squared_error(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    **more: Any,
) -> Tensor:
    """``F.mse_loss``, whose own derivative has a tangent that kills torch's tracer."""
    if any(option is not None for option in (size_average, reduce, *more.values())):
        return F.mse_loss(input, target, size_average, reduce, reduction, **more)
    if input.shape != target.shape:
        raise ProblemError(
            f"mean squared error of outputs of shape {tuple(input.shape)} against targets of shape "
            f"{tuple(target.shape)}: torch would compare every output with every target; give both "
            "the same shape"
        )
    squares = (input - target).square()
    return {"mean": squares.mean, "sum": squares.sum}.get(reduction, lambda: squares)()


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: ARG001
    return F.relu6(input + 3) / 6


def _hardswish(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: ARG001
    return input * F.relu6(input + 3) / 6


_EQUIVALENT = {
    F.mse_loss: _squared_error,
    F.hardsigmoid: _hardsigmoid,
    F.hardswish: _hardswish,
}


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Attention through torch's math kernel: the fused ones have no second derivative; and others.

    Yields:
        None.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _Equivalents():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def _tensor(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach()
    return torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf


def _hold_padding(model: nn.Module) -> None:
    """Make a constant of what embeddings give for padding: torch leaves it out of the gradient.

    Otherwise the loss would change along a row in which it has no derivative.
    """

    def hook(module: Any, arguments: Any, keywords: Any, rows: Tensor) -> Tensor:
        ids = arguments[0] if arguments else keywords["input"]
        return torch.where((ids == module.padding_idx)[..., None], module.padding_row, rows)

    for module in model.modules():
        if type(module) is nn.Embedding and module.padding_idx is not None:
            row = module.weight.detach()[module.padding_idx].clone()
            module.register_buffer("padding_row", row, persistent=False)
            module.register_forward_hook(hook, with_kwargs=True, prepend=True)


def _check_finite_parameters(model: nn.Module) -> None:
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point() and not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            raise ProblemError(f"{name} has {bad} NaN or infinite values out of {value.numel()}")


def _check_data(inputs: Any, targets: Any) -> int:
    """Number of samples, after checking lengths and finiteness."""
    lengths: set[int] = set()
    for what, tree in (("inputs", inputs), ("targets", targets)):
        for leaf in _pytree.tree_leaves(tree):
            if not isinstance(leaf, Tensor):
                continue
            if leaf.dim() == 0 or leaf.numel() == 0:
                raise DataError(f"the {what} are empty (shape {tuple(leaf.shape)})")
            if leaf.is_floating_point() and not torch.isfinite(leaf).all():
                row = int((~torch.isfinite(leaf)).nonzero()[0, 0])
                raise DataError(f"the {what} have NaN or infinite values, first in sample {row}")
            lengths.add(leaf.shape[0])
    if len(lengths) != 1:
        raise DataError(
            f"inputs and targets must have one common batch length, found {sorted(lengths)}"
        )
    return lengths.pop()


def _refuse_random_layers(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if not module.training:
            continue
        if isinstance(module, _BatchNorm):
            raise ProblemError(
                f"{name or 'the model'} is BatchNorm in training mode: it couples the samples of "
                "a batch and updates its statistics at every evaluation. Call model.eval() first"
            )
        if isinstance(module, _DropoutNd) and module.p > 0:
            raise ProblemError(
                f"{name or 'the model'} is Dropout (p = {module.p}) in training mode: the loss is "
                "random. Call model.eval() first"
            )
