"""Capacity metrics, against weightwatcher, LAPACK's singular values and closed forms."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import examples
from torch import nn
from weight_samples import weights

import hessrmt as hr
from hessrmt.capacity.spectra import MatrixSpectrum
from hessrmt.errors import CapacityError, HessrmtError

PEER = json.loads((Path(__file__).parent / "data" / "weightwatcher.json").read_text("utf-8"))
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
        sides, kernel = layer.shape[:2], math.prod(layer.shape[2:])
        scale = max(sides)  # its λ over ours
        if layer.kind == "Conv2d":
            scale *= 0.5 if conv == "pooled" else kernel / 2
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
        for name, value in ours.items():
            assert value == pytest.approx(peer[name], rel=1e-9, abs=1e-9), (layer.name, name)
        # weightwatcher adds 1e-10 to every p, which moves -Σ p ln p by n · 1e-10 · ln(1/p) at most
        share = values / values.sum()
        entropy = -(share * np.log(share)).sum() / math.log(len(values))
        assert entropy == pytest.approx(peer["entropy"], abs=len(values) * 1e-10 * 25)
    if conv == "slices":
        return
    for layer, row in zip(report.layers, range(len(parts)), strict=True):
        square = math.log10(0.5) if layer.kind == "Conv2d" else 0.0  # of its halved λ
        per_ln = 2 / math.log(10)
        assert table["log_norm"][row] == pytest.approx(layer.log_frobenius * per_ln + square)
        assert table["log_spectral_norm"][row] == pytest.approx(
            layer.log_spectral * per_ln + square
        )
        assert table["stable_rank"][row] == pytest.approx(layer.stable_rank)
        assert table["matrix_rank"][row] == layer.rank
        assert table["entropy"][row] == pytest.approx(layer.entropy, abs=1e-6)
    summary = PEER[conv]["summary"]
    assert report.alpha_weighted == pytest.approx(summary["alpha_weighted"], rel=1e-9)
    assert report.mean_alpha == pytest.approx(summary["alpha"], rel=1e-9)
    assert report.mean("stable_rank") == pytest.approx(summary["stable_rank"], rel=1e-9)


# metrics


def spectrum_of(values, larger=50):
    values = np.sort(np.asarray(values, dtype=float))
    return MatrixSpectrum(values, 0.0, larger, len(values), float(larger * values.sum()))


def test_the_stable_rank_is_at_least_one():
    draw = np.random.default_rng(1)
    for _ in range(60):
        one = np.outer(*(draw.normal(size=draw.integers(2, 30)) for _ in range(2)))
        (layer,) = hr.capacity.analyze({"w": one}).layers
        assert 1 <= layer.stable_rank < 1 + 1e-12  # a matrix of rank one


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
    assert spectrum_of([2.0] * 9).entropy == pytest.approx(1.0, abs=1e-14)
    assert spectrum_of([0, 0, 2.0]).entropy == 0.0
    # bounds hold in spite of rounding
    assert all(spectrum_of([2.0] * n).entropy <= 1 for n in range(2, 60))
    zero = spectrum_of([0.0, 0.0])
    assert np.isnan([zero.entropy, zero.stable_rank, zero.log_frobenius]).all()
    assert math.isnan(spectrum_of([0.3, 1.0]).log_stable_rank)
    # no overflow where λ^α leaves float64
    far = spectrum_of([1e-200, 1e-100]).log_alpha_norm(9.0)
    assert far == pytest.approx(9 * math.log(1e-100))


def test_conv2d_slices_are_summed_one_by_one():
    draw = np.random.default_rng(7)
    kernel = draw.standard_t(2.5, (48, 36, 3, 2))
    layer = only(hr.capacity.analyze({"conv.weight": kernel}))
    expected, single, norms = 0.0, [], []
    for i in range(3):
        for j in range(2):
            values = squares(kernel[:, :, i, j])
            fit = hr.capacity.fit(values)
            single.append(fit.alpha)
            expected += fit.alpha * math.log(values[-1])
            norms.append(math.log((values**fit.alpha).sum()))
    assert [part.label for part in layer.matrices] == ["0,0", "0,1", "1,0", "1,1", "2,0", "2,1"]
    assert [part.alpha for part in layer.matrices] == pytest.approx(single, rel=1e-9)
    assert layer.alpha_hat == pytest.approx(expected, rel=1e-9)
    assert layer.log_alpha_norm == pytest.approx(sum(norms), rel=1e-9)
    assert layer.alpha == pytest.approx(np.mean(single), rel=1e-9)
    sigmas = [part.sigma for part in layer.matrices]
    assert layer.sigma == pytest.approx(math.sqrt(sum(s**2 for s in sigmas)) / 6)
    # all weights together
    assert layer.log_frobenius == pytest.approx(math.log(np.linalg.norm(kernel)))
    assert layer.lambda_max == max(part.lambda_max for part in layer.matrices)


def test_alpha_hat_is_a_sum_and_alpha_weighted_a_mean():
    state = {"a.weight": heavy(60, 90), "b.weight": heavy(80, 50), "b.bias": np.ones(80)}
    report = hr.capacity.analyze(state)
    a, b = report.analyzed
    total = a.alpha * math.log(a.lambda_max) + b.alpha * math.log(b.lambda_max)
    assert report.alpha_hat == pytest.approx(total)
    assert report.alpha_hat_log10 == pytest.approx(total / math.log(10))
    assert report.alpha_weighted == pytest.approx(
        (a.alpha * math.log10(90 * a.lambda_max) + b.alpha * math.log10(80 * b.lambda_max)) / 2
    )
    assert report.mean_alpha == (a.alpha + b.alpha) / 2
    assert report.mean_log_norm == pytest.approx((a.log_frobenius + b.log_frobenius) / 2)


shapes = st.tuples(st.integers(12, 40), st.integers(12, 40))


@settings(max_examples=examples(30))
@given(shapes, st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_scaling(shape, seed, scale):
    """α does not move, α̂ moves by Σ α · 2 ln s, norms by ln s."""
    state = {"a": heavy(*shape, seed), "b.weight": np.stack([heavy(*shape, seed + 1)] * 2, -1)}
    before = hr.capacity.analyze(state)
    after = hr.capacity.analyze({name: scale * w for name, w in state.items()})
    log = math.log(scale)
    parts = [part for layer in before.layers for part in layer.matrices]
    moved = before.alpha_hat + sum(part.alpha for part in parts) * 2 * log
    assert after.alpha_hat == pytest.approx(moved, rel=1e-9, abs=1e-9 * abs(before.alpha_hat))
    for old, new in zip(before.layers, after.layers, strict=True):
        assert new.alpha == pytest.approx(old.alpha, rel=1e-9)
        assert new.n_tail == old.n_tail
        assert new.ks_distance == pytest.approx(old.ks_distance, abs=1e-9)
        assert new.lambda_max == pytest.approx(old.lambda_max * scale**2, rel=1e-9)
        assert new.log_frobenius == pytest.approx(old.log_frobenius + log, abs=1e-9)
        assert new.log_spectral == pytest.approx(old.log_spectral + log, abs=1e-9)
        assert new.stable_rank == pytest.approx(old.stable_rank, rel=1e-9)
        assert new.entropy == pytest.approx(old.entropy, abs=1e-9)
        assert new.rank == old.rank
        assert new.spikes == old.spikes


@settings(max_examples=examples(30))
@given(shapes, st.integers(0, 1000))
def test_transposition_and_permutation(shape, seed):
    """Nothing changes when a matrix is transposed, or its rows and columns change places."""
    matrix = heavy(*shape, seed)
    draw = np.random.default_rng(seed)
    mixed = matrix[draw.permutation(shape[0])][:, draw.permutation(shape[1])]
    expected = only(hr.capacity.analyze({"w": matrix})).row()
    for changed in (matrix.T, mixed):
        found = only(hr.capacity.analyze({"w": changed})).row()
        for name in set(expected) - {"shape"}:
            if isinstance(expected[name], float):
                assert found[name] == pytest.approx(
                    expected[name], rel=1e-9, abs=1e-12, nan_ok=True
                ), name
            else:
                assert found[name] == expected[name], name


# Marchenko-Pastur

# distances, randomness


def test_distance_from_the_initial_weights():
    before = {"a.weight": heavy(30, 40), "b.weight": heavy(20, 24, 1)}
    after = {"a.weight": before["a.weight"] * 1.5, "b.weight": before["b.weight"].copy()}
    kick = np.outer(np.ones(20), np.arange(24.0))
    after["b.weight"] += kick
    a, b = hr.capacity.analyze(after, initial=before).layers
    assert a.distance_frobenius == pytest.approx(0.5)
    assert a.distance_spectral == pytest.approx(0.5)
    norm = np.linalg.norm
    assert b.distance_frobenius == pytest.approx(norm(kick) / norm(before["b.weight"]))
    assert b.distance_spectral == pytest.approx(norm(kick, 2) / norm(before["b.weight"], 2))
    same = hr.capacity.analyze(before, initial=before)
    assert [layer.distance_frobenius for layer in same.layers] == [0.0, 0.0]
    missing = hr.capacity.analyze(after, initial={"a.weight": before["a.weight"]})
    assert math.isnan(missing.layers[1].distance_spectral)
    assert "b.weight" in missing.notes[0]


def test_another_network_is_no_initial_network():
    after = {"a.weight": heavy(30, 40)}
    for other in ({"b.weight": heavy(30, 40)}, {"a.weight": heavy(30, 41)}):
        with pytest.raises(HessrmtError, match=r"same network"):
            hr.capacity.analyze(after, initial=other)


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
    assert 0 <= first.p_value <= 1
    assert first.p_value * 20 == pytest.approx(round(first.p_value * 20))


def test_comparisons_are_those_of_the_fit():
    matrix = heavy(90, 200)
    layer = only(hr.capacity.analyze({"w": matrix}, compare_with=["lognormal", "exponential"]))
    (part,) = layer.matrices
    fit = hr.capacity.fit(part.eigenvalues)
    assert list(part.comparisons) == ["lognormal", "exponential"]
    direct = hr.capacity.compare(part.eigenvalues, fit, "lognormal")
    assert part.comparisons["lognormal"].log_likelihood_ratio == pytest.approx(
        direct.log_likelihood_ratio
    )


def test_x_max_is_passed_on():
    matrix = heavy(90, 200)
    part = only(hr.capacity.analyze({"w": matrix}, x_max="max")).matrices[0]
    assert part.x_max == part.lambda_max
    fit = hr.capacity.fit(part.eigenvalues, x_max="max")
    assert part.alpha == pytest.approx(fit.alpha, rel=1e-9)


# what cannot be analysed


def test_every_tensor_is_analysed_or_has_a_reason():
    state = {
        "good.weight": heavy(40, 60),
        "zero.weight": np.zeros((30, 30)),
        "row.weight": heavy(1, 50),
        "nan.weight": np.where(np.arange(400).reshape(20, 20) == 7, np.nan, 1.0),
        "quantised.weight": np.ones((30, 30), dtype=np.int8),
        "pair.weight": heavy(2, 50),
        "equal.weight": np.eye(30),
        "huge.weight": 1e200 * heavy(30, 30),
        "good.bias": np.ones(40),
    }
    report = hr.capacity.analyze(state)
    found = {layer.name: layer for layer in report.layers}
    assert list(found) == list(state)
    words = {
        "zero.weight": "zero",
        "row.weight": "1 x 50",
        "nan.weight": "1 of 400 weights are NaN",
        "quantised.weight": "int8",
        "huge.weight": "e+20",
        "good.bias": "1-D",
    }
    for name, layer in found.items():
        assert (layer.skipped is not None) == (name in words)
        if name in words:
            assert words[name] in layer.skipped
            assert math.isnan(layer.alpha)
            assert math.isnan(layer.log_frobenius)
    for name in ("pair.weight", "equal.weight"):
        layer = found[name]
        assert layer.n_failed == 1
        assert "distinct values" in layer.fit_failed
        assert math.isfinite(layer.log_frobenius)
    # failed fits and skipped tensors enter no average
    good = found["good.weight"]
    assert report.mean_alpha == good.alpha
    assert report.alpha_hat == good.alpha_hat
    assert report.alpha_weighted == good.alpha_weighted
    assert report.mean_log_norm == pytest.approx(
        np.mean([found[name].log_frobenius for name in state if name not in words])
    )
    assert report.counts == {
        "tensors": 9,
        "analyzed": 3,
        "skipped": 6,
        "spectra": 3,
        "fits_failed": 2,
    }


def test_a_zero_slice_leaves_the_others():
    kernel = np.random.default_rng(0).standard_t(2.5, (40, 30, 1, 3))
    kernel[..., 1] = 0
    layer = only(hr.capacity.analyze({"c.weight": kernel}))
    assert layer.n_matrices == 3
    assert layer.n_failed == 1
    good = [part.alpha for part in layer.matrices if part.fit_failed is None]
    assert len(good) == 2
    assert layer.alpha == pytest.approx(np.mean(good))
    assert math.isnan(layer.matrices[1].alpha_log_lambda)


def test_nothing_to_average_is_nan():
    report = hr.capacity.analyze({"w": np.zeros((5, 5))})
    assert not report.analyzed
    for value in (report.alpha_hat, report.mean_alpha, report.mean_log_norm):
        assert math.isnan(value)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"compare_with": ["cauchy"]}, "cauchy"),
        ({"compare_with": ["lognormal"], "x_max": "max"}, "x_max"),
        ({"p_values": -1}, "p_values"),
        ({"p_values": True}, "p_values"),
        ({"conv": "sliced"}, "sliced"),
        ({"min_size": 0}, "min_size"),
        ({"x_max": -1.0}, "x_max"),
        ({"x_max": "least"}, "x_max"),
        ({"device": "tpu"}, "tpu"),
    ],
)
def test_unusable_options(options, match):
    with pytest.raises(HessrmtError, match=match):
        hr.capacity.analyze({"w": heavy(20, 30)}, **options)


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
    names = ("alpha_hat", "alpha_hat_log10", "alpha_weighted", "mean_alpha", "mean_log_norm")
    for name in names:
        assert plain[name] == getattr(report, name)
    for layer, row in zip(report.layers, plain["layers"], strict=True):
        for name in CONTRACT:
            value = getattr(layer, name)
            np.testing.assert_equal(row[name], list(value) if name == "shape" else value)
    assert len(plain["layers"][0]["matrices"]) == 9
    assert "eigenvalues" not in plain["layers"][0]["matrices"][0]
    json.dumps(plain)  # plain all the way down
    assert plain["source"] == "Sequential"
    assert "0.weight" in report._repr_html_()
    assert set(CONTRACT) <= set(report.rows()[0])
    with pytest.raises(CapacityError, match="median"):
        report.mean("median")


def test_table_for_pandas():
    pandas = pytest.importorskip("pandas")
    report = hr.capacity.analyze({"a.weight": heavy(20, 30), "a.bias": np.ones(20)})
    table = report.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert table["alpha"].isna().tolist() == [False, True]
    assert table.loc[0, "log_frobenius"] == report.layers[0].log_frobenius


def test_correlation_of_a_series():
    x = np.array([1.0, 2.0, 3.0, 4.0, np.nan])
    y = np.array([10.0, 8.0, 9.0, 5.0, 7.0])
    found = hr.capacity.correlate(x, y, ("alpha_hat", "top1"))
    assert found.n == 4
    # of the four pairs, five of six go down and one up
    assert found.kendall == pytest.approx((1 - 5) / 6)
    assert found.spearman == pytest.approx(np.corrcoef([1, 2, 3, 4], [4, 2, 3, 1])[0, 1])
    slope, intercept = np.polyfit(x[:4], y[:4], 1)
    assert found.slope == pytest.approx(slope)
    assert found.intercept == pytest.approx(intercept)
    assert found.r_squared == pytest.approx(np.corrcoef(x[:4], y[:4])[0, 1] ** 2)
    assert "2 networks" in hr.capacity.correlate(x[:2], y[:2]).failed
    same = hr.capacity.correlate([1, 1, 1], [1, 2, 3], ("alpha_hat", "top1"))
    assert "alpha_hat is the same" in same.failed
    assert math.isnan(same.slope)
    with pytest.raises(CapacityError, match=r"\(2,\)"):
        hr.capacity.correlate([1, 2], [1, 2, 3])
