"""Errors of eigenvalues by finite differences, beside what is stated of them.

    python benchmarks/differences.py --name differences-cpu

Five smooth networks at random parameters and after 200 steps of Adam on the batch, in float64 and
float32, and two that are not smooth: the five eigenvalues of largest magnitude by ``hr.eigsh`` of
``hr.Hessian(problem, products="finite-difference")`` against LAPACK on the dense Hessian of the
same numbers in float64. Everything is relative to ‖H‖₂ but the step. Beside it the
least error that any step leaves along the leading eigenvector, for quotients of
second and of fourth order.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import torch
from torch import nn

import hessrmt as hr
from hessrmt.curvature.certify import gradient
from hessrmt.errors import ProblemError
from hessrmt.records import Provenance

RESULTS = Path(__file__).parent / "results"


def mlp(activation: type[nn.Module]) -> nn.Module:
    """10-32-32-3."""
    layers = [nn.Linear(10, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 3)]
    return nn.Sequential(*layers)


NETWORKS = {
    "tanh": lambda: mlp(nn.Tanh),
    "gelu": lambda: mlp(nn.GELU),
    "softplus": lambda: mlp(nn.Softplus),
    "layer norm, silu": lambda: nn.Sequential(
        nn.Linear(10, 32), nn.LayerNorm(32), nn.SiLU(), nn.Linear(32, 3)
    ),
    "sigmoid": lambda: mlp(nn.Sigmoid),
    "relu": lambda: mlp(nn.ReLU),
    "elu": lambda: mlp(nn.ELU),
}


def problem(name: str, trained: bool, dtype: torch.dtype) -> hr.Problem:
    """Network and 64 samples, seed 1, all numbers of that precision."""
    torch.manual_seed(1)
    x, y = torch.randn(64, 10), torch.randint(0, 3, (64,))
    model = NETWORKS[name]()
    if trained:
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(200):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
    return hr.Problem(model.to(dtype), "cross-entropy", (x.to(dtype), y))


def best_steps(given: hr.Problem, v: np.ndarray, image: np.ndarray, dtype: torch.dtype) -> dict:
    """The least error of second and of fourth order over all steps."""
    local = given.at(dtype, torch.device("cpu"))
    theta, unit = local.theta, torch.from_numpy(v).to(dtype)
    least = {"order_2": np.inf, "order_4": np.inf}

    def quotient(step: float) -> torch.Tensor:
        up, down = (gradient(local.loss, theta + s * step * unit) for s in (1, -1))
        return ((up - down) / (2 * step)).double()

    for power in range(2, 24):
        step = 2.0**-power
        near, far = quotient(step), quotient(2 * step)
        for name, product in (("order_2", near), ("order_4", (4 * near - far) / 3)):
            least[name] = min(least[name], float(np.linalg.norm(product.numpy() - image)))
    return least


def measured(name: str, trained: bool, dtype: str) -> dict:
    """One row."""
    given = problem(name, trained, getattr(torch, dtype))
    row = {"network": name, "trained": trained, "dtype": dtype, "parameters": given.dimension}
    try:
        hessian = hr.Hessian(given, products="finite-difference", dtype=dtype)
        found = hr.eigsh(hessian, 5, "LM", tolerance=1e-12)
    except ProblemError as error:
        return row | {"refused": str(error)}
    dense = hr.hessian(given)
    exact, vectors = np.linalg.eigh(dense)
    leading = np.argsort(-np.abs(exact), kind="stable")[:5]
    norm = float(np.abs(exact).max())
    errors = np.abs(found.values - np.sort(exact[leading])) / norm
    v = vectors[:, leading[0]]
    best = best_steps(given, v, dense @ v, getattr(torch, dtype))
    return row | {
        "step": hessian._differences.step,
        "kinked": hessian._differences.kinked,
        "rounding": hessian.rounding() / norm,
        "largest_error": float(errors.max()),
        "largest_bound": float(found.bounds.max()) / norm,
        "within": bool((errors <= found.bounds / norm + len(dense) * 2.3e-16).all()),
        "best_possible": {key: value / norm for key, value in best.items()},
    }


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    name = parser.parse_args().name
    rows = [
        measured(kind, trained, dtype)
        for kind in NETWORKS
        for trained in (False, True)
        for dtype in ("float64", "float32")
    ]
    record = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": Provenance().versions,
        "rows": rows,
    }
    RESULTS.joinpath(f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
