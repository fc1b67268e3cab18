"""Statistics of levels: unfolding, spacings, ratios, long-range correlations, tests of laws."""

from hessrmt.levels.analysis import LawFit as LawFit
from hessrmt.levels.analysis import LevelStatistics as LevelStatistics
from hessrmt.levels.analysis import analyze as analyze
from hessrmt.levels.histograms import decade_histograms as decade_histograms
from hessrmt.levels.histograms import density_histograms as density_histograms
from hessrmt.levels.histograms import long_range as long_range
from hessrmt.levels.histograms import ratio_histogram as ratio_histogram
from hessrmt.levels.histograms import spacing_histogram as spacing_histogram
from hessrmt.levels.longrange import form_factor as form_factor
from hessrmt.levels.longrange import number_variance as number_variance
from hessrmt.levels.longrange import rigidity as rigidity
from hessrmt.levels.selection import select as select
from hessrmt.levels.spacings import brody as brody
from hessrmt.levels.spacings import mean_ratio as mean_ratio
from hessrmt.levels.spacings import ratios as ratios
from hessrmt.levels.spacings import spacings as spacings
from hessrmt.levels.spacings import superposition as superposition
from hessrmt.levels.unfolding import pooled as pooled
from hessrmt.levels.unfolding import unfold as unfold
from hessrmt.levels.unfolding import unfold_selection as unfold_selection
