"""``hessrmt normalize``: numbers of the command against NumPy, refusals, exit codes."""

import json
import math

import numpy as np
import pytest
import torch

from hessrmt.config import NormalizeConfig, load_settings
from hessrmt.runs.normalize import run

EPS = np.finfo(float).eps


@pytest.fixture
def trained(digits, cli, tmp_path):
    """A checkpoint of mlp2 on two clouds."""
    done = cli("train", "--model", "mlp2", "--data", digits, "--epochs", 3, "--lr", 0.05)
    assert done.returncode == 0
    return tmp_path / "mlp2.pt"


def outputs(path, x):
    state = torch.load(path, weights_only=True)["state_dict"]
    weights = [value.double().numpy() for value in state.values()]
    for w, b in zip(weights[::2], weights[1::2], strict=True):
        x = np.maximum(x, 0) if x.shape[1] != 6 else x
        x = x @ w.T + b
    return x, weights[::2]


def cross_entropy(f, y):
    return float(np.mean(np.log(np.exp(f).sum(1)) - f[np.arange(len(y)), y]))


@pytest.mark.parametrize("norm", [2, 1, math.inf])
def test_json_says_what_numpy_finds(cli, digits, trained, norm):
    words = ["--model", "mlp2", "--data", digits, "--checkpoint", trained, "--norm", norm, "--json"]
    done = cli("normalize", *words)
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    with np.load(digits) as data:
        for split in ("train", "test"):
            x, y = data[f"x_{split}"], data[f"y_{split}"]
            f, weights = outputs(trained, x)
            factors = [np.linalg.norm(w.ravel(), norm) for w in weights]
            product = np.prod(factors)
            gaps = f[np.arange(len(y)), y] - f[np.arange(len(y)), 1 - y]
            # sums of up to 100 terms, 3 layers
            close = {"rel": 300 * EPS, "abs": 300 * EPS}
            assert answer[f"{split}_loss"] == pytest.approx(cross_entropy(f, y), **close)
            assert answer[f"normalized_{split}_loss"] == pytest.approx(
                cross_entropy(f / product, y), **close
            )
            assert answer[f"{split}_error"] == np.mean(f.argmax(1) != y)
            margins = answer["margins"][split]
            assert margins["min"] == pytest.approx(gaps.min(), rel=1e-12)
            assert margins["normalized_min"] == pytest.approx(gaps.min() / product, rel=1e-12)
            assert margins["quantiles"]["0.5"] == pytest.approx(np.median(gaps), rel=1e-12)
            assert margins["support"] == np.argsort(gaps)[:10].tolist()
            expected = 1 / gaps.min() if gaps.min() > 0 else None
            assert margins["inverse"] == (expected and pytest.approx(expected, rel=1e-12))
    assert list(answer["factors"].values()) == pytest.approx(factors, rel=1e-13)
    assert list(answer["factors"]) == ["1", "3", "5"]
    assert answer["product_norm"] == pytest.approx(product, rel=1e-13)
    assert answer["norm"] == answer["config"]["norm"] == ("inf" if norm == math.inf else norm)
    assert answer["deviation"] < 1e-12
    for word in ("smallest margin", "product", "loss, normalised", str(digits)):
        assert word in done.stderr.replace("\n", "")


def test_batch_size_does_not_matter(digits):
    results = [
        run(load_settings(NormalizeConfig, model="mlp2", data=str(digits), batch=batch)).to_dict()
        for batch in (7, 1024)
    ]
    for name in ("train_loss", "normalized_train_loss", "normalized_test_loss"):
        assert results[0][name] == pytest.approx(results[1][name], rel=200 * EPS)
    assert results[0]["train_error"] == results[1]["train_error"]
    assert "random initialisation" in " ".join(results[0]["notes"])


def test_data_without_classes(cli, tmp_path):
    path = tmp_path / "regression.npz"
    draw = np.random.default_rng(0)
    np.savez(path, x=draw.normal(size=(20, 6)), y=draw.normal(size=20))
    words = ["--model", "logistic", "--loss", "mse", "--json"]
    done = cli("normalize", *words, "--data", path)
    answer = json.loads(done.stdout)
    assert answer["train_error"] is answer["margins"]["train"] is None
    assert answer["normalized_train_loss"] > 0


def test_bad_usage(refused, digits):
    """Beside that whose messages are in tests/golden/normalize.json."""
    words = ["normalize", "--model", "logistic", "--data", digits]
    for option, value in (("norm", "nan"), ("device", "abacus"), ("batch", "0")):
        refused([*words, f"--{option}", value], [value])
