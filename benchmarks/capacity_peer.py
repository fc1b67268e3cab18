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

COLUMNS = (
    *("alpha", "D", "sigma", "num_pl_spikes", "stable_rank", "matrix_rank", "entropy"),
    *("log_norm", "log_spectral_norm", "log_alpha_norm", "alpha_weighted", "num_evals"),
)
"""Of weightwatcher's table."""


def network(file: str) -> nn.ModuleDict:
    """A file's matrices but embeddings as linear layers, its kernels as convolutions."""
    found = nn.ModuleDict()
    for name, values in load_file(file).items():
        layer: nn.Module | None = None
        if values.ndim == 2 and "embedding" not in name:
            layer = nn.Linear(values.shape[1], values.shape[0], bias=False)
        elif values.ndim == 4:  # as it is stored, whatever groups it has
            outputs, inputs, *kernel = values.shape
            layer = nn.Conv2d(inputs, outputs, (kernel[0], kernel[1]), bias=False)
        if layer is not None:
            layer.load_state_dict({"weight": values})
            found[name.removesuffix(".weight").replace(".", "-")] = layer.requires_grad_(False)
    return found


def main() -> None:
    """One analysis with default options, after a small one that loads and starts everything."""
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()):
        watcher: Any = import_module("weightwatcher").WeightWatcher
        watcher(model=nn.ModuleDict({"a": nn.Linear(60, 50)})).analyze()
        model = network(sys.argv[1])
        begin = time.perf_counter()
        details = watcher(model=model).analyze()
        seconds = time.perf_counter() - begin
    found = {
        "seconds": seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "layers": {
            row["longname"]: {name: float(row[name]) for name in COLUMNS}
            for _, row in details.iterrows()
        },
        "threads": torch.get_num_threads(),
        "versions": {name: metadata.version(name) for name in ("weightwatcher", "torch", "scipy")},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
