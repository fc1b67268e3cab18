"""What families of networks are made of: labels, initial weights, crops, rates; bad input."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from family_samples import family_on, write_images
from hessrmt.workflows.families import run
from scipy import stats

from hessrmt import rng
from hessrmt.config import TrainConfig, load_settings
from hessrmt.errors import ConfigError, DataError, ProblemError
from hessrmt.experiments.puzzles import PuzzlesConfig
from hessrmt.problems import data, losses, models
from hessrmt.training.protocol import crop_and_flip, drawn, initialize, permuted, train

CPU = torch.device("cpu")


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images.npz")


@pytest.fixture
def family(images):
    return partial(family_on, images)


# labels, initial weights, images


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_a_share_of_the_labels_is_permuted(share):
    labels = rng.stream(0, "labels").integers(0, 10, 10_000)
    before = labels.copy()
    found = permuted(labels, share, rng.stream(1, "corruption"))
    assert np.array_equal(labels, before)
    assert np.array_equal(np.bincount(found, minlength=10), np.bincount(labels, minlength=10))
    chosen, frequencies = round(share * len(labels)), np.bincount(labels) / len(labels)
    # a permuted label stays the same by chance with probability Σ f²: pairs of labels are exchanged
    wrong = chosen * (1 - float(frequencies @ frequencies))
    assert abs((found != labels).sum() - wrong) <= 5 * math.sqrt(max(chosen, 1) * 0.25)
    assert (found != labels).sum() <= chosen


def test_distinct_labels_show_which_were_permuted():
    labels = np.arange(1000)
    found = permuted(labels, 0.3, rng.stream(2, "corruption"))
    assert sorted(found) == list(labels)
    # a random permutation of 300 has one fixed point on average, Poisson
    assert 300 - stats.poisson.isf(1e-6, 1) <= (found != labels).sum() <= 300


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, True])
def test_no_share(share):
    with pytest.raises(DataError, match="share of permuted labels"):
        permuted(np.arange(5), share, rng.stream(0, "x"))


def test_drawn_labels_are_uniform():
    found = drawn(20_000, 10, rng.stream(0, "drawn"))
    assert found.dtype == np.int64
    assert stats.chisquare(np.bincount(found, minlength=10)).pvalue > 1e-4


@pytest.mark.parametrize("scale", [1e-4, 0.3])
def test_initial_weights(scale):
    model = models.build("conv5", (3, 16, 16), 10, 0)
    initialize(model, scale, rng.torch_generator(0, "initial-scale"))
    for name, value in model.named_parameters():
        layer = model.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, torch.nn.BatchNorm2d):
            assert torch.equal(value, torch.full_like(value, float(name.endswith("weight"))))
        elif name.endswith("bias"):
            assert not value.any()
        else:
            z = value.detach().double().flatten().numpy() / scale
            assert abs(z.std() - 1) < 5 / math.sqrt(2 * len(z))
            assert abs(z.mean()) < 5 / math.sqrt(len(z))


def test_initial_weights_need_a_layer():
    with pytest.raises(ProblemError, match="no linear or convolution layer"):
        initialize(torch.nn.ReLU(), 0.1, rng.torch_generator(0))
    with pytest.raises(ProblemError, match="positive"):
        initialize(torch.nn.Linear(2, 2), 0.0, rng.torch_generator(0))


def test_crops_are_parts_of_the_padded_image():
    count, size, padding = 600, 5, 2
    one = torch.arange(2 * size * size, dtype=torch.float32).reshape(1, 2, size, size)
    images = one.expand(count, -1, -1, -1)
    with rng.torch_seeded(0, "augment"):
        found = crop_and_flip(images, padding=padding, fill=-1.0)
    padded = torch.full((2, size + 2 * padding, size + 2 * padding), -1.0)
    padded[:, padding:-padding, padding:-padding] = one[0]
    windows = padded.unfold(1, size, 1).unfold(2, size, 1).permute(1, 2, 0, 3, 4)
    possible = torch.cat([windows.flatten(0, 1), windows.flatten(0, 1).flip(3)])
    kinds = [int((possible == image).all(dim=(1, 2, 3)).nonzero()[0]) for image in found]
    seen = np.bincount(kinds, minlength=2 * (2 * padding + 1) ** 2)
    assert stats.chisquare(seen).pvalue > 1e-4
    with pytest.raises(DataError, match="images"):
        crop_and_flip(torch.zeros(3, 7))


# the protocol, generalised


def test_rates_stop_and_augmentation_of_the_protocol(images):
    samples = data.load(str(images), "train")
    model = models.build("conv3s2-2", samples.input_shape, 3, 0)
    seen, sizes = [], []

    def augment(inputs):
        sizes.append(len(inputs))
        return inputs

    state = train(
        model,
        losses.resolve("cross-entropy"),
        samples,
        load_settings(TrainConfig, epochs=9, batch=40),
        device=CPU,
        rate=lambda epoch: 0.1 / (1 + epoch),
        augment=augment,
        stop=lambda state: state.epoch == 3,
        on_epoch=lambda state: seen.append(state.epoch),
    )
    assert seen == [1, 2, 3]
    assert state.epoch == 3
    assert [entry["lr"] for entry in state.history] == [0.1, 0.1 / 2, 0.1 / 3]
    assert sizes == [40, 24] * 3


@pytest.mark.parametrize(
    ("epochs", "rates", "expected"),
    [
        (4, (1.0,), [1, 1, 1, 1]),
        (4, (4.0, 2.0), [4, 4, 2, 2]),
        (5, (4.0, 2.0), [4, 4, 4, 2, 2]),
        (4, (4.0, 3.0, 2.0, 1.0), [4, 3, 2, 1]),
    ],
)
def test_learning_rates_of_equal_pieces(family, epochs, rates, expected):
    settings = family(epochs=epochs, rates=rates)
    assert [settings.rate(epoch) for epoch in range(epochs)] == expected


# bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"values": ()}, "at least 1 item"),
        ({"values": (0.1, -0.1)}, "standard deviations"),
        ({"values": (math.inf,)}, "standard deviations"),
        ({"vary": "corruption", "values": (1.5,), "pretraining": 1}, "shares of the labels"),
        ({"vary": "corruption", "values": (math.nan,), "pretraining": 1}, "shares of the labels"),
        ({"vary": "corruption", "values": (0.5,)}, "pretraining is 0"),
        ({"pretraining": 3}, "pretraining is 3"),
        ({"vary": "samples", "values": (10.5,)}, "whole numbers"),
        ({"vary": "samples", "values": (0,)}, "whole numbers"),
        ({"vary": "samples", "values": (10,), "samples": 20}, "leave samples out"),
        ({"vary": "width", "values": (4,)}, "{width}"),
        ({"vary": "width", "values": (4.5,), "model": "conv3-{width}"}, "whole numbers"),
        ({"model": "conv3-{width}"}, "{width}"),
        ({"initial_scale": 0.1}, "leave initial_scale out"),
        ({"samples": 0}, "at least 1, or all"),
        ({"rates": ()}, "at least 1 item"),
        ({"rates": (0.1, -0.1)}, "positive"),
        ({"rates": (0.1,) * 4}, "4 learning rates for 3 epochs"),
        ({"name": "../x"}, "pattern"),
        ({"norm": 0.5}, "greater than or equal to 1"),
        ({"stop_loss": 0.0}, "greater than 0"),
        ({"momentum": 1.0}, "less than 1"),
        ({"measure_every": 0}, "greater than or equal to 1"),
        ({"flips": True}, "not permitted"),
    ],
)
def test_families_that_make_no_sense(family, changes, words):
    with pytest.raises(ValueError, match=words.replace("{", r"\{")):
        family(**changes)


def test_settings_files_that_make_no_sense(tmp_path):
    path = tmp_path / "puzzles-x.toml"
    one = 'name = "a", vary = "initial-scale", values = [1], model = "m", epochs = 1, rates = [1]'
    two = f"[{{ {one} }}, {{ {one} }}]"
    path.write_text(f'experiment = "puzzles"\n[presets.small]\nfamilies = {two}\n')
    with pytest.raises(ConfigError, match="different names"):
        load_settings(PuzzlesConfig, path)
    path.write_text('experiment = "puzzles"\n[presets]\n')
    with pytest.raises(ConfigError, match="presets"):
        load_settings(PuzzlesConfig, path)


def test_more_samples_than_there_are(family, tmp_path):
    with pytest.raises(ConfigError, match="65 training samples, but there are 64"):
        run(family(samples=65), tmp_path / "out")
    with pytest.raises(ConfigError, match="100 training samples"):
        run(family(vary="samples", values=(10, 100)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_be_used(family, tmp_path):
    path = tmp_path / "regression.npz"
    x, y = np.zeros((5, 8, 8), dtype=np.uint8), np.zeros(5)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(DataError, match="no classes"):
        run(family(data=str(path)), tmp_path / "out")
    np.savez(path, x=x, y=np.zeros(5, dtype=np.int64))
    with pytest.raises(DataError, match="no splits"):
        run(family(data=str(path)), tmp_path / "out")
    with pytest.raises(DataError, match="cifar10"):
        run(family(data="cifar10"), tmp_path / "out")
