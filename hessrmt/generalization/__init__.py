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
:mod:`~.rademacher`             ``rademacher_bound``: complexity of such networks, bounds on errors
:mod:`~.bias_free`              bias-free networks and their losses; ``linear_task``,
                                ``quadrant_task``; ``maximum_margin``, where flows should end
:mod:`~.flow`                   ``gradient_flow`` of such networks; ``Flow``: norms, directions,
                                margins along it
:mod:`~.batch_norm`             ``batch_norm_flow``: the same of networks with batch normalisation
:mod:`~.stationary`             ``stationary_sets``: where flows from many starts end
:mod:`~.stability`              ``leave_one_out`` along flows; ``square_flow``, least squares
:mod:`~.approximation`          ``study``: deep tree networks against shallow ones
:mod:`~.polynomials`            ``realize``: polynomials by smooth units; ``squares`` by ReLUs
==============================  ==================================================================
"""

from hessrmt.generalization.fits import LineFit, fit_line
from hessrmt.generalization.normalization import (
    Evaluation,
    MarginSummary,
    Measurement,
    Normalized,
    NormalizedLoss,
    evaluate,
    margins,
    normalize,
    output_normalize,
)
from hessrmt.generalization.rademacher import (
    Attained,
    ErrorBound,
    RademacherBound,
    attained,
    rademacher_bound,
)

__all__ = [
    "Attained",
    "ErrorBound",
    "Evaluation",
    "LineFit",
    "MarginSummary",
    "Measurement",
    "Normalized",
    "NormalizedLoss",
    "RademacherBound",
    "attained",
    "evaluate",
    "fit_line",
    "margins",
    "normalize",
    "output_normalize",
    "rademacher_bound",
]
