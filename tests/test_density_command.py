"""``hessrmt density``: numbers against the dense spectrum, files that survive, refusals."""

import json

import h5py
import numpy as np
import pytest
import torch

import hessrmt as hr
from hessrmt.config import DensityConfig, load_settings
from hessrmt.curvature import density
from hessrmt.curvature.density import DensityPlan, complete
from hessrmt.curvature.operators import CurvatureOperator
from hessrmt.errors import ConfigError, DataError, DeviceError, StoreError
from hessrmt.plots.certification import lanczos_density
from hessrmt.problems import models
from hessrmt.runs.density import prepare, run
from hessrmt.store.density import DensityWriter

X = np.random.default_rng(0).normal(size=(9, 4))
WORDS = ["--model", "mlp2", "--batch", "40", "--probes", "4", "--steps", "12", "--device", "cpu"]


pytestmark = pytest.mark.usefixtures("products_anew")


def small_problem():
    model = models.build("logistic", (4,), 2, 0).double()
    return hr.Problem(model, "cross-entropy", (X, np.arange(9) % 2))


def settings(digits, **options):
    return load_settings(
        DensityConfig, model="mlp2", data=str(digits), batch=40, probes=4, steps=12, **options
    )


def test_json_agrees_with_the_dense_spectrum(cli, digits, tmp_path):
    extra = ["--top", 12, "--bottom", 6, "--trace", "hutch++", "--plot", "d.png"]
    done = cli("density", *WORDS, "--data", digits, *extra, "--split", "train", "--json")
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    words = ["--model", "mlp2", "--data", digits, "--split", "train", "--batch", "all"]
    assert cli("spectrum", *words, "--device", "cpu").returncode == 0
    (exact,) = hr.load(tmp_path / "spectra.h5")
    levels, edges, traced = exact.eigenvalues, answer["edges"], answer["traces"]
    assert answer["dimension"] == len(levels)
    assert answer["samples"] == 150
    assert answer["loss"] == pytest.approx(exact.loss, rel=1e-12)
    assert answer["gradient_norm"] == pytest.approx(exact.gradient_norm, rel=1e-12)
    own = np.concatenate([levels[:6], levels[-12:]])
    assert (np.abs(edges["values"] - own) <= np.array(edges["bounds"]) + exact.noise_floor).all()
    moments = [np.mean(levels**k) for k in (1, 2, 3, 4)]
    away = np.abs(np.array(answer["moments"]) - moments) / answer["moments_error"]
    assert (away < 6).all()  # 4 probes: Student's t with 3 degrees of freedom, 1 % beyond 5.8
    assert abs(traced["trace"] - levels.sum()) < 4 * traced["trace_error"] + exact.noise_floor
    assert abs(traced["square"] - levels @ levels) < 4 * traced["square_error"] + 1e-12
    assert answer["probes"] == answer["probes_planned"] == 4
    assert answer["check"] < 1e-12
    assert (tmp_path / "d.png").stat().st_size > 10_000


def test_damaged_foreign_and_missing_files(cli, digits, tmp_path):
    damaged = tmp_path / "density.h5"
    run(prepare(settings(digits)), damaged)
    damaged.write_bytes(damaged.read_bytes()[:2000])
    cli("spectrum", "--data", digits, "--model", "logistic", "--batches", 1, "--batch", 20)
    for name, words in (
        ("density.h5", "truncated"),
        ("spectra.h5", "expected 'hessrmt/density'"),
        ("nothing.h5", "there is no file"),
    ):
        with pytest.raises(StoreError, match=words):
            hr.load_density(tmp_path / name)
    with pytest.raises(StoreError, match="is a folder"):
        DensityWriter(tmp_path)


class StopError(Exception):
    pass


def test_a_run_that_died_goes_on_with_the_first_missing_probe(digits, tmp_path):
    options = {"top": 3, "trace": "xtrace"}
    whole, torn = tmp_path / "whole.h5", tmp_path / "torn.h5"
    prepared = prepare(settings(digits, **options))
    expected = run(prepared, whole)
    # streamed probes go in groups; one by one here, so that there is something to interrupt
    seen = []

    def die(phase, done, total):
        seen.append((phase, done))
        if phase == "trace":
            raise StopError

    with pytest.raises(StopError):
        run(prepared, torn, tick=die)
    half = hr.load_density(torn)
    assert len(half.quadrature) == half.planned == 4
    assert half.traces is half.edges is None
    later = []
    found = run(prepared, torn, resume=True, tick=lambda *what: later.append(what[0]))
    assert "density" not in later
    assert np.array_equal(found.quadrature.nodes, expected.quadrature.nodes)
    assert found.traces == expected.traces
    assert np.array_equal(found.edges.values, expected.edges.values)
    with h5py.File(whole) as a, h5py.File(torn) as b:
        for name in ("nodes", "weights", "done", "edges/values", "edges/residuals"):
            assert np.array_equal(a[name], b[name])
    # nothing is left to do
    again = run(prepared, torn, resume=True, tick=die)
    assert again.edges.values.tolist() == found.edges.values.tolist()
    assert not list(tmp_path.glob(".*"))


def test_probes_are_stored_one_by_one(monkeypatch):
    operator = CurvatureOperator.of(small_problem(), device="cpu")
    monkeypatch.setattr(density, "_TOGETHER", 1)
    plan = DensityPlan(probes=3, steps=4)
    stages = []
    whole = complete(operator, plan, save=stages.append)
    assert [len(stage.quadrature) for stage in stages] == [1, 2, 3]
    resumed = complete(operator, plan, stages[0])
    assert np.array_equal(resumed.quadrature.weights, whole.quadrature.weights)
    grouped = hr.density(operator, 3, 4)
    assert np.array_equal(grouped.quadrature.nodes, whole.quadrature.nodes)


def test_more_steps_than_parameters_and_one_probe(digits, tmp_path):
    config = load_settings(
        DensityConfig, model="logistic", data=str(digits), probes=1, steps=50, samples=1
    )
    found = run(prepare(config), tmp_path / "d.h5")
    assert found.dimension == 14
    assert found.samples == 1
    assert np.isnan(found.quadrature.nodes).any()
    assert lanczos_density(found).axes
    with pytest.raises(DataError, match="--top K"):
        found.spectra()


def test_a_matrix_without_levels_can_be_printed():
    flat = hr.Problem(torch.nn.Linear(4, 1).double(), lambda out, _: out.mean(), (X, X))
    found = hr.density(flat, 1, 2, top=1).to_dict()
    assert json.loads(json.dumps(found))["edges"]["values"] == []


def test_memory_is_refused_before_the_work(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(density, "usable_memory", lambda _: 10_000)
    with pytest.raises(DeviceError, match="fewer steps"):
        run(prepare(settings(digits)), tmp_path / "d.h5")
    assert not (tmp_path / "d.h5").exists()


def test_plans_are_checked_before_the_work():
    problem = small_problem()
    for options in ({"law": "x"}, {"trace": "x"}, {"top": 11}, {"steps": 0}, {"probes": True}):
        with pytest.raises(ConfigError):
            hr.density(problem, **options)
