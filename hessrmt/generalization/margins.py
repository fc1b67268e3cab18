"""Margins η_n = f_{y_n}(x_n) - max_{j≠y_n} f_j(x_n), η = min_n η_n ([G] appendices A and J).

An example is classified correctly if η_n > 0. The margin of the normalised network is η/Πρ_k, and
the bound of [G] eq. (13) on the classification error is proportional to its inverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from hessrmt.errors import DataError, GeneralizationError, NonFiniteError
from hessrmt.generalization import networks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

Margins = Float64[np.ndarray, "n"]
Positions = Int64[np.ndarray, "count"]

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_SUPPORT = 10
_LABELS = "expected one integer label per sample, from 0 on"


@dataclass(frozen=True, eq=False)
class MarginSummary:
    """The margins of a network on some samples.

    Attributes:
        margins: (n,) η_n in the order of the samples, in the units of the outputs.
        product: Πρ_k of the network; 1 if it is normalised itself or no product was given.
    """

    margins: Margins
    product: float = 1.0

    @property
    def minimum(self) -> float:
        """η, the smallest margin; negative if an example is classified wrongly."""
        return float(self.margins.min())

    @property
    def normalized_minimum(self) -> float:
        """η/Πρ_k, the smallest margin of the normalised network."""
        return self.minimum / self.product

    @property
    def error(self) -> float:
        """Share of samples with η_n <= 0."""
        return float(np.mean(self.margins <= 0))

    @property
    def bound(self) -> float:
        """1/η; infinite if an example is not classified correctly."""
        return 1 / self.minimum if self.minimum > 0 else math.inf

    @property
    def normalized_bound(self) -> float:
        """Πρ_k/η, what [G] eq. (13) says that the classification error grows with."""
        return self.bound * self.product

    def quantiles(self, at: Sequence[float] = QUANTILES) -> dict[float, float]:
        """Quantiles of the margins.

        Args:
            at: Shares, 0 to 1.

        Returns:
            Share to margin.
        """
        values = np.quantile(self.margins, at)
        return dict(zip(map(float, at), values.tolist(), strict=True))

    def support(self, count: int = _SUPPORT) -> Positions:
        """The examples that the margin rests on.

        Args:
            count: How many at most, at least 1.

        Returns:
            Indices of the samples with the smallest margins, smallest first.

        Raises:
            GeneralizationError: If the count is below 1.
        """
        if isinstance(count, bool) or count < 1:
            raise GeneralizationError(f"{count!r} support examples; expected a count from 1 on")
        return np.argsort(self.margins, kind="stable")[:count].astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain values, e.g. for JSON; the margins of single samples are left out.

        Returns:
            Name to value.
        """
        support = self.support()
        return {
            "samples": len(self.margins),
            "min": self.minimum,
            "normalized_min": self.normalized_minimum,
            "mean": float(self.margins.mean()),
            "quantiles": {f"{share:g}": value for share, value in self.quantiles().items()},
            "support": support.tolist(),
            "support_margins": self.margins[support].tolist(),
            "inverse": self.bound,
            "normalized_inverse": self.normalized_bound,
        }


def margins(
    model: nn.Module, x: Any, y: Any, *, product: float = 1.0, batch: int = 1024
) -> MarginSummary:
    """Margins of a network on labelled samples, computed in float64.

    Args:
        model: The network, in evaluation mode or not; not changed. Its outputs are (B, K), K >= 2,
            or one score per sample, (B,) or (B, 1), whose sign is the class: then η_n = y_n f(x_n).
        x: Samples with the batch first, or a tuple or dict of them.
        y: (n,) labels 0 to K - 1; for one score per sample -1 and 1, or 0 and 1.
        product: Πρ_k, for the margin of the normalised network.
        batch: Samples computed at a time.

    Returns:
        Margins in the order of the samples.

    Raises:
        GeneralizationError: If the product or the batch is not positive.
        DataError: If there are not as many labels as samples.
    """
    if isinstance(product, bool) or not 0 < product < math.inf:
        raise GeneralizationError(f"product is {product!r}; expected Πρ_k, a positive number")
    if isinstance(batch, bool) or batch < 1:
        raise GeneralizationError(f"batch is {batch!r}; expected a number of samples from 1 on")
    network = networks.working_copy(model)
    labels = torch.as_tensor(y)
    samples = networks.samples_in(x) if _has_samples(x) else 0
    if labels.dim() == 0 or len(labels) != samples or not samples:
        shape = tuple(labels.shape)
        raise DataError(f"{samples} samples but labels of shape {shape}; {_LABELS}")
    device, found = networks.device_of(network), []
    with torch.no_grad():
        for first in range(0, samples, batch):
            part = networks.as_inputs(networks.take(x, slice(first, first + batch)), device)
            found.append(networks.outputs(network, part).cpu())
    return MarginSummary(of_outputs(torch.cat(found), labels.cpu()), product)


def of_outputs(outputs: Tensor, labels: Tensor) -> Margins:
    """Margins from outputs.

    Args:
        outputs: (n, K), K >= 2, or one score per sample, (n,) or (n, 1).
        labels: (n,) integer labels 0 to K - 1; for one score -1 and 1, or 0 and 1, of any type.

    Returns:
        (n,) η_n.

    Raises:
        DataError: If labels do not fit the outputs.
        GeneralizationError: If the outputs have another shape.
        NonFiniteError: If an output is NaN or infinite.
    """
    if not torch.isfinite(outputs).all():
        row = int((~torch.isfinite(outputs)).nonzero()[0, 0])
        raise NonFiniteError(f"the outputs are NaN or infinite, first in sample {row}")
    outputs, labels = outputs.detach().double(), labels.detach()
    if outputs.dim() not in {1, 2}:
        raise GeneralizationError(
            f"margins need outputs (batch, classes), but they have shape {tuple(outputs.shape)}"
        )
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dim() != 1 or len(labels) != len(outputs):
        raise DataError(
            f"labels have shape {tuple(labels.shape)} for outputs {tuple(outputs.shape)}; {_LABELS}"
            " (take the argmax of one-hot labels)"
        )
    if outputs.dim() == 1 or outputs.shape[1] == 1:
        return (_signs(labels).double() * outputs.flatten()).cpu().numpy()
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(f"labels are {labels.dtype}; {_LABELS}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= outputs.shape[1]:
        raise DataError(
            f"labels run from {low} to {high}, but the model has {outputs.shape[1]} outputs; "
            f"labels must lie in 0..{outputs.shape[1] - 1}"
        )
    index = labels.long()[:, None]
    others = outputs.scatter(1, index, -math.inf).amax(dim=1)
    return (outputs.gather(1, index)[:, 0] - others).cpu().numpy()


def _signs(labels: Tensor) -> Tensor:
    """Labels 0, 1 or -1, 1 as -1, 1."""
    values = set(labels.unique().tolist())
    if values <= {-1, 1}:
        return labels
    if values <= {0, 1}:
        return 2 * labels.long() - 1
    raise DataError(
        f"the model has one output per sample, so labels should be -1 and 1, or 0 and 1; found "
        f"{', '.join(f'{value:g}' for value in sorted(values)[:5])}"
    )


def _has_samples(x: Any) -> bool:
    try:
        return networks.samples_in(x) > 0
    except (StopIteration, TypeError):
        return False
