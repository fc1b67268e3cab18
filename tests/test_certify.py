"""Which levels are real: noise floor, cutoffs, gaps."""

import numpy as np
import pytest
from torch import nn

import hessrmt as hr
from hessrmt.curvature import certify
from hessrmt.problems import data, models

EPS = float(np.finfo(np.float64).eps)


def published_protocol(x, y):
    """Softmax regression in float64, and as the published code does: float32, |λ| > 1e-20."""
    model = models.build("logistic", tuple(x.shape[1:]), 10, 0)
    problem = hr.Problem(model, "cross-entropy", (x, y))
    double = hr.spectrum(problem)
    # the published code diagonalises with NumPy, whose LAPACK leaves every null direction nonzero
    levels = np.linalg.eigvalsh(hr.hessian(problem, dtype="float32")).astype(np.float64)
    floor = certify.noise_floor(levels, len(levels), "float32")
    single = hr.Spectrum(levels, floor, len(levels), len(levels), dtype="float32")
    false = single.n_paper_cutoff - double.rank
    assert round(100 * false / single.n_paper_cutoff) == 93
    assert single.noise_floor > 1e6 * double.noise_floor
    assert double.gap_decades == np.inf
    assert double.resolved_spacings == double.rank - 1
    return double, single


@pytest.mark.slow
def test_certificate_of_the_published_protocol():
    """In float32 and with |λ| > 1e-20, 93 % of the levels are round-off."""
    double, single = published_protocol(*data.load("mnist", "test").tensors(slice(0, 64)))
    assert double.rank == 576
    assert single.n_paper_cutoff >= 7840
    assert 250 < single.rank < 450  # what float32 itself can certify


def test_certificate_of_the_published_protocol_on_small_images():
    """As many levels for each sample: images of a quarter of the pixels, a quarter of the batch."""
    x, y = data.load("mnist", "test").tensors(slice(0, 16))
    double, single = published_protocol(nn.functional.avg_pool2d(x, 2), y)
    assert double.rank == 9 * 16  # nine differences of logits for each sample
    assert single.n_paper_cutoff >= 1960
    assert single.rank <= 9 * 16


def test_noise_floor_is_numpys_rank_convention():
    levels = np.array([-3.0, 0.5, 2.0])
    assert certify.noise_floor(levels, 3) == 3 * EPS * 3.0
    assert certify.noise_floor(np.zeros(0), 0) == 0.0
    matrix = np.diag([1.0, 1e-17, 0.0])
    spectrum = hr.Spectrum(np.array([0.0, 1e-17, 1.0]), certify.noise_floor(np.ones(1), 3), 3, 3)
    assert spectrum.rank == np.linalg.matrix_rank(matrix) == 1
    assert spectrum.n_paper_cutoff == 2
    assert spectrum.n_paper_cutoff_ratios == 1
    assert spectrum.log_gap == (1e-17, 1.0)
    assert spectrum.gap_decades == pytest.approx(17)
    # a floor in the wrong place shows as a gap elsewhere
    crowded = hr.Spectrum(np.array([1e-16, 1e-9, 2e-9, 4e-9, 1.0]), 3e-9, 5, 5)
    assert crowded.log_gap == (4e-9, 1.0)
    assert hr.Spectrum(np.zeros(3), 0.0, 3, 0).log_gap == pytest.approx((np.nan,) * 2, nan_ok=True)
    np.testing.assert_array_equal(spectrum.resolved, [1.0])
