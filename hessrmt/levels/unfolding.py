"""Unfolding ξ = N̄(λ): levels whose mean spacing is 1 wherever they lie.

The pooled staircase is [B] = Baskerville, Granziol, Keating, Applicability of random matrix theory
in deep learning, eq. (10); the other methods are in :mod:`hessrmt.levels.smoothing` and
:mod:`hessrmt.levels.staircase`.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from hessrmt import rng
from hessrmt.errors import LevelsError, OptionError
from hessrmt.levels import smoothing, staircase

if TYPE_CHECKING:
    from hessrmt.arrays import Levels

_SINGLE = {
    "window": smoothing.window,
    "kernel": smoothing.kernel,
    "spline": staircase.spline,
    "polynomial": staircase.polynomial,
    "analytic": staircase.analytic,
}

METHODS = (*_SINGLE, "pooled")
"""What :func:`unfold` knows."""

_SPAN = (1e-290, 1e290)
"""Ranges of levels within which neither spacings nor densities leave float64."""


class Pooled(NamedTuple):
    """Many spectra, unfolded against each other.

    Attributes:
        levels: For each spectrum its unfolded levels, ascending; None where it served as pool only.
        resolution: Step of the coarsest pool's staircase, 1/(number of pooled spectra), in mean
            spacings; spacings below it are not to be trusted.
        groups: Which group each spectrum was dealt into; the pool of a spectrum that is unfolded
            is every spectrum of the other groups.
    """

    levels: tuple[Levels | None, ...]
    resolution: float
    groups: tuple[int, ...]


def unfold(
    levels: ArrayLike,
    method: str = "window",
    *,
    pool: Sequence[ArrayLike] | None = None,
    **options: Any,
) -> Levels:
    """Unfold the levels of one spectrum, ξ = N̄(λ).

    =============  ===========================================================================
    method         N̄, and its options
    =============  ===========================================================================
    ``window``     density of the nearest levels: ``neighbours=15`` on each side, ``passes=2``
    ``kernel``     Gaussian smoothing: ``width=5.0`` mean spacings, ``neighbours=15``
    ``spline``     least-squares cubic spline: ``knots=None``
    ``polynomial`` least-squares polynomial: ``degree=9``
    ``analytic``   a law: ``law="semicircle"`` (``centre``, ``radius``), ``"marchenko-pastur"``
                   (``ratio``, ``scale``) or any distribution function
    ``pooled``     #{λ' < λ in the pool}/(number of pooled spectra), [B] eq. (10)
    =============  ===========================================================================

    The first three also follow spectra that span many decades. All but ``analytic`` and ``pooled``
    take the density from the levels themselves, and so hide fluctuations over more levels than
    they average over.

    Args:
        levels: (n,) levels of one spectrum, in any order; give only certified ones
            (``spectrum.resolved``).
        method: One of the table.
        pool: For ``pooled``: the levels of the other spectra, one array for each.
        **options: Of the method.

    Returns:
        (n,) unfolded levels, ascending, dimensionless, with mean spacing 1; ties stay ties.

    Raises:
        LevelsError: If the levels are not at least three finite numbers in one dimension, all
            coincide, or the method cannot follow their density; an ``OptionError``, which is one
            too, if the method does not exist or lacks an option.
    """
    check_options(method, options)
    if (pool is not None) != (method == "pooled"):
        raise LevelsError(
            f"method {method!r} takes no pool; only 'pooled' does"
            if pool is not None
            else "method 'pooled' needs the other spectra: pool=[levels, ...]; for one spectrum "
            "try method='window'"
        )
    ordered = ordered_levels(levels)
    if method in _SINGLE:
        return _SINGLE[method](ordered, **options)
    others = [_finite(other, f"pool[{i}]") for i, other in enumerate(() if pool is None else pool)]
    if not others:
        raise LevelsError("the pool is empty; give at least one other spectrum")
    return np.searchsorted(np.sort(np.concatenate(others)), ordered) / len(others)


def check_options(method: str, options: Collection[str]) -> None:
    """Refuse a method or the name of an option that does not exist.

    Args:
        method: One of :data:`METHODS`.
        options: Names given.

    Raises:
        OptionError: If one is unknown.
    """
    if method not in METHODS:
        raise OptionError(f"unknown unfolding method {method!r}; known: {', '.join(METHODS)}")
    function = _SINGLE.get(method)
    known = [] if function is None else list(inspect.signature(function).parameters)[1:]
    foreign = sorted(set(options) - set(known))
    if foreign:
        raise OptionError(
            f"method {method!r} has no option {foreign[0]!r}; known: {', '.join(known) or 'none'}"
        )


def pooled(
    spectra: Sequence[ArrayLike], *, folds: int = 3, rotate: bool = True, seed: int = 0
) -> Pooled:
    """Unfold many spectra against each other, [B] eq. (10): ξ = #{λ' < λ in the pool}/pooled.

    A seeded permutation deals the spectra into ``folds`` equal groups. With ``rotate`` each
    spectrum is unfolded with all spectra of the other groups as its pool, so every batch is used.
    Without, the first group alone is unfolded and all others are the pool: the protocol of [B],
    where two thirds of the batches are the pool of the last third.

    Args:
        spectra: One array (n_b,) of levels for each batch, in any order; the n_b may differ.
        folds: Groups, at most as many as spectra are used.
        rotate: Whether each group is unfolded in turn.
        seed: Of the permutation.

    Returns:
        The unfolded levels in the order of the spectra, the resolution and the groups.

    Raises:
        LevelsError: If there are fewer than two spectra, or one of them cannot be unfolded.
    """
    count = len(spectra)
    if count < 2:
        raise LevelsError(
            f"pooled needs several batches, got {count}; one spectrum: use method='window'"
        )
    groups = min(staircase.at_least("folds", folds, 2), count)
    rows = [ordered_levels(levels, f"spectra[{i}]") for i, levels in enumerate(spectra)]
    order = rng.stream(seed, "unfold", "folds").permutation(count)
    group = np.empty(count, dtype=np.intp)
    group[order] = np.arange(count) % groups
    unfolded: list[Levels | None] = [None] * count
    for own in range(groups if rotate else 1):
        outside = [row for row, g in zip(rows, group, strict=True) if g != own]
        # kind="stable" merges the rows, which are sorted already
        pool = np.sort(np.concatenate(outside), kind="stable")
        for i in np.flatnonzero(group == own):
            unfolded[i] = np.searchsorted(pool, rows[i]) / len(outside)
    # the first group is never smaller than the others, so its pool is the coarsest
    resolution = 1 / (count - np.count_nonzero(group == 0))
    return Pooled(tuple(unfolded), float(resolution), tuple(map(int, group)))


def ordered_levels(levels: ArrayLike, name: str = "levels") -> Levels:
    """Check the levels of one spectrum and sort them.

    Args:
        levels: (n,) in any order.
        name: What an error calls them.

    Returns:
        (n,) ascending.

    Raises:
        LevelsError: If they are not at least three finite numbers in one dimension, or all
            coincide.
    """
    ordered = _finite(levels, name)
    if not (ordered[1:] >= ordered[:-1]).all():
        ordered = np.sort(ordered)
    if len(ordered) < 3:
        raise LevelsError(f"{name}: unfolding needs at least 3 levels, got {len(ordered)}")
    if ordered[0] == ordered[-1]:
        raise LevelsError(f"{name}: all {len(ordered)} levels coincide, there is no density")
    span = float(ordered[-1]) - float(ordered[0])
    if not _SPAN[0] < span < _SPAN[1]:
        raise LevelsError(f"{name} span {span:.3g}, beyond what float64 divides; rescale them")
    return ordered


def _finite(levels: ArrayLike, name: str) -> Levels:
    try:
        real = not np.iscomplexobj(levels)
        values = np.asarray(levels, dtype=np.float64) if real else np.array(np.nan)
    except (TypeError, ValueError) as error:
        raise LevelsError(f"{name} must be real numbers in one dimension: {error}") from error
    if not real:
        raise LevelsError(f"{name} must be real, got complex numbers")
    if values.ndim != 1:
        raise LevelsError(f"{name} must be one-dimensional, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise LevelsError(f"{name} must be finite, got NaN or infinity")
    return values
