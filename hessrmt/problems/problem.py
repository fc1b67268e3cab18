"""A model, a loss and a batch of data as one function θ ↦ loss of the flat parameter vector."""

from __future__ import annotations

import copy
import fnmatch
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree

from hessrmt import rng
from hessrmt.arrays import fetched
from hessrmt.errors import HessrmtError, NonFiniteError, ProblemError, let_pass
from hessrmt.problems.batches import Batch, Intercepting, join, map_tensors, read_data, tensors_of
from hessrmt.problems.differentiation import gradient_vector, ordinary_mode
from hessrmt.problems.equivalents import cross_entropy
from hessrmt.problems.lifting import Inside, called, require_wide, running
from hessrmt.problems.losses import Loss, penalised, resolve
from hessrmt.problems.own import Beside, Own, named_tensors, near
from hessrmt.problems.plugins import explained
from hessrmt.problems.structure import Structure, reached, structure_of

if TYPE_CHECKING:
    from hessrmt.arrays import Vector

_FEWEST_DIGITS = 2.0**-6
"""A few units of bfloat16, in which some networks compute inside whatever their parameters are."""

_EVALUATION_ULPS = 64
"""Two evaluations may differ by so many ulps (summation order); randomness differs by far more."""


def find_structure(problem: Problem, *, of_loss: bool = True) -> Structure:
    """Run the network once and find its layers.

    Args:
        problem: In its final precision and place.
        of_loss: Whether parameters matter that reach the loss, or those that reach the outputs.

    Returns:
        Its layers; all other parameters belong to none.
    """

    def run(parameters: dict[str, Tensor]) -> tuple[Any, list[Tensor]]:
        with problem.reached_everywhere(parameters):
            outputs = problem.call(parameters)
            ends = [problem.loss_of_outputs(outputs)] if of_loss else tensors_of(outputs)
            return outputs, ends

    return structure_of(problem.model, problem.unflatten(problem.theta), run, problem.samples)


class Problem:
    """The loss of a network on a batch, as a function of its trainable parameters.

    The user's model is copied, never changed. Parameters with ``requires_grad=False`` are
    constants. Parameters that the loss does not use are kept: their curvature is exactly zero.

    Args:
        model: Any ``torch.nn.Module``; of ``DistributedDataParallel`` the module inside.
        loss: ``"cross-entropy"``, ``"mse"`` (the mean over samples of the *sum* over outputs of
            squares: K times ``nn.MSELoss`` for K outputs), ``"next-token"`` (of a language model,
            whose targets are the tokens), ``"file.py:function"`` or a callable (outputs, targets)
            -> scalar mean over the batch.
        data: Inputs and targets, each a tensor or NumPy array with the batch first. Inputs may
            also be a tuple or a dict-like object of them, passed as positional or keyword
            arguments; tensors whose first axis is not the batch's belong to all samples (see
            :func:`hessrmt.shared`). Or a ``DataLoader`` of such pairs, or of dict-like batches with
            their targets under ``labels``: it is read once and kept in memory as one batch.
        only: The parameters to take: a pattern (``*``, ``?``) of their names, a regular expression
            that matches them as a whole, or a list of either; all others are constants, so that the
            Hessian is that block's.
        l2: The loss gets l2 ‖θ‖² / 2 of all trainable parameters, as from the ``weight_decay`` of
            torch's optimisers: the Hessian gets l2 times the identity.

    Attributes:
        dimension: P, the number of trainable parameters.
        names: Names of the trainable parameters, in ``model.parameters()`` order.
        loss_name: The loss in words.
        loss_function: The callable.
        batch: The samples.
        held_elsewhere: Whether parameters are reached in other ways than through their modules.
        origin: The problem of which :meth:`at` has made it.
        inside: Precisions in which the network computes inside, and what it does to its data.

    Raises:
        ProblemError: If nothing is trainable or matches, a parameter is NaN or infinite, or `l2` is
            not a positive number.
        DataError: If inputs and targets are empty, of different lengths, NaN or infinite, or
            labels do not fit the outputs.
    """

    @ordinary_mode()
    def __init__(
        self,
        model: nn.Module,
        loss: str | Loss,
        data: Any,
        *,
        only: str | re.Pattern[str] | Sequence[str] | None = None,
        l2: float = 0.0,
    ) -> None:
        if not isinstance(model, nn.Module):
            if isinstance(model, type):
                name = model.__name__
                raise ProblemError(f"the model is the class {name}; make one of it: {name}(...)")
            raise ProblemError(f"the model is a {type(model).__name__}, not a torch.nn.Module")
        model = _of_one_process(model)
        self.batch = read_data(data)
        uncopied = "the model cannot be copied, since it holds something that cannot"
        with explained((RuntimeError, TypeError), uncopied, ()):
            self.model = _copied_module(model)
        self.loss_name = loss if isinstance(loss, str) else getattr(loss, "__name__", repr(loss))
        own_loss = self.loss_function = resolve(loss)
        if l2:
            own_loss = self.loss_function = penalised(own_loss, model, l2)
            self.loss_name += f" + {l2:g} ‖θ‖² / 2"
        if isinstance(own_loss, nn.Module):
            self.loss_function = _copied_module(own_loss).requires_grad_(False)
        self._take(only)
        _check_finite_parameters(self.model)
        self.own = Own(model, own_loss)
        self.held_elsewhere = False
        self.origin: Problem | None = None
        self.inside = Inside(self.own.dtype)

    def _take(self, only: str | re.Pattern[str] | Sequence[str] | None) -> None:
        """Make the parameters that match the trainable ones."""
        trainable = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if not trainable:
            raise ProblemError(
                "the model has no trainable parameters; set requires_grad=True on those whose "
                "curvature you want"
            )
        if only is not None:
            matching = _matching(only, trainable)
            if not matching:
                raise ProblemError(
                    f"no trainable parameter matches {only!r}; there are {', '.join(trainable)}"
                )
            for name in trainable.keys() - matching:
                trainable.pop(name).requires_grad_(False)
        self.names = tuple(trainable)
        owner = {id(p): name for name, p in trainable.items()}
        self._aliases = {
            f"{place}.{kind}".lstrip("."): owner[id(parameter)]
            for place, module in self.model.named_modules()
            for kind, parameter in module._parameters.items()
            if id(parameter) in owner
        }
        self._padded = {
            owner[id(module.weight)]
            for module in self.model.modules()
            if isinstance(module, nn.Embedding) and module.padding_idx is not None
            if id(module.weight) in owner
        }
        self._shapes = [p.shape for p in trainable.values()]
        self._sizes = [p.numel() for p in trainable.values()]
        self.dimension = sum(self._sizes)

    @ordinary_mode()
    def restricted(self, only: str | re.Pattern[str] | Sequence[str]) -> Problem:
        """The problem in which some of the parameters are constants.

        Args:
            only: Which are not, as for the class.

        Returns:
            A problem of fewer dimensions.
        """
        found = self._twin(model=_copied_module(self.model))
        found._take(only)
        return found

    @cached_property
    def structure(self) -> Structure:
        """The layers that own the trainable parameters, found by running the network once."""
        with ordinary_mode():
            return find_structure(self)

    @property
    def inputs(self) -> Any:
        """What the network is called with: a dict holds keyword arguments, a tuple positional."""
        return self.batch.inputs

    @property
    def targets(self) -> Any:
        """What the loss compares the outputs with."""
        return self.batch.targets

    @property
    def samples(self) -> int:
        """B, the length of the batch."""
        return self.batch.samples

    @property
    def theta(self) -> Vector:
        """The trainable parameters as one flat vector (P,), a copy."""
        found = map(self.model.get_parameter, self.names)
        return torch.cat([value.detach().reshape(-1) for value in found])

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the parameters."""
        return self.model.get_parameter(self.names[0]).dtype

    @ordinary_mode()
    def at(self, dtype: torch.dtype, device: torch.device) -> Problem:
        """A copy of the problem in another precision and on another device.

        Args:
            dtype: Floating-point type of parameters, buffers, inputs and real targets.
            device: Where the copy lives.

        Returns:
            The copy.
        """

        def move(leaf: Any) -> Any:
            return _moved(leaf, dtype, device) if isinstance(leaf, Tensor) else leaf

        # Module.to would drop the imaginary part of complex buffers
        model, loss = _copied_module(self.model)._apply(move), self.loss_function
        if isinstance(loss, nn.Module):  # class weights move along
            loss = _copied_module(loss)._apply(move).requires_grad_(False)
        # of a copy of a copy, what the first was rounded to would be unknown
        changes = {"loss_function": loss, "origin": None if self.origin else self}
        return self._twin(model=model, batch=self.batch.map(move), **changes)

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
        own = tuple((parameters[n], self.model.get_parameter(n)) for n in self._padded)
        with (
            self.reached_everywhere(parameters),
            running(self.inside, self.dtype, self.inputs, own=own) as inputs,
        ):
            return called(partial(self.run, parameters), inputs)

    def run(self, parameters: dict[str, Tensor], *arguments: Any, **keywords: Any) -> Any:
        """The network at named trainable parameters, without anything else.

        Args:
            parameters: Name to tensor.
            arguments: Of the network.
            keywords: Likewise.

        Returns:
            Whatever the model returns.
        """
        # by hand: torch's own ties break a module that stands in two places
        given = {alias: parameters[name] for alias, name in self._aliases.items()}
        return functional_call(self.model, given, arguments, keywords, tie_weights=False)

    @contextmanager
    def reached_everywhere(self, parameters: dict[str, Tensor]) -> Iterator[None]:
        """Replace parameters that are held in lists, in other objects or by the loss too.

        Args:
            parameters: Name of a trainable parameter to what takes its place.

        Yields:
            None.
        """
        if not self.held_elsewhere:
            yield
            return
        others = {
            id(value): parameters[name]
            for model in (self.model, self.own.model)
            for name, value in model.named_parameters()
            if name in parameters
        }

        def replaced(function: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
            tree = (arguments, keywords)
            arguments, keywords = _pytree.tree_map(lambda x: others.get(id(x), x), tree)
            return function(*arguments, **keywords)

        with Intercepting(replaced):
            yield

    def _twin(self, **changes: Any) -> Problem:
        """A copy that shares everything but what was found out by running the network."""
        twin = copy.copy(self)
        twin.__dict__.pop("structure", None)
        twin.__dict__.update({"origin": None} | changes)
        return twin

    @ordinary_mode()
    def current(self) -> Problem:
        """The problem at the parameters and buffers that the user's model has by now.

        Modes (training or evaluation), samples and loss are those of this problem.

        Returns:
            A problem of its own, which later training does not change.

        Raises:
            ProblemError: If the model has lost a parameter, or one is NaN or infinite.
        """
        model, own = _copied_module(self.model), named_tensors(self.own.model)
        for name, tensor in named_tensors(model).items():
            value = own.get(name)
            if value is None or value.shape != tensor.shape:
                raise ProblemError(f"{name} of the model is no longer what it was; track it anew")
            tensor.data.copy_(value.detach())
        _check_finite_parameters(model)
        loss = self.own.loss
        if isinstance(loss, nn.Module):  # whose weights may have changed, too
            return self._twin(model=model, loss_function=_copied_module(loss).requires_grad_(False))
        return self._twin(model=model)

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
        return self._twin(batch=self.batch.part(samples))

    def on(self, batch: Batch) -> Problem:
        """The problem of other samples.

        Args:
            batch: In any precision and place.

        Returns:
            A problem that shares the model.
        """
        device = self.theta.device
        return self._twin(batch=batch.map(lambda leaf: _moved(leaf, self.dtype, device)))

    @cached_property
    def is_sum(self) -> bool:
        """Whether the loss is a sum over samples, not a mean; False also where it is zero."""
        return bool(self.doubles())

    def doubles(self) -> bool | None:
        """Whether the loss of the same samples taken twice is twice as large.

        Returns:
            None if it cannot be told, since the loss is zero or not a number.

        """
        twice = join([self.batch, self.batch])
        if twice is None:
            return False
        try:
            with torch.no_grad():
                once, both = (float(p.loss(self.theta)) for p in (self, self.on(twice)))
        except Exception as error:  # it cannot be run on a part of the batch
            let_pass(error)
            return False
        if not once or not math.isfinite(once):
            return None
        return abs(both - 2 * once) < abs(both - once)

    def total(self, masses: Sequence[float]) -> float:
        """What the sum Σ m_j L_j over batches has to be divided by."""
        return 1.0 if self.is_sum else sum(masses)

    def loss_of_outputs(self, outputs: Any, *, check: bool = False) -> Tensor:
        """The scalar loss of given outputs on the batch's targets.

        Cross-entropy is computed in a form whose derivatives keep all digits.

        Args:
            outputs: What the network gives.
            check: Whether to look at the values of class labels.

        Returns:
            A scalar tensor.
        """
        if self.loss_function is F.cross_entropy:  # what the other way would lead to
            return cross_entropy(outputs, self.targets, check=check)
        with running(self.inside, self.dtype, self.targets, check=check) as targets:
            return self.loss_function(outputs, targets)

    def losses(self, parameters: dict[str, Tensor], which: Sequence[int]) -> Tensor:
        """The losses of some samples, each as if it were a batch of its own.

        Args:
            parameters: Name of a trainable parameter to tensor.
            which: Numbers of the samples.

        Returns:
            One for each.
        """
        parts = [self.part(slice(b, b + 1)) for b in which]
        with self.reached_everywhere(parameters):
            outputs = self.call(parameters)
            if isinstance(outputs, Tensor) and outputs.dim() and len(outputs) == self.samples:
                rows = zip(parts, (outputs[b : b + 1] for b in which), strict=True)
                return torch.stack([part.loss_of_outputs(row).reshape(()) for part, row in rows])
        return torch.stack([part.loss_with(parameters).reshape(()) for part in parts])

    def loss(self, theta: Vector) -> Tensor:
        """The scalar mean loss of the batch at parameters ``theta`` (P,).

        Returns:
            A scalar tensor.
        """
        return self.loss_with(self.unflatten(theta))

    def loss_with(self, parameters: dict[str, Tensor], *, check: bool = False) -> Tensor:
        """The scalar mean loss of the batch at named trainable parameters.

        Args:
            parameters: Name to tensor.
            check: Whether to look at the values of class labels.

        Returns:
            A scalar tensor.
        """
        with self.reached_everywhere(parameters):
            return self.loss_of_outputs(self.call(parameters), check=check)

    @ordinary_mode()
    def evaluate(self, *, compare: bool = True) -> tuple[float, float]:
        """Loss and gradient norm at the current parameters, after checking that both exist.

        Args:
            compare: Whether the copy that is differentiated is compared with the user's own model.

        Returns:
            The mean loss and the Euclidean norm of its gradient.

        Raises:
            ProblemError: If the loss is random, changes the model, is not a scalar, fails, does not
                depend on the parameters as far as torch sees, or is not that of the user's model.
            DataError: If class labels do not fit the outputs.
            NonFiniteError: If the loss or its gradient is NaN or infinite.
            HessrmtError: Other errors of ours pass.
        """
        _refuse_random_layers(self.model)
        # before the copy has been run: it may keep what it makes
        beside = self.own.beside(self) if compare else None
        theta = self.theta.requires_grad_()
        with explained(Exception, "evaluating the loss failed", HessrmtError):
            inside = replace(self.inside, keeps_data=True)
            trial = self._twin(batch=self.batch.map(Tensor.clone), inside=inside)
            loss = trial.loss_with(self.unflatten(theta), check=True)
            # on copies, since whether it works on its data in place is known only below
            again = self._twin(inside=replace(self.inside, keeps_data=False)).loss(theta)
            pairs = zip(trial.batch.tensors(), self.batch.tensors(), strict=True)
            same = [_equal(a, b) for a, b in pairs if a.layout == torch.strided]
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            found = type(loss).__name__
            if isinstance(loss, Tensor):
                without = f"a number of type {loss.dtype}, which has no derivatives"
                found = without if loss.numel() == 1 else str(tuple(loss.shape))
            raise ProblemError(
                f"the loss {self.loss_name!r} returned {found}; it must return one number, the "
                "mean over the batch"
            )
        value, second, *left = map(float, fetched(loss.reshape(()), again.reshape(()), *same))
        self.inside.keeps_data = all(left) and self.inside.keeps_data is not False
        if not math.isfinite(value):
            raise NonFiniteError(f"the loss is {value} at these parameters")
        epsilon = max(torch.finfo(kind).eps for kind in (loss.dtype, self.dtype))
        if abs(value - second) > _EVALUATION_ULPS * epsilon * abs(value):
            raise ProblemError(
                f"the loss is not deterministic: two evaluations gave {value!r} and "
                f"{second!r}. Call model.eval(), and remove dropout, noise and random "
                "augmentation: a Hessian needs one fixed function"
            )
        if compare and self._require_own_loss(value, beside):
            loss = self.loss(theta)
        if self.dtype == torch.float64:
            require_wide(loss)
        if not loss.requires_grad:
            draw = rng.torch_generator(0, "other parameters")
            other = torch.randn(len(theta), generator=draw, dtype=torch.float64)
            with torch.no_grad():
                changed = float(self.loss(other.to(theta))) != value
            if changed:
                raise ProblemError(
                    "the loss changes with the parameters, but torch sees no way from them to it: "
                    "the forward pass runs under torch.no_grad(), detaches its result, works on "
                    ".data or goes through NumPy. So it has no derivatives; take that out"
                )
        norm = float(gradient_vector(loss, [theta]).norm())
        if not math.isfinite(norm):
            raise NonFiniteError(f"the gradient's norm is {norm} at these parameters")
        return value, norm

    def _require_own_loss(self, value: float, found: Beside | None) -> bool:
        """Refuse a copy that is another function than the user's own model and loss.

        Both are evaluated in the model's own precision, by the same kernels: what differs then is
        no rounding.

        Args:
            value: The loss in the precision of the computation.
            found: From :meth:`Own.beside`.

        Returns:
            Whether parameters turned out to be held elsewhere than in their modules, and from now
            on are replaced there too.

        Raises:
            ProblemError: If loss or gradient differ.
        """
        own = self.own
        if found is None:  # what the copy itself does can still be asked
            if self._loss_reaches(own.model):
                raise ProblemError(
                    "the loss holds parameters of a model that cannot be run beside its copy; make "
                    "the problem anew, with parameters that require gradients"
                )
            own = Own(self.model, self.loss_function)
            found = own.beside(self)
        if found is None:
            return False
        loss, again, theirs, mine, gap, size = found
        self.inside.own_loss = loss
        digits = most = max(torch.finfo(kind).eps for kind in (own.dtype, self.dtype)) ** 0.5
        # where the copy agrees in the model's own precision, a part may have still fewer digits
        if near(loss, again, digits):
            kinds = [kind for kind in self.inside.lifted if kind.is_floating_point]
            least = max((torch.finfo(kind).eps ** 0.5 for kind in kinds), default=digits)
            most = max(digits, min(_FEWEST_DIGITS, least))
        allowed = digits * size
        loss_differs = not near(loss, value, most)
        if not loss_differs and not gap > allowed:
            return False
        repeated = own.beside(self)
        if repeated and not near(loss, repeated.loss, digits):
            raise ProblemError(
                f"the loss of the model as it is given is not deterministic: it is {loss!r} and "
                f"then {repeated.loss!r}. If the model draws something when it is first called, "
                "call it once before the problem is made"
            )
        scatter = math.inf if repeated is None else 10 * float((repeated.theirs - theirs).norm())
        if not loss_differs and gap <= scatter:
            return False  # sums in another order every time, of a gradient that is all round-off
        if not self.held_elsewhere:
            self.held_elsewhere = True
            everywhere = own.beside(self)
            with torch.no_grad():
                now = float(self.loss(self.theta))
            self.held_elsewhere = bool(
                everywhere and everywhere.gap <= allowed and near(loss, now, most)
            )
            if self.held_elsewhere:
                return True
        if loss_differs:
            raise ProblemError(
                f"the loss of the model as it is given is {loss!r}; computed on a copy of it in "
                f"{str(self.dtype).removeprefix('torch.')} it is {value!r}. The copy is another "
                "function: some part of the model does not survive being copied or cast, or has "
                "changed since the problem was made"
            )
        one, other = self.unflatten(theirs), self.unflatten(mine)
        name = max(self.names, key=lambda n: float((one[n] - other[n]).norm()))
        why = (
            "the loss depends on it in another way than through the model's outputs"
            if bool(other[name].any())
            else "it is reached by another way than as a parameter of its module"
        )
        raise ProblemError(
            f"the gradient of the loss in {name} is another one for the model as it is given (norm "
            f"{float(one[name].norm()):.6g}) than for the copy that is differentiated "
            f"({float(other[name].norm()):.6g}): {why}. Register parameters in nn.ParameterList or "
            "nn.ModuleList, and give the loss as a function of outputs and targets alone"
        )

    def _loss_reaches(self, model: nn.Module) -> set[str]:
        """Names of the parameters of a model that the loss holds itself."""
        with torch.no_grad():
            outputs = self.outputs(self.theta)
        loss = self.loss_of_outputs(outputs)
        return reached([loss], dict(model.named_parameters()))

    def require_loss_of_outputs_alone(self) -> None:
        """Refuse a loss that is no function of the outputs, for what is defined by them.

        Raises:
            ProblemError: If the loss holds parameters of the model.
        """
        if self.held_elsewhere and self._loss_reaches(self.own.model):
            raise ProblemError(
                "the Gauss-Newton matrix belongs to a loss that depends on the parameters through "
                "the outputs alone, and this one holds parameters of the model itself; take its "
                "Hessian, or leave that term out and add its Hessian to the matrix"
            )


def _equal(one: Tensor, other: Tensor) -> Tensor:
    """Whether all numbers of two tensors are equal, known on their device."""
    same = one.shape == other.shape
    return (one == other).all() if same else one.new_zeros((), dtype=torch.bool)


def _moved(leaf: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor in another precision and place; integers stay integers, complex numbers complex."""
    if leaf.is_complex():
        dtype = torch.complex(*torch.zeros(2, dtype=dtype)).dtype
    elif not leaf.is_floating_point():
        dtype = leaf.dtype
    found = leaf.to(device=device, dtype=dtype)
    return found.clone() if found.is_inference() else found


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is spread over the ranks of ``torch.distributed``.

    Args:
        tensor: Any.

    Returns:
        Whether it is a DTensor; torch's module for them need not be loaded for that.
    """
    return hasattr(tensor, "full_tensor")


def _of_one_process(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, or a refusal of parameters in pieces."""
    if isinstance(model, DistributedDataParallel):
        model = model.module
    if any(type(part).__name__ == "FullyShardedDataParallel" for part in model.modules()):
        raise ProblemError(
            "the model is wrapped in FullyShardedDataParallel, which hides its parameters; use "
            "torch.distributed.fsdp.fully_shard, or give the module before it was wrapped"
        )
    sharded = [name for name, tensor in named_tensors(model).items() if is_sharded(tensor)]
    if sharded:
        raise ProblemError(
            f"{sharded[0]} is spread over several processes; give the model to "
            "hr.CurvatureOperator(model, loss, batches, group=torch.distributed.group.WORLD), "
            "which gathers it on every rank"
        )
    return model


def _copied_module(module: nn.Module) -> Any:
    """A copy; a tensor that was computed from others, such as a kept activation, is a constant."""
    return map_tensors(module, lambda tensor: tensor.detach().clone())


def _matching(only: str | re.Pattern[str] | Sequence[str], names: Iterable[str]) -> set[str]:
    """Names that a pattern, a regular expression or a list of them stands for."""
    if isinstance(only, re.Pattern):
        return {name for name in names if only.fullmatch(name)}
    if not isinstance(only, Iterable):
        raise ProblemError(f"parameters are given by a pattern or a list of them, not {only!r}")
    if not isinstance(only, str):
        return set().union(*(_matching(part, names) for part in only))
    found = {only} & set(names) or set(fnmatch.filter(names, only))
    with suppress(re.error):
        return found or _matching(re.compile(only), names)
    return found


def _check_finite_parameters(model: nn.Module) -> None:
    for name, value in named_tensors(model).items():
        if not value.is_floating_point() and not value.is_complex():
            continue
        # constants may be infinite: masks are
        found = (~torch.isfinite(value) if value.requires_grad else torch.isnan(value)).sum()
        try:
            bad = int(found)
        except (NotImplementedError, RuntimeError) as error:
            if not value.is_meta:
                raise
            raise ProblemError(
                f"{name} is on the meta device, where tensors have no values; make the model on a "
                "real device, and load its weights"
            ) from error
        if bad:
            what = "NaN or infinite" if value.requires_grad else "NaN"
            raise ProblemError(f"{name} has {bad} {what} values out of {value.numel()}")


def _refuse_random_layers(model: nn.Module) -> None:
    for name, module in model.named_modules():
        why = ""
        if isinstance(module, _BatchNorm):
            why = "BatchNorm in training mode: it couples the samples of a batch and updates its "
            why += "statistics at every evaluation"
        elif isinstance(module, _DropoutNd) and module.p > 0:
            why = f"Dropout (p = {module.p}) in training mode: the loss is random"
        if why and module.training:
            where = f"layer {name!r}" if name else "the model"
            raise ProblemError(f"{where} is {why}. Call model.eval() first")
