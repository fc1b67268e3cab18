"""The real command, killed and interrupted: no finished batch is lost, and nothing changes."""

import json
import signal

import numpy as np
import pytest
from gate import PATIENCE, open_gate
from store_samples import NET, contents

from hessrmt.store import search as search_files
from hessrmt.store.spectra import COLUMNS, load

BATCHES = 6
COMPUTE = "hessrmt.runs.spectrum:compute"
WRITE = "hessrmt.store.writing:_write_at"
A_ROW = len(COLUMNS) + 5  # eigenvalues, solver, two checksums, done
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
            (WRITE, 5 * A_ROW - 2), 4, marks=pytest.mark.slow
        ),  # the fifth lacks only what says that it is done
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


@pytest.mark.slow
def test_a_search_for_the_range_goes_on_where_it_was_killed(
    tmp_path, tiny_npz, cli, start_cli, monkeypatch
):
    monkeypatch.setattr(search_files, "EVERY", search_files.EVERY)  # as it is afterwards too
    net = "nn.Sequential(nn.Unflatten(1, (1, -1)), nn.Conv1d(1, 6, 2), nn.Tanh(), nn.Flatten(), "
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "import hessrmt.store.search\n\n"
        "hessrmt.store.search.EVERY = 0.0  # whatever is found is written\n\n"
        f"def net():\n    torch.manual_seed(0)\n    return {net}nn.Linear(30, 30), nn.Tanh(), "
        "nn.Linear(30, 3))\n"
    )
    options = ["spectrum", "--model", "net.py:net", "--data", tiny_npz, "--batch", 4, "--batches"]
    options += [1, "--device", "cpu", "--reduce", "range"]
    assert cli(*options, "--out", "whole.h5").returncode == 0
    path, search = tmp_path / "killed.h5", tmp_path / "killed.h5.batch0.search"
    process = start_cli(*options, "--out", path, stop=("hessrmt.curvature.range:_multiply", 4))
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = search.stat().st_size
    assert kept > 0
    assert len(load(path)) == 0
    resumed = cli(*options, "--out", path, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert not search.exists()
    assert contents(path) == contents(tmp_path / "whole.h5")
    search.write_bytes(b"of an earlier run")
    assert cli(*options, "--out", path, "--overwrite").returncode == 0
    assert not search.exists()
