"""The real command, killed and interrupted: no finished batch is lost, and nothing changes."""

import json
import signal

import numpy as np
import pytest
from gate import PATIENCE, open_gate
from store_samples import NET, contents

from hessrmt.store.spectra import COLUMNS, load

BATCHES = 6
COMPUTE = "hessrmt.runs.spectrum:compute"
WRITE = "hessrmt.store.spectra:_write_at"
A_ROW = len(COLUMNS) + 2
"""Writes of a row: eigenvalues, the columns, and last that it is done."""


@pytest.fixture
def options(tmp_path, tiny_npz):
    (tmp_path / "net.py").write_text(NET)
    data = ["--data", tiny_npz, "--batch", 10, "--batches", "all", "--device", "cpu"]
    return ["spectrum", "--model", "net.py:net", *data]


@pytest.fixture
def uninterrupted(tmp_path, cli, options):
    """The file of a run that nothing disturbed."""
    assert cli(*options, "--out", "whole.h5").returncode == 0
    return tmp_path / "whole.h5"


@pytest.mark.parametrize(
    ("stop", "rows"),
    [
        pytest.param((COMPUTE, 2), 1, marks=pytest.mark.slow),
        ((WRITE, 2 * A_ROW + 3), 2),  # the third row is begun
        pytest.param(
            (WRITE, 5 * A_ROW), 4, marks=pytest.mark.slow
        ),  # the fifth lacks only the mark that it is done
    ],
)
def test_killed_and_resumed_is_bit_for_bit_the_same(
    tmp_path, options, uninterrupted, cli, start_cli, stop, rows
):
    path = tmp_path / "killed.h5"
    process = start_cli(*options, "--out", path, stop=stop)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    kept = load(path)
    assert len(kept) == rows
    assert np.array_equal(kept.eigenvalues, load(uninterrupted).eigenvalues[:rows])

    refused = cli(*options, "--out", path)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    resumed = cli(*options, "--out", path, "--resume", "--json")
    assert resumed.returncode == 0
    assert len(json.loads(resumed.stdout)["batches"]) == BATCHES
    assert contents(path) == contents(uninterrupted)
    before = path.read_bytes()
    assert cli(*options, "--out", path, "--resume").returncode == 0
    assert path.read_bytes() == before  # nothing was left to do


def test_interrupted_from_the_keyboard(tmp_path, options, uninterrupted, cli, start_cli):
    path = tmp_path / "stopped.h5"
    process = start_cli(*options, "--out", path, "--json", stop=(COMPUTE, 3))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert err.count("error:") == 1
    assert "--resume" in err
    assert len(load(path)) == 2
    assert cli(*options, "--out", path, "--resume").returncode == 0
    assert contents(path) == contents(uninterrupted)


def test_second_run_on_the_same_file_is_refused(tmp_path, options, cli, start_cli):
    path = tmp_path / "shared.h5"
    process = start_cli(*options, "--out", path, stop=(COMPUTE, 2))
    for choice in ("--resume", "--overwrite"):
        second = cli(*options, "--out", path, choice)
        assert second.returncode == 2
        assert "another process is writing" in second.stderr
    assert cli("info", path).returncode == 0
    open_gate(tmp_path)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert len(load(path)) == BATCHES
