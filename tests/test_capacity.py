"""Capacity metrics, against weightwatcher, LAPACK's singular values, closed forms, known noise."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import examples
from scipy import stats
from scipy.linalg import eigvalsh_tridiagonal
from torch import nn
from weight_samples import weights

import hessrmt as hr
from hessrmt.capacity import analysis, powerlaw, spectra
from hessrmt.capacity.spectra import FALSE_ALARMS, MatrixSpectrum, fit_bulk
from hessrmt.errors import DataError, HessrmtError

PEER = json.loads((Path(__file__).parent / "data" / "weightwatcher.json").read_text("utf-8"))
EPS = np.finfo(np.float64).eps


def heavy(rows, columns, seed=0):
    """A matrix whose spectrum has a tail."""
    return np.random.default_rng([seed, rows, columns]).standard_t(2.5, (rows, columns))


def noise(larger, smaller, seed=0, sigma=1.0):
    return sigma * np.random.default_rng([seed, larger, smaller]).normal(size=(larger, smaller))


def layer_of(matrix, conv="slices", **options):
    (layer,) = hr.capacity.analyze({"w": matrix}, conv, **options).layers
    return layer


def squares(matrix):
    """Eigenvalues of X, ascending, by LAPACK's singular values."""
    return np.linalg.svd(matrix, compute_uv=False)[::-1] ** 2 / max(matrix.shape)


def spectrum_of(values, larger=50):
    values = np.sort(np.asarray(values, dtype=float))
    squares = float(larger * values.sum())
    return MatrixSpectrum(values, larger, len(values), squares, np.zeros_like(values))


# against weightwatcher


@pytest.mark.parametrize("conv", ["pooled", "slices"])
def test_columns_of_weightwatcher(conv):
    """Every column after the factor that docs/capacity.md gives."""
    report = hr.capacity.analyze({f"{k}.weight": w for k, w in weights().items()}, conv)
    table = PEER[conv]["columns"]
    parts = [(layer, part) for layer in report.layers for part in layer.matrices]
    assert [f"{name}.weight" for name in table["longname"]] == [one.name for one, _ in parts]
    for row, (layer, part) in enumerate(parts):
        peer = {name: values[row] for name, values in table.items()}
        scale = max(layer.shape[:2])  # its λ over ours
        if layer.kind == "Conv2d":
            scale *= 0.5 if conv == "pooled" else math.prod(layer.shape[2:]) / 2
        values = part.eigenvalues
        ours = {
            "alpha": part.alpha,
            "D": part.ks_distance,
            "sigma": part.sigma,
            "xmin": scale * part.x_min,
            "num_pl_spikes": part.n_tail,
            "lambda_max": scale * part.lambda_max,
            "log_norm": math.log10(scale * values.sum()),
            "log_spectral_norm": math.log10(scale * part.lambda_max),
            "stable_rank": values.sum() / part.lambda_max,
            "log_alpha_norm": (part.log_alpha_norm + part.alpha * math.log(scale)) / math.log(10),
            "alpha_weighted": part.alpha_log10_norm,
            "matrix_rank": np.count_nonzero(values),
        }
        if conv == "pooled":  # where its layers are ours
            square = math.log10(0.5) if layer.kind == "Conv2d" else 0.0  # of its halved λ
            ours |= {
                "log_norm": layer.log_frobenius * 2 / math.log(10) + square,
                "log_spectral_norm": layer.log_spectral * 2 / math.log(10) + square,
                "stable_rank": layer.stable_rank,
                "matrix_rank": layer.rank,
            }
        expected = {name: peer[name] for name in ours}
        assert ours == pytest.approx(expected, rel=1e-9, abs=1e-9), layer.name
        # weightwatcher adds 1e-10 to every p, which moves -Σ p ln p by n · 1e-10 · ln(1/p) at most
        entropy = spectrum_of(values).entropy
        assert entropy == pytest.approx(peer["entropy"], abs=len(values) * 1e-10 * 25)
        assert layer.entropy == pytest.approx(entropy) or conv == "slices"
    if conv == "pooled":
        summary = PEER[conv]["summary"]
        assert report.alpha_weighted == pytest.approx(summary["alpha_weighted"], rel=1e-9)
        assert report.mean_alpha == pytest.approx(summary["alpha"], rel=1e-9)
        assert report.mean("stable_rank") == pytest.approx(summary["stable_rank"], rel=1e-9)


# eigenvalues


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (64, 64), (2, 30)])
def test_eigenvalues_are_squared_singular_values(shape, exact):
    matrix = heavy(*shape)
    layer, truth = layer_of(matrix, exact=exact), squares(matrix)
    floor = spectra.noise(max(shape), min(shape)) * truth[-1]
    assert np.abs(layer.matrices[0].eigenvalues - truth).max() <= floor
    norms = [math.log(np.linalg.norm(matrix, kind)) for kind in ("fro", 2)]
    assert [layer.log_frobenius, layer.log_spectral] == pytest.approx(norms, abs=1e-12)
    assert layer.rank == min(shape)


def test_small_singular_values_need_the_exact_route():
    """Down to 1e-10 of the largest: Gram eigenvalues lose them below √(n ε), the values don't."""
    n, draw = 40, np.random.default_rng(3)
    left, right = (np.linalg.qr(draw.normal(size=(n, n)))[0] for _ in range(2))
    values = np.geomspace(1, 1e-10, n)
    gram, exact = (layer_of((left * values) @ right, exact=exact) for exact in (False, True))
    assert exact.rank == n
    # singular values are accurate to a few ε of the largest
    found = np.sqrt(exact.matrices[0].eigenvalues[::-1] * n)
    assert np.allclose(found, values, rtol=0, atol=10 * EPS)
    # found where they clear the floor by a factor of two, never below it by as much
    floor = math.sqrt(spectra.noise(n, n))
    low, high = (np.count_nonzero(values > floor * factor) for factor in (1.5, 1 / 1.5))
    assert low <= gram.rank <= high
    error = n * (n * EPS) * math.log(1 / (n * EPS))
    entropies = (layer.entropy * math.log(layer.rank) for layer in (gram, exact))
    assert next(entropies) == pytest.approx(next(entropies), abs=error)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1100, 3900), torch.float32), ((3900, 1100), torch.bfloat16)]
)
def test_large_layers_are_never_copied_but_measured_alike(shape, dtype):
    values = torch.from_numpy(np.random.default_rng(3).standard_normal(shape)).to(dtype)
    layer = layer_of(values)
    # both have errors of a few ε σ_max² in every squared singular value
    truth = squares(values.double().numpy())
    bound = spectra.noise(max(shape), min(shape)) * truth[-1]
    np.testing.assert_allclose(layer.matrices[0].eigenvalues, truth, rtol=0, atol=bound)
    assert layer.log_frobenius == pytest.approx(math.log(values.double().norm()), rel=1e-13)
    values[5, 7:9] = torch.nan
    why = f"2 of {values.numel()} weights are NaN or infinite"
    assert layer_of(values).skipped.startswith(why)


@pytest.mark.parametrize("exact", [False, True])
def test_low_rank_matrices_have_their_rank(exact):
    draw = np.random.default_rng(4)
    layer = layer_of(draw.normal(size=(80, 7)) @ draw.normal(size=(7, 120)), exact=exact)
    assert layer.rank == 7
    assert np.count_nonzero(layer.matrices[0].eigenvalues == 0) == 73
    assert layer.matrices[0].mp_failed is not None
    assert layer.spikes is None
    one = layer_of(np.outer(draw.normal(size=9), draw.normal(size=22)), exact=exact)
    assert 1 <= one.stable_rank < 1 + 1e-12


# repeated singular values


def assert_fits_of(part, exact, error):
    """The fit of the exact values, where each eigenvalue is wrong by ``error`` at most.

    ln(λ/x_min) then is wrong by 2 error/x_min, α - 1 = 1/⟨ln(λ/x_min)⟩ by (α - 1) times as much
    relative to itself, and exponents y of the law by both, of which D sees y e^-y < 1/2 and the
    slope. That times 1 + 2^-10 for what is of second order, and n ε for sums.
    """
    wanted = powerlaw.fit(exact)
    slope, relative = wanted.alpha - 1, 2 * error / wanted.x_min
    assert part.n_tail == wanted.n_tail
    rounding = len(exact) * EPS
    bound = slope * relative * (1 + 2**-10) + rounding
    assert part.alpha - 1 == pytest.approx(slope, rel=bound)
    assert part.ks_distance == pytest.approx(wanted.ks_distance, abs=1.5 * bound)
    assert part.x_min == pytest.approx(wanted.x_min, abs=error)
    # what the tail is, whoever looks at the eigenvalues as they are
    assert np.count_nonzero(part.eigenvalues >= part.x_min) == part.n_tail


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("copies", [2, 3])
def test_a_repeated_matrix_has_the_power_law_of_one(copies, exact):
    for seed in range(6):
        one = heavy(40, 60, seed)
        values = squares(one)
        matrix = np.kron(np.eye(copies), one)
        (part,) = layer_of(matrix, exact=exact).matrices
        # of both routes, and the oracle's own
        error = 2 * spectra.noise(*matrix.shape[::-1]) * values[-1] / copies
        assert_fits_of(part, np.repeat(values / copies, copies), error)
        alone = layer_of(one, exact=exact)
        assert part.sigma == pytest.approx(alone.sigma / math.sqrt(copies), rel=1e-9)


@pytest.mark.parametrize("exact", [False, True])
def test_rotations_leave_the_power_law_of_repeated_singular_values(exact):
    n, m = 48, 36
    for seed in range(6):
        draw = np.random.default_rng([seed, n, m])
        values = np.repeat(np.sort(draw.pareto(1.5, m // 3) + 0.2), 3)
        left, right = (stats.ortho_group.rvs(k, random_state=draw) for k in (n, m))
        matrix = left[:, :m] * np.sqrt(n * values) @ right
        (part,) = layer_of(matrix, exact=exact).matrices
        # the product of m terms and factors orthogonal to m ε or so: W is wrong by 3 m ε of σ_max,
        # λ by twice that; the solver as above
        error = (spectra.noise(n, m) + 6 * m * EPS) * values[-1]
        assert_fits_of(part, values, error)


def test_tied_kernel_positions_are_samples_of_one_value():
    kernel = heavy(24, 30)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (5, 24, 1))
    layer = layer_of((signs * kernel).transpose(1, 2, 0), "pooled")
    values = squares(kernel)
    error = 2 * spectra.noise(30, 24) * values[-1]
    assert_fits_of(layer.matrices[0], np.repeat(values, 5), error)


def test_levels_are_equal_within_their_errors_alone():
    def of(levels, error):
        return hr.capacity.tied(np.array(levels), error).tolist()

    assert of([], 1.0) == []
    assert of([5.0, 7.0, 9.1], 1.0) == [5.0, 5.0, 9.1]
    assert of([5.0, 5.0, 5.0], 0.0) == [5.0, 5.0, 5.0]
    # a run of close levels doesn't become one
    assert of([0.0, 1.5, 3.0, 4.5, 6.0], 1.0) == [0.0, 0.0, 3.0, 3.0, 6.0]
    # each has the error of its own matrix, of which one may be a millionth of the other
    assert of([1.0, 1.5, 2.0, 1e6, 1e6 + 1], np.array([0.1, 0.1, 0.1, 1, 1])) == [
        *(1.0, 1.5, 2.0),
        *(1e6, 1e6),
    ]
    small, large = heavy(20, 30), 1e8 * heavy(20, 30, 1)
    layer = layer_of(np.stack([small, large], axis=-1), "pooled")
    every = np.sort(np.concatenate([squares(small), squares(large)]))
    assert layer.alpha == pytest.approx(powerlaw.fit(every).alpha, rel=1e-9)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=40), st.integers(0, 5))
def test_ties_of_levels_against_their_definition(levels, error):
    """Integers, without rounding: groups within 2 error of their least level."""
    levels = np.sort(np.array(levels, dtype=float))
    expected, first = [], -math.inf
    for level in levels.tolist():
        first = first if level - first <= 2 * error else level
        expected.append(first)
    found = hr.capacity.tied(levels, float(error))
    assert found.tolist() == expected
    assert hr.capacity.tied(found, float(error)).tolist() == expected


def test_waiting_together_changes_nothing(monkeypatch):
    state = {f"{k}.weight": w for k, w in weights().items()}
    together = hr.capacity.analyze(state, seed=1, randomize=True).to_dict()
    monkeypatch.setattr(analysis, "_TOGETHER", 1)
    seen = []
    alone = hr.capacity.analyze(state, seed=1, randomize=True, tick=lambda *now: seen.append(now))
    np.testing.assert_equal(alone.to_dict(), together)
    assert seen == [(name, number + 1, 6) for number, name in enumerate(state)]


# norms and exponents


def test_metrics_of_known_spectra():
    values = [0.5, 1.0, 2.5]
    spectrum, share = spectrum_of(values), np.array(values) / 4
    expected = {
        "log_frobenius": math.log(50 * 4) / 2,
        "log_spectral": math.log(50 * 2.5) / 2,
        "stable_rank": 4 / 2.5,
        "log_stable_rank": math.log(200) / math.log(2.5),
        "entropy": -(share @ np.log(share)) / math.log(3),
    }
    assert {name: getattr(spectrum, name) for name in expected} == pytest.approx(expected)
    assert spectrum.log_alpha_norm(3.0) == pytest.approx(math.log(0.5**3 + 1 + 2.5**3))
    assert spectrum_of([0, 0, 2.0]).entropy == 0.0
    # bounds hold in spite of rounding
    assert all(0 <= 1 - spectrum_of([2.0] * n).entropy < 1e-14 for n in range(2, 60))
    zero = spectrum_of([0.0, 0.0])
    assert np.isnan([zero.entropy, zero.stable_rank, zero.log_frobenius]).all()
    assert math.isnan(spectrum_of([0.3, 1.0]).log_stable_rank)
    # no overflow where λ^α leaves float64
    far = spectrum_of([1e-200, 1e-100]).log_alpha_norm(9.0)
    assert far == pytest.approx(9 * math.log(1e-100))


def test_conv2d_slices_are_summed_one_by_one():
    kernel = np.random.default_rng(7).standard_t(2.5, (48, 36, 3, 2))
    layer = layer_of(kernel)
    slices = {f"{i},{j}": squares(kernel[:, :, i, j]) for i in range(3) for j in range(2)}
    fits = hr.capacity.fit_all(list(slices.values()))
    pairs = list(zip(fits, slices.values(), strict=True))
    assert [part.label for part in layer.matrices] == list(slices)
    assert [part.alpha for part in layer.matrices] == pytest.approx([f.alpha for f in fits])
    expected = {
        "alpha": np.mean([fit.alpha for fit in fits]),
        "alpha_hat": sum(fit.alpha * math.log(values[-1]) for fit, values in pairs),
        "log_alpha_norm": sum(math.log((values**fit.alpha).sum()) for fit, values in pairs),
        "sigma": math.hypot(*(fit.sigma for fit in fits)) / 6,
        # all weights together
        "log_frobenius": math.log(np.linalg.norm(kernel)),
        "lambda_max": max(values[-1] for values in slices.values()),
    }
    assert {name: getattr(layer, name) for name in expected} == pytest.approx(expected, rel=1e-9)
    # a slice without a power law is left out
    kernel[:, :, 1, 1] = 0
    part = layer_of(kernel)
    assert (part.n_matrices, part.n_failed) == (6, 1)
    assert part.alpha == pytest.approx(np.mean([f.alpha for i, f in enumerate(fits) if i != 3]))
    assert math.isnan(part.matrices[3].alpha_log_lambda)


def test_alpha_hat_is_a_sum_and_alpha_weighted_a_mean():
    state = {"a.weight": heavy(60, 90), "b.weight": heavy(80, 50), "b.bias": np.ones(80)}
    report = hr.capacity.analyze(state)
    a, b = report.analyzed
    total = a.alpha * math.log(a.lambda_max) + b.alpha * math.log(b.lambda_max)
    weighted = a.alpha * math.log10(90 * a.lambda_max) + b.alpha * math.log10(80 * b.lambda_max)
    found = report.alpha_hat, report.alpha_hat_log10, report.alpha_weighted
    assert found == pytest.approx((total, total / math.log(10), weighted / 2))


shapes = st.tuples(st.integers(12, 40), st.integers(12, 40))


@settings(max_examples=examples(30))
@given(shapes, st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_scaling(shape, seed, scale):
    """α does not move, α̂ moves by Σ α · 2 ln s, norms by ln s."""
    state = {"a": heavy(*shape, seed), "b.weight": np.stack([heavy(*shape, seed + 1)] * 2, -1)}
    before = hr.capacity.analyze(state)
    after = hr.capacity.analyze({name: scale * w for name, w in state.items()})
    log = math.log(scale)
    alphas = [part.alpha for layer in before.layers for part in layer.matrices]
    moved = before.alpha_hat + sum(alphas) * 2 * log
    assert after.alpha_hat == pytest.approx(moved, rel=1e-9, abs=1e-9 * abs(before.alpha_hat))
    for old, new in zip(before.layers, after.layers, strict=True):
        expected = {name: getattr(old, name) for name in ("alpha", "stable_rank", "entropy")}
        expected |= {name: getattr(old, name) for name in ("n_tail", "rank", "ks_distance")}
        expected |= {name: getattr(old, name) + log for name in ("log_frobenius", "log_spectral")}
        expected["lambda_max"] = old.lambda_max * scale**2
        found = {name: getattr(new, name) for name in expected}
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9 * min(1, scale**2))
        assert new.spikes == old.spikes


@settings(max_examples=examples(30))
@given(shapes, st.integers(0, 1000))
def test_transposition_and_permutation(shape, seed):
    """Nothing changes when a matrix is transposed, or its rows and columns change places."""
    matrix, draw = heavy(*shape, seed), np.random.default_rng(seed)
    mixed = matrix[draw.permutation(shape[0])][:, draw.permutation(shape[1])]
    expected = layer_of(matrix).row()
    for changed in (matrix.T, mixed):
        found = layer_of(changed).row() | {"shape": expected["shape"]}
        close = {name: value for name, value in expected.items() if isinstance(value, float)}
        assert {name: found[name] for name in close} == pytest.approx(
            close, rel=1e-9, abs=1e-12, nan_ok=True
        )
        assert found | close == expected | close


# the bulk


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
    layer = layer_of(noise(*shape, sigma=0.3), randomize=True)
    n, m = max(shape), min(shape)
    error = error_of_the_variance(n, m)
    assert layer.mp_variance == pytest.approx(0.09, rel=error)
    assert layer.mp_edge == pytest.approx(0.09 * (1 + math.sqrt(m / n)) ** 2, rel=error)
    assert layer.spikes == layer.traps == 0
    # the largest level fluctuates by M^(-2/3), up to a factor of order one
    assert layer.soft_rank == pytest.approx(1, abs=error + 5 * m ** (-2 / 3))
    # a step of the staircase, and levels beside their places by twice the variance's error
    assert layer.matrices[0].mp_distance < 1 / m + 2 * error


def wishart_levels(larger, smaller, count, draw):
    """Eigenvalues of X of Gaussian matrices, from their bidiagonal form."""
    k = np.arange(smaller)
    for _ in range(count):
        diagonal, below = draw.chisquare(larger - k), draw.chisquare(smaller - 1 - k[:-1])
        off = np.sqrt(diagonal[:-1] * below)
        diagonal[1:] += below
        yield np.maximum(eigvalsh_tridiagonal(diagonal, off), 0) / larger


def false_alarms(larger, smaller, matrices, count):
    draw = np.random.default_rng([larger, smaller, matrices])
    found = 0
    for _ in range(count):
        values = np.concatenate([*wishart_levels(larger, smaller, matrices, draw)])
        spectrum = replace(spectrum_of(values, larger), smaller=smaller)
        found += fit_bulk(spectrum).spikes != 0
    return found


@pytest.mark.parametrize(
    ("larger", "smaller", "matrices", "count"),
    [(40, 40, 1, 1500), (120, 30, 1, 1500), (300, 20, 9, 400)]
    + [
        pytest.param(*size, 1, 20_000, marks=pytest.mark.slow)
        for size in [(20, 20), (80, 20), (50, 50), (500, 50), (100, 100)]
    ],
)
def test_noise_exceeds_its_edge_in_one_of_a_hundred_spectra(larger, smaller, matrices, count):
    """At most 1 %, and not much less: with the true variance 0.9 %, the median's makes it 0.7."""
    found = false_alarms(larger, smaller, matrices, count)
    assert found <= stats.binom.ppf(0.999, count, FALSE_ALARMS)
    assert found >= stats.binom.ppf(0.001, count, 0.6 * FALSE_ALARMS)


def test_the_edge_is_that_of_uniform_weights_too():
    """As torch starts with: lighter tails than Gaussian ones."""
    draw, count = np.random.default_rng(5), 500
    matrices = (draw.random((120, 60)) - 0.5 for _ in range(count))
    found = sum(fit_bulk(spectrum_of(squares(one), 120)).spikes != 0 for one in matrices)
    assert found <= stats.binom.ppf(0.999, count, FALSE_ALARMS)


@pytest.mark.parametrize("count", [1, 5, 20])
def test_planted_spikes_are_counted(count):
    """Directions twice as strong as the threshold N^½ (M/N)^¼ of Baik, Ben Arous and Péché."""
    n, m = 400, 200
    draw = np.random.default_rng(count)
    left, right = (np.linalg.qr(draw.normal(size=(k, count)))[0] for k in (n, m))
    planted = noise(n, m) + 3 * n**0.5 * (m / n) ** 0.25 * left @ right.T
    layer = layer_of(planted, randomize=True)
    assert layer.spikes == count
    assert layer.mp_variance == pytest.approx(1, rel=error_of_the_variance(n, m) + 2 * count / m)
    assert layer.soft_rank < 0.7
    assert layer.traps == 0  # permuted entries have no direction


def test_a_single_huge_entry_is_a_trap():
    matrix = noise(300, 200)
    matrix[17, 5] = 120.0
    layer = layer_of(matrix, randomize=True)
    assert layer.spikes == layer.traps == 1
    # wherever it is put, its square over N is what sticks out
    assert layer.matrices[0].random_lambda_max == pytest.approx(120**2 / 300, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(60, 60), (40, 90), (130, 30), (20, 12, 3, 3)])
def test_an_orthogonal_matrix_has_no_power_law(shape, dtype):
    """Nor a scaled one, nor one in an orthogonal network that was stored in less precision."""
    draw = torch.Generator().manual_seed(1)
    kernel = torch.empty(shape, dtype=torch.float32)
    for part in kernel.flatten(2).movedim(2, 0) if len(shape) > 2 else [kernel]:
        part.copy_(2.5 * nn.init.orthogonal_(torch.empty(shape[:2]), generator=draw))
    layer = layer_of(kernel.to(dtype))
    assert {part.fit_failed for part in layer.matrices} == {"all singular values equal"}
    assert {part.mp_failed for part in layer.matrices} == {"all singular values equal"}
    assert math.isnan(layer.alpha)
    assert math.isnan(layer.alpha_hat)
    assert layer.stable_rank > min(shape[:2]) * 0.97
    # one direction that is stronger by 1 % is seen in float32
    if dtype != torch.bfloat16 and len(shape) == 2:
        kernel[0] *= 1.01
        assert layer_of(kernel.to(dtype)).fit_failed != "all singular values equal"


def test_depthwise_convolutions_are_pooled_as_weightwatcher_does():
    """k² eigenvalues, the squared norms of the columns over N, with groups known or not."""
    module = nn.Conv2d(48, 48, 5, groups=48, bias=False)
    kernel = module.weight.detach().double()
    expected = np.sort(kernel.square().sum(dim=(0, 1)).ravel().numpy() / 48)
    for source in (nn.ModuleDict({"dw": module}), {"dw.weight": kernel}):
        (layer,) = hr.capacity.analyze(source, "pooled").layers
        (part,) = layer.matrices
        np.testing.assert_allclose(part.eigenvalues, expected, rtol=1e-6)
        assert part.mp_failed is not None  # matrices of one column have no bulk
        assert math.isfinite(layer.alpha)
    (layer,) = hr.capacity.analyze({"dw.weight": kernel}).layers
    assert "conv 'pooled'" in layer.skipped


def test_decades_of_levels_have_no_bulk():
    bulk = fit_bulk(spectrum_of(np.geomspace(1e-6, 1, 300), 300))
    assert "more than half" in bulk.failed
    assert (bulk.spikes, math.isnan(bulk.soft_rank)) == (None, True)


def test_pooled_slices_of_noise_have_one_bulk():
    kernel = np.random.default_rng(2).normal(size=(80, 60, 3, 3))
    (part,) = layer_of(kernel, "pooled").matrices
    assert len(part.eigenvalues) == 9 * 60
    assert part.mp_variance == pytest.approx(1, rel=error_of_the_variance(80, 60))


# options


def test_distance_from_the_initial_weights():
    before = {"a.weight": heavy(30, 40), "b.weight": heavy(20, 24, 1)}
    kick, start = np.outer(np.ones(20), np.arange(24.0)), before["b.weight"]
    after = {"a.weight": before["a.weight"] * 1.5, "b.weight": start + kick}
    a, b = hr.capacity.analyze(after, initial=before).layers
    shares = [np.linalg.norm(kick, kind) / np.linalg.norm(start, kind) for kind in ("fro", 2)]
    assert [a.distance_frobenius, a.distance_spectral] == pytest.approx([0.5, 0.5])
    assert [b.distance_frobenius, b.distance_spectral] == pytest.approx(shares)
    same = hr.capacity.analyze(before, initial=before)
    assert [layer.distance_frobenius for layer in same.layers] == [0.0, 0.0]
    missing = hr.capacity.analyze(after, initial={"a.weight": before["a.weight"]})
    assert math.isnan(missing.layers[1].distance_spectral)
    assert "b.weight" in missing.notes[0]


def test_the_seed_is_all_the_randomness():
    state = {"a.weight": heavy(60, 40), "b.weight": heavy(60, 40)}
    options = {"randomize": True, "p_values": 20}
    reports = [hr.capacity.analyze(state, seed=seed, **options) for seed in (1, 1, 2)]
    np.testing.assert_equal(reports[0].to_dict(), reports[1].to_dict())
    first, other = (report.layers[0].matrices[0] for report in (reports[0], reports[2]))
    assert first.random_lambda_max != other.random_lambda_max
    assert first.alpha == other.alpha
    # equal weights under another name are permuted another way
    assert first.random_lambda_max != reports[0].layers[1].matrices[0].random_lambda_max
    assert first.p_value in [(1 + k) / 21 for k in range(21)]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"compare_with": ["cauchy"]}, "cauchy"),
        ({"compare_with": ["lognormal"], "x_max": "max"}, "x_max"),
        ({"p_values": -1}, "p_values"),
        ({"x_max": "least"}, "x_max"),
        ({"device": "tpu"}, "tpu"),
        ({"conv": "slice"}, "slices, pooled, unfolded"),
        ({"min_size": 0}, "min_size"),
        ({"min_size": 2.5}, "min_size"),
        ({"only": ["a"]}, "pattern"),
        ({"only": "nothing.*"}, "first names are w"),
        ({"initial": {"b": heavy(20, 30)}}, "same network"),
        ({"initial": {"w": heavy(20, 31)}}, r"shape \(20, 30\).* same network"),
    ],
)
def test_unusable_options(options, match):
    with pytest.raises(HessrmtError, match=match):
        layer_of(heavy(20, 30), **options)


# what cannot be analysed


def test_every_tensor_is_analysed_or_has_a_reason():
    reasons = {
        "zero.weight": (np.zeros((30, 30)), "zero"),
        "row.weight": (heavy(1, 50), "1 x 50"),
        "nan.weight": (np.where(np.arange(400).reshape(20, 20) == 7, np.nan, 1.0), "1 of 400"),
        "quantised.weight": (np.ones((30, 30), dtype=np.int8), "int8"),
        "huge.weight": (1e200 * heavy(30, 30), "e+20"),
        "good.bias": (np.ones(40), "1-D"),
    }
    usable = {"good.weight": heavy(40, 60), "pair.weight": heavy(2, 50), "equal.weight": np.eye(30)}
    state = usable | {name: values for name, (values, _) in reasons.items()}
    for exact in (False, True):
        report = hr.capacity.analyze(state, exact=exact)
        assert [layer.name for layer in report.layers] == list(state)
        assert [layer.name for layer in report.analyzed] == list(usable)
        for layer, (_, word) in zip(report.layers[3:], reasons.values(), strict=True):
            assert word in layer.skipped
            assert np.isnan([layer.alpha, layer.log_frobenius]).all()
    report = hr.capacity.analyze(state)
    good, *without = report.analyzed
    assert [layer.n_failed for layer in without] == [1, 1]
    reasons = ("distinct values", "all singular values equal")
    assert all(w in one.fit_failed for w, one in zip(reasons, without, strict=True))
    # failed fits and skipped tensors enter no average
    found = report.mean_alpha, report.alpha_hat, report.alpha_weighted
    assert found == (good.alpha, good.alpha_hat, good.alpha_weighted)
    norms = [layer.log_frobenius for layer in report.analyzed]
    assert report.mean_log_norm == pytest.approx(np.mean(norms))
    counts = {"tensors": 9, "analyzed": 3, "skipped": 6, "spectra": 3, "fits_failed": 2}
    assert report.counts == counts


# the report


CONTRACT = (
    *("name", "kind", "shape", "alpha", "x_min", "ks_distance", "sigma", "n_tail", "p_value"),
    *("lambda_max", "log_frobenius", "log_spectral", "stable_rank", "log_stable_rank"),
    *("log_alpha_norm", "entropy", "skipped"),
)


def test_report_of_a_module():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 30, 3), nn.Flatten(), nn.Linear(120, 50))
    report = hr.capacity.analyze(model)
    plain = report.to_dict()
    for name in ("alpha_hat", "alpha_hat_log10", "alpha_weighted", "mean_alpha", "mean_log_norm"):
        assert plain[name] == getattr(report, name)
    for layer, row, flat in zip(report.layers, plain["layers"], report.rows(), strict=True):
        assert row.keys() - {"matrices"} == flat.keys() >= set(CONTRACT)
        for name in flat.keys() - {"shape"}:
            value = getattr(layer, name)
            unknown = isinstance(value, float) and math.isnan(value)
            np.testing.assert_equal([row[name], flat[name]], [None if unknown else value, value])
        assert row["shape"] == list(layer.shape)
    matrices = plain["layers"][0]["matrices"]
    assert (len(matrices), "eigenvalues" in matrices[0]) == (9, False)
    assert [row["label"] for row in report.layers[0].rows()] == [m["label"] for m in matrices]
    assert plain["source"] == "Sequential"
    assert "0.weight" in report._repr_html_()
    with pytest.raises(DataError, match="median"):
        report.mean("median")
    nothing = hr.capacity.analyze({"w": np.zeros((5, 5))})
    assert np.isnan([nothing.alpha_hat, nothing.mean_alpha, nothing.mean_log_norm]).all()


def test_correlation_of_a_series():
    x = np.array([1.0, 2.0, 3.0, 4.0, np.nan])
    y = np.array([10.0, 8.0, 9.0, 5.0, 7.0])
    found = hr.capacity.correlate(x, y, ("alpha_hat", "top1"))
    slope, intercept = np.polyfit(x[:4], y[:4], 1)
    expected = {
        "n": 4,
        "kendall": (1 - 5) / 6,  # of the six pairs five go down and one up
        "spearman": np.corrcoef([1, 2, 3, 4], [4, 2, 3, 1])[0, 1],
        "slope": slope,
        "intercept": intercept,
        "r_squared": np.corrcoef(x[:4], y[:4])[0, 1] ** 2,
    }
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected)
    assert "2 networks" in hr.capacity.correlate(x[:2], y[:2]).failed
    same = hr.capacity.correlate([1, 1, 1], [1, 2, 3], ("alpha_hat", "top1"))
    assert "alpha_hat is the same" in same.failed
    assert math.isnan(same.slope)
    with pytest.raises(DataError, match=r"\(2,\)"):
        hr.capacity.correlate([1, 2], [1, 2, 3])
