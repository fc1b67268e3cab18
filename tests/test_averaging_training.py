"""Averages of iterates: against closed forms and stored iterates; BatchNorm measured anew."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from hessrmt import rng
from hessrmt.config import TrainConfig
from hessrmt.errors import NonFiniteError, ProblemError
from hessrmt.problems import data, losses, models
from hessrmt.problems.data import Dataset
from hessrmt.training.averaging import IterateAverage, recompute_batchnorm
from hessrmt.training.protocol import train

CPU = torch.device("cpu")
EPS = np.finfo(float).eps


def flat(parameters) -> np.ndarray:
    return torch.cat([value.detach().double().flatten() for value in parameters]).numpy().copy()


def gaussian(count: int, *shape: int, name: str = "samples") -> Dataset:
    x = rng.stream(3, name).normal(size=(count, *shape)) * 2 + 1
    y = rng.stream(3, name, "labels").integers(0, 3, count)
    return Dataset("noise", "train", x, y, 3, "noise")


# the average


@pytest.mark.parametrize(("start", "dtype"), [(0, "float32"), (37, "float32"), (37, "float64")])
def test_it_is_the_mean_of_the_iterates(digits, start, dtype):
    samples = data.load(str(digits), "train")
    settings = TrainConfig(
        model="mlp2", data=str(digits), epochs=8, batch=16, device="cpu", lr=0.05, dtype=dtype
    )
    model = models.build("mlp2", samples.input_shape, 2, 0).to(dtype=getattr(torch, dtype))
    average, iterates = IterateAverage(model, start), []

    def step(trained):
        average.update(trained)
        iterates.append(flat(trained.parameters()))

    train(model, losses.resolve("cross-entropy"), samples, settings, device=CPU, on_step=step)
    assert average.steps == len(iterates) == 8 * 10
    kept = np.array(iterates[start:])
    assert average.count == len(kept)
    # a running mean of n numbers makes n roundings of the size ε·max|w|, as does np.mean
    bound = 2 * len(kept) * EPS * np.abs(kept).max()
    found = flat(average.parameters().values())
    np.testing.assert_allclose(found, kept.mean(axis=0), rtol=0, atol=bound)
    distance = np.linalg.norm(kept.mean(axis=0) - iterates[-1])
    assert average.distance(model) == pytest.approx(distance, abs=bound * kept.shape[1] ** 0.5)
    other = models.build("mlp2", samples.input_shape, 2, 1).to(dtype=getattr(torch, dtype))
    average.copy_to(other)
    assert all(value.dtype == getattr(torch, dtype) for value in other.parameters())
    rounding = np.finfo(dtype).eps * np.abs(kept).max()
    np.testing.assert_allclose(flat(other.parameters()), found, rtol=0, atol=rounding)


def test_descent_on_a_parabola_averages_to_its_geometric_series():
    """w_i = (1-αλ)^i w_0 has the mean w_0 r(1-rⁿ)/(n(1-r)), r = 1-αλ: [B], Theorem 8.1."""
    alpha, curvatures, n = 0.1, np.array([0.3, 1.0, 4.0]), 500
    model = nn.Linear(3, 1, bias=False).double()
    first = flat(model.parameters())
    average = IterateAverage(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=alpha)
    for _ in range(n):
        optimizer.zero_grad()
        (torch.from_numpy(curvatures) * model.weight[0] ** 2 / 2).sum().backward()
        optimizer.step()
        average.update(model)
    ratio = 1 - alpha * curvatures
    expected = first * ratio * (1 - ratio**n) / (n * (1 - ratio))
    found = flat(average.parameters().values())
    # every iterate carries the roundings of those before it, damped by r, and the mean n of its own
    bound = n * EPS * np.abs(first).max() / (1 - ratio).min()
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


def test_float32_iterates_lose_nothing_over_many_steps():
    """In float32 a mean stops changing at its 2^24th part; here n = 20,000 increments are kept."""
    model = nn.Linear(1, 1, bias=False)
    average, n = IterateAverage(model), 20_000
    values = (1000 + np.arange(n) % 7 / 8).astype(np.float32)
    with torch.no_grad():
        for value in values:
            model.weight.fill_(float(value))
            average.update(model)
    exact = float(values.astype(np.float64).sum() / n)  # multiples of 1/8: the sum is exact
    assert float(average.parameters()["weight"]) == pytest.approx(exact, abs=n * EPS * 1001)


def test_a_continued_average_is_the_same_bit_for_bit():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    whole, parts = IterateAverage(model, 2), IterateAverage(model, 2)
    for step in range(12):
        with torch.no_grad():
            for parameter in model.parameters():
                generator = rng.torch_generator(0, "step", step, *parameter.shape)
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        whole.update(model)
        parts.update(model)
        saved = copy.deepcopy(parts.state_dict())
        parts = IterateAverage(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), 2)
        parts.load_state_dict(saved)
    assert parts.count == whole.count == 10
    for name, value in whole.parameters().items():
        assert torch.equal(parts.parameters()[name], value)
    before = whole.state_dict()
    whole.update(model)
    assert not torch.equal(whole.state_dict()["mean"]["0.weight"], before["mean"]["0.weight"])


def test_what_cannot_be_averaged_is_refused():
    model = nn.Linear(2, 2)
    for start in (-1, 1.5, True, None):
        with pytest.raises(ProblemError, match="expected the steps left out first"):
            IterateAverage(model, start)  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match="no parameters to average"):
        IterateAverage(nn.ReLU())
    late = IterateAverage(model, 5)
    for _ in range(5):
        late.update(model)
    for use in (late.parameters, lambda: late.copy_to(model), lambda: late.distance(model)):
        with pytest.raises(ProblemError, match="5 steps were made and the average begins after"):
            use()
    late.update(model)
    with pytest.raises(ProblemError, match="differ in bias, weight"):
        late.copy_to(nn.Linear(3, 3))
    with pytest.raises(ProblemError, match="begins after step 5, this one after step 4"):
        IterateAverage(model, 4).load_state_dict(late.state_dict())
    with pytest.raises(ProblemError, match="differ in bias, weight"):
        IterateAverage(nn.Linear(2, 3), 5).load_state_dict(late.state_dict())
    with pytest.raises(ProblemError, match="no state of an average"):
        late.load_state_dict({"weight": torch.zeros(2)})
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    late.update(model)
    with torch.no_grad():
        model.weight[0, 0] = 0.0
    late.update(model)  # once NaN, always NaN
    with pytest.raises(NonFiniteError, match="the average of weight is NaN or infinite"):
        late.parameters()


# BatchNorm


def network() -> nn.Sequential:
    with rng.torch_seeded(0, "batchnorm"):
        return nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(4, 3, 3),
            nn.BatchNorm2d(3),
            nn.Flatten(),
            nn.Linear(3 * 2 * 2, 3),
            nn.BatchNorm1d(3),
        )


def test_statistics_are_those_of_the_whole_training_set():
    """Every layer's input, computed of all samples at once by hand, layer by layer."""
    samples = gaussian(70, 2, 6, 6)
    model = network().double().train()
    assert recompute_batchnorm(model, samples, device=CPU, dtype="float64", batch=16) == 3
    assert model.training
    values, _ = samples.tensors(slice(None))
    for layer in model.eval():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            channels = values.transpose(0, 1).flatten(1).detach().numpy()
            mean, variance = channels.mean(axis=1), channels.var(axis=1, ddof=1)
            # sums of n terms of the size of the largest value, in two orders
            scale = channels.shape[1] * EPS * np.abs(channels).max()
            found = layer.running_mean.numpy(), layer.running_var.numpy()
            np.testing.assert_allclose(found[0], mean, rtol=0, atol=2 * scale)
            atol = 8 * scale * np.abs(channels).max()
            np.testing.assert_allclose(found[1], variance, rtol=0, atol=atol)
        values = layer(values)


def test_first_layer_agrees_with_torch_given_everything_at_once():
    samples = gaussian(50, 4)
    ours, theirs = (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).double() for _ in range(2))
    recompute_batchnorm(ours, samples, device=CPU, dtype="float64", batch=7)
    update_bn([samples.tensors(slice(None))[0]], theirs)
    for name in ("running_mean", "running_var"):
        a, b = (getattr(model[0], name).numpy() for model in (ours, theirs))
        np.testing.assert_allclose(a, b, rtol=50 * 16 * EPS)


def test_batch_size_and_order_do_not_matter():
    samples = gaussian(60, 2, 6, 6)
    shuffled = Dataset("noise", "train", samples.x[::-1].copy(), samples.y[::-1].copy(), 3, "noise")
    states = []
    for part, batch in ((samples, 60), (samples, 7), (shuffled, 13)):
        model = network().double()
        recompute_batchnorm(model, part, device=CPU, dtype="float64", batch=batch)
        states.append(np.concatenate([b.numpy().ravel() for b in model.buffers() if b.dim()]))
    # two orders of a sum of at most 60·16 terms in each of three layers; what reaches a layer was
    # divided by a standard deviation, never below a tenth here
    bound = 3 * 60 * 16 * EPS * 10 * np.abs(states[0]).max()
    for state in states[1:]:
        np.testing.assert_allclose(state, states[0], rtol=0, atol=bound)


def test_networks_without_running_statistics_are_left_alone():
    samples = gaussian(20, 5)
    plain = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=False))
    before = copy.deepcopy(plain.state_dict())
    assert recompute_batchnorm(plain, samples, device=CPU) == 0
    assert all(torch.equal(before[k], v) for k, v in plain.state_dict().items())


def test_statistics_that_do_not_exist_are_refused():
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    with pytest.raises(ProblemError, match="BatchNorm '1' saw 1 value per channel"):
        recompute_batchnorm(model, gaussian(1, 5), device=CPU)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match="what reaches BatchNorm '1' is NaN or infinite"):
        recompute_batchnorm(model, gaussian(20, 5), device=CPU)
    assert bool(torch.isfinite(model[1].running_var).all())


def test_the_average_of_statistics_is_not_what_the_averaged_network_has():
    """Why they are measured anew: an average of two far networks is unlike either of them."""
    samples = gaussian(200, 5)
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)).double()
    average, variances = IterateAverage(model), []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            model[0].weight.fill_(sign)
        average.update(model)
        recompute_batchnorm(model, samples, device=CPU, dtype="float64")
        variances.append(model[1].running_var.clone())
    average.copy_to(model)
    recompute_batchnorm(model, samples, device=CPU, dtype="float64")
    assert torch.equal(model[0].weight, torch.zeros(3, 5))
    assert float(model[1].running_var.max()) == 0.0  # constant outputs
    assert float(torch.stack(variances).mean(dim=0).min()) > 1
