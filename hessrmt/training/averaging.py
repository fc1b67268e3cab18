"""Averages of the iterates of a training run: over all of it (Polyak), or over its end (tail).

w_avg = (1/n) Σ w_i over the parameters after each step of the optimiser. The running mean is held
in float64 whatever the precision of training, w_avg ← w_avg + (w_i - w_avg)/n: its error after n
steps is at most about n·ε·max|w_i|, so that thousands of float32 iterates lose nothing.

BatchNorm's running statistics are no parameters, and their average is not what the averaged
parameters produce; :func:`recompute_batchnorm` measures them anew. What averaging does to the
noise of gradients, in the Gaussian-process model, is in :mod:`hessrmt.lossmodel.averaging`.

Source: Baskerville, Granziol and Keating 2022, §8; Polyak and Juditsky 1992; Izmailov et al. 2018,
§3.2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hessrmt.checks import whole
from hessrmt.errors import NonFiniteError, ProblemError
from hessrmt.problems.structure import in_order

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hessrmt.problems.data import Dataset


class IterateAverage:
    """Mean of a model's parameters over the steps of its training.

    Give :meth:`update` to :func:`hessrmt.training.protocol.train` as ``on_step``.

    Args:
        model: The model that is trained, on its device.
        start: Steps that are left out first; 0 for Polyak's average.

    Attributes:
        start: As given.
        steps: Steps seen, those left out included.

    Raises:
        ProblemError: If ``start`` is no count of steps, or the model has no parameters.
    """

    def __init__(self, model: nn.Module, start: int = 0) -> None:
        hint = "expected the steps left out first"
        self.start, self.steps = whole("start", start, error=ProblemError, hint=hint), 0
        self._mean = {
            name: value.detach().to(torch.float64, copy=True)
            for name, value in model.named_parameters()
        }
        if not self._mean:
            raise ProblemError(f"the model ({type(model).__name__}) has no parameters to average")

    @property
    def count(self) -> int:
        """Iterates in the average."""
        return max(0, self.steps - self.start)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the parameters after one more step.

        Args:
            model: The model that is trained.
        """
        self.steps += 1
        if self.steps > self.start:
            for name, value in model.named_parameters():
                mean = self._mean[name]
                away = value.to(mean) - mean
                mean.copy_(value if self.count == 1 else mean + away / self.count)

    def parameters(self) -> dict[str, Tensor]:
        """The average.

        Returns:
            Name of a parameter to its mean, float64.

        Raises:
            ProblemError: If no iterate was averaged yet.
            NonFiniteError: If one of them was NaN or infinite.
        """
        if not self.count:
            begins = f"{self.steps} steps were made and the average begins after step {self.start}"
            raise ProblemError(f"no iterate was averaged: {begins}; start earlier or train longer")
        for name, value in self._mean.items():
            if not bool(torch.isfinite(value).all()):
                raise NonFiniteError(f"the average of {name} is NaN or infinite: an iterate was")
        return dict(self._mean)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put the average into a model of the same kind, rounded to its precision.

        Its buffers stay as they are; see :func:`recompute_batchnorm`.

        Args:
            model: Not the one being trained, or that starts anew from the average.

        Raises:
            ProblemError: If its parameters have other names or shapes.
        """
        for mean, value in self._beside(model):
            value.copy_(mean)

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
        squares = [
            float((mean - value.double()).square().sum()) for mean, value in self._beside(model)
        ]
        return math.sqrt(math.fsum(squares))

    def _beside(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Every mean with the model's parameter."""
        mean, own = self.parameters(), dict(model.named_parameters())
        _require_alike(mean, own, "the model")
        return [(mean[name], value) for name, value in own.items()]

    def state_dict(self) -> dict[str, Any]:
        """What continues the average.

        Returns:
            Plain values and float64 tensors on the CPU, independent of this object.
        """
        mean = {name: value.to("cpu", copy=True) for name, value in self._mean.items()}
        return {"start": self.start, "steps": self.steps, "mean": mean}

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
        if state["start"] != self.start:
            begins = f"begins after step {state['start']}, this one after step {self.start}"
            raise ProblemError(f"the average to continue {begins}")
        _require_alike(state["mean"], self._mean, "this average")
        for name, value in self._mean.items():
            value.copy_(state["mean"][name])
        self.steps = int(state["steps"])


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
            yield data.tensors(slice(first, first + batch), precision)[0].to(device)

    was_training = model.training
    model.eval()
    try:
        order = in_order(norms, lambda: model(next(inputs())))
        for name in order:
            count, mean, squares = _moments(model, norms[name], inputs())
            if count < 2:
                raise ProblemError(f"BatchNorm {name!r} saw {count} value per channel, needs two")
            variance = squares / (count - 1)
            if not bool(torch.isfinite(mean).all() and torch.isfinite(variance).all()):
                raise NonFiniteError(f"what reaches BatchNorm {name!r} is NaN or infinite")
            cast("Tensor", norms[name].running_mean).copy_(mean)
            cast("Tensor", norms[name].running_var).copy_(variance)
    finally:
        model.train(was_training)
    return len(order)


def _require_alike(given: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str) -> None:
    shapes, others = ({name: v.shape for name, v in part.items()} for part in (given, own))
    differing = sorted(n for n in shapes | others if shapes.get(n) != others.get(n))
    if differing:
        raise ProblemError(
            f"the average and {what} differ in {', '.join(differing[:4])}"
            f"{' and more' if len(differing) > 4 else ''}; give a network of the same kind"
        )


def _moments(
    model: nn.Module, norm: _BatchNorm, inputs: Iterator[Tensor]
) -> tuple[int, Tensor, Tensor]:
    # number, mean and sum of squares about it, merged batch by batch as by Chan, Golub and
    # LeVeque 1983, eq. 2.1
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())

    def take(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal count, mean, squares
        values = given[0].detach().double().transpose(0, 1).flatten(1)
        number = values.shape[1]
        own = values.mean(dim=1)
        rest = (values - own[:, None]).square().sum(dim=1)
        away, total = own - mean, count + number
        squares = squares + rest + away.square() * (count * number / total)
        mean = mean + away * (number / total)
        count = total

    with norm.register_forward_pre_hook(take):
        for chunk in inputs:
            model(chunk)
    return count, mean, squares
