"""K = M Mᵀ for M = LᵀJ, or R of Mᵀ = QR, layer by layer so that M is never held.

One backward pass for each row of Lᵀ serves all samples at once where samples do not mix. Layers of
:mod:`hessrmt.problems.structure` are treated in groups that fit a fixed memory, from the last to
the first: of each is kept the smaller of its rows of M and of the signals they are products of.
What enters the layers, and what comes back to them from the outputs, is recorded while the network
runs. All other parameters follow in ranges of coordinates, by one backward pass for each row.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hessrmt import rng
from hessrmt.arrays import fetched
from hessrmt.curvature.products import attempt
from hessrmt.curvature.rounding import gaussian
from hessrmt.errors import let_pass
from hessrmt.problems.problem import find_structure
from hessrmt.problems.structure import hooked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float

    from hessrmt.arrays import Matrix
    from hessrmt.problems.problem import Problem
    from hessrmt.problems.structure import Layer


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
    found = tuple(layer for layer in find_structure(part, of_loss=False) if layer.positions)
    while found:  # a layer that mixes samples can only be seen once layers are no longer cut
        taps = Taps(part, found)
        some = torch.arange(part.samples, device=part.theta.device) == part.samples // 2
        draw = gaussian(taps.outputs.shape, taps.outputs, "taps")
        deltas = _pull(taps.outputs, taps.leaving, draw.view(part.samples, -1) * some[:, None])
        others = [torch.where(some.view(-1, *[1] * (d.ndim - 1)), 0, d) for d in deltas]
        (mixed,) = fetched(torch.stack([other.count_nonzero() for other in others]))
        apart = tuple(layer for layer, count in zip(found, mixed, strict=True) if not count)
        if len(apart) == len(found):
            break
        found = apart
    return found


def other_samples(samples: int, like: Tensor, stream: str) -> Tensor:
    """About half of the samples, at random: those that a change of the rest must leave alone.

    Args:
        samples: B.
        like: Gives the place.
        stream: Name of the random stream.

    Returns:
        (B,) bool, of which the first is False, and the last True unless it is the first.
    """
    others = rng.stream(0, stream).random(samples) >= 0.5
    others[-1], others[0] = True, False
    return torch.from_numpy(others).to(like.device, non_blocking=True)


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
    """One run of the network, of which the inputs and outputs of some layers are kept.

    Args:
        problem: What is run; nothing is kept for backward before the first of the layers.
        layers: Which.

    Attributes:
        outputs: Of the network.
        entering: The layers' inputs.
        leaving: Their outputs, from which derivatives can be taken.

    Raises:
        IrregularError: If a layer is not called exactly once with the batch first.
    """

    def __init__(self, problem: Problem, layers: Sequence[Layer]) -> None:
        taps: dict[str, tuple[Tensor, Tensor]] = {}

        def record(name: str, entering: Tensor, leaving: Tensor) -> Tensor:
            if name in taps or not len(entering) == len(leaving) == problem.samples:
                raise IrregularError
            if not leaving.requires_grad:
                leaving = leaving.detach().requires_grad_()
            taps[name] = entering.detach(), leaving
            return leaving.clone()  # the model may work in place

        modules = {layer.name: layer.module for layer in layers}
        with hooked(modules, lambda name: partial(record, name)):
            self.outputs = problem.outputs(problem.theta)
        if len(taps) != len(layers):
            raise IrregularError
        self.entering, self.leaving = zip(*(taps[layer.name] for layer in layers), strict=True)


def _pull(outputs: Tensor, places: Sequence[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    """Derivatives of ⟨cotangent, outputs⟩, zero in what the outputs do not depend on."""
    if not outputs.requires_grad:
        return tuple(torch.zeros_like(place) for place in places)
    along = cotangent.reshape(outputs.shape)
    return torch.autograd.grad(outputs, places, along, retain_graph=True, materialize_grads=True)


WORK_BYTES = 2**28
"""Memory of the rows of one group of layers, of what one chunk of samples saves for backward, and
of the rows formed at once; more does not run faster."""

_TILE = 512


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

    """
    size = cotangents.shape[:-1].numel()
    make = partial(_Triangle if triangle else _Gram, cotangents, size, problem.dimension, tick)
    found, layers = make(), ()
    if cotangents.dim() == 2:
        cotangents, parts = cotangents[:, None], [problem]
    else:
        parts = [problem.part(slice(b, b + 1)) for b in range(problem.samples)]
        try:
            layers = find_layers(problem)
            for group in _groups(layers, size, cotangents.element_size(), work):
                _add_group(found, problem, group, cotangents, saved, work)
        except (IrregularError, RuntimeError) as error:
            let_pass(error)
            # also where layers are computed again in the backward pass, without their taps, and in
            # a network that differentiates itself
            found, layers = make(), ()
    claimed = {name for layer in layers for name in layer.parameters.values()}
    names = [name for name in problem.names if name not in claimed]
    _add_parameters(found, problem, names, parts, cotangents, work)
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


def _groups(layers: tuple[Layer, ...], rows: int, itemsize: int, work: int) -> list[list[Layer]]:
    """Consecutive layers whose rows or signals fit in ``work``, from the last to the first."""
    groups, held = [], 0
    for layer in reversed(layers):
        size = rows * min(layer.row, layer.signal) * itemsize
        if not groups or held + size > work:
            groups.append([])
            held = 0
        groups[-1].append(layer)
        held += size
    return groups


def _add_group(
    gram: _Gram,
    problem: Problem,
    layers: list[Layer],
    cotangents: Float[Tensor, "r B c"],
    saved: int,
    work: int,
) -> None:
    """Add the layers' part of K: backward passes chunk by chunk, then one product a layer."""
    count, samples, _ = cotangents.shape
    held = [cotangents.new_empty(count, samples, min(t.row, t.signal)) for t in layers]
    entering: list[list[Tensor]] = [[] for _ in layers]
    spread = sum(t.groups * t.positions * t.width for t in layers if t.keeps_rows)
    each = saved + cotangents.element_size() * spread
    for chunk in sample_slices(samples, each, work):
        taps = Taps(problem.part(chunk), layers)
        features = []
        for layer, kept, given in zip(layers, entering, taps.entering, strict=True):
            features.append(layer.features(given) if layer.keeps_rows else None)
            if not layer.keeps_rows:
                kept.append(given)
        for k in range(count):
            deltas = _pull(taps.outputs, taps.leaving, cotangents[k, chunk])
            for layer, mine, seen, delta in zip(layers, held, features, deltas, strict=True):
                signal = layer.signals(delta)
                signal = signal if seen is None else signal @ seen
                mine[k, chunk] = signal.flatten(1)
    for layer in layers:
        mine, kept = held.pop(0), entering.pop(0)
        if layer.keeps_rows:
            gram.add(mine.flatten(0, 1))
        else:
            _add_signals(gram, layer, mine, torch.cat(kept), work)
        gram.advance(layer.row)


def _add_signals(
    gram: _Gram, layer: Layer, signals: Float[Tensor, "r B signal"], entering: Tensor, work: int
) -> None:
    """Add K of one layer from signals δ (d, T) and features u (T, p) of each sample."""
    count, samples, _ = signals.shape
    signals = signals.view(count, samples, layer.groups, layer.outputs, layer.positions)
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
    gram: _Gram,
    problem: Problem,
    names: list[str],
    parts: list[Problem],
    cotangents: Float[Tensor, "r parts c"],
    work: int,
) -> None:
    """Add what other parameters bring, one backward pass for each row of each part of the batch."""
    sizes = {name: problem.unflatten(problem.theta)[name].numel() for name in names}
    ends = dict(zip(names, accumulate(sizes.values()), strict=True))
    size = sum(sizes.values())
    width = max(1, work // (gram.matrix.element_size() * len(gram.matrix)))
    for start in range(0, size, width):
        stop = min(start + width, size)
        chosen = [n for n in names if ends[n] > start and ends[n] - sizes[n] < stop]
        inside = slice(start - ends[chosen[0]] + sizes[chosen[0]], None)
        found = gram.matrix.new_zeros(*cotangents.shape[:2], stop - start)
        for number, part in enumerate(parts):
            leaves = part.unflatten(part.theta)
            leaves |= {name: leaves[name].detach().requires_grad_() for name in chosen}
            wanted, outputs = [leaves[name] for name in chosen], part.call(leaves)
            for along, row in zip(cotangents[:, number], found[:, number], strict=True):
                slopes = torch.cat([g.flatten() for g in _pull(outputs, wanted, along)])
                row.copy_(slopes[inside][: stop - start])
        gram.add(found.flatten(0, 1))
        gram.advance(stop - start)
