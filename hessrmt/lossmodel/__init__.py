"""Gaussian-process models of loss surfaces: covariances, sampled Hessians, whole surfaces."""

from hessrmt.lossmodel.averaging import (
    averaged_covariance_matrix,
    averaged_gradient_covariance,
    guaranteed_bound,
    large_dimension_scaling,
    theorem_8_2_applies,
    theorem_8_2_bound,
)
from hessrmt.lossmodel.covariance import HessianCovariance, paper
from hessrmt.lossmodel.jets import Jets, sample_jets
from hessrmt.lossmodel.montecarlo import Estimate, monte_carlo, sampled_gradients
from hessrmt.lossmodel.process import Stationary
from hessrmt.lossmodel.sampler import sample_hessian, sample_spectra
from hessrmt.lossmodel.spherical import mixed_spherical, p_spin
from hessrmt.lossmodel.stationary import matern, mixture, rational_quadratic, rbf, stationary
from hessrmt.lossmodel.surfaces import RandomFeatureSurface, quadratic, random_surface
from hessrmt.lossmodel.trajectories import TrueLosses, descend, iterate_average, true_losses
from hessrmt.lossmodel.weights import weight_decay_matrices

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
