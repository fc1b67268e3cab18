"""The embedding script, run as a user runs it, and its output read back."""

import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hessrmt import rng
from hessrmt.problems import data, models
from hessrmt.problems.plugins import load_object

SCRIPT = Path(__file__).parents[1] / "scripts" / "embed.py"
RNG = np.random.default_rng(1)

NETWORKS = """
import torch
from torch import nn

class Moments(nn.Module):  # its features are easy to compute by hand
    def forward(self, x):
        return torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3)), x[:, 0, 0, 0]], 1)

def moments():
    return Moments()

def colour():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def broken():
    return nn.Linear(3, 2)

def undefined():
    return nn.Threshold(9.0, float("nan"))

def constant():
    return nn.Flatten(0)

NUMBER = 3
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nets.py").write_text(NETWORKS)
    pixels = RNG.integers(0, 256, (10, 8, 8), np.uint8)
    labels = np.arange(10) % 3
    train = {"x_train": pixels[:7], "y_train": labels[:7]}
    test = {"x_test": pixels[7:], "y_test": labels[7:]}
    np.savez(tmp_path / "images.npz", **train, **test, classes=5)
    return tmp_path


@pytest.fixture
def embed(folder, monkeypatch, capsys):
    """The script's main function, called in ``folder``: exit code and standard error."""
    main = load_object(f"{SCRIPT}:main")
    monkeypatch.chdir(folder)

    def call(model, *options, data="images.npz"):
        code = main(["--data", data, "--model", model, "--out", "features.npz", *options])
        return code, capsys.readouterr().err

    return call


def test_both_splits_are_written_and_read_back(folder):
    words = ["--data", "images.npz", "--model", "nets.py:moments", "--out", "features.npz"]
    run = [sys.executable, str(SCRIPT), *words, "--batch", "3"]
    done = subprocess.run(run, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    assert "100%" in done.stderr
    for split, n in (("train", 7), ("test", 3)):
        images = data.load(str(folder / "images.npz"), split)
        features = data.load(str(folder / "features.npz"), split)
        assert (len(features), features.input_shape, features.classes) == (n, (3,), 5)
        np.testing.assert_array_equal(features.y, images.y)
        x = images.x.astype(np.float64) / 127.5 - 1
        exact = np.stack([x.mean((1, 2, 3)), x.max((1, 2, 3)), x[:, 0, 0, 0]], 1)
        # Values up to 1 in float32; a mean of 64 of them adds at most 64 roundings.
        assert np.abs(features.x - exact).max() < 64 * np.finfo(np.float32).eps
    assert sorted(p.name for p in folder.glob("features*")) == ["features.npz"]


def test_gray_images_become_three_channels_resized_in_eval_mode(folder, embed):
    assert embed("nets.py:colour", "--split", "test", "--size", "16")[0] == 0
    written = data.load(str(folder / "features.npz"))
    assert (written.split, written.x.shape) == ("all", (3, 4))
    x, _ = data.load(str(folder / "images.npz")).tensors(slice(None), torch.float32)
    x = torch.nn.functional.interpolate(
        x.repeat(1, 3, 1, 1), (16, 16), mode="bilinear", align_corners=False, antialias=True
    )
    with torch.no_grad():
        expected = load_object(f"{folder}/nets.py:colour")().eval()(x)
    # One convolution of 27 terms and a mean of 196, in float32.
    np.testing.assert_allclose(written.x, expected.numpy(), rtol=0, atol=223 * 1.2e-7)


def test_channels_last_colour_regression_without_splits(folder, embed):
    x, y = RNG.integers(0, 256, (4, 8, 8, 3), np.uint8), RNG.normal(size=(4, 2))
    np.savez(folder / "cifar.npz", x=x, y=y)
    assert embed("nets.py:colour", data="cifar.npz")[0] == 0
    written = data.load(str(folder / "features.npz"))
    assert (written.split, written.x.shape, written.classes) == ("all", (4, 4), None)
    np.testing.assert_array_equal(written.y, y)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("no-such-network", [], "file.py:factory"),
        ("nets.py:broken", [], "failed on samples of shape"),
        ("nets.py:undefined", [], "NaN or infinity in samples 0 to 6"),
        ("nets.py:constant", [], "expected a tensor (7, ...)"),
        ("nets.py:NUMBER", [], "gave a int"),
        ("nets.py:moments", ["--data", "absent.npz"], "no file or folder absent.npz"),
        ("nets.py:moments", ["--device", "gpu"], "cannot use the device 'gpu'"),
        ("nets.py:moments", ["--out", "features.txt"], "ending in .npz"),
    ],
)
def test_failures_are_one_paragraph_with_code_2_and_no_file(folder, embed, model, options, words):
    code, stderr = embed(model, *options)
    assert code == 2
    assert words in stderr.rpartition("error: ")[2]
    assert not list(folder.glob("features*"))


def test_named_networks_are_cut_before_the_classifier(folder, embed, monkeypatch):
    # A stand-in for torchvision, which is no dependency: the same three functions.
    head = nn.Sequential(nn.Dropout(), nn.Linear(3 * 64, 10))
    models = types.ModuleType("torchvision.models")
    models.list_models = lambda module: ["net"]  # pyright: ignore
    models.get_model = lambda name, weights: nn.Sequential(nn.Flatten(), head)  # pyright: ignore
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    assert embed("net")[0] == 0
    images = data.load(str(folder / "images.npz"))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    scaled = (images.x / 255 - mean[:, None, None]) / std[:, None, None]
    written = data.load(str(folder / "features.npz")).x
    # Six roundings of numbers up to 1, divided by the smallest deviation.
    bound = 6 * np.finfo(np.float32).eps / 0.224
    np.testing.assert_allclose(written, scaled.reshape(3, -1), rtol=0, atol=bound)


def test_an_existing_file_is_kept_unless_told(folder, embed):
    (folder / "features.npz").write_bytes(b"precious")
    code, stderr = embed("nets.py:moments")
    assert code == 2
    assert "--overwrite" in stderr
    assert (folder / "features.npz").read_bytes() == b"precious"
    assert embed("nets.py:moments", "--overwrite")[0] == 0
    assert len(data.load(str(folder / "features.npz"))) == 3


@pytest.fixture
def photographs(folder):
    """Gray images in three classes of 7 + 3, which random features tell apart."""
    draw = rng.stream(0, "photographs")
    y = np.arange(60) % 3
    x = draw.integers(0, 60, (60, 16, 16))
    x[np.arange(60), :, 4 * y + 1] += 150
    x = x.astype(np.uint8)
    np.savez(folder / "photos.npz", x_train=x[:45], y_train=y[:45], x_test=x[45:], y_test=y[45:])
    return folder / "photos.npz"


def test_features_of_a_random_resnet34_and_the_spectrum_of_a_linear_layer_on_them(
    folder, embed, photographs, cli
):
    """The whole road of Fig. 3 of Baskerville et al., on small data."""
    given = ("--weights", "random", "--seed", "3", "--size", "32", "--batch", "45")
    assert embed("resnet34", *given, data="photos.npz")[0] == 0
    features = data.load("features.npz", "test")
    assert features.x.shape == (15, 512)
    # the last block adds a branch of variance one to what stood before it, and cuts at zero
    train = data.load("features.npz", "train").x
    assert (train >= 0).all()
    assert 0.3 < train.std() < 30
    result = cli(
        *("spectrum", "--model", "logistic", "--data", "features.npz", "--split", "train"),
        *("--batch", 15, "--batches", 3, "--out", "head.h5", "--json"),
    )
    assert result.returncode == 0, result.stderr
    result = cli("levels", "head.h5", "--json", "--surrogates", 20)
    assert result.returncode == 0, result.stderr
    import hessrmt as hr

    spectra = hr.load(folder / "head.h5")
    # P = 513 · 3; softmax regression on B samples in K classes has rank B(K - 1) at most
    assert [(item.dimension, item.rank) for item in spectra] == [(1539, 30)] * 3
    x, _ = data.load("features.npz", "train").tensors(slice(15))
    model = models.build("logistic", (512,), 3, 0).double()
    with torch.no_grad():
        p = torch.softmax(model(x), dim=1).numpy()
    a = np.hstack([x.numpy(), np.ones((15, 1))])
    # the dual Gram matrix: blocks a_b·a_c √S_b √S_c of the softmax's covariances S
    roots = []
    for row in p:
        values, vectors = np.linalg.eigh(np.diag(row) - np.outer(row, row))
        roots.append(vectors * np.sqrt(values.clip(0)))
    gram = np.block([[a[b] @ a[c] * roots[b].T @ roots[c] for c in range(15)] for b in range(15)])
    wanted = np.linalg.eigvalsh(gram / 15)[-30:]
    floor = spectra[0].noise_floor + 45 * np.finfo(float).eps * wanted[-1]
    np.testing.assert_allclose(spectra[0].resolved, wanted, rtol=0, atol=4 * floor)


def test_weights_of_a_user_with_any_number_of_classes(folder, embed, photographs):
    with rng.torch_seeded(0, "weights"):
        own = models.build("resnet18", (3, 32, 32), 7, 5)
        for module in own.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2)
                module.running_mean.normal_()
    state = {k: v for k, v in own.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save({"state_dict": state}, folder / "own.pth")
    given = ("--weights", "own.pth", "--split", "test", "--size", "32")
    assert embed("resnet18", *given, data="photos.npz")[0] == 0
    own.fc = nn.Identity()
    x, _ = data.load("photos.npz", "test").tensors(slice(None), torch.float32)
    x = torch.nn.functional.interpolate(
        x.expand(-1, 3, -1, -1), (32, 32), mode="bilinear", align_corners=False, antialias=True
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        wanted = own.eval()((x / 2 + 0.5 - mean[:, None, None]) / std[:, None, None]).numpy()
    # twenty convolutions of up to 4608 terms in float32, in batches of another size
    bound = 20 * 4608**0.5 * np.finfo(np.float32).eps * np.abs(wanted).max()
    np.testing.assert_allclose(data.load("features.npz").x, wanted, rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("model", "weights", "words"),
    [
        ("resnet34", "absent.pth", "there is no file or folder absent.pth"),
        ("resnet18", "other.pth", "does not fit the model (ImageNetResNet)"),
        ("mlp3", "random", "has no convolutions"),
        ("resnet33", "random", "no depth 6n + 2"),
        ("nets.py:colour", "random", "brings its own weights"),
    ],
)
def test_weights_that_do_not_fit(folder, embed, model, weights, words):
    torch.save(nn.Linear(3, 2).state_dict(), folder / "other.pth")
    code, stderr = embed(model, "--weights", weights)
    assert code == 2
    assert words in stderr
    assert not list(folder.glob("features*"))
