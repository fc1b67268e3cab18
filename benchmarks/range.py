"""Exact spectra at the cost of the rank, against the dense road and torch.func.

    python benchmarks/range.py lenet5-1 lenet5-4 wide-4 --repeat 3
    python benchmarks/range.py --help

Roads, all float64, on the first digits of the embedded MNIST test split (noise of the same shape as
CIFAR-10 for a ResNet, random characters for the language model):

- auto: ``hessrmt.spectrum`` as it comes; range and dense: with ``reduce="range"``, ``"dense"``;
- library: ``torch.func`` Hessian (jacfwd of jacrev) in chunks, then ``torch.linalg.eigvalsh``.

Each timing is a process of its own, so that its peak memory is its own, after a tiny network that
loads and starts the libraries. Roads take turns. The largest difference of eigenvalues from those
of the dense road, over the sum of the two noise floors, goes with them to results/.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spectrum import library
from torch import nn

import hessrmt as hr
from hessrmt.problems import data, models
from hessrmt.records import Provenance

RESULTS = Path(__file__).parent / "results"
ROADS = ("auto", "range", "dense", "library")
VOCABULARY, LENGTH, WIDTH = 65, 16, 32


class Language(nn.Module):
    """Two transformer layers over characters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.place = nn.Parameter(torch.randn(LENGTH, WIDTH) / 50)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Scores of the next character, (batch, length, vocabulary)."""
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=self.place.dtype)
        return self.head(self.layers(self.embed(tokens) + self.place, mask=mask))


def next_character(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over all places."""
    return nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())


def problem(case: str) -> hr.Problem:
    """A network and its samples by name, e.g. ``lenet5-4``."""
    name, _, count = case.rpartition("-")
    batch, drawn = int(count), torch.manual_seed(0)
    if name == "language":
        tokens = torch.randint(VOCABULARY, (batch, LENGTH + 1), generator=drawn)
        return hr.Problem(Language().eval(), next_character, (tokens[:, :-1], tokens[:, 1:]))
    split = data.load("mnist", "test")
    x, y = split.tensors(slice(0, batch))
    if name == "resnet8":
        x = torch.randn(batch, 3, 32, 32, dtype=torch.float64, generator=drawn)
        model = models.resnet((3, 32, 32), 10, 8, first=8)
        return hr.Problem(model.eval(), "cross-entropy", (x, y))
    if name == "wide":
        model = models.mlp(split.input_shape, 10, (512, 512))
    else:
        model = models.build(name, split.input_shape, 10, 0)
    return hr.Problem(model.eval(), "cross-entropy", (x, y))


def one(case: str, road: str, out: Path) -> dict[str, Any]:
    """One spectrum in this process; its eigenvalues go to a file."""
    labels = torch.tensor([0, 1])
    tiny = hr.Problem(models.mlp((5,), 4, (4,)), "cross-entropy", (torch.ones(2, 5), labels))
    hr.spectrum(tiny, device="cpu")
    given, base, begin = problem(case), _peak(), time.perf_counter()
    if road == "library":
        values, facts = library(given), {"rows": given.dimension}
    else:
        found = hr.spectrum(given, device="cpu", reduce=road)
        values = found.eigenvalues
        facts = {
            "rows": found.reduced_dimension,
            "rank": found.rank,
            "noise_floor": found.noise_floor,
            "check": found.check,
            "phases": dict(found.seconds),
        }
    seconds = time.perf_counter() - begin
    np.save(out, values)
    return {
        "parameters": len(values),
        "seconds": seconds,
        "base_bytes": base,
        "peak_bytes": _peak(),
        **facts,
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(case: str, roads: list[str], repeat: int) -> dict[str, Any]:
    """All roads of a case, in turns."""
    found: dict[str, list[dict[str, Any]]] = {road: [] for road in roads}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repeat):
            for road in roads:
                out = Path(folder) / f"{road}.npy"
                command = [sys.executable, __file__, "--child", case, road, str(out)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[road].append(json.loads(done.stdout))
                print(f"{case} {road} {turn}: {found[road][-1]['seconds']:.1f} s", flush=True)
        values = {road: np.load(Path(folder) / f"{road}.npy") for road in roads}
    result: dict[str, Any] = {"case": case, "roads": {}}
    for road, runs in found.items():
        last = runs[-1]
        result["roads"][road] = {
            **last,
            "all_seconds": [run["seconds"] for run in runs],
            "seconds": statistics.median(run["seconds"] for run in runs),
        }
        if road != "dense" and "dense" in values:
            apart = np.abs(values[road] - values["dense"]).max()
            floors = [found[r][-1].get("noise_floor", 0.0) for r in (road, "dense")]
            result["roads"][road]["difference"] = float(apart)
            result["roads"][road]["difference_over_floors"] = float(apart / sum(floors))
            times = [result["roads"][r]["seconds"] for r in ("dense", road) if r in result["roads"]]
            if len(times) == 2:
                result["roads"][road]["times_faster_than_dense"] = times[0] / times[1]
    return result


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=3, metavar=("CASE", "ROAD", "FILE"))
    parser.add_argument("cases", nargs="*", help="lenet5-B, wide-B, language-B, resnet8-B, mlp3-B")
    parser.add_argument("--roads", nargs="+", choices=ROADS, default=["auto", "dense"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "range-2core-cpu.json")
    given = parser.parse_args()
    if given.child:
        case, road, out = given.child
        print(json.dumps(one(case, road, Path(out))))
        return
    kept: dict[str, Any] = {"cases": []}
    if given.out.exists():
        kept = json.loads(given.out.read_text())
    for case in given.cases:
        new = measure(case, given.roads, given.repeat)
        kept["cases"] = [c for c in kept["cases"] if c["case"] != case] + [new]
        kept |= {
            "machine": {"cpu": platform.processor(), "threads": torch.get_num_threads()},
            "versions": dict(Provenance().versions),
        }
        given.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
