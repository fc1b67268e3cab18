"""Averages of the iterates of a training run: over all of it (Polyak), or over its end (tail).

w_avg = (1/n) Σ w_i over the parameters after each step of the optimiser. The running mean is held
in float64 whatever the precision of training, w_avg ← w_avg + (w_i - w_avg)/n: its error after n
steps is at most about n·ε·max|w_i|, so that thousands of float32 iterates lose nothing.

BatchNorm's running statistics are no parameters, and their average is not what the averaged
parameters produce; :func:`recompute_batchnorm` measures them anew. What averaging does to the
noise of gradients, in the Gaussian-process model, is in :mod:`hessrmt.lossmodel.averaging`.

Source: [B] (Baskerville, Granziol, Keating), §8; Polyak, Juditsky, SIAM J. Control Optim. 30
(1992); Izmailov et al., UAI (2018), arXiv:1803.05407, §3.2.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from hessrmt.errors import NonFiniteError, ProblemError
from hessrmt.problems.structure import in_order

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hessrmt.problems.data import Dataset


class IterateAverage:
    """Mean of a model's parameters over the steps of its training.

    Give :meth:`update` to :func:`hessrmt.training.protocol.train` as ``on_step``.

    Args:
        model: The model that is trained, on its device; it is copied.
        start: Steps that are left out first; 0 for Polyak's average.

    Raises:
        ProblemError: If ``start`` is no count of steps, or the model has no parameters.
    """

    def __init__(self, model: nn.Module, start: int = 0) -> None:
        if isinstance(start, bool) or not isinstance(start, int) or start < 0:
            raise ProblemError(f"start is {start!r}; expected the steps left out first, 0 or more")
        if next(model.parameters(), None) is None:
            raise ProblemError(f"the model ({type(model).__name__}) has no parameters to average")
        self._start, self._steps = start, 0
        self._mean = AveragedModel(copy.deepcopy(model).double(), avg_fn=_running_mean)

    @property
    def start(self) -> int:
        """Steps that are left out first."""
        return self._start

    @property
    def steps(self) -> int:
        """Steps seen, those left out included."""
        return self._steps

    @property
    def count(self) -> int:
        """Iterates in the average."""
        return max(0, self._steps - self._start)

    def update(self, model: nn.Module) -> None:
        """Take in the parameters after one more step.

        Args:
            model: The model that is trained.
        """
        self._steps += 1
        if self._steps > self._start:
            with torch.no_grad():
                self._mean.update_parameters(model)

    def parameters(self) -> dict[str, Tensor]:
        """The average.

        Returns:
            Name of a parameter to its mean, float64.

        Raises:
            ProblemError: If no iterate was averaged yet.
            NonFiniteError: If one of them was NaN or infinite.
        """
        if not self.count:
            raise ProblemError(
                f"no iterate was averaged: {self._steps} steps were made and the average begins "
                f"after step {self._start}; start it earlier or train longer"
            )
        found = {name: value.detach() for name, value in self._mean.module.named_parameters()}
        for name, value in found.items():
            if not bool(torch.isfinite(value).all()):
                raise NonFiniteError(
                    f"the average of {name} is NaN or infinite: an iterate was; "
                    "try a smaller learning rate"
                )
        return found

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put the average into a model of the same kind, rounded to its precision.

        Its buffers stay as they are; see :func:`recompute_batchnorm`.

        Args:
            model: Not the one being trained, or that starts anew from the average.

        Raises:
            ProblemError: If its parameters have other names or shapes.
        """
        found = self.parameters()
        own = dict(model.named_parameters())
        _require_alike(found, own, "the model")
        for name, value in own.items():
            value.copy_(found[name])

    @torch.no_grad()
    def distance(self, model: nn.Module) -> float:
        """‖w_avg - w‖, over all parameters.

        Args:
            model: The other end.

        Returns:
            The Euclidean distance.

        Raises:
            ProblemError: If the model's parameters have other names or shapes.
        """
        found = self.parameters()
        own = dict(model.named_parameters())
        _require_alike(found, own, "the model")
        squares = [
            float((found[name] - value.double()).square().sum()) for name, value in own.items()
        ]
        return math.sqrt(math.fsum(squares))

    def state_dict(self) -> dict[str, Any]:
        """What continues the average.

        Returns:
            Plain values and float64 tensors on the CPU, independent of this object.
        """
        mean = {
            name: value.detach().to("cpu", copy=True)
            for name, value in self._mean.module.named_parameters()
        }
        return {"start": self._start, "steps": self._steps, "mean": mean}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue an average.

        Args:
            state: From :meth:`state_dict`.

        Raises:
            ProblemError: If it is of another model or of an average that begins elsewhere.
        """
        if not {"start", "steps", "mean"} <= state.keys():
            raise ProblemError(f"this is no state of an average; it holds {sorted(state)}")
        if state["start"] != self._start:
            raise ProblemError(
                f"the average to continue begins after step {state['start']}, "
                f"this one after step {self._start}"
            )
        own = dict(self._mean.module.named_parameters())
        _require_alike(state["mean"], own, "this average")
        for name, value in own.items():
            value.copy_(state["mean"][name])
        self._steps = int(state["steps"])
        cast("Tensor", self._mean.n_averaged).fill_(self.count)


@torch.no_grad()
def recompute_batchnorm(
    model: nn.Module,
    data: Dataset,
    *,
    device: torch.device,
    dtype: str = "float32",
    batch: int = 1024,
) -> int:
    """Set BatchNorm's running mean and variance to those of a whole data set.

    Layer by layer from the input on, in evaluation mode (dropout off), every layer's statistics are
    taken of what reaches it once those before it are set: one pass over the data for each layer.
    Sums are float64, the variance is that with n - 1, as torch's. But for rounding, the result
    depends neither on the batch size nor on the order of the samples. That of
    ``torch.optim.swa_utils.update_bn`` does: it averages variances within batches, a smaller last
    batch counting as much as the others, and every batch is normalised by its own statistics.

    Args:
        model: Changed in place, on ``device`` and in ``dtype``.
        data: The training samples.
        device: Where the model is.
        dtype: The model's precision.
        batch: Samples computed at a time.

    Returns:
        Layers that were set; 0 for a network without BatchNorm (or where BatchNorm keeps no running
        statistics).

    Raises:
        ProblemError: If a layer saw fewer than two values per channel.
        NonFiniteError: If what reaches a layer is NaN or infinite.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    if not norms:
        return 0
    precision = getattr(torch, dtype)

    def inputs() -> Iterator[Tensor]:
        for first in range(0, len(data), batch):
            chosen = np.arange(first, min(first + batch, len(data)))
            yield data.tensors(chosen, precision)[0].to(device)

    was_training = model.training
    model.eval()
    try:
        order = in_order(norms, lambda: model(next(inputs())))
        for name in order:
            _set(name, norms[name], *_moments(model, norms[name], inputs()))
    finally:
        model.train(was_training)
    return len(order)


def _running_mean(mean: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
    # float64, since the mean is
    return mean + (value - mean) / (count + 1)


def _require_alike(given: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str) -> None:
    shapes = [{name: tuple(value.shape) for name, value in part.items()} for part in (given, own)]
    if shapes[0] != shapes[1]:
        differing = sorted(
            name for name in given.keys() | own.keys() if shapes[0].get(name) != shapes[1].get(name)
        )
        raise ProblemError(
            f"the average and {what} differ in {', '.join(differing[:4])}"
            f"{' and more' if len(differing) > 4 else ''}; give a network of the same kind"
        )


def _moments(
    model: nn.Module, norm: _BatchNorm, inputs: Iterator[Tensor]
) -> tuple[int, Tensor, Tensor]:
    # number, mean and sum of squares about it, merged batch by batch as by Chan, Golub, LeVeque,
    # The American Statistician 37 (1983), eq. 2.1
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())

    def take(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal count, mean, squares
        values = given[0].detach().double().transpose(0, 1).flatten(1)
        number = values.shape[1]
        own = values.mean(dim=1)
        rest = (values - own[:, None]).square().sum(dim=1)
        if not count:
            count, mean, squares = number, own, rest
            return
        away, total = own - mean, count + number
        squares = squares + rest + away.square() * (count * number / total)
        mean = mean + away * (number / total)
        count = total

    handle = norm.register_forward_pre_hook(take)
    try:
        for chunk in inputs:
            model(chunk)
    finally:
        handle.remove()
    return count, mean, squares


def _set(name: str, norm: _BatchNorm, count: int, mean: Tensor, squares: Tensor) -> None:
    if count < 2:
        raise ProblemError(
            f"BatchNorm {name!r} saw {count} value per channel; its variance needs at least two"
        )
    variance = squares / (count - 1)
    if not bool(torch.isfinite(mean).all() and torch.isfinite(variance).all()):
        raise NonFiniteError(
            f"what reaches BatchNorm {name!r} is NaN or infinite; try a smaller learning rate"
        )
    cast("Tensor", norm.running_mean).copy_(mean)
    cast("Tensor", norm.running_var).copy_(variance)
