"""Numbers and pictures of docs/gradient-flow.md and docs/approximation.md.

    python scripts/flow_figures.py [--out docs/figures] [--only flow|approximation]

Prints one JSON object. About five minutes on one core; every run is deterministic.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import hessrmt as hr
from hessrmt.generalization.approximation import KINDS, study
from hessrmt.generalization.bias_free import (
    initial_layers,
    linear_task,
    maximum_margin,
    quadrant_task,
)
from hessrmt.generalization.flow import Flow, direction_distances, gradient_flow
from hessrmt.plots.files import save
from hessrmt.plots.generalization import (
    approximation_errors,
    curvature,
    distances,
    margin_growth,
    norms,
)

FLOWS = ("descent", "constrained", "weight-normalization")
STUDIES = ((4, (2, 4, 8, 16), 2048), (8, (2, 4, 8), 4096))
"""Inputs, widths of the nodes and points of each study."""


def of_flow(flow: Flow) -> dict[str, Any]:
    """What is said of a flow.

    Args:
        flow: The flow.

    Returns:
        Plain values.
    """
    first = flow.separated_from
    growth = flow.norm_growth[first:]
    grown = flow.scales[-1] ** 2 - flow.scales[0] ** 2
    return {
        "separated at log(1 + t)": None
        if first is None
        else round(float(flow.log_times[first]), 2),
        "margin": float(flow.margin[-1]),
        "largest drop": flow.largest_drop,
        "sines": flow.misalignment().tolist(),
        "rho margin / log t": float(flow.rho[-1] * flow.margin[-1] / flow.log_times[-1]),
        "lemma 1, gradients": float((np.ptp(growth, axis=1) / growth.mean(axis=1)).max()),
        "lemma 1, norms": float(np.ptp(grown) / grown.mean()),
        "evaluations": flow.solver.evaluations,
    }


def _grid(kind: str) -> np.ndarray:
    """Values of log(1 + t), evenly in their logarithm."""
    return np.concatenate([[0.0], np.geomspace(0.1, 1e5 if kind == "descent" else 1e4, 300)])


def flows(out: Path) -> dict[str, Any]:
    """Everything of docs/gradient-flow.md.

    Args:
        out: Folder of the pictures.

    Returns:
        Plain values.
    """
    found: dict[str, Any] = {}
    x, y = quadrant_task(24, 2, seed=3)
    relu = {
        (kind, seed): gradient_flow(
            initial_layers([2, 10, 1], seed), x, y,
            kind=kind, activation="smooth-relu", log_time=100,
        )
        for kind in FLOWS
        for seed in range(3)
    }  # fmt: skip
    found["smooth ReLU"] = {f"{k} {s}": of_flow(flow) for (k, s), flow in relu.items()}
    start = initial_layers([2, 10, 1], 0)
    flow = gradient_flow(start, x, y, activation="smooth-relu", log_time=40)
    save(
        margin_growth(flow, "Smallest margin of a ReLU network, gradient descent"),
        out / "flow-margin.png",
    )
    indices = list(range(0, 301, 20))
    plain = [hr.spectrum(flow.problem(i)) for i in indices]
    within = [hr.spectrum(flow.normalized_problem(i)) for i in indices]
    save(curvature(flow, indices, plain, within), out / "flow-hessian.png")
    found["Hessians"] = [
        {
            "log(1 + t)": float(flow.log_times[i]),
            "loss": float(flow.losses[i]),
            "of W": [float(a.eigenvalues[0]), float(a.eigenvalues[-1])],
            "positive of W": int((a.resolved > 0).sum()),
            "of V": [float(b.eigenvalues[0]), float(b.eigenvalues[-1])],
            "positive of V": int((b.resolved > 0).sum()),
        }
        for i, a, b in zip(indices, plain, within, strict=True)
    ]
    drops = {}
    for task, widths in (("quadrants 12 x 4", [4, 6, 5, 1]), ("quadrants 12 x 4", [4, 8, 1])):
        x4, y4 = quadrant_task(12, 4, seed=7)
        drops[f"{task}, {widths}"] = [
            gradient_flow(
                initial_layers(widths, seed, 1.5), x4, y4, activation="smooth-relu", log_time=12
            ).largest_drop
            for seed in range(8)
        ]
    found["largest drops"] = drops
    x, y = linear_task(30, 5, seed=1)
    best = maximum_margin(x, y)
    found["largest margin"] = best.margin
    linear = {
        "one layer, descent": ([5, 1], "descent"),
        "one layer, constrained": ([5, 1], "constrained"),
        "two layers, descent": ([5, 4, 1], "descent"),
        "three layers, constrained": ([5, 4, 4, 1], "constrained"),
    }
    runs = {
        name: gradient_flow(
            initial_layers(widths, 0), x, y, kind=kind, activation="linear", saved=_grid(kind)
        )
        for name, (widths, kind) in linear.items()
    }
    found["linear"] = {
        name: {
            **of_flow(run),
            "distance": float(np.linalg.norm(run.linear_direction() - best.direction)),
        }
        for name, run in runs.items()
    }
    away = {
        name: (run.log_times, direction_distances(run, best.direction))
        for name, run in runs.items()
    }
    save(distances(away, "Linear networks, exponential loss"), out / "flow-linear.png")
    depths = {
        f"{len(widths) - 1} layer{'s' * (len(widths) > 2)}": gradient_flow(
            initial_layers(widths, 0), x, y, activation="linear", log_time=100
        )
        for widths in ([5, 1], [5, 4, 1], [5, 4, 4, 1])
    }
    save(
        norms(depths, "Linear networks, gradient descent, exponential loss"), out / "flow-norms.png"
    )
    return found


def approximations(out: Path) -> dict[str, Any]:
    """Everything of docs/approximation.md.

    Args:
        out: Folder of the pictures.

    Returns:
        Plain values.
    """
    found: dict[str, Any] = {}
    for start in ("nodes", "random"):
        for n, widths, samples in STUDIES if start == "nodes" else STUDIES[:1]:
            done = []
            for constituent in ("polynomial", "sine", "cone"):
                begin = time.perf_counter()
                done.append(
                    study(
                        constituent, n, widths, seeds=5, samples=samples, iterations=60, start=start
                    )
                )
                entry: dict[str, Any] = {"seconds": round(time.perf_counter() - begin, 1)}
                for kind in KINDS:
                    l2, sup = done[-1].exponent(kind), done[-1].exponent(kind, "sup")
                    entry[kind] = {
                        "l2": np.exp(np.log(done[-1].l2[kind]).mean(1)).tolist(),
                        "best l2": done[-1].l2[kind].min(1).tolist(),
                        "fitted": np.exp(np.log(done[-1].fitted[kind]).mean(1)).tolist(),
                        "sup": np.exp(np.log(done[-1].sup[kind]).mean(1)).tolist(),
                        "exponents": [l2.exponent, l2.error, sup.exponent, sup.error],
                    }
                entry["advantage"] = done[-1].advantage()
                found[f"{constituent}, n = {n}, {start}"] = entry
            name = f"approximation-{n}.png" if start == "nodes" else "approximation-random.png"
            save(approximation_errors(done), out / name)
    return found


def main() -> int:
    """Run what was asked for and print it.

    Returns:
        Exit code 0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    parser.add_argument("--only", choices=("flow", "approximation"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found = {}
    if given.only != "approximation":
        found["flow"] = flows(given.out)
    if given.only != "flow":
        found["approximation"] = approximations(given.out)
    json.dump(found, sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
