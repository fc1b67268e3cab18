"""From a network's weights to its capacity report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from hessrmt import rng
from hessrmt.backend.select import select
from hessrmt.capacity import powerlaw
from hessrmt.capacity.assemble import LayerSpectra, Options, record
from hessrmt.capacity.layers import nonfinite
from hessrmt.capacity.likelihoods import ALTERNATIVES
from hessrmt.capacity.report import CapacityReport, Layer
from hessrmt.capacity.sources import Source, open_source, pairs
from hessrmt.capacity.spectra import (
    LARGEST,
    SMALLEST,
    Gram,
    MatrixSpectrum,
    Range,
    from_grams,
    from_singular_values,
    gram,
    streamed_grams,
    streams,
)
from hessrmt.capacity.splitting import Conv
from hessrmt.errors import CapacityError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hessrmt.backend.base import Backend
    from hessrmt.capacity.layers import Matrix

    Network = nn.Module | Mapping[str, Any] | str | Path

Tick = Callable[[str, int, int], None]
"""Progress: the layer that is done, how many are, of how many."""

_TOGETHER = 2**25
"""Bytes of Gram matrices that are diagonalised in one call: a core for each small one."""


@dataclass
class _Task:
    """A layer on its way: roles of its matrices to what is to be diagonalised, then to spectra."""

    matrix: Matrix
    grams: dict[str, list[Gram]] = field(default_factory=dict)
    spectra: dict[str, list[MatrixSpectrum]] = field(default_factory=dict)
    skipped: str | None = None

    @property
    def bytes(self) -> int:
        return sum(8 * len(g.matrix) ** 2 for grams in self.grams.values() for g in grams)


def analyze(
    source: Network,
    conv: Conv = "slices",
    seed: int = 0,
    *,
    initial: Network | None = None,
    randomize: bool = False,
    p_values: int = 0,
    x_max: float | Literal["max"] | None = None,
    compare_with: Sequence[str] = (),
    exact: bool = False,
    min_size: int = 2,
    only: str | None = None,
    device: str = "auto",
    tick: Tick | None = None,
) -> CapacityReport:
    """Measure the weight matrices of a network: power laws, norms, ranks, bulks. No data needed.

    Layers are read one at a time. Every tensor is in the report, analysed or with the reason why
    not.

    Args:
        source: A module, a state dict, or a path: a checkpoint (``.pt``, ``.pth``,
            ``.safetensors``), a folder of safetensors shards, an ``.npz`` file, or
            ``file.py:factory``.
        conv: Convolutions as k² matrices c_out × c_in with a fit each (``slices``, [M]), as these
            with one fit to all their eigenvalues (``pooled``), or as one matrix c_out × c_in k²
            (``unfolded``).
        seed: Of permutations and bootstraps.
        initial: The same network before training, for distances.
        randomize: Also spectra of the matrices with their entries permuted: correlation traps.
        p_values: Bootstrap samples for the p-value of every power law; 0 for none.
        x_max: Where tails end: nowhere (None), at the largest eigenvalue (``"max"``), or there.
        compare_with: Alternatives to the power law: ``lognormal``, ``exponential``, ``truncated``;
            not with ``x_max``.
        exact: Singular values instead of Gram eigenvalues, see :mod:`hessrmt.capacity.spectra`.
        min_size: Fewest eigenvalues of a spectrum; smaller matrices are skipped.
        only: Pattern of the layer names to take, e.g. ``"encoder.*"``.
        device: ``auto``, ``cpu`` or ``cuda[:i]``.
        tick: Told of every tensor that is done.

    Returns:
        The report.

    Raises:
        CapacityError: If an option cannot be used, or ``initial`` is another network.
    """
    unknown = [name for name in compare_with if name not in ALTERNATIVES]
    if unknown:
        raise CapacityError(f"no alternative {unknown[0]!r}; known are {', '.join(ALTERNATIVES)}")
    if compare_with and x_max is not None:
        raise CapacityError("laws that end at x_max are not compared; leave out x_max or compare")
    if isinstance(p_values, bool) or p_values < 0:
        raise CapacityError(f"p_values is {p_values!r}; give a number of samples, 0 for none")
    backend = select(device)
    options = Options(
        seed, randomize, p_values, x_max, tuple(compare_with), exact, conv == "unfolded"
    )
    powerlaw.Rule(x_max=x_max)  # refuses what it cannot be
    opened = partial(open_source, conv=conv, min_size=min_size, only=only, seed=seed)
    with ExitStack() as stack:
        network = stack.enter_context(opened(source))
        before = None
        if initial is not None:
            start = stack.enter_context(opened(initial))
            before = {layer.name: other for layer, other in pairs(network, start)}
        layers, notes = _Run(network, before, options, backend, tick).layers()
        return CapacityReport(network.label, conv, seed, layers, backend.name, notes)


class _Run:
    """One pass over a network."""

    def __init__(
        self,
        network: Source,
        initial: dict[str, Matrix | None] | None,
        options: Options,
        backend: Backend,
        tick: Tick | None,
    ) -> None:
        self._network = network
        self._initial = initial
        self._options = options
        self._backend = backend
        self._tick = tick
        self._found: list[Layer] = []
        self._notes: list[str] = []

    def layers(self) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
        """Records of all tensors in order, small layers diagonalised together; notes."""
        waiting: list[_Task] = []
        for matrix in self._network:
            waiting.append(self._read(matrix))
            if sum(task.bytes for task in waiting) >= _TOGETHER:
                self._finish(waiting)
        self._finish(waiting)
        return tuple(self._found), tuple(self._notes)

    def _read(self, matrix: Matrix) -> _Task:
        """Read a layer and keep what is to be diagonalised; the weights themselves are dropped."""
        task = _Task(matrix, skipped=matrix.skipped)
        if task.skipped is not None:
            return task
        if self._streams(matrix):
            grams, found = streamed_grams(matrix.view(), self._backend.device)
            task.skipped = _unusable(found, matrix.size)
            if task.skipped is None:
                task.grams["weights"] = grams
            return task
        try:
            stack = torch.from_numpy(matrix.load())
        except CapacityError as error:
            task.skipped = str(error)
            return task
        low, high = map(float, torch.aminmax(stack))
        task.skipped = _unusable(Range(0, max(-low, high)), matrix.size)
        if task.skipped is not None:
            return task
        self._add(task, "weights", stack)
        if self._initial is not None:
            self._add_distance(task, stack, self._initial[matrix.name])
        if self._options.randomize:
            for number, part in enumerate(stack):
                draw = rng.stream(self._options.seed, "permuted weights", matrix.name, number)
                draw.shuffle(part.numpy().reshape(-1))  # in place: the array is ours
            self._add(task, "permuted", stack)
        return task

    def _streams(self, matrix: Matrix) -> bool:
        """Whether a layer is large, and nothing is wanted for which its weights must be held."""
        wanted = self._options.exact or self._options.randomize or self._initial is not None
        return streams(matrix.part_shape) and not wanted

    def _add(self, task: _Task, role: str, stack: Tensor) -> None:
        there = stack.to(self._backend.device)
        if self._options.exact:
            task.spectra[role] = from_singular_values(there)
        else:
            task.grams[role] = gram(there)

    def _add_distance(self, task: _Task, stack: Tensor, initial: Matrix | None) -> None:
        name = task.matrix.name
        try:
            if initial is None:
                raise CapacityError("it is missing or skipped there")
            before = torch.from_numpy(initial.load())
        except CapacityError as error:
            self._notes.append(f"{name}: no distance from the initial network: {error}")
            return
        self._add(task, "difference", stack - before)
        self._add(task, "initial", before)

    def _finish(self, tasks: list[_Task]) -> None:
        """Diagonalise and fit everything that waits."""
        places = [(task, role) for task in tasks for role in task.grams]
        waiting = [g for task, role in places for g in task.grams[role]]
        spectra = iter(from_grams(waiting, self._backend))
        for task, role in places:
            task.spectra[role] = [next(spectra) for _ in task.grams[role]]
        ready = [LayerSpectra(task.matrix, **task.spectra) for task in tasks if task.spectra]
        fits = iter(
            powerlaw.fit_all(
                [item.positive for layer in ready for item in layer.fitted],
                x_max=self._options.x_max,
            )
        )
        todo = iter(ready)
        for task in tasks:
            if task.skipped is None:
                layer = next(todo)
                found = record(layer, [next(fits) for _ in layer.fitted], self._options)
            else:
                found = _skipped(task)
            self._found.append(found)
            if self._tick:
                self._tick(found.name, len(self._found), len(self._network))
        tasks.clear()


def _unusable(found: Range, count: int) -> str | None:
    if found.nonfinite:
        return nonfinite(found.nonfinite, count)
    if found.peak == 0:
        return "all weights are zero"
    if not SMALLEST < found.peak < LARGEST:
        return f"weights as large as {found.peak:.1e}, whose squares leave the range of float64"
    return None


def _skipped(task: _Task) -> Layer:
    matrix = task.matrix
    return Layer(
        matrix.name,
        matrix.kind,
        matrix.shape,
        skipped=task.skipped,
        dtype=matrix.dtype,
        inferred=matrix.inferred,
    )
