"""Dense JᵀSJ by torch's own differentiation, and networks with layers used in every way."""

import numpy as np
import torch
from samples import labelled
from torch import nn

import hessrmt as hr
from hessrmt.curvature import gram

CPU = torch.device("cpu")


def at_double(problem):
    return problem.at(torch.float64, CPU)


def dense(problem):
    """JᵀSJ of a Problem, by torch's own Jacobian and Hessian."""
    exact = at_double(problem)
    theta = exact.theta
    outputs = exact.outputs(theta)
    jacobian = torch.autograd.functional.jacobian(lambda t: exact.outputs(t).reshape(-1), theta)
    curvature = torch.autograd.functional.hessian(
        lambda f: exact.loss_of_outputs(f.view(outputs.shape).clone()), outputs.detach().reshape(-1)
    )
    return (jacobian.T @ curvature @ jacobian).numpy()


def assert_exact(problem, relative=1e-10, **options):
    """The dual route was taken and its spectrum is that of dense JᵀSJ."""
    found = hr.spectrum(problem, device="cpu", operator="ggn", **options)
    expected = np.linalg.eigvalsh(dense(problem))
    assert found.reduced_dimension < problem.dimension
    assert np.abs(found.eigenvalues - expected).max() <= relative * expected[-1]
    assert np.count_nonzero(found.eigenvalues == 0) >= problem.dimension - found.reduced_dimension
    return found


def layers_of(problem):
    return {layer.name: layer for layer in gram.find_layers(at_double(problem))}


class Shared(nn.Module):
    """One module twice, one weight in two modules, one weight transposed, one embedding tied."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.twice = nn.Linear(6, 6)
        self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.other.weight = self.one.weight
        self.free = nn.Linear(6, 5)
        self.norm = nn.LayerNorm(5)

    def forward(self, tokens):
        h = self.embed(tokens).mean(1)
        h = torch.tanh(self.twice(torch.tanh(self.twice(h))))
        h = torch.tanh(self.other(torch.tanh(self.one(h))))
        h = self.norm(self.free(h)) @ self.free.weight
        return h @ self.embed.weight[:4].T


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(5, 4))
        self.packed = nn.Linear(4, 12)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = x + self.positions
        q, k, v = self.packed(x).chunk(3, dim=-1)
        x = self.attend(q, k, v, need_weights=False)[0]
        return self.head(self.norm(x).mean(dim=1))


class InPlace(nn.Module):
    """What layers give is overwritten where they gave it."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 7), nn.Linear(7, 7), nn.Linear(7, 3)

    def forward(self, x):
        a = self.first(x).relu_()
        b = self.second(a)
        b += a
        return self.head(b.tanh_()).mul_(2)


class SequenceFirst(nn.Module):
    """Time before the batch, of the same length as the trial's."""

    def __init__(self):
        super().__init__()
        self.step, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.step(x.transpose(0, 1))).sum(0))


class Experts(nn.Module):
    """An expert that sees some of the samples only."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        chosen = x[:, :1] > 0
        left = self.left(x[chosen[:, 0]]) if chosen.any() else x.new_zeros(0, 5)
        right = self.right(x[~chosen[:, 0]]) if not chosen.all() else x.new_zeros(0, 5)
        out = x.new_zeros(len(x), 5).index_add(0, chosen[:, 0].nonzero()[:, 0], left)
        return self.head(torch.tanh(out.index_add(0, (~chosen[:, 0]).nonzero()[:, 0], right)))


class Scaled(nn.Module):
    """A layer's output changed by a hook, and a layer that the outputs do not use."""

    def __init__(self):
        super().__init__()
        self.first, self.head, self.idle = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(2, 2)
        self.first.register_forward_hook(lambda module, inputs, output: output * 3)

    def forward(self, x):
        self.idle(x[:, :2])
        return self.head(torch.tanh(self.first(x)))


def frozen(net):
    net[0].bias.requires_grad_(False)
    net[2].weight.requires_grad_(False)
    for parameter in net[4].parameters():
        parameter.requires_grad_(False)
    return net


def conv_net(**options):
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, **options),
        nn.Tanh(),
        nn.Conv2d(6, 8, 1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


# name to (network, shape of inputs, how many samples, names of the layers found)
NETWORKS = {
    "linear": (lambda: nn.Linear(20, 3), (20,), 6, {""}),
    "mlp": (
        lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)), (6,), 7, {"0", "2"}
    ),
    "frozen": (
        lambda: frozen(
            nn.Sequential(*(nn.Linear(6, 6) if i % 2 == 0 else nn.Tanh() for i in range(9)))
        ), (6,), 5, {"0", "2", "6", "8"},
    ),
    "tokens": (
        lambda: nn.Sequential(
            nn.Linear(4, 9), nn.GELU(), nn.Linear(9, 30, bias=False), nn.Flatten(), nn.Linear(60, 3)
        ), (2, 4), 5, {"0", "2", "4"},
    ),
    "strided": (lambda: conv_net(stride=2, padding=1), (4, 7, 6), 5, {"0", "2", "5"}),
    "dilated": (lambda: conv_net(dilation=2, padding="same"), (4, 7, 6), 5, {"0", "2", "5"}),
    "grouped": (lambda: conv_net(groups=2, bias=False), (4, 6, 5), 5, {"0", "2", "5"}),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.Flatten(), nn.LazyLinear(3)),
        (4, 6, 5), 4, {"0", "2"},
    ),
    "circular": (
        lambda: conv_net(padding=(1, 2), padding_mode="circular"), (4, 7, 6), 4, {"0", "2", "5"}
    ),
    "even kernel": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, (2, 4), padding="same", padding_mode="reflect"),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3),
        ), (2, 6, 5), 4, {"0", "3"},
    ),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8), nn.ReLU(),
            nn.Conv1d(8, 6, 2, dilation=2), nn.BatchNorm1d(6), nn.Flatten(), nn.LazyLinear(3),
        ), (3, 12), 4, {"0", "1", "3", "4", "6"},
    ),
    "conv3d": (
        lambda: nn.Sequential(
            nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), nn.ReLU(),
            nn.ConvTranspose3d(4, 3, 2), nn.Flatten(), nn.LazyLinear(3),
        ), (2, 3, 4, 3), 4, {"1", "5"},
    ),
    "norm without affine weight": (
        lambda: nn.Sequential(
            nn.Linear(6, 8), nn.LayerNorm(8, bias=False), nn.Tanh(), nn.Linear(8, 3)
        ), (6,), 5, {"0", "1", "3"},
    ),
    "attention": (Attending, (5, 4), 6, {"packed", "norm", "head"}),
    "in place": (InPlace, (6,), 5, {"first", "second", "head"}),
    "sequence first": (SequenceFirst, (3, 4), 3, {"head"}),
    "experts": (Experts, (6,), 9, None),
    "hook": (Scaled, (6,), 5, {"first", "head", "idle"}),
    "recurrent": (
        lambda: nn.Sequential(nn.RNN(4, 5, batch_first=True), Last(), nn.Linear(5, 3)),
        (3, 4), 4, {"2"},
    ),
}  # fmt: skip


class Last(nn.Module):
    def forward(self, x):
        return x[0][:, -1]


def network(name):
    make, shape, samples, layers = NETWORKS[name]
    torch.manual_seed(3)
    net = make().eval()
    x, y = labelled((samples, *shape), 3)
    with torch.no_grad():
        net(x.float())  # lazy layers
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    for parameter in net.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.5, 0.5)
    return net, (x, y), layers
