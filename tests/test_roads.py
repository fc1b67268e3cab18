"""Every road from a network to its Hessian's spectrum ends at the same eigenvalues."""

import numpy as np
import pytest
import torch
from architecture_samples import made
from hypothesis import given, settings
from hypothesis import strategies as st
from network_samples import NETWORKS, at_double, network
from properties import examples
from samples import labelled
from samples import network as perceptron
from torch import nn

import hessrmt as hr
from hessrmt.backend.cpu import CpuBackend
from hessrmt.curvature import roads
from hessrmt.curvature.certify import reference
from hessrmt.curvature.reduction import reduce_problem
from hessrmt.curvature.spectrum import REDUCTIONS
from hessrmt.errors import ConfigError, DeviceError, StoreError

EPS = float(np.finfo(np.float64).eps)


def assert_same(found, full):
    """Within the bounds of both, none missed and none invented, and the bound not absurd."""
    norm = float(np.abs(full.eigenvalues).max())
    apart = np.abs(found.eigenvalues - full.eigenvalues).max()
    assert apart <= found.noise_floor + full.noise_floor
    assert found.noise_floor <= max(10 * full.noise_floor, 100 * full.dimension * EPS * norm)
    assert len(found.eigenvalues) == full.dimension
    resolved = np.abs(full.eigenvalues) > found.noise_floor + full.noise_floor
    assert found.reduced_dimension >= resolved.sum()
    return apart / max(EPS * norm, np.finfo(float).tiny)


def searched(problem, width=None):
    """The spectrum by Hessian-vector products alone, whatever the structure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roads, "span_columns", lambda found: [10**9] * len(found.layers))
        if width:
            patch.setattr(roads, "WIDTH", width)
        return hr.spectrum(problem, reduce="range")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network(name):
    net, x, y = network(name)
    problem = hr.Problem(net, "cross-entropy", (x, y))
    full = hr.spectrum(problem, reduce="none")
    assert_same(searched(problem), full)
    if plan(problem, "range").road == "span":
        assert_same(hr.spectrum(problem, reduce="range"), full)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
def test_transformers(name):
    package = pytest.importorskip("transformers")
    model, loss, *batch = made(name, package)
    model.eval()
    problem = hr.Problem(model, loss, tuple(batch))
    assert_same(searched(problem), hr.spectrum(problem, reduce="dense"))


@st.composite
def small_problems(draw):
    """Perceptrons, convolutions, an LSTM or attention, on one to four samples."""
    torch.manual_seed(draw(st.integers(0, 10**6)))
    kind, samples = (
        draw(st.sampled_from(["mlp", "conv", "lstm", "attention"])),
        draw(st.integers(1, 4)),
    )
    unit = draw(st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU]))
    width = draw(st.integers(1, 6))
    if kind == "mlp":
        net, shape = nn.Sequential(nn.Linear(5, width), unit(), nn.Linear(width, 3)), (5,)
    elif kind == "conv":
        net = nn.Sequential(nn.Conv2d(1, width, 2), unit(), nn.Flatten(), nn.Linear(9 * width, 3))
        shape = (1, 4, 4)
    elif kind == "lstm":
        net, shape = Recurrent(width), (3, 2)
    else:
        net, shape = Attending(2 * width), (3, 4)
    loss = draw(st.sampled_from(["cross-entropy", "mse"]))
    return hr.Problem(net.double(), loss, labelled((samples, *shape), 3))


class Recurrent(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.memory = nn.LSTM(2, width, batch_first=True)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.memory(x)[0][:, -1])


class Attending(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, width, dropout=0, batch_first=True)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.layer(self.embed(x)).mean(1))


@settings(max_examples=examples(3))
@given(small_problems(), st.sampled_from([None, 1, 5]))
def test_random_networks(problem, width):
    full = hr.spectrum(problem, reduce="none")
    assert_same(searched(problem, width), full)
    assert_same(hr.spectrum(problem, reduce="range"), full)


def wide(samples, *, kind=nn.ReLU, widths=(40, 60, 60, 4)):
    return hr.Problem(
        perceptron(*widths, kind=kind), "cross-entropy", labelled((samples, widths[0]), widths[-1])
    )


def plan(problem, road="auto"):
    local = at_double(problem)
    local.evaluate()
    return roads._plan(local, reduce_problem(local), CpuBackend(), road)


def test_the_span_of_wide_perceptrons():
    problem = wide(3)
    assert plan(problem).road == "span"
    found, full = hr.spectrum(problem), hr.spectrum(problem, reduce="dense")
    assert_same(found, full)
    assert found.reduced_dimension <= 1.02 * full.rank < 0.7 * full.reduced_dimension


def test_nearly_equal_samples_go_another_road():
    """Their columns are dependent up to half the digits: the span would lose the others."""
    x, y = labelled((3, 40), 4)
    x[1] = x[0] * (1 + 1e-7)
    problem = hr.Problem(perceptron(40, 60, 60, 4, kind=nn.Tanh), "mse", (x, y))
    found, full = hr.spectrum(problem, reduce="range"), hr.spectrum(problem, reduce="dense")
    assert_same(found, full)


def test_float32_with_samples_that_cancel():
    """Noise must not be certified: the range is orthonormal to what float32 can do, or it shows."""
    x, y = labelled((8, 40), 4)
    x[4:] = x[:4] * (1 + 1e-5)
    weights = torch.tensor([1.0] * 4 + [-1.0] * 4, dtype=torch.float64)[:, None]

    def loss(outputs, targets):
        signs = weights.to(outputs)
        return 1e-3 * (signs * (outputs - nn.functional.one_hot(targets, 4)).square()).mean()

    problem = hr.Problem(perceptron(40, 30, 30, 4, kind=nn.Tanh), loss, (x, y))
    exact = hr.spectrum(problem, reduce="none")
    for road in ("range", "dense"):
        found = hr.spectrum(problem, reduce=road, dtype="float32")
        apart = np.abs(found.eigenvalues - exact.eigenvalues).max()
        assert apart <= found.noise_floor + exact.noise_floor


@pytest.mark.parametrize("scale", [3.0, 40.0, 400.0])
def test_saturated_networks(scale):
    model = perceptron(40, 60, 60, 4, kind=nn.Tanh)
    with torch.no_grad():
        model[-1].weight *= scale
    problem = hr.Problem(model, "cross-entropy", labelled((6, 40), 4))
    assert_same(hr.spectrum(problem, reduce="range"), hr.spectrum(problem, reduce="dense"))


@pytest.mark.parametrize("road", ["range", "auto"])
def test_no_curvature_at_all(road):
    x, y = labelled((3, 1, 4, 4), 3)
    conv = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten())
    dead = perceptron(5, 4, 3, kind=nn.ReLU)
    with torch.no_grad():
        dead[0].bias.fill_(-100)
        dead[-1].weight.zero_()
    for model, loss, pair in (
        (conv, lambda outputs, _: outputs.mean(), (x, y)),
        (nn.Linear(5, 3), lambda outputs, _: outputs.mean(), labelled((3, 5), 3)),
        (dead, "mse", labelled((3, 5), 3)),
    ):
        problem = hr.Problem(model.double(), loss, pair)
        found, full = hr.spectrum(problem, reduce=road), hr.spectrum(problem, reduce="none")
        assert found.rank == full.rank
        assert np.abs(found.eigenvalues - full.eigenvalues).max() <= full.noise_floor


def conv(samples):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 12, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(48, 40), nn.Tanh(), nn.Linear(40, 3),
    )  # fmt: skip
    return hr.Problem(net, "cross-entropy", labelled((samples, 1, 8, 8), 3))


def test_few_samples_are_searched_and_many_are_not():
    assert plan(conv(1)).road == "search"
    assert plan(conv(64)).road == "dense"
    assert plan(conv(64), "range").road == "search"
    assert plan(conv(1), "dense").road == "dense"
    few = hr.spectrum(conv(1))
    assert few.reduced_dimension <= 1.02 * few.rank + 3
    assert_same(few, hr.spectrum(conv(1), reduce="dense"))


def test_a_search_that_finds_too_much_gives_way(monkeypatch):
    problem = conv(2)
    monkeypatch.setattr(roads, "_search_cost", lambda rank, *_: 0.0 if rank < 100 else np.inf)
    found = hr.spectrum(problem)
    assert found.reduced_dimension == hr.spectrum(problem, reduce="dense").reduced_dimension


def test_too_little_memory(monkeypatch):
    problem = conv(1)
    monkeypatch.setattr(roads, "_room", lambda *_: 100)
    with pytest.raises(
        DeviceError, match="or more, and 100 dimensions is the largest that fits here"
    ):
        hr.spectrum(problem, reduce="range")
    dense = hr.spectrum(problem)  # gives way
    assert dense.reduced_dimension == hr.spectrum(problem, reduce="dense").reduced_dimension
    monkeypatch.setattr(CpuBackend, "free_memory", lambda _: 2**20)
    with pytest.raises(DeviceError):
        hr.spectrum(problem)


def test_names_of_roads():
    assert REDUCTIONS == ("auto", "range", "dense", "none")
    with pytest.raises(ConfigError, match="one search"):
        hr.spectrum(wide(2), blocks="layer", checkpoint="a")


def test_a_checkpoint(tmp_path, monkeypatch):
    path, problem = tmp_path / "a.search", conv(1)
    whole = hr.spectrum(problem, reduce="range")
    monkeypatch.setattr("hessrmt.store.search.EVERY", 0.0)
    found = hr.spectrum(problem, reduce="range", checkpoint=path)
    assert np.array_equal(found.eigenvalues, whole.eigenvalues)
    assert not path.exists()
    path.write_text("weights of weeks")
    for options in ({"reduce": "range"}, {"reduce": "none"}, {"operator": "ggn"}):
        with pytest.raises(StoreError, match="no search"):
            hr.spectrum(problem, checkpoint=path, **options)
    assert path.read_text() == "weights of weeks"


def test_the_bound_of_the_reduced_product():
    """The comparison sees a wrong direction whatever the road."""
    local = at_double(wide(3))
    local.evaluate()
    known = reference(local)
    matrix, apart = roads.smallest_hessian(
        local, reduce_problem(local), CpuBackend(), known, "range"
    )
    norm = float(torch.linalg.matrix_norm(matrix, 2))
    assert apart.residual <= 10 * local.dimension**0.5 * EPS * norm
    assert apart.rounding <= 10 * local.dimension * EPS * norm


def test_a_first_sample_that_does_not_count():
    """The rank of one sample is only a guess: a sample without a loss costs nothing but that."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, 5), nn.Tanh(), nn.Linear(5, 3)
    )
    x, y = labelled((3, 1, 8, 8), 3)
    y[0] = -100
    problem = hr.Problem(net, nn.functional.cross_entropy, (x, y))
    assert_same(hr.spectrum(problem), hr.spectrum(problem, reduce="dense"))
