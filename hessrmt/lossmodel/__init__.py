"""Gaussian-process models of loss surfaces: covariances, sampled Hessians, whole surfaces.

======================  ==========================================================================
module                  contents
======================  ==========================================================================
:mod:`~.covariance`     the law of a Hessian at one point, a stationary process at several
:mod:`~.kernels`        named kernels, mixtures, kernels given as a function
:mod:`~.functions`      differentiates the functions that a user writes
:mod:`~.sampler`        sampled Hessians, their spectra, and where bulk and outliers lie
:mod:`~.surfaces`       whole surfaces, samples at several points, gradient descent
:mod:`~.averaging`      variance of averaged gradients: exact, bounded, sampled
======================  ==========================================================================
"""

from hessrmt.lossmodel.averaging import (
    Estimate,
    averaged_covariance_matrix,
    averaged_gradient_covariance,
    guaranteed_bound,
    large_dimension_scaling,
    monte_carlo,
    sampled_gradients,
    theorem_8_2_applies,
    theorem_8_2_bound,
    weight_decay_matrices,
)
from hessrmt.lossmodel.covariance import (
    HessianCovariance,
    Stationary,
    mixed_spherical,
    p_spin,
    paper,
)
from hessrmt.lossmodel.kernels import matern, mixture, rational_quadratic, rbf, stationary
from hessrmt.lossmodel.sampler import sample_hessian, sample_spectra
from hessrmt.lossmodel.surfaces import (
    Jets,
    RandomFeatureSurface,
    TrueLosses,
    descend,
    iterate_average,
    quadratic,
    random_surface,
    sample_jets,
    true_losses,
)

__all__ = [
    "Estimate",
    "HessianCovariance",
    "Jets",
    "RandomFeatureSurface",
    "Stationary",
    "TrueLosses",
    "averaged_covariance_matrix",
    "averaged_gradient_covariance",
    "descend",
    "guaranteed_bound",
    "iterate_average",
    "large_dimension_scaling",
    "matern",
    "mixed_spherical",
    "mixture",
    "monte_carlo",
    "p_spin",
    "paper",
    "quadratic",
    "random_surface",
    "rational_quadratic",
    "rbf",
    "sample_hessian",
    "sample_jets",
    "sample_spectra",
    "sampled_gradients",
    "stationary",
    "theorem_8_2_applies",
    "theorem_8_2_bound",
    "true_losses",
    "weight_decay_matrices",
]
