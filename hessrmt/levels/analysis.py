"""From spectra to a statement: which law of random matrix theory do the levels follow?

The one sentence of the conclusion rests on the ratios r̃, which need no unfolding: a law is
consistent if its ratio p-value is not small and ⟨r̃⟩ lies within three standard errors of its value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from hessrmt import rng
from hessrmt.backend.select import select as select_backend
from hessrmt.checks import whole
from hessrmt.errors import DataError, OptionError
from hessrmt.levels.goodness import (
    LAWS,
    STATISTICS,
    MapUnordered,
    Null,
    SurrogatePlan,
    bulks,
    distances,
    in_turn,
    likelihood_ratio,
    nulls,
    plan,
)
from hessrmt.levels.resampling import mean_and_error
from hessrmt.levels.selection import Cutoff, Window, ratio_samples, select
from hessrmt.levels.spacings import Fit, brody, of_spacings, superposition
from hessrmt.levels.unfolding import Unfolded, unfold_selection
from hessrmt.results import Result
from hessrmt.theory import mean_ratio

if TYPE_CHECKING:
    from hessrmt.arrays import Levels
    from hessrmt.levels.resampling import Samples

SIGNIFICANT = 0.01
"""p-value below which a law is excluded."""

FAR = 3.0
"""Standard errors beyond which a law is excluded."""

MANY = 0.02
"""Share of spacings below the noise floor from which the sentence mentions them."""

WORDS = {name: name.upper() for name in ("goe", "gue", "gse")} | {
    "poisson": "Poisson (independent levels)",
    "goe2": "two superposed GOE blocks",
}
"""Laws as a sentence names them."""

SHORT = WORDS | {"poisson": "Poisson", "goe2": "2 GOE blocks"}
"""Laws as a table names them."""

SMOOTH = 20
"""Levels over which a density is smoothed."""

_STRETCHES, _STRETCH = 40, 400
"""Stretches of GOE levels that are moved to a density, and the levels of each."""

_PARTS = 5

_OF_SPACINGS = (
    *("spacings", "mean_spacing", "brody", "brody_error", "superposition", "superposition_error"),
    *("spacing_distance", "spacing_anderson_darling", "spacing_p_value"),
)
"""What cannot be computed without unfolded spacings."""

_OF_SELECTION = ("n_levels", "n_discarded", "n_zeros", "n_ties", "n_unresolved", "cutoff", "window")
"""What the statistics repeat of the selection."""

_NOTES = (
    "{} spectra have fewer than three neighbouring levels left and are not used",
    "{:,} spacings are exactly zero; a ratio of two such is undefined and left out",
    "pooled staircase: spacings below {:.3g} cannot be told from zero",
)
"""What a reader must know where its number is not zero."""


@dataclass(frozen=True)
class LawFit(Result):
    """How level statistics compare with one law of random matrix theory.

    Distances lie in [0, 1]. A p-value is the share of surrogate data sets of the law (same sizes,
    same cutoff and unfolding) that lie at least as far from the law as the data; None where not
    computed.

    Attributes:
        mean_ratio: ⟨r̃⟩ of the law, dimensionless.
        sigmas: (measured ⟨r̃⟩ - that of the law)/standard error; NaN where there is no error.
        ratio_distance: Kolmogorov-Smirnov distance of the ratios r̃.
        ratio_anderson_darling: ∫(F_n - F)²/(F(1-F)) dF of the ratios.
        ratio_p_value: Of ``ratio_distance``.
        spacing_distance: Kolmogorov-Smirnov distance of the unfolded spacings.
        spacing_anderson_darling: As for the ratios.
        spacing_p_value: Of ``spacing_distance``.
        log_likelihood_ratio: Mean of ln(p_law/p_GOE) for one ratio r̃; positive favours the law.
        log_likelihood_ratio_error: Its standard error from resampling spectra.
    """

    mean_ratio: float
    sigmas: float
    ratio_distance: float
    ratio_anderson_darling: float
    ratio_p_value: float | None
    spacing_distance: float
    spacing_anderson_darling: float
    spacing_p_value: float | None
    log_likelihood_ratio: float
    log_likelihood_ratio_error: float


@dataclass(frozen=True)
class LevelStatistics(Result):
    """Local statistics of the levels of one or several spectra, and what they agree with.

    Attributes:
        n_spectra: Spectra used.
        n_levels: Levels used, of all spectra together.
        n_discarded: Eigenvalues that cutoff and window left out, exact zeros included.
        n_zeros: How many of those are exactly 0.0.
        n_ties: Spacings that are exactly zero.
        n_unresolved: Spacings no larger than the noise floor.
        n_ratios: Ratios r̃ used.
        n_spacings: Unfolded spacings used.
        mean_ratio: ⟨r̃⟩, dimensionless.
        mean_ratio_error: Its standard error from resampling whole spectra (stretches of each
            spectrum where there are fewer than ten).
        mean_ratio_density: ⟨r̃⟩ expected of GOE levels that follow the density of these spectra;
            0.5307 less what the curvature of the density takes. NaN where not computed.
        mean_ratio_fifths: ⟨r̃⟩ of the lowest fifth of the ratios of each spectrum, of the next, and
            so on to the highest: where in the spectrum a deviation comes from.
        mean_ratio_fifths_error: Their standard errors.
        mean_spacing: Mean unfolded spacing, which should be 1.
        brody: Brody parameter, 0 for Poisson and about 0.95 for GOE.
        brody_error: Its standard error.
        superposition: Share of levels in the smaller of two independent GOE blocks, 0 to 0.5.
        superposition_error: Its standard error; NaN if the share lies on an end of that range.
        laws: Law name (``goe``, ``gue``, ``gse``, ``poisson``, ``goe2``: two superposed GOE blocks)
            to the comparison with it.
        conclusion: One sentence.
        not_computable: Quantity, by the name of its attribute here or in :class:`LawFit` (for one
            law only: ``goe.spacing_p_value``), to the reason why it could not be computed.
        cutoff: ``"certified"``, ``"paper"``, a value, or None.
        window: Lowest and highest level taken, or None.
        unfolding: Method and options in words.
        surrogates: Surrogate data sets for each p-value.
        seed: Of folds and surrogates.
        notes: Anything a reader must know.
    """

    n_spectra: int
    n_levels: int
    n_discarded: int
    n_zeros: int
    n_ties: int
    n_unresolved: int
    n_ratios: int
    n_spacings: int
    mean_ratio: float
    mean_ratio_error: float
    mean_ratio_density: float
    mean_ratio_fifths: tuple[float, ...]
    mean_ratio_fifths_error: tuple[float, ...]
    mean_spacing: float
    brody: float
    brody_error: float
    superposition: float
    superposition_error: float
    laws: Mapping[str, LawFit]
    conclusion: str
    not_computable: Mapping[str, str]
    cutoff: Cutoff
    window: Window
    unfolding: str
    surrogates: int
    seed: int
    notes: tuple[str, ...] = ()

    def shown(self) -> dict[str, str]:
        """See :class:`.Result`: the mean ratio, what was used, and the distance from every law.

        Returns:
            Name to value, in words.
        """
        error = f" ± {self.mean_ratio_error:.4f}" if np.isfinite(self.mean_ratio_error) else ""
        rows = {
            "⟨r̃⟩": f"{self.mean_ratio:.4f}{error}",
            "levels": f"{self.n_levels:,} of {self.n_spectra} spectra",
            "discarded": f"{self.n_discarded:,}",
        }
        for name, law in self.laws.items():
            p = "" if law.ratio_p_value is None else f", p = {law.ratio_p_value:.3g}"
            rows[name] = f"D = {law.ratio_distance:.4f}{p}"
        return rows

    def caption(self) -> str:
        """The conclusion."""
        return self.conclusion


def analyze(
    spectra: Any,
    cutoff: Cutoff = "auto",
    unfold: str = "auto",
    *,
    window: Window = None,
    rotate: bool = True,
    surrogates: int = 200,
    seed: int = 0,
    device: str = "auto",
    tick: Callable[[str, int, int], object] | None = None,
    map_unordered: MapUnordered = in_turn,
    **options: Any,
) -> LevelStatistics:
    """Compare the levels of spectra with the laws of random matrix theory.

    Ratios r̃ come from the raw levels, spacings from the unfolded ones. Laws: the exact large-matrix
    spacing laws and the corrected ratio laws of Atas et al. 2013 for GOE, GUE and GSE, Poisson, and
    two superposed GOE blocks.

    Args:
        spectra: :class:`~hessrmt.records.Spectrum` objects, a loaded file, or plain eigenvalues
            (1-D, 2-D with one row for each spectrum, or a sequence of 1-D arrays; also tables of
            pandas, polars or xarray, with a row for each spectrum).
        cutoff: ``"certified"`` (what ``"auto"`` takes for spectra), ``"paper"``, a value, or None
            (what it takes for plain eigenvalues); see :func:`hessrmt.levels.select`.
        unfold: Method, or ``"auto"``; see :func:`hessrmt.levels.unfold_selection`. One that cannot
            be used leaves the spacings not computable, with its reason, and the ratios untouched;
            but a method or option that does not exist, or ``"pooled"`` for one spectrum, is an
            error.
        window: Lowest and highest level taken, in the units of the eigenvalues.
        rotate: For pooled unfolding.
        surrogates: Surrogate data sets for each p-value; 0 for none.
        seed: Of folds and surrogates.
        device: Where pooled levels are counted and the eigenvalues of surrogates computed:
            ``auto``, ``cpu`` or ``cuda[:i]``.
        tick: Called with phase, steps done and steps in all.
        map_unordered: Draws the surrogates of the laws, which are independent of each other; here
            and in turn, or another function like :func:`hessrmt.levels.goodness.in_turn`.
        **options: Of the unfolding method.

    Returns:
        The statistics.

    Raises:
        DataError: If an eigenvalue is not finite, an option cannot be used, or fewer than three
            levels are left.

    Source: Baskerville, Granziol and Keating 2022, §5.
    """
    surrogates, seed = whole("surrogates", surrogates), whole("seed", seed)
    selection = select(spectra, cutoff, window)
    backend = select_backend(device)
    tick = tick or (lambda *_: None)
    why: dict[str, str] = {}
    try:
        unfolded = unfold_selection(
            selection, unfold, rotate=rotate, seed=seed, backend=backend, **options
        )
    except DataError as error:
        if isinstance(error, OptionError) or (unfold == "pooled" and len(selection.levels) < 2):
            raise
        unfolded = Unfolded(selection, (None,) * len(selection.levels), 0.0, "window", {}, rotate)
        why |= dict.fromkeys(_OF_SPACINGS, str(error))
    ratios = ratio_samples(selection)
    spacings = unfolded.spacings
    all_ratios, all_spacings = _sorted(ratios), _sorted(spacings)  # once for all laws
    if not len(all_ratios):
        raise DataError("every spacing is zero: no ratio is defined; are the levels degenerate?")
    mean, error = mean_and_error(ratios)
    why |= _unknown_errors(error)
    parts = zip(*(np.array_split(values, _PARTS) for values in ratios), strict=True)
    fifths, fifths_error = zip(*map(mean_and_error, parts), strict=True)
    drawn: dict[str, tuple[dict[str, Null], str]] = dict.fromkeys(LAWS, ({}, ""))
    if surrogates:
        scheme = plan(unfolded, surrogates, seed)
        tick("surrogates", 0, len(LAWS))
        draw = partial(_nulls, scheme, device)
        for done, (index, result) in enumerate(map_unordered(draw, LAWS), 1):
            drawn[LAWS[index]] = result
            tick("surrogates", done, len(LAWS))
    else:
        of_surrogates = ("p_values", "ratio_p_value", "spacing_p_value")
        why |= dict.fromkeys(of_surrogates, "no surrogates were asked for")
    why |= {f"{name}.spacing_p_value": reason for name, (_, reason) in drawn.items() if reason}
    laws, goe = {}, STATISTICS["ratio"]("goe")
    for name in LAWS:
        null, expected = drawn[name][0], mean_ratio(name)
        sigmas = (mean - expected) / error if error > 0 else float("nan")
        of_ratio, of_spacing = (law(name) for law in STATISTICS.values())
        laws[name] = LawFit(
            expected,
            sigmas,
            *distances(all_ratios, of_ratio, null.get("ratio")),
            *distances(all_spacings, of_spacing, null.get("spacing")),
            *likelihood_ratio(ratios, of_ratio, goe),
        )
    tick("surrogates", len(LAWS), len(LAWS))
    q = _fitted("brody", partial(brody, spacings, unfolded.resolution), why)
    f = _fitted("superposition", partial(superposition, spacings), why)
    smoothed = mean_ratio_of_density(selection.levels, seed, device)
    if np.isnan(smoothed):
        why["mean_ratio_density"] = f"no spectrum has {2 * SMOOTH + 1} distinct levels"
    unresolved = selection.n_unresolved / selection.n_spacings
    noted = (len(selection.unusable), selection.n_ties, unfolded.resolution)
    return LevelStatistics(
        n_spectra=len(selection.levels),
        **{name: getattr(selection, name) for name in _OF_SELECTION},
        n_ratios=len(all_ratios),
        n_spacings=len(all_spacings),
        mean_ratio=mean,
        mean_ratio_error=error,
        mean_ratio_density=smoothed,
        mean_ratio_fifths=fifths,
        mean_ratio_fifths_error=fifths_error,
        mean_spacing=float(all_spacings.mean()) if len(all_spacings) else float("nan"),
        brody=q.value,
        brody_error=q.error,
        superposition=f.value,
        superposition_error=f.error,
        laws=laws,
        conclusion=conclude(mean, error, laws, len(all_ratios), unresolved),
        not_computable=why,
        unfolding=unfolded.words,
        surrogates=surrogates,
        seed=seed,
        notes=tuple(note.format(x) for x, note in zip(noted, _NOTES, strict=True) if x),
    )


def _unknown_errors(error: float) -> dict[str, str]:
    if np.isnan(error):
        of_error = ("mean_ratio_error", "sigmas", "log_likelihood_ratio_error")
        return dict.fromkeys(of_error, "too few levels to resample")
    return {} if error else {"sigmas": "the ratios do not scatter, so ⟨r̃⟩ has no standard error"}


def _sorted(samples: Samples) -> Levels:
    return np.sort(np.concatenate([np.empty(0), *samples]))


def _nulls(scheme: SurrogatePlan, device: str, name: str) -> tuple[dict[str, Null], str]:
    """Surrogates of a law, and why those of its spacings cannot be used, if so."""
    backend = select_backend(device)
    try:
        return nulls(name, scheme, backend), ""
    except DataError as error:  # an unfolding that follows the data but not this law's spectra
        other = nulls(name, replace(scheme, method="window", options=()), backend)
        return {"ratio": other["ratio"]}, f"the unfolding cannot follow surrogates: {error}"


def _fitted(name: str, fit: Callable[[], Fit], why: dict[str, str]) -> Fit:
    try:
        found = fit()
    except DataError as error:
        why |= {key: why.get(key, str(error)) for key in (name, f"{name}_error")}
        return Fit(float("nan"), float("nan"), float("nan"))
    if not np.isfinite(found.error):
        why[f"{name}_error"] = (
            "the estimate lies on an end of its range, or there are too few spacings to resample"
        )
    return found


def mean_ratio_of_density(spectra: Samples, seed: int = 0, device: str = "cpu") -> float:
    """⟨r̃⟩ of GOE levels moved to the smoothed density of some spectra.

    Ratios are meant not to depend on the density, and do on its curvature.

    Args:
        spectra: Ascending levels of each spectrum.
        seed: Of the GOE levels.
        device: Where they are computed.

    Returns:
        The large-matrix mean plus what moving the same levels changes, so that their own
        fluctuations cancel; NaN if no spectrum has 41 distinct levels.
    """
    stretches = _stretches(seed, device)
    generator = rng.stream(seed, "levels of the same density", "order")
    change = count = 0.0
    for levels in spectra:
        distinct, first = np.unique(levels, return_index=True)
        knots = np.arange(0, len(distinct), SMOOTH)
        if len(knots) < 3:
            continue
        pieces = -(-len(levels) // _STRETCH)
        order = generator.integers(_STRETCHES, size=pieces)
        places = np.sort((stretches[order] + _STRETCH * np.arange(pieces)[:, None]).ravel())
        places = places[(places >= 0) & (places <= first[knots[-1]])]
        moved = PchipInterpolator(first[knots], distinct[knots])(places)
        for sign, values in ((1, np.diff(moved)), (-1, np.diff(places))):
            change += sign * float(of_spacings(values[:-1], values[1:]).sum())
        count += len(places) - 2
    return mean_ratio("goe") + change / count if count else float("nan")


@lru_cache(maxsize=4)
def _stretches(seed: int, device: str) -> np.ndarray:
    generator = rng.stream(seed, "levels of the same density")
    return np.array(bulks([_STRETCH] * _STRETCHES, 1, generator, select_backend(device)))


def consistent(law: LawFit) -> bool:
    """Whether ratios allow a law.

    Args:
        law: The comparison.

    Returns:
        False if the p-value is below 0.01 or ⟨r̃⟩ is more than three standard errors away.
    """
    by_mean = not abs(law.sigmas) > FAR  # unknown counts as near
    return by_mean and (law.ratio_p_value is None or law.ratio_p_value >= SIGNIFICANT)


def conclude(
    mean: float, error: float, laws: Mapping[str, LawFit], n_ratios: int, unresolved: float = 0.0
) -> str:
    """One sentence about the ratios.

    Args:
        mean: ⟨r̃⟩.
        error: Its standard error, NaN if unknown.
        laws: Law name to comparison; ``goe`` is among them.
        n_ratios: Ratios used.
        unresolved: Share of the spacings that are no larger than the noise floor.

    Returns:
        The sentence.
    """
    noise = f"; but {unresolved:.0%} of the spacings lie below the noise floor"
    return _verdict(mean, error, laws, n_ratios) + (noise if unresolved > MANY else "")


def _verdict(mean: float, error: float, laws: Mapping[str, LawFit], n_ratios: int) -> str:
    if not error > 0:
        reason = "which do not scatter" if error == 0 else "too few for a standard error"
        return f"no conclusion: ⟨r̃⟩ = {mean:.4f} from {n_ratios} ratios, {reason}"
    goe, measured = laws["goe"], f"⟨r̃⟩ = {mean:.4f} ± {error:.4f}"
    # without p-values the mean alone decides
    fitting = [name for name, law in laws.items() if consistent(law)]
    others = " and ".join(WORDS[name] for name in fitting if name != "goe")
    if "goe" in fitting:
        near = (
            f"consistent with GOE ({measured}, {abs(goe.sigmas):.1f} σ from {goe.mean_ratio:.4f})"
        )
        if others:
            return f"{near}, but also with {others}: too few levels to tell them apart"
        return near
    against = f"{measured} against {goe.mean_ratio:.4f}"
    start = f"GOE excluded at {abs(goe.sigmas):.1f} σ ({against})"
    if not abs(goe.sigmas) > FAR:
        start = f"GOE excluded by the shape of P(r̃) (p = {goe.ratio_p_value:.2g}; {against})"
    if fitting:
        return f"{start}; {others} {'fits' if len(fitting) == 1 and fitting != ['goe2'] else 'fit'}"
    nearest = min(laws, key=lambda name: laws[name].ratio_distance)
    if nearest == "goe":
        return f"{start}; no other reference law comes nearer"
    return f"{start}; no reference law fits, the nearest is {WORDS[nearest]}"
