"""Extreme levels of a LeNet-5 Hessian: hessrmt against SciPy's ARPACK on curvlinops' operator.

    python benchmarks/density.py --repeat 3

Routes, all float64, one thread each unless OMP_NUM_THREADS says otherwise, all on the same batch of
the embedded MNIST test split and the same seeded initialisation; everything from the network to the
levels is timed:

- hessrmt: ``hessrmt.edge_levels``: linearised products, thick-restart Lanczos to a residual of
  1e-10, a second search from a fresh vector, and a residual for each level;
- curvlinops: ``HessianLinearOperator(...).to_scipy()`` into ``scipy.sparse.linalg.eigsh`` with its
  default tolerance (machine precision), which neither searches again nor computes residuals;
- scipy: the same ``eigsh`` on hessrmt's operator: what of the difference is the products'.

Each timing is a process of its own; the routes take turns. Wall-clock and processor seconds are
stored: the latter are what a busy machine does not change much. curvlinops is no dependency of
hessrmt: ``pip install curvlinops-for-pytorch`` first, or leave that route out with ``--routes``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

import hessrmt as hr
from hessrmt.problems import data, models
from hessrmt.records import Provenance

RESULTS = Path(__file__).parent / "results"
ROUTES = ("hessrmt", "curvlinops", "scipy")


def parts(batch: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """Network and batch, seed 0."""
    split = data.load("mnist", "test")
    x, y = split.tensors(slice(0, batch))
    return models.build("lenet5", split.input_shape, 10, 0).double(), x, y


def hessrmt(batch: int, levels: int) -> tuple[np.ndarray, dict[str, float]]:
    """The engine."""
    model, x, y = parts(batch)
    operator = hr.CurvatureOperator.of(hr.Problem(model, "cross-entropy", (x, y)), device="cpu")
    found = hr.edge_levels(operator, levels)
    return found.values, {
        "products": found.products,
        "largest_bound": float(found.bounds.max()),
        "resolved": len(found.resolved),
    }


def curvlinops(batch: int, levels: int) -> tuple[np.ndarray, dict[str, float]]:
    """The peer."""
    from curvlinops import HessianLinearOperator  # type: ignore[import-not-found]

    model, x, y = parts(batch)
    parameters = [p for p in model.parameters() if p.requires_grad]
    operator = HessianLinearOperator(
        model, torch.nn.CrossEntropyLoss(), parameters, [(x, y)], check_deterministic=False
    ).to_scipy()
    return _arpack(operator.matvec, operator.shape[0], levels)


def scipy(batch: int, levels: int) -> tuple[np.ndarray, dict[str, float]]:
    """ARPACK on the engine's products."""
    model, x, y = parts(batch)
    operator = hr.CurvatureOperator.of(hr.Problem(model, "cross-entropy", (x, y)), device="cpu")

    def product(v: np.ndarray) -> np.ndarray:
        return operator(torch.from_numpy(np.ascontiguousarray(v.reshape(1, -1))))[0].numpy()

    return _arpack(product, operator.dimension, levels)


def _arpack(product, size: int, levels: int) -> tuple[np.ndarray, dict[str, float]]:
    count = 0

    def counted(v: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return product(v)

    make: Any = LinearOperator  # its constructor is that of a subclass which it picks
    matrix = make((size, size), matvec=counted, dtype=np.float64)
    start = np.random.default_rng(0).normal(size=size)
    values = eigsh(matrix, levels, which="LA", v0=start)[0]
    return np.sort(values), {"products": count}


def run_route(route: str, batch: int, levels: int) -> dict[str, object]:
    """Seconds, levels and counts of one route, in this process."""
    warnings.simplefilter("ignore")
    wall, processor = time.perf_counter(), time.process_time()
    values, numbers = globals()[route](batch, levels)
    return {
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - processor,
        "levels": values.tolist(),
        **numbers,
    }


def measure(route: str, batch: int, levels: int) -> dict:
    """Run one route in a process of its own."""
    command = [sys.executable, __file__, "--route", route, "--batch", str(batch)]
    done = subprocess.run(
        [*command, "--levels", str(levels)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{route} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print a table, store the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--route", choices=ROUTES)
    parser.add_argument("--routes", nargs="+", choices=ROUTES, default=list(ROUTES))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--levels", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--name", default="density-lenet5-cpu", help="name of the result file")
    options = parser.parse_args()
    if options.route:
        print(json.dumps(run_route(options.route, options.batch, options.levels)))
        return
    runs: dict[str, list[dict]] = {route: [] for route in options.routes}
    for _ in range(options.repeat):
        for route in options.routes:
            runs[route].append(measure(route, options.batch, options.levels))
            shown = {k: v for k, v in runs[route][-1].items() if k != "levels"}
            print(route, shown, file=sys.stderr, flush=True)
    reference = np.array(runs["hessrmt"][0]["levels"])
    kinds = ("seconds", "processor_seconds")
    median = {
        kind: {r: statistics.median(one[kind] for one in runs[r]) for r in runs} for kind in kinds
    }
    result = {
        "machine": {"cpu": platform.processor(), "threads": torch.get_num_threads(), **_cpu()},
        "versions": {**Provenance().versions, "curvlinops": _version("curvlinops-for-pytorch")},
        "problem": {
            "model": "lenet5",
            "parameters": 61706,
            "batch": options.batch,
            "levels": options.levels,
        },
        "runs": {
            route: [{k: v for k, v in one.items() if k != "levels"} for one in items]
            for route, items in runs.items()
        },
        "median": median,
        "ratio_of_medians_to_hessrmt": {
            kind: {route: value / median[kind]["hessrmt"] for route, value in median[kind].items()}
            for kind in kinds
        },
        "largest_relative_difference_of_levels": {
            route: max(
                float(np.abs(np.array(one["levels"]) / reference - 1).max()) for one in items
            )
            for route, items in runs.items()
        },
    }
    for kind in kinds:
        print(kind, {route: round(value, 2) for route, value in median[kind].items()})
    print("largest relative difference", result["largest_relative_difference_of_levels"])
    RESULTS.mkdir(exist_ok=True)
    stored = RESULTS / f"{options.name}.json"
    stored.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0]} if names else {}


if __name__ == "__main__":
    main()
