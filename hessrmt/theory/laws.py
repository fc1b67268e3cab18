"""The reference laws by name, as :class:`hessrmt.theory.law.Law`.

Names: "goe", "gue", "gse" (Gaussian ensembles), "poisson" (independent levels), "goe2" (two equal
independent GOE blocks superposed, as an unnoticed symmetry of parity type makes them).
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from hessrmt.theory import ratios, spacings
from hessrmt.theory.law import Law
from hessrmt.theory.values import BETAS, block_fractions, one_of

BETA_OF = {"goe": 1, "gue": 2, "gse": 4}
NAMES = ("goe", "gue", "gse", "poisson", "goe2")


@functools.cache
def spacing_law(name: str) -> Law:
    """Law of the spacing s, in the large-matrix limit, by the name of an ensemble.

    Args:
        name: "goe", "gue", "gse", "poisson" or "goe2".

    Returns:
        The exact law (see :mod:`hessrmt.theory.spacings`).
    """
    one_of(name, NAMES, "name")
    if name == "poisson":
        quantile = functools.partial(spacings.brody_quantile, q=0)
        return Law(name, spacings.poisson_spacing, spacings.poisson_spacing_cdf, quantile=quantile)
    if name == "goe2":
        return superposed_law(2, name)
    beta = BETA_OF[name]
    return Law(
        name,
        functools.partial(spacings.exact_spacing, beta=beta),
        functools.partial(spacings.exact_spacing_cdf, beta=beta),
    )


def superposed_law(fractions: int | Sequence[float], name: str | None = None) -> Law:
    """Law of the spacing in a superposition of independent GOE blocks.

    Args:
        fractions: Each block's part of the levels (sum 1), or the number of equal blocks.
        name: What to call it.

    Returns:
        The law of :func:`hessrmt.theory.spacings.superposed_spacing`.
    """
    block_fractions(fractions)
    if not isinstance(fractions, int):
        fractions = tuple(fractions)
    return Law(
        name or f"goe blocks {fractions}",
        functools.partial(spacings.superposed_spacing, fractions=fractions),
        functools.partial(spacings.superposed_spacing_cdf, fractions=fractions),
    )


def wigner_law(beta: int = 1) -> Law:
    """Wigner's surmise of the spacing as a law.

    Args:
        beta: Dyson's index, 1, 2 or 4.

    Returns:
        The law of :func:`hessrmt.theory.spacings.wigner_surmise`.
    """
    one_of(beta, BETAS, "beta")
    return Law(
        f"wigner surmise, beta {beta}",
        functools.partial(spacings.wigner_surmise, beta=beta),
        functools.partial(spacings.wigner_surmise_cdf, beta=beta),
        quantile=functools.partial(spacings.wigner_surmise_quantile, beta=beta),
    )


def brody_law(q: float) -> Law:
    """Brody's interpolation as a law.

    Args:
        q: Repulsion, 0 for Poisson, 1 for the Wigner surmise.

    Returns:
        The law of :func:`hessrmt.theory.spacings.brody`.
    """
    spacings.brody(1.0, q)
    return Law(
        f"brody, q {q:g}",
        functools.partial(spacings.brody, q=q),
        functools.partial(spacings.brody_cdf, q=q),
        quantile=functools.partial(spacings.brody_quantile, q=q),
    )


@functools.cache
def ratio_law_folded(name: str) -> Law:
    """Law of r̃ = min(r, 1/r) on [0, 1] by the name of an ensemble.

    Args:
        name: "goe", "gue", "gse", "poisson" or "goe2".

    Returns:
        Atas et al.'s surmise with its large-matrix correction for the Gaussian ensembles, Giraud et
        al.'s surmise for "goe2", exact for "poisson".
    """
    density, distribution = _ratio(name)
    return Law(
        name,
        functools.partial(density, folded=True),
        functools.partial(distribution, folded=True),
        support=(0.0, 1.0),
    )


@functools.cache
def ratio_law_unfolded(name: str, cut: float | None = None) -> Law:
    """Law of the ratio r itself, on the positive axis or up to a cut.

    Args:
        name: As for :func:`ratio_law_folded`.
        cut: Law of the ratios up to the cut only.

    Returns:
        The law; uncut, its density falls off as r^-(2+β), for "poisson" and "goe2" as r^-2.
    """
    density, distribution = _ratio(name)
    folded = ratio_law_folded(name)
    mass = 1.0 if cut is None else float(distribution(cut))

    def quantile(u: np.ndarray) -> np.ndarray:
        p = u * mass
        small = np.asarray(folded.ppf(2 * np.minimum(p, 1 - p)))
        large = np.divide(1, small, out=np.full(small.shape, np.inf), where=small > 0)
        return np.where(p < 0.5, small, large)

    return Law(
        name,
        functools.partial(density, cut=cut),
        functools.partial(distribution, cut=cut),
        support=(0.0, np.inf if cut is None else float(cut)),
        quantile=quantile,
        tail=np.inf if cut is not None else 2.0 + BETA_OF.get(name, 0),
    )


def _ratio(name: str) -> tuple[Callable, Callable]:
    one_of(name, NAMES, "name")
    if name == "poisson":
        return ratios.poisson_ratio_law, ratios.poisson_ratio_law_cdf
    if name == "goe2":
        return ratios.block_ratio_law, ratios.block_ratio_law_cdf
    choice = {"beta": BETA_OF[name], "corrected": True}
    return (
        functools.partial(ratios.ratio_law, **choice),
        functools.partial(ratios.ratio_law_cdf, **choice),
    )
