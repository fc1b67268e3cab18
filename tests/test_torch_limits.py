"""What torch does wrongly, in place or not at all, in networks that people have."""

import numpy as np
import pytest
import torch
from samples import by_double_backward
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrize, prune

import hessrmt as hr
from hessrmt.errors import ProblemError

EPS = float(np.finfo(np.float64).eps)


def agree(problem, H):
    """Spectrum, repeated products and edge of the density against the matrix."""
    expected = np.linalg.eigvalsh(((H + H.T) / 2).numpy())
    n, norm = len(expected), float(np.abs(expected).max())
    allowed = 50 * n * EPS * norm  # three ways of differentiating, and of adding up
    assert np.abs(hr.spectrum(problem).eigenvalues - expected).max() <= allowed
    operator = hr.CurvatureOperator.of(problem)
    v = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for _ in range(3):
        gap = (operator(v) - v @ H).norm(dim=1) / v.norm(dim=1)
        assert float(gap.max()) <= allowed
    edges = hr.edge_levels(problem, top=1)
    assert abs(edges.values[-1] - expected[-1]) <= edges.bounds[-1] + allowed


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.last = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.net(x)[0][:, -1])


class Accumulates(nn.Module):
    """Writes into a tensor that it made, as many hand-written networks do."""

    def __init__(self, way):
        super().__init__()
        self.first, self.last, self.way = nn.Linear(6, 4), nn.Linear(4, 3), way

    def forward(self, x):
        hidden = torch.tanh(self.first(x.flatten(1)))
        if self.way == "sum":
            total = torch.zeros(len(x), 4, dtype=x.dtype)
            for k in range(2):
                total += hidden * (k + 1)
            hidden = total
        elif self.way == "multiply":
            hidden = hidden.clone()
            hidden.mul_(x.flatten(1)[:, :4])
        else:
            hidden = F.silu(hidden * 1.0, inplace=True)
        return self.last(hidden)


@pytest.mark.parametrize("kind", ["LSTM", "sum", "multiply", "silu"])
def test_products_are_right_and_the_same_every_time(kind):
    torch.manual_seed(0)
    model = (Recurrent() if kind == "LSTM" else Accumulates(kind)).double()
    x, y = torch.randn(5, 3, 2, dtype=torch.float64), torch.arange(5) % 3
    H = by_double_backward(model, F.cross_entropy, x, y)
    agree(hr.Problem(model, "cross-entropy", (x, y)), H)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.MSELoss(reduction="sum"), F.mse_loss])
def test_mean_squared_error_of_torch(loss):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(9, 5, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    problem = hr.Problem(model, loss, (x, y))
    agree(problem, by_double_backward(model, loss, x, y))
    found = hr.spectrum(problem, operator="ggn")
    summed = hr.spectrum(hr.Problem(model, "mse", (x, y)), operator="ggn")  # over outputs
    factor = 1 / 9 if getattr(loss, "reduction", "") == "sum" else 3
    assert found.rank == summed.rank
    gap = np.abs(factor * found.eigenvalues - summed.eigenvalues).max()
    assert gap <= 10 * summed.dimension * EPS * summed.eigenvalues.max()
    with pytest.raises(ProblemError, match=r"\(9, 1\) against targets of shape \(9,\)"):
        hr.spectrum(hr.Problem(nn.Linear(5, 1).double(), loss, (x, y[:, 0])))


class Tied(nn.Module):
    """A table with a row for padding, which the last layer uses as any other."""

    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(5, 3, padding_idx=0), nn.Linear(3, 3)

    def forward(self, ids):
        return torch.tanh(self.layer(self.table(ids).sum(1))) @ self.table.weight.T


@pytest.mark.parametrize("tied", [False, True])
def test_a_row_for_padding_is_a_constant(tied):
    torch.manual_seed(0)
    table = nn.Embedding(5, 3, padding_idx=0)
    model = Tied() if tied else nn.Sequential(table, nn.Flatten(), nn.Tanh(), nn.Linear(6, 3))
    model = model.double()
    if not tied:
        with torch.no_grad():
            table.weight[0] = 0.7
    ids, y = torch.tensor([[0, 1], [2, 0], [3, 4], [0, 0]]), torch.arange(4) % 3
    H = by_double_backward(model, F.cross_entropy, ids, y)
    problem = hr.Problem(model, "cross-entropy", (ids, y))
    agree(problem, H)
    assert hr.spectrum(problem, operator="ggn").check < 100 * EPS
    assert tied or not H[:3].any()


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_embeddings_that_are_no_function_are_refused(kind, options):
    model = nn.Sequential(kind(5, 3, **options), nn.Flatten(), nn.LazyLinear(3))
    ids, y = torch.tensor([[0, 1], [2, 0], [3, 4], [0, 0]]), torch.arange(4) % 3
    model(ids)
    before = model[0].weight.clone()
    with pytest.raises(ProblemError, match="Embedding with max_norm"):
        hr.spectrum(hr.Problem(model, "cross-entropy", (ids, y)))
    assert torch.equal(model[0].weight, before)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_tensors_that_were_computed_from_others_can_be_copied():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    prune.random_unstructured(model[0], "weight", 0.4)
    data = torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 3
    exact = np.linalg.eigvalsh(by_double_backward(model, F.cross_entropy, *data))
    found = hr.spectrum(hr.Problem(model, "cross-entropy", data)).eigenvalues
    assert np.abs(found - exact).max() < 1e-13
    prune.remove(model[0], "weight")
    parametrize.register_parametrization(model[2], "weight", Doubled())
    assert hr.spectrum(hr.Problem(model, "cross-entropy", data)).rank > 0
