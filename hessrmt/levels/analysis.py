"""From spectra to a statement: which law of random matrix theory do the levels follow?

The one sentence of the conclusion rests on the ratios r̃, which need no unfolding. A law is excluded
if its surrogates, which have the runs and the density of the data, lie as far from it as the data
with a probability below 0.3 %; from fewer than 40 ratios nothing is concluded. Every command that
says what levels agree with says it by :func:`conclude`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.stats import t

from hessrmt.backend.select import select as select_backend
from hessrmt.checks import whole
from hessrmt.errors import DataError, OptionError
from hessrmt.levels.goodness import (
    LAWS,
    SMALLEST,
    STATISTICS,
    Null,
    distances,
    judge,
    likelihood_ratio,
)
from hessrmt.levels.longrange import number_variance, rigidity
from hessrmt.levels.resampling import FEWEST_UNITS, mean_and_error, units, with_error
from hessrmt.levels.selection import Cutoff, Window, ratio_samples, select
from hessrmt.levels.spacings import Fit, brody, superposition
from hessrmt.levels.surrogates import (
    RATIO_SETS,
    MapUnordered,
    SurrogatePlan,
    Surrogates,
    in_turn,
    plan,
)
from hessrmt.levels.unfolding import SHORTEST, Unfolded, unfold_selection
from hessrmt.records import Provenance
from hessrmt.results import Result
from hessrmt.tables import at_most, counted, p_equals
from hessrmt.theory import mean_ratio, spacing_law

if TYPE_CHECKING:
    from hessrmt.arrays import Levels
    from hessrmt.levels.resampling import Samples

RATE = 0.003
"""Probability with which a law is excluded though the levels are those of the law."""

BARELY = 0.01
"""Probability below which a law that is not excluded is called only just not excluded."""

FEWEST_RATIOS = 40
"""Ratios from which anything is concluded; ⟨r̃⟩ of 40 is known to 0.05, a third of the way from the
GOE to independent levels."""

_NOT_ASKED_FOR = dict.fromkeys(("ratio_p_value", "spacing_p_value"), "no surrogates were asked for")

_EVEN = 1e-9
"""Range of ratios that differ by rounding alone."""

_NO_SCATTER = "the mean ratio is the same in all spectra: copies, or evenly spaced levels"

_WHY_NOT_SAID = f"fewer than {FEWEST_RATIOS} ratios", _NO_SCATTER

_RATE_SPACINGS = 0.005
"""The same for spacings, whose p-values are no smaller than one of 201 by default."""

_AGREES = "consistent with GOE"

FAR = 3.0
"""Standard deviations of ⟨r̃⟩ beyond which a sentence calls a law excluded by its mean."""

LENGTH = 5.0
"""Mean spacings at which number variance and rigidity are compared."""

_ALIKE, _MOST_ALIKE = 4, 40_000
"""Levels of surrogates for the values beside the data's: times those of the data, and at most."""

_FEWEST_ALIKE = 2_000

MANY = 0.02
"""Share of spacings below the noise floor from which the sentence mentions them."""

WORDS = {name: name.upper() for name in ("goe", "gue", "gse")} | {
    "poisson": "Poisson (independent levels)",
    "goe2": "two superposed GOE blocks",
}
"""Laws as a sentence names them."""

SHORT = WORDS | {"poisson": "Poisson", "goe2": "2 GOE blocks"}
"""Laws as a table names them."""

_PARTS = 5

MEASURES = {
    "brody_raw": "Brody parameter, uncorrected",
    "superposition": "share of a 2nd block",
    "second_moment": "⟨s²⟩",
    "number_variance": f"number variance Σ²({LENGTH:g})",
    "rigidity": f"rigidity Δ₃({LENGTH:g})",
}
"""What stands beside its values for GOE and Poisson levels, and how a table names it."""

_QUANTILES = 20_000
"""Of a law, whose Brody parameter is fitted."""

_ONE_SIGMA = 0.8413447460685429
"""Φ(1)."""

_OF_SPACINGS = (
    *("spacings", "mean_spacing", "brody", "brody_error", "brody_raw", "superposition"),
    *("superposition_error", "second_moment", "second_moment_error", "number_variance"),
    *("number_variance_error", "rigidity", "rigidity_error"),
    *("spacing_distance", "spacing_anderson_darling", "spacing_p_value"),
)
"""What cannot be computed without unfolded spacings."""

_OF_SELECTION = (
    *("n_levels", "n_runs", "n_discarded", "n_outliers", "n_zeros", "n_ties", "n_unresolved"),
    *("cutoff", "window"),
)
"""What the statistics repeat of the selection."""

_NOTES = (
    "{} spectra have fewer than three neighbouring levels left and are not used",
    "{:,} spacings are exactly zero; a ratio of two such is undefined and left out",
    "pooled staircase: spacings below {:.3g} cannot be told from zero",
    f"{{:,}} levels lie in runs of fewer than {SHORTEST} and are not unfolded",
)
"""What a reader must know where its number is not zero."""


@dataclass(frozen=True)
class LawFit(Result):
    """How level statistics compare with one law of random matrix theory.

    Distances lie in [0, 1]. A p-value is the share of surrogate data sets of the law (same runs,
    density and unfolding) that lie at least as far from the law as the data; None where not
    computed.

    Attributes:
        mean_ratio: ⟨r̃⟩ of the law, dimensionless.
        sigmas: (measured ⟨r̃⟩ - ``mean_ratio_alike``)/(its standard deviation for the law's levels).
        ratio_distance: Kolmogorov-Smirnov distance of the ratios r̃.
        ratio_anderson_darling: ∫(F_n - F)²/(F(1-F)) dF of the ratios.
        ratio_p_value: Of the larger one of ``ratio_distance`` and the deviation of ⟨r̃⟩, each in
            units of its spread.
        spacing_distance: Kolmogorov-Smirnov distance of the unfolded spacings.
        spacing_anderson_darling: As for the ratios.
        spacing_p_value: Of the distance of the spacings from the mean of the surrogates' ones.
        log_likelihood_ratio: Mean of ln(p_law/p_GOE) for one ratio r̃; positive favours the law.
        log_likelihood_ratio_error: Its standard error from resampling spectra.
        mean_ratio_alike: ⟨r̃⟩ of surrogates of the law, which have the density of the data.
        p_value: As ``ratio_p_value``, continued beyond the surrogates by the tail of a normal
            variable, down to 1e-6; computed in any case.
        excluded: Whether ``p_value`` is below 0.003; None where the levels are too few to say.
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
    mean_ratio_alike: float = float("nan")
    p_value: float = float("nan")
    excluded: bool | None = None


class Alike(NamedTuple):
    """What levels of two laws give through the same pool and unfolding as the data.

    Attributes:
        goe: Value of GOE levels.
        poisson: Value of independent levels.
    """

    goe: float
    poisson: float


@dataclass(frozen=True)
class HigherOrder(Result):
    """Statistics of every k-th level, beside those of GOE and Poisson surrogates.

    Attributes:
        order: k.
        mean_ratio: ⟨r̃⟩ of (λ_{i+2k} - λ_{i+k})/(λ_{i+k} - λ_i), which don't overlap.
        mean_ratio_error: Its standard error.
        mean_ratio_alike: Of GOE and Poisson surrogates with the density of the data.
        mean_ratio_p_value: Share of GOE surrogates whose ⟨r̃⟩ lies as far from their mean.
        overlapping: ⟨r̃⟩ of (λ_{i+k+1} - λ_{i+1})/(λ_{i+k} - λ_i).
        overlapping_error: Its standard error.
        overlapping_alike: Of surrogates.
        overlapping_p_value: As for the others.
        spacing_variance: ⟨(s - k)²⟩ of the unfolded spacings s of k-th neighbours.
        spacing_variance_error: Its standard error.
        spacing_variance_alike: Of surrogates through the same unfolding.

    Source: Tekur, Bhosale and Santhanam 2018.
    """

    order: int
    mean_ratio: float
    mean_ratio_error: float
    mean_ratio_alike: Alike
    mean_ratio_p_value: float
    overlapping: float
    overlapping_error: float
    overlapping_alike: Alike
    overlapping_p_value: float
    spacing_variance: float
    spacing_variance_error: float
    spacing_variance_alike: Alike


@dataclass(frozen=True)
class LevelStatistics(Result, omitted="provenance", picture="levels.fifths"):
    """Local statistics of the levels of one or several spectra, and what they agree with.

    Attributes:
        n_spectra: Spectra used.
        n_levels: Levels used, of all spectra together.
        n_runs: Runs of neighbouring levels that they are split into by what was discarded; nothing
            is compared across.
        n_discarded: Eigenvalues that were left out, exact zeros included.
        n_outliers: How many of those were outliers.
        n_zeros: How many of those are exactly 0.0.
        n_ties: Spacings that are exactly zero.
        n_unresolved: Spacings no larger than the noise floor.
        n_ratios: Ratios r̃ used.
        n_spacings: Unfolded spacings used.
        mean_ratio: ⟨r̃⟩, dimensionless.
        mean_ratio_error: Its standard error from resampling whole spectra (stretches of each
            spectrum where there are fewer than ten); NaN from fewer than five of them.
        mean_ratio_density: ⟨r̃⟩ expected of GOE levels that follow the density of these spectra:
            0.5307 less what it takes that the density changes from one level to the next. The
            density is smoothed over up to 30 levels, so that what the gaps between a few outliers
            take is not contained.
        mean_ratio_fifths: ⟨r̃⟩ of the lowest fifth of the ratios of each spectrum, of the next, and
            so on to the highest: where in the spectrum a deviation comes from.
        mean_ratio_fifths_error: Their standard errors.
        mean_spacing: Mean unfolded spacing, which should be 1.
        brody: Brody parameter, 0 for Poisson and 0.953 for GOE, corrected for what the unfolding
            makes of these two.
        brody_error: Its standard error, of the scatter of the data; what the correction leaves (up
            to 0.02 with ``window`` on whole spectra of 100 levels) is not contained.
        brody_raw: The same, as it is fitted to the unfolded spacings.
        superposition: Share of levels in the smaller of two independent GOE blocks, 0 to 0.5.
        superposition_error: Its standard error; NaN if the share lies on an end of that range.
        second_moment: ⟨s²⟩ of the unfolded spacings.
        second_moment_error: Its standard error.
        number_variance: Σ²(5) of the unfolded levels.
        number_variance_error: Its standard error.
        rigidity: Δ₃(5) of the unfolded levels.
        rigidity_error: Its standard error.
        alike: ``brody_raw``, ``superposition``, ``second_moment``, ``number_variance`` and
            ``rigidity`` to what GOE and Poisson levels give through the same pool and unfolding.
        laws: Law name (``goe``, ``gue``, ``gse``, ``poisson``, ``goe2``: two superposed GOE blocks)
            to the comparison with it.
        conclusion: One sentence.
        not_computable: Quantity, by the name of its attribute here or in :class:`LawFit` (for one
            law only: ``goe.spacing_p_value``; of ``alike``: ``alike.rigidity``), to the reason why
            it could not be computed.
        cutoff: ``"certified"``, ``"paper"``, a value, or None.
        window: Lowest and highest level taken, or None.
        unfolding: Method and options in words.
        surrogates: Surrogate data sets for each p-value.
        seed: Of folds and surrogates.
        notes: Anything a reader must know.
        higher: Statistics of every k-th level, k = 2, 3, ..., as far as asked for.
        provenance: Where the spectra came from; None where they don't say it.
    """

    n_spectra: int
    n_levels: int
    n_runs: int
    n_discarded: int
    n_outliers: int
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
    brody_raw: float
    superposition: float
    superposition_error: float
    second_moment: float
    second_moment_error: float
    number_variance: float
    number_variance_error: float
    rigidity: float
    rigidity_error: float
    alike: Mapping[str, Alike]
    laws: Mapping[str, LawFit]
    conclusion: str
    not_computable: Mapping[str, str]
    cutoff: Cutoff
    window: Window
    unfolding: str
    surrogates: int
    seed: int
    notes: tuple[str, ...] = ()
    higher: tuple[HigherOrder, ...] = ()
    provenance: Provenance | None = None

    def p(self, of: LawFit | HigherOrder, name: str) -> float | None:
        """One of the p-values as tables and sentences show it.

        Args:
            of: What it belongs to: an item of ``laws`` or of ``higher``.
            name: Its attribute, e.g. ``"spacing_p_value"``.

        Returns:
            The value, an :class:`hessrmt.tables.AtMost` where it is the smallest that the
            surrogates can show.
        """
        smallest = {"p_value": SMALLEST, "spacing_p_value": 1 / (1 + self.surrogates)}
        ratios = 1 / (1 + max(self.surrogates, RATIO_SETS))
        return at_most(getattr(of, name), smallest.get(name, ratios))

    def shown(self) -> dict[str, str]:
        """See :class:`.Result`: the mean ratio, what was used, and the distance from every law.

        Returns:
            Name to value, in words.
        """
        error = f" ± {self.mean_ratio_error:.4f}" if np.isfinite(self.mean_ratio_error) else ""
        rows = {
            "⟨r̃⟩": f"{self.mean_ratio:.4f}{error}",
            "levels": f"{self.n_levels:,} of {counted(self.n_spectra, 'spectrum', 'spectra')}",
            "discarded": f"{self.n_discarded:,}"
            + f" ({self.n_zeros:,} of them exact zeros)" * bool(self.n_zeros),
        }
        for name, law in self.laws.items():
            p = self.p(law, "ratio_p_value")
            words = "" if p is None else f", {p_equals(p)}"
            rows[name] = f"D = {law.ratio_distance:.4f}{words}"
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
    drop_outliers: str = "none",
    rotate: bool = True,
    surrogates: int = 200,
    orders: int = 1,
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
        drop_outliers: ``"none"``, ``"gap"`` or ``"marchenko-pastur"``; see
            :func:`hessrmt.levels.select`.
        rotate: For pooled unfolding.
        surrogates: Surrogate data sets for each p-value; 0 for none (the verdicts need none of
            these).
        orders: Highest k of the statistics of every k-th level in ``higher``; 1 for none.
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
    orders = whole("orders", orders, 1)
    selection = select(spectra, cutoff, window, drop_outliers)
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
        nothing = (None,) * len(selection.levels)
        unfolded = Unfolded(selection, nothing, 0.0, "none", {}, rotate)
        why |= dict.fromkeys(_OF_SPACINGS, str(error))
    ratios = ratio_samples(selection)
    spacings = unfolded.spacings
    all_ratios, all_spacings = _sorted(ratios), _sorted(spacings)  # once for all laws
    if not len(all_ratios):
        raise DataError("every spacing is zero: no ratio is defined; are the levels degenerate?")
    mean, error = mean_and_error(ratios)
    # copies of one spectrum, or evenly spaced levels, which a single spectrum may have too
    even = len(all_ratios) >= FEWEST_RATIOS and float(np.ptp(all_ratios)) < _EVEN
    error = 0.0 if even else error
    why |= _unknown_errors(error)
    parts = zip(*(np.array_split(values, _PARTS) for values in ratios), strict=True)
    fifths, fifths_error = zip(*map(mean_and_error, parts), strict=True)
    how: dict[str, Any] = {"options": unfolded.options, "rotate": rotate}
    scheme = plan(selection, unfolded.method, surrogates, seed, **how)
    draw = partial(_drawn, scheme, bool(surrogates), len(all_spacings), orders, device)
    drawn = _of_laws(draw, map_unordered, tick)
    why |= {} if surrogates else _NOT_ASKED_FOR
    why |= {f"{name}.spacing_p_value": one.reason for name, one in drawn.items() if one.reason}
    laws, goe = {}, STATISTICS["ratio"]("goe")
    same = error == 0
    enough = len(all_ratios) >= FEWEST_RATIOS and not same
    why |= {} if enough else {"excluded": _WHY_NOT_SAID[same]}
    for name in LAWS:
        of_ratio, of_spacing = (law(name) for law in STATISTICS.values())
        verdict = judge(all_ratios, of_ratio, mean_ratio(name), drawn[name].ratio)
        far = *distances(all_ratios, of_ratio)[:2], verdict.simulated if surrogates else None
        laws[name] = LawFit(
            mean_ratio(name),
            verdict.sigmas,
            *far,
            *distances(all_spacings, of_spacing, drawn[name].spacing),
            *likelihood_ratio(ratios, of_ratio, goe),
            verdict.expected,
            verdict.p_value,
            verdict.p_value < RATE if enough else None,
        )
    q = _fitted("brody", partial(brody, spacings, unfolded.resolution), why)
    f = _fitted("superposition", partial(superposition, spacings), why)
    alike = {
        name: Alike(*(drawn[law].alike.get(name, float("nan")) for law in ("goe", "poisson")))
        for name in MEASURES
    }
    corrected = _corrected(q, alike["brody_raw"], len(units(spacings)))
    square, variance, stiffness = _moments(unfolded, why)
    why |= _without_correction(corrected[0], why) | _without_surrogates(alike, drawn, why)
    unresolved = selection.n_unresolved / max(selection.n_spacings, 1)
    noted = (
        *(len(selection.unusable), selection.n_ties, unfolded.resolution),
        0 if all(row is None for row in unfolded.levels) else unfolded.n_short,
    )
    higher = tuple(_of_order(k, unfolded, drawn) for k in range(2, orders + 1))
    why |= _few_of_order(higher)
    return LevelStatistics(
        n_spectra=len(selection.levels),
        **{name: getattr(selection, name) for name in _OF_SELECTION},
        n_ratios=len(all_ratios),
        n_spacings=len(all_spacings),
        mean_ratio=mean,
        mean_ratio_error=error,
        mean_ratio_density=laws["goe"].mean_ratio_alike,
        mean_ratio_fifths=fifths,
        mean_ratio_fifths_error=fifths_error,
        mean_spacing=float(all_spacings.mean()) if len(all_spacings) else float("nan"),
        brody=corrected[0],
        brody_error=corrected[1],
        brody_raw=q.value,
        superposition=f.value,
        superposition_error=f.error,
        second_moment=square[0],
        second_moment_error=square[1],
        number_variance=variance[0],
        number_variance_error=variance[1],
        rigidity=stiffness[0],
        rigidity_error=stiffness[1],
        alike=alike,
        laws=laws,
        conclusion=conclude(mean, error, laws, len(all_ratios), unresolved, 1 / (1 + surrogates)),
        not_computable=why,
        unfolding=unfolded.words,
        surrogates=surrogates,
        seed=seed,
        notes=tuple(note.format(x) for x, note in zip(noted, _NOTES, strict=True) if x),
        higher=higher,
        provenance=_source(spectra),
    )


def _source(spectra: Any) -> Provenance | None:
    """Where spectra came from, if they say it."""
    source = getattr(spectra, "provenance", None)
    return source if isinstance(source, Provenance) else None


def _of_order(k: int, unfolded: Unfolded, drawn: Mapping[str, _Drawn]) -> HigherOrder:
    """Statistics of every k-th level."""
    found: list[Any] = []
    for overlapping in (False, True):
        samples = ratio_samples(unfolded.selection, order=k, overlapping=overlapping)
        count = sum(map(len, samples))
        goe, poisson = (drawn[law].ratios[k, overlapping] for law in Alike._fields)
        mean, error = mean_and_error(samples)
        p = float("nan")
        if count and len(goe[1]):
            far = np.abs(goe[1] - goe[0]) * (goe[2] / count) ** 0.5
            p = (1 + int(np.count_nonzero(far >= abs(mean - goe[0])))) / (1 + len(far))
        found += [mean, error, Alike(goe[0], poisson[0]), p]
    squares = [np.concatenate(_about_mean(runs, k)) for runs in unfolded.runs]
    alike = Alike(*(drawn[x].alike.get(f"spacing_variance_{k}", np.nan) for x in Alike._fields))
    found += [*mean_and_error(squares), alike]
    return HigherOrder(k, *found)


def _without_surrogates(
    alike: Mapping[str, Alike], drawn: Mapping[str, _Drawn], why: Mapping[str, str]
) -> dict[str, str]:
    """Why it isn't known what levels of a law give in the place of some quantities."""
    found = {}
    for name, pair in alike.items():
        for law, value in pair._asdict().items():
            if np.isnan(value):
                few = f"too few {law.upper() if law == 'goe' else law.title()} levels alike"
                found[f"alike.{name}"] = drawn[law].reason or why.get(name, few)
    return found


def _few_of_order(higher: Sequence[HigherOrder]) -> dict[str, str]:
    """Why some statistics of every k-th level are not known."""
    few = [str(one.order) for one in higher if np.isnan(one.mean_ratio + one.overlapping)]
    loose = [str(one.order) for one in higher if np.isnan(one.mean_ratio_error)]
    if not loose:
        return {}
    some = f"; no run has as many levels as orders {', '.join(few)} take" if few else ""
    return {"higher": f"too few units for the errors of orders {', '.join(loose)}{some}"}


def _unknown_errors(error: float) -> dict[str, str]:
    if np.isnan(error):
        of_error = ("mean_ratio_error", "log_likelihood_ratio_error")
        reason = f"fewer than {FEWEST_UNITS} spectra, or stretches of 20 ratios, to resample"
        return dict.fromkeys(of_error, reason)
    return {}


def _sorted(samples: Samples) -> Levels:
    return np.sort(np.concatenate([np.empty(0), *samples]))


class _Drawn(NamedTuple):
    """Surrogates of a law: nulls, why there is none of the spacings, and what they are beside."""

    ratio: Null
    spacing: Null | None
    reason: str
    alike: dict[str, float]
    ratios: dict[tuple[int, bool], tuple[float, np.ndarray, float]]


def _of_laws(
    draw: Callable[[str], _Drawn], map_unordered: MapUnordered, tick: Callable[..., object]
) -> dict[str, _Drawn]:
    """Surrogates of every law."""
    found: dict[str, _Drawn] = {}
    tick("surrogates", 0, len(LAWS))
    for done, (index, result) in enumerate(map_unordered(draw, LAWS), 1):
        found[LAWS[index]] = result
        tick("surrogates", done, len(LAWS))
    return found


def _drawn(
    scheme: SurrogatePlan,
    with_spacings: bool,
    n_spacings: int,
    orders: int,
    device: str,
    name: str,
) -> _Drawn:
    """Surrogates of a law."""
    made = Surrogates(name, scheme, select_backend(device))
    ratio = made.ratios()
    wanted = range(2, orders + 1) if name in Alike._fields else ()
    ratios = {(k, near): made.mean_ratios(k, near) for k in wanted for near in (False, True)}
    if scheme.method == "none":
        return _Drawn(ratio, None, "", {}, ratios)
    try:
        spacing = made.spacings() if with_spacings else None
        beside = _beside(made, name, n_spacings, orders) if name in Alike._fields else {}
    except DataError as error:  # an unfolding that follows the data but not this law's levels
        return _Drawn(ratio, None, f"the unfolding cannot follow surrogates: {error}", {}, ratios)
    return _Drawn(ratio, spacing, "", beside, ratios)


def _beside(made: Surrogates, name: str, n_spacings: int, orders: int) -> dict[str, float]:
    """What surrogates of a law give in place of each measured quantity."""
    wanted = float(np.clip(_ALIKE * n_spacings, _FEWEST_ALIKE, _MOST_ALIKE))
    unfolded, exact = made.sample(wanted)
    resolution = made.resolution
    own, known = [np.diff(x) for x in unfolded], [np.diff(x) for x in exact]
    found = {"second_moment": float(np.mean(np.concatenate(own) ** 2))}
    with suppress(DataError):  # too few levels for a fit, or for a window
        # the fluctuations of these very levels cancel
        change = brody(own, resolution).value - brody(known).value
        found["brody_raw"] = brody_of(name) + change
        found["superposition"] = superposition(own).value
    with suppress(DataError):
        found["number_variance"] = float(number_variance(unfolded, LENGTH))
        found["rigidity"] = float(rigidity(unfolded, LENGTH))
    for k in range(2, orders + 1):
        squares = _about_mean(unfolded, k)
        found[f"spacing_variance_{k}"] = float(np.mean(np.concatenate(squares)))
    return found


def _about_mean(rows: Samples, k: int) -> Samples:
    """(s - k)² of k-th neighbours, row by row."""
    return [np.empty(0), *((row[k:] - row[:-k] - k) ** 2 for row in rows if len(row) > k)]


@lru_cache
def brody_of(law: str) -> float:
    """Brody parameter that fits the spacings of a law best: 0 for Poisson, 0.953 for GOE.

    Args:
        law: One of :data:`hessrmt.levels.goodness.LAWS`.

    Returns:
        The one of the largest mean log-likelihood.
    """
    points = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    return 0.0 if law == "poisson" else brody(np.asarray(spacing_law(law).ppf(points))).value


def _corrected(fit: Fit, alike: Alike, count: int) -> tuple[float, float]:
    """Brody parameter on the line through what the unfolding makes of Poisson and GOE levels."""
    slope = brody_of("goe") / (alike.goe - alike.poisson)
    # so wide that it covers as often as that of a normal variable, from few units too
    wide = float(t.ppf(_ONE_SIGMA, count - 1)) if count > 1 else float("nan")
    return (fit.value - alike.poisson) * slope, fit.error * abs(slope) * wide


def _without_correction(brody: float, why: Mapping[str, str]) -> dict[str, str]:
    """Why there is no Brody parameter."""
    if "brody" in why:
        return {"brody_raw": why["brody"]}
    if np.isnan(brody):
        reason = "what the unfolding makes of GOE and Poisson levels is not known"
        return {"brody": reason, "brody_error": why.get("brody_error", reason)}
    return {}


def _moments(unfolded: Unfolded, why: dict[str, str]) -> list[tuple[float, float]]:
    """⟨s²⟩, Σ² and Δ₃ of the data, with their errors."""
    nothing = float("nan"), float("nan")
    rows = [run for runs in unfolded.runs for run in runs]
    if not rows:
        return [nothing] * 3
    found = [mean_and_error([steps**2 for steps in unfolded.spacings])]
    for name, measure in (("number_variance", number_variance), ("rigidity", rigidity)):
        try:
            value, error = with_error(partial(_at_length, measure), rows)
            found.append((float(value[0]), float(error[0])))
        except DataError as error:
            found.append(nothing)
            why |= dict.fromkeys((name, f"{name}_error"), str(error))
    for name, (_, error) in zip(tuple(MEASURES)[2:], found, strict=True):
        if np.isnan(error):
            why.setdefault(f"{name}_error", "too few levels to resample")
    return found


def _at_length(measure: Callable[..., Any], rows: Samples) -> Levels:
    return np.atleast_1d(measure(rows, [LENGTH]))


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


def conclude(
    mean: float,
    error: float,
    laws: Mapping[str, LawFit],
    n_ratios: int,
    unresolved: float = 0.0,
    smallest: float = 0.0,
) -> str:
    """One sentence about the ratios, made from which laws are excluded.

    Args:
        mean: ⟨r̃⟩.
        error: Its standard error, NaN if unknown.
        laws: Law name to comparison; ``goe`` is among them.
        n_ratios: Ratios used.
        unresolved: Share of the spacings that are no larger than the noise floor.
        smallest: Smallest p-value that the spacings can have.

    Returns:
        The sentence.
    """
    noise = f"; but {unresolved:.0%} of the spacings lie below the noise floor"
    p = laws["goe"].spacing_p_value
    strange = p is not None and p <= max(RATE, min(smallest, _RATE_SPACINGS))
    spacings = f"p(s) ≤ {p:.1g}" if strange else ""
    said = _sentence(mean, error, laws, n_ratios, spacings)
    if _RATE_SPACINGS < smallest < 1 and said.startswith(_AGREES):  # 1: none were asked for
        said += "; the unfolded spacings are not judged: that takes 200 surrogates"
    return said + (noise if unresolved > MANY else "")


def _sentence(
    mean: float, error: float, laws: Mapping[str, LawFit], n_ratios: int, spacings: str
) -> str:
    goe = laws["goe"]
    if error == 0:
        return f"no conclusion: ⟨r̃⟩ = {mean:.4f} from {n_ratios} ratios; {_NO_SCATTER}"
    if goe.excluded is None:
        few = f"fewer than {FEWEST_RATIOS}"
        return f"too few to say: ⟨r̃⟩ = {mean:.4f} from {n_ratios} ratios, {few}"
    measured = f"⟨r̃⟩ = {mean:.4f}" + (f" ± {error:.4f}" if error > 0 else "")
    expected = f"{goe.mean_ratio_alike:.4f}"
    if goe.sigmas:  # what the levels of a law scatter by
        expected += f" ± {abs((mean - goe.mean_ratio_alike) / goe.sigmas):.4f}"
    fitting = [name for name, law in laws.items() if not law.excluded]
    others = " and ".join(WORDS[name] for name in fitting if name != "goe")
    if "goe" in fitting:
        away = f"{abs(goe.sigmas):.1f} σ from the {expected} of GOE levels alike"
        return _not_excluded(goe, f"{measured}, {away}", others, spacings)
    p = p_equals(at_most(goe.p_value, SMALLEST))
    far = f"{abs(goe.sigmas):.1f} σ, {p}: " if abs(goe.sigmas) > FAR else f"{p}: "
    shape = "" if abs(goe.sigmas) > FAR else " by the shape of P(r̃)"
    start = f"GOE excluded{shape} ({far}{measured}, GOE levels alike {expected})"
    if fitting:
        return f"{start}; {others} {'fits' if len(fitting) == 1 and fitting != ['goe2'] else 'fit'}"
    nearest = min(laws, key=lambda name: laws[name].ratio_distance)
    if nearest == "goe":
        return f"{start}; no other reference law comes nearer"
    return f"{start}; no reference law fits, the nearest is {WORDS[nearest]}"


def _not_excluded(goe: LawFit, numbers: str, others: str, spacings: str) -> str:
    """What ratios that don't exclude the GOE say, together with the unfolded spacings."""
    if goe.p_value < BARELY:
        limit = f"p = {goe.p_value:.2g} where {RATE:g} is the limit"
        also = f"; nor is {others}" if others else ""
        if not spacings:
            return f"GOE only just not excluded ({limit}: {numbers}){also}"
        by = f"only just not excluded by the ratios ({limit}: {numbers})"
        return f"GOE unlikely: {by}, and the unfolded spacings disagree too ({spacings}){also}"
    near = f"{_AGREES} ({numbers})"
    if others:
        near += f", but also with {others}: too few levels to tell them apart"
    if not spacings:
        return near
    why = "the ratios need no unfolding, so that a poor fit of the density may be the reason"
    return f"undecided: the ratios are {near}; the unfolded spacings are not ({spacings}); {why}"
