"""Normalised networks: f = Πρ f̃ exactly, or a refusal that says why."""

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
from torch.nn.utils import fusion, parametrizations

from hessrmt import rng
from hessrmt.errors import DataError, GeneralizationError
from hessrmt.generalization import normalize, output_normalize
from hessrmt.generalization.networks import find_layers, working_copy
from hessrmt.generalization.normalization import deviation

EXACT = 1e-12
"""Relative to the largest output: some hundred terms per sum at ε = 1.1e-16, and ten layers."""

CONV_TRANSPOSE, CONV, LINEAR = nn.ConvTranspose2d, nn.Conv2d, nn.Linear


def randomized(model, seed=0):
    """Every parameter and statistic drawn anew, so that no scale or shift is trivial."""
    draw = rng.torch_generator(seed, "test network")
    with torch.no_grad():
        for module in model.modules():
            for value in module.parameters(recurse=False):
                value.normal_(generator=draw)
            if (
                isinstance(module, nn.modules.batchnorm._BatchNorm)
                and module.running_mean is not None
            ):
                module.running_mean.normal_(generator=draw)
                module.running_var.uniform_(0.5, 2, generator=draw)
    return model.double().eval()


def sample(*shape, seed=0):
    return torch.randn(*shape, generator=rng.torch_generator(seed, "x"), dtype=torch.float64)


@st.composite
def networks(draw):
    """A homogeneous network of up to six layers, and the shape of its inputs."""
    channels, side = draw(st.integers(1, 4)), draw(st.integers(5, 9))
    shape, layers = (channels, side, side), []

    def activation():
        return draw(
            st.sampled_from(
                [
                    nn.ReLU,
                    lambda: nn.ReLU(inplace=True),
                    lambda: nn.LeakyReLU(0.2),
                    nn.PReLU,
                    nn.Identity,
                    lambda: nn.Dropout(0.5),
                ]
            )
        )()

    for _ in range(draw(st.integers(0, 3))):
        out, bias = draw(st.sampled_from([1, 2, 4])), draw(st.booleans())
        before, padding = draw(st.booleans()), draw(st.sampled_from([0, 1]))
        if before and padding == 0:
            layers.append(nn.BatchNorm2d(channels, affine=draw(st.booleans())))
        if draw(st.integers(0, 3)) == 0:
            layers.append(CONV_TRANSPOSE(channels, out, 2, bias=bias))
            if before and padding == 0:
                layers.pop(-2)  # zeros at the edge
            side += 1
        elif side >= 3:
            groups = math.gcd(channels, out) if draw(st.booleans()) else 1
            layers.append(CONV(channels, out, 3, padding=padding, bias=bias, groups=groups))
            side += 2 * padding - 2
        else:
            layers.append(CONV(channels, out, 1, bias=bias))
        channels = out
        if draw(st.booleans()):
            layers.append(nn.BatchNorm2d(channels))
        layers.append(activation())
        if side >= 4:
            pool = draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d, None]))
            if pool is not None:
                layers.append(pool(2))
                side //= 2
    if draw(st.booleans()):
        layers.append(nn.BatchNorm2d(channels))
    layers.append(nn.Flatten())
    width = channels * side * side
    for _ in range(draw(st.integers(0, 2))):
        out = draw(st.integers(1, 12))
        layers.append(LINEAR(width, out, bias=draw(st.booleans())))
        if draw(st.booleans()):
            layers.append(nn.BatchNorm1d(out))
        layers.append(activation())
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
    modules = [m for m in found.model.modules() if isinstance(m, LINEAR | CONV | CONV_TRANSPOSE)]
    assert len(modules) == len(found.factors)
    for module in modules:
        size = np.linalg.norm(module.weight.detach().numpy().ravel(), norm)
        # a power mean of n elements, each at ε
        assert size == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("norm", [1, 2, 3.5, math.inf])
def test_weights_and_biases_are_those_of_the_formula(norm):
    model = randomized(
        nn.Sequential(LINEAR(4, 6), nn.ReLU(), LINEAR(6, 5), nn.ReLU(), LINEAR(5, 3))
    )
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


def test_powers_of_two_scale_a_homogeneous_network_to_the_last_bit():
    model = randomized(nn.Sequential(CONV(2, 4, 3), nn.ReLU(), nn.Flatten(), LINEAR(36, 3)))
    network = working_copy(model)
    x = sample(5, 2, 5, 5)
    layers, outputs = find_layers(network, x)
    assert deviation(network, layers, x, outputs, [7, -4]) == 0
    assert deviation(network, layers[:1], x, outputs, [1]) > 0.01


def test_batchnorm_behind_a_layer_is_folded_as_torch_does():
    conv, norm = randomized(CONV(4, 6, 3, groups=2), 1), randomized(nn.BatchNorm2d(6), 2)
    linear, second = randomized(LINEAR(54, 5, bias=False), 3), randomized(nn.BatchNorm1d(5), 4)
    model = nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), linear, second)
    found = normalize(model, sample(8, 4, 5, 5))
    fused = fusion.fuse_conv_bn_eval(conv, norm), fusion.fuse_linear_bn_eval(linear, second)
    for rho, one in zip(found.factors.values(), fused, strict=True):
        assert rho == pytest.approx(float(one.weight.detach().norm()), rel=1e-14)
    rho = found.factors["0"]
    np.testing.assert_allclose(
        found.model[0].bias.detach(), fused[0].bias.detach() / rho, rtol=1e-13, atol=1e-14
    )
    assert [layer.after for layer in found.layers] == [("1",), ("5",)]
    assert isinstance(found.model[1], nn.Identity)


@pytest.mark.parametrize(
    "make",
    [
        lambda: [nn.BatchNorm2d(2), CONV(2, 4, 3)],
        lambda: [nn.BatchNorm2d(2), nn.BatchNorm2d(2), CONV(2, 4, 3), nn.BatchNorm2d(4)],
        lambda: [CONV(2, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU()],
        lambda: [nn.BatchNorm2d(2), CONV(2, 4, 3, padding=1, padding_mode="reflect")],
        lambda: [CONV_TRANSPOSE(2, 4, 3, groups=2), nn.BatchNorm2d(4)],
        lambda: [CONV(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), CONV(4, 4, 2, groups=2, bias=False)],
        lambda: [CONV(2, 2, 3, padding="same"), nn.ReLU(inplace=True), nn.BatchNorm2d(2)],
        lambda: [nn.Flatten(), nn.BatchNorm1d(98), LINEAR(98, 7), nn.BatchNorm1d(7, affine=False)],
    ],
)
def test_every_place_of_batchnorm_that_can_be_folded(make):
    layers = make()
    if not isinstance(layers[0], nn.Flatten):
        layers.append(nn.Flatten())
    model = nn.Sequential(*layers, nn.LazyLinear(3))
    x = sample(9, 2, 7, 7)
    model.float()(x.float())
    model = randomized(model)
    found = normalize(model, x)
    assert found.deviation <= EXACT
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in found.model.modules())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.branch, self.last = LINEAR(4, 5), LINEAR(5, 5), LINEAR(5, 3)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last(x + self.branch(x).relu())


class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = LINEAR(4, 3), LINEAR(4, 3)

    def forward(self, x):
        return self.left(x).relu() + self.right(x).relu()


def between(*layers):
    return nn.Sequential(LINEAR(4, 5), *layers, LINEAR(5, 3))


@pytest.mark.parametrize(
    ("model", "cause"),
    [
        (between(nn.Tanh()), "scaling the weights of 0 .* the cause is 1 .Tanh."),
        (between(nn.Sigmoid()), "Sigmoid"),
        (between(nn.GELU()), "GELU"),
        (between(nn.SiLU()), "SiLU"),
        (between(nn.ELU()), "ELU"),
        (between(nn.Softplus(beta=100)), "Softplus"),
        (between(nn.Hardtanh(-1e6, 1e6)), "Hardtanh"),  # linear on these data
        (between(nn.LayerNorm(5)), r"parameter 1.weight of 1 \(LayerNorm\)"),
        (between(nn.LayerNorm(5, elementwise_affine=False)), r"1 \(LayerNorm\)"),
        (nn.Sequential(LINEAR(4, 3), nn.Softmax(1)), "Softmax"),
        (Residual(), "the weights of branch .*residual"),
        (Parallel(), "residual or parallel"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_is_not_homogeneous_is_refused(model, cause):
    with pytest.raises(GeneralizationError, match=f"(?s){cause}.*output_normalize"):
        normalize(randomized(model), sample(7, 4))


class Around(nn.Module):
    """A layer whose output is used with and without BatchNorm."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.last = LINEAR(4, 5), nn.BatchNorm1d(5), LINEAR(5, 3)

    def forward(self, x):
        x = self.layer(x)
        return self.last(x + self.norm(x))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.Sequential(nn.BatchNorm2d(2), CONV(2, 4, 3, padding=1)), "pads with zeros"),
        (nn.Sequential(nn.BatchNorm2d(2), CONV_TRANSPOSE(2, 1, 1)), "pads with zeros"),
        (nn.Sequential(CONV(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), "no running"),
        (nn.Sequential(CONV(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), "neither takes"),
        (nn.Sequential(nn.Flatten(), LINEAR(50, 4), Around()), "used without it"),
        (nn.Sequential(nn.BatchNorm2d(2)), "cannot be folded"),
    ],
)
def test_batchnorm_that_cannot_be_folded_is_refused(model, why):
    with pytest.raises(GeneralizationError, match=why):
        normalize(randomized(model), sample(6, 2, 5, 5))


def test_a_zero_shift_may_stand_before_zero_padding():
    model = randomized(nn.Sequential(nn.BatchNorm2d(2), CONV(2, 4, 3, padding=1), nn.Flatten()))
    nn.init.zeros_(model[0].bias)
    model[0].running_mean.zero_()
    assert normalize(model, sample(6, 2, 5, 5)).deviation <= EXACT


class Backwards(nn.Module):
    """Layers registered in the order opposite to their use, and one that is not used."""

    def __init__(self):
        super().__init__()
        self.c, self.spare, self.b, self.a = LINEAR(6, 3), LINEAR(9, 9), LINEAR(5, 6), LINEAR(4, 5)

    def forward(self, x):
        return self.c(nn.functional.relu(self.b(torch.relu_(self.a(x)))))


def test_layers_are_ordered_by_use():
    model = randomized(Backwards())
    found = normalize(model, sample(7, 4))
    assert list(found.factors) == ["a", "b", "c"]
    assert torch.equal(found.model.spare.weight, model.spare.weight)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3, dtype=torch.complex64))


class Uses(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.layer, self.last = LINEAR(4, 4), LINEAR(4, 3)
        self.gain = nn.Parameter(torch.ones(()))
        self.how = how

    def forward(self, x):
        if self.how == "gain":
            x = self.gain * self.layer(x)
        elif self.how == "twice":
            x = self.layer(self.layer(x).relu())
        elif self.how == "functional":
            x = nn.functional.linear(x, self.layer.weight)
        elif self.how == "random":
            x = self.layer(x) + torch.randn(len(x), 4)
        elif self.how == "pair":
            return self.last(x), x
        return self.last(x.relu())


def tied():
    model = nn.Sequential(LINEAR(4, 4), nn.ReLU(), LINEAR(4, 4))
    model[2].weight = model[0].weight
    return model


def spoiled(value):
    model = randomized(between(nn.ReLU()))
    nn.init.constant_(model[0].weight, value)
    return model


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Uses("gain"), "parameter gain"),
        (Uses("twice"), "more than once.*layer"),
        (Uses("functional"), "parameter layer.weight"),
        (Uses("random"), "random"),
        (Uses("pair"), "tuple"),
        (tied(), r"more than once.*0 \(its weight is also that of 2\)"),
        (spoiled(0.0), "weights of 0 are all zero"),
        (spoiled(math.nan), r"0.weight has 20 NaN"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "no linear or convolution layer"),
        (nn.Sequential(LINEAR(4, 3), nn.Threshold(1e9, 0.0)), "all zero"),
        (nn.Sequential(nn.LazyLinear(3)), "has no shape yet"),
        (LINEAR(5, 3), "failed on inputs of shape .7, 4."),
        (Complex(), "complex"),
        ("mlp3", "str, not a torch.nn.Module"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_normalised_is_refused_with_a_reason(model, why):
    if isinstance(model, Uses):
        randomized(model)
    with pytest.raises(GeneralizationError, match=why):
        normalize(model, sample(7, 4))


def test_weight_norm_is_taken_out():
    model = between(nn.ReLU()).double()
    parametrizations.weight_norm(model[0])
    with torch.no_grad():
        model[0].parametrizations.weight.original0.mul_(3)
    names = [name for name, _ in model.named_parameters()]
    found = normalize(model, sample(7, 4))
    assert [name for name, _ in model.named_parameters()] == names
    assert found.factors["0"] == pytest.approx(float(model[0].weight.detach().norm()), rel=1e-14)
    assert found.deviation <= EXACT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = between(nn.ReLU()).double()
        nn.utils.weight_norm(old[0])
    with pytest.raises(GeneralizationError, match=r"remove_weight_norm"):
        normalize(old, sample(7, 4))


def test_a_lone_layer_and_a_missing_bias():
    model = randomized(LINEAR(4, 3, bias=False))
    found = normalize(model, sample(7, 4))
    assert found.factors == {"model": pytest.approx(float(model.weight.detach().norm()), rel=1e-14)}
    assert found.model.bias is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_original_is_not_changed_and_its_precision_is_kept(dtype):
    model = nn.Sequential(LINEAR(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), LINEAR(6, 3))
    model = randomized(model).to(dtype).train()
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
    model = randomized(nn.Sequential(*(LINEAR(3, 3) for _ in range(6))))
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1e8)
    assert normalize(model, sample(5, 3)).deviation <= EXACT
    with pytest.raises(GeneralizationError, match=r"too small .*float32"):
        normalize(model.float(), sample(5, 3))


def test_norms_far_outside_of_squares():
    model = between(nn.ReLU()).double()
    with torch.no_grad():
        model[0].weight.mul_(1e-200)
        model[2].weight.mul_(1e180)
    x = sample(7, 4)
    for norm in (2, 1000.0):
        found = normalize(model, x, norm)
        assert found.deviation <= EXACT
        scaled = model[0].weight.detach().numpy().ravel() * 1e200
        largest = np.abs(scaled).max()
        expected = largest * np.linalg.norm(scaled / largest, norm) * 1e-200
        assert found.factors["0"] == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("norm", [0.5, 0, -1, math.nan, True, "2", None])
def test_a_norm_is_a_number_from_one_on(norm):
    with pytest.raises(GeneralizationError, match="norm is"):
        normalize(LINEAR(4, 3), sample(7, 4), norm)
    with pytest.raises(GeneralizationError, match="norm is"):
        output_normalize(LINEAR(4, 3), sample(7, 4), norm)


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        (torch.zeros(0, 4), "empty"),
        (torch.full((2, 4), math.inf), "NaN or infinite values, first in sample 0"),
        (None, "expected a tensor"),
        ([], "expected a tensor"),
    ],
)
def test_inputs_that_cannot_be_used(inputs, why):
    for function in (normalize, output_normalize):
        with pytest.raises(DataError, match=why):
            function(LINEAR(4, 3), inputs)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.last = LINEAR(4, 5), LINEAR(5, 3)

    def forward(self, x, keep):
        return self.last(self.embed(x).relu() * keep)


def test_inputs_of_several_parts_and_arrays():
    model = randomized(Named())
    x, keep = sample(7, 4), torch.arange(7)[:, None] % 2
    one = normalize(model, (x, keep))
    other = normalize(model, {"x": x.numpy(), "keep": keep.numpy()})
    assert one.factors == other.factors
    assert normalize(nn.DataParallel(model), (x, keep)).factors == one.factors


def test_inference_mode():
    model, x = randomized(between(nn.ReLU())), sample(7, 4)
    expected = normalize(model, x).factors
    with torch.inference_mode():
        assert normalize(model, x.clone()).factors == expected
        made = LINEAR(4, 3)
    with pytest.raises(GeneralizationError, match="inference_mode"):
        normalize(made, x)


def test_output_normalisation_of_a_residual_network():
    model = randomized(Residual())
    image, x = sample(1, 4), sample(9, 4, seed=3)
    found = output_normalize(model, image)
    with torch.no_grad():
        assert found.product == pytest.approx(float(model(image).norm()), rel=1e-14)
        torch.testing.assert_close(found.model(x) * found.product, model(x), rtol=1e-14, atol=0)
        assert float(found.model(image).norm()) == pytest.approx(1, rel=1e-14)
        rows = [np.abs(row).max() for row in model(x).numpy()]
    assert output_normalize(model, x, math.inf).product == pytest.approx(np.mean(rows), rel=1e-14)
    assert found.factors == {"output": found.product}
    with pytest.raises(GeneralizationError, match="norm of the outputs"):
        output_normalize(nn.Sequential(LINEAR(4, 3), nn.Threshold(1e9, 0.0)), image)


def test_output_normalisation_keeps_precision_and_original():
    model = between(nn.GELU()).train()
    found = output_normalize(model, sample(3, 4))
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}
    assert model.training
    assert not found.model.model.training
