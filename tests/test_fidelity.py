"""Is it the Hessian of the user's own model: any mode, any state, copies, wrong derivatives."""

import copy

import numpy as np
import pytest
import torch
from samples import Once, by_double_backward, labelled, network
from torch import nn
from torch.nn import functional as F  # noqa: N812

import hessrmt as hr
from hessrmt.curvature.certify import random_direction, require_difference
from hessrmt.curvature.products import eager_hessian_product
from hessrmt.errors import ProblemError

EPS = float(np.finfo(np.float64).eps)
X, Y = labelled((6, 5), 3)


def net(activation=nn.Tanh):
    return network(5, 4, 3, kind=activation, seed=1)


def plain(_model):
    return F.cross_entropy


def exact(model, loss=F.cross_entropy, x=X, y=Y):
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
    "products": lambda p: np.linalg.eigvalsh(hr.Hessian(p) @ np.eye(p.dimension)),
}
MORE_ROADS = ROADS | {
    "edges": lambda p: hr.edge_levels(p, top=1).values,
    "density": lambda p: hr.density(p, probes=2, steps=5).quadrature.nodes,
}
GAUSS_NEWTON = {
    "spectrum": lambda p: hr.spectrum(p, operator="ggn"),
    "matrix": hr.ggn,
    "products": hr.GaussNewton,
}
MODES = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


# The caller's mode


@pytest.mark.parametrize("road", MORE_ROADS)
@pytest.mark.parametrize("mode", MODES)
def test_the_callers_mode_changes_nothing(mode, road):
    problem = hr.Problem(net(), "cross-entropy", (X, Y))
    expected = MORE_ROADS[road](problem)
    assert road not in ROADS or close(expected, exact(net()))
    with MODES[mode]():
        inside = MORE_ROADS[road](hr.Problem(net(), "cross-entropy", (X, Y)))
        outside = MORE_ROADS[road](problem)
    assert np.array_equal(inside, expected)
    assert np.array_equal(outside, expected)


def old_setting():
    torch.set_float32_matmul_precision("medium")


def new_setting():
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def setting_of_the_cpu():
    torch.backends.mkldnn.conv.fp32_precision = "bf16"


@pytest.mark.parametrize("change", [old_setting, new_setting, setting_of_the_cpu])
@pytest.mark.parametrize("layer", [nn.Linear, nn.LSTM])
def test_float32_products_have_all_their_bits_and_the_callers_setting_comes_back(change, layer):
    """cuDNN's convolutions have 11 of 24 by default: rounding far beyond the floor."""
    backends = torch.backends
    places = [backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul]
    places += [backends.mkldnn.conv, backends.mkldnn.matmul]
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer(3, 2).double()

        def forward(self, x):
            seen.append({place.fp32_precision for place in places})
            found = self.layer(x)
            return found[0] if isinstance(found, tuple) else found

    change()
    try:
        before = [place.fp32_precision for place in places]
        hr.spectrum(hr.Problem(Watched(), "mse", (X[:, :3], X[:, :2])), dtype="float32")
        assert [place.fp32_precision for place in places] == before
    finally:
        torch.backends.mkldnn.conv.fp32_precision = "none"
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("highest")
    assert {"tf32", "bf16"} & set(before)
    assert seen[-1] <= {"ieee", "none"}


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        model, data = net(), labelled((6, 5), 3)
    assert close(hr.spectrum(hr.Problem(model, "cross-entropy", data)).eigenvalues, exact(net()))


# Copies that would be another function, and models that are used on


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


class ThroughList(nn.Module):
    """Its first layer's weight is reached through a list."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last = nn.Linear(5, 4).double(), nn.Linear(4, 3).double()
        self.weights = [self.layer.weight]

    def forward(self, x):
        return self.last(torch.tanh(x @ self.weights[0].T))


class ThroughDict(ThroughList):
    """And as a parameter of its module too."""

    def __init__(self):
        super().__init__()
        self.weights = {0: self.layer.weight}

    def forward(self, x):
        return super().forward(x) + self.last(self.layer(x))


class Around(nn.Module):
    """A network with something beside it."""

    def __init__(self, inner=nn.Tanh):
        super().__init__()
        self.net = net(inner)


class Keeps(Around):
    def __init__(self):
        super().__init__()
        self.seen = []
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.latest = self.net(x)
        self.seen.append(len(x))
        self.calls.add_(1)
        return self.latest


class Normalised(Around):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3).double()
        self.norm(torch.randn(9, 3, dtype=torch.float64))
        self.eval()

    def forward(self, x):
        return self.norm(self.net(x))


def patched():
    """A forward that is a closure over the user's own layer."""
    model = net()
    layer = model[0]
    layer.forward = lambda x: F.linear(x, layer.weight**3, layer.bias)
    return model


def clipped():
    model = patched()
    model[0].weight.register_hook(lambda g: g.clamp(-1e-3, 1e-3))
    return model


def in_two_places():
    torch.manual_seed(1)
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(5, 3)).double()


def decayed(model):
    def loss(outputs, targets):
        squares = sum(p.square().sum() for p in model.parameters())
        return F.cross_entropy(outputs, targets) + 0.1 * squares

    return loss


CASES = {
    "plain": (net, plain),
    "complex buffer": (Rotary, plain),
    "parameter in a list": (ThroughList, plain),
    "parameter in a dict": (ThroughDict, plain),
    "loss that holds parameters": (net, decayed),
    "forward of its own": (patched, plain),
    "clipped gradients": (clipped, plain),
    "keeps what it makes": (Keeps, plain),
    "batch norm": (Normalised, plain),
    "layer in two places": (in_two_places, plain),
}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("case", CASES)
def test_a_model_that_is_used_on_is_measured_as_it_was_and_left_alone(case, road):
    build, make_loss = CASES[case]
    same, model = patched() if build is clipped else build(), build()
    expected = exact(same, make_loss(same))
    problem = hr.Problem(model, make_loss(model), (X, Y))
    model.train()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(0.5)
    before = copy.deepcopy(model.state_dict())
    assert close(ROADS[road](problem), expected)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not hasattr(model, "latest")
    assert getattr(model, "seen", []) == []


def test_hooks_on_gradients_are_there_afterwards():
    model = clipped()
    hr.spectrum(hr.Problem(model, "cross-entropy", (X, Y)))
    F.cross_entropy(model(X), Y).backward()
    assert float(model[0].weight.grad.abs().max()) <= 1e-3


def test_complex_buffers_change_precision_with_the_rest():
    single = Rotary(torch.float32)
    moved = hr.Problem(single, "cross-entropy", (X, Y)).at(torch.float64, torch.device("cpu"))
    assert moved.model.turn.dtype == torch.complex128
    assert torch.equal(moved.model.turn, single.turn.to(torch.complex128))


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_labels_of_every_integer_type(kind):
    problem = hr.Problem(net(), "cross-entropy", (X, Y.to(kind)))
    assert close(hr.spectrum(problem).eigenvalues, exact(net()))


class InBfloat16(Around):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x).to(x.dtype)


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize(
    ("build", "make_loss", "dtype", "shift"),
    [
        (net, plain, torch.float32, 0),
        (net, plain, torch.bfloat16, 0),
        (net, decayed, torch.float32, 0.2),
        (InBfloat16, plain, torch.float32, 0),
    ],
)
def test_a_model_of_lower_precision_is_itself_in_double(build, make_loss, dtype, shift, road):
    model, x = build().to(dtype), X.to(dtype)
    found = ROADS[road](hr.Problem(model, make_loss(model), (x, Y)))
    inner = getattr(model, "net", model).double()
    assert close(found, exact(inner, x=x.double()) + shift)


# Weight decay, and losses with parameters


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)),
        lambda outputs, targets: F.nll_loss(F.log_softmax(outputs, 1), targets, reduction="sum"),
    ],
)
def test_weight_decay_shifts_the_hessian(road, loss):
    found = ROADS[road](hr.Problem(net(), loss, (X, Y), l2=0.3))
    assert close(found, exact(net(), loss) + 0.3)


def test_weight_decay_of_blocks_and_micro_batches():
    model = net()
    without, problem = (hr.Problem(model, "cross-entropy", (X, Y), l2=l2) for l2 in (0, 0.3))
    expected = hr.hessian(without) + 0.3 * np.eye(problem.dimension)
    unequal = hr.Hessian(problem, batch=len(X) - 1)
    assert np.abs(unequal @ np.eye(problem.dimension) - expected).max() <= 100 * EPS
    block = hr.Problem(model, "cross-entropy", (X, Y), only="0.*", l2=0.3)
    part = expected[: block.dimension, : block.dimension]
    assert np.abs(hr.hessian(block) - part).max() <= 100 * EPS
    squares = sum(float(p.detach().square().sum()) for p in model.parameters())
    assert np.isclose(problem.evaluate()[0] - without.evaluate()[0], 0.15 * squares)


@pytest.mark.parametrize("l2", [-0.1, float("nan"), float("inf")])
def test_weight_decay_that_is_none(l2):
    with pytest.raises(ProblemError, match="must be a positive number"):
        hr.Problem(net(), "cross-entropy", (X, Y), l2=l2)


@pytest.mark.parametrize("road", GAUSS_NEWTON)
def test_a_loss_that_holds_parameters_has_no_gauss_newton_matrix(road):
    model = net()
    for problem in (
        hr.Problem(model, decayed(model), (X, Y)),
        hr.Problem(model, "cross-entropy", (X, Y), l2=0.3),
    ):
        with pytest.raises(ProblemError, match="holds parameters of the model itself"):
            GAUSS_NEWTON[road](problem)


class Temperature(nn.Module):
    def __init__(self):
        super().__init__()
        self.t = nn.Parameter(torch.tensor(1.5))

    def forward(self, outputs, targets):
        with torch.no_grad():
            self.logged = float(F.cross_entropy(outputs, targets))
        return F.cross_entropy(outputs / self.t, targets)


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_a_loss_with_a_parameter_of_its_own_and_a_log(operator):
    loss = Temperature()
    given = (loss, lambda outputs, targets: F.cross_entropy(outputs / 1.5, targets))
    problems = [hr.Problem(net(), one, (X, Y)) for one in given]
    found, expected = (hr.spectrum(p, operator=operator).eigenvalues for p in problems)
    assert close(found, expected)
    assert not hasattr(loss, "logged")


# No graph, no derivative, or a wrong one


class DrawnAtFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.w = nn.Linear(4, 3), None

    def forward(self, x):
        if self.w is None:
            self.w = torch.randn(x.shape[1], 4)
        return self.head(torch.cos(x @ self.w))


def test_what_is_drawn_at_the_first_call():
    model, x = DrawnAtFirst(), X.float()
    with pytest.raises(ProblemError, match=r"another function|not deterministic"):
        hr.spectrum(hr.Problem(model, "cross-entropy", (x, Y)))
    model(x)
    first, second = (hr.spectrum(hr.Problem(model, "cross-entropy", (x, Y))) for _ in range(2))
    assert np.array_equal(first.eigenvalues, second.eigenvalues)


def test_a_loss_that_does_not_change_has_no_curvature():
    class Constant(Around):
        def forward(self, x):
            return x[:, :3]

    assert hr.spectrum(hr.Problem(Constant(), "cross-entropy", (X, Y))).rank == 0


class WithoutGraph(Around):
    def forward(self, x):
        with torch.no_grad():
            return self.net(x)


class Detached(Around):
    def forward(self, x):
        return self.net(x).detach()


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


class OnceOnly(nn.Module):
    def forward(self, x):
        return Once.apply(x)


def alignment(outputs, labels):
    """The loss of aligning a word of one letter with the network's three outputs in a row."""
    rows = torch.stack([outputs, outputs.sin(), outputs.cos()]).log_softmax(2)
    lengths = torch.full((2, len(labels)), 3)
    return F.ctc_loss(rows, 1 + labels[:, None] % 2, lengths[0], lengths[1] // 3)


@pytest.mark.parametrize("road", MORE_ROADS)
@pytest.mark.parametrize(
    ("build", "loss", "words"),
    [
        (WithoutGraph, F.cross_entropy, "torch sees no way"),
        (Detached, F.cross_entropy, "torch sees no way"),
        (lambda: net(Swish), F.cross_entropy, "second derivative of this loss is wrong"),
        (lambda: net(OnceOnly), F.cross_entropy, "once_differentiable"),
        (net, alignment, "_ctc_loss_backward"),
    ],
    ids=["no graph", "detached", "wrong", "once differentiable", "of a kernel of torch"],
)
def test_what_has_no_right_second_derivative_is_refused(build, loss, words, road):
    with pytest.raises(ProblemError, match=words):
        MORE_ROADS[road](hr.Problem(build(), loss, (X, Y)))


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        return g * (1 - ctx.saved_tensors[0].tanh())


class Wrong(nn.Module):
    def forward(self, x):
        return WrongBackward.apply(x)


@pytest.mark.parametrize("road", GAUSS_NEWTON)
def test_a_wrong_first_derivative_is_seen_by_gauss_newton_too(road):
    with pytest.raises(ProblemError, match="derivative of the outputs is wrong"):
        GAUSS_NEWTON[road](hr.Problem(net(Wrong), "cross-entropy", (X, Y)))
    GAUSS_NEWTON[road](hr.Problem(net(nn.ReLU), "cross-entropy", (X, Y)))


class Direct(Around):
    """The wrong rule is in its own forward pass, beside right layers."""

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
        hr.spectrum(hr.Problem(model(), loss, (X, Y)))


@pytest.mark.parametrize("amount", [1e-3, 0.1])
def test_how_small_an_error_is_seen(amount):
    """A product that is off by a thousandth of itself, on a smooth loss."""
    problem = hr.Problem(net(), "cross-entropy", (X, Y)).at(torch.float64, torch.device("cpu"))
    v = random_direction(problem)
    right = eager_hessian_product(problem)(v[None])[0]
    require_difference(problem, v, right)
    with pytest.raises(ProblemError, match="second derivative"):
        require_difference(problem, v, right * (1 + amount))


# Right derivatives that differences find hard


def scaled(model, scale, only=""):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(only):
                parameter.mul_(scale)
    return model


@pytest.mark.parametrize("kind", [nn.Tanh, nn.ReLU, nn.GELU, nn.Softplus, nn.Hardtanh, nn.ELU])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_right_second_derivatives_pass(kind, scale, dtype):
    problem = hr.Problem(scaled(net(kind), scale), "cross-entropy", (X, Y))
    assert np.isfinite(hr.spectrum(problem, dtype=dtype).eigenvalues).all()


class Divided(Around):
    def __init__(self, size):
        super().__init__()
        self.size, self.scale = size, nn.Parameter(torch.tensor(size, dtype=torch.float64))

    def forward(self, x):
        return self.net(x) * (self.scale / self.size)


HARD = {
    f"{kind.__name__} {size}": lambda kind=kind, size=size: scaled(net(kind), size)
    for kind in (nn.Tanh, nn.ReLU)
    for size in (1e-8, 1e-11, 1e-15, 1e-20)
}
HARD |= {f"divided by {size}": lambda size=size: Divided(size) for size in (1e3, 1e6, 1e8)}
HARD["kinks"] = lambda: scaled(net(nn.ReLU), 0, "0.")  # at zero: no quotient converges


@pytest.mark.parametrize("case", HARD)
def test_tiny_and_huge_parameters_and_kinks_are_no_error(case):
    assert hr.spectrum(hr.Problem(HARD[case](), "cross-entropy", (X, Y))).rank > 0


@pytest.mark.parametrize("kind", [nn.ReLU, nn.LeakyReLU, nn.Hardtanh])
def test_jumps_on_both_sides_of_a_kink_that_cancel(kind):
    """A unit at zero, of samples of one label: its gradient jumps by as much on either side."""
    bound = {"min_val": 0.0} if kind is nn.Hardtanh else {}
    for seed in range(10):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(1, 1, bias=False), kind(**bound), nn.Linear(1, 2)).double()
        model[0].weight.data.zero_()
        x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64) * torch.rand(1).double()
        problem = hr.Problem(model, "cross-entropy", (x, torch.ones(2, dtype=torch.long)))
        assert np.isfinite(hr.spectrum(problem).eigenvalues).all()


@pytest.mark.parametrize("scale", [1e-13, 1e-18])
def test_tiny_parameters_alone_have_their_rank(scale):
    problem = hr.Problem(scaled(net(), scale, "2.bias"), "cross-entropy", (X, Y), only="2.bias")
    assert hr.spectrum(problem).rank == 2


@pytest.mark.parametrize("kind", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("factor", [3, 10, 30, 50, 100])
def test_networks_that_are_certain_pass_the_differences(kind, factor):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 40), kind(), nn.Linear(40, 3)).double()
    x, y = labelled((20, 5), 3)
    descent = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(200):
        descent.zero_grad()
        F.cross_entropy(model(x), y).backward()
        descent.step()
    problem = hr.Problem(scaled(model, factor, "2."), "cross-entropy", (x, y))
    problem = problem.at(torch.float64, torch.device("cpu"))
    v = random_direction(problem)
    require_difference(problem, v, eager_hessian_product(problem)(v[None])[0])
