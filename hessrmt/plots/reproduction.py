"""Pictures of the experiment ``hessian-spacings``, in the manner of [B] Figs. 1 to 4."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from hessrmt.plots.density import density_per_decade, spectral_density
from hessrmt.plots.files import Drawn, checked_ending, draw_each
from hessrmt.plots.ratios import ratio_histogram
from hessrmt.plots.spacings import spacing_histogram
from hessrmt.plots.surmise import surmise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from hessrmt.levels.unfolding import Unfolded
    from hessrmt.plots.picture import Picture
    from hessrmt.records import Spectrum


def spacings_figures(
    unfolded: Mapping[str, Unfolded],
    control: Sequence[Spectrum],
    folder: Path,
    ending: str = "png",
    *,
    surrogates: int = 200,
    seed: int = 0,
) -> list[Drawn]:
    """Densities, the surmise, and histograms of spacings and ratios of every run.

    Args:
        unfolded: Name of a run to its unfolded levels.
        control: Spectra of the GOE, drawn beside the densities as in [B] Fig. 1.
        folder: An existing folder.
        ending: Of the files.
        surrogates: As for :func:`hessrmt.plots.spacings.spacing_histogram`.
        seed: Of the surrogates.

    Returns:
        For each picture its file, or the reason why there is none.
    """
    kind = checked_ending(ending)
    densities = {"GOE": [item.eigenvalues for item in control]}
    densities |= {name: list(item.selection.levels) for name, item in unfolded.items()}
    pictures: dict[str, Callable[[], Picture]] = {
        "surmise": partial(surmise, "Wigner's surmise and the exact GOE law"),
    }
    for name, item in unfolded.items():
        pair = {"GOE": densities["GOE"], name: densities[name]}
        pictures |= {
            f"{name}-density": partial(spectral_density, pair, name),
            f"{name}-density-per-decade": partial(
                density_per_decade, {name: densities[name]}, name
            ),
            f"{name}-spacings": partial(
                spacing_histogram, item, name, surrogates=surrogates, seed=seed
            ),
            f"{name}-ratios": partial(ratio_histogram, item.selection, title=name),
            f"{name}-ratios-unfolded": partial(
                ratio_histogram, item.selection, folded=False, title=name
            ),
        }
    return draw_each(pictures, folder, kind)
