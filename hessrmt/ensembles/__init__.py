"""Random-matrix ensembles sampled exactly: controls for every statistic of levels."""

from hessrmt.ensembles.sampling import block_levels as block_levels
from hessrmt.ensembles.sampling import blocks as blocks
from hessrmt.ensembles.sampling import gaussian_band as gaussian_band
from hessrmt.ensembles.sampling import gaussian_levels as gaussian_levels
from hessrmt.ensembles.sampling import goe as goe
from hessrmt.ensembles.sampling import goe2 as goe2
from hessrmt.ensembles.sampling import gse as gse
from hessrmt.ensembles.sampling import gue as gue
from hessrmt.ensembles.sampling import poisson as poisson
from hessrmt.ensembles.sampling import poisson_levels as poisson_levels
from hessrmt.ensembles.sampling import superposed as superposed
from hessrmt.ensembles.sampling import wishart as wishart
from hessrmt.ensembles.sampling import wishart_levels as wishart_levels
