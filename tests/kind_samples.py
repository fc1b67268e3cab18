"""A small network around every kind of layer, and every kind of loss on a small network."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations

SAMPLES = 4


def normal(*shape):
    return torch.randn(SAMPLES, *shape, dtype=torch.float64)


def indices(high, *shape):
    return torch.randint(high, (SAMPLES, *shape))


class Then(nn.Module):
    """A function of the outputs of a layer, and a linear layer on what it gives."""

    def __init__(self, function, first, width, *more):
        super().__init__()
        self.first, self.function, self.last = first, function, nn.Linear(width, 3)
        self.more = nn.ParameterList(torch.randn(shape) for shape in more)

    def forward(self, *x):
        return self.last(self.function(self.first(*x), *self.more).flatten(1))


class Parts(nn.Module):
    """Layers and how they are called."""

    def __init__(self, call, **layers):
        super().__init__()
        self.call, self.layers = call, nn.ModuleDict(layers)

    def forward(self, *x):
        return self.call(self.layers, *x)


def activation(layer, width=4):
    return lambda: (Then(layer, nn.Linear(3, 4), width), normal(3))


def function(of, width, shape=(4,), *more):
    """A function of what a linear layer gives, in some shape."""
    size = int(torch.Size(shape).numel())
    reshaped = nn.Sequential(nn.Linear(3, size), nn.Unflatten(1, shape))
    return lambda: (Then(of, reshaped, width, *more), normal(3))


def image(width, *layers, shape=(2, 4, 4)):
    return lambda: (nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 3)), normal(*shape))


def made(build, *inputs):
    return lambda: (build(), *(draw() for draw in inputs))


def recurrent(kind, width, **options):
    return made(
        lambda: Parts(
            lambda m, x: m.last(m.net(x)[0][:, -1]),
            net=kind(2, 2, batch_first=True, **options),
            last=nn.Linear(width, 3),
        ),
        lambda: normal(3, 2),
    )


def cells(kind):
    def call(layers, x):
        state = None
        for t in range(x.shape[1]):
            state = layers.cell(x[:, t], state)
        return layers.last(state[0] if isinstance(state, tuple) else state)

    return made(lambda: Parts(call, cell=kind(2, 2), last=nn.Linear(2, 3)), lambda: normal(3, 2))


def bag(ragged=False, weighted=False, **options):
    def call(layers, ids, *more):
        if ragged:  # offsets come as an input of the same length
            return layers.last(layers.bag(ids.reshape(-1)[:9], more[0]))
        weights = more[0] if weighted else None
        return layers.last(layers.bag(ids, per_sample_weights=weights))

    more = [lambda: torch.tensor([0, 2, 2, 5])] if ragged else []
    more += [lambda: normal(3)] if weighted else []
    return made(
        lambda: Parts(call, bag=nn.EmbeddingBag(6, 3, **options), last=nn.Linear(3, 3)),
        lambda: indices(6, 3),
        *more,
    )


def attention(call, **layers):
    return made(
        lambda: Parts(call, **{name: build() for name, build in layers.items()}),
        lambda: normal(3, 4),
    )


def positive(a):
    return a @ a.mT + torch.eye(a.shape[-1], dtype=a.dtype)


def scanned(x, image):
    return F.grid_sample(image.expand(len(x), -1, -1, -1), torch.tanh(x), align_corners=False)


LAYERS = {
    **{
        name: activation(getattr(nn, name)())
        for name in (
            "Tanh", "Sigmoid", "SiLU", "GELU", "Mish", "Softplus", "Softsign", "Tanhshrink",
            "LogSigmoid", "ELU", "CELU", "SELU", "ReLU", "ReLU6", "LeakyReLU", "Hardtanh",
            "Hardsigmoid", "Hardswish", "Hardshrink", "Softshrink", "Identity",
        )
    },
    "GELU by tanh": activation(nn.GELU(approximate="tanh")),
    "PReLU": activation(nn.PReLU(4)),
    "RReLU": activation(nn.RReLU().eval()),
    "Threshold": activation(nn.Threshold(0.1, 0.3)),
    "GLU": activation(nn.GLU(), 2),
    "Softmax": activation(nn.Softmax(dim=1)),
    "Softmin": activation(nn.Softmin(dim=1)),
    "LogSoftmax": activation(nn.LogSoftmax(dim=1)),
    "ReLU in place": activation(nn.ReLU(inplace=True)),
    "SiLU in place": activation(nn.SiLU(inplace=True)),
    "Hardswish in place": activation(nn.Hardswish(inplace=True)),
    "Dropout": activation(nn.Dropout().eval()),
    # linear layers
    "Linear": made(lambda: nn.Linear(4, 3), lambda: normal(4)),
    "Bilinear": made(
        lambda: Parts(lambda m, x: m.last(m.two(x, torch.tanh(x))), two=nn.Bilinear(2, 2, 3),
                      last=nn.Linear(3, 3)), lambda: normal(2)),
    "Conv1d": image(8, nn.Conv1d(2, 2, 2, stride=1, padding=1, dilation=1), nn.Tanh(),
                    nn.AvgPool1d(2, 1), shape=(2, 4)),
    "Conv2d": image(8, nn.Conv2d(2, 2, 3, stride=2, padding=1, padding_mode="reflect"), nn.Tanh()),
    "Conv2d in groups": image(8, nn.Conv2d(2, 2, 2, groups=2, dilation=2), nn.Tanh()),
    "Conv3d": image(8, nn.Conv3d(1, 1, 2), nn.Tanh(), shape=(1, 3, 3, 3)),
    "ConvTranspose1d": image(10, nn.ConvTranspose1d(2, 2, 2), nn.Tanh(), shape=(2, 4)),
    "ConvTranspose2d": image(9, nn.ConvTranspose2d(1, 1, 2), nn.Tanh(), shape=(1, 2, 2)),
    "Unfold": image(16, nn.Conv2d(1, 1, 2), nn.Tanh(), nn.Unfold(2), shape=(1, 4, 4)),
    "Fold": function(lambda x: F.fold(x, (3, 3), 2), 9, (4, 4)),
    "Embedding": made(
        lambda: nn.Sequential(nn.Embedding(6, 3), nn.Flatten(), nn.Tanh(), nn.Linear(6, 3)),
        lambda: indices(6, 2)),
    "sparse Embedding": made(
        lambda: nn.Sequential(nn.Embedding(6, 3, sparse=True), nn.Flatten(), nn.Tanh(),
                              nn.Linear(6, 3)), lambda: indices(6, 2)),
    "EmbeddingBag, sum": bag(mode="sum"),
    "EmbeddingBag, mean": bag(mode="mean"),
    "EmbeddingBag, max": bag(mode="max"),
    "EmbeddingBag, weighted": bag(mode="sum", weighted=True),
    "EmbeddingBag, sparse": bag(mode="mean", sparse=True),
    "EmbeddingBag, padding": bag(mode="mean", padding_idx=5),
    "EmbeddingBag, ragged": bag(mode="mean", ragged=True),
    "EmbeddingBag, ragged max": bag(mode="max", ragged=True),
    # norms
    "BatchNorm1d": made(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4).eval(), nn.Tanh(),
                              nn.Linear(4, 3)), lambda: normal(3)),
    "BatchNorm2d": image(8, nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2).eval(), nn.Tanh()),
    "LayerNorm": activation(nn.LayerNorm(4)),
    "GroupNorm": activation(nn.GroupNorm(2, 4)),
    "InstanceNorm1d": image(8, nn.Conv1d(2, 2, 2, padding=1), nn.AvgPool1d(2, 1),
                            nn.InstanceNorm1d(2, affine=True), shape=(2, 4)),
    "RMSNorm": activation(nn.RMSNorm(4)),
    "LocalResponseNorm": image(8, nn.Conv2d(2, 2, 3), nn.LocalResponseNorm(2)),
    "normalize": function(F.normalize, 4),
    "weight_norm": made(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(),
                              nn.Linear(4, 3)), lambda: normal(3)),
    "weight_norm of a convolution": made(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(1, 2, 2), dim=1), nn.Tanh(),
                              nn.Flatten(), nn.Linear(8, 3)), lambda: normal(1, 3, 3)),
    "spectral_norm": made(
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Tanh(),
                              nn.Linear(4, 3)).eval(), lambda: normal(3)),
    "orthogonal": made(
        lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(3, 3)), nn.Tanh(),
                              nn.Linear(3, 3)), lambda: normal(3)),
    # pooling
    "AvgPool2d": image(2, nn.Conv2d(2, 2, 3), nn.Tanh(), nn.AvgPool2d(2)),
    "MaxPool1d": image(4, nn.Conv1d(2, 2, 2, padding=1), nn.MaxPool1d(2), shape=(2, 4)),
    "MaxPool2d": image(2, nn.Conv2d(2, 2, 3), nn.MaxPool2d(2)),
    "AdaptiveAvgPool2d": image(2, nn.Conv2d(2, 2, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1)),
    "AdaptiveMaxPool2d": image(2, nn.Conv2d(2, 2, 3), nn.AdaptiveMaxPool2d(1)),
    "LPPool2d": image(2, nn.Conv2d(2, 2, 3), nn.LPPool2d(2, 2)),
    "MaxUnpool2d": function(
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), 16, (1, 4, 4)),
    # recurrent
    "RNN": recurrent(nn.RNN, 2),
    "RNN of ReLU": recurrent(nn.RNN, 2, nonlinearity="relu"),
    "LSTM": recurrent(nn.LSTM, 2),
    "LSTM, two ways": recurrent(nn.LSTM, 4, bidirectional=True),
    "LSTM, projected": recurrent(nn.LSTM, 1, proj_size=1),
    "GRU": recurrent(nn.GRU, 2),
    "RNNCell": cells(nn.RNNCell),
    "LSTMCell": cells(nn.LSTMCell),
    "GRUCell": cells(nn.GRUCell),
    # attention
    "MultiheadAttention": attention(
        lambda m, x: m.last(m.attend(x, x, x)[0][:, 0]),
        attend=lambda: nn.MultiheadAttention(4, 2, batch_first=True), last=lambda: nn.Linear(4, 3)),
    "MultiheadAttention without weights": attention(
        lambda m, x: m.last(m.attend(x, x, x, need_weights=False)[0][:, 0]),
        attend=lambda: nn.MultiheadAttention(4, 2, batch_first=True), last=lambda: nn.Linear(4, 3)),
    "TransformerEncoderLayer": attention(
        lambda m, x: m.last(m.encode(x)[:, 0]),
        encode=lambda: nn.TransformerEncoderLayer(4, 2, 3, batch_first=True).eval(),
        last=lambda: nn.Linear(4, 3)),
    "TransformerDecoderLayer": attention(
        lambda m, x: m.last(m.decode(x, torch.sin(x))[:, 0]),
        decode=lambda: nn.TransformerDecoderLayer(4, 1, 2, batch_first=True).eval(),
        last=lambda: nn.Linear(4, 3)),
    "causal attention": function(
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), 6, (1, 3, 2)),
    # shapes
    "PixelShuffle": function(nn.PixelShuffle(2), 4, (4, 1, 1)),
    "Upsample, nearest": image(16, nn.Conv2d(1, 1, 3), nn.Tanh(), nn.Upsample(scale_factor=2),
                               shape=(1, 4, 4)),
    "Upsample, bilinear": image(16, nn.Conv2d(1, 1, 3), nn.Tanh(),
                                nn.Upsample(scale_factor=2, mode="bilinear"), shape=(1, 4, 4)),
    "Upsample, bicubic": image(16, nn.Conv2d(1, 1, 3), nn.Tanh(),
                               nn.Upsample(scale_factor=2, mode="bicubic"), shape=(1, 4, 4)),
    "ReplicationPad2d": image(16, nn.Conv2d(1, 1, 3), nn.ReplicationPad2d(1), nn.Tanh(),
                              shape=(1, 4, 4)),
    "CircularPad2d": image(16, nn.Conv2d(1, 1, 3), nn.CircularPad2d(1), nn.Tanh(),
                           shape=(1, 4, 4)),
    "ChannelShuffle": function(nn.ChannelShuffle(2), 4, (4, 1, 1)),
    "grid_sample": function(scanned, 4, (2, 2, 2), (1, 1, 3, 3)),
    # distances
    **{
        f"cdist, p = {p}": function(lambda x, c, p=p: torch.cdist(x, c, p=p), 2, (1, 3), (2, 3))
        for p in (0.5, 1.0, 2.0, 3.0, float("inf"))
    },
    "pdist": function(lambda x: torch.stack([F.pdist(a) for a in x]), 3, (3, 2)),
    "CosineSimilarity": function(lambda x, c: F.cosine_similarity(x[:, None], c, dim=-1), 2, (3,),
                                 (2, 3)),
    "PairwiseDistance": function(lambda x, c: F.pairwise_distance(x[:, None], c), 2, (3,), (2, 3)),
    # functions
    "logsumexp": function(lambda x: x.logsumexp(1, keepdim=True), 1),
    "logcumsumexp": function(lambda x: x.logcumsumexp(1), 4),
    "cumprod": function(lambda x: x.cumprod(1), 4),
    "prod": function(lambda x: x.prod(1, keepdim=True), 1),
    "sort": function(lambda x: x.sort(1).values, 4),
    "median": function(lambda x: x.median(1, keepdim=True).values, 1),
    "norm": function(lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True), 1),
    "erf": function(torch.erf, 4),
    "lgamma": function(lambda x: torch.lgamma(2 + x.square()), 4),
    "fft": function(lambda x: torch.fft.rfft(x).abs(), 3),
    "einsum": function(lambda x: torch.einsum("bij,bjk->bik", x, x), 4, (2, 2)),
    "inverse": function(lambda x: torch.linalg.inv(positive(x)), 4, (2, 2)),
    "Cholesky": function(lambda x: torch.linalg.cholesky(positive(x)), 4, (2, 2)),
    "determinant": function(lambda x: torch.linalg.slogdet(positive(x))[1][:, None], 1, (2, 2)),
    "matrix_exp": function(torch.linalg.matrix_exp, 4, (2, 2)),
    "solve": function(lambda x: torch.linalg.solve(positive(x), torch.ones(2, 1).to(x)), 2, (2, 2)),
    "eigvalsh": function(lambda x: torch.linalg.eigvalsh(positive(x)), 2, (2, 2)),
    "index_put": function(
        lambda x: torch.zeros_like(x).index_put((torch.tensor([1, 0]),), x[:2].tanh()), 4),
    "scatter_add": function(
        lambda x: torch.zeros_like(x).scatter_add(1, torch.tensor([[0, 0, 1, 3]] * SAMPLES),
                                                  x.tanh()), 4),
}  # fmt: skip
"""Name to (model, inputs ...)."""

BY_DIFFERENCES = {
    name
    for name in LAYERS
    if name.startswith(("cdist", "EmbeddingBag", "Hard", "weight_norm", "pdist", "sparse"))
}
"""Kinds whose second derivative torch has not or has wrong: differences alone are compared with."""


def regression():
    return normal(3)


def signs(*shape):
    return lambda: 2.0 * torch.randint(2, (SAMPLES, *shape)).double() - 1


def classes():
    return indices(3)


def labels_of_many():
    return torch.stack([torch.tensor([torch.randint(3, ()), -1, 0]) for _ in range(SAMPLES)])


def focal(outputs, targets):
    surprise = F.cross_entropy(outputs, targets, reduction="none")
    return ((1 - torch.exp(-surprise)).square() * surprise).mean()


def dice(outputs, targets):
    p = outputs.softmax(1)
    right = p.gather(1, targets[:, None]).sum()
    return 1 - 2 * right / (p.square().sum() + len(targets))


def half(loss):
    """A loss of two vectors and a target."""
    return lambda outputs, targets: loss(outputs[:, :1], outputs[:, 1:2], targets)


def ctc(outputs, targets):
    log_p = outputs[:, None].expand(-1, 4, -1).mul(torch.arange(1.0, 5)[:, None]).log_softmax(2)
    lengths = torch.full((len(outputs),), 4), torch.full((len(outputs),), 2)
    return F.ctc_loss(log_p.transpose(0, 1), 1 + targets % 2, *lengths)


WEIGHTS = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

LOSSES = {
    "cross-entropy": (nn.CrossEntropyLoss(), classes),
    "cross-entropy, weights": (nn.CrossEntropyLoss(weight=WEIGHTS), classes),
    "cross-entropy, smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), classes),
    "cross-entropy, weights and smoothed": (
        nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1, ignore_index=1), classes),
    "cross-entropy, left out": (nn.CrossEntropyLoss(ignore_index=1), classes),
    "cross-entropy, sum": (nn.CrossEntropyLoss(reduction="sum"), classes),
    "cross-entropy of probabilities": (
        nn.CrossEntropyLoss(), lambda: normal(3).softmax(1)),
    "NLL": (lambda o, t: F.nll_loss(o.log_softmax(1), t), classes),
    "focal": (focal, classes),
    "dice": (dice, classes),
    "MSE": (nn.MSELoss(), regression),
    "L1": (nn.L1Loss(), regression),
    "smooth L1": (nn.SmoothL1Loss(), regression),
    "Huber": (nn.HuberLoss(delta=0.7), regression),
    "log cosh": (lambda o, t: torch.log(torch.cosh(o - t)).mean(), regression),
    "BCE": (lambda o, t: F.binary_cross_entropy(o.sigmoid(), t), lambda: normal(3).sigmoid()),
    "BCE with logits": (nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), lambda: normal(3).sigmoid()),
    "KL": (lambda o, t: F.kl_div(o.log_softmax(1), t, reduction="batchmean"),
           lambda: normal(3).softmax(1)),
    "Poisson": (nn.PoissonNLLLoss(), lambda: indices(4, 3).double()),
    "Gauss": (lambda o, t: F.gaussian_nll_loss(o, t, o.exp()), regression),
    "hinge embedding": (nn.HingeEmbeddingLoss(), signs(3)),
    "margin ranking": (
        lambda o, t: F.margin_ranking_loss(o[:, 0], o[:, 1], t, margin=0.1), signs()),
    "cosine embedding": (lambda o, t: F.cosine_embedding_loss(o, o.roll(1, 1), t), signs()),
    "triplet": (lambda o, t: F.triplet_margin_loss(o, t, t.roll(1, 0)), regression),
    "triplet with distance": (
        lambda o, t: F.triplet_margin_with_distance_loss(o, t, t.roll(1, 0)), regression),
    "multi margin": (nn.MultiMarginLoss(), classes),
    "multi margin, squared": (nn.MultiMarginLoss(p=2, weight=WEIGHTS), classes),
    "multilabel margin": (nn.MultiLabelMarginLoss(), labels_of_many),
    "multilabel soft margin": (nn.MultiLabelSoftMarginLoss(), lambda: indices(2, 3).double()),
    "soft margin": (nn.SoftMarginLoss(), signs(3)),
    "CTC": (ctc, lambda: indices(2, 2)),
}  # fmt: skip
"""Name to (loss, targets)."""

AS_A_FORMULA = {
    "BCE": lambda o, t: -(t * F.logsigmoid(o) + (1 - t) * F.logsigmoid(-o)).mean(),
}
"""Losses in whose derivatives torch has an ε: 1e-12 in those of binary cross-entropy."""

LOSSES_BY_DIFFERENCES = {"multi margin", "multi margin, squared", "multilabel margin", "CTC"}
