"""Capacity metrics of weight matrices: power laws, norms and ranks, without data.

>>> report = hr.capacity.analyze(model)  # or a state dict, or the path of a checkpoint
>>> report.alpha_hat, [layer.alpha for layer in report.layers]

==============================  ==================================================================
module                          contents
==============================  ==================================================================
:mod:`~.analysis`               ``analyze``: a network to its report
:mod:`~.sources`                layers of modules, state dicts and files, read one at a time
:mod:`~.spectra`                eigenvalues of X = WᵀW/N
:mod:`~.powerlaw`               exponents by maximum likelihood; p-values in :mod:`~.bootstrap`,
                                comparisons with other laws in :mod:`~.likelihoods`
:mod:`~.marchenko_pastur`       bulk, spikes, soft rank
:mod:`~.metrics`                norms, ranks, entropy
:mod:`~.report`                 records of layers and of the network
:mod:`~.series`                 correlation of a series of networks with their accuracies
==============================  ==================================================================
"""

from hessrmt.capacity.analysis import analyze
from hessrmt.capacity.bootstrap import goodness_of_fit
from hessrmt.capacity.likelihoods import Comparison, compare
from hessrmt.capacity.marchenko_pastur import BulkFit, fit_bulk
from hessrmt.capacity.powerlaw import PowerLawFit, fit, fit_all, scan
from hessrmt.capacity.report import CapacityReport, Layer, MatrixFit
from hessrmt.capacity.series import Correlation, correlate
from hessrmt.capacity.sources import open_source

__all__ = [
    "BulkFit",
    "CapacityReport",
    "Comparison",
    "Correlation",
    "Layer",
    "MatrixFit",
    "PowerLawFit",
    "analyze",
    "compare",
    "correlate",
    "fit",
    "fit_all",
    "fit_bulk",
    "goodness_of_fit",
    "open_source",
    "scan",
]
