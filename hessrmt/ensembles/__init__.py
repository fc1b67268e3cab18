"""Random-matrix ensembles sampled exactly: controls for every statistic of levels."""

from hessrmt.ensembles.gaussian import gaussian_levels, goe, gse, gue
from hessrmt.ensembles.independent import poisson, poisson_levels
from hessrmt.ensembles.superposition import block_levels, blocks, goe2
from hessrmt.ensembles.wishart import wishart, wishart_levels

__all__ = [
    "block_levels",
    "blocks",
    "gaussian_levels",
    "goe",
    "goe2",
    "gse",
    "gue",
    "poisson",
    "poisson_levels",
    "wishart",
    "wishart_levels",
]
