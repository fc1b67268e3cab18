"""What every result can do: shown, as plain values and tables, in files and back, drawn."""

import dataclasses
import importlib
import json
import pkgutil
from functools import cache
from pathlib import Path

import drawn_families
import h5py
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch.nn import functional

import hessrmt as hr
from hessrmt import rng
from hessrmt.config import SimulateConfig
from hessrmt.curvature.stochastic import quadrature, traces
from hessrmt.errors import DataError, StoreError
from hessrmt.experiments.averaging_theory import IterateRuns
from hessrmt.experiments.controls import Cell, Cells
from hessrmt.experiments.experiment import ExperimentResult, Kept
from hessrmt.experiments.puzzles import lines
from hessrmt.generalization import attained, bias_free, fits, rademacher_bound
from hessrmt.generalization.approximation import study
from hessrmt.generalization.batch_norm import batch_norm_flow
from hessrmt.generalization.flow import gradient_flow
from hessrmt.generalization.polynomials import realize, squares
from hessrmt.generalization.stability import leave_one_out, square_loss_study
from hessrmt.generalization.stationary import stationary_sets
from hessrmt.lossmodel.sampler import sampled_density
from hessrmt.records import BlockSpectra, Provenance, Spectra, Spectrum
from hessrmt.results import Result
from hessrmt.runs.capacity import Series
from hessrmt.runs.normalize import NormalizeResult, TableFit, TablePoint
from hessrmt.runs.simulate import summary
from hessrmt.runs.training import Checkpoint, TrainResult
from hessrmt.store.history import CAPACITY, NETWORK, TRAINING, History


@dataclasses.dataclass(frozen=True)
class _Curve(Result, axes={"point": "x y", "point row": "table"}, derived="top", omitted="note"):
    x: np.ndarray
    y: torch.Tensor
    table: np.ndarray
    name: str
    count: int
    note: object = None

    @property
    def top(self) -> float:
        return float(self.y.max())


@pytest.fixture
def curve():
    y = torch.tensor([0.5, float("nan"), 2.0]).double()
    return _Curve(np.arange(3), y, np.ones((3, 2)), "<b>", 1234)


def spectrum(n=6, shift=0.0):
    levels = np.linspace(-1, 2, n) + shift
    return Spectrum(levels, 1e-12, n, n, loss=0.5, gradient_norm=0.1, solver="lapack", check=1e-15)


def spectra():
    items = (spectrum(), spectrum(shift=0.5))
    return Spectra(items, np.arange(4).reshape(2, 2), planned=2, provenance=items[0].provenance)


def networks():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    return hr.Problem(model, "cross-entropy", (torch.randn(8, 3), torch.arange(8) % 2))


ROWS = np.sort(np.random.default_rng(0).normal(size=(4, 30)))


def unfolded(method="window"):
    return hr.levels.unfold_selection(hr.levels.select(ROWS), method)


def capacity():
    weights = np.random.default_rng(0).standard_t(3, (20, 30))
    return hr.capacity.analyze({"w": weights, "b": np.ones(3)}, compare_with=["exponential"])


TAIL = np.random.default_rng(0).pareto(1.5, 50)


def classified():
    with rng.torch_seeded(0, "classified"):
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    return model, torch.eye(3, dtype=torch.float64), torch.tensor([0, 1, 1])


def monitored():
    model, x, y = classified()
    monitor = hr.generalization.NormalizedLoss(model.double())
    monitor(x, y)
    return monitor.history[0]


def evaluated():
    model, x, y = classified()
    return hr.generalization.evaluate(model.double(), [(x, y)], functional.cross_entropy, 2.0)


def flow():
    layers = bias_free.initial_layers([2, 1])
    return gradient_flow(layers, *bias_free.linear_task(5, 2), log_time=5, saved=9)


def budgets():
    return fits.fit_budgets([1, 2, 4, 8, 16], [0.9, 0.71, 0.52, 0.41, 0.38])


def sampled():
    cov = hr.lossmodel.rbf()
    return sampled_density(hr.lossmodel.sample_spectra(cov, 9, 4, [20.0]), cov, 9, [20.0])


def family_line():
    labels = ("natural", "random")
    (line,) = lines([drawn_families.entry(name=name, labels=name) for name in labels])
    return line


def history():
    network, training = ({name: np.ones(2) for name in names} for names in (NETWORK, TRAINING))
    measured = {name: np.array([[2.0], [np.nan]]) for name in CAPACITY}
    return History(np.array([0, 2]), spectra(), ("0.weight",), measured, network, training)


def complexity():
    return rademacher_bound(torch.nn.Sequential(torch.nn.Linear(2, 3)), torch.ones(4, 2))


def table_fit():
    point = TablePoint("a", 1.0, None, 2.0, 1.5, 2.5, beyond=False)
    line = fits.fit_line([1, 2, 3, 4], [1, 3, 2, 5])
    other = TablePoint("b", 2.0, 3.0, 2.0, 1.5, 2.5, beyond=False)
    return TableFit("table.csv", ("train", "test"), line, 0.95, (point, other))


def tracked():
    tracker = hr.Tracker(networks(), what=("edge", "trace", "density"), products=12)
    tracker(0, lr=0.1)
    tracker(1, loss=2.0)
    return tracker.track


def checkpoint():
    curves = np.array([1, 2]), np.array([0.1, 0.1]), np.array([2.0, 1.5])
    return Checkpoint(*curves, numbers=7, provenance=Provenance())


MADE = {
    "track": tracked,
    "landscape": lambda: hr.landscape(networks(), 2, points=3),
    "checkpoint": checkpoint,
    "training": lambda: TrainResult(
        3, 0.5, 0.9, None, None, 1.5, Path("w.pt"), "00ff", "made up", ("a note",), Path("h.h5")
    ),
    "line fit": lambda: fits.fit_line([1, 2, 3, 4], [1, 3, 2, 5]),
    "budget fit": budgets,
    "complexity": complexity,
    "error bound": lambda: complexity().error_bound(np.arange(4.0), 3),
    "attained": lambda: attained(torch.nn.Linear(2, 3, bias=False), torch.eye(2), steps=2),
    "table fit": table_fit,
    "table point": lambda: table_fit().points[0],
    "budget law": lambda: next(iter(budgets().laws.values())),
    "normalized network": lambda: hr.generalization.normalize(*classified()[:2]),
    "margins": lambda: hr.generalization.margins(*classified()),
    "evaluation": evaluated,
    "measurement": monitored,
    "flow": flow,
    "maximum margin": lambda: bias_free.maximum_margin(*bias_free.linear_task(5, 2)),
    "batch-normalisation flow": lambda: batch_norm_flow(
        bias_free.initial_layers([2, 2, 1]), *bias_free.linear_task(5, 2), log_time=1, saved=3
    ),
    "stationary sets": lambda: stationary_sets(
        [2, 1], *bias_free.linear_task(4, 2), starts=1, log_time=1, flows=("descent",)
    ),
    "left out": lambda: leave_one_out(
        bias_free.initial_layers([2, 1]),
        *bias_free.linear_task(3, 2),
        bias_free.linear_task(9, 2),
        log_time=1,
        saved=3,
    ),
    "least squares": lambda: square_loss_study(4, (2, 8), draws=2),
    "polynomials": lambda: realize("shallow", 2, 1, scales=[0.5, 0.25], polynomials=2),
    "squares": lambda: squares(3),
    "part of an experiment": lambda: Kept({"seed": 1}, squares(2)),
    "experiment": lambda: ExperimentResult(
        "kind", "title", "small", {"all": "nothing"}, [{"a": "1"}, {"a": "2"}], [{"a": 1}, {"a": 2}]
    ),
    "approximation study": lambda: study("sine", 2, (1, 2), seeds=2, samples=32, iterations=2),
    "sampled density": sampled,
    "moments of iterates": lambda: hr.lossmodel.iterate_moments([0.5, 1], [1, 1], 0.1, 9, 1.0),
    "runs of iterates": lambda: IterateRuns(*np.ones((6, 3))),
    "family": lambda: drawn_families.entry().result,
    "family line": family_line,
    "random point": lambda: family_line().random_residuals[0],
    "history": history,
    "spectrum": spectrum,
    "spectra": spectra,
    "spectra of blocks": lambda: BlockSpectra({"0": spectrum(), "2": spectrum(9)}),
    "spectra of blocks, several": lambda: BlockSpectra({"0": spectra(), "": spectra()}),
    "simulated": lambda: summary(SimulateConfig(dimension=6, samples=2), spectra()),
    "slq": lambda: hr.density(networks(), 2, 4, top=2, trace="xtrace", trace_products=6),
    "quadrature": lambda: quadrature(networks(), 1, 4),
    "curve": lambda: quadrature(networks(), 2, 4).density(50),
    "traces": lambda: traces(networks(), 6),
    "extreme eigenvalues": lambda: hr.extremal_eigenvalues(networks(), top=2),
    "eigenpairs": lambda: hr.eigsh(networks(), 2),
    "all eigenvalues of a window": lambda: hr.eigsh(networks(), window=(0.01, None)),
    "window": lambda: hr.eigsh(networks(), window=(0.01, None)).window,
    "level statistics": lambda: hr.levels.analyze(ROWS, surrogates=0, orders=2),
    "levels of higher order": lambda: hr.levels.analyze(ROWS, surrogates=0, orders=2).higher[0],
    "fit of a law": lambda: hr.levels.analyze(ROWS, surrogates=0).laws["gue"],
    "selected levels": lambda: hr.levels.select(ROWS),
    "pooled levels": lambda: hr.levels.pooled(list(ROWS), rotate=False),
    "unfolded levels": unfolded,
    "levels unfolded by a pool": lambda: unfolded("pooled"),
    "fitted parameter": lambda: hr.levels.brody(unfolded().spacings),
    "spacings": lambda: hr.levels.spacing_histogram(unfolded(), surrogates=3),
    "ratios": lambda: hr.levels.ratio_histogram(hr.levels.select(ROWS)),
    "long-range statistic": lambda: hr.levels.long_range(unfolded(), "rigidity"),
    "density": lambda: hr.levels.density_histograms({"x": list(ROWS)})["x"],
    "levels per decade": lambda: hr.levels.decade_histograms({"x": list(ROWS)})["x"],
    "normalised": lambda: NormalizeResult(
        evaluated(), None, {"0": 2.0}, 2.0, 1e-16, (), "", "cpu", ("a note",)
    ),
    "capacity": capacity,
    "networks": lambda: Series((capacity(),), {"test": (0.9,)}, (), ()),
    "networks layer by layer": lambda: hr.capacity.side_by_side({"a": capacity(), "b": capacity()}),
    "layer": lambda: capacity().layers[0],
    "matrix": lambda: capacity().layers[0].matrices[0],
    "power law": lambda: hr.capacity.fit(TAIL),
    "scan of power laws": lambda: hr.capacity.scan(TAIL),
    "comparison": lambda: hr.capacity.compare(TAIL, hr.capacity.fit(TAIL)),
    "bulk": lambda: hr.capacity.BulkFit(1.0, 0.1, 2.0, 2.1, 3, 0.5, 0.01),
    "correlation": lambda: hr.capacity.correlate([1, 2, 3], [3, 1, 2]),
    "control": lambda: Cell("GOE", True, 4, 100, "none", 0, np.array([0.2, 0.7]), 0.5),
    "controls": lambda: Cells((Cell("GOE", False, 1, 9, "window", 0, np.array([0.2]), None, "x"),)),
}
"""One of every kind of result that public functions return."""


@cache
def made(name):
    """Results are frozen: one of each is enough for a process."""
    return MADE[name]()


@pytest.fixture(params=MADE)
def result(request):
    return made(request.param)


def same(one, other):
    """Whether two plain values are equal; NaN is equal to itself."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def test_every_result_comes_back_from_its_file(result, tmp_path):
    result.save(tmp_path / "r.h5")
    back = hr.load(tmp_path / "r.h5")
    # a file of spectra with one row; batch and phases unknown
    if isinstance(result, Spectrum):
        (back,) = back
    if isinstance(result, BlockSpectra) and isinstance(next(iter(result.values())), Spectrum):
        back = BlockSpectra({name: part[0] for name, part in back.items()})
    ours, theirs = result.to_dict(), back.to_dict()
    for plain in (ours, theirs):
        for part in [plain, *(x for x in plain.values() if isinstance(x, dict))]:
            part.pop("provenance", None)
            for item in part.get("items", []):
                item.pop("provenance", None)
    assert same(ours, theirs)


def test_every_result_has_plain_values_tables_and_words(result, tmp_path):
    pandas, xarray = pytest.importorskip("pandas"), pytest.importorskip("xarray")
    json.dumps(result.to_dict(), allow_nan=False)
    rows = result.rows()
    assert len({tuple(row) for row in rows}) <= 1
    table = result.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert len(table) == len(rows)
    found = result.to_xarray()
    assert isinstance(found, xarray.Dataset)
    for name, value in vars(result).items():
        if isinstance(value, np.ndarray) and value.ndim and name in result.to_dict():
            np.testing.assert_array_equal(found[name], value)
    result.save(tmp_path / "r.json")
    json.loads((tmp_path / "r.json").read_text())
    result.save(tmp_path / "r.csv")
    assert len((tmp_path / "r.csv").read_text().splitlines()) == len(rows) + bool(rows)
    result.save(tmp_path / "r.md")
    lines = (tmp_path / "r.md").read_text().splitlines()
    assert len(lines) == len(rows) + 2
    # columns are parted by bars that are no part of a cell
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1
    assert len(repr(result)) < 600
    assert "\n" not in repr(result)
    assert result._repr_html_().startswith("<table>")


def test_every_result_is_drawn_or_says_that_it_has_no_curve(result):
    if result._picture or len(result.rows()) > 1:
        assert result.plot().axes
        figure = Figure()
        assert result.plot(ax=figure.subplots()) is figure
    else:
        with pytest.raises(DataError, match="no curve"):
            result.plot()


def test_every_public_result_is_tried_here():
    for module in pkgutil.walk_packages(hr.__path__, "hessrmt."):
        importlib.import_module(module.name)
    kinds, waiting = set(), [Result]
    while waiting:
        found = waiting.pop().__subclasses__()
        waiting += found
        kinds |= {
            kind
            for kind in found
            if (dataclasses.is_dataclass(kind) or issubclass(kind, tuple | dict))
            and kind.__module__.startswith("hessrmt.")
        }
    tried = {type(make()) for make in MADE.values()}
    assert not {kind.__name__ for kind in kinds - tried} - {"_Found"}  # base of two others


def test_plain_values_have_derived_ones_and_lack_what_is_left_out(curve):
    plain = curve.to_dict()
    assert list(plain) == ["x", "y", "table", "name", "count", "top"]
    assert plain["x"] == [0, 1, 2]


def test_table_is_that_of_the_first_axis(curve, tmp_path):
    assert [row["y"] for row in curve.rows()][::2] == [0.5, 2.0]
    curve.save(tmp_path / "c.csv")
    assert (tmp_path / "c.csv").read_text() == "x,y\n0,0.5\n1,nan\n2,2.0\n"
    curve.save(tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["y"] == [0.5, None, 2.0]


def test_axes_have_names_and_other_values_are_attributes(curve):
    pytest.importorskip("xarray")
    found = curve.to_xarray()
    assert found["table"].dims == ("point", "row")
    assert found.attrs["count"] == 1234


def test_a_fit_is_a_tuple_too():
    fit = hr.levels.brody(unfolded().spacings)
    value, error, _ = fit
    assert (value, error) == fit[:2] == (fit.value, fit.error)
    assert isinstance(fit, tuple)
    assert fit == tuple(fit) == fit._replace()
    assert json.loads(json.dumps(fit)) == list(fit)


def test_files_of_a_kind_of_their_own_are_read_as_such(tmp_path):
    density = hr.density(networks(), 2, 4)
    density.save(tmp_path / "d.h5")
    assert same(
        hr.load_density(tmp_path / "d.h5").quadrature.to_dict(), density.quadrature.to_dict()
    )
    kept = history()
    kept.save(tmp_path / "h.h5")
    assert same(hr.load_history(tmp_path / "h.h5").to_dict(), kept.to_dict())


def test_panels_find_room_in_one_pair_of_axes():
    figure = Figure()
    left, _ = figure.subplots(1, 2)
    pairs = hr.eigsh(networks(), 2)
    assert pairs.plot(ax=left) is figure
    assert len(figure.axes) == 1 + len(pairs.plot().axes)


def test_a_spectrum_of_nothing_is_shown():
    assert "eigenvalues=0" in repr(Spectrum(np.zeros(0), 0.0, 0, 0))


def test_words_are_short_and_escaped(curve):
    assert repr(curve).startswith("_Curve(x=3 values, 0 to 2, y=3 values, 0.5 to 2, ")
    assert "&lt;b&gt;" in curve._repr_html_()


def test_a_file_is_kept_unless_it_is_to_be_replaced(curve, tmp_path):
    for ending in ("json", "csv", "h5"):
        path = tmp_path / f"c.{ending}"
        curve.save(path)
        before = path.read_bytes()
        with pytest.raises(StoreError, match="exists"):
            curve.save(path)
        assert path.read_bytes() == before
        curve.save(path, overwrite=True)
    with pytest.raises(DataError, match=r"\.csv, \.h5, \.hdf5, \.json, \.md"):
        curve.save(tmp_path / "c.txt")


@pytest.mark.parametrize("value", [5, [1], {"items": []}])
def test_a_file_without_a_result_is_refused(tmp_path, value):
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file.attrs.update(schema="hessrmt/result", schema_version=1)
        file["value"] = np.bytes_(json.dumps(value).encode())
    with pytest.raises(StoreError, match="holds no result"):
        hr.load(tmp_path / "r.h5")


@pytest.mark.parametrize("name", ["os:system", "hessrmt.errors:DataError", "hessrmt.no:such"])
def test_a_file_cannot_name_what_is_no_result(tmp_path, name):
    spectra().save(tmp_path / "s.h5")
    hr.ensembles  # noqa: B018
    path = tmp_path / "r.h5"
    with h5py.File(path, "w") as file:
        file.attrs.update(schema="hessrmt/result", schema_version=1)
        file["value"] = np.bytes_(json.dumps({"class": name, "fields": {}}).encode())
    with pytest.raises(StoreError, match="damaged"):
        hr.load(path)
