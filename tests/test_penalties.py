"""The penalty on stable ranks: values, gradients, what training does with it, files."""

import numpy as np
import pytest
import torch
from torch import nn

from hessrmt.config import TrainConfig
from hessrmt.errors import ProblemError, StoreError
from hessrmt.problems import checkpoints
from hessrmt.runs.training import run
from hessrmt.training.penalties import stable_ranks


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.Linear(6, 9),
        nn.Linear(9, 3),
    ).double()


def by_hand(model):
    """Singular values of the block-diagonal matrices, written out."""
    conv, transposed, *_, one, two = model
    blocks = [
        [part.reshape(2, -1) for part in conv.weight.split(2)],
        [part.transpose(0, 1).reshape(3, -1) for part in transposed.weight.split(2)],
        [one.weight],
        [two.weight],
    ]
    values = [torch.linalg.svdvals(torch.block_diag(*parts)) for parts in blocks]
    return torch.stack([v.square().sum() / v[0] ** 2 for v in values])


def test_values_and_gradients_are_those_of_singular_values():
    model = network()
    found, expected = stable_ranks(model), by_hand(model)
    assert torch.allclose(found, expected, rtol=1e-12, atol=0)
    weights = [module.weight for module in (model[0], model[1], model[4], model[5])]
    first = torch.autograd.grad(found.sum(), weights)
    second = torch.autograd.grad(expected.sum(), weights)
    for weight, one, two in zip(weights, first, second, strict=True):
        # u is known to about ε over the gap, of which these have more than a tenth of σ₁²
        assert torch.allclose(one, two, rtol=0, atol=1e-12 * float(two.abs().max()))
        # the scale of a layer is free
        assert abs(float((one * weight.detach()).sum())) < 1e-12


def test_layers_without_a_rank():
    with pytest.raises(ProblemError, match="leave stable_rank out"):
        stable_ranks(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)))
    zero = nn.Linear(3, 2)
    nn.init.zeros_(zero.weight)
    (value,) = stable_ranks(zero)
    assert value == 0
    value.backward()
    assert torch.isfinite(zero.weight.grad).all()


@pytest.fixture
def settings(tmp_path):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(64, 12))
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] > 0).astype(int))
    model = tmp_path / "net.py"
    model.write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))\n"
    )

    def made(**options):
        known = {"epochs": 6, "batch": 16, "lr": 0.05, "weight_decay": 0.0} | options
        return TrainConfig(model=f"{model}:make", data=str(tmp_path / "data.npz"), **known)

    return made


def ranks_of(path):
    state = checkpoints.read(path)["state_dict"]
    values = [np.linalg.svd(v.numpy(), compute_uv=False) for k, v in state.items() if "weight" in k]
    return [float((v**2).sum() / v[0] ** 2) for v in values]


def test_training_lowers_the_stable_ranks(settings, tmp_path):
    plain = run(settings(), tmp_path / "plain.pt")
    low = run(settings(stable_rank=0.1), tmp_path / "low.pt")
    assert all(
        a < b for a, b in zip(*map(ranks_of, (low.checkpoint, plain.checkpoint)), strict=True)
    )
    # one step by hand: the gradient of loss and penalty together
    one = settings(epochs=1, batch=64, momentum=0.0, stable_rank=0.3, dtype="float64")
    none = settings(epochs=1, batch=64, momentum=0.0, dtype="float64", lr=1e-30)
    run(one, tmp_path / "one.pt")
    run(none, tmp_path / "start.pt")
    states = [checkpoints.read(tmp_path / f"{n}.pt")["state_dict"] for n in ("start", "one")]
    start, after = ({k: v.double().requires_grad_() for k, v in s.items()} for s in states)
    content = np.load(tmp_path / "data.npz")
    x, y = torch.from_numpy(content["x"]), torch.from_numpy(content["y"])
    hidden = torch.relu(x @ start["0.weight"].T + start["0.bias"])
    loss = nn.functional.cross_entropy(hidden @ start["2.weight"].T + start["2.bias"], y)
    for name in ("0.weight", "2.weight"):
        values = torch.linalg.svdvals(start[name])
        loss = loss + 0.3 * values.square().sum() / values[0] ** 2
    for name, gradient in zip(start, torch.autograd.grad(loss, list(start.values())), strict=True):
        expected = start[name] - 0.05 * gradient
        assert torch.allclose(after[name], expected, rtol=0, atol=1e-12)


def test_files_from_before_the_setting_are_continued(settings, tmp_path):
    out = tmp_path / "net.pt"
    run(settings(epochs=1), out)
    assert "stable_rank" not in checkpoints.read(out)["identity"]
    run(settings(epochs=2), out, resume=True)
    with pytest.raises(StoreError, match="stable_rank"):
        run(settings(epochs=3, stable_rank=0.1), out, resume=True)
