"""Commands with ``--device cuda`` give what they give with ``--device cpu``.

The device is main memory and its kernels run through fake_cupy, from the sources of csrc/; whatever
falls back to another route warns, and that is an error.
"""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from experiment_samples import write_settings
from golden_samples import DOUBLE, differences
from level_samples import write_file
from test_capacity import heavy

from hessrmt.backend import solvers
from hessrmt.backend.cuda import ONE_BLOCK, TWO_STAGE, TWO_STAGES
from hessrmt.ensembles import goe
from hessrmt.levels import banks
from hessrmt.store.spectra import load

pytest_plugins = ["fake_gpu"]

EPS = float(np.finfo(float).eps)
WHERE = {"device", "solver", "created", "config", "file"}
"""What says where and when it was computed."""


@pytest.fixture
def both(cli, cupy):
    """The JSON of a command on the CPU and on the device, and the kernels that it compiled.

    In its words ``DEVICE`` stands for either.
    """

    def run(*words):
        found = []
        for device in ("cpu", "cuda"):
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=".* not used: ", category=RuntimeWarning)
                here = (str(word).replace("DEVICE", device) for word in words)
                result = cli(*here, "--device", device, "--json")
            assert result.returncode == 0, result.stderr
            found.append(json.loads(result.stdout))
            if device == "cpu":
                assert not cupy.compiled
        compiled, cupy.compiled = cupy.compiled, []
        return *found, {name for names in compiled for name in names}

    return run


def assert_same(here, there):
    pair = ({k: v for k, v in found.items() if k not in WHERE} for found in (here, there))
    assert not [*differences(*pair, DOUBLE)]


SIMULATED = {
    "tridiagonal": ((), "tridiagonal beta-ensemble (Sturm", {"sturm_bisect_f64"}),
    "band": (
        ("--outlier-values", "30,-20,25"),
        "GOE as a band of half-width 3 (bulge chase, Sturm",
        {"bulge_chase_f64", "sturm_bisect_f64"},
    ),
    "dense": (("--method", "dense"), f"dense, {ONE_BLOCK}", {"goe_fill_f64", "batched_small_f64"}),
}


@pytest.mark.parametrize("kind", SIMULATED)
def test_simulate(both, tmp_path, kind):
    words, solver, kernels = SIMULATED[kind]
    n = 26
    out = ("--dimension", n, "--samples", 5, "--degenerate", 2, "--out", "DEVICE.h5")
    here, there, compiled = both("simulate", *out, *words)
    assert kernels <= compiled
    assert there["solver"].startswith(solver)
    assert "LAPACK" in here["solver"]
    assert "LAPACK" not in there["solver"]
    one, other = (load(tmp_path / f"{name}.h5").eigenvalues for name in ("cpu", "cuda"))
    assert (one == 0).sum() == (other == 0).sum() == 5 * 2
    # two backward stable solvers (cuda_samples.close), and the last bits of a matrix that is drawn
    np.testing.assert_allclose(other, one, rtol=0, atol=20 * n * EPS * np.abs(one).max())
    assert_same(here, there)


def test_simulate_by_the_batched_stages(both, memory, monkeypatch):
    """Where cuSOLVER has no solver for batches, and the matrices are too large for one block."""
    memory.cusolver.clear()
    monkeypatch.setattr(solvers, "SMALL_LIMIT", 7)
    out = ("--dimension", 12, "--samples", 3, "--method", "dense", "--out", "DEVICE.h5")
    here, there, compiled = both("simulate", *out)
    assert {"goe_fill_f64", "panel_batch_f64", "bulge_chase_f64", "sturm_bisect_f64"} <= compiled
    assert there["solver"] == f"dense, {TWO_STAGES}"
    assert_same(here, there)


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_spectrum(both, tmp_path, monkeypatch, tiny_npz, operator):
    monkeypatch.setenv("HESSRMT_SOLVER", "two-stage")
    words = ("--model", "logistic", "--data", tiny_npz, "--batch", 4, "--operator", operator)
    compiled = both("spectrum", *words, "--out", "DEVICE.h5")[2]
    kernels = {"symmetrize_f64", "panel_qr_f64", "bulge_chase_f64", "sturm_bisect_f64"}
    assert kernels <= compiled
    one, other = (load(tmp_path / f"{name}.h5") for name in ("cpu", "cuda"))
    assert {item.solver for item in other} == {TWO_STAGE}
    for here, far in zip(one, other, strict=True):
        apart = np.abs(here.eigenvalues - far.eigenvalues).max()
        assert apart <= here.noise_floor + far.noise_floor
        assert (here.rank, here.reduced_dimension) == (far.rank, far.reduced_dimension)


@pytest.mark.slow
def test_levels(both, tmp_path, monkeypatch):
    path = write_file(tmp_path / "spectra.h5", [goe(12, 3, index) for index in range(31)])
    # fewer and shorter than usual, and kept for no other test
    monkeypatch.setattr(banks, "_BANK_MOST", 1)
    monkeypatch.setattr(banks, "_STRETCHES", 2)
    monkeypatch.setattr(banks, "STRETCH", 60)
    monkeypatch.setattr(banks, "_memory", {})
    counted = []
    search = torch.searchsorted
    monkeypatch.setattr(torch, "searchsorted", lambda *a: counted.append(len(a[1])) or search(*a))
    here, there, compiled = both("levels", path, "--surrogates", 3)
    assert {"sturm_prepare_f64", "sturm_bisect_f64"} <= compiled
    # the data, the surrogates of five laws, and three more data sets of GOE and Poisson levels
    # beside the data's statistics, in three groups each
    assert len(counted) == 3 + 5 * 3 * 3 + 2 * 3 * 3
    assert here["unfolding"].startswith("pooled")
    assert here["laws"]["gse"]["spacing_p_value"] is not None
    assert_same(here, there)
    # of each route, whose last bits differ: spectra of five laws, stretches of three ensembles
    assert len([*Path(os.environ["XDG_CACHE_HOME"]).rglob("*.npz")]) == 2 * (5 + 3)


def test_capacity(both, tmp_path):
    weights = {"a.weight": heavy(24, 20 * 9).reshape(24, 20, 3, 3), "b.weight": heavy(30, 50, 1)}
    path = tmp_path / "net.pt"
    torch.save({name: torch.as_tensor(value) for name, value in weights.items()}, path)
    here, there, compiled = both("capacity", path, "--p-values", 20)
    assert compiled >= {"powerlaw_scan_f64", "batched_small_f64"}
    assert all(layer["p_value"] is not None for layer in here["layers"])
    assert_same(here, there)
    # laws that end are fitted on the CPU
    assert_same(*both("capacity", path, "--x-max", "max", "--p-values", 3)[:2])


@pytest.mark.slow
def test_reproduce(both, tmp_path):
    path = write_settings(tmp_path, "gp-loss-model", ("samples = 3", "samples = 2"))
    here, there, compiled = both("reproduce", path, "--out", "DEVICE")
    assert {"bulge_chase_f64", "sturm_bisect_f64"} <= compiled
    assert_same(here, there)


def test_unknown_devices_are_refused(refused, cli, tmp_path):
    write_file(tmp_path / "spectra.h5", [goe(12, 3, index) for index in range(3)])
    write_settings(tmp_path, "gp-loss-model")
    for words in ("levels spectra.h5", "simulate", "capacity net.pt"):
        refused([*words.split(), "--device", "tpu"], ["unknown device 'tpu'"])
    result = cli("reproduce", "gp-loss-model.toml", "--device", "tpu")
    assert (result.returncode, "unknown device 'tpu'" in result.stderr) == (2, True)
