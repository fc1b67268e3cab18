"""Statistics of levels: unfolding, spacings, ratios, long-range correlations, tests of laws."""

from hessrmt.levels.analysis import (
    analyze,
    long_range,
    ratio_histogram,
    spacing_histogram,
    unfold_selection,
)
from hessrmt.levels.density import decade_histograms, density_histograms
from hessrmt.levels.fits import brody, superposition
from hessrmt.levels.formfactor import form_factor
from hessrmt.levels.numbervariance import number_variance
from hessrmt.levels.ratios import mean_ratio, ratios
from hessrmt.levels.rigidity import rigidity
from hessrmt.levels.selection import select
from hessrmt.levels.spacings import spacings
from hessrmt.levels.unfolding import pooled, unfold

__all__ = [
    "analyze",
    "brody",
    "decade_histograms",
    "density_histograms",
    "form_factor",
    "long_range",
    "mean_ratio",
    "number_variance",
    "pooled",
    "ratio_histogram",
    "ratios",
    "rigidity",
    "select",
    "spacing_histogram",
    "spacings",
    "superposition",
    "unfold",
    "unfold_selection",
]
