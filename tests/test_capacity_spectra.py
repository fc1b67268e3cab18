"""Spectra of weight matrices and their Marchenko-Pastur bulks, against LAPACK and known noise."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from weight_samples import weights

import hessrmt as hr
from hessrmt.capacity import analysis, spectra
from hessrmt.capacity.spectra import MatrixSpectrum, fit_bulk, noise_edge

EPS = np.finfo(np.float64).eps


def heavy(rows, columns, seed=0):
    """A matrix whose spectrum has a tail."""
    draw = np.random.default_rng([seed, rows, columns])
    return draw.standard_t(2.5, (rows, columns))


def only(report):
    (layer,) = report.layers
    return layer


def squares(matrix):
    """Eigenvalues of X, ascending, by LAPACK's singular values."""
    return np.linalg.svd(matrix, compute_uv=False)[::-1] ** 2 / max(matrix.shape)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (64, 64), (2, 30)])
def test_eigenvalues_are_squared_singular_values(shape, exact):
    matrix = heavy(*shape)
    layer = only(hr.capacity.analyze({"w": matrix}, exact=exact))
    truth = squares(matrix)
    floor = spectra.noise(max(shape), min(shape)) * truth[-1]
    assert np.abs(layer.matrices[0].eigenvalues - truth).max() <= floor
    assert layer.log_frobenius == pytest.approx(math.log(np.linalg.norm(matrix)), abs=1e-12)
    assert layer.log_spectral == pytest.approx(math.log(np.linalg.norm(matrix, 2)), abs=1e-12)
    assert layer.rank == min(shape)


@pytest.mark.parametrize("shape", [(70, 45), (45, 70), (48, 48)])
def test_gram_matrices_in_tiles(monkeypatch, shape):
    """What large matrices take: tiles on and below the diagonal."""
    monkeypatch.setattr(spectra, "_TILE", 16)
    stack = torch.from_numpy(np.stack([heavy(*shape), heavy(*shape, 1)]))
    for matrix, found in zip(stack.numpy(), spectra.gram(stack), strict=True):
        tall = matrix if shape[0] >= shape[1] else matrix.T
        assert found.larger == len(tall)
        error = np.tril(found.matrix.numpy() - tall.T @ tall)
        assert np.abs(error).max() <= len(tall) * EPS * (tall**2).sum(axis=0).max()


def test_small_singular_values_need_the_exact_route():
    """Down to 1e-10 of the largest: Gram eigenvalues lose them below √(n ε), the values don't."""
    n = 40
    draw = np.random.default_rng(3)
    left, right = (np.linalg.qr(draw.normal(size=(n, n)))[0] for _ in range(2))
    values = np.geomspace(1, 1e-10, n)
    matrix = (left * values) @ right
    gram = only(hr.capacity.analyze({"w": matrix}))
    exact = only(hr.capacity.analyze({"w": matrix}, exact=True))
    assert exact.rank == n
    found = exact.matrices[0].eigenvalues[::-1] * n
    # singular values are accurate to a few ε of the largest
    assert np.allclose(np.sqrt(found), values, rtol=0, atol=10 * EPS)
    # found where they clear the floor by a factor of two, never below it by as much
    floor = math.sqrt(spectra.noise(n, n))
    assert np.count_nonzero(values > 1.5 * floor) <= gram.rank
    assert gram.rank <= np.count_nonzero(values > floor / 1.5)
    assert gram.entropy * math.log(gram.rank) == pytest.approx(
        exact.entropy * math.log(exact.rank), abs=n * (n * EPS) * math.log(1 / (n * EPS))
    )


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1100, 3900), torch.float32), ((3900, 1100), torch.bfloat16)]
)
def test_large_layers_are_never_copied_but_measured_alike(shape, dtype):
    draw = np.random.default_rng(3)
    values = torch.from_numpy(draw.standard_normal(shape)).to(dtype)
    report = hr.capacity.analyze({"large.weight": values})
    (layer,) = report.layers
    sizes = torch.linalg.svdvals(values.double()).numpy()
    # both have errors of a few ε σ_max² in every squared singular value
    bound = (min(shape) + max(shape) ** 0.5) * np.finfo(float).eps * sizes[0] ** 2
    found = layer.matrices[0].eigenvalues * max(shape)
    np.testing.assert_allclose(found, np.sort(sizes**2), rtol=0, atol=bound)
    np.testing.assert_allclose(
        layer.log_frobenius, np.log(float(values.double().norm())), rtol=1e-13
    )


def test_large_layer_of_a_module_and_its_nan():
    layer = nn.Linear(3900, 1100, bias=False)
    assert hr.capacity.analyze(layer).layers[0].skipped is None
    with torch.no_grad():
        layer.weight[5, 7:9] = torch.nan
    (found,) = hr.capacity.analyze(layer).layers
    assert found.skipped is not None
    assert found.skipped.startswith("2 of 4290000 weights are NaN or infinite")


def test_low_rank_matrices_have_their_rank():
    draw = np.random.default_rng(4)
    matrix = draw.normal(size=(80, 7)) @ draw.normal(size=(7, 120))
    for exact in (False, True):
        layer = only(hr.capacity.analyze({"w": matrix}, exact=exact))
        assert layer.rank == 7
        assert np.count_nonzero(layer.matrices[0].eigenvalues == 0) == 73
        assert layer.matrices[0].mp_failed is not None
        assert layer.spikes is None


def test_waiting_together_changes_nothing(monkeypatch):
    state = {f"{k}.weight": w for k, w in weights().items()}
    together = hr.capacity.analyze(state, seed=1, randomize=True).to_dict()
    monkeypatch.setattr(analysis, "_TOGETHER", 1)
    seen = []
    alone = hr.capacity.analyze(state, seed=1, randomize=True, tick=lambda *now: seen.append(now))
    np.testing.assert_equal(alone.to_dict(), together)
    assert seen == [(name, number + 1, 6) for number, name in enumerate(state)]


# the bulk


def spectrum_of(values, larger=50):
    values = np.sort(np.asarray(values, dtype=float))
    return MatrixSpectrum(values, 0.0, larger, len(values), float(larger * values.sum()))


def noise(larger, smaller, seed=0, sigma=1.0):
    draw = np.random.default_rng([seed, larger, smaller])
    return sigma * draw.normal(size=(larger, smaller))


def error_of_the_variance(n, m):
    """Four standard errors, relative, of a variance from the median level.

    A level in the bulk of a real matrix fluctuates by √(ln m)/π spacings (Gustavsson 2005; O'Rourke
    2010), and a spacing at the median is 1/(m ρ).
    """
    x = np.linspace(*hr.theory.marchenko_pastur_support(m / n), 20001)[1:-1]
    median = x[np.searchsorted(hr.theory.marchenko_pastur_cdf(x, m / n), 0.5)]
    spacing = 1 / (m * hr.theory.marchenko_pastur(median, m / n))
    return 4 * math.sqrt(math.log(m)) / math.pi * spacing / median


@pytest.mark.parametrize("shape", [(400, 400), (600, 200), (150, 500)])
def test_the_bulk_of_noise_has_its_variance(shape):
    layer = only(hr.capacity.analyze({"w": noise(*shape, sigma=0.3)}, randomize=True))
    n, m = max(shape), min(shape)
    error = error_of_the_variance(n, m)
    assert layer.mp_variance == pytest.approx(0.09, rel=error)
    assert layer.mp_edge == pytest.approx(0.09 * (1 + math.sqrt(m / n)) ** 2, rel=error)
    assert layer.spikes == layer.traps == 0
    # the largest level fluctuates by M^(-2/3), up to a factor of order one
    assert layer.soft_rank == pytest.approx(1, abs=error + 5 * m ** (-2 / 3))
    # a step of the staircase, and levels beside their places by twice the variance's error
    assert layer.matrices[0].mp_distance < 1 / m + 2 * error


def test_noise_exceeds_its_edge_in_one_of_a_hundred_matrices():
    n, m, count = 120, 60, 400
    largest = [squares(noise(n, m, seed))[-1] for seed in range(count)]
    above = int(np.count_nonzero(np.array(largest) > noise_edge(n, m)))
    # mean 4 by Johnstone's theorem, whose error at this size is a few parts in a thousand
    assert abs(above - 0.01 * count) < 4 * math.sqrt(0.01 * count)
    spikes = [fit_bulk(spectrum_of(squares(noise(n, m, seed)), n)).spikes for seed in range(count)]
    assert sum(found > 0 for found in spikes) < 0.01 * count + 4 * math.sqrt(0.01 * count)


@pytest.mark.parametrize("count", [1, 5, 20])
def test_planted_spikes_are_counted(count):
    """Directions twice as strong as the threshold N^½ (M/N)^¼ of Baik, Ben Arous and Péché."""
    n, m = 400, 200
    draw = np.random.default_rng(count)
    left, right = (np.linalg.qr(draw.normal(size=(k, count)))[0] for k in (n, m))
    planted = noise(n, m) + 3 * n**0.5 * (m / n) ** 0.25 * left @ right.T
    layer = only(hr.capacity.analyze({"w": planted}, randomize=True))
    assert layer.spikes == count
    assert layer.mp_variance == pytest.approx(1, rel=error_of_the_variance(n, m) + 2 * count / m)
    assert layer.soft_rank < 0.7
    assert layer.traps == 0  # permuted entries have no direction


def test_a_single_huge_entry_is_a_trap():
    matrix = noise(300, 200)
    matrix[17, 5] = 120.0
    layer = only(hr.capacity.analyze({"w": matrix}, randomize=True))
    assert layer.spikes == layer.traps == 1
    # wherever it is put, its square over N is what sticks out
    assert layer.matrices[0].random_lambda_max == pytest.approx(120**2 / 300, rel=0.1)


def test_decades_of_levels_have_no_bulk():
    bulk = fit_bulk(spectrum_of(np.geomspace(1e-6, 1, 300), 300))
    assert "more than half" in bulk.failed
    assert bulk.spikes is None
    assert math.isnan(bulk.soft_rank)


def test_pooled_slices_of_noise_have_one_bulk():
    kernel = np.random.default_rng(2).normal(size=(80, 60, 3, 3))
    layer = only(hr.capacity.analyze({"c.weight": kernel}, "pooled", randomize=True))
    assert layer.n_matrices == 1
    assert len(layer.matrices[0].eigenvalues) == 9 * 60
    assert layer.mp_variance == pytest.approx(1, rel=error_of_the_variance(80, 60))
