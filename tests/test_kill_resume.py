"""The real command, killed and interrupted: no finished batch is lost, and nothing changes."""

import json
import signal
import time

import h5py
import numpy as np
import pytest

from hessrmt.store.hdf5 import load

BATCHES = 6
# Waiting in the forward pass makes a batch take long without keeping the machine busy.
SLOW = """
import os
import time
from torch import nn


class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x):
        time.sleep(float(os.environ.get("PAUSE", 0)))
        return self.layers(x)
"""


@pytest.fixture
def options(tmp_path, tiny_npz):
    (tmp_path / "slow.py").write_text(SLOW)
    data = ["--data", tiny_npz, "--batch", 10, "--batches", "all", "--device", "cpu"]
    return ["spectrum", "--model", "slow.py:Slow", *data]


@pytest.fixture
def uninterrupted(tmp_path, cli, options):
    """The datasets of a run that nothing disturbed."""
    assert cli(*options, "--out", "whole.h5").returncode == 0
    return datasets(tmp_path / "whole.h5")


def datasets(path):
    """All numbers of a file but its timings."""
    with h5py.File(path) as file:
        names = [name for name in file if not name.startswith("seconds_")]
        assert {"hessian_evals", "done", "loss", "batch_indices"} <= set(names)
        return {name: file[name][()] for name in names}


def same(left, right):
    assert left.keys() == right.keys()
    for name, values in left.items():
        floating = values.dtype.kind == "f"
        assert np.array_equal(values, right[name], equal_nan=floating), name
    return True


def wait_for_rows(path, count, process):
    """Until ``count`` rows are done; fails if the run ends before."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        # from its first moment the file is valid
        if path.exists() and len(load(path)) >= count:
            return
        time.sleep(0.01)
    pytest.fail("the run is too slow")


@pytest.fixture
def pause(monkeypatch):
    monkeypatch.setenv("PAUSE", "0.05")


@pytest.mark.parametrize(("rows", "later"), [(1, 0.03), (2, 0.21), (4, 0.11)])
def test_killed_and_resumed_is_bit_for_bit_the_same(
    tmp_path, options, uninterrupted, cli, start_cli, pause, monkeypatch, rows, later
):
    path = tmp_path / "killed.h5"
    process = start_cli(*options, "--out", path)
    wait_for_rows(path, rows, process)
    time.sleep(later)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    kept = load(path)
    assert rows <= len(kept) < BATCHES
    done = np.flatnonzero(datasets(path)["done"])
    assert np.array_equal(kept.eigenvalues, uninterrupted["hessian_evals"][done])

    refused = cli(*options, "--out", path)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    monkeypatch.setenv("PAUSE", "0")
    resumed = cli(*options, "--out", path, "--resume", "--json")
    assert resumed.returncode == 0
    assert len(json.loads(resumed.stdout)["batches"]) == BATCHES
    assert same(datasets(path), uninterrupted)
    before = path.read_bytes()
    assert cli(*options, "--out", path, "--resume").returncode == 0
    assert path.read_bytes() == before  # nothing was left to do


def test_interrupted_from_the_keyboard(
    tmp_path, options, uninterrupted, cli, start_cli, pause, monkeypatch
):
    path = tmp_path / "stopped.h5"
    process = start_cli(*options, "--out", path, "--json")
    wait_for_rows(path, 1, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert err.count("error:") == 1
    assert "--resume" in err
    assert 1 <= len(load(path)) < BATCHES
    monkeypatch.setenv("PAUSE", "0")
    assert cli(*options, "--out", path, "--resume").returncode == 0
    assert same(datasets(path), uninterrupted)


def test_second_run_on_the_same_file_is_refused(tmp_path, options, cli, start_cli, pause):
    path = tmp_path / "shared.h5"
    process = start_cli(*options, "--out", path)
    wait_for_rows(path, 1, process)
    for choice in ("--resume", "--overwrite"):
        second = cli(*options, "--out", path, choice)
        assert second.returncode == 2
        assert "another process is writing" in second.stderr
    assert cli("info", path).returncode == 0
    assert process.poll() is None  # it was still at work, so both were refused by its lock
    assert process.wait(timeout=60) == 0
    assert len(load(path)) == BATCHES
