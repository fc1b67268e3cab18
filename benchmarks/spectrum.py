"""One batch of 64: the published way, the best library route and hessrmt, in one run.

    python benchmarks/spectrum.py logistic mlp2 mlp3 --slow-repeat 3

Routes, all float64, all on the same batch of the embedded MNIST test split:

- published: a double-backward loop over the rows (``create_graph=True``), then
  ``numpy.linalg.eigvalsh`` (github.com/npbaskerville/dnn-rmt-spacings);
- library: ``torch.func`` Hessian (jacfwd of jacrev) in chunks, then ``torch.linalg.eigvalsh``;
- hessrmt: ``hessrmt.spectrum``, with the check of H v that every call makes.

Each timing is a process of its own, so that its peak memory is its own, and follows one call of the
same route on a tiny network, which loads and starts the libraries (stored as start-up). The routes
take turns. Medians, ratios, reduced dimension, rank and the machine go to results/.
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
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import hessrmt as hr
from hessrmt.problems import data, models
from hessrmt.records import Provenance

BATCH = 64
ROUTES = ("published", "library", "hessrmt")
RESULTS = Path(__file__).parent / "results"
CHUNK = 64


def problem(model: str) -> hr.Problem:
    """The benchmark's problem: first batch of the test split, seed 0."""
    split = data.load("mnist", "test")
    x, y = split.tensors(slice(0, BATCH))
    if model == "tiny":  # every route's code, no work
        return hr.Problem(models.mlp((5,), 10, (4,)), "cross-entropy", (x[:8, 0, 10, 10:15], y[:8]))
    return hr.Problem(models.build(model, split.input_shape, 10, 0), "cross-entropy", (x, y))


def published(model: str) -> np.ndarray:
    """Row loop of double backward passes, NumPy eigenvalues."""
    local = problem(model).at(torch.float64, torch.device("cpu"))
    parameters = list(local.model.parameters())
    loss = local.loss_of_outputs(local.model(local.inputs))
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradients])
    rows = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for i in range(len(flat)):
        second = torch.autograd.grad(flat[i], parameters, retain_graph=True, allow_unused=True)
        rows[i] = torch.cat(
            [
                torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1)
                for g, p in zip(second, parameters, strict=True)
            ]
        )
    return np.linalg.eigvalsh(rows.numpy())


def library(given: hr.Problem) -> np.ndarray:
    """torch.func Hessian (forward over reverse) in chunks, torch eigenvalues."""
    local = given.at(torch.float64, torch.device("cpu"))
    theta, gradient = local.theta, torch.func.grad(local.loss)
    matrix = torch.empty(len(theta), len(theta), dtype=theta.dtype)
    for start in range(0, len(theta), CHUNK):
        unit = torch.zeros(min(CHUNK, len(theta) - start), len(theta), dtype=theta.dtype)
        unit[:, start:].fill_diagonal_(1)
        matrix[start : start + CHUNK] = torch.func.vmap(
            lambda v: torch.func.jvp(gradient, (theta,), (v,))[1]
        )(unit)
    return torch.linalg.eigvalsh(matrix).numpy()


def hessrmt(model: str) -> np.ndarray:
    """The engine."""
    return hr.spectrum(problem(model), device="cpu").eigenvalues


def measure(route: str, model: str) -> dict[str, float]:
    """Run one route in a process of its own."""
    command = [sys.executable, __file__, model, "--route", route]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def run_route(route: str, model: str) -> dict[str, float]:
    """Seconds, peak memory and extremes of one route, in this process."""
    ways: dict[str, Callable[[str], np.ndarray]] = {
        "published": published,
        "library": lambda model: library(problem(model)),
        "hessrmt": hessrmt,
    }
    begin = time.perf_counter()
    ways[route]("tiny")  # loads and starts the libraries
    first = time.perf_counter()
    levels = ways[route](model)
    seconds = time.perf_counter() - first
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": seconds,
        "start_up_seconds": first - begin,
        "peak_bytes": peak,
        "lambda_max": float(levels[-1]),
        "sum_of_squares": float(levels @ levels),
    }


def shape(model: str) -> dict[str, float]:
    """Dimensions of the problem before and after reduction, and its rank."""
    found = hr.spectrum(problem(model), device="cpu")
    return {
        "parameters": found.dimension,
        "reduced_dimension": found.reduced_dimension,
        "rank": found.rank,
        "reduced_dimension_over_rank": found.reduced_dimension / found.rank,
    }


def machine() -> dict[str, object]:
    """The machine in words."""
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {"cpu": names[0] if names else platform.processor(), "threads": torch.get_num_threads()}


def main() -> None:
    """Measure, print a table, store the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="+", choices=["logistic", "mlp2", "mlp3"])
    parser.add_argument("--route", choices=ROUTES)
    parser.add_argument("--repeat", type=int, default=5, help="runs of hessrmt")
    parser.add_argument("--slow-repeat", type=int, default=1, help="runs of the other routes")
    parser.add_argument("--name", default="spectrum-2core-cpu", help="name of the result file")
    options = parser.parse_args()
    if options.route:
        print(json.dumps(run_route(options.route, options.models[0])))
        return
    table: dict[str, object] = {}
    for model in options.models:
        runs: dict[str, list[dict[str, float]]] = {route: [] for route in ROUTES}
        for turn in range(options.repeat):
            for route in ROUTES:
                if route == "hessrmt" or turn < options.slow_repeat:
                    runs[route].append(measure(route, model))
                    print(model, route, runs[route][-1], file=sys.stderr, flush=True)
        median = {r: statistics.median(one["seconds"] for one in runs[r]) for r in ROUTES}
        exact = runs["published"][0]["sum_of_squares"]
        table[model] = {
            "seconds": {r: [one["seconds"] for one in runs[r]] for r in ROUTES},
            "start_up_seconds": {
                r: statistics.median(one["start_up_seconds"] for one in runs[r]) for r in ROUTES
            },
            **shape(model),
            "peak_gib": {r: max(one["peak_bytes"] for one in runs[r]) / 2**30 for r in ROUTES},
            "ratio_to_published": median["published"] / median["hessrmt"],
            "ratio_to_library": median["library"] / median["hessrmt"],
            "relative_difference_of_sum_of_squares": abs(
                runs["hessrmt"][0]["sum_of_squares"] / exact - 1
            ),
        }
        ratios = [f"{median[route] / median['hessrmt']:.0f}x" for route in ROUTES[:2]]
        seconds = [f"{route} {median[route]:.2f} s" for route in ROUTES]
        print(f"{model}: {', '.join(seconds)}: {' and '.join(ratios)} faster")
    RESULTS.mkdir(exist_ok=True)
    stored = RESULTS / f"{options.name}.json"
    if stored.exists():  # models measured earlier on the same machine stay
        table = json.loads(stored.read_text(encoding="utf-8"))["models"] | table
    result = {"machine": machine(), "versions": dict(Provenance().versions), "models": table}
    stored.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
