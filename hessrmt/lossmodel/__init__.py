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
:mod:`~.iterates`       SGD's iterates near a minimum: exact moments, Theorem 8.1, sampled
======================  ==========================================================================
"""

from hessrmt.lossmodel.averaging import Estimate as Estimate
from hessrmt.lossmodel.averaging import averaged_covariance_matrix as averaged_covariance_matrix
from hessrmt.lossmodel.averaging import averaged_gradient_covariance as averaged_gradient_covariance
from hessrmt.lossmodel.averaging import guaranteed_bound as guaranteed_bound
from hessrmt.lossmodel.averaging import large_dimension_scaling as large_dimension_scaling
from hessrmt.lossmodel.averaging import monte_carlo as monte_carlo
from hessrmt.lossmodel.averaging import sampled_gradients as sampled_gradients
from hessrmt.lossmodel.averaging import theorem_8_2_applies as theorem_8_2_applies
from hessrmt.lossmodel.averaging import theorem_8_2_bound as theorem_8_2_bound
from hessrmt.lossmodel.averaging import weight_decay_matrices as weight_decay_matrices
from hessrmt.lossmodel.covariance import HessianCovariance as HessianCovariance
from hessrmt.lossmodel.covariance import Stationary as Stationary
from hessrmt.lossmodel.covariance import mixed_spherical as mixed_spherical
from hessrmt.lossmodel.covariance import p_spin as p_spin
from hessrmt.lossmodel.covariance import paper as paper
from hessrmt.lossmodel.iterates import IterateMoments as IterateMoments
from hessrmt.lossmodel.iterates import Radii as Radii
from hessrmt.lossmodel.iterates import SampledIterates as SampledIterates
from hessrmt.lossmodel.iterates import iterate_moments as iterate_moments
from hessrmt.lossmodel.iterates import sampled_iterates as sampled_iterates
from hessrmt.lossmodel.iterates import theorem_8_1 as theorem_8_1
from hessrmt.lossmodel.kernels import matern as matern
from hessrmt.lossmodel.kernels import mixture as mixture
from hessrmt.lossmodel.kernels import rational_quadratic as rational_quadratic
from hessrmt.lossmodel.kernels import rbf as rbf
from hessrmt.lossmodel.kernels import stationary as stationary
from hessrmt.lossmodel.sampler import sample_hessian as sample_hessian
from hessrmt.lossmodel.sampler import sample_spectra as sample_spectra
from hessrmt.lossmodel.surfaces import Jets as Jets
from hessrmt.lossmodel.surfaces import RandomFeatureSurface as RandomFeatureSurface
from hessrmt.lossmodel.surfaces import TrueLosses as TrueLosses
from hessrmt.lossmodel.surfaces import descend as descend
from hessrmt.lossmodel.surfaces import iterate_average as iterate_average
from hessrmt.lossmodel.surfaces import quadratic as quadratic
from hessrmt.lossmodel.surfaces import random_surface as random_surface
from hessrmt.lossmodel.surfaces import sample_jets as sample_jets
from hessrmt.lossmodel.surfaces import true_losses as true_losses
