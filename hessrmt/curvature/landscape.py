"""The loss along eigenvectors of its curvature: how far the parabola that they promise holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hessrmt.checks import real, require_type, require_whole
from hessrmt.curvature.dense import torch_dtype
from hessrmt.curvature.lanczos import eigsh
from hessrmt.curvature.operators import CurvatureOperator
from hessrmt.errors import ConfigError, ConvergenceError
from hessrmt.problems.differentiation import derivatives, ordinary_mode
from hessrmt.problems.problem import Problem
from hessrmt.progress import silent
from hessrmt.records import Provenance, from_python
from hessrmt.results import Result

if TYPE_CHECKING:
    from jaxtyping import Float64

    from hessrmt.curvature.dense import Device, Dtype
    from hessrmt.progress import Tick

_MOST = 2
"""Directions: what a picture can show."""


@dataclass(frozen=True)
class Landscape(
    Result,
    axes={"direction": "eigenvalues bounds slopes", "direction point": "distances"},
    picture="landscape.landscape",
):
    """The loss at θ + Σ aᵢ vᵢ, with unit eigenvectors vᵢ of the curvature at θ.

    Attributes:
        eigenvalues: (d,) of the directions, descending.
        bounds: (d,) an eigenvalue lies within this distance of each.
        slopes: (d,) the gradient's component along each.
        distances: (d, points) the aᵢ, ascending, with 0 in the middle.
        losses: (points,), or (points, points) with the first direction along the first axis; NaN or
            infinite where the network's loss is.
        parabola: Of the same shape: L + Σ (gᵢ aᵢ + λᵢ aᵢ²/2), what loss, slopes and eigenvalues at
            θ say.
        loss: L, at θ.
        dimension: P, the number of trainable parameters.
        operator: ``"hessian"`` or ``"ggn"``.
        provenance: Where it came from.
    """

    eigenvalues: Float64[np.ndarray, " d"]
    bounds: Float64[np.ndarray, " d"]
    slopes: Float64[np.ndarray, " d"]
    distances: Float64[np.ndarray, "d points"]
    losses: Float64[np.ndarray, ...]
    parabola: Float64[np.ndarray, ...]
    loss: float
    dimension: int
    operator: str = "hessian"
    provenance: Provenance = field(default_factory=Provenance)

    def rows(self) -> list[dict[str, Any]]:
        """Its table.

        Returns:
            A row for each point: distances, loss and parabola.
        """
        grid = np.meshgrid(*self.distances, indexing="ij")
        columns = {f"distance_{i + 1}": part.ravel().tolist() for i, part in enumerate(grid)}
        columns |= {name: getattr(self, name).ravel().tolist() for name in ("losses", "parabola")}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@ordinary_mode()
def landscape(
    problem: Problem,
    directions: int = 1,
    *,
    points: int = 41,
    span: float | None = None,
    operator: str = "hessian",
    device: Device = "auto",
    dtype: Dtype = "float64",
    seed: int = 0,
    tick: Tick | None = None,
    provenance: Provenance | None = None,
) -> Landscape:
    """The loss along the eigenvectors of the largest eigenvalues.

    Args:
        problem: Model, loss and samples.
        directions: 1 or 2 eigenvectors.
        points: Along each, an odd number.
        span: Largest distance from θ, in the units of the parameters. If None, of each direction
            that at which its parabola alone has added the loss at θ (1 if that is 0).
        operator: ``"hessian"`` or ``"ggn"``: whose eigenvectors.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        dtype: ``"float64"`` or ``"float32"``.
        seed: Of the search's start vectors.
        tick: Told of progress.
        provenance: Stored with the result.

    Returns:
        The landscape.

    Raises:
        ConfigError: If a number is out of range, or the matrix has fewer eigenvalues.
        ConvergenceError: If the search finds fewer eigenvectors than directions.
    """
    require_type(Problem, "made of model, loss and samples", problem=problem)
    require_whole(directions=directions)
    require_whole(3, points=points)
    if directions > _MOST:
        raise ConfigError(f"directions is {directions}; one or two can be drawn")
    if points % 2 == 0:
        raise ConfigError(f"points is {points}; with an odd number the network itself is one")
    if span is not None and not real("span", span) > 0:
        raise ConfigError(f"span is {span!r}; expected a distance above 0")
    matrix = CurvatureOperator.of(problem, operator, device=device, dtype=dtype)
    found = eigsh(matrix, directions, seed=seed, tick=tick)
    if len(found) < directions:
        raise ConvergenceError(f"{len(found)} of {directions} eigenvectors have converged")
    values, vectors = found.values[::-1].copy(), found.vectors.flip(1)
    moved = problem.at(torch_dtype(dtype), matrix.backend.device)
    theta = moved.theta.requires_grad_()
    (gradient,) = derivatives(moved.loss(theta), [theta])
    slopes = (gradient @ vectors).double().cpu().numpy()
    reach = [span or _reach(matrix.loss, value) for value in values]
    distances = np.outer(reach, np.linspace(-1, 1, points))
    distances[:, points // 2] = 0.0
    grid = np.meshgrid(*distances, indexing="ij")
    flat = np.stack([part.ravel() for part in grid])
    losses, told = np.empty(flat.shape[1]), tick or silent
    with torch.no_grad():
        for place, step in enumerate(flat.T):
            told("loss", place, len(losses))
            there = theta + vectors @ torch.from_numpy(step).to(vectors)
            losses[place] = float(moved.loss(there))
    told("loss", len(losses), len(losses))
    parabola = matrix.loss + slopes @ flat + values @ flat**2 / 2
    shape = grid[0].shape
    return Landscape(
        eigenvalues=values,
        bounds=found.bounds[::-1].copy(),
        slopes=slopes,
        distances=distances,
        losses=losses.reshape(shape),
        parabola=parabola.reshape(shape),
        loss=matrix.loss,
        dimension=matrix.dimension,
        operator=operator,
        provenance=provenance
        or Provenance(from_python("hessrmt.landscape", problem), matrix.backend.name),
    )


def _reach(loss: float, value: float) -> float:
    """Where λa²/2 is the loss; 1 where there is no curvature."""
    return (2 * (abs(loss) or 1.0) / abs(value)) ** 0.5 if value else 1.0
