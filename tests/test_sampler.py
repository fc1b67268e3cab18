"""Sampled Hessians against their covariance tensor, their moments and each other."""

import json

import numpy as np
import pytest
from scipy import stats

from hessrmt import Spectrum, rng, theory
from hessrmt.backend.cpu import CpuBackend
from hessrmt.backend.select import select
from hessrmt.ensembles import gaussian_levels
from hessrmt.errors import DataError, DeviceError, NonFiniteError
from hessrmt.lossmodel import p_spin, paper, rational_quadratic, rbf, sampler
from hessrmt.lossmodel.sampler import goe_band, sample_hessian, sample_spectra

CPU = CpuBackend()
EPS = np.finfo(float).eps
P_VALUE = 1e-4
"""Below it a test calls two samples different; each is run some tens of times, on fixed seeds."""


def stacked(spectra):
    return np.array([spectrum.eigenvalues for spectrum in spectra])


def p_values(one, two):
    """KS tests of every order statistic, every gap and the trace, one number from each sample."""
    pairs = [*zip(one.T, two.T, strict=True)]
    pairs += zip(np.diff(one).T, np.diff(two).T, strict=True)
    pairs.append((one.sum(1), two.sum(1)))
    return np.array([stats.ks_2samp(a, b).pvalue for a, b in pairs])


def from_tensor(cov, h_true, samples, draw):
    """Levels of Hessians whose elements have the covariance tensor, (samples, n)."""
    n = len(h_true)
    rows, columns = np.tril_indices(n)
    covariance = cov.tensor(n)[rows, columns][:, rows, columns]
    elements = draw.multivariate_normal(np.zeros(len(rows)), covariance, size=samples)
    matrices = np.zeros((samples, n, n))
    matrices[:, rows, columns] = elements
    matrices[:, columns, rows] = elements
    return np.linalg.eigvalsh(matrices + cov.mean * np.eye(n) + h_true)


COVARIANCES = {
    "p_spin": p_spin(3),
    "paper": paper(0.0, 2.0),
    "given": rational_quadratic(0.5, 0.8, 1.5).given_loss(1.2),
}


@pytest.mark.parametrize("method", ["tridiagonal", "dense"])
@pytest.mark.parametrize("name", list(COVARIANCES))
@pytest.mark.parametrize("spike", [(), (4.0,), (3.0, -2.0, 3.0), (1.0, 2.0, 3.0, 4.0, 5.0)])
def test_spectra_have_the_law_of_the_covariance_tensor(method, name, spike):
    cov, n, samples = COVARIANCES[name], 5, 700
    ours = stacked(sample_spectra(cov, n, samples, spike, method=method, seed=3))
    h_true = np.diag([*spike, *[0.0] * (n - len(spike))])
    oracle = from_tensor(cov, h_true, samples, rng.stream(1, "oracle", method, name, str(spike)))
    assert p_values(ours, oracle).min() > P_VALUE


@pytest.mark.parametrize("outliers", [1, 2, 3, 11, 12])
def test_band_and_dense_have_the_same_law_with_drawn_outliers(outliers):
    arguments = {"outliers": outliers, "outlier_scale": 2.0, "degenerate": 2}
    band = stacked(sample_spectra(rbf(), 12, 1000, method="tridiagonal", seed=1, **arguments))
    dense = stacked(sample_spectra(rbf(), 12, 1000, method="dense", seed=2, **arguments))
    assert ((band == 0).sum(1) == 2).all()
    assert ((dense == 0).sum(1) == 2).all()
    reduced = [levels[levels != 0].reshape(1000, 12) for levels in (band, dense)]
    assert p_values(*reduced).min() > P_VALUE
    # scattered levels of all samples together: the same density
    assert stats.ks_2samp(*(levels[::3].ravel() for levels in reduced)).pvalue > P_VALUE


@pytest.mark.parametrize("n", [1, 2, 3, 20])
@pytest.mark.parametrize("width", [1, 2, 5, 30])
def test_band_eigenvalues_are_those_of_the_matrix(n, width):
    band = goe_band(n, width, rng.stream(4, "lapack", n, width))
    assert len(band) == min(width, n - 1) + 1
    dense = sum(
        np.diag(band[k, : n - k], -k) + (np.diag(band[k, : n - k], k) if k else 0)
        for k in range(len(band))
    )
    for k in range(1, len(band)):
        assert (band[k, n - k :] == 0).all()
    # backward errors of both solvers, n ε ‖H‖ each with a modest factor
    bound = 10 * n * EPS * np.linalg.norm(dense, 2)
    np.testing.assert_allclose(
        CPU.eigvalsh_banded(band[None])[0], np.linalg.eigvalsh(dense), rtol=0, atol=bound
    )


def test_without_outliers_the_band_is_the_ensembles_own():
    draws = [rng.stream(6, "same") for _ in range(2)]
    np.testing.assert_array_equal(
        CPU.eigvalsh_banded(goe_band(40, 1, draws[0])[None])[0], gaussian_levels(1, 40, draws[1])
    )


def test_mean_density_is_the_smeared_semicircle():
    n, samples, cov = 60, 1500, paper(4.0, 0.25)
    radius = 2 * np.sqrt(n * cov.a)
    levels = stacked(sample_spectra(cov, n, samples, seed=10))
    # one level of each sample, a different one in turn: independent draws of the mean density
    drawn = levels[np.arange(samples), rng.stream(1, "which").integers(n, size=samples)]
    law = theory.smeared_semicircle_cdf
    assert stats.kstest(drawn, lambda x: law(x, radius, cov.c**0.5)).pvalue > 1e-3
    assert stats.kstest(drawn, lambda x: law(x, radius, 0.1)).pvalue < 1e-6


@pytest.mark.parametrize("method", ["tridiagonal", "dense"])
def test_a_sample_depends_on_its_index_alone(method, monkeypatch):
    def sample(samples, **more):
        found = sample_spectra(rbf(), 20, samples, 3, 2.0, 4, method, seed=5, **more)
        return stacked(found)

    whole = sample(7)
    np.testing.assert_array_equal(whole, sample(7))
    np.testing.assert_array_equal(whole[3:], sample(4, first=3))
    monkeypatch.setattr(sampler, "_BATCH", 2)
    np.testing.assert_array_equal(whole, sample(7))
    assert not np.isclose(whole[0, 4:], whole[1, 4:]).any()
    other = sample_spectra(rbf(), 20, 1, 3, 2.0, 4, method, seed=6)[0].eigenvalues
    assert not np.isclose(whole[0], other)[other != 0].any()


def test_dense_spectra_are_those_of_the_sampled_hessians():
    cov, n = p_spin(3).given_loss(0.5), 15
    matrix = rng.stream(2, "h").normal(size=(n + 3, n + 3))
    matrix += matrix.T
    for arguments in (
        {"outliers": 4, "outlier_scale": 3.0, "degenerate": 3},
        {"outliers": [5.0, -2.0]},
        {"h_true": matrix[:n, :n], "degenerate": 3},
        {"h_true": matrix, "degenerate": 3},
    ):
        spectra = sample_spectra(cov, n, 3, method="dense", seed=8, **arguments)
        for index, spectrum in enumerate(spectra):
            hessian = sample_hessian(cov, n, 8, index, **arguments)
            np.testing.assert_array_equal(hessian, hessian.T)
            assert hessian.shape == (spectrum.dimension, spectrum.dimension)
            bound = 10 * len(hessian) * EPS * np.linalg.norm(hessian, 2)
            np.testing.assert_allclose(
                spectrum.eigenvalues, np.linalg.eigvalsh(hessian), rtol=0, atol=bound
            )
    # H_true is added as it is: the difference to a sample without it
    bare = sample_hessian(cov, n, 8, 1, degenerate=3)
    assert (bare[n:] == 0).all()
    np.testing.assert_allclose(
        sample_hessian(cov, n, 8, 1, h_true=matrix, degenerate=3) - bare,
        matrix,
        rtol=0,
        atol=4 * EPS * (np.abs(bare).max() + np.abs(matrix).max()),
    )
    spread = sample_hessian(cov, n, 8, 1, outliers=[5.0, -2.0]) - sample_hessian(cov, n, 8, 1)
    np.testing.assert_allclose(np.diag(spread)[:2], [5, -2], atol=8 * EPS * np.abs(bare).max())
    assert (spread[np.triu_indices(n, 1)] == 0).all()


def test_elements_of_the_hessian_have_their_covariance():
    cov, n, samples = p_spin(3), 3, 1000
    cpu = select("cpu")
    drawn = np.array([sample_hessian(cov, n, 12, index, backend=cpu) for index in range(samples)])
    flat = drawn.reshape(samples, -1)
    found = np.cov(flat.T).reshape(n, n, n, n)
    expected = cov.tensor(n)
    # Var of a product of normals: Var_ij Var_kl + Cov²
    variance = expected.reshape(9, 9).diagonal().reshape(n, n)
    error = np.sqrt((np.multiply.outer(variance, variance) + expected**2) / samples)
    assert (np.abs(found - expected) < 4.5 * error).all()


@pytest.mark.parametrize("method", ["tridiagonal", "dense"])
def test_of_h_true_only_the_eigenvalues_matter(method):
    cov, n, samples = rbf(), 8, 1000
    basis = np.linalg.qr(rng.stream(3, "basis").normal(size=(n, n)))[0]
    h_true = basis[:, :2] @ np.diag([6.0, -4.0]) @ basis[:, :2].T
    spectra = sample_spectra(cov, n, samples, method=method, seed=1, h_true=h_true)
    plain = stacked(sample_spectra(cov, n, samples, [6.0, -4.0], seed=2))
    assert p_values(stacked(spectra), plain).min() > P_VALUE
    # rank two to round-off: a band of half-width two
    assert "half-width 2" in spectra[0].solver or method == "dense"


def test_auto_takes_the_band_for_few_outliers():
    def method(**arguments):
        return sample_spectra(rbf(), 16, 1, **arguments)[0].provenance.config["method"]

    assert method() == method(outliers=2) == method(outliers=[1.0, 0.0, 2.0]) == "tridiagonal"
    assert method(outliers=3) == method(h_true=np.eye(20), degenerate=4) == "dense"
    assert method(h_true=np.zeros((16, 16))) == "tridiagonal"


@pytest.mark.parametrize("method", ["tridiagonal", "dense"])
def test_a_sample_is_a_spectrum_with_all_its_settings(method):
    calls = []
    count = lambda *numbers: calls.append(numbers)  # noqa: E731
    spectra = sample_spectra(p_spin(3), 10, 3, 1, 50.0, 4, method, 7, tick=count, first=2)
    assert calls == [(1, 3), (2, 3), (3, 3)]
    for index, spectrum in enumerate(spectra, start=2):
        assert isinstance(spectrum, Spectrum)
        assert (spectrum.dimension, spectrum.reduced_dimension) == (14, 10)
        assert (spectrum.operator, spectrum.dtype) == ("ensemble", "float64")
        assert (np.diff(spectrum.eigenvalues) >= 0).all()
        assert spectrum.eigenvalues.dtype == np.float64
        assert (spectrum.eigenvalues == 0).sum() == 4
        assert spectrum.rank == 10
        assert spectrum.noise_floor == 10 * EPS * np.abs(spectrum.eigenvalues).max()
        assert set(spectrum.seconds) == {"matrix", "eigenvalues"}
        config = spectrum.provenance.config
        drawn = config["drawn"]
        # θ ≥ scale, and the largest level follows: Weyl, ‖√a G‖ < 3√(n a)·2
        assert drawn["outliers"][0] > 50
        bulk = abs(spectrum.eigenvalues[-1] - drawn["outliers"][0] - drawn["shift"])
        assert bulk < 6 * np.sqrt(10 * 6)
        assert config == {
            "ensemble": "loss-model", "operator": "ensemble", "dtype": "float64",
            "covariance": p_spin(3).settings, "n": 10, "degenerate": 4, "outliers": 1,
            "outlier_scale": 50.0, "method": method, "seed": 7, "index": index, "drawn": drawn,
        }  # fmt: skip
        assert json.loads(json.dumps(config)) == config
    assert sample_spectra(rbf(), 5, 0, method=method) == []


class Full(CpuBackend):
    """A CPU backend with no memory left."""

    def free_memory(self):
        return 1000


def test_dense_matrices_beyond_the_memory_are_refused(monkeypatch):
    with pytest.raises(DeviceError, match="tridiagonal"):
        sample_hessian(rbf(), 100, backend=Full())
    monkeypatch.setattr(sampler, "select", lambda device: Full())
    with pytest.raises(DeviceError, match="dimension 100 needs"):
        sample_spectra(rbf(), 100, 1, method="dense")
    assert sample_spectra(rbf(), 100, 1)[0].rank == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cov": 1.0}, "cov must be a HessianCovariance .* got float"),
        ({"n": 0}, "n must be a whole number from 1"),
        ({"outliers": 6}, "6 outliers need as many directions, got n = 5"),
        ({"outliers": -1}, "outliers must be a whole"),
        ({"outliers": 2.0}, "give a count or a list"),
        ({"outliers": [1.0, np.nan]}, "outliers must be finite"),
        ({"outliers": 1, "outlier_scale": 0.0}, "outlier_scale must be positive"),
        ({"method": "band"}, "unknown method 'band'; known: auto, tridiagonal, dense"),
        ({"h_true": np.eye(4)}, r"h_true must have shape \(5, 5\), got \(4, 4\)"),
        ({"h_true": np.eye(6), "degenerate": 2}, r"\(5, 5\) or \(7, 7\)"),
        ({"h_true": np.tri(5)}, "h_true must be symmetric"),
        ({"h_true": np.eye(5), "outliers": 1}, "give one of them"),
        ({"h_true": np.eye(7), "degenerate": 2, "method": "tridiagonal"}, "take method='dense'"),
        ({"tick": 3}, "tick must be a function"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        sample_spectra(**({"cov": rbf(), "n": 5, "samples": 1} | arguments))
    if not set(arguments) & {"samples", "first", "method", "tick"}:
        with pytest.raises(DataError, match=message):
            sample_hessian(**({"cov": rbf(), "n": 5} | arguments))


def test_an_unknown_device_is_refused_also_without_need():
    for method in ("tridiagonal", "dense"):
        with pytest.raises(DeviceError, match="unknown device"):
            sample_spectra(rbf(), 5, 1, method=method, device="tpu")


@pytest.mark.parametrize("method", ["tridiagonal", "dense"])
def test_levels_beyond_float64_are_no_result(method):
    with np.errstate(over="ignore"), pytest.raises(NonFiniteError):
        sample_spectra(rbf().given_loss(-1.7e308), 5, 1, [1.7e308] * 2, method=method)
