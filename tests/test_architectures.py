"""Networks of transformers and timm as they come, against dense double backward."""

import copy
from fnmatch import fnmatch

import numpy as np
import pytest
import torch
from architecture_samples import TIMM, TRANSFORMERS, made, picture
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

import hessrmt as hr

pytestmark = pytest.mark.slow
EPS = float(np.finfo(np.float64).eps)
NARROW = {torch.float32, torch.float16, torch.bfloat16}


class InDouble(TorchFunctionMode):
    """The shortest way to a network that computes in float64 throughout."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        wide = lambda a: torch.float64 if isinstance(a, torch.dtype) and a in NARROW else a  # noqa: E731
        if function is torch.Tensor.float:
            return arguments[0].double()
        if function is F.hardsigmoid:  # has no second derivative in torch
            return (arguments[0] + 3).clamp(0, 6) / 6
        keywords = {name: wide(value) for name, value in (keywords or {}).items()}
        return function(*map(wide, arguments), **keywords)


def double(x):
    return x.double() if x.is_floating_point() else x


def levels(model, loss, inputs, targets, only="*"):
    """Eigenvalues by double backward of a copy in float64, and the loss."""
    model = copy.deepcopy(model).double()
    taken = [p for n, p in model.named_parameters() if p.requires_grad and fnmatch(n, only)]
    torch.set_default_dtype(torch.float64)
    try:
        with sdpa_kernel(SDPBackend.MATH), InDouble():
            value = loss(model(**{n: double(x) for n, x in inputs.items()}), double(targets))
            first = torch.autograd.grad(value, taken, create_graph=True, materialize_grads=True)
            flat = torch.cat([g.reshape(-1) for g in first])
            rows = [
                torch.cat([
                    h.reshape(-1)
                    for h in torch.autograd.grad(
                        f, taken, retain_graph=True, materialize_grads=True
                    )
                ])
                for f in flat
            ]  # fmt: skip
    finally:
        torch.set_default_dtype(torch.float32)
    H = torch.stack(rows)
    return torch.linalg.eigvalsh((H + H.T) / 2).numpy(), float(value.detach())


def agree(found, expected, value):
    n, norm = len(expected), np.abs(expected).max()
    # two ways of differentiating and of diagonalising
    assert np.abs(np.sort(found.eigenvalues) - expected).max() <= 50 * n * EPS * norm
    assert abs(found.loss - value) <= n * EPS * (1 + abs(value))


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="needs transformers", exc_type=ImportError)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_networks_of_transformers(name, transformers):
    torch.manual_seed(0)
    model, loss, inputs, targets = made(name, transformers)
    model.eval()
    found = hr.spectrum(hr.Problem(model, loss, (inputs, targets)))
    if "Mixtral" in name:  # torch has the product of groups in single precision only
        model.set_experts_implementation("eager")
    agree(found, *levels(model, loss, inputs, targets))


def test_a_network_in_bfloat16_is_its_function_in_float64(transformers):
    torch.manual_seed(0)
    model, loss, inputs, targets = made("Llama", transformers)
    model.eval().bfloat16()
    problem = hr.Problem(model, loss, (inputs, targets))
    found = hr.spectrum(problem)
    agree(found, *levels(model, loss, inputs, targets))
    assert problem.inside.own == torch.bfloat16
    own = problem.inside.own_loss
    assert own == float(loss(model(**inputs), targets).detach())
    assert abs(found.loss - own) <= 4 * torch.finfo(torch.bfloat16).eps * own


@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm(name):
    timm = pytest.importorskip("timm", reason="needs timm", exc_type=ImportError)
    network, block = TIMM[name]
    torch.manual_seed(0)
    model = timm.create_model(network, num_classes=3).eval()
    with torch.no_grad():  # some start at zero
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    data = picture(32), torch.tensor([[1.0, 0, -1], [0, 2, 0]])
    found = hr.spectrum(hr.Problem(model, F.mse_loss, data, only=block))
    agree(found, *levels(model, F.mse_loss, {"x": data[0]}, data[1], block))
