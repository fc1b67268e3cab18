"""One Hessian-vector product, and one of a block of eight, against hand-written code and peers.

    python benchmarks/products.py --name products-2core-cpu

Networks of the papers, 64 samples, cross-entropy, float64, seeded. The unit is a double-backward
product as a user writes it: gradient with its graph, then the derivative of ⟨gradient, v⟩, anew for
every vector. Routes:

- kept: ``hessrmt.Hessian(problem)``, which keeps the graph of the gradient;
- traced: ``hessrmt.Hessian(problem, linearise=True)``, as from a hundred products on;
- curvlinops: ``HessianLinearOperator``; eigenthings: ``hessian_eigenthings.HessianOperator``. Both
  are no dependencies of hessrmt: ``pip install curvlinops-for-pytorch hessian-eigenthings``.

The routes take turns in one process, after one round that is not counted; medians of the times over
the unit are stored.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hessrmt as hr
from hessrmt.problems import data, models
from hessrmt.records import Provenance

RESULTS = Path(__file__).parent / "results"
SAMPLES, BLOCK = 64, 8
Product = Callable[[Tensor], Tensor]
"""From columns (n, k) to columns (n, k)."""


def parts(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Network and batch, seed 0."""
    torch.manual_seed(0)
    if name.startswith("resnet"):
        x, y = torch.randn(SAMPLES, 3, 32, 32), torch.randint(0, 10, (SAMPLES,))
    else:
        x, y = data.load("mnist", "test").tensors(slice(SAMPLES))
    model = models.build(name, tuple(x.shape[1:]), 10, 0).eval().double()
    return model, x.double(), y


def by_hand(model: nn.Module, x: Tensor, y: Tensor) -> Product:
    """The unit."""
    parameters = list(model.parameters())

    def column(v: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        slopes = torch.autograd.grad(loss, parameters, create_graph=True)
        slope = torch.cat([part.reshape(-1) for part in slopes])
        found = torch.autograd.grad(slope, parameters, v)
        return torch.cat([part.reshape(-1) for part in found])

    return lambda columns: torch.stack([column(v) for v in columns.T], dim=1)


def kept(model: nn.Module, x: Tensor, y: Tensor) -> Product:
    """The engine with the graph of the gradient."""
    operator = hr.Hessian(hr.Problem(model, "cross-entropy", (x, y)), device="cpu")
    return lambda columns: operator @ columns


def traced(model: nn.Module, x: Tensor, y: Tensor) -> Product:
    """The engine, linearised."""
    problem = hr.Problem(model, "cross-entropy", (x, y))
    operator = hr.Hessian(problem, device="cpu", linearise=True)
    return lambda columns: operator @ columns


def curvlinops(model: nn.Module, x: Tensor, y: Tensor) -> Product:
    """A peer."""
    from curvlinops import HessianLinearOperator  # type: ignore[import-not-found]

    parameters = [p for p in model.parameters() if p.requires_grad]
    operator = HessianLinearOperator(
        model, nn.CrossEntropyLoss(), parameters, [(x, y)], check_deterministic=False
    )
    return lambda columns: operator @ columns


def eigenthings(model: nn.Module, x: Tensor, y: Tensor) -> Product:
    """A peer."""
    from hessian_eigenthings import HessianOperator  # type: ignore[import-not-found]

    def loss(network: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(network(batch[0]), batch[1])

    operator = HessianOperator(model, [(x, y)], loss)
    return lambda columns: torch.stack([operator.matvec(v) for v in columns.T], dim=1)


ROUTES = (by_hand, kept, traced, curvlinops, eigenthings)


def measure(name: str, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds and ratios of every route that is installed, and how far it is off."""
    model, x, y = parts(name)
    size = sum(p.numel() for p in model.parameters())
    columns = torch.randn(size, BLOCK, dtype=torch.float64)
    products: dict[str, Product] = {}
    for route in ROUTES:
        try:
            products[route.__name__] = route(model, x, y)
        except ImportError:
            continue
    exact = products["by_hand"](columns)
    off = {
        route: float((product(columns) - exact).norm() / exact.norm())
        for route, product in products.items()
    }
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for width in (1, BLOCK):
            for route, product in products.items():
                start = time.perf_counter()
                product(columns[:, :width])
                taken = (time.perf_counter() - start) / width
                seconds.setdefault((route, width), []).append(taken)
    medians = {key: statistics.median(times) for key, times in seconds.items()}
    return {
        route: {
            "milliseconds": 1e3 * medians[route, 1],
            "one_over_hand": medians[route, 1] / medians["by_hand", 1],
            "column_of_block_over_hand": medians[route, BLOCK] / medians["by_hand", 1],
            "relative_difference": off[route],
        }
        for route in products
    }


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--name", help="Stored under benchmarks/results/NAME.json.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--networks", nargs="*", default=["mlp3", "lenet5", "resnet20"])
    options = parser.parse_args()
    found = {name: measure(name, options.rounds) for name in options.networks}
    for name, routes in found.items():
        print(name)
        for route, numbers in routes.items():
            print(
                f"  {route:12} {numbers['milliseconds']:8.2f} ms  "
                f"one {numbers['one_over_hand']:.2f}  "
                f"of a block {numbers['column_of_block_over_hand']:.2f}  "
                f"off {numbers['relative_difference']:.0e}"
            )
    if options.name:
        record = {
            "networks": found,
            "samples": SAMPLES,
            "rounds": options.rounds,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "versions": dict(Provenance().versions),
        }
        (RESULTS / f"{options.name}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
