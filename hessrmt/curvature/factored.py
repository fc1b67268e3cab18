"""Factored assembly: second derivatives in the pre-activations, then matrix products.

Where every trainable parameter sits in a linear layer applied once per sample, a change dW_l acts
only through dz_l = dW_l a_l. With δ_l added to each pre-activation z_l, for l before m

    H[(l,i,p),(m,j,q)] = Σ_b S_b[li,mj] a_l[b,p] a_m[b,q] + Σ_b g_m[b,j] A_m[b,q,li] a_l[b,p],

S_b = ∂²L/∂δ[b]∂δ[b], g_m = ∂L/∂δ_m, A_m[b,q,li] = ∂a_m[b,q]/∂δ_l[b,i]. Double automatic
differentiation supplies S, g and A for any activation in Σ_l d_l products (220 for mlp3) instead
of P (20,060); each block is then one matrix product over samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from hessrmt.arrays import fetched
from hessrmt.curvature.gram import other_samples, sample_slices
from hessrmt.curvature.rounding import gaussian
from hessrmt.errors import let_pass
from hessrmt.problems.structure import hooked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hessrmt.curvature.reduction import LayerBasis
    from hessrmt.problems.problem import Problem
    from hessrmt.problems.structure import Layer


_WORK_BYTES = 2**28
"""Memory of the factors of one chunk of samples, and of one block in flight."""

_BY_LAPACK = 160
"""Largest matrices of a batch whose eigenvectors LAPACK computes wherever they lie: a GPU's library
takes such a batch one matrix after the other, some milliseconds each."""

_ELSEWHERE = 0.1
"""Distance of other parameters, in units of their size, where the samples are looked at too."""

_TANGENT_COPIES = 12
"""Arrays of the size of the pre-activations that one direction of differentiation holds."""


@dataclass(frozen=True)
class LayerFactors:
    """What the loss of some samples makes of one layer, in reduced coordinates.

    Attributes:
        basis: The layer's basis, of e rows and k columns.
        span: The place of its rows among those of all layers.
        gradient: (B, e) derivatives g in its pre-activations.
        features: (B, k) coordinates of [a; 1].
        flow: (B, k, D) derivatives A of them in all pre-activations; None if the layer is fed by
            the data.
    """

    basis: LayerBasis
    span: slice
    gradient: Tensor
    features: Tensor
    flow: Tensor | None


@dataclass(frozen=True)
class Factors:
    """Derivatives of the loss of some samples in the pre-activations, in reduced coordinates.

    Attributes:
        curvature: (B, D, D) second derivatives S_b, D = Σ_l e_l.
        layers: In the order of execution.
    """

    curvature: Tensor
    layers: tuple[LayerFactors, ...]


def samples_are_independent(problem: Problem, layers: tuple[Layer, ...]) -> bool:
    """Whether each sample's loss depends on that sample's pre-activations alone.

    Tried at the parameters and at others near them: a head of zeros hides what the network does.

    Args:
        problem: In its final precision and place.
        layers: Layers that are called once for each sample.

    Returns:
        False also if torch cannot differentiate forward here.
    """
    theta, others = problem.theta, other_samples(problem.samples, problem.theta, "independence")
    size = theta.square().mean().sqrt()
    size = torch.where(size > 0, size, 1.0)
    touched: list[Tensor] = []
    elsewhere = theta + _ELSEWHERE * size * gaussian(theta.shape, theta, "independence", "theta")
    for point in (theta, elsewhere):
        gradient, shifts = _shifted_slopes(problem, layers, point)
        direction = tuple(
            gaussian(shift.shape, theta, "independence", number) * ~others[:, None]
            for number, shift in enumerate(shifts)
        )
        try:
            tangents = jvp(gradient, (shifts,), (direction,))[1][0]
        except (RuntimeError, NotImplementedError) as error:
            let_pass(error)
            return False
        touched += [((tangent != 0) & others[:, None]).any() for tangent in tangents]
    # a change of some samples must leave the gradients of the others exactly alone
    return not any(fetched(*touched))


def sample_chunks(problem: Problem, layers: tuple[LayerBasis, ...]) -> list[slice]:
    """Slices of the batch whose factors fit in a fixed working memory.

    Args:
        problem: In its final precision and place.
        layers: Bases of its layers.

    Returns:
        Slices in order; one if the loss of a part is not a mean like that of the whole.
    """
    chunks = list(sample_slices(problem.samples, factor_bytes(problem, layers), _WORK_BYTES))
    if len(chunks) == 1:
        return chunks
    theta = problem.theta
    with torch.no_grad():
        whole = problem.loss(theta)
        parts = [(part.samples, part.loss(theta)) for part in map(problem.part, chunks)]
    total = sum(count * value for count, value in parts) / problem.samples
    add_up = bool((whole - total).abs() <= 1e3 * torch.finfo(theta.dtype).eps * whole.abs())
    return chunks if add_up else [slice(0, problem.samples)]


def factor_bytes(problem: Problem, layers: tuple[LayerBasis, ...]) -> int:
    """Memory of one sample's factors.

    Args:
        problem: In its final precision and place.
        layers: Bases of its layers.

    Returns:
        Bytes.
    """
    outputs = sum(basis.shape[0] for basis in layers)
    inputs = sum(basis.shape[1] for basis in layers)
    return problem.dtype.itemsize * outputs * (2 * outputs + inputs)


def factors(problem: Problem, layers: tuple[LayerBasis, ...], samples: slice) -> Factors:
    """Factors of a slice of the batch, weighted so that slices add up to the whole.

    Args:
        problem: In its final precision and place.
        layers: Bases of layers that are called once for each sample.
        samples: Which samples.

    Returns:
        The factors.
    """
    part = problem.part(samples)
    weight = part.samples / problem.samples
    theta = part.theta
    gradient, shifts = _shifted_slopes(part, tuple(basis.layer for basis in layers), theta)
    widths = [shift.shape[1] for shift in shifts]
    slopes, inputs = gradient(shifts)

    def column(direction: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        pieces = direction.split(widths)
        tangent = tuple(v.expand_as(s) for v, s in zip(pieces, shifts, strict=True))
        curved, moved = jvp(gradient, (shifts,), (tangent,))[1]
        rows = [basis.turn_outputs(t) for basis, t in zip(layers, curved, strict=True)]
        return torch.cat(rows, dim=1), tuple(
            basis.turn_inputs(t, constant=0.0)
            for basis, t in zip(layers, moved, strict=True)
            if basis.layer.inputs is None
        )

    units = [torch.eye(width, dtype=theta.dtype, device=theta.device) for width in widths]
    pairs = zip(layers, units, strict=True)
    directions = torch.block_diag(*(basis.turn_outputs(unit).T for basis, unit in pairs))
    per_direction = _TANGENT_COPIES * problem.dtype.itemsize * part.samples * sum(widths)
    chunk = max(1, _WORK_BYTES // per_direction)
    curvature, moved = vmap(column, chunk_size=chunk)(directions)  # (D, B, D), (D, B, k) ...
    curvature, flow = curvature.permute(1, 2, 0), iter(moved)
    ends = accumulate(basis.shape[0] for basis in layers)
    found = tuple(
        LayerFactors(
            basis,
            slice(end - basis.shape[0], end),
            weight * basis.turn_outputs(slope),
            basis.turn_inputs(entering),
            next(flow).permute(1, 2, 0) if basis.layer.inputs is None else None,
        )
        for basis, end, slope, entering in zip(layers, ends, slopes, inputs, strict=True)
    )
    return Factors(weight * (curvature + curvature.mT) / 2, found)


def block(found: Factors, first: int, second: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the Hessian block between two layers, ``first`` not after ``second``.

    Args:
        found: The factors.
        first: Layer l.
        second: Layer m.

    Yields:
        A slice of l's coordinates, and their rows of the block.
    """
    upper, lower = found.layers[first], found.layers[second]
    a, c = upper.features, lower.features
    (samples, left), right = a.shape, c.shape[1]
    outputs, width = upper.basis.shape[0], lower.basis.shape[0]
    entries = max(1, left * width * max(right, samples))
    step = max(1, _WORK_BYTES // (a.element_size() * entries))
    flow = lower.flow if first < second else None
    for start in range(0, outputs, step):
        count = min(step, outputs - start)
        chosen = slice(upper.span.start + start, upper.span.start + start + count)
        curvature = found.curvature[:, chosen, lower.span]
        if left <= right:
            spread = torch.einsum("bij,bp->bijp", curvature, a).reshape(samples, -1)
            result = (spread.T @ c).view(count, width, left, right).permute(0, 2, 1, 3)
        else:
            spread = torch.einsum("bij,bq->bijq", curvature, c).reshape(samples, -1)
            result = (a.T @ spread).view(left, count, width, right).permute(1, 0, 2, 3)
        if flow is not None:
            slopes = torch.einsum("bj,bp->bjp", lower.gradient, a).reshape(samples, -1)
            moved = flow[:, :, chosen].reshape(samples, -1)
            extra = (slopes.T @ moved).view(width, left, right, count)
            result = result + extra.permute(3, 1, 0, 2)
        values = result.reshape(count * left, width * right)  # ((i, p), (j, q))
        limits = torch.tensor([start * left, (start + count) * left])
        begin, end = torch.searchsorted(upper.basis.keep, limits).tolist()
        if end - begin < len(values):
            values = values[upper.basis.kept[begin:end] - start * left]
        if len(lower.basis.keep) < values.shape[1]:
            values = values[:, lower.basis.kept]
        yield slice(begin, end), values.detach()


@dataclass(frozen=True)
class OwnCurvature:
    """A layer's own block as A Σ Aᵀ = Σ_c signs_c (v_c ⊗ a_c)(v_c ⊗ a_c)ᵀ.

    Attributes:
        basis: The layer's basis.
        outputs: (c, e_l) eigenvectors of the S_b[ll], scaled by √|w|.
        features: (c, k_l) features of the sample each belongs to.
        signs: (c,) signs of w.
    """

    basis: LayerBasis
    outputs: Tensor
    features: Tensor
    signs: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(m, c), the shape of A."""
        return self.basis.size, len(self.signs)

    def columns(self) -> Tensor:
        """A, (m, c), of the entries that are kept."""
        whole = torch.einsum("ci,cp->ipc", self.outputs, self.features)
        return whole.flatten(0, 1)[self.basis.kept]


def own_curvature(found: Factors, layer: int) -> OwnCurvature:
    """A layer's own block by the eigenvectors of its per-sample second derivatives.

    Eigenvalues below the rounding of their sample's S are left out, and those that add no more than
    rounding to the block, |s| ‖a‖² with the sample's features a. Piecewise-linear units leave at
    most as many for each sample as the network has outputs; others up to e_l.

    Args:
        found: The factors.
        layer: Which layer.

    Returns:
        The block's factors.
    """
    mine = found.layers[layer]
    curvature, size = found.curvature[:, mine.span, mine.span], mine.span.stop - mine.span.start
    pair = torch.linalg.eigh(curvature.cpu() if size <= _BY_LAPACK else curvature)
    values, vectors = (part.to(curvature.device, non_blocking=True) for part in pair)
    sizes, relative = values.abs(), size * torch.finfo(values.dtype).eps
    added = sizes * mine.features.square().sum(dim=1, keepdim=True)
    real = (sizes > relative * sizes.amax(dim=1, keepdim=True)) & (added > relative * added.max())
    sample, which = real.nonzero(as_tuple=True)
    kept = values[sample, which]
    scaled = vectors[sample, :, which] * kept.abs().sqrt()[:, None]
    return OwnCurvature(mine.basis, scaled, mine.features[sample], kept.sign())


def _shifted_slopes(
    problem: Problem, layers: tuple[Layer, ...], theta: Tensor
) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """The loss's derivatives in δ_l, added to each layer's output, and the layers' inputs; δ = 0.

    Returns:
        The function of (δ_1, δ_2, ...), and its argument.
    """
    modules = {layer.name: layer.module for layer in layers}

    def loss(shifts: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        shift, inputs = dict(zip(modules, shifts, strict=True)), {}

        def add(name: str, entering: Tensor, leaving: Tensor) -> Tensor:
            inputs[name] = entering
            return leaving + shift[name]

        with hooked(modules, lambda name: partial(add, name)):
            value = problem.loss(theta)
        return value, tuple(inputs[name] for name in modules)

    zeros = tuple(theta.new_zeros(problem.samples, layer.outputs) for layer in layers)
    return grad(loss, has_aux=True), zeros
