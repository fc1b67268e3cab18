"""What tests/test_distributed.py starts under mpirun: one function for each first argument.

Process 0 prints its findings as one line of JSON.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

import hessrmt as hr
from hessrmt.backend.distributed import scatter
from hessrmt.backend.select import select_distributed
from hessrmt.backend.world import connect
from hessrmt.config import SpectrumConfig
from hessrmt.curvature.distributed import distributed_spectrum
from hessrmt.errors import HessrmtError
from hessrmt.problems import models
from hessrmt.runs.distributed import run_distributed


def say(world, found):
    if world.rank == 0:
        print(json.dumps(found), flush=True)


def symmetric(n, dtype=np.float64):
    matrix = np.random.default_rng(n).standard_normal((n, n)).astype(dtype)
    return matrix + matrix.T


def error_in_bounds(backend, n, dtype):
    """Largest error against LAPACK, in units of n·ε·‖A‖, and whether all processes agree."""
    matrix, layout = symmetric(n, dtype), backend.layout(n)
    found = backend.eigvalsh(scatter(matrix, layout), layout)
    expected = np.linalg.eigvalsh(matrix.astype(np.float64))
    bound = n * np.finfo(dtype).eps * np.abs(expected).max()
    same = len({levels.tobytes() for levels in backend.world.gather(found)}) == 1
    return [float(np.abs(found - expected).max() / bound), same]


def refused(backend, matrix):
    layout = backend.layout(len(matrix))
    try:
        backend.eigvalsh(scatter(matrix, layout), layout)
    except HessrmtError as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def problem():
    torch.manual_seed(0)
    x, y = torch.randn(24, 9, dtype=torch.float64), torch.arange(24) % 4
    return hr.Problem(models.mlp((9,), 4, (12, 8)), "cross-entropy", (x, y))


def solve(solver, *dimensions):
    backend = select_distributed(solver, "cpu")
    types = [np.float64] if solver == "elpa" else [np.float64, np.float32]
    errors = {
        f"{n} {kind.__name__}": error_in_bounds(backend, int(n), kind)
        for n in dimensions
        for kind in types
    }
    wrong, nan = symmetric(40), symmetric(40)
    wrong[39, 1] += 1
    nan[39, 1] = np.nan
    refusals = {"wrong": refused(backend, wrong), "nan": refused(backend, nan)}
    spectrum = distributed_spectrum(problem(), backend)
    found = {"errors": errors, "refusals": refusals, "grid": backend.name, "check": spectrum.check}
    say(backend.world, found | {"eigenvalues": spectrum.eigenvalues.tolist()})


def one_fails():
    world = connect()
    with world.guard():
        if world.rank == 1:
            raise ZeroDivisionError("only here")
        world.gather(None)  # would wait for ever


def file(out, solver, model):
    config = SpectrumConfig(model=model, batch=16, batches=2, device="cpu")
    try:
        found = run_distributed(config, Path(out), solver=solver)
    except HessrmtError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    if found is not None:
        print(json.dumps([item.rank for item in found]), flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
