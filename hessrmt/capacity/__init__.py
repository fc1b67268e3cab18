"""Capacity metrics of weight matrices: power laws, norms and ranks, without data.

>>> report = hr.capacity.analyze(model)  # or a state dict, or the path of a checkpoint
>>> report.alpha_hat, [layer.alpha for layer in report.layers]

====================  ============================================================================
module                contents
====================  ============================================================================
:mod:`~.analysis`     ``analyze``: a network to its report
:mod:`~.sources`      weights of modules, state dicts, files and folders, read one at a time
:mod:`~.layers`       which matrices a layer has, or why it has none
:mod:`~.spectra`      eigenvalues of X = WᵀW/N, norms, ranks, entropy; Marchenko-Pastur bulk
:mod:`~.powerlaw`     exponents by maximum likelihood, p-values, comparisons with other laws
:mod:`~.report`       records of layers and of the network
:mod:`~.correlation`  metrics against accuracies along a series: lines, correlations, intervals
====================  ============================================================================
"""

from hessrmt.capacity.analysis import analyze
from hessrmt.capacity.correlation import Correlation, correlate
from hessrmt.capacity.powerlaw import (
    Comparison,
    PowerLawFit,
    compare,
    fit,
    fit_all,
    goodness_of_fit,
    scan,
)
from hessrmt.capacity.report import CapacityReport, Layer, MatrixFit, SideBySide, side_by_side
from hessrmt.capacity.sources import open_source
from hessrmt.capacity.spectra import BulkFit, fit_bulk, tied

__all__ = [
    "BulkFit",
    "CapacityReport",
    "Comparison",
    "Correlation",
    "Layer",
    "MatrixFit",
    "PowerLawFit",
    "SideBySide",
    "analyze",
    "compare",
    "correlate",
    "fit",
    "fit_all",
    "fit_bulk",
    "goodness_of_fit",
    "open_source",
    "scan",
    "side_by_side",
    "tied",
]
