"""Runs on the workers of a Dask cluster: bit for bit those of one process."""

import os
import signal

import numpy as np
import pytest
from cluster_samples import (
    HELD,
    as_one_worker,
    six_batches,
    two_workers,
    worker_processes,
)
from gate import open_gate, wait_for
from level_samples import write_file
from store_samples import contents

from hessrmt.config import LevelsConfig, SimulateConfig, SpectrumConfig
from hessrmt.ensembles import goe
from hessrmt.experiments.loss_model import LossModel, LossModelConfig
from hessrmt.runs import levels, simulate, spectrum
from hessrmt.runs.run import SERIAL
from hessrmt.store.spectra import load


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    with two_workers(tmp_path_factory) as opened:
        yield opened


@pytest.fixture
def one_thread():
    with as_one_worker():
        yield


@pytest.mark.slow
def test_workers_killed_mid_run_change_nothing_in_the_file(tmp_path, tiny_npz, pool, one_thread):
    prepared = spectrum.prepare(six_batches(tmp_path, tiny_npz, HELD))
    spectrum.run(prepared, tmp_path / "serial.h5")
    victims = []

    def kill(batch, found):
        if not victims:
            # both have a task in hand, and others wait beside it
            wait_for(lambda: len(list(tmp_path.glob("begun-*"))) == 2)
            victims.extend(worker_processes(os.getpid()))
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            open_gate(tmp_path)

    spectrum.run(prepared, tmp_path / "killed.h5", finished=kill, pool=pool)
    assert len(victims) == 2
    assert contents(tmp_path / "killed.h5") == contents(tmp_path / "serial.h5")
    assert not set(victims) & set(worker_processes(os.getpid()))


@pytest.mark.parametrize("choice", [{}, {"operator": "ggn"}, {"dtype": "float32"}], ids=str)
def test_spectra_equal_those_of_one_process(tmp_path, pool, one_thread, choice):
    config = SpectrumConfig(model="logistic", data="mnist", batch=12, batches=3, **choice)
    prepared = spectrum.prepare(config)
    spectrum.run(prepared, tmp_path / "serial.h5")
    spectrum.run(prepared, tmp_path / "pool.h5", pool=pool)
    assert contents(tmp_path / "pool.h5") == contents(tmp_path / "serial.h5")
    found = load(tmp_path / "pool.h5").provenance
    assert "computed by 2 local Dask worker(s), threads of each: 1" in found.notes
    assert found.device == "cpu (1 threads)"


@pytest.mark.parametrize("method", ["tridiagonal", "dense"])
def test_simulated_spectra_equal_those_of_one_process(tmp_path, pool, one_thread, method):
    # groups of one process hold all 40 samples, those of two workers three of them
    config = SimulateConfig(dimension=30, samples=40, outliers=2, method=method, device="cpu")
    counts = []
    simulate.run(config, tmp_path / "serial.h5")
    simulate.run(
        config, tmp_path / "pool.h5", tick=lambda _, done, __: counts.append(done), pool=pool
    )
    assert contents(tmp_path / "pool.h5") == contents(tmp_path / "serial.h5")
    assert len(counts) == 14
    assert counts[-1] == 40


def test_a_file_begun_by_one_is_finished_by_the_other(tmp_path, tiny_npz, pool, one_thread):
    class EnoughError(Exception):
        pass

    def stop(batch, found):
        raise EnoughError

    prepared = spectrum.prepare(six_batches(tmp_path, tiny_npz))
    spectrum.run(prepared, tmp_path / "serial.h5")
    for first, second in ((pool, SERIAL), (SERIAL, pool)):
        path = tmp_path / f"{first.width}.h5"
        with pytest.raises(EnoughError):
            spectrum.run(prepared, path, finished=stop, pool=first)
        assert len(load(path)) == 1
        spectrum.run(prepared, path, resume=True, pool=second)
        assert contents(path) == contents(tmp_path / "serial.h5")


def test_statistics_equal_those_of_one_process(tmp_path, pool, one_thread):
    spectra = load(write_file(tmp_path / "goe.h5", [goe(40, 0, index=i) for i in range(6)]))
    # this unfolding follows the data, but not the surrogates of every law
    for unfold in ("auto", "polynomial:degree=9"):
        settings = LevelsConfig(compare=True, unfold=unfold, surrogates=10, seed=3)
        seen = []

        def observe(*step, seen=seen):
            seen.append(step[1:])

        here = levels.run(settings, spectra)
        there = levels.run(settings, spectra, observe, pool)
        assert list(there) == list(here)
        for cutoff, statistics in here.items():
            np.testing.assert_equal(there[cutoff].to_dict(), statistics.to_dict())
        assert seen[-1] == (5, 5)


@pytest.mark.slow
def test_an_experiment_takes_a_pool(tmp_path, pool, one_thread):
    settings = LossModelConfig.model_validate(
        {
            "experiment": "gp-loss-model",
            "title": "small",
            "panels": [{"k2": 0.1, "outliers": 2}],
            "presets": {"small": {"dimension": 20, "samples": 6}},
        }
    )
    experiment = LossModel()
    here = experiment.run(settings, "small", tmp_path / "here")
    there = experiment.run(settings, "small", tmp_path / "there", pool=pool)
    np.testing.assert_equal(experiment.table(there).plain(), experiment.table(here).plain())
