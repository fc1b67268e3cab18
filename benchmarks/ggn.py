"""Gauss-Newton levels of ResNets: time and peak memory, each in a process of its own.

    python benchmarks/ggn.py --name ggn-2core-cpu

Random 3 x 32 x 32 inputs, ten classes, random initialisation, float64, evaluation mode.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import hessrmt as hr
from hessrmt.problems import models
from hessrmt.records import Provenance

RESULTS = Path(__file__).parent / "results"
RUNS = (("resnet20", 64), ("resnet56", 64), ("resnet20", 256))


def one(model: str, batch: int) -> dict[str, Any]:
    """One spectrum in this process."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, 32, 32, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 10, (batch,), generator=generator)
    network = models.build(model, (3, 32, 32), 10, 0).eval()
    begin = time.perf_counter()
    found = hr.spectrum(hr.Problem(network, "cross-entropy", (x, y)), device="cpu", operator="ggn")
    return {
        "model": model,
        "batch": batch,
        "threads": torch.get_num_threads(),
        "parameters": found.dimension,
        "rows": found.reduced_dimension,
        "rank": found.rank,
        "check": found.check,
        "seconds": time.perf_counter() - begin,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    """Run everything and print it; store it under a name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "BATCH"))
    parser.add_argument("--name", help="of the result file")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(one(options.child[0], int(options.child[1]))))
        return
    runs = []
    for model, batch in RUNS:
        command = [sys.executable, __file__, "--child", model, str(batch)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout))
        print(json.dumps(runs[-1]))
    if options.name:
        result = {"versions": dict(Provenance().versions), "runs": runs}
        (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
