"""Normalised networks: margins, gradient flow, what training losses say about test losses.

>>> net = hr.generalization.normalize(model, x)
>>> net.model, net.factors, net.product  # f = Πρ_k f̃
>>> hr.generalization.margins(model, x, y, product=net.product).normalized_minimum

==============================  ==================================================================
module                          contents
==============================  ==================================================================
:mod:`~.normalization`          ``normalize``, and ``output_normalize`` for other networks;
                                ``margins``; ``evaluate``; ``NormalizedLoss``, for a training loop
:mod:`~.networks`               layers in the order of depth, with BatchNorm folded into them
:mod:`~.fits`                   ``fit_line``: test losses against training losses of a family;
                                ``fit_budgets``: best validation losses against the training budget
:mod:`~.bias_free`              bias-free networks and their losses; ``linear_task``,
                                ``quadrant_task``; ``maximum_margin``, where flows should end
:mod:`~.flow`                   ``gradient_flow`` of such networks; ``Flow``: norms, directions,
                                margins along it
:mod:`~.approximation`          ``study``: deep tree networks against shallow ones
==============================  ==================================================================
"""

from hessrmt.generalization.fits import LineFit as LineFit
from hessrmt.generalization.fits import fit_line as fit_line
from hessrmt.generalization.normalization import Evaluation as Evaluation
from hessrmt.generalization.normalization import MarginSummary as MarginSummary
from hessrmt.generalization.normalization import Measurement as Measurement
from hessrmt.generalization.normalization import Normalized as Normalized
from hessrmt.generalization.normalization import NormalizedLoss as NormalizedLoss
from hessrmt.generalization.normalization import evaluate as evaluate
from hessrmt.generalization.normalization import margins as margins
from hessrmt.generalization.normalization import normalize as normalize
from hessrmt.generalization.normalization import output_normalize as output_normalize
