"""Certified eigenvalues of random small networks against many-digit arithmetic.

    python tests/precision.py --first 0 --count 1330 --processes 2

Each problem is drawn from its number: layers, loss, scales of data and weights, saturation, what
is frozen. Its Hessian is computed by second-order forward differentiation in mpmath, with digits
enough for exp(-900), and its eigenvalues by mpmath's own solver. Printed are:

- over: more eigenvalues certified than the exact rank;
- off: a certified eigenvalue is off by more than the noise floor (off 3: by more than three);
- refused: with what was said;
- the ratio of the floor to the largest error: a huge floor is always right, and none.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import mpmath
import numpy as np
import torch
from mpmath import mpf
from torch import nn

import hessrmt as hr
from hessrmt.errors import HessrmtError

DIGITS = 420
MOST_PARAMETERS = 24
NOTHING = mpf(10) ** -200
"""Over the largest: an eigenvalue this small is zero up to the rounding of the oracle."""


class Jet:
    """A number with its gradient (P,) and its Hessian (P, P) in the parameters, of many digits."""

    def __init__(self, value, slope, curve):
        self.value, self.slope, self.curve = value, slope, curve

    def __add__(self, other):
        if not isinstance(other, Jet):
            return Jet(self.value + other, self.slope, self.curve)
        return Jet(self.value + other.value, self.slope + other.slope, self.curve + other.curve)

    __radd__ = __add__

    def __mul__(self, other):
        if not isinstance(other, Jet):
            return Jet(self.value * other, self.slope * other, self.curve * other)
        cross = np.outer(self.slope, other.slope)
        curve = self.curve * other.value + other.curve * self.value + cross + cross.T
        slope = self.slope * other.value + other.slope * self.value
        return Jet(self.value * other.value, slope, curve)

    def __neg__(self):
        return self * mpf(-1)

    def __sub__(self, other):
        return self + -other

    def of(self, value, first, second):
        """f(self) from f, f' and f'' there."""
        curve = self.curve * first + np.outer(self.slope, self.slope) * second
        return Jet(value, self.slope * first, curve)

    def log(self):
        return self.of(mpmath.log(self.value), 1 / self.value, -1 / self.value**2)

    def exp(self):
        found = mpmath.exp(self.value)
        return self.of(found, found, found)

    def power(self, exponent):
        p, x = mpf(exponent), self.value
        return self.of(x**p, p * x ** (p - 1), p * (p - 1) * x ** (p - 2))


def logistic(x):
    return 1 / (1 + mpmath.exp(-x))


def sigmoid(jet):
    s, rest = logistic(jet.value), logistic(-jet.value)
    return jet.of(s, s * rest, s * rest * (rest - s))


def softplus(jet):
    s, rest = logistic(jet.value), logistic(-jet.value)
    return jet.of(mpmath.log1p(mpmath.exp(jet.value)), s, s * rest)


def tanh(jet):
    t, s = mpmath.tanh(jet.value), mpmath.sech(jet.value) ** 2
    return jet.of(t, s, -2 * t * s)


def gelu(jet):
    x = jet.value
    below = mpmath.erfc(-x / mpmath.sqrt(2)) / 2
    density = mpmath.exp(-x * x / 2) / mpmath.sqrt(2 * mpmath.pi)
    return jet.of(x * below, below + x * density, (2 - x * x) * density)


ACTIVATIONS = {
    nn.Tanh: tanh,
    nn.Sigmoid: sigmoid,
    nn.Softplus: lambda x: x if x.value > 20 else softplus(x),
    nn.ReLU: lambda x: x if x.value > 0 else x * mpf(0),
    nn.GELU: gelu,
    nn.SiLU: lambda x: x * sigmoid(x),
    nn.ELU: lambda x: x if x.value > 0 else x.exp() - 1,
    nn.LeakyReLU: lambda x: x if x.value > 0 else x * mpf(0.01),
    nn.LogSigmoid: lambda x: -softplus(-x),
    nn.Softsign: lambda x: x * (x * mpf(1 if x.value > 0 else -1) + mpf(1)).power(-1),
    nn.Identity: lambda x: x,
}


def log_softmax(row):
    most = max(x.value for x in row)
    norm = sum((x - most).exp() for x in row).log() + most
    return [x - norm for x in row]


def normalised(row, eps):
    middle = mean(row)
    centred = [x - middle for x in row]
    variance = mean([x * x for x in centred])
    scale = (variance + mpf(eps)).power(-0.5)
    return [x * scale for x in centred]


def run(module, row, parameters):
    """One sample through one module."""
    own = {name: parameters[id(p)] for name, p in module.named_parameters()}
    if isinstance(module, nn.Linear):
        out = [sum(w * x for w, x in zip(line, row, strict=True)) for line in own["weight"]]
        return [x + b for x, b in zip(out, own["bias"], strict=True)] if "bias" in own else out
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        row = normalised(row, module.eps)  # of one group
        return [x * w + b for x, w, b in zip(row, own["weight"], own["bias"], strict=True)]
    if isinstance(module, nn.LogSoftmax):
        return log_softmax(row)
    if isinstance(module, nn.Softmax):
        return [x.exp() for x in log_softmax(row)]
    return [ACTIVATIONS[type(module)](x) for x in row]


def mean(terms):
    return sum(terms) * (1 / mpf(len(terms)))


def binary(row, target):
    terms = zip(row, target, strict=True)
    return mean([softplus(x) * (1 - t) + softplus(-x) * t for x, t in terms])


def smoothed(row, target):
    log = log_softmax(row)
    return -(log[target] * mpf(0.9) + mean(log) * mpf(0.1))


def binary_of_probabilities(row, target):
    terms = zip(row, target, strict=True)
    return -mean([x.log() * t + (-x + 1).log() * (1 - t) for x, t in terms])


def squares(row, target):
    return sum((x - t) * (x - t) for x, t in zip(row, target, strict=True))


def one_hot_squares(row, target):
    return squares(row, [int(c == target) for c in range(len(row))])


def brier(outputs, targets):
    return (outputs - nn.functional.one_hot(targets, outputs.shape[1])).square().sum(1).mean()


def poisson(row, target):
    return mean([x.exp() - x * t for x, t in zip(row, target, strict=True)])


LOSSES: dict[str, tuple[Any, Any]] = {
    "cross-entropy": ("cross-entropy", lambda row, t: -log_softmax(row)[t]),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), smoothed),
    "NLL": (nn.NLLLoss(), lambda row, t: -row[t]),
    "BCE of scores": (nn.BCEWithLogitsLoss(), binary),
    "BCE": (nn.BCELoss(), binary_of_probabilities),
    "mse": ("mse", squares),
    "Brier": (brier, one_hot_squares),
    "Poisson": (nn.PoissonNLLLoss(), poisson),
}
"""Name to the loss as a user gives it, and to that of one sample in many digits."""

LAST = {"NLL": nn.LogSoftmax(1), "BCE": nn.Sigmoid(), "Brier": nn.Softmax(1)}


@dataclass
class Drawn:
    """A random problem.

    Attributes:
        kind: In words.
        model: The network, in float64.
        loss: Name of the loss.
        x: (B, features).
        y: Labels (B,) or numbers (B, K).
    """

    kind: str
    model: nn.Sequential
    loss: str
    x: torch.Tensor
    y: torch.Tensor


def draw(number: int) -> Drawn:
    """Problem of a number."""
    choose = random.Random(f"problem {number}")
    torch.manual_seed(number)
    width, classes = choose.randint(1, 3), choose.choice([2, 3])
    samples = choose.choice([1, 2, 3, 6])
    loss, activation = choose.choice(list(LOSSES)), choose.choice(list(ACTIVATIONS))
    features, layers = width, []
    for _ in range(choose.choice([0, 1, 1, 1, 2])):
        hidden = choose.randint(1, 3)
        layers.append(nn.Linear(width, hidden, bias=choose.random() < 0.7))
        if hidden > 1 and choose.random() < 0.2:
            layers.append(choose.choice([nn.LayerNorm(hidden), nn.GroupNorm(1, hidden)]))
        layers.append(activation())
        width = hidden
    layers.append(nn.Linear(width, classes, bias=choose.random() < 0.7))
    layers += [LAST[loss]] if loss in LAST else []
    model = nn.Sequential(*layers).double()
    scale = choose.choice([1, 1, 1, 3, 10, 30])
    with torch.no_grad():
        for parameter in model.parameters():
            if choose.random() < 0.7:
                parameter.mul_(scale)
    size = choose.choice([1.0, 1.0, 1.0, 1e-3, 1e-6, 1e2])
    x = size * torch.randn(samples, features, dtype=torch.float64)
    if samples > 1 and choose.random() < 0.2:
        x[0] *= 1e5
    fitted = choose.random() < 0.6
    outputs = model(x).detach()
    if loss.startswith("BCE"):
        above = outputs > (0.5 if loss == "BCE" else 0)
        y = above.double() if fitted else torch.rand_like(outputs)
    elif loss in ("mse", "Poisson"):
        y = outputs.clone() if fitted and loss == "mse" else torch.randn_like(outputs).abs()
    else:
        y = outputs.argmax(1) if fitted else torch.randint(0, classes, (samples,))
    if len(layers) > 2 and choose.random() < 0.3:
        first = choose.random() < 0.5
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("0.") == first)
    return Drawn(f"{activation.__name__} {loss}", model, loss, x, y)


def exact_levels(drawn: Drawn) -> list[Any]:
    """All eigenvalues of the Hessian, ascending."""
    size = sum(p.numel() for p in drawn.model.parameters() if p.requires_grad)
    nothing = np.full(size, mpf(0)), np.full((size, size), mpf(0))
    place, parameters = 0, {}
    for parameter in drawn.model.parameters():
        array = np.empty(parameter.numel(), dtype=object)
        for number, value in enumerate(parameter.detach().flatten().tolist()):
            slope = nothing[0].copy()
            if parameter.requires_grad:
                slope[place] = mpf(1)
                place += 1
            array[number] = Jet(mpf(value), slope, nothing[1])
        parameters[id(parameter)] = array.reshape(parameter.shape).tolist()
    losses = []
    for features, target in zip(drawn.x.tolist(), drawn.y.tolist(), strict=True):
        row = [Jet(mpf(value), *nothing) for value in features]
        for module in drawn.model:
            row = run(module, row, parameters)
        losses.append(LOSSES[drawn.loss][1](row, target))
    return sorted(mpmath.eigsy(mpmath.matrix(mean(losses).curve.tolist()), eigvals_only=True))


@dataclass
class Seen:
    """What became of a problem.

    Attributes:
        number: Of the problem.
        kind: In words.
        parameters: P.
        reduce: ``"auto"`` or ``"none"``.
        refused: What was said, or nothing.
        over: Eigenvalues certified beyond the exact rank.
        off: Largest error of a certified eigenvalue over the floor.
        ratio: The floor over the largest error; None without error.
    """

    number: int
    kind: str
    parameters: int
    reduce: str
    refused: str = ""
    over: int = 0
    off: float = 0.0
    ratio: float | None = None


def overflows(drawn: Drawn) -> bool:
    """Whether torch's own loss or its gradient is infinite in float64."""
    given, wanted = LOSSES[drawn.loss][0], [p for p in drawn.model.parameters() if p.requires_grad]
    named = {"cross-entropy": nn.functional.cross_entropy, "mse": nn.functional.mse_loss}
    loss = named.get(given, given) if isinstance(given, str) else given
    value = loss(drawn.model(drawn.x), drawn.y)
    slopes = torch.autograd.grad(value, wanted)
    return not all(bool(torch.isfinite(part).all()) for part in (value, *slopes))


def judge(number: int) -> list[Seen]:
    """Both ways of a problem; none where it has too many parameters, or an infinite loss."""
    mpmath.mp.dps = DIGITS
    torch.set_num_threads(1)
    drawn = draw(number)
    size = sum(p.numel() for p in drawn.model.parameters() if p.requires_grad)
    if not 0 < size <= MOST_PARAMETERS or overflows(drawn):
        return []
    try:
        exact = exact_levels(drawn)
    except ZeroDivisionError:  # a probability of zero: the loss is infinite
        return []
    if not all(mpmath.isfinite(level) for level in exact):
        return []
    largest = max(abs(level) for level in exact)
    rank = sum(abs(level) > NOTHING * largest for level in exact) if largest else 0
    found = []
    for reduce in ("auto", "none"):
        seen = Seen(number, drawn.kind, size, reduce)
        found.append(seen)
        try:
            problem = hr.Problem(drawn.model, LOSSES[drawn.loss][0], (drawn.x, drawn.y))
            spectrum = hr.spectrum(problem, reduce=reduce)
        except HessrmtError as error:
            seen.refused = f"{type(error).__name__}: {error}"
            continue
        floor = mpf(spectrum.noise_floor)
        pairs = list(zip(np.sort(spectrum.eigenvalues).tolist(), exact, strict=True))
        errors = [abs(ours - level) for ours, level in pairs]
        seen.over = max(0, spectrum.rank - rank)
        worst = max((abs(a - b) for a, b in pairs if abs(a) > spectrum.noise_floor), default=mpf(0))
        seen.off = float(worst / floor) if floor else 0.0
        if floor and max(errors):
            seen.ratio = float(min(floor / max(errors), mpf(10) ** 300))
    return found


def sweep(first: int, count: int, processes: int = 1) -> list[Seen]:
    """As many problems from a number on."""
    if processes == 1:
        return [seen for number in range(first, first + count) for seen in judge(number)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        parts = pool.imap(judge, range(first, first + count), chunksize=8)
        return [seen for part in parts for seen in part]


def summary(seen: list[Seen]) -> dict[str, Any]:
    """Counts and medians of a sweep."""
    ratios = [one.ratio for one in seen if one.ratio is not None]
    by_size: dict[int, list[float]] = {}
    for one in seen:
        if one.ratio is not None:
            by_size.setdefault(one.parameters, []).append(one.ratio)
    return {
        "problems": len({one.number for one in seen}),
        "kinds": len({one.kind for one in seen}),
        "runs": len(seen),
        "over": sum(one.over > 0 for one in seen),
        "off": sum(one.off > 1 for one in seen),
        "off 3": sum(one.off > 3 for one in seen),
        "refused": sum(bool(one.refused) for one in seen),
        "floor over error, median": float(np.median(ratios)) if ratios else None,
        "by P": {size: round(float(np.median(by_size[size])), 1) for size in sorted(by_size)},
        "said": dict(Counter(one.refused[:160] for one in seen if one.refused)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1330)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    seen = sweep(options.first, options.count, options.processes)
    for one in seen:
        if one.over or one.off > 1:
            print(json.dumps(asdict(one)))
    print(json.dumps(summary(seen), indent=1))


if __name__ == "__main__":
    main()
