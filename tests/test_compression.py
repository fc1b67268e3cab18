"""Compressed weights against their definitions, and the experiment on a small network."""

import json

import numpy as np
import pytest
import torch
from experiment_samples import write_settings

import hessrmt as hr
from hessrmt.capacity.compression import compress
from hessrmt.errors import ConfigError, DataError
from hessrmt.experiments.compression import Compression, CompressionConfig

EPS = float(np.finfo(np.float64).eps)


@pytest.fixture
def state():
    draw = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(30, 20, generator=draw, dtype=torch.float64),
        "conv.weight": torch.randn(12, 5, 3, 3, generator=draw, dtype=torch.float64),
        "bias": torch.randn(30, generator=draw, dtype=torch.float64),
    }


NAMES = ("a.weight", "conv.weight")


def matrices(state, method, strength, **options):
    """Weights before and after, a row for each output."""
    found = compress(state, NAMES, method, strength, **options)
    assert found["bias"] is state["bias"]
    return [(state[name].flatten(1).numpy(), found[name].flatten(1).numpy()) for name in NAMES]


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_quantised_weights_lie_on_a_grid(state, bits):
    steps = 2 ** (bits - 1) - 1
    for before, after in matrices(state, "uniform", bits):
        step = np.abs(before).max() / steps
        assert np.abs(after / step - np.round(after / step)).max() <= 4 * EPS * steps
        assert np.abs(after - before).max() <= step / 2 * (1 + 4 * EPS)
    for before, after in matrices(state, "channels", bits):
        step = np.abs(before).max(axis=1, keepdims=True) / steps
        assert len(np.unique(np.round(after / step))) <= 2 * steps + 1
        assert np.all(np.abs(after - before) <= step / 2 * (1 + 4 * EPS))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_pruned_weights_are_the_least(state, share):
    for before, after in matrices(state, "magnitude", share):
        gone, size = after == 0, np.abs(before)
        assert np.count_nonzero(gone) == int(share * before.size)
        np.testing.assert_array_equal(after[~gone], before[~gone])
        assert not gone.any() or size[gone].max() <= size[~gone].min()
    for before, after in matrices(state, "rows", share):
        gone, norms = ~after.any(axis=1), np.linalg.norm(before, axis=1)
        assert np.count_nonzero(gone) == int(share * len(before))
        assert not gone.any() or norms[gone].max() <= norms[~gone].min()
    one, again = (matrices(state, "random", share, seed=1) for _ in range(2))
    for (before, after), (_, same) in zip(one, again, strict=True):
        np.testing.assert_array_equal(after, same)
        assert np.count_nonzero(after == 0) == int(share * before.size)
        assert set(after[after != 0]) <= set(before.ravel())


def test_low_rank_weights_are_the_nearest(state):
    """Eckart and Young: what is missing has the norm of the singular values left out."""
    for before, after in matrices(state, "low-rank", 0.75):
        singular = np.linalg.svd(before, compute_uv=False)
        kept = -(-len(singular) // 4)
        found = np.linalg.svd(after, compute_uv=False)
        error = 10 * len(singular) * EPS * singular[0]
        np.testing.assert_allclose(found[:kept], singular[:kept], rtol=0, atol=error)
        assert found[kept:].max() <= error
        assert np.linalg.norm(before - after) == pytest.approx(np.linalg.norm(singular[kept:]))


@pytest.mark.parametrize(
    ("method", "strength", "said"),
    [
        ("zip", 2, "zip"),
        ("uniform", 1, "bits"),
        ("channels", 2.5, "bits"),
        ("uniform", 17, "bits"),
        ("rows", 1.0, "share removed"),
        ("random", -0.1, "share removed"),
    ],
)
def test_what_cannot_be_compressed(state, method, strength, said):
    with pytest.raises(DataError, match=said):
        compress(state, NAMES, method, strength)


def test_the_experiment_measures_every_version(cli, tmp_path, digits):
    path = write_settings(digits.parent, "compression")
    result = cli("reproduce", path.name, "--json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["runs"]
    names = ["uncompressed", "uniform, 8 bits", "uniform, 2 bits", "magnitude, 0.5"]
    assert [row["run"] for row in rows] == [*names, "magnitude, 0.9", "low-rank, 0.5"]
    (file,) = (tmp_path / "compression" / "checkpoints").glob("*-last.pt")
    weights = torch.load(file, weights_only=True)["state_dict"]
    plain = hr.capacity.analyze(weights, "unfolded")
    assert rows[0]["mean_alpha"] == pytest.approx(plain.mean_alpha)
    layers = [layer.name for layer in plain.analyzed]
    half = hr.capacity.analyze(compress(weights, layers, "low-rank", 0.5), "unfolded")
    assert rows[-1]["mean_stable_rank"] == pytest.approx(half.mean("stable_rank"))
    assert rows[1]["test_error_percent"] <= rows[0]["test_error_percent"] + 20
    figures = {file.name for file in (tmp_path / "compression" / "figures").iterdir()}
    assert figures == {"metrics.png", "layers.png"}


def test_given_weights_have_no_test_error(tmp_path, state):
    file = tmp_path / "net.pt"
    torch.save(state, file)
    size = {"weights": str(file), "strengths": {name: [2] for name in ("uniform", "channels")}}
    given = {"experiment": "compression", "presets": {"one": size}}
    experiment, settings = Compression(), CompressionConfig.model_validate(given)
    entries = experiment.run(settings, "one", tmp_path)
    assert [entry.name for entry in entries] == [
        "uncompressed",
        "uniform, 2 bits",
        "channels, 2 bits",
    ]
    assert np.isnan([entry.test_error for entry in entries]).all()
    assert experiment.fits(entries) == []
    assert "test error" not in " ".join(experiment.conclusions(entries))
    size["weights"] = "no_such_package/net.pt"
    with pytest.raises(ConfigError, match="no-such-package"):
        experiment.run(CompressionConfig.model_validate(given), "one", tmp_path)
    for wrong in ({"model": "mlp2"}, {"strengths": {"zip": [1]}}):
        with pytest.raises(ValueError, match=r"weights|zip"):
            CompressionConfig.model_validate(given | {"presets": {"one": size | wrong}})
