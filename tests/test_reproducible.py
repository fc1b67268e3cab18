"""The same command gives the same file, bit for bit, timings apart."""

import h5py
import numpy as np

from hessrmt.backend.host import THREADS


def test_the_same_command_writes_the_same_numbers(run_cli, tmp_path, monkeypatch):
    """mlp2's reduced matrix has about 2,060 rows, where MKL left to itself does not repeat."""
    for name in THREADS:  # as many threads as the machine has
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # threads that wait leave the cores to others
    for name in ("one.h5", "two.h5"):
        result = run_cli("spectrum", "--model", "mlp2", "--batches", 1, "--out", name)
        assert result.returncode == 0, result.stderr
    with h5py.File(tmp_path / "one.h5") as one, h5py.File(tmp_path / "two.h5") as two:
        names = [name for name in one if not name.startswith("seconds_")]
        assert {"hessian_evals", "loss", "check"} <= set(names)
        for name in names:
            a, b = one[name][()], two[name][()]
            assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), name
