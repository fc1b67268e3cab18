"""A distributed eigenvalue problem on one, two, ... MPI processes of one machine.

    python benchmarks/processes.py --n 4000 --processes 1 2 --repeat 3

Every process has one thread. Each timing is an ``mpirun`` of its own, after a small matrix that
loads the libraries; the routes take turns. The matrix is symmetric, standard normal; each process
draws all of it once and keeps its part. LAPACK (torch, one thread) on process 0 is the reference
for time and for the eigenvalues. Medians, errors and peak memory go to results/.

Keep the machine quiet: MPI processes wait for each other, and whatever takes a core from one of
them delays all. ``mpi_yield_when_idle`` makes Open MPI give its core away while it waits.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from spectrum import machine

from hessrmt.backend.distributed import scatter
from hessrmt.backend.select import select_distributed
from hessrmt.records import Provenance

RESULTS = Path(__file__).parent / "results"
SOLVERS = ("scalapack", "elpa")
WARM_UP = 200
PEAK = Path("/proc/self/clear_refs")


def symmetric(n: int) -> np.ndarray:
    """A standard normal symmetric matrix."""
    matrix = np.random.default_rng(n).standard_normal((n, n))
    matrix += matrix.T.copy()
    return matrix


def peak() -> int:
    """Most memory that this process has held since the peak was forgotten, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")
    )


def measure(solver: str, n: int, block: int, compare: bool) -> None:
    """On every process: time the solver; process 0 prints what it found."""
    backend = select_distributed(solver, "cpu")
    if block:
        type(backend).largest_block = block  # pyright: ignore[reportAttributeAccessIssue]
    world = backend.world
    small = backend.layout(WARM_UP)
    backend.eigvalsh(scatter(symmetric(WARM_UP), small), small)
    layout = backend.layout(n)
    matrix = symmetric(n)
    part = scatter(matrix, layout)
    kept = matrix if compare and world.rank == 0 else None
    del matrix
    PEAK.write_text("5", encoding="ascii")  # forget the peak so far: proc(5), clear_refs
    before = peak()
    world.gather(None)
    begin, worked = time.perf_counter(), time.process_time()
    levels = backend.eigvalsh(part, layout)
    seconds, worked = time.perf_counter() - begin, time.process_time() - worked
    workspaces = world.gather(peak() - before)
    found: dict[str, object] = {
        "seconds": max(world.gather(seconds)),
        "cpu_seconds": max(world.gather(worked)),  # waiting for others included
        "part_bytes": 8 * layout.most_entries,
        "workspace_bytes": max(workspaces),
        "planned_workspace_bytes": backend.eigen_bytes(layout, 8) - 8 * layout.most_entries,
        "block": layout.block,
        "grid": [layout.grid.rows, layout.grid.columns],
        "solver": backend.solver,
    }
    if kept is not None:
        begin = time.perf_counter()
        exact = torch.linalg.eigvalsh(torch.from_numpy(kept)).numpy()
        found["lapack_seconds"] = time.perf_counter() - begin
        bound = n * np.finfo(float).eps * float(np.abs(exact).max())
        found["error_over_bound"] = float(np.abs(levels - exact).max()) / bound
    if world.rank == 0:
        print(json.dumps(found), flush=True)


def launch(solver: str, n: int, processes: int, block: int, compare: bool) -> dict[str, object]:
    """One timing under mpirun."""
    environment = {
        **os.environ,
        **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")},
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_hwloc_base_binding_policy": "none",
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }
    command = ["mpirun", "-n", str(processes), sys.executable, __file__, "--n", str(n)]
    command += ["--child", solver, "--block", str(block), *(["--compare"] if compare else [])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print a table, store the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--n", type=int, nargs="+", default=[4000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    parser.add_argument("--block", type=int, default=0, help="block size; 0 takes the package's")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--name", help="store the result under this name")
    parser.add_argument("--compare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=SOLVERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(options.child, options.n[0], options.block, options.compare)
        return
    routes = [(solver, count) for solver in options.solvers for count in options.processes]
    table = []
    for n in options.n:
        runs: dict[tuple[str, int], list[dict[str, object]]] = {route: [] for route in routes}
        loads = []
        for turn in range(options.repeat):
            for route in routes:
                loads.append(os.getloadavg()[0])
                runs[route].append(launch(route[0], n, route[1], options.block, not turn))
                print(n, *route, runs[route][-1], file=sys.stderr, flush=True)
        for (solver, count), made in runs.items():
            seconds = [float(str(one["seconds"])) for one in made]
            table.append(
                {
                    "n": n,
                    "processes": count,
                    "median_seconds": statistics.median(seconds),
                    "least_seconds": min(seconds),
                    "least_cpu_seconds": min(float(str(one["cpu_seconds"])) for one in made),
                    "all_seconds": seconds,
                    "load_before": max(loads),
                    **{
                        key: value
                        for key, value in made[0].items()
                        if key not in {"seconds", "cpu_seconds"}
                    },
                }
            )
            print(f"n = {n}, {solver}, {count} processes: {statistics.median(seconds):.2f} s")
    if options.name:
        result = {"machine": machine(), "versions": dict(Provenance().versions), "runs": table}
        RESULTS.mkdir(exist_ok=True)
        stored = RESULTS / f"{options.name}.json"
        stored.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
