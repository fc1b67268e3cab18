"""K = M Mᵀ for M = LᵀJ, or R of Mᵀ = QR, layer by layer so that M is never held.

One backward pass for each row of Lᵀ serves all samples at once where samples do not mix. Layers of
:mod:`hessrmt.problems.structure` are treated in groups that fit a fixed memory, from the last to
the first: of each is kept the smaller of its rows of M and of the signals they are products of.
What enters the layers, and what comes back to them from the outputs, is recorded while the network
runs. All other parameters follow in ranges of coordinates, by one backward pass for each row.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hessrmt.curvature.products import attempt
from hessrmt.curvature.rounding import gaussian
from hessrmt.problems.problem import find_structure
from hessrmt.problems.structure import hooked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jaxtyping import Float

    from hessrmt.arrays import Matrix
    from hessrmt.problems.problem import Problem
    from hessrmt.problems.structure import Hook, Layer


_TRIAL = 3
"""Samples on which the network is tried out."""


class IrregularError(Exception):
    """A layer is not used on every part of the batch as it was in the trial."""


def find_layers(problem: Problem) -> tuple[Layer, ...]:
    """The layers of a network whose samples do not mix, in the order of execution.

    Args:
        problem: In its final precision and place, with one output row for each sample.

    Returns:
        Layers called exactly once with the batch first, whose parameters reach the outputs in no
        other way. Parameters outside them are for others to treat.
    """
    part = problem.part(slice(0, min(problem.samples, _TRIAL)))
    found = tuple(layer for layer in find_structure(part, of_loss=False).layers if layer.positions)
    while found:  # a layer that mixes samples can only be seen once layers are no longer cut
        with tapped(found, part.samples) as taps:
            outputs = part.outputs(part.theta)
        some = torch.zeros(part.samples, dtype=torch.bool, device=outputs.device)
        some[part.samples // 2] = True
        draw = gaussian(outputs.shape, outputs, "taps")
        draw = draw.view(part.samples, -1) * some[:, None]
        deltas = taps.pull(outputs, draw.view_as(outputs))
        pairs = zip(found, deltas, strict=True)
        apart = tuple(layer for layer, d in pairs if not bool(d[~some].count_nonzero()))
        if len(apart) == len(found):
            break
        found = apart
    return found


def samples_are_apart(problem: Problem, outputs: Tensor) -> bool:
    """Whether parts of the batch, run alone, give the outputs that they give in the batch.

    Args:
        problem: In its final precision and place.
        outputs: Of the whole batch.

    Returns:
        False also if the outputs cannot be dealt out evenly to the samples.
    """
    count = problem.samples
    if outputs.dim() == 0 or outputs.numel() % count or outputs.shape[0] % count:
        return False
    if count == 1:
        return True
    allowed = torch.finfo(outputs.dtype).eps ** 0.5 * float(outputs.abs().max())
    expected = outputs.reshape(count, -1)
    for part in (slice(0, 1), slice(1, count)):
        alone = problem.part(part)
        found = attempt(torch.no_grad()(alone.outputs), alone.theta)
        if found is None or found.numel() != expected[part].numel():  # it needs its whole batch
            return False
        difference = found.reshape(expected[part].shape) - expected[part]
        if not bool(difference.abs().max() <= allowed):
            return False
    return True


class Taps:
    """Inputs and outputs of some layers in one run of the network.

    Attributes:
        entering: Layer name to its input.
        leaving: Layer name to its output, a place from which derivatives can be taken.
    """

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        self._layers = layers
        self.entering: dict[str, Tensor] = {}
        self.leaving: dict[str, Tensor] = {}

    def pull(self, outputs: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
        """Derivatives of ⟨cotangent, outputs⟩ in the layers' outputs.

        Args:
            outputs: Of the run.
            cotangent: Of the shape of ``outputs``.

        Returns:
            One tensor for each layer, zero where the outputs do not depend on it.
        """
        places = [self.leaving[layer.name] for layer in self._layers]
        if not outputs.requires_grad:
            return tuple(torch.zeros_like(place) for place in places)
        return torch.autograd.grad(
            outputs, places, cotangent, retain_graph=True, materialize_grads=True
        )


@contextmanager
def tapped(layers: tuple[Layer, ...], samples: int) -> Iterator[Taps]:
    """Record the layers' inputs and outputs for the time of a ``with`` block.

    The parameters should not require gradients: nothing is then kept for backward before the first
    of the layers.

    Args:
        layers: Which.
        samples: Length of the batch that is run.

    Yields:
        The record, complete at the end of the block.

    Raises:
        IrregularError: If a layer is not called exactly once with the batch first.
    """
    taps = Taps(layers)

    def record(name: str) -> Hook:
        def hook(entering: Tensor, leaving: Tensor) -> Tensor:
            if name in taps.entering or not len(entering) == len(leaving) == samples:
                raise IrregularError
            if not leaving.requires_grad:
                leaving = leaving.detach().requires_grad_()
            taps.entering[name] = entering.detach()
            taps.leaving[name] = leaving
            return leaving.clone()  # the model may work in place

        return hook

    with hooked({layer.name: layer.module for layer in layers}, record):
        yield taps
    if len(taps.entering) != len(layers):
        raise IrregularError


WORK_BYTES = 2**28
"""Memory of the rows of one group of layers, of what one chunk of samples saves for backward, and
of the rows formed at once; more does not run faster."""

_TILE = 512


@dataclass(frozen=True)
class Rows:
    """Rows of M: cotangents of the outputs of some samples.

    Attributes:
        samples: Which samples.
        cotangents: (r, numbers of output of these samples).
        index: (r,) their rows in K.
    """

    samples: slice
    cotangents: Float[Tensor, "r outputs"]
    index: Tensor


def gram(
    problem: Problem,
    cotangents: Float[Tensor, "r B c"] | Float[Tensor, "n outputs"],
    saved: int,
    work: int,
    tick: Callable[[int, int], None],
    triangle: bool = False,
) -> Matrix:
    """K, or R of Mᵀ = QR.

    Args:
        problem: In its final precision and place.
        cotangents: (r, B, c) r cotangents for each sample of a network whose samples do not mix;
            or (n, numbers of output) rows of Lᵀ for any network, each of which takes a backward
            pass over the whole batch.
        saved: Bytes that reverse mode keeps for one sample.
        work: Bytes of working memory.
        tick: Called with parameters done and parameters in all.
        triangle: Whether R is wanted instead.

    Returns:
        (r·B, r·B), row and column k·B + b of K, column of R, for cotangent k of sample b; or
        (n, n).

    Raises:
        OutOfMemoryError: If a device has no room.
    """
    size = cotangents.shape[:-1].numel()
    make = partial(_Triangle if triangle else _Gram, cotangents, size, problem.dimension, tick)
    found, layers = make(), ()
    if cotangents.dim() == 2:
        rows = [Rows(slice(0, problem.samples), cotangents, torch.arange(size))]
    else:
        places = torch.arange(size).view(cotangents.shape[:-1])
        rows = [
            Rows(slice(b, b + 1), cotangents[:, b], places[:, b]) for b in range(problem.samples)
        ]
        try:
            layers = find_layers(problem)
            for group in _groups(layers, size, cotangents.element_size(), work):
                _add_group(found, problem, group, cotangents, saved, work)
        except torch.OutOfMemoryError:
            raise
        except (IrregularError, RuntimeError):
            # also where layers are computed again in the backward pass, without their taps, and in
            # a network that differentiates itself
            found, layers = make(), ()
    claimed = {name for layer in layers for name in layer.parameters}
    names = tuple(name for name in problem.names if name not in claimed)
    _add_parameters(found, problem, names, rows, work)
    return found.full()


def saved_for_backward(problem: Problem) -> int:
    """Memory that reverse mode keeps for the outputs, parameters left out.

    Args:
        problem: In its final precision and place.

    Returns:
        Bytes, at least 1.
    """
    theta = problem.theta.requires_grad_()
    fixed = theta.untyped_storage().data_ptr()
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() != fixed:
            seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        problem.outputs(theta)
    return max(1, sum(seen.values()))


def sample_slices(samples: int, each: int, work: int) -> Iterator[slice]:
    """Slices of the batch that fit in a working memory.

    Args:
        samples: B.
        each: Bytes of one sample.
        work: Bytes in all.

    Yields:
        Slices in order, of at least one sample.
    """
    length = max(1, min(samples, work // each))
    for start in range(0, samples, length):
        yield slice(start, min(start + length, samples))


class _Gram:
    """The lower triangle of K by tiles, and how many parameters have been summed."""

    def __init__(
        self, like: Tensor, size: int, total: int, tick: Callable[[int, int], None]
    ) -> None:
        self.matrix = like.new_zeros(size, size)
        self._total, self._done, self._tick = total, 0, tick
        self._waiting: list[Tensor] = []

    def add(self, rows: Float[Tensor, "n w"]) -> None:
        for start in range(0, len(rows), _TILE):
            stop = start + _TILE
            self.matrix[start:stop, :stop].addmm_(rows[start:stop], rows[:stop].T)

    def advance(self, parameters: int) -> None:
        self._done += parameters
        self._tick(self._done, self._total)

    def full(self) -> Matrix:
        lower = self.matrix.tril_()
        return lower.add_(lower.tril(-1).T)


class _Triangle(_Gram):
    """R of Mᵀ = QR, updated by as many rows of Mᵀ at a time as it has itself."""

    def add(self, rows: Float[Tensor, "n w"]) -> None:
        self._waiting.append(rows.T)
        if sum(map(len, self._waiting)) >= len(self.matrix):
            self._update()

    def full(self) -> Matrix:
        self._update()
        return self.matrix

    def _update(self) -> None:
        if self._waiting:
            self.matrix = torch.linalg.qr(torch.cat([self.matrix, *self._waiting]), mode="r").R
            self._waiting = []


def _groups(
    layers: tuple[Layer, ...], rows: int, itemsize: int, work: int
) -> Iterator[tuple[Layer, ...]]:
    """Consecutive layers whose rows or signals fit in ``work``, from the last to the first."""
    group: list[Layer] = []
    held = 0
    for layer in reversed(layers):
        size = rows * min(layer.row, layer.signal) * itemsize
        if group and held + size > work:
            yield tuple(group)
            group, held = [], 0
        group.append(layer)
        held += size
    if group:
        yield tuple(group)


def _add_group(
    gram: _Gram,
    problem: Problem,
    layers: tuple[Layer, ...],
    cotangents: Float[Tensor, "r B c"],
    saved: int,
    work: int,
) -> None:
    """Add the layers' part of K: backward passes chunk by chunk, then one product a layer."""
    count, samples, _ = cotangents.shape
    widths = {layer.name: layer.row if layer.keeps_rows else layer.signal for layer in layers}
    held = {name: cotangents.new_empty(count, samples, width) for name, width in widths.items()}
    entering = {layer.name: [] for layer in layers if not layer.keeps_rows}
    spread = sum(t.groups * t.positions * t.width for t in layers if t.keeps_rows)
    each = saved + cotangents.element_size() * spread
    for chunk in sample_slices(samples, each, work):
        part = problem.part(chunk)
        with tapped(layers, part.samples) as taps:
            outputs = part.outputs(part.theta)
        seen = {}
        for layer in layers:
            if layer.keeps_rows:
                seen[layer.name] = layer.features(taps.entering[layer.name])
            else:
                entering[layer.name].append(taps.entering[layer.name])
        for k in range(count):
            deltas = taps.pull(outputs, cotangents[k, chunk].reshape(outputs.shape))
            for layer, delta in zip(layers, deltas, strict=True):
                signal = layer.signals(delta)
                if layer.keeps_rows:
                    signal = signal @ seen[layer.name]
                held[layer.name][k, chunk] = signal.flatten(1)
    for layer in layers:
        mine = held.pop(layer.name)
        if layer.keeps_rows:
            gram.add(mine.flatten(0, 1))
        else:
            _add_signals(gram, layer, mine, torch.cat(entering.pop(layer.name)), work)
        gram.advance(layer.row)


def _add_signals(
    gram: _Gram, layer: Layer, signals: Float[Tensor, "r B signal"], entering: Tensor, work: int
) -> None:
    """Add K of one layer from signals δ (d, T) and features u (T, p) of each sample."""
    count, samples, _ = signals.shape
    shape = (layer.groups, layer.outputs, layer.positions)
    signals = signals.view(count, samples, *shape)
    features = layer.features(entering)
    if type(gram) is _Gram and layer.groups == 1 and layer.positions**2 <= layer.width:
        # Σ_st (u_s · u_t)(δ_s · δ_t): no row is formed
        total = gram.matrix.view(count, samples, count, samples)
        for s in range(layer.positions):
            for t in range(layer.positions):
                inputs = features[:, 0, s] @ features[:, 0, t].T
                left = signals[:, :, 0, :, s].flatten(0, 1)
                right = signals[:, :, 0, :, t].flatten(0, 1)
                product = (left @ right.T).view(total.shape)
                total += product.mul_(inputs[None, :, None, :])
        return
    column = signals.element_size() * count * samples * layer.groups * layer.width
    step = max(1, work // column)
    for start in range(0, layer.outputs, step):
        rows = signals[:, :, :, start : start + step] @ features
        gram.add(rows.flatten(2).flatten(0, 1))


def _add_parameters(
    gram: _Gram, problem: Problem, names: tuple[str, ...], rows: list[Rows], work: int
) -> None:
    """Add the part of any other parameters, coordinate range by coordinate range."""
    pieces = problem.unflatten(problem.theta)
    size = sum(pieces[name].numel() for name in names)
    width = max(1, work // (gram.matrix.element_size() * len(gram.matrix)))
    for start in range(0, size, width):
        stop = min(start + width, size)
        chosen, offset, before = [], 0, 0
        for name in names:
            after = before + pieces[name].numel()
            if after > start and before < stop:
                offset = before if not chosen else offset
                chosen.append(name)
            before = after
        found = gram.matrix.new_zeros(len(gram.matrix), stop - start)
        inside = slice(start - offset, stop - offset)
        for some in rows:
            _fill(found, problem.part(some.samples), chosen, inside, some)
        gram.add(found)
        gram.advance(stop - start)


def _fill(found: Tensor, part: Problem, names: list[str], inside: slice, rows: Rows) -> None:
    """Rows of M in a range of the coordinates of some parameters."""
    leaves = part.unflatten(part.theta)
    for name in names:
        leaves[name] = leaves[name].detach().requires_grad_()
    wanted = [leaves[name] for name in names]
    outputs = part.call(leaves)
    if not outputs.requires_grad:
        return
    for cotangent, row in zip(rows.cotangents, rows.index.tolist(), strict=True):
        along = cotangent.reshape(outputs.shape)
        gradients = torch.autograd.grad(
            outputs, wanted, along, retain_graph=True, materialize_grads=True
        )
        found[row] = torch.cat([g.reshape(-1) for g in gradients])[inside]
