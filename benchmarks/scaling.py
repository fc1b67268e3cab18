"""Time and memory of one exact spectrum against the size of the network, and the laws they follow.

    python benchmarks/scaling.py

Every measurement is a process of its own, so that its peak memory is its own. Laws are fitted:
eigenvalues c n³ of the matrix that is diagonalised, its memory m n² beside what any run needs, and
for networks whose Hessian is built by Hessian-vector products the seconds of one row. With them go
predictions for what doesn't run on this machine. Everything goes to results/.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hessrmt as hr
from hessrmt.curvature.products import hessian_product
from hessrmt.problems import data, models
from hessrmt.records import Provenance

RESULTS = Path(__file__).parent / "results"
EIGENVALUES_FROM = 2_000
"""Smaller matrices are left out of the fits: they are done before a second is over."""

RUNS = (
    ("logistic", 64, "auto"),
    ("mlp2", 64, "auto"),
    ("mlp3", 64, "auto"),
    ("logistic", 64, "none"),
    ("mlp2", 64, "none"),
    ("lenet5", 1, "auto"),
    ("lenet5", 2, "auto"),
    ("lenet5", 4, "auto"),
    ("lenet5", 64, "auto"),
)
"""Model, batch and reduction of what is measured."""

PREDICTED = (("lenet5", 64), ("resnet20", 64))
"""Model and batch of the whole matrices that are estimated from the laws."""

GPU_RATES = {"one-stage, 10 % of an H100's peak": 6.7e12, "two-stage, 50 %": 33e12}
"""float64 operations per second to estimate with; no GPU was measured."""


def problem(model: str, batch: int) -> hr.Problem:
    """First samples of the test split, seed 0; 32 x 32 colour noise for a ResNet."""
    split = data.load("mnist", "test")
    x, y = split.tensors(slice(0, batch))
    shape = split.input_shape
    if model.startswith("resnet"):
        shape = (3, 32, 32)
        x = torch.randn(batch, *shape, dtype=torch.float64, generator=torch.manual_seed(0))
    return hr.Problem(models.build(model, shape, 10, 0).eval(), "cross-entropy", (x, y))


def one_spectrum(model: str, batch: int, reduce: str) -> dict[str, Any]:
    """One spectrum in this process."""
    hr.spectrum(problem("logistic", 1), device="cpu")  # loads and starts the libraries
    base = _peak()
    found = hr.spectrum(problem(model, batch), device="cpu", reduce=reduce)
    return {
        "model": model,
        "batch": batch,
        "reduce": reduce,
        "parameters": found.dimension,
        "rows": found.reduced_dimension,
        "rank": found.rank,
        "seconds": dict(found.seconds),
        "base_bytes": base,
        "peak_bytes": _peak(),
    }


def one_row(model: str, batch: int, block: int = 4) -> dict[str, Any]:
    """Rows of the whole matrix and seconds of one Hessian-vector product in a block."""
    local = problem(model, batch).at(torch.float64, torch.device("cpu"))
    product = hessian_product(local)
    vectors = torch.eye(block, local.dimension, dtype=torch.float64)
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        product(vectors)
        times.append((time.perf_counter() - begin) / block)
    return {
        "model": model,
        "batch": batch,
        "reduce": "none",
        "parameters": local.dimension,
        "rows": local.dimension,
        "product_seconds": statistics.median(times[1:]),
    }


def laws(points: list[dict[str, Any]]) -> dict[str, float]:
    """Constants fitted to the measured points."""
    large = [p for p in points if p["rows"] >= EIGENVALUES_FROM]
    rows = np.array([p["rows"] for p in large], dtype=float)
    eigen = np.array([p["seconds"]["eigenvalues"] for p in large])
    exponent, _ = np.polyfit(np.log(rows), np.log(eigen), 1)
    biggest = rows >= np.median(rows)  # the constant is that of the largest, where n³ rules
    memory = np.array([p["peak_bytes"] - p["base_bytes"] for p in large])
    return {
        "eigenvalues_exponent": float(exponent),
        "eigenvalues_seconds_per_row_cubed": float(np.median((eigen / rows**3)[biggest])),
        "memory_bytes_per_row_squared": float(np.median((memory / rows**2)[biggest])),
    }


def predict(point: dict[str, Any], law: dict[str, float]) -> dict[str, Any]:
    """Time and memory of one spectrum that was not computed."""
    rows = point["rows"]
    work = 4 / 3 * rows**3
    return {
        **point,
        "matrix_bytes": 8 * rows**2,
        "peak_bytes": law["memory_bytes_per_row_squared"] * rows**2,
        "matrix_seconds": point["product_seconds"] * rows,
        "eigenvalue_seconds": law["eigenvalues_seconds_per_row_cubed"] * rows**3,
        "eigenvalue_work": work,
        "gpu_eigenvalue_seconds": {name: work / rate for name, rate in GPU_RATES.items()},
    }


def child(kind: str, model: str, batch: int, *reduce: str) -> dict[str, Any]:
    """A measurement in a process of its own."""
    command = [sys.executable, __file__, "--child", kind, model, str(batch), *reduce]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure, fit, predict, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs="+", metavar="KIND MODEL BATCH REDUCE")
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling-2core-cpu.json")
    options = parser.parse_args()
    if options.child:
        kind, model, batch, *reduce = options.child
        work = {"spectrum": one_spectrum, "row": one_row}[kind]
        print(json.dumps(work(model, int(batch), *reduce)))
        return
    points = []
    for run in RUNS:
        points.append(child("spectrum", *run))
        print(json.dumps(points[-1]), file=sys.stderr)
    law = laws(points)
    predictions = [predict(child("row", *run), law) for run in PREDICTED]
    result = {
        "machine": {"cpu": platform.processor(), "threads": torch.get_num_threads()},
        "versions": dict(Provenance().versions),
        "measured": points,
        "laws": law,
        "predicted": predictions,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"laws": law, "predicted": predictions}, indent=1))


if __name__ == "__main__":
    main()
