"""From spectra to a statement: which law of random matrix theory do the levels follow?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.errors import LevelsError, OptionError
from hessrmt.levels import fits
from hessrmt.levels.conclusion import conclude
from hessrmt.levels.density import SMOOTH, mean_ratio_of_density
from hessrmt.levels.goodness import LAWS, distance, likelihood_ratio, p_value, statistic_law
from hessrmt.levels.ratios import of_spacings
from hessrmt.levels.resampling import mean_and_error
from hessrmt.levels.selection import Selection, select
from hessrmt.levels.staircase import at_least
from hessrmt.levels.surrogates import Plan, in_turn, nulls, plan
from hessrmt.levels.unfolding import check_options, pooled, unfold
from hessrmt.records import LawFit, LevelStatistics
from hessrmt.theory.ratios import mean_ratio

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float64

    from hessrmt.levels.goodness import Null
    from hessrmt.levels.surrogates import MapUnordered

    Samples = list[Float64[np.ndarray, " n"]]

POOL_FROM = 30
"""Spectra from which ``unfold="auto"`` pools; a smaller pool's staircase is too coarse."""

_PARTS = 5

_OF_SPACINGS = (
    "spacings",
    "mean_spacing",
    "brody",
    "brody_error",
    "superposition",
    "superposition_error",
    "spacing_distance",
    "spacing_anderson_darling",
    "spacing_p_value",
)
"""What cannot be computed without unfolded spacings."""


@dataclass(frozen=True)
class Unfolded:
    """The levels of several spectra, unfolded.

    Attributes:
        selection: The levels before unfolding.
        levels: For each spectrum its unfolded levels, ascending, mean spacing 1; None where it
            only served as pool.
        resolution: Smallest spacing that can be told from zero, in mean spacings; 0 if any can.
        method: Of unfolding.
        options: Of the method.
        rotate: For ``pooled``: whether every spectrum was unfolded.
    """

    selection: Selection
    levels: tuple[Float64[np.ndarray, " n"] | None, ...]
    resolution: float
    method: str
    options: dict[str, Any]
    rotate: bool

    @property
    def spacings(self) -> Samples:
        """Spacings of unfolded neighbours, (m_i,) for each spectrum that was unfolded."""
        return [
            np.diff(levels)[adjacent]
            for levels, adjacent in zip(self.levels, self.selection.neighbours, strict=True)
            if levels is not None
        ]

    @property
    def ratios(self) -> Samples:
        """Ratios r̃ of neighbouring spacings of the raw levels, (k_i,) for each spectrum."""
        return ratio_samples(self.selection)

    @property
    def words(self) -> str:
        """Method and options for people."""
        shown = [f"{name}={value}" for name, value in self.options.items()]
        if self.method == "pooled":
            shown.append("every spectrum by rotation" if self.rotate else "⅔ pool, ⅓ unfolded")
        return f"{self.method} ({', '.join(shown)})" if shown else self.method


def ratio_samples(selection: Selection, folded: bool = True) -> Samples:
    """Ratios of neighbouring spacings, for each spectrum.

    Args:
        selection: The levels; no ratio bridges a discarded band.
        folded: r̃ in [0, 1], or r.

    Returns:
        One array for each spectrum.
    """
    found = []
    for levels, adjacent in zip(selection.levels, selection.neighbours, strict=True):
        spacings = np.diff(levels)
        whole = adjacent[1:] & adjacent[:-1]
        found.append(of_spacings(spacings[:-1][whole], spacings[1:][whole], folded))
    return found


def unfold_selection(
    selection: Selection,
    method: str = "auto",
    *,
    rotate: bool = True,
    seed: int = 0,
    **options: Any,
) -> Unfolded:
    """Unfold every spectrum of a selection.

    Args:
        selection: From :func:`hessrmt.levels.selection.select`.
        method: One of :data:`hessrmt.levels.unfolding.METHODS`, or ``"auto"``: pooled from thirty
            spectra on, else window.
        rotate: For ``pooled``: deal the spectra into three groups and unfold each with the other
            two, so that all are used; False is the single split of [B], ⅔ pool and ⅓ unfolded.
        seed: Of the groups.
        **options: Of the method.

    Returns:
        The unfolded levels.

    Raises:
        OptionError: If an option has a value that it cannot have.
        LevelsError: If the method is unknown or cannot follow the density of some spectrum.
    """
    if method == "auto":
        method = "pooled" if len(selection.levels) >= POOL_FROM else "window"
    check_options(method, options)
    if method == "pooled":
        found = pooled(selection.levels, rotate=rotate, seed=seed)
        return Unfolded(selection, found.levels, found.resolution, method, {}, rotate)
    unfolded = []
    for number, levels in enumerate(selection.levels):
        try:
            unfolded.append(unfold(levels, method, **options))
        except OptionError:
            raise
        except LevelsError as error:
            raise LevelsError(f"spectrum {number}: {error}") from error
    return Unfolded(selection, tuple(unfolded), 0.0, method, options, rotate)


def analyze(
    spectra: Any,
    cutoff: str | float | None = "auto",
    unfold: str = "auto",
    *,
    window: tuple[float, float] | None = None,
    rotate: bool = True,
    surrogates: int = 200,
    seed: int = 0,
    tick: Callable[[str, int, int], None] | None = None,
    map_unordered: MapUnordered = in_turn,
    **options: Any,
) -> LevelStatistics:
    """Compare the levels of spectra with the laws of random matrix theory.

    Ratios r̃ come from the raw levels, spacings from the unfolded ones ([B] §5). Laws: the exact
    large-matrix spacing laws and the corrected ratio laws of Atas et al. (2013) for GOE, GUE and
    GSE, Poisson, and two superposed GOE blocks.

    Args:
        spectra: :class:`~hessrmt.records.Spectrum` objects, a loaded file, or plain eigenvalues
            (1-D, 2-D with one row for each spectrum, or a sequence of 1-D arrays).
        cutoff: ``"certified"`` (what ``"auto"`` takes for spectra), ``"paper"``, a value, or None
            (what it takes for plain eigenvalues); see :func:`hessrmt.levels.selection.select`.
        unfold: Method, or ``"auto"``; see :func:`unfold_selection`. One that cannot be used leaves
            the spacings not computable, with its reason, and the ratios untouched; but a method
            or option that does not exist, or ``"pooled"`` for one spectrum, is an error.
        window: Lowest and highest level taken, in the units of the eigenvalues.
        rotate: For pooled unfolding.
        surrogates: Surrogate data sets for each p-value; 0 for none.
        seed: Of folds and surrogates.
        tick: Called with phase, steps done and steps in all.
        map_unordered: Draws the surrogates of the laws, which are independent of each other; here
            and in turn, or another function like :func:`hessrmt.levels.surrogates.in_turn`.
        **options: Of the unfolding method.

    Returns:
        The statistics.

    Raises:
        LevelsError: If an eigenvalue is not finite, an option cannot be used, or fewer than three
            levels are left.
    """
    surrogates, seed = at_least("surrogates", surrogates, 0), at_least("seed", seed, 0)
    selection = select(spectra, cutoff, window)
    why: dict[str, str] = {}
    unfolded = _unfolded(selection, unfold, rotate, seed, options, why)
    ratios = ratio_samples(selection)
    spacings = unfolded.spacings if unfolded else []
    all_ratios = np.sort(np.concatenate(ratios))  # once for all laws
    if not len(all_ratios):
        raise LevelsError("every spacing is zero: no ratio is defined; are the levels degenerate?")
    all_spacings = np.sort(np.concatenate(spacings)) if spacings else np.empty(0)
    mean, error = mean_and_error(ratios)
    if not np.isfinite(error):
        of_error = ("mean_ratio_error", "sigmas", "log_likelihood_ratio_error")
        why |= dict.fromkeys(of_error, "too few levels to resample")
    elif error == 0:
        why["sigmas"] = "the ratios do not scatter, so ⟨r̃⟩ has no standard error"
    fifths = [
        mean_and_error([np.array_split(values, _PARTS)[part] for values in ratios])
        for part in range(_PARTS)
    ]
    scheme = None
    if surrogates:
        method = unfolded.method if unfolded else "window"
        used = unfolded.options if unfolded else {}
        sizes = [len(levels) for levels in selection.levels]
        scheme = plan(sizes, method, used, rotate, surrogates, seed)
    else:
        of_surrogates = ("p_values", "ratio_p_value", "spacing_p_value")
        why |= dict.fromkeys(of_surrogates, "no surrogates were asked for")
    found = _nulls(scheme, bool(len(all_spacings)), why, map_unordered, tick) if scheme else {}
    laws = {
        name: _compare(name, ratios, all_ratios, all_spacings, mean, error, found.get(name, {}))
        for name in LAWS
    }
    if tick:
        tick("surrogates", len(LAWS), len(LAWS))
    q, f = _fitted(spacings, unfolded, why)
    expected = mean_ratio_of_density(selection.levels, seed)
    if np.isnan(expected):
        why["mean_ratio_density"] = f"no spectrum has {2 * SMOOTH + 1} distinct levels"
    return LevelStatistics(
        n_spectra=len(selection.levels),
        n_levels=selection.n_levels,
        n_discarded=selection.n_discarded,
        n_zeros=selection.n_zeros,
        n_ties=selection.n_ties,
        n_unresolved=selection.n_unresolved,
        n_ratios=len(all_ratios),
        n_spacings=len(all_spacings),
        mean_ratio=mean,
        mean_ratio_error=error,
        mean_ratio_density=expected,
        mean_ratio_fifths=tuple(value for value, _ in fifths),
        mean_ratio_fifths_error=tuple(part_error for _, part_error in fifths),
        mean_spacing=float(all_spacings.mean()) if len(all_spacings) else float("nan"),
        brody=q.value,
        brody_error=q.error,
        superposition=f.value,
        superposition_error=f.error,
        laws=laws,
        conclusion=conclude(
            mean, error, laws, len(all_ratios), selection.n_unresolved / selection.n_spacings
        ),
        not_computable=why,
        cutoff=selection.cutoff,
        window=selection.window,
        unfolding=unfolded.words if unfolded else "none",
        surrogates=surrogates,
        seed=seed,
        notes=_notes(selection, unfolded),
    )


def _unfolded(
    selection: Selection,
    method: str,
    rotate: bool,
    seed: int,
    options: dict[str, Any],
    why: dict[str, str],
) -> Unfolded | None:
    try:
        return unfold_selection(selection, method, rotate=rotate, seed=seed, **options)
    except LevelsError as error:
        if isinstance(error, OptionError) or (method == "pooled" and len(selection.levels) < 2):
            raise
        why |= dict.fromkeys(_OF_SPACINGS, str(error))
        return None


def _nulls(
    scheme: Plan,
    spaced: bool,
    why: dict[str, str],
    map_unordered: MapUnordered,
    tick: Callable[[str, int, int], None] | None,
) -> dict[str, dict[str, Null]]:
    """Surrogates of every law, those of spacings left out where nothing compares with them."""
    if tick:
        tick("surrogates", 0, len(LAWS))
    names = list(LAWS)
    drawn: dict[str, tuple[dict[str, Null], str]] = {}
    for index, result in map_unordered(partial(_nulls_of, scheme), names):
        drawn[names[index]] = result
        if tick:
            tick("surrogates", len(drawn), len(LAWS))
    found = {}
    for name in names:
        null, reason = drawn[name]
        if reason:
            why[f"{name}.spacing_p_value"] = f"the unfolding cannot follow surrogates: {reason}"
        found[name] = null if spaced and not reason else {"ratio": null["ratio"]}
    return found


def _nulls_of(scheme: Plan, name: str) -> tuple[dict[str, Null], str]:
    """Surrogates of one law, and why those of its spacings cannot be used, if so."""
    try:
        return nulls(name, scheme), ""
    except LevelsError as error:  # an unfolding that follows the data but not this law's spectra
        return nulls(name, replace(scheme, method="window", options=())), str(error)


def _compare(
    name: str,
    ratios: Samples,
    all_ratios: np.ndarray,
    all_spacings: np.ndarray,
    mean: float,
    error: float,
    null: dict[str, Null],
) -> LawFit:
    nan = float("nan")
    law = statistic_law(name, "ratio")
    far = distance(all_ratios, law)
    gain, gain_error = likelihood_ratio(ratios, law, statistic_law("goe", "ratio"))
    spacing_law = statistic_law(name, "spacing")
    spaced = distance(all_spacings, spacing_law) if len(all_spacings) else None
    expected = mean_ratio(name)
    return LawFit(
        mean_ratio=expected,
        sigmas=(mean - expected) / error if error > 0 else nan,
        ratio_distance=far.kolmogorov_smirnov,
        ratio_anderson_darling=far.anderson_darling,
        ratio_p_value=p_value(all_ratios, law, null["ratio"]) if "ratio" in null else None,
        spacing_distance=spaced.kolmogorov_smirnov if spaced else nan,
        spacing_anderson_darling=spaced.anderson_darling if spaced else nan,
        spacing_p_value=(
            p_value(all_spacings, spacing_law, null["spacing"]) if "spacing" in null else None
        ),
        log_likelihood_ratio=gain,
        log_likelihood_ratio_error=gain_error,
    )


def _fitted(
    spacings: Samples, unfolded: Unfolded | None, why: dict[str, str]
) -> tuple[fits.Fit, fits.Fit]:
    nothing = fits.Fit(float("nan"), float("nan"), float("nan"))
    if unfolded is None:
        return nothing, nothing
    resolution = unfolded.resolution
    found = {}
    for name, fit in (
        ("brody", lambda: fits.brody(spacings, resolution)),
        ("superposition", lambda: fits.superposition(spacings)),
    ):
        try:
            found[name] = fit()
        except LevelsError as error:
            why[name] = why[f"{name}_error"] = str(error)
            found[name] = nothing
            continue
        if not np.isfinite(found[name].error):
            why[f"{name}_error"] = (
                "the estimate lies on an end of its range, or there are too few spacings to "
                "resample"
            )
    return found["brody"], found["superposition"]


def _notes(selection: Selection, unfolded: Unfolded | None) -> tuple[str, ...]:
    notes = []
    if selection.unusable:
        notes.append(
            f"{len(selection.unusable)} spectra have fewer than three neighbouring levels left and "
            "are not used"
        )
    if selection.n_ties:
        notes.append(
            f"{selection.n_ties:,} spacings are exactly zero; a ratio of two such is undefined and "
            "left out"
        )
    if unfolded and unfolded.method == "pooled":
        notes.append(
            f"pooled staircase: spacings below {unfolded.resolution:.3g} cannot be told from zero"
        )
    return tuple(notes)
