"""Two real MPI processes with ScaLAPACK and ELPA, where mpirun, mpi4py and the libraries are there.

Everything that needs no MPI is in tests/test_processes.py.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import mpi_programs
import numpy as np
import pytest

import hessrmt as hr
from hessrmt.problems import data

PROGRAMS = Path(mpi_programs.__file__)
EPS = np.finfo(float).eps
LIMIT = 900
"""Seconds after which it hangs."""


def start(processes, *arguments, **variables):
    """Run one of tests/mpi_programs.py; one thread a process, and cores may be shared."""
    environment = {
        **os.environ,
        **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")},
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_hwloc_base_binding_policy": "none",
        "OMPI_MCA_mpi_yield_when_idle": "1",
        **variables,
    }
    return subprocess.run(
        ["mpirun", "-n", str(processes), sys.executable, str(PROGRAMS), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=LIMIT,
        check=False,
    )


@pytest.fixture(scope="module", autouse=True)
def mpi():
    if shutil.which("mpirun") is None:
        pytest.skip("mpirun is not installed")
    if find_spec("mpi4py") is None:
        pytest.skip("mpi4py is not installed")


def output(done):
    if "cannot be loaded" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("solver", ["scalapack", "elpa"])
def test_two_processes_find_what_lapack_finds(solver):
    found = output(start(2, "solve", solver, 2, 5, 65, 300))
    assert "2 processes on a 1 x 2 grid" in found["grid"]
    for case, (error, same) in found["errors"].items():
        # each solver is backward stable: within n·ε·‖A‖ of the exact eigenvalues, which LAPACK
        # finds to the same bound
        assert error <= 2, case
        assert same, case
    assert found["refusals"]["nan"][0] == "NonFiniteError"
    assert found["refusals"]["wrong"][0] == "ConfigError"
    assert "not symmetric" in found["refusals"]["wrong"][1]
    alone = hr.spectrum(mpi_programs.problem(), device="cpu")
    # Weyl: both matrices act as H up to the tolerance of the check, both solvers are stable
    bound = 2 * alone.noise_floor + 20 * alone.dimension**0.5 * EPS * alone.eigenvalues[-1]
    assert np.abs(np.array(found["eigenvalues"]) - alone.eigenvalues).max() <= bound
    assert found["check"] <= 10 * alone.dimension**0.5 * EPS


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["scalapack", "elpa"])
@pytest.mark.parametrize(
    ("processes", "sizes", "grid"), [(2, [4000], "1 x 2 grid"), (4, [65, 300], "2 x 2 grid")]
)
def test_processes_reproduce_lapack(processes, sizes, grid, solver):
    found = output(start(processes, "solve", solver, *sizes))
    assert grid in found["grid"]
    assert all(error <= 2 and same for error, same in found["errors"].values())


def test_a_process_that_fails_ends_the_run_and_says_why():
    done = start(2, "one_fails")  # which raises if it hangs
    assert done.returncode != 0
    assert "process 1 of 2 failed, the run ends: ZeroDivisionError: only here" in done.stderr


def test_a_missing_library_says_what_to_install(tmp_path):
    done = start(
        2, "file", tmp_path / "x.h5", "scalapack", "logistic", HESSRMT_SCALAPACK="/nowhere/lib.so"
    )
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if line.startswith("DeviceError")]
    assert len(told) == 1  # once, not once a process
    assert "/nowhere/lib.so cannot be loaded" in told[0]
    assert "apt-get install libscalapack-" in told[0]
    assert not (tmp_path / "x.h5").exists()


def test_the_file_of_a_distributed_run(tmp_path):
    done = start(2, "file", tmp_path / "two.h5", "scalapack", "logistic")
    ranks = output(done)
    stored = hr.load(tmp_path / "two.h5")
    assert [item.rank for item in stored] == ranks
    assert stored[0].solver == "pdsyev (ScaLAPACK)"
    assert stored.provenance.device.startswith("cpu (2 processes")
    split = data.load("mnist", "test")
    for number, item in enumerate(stored):
        problem = hr.Problem(
            mpi_programs.models.build("logistic", split.input_shape, split.outputs, 0),
            "cross-entropy",
            split.tensors(slice(16 * number, 16 * (number + 1))),
        )
        alone = hr.spectrum(problem, device="cpu")
        bound = 2 * item.noise_floor + 20 * alone.dimension**0.5 * EPS * alone.eigenvalues[-1]
        assert np.abs(item.eigenvalues - alone.eigenvalues).max() <= bound
        assert item.rank == alone.rank
