"""How often the host waits for a device: fixed numbers a batch, a step and a block."""

import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from dense_operator import hessian_like, with_spectrum
from far_device import PLACE, Far, FarBackend, counting
from samples import labelled
from samples import network as perceptron
from torch import nn

import hessrmt as hr
from hessrmt.backend.cpu import CpuBackend
from hessrmt.config import SpectrumConfig
from hessrmt.curvature import operators, spectrum
from hessrmt.curvature.range import range_of
from hessrmt.curvature.rounding import gaussian
from hessrmt.curvature.stochastic import quadrature
from hessrmt.runs import spectrum as run_of_spectra


def far(x):
    return torch.as_tensor(x).to(PLACE, non_blocking=True)


WAITING = {
    "float": float,
    "bool": bool,
    "item": lambda x: x.item(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "copy": lambda x: torch.empty(()).copy_(x),
    "nonzero": lambda x: x[None].nonzero(),
    "mask": lambda x: x[None][x[None] > 0],
    "selected": lambda x: torch.masked_select(x, x > 0),
    "equal": lambda x: torch.equal(x, x),
    "unique": lambda x: torch.unique(x[None]),
    "eigenvalues": lambda x: torch.linalg.eigh(x[None, None]),
    "checked": lambda x: torch.linalg.cholesky(x[None, None]),
}
GOING_ON = {
    "sum": lambda x: x + 1,
    "norm": lambda x: x[None].norm(),
    "places": lambda x: x[None][torch.zeros(1, dtype=torch.int64, device=PLACE)],
    "triangle": lambda x: torch.linalg.qr(x[None, None]),
    "unchecked": lambda x: torch.linalg.cholesky_ex(x[None, None]),
    "sent": lambda x: x + far(np.zeros(3)),
    "written": lambda x: x[None].clone().index_fill_(0, torch.zeros(1, dtype=int, device=PLACE), 2),
    "derivative": torch.func.grad(lambda y: y**3),
    "rows": lambda x: torch.func.vmap(torch.sin)(x[None]),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_counted(name):
    with counting() as counts:
        x = far(np.float64(2.0))
        assert not counts.total
        WAITING[name](x)
    assert counts.total == 1


@pytest.mark.parametrize("name", GOING_ON)
def test_what_does_not_wait_is_not(name):
    with counting() as counts:
        assert isinstance(_first(GOING_ON[name](far(np.float64(2.0)))), Far)
    assert not counts.total
    assert not counts.uploads


def _first(found):
    return found[0] if isinstance(found, tuple) else found


def test_the_device_is_as_strict_as_a_gpu():
    with counting() as counts:
        x = far(np.ones(3))
        with pytest.raises(AssertionError, match="two places"):
            x + torch.ones(3)
        counts.wrong.clear()
        x.to("cpu"), torch.ones(3).to(PLACE), torch.tensor([1.0], device=PLACE)
    assert counts.total == 1
    assert sum(counts.uploads.values()) == 2


def counted(problem, **options):
    """The spectrum by way of the device, and what was waited for."""
    with counting() as counts:
        found = spectrum.compute(problem, FarBackend(), "float64", "hessian", **options)
    same = spectrum.compute(problem, CpuBackend(), "float64", "hessian", **options)
    apart = np.abs(found.eigenvalues - same.eigenvalues).max()
    assert apart <= found.noise_floor + same.noise_floor
    assert found.reduced_dimension == same.reduced_dimension
    return counts


def classifier(samples, *widths, kind=nn.ReLU):
    data = labelled((samples, widths[0]), widths[-1])
    return hr.Problem(perceptron(*widths, kind=kind), "cross-entropy", data)


def convolutions(samples, channels, depth):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, channels, 2)]
    for _ in range(depth):
        layers += [nn.Tanh(), nn.Conv2d(channels, channels, 2)]
    side = 6 - depth - 1
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side**2, 3))
    return hr.Problem(net, "cross-entropy", labelled((samples, 1, 6, 6), 3))


ROADS = {
    "factors": ({"reduce": "auto"}, classifier(30, 5, 4, 3), classifier(30, 9, 8, 7, 6, 5), 17),
    "products": ({"reduce": "dense"}, convolutions(40, 2, 1), convolutions(40, 3, 3), 16),
}
MORE_ROADS = {
    "range of a layer": (
        {"reduce": "auto"},
        classifier(2, 3, 2, 20, 30, 3),
        classifier(4, 4, 3, 25, 30, 4, 3),
        20,
    ),
    "full": ({"reduce": "none"}, classifier(4, 5, 4, 3), classifier(30, 9, 8, 7, 6, 5), 12),
}


@pytest.mark.parametrize(
    ("options", "small", "large", "most"),
    [*ROADS.values(), *(pytest.param(*r, marks=pytest.mark.slow) for r in MORE_ROADS.values())],
    ids=[*ROADS, *MORE_ROADS],
)
def test_waits_of_a_batch_do_not_grow_with_the_network(options, small, large, most):
    few, many = (counted(problem, **options) for problem in (small, large))
    assert many.waits == few.waits
    assert many.total <= most, many.waits
    for problem, counts in ((small, few), (large, many)):  # each of its tensors once, and no more
        tensors = len(problem.names) + len(problem.batch.tensors())
        assert sum(counts.uploads.values()) == tensors, counts.uploads


@pytest.mark.slow
def test_waits_of_a_gauss_newton_matrix_do_not_grow_with_the_network():
    found = []
    for widths in ((6, 4, 4, 3), (6, *[4] * 12, 3)):
        with counting() as counts:
            spectrum.compute(classifier(5, *widths), FarBackend(), "float64", "ggn")
        found.append(counts.waits)
    assert found[0] == found[1]


def test_the_span_of_inputs_and_slopes_waits_twice_a_layer():
    """For the eigenvectors of a layer's inner products, and for how many of them count."""
    for widths in ((40, 60, 4), (40, 60, 60, 4)):
        counts = counted(classifier(3, *widths), reduce="range")
        of_layers = [
            n for (line, _), n in counts.waits.items() if line.startswith("curvature/spanned")
        ]
        assert sum(of_layers) == 2 * (len(widths) - 1) + 2, counts.waits
        assert counts.total - sum(of_layers) <= 20


class FarOperator(hr.Operator):
    """Products with a matrix on the device; what was waited for when each was asked for."""

    def __init__(self, matrix, counts):
        self.matrix, self._counts, self.seen = far(matrix), counts, []
        self.dimension, self.dtype, self.device = len(matrix), torch.float64, PLACE

    def __call__(self, block):
        self.seen.append(self._counts.total)
        return block @ self.matrix


def between_products(search, matrix):
    """What was waited for between the products of a search, how often each number of times."""
    with counting() as counts:
        operator = FarOperator(matrix, counts)
        search(operator)
    return Counter(np.diff(operator.seen).tolist()), counts


@pytest.mark.parametrize("size", [200, 400])
def test_a_step_of_lanczos_waits_once(size):
    matrix = with_spectrum(hessian_like(size, zeros=size // 3))
    waits, counts = between_products(lambda operator: hr.eigsh(operator, 4), matrix)
    steps = waits.total()
    # a second pass of orthogonalisation takes one more; a turn to a random direction two
    assert waits[1] >= 0.9 * steps
    assert max(waits) <= 4, counts.waits


@pytest.mark.parametrize("probes", [1, 4])
def test_a_step_of_several_probes_waits_once(probes):
    matrix = with_spectrum(hessian_like(200, zeros=50))
    waits, counts = between_products(lambda operator: quadrature(operator, probes, 30), matrix)
    assert waits == {1: waits.total()}, counts.waits


@pytest.mark.parametrize("size", [200, 400])
def test_a_block_of_a_window_waits_a_fixed_number_of_times(size):
    matrix = with_spectrum(hessian_like(size, zeros=size // 3))
    waits, counts = between_products(
        lambda operator: hr.eigsh(operator, window=(0.5, None)), matrix
    )
    # two for a pass of orthogonalisation, which is repeated where little is left
    assert max(waits) <= 8, counts.waits
    assert waits.total() >= 20


@pytest.mark.parametrize("rank", [100, 400])
def test_a_block_of_the_range_waits_a_fixed_number_of_times(rank):
    vectors = torch.linalg.qr(gaussian((600, rank), torch.zeros(0).double(), "waits")).Q
    seen = []
    with counting() as counts:
        there, values = far(vectors), far(np.linspace(1, 2, rank))

        def product(rows):
            seen.append(counts.total)
            return (rows @ there * values) @ there.T

        found = range_of(product, far(np.zeros(600)))
    assert found.complete
    assert len(found) >= rank
    assert max(np.diff(seen)) <= 5, counts.waits


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_products_with_a_network_add_no_waits(monkeypatch, operator):
    monkeypatch.setattr(operators, "select", lambda _: FarBackend())
    with counting() as counts:
        matrix = operators.CurvatureOperator.of(classifier(30, 9, 8, 5), operator)
        before = counts.total
        matrix.unchecked(far(np.ones((2, matrix.dimension))))
        assert counts.total == before
        matrix(far(np.ones((2, matrix.dimension))))
    assert counts.total == before + 1


def test_batch_0_is_examined_once(tmp_path, monkeypatch, tiny_npz):
    seen = Counter()
    for name in ("reduce_problem", "require_road", "smallest_hessian"):
        real = getattr(spectrum, name)
        monkeypatch.setattr(
            spectrum,
            name,
            lambda *a, real=real, name=name, **o: seen.update([name]) or real(*a, **o),
        )
    kept, freed, real = [], [], run_of_spectra.require_feasible

    def noted(*arguments):
        found = real(*arguments)
        kept.append(weakref.ref(found))
        return found

    monkeypatch.setattr(run_of_spectra, "require_feasible", noted)
    config = SpectrumConfig(model="logistic", data=str(tiny_npz), batch=10, batches=2, device="cpu")
    prepared, out = run_of_spectra.prepare(config), tmp_path / "out.h5"
    run_of_spectra.run(prepared, out, finished=lambda *_: freed.append(kept[0]() is None))
    assert freed == [True, True]  # nothing of it is held once batch 0 is stored
    assert seen == {"reduce_problem": 2, "require_road": 1, "smallest_hessian": 2}
    run_of_spectra.run(prepared, out, resume=True)  # looked at, and nothing is left to compute
    assert seen == {"reduce_problem": 3, "require_road": 2, "smallest_hessian": 2}
