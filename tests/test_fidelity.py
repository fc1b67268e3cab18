"""Is it the user's Hessian: modes of the caller, copies that are other functions, wrong rules."""

import numpy as np
import pytest
import torch
from samples import by_double_backward, labelled, network
from torch import nn
from torch.nn import functional as F  # noqa: N812

import hessrmt as hr
from hessrmt.curvature.certify import random_direction, require_difference
from hessrmt.curvature.products import eager_hessian_product
from hessrmt.errors import ProblemError

EPS = float(np.finfo(np.float64).eps)


def batch(samples=6, width=5, classes=3):
    return labelled((samples, width), classes)


def net(activation=nn.Tanh):
    return network(5, 4, 3, kind=activation, seed=1)


def exact(model, loss, x, y):
    """Eigenvalues from the module itself."""
    return np.linalg.eigvalsh(by_double_backward(model, loss, x, y).numpy())


def close(found, expected):
    """Two ways of differentiating and of diagonalising: a low multiple of n ε ‖H‖."""
    n, norm = len(expected), np.abs(expected).max()
    return np.abs(np.sort(found) - expected).max() <= 20 * n * EPS * norm


ROADS = {
    "reduced": lambda p: hr.spectrum(p).eigenvalues,
    "dense": lambda p: hr.spectrum(p, reduce="none").eigenvalues,
    "matrix": lambda p: np.linalg.eigvalsh(hr.hessian(p)),
}
MODES = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


# The caller's mode


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("mode", MODES)
def test_the_callers_mode_changes_nothing(mode, road):
    model, (x, y) = net(), batch()
    expected = exact(model, F.cross_entropy, x, y)
    with MODES[mode]():
        inside = ROADS[road](hr.Problem(model, "cross-entropy", (x, y)))
    problem = hr.Problem(model, "cross-entropy", (x, y))
    with MODES[mode]():
        outside = ROADS[road](problem)
    assert close(inside, expected)
    assert close(outside, expected)


@pytest.mark.parametrize("mode", MODES)
def test_products_and_densities_in_every_mode(mode):
    model, (x, y) = net(), batch()
    problem = hr.Problem(model, "cross-entropy", (x, y))
    expected = hr.edge_levels(problem, top=2).values
    with MODES[mode]():
        assert np.array_equal(hr.edge_levels(problem, top=2).values, expected)
        found = hr.density(problem, probes=2, steps=5)
        operator = hr.CurvatureOperator.of(problem)
        v = torch.ones(1, problem.dimension, dtype=torch.float64)
        product = operator(v)
    assert found.quadrature.moments()[0][1] != 0
    H = torch.from_numpy(hr.hessian(problem))
    # a product of sums of P terms, two ways of differentiating
    size = float(H.abs().sum())
    assert float((product - v @ H).abs().max()) <= 20 * EPS * size


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        model, data = net(), batch()
    found = hr.spectrum(hr.Problem(model, "cross-entropy", data)).eigenvalues
    assert close(found, exact(net(), F.cross_entropy, *batch()))


# Copies that would be another function


class Rotary(nn.Module):
    """Positions as complex numbers in a buffer."""

    def __init__(self, kind=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 4, dtype=kind), nn.Linear(4, 3, dtype=kind)
        angle = torch.arange(2, dtype=kind) + 1
        self.register_buffer("turn", torch.polar(torch.ones(2, dtype=kind), angle))

    def forward(self, x):
        z = torch.view_as_complex(self.first(x).view(-1, 2, 2).contiguous()) * self.turn
        return self.last(torch.tanh(torch.view_as_real(z).flatten(1)))


@pytest.mark.parametrize("road", ROADS)
def test_complex_buffers_stay_complex(road):
    model, (x, y) = Rotary(), batch()
    found = ROADS[road](hr.Problem(model, "cross-entropy", (x, y)))
    assert close(found, exact(model, F.cross_entropy, x, y))


def test_complex_buffers_change_precision_with_the_rest():
    single = Rotary(torch.float32)
    moved = hr.Problem(single, "cross-entropy", batch()).at(torch.float64, torch.device("cpu"))
    assert moved.model.turn.dtype == torch.complex128
    assert torch.equal(moved.model.turn, single.turn.to(torch.complex128))


class ThroughList(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last = nn.Linear(5, 4).double(), nn.Linear(4, 3).double()
        self.weights = [self.layer.weight]

    def forward(self, x):
        return self.last(torch.tanh(x @ self.weights[0].T))


class ThroughDict(ThroughList):
    def __init__(self):
        super().__init__()
        self.weights = {0: self.layer.weight}


@pytest.mark.parametrize("kind", [ThroughList, ThroughDict])
@pytest.mark.parametrize("road", ROADS)
def test_a_parameter_that_is_reached_another_way_is_the_same_parameter(kind, road):
    model, (x, y) = kind(), batch()
    found = ROADS[road](hr.Problem(model, "cross-entropy", (x, y)))
    assert close(found, exact(model, F.cross_entropy, x, y))


def decayed(model):
    def loss(outputs, targets):
        squares = sum(p.square().sum() for p in model.parameters())
        return F.cross_entropy(outputs, targets) + 0.1 * squares

    return loss


@pytest.mark.parametrize("road", ROADS)
def test_a_loss_that_holds_the_models_parameters_keeps_its_term(road):
    model, (x, y) = net(), batch()
    found = ROADS[road](hr.Problem(model, decayed(model), (x, y)))
    assert close(found, exact(model, decayed(model), x, y))


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize(
    "loss",
    [
        "cross-entropy",
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)),
        lambda outputs, targets: F.nll_loss(F.log_softmax(outputs, 1), targets, reduction="sum"),
    ],
)
def test_weight_decay_shifts_the_hessian(road, loss):
    model, (x, y) = net(), batch()
    plain = F.cross_entropy if isinstance(loss, str) else loss
    found = ROADS[road](hr.Problem(model, loss, (x, y), l2=0.3))
    assert close(found, exact(model, plain, x, y) + 0.3)


def test_weight_decay_of_blocks_and_micro_batches():
    model, data = net().double(), batch()
    plain, problem = (hr.Problem(model, "cross-entropy", data, l2=l2) for l2 in (0, 0.3))
    expected = hr.hessian(plain) + 0.3 * np.eye(plain.dimension)
    unequal = hr.Hessian(problem, batch=len(data[0]) - 1)
    assert np.abs(unequal @ np.eye(plain.dimension) - expected).max() <= 100 * EPS
    block = hr.Problem(model, "cross-entropy", data, only="0.*", l2=0.3)
    part = expected[: block.dimension, : block.dimension]
    assert np.abs(hr.hessian(block) - part).max() <= 100 * EPS
    lengths = np.sqrt(sum(float(p.detach().square().sum()) for p in model.parameters()))
    assert np.isclose(problem.evaluate()[0] - plain.evaluate()[0], 0.15 * lengths**2)
    with pytest.raises(ProblemError, match="holds parameters of the model itself"):
        hr.ggn(problem)


@pytest.mark.parametrize("l2", [-0.1, float("nan"), float("inf")])
def test_weight_decay_that_is_none(l2):
    with pytest.raises(ProblemError, match="must be a positive number"):
        hr.Problem(net(), "cross-entropy", batch(), l2=l2)


def test_a_loss_that_holds_parameters_has_no_gauss_newton_matrix():
    model = net()
    problem = hr.Problem(model, decayed(model), batch())
    for road in (lambda p: hr.spectrum(p, operator="ggn"), hr.ggn, hr.GaussNewton):
        with pytest.raises(ProblemError, match="holds parameters of the model itself"):
            road(problem)


@pytest.mark.parametrize(
    ("build", "make"),
    [(net, lambda _: F.cross_entropy), (ThroughList, lambda _: F.cross_entropy), (net, decayed)],
    ids=["plain", "parameter reached another way", "loss that holds parameters"],
)
def test_a_model_that_was_trained_further_is_measured_as_it_was(build, make):
    model, (x, y) = build(), batch()
    loss = make(model)
    expected, problem = exact(model, loss, x, y), hr.Problem(model, loss, (x, y))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert close(hr.spectrum(problem).eigenvalues, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_of_lower_precision_is_itself_within_its_digits(dtype):
    model, (x, y) = net().to(dtype), batch()
    found = hr.spectrum(hr.Problem(model, "cross-entropy", (x.to(dtype), y)))
    expected = exact(model.double(), F.cross_entropy, x.to(dtype).double(), y)
    assert close(found.eigenvalues, expected)


def test_the_users_model_is_left_as_it_was():
    model, data = net(), batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hr.spectrum(hr.Problem(model, "cross-entropy", data))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_buffers_that_a_forward_pass_changes_are_put_back():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls.add_(1)
            return self.net(x)

    model = Counts()
    hr.spectrum(hr.Problem(model, "cross-entropy", batch()))
    assert model.calls == 0


def test_a_hook_that_clips_gradients_changes_nothing():
    model, (x, y) = net(), batch()
    expected = exact(model, F.cross_entropy, x, y)
    model[0].weight.register_hook(lambda g: g.clamp(-1e-3, 1e-3))
    assert close(hr.spectrum(hr.Problem(model, "cross-entropy", (x, y))).eigenvalues, expected)


# A graph that reaches no parameter


class WithoutGraph(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.net, self.way = net(), way

    def forward(self, x):
        if self.way == "no_grad":
            with torch.no_grad():
                return self.net(x)
        return self.net(x).detach()


@pytest.mark.parametrize("way", ["no_grad", "detach"])
@pytest.mark.parametrize("road", ROADS)
def test_a_loss_that_changes_without_a_graph_is_refused(way, road):
    with pytest.raises(ProblemError, match="torch sees no way"):
        ROADS[road](hr.Problem(WithoutGraph(way), "cross-entropy", batch()))


def test_a_loss_that_does_not_change_has_no_curvature():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(2, 2)

        def forward(self, x):
            return x[:, :3]

    assert hr.spectrum(hr.Problem(Constant(), "cross-entropy", batch())).rank == 0


# Second derivatives that torch has wrong


class Saved(torch.autograd.Function):
    """Swish whose backward pass takes the sigmoid it saved for a constant."""

    @staticmethod
    def forward(ctx, a):
        s = torch.sigmoid(a)
        ctx.save_for_backward(a, s)
        return a * s

    @staticmethod
    def backward(ctx, g):
        a, s = ctx.saved_tensors
        return g * s * (1 + a * (1 - s))


class Swish(nn.Module):
    def forward(self, x):
        return Saved.apply(x)


@pytest.mark.parametrize("road", [*ROADS, "edges", "density"])
def test_a_wrong_second_derivative_is_refused(road):
    roads = ROADS | {
        "edges": lambda p: hr.edge_levels(p, top=1),
        "density": lambda p: hr.density(p, probes=1, steps=4),
    }
    problem = hr.Problem(net(Swish), "cross-entropy", batch())
    with pytest.raises(ProblemError, match="second derivative of this loss is wrong"):
        roads[road](problem)


class Direct(nn.Module):
    """The wrong rule is in its own forward pass, beside right layers."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        return Saved.apply(self.net(x))


@pytest.mark.parametrize(
    ("model", "loss", "where"),
    [
        (lambda: net(Swish), "cross-entropy", r"wrong in 1 \(Swish\)"),
        (lambda: nn.Sequential(net(), Swish()), "cross-entropy", r"wrong in 1 \(Swish\)"),
        (lambda: nn.Sequential(Direct(), nn.Tanh()), "cross-entropy", r"wrong in 0 \(Direct\)"),
        (net, lambda o, t: F.cross_entropy(Saved.apply(o), t), r"wrong in the loss '<lambda>'"),
    ],
)
def test_the_part_that_is_wrong_is_named(model, loss, where):
    with pytest.raises(ProblemError, match=where):
        hr.spectrum(hr.Problem(model(), loss, batch()))


@pytest.mark.parametrize("kind", [nn.Tanh, nn.ReLU, nn.GELU, nn.Softplus, nn.Hardtanh, nn.ELU])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_right_second_derivatives_pass(kind, scale, dtype):
    model = net(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    found = hr.spectrum(hr.Problem(model, "cross-entropy", batch()), dtype=dtype)
    assert np.isfinite(found.eigenvalues).all()


def test_a_kink_in_the_parameters_themselves_is_no_error():
    """Pre-activations that are exactly zero: no difference quotient converges."""
    model, (x, y) = net(nn.ReLU), batch()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    problem = hr.Problem(model, "cross-entropy", (x, y))
    assert hr.spectrum(problem).rank > 0


@pytest.mark.parametrize(
    ("kind", "scale", "only"),
    [(kind, scale, None) for kind in (nn.Tanh, nn.ReLU) for scale in (1e-8, 1e-11, 1e-15, 1e-20)]
    + [(nn.Tanh, scale, "2.bias") for scale in (1e-13, 1e-18)],
)
def test_tiny_parameters_are_no_error(kind, scale, only):
    model = net(kind)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only in (None, name):
                parameter.mul_(scale)
    problem = hr.Problem(model, "cross-entropy", batch(), only=only)
    rank = hr.spectrum(problem).rank
    assert rank == 2 if only else rank > 0


@pytest.mark.parametrize("size", [1e3, 1e6, 1e8])
def test_one_huge_parameter_is_no_error(size):
    class Divided(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.scale = net(), nn.Parameter(torch.tensor(size, dtype=torch.float64))

        def forward(self, x):
            return self.net(x) * (self.scale / size)

    assert hr.spectrum(hr.Problem(Divided(), "cross-entropy", batch())).rank > 0


@pytest.mark.parametrize("kind", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("factor", [3, 10, 30, 50, 100])
def test_networks_that_are_certain_pass_the_differences(kind, factor):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 40), kind(), nn.Linear(40, 3)).double()
    x, y = batch(20)
    descent = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(200):
        descent.zero_grad()
        F.cross_entropy(model(x), y).backward()
        descent.step()
    with torch.no_grad():
        model[2].weight.mul_(factor)
        model[2].bias.mul_(factor)
    problem = hr.Problem(model, "cross-entropy", (x, y)).at(torch.float64, torch.device("cpu"))
    v = random_direction(problem)
    require_difference(problem, v, eager_hessian_product(problem)(v[None])[0])


def test_a_network_that_computes_in_bfloat16_inside():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net().float()

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.net(x).to(x.dtype)

    x, y = batch()
    found = hr.spectrum(hr.Problem(Mixed(), "cross-entropy", (x.float(), y)))
    expected = exact(net().float().double(), F.cross_entropy, x.float().double(), y)
    assert close(found.eigenvalues, expected)


@pytest.mark.parametrize("amount", [1e-3, 0.1])
def test_how_small_an_error_is_seen(amount):
    """A product that is off by a thousandth of itself, on a smooth loss."""
    problem = hr.Problem(net(), "cross-entropy", batch()).at(torch.float64, torch.device("cpu"))
    v = random_direction(problem)
    right = eager_hessian_product(problem)(v[None])[0]
    require_difference(problem, v, right)
    with pytest.raises(ProblemError, match="second derivative"):
        require_difference(problem, v, right * (1 + amount))
