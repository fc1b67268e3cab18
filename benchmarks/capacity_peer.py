"""weightwatcher's side of benchmarks/capacity.py: run by that script in an environment of its own.

python capacity_peer.py WEIGHTS.safetensors   # prints one line of JSON
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys
import time
import warnings
from importlib import import_module, metadata
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn


def linears(file: str) -> nn.ModuleDict:
    """Every matrix of a file whose name doesn't say embedding, as a linear layer."""
    found = nn.ModuleDict()
    for name, values in load_file(file).items():
        if values.ndim == 2 and "embedding" not in name:
            layer = nn.Linear(values.shape[1], values.shape[0], bias=False)
            layer.weight = nn.Parameter(values, requires_grad=False)
            found[name.removesuffix(".weight").replace(".", "-")] = layer
    return found


def main() -> None:
    """One analysis with default options, after a small one that loads and starts everything."""
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()):
        watcher: Any = import_module("weightwatcher").WeightWatcher
        watcher(model=nn.ModuleDict({"a": nn.Linear(60, 50)})).analyze()
        network = linears(sys.argv[1])
        begin = time.perf_counter()
        details = watcher(model=network).analyze()
        seconds = time.perf_counter() - begin
    found = {
        "seconds": seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "alpha": dict(zip(details["longname"], details["alpha"], strict=True)),
        "log_norm": dict(zip(details["longname"], details["log_norm"], strict=True)),
        "threads": torch.get_num_threads(),
        "versions": {name: metadata.version(name) for name in ("weightwatcher", "torch", "scipy")},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
