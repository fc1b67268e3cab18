"""Windows of large networks: all eigenvalues of LeNet-5's upper edge, and as many of ResNet-20's.

    python benchmarks/window.py lenet5 --batch 1 --name window-lenet5-2core-cpu
    python benchmarks/window.py resnet20 --minutes 60 --name window-resnet20-2core-cpu

lenet5: P = 61,706, first samples of the embedded MNIST test split, seed 0. All eigenvalues from
``--share`` of the largest on, by ``hessrmt.eigsh(H, window=...)``, against those of the exact
spectrum, with mean spacing ratios of both.

resnet20: P = 272,474, 32 x 32 colour noise and random classes, evaluation mode. Windows reach
lower and lower, each with up to twice as many eigenvalues as the one before, as long as the next
one is expected to end within ``--minutes``. What counts is the last one; all are recorded.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hessrmt as hr
from hessrmt.curvature.lanczos import Eigenpairs
from hessrmt.problems import data, models
from hessrmt.records import Provenance

RESULTS = Path(__file__).parent / "results"
FIRST = 20
"""Eigenvalues that the first window is guessed from."""

LEAST_GAIN = 1.2
"""A window that holds fewer times as many eigenvalues is not worth another search."""


def mean_ratio(values: np.ndarray) -> dict[str, float]:
    """Mean ratio of neighbouring spacings, and its standard error as if ratios were independent."""
    ratios = hr.levels.ratios(values)
    return {"mean": float(ratios.mean()), "error": float(ratios.std() / len(ratios) ** 0.5)}


def described(found: Eigenpairs, seconds: float) -> dict[str, Any]:
    """What is said of one window."""
    window: Any = found.window
    gaps = np.diff(found.values)
    return {
        "seconds": seconds,
        "eigenvalues": len(found),
        "complete": window.complete,
        **{name: getattr(window, name) for name in ("low", "complete_from", "matched_bound")},
        "failure_probability": window.failure_probability,
        "check_steps": window.steps,
        "products": found.products,
        "largest": float(found.values[-1]),
        "largest_bound": float(found.bounds.max()),
        "smallest_spacing": float(gaps.min()),
        "spacing_ratio": mean_ratio(found.values),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def timed(operator: hr.CurvatureOperator, low: float) -> tuple[Eigenpairs, dict[str, Any]]:
    """All eigenvalues from a bound on."""
    begin = time.perf_counter()
    found = hr.eigsh(operator, window=(low, None), tolerance=1e-10)
    return found, described(found, time.perf_counter() - begin)


def lenet5(batch: int, share: float) -> dict[str, Any]:
    """The window and the exact spectrum."""
    split = data.load("mnist", "test")
    model = models.build("lenet5", split.input_shape, 10, 0).double()
    problem = hr.Problem(model, "cross-entropy", split.tensors(slice(0, batch)))
    operator = hr.CurvatureOperator.of(problem, device="cpu")
    low = share * float(hr.eigsh(operator, 1).values[0])
    found, facts = timed(operator, low)
    print(json.dumps(facts, indent=1), flush=True)
    begin = time.perf_counter()
    exact = hr.spectrum(problem, device="cpu")
    seconds = time.perf_counter() - begin
    own = exact.eigenvalues[exact.eigenvalues >= low]
    same = len(own) == len(found)
    return {
        "window": facts,
        "exact": {
            "seconds": seconds,
            "rows": exact.reduced_dimension,
            "rank": exact.rank,
            "noise_floor": exact.noise_floor,
            "eigenvalues_in_window": len(own),
            "positive": int(np.count_nonzero(exact.resolved > 0)),
            "spacing_ratio": mean_ratio(own),
        },
        "largest_difference": float(np.abs(found.values - own).max()) if same else None,
    }


def resnet20(batch: int, minutes: float) -> dict[str, Any]:
    """Windows that reach lower and lower."""
    begin = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, 32, 32, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 10, (batch,), generator=generator)
    model = models.build("resnet20", (3, 32, 32), 10, 0).double().eval()
    problem = hr.Problem(model, "cross-entropy", (x, y))
    operator = hr.CurvatureOperator.of(problem, device="cpu")
    values = hr.eigsh(operator, FIRST, check_multiplicity=True).values
    stages, power, factor = [], 1.5, 2.0
    while factor >= LEAST_GAIN:
        # the logarithm of the k-th eigenvalue falls with k as over the lower half of those known
        half = np.log(values[: len(values) // 2 + 1])
        slope = (half[-1] - half[0]) / (len(half) - 1)
        low = float(np.exp(half[0] - slope * (factor - 1) * len(values)))
        found, facts = timed(operator, low)
        stages.append(facts)
        print(json.dumps(facts), flush=True)
        if len(stages) > 1:
            grown = np.log(len(found) / len(values))
            longer = np.log(facts["seconds"] / stages[-2]["seconds"])
            power = float(np.clip(longer / grown, 1.0, 2.5)) if grown > 0 else power
        values, last = found.values, facts["seconds"]
        left = 60 * minutes - (time.perf_counter() - begin)
        factor = min(2.0, max(0.0, 0.9 * left / last) ** (1 / power))
    return {"parameters": operator.dimension, "stages": stages, "last": stages[-1]}


def main() -> None:
    """Measure, print, store the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("network", choices=("lenet5", "resnet20"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--share", type=float, default=1e-3, help="of λ_max, for lenet5")
    parser.add_argument("--minutes", type=float, default=60.0, help="in all, for resnet20")
    parser.add_argument("--name", help="of the result file")
    options = parser.parse_args()
    if options.network == "lenet5":
        measured = lenet5(options.batch, options.share)
    else:
        measured = resnet20(options.batch, options.minutes)
    result = {
        "machine": {"processor": platform.processor(), "threads": torch.get_num_threads()},
        "versions": dict(Provenance().versions),
        "settings": {k: v for k, v in vars(options).items() if k != "name"},
        **measured,
    }
    print(json.dumps(measured, indent=1))
    if options.name:
        stored = RESULTS / f"{options.name}.json"
        stored.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
