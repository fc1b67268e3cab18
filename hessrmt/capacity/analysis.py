"""From a network's weights to its capacity report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch

from hessrmt import rng
from hessrmt.backend.select import select
from hessrmt.capacity import powerlaw
from hessrmt.capacity.powerlaw import PowerLawFit
from hessrmt.capacity.report import NAN, CapacityReport, Layer, MatrixFit
from hessrmt.capacity.sources import open_source, pairs
from hessrmt.capacity.spectra import (
    BulkFit,
    Gram,
    MatrixSpectrum,
    direct_sum,
    fit_bulk,
    from_grams,
    from_singular_values,
    grams,
    log,
)
from hessrmt.checks import one_of, whole
from hessrmt.errors import DataError
from hessrmt.records import Provenance, script

if TYPE_CHECKING:
    from torch import Tensor

    from hessrmt.backend.base import Backend
    from hessrmt.capacity.layers import Conv
    from hessrmt.capacity.sources import AnySource, WeightSource, WeightTensor
    from hessrmt.progress import Tick

_TOGETHER = 2**25
"""Bytes of Gram matrices that are diagonalised in one call of a CPU: a core for each small one."""


def analyze(
    source: AnySource,
    conv: Conv = "slices",
    seed: int = 0,
    *,
    initial: AnySource | None = None,
    randomize: bool = False,
    p_values: int = 0,
    x_max: float | Literal["max"] | None = None,
    two_sided: bool = False,
    compare_with: Sequence[str] = (),
    exact: bool = False,
    min_size: int = 2,
    only: str | None = None,
    device: str = "auto",
    base: AnySource | None = None,
    tick: Tick | None = None,
) -> CapacityReport:
    """Measure the weight matrices of a network: power laws, norms, ranks, bulks. No data needed.

    Layers are read one at a time. Every tensor is in the report, analysed or with the reason why
    not.

    Args:
        source: A module, a state dict, or a path: a checkpoint (``.pt``, ``.pth``, ``.bin``,
            ``.ckpt``, ``.pth.tar``, ``.safetensors``), a folder of shards or their index, an
            ``.npz`` file, or ``file.py:factory``. Of a LoRA adapter the updates are measured.
        conv: Convolutions as k² matrices c_out × c_in with a fit each (``slices``, as Martin and
            Mahoney 2019), as these with one fit to all their eigenvalues (``pooled``), or as one
            matrix c_out × c_in k² (``unfolded``).
        seed: Of permutations and bootstraps.
        initial: The same network before training, for distances.
        randomize: Also spectra of the matrices with their entries permuted: correlation traps.
        p_values: Bootstrap samples for the p-value of every power law; 0 for none.
        x_max: Where tails end: nowhere (None), at the largest eigenvalue (``"max"``), or there.
        two_sided: Whether x_min is where the two-sided Kolmogorov-Smirnov distance is least, rather
            than that of the lower ends of steps, which the Python package ``powerlaw`` takes; a
            note of the report says so.
        compare_with: Alternatives to the power law: ``lognormal``, ``exponential``, ``truncated``;
            not with ``x_max``.
        exact: Singular values instead of Gram eigenvalues, see :mod:`hessrmt.capacity.spectra`.
        min_size: Fewest eigenvalues of a spectrum; smaller matrices are skipped.
        only: Pattern of the layer names to take, e.g. ``"encoder.*"``.
        device: ``auto``, ``cpu`` or ``cuda[:i]``.
        base: The network that ``source`` is a LoRA adapter of: measured is the base with the
            updates added.
        tick: Told of every tensor that is done.

    Returns:
        The report.

    Raises:
        DataError: If an option cannot be used, or ``initial`` is another network.
    """
    for name in compare_with:
        one_of("alternative", name, powerlaw.ALTERNATIVES)
    if compare_with and x_max is not None:
        raise DataError("laws that end at x_max are not compared; leave out x_max or compare")
    whole("p_values", p_values)
    powerlaw.Rule(x_max=x_max)  # refuses what it cannot be
    backend = select(device)
    opened = partial(open_source, conv=conv, min_size=min_size, only=only, seed=seed)
    with ExitStack() as stack:
        network = stack.enter_context(opened(source, base=base))
        before = None
        if initial is not None:
            start = stack.enter_context(opened(initial))
            before = {layer.name: other for layer, other in pairs(network, start)}
        laws = p_values, x_max, two_sided, compare_with
        run = _Run(network, before, backend, seed, randomize, *laws, exact)
        layers = []
        for layer in run.layers():
            layers.append(layer)
            if tick:
                tick(layer.name, len(layers), len(network.layers))
        which = ("x_min and D of power laws are by the two-sided distance",) if two_sided else ()
        notes = (*network.notes, *run.notes, *which)
        asked = {"p_values": p_values, "x_max": x_max, "compare": list(compare_with)}
        asked |= {"randomize": randomize, "two_sided": two_sided, "exact": exact}
        asked |= {"min_size": min_size, "only": only, "conv": conv, "seed": seed}
        made = Provenance(asked | script(), backend.name)
        return CapacityReport(network.label, conv, seed, tuple(layers), backend.name, notes, made)


_FLAT = "all singular values equal"

_NO_POWER_LAW = dict.fromkeys(("alpha", "x_min", "x_max", "ks_distance", "sigma"), NAN)
_NO_POWER_LAW |= {"n_tail": 0, "failed": _FLAT}


@dataclass
class _Task:
    """A layer on its way: roles of its matrices to what is to be diagonalised, then to spectra.

    ``fits`` are those of the spectra of its weights.
    """

    weights: WeightTensor
    skipped: str | None = None
    matrices: dict[str, Sequence[Gram | MatrixSpectrum]] = field(default_factory=dict)
    spectra: dict[str, list[MatrixSpectrum]] = field(default_factory=dict)
    fits: list[PowerLawFit] = field(default_factory=list)

    @property
    def eps(self) -> float:
        """Machine epsilon of the stored weights."""
        dtype = getattr(torch, self.weights.dtype, None)
        return torch.finfo(dtype if dtype and dtype.is_floating_point else torch.float32).eps

    def distance(self, norm: str) -> float:
        """Norm of the difference over that of the initial weights."""
        if "difference" not in self.spectra:
            return NAN
        change, start = (direct_sum(self.spectra[role]) for role in ("difference", "initial"))
        if not (change.frobenius_squared and start.frobenius_squared):
            return 0.0 if start.frobenius_squared else NAN
        return math.exp(getattr(change, norm) - getattr(start, norm))


@dataclass
class _Run:
    """One pass over a network, with what is to be computed beside norms and power laws."""

    network: WeightSource
    initial: dict[str, WeightTensor | None] | None
    backend: Backend
    seed: int
    randomize: bool
    p_values: int
    x_max: float | Literal["max"] | None
    two_sided: bool
    compare_with: Sequence[str]
    exact: bool
    notes: list[str] = field(default_factory=list)

    @property
    def scanning(self) -> Backend | None:
        """Where all tails of spectra are fitted; None: on the CPU those that the best one needs."""
        return self.backend if self.backend.scans else None

    def layers(self) -> Iterator[Layer]:
        """Records of all tensors in order, small layers diagonalised together."""
        waiting: list[_Task] = []
        held, most = 0, self._most_held()
        for weights in self.network:
            waiting.append(self._read(weights))
            each = (one for of in waiting[-1].matrices.values() for one in of)
            held += sum(one.matrix.nbytes for one in each if isinstance(one, Gram))
            if held >= most:
                yield from self._finish(waiting)
                waiting, held, most = [], 0, self._most_held()
        yield from self._finish(waiting)

    def _most_held(self) -> float:
        """Bytes of matrices that may wait for each other; asking the system takes milliseconds."""
        return min(_TOGETHER * self.backend.speed, self.backend.free_memory() // 8)

    def _read(self, weights: WeightTensor) -> _Task:
        """Read a layer and keep what is to be diagonalised; the weights themselves are dropped."""
        task = _Task(weights)
        held = self.exact or self.randomize or self.initial is not None
        try:
            stack = torch.from_numpy(weights.load()) if held else weights.view()
            task.matrices["weights"] = self._reduced(stack)
        except DataError as error:
            task.skipped = str(error)
            return task
        if self.initial is not None:
            try:
                before = self.initial[weights.name]
                if before is None:
                    raise DataError("it is missing or skipped there")
                start = torch.from_numpy(before.load())
                task.matrices["initial"] = self._reduced(start)
                task.matrices["difference"] = self._reduced(stack - start)
            except DataError as error:
                no_distance = f"{weights.name}: no distance from the initial network"
                self.notes.append(f"{no_distance}: {error}")
        if self.randomize:
            for number, part in enumerate(stack):
                draw = rng.stream(self.seed, "permuted weights", weights.name, number)
                draw.shuffle(part.numpy().reshape(-1))  # in place: the array is ours
            task.matrices["permuted"] = self._reduced(stack)
        return task

    def _reduced(self, stack: Tensor) -> Sequence[Gram | MatrixSpectrum]:
        if self.exact:
            return from_singular_values(stack.to(self.backend.device))
        return grams(stack, self.backend.device)

    def _finish(self, tasks: list[_Task]) -> Iterator[Layer]:
        """Diagonalise and fit everything that waits."""
        places = [(task, *item) for task in tasks for item in task.matrices.items()]
        every: list[Any] = [one for *_, each in places for one in each]
        found = iter(every if self.exact else from_grams(every, self.backend))
        for task, role, each in places:
            # power laws and bulks are fitted to each matrix, or to all of them pooled
            spectra = list(islice(found, len(each)))
            task.spectra[role] = [direct_sum(spectra)] if task.weights.pooled else spectra
        values = [one.tied for task in tasks for one in task.spectra.get("weights", [])]
        fits = iter(
            powerlaw.fit_all(
                values, x_max=self.x_max, two_sided=self.two_sided, backend=self.scanning
            )
        )
        for task in tasks:
            of = task.spectra.get("weights", [])
            task.fits = [
                replace(fit, **_NO_POWER_LAW) if one.flat(task.eps) else fit
                for one, fit in zip(of, islice(fits, len(of)), strict=True)
            ]
        return map(self._layer, tasks)

    def _layer(self, task: _Task) -> Layer:
        """Everything there is to say of a layer."""
        layer = Layer(**_of(task.weights, "name", "kind", "shape", "dtype", "inferred"))
        spectra = task.spectra.get("weights", [])
        if not any(one.frobenius_squared for one in spectra):
            return replace(layer, skipped=task.skipped or "all weights are zero")
        matrices = [self._matrix(task, number) for number in range(len(spectra))]
        return replace(
            layer.with_fits(matrices, direct_sum(spectra)),
            distance_frobenius=task.distance("log_frobenius"),
            distance_spectral=task.distance("log_spectral"),
        )

    def _matrix(self, task: _Task, number: int) -> MatrixFit:
        weights, spectra = task.weights, task.spectra["weights"]
        spectrum, label = spectra[number], weights.parts[number] if len(spectra) > 1 else ""
        values = spectrum.tied
        fit = task.fits[number]
        bulk = BulkFit(failed=_FLAT) if fit.failed == _FLAT else fit_bulk(spectrum)
        random = task.spectra["permuted"][number] if self.randomize else None
        p_value, name = NAN, f"{weights.name}/{label}"
        seed = int(rng.seed_sequence(self.seed, "p-value", name).generate_state(1)[0])
        if self.p_values and fit:
            drawn = {"samples": self.p_values, "seed": seed}
            p_value = powerlaw.goodness_of_fit(values, fit, **drawn, backend=self.scanning)
        # what weightwatcher multiplies ‖W‖₂² by: 2-D convolutions by 1/2 pooled, by k²/2 in slices
        factor = 1.0
        if weights.kind == "Conv2d" and weights.parts != ("",):
            factor = 0.5 if weights.pooled else len(weights.parts) / 2
        return MatrixFit(
            label=label,
            **_of(fit, "alpha", "x_min", "x_max", "ks_distance", "sigma", "n_tail"),
            p_value=p_value,
            lambda_max=spectrum.lambda_max,
            alpha_log_lambda=fit.alpha * log(spectrum.lambda_max),
            alpha_log10_norm=fit.alpha * log(factor * spectrum.spectral_squared) / math.log(10),
            log_alpha_norm=spectrum.log_alpha_norm(fit.alpha),
            mp_variance=bulk.variance,
            mp_edge=bulk.upper,
            mp_distance=bulk.ks_distance,
            **_of(bulk, "spikes", "soft_rank"),
            traps=None if random is None else fit_bulk(random).spikes,
            random_lambda_max=NAN if random is None else random.lambda_max,
            comparisons={
                law: powerlaw.compare(values, fit, law, seed=seed) for law in self.compare_with
            },
            fit_failed=fit.failed,
            mp_failed=bulk.failed,
            eigenvalues=spectrum.eigenvalues,
        )


def _of(record: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(record, name) for name in names}
