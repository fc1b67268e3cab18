"""Networks with layers of every kind, used in every way, and which layers are found in them."""

import types

import torch
from samples import labelled
from samples import network as chain
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations

CPU = torch.device("cpu")


def at_double(problem):
    return problem.at(torch.float64, CPU)


class Called(nn.Module):
    """Modules by name, and how they are called."""

    def __init__(self, call, **modules):
        super().__init__()
        self.call = call
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.call(self, x)


def two(between=torch.tanh, inputs=6, width=4, call=None, **more):
    """Two linear layers with a function between them, or called otherwise with others."""
    layers = {"first": nn.Linear(inputs, width), "last": nn.Linear(width, 3)}
    return Called(call or (lambda m, x: m.last(between(m.first(x)))), **layers | more)


def three(call, **more):
    """Three linear layers, the second of which can be called twice."""
    return two(call=call, middle=nn.Linear(4, 4), **more)


def mixing(how):
    """A network whose hidden units go through a function."""
    return two(lambda h: how(torch.tanh(h)), width=7)


def frozen(net):
    net[0].bias.requires_grad_(False)
    net[2].weight.requires_grad_(False)
    net[4].requires_grad_(False)
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


def in_place(m, x):
    """What layers give is overwritten where they gave it."""
    a = m.first(x).relu_()
    b = m.middle(a)
    b += a
    return m.last(b.tanh_()).mul_(2)


def experts(m, x):
    """Each sees some of the samples only."""
    left = x[:, 0] > 0
    out = x.new_zeros(len(x), 4)
    for layer, chosen in ((m.first, left), (m.middle, ~left)):
        given = layer(x[chosen, :4]) if chosen.any() else x.new_zeros(0, 4)
        out = out.index_add(0, chosen.nonzero()[:, 0], given)
    return m.last(torch.tanh(out))


def attending(m, x):
    q, k, v = m.packed(x + m.positions).chunk(3, dim=-1)
    return m.head(m.norm(m.attend(q, k, v, need_weights=False)[0]).mean(dim=1))


def attention():
    net = Called(
        attending,
        packed=nn.Linear(4, 12),
        attend=nn.MultiheadAttention(4, 2, batch_first=True),
        norm=nn.LayerNorm(4),
        head=nn.Linear(4, 3),
    )
    net.positions = nn.Parameter(torch.randn(5, 4))
    return net


def shared_call(m, tokens):
    h = m.embed(tokens).mean(1)
    h = torch.tanh(m.twice(torch.tanh(m.twice(h))))
    h = torch.tanh(m.other(torch.tanh(m.one(h))))
    return m.norm(m.free(h)) @ m.free.weight @ m.embed.weight[:5].T


def shared():
    """One module twice, one weight in two modules, one weight transposed, one embedding tied."""
    linear = {name: nn.Linear(6, 6) for name in ("twice", "one", "other", "free")}
    net = Called(shared_call, embed=nn.Embedding(9, 6), norm=nn.LayerNorm(6), **linear)
    net.other.weight = net.one.weight
    return net


def tied_embedding(functional=False):
    """The head is the embedding's weight, behind a layer whose output is cut."""

    def call(m, ids):
        rows = F.embedding(ids, m.head.weight) if functional else m.embedding(ids)
        return m.head(torch.tanh(m.middle(rows.mean(1))))

    layers = {"embedding": nn.Embedding(5, 3), "middle": nn.Linear(3, 3), "head": nn.Linear(3, 5)}
    net = Called(call, **layers)
    if not functional:
        net.head.weight = net.embedding.weight
    return net


def tied():
    net = two(inputs=3, width=3)
    net.last.weight = net.first.weight
    return net


def bias_first():
    net = two()
    weight = net.first.weight
    del net.first.weight
    net.first.weight = weight
    return net


def centred():
    return two(lambda h: torch.tanh(h - h.mean(0)))


def differences(h):
    """Coupled samples that a shift of all hidden units alike does not show."""
    d = h - h.flip(1)
    return d * d.mean(0)


def zero_head(net):
    nn.init.zeros_(net.last.weight)
    return net


def idle(m, x):
    m.middle(x[:, :4])
    return m.last(torch.tanh(m.first(x)))


def with_hook(net, before=False):
    if before:
        net.first.register_forward_pre_hook(lambda module, inputs: (inputs[0] ** 2,))
    else:
        net.first.register_forward_hook(lambda module, inputs, output: output.sin() + 3 * output)
    return net


def patched():
    def forward(module, x):
        return F.linear(x, module.weight**3, module.bias)

    net = two()
    net.first.forward = types.MethodType(forward, net.first)
    return net


class SubclassedLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, torch.tanh(self.weight), self.bias)


def parametrised():
    net = two()
    parametrizations.orthogonal(net.first)
    return net


def penalised(m, x):
    return m.last(torch.tanh(m.first(x))) + m.last.weight.square().sum()


def residual(m, x):
    h = torch.relu_(m.first(input=x))
    return m.last(h + F.softmax(m.middle(h), dim=-1))


def twice(m, x):
    hidden = torch.tanh(m.first(x))
    return m.last(torch.tanh(m.middle(torch.tanh(m.middle(hidden)))))


# name to (network, shape of inputs, how many samples, names of the layers found)
NETWORKS = {
    "linear": (lambda: nn.Linear(20, 3), (20,), 6, {""}),
    "mlp": (lambda: chain(6, 9, 3), (6,), 7, {"0", "2"}),
    "frozen": (lambda: frozen(chain(6, 6, 6, 6, 6, 6)), (6,), 5, {"0", "2", "6", "8"}),
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
    "norm of the batch itself": (
        lambda: nn.Sequential(
            nn.Linear(6, 7), nn.BatchNorm1d(7, track_running_stats=False), nn.Tanh(),
            nn.Linear(7, 3),
        ), (6,), 7, {"0", "3"},
    ),
    "attention": (attention, (5, 4), 6, {"packed", "norm", "head"}),
    "recurrent": (
        lambda: nn.Sequential(
            nn.RNN(4, 5, batch_first=True), Called(lambda _, x: x[0][:, -1]), nn.Linear(5, 3)
        ), (3, 4), 4, {"2"},
    ),
    "in place": (lambda: three(in_place), (6,), 5, {"first", "middle", "last"}),
    "in place at the end": (
        lambda: two(call=lambda m, x: torch.relu_(m.last(torch.tanh(m.first(x))))), (6,), 5,
        {"first", "last"},
    ),
    "residual": (lambda: three(residual), (6,), 5, {"first", "middle", "last"}),
    "time first": (
        lambda: two(call=lambda m, x: m.last(torch.tanh(m.first(x.transpose(0, 1))).sum(0))),
        (3, 6), 3, {"first", "last"},
    ),
    "experts": (lambda: three(experts, first=nn.Linear(4, 4)), (6,), 9,
                {"first", "middle", "last"}),
    "idle layer": (lambda: three(idle), (6,), 5, {"first", "middle", "last"}),
    "shared": (shared, None, 6, {"norm", "twice"}),
    "tied weights": (tied, (3,), 8, set()),
    "tied embedding": (tied_embedding, None, 12, {"middle"}),
    "weight used upstream": (lambda: tied_embedding(functional=True), None, 12, {"middle"}),
    "penalised weight": (lambda: two(call=penalised), (6,), 8, {"first"}),
    "layer called twice": (lambda: three(twice), (6,), 8, {"first", "middle", "last"}),
    "bias registered first": (bias_first, (6,), 8, {"first", "last"}),
    "hook": (lambda: with_hook(two()), (6,), 8, {"first", "last"}),
    "hook before": (lambda: with_hook(two(), before=True), (6,), 8, {"first", "last"}),
    "forward of an instance replaced": (patched, (6,), 8, {"last"}),
    "subclass": (lambda: two(first=SubclassedLinear(6, 4)), (6,), 8, {"last"}),
    "parametrisation": (parametrised, (6,), 8, {"last"}),
    "coupled samples": (centred, (6,), 8, {"first", "last"}),
    # of which no gradient tells
    "coupled samples, zero head": (lambda: zero_head(centred()), (6,), 8, {"first", "last"}),
    "coupled differences": (lambda: two(differences), (6,), 8, {"first", "last"}),
    "zero head": (lambda: zero_head(two()), (6,), 8, {"first", "last"}),
    "wide, zero head": (lambda: zero_head(two(width=24)), (6,), 8, {"first", "last"}),
}  # fmt: skip

MIXING = {
    "norm of the batch itself": {"3"},
    "time first": {"last"},
    "experts": {"last"},
    "shared": {"norm"},
    "layer called twice": {"first", "last"},
    "coupled samples": {"last"},
    "coupled differences": {"last"},
}
"""Which layers are left where some mix samples, or are not called once with all of them."""


def disordered(net):
    """Statistics, biases and scales of no symmetry."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    for parameter in net.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.5, 0.5)
    return net


def network(name):
    """A network in float64, its inputs and labels."""
    make, shape, samples, _ = NETWORKS[name]
    torch.manual_seed(3)
    net = make().double().eval()
    x, y = labelled((samples, *shape), 3) if shape else labelled((samples, 4), 5)
    x = x if shape else (x.abs() * 7).long() % 5
    with torch.no_grad():
        net(x)  # lazy layers
    return disordered(net), x, y
