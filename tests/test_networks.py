"""Networks of the papers: their sizes, what they refuse, and how they are normalised."""

import numpy as np
import pytest
import torch
from samples import labelled
from torch import nn

import hessrmt as hr
from hessrmt import rng
from hessrmt.errors import GeneralizationError, ProblemError
from hessrmt.generalization import normalize, output_normalize
from hessrmt.problems import models
from hessrmt.problems.models import Block

CIFAR, MNIST = (3, 32, 32), (1, 28, 28)


def size(spec, shape, outputs=10):
    return sum(p.numel() for p in models.build(spec, shape, outputs, 0).parameters())


def images(shape, samples=5):
    generator = rng.torch_generator(0, "images")
    return torch.randn(samples, *shape, generator=generator, dtype=torch.float64)


def trained(spec, shape):
    """A network in evaluation mode whose BatchNorms have statistics and weights of their own."""
    model = models.build(spec, shape, 4, 3).double()
    draw = rng.torch_generator(1, "statistics")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for value in (module.weight, module.running_var):
                    value.uniform_(0.5, 2, generator=draw)
                for value in (module.bias, module.running_mean):
                    value.normal_(generator=draw)
    return model.eval()


@pytest.mark.parametrize(
    ("spec", "shape", "parameters"),
    [
        # Liao et al. 2020, L.1.1 and L.1.2
        ("conv3-24", CIFAR, 154_464),
        ("conv3-34", MNIST, 165_784),
        # appendix B: 64 filters 5x5, twice, and a linear layer of input size 64 * 8 * 8
        ("conv3s2-64", CIFAR, 75 * 64 + 25 * 64 * 64 + 64 * 8 * 8 * 10),
        # 3x3 weights, two numbers of BatchNorm per filter, 4 x 4 positions behind three halvings
        (
            "conv5",
            CIFAR,
            9 * (3 * 32 + 32 * 64 + 64 * 64 + 64 * 128) + 2 * 288 + 128 * 16 * 10 + 10,
        ),
        # Fig. 1: "approximately 10000"
        ("conv5-16", CIFAR, 9_978),
        # He et al., table 6: 0.27 M, 0.46 M, 0.66 M, 0.85 M, 1.7 M, with shortcuts without weights;
        # two projections and their BatchNorms are 16 * 32 + 32 * 64 + 2 * 96 = 2,752 more
        ("resnet20", CIFAR, 272_474),
        ("resnet56", CIFAR, 853_018 + 2_752),
        ("resnet110", CIFAR, 1_727_962 + 2_752),
    ],
)
def test_parameters_are_those_of_the_papers(spec, shape, parameters):
    assert size(spec, shape) == parameters


@pytest.mark.parametrize("depth", [8, 20, 32, 44, 56])
def test_a_resnet_is_as_deep_as_its_name(depth):
    model = models.build(f"resnet{depth}", CIFAR, 10, 0)
    projections = sum(
        isinstance(m, Block) and len([*m.shortcut.children()]) == 2 for m in model.modules()
    )
    layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())
    assert projections == 2
    assert layers - projections == depth


@pytest.mark.parametrize("shape", [CIFAR, MNIST, (2, 9, 11)])
@pytest.mark.parametrize("spec", ["conv3-3", "conv3s2-3", "conv5", "conv5-3", "resnet8"])
def test_outputs_on_images_of_any_shape(spec, shape):
    model = models.build(spec, shape, 7, 0)
    found = model(images(shape).float())
    assert found.shape == (5, 7)
    assert torch.isfinite(found).all()
    assert not any(m.inplace for m in model.modules() if isinstance(m, nn.ReLU))


@pytest.mark.parametrize("spec", ["conv3s2-2", "conv5", "conv5-2", "resnet8"])
def test_padded_networks_take_a_single_pixel(spec):
    assert models.build(spec, (2, 1, 1), 3, 0).eval()(torch.ones(1, 2, 1, 1)).shape == (1, 3)


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
        ("resnet18", CIFAR, "resnet18 has no depth 6n.*resnet20"),
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


@pytest.mark.parametrize("spec", ["conv3-4", "conv3s2-4", "conv5", "conv5-4"])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 11, 9)])
def test_layerwise_normalisation_is_exact(spec, shape):
    model, x = trained(spec, shape), images(shape)
    found = normalize(model, x)
    with torch.no_grad():
        expected, scaled = model(x), found.model(x) * found.product
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert len(found.factors) == convolutions + 1
    # sums of up to 9 * 64 terms in five layers, and as many roundings of the factors: 1e-12 is
    # several times the √(576 * 5) ε of their random accumulation and far below any wrong factor
    assert (scaled - expected).abs().max() < 1e-12 * expected.abs().max()
    for layer in found.layers:
        weight = found.model.get_submodule(layer.name).weight
        assert abs(float(weight.detach().norm()) - 1) < 1e-14


def test_residual_networks_are_normalised_by_their_output_only():
    model, x = trained("resnet8", (3, 12, 12)), images((3, 12, 12))
    with pytest.raises(GeneralizationError, match="output_normalize"):
        normalize(model, x)
    found = output_normalize(model, x[:1])
    with torch.no_grad():
        output = found.model(x[:1])
        assert torch.allclose(found.model(x) * found.product, model(x), rtol=1e-14, atol=0)
    assert abs(float(output.norm()) - 1) < 1e-14


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: models.build("conv3-2", (1, 9, 9), 3, 0), (1, 9, 9)),
        (lambda: models.build("conv3s2-2", (1, 5, 5), 3, 0), (1, 5, 5)),
        (lambda: models.build("conv5-2", (1, 6, 6), 3, 0), (1, 6, 6)),
        # a block with a projection, BatchNorms in evaluation mode, and the mean over positions
        (
            lambda: nn.Sequential(
                Block(1, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)
            ).eval(),
            (1, 5, 5),
        ),
    ],
)
def test_hessians_are_those_of_forward_over_reverse(make, shape):
    with rng.torch_seeded(0, "test network"):
        problem = hr.Problem(make(), "cross-entropy", labelled((8, *shape), 3))
    exact = problem.at(torch.float64, torch.device("cpu"))
    expected = torch.func.hessian(exact.loss)(exact.theta).numpy()
    found = hr.hessian(problem, device="cpu")
    # two ways of summing the same products: their round-off is below n ε ‖H‖ for n parameters
    bound = len(expected) * np.finfo(np.float64).eps * np.linalg.norm(expected)
    assert np.linalg.norm(expected) > 1e-3  # no dead network
    assert np.abs(found - expected).max() < bound
