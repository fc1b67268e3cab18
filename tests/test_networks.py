"""Networks of the papers: their sizes, what they refuse, and how they are normalised."""

import numpy as np
import pytest
import torch
from samples import labelled
from torch import nn

import hessrmt as hr
from hessrmt import rng
from hessrmt.errors import ProblemError
from hessrmt.problems import models
from hessrmt.problems.models import Block

CIFAR, MNIST = (3, 32, 32), (1, 28, 28)


def images(shape, samples=5):
    generator = rng.torch_generator(0, "images")
    return torch.randn(samples, *shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("spec", "shape", "parameters"),
    [
        # Generalization puzzles (2020), L.1.1 and L.1.2
        ("conv3-24", CIFAR, 154_464),
        ("conv3-34", MNIST, 165_784),
        # B: 64 filters 5x5, twice, and a linear layer of input size 64 * 8 * 8
        ("conv3s2-64", CIFAR, 75 * 64 + 25 * 64 * 64 + 64 * 8 * 8 * 10),
        # 3x3 weights, two numbers of BatchNorm per filter, 4 x 4 positions behind three halvings
        ("conv5", CIFAR, 9 * (32 * (3 + 64) + 64 * (64 + 128)) + 2 * 288 + 128 * 16 * 10 + 10),
        # Fig. 1: "approximately 10000"
        ("conv5-16", CIFAR, 9_978),
        # He et al., table 6: 0.27 M, 0.46 M, 0.66 M, 0.85 M, 1.7 M, with shortcuts without weights;
        # two projections and their BatchNorms are 16 * 32 + 32 * 64 + 2 * 96 = 2,752 more
        ("resnet20", CIFAR, 272_474),
        ("resnet56", CIFAR, 853_018 + 2_752),
        ("resnet110", CIFAR, 1_727_962 + 2_752),
        # torchvision's table, 11,689,512 and 21,797,672 with 1000 classes
        ("resnet18", (3, 224, 224), 11_689_512 - 990 * 513),
        ("resnet34", (3, 224, 224), 21_797_672 - 990 * 513),
    ],
)
def test_parameters_are_those_of_the_papers(spec, shape, parameters):
    assert sum(p.numel() for p in models.build(spec, shape, 10, 0).parameters()) == parameters


@pytest.mark.parametrize("depth", [8, 20, 32, 44, 56])
def test_a_resnet_is_as_deep_as_its_name(depth):
    model = models.build(f"resnet{depth}", CIFAR, 10, 0)
    shortcuts = [[*m.shortcut.children()] for m in model.modules() if isinstance(m, Block)]
    assert sum(len(shortcut) == 2 for shortcut in shortcuts) == 2  # projections
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) - 2 == depth


@pytest.mark.parametrize(("depth", "blocks"), [(18, (2, 2, 2, 2)), (34, (3, 4, 6, 3))])
def test_resnets_for_imagenet_are_those_of_another_library(depth, blocks):
    transformers = pytest.importorskip("transformers")
    ours = models.build(f"resnet{depth}", CIFAR, 4, 0).double().eval()
    config = transformers.ResNetConfig(layer_type="basic", depths=[*blocks], num_labels=4)
    config.hidden_sizes = [64, 128, 256, 512]
    theirs = transformers.ResNetForImageClassification(config).double().eval()
    state = {}

    def copy(source, target, parts=("weight",)):
        state.update({f"{target}.{part}": ours.state_dict()[f"{source}.{part}"] for part in parts})

    def copy_normalised(conv, norm, target):
        copy(conv, f"{target}.convolution")
        parts = "weight", "bias", "running_mean", "running_var", "num_batches_tracked"
        copy(norm, f"{target}.normalization", parts)

    copy_normalised("conv1", "bn1", "resnet.embedder.embedder")
    for stage, count in enumerate(blocks):
        for block in range(count):
            own = f"layer{stage + 1}.{block}"
            other = f"resnet.encoder.stages.{stage}.layers.{block}"
            for part in (1, 2):
                names = f"{own}.conv{part}", f"{own}.bn{part}"
                copy_normalised(*names, f"{other}.layer.{part - 1}")
            if f"{own}.downsample.0.weight" in ours.state_dict():
                names = f"{own}.downsample.0", f"{own}.downsample.1"
                copy_normalised(*names, f"{other}.shortcut")
    copy("fc", "classifier.1", ("weight", "bias"))
    theirs.load_state_dict(state, strict=True)
    x = images((3, 40, 36), 2)
    with torch.no_grad():
        one, other = ours(x), theirs(x).logits
    # the same sums in the same order or another one, through at most 36 layers
    assert torch.allclose(one, other, rtol=0, atol=36 * 2**-52 * 4608**0.5 * float(one.abs().max()))


@pytest.mark.parametrize("shape", [CIFAR, MNIST, (2, 9, 11)])
@pytest.mark.parametrize("spec", ["conv3-3", "conv3s2-3", "conv5", "conv5-3", "resnet8"])
def test_outputs_on_images_of_any_shape(spec, shape):
    model = models.build(spec, shape, 7, 0)
    found = model(images(shape).float())
    assert found.shape == (5, 7)
    assert torch.isfinite(found).all()
    assert not any(m.inplace for m in model.modules() if isinstance(m, nn.ReLU))
    if spec != "conv3-3":  # padded
        one = models.build(spec, (2, 1, 1), 3, 0).eval()
        assert one(torch.ones(1, 2, 1, 1)).shape == (1, 3)


@pytest.mark.parametrize("spec", ["conv3-4", "conv5", "resnet8"])
def test_the_seed_decides_the_weights(spec):
    first, again, other = (models.build(spec, CIFAR, 10, seed).state_dict() for seed in (1, 1, 2))
    weights = [name for name in first if first[name].dim() > 1]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in weights)


@pytest.mark.parametrize(
    ("spec", "shape", "words"),
    [
        ("conv3-4", (3, 8, 32), r"conv3 needs images .* at least 9 x 9 pixels.*\(3, 8, 32\)"),
        ("conv3-4", (784,), r"conv3 needs images.*\(784,\)"),
        ("conv3s2-4", (28, 28), r"conv3s2 needs images.*\(28, 28\)"),
        ("conv5", (784,), "conv5 needs images"),
        ("conv5-4", (784,), "conv5 needs images"),
        ("resnet8", (784,), "resnet8 needs images"),
        ("conv3-0", CIFAR, "0 filters per layer; expected from 1 to 4096"),
        ("conv5-123456789", CIFAR, "123456789 filters per layer"),
        ("resnet28", CIFAR, "resnet28 has no depth 6n.*resnet20"),
        ("resnet34", (784,), "resnet34 needs images"),
        ("resnet2", CIFAR, "resnet2 has no depth"),
        ("resnet0", CIFAR, "resnet0 has no depth"),
        ("resnet1208", CIFAR, "from 8 to 1202"),
        *(
            (name, CIFAR, "unknown model .*conv3-N, conv3s2-N, conv5-N, resnetN .*8, 14, 20")
            for name in ("resnet", "conv3", "conv3-", "conv3--4", "conv3-4.5", "conv5-²", "vgg11")
        ),
    ],
)
def test_what_cannot_be_built_is_refused(spec, shape, words):
    with pytest.raises(ProblemError, match=words):
        models.build(spec, shape, 10, 0)


@pytest.mark.parametrize(
    ("spec", "side"), [("conv3-2", 9), ("conv3s2-2", 5), ("conv5-2", 6), ("block", 5)]
)
def test_hessians_are_those_of_forward_over_reverse(spec, side):
    shape = (1, side, side)
    with rng.torch_seeded(0, "test network"):
        # a block with a projection, BatchNorms in evaluation mode, and the mean over positions
        parts = Block(1, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)
        block = nn.Sequential(*parts).eval()
        model = block if spec == "block" else models.build(spec, shape, 3, 0)
        problem = hr.Problem(model, "cross-entropy", labelled((8, *shape), 3))
    exact = problem.at(torch.float64, torch.device("cpu"))
    expected = torch.func.hessian(exact.loss)(exact.theta).numpy()
    found = hr.hessian(problem, device="cpu")
    # two ways of summing the same products: their round-off is below n ε ‖H‖ for n parameters
    bound = len(expected) * np.finfo(np.float64).eps * np.linalg.norm(expected)
    assert np.linalg.norm(expected) > 1e-3  # no dead network
    assert np.abs(found - expected).max() < bound
