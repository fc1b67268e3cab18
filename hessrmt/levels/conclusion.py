"""The one sentence: consistent with which law, or excluded at how many standard errors.

It rests on the ratios r̃, which need no unfolding: a law is consistent if its ratio p-value is not
small and ⟨r̃⟩ lies within three standard errors of its value.
"""

from __future__ import annotations

from collections.abc import Mapping

from hessrmt.records import LawFit

SIGNIFICANT = 0.01
"""p-value below which a law is excluded."""

FAR = 3.0
"""Standard errors beyond which a law is excluded."""

MANY = 0.02
"""Share of spacings below the noise floor from which the sentence mentions them."""

WORDS = {
    "goe": "GOE",
    "gue": "GUE",
    "gse": "GSE",
    "poisson": "Poisson (independent levels)",
    "goe2": "two superposed GOE blocks",
}
"""Laws as a sentence names them."""

SHORT = WORDS | {"poisson": "Poisson", "goe2": "2 GOE blocks"}
"""Laws as a table names them."""


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
    sentence = _verdict(mean, error, laws, n_ratios)
    if unresolved > MANY:
        return f"{sentence}; but {unresolved:.0%} of the spacings lie below the noise floor"
    return sentence


def _verdict(mean: float, error: float, laws: Mapping[str, LawFit], n_ratios: int) -> str:
    goe = laws["goe"]
    measured = f"⟨r̃⟩ = {mean:.4f} ± {error:.4f}" if error > 0 else f"⟨r̃⟩ = {mean:.4f}"
    if not error > 0:
        reason = "which do not scatter" if error == 0 else "too few for a standard error"
        return f"no conclusion: {measured} from {n_ratios} ratios, {reason}"
    # without p-values the mean alone decides
    fitting = [name for name, law in laws.items() if consistent(law)]
    if "goe" in fitting:
        others = [WORDS[name] for name in fitting if name != "goe"]
        near = f"{measured}, {abs(goe.sigmas):.1f} σ from {goe.mean_ratio:.4f}"
        if others:
            return (
                f"consistent with GOE ({near}), but also with {' and '.join(others)}: too few "
                "levels to tell them apart"
            )
        return f"consistent with GOE ({near})"
    if abs(goe.sigmas) > FAR:
        start = f"GOE excluded at {abs(goe.sigmas):.1f} σ ({measured} against {goe.mean_ratio:.4f})"
    else:
        start = (
            f"GOE excluded by the shape of P(r̃) (p = {goe.ratio_p_value:.2g}; {measured} against "
            f"{goe.mean_ratio:.4f})"
        )
    if fitting:
        names = " and ".join(WORDS[name] for name in fitting)
        return f"{start}; {names} {'fits' if len(fitting) == 1 and fitting != ['goe2'] else 'fit'}"
    nearest = min(laws, key=lambda name: laws[name].ratio_distance)
    if nearest == "goe":
        return f"{start}; no other reference law comes nearer"
    return f"{start}; no reference law fits, the nearest is {WORDS[nearest]}"
