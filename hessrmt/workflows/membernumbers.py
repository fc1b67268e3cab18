"""The numbers of one network of a family: during its training in float32, at its end in float64."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from hessrmt.errors import ProblemError
from hessrmt.generalization import evaluate, normalize, output_normalize
from hessrmt.generalization.networks import evaluating, outputs
from hessrmt.generalization.normalization import (
    QUANTILES,
    effective_weights,
    layer_factors,
    output_factor,
)
from hessrmt.problems import losses
from hessrmt.store.family import Member

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

    from hessrmt.generalization.networks import FoldedLayer as Layer
    from hessrmt.problems.data import Dataset
    from hessrmt.training.protocol import TrainState
    from hessrmt.workflows.memberplan import Plan

LOSS = "cross-entropy"

BINS = 60
"""Of the histogram of the largest output."""

_CHECKED = 64
"""Training samples on which a network must be homogeneous."""

_BATCH = 250
"""Samples measured at a time."""


def measure(plan: Plan, model: nn.Module, epoch: int, history: Mapping[str, np.ndarray]) -> Member:
    """The numbers of a trained network, all from float64 outputs.

    Args:
        plan: What it was to be.
        model: The network; becomes float64.
        epoch: Of the weights.
        history: What was measured in training.

    Returns:
        The numbers.

    Raises:
        ProblemError: If the network has no output per class.
    """
    family, loss = plan.family, losses.resolve(LOSS)
    model = model.to(device=plan.device, dtype=torch.float64).eval()
    if family.by == "layers":
        found = normalize(model, plan.train.tensors(slice(_CHECKED))[0], family.norm)
    else:
        found = output_normalize(model, plan.fixed, family.norm)
    train_found = evaluate(model, _pieces(plan.train, torch.float64), loss, found.product)
    test_found = evaluate(model, _pieces(plan.test, torch.float64), loss, found.product)
    margins, wrong = train_found.margins, test_found.error
    if margins is None or wrong is None:
        raise ProblemError(f"{plan.model} gives no output per class; families need class labels")
    top = _largest(model, plan)
    counts, edges = np.histogram(top / found.product, BINS)
    return Member(
        value=plan.value,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        epoch=epoch,
        train_loss=train_found.loss,
        test_loss=test_found.loss,
        normalized_train_loss=train_found.normalized_loss,
        normalized_test_loss=test_found.normalized_loss,
        train_error=margins.error,
        test_error=wrong,
        product=found.product,
        factors=tuple(found.factors.values()),
        margin=margins.minimum,
        normalized_margin=margins.normalized_minimum,
        margin_quantiles=np.quantile(margins.margins / found.product, QUANTILES),
        top_output_mean=float(top.mean() / found.product),
        top_output_std=float(top.std() / found.product),
        top_output_edges=edges,
        top_output_counts=counts.astype(np.float64),
        raw_top_output_mean=float(top.mean()),
        raw_top_output_std=float(top.std()),
        history=history,
    )


class History:
    """Measures a network in training: one pass over training and test samples each time.

    Args:
        plan: What it is to be.
        model: The network; it is measured as it is when the object is called.
    """

    def __init__(self, plan: Plan, model: nn.Module) -> None:
        self._family = plan.family
        self._model = model
        self._loss = losses.resolve(LOSS)
        self._train = _moved(_pieces(plan.train, torch.float32), plan.device)
        self._test = _moved(_pieces(plan.test, torch.float32), plan.device)
        self._fixed = plan.fixed.to(device=plan.device, dtype=torch.float32)
        self._layers: tuple[Layer, ...] = ()
        if plan.family.by == "layers":
            some = plan.train.tensors(slice(_CHECKED))[0]
            network = copy.deepcopy(model).to(device="cpu", dtype=torch.float64)
            self._layers = normalize(network, some, plan.family.norm).layers

    def __call__(self, state: TrainState) -> dict[str, float]:
        """The numbers after an epoch.

        Args:
            state: After it.

        Returns:
            Name, as in :data:`~hessrmt.store.family.HISTORY`, to number.
        """
        product = self._product()
        train_found = evaluate(self._model, self._train, self._loss, product)
        test_found = evaluate(self._model, self._test, self._loss, product)
        assert train_found.margins is not None
        assert test_found.error is not None
        return {
            "epoch": float(state.epoch),
            "rate": state.history[-1]["lr"],
            "train_loss": train_found.loss,
            "test_loss": test_found.loss,
            "train_error": train_found.margins.error,
            "test_error": test_found.error,
            "normalized_train_loss": train_found.normalized_loss,
            "normalized_test_loss": test_found.normalized_loss,
            "margin": train_found.margins.minimum,
            "product": product,
        }

    def _product(self) -> float:
        norm = self._family.norm
        if self._layers:
            return math.prod(
                layer_factors(effective_weights(self._model, self._layers), norm).values()
            )
        with evaluating(self._model):
            return output_factor(outputs(self._model, self._fixed), norm)


def _largest(model: nn.Module, plan: Plan) -> np.ndarray:
    with evaluating(model):
        found = [
            outputs(model, x.to(plan.device)).amax(dim=1).cpu()
            for x, _ in _pieces(plan.train, torch.float64)
        ]
    return torch.cat(found).numpy()


def _pieces(samples: Dataset, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    for first in range(0, len(samples), _BATCH):
        yield samples.tensors(slice(first, first + _BATCH), dtype)


def _moved(
    pieces: Iterator[tuple[Tensor, Tensor]], device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    return [(x.to(device), y.to(device)) for x, y in pieces]
