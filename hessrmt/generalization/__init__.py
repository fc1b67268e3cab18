"""Normalised networks: margins, gradient flow, what training losses say about test losses.

>>> net = hr.generalization.normalize(model, x)
>>> net.model, net.factors, net.product  # f = Πρ_k f̃
>>> hr.generalization.margins(model, x, y, product=net.product).normalized_minimum

==============================  ==================================================================
module                          contents
==============================  ==================================================================
:mod:`~.normalize`              ``normalize``, and ``output_normalize`` for other networks
:mod:`~.layers`                 layers in the order of depth, by running the network
:mod:`~.batchnorm`              BatchNorm folded into the layer next to it
:mod:`~.homogeneity`            the check that outputs scale with the weights
:mod:`~.margins`                margins, their quantiles, support examples, 1/η
:mod:`~.evaluation`             both losses and margins in one pass over data
:mod:`~.callback`               ``NormalizedLoss``, for a training loop of one's own
:mod:`~.lines`                  ``fit_line``: test losses against training losses of a family
:mod:`~.budget`                 ``fit_budgets``: best validation losses against the training budget
:mod:`~.flow`                   ``gradient_flow`` of bias-free networks, three kinds
:mod:`~.trajectory`             ``Flow``: norms, directions and margins along it
:mod:`~.svm`                    ``maximum_margin``: where flows on separable data should end
:mod:`~.separable`              ``linear_task``, ``quadrant_task``: tasks whose answer is known
:mod:`~.approximation`          ``study``: deep tree networks against shallow ones
:mod:`~.trees`                  compositional functions on binary trees, and those networks
==============================  ==================================================================
"""

from hessrmt.generalization.callback import Measurement, NormalizedLoss
from hessrmt.generalization.evaluation import Evaluation, evaluate
from hessrmt.generalization.lines import LineFit, fit_line
from hessrmt.generalization.margins import MarginSummary, margins
from hessrmt.generalization.normalize import Normalized, normalize, output_normalize

__all__ = [
    "Evaluation",
    "LineFit",
    "MarginSummary",
    "Measurement",
    "Normalized",
    "NormalizedLoss",
    "evaluate",
    "fit_line",
    "margins",
    "normalize",
    "output_normalize",
]
