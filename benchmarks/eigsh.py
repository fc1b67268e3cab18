"""Two eigenpairs of an MLP's Hessian: hessrmt.eigsh against SciPy's on a hand-written product.

    python benchmarks/eigsh.py --name eigsh-2core-cpu

P = 11,050, 512 samples, cross-entropy, float64, seeded. Routes, each from the network to values and
vectors:

- hessrmt: ``hessrmt.eigsh(problem, k)``, with its comparison of the network with the user's own, a
  difference of the gradient, a residual for each pair and a second way of differentiating;
- scipy: ``scipy.sparse.linalg.eigsh`` on a double-backward product as a user writes it, which does
  none of that. SciPy's tolerance is relative to each eigenvalue, ours to the norm.

The routes take turns in one process, after one round that is not counted; medians and their ratios
are stored. Products are counted in both; they do not depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from scipy.sparse.linalg import eigsh as arpack
from torch import nn

import hessrmt as hr
from hessrmt.records import Provenance

RESULTS = Path(__file__).parent / "results"
SAMPLES, SIZES = 512, (81, 120, 10)


def parts() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Network and data, seed 0."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(SIZES[0], SIZES[1]), nn.Tanh(), nn.Linear(SIZES[1], SIZES[2])
    ).double()
    x = torch.randn(SAMPLES, SIZES[0], dtype=torch.float64)
    return model, x, torch.randint(0, SIZES[2], (SAMPLES,))


def hessrmt(k: int, which: str, tolerance: float) -> tuple[np.ndarray, int]:
    """The engine."""
    model, x, y = parts()
    problem = hr.Problem(model, "cross-entropy", (x, y))
    found = hr.eigsh(problem, k, which, tolerance=tolerance)
    return found.values, found.products


def scipy(k: int, which: str, tolerance: float) -> tuple[np.ndarray, int]:
    """ARPACK on a hand-written product."""
    model, x, y = parts()
    parameters, count = list(model.parameters()), 0
    size = sum(p.numel() for p in parameters)

    def product(v: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        loss = nn.functional.cross_entropy(model(x), y)
        slopes = torch.autograd.grad(loss, parameters, create_graph=True)
        slope = torch.cat([part.reshape(-1) for part in slopes])
        along = torch.from_numpy(np.ascontiguousarray(v.reshape(-1)))
        found = torch.autograd.grad(slope, parameters, along)
        return torch.cat([part.reshape(-1) for part in found]).numpy()

    make: Any = LinearOperator  # its constructor is that of a subclass which it picks
    matrix = make((size, size), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).normal(size=size)
    search: Any = arpack  # its tolerance is typed as a whole number
    return np.sort(search(matrix, k, which=which, tol=tolerance, v0=start)[0]), count


def main() -> None:
    """Measure, print the ratios, store the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--which", choices=("LA", "SA", "LM"), default="LA")
    parser.add_argument("--tolerance", type=float, default=1e-6)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--name", help="of the result file")
    options = parser.parse_args()
    routes = {"hessrmt": hessrmt, "scipy": scipy}
    wall: dict[str, list[float]] = {name: [] for name in routes}
    processor: dict[str, list[float]] = {name: [] for name in routes}
    values, products = {}, {}
    for turn in range(options.repeat + 1):
        for name, route in routes.items():
            begin, busy = time.perf_counter(), time.process_time()
            values[name], products[name] = route(options.k, options.which, options.tolerance)
            if turn:
                wall[name].append(time.perf_counter() - begin)
                processor[name].append(time.process_time() - busy)
    median = {
        kind: {name: statistics.median(one) for name, one in taken.items()}
        for kind, taken in (("seconds", wall), ("processor_seconds", processor))
    }
    ratios = {kind: one["hessrmt"] / one["scipy"] for kind, one in median.items()}
    ratios["products"] = products["hessrmt"] / products["scipy"]
    scale = float(np.abs(values["scipy"]).max())
    result = {
        "machine": {"processor": platform.processor(), "threads": torch.get_num_threads()},
        "versions": dict(Provenance().versions),
        "settings": {k: v for k, v in vars(options).items() if k != "name"},
        "median": median,
        "products": products,
        "hessrmt_over_scipy": ratios,
        "largest_difference": float(np.abs(values["hessrmt"] - values["scipy"]).max()) / scale,
        "runs": {"seconds": wall, "processor_seconds": processor},
    }
    print(
        json.dumps({k: result[k] for k in ("median", "products", "hessrmt_over_scipy")}, indent=1)
    )
    if options.name:
        stored = RESULTS / f"{options.name}.json"
        stored.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
