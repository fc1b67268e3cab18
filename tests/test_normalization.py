"""Normalised networks: f = Πρ f̃ exactly, or a refusal that says why; their margins and losses."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from properties import examples
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fusion, parametrizations
from torch.utils.data import DataLoader, TensorDataset

from hessrmt import rng
from hessrmt.errors import DataError, NonFiniteError
from hessrmt.generalization import (
    MarginSummary,
    NormalizedLoss,
    margins,
    normalize,
    output_normalize,
)
from hessrmt.problems import models

EXACT = 1e-12
"""Relative to the largest output: some hundred terms per sum at ε = 1.1e-16, and ten layers."""

SINGLE = 1e-6
"""Relative, of losses from float32 outputs: ε = 6e-8 and some ten terms to a sum."""

TRANSPOSED, CONV, LINEAR, NORM = nn.ConvTranspose2d, nn.Conv2d, nn.Linear, nn.BatchNorm2d


def randomized(model, seed=0):
    """Every parameter and statistic drawn anew, so that no scale or shift is trivial."""
    draw = rng.torch_generator(seed, "test network")
    with torch.no_grad():
        for module in model.modules():
            for value in module.parameters(recurse=False):
                value.normal_(generator=draw)
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(generator=draw)
                module.running_var.uniform_(0.5, 2, generator=draw)
    return model.double().eval()


def sequence(*layers):
    return randomized(nn.Sequential(*layers))


def between(*layers):
    return sequence(LINEAR(4, 5), *layers, LINEAR(5, 3))


class Net(nn.Module):
    """Modules by name, and what is made of them and the inputs."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *inputs, **named):
        return self.run(self, *inputs, **named)


def network(run, **modules):
    return randomized(Net(run, **modules))


def residual():
    def run(net, x):
        x = net.first(x).relu()
        return net.last(x + net.branch(x).relu())

    return network(run, first=LINEAR(4, 5), branch=LINEAR(5, 5), last=LINEAR(5, 3))


def using(run):
    """A network that does something with a layer, before the last one."""
    parts = {"layer": LINEAR(4, 4), "last": LINEAR(4, 3), "gain": nn.Parameter(torch.ones(()))}
    return network(lambda net, x: net.last(run(net, x)), **parts)


def parallel():
    parts = {"left": LINEAR(4, 3), "right": LINEAR(4, 3)}
    return network(lambda net, x: net.left(x).relu() + net.right(x).relu(), **parts)


def sample(*shape, seed=0):
    return torch.randn(*shape, generator=rng.torch_generator(seed, "x"), dtype=torch.float64)


ACTIVATIONS = [
    *(nn.ReLU, lambda: nn.ReLU(inplace=True), lambda: nn.LeakyReLU(0.2), nn.PReLU),
    *(nn.Identity, lambda: nn.Dropout(0.5)),
]


@st.composite
def networks(draw):
    """A homogeneous network of up to six layers, and the shape of its inputs."""
    channels, side = draw(st.integers(1, 4)), draw(st.integers(5, 9))
    shape, layers = (channels, side, side), []
    for _ in range(draw(st.integers(0, 3))):
        out, bias = draw(st.sampled_from([1, 2, 4])), draw(st.booleans())
        padding = draw(st.sampled_from([0, 1]))
        if draw(st.booleans()) and not padding:  # which has zeros at the edge
            layers.append(NORM(channels, affine=draw(st.booleans())))
        kernel = 3 if side >= 3 else 1 + 2 * padding
        layers.append(CONV(channels, out, kernel, padding=padding, bias=bias))
        side += 2 * padding - kernel + 1
        channels = out
        if draw(st.booleans()):
            layers.append(NORM(channels))
        layers.append(draw(st.sampled_from(ACTIVATIONS))())
        pool = draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d, None]))
        if pool is not None and side >= 4:
            layers.append(pool(2))
            side //= 2
    if draw(st.booleans()):
        layers.append(NORM(channels))
    layers.append(nn.Flatten())
    width = channels * side * side
    for _ in range(draw(st.integers(0, 2))):
        out = draw(st.integers(1, 12))
        layers.append(LINEAR(width, out, bias=draw(st.booleans())))
        if draw(st.booleans()):
            layers.append(nn.BatchNorm1d(out))
        layers.append(draw(st.sampled_from(ACTIVATIONS))())
        width = out
    layers.append(LINEAR(width, draw(st.integers(1, 5)), bias=draw(st.booleans())))
    return randomized(nn.Sequential(*layers), draw(st.integers(0, 10**6))), shape


@settings(max_examples=examples(120), suppress_health_check=list(HealthCheck))
@given(networks(), st.sampled_from([1, 1.5, 2, 3, math.inf]))
def test_the_normalised_network_times_the_product_is_the_network(drawn, norm):
    model, shape = drawn
    x, other = sample(6, *shape), sample(40, *shape, seed=1)
    with torch.no_grad():
        expected = model(other)
        assume(bool(model(x).any()) and bool(expected.any()))
        found = normalize(model, x, norm)
        again = found.model(other)
    allowed = EXACT * float(expected.abs().max())
    assert (again * found.product - expected).abs().max() <= allowed
    assert found.deviation <= EXACT
    if expected.shape[1] > 1:  # predictions, where they do not hang on round-off
        best = expected.topk(2, dim=1).values
        clear = best[:, 0] - best[:, 1] > 2 * allowed
        assert torch.equal(again.argmax(1)[clear], expected.argmax(1)[clear])
    modules = [m for m in found.model.modules() if isinstance(m, LINEAR | CONV)]
    assert len(modules) == len(found.factors)
    for module in modules:
        size = np.linalg.norm(module.weight.detach().numpy().ravel(), norm)
        assert size == pytest.approx(1, abs=1e-13)  # a power mean of n elements, each at ε


@pytest.mark.parametrize("norm", [1, 3.5, math.inf])
def test_weights_and_biases_are_those_of_the_formula(norm):
    model = sequence(LINEAR(4, 6), nn.ReLU(), LINEAR(6, 5), nn.ReLU(), LINEAR(5, 3))
    found = normalize(model, sample(8, 4), norm)
    product = 1.0
    for name in ("0", "2", "4"):
        own, new = model.get_submodule(name), found.model.get_submodule(name)
        rho = np.linalg.norm(own.weight.detach().numpy().ravel(), norm)
        product *= rho
        assert found.factors[name] == pytest.approx(rho, rel=1e-14)
        np.testing.assert_allclose(new.weight.detach(), own.weight.detach() / rho, rtol=1e-14)
        np.testing.assert_allclose(new.bias.detach(), own.bias.detach() / product, rtol=1e-14)
    assert list(found.factors) == ["0", "2", "4"]
    assert found.product == pytest.approx(product, rel=1e-14)
    assert found.norm == norm


def test_factors_are_norms_of_weights_into_which_batchnorm_is_folded_as_torch_does():
    conv, norm = randomized(CONV(4, 6, 3, groups=2), 1), randomized(NORM(6), 2)
    linear, second = randomized(LINEAR(54, 5, bias=False), 3), randomized(nn.BatchNorm1d(5), 4)
    model = nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), linear, second)
    factors = normalize(model, sample(8, 4, 5, 5)).factors
    fused = fusion.fuse_conv_bn_eval(conv, norm), fusion.fuse_linear_bn_eval(linear, second)
    norms = [float(one.weight.detach().norm()) for one in fused]
    assert list(factors.values()) == pytest.approx(norms, rel=1e-14)


@pytest.mark.parametrize(
    "layers",
    [
        [NORM(2), CONV(2, 4, 3)],
        [NORM(2), NORM(2), CONV(2, 4, 3), NORM(4)],
        [CONV(2, 4, 3), NORM(4), NORM(4), nn.Dropout(), nn.ReLU()],
        [NORM(2), CONV(2, 4, 3, padding=1, padding_mode="reflect")],
        [TRANSPOSED(2, 4, 3, groups=2), NORM(4)],
        [CONV(2, 4, 3), nn.ReLU(), NORM(4), CONV(4, 4, 2, groups=2, bias=False)],
        [CONV(2, 2, 3, padding="same"), nn.ReLU(inplace=True), NORM(2)],
        [nn.Flatten(), nn.BatchNorm1d(98), LINEAR(98, 7), nn.BatchNorm1d(7, affine=False)],
    ],
)
def test_every_place_of_batchnorm_that_can_be_folded(layers):
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))
    x = sample(9, 2, 7, 7)
    model.float()(x.float())
    found = normalize(randomized(model), x)
    assert found.deviation <= EXACT
    assert not any(isinstance(module, _BatchNorm) for module in found.model.modules())


def test_a_zero_shift_may_stand_before_zero_padding():
    model = sequence(NORM(2), CONV(2, 4, 3, padding=1), nn.Flatten())
    nn.init.zeros_(model[0].bias)
    model[0].running_mean.zero_()
    assert normalize(model, sample(6, 2, 5, 5)).deviation <= EXACT


def around():
    def run(net, x):
        x = net.layer(x)
        return net.last(x + net.norm(x))

    return Net(run, layer=LINEAR(4, 5), norm=nn.BatchNorm1d(5), last=LINEAR(5, 3))


def tied():
    model = nn.Sequential(LINEAR(4, 4), nn.ReLU(), LINEAR(4, 4))
    model[2].weight = model[0].weight
    return model


def spoiled(value):
    model = between(nn.ReLU())
    nn.init.constant_(model[0].weight, value)
    return model


VECTORS, IMAGES = (7, 4), (6, 2, 5, 5)


@pytest.mark.parametrize(
    ("model", "shape", "why"),
    [
        # not homogeneous
        (between(nn.Tanh()), VECTORS, "scaling the weights of 0 .* the cause is 1 .Tanh."),
        (between(nn.GELU()), VECTORS, "GELU"),
        (between(nn.Softplus(beta=100)), VECTORS, "Softplus"),
        (between(nn.Hardtanh(-1e6, 1e6)), VECTORS, "Hardtanh"),  # linear on these data
        (between(nn.LayerNorm(5)), VECTORS, r"parameter 1.weight of 1 \(LayerNorm\)"),
        (between(nn.LayerNorm(5, elementwise_affine=False)), VECTORS, r"1 \(LayerNorm\)"),
        (sequence(LINEAR(4, 3), nn.Softmax(1)), VECTORS, "Softmax"),
        (residual(), VECTORS, "the weights of branch .*residual"),
        (randomized(models.build("resnet8", (2, 5, 5), 4, 3)), IMAGES, "residual"),
        (parallel(), VECTORS, "residual or parallel"),
        # BatchNorm that cannot be folded
        (sequence(NORM(2), CONV(2, 4, 3, padding=1)), IMAGES, "pads with zeros"),
        (sequence(NORM(2), TRANSPOSED(2, 1, 1)), IMAGES, "pads with zeros"),
        (sequence(CONV(2, 4, 3), NORM(4, track_running_stats=False)), IMAGES, "no running"),
        (sequence(CONV(2, 4, 3), nn.ReLU(), NORM(4)), IMAGES, "takes no output"),
        (sequence(nn.Flatten(), LINEAR(50, 4), around()), IMAGES, "used without it"),
        (sequence(NORM(2)), IMAGES, "cannot be folded"),
        # parameters that are used in other ways
        (using(lambda net, x: net.gain * net.layer(x)), VECTORS, "parameter gain"),
        (using(lambda net, x: net.layer(net.layer(x).relu())), VECTORS, "more than once.*layer"),
        (using(lambda net, x: x @ net.layer.weight), VECTORS, "parameter layer.weight"),
        (tied(), VECTORS, r"more than once.*0 \(its weight is also that of 2\)"),
        (sequence(nn.Flatten(), nn.ReLU()), VECTORS, "no linear or convolution layer"),
    ],
)
def test_networks_that_can_be_normalised_by_their_output_only(model, shape, why):
    with pytest.raises(DataError, match=f"(?s){why}.*output_normalize"):
        normalize(model, sample(*shape))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (using(lambda net, x: net.layer(x) + torch.randn(len(x), 4)), "random"),
        (Net(lambda net, x: (net.a(x), x), a=LINEAR(4, 3)), "tuple"),
        (spoiled(0.0), "weights of 0 are all zero"),
        (spoiled(math.nan), r"0.weight has 20 NaN"),
        (nn.Sequential(LINEAR(4, 3), nn.Threshold(1e9, 0.0)), "all zero"),
        (nn.Sequential(nn.LazyLinear(3)), "has no shape yet"),
        (LINEAR(5, 3), "failed on inputs of shape .7, 4."),
        (Net(None, weight=nn.Parameter(torch.ones(4, dtype=torch.complex64))), "complex"),
        ("mlp3", "str, not a torch.nn.Module"),
    ],
)
def test_what_is_no_network_to_normalise(model, why):
    with pytest.raises(DataError, match=why):
        normalize(model, sample(7, 4))


def test_layers_are_ordered_by_use():
    """Layers registered in the order opposite to their use, and one that is not used."""
    parts = {"c": LINEAR(6, 3), "spare": LINEAR(9, 9), "b": LINEAR(5, 6), "a": LINEAR(4, 5)}
    model = network(lambda net, x: net.c(functional.relu(net.b(torch.relu_(net.a(x))))), **parts)
    found = normalize(model, sample(7, 4))
    assert list(found.factors) == ["a", "b", "c"]
    assert torch.equal(found.model.spare.weight, model.spare.weight)
    lone = randomized(LINEAR(4, 3, bias=False))
    found = normalize(lone, sample(7, 4))
    assert found.factors == {"model": pytest.approx(float(lone.weight.detach().norm()), rel=1e-14)}
    assert found.model.bias is None


def test_weight_norm_is_taken_out():
    model = between(nn.ReLU())
    parametrizations.weight_norm(model[0])
    with torch.no_grad():
        model[0].parametrizations.weight.original0.mul_(3)
    names = [name for name, _ in model.named_parameters()]
    found = normalize(model, sample(7, 4))
    assert [name for name, _ in model.named_parameters()] == names
    assert found.factors["0"] == pytest.approx(float(model[0].weight.detach().norm()), rel=1e-14)
    assert found.deviation <= EXACT
    old = between(nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(old[0])
    with pytest.raises(DataError, match=r"remove_weight_norm"):
        normalize(old, sample(7, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_original_is_not_changed_and_its_precision_is_kept(dtype):
    layers = LINEAR(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), LINEAR(6, 3)
    model = sequence(*layers).to(dtype).train()
    model[0].weight.requires_grad_(False)
    before, state = copy.deepcopy(model), model.state_dict()
    x = sample(7, 4)
    found = normalize(model, x)
    for name, value in before.state_dict().items():
        assert torch.equal(value, state[name])
        assert value.dtype == state[name].dtype
    assert all(module.training for module in model.modules())
    assert not any(p.grad_fn or p.grad is not None for p in model.parameters())
    assert {p.dtype for p in found.model.parameters()} == {dtype}
    assert not any(module.training for module in found.model.modules())
    assert not found.model[0].weight.requires_grad
    assert found.model[4].weight.requires_grad
    assert found.deviation <= EXACT  # in float64
    expected = model.double().eval()(x)
    off = found.model.double()(x) * found.product - expected
    # two layers, each parameter rounded once
    assert off.abs().max() <= 10 * torch.finfo(dtype).eps * expected.abs().max()


def test_what_single_precision_cannot_hold_is_refused():
    model = sequence(*(LINEAR(3, 3) for _ in range(6)))
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1e8)
    assert normalize(model, sample(5, 3)).deviation <= EXACT
    with pytest.raises(DataError, match=r"too small .*float32"):
        normalize(model.float(), sample(5, 3))


@pytest.mark.parametrize("norm", [2, 1000.0])
def test_norms_far_outside_of_squares(norm):
    model = between(nn.ReLU())
    with torch.no_grad():
        model[0].weight.mul_(1e-200)
        model[2].weight.mul_(1e180)
    found = normalize(model, sample(7, 4), norm)
    assert found.deviation <= EXACT
    scaled = model[0].weight.detach().numpy().ravel() * 1e200
    largest = np.abs(scaled).max()
    expected = largest * np.linalg.norm(scaled / largest, norm) * 1e-200
    assert found.factors["0"] == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("function", [normalize, output_normalize])
def test_norms_and_inputs_that_cannot_be_used(function):
    for norm in (0.5, math.nan, True, "2"):
        with pytest.raises(DataError, match=r"norm must be .*L_p norm"):
            function(LINEAR(4, 3), sample(7, 4), norm)
    for inputs, why in [
        (torch.zeros(0, 4), "empty"),
        (torch.full((2, 4), math.inf), "NaN or infinite values, first in sample 0"),
        (None, "expected a tensor"),
    ]:
        with pytest.raises(DataError, match=why):
            function(LINEAR(4, 3), inputs)


def test_inputs_of_several_parts_arrays_and_modes():
    parts = {"embed": LINEAR(4, 5), "last": LINEAR(5, 3)}
    model = network(lambda net, x, keep: net.last(net.embed(x).relu() * keep), **parts)
    x, keep = sample(7, 4), torch.arange(7)[:, None] % 2
    one = normalize(model, (x, keep))
    other = normalize(model, {"x": x.numpy(), "keep": keep.numpy()})
    assert one.factors == other.factors
    assert normalize(nn.DataParallel(model), (x, keep)).factors == one.factors
    with torch.inference_mode():
        assert normalize(model, (x.clone(), keep.clone())).factors == one.factors
        made = LINEAR(4, 3)
    with pytest.raises(DataError, match="inference_mode"):
        normalize(made, x)


def test_output_normalisation_of_a_residual_network():
    model = residual()
    image, x = sample(1, 4), sample(9, 4, seed=3)
    found = output_normalize(model, image)
    with torch.no_grad():
        assert found.product == pytest.approx(float(model(image).norm()), rel=1e-14)
        torch.testing.assert_close(found.model(x) * found.product, model(x), rtol=1e-14, atol=0)
        assert float(found.model(image).norm()) == pytest.approx(1, rel=1e-14)
        rows = [np.abs(row).max() for row in model(x).numpy()]
    assert output_normalize(model, x, math.inf).product == pytest.approx(np.mean(rows), rel=1e-14)
    assert found.factors == {"output": found.product}
    with pytest.raises(DataError, match="norm of the outputs"):
        output_normalize(nn.Sequential(LINEAR(4, 3), nn.Threshold(1e9, 0.0)), image)
    model = model.float().train()
    found = output_normalize(model, image)
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}
    assert model.training
    assert not found.model.model.training


# margins

DRAW = rng.stream(0, "test margins")
X = DRAW.normal(size=(50, 4))
Y = DRAW.integers(0, 3, 50)


def perceptron(outputs=3):
    with rng.torch_seeded(1, "test margins"):
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, outputs))


@pytest.mark.parametrize("batch", [1, 7, 1024])
def test_margins_are_those_of_a_loop(batch):
    model = perceptron()  # single precision: computed in double all the same
    found = margins(model, X, Y, batch=batch)
    weights = [value.detach().double().numpy() for value in model.parameters()]
    outputs = np.maximum(X @ weights[0].T + weights[1], 0) @ weights[2].T + weights[3]
    expected = np.array(
        [row[k] - np.delete(row, k).max() for row, k in zip(outputs, Y, strict=True)]
    )
    np.testing.assert_allclose(found.margins, expected, rtol=0, atol=1e-14)
    assert found.minimum == found.margins.min()
    assert found.error == np.mean(expected <= 0)
    np.testing.assert_array_equal(found.support(5), np.argsort(expected)[:5])
    assert len(found.support(500)) == 50
    assert found.quantiles([0.5])[0.5] == pytest.approx(np.median(expected), abs=1e-14)
    assert next(model.parameters()).dtype == torch.float32
    assert model.training


def test_the_bound_exists_only_if_all_is_correct():
    right = MarginSummary(np.array([0.5, 2.0, 0.25]), product=8.0)
    assert (right.bound, right.normalized_bound) == (4.0, 32.0)
    assert (right.normalized_minimum, right.error) == (0.25 / 8, 0)
    wrong = MarginSummary(np.array([0.5, 0.0, -1.0]))
    assert wrong.bound == wrong.normalized_bound == math.inf
    assert wrong.error == pytest.approx(2 / 3)
    assert right.to_dict()["support_margins"] == [0.25, 0.5, 2.0]


@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize(
    "labels", [Y > 0, (Y > 0).astype(int), np.where(Y > 0, 1, -1), np.where(Y > 0, 1.0, -1.0)]
)
def test_one_score_per_sample(squeezed, labels):
    model = perceptron(1).double()
    with torch.no_grad():
        score = model(torch.from_numpy(X))[:, 0].numpy()
    found = margins(nn.Sequential(model, nn.Flatten(0)) if squeezed else model, X, labels)
    np.testing.assert_allclose(found.margins, np.where(Y > 0, score, -score), rtol=0, atol=1e-14)


INFINITE = nn.Sequential(perceptron(), nn.Threshold(1e9, math.inf))


@pytest.mark.parametrize(
    ("model", "x", "y", "options", "why"),
    [
        (perceptron(), X, Y + 1, {}, "labels run from 1 to 3, but the model has 3"),
        (perceptron(), X, Y.astype(float), {}, "float64; expected one integer"),
        (perceptron(), X, np.eye(3, dtype=int)[Y], {}, "argmax"),
        (perceptron(), X, Y[:-1], {}, "50 samples but labels of shape .49"),
        (perceptron(1), X, Y, {}, "one output per sample.*0, 1, 2"),
        (INFINITE, X, Y, {}, "NaN or infinite, first in sample 0"),
        (nn.Unflatten(1, (2, 2)), X, Y, {}, r"got .50, 2, 2."),
        (perceptron(), None, Y, {}, "0 samples"),
        (perceptron(), np.where(np.arange(50)[:, None] == 3, np.nan, X), Y, {}, "in sample 3"),
        (perceptron(), X, Y, {"product": 0}, "product must be positive"),
        (perceptron(), X, Y, {"batch": 0}, "batch"),
    ],
)
def test_what_has_no_margins(model, x, y, options, why):
    with pytest.raises((DataError, NonFiniteError), match=why):
        margins(model, x, y, **options)


# the normalised loss in a training loop


@pytest.fixture
def data():
    draw = rng.stream(0, "test clouds")
    y = draw.integers(0, 3, 150)
    x = draw.normal(size=(150, 4)) + 2.0 * np.eye(4)[y]
    return torch.from_numpy(x).float(), torch.from_numpy(y)


@pytest.fixture
def model():
    with rng.torch_seeded(0, "test network"):
        return nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3)
        )


def train(model, data, steps):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()


def loss_of(net, data):
    with torch.no_grad():
        value = float(functional.cross_entropy(net.model(data[0]), data[1]))
    return pytest.approx(value, rel=SINGLE)


def test_it_follows_a_training(model, data):
    monitor = NormalizedLoss(model)
    with rng.torch_seeded(0, "test training"):
        for _ in range(4):
            train(model, data, 5)
            value, net = monitor(*data), normalize(model, data[0])
            assert value == loss_of(net, data)
            entry = monitor.history[-1]
            assert entry.factors == pytest.approx(net.factors, rel=1e-13)
            assert entry.normalized_loss == value
    assert [entry.step for entry in monitor.history] == [0, 1, 2, 3]
    assert len({entry.product for entry in monitor.history}) == 4
    assert monitor.history[0].loss > monitor.history[-1].loss
    assert entry.normalized_margin == entry.margin / entry.product
    outputs = model.eval()(data[0]).detach()
    assert entry.error == pytest.approx(float((outputs.argmax(1) != data[1]).float().mean()))


def test_it_leaves_the_training_as_it_is_and_copies_no_data(model, data):
    model[3].eval()
    total = model(data[0]).sum()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    monitor = NormalizedLoss(model)
    monitor(*data)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    monitor(DataLoader(TensorDataset(*data), batch_size=64))
    assert [m.training for m in model] == [True, True, True, False, True]
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    total.backward()  # nothing that the graph needs was written to
    assert torch.isfinite(model[0].weight.grad).all()
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].data_ptr()))
    monitor(*data)
    assert seen == [data[0].data_ptr()]


def test_a_loader_gives_what_one_batch_does(model, data):
    monitor = NormalizedLoss(model, norm=1)
    whole = pytest.approx(monitor(data), rel=SINGLE)  # a pair
    batches = DataLoader(TensorDataset(*data), batch_size=64)  # 64 + 64 + 22
    assert monitor(batches) == whole
    assert monitor(iter(batches)) == whole
    assert [entry.samples for entry in monitor.history] == [150] * 3
    assert NormalizedLoss(model, norm=1)(iter(batches)) == whole


def test_every_tenth_call_measures(model, data):
    monitor = NormalizedLoss(model, every=10)
    values = []
    for _ in range(21):
        values.append(monitor(*data))
        train(model, data, 1)
    assert [entry.step for entry in monitor.history] == [0, 10, 20]
    assert values[0] == values[9] != values[10] == values[19] != values[20]


def test_a_network_that_is_not_homogeneous_needs_a_reference(data):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    with pytest.raises(DataError, match="Tanh"):
        NormalizedLoss(model)(*data)
    monitor = NormalizedLoss(model, reference=data[0][:1])
    net = output_normalize(model, data[0][:1])
    assert monitor(*data) == loss_of(net, data)
    assert monitor.history[0].factors == pytest.approx(net.factors, rel=SINGLE)


def test_regression_has_no_margins(data):
    model, targets = nn.Linear(4, 1), data[0][:, :1]
    monitor = NormalizedLoss(model, "mse")
    with torch.no_grad():
        expected = (model(data[0]) / model.weight.norm() - targets).square().mean()
    assert monitor(data[0], targets) == pytest.approx(float(expected), rel=SINGLE)
    assert monitor.history[0].error is monitor.history[0].normalized_margin is None


def test_what_cannot_be_measured(model, data):
    for options in (*({"every": every} for every in (0, -1, 1.5, True)), {"norm": 0}):
        with pytest.raises(DataError, match=next(iter(options))):
            NormalizedLoss(model, **options)
    for batch, why in [
        (([],), "no samples"),
        ((iter(()),), "no samples"),
        ((data[0],), "expected a pair"),
        ((7,), "expected inputs and targets"),
        ((data[0], data[1] + 1), "labels run from"),
        ((data[0], data[0][:, :2]), "the loss failed"),
    ]:
        monitor = NormalizedLoss(model)
        with pytest.raises(DataError, match=why):
            monitor(*batch)
        assert monitor(*data) == monitor.history[0].normalized_loss
    with pytest.raises(NonFiniteError, match="nan"):
        NormalizedLoss(model, lambda outputs, targets: outputs.sum() * math.nan)(*data)
