"""The record of one layer, from its spectra and the power laws fitted to them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hessrmt import rng
from hessrmt.capacity import metrics
from hessrmt.capacity.bootstrap import goodness_of_fit
from hessrmt.capacity.likelihoods import compare
from hessrmt.capacity.marchenko_pastur import fit_bulk
from hessrmt.capacity.report import Layer, MatrixFit
from hessrmt.capacity.spectra import MatrixSpectrum, direct_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from hessrmt.capacity.layers import Matrix
    from hessrmt.capacity.powerlaw import PowerLawFit


@dataclass(frozen=True)
class Options:
    """What to compute beside norms and power laws.

    Attributes:
        seed: Of permutations and bootstraps.
        randomize: Whether matrices with permuted entries were diagonalised as well.
        p_values: Bootstrap samples for each p-value; 0 for none.
        x_max: Where tails end.
        alternatives: Laws to compare the power law with.
        exact: Whether by singular values.
        unfolded: Whether convolutions are one matrix each.
    """

    seed: int
    randomize: bool
    p_values: int
    x_max: float | Literal["max"] | None
    alternatives: tuple[str, ...]
    exact: bool
    unfolded: bool


@dataclass(frozen=True)
class LayerSpectra:
    """A layer whose weights were diagonalised.

    Attributes:
        matrix: The layer.
        weights: Spectrum of each of its matrices.
        permuted: The same with permuted entries, or none.
        initial: Of the initial weights, or none.
        difference: Of the weights less the initial ones, or none.
    """

    matrix: Matrix
    weights: Sequence[MatrixSpectrum]
    permuted: Sequence[MatrixSpectrum] = ()
    initial: Sequence[MatrixSpectrum] = ()
    difference: Sequence[MatrixSpectrum] = ()

    @property
    def fitted(self) -> list[MatrixSpectrum]:
        """What power laws and bulks are fitted to: each matrix, or all of them pooled."""
        return self.fitted_of(self.weights)

    def fitted_of(self, spectra: Sequence[MatrixSpectrum]) -> list[MatrixSpectrum]:
        """One spectrum if the layer is pooled, else those given."""
        return [direct_sum(spectra)] if spectra and self.matrix.pooled else list(spectra)


def record(task: LayerSpectra, fits: Sequence[PowerLawFit], options: Options) -> Layer:
    """Everything there is to say of a layer.

    Args:
        task: Its spectra.
        fits: A power law for each of ``task.fitted``.
        options: What to compute.

    Returns:
        The record.
    """
    matrix, spectra = task.matrix, task.fitted
    together = direct_sum(task.weights)
    labels = ("",) if len(spectra) == 1 else matrix.parts
    random = task.fitted_of(task.permuted) or [None] * len(spectra)
    parts = tuple(
        _part(
            label,
            f"{matrix.name}/{label}",
            spectrum,
            fit,
            other,
            _factor(task.matrix, options),
            options,
        )
        for label, spectrum, fit, other in zip(labels, spectra, fits, random, strict=True)
    )
    good = [part for part in parts if part.fit_failed is None]
    reasons = Counter(part.fit_failed for part in parts if part.fit_failed is not None)
    return Layer(
        name=matrix.name,
        kind=matrix.kind,
        shape=matrix.shape,
        dtype=matrix.dtype,
        inferred=matrix.inferred,
        alpha=_mean(part.alpha for part in good),
        x_min=_mean(part.x_min for part in good),
        ks_distance=_mean(part.ks_distance for part in good),
        sigma=math.hypot(*(part.sigma for part in good)) / len(good) if good else metrics.NAN,
        n_tail=sum(part.n_tail for part in good),
        p_value=_mean(part.p_value for part in good),
        lambda_max=together.lambda_max,
        log_frobenius=metrics.log_frobenius(together),
        log_spectral=metrics.log_spectral(together),
        stable_rank=metrics.stable_rank(together),
        log_stable_rank=metrics.log_stable_rank(together),
        log_alpha_norm=_sum(part.log_alpha_norm for part in good),
        entropy=metrics.entropy(together),
        alpha_hat=_sum(part.alpha_log_lambda for part in good),
        alpha_weighted=_mean(part.alpha_log10_norm for part in good),
        rank=together.rank,
        mp_variance=_mean(part.mp_variance for part in parts),
        mp_edge=_mean(part.mp_edge for part in parts),
        spikes=_count(part.spikes for part in parts),
        soft_rank=_mean(part.soft_rank for part in parts),
        traps=_count(part.traps for part in parts),
        distance_frobenius=_ratio(task, metrics.log_frobenius),
        distance_spectral=_ratio(task, metrics.log_spectral),
        n_matrices=len(parts),
        n_failed=len(parts) - len(good),
        fit_failed=reasons.most_common(1)[0][0] if reasons else None,
        matrices=parts,
    )


def _part(
    label: str,
    name: str,
    spectrum: MatrixSpectrum,
    fit: PowerLawFit,
    random: MatrixSpectrum | None,
    factor: float,
    options: Options,
) -> MatrixFit:
    values, top = spectrum.positive, spectrum.lambda_max
    bulk = fit_bulk(spectrum)
    traps = fit_bulk(random) if random is not None else None
    p_value = metrics.NAN
    if options.p_values and fit:
        word = rng.seed_sequence(options.seed, "p-value", name).generate_state(1)[0]
        p_value = goodness_of_fit(values, fit, samples=options.p_values, seed=int(word))
    return MatrixFit(
        label=label,
        alpha=fit.alpha,
        x_min=fit.x_min,
        x_max=fit.x_max,
        ks_distance=fit.ks_distance,
        sigma=fit.sigma,
        n_tail=fit.n_tail,
        p_value=p_value,
        lambda_max=top,
        alpha_log_lambda=metrics.alpha_log_lambda(fit.alpha, top),
        alpha_log10_norm=metrics.alpha_log_lambda(fit.alpha, factor * spectrum.spectral_squared)
        / math.log(10),
        log_alpha_norm=metrics.log_alpha_norm(values, fit.alpha),
        mp_variance=bulk.variance,
        mp_edge=bulk.upper,
        mp_distance=bulk.ks_distance,
        spikes=bulk.spikes,
        soft_rank=bulk.soft_rank,
        traps=None if traps is None else traps.spikes,
        random_lambda_max=metrics.NAN if random is None else random.lambda_max,
        comparisons={against: compare(values, fit, against) for against in options.alternatives},
        fit_failed=fit.failed,
        mp_failed=bulk.failed,
        eigenvalues=spectrum.eigenvalues,
    )


def _factor(matrix: Matrix, options: Options) -> float:
    """What weightwatcher multiplies ‖W‖₂² by: 2-D convolutions by 1/2 pooled, by k²/2 in slices."""
    if matrix.kind != "Conv2d" or options.unfolded:
        return 1.0
    return 0.5 if matrix.pooled else len(matrix.parts) / 2


def _ratio(task: LayerSpectra, log_norm: Callable[[MatrixSpectrum], float]) -> float:
    """Norm of the difference over that of the initial weights."""
    if not task.difference:
        return metrics.NAN
    difference, initial = direct_sum(task.difference), direct_sum(task.initial)
    if initial.frobenius_squared == 0:
        return metrics.NAN
    if difference.frobenius_squared == 0:
        return 0.0
    return math.exp(log_norm(difference) - log_norm(initial))


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else metrics.NAN


def _sum(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) if finite else metrics.NAN


def _count(values: Iterable[int | None]) -> int | None:
    """Sum of the counts there are."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None
