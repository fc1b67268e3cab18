"""Write what weightwatcher says of the weights in tests/weight_samples.py, as a reference of tests.

    pip install weightwatcher==0.7.7   # in an environment of its own
    python scripts/weightwatcher_reference.py

Layers are analysed with default options, and with ``pool=False``: each slice of a convolution by
itself.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

TESTS = Path(__file__).parents[1] / "tests"
COLUMNS = (
    "alpha",
    "D",
    "sigma",
    "xmin",
    "num_pl_spikes",
    "lambda_max",
    "log_norm",
    "log_spectral_norm",
    "stable_rank",
    "entropy",
    "log_alpha_norm",
    "alpha_weighted",
    "matrix_rank",
)


def module(values: torch.Tensor) -> nn.Module:
    """A layer that holds a weight."""
    rows, columns = values.shape[:2]
    layer: nn.Module = nn.Linear(columns, rows, bias=False)
    if values.ndim == 4:
        layer = nn.Conv2d(columns, rows, (values.shape[2], values.shape[3]), bias=False)
    layer.load_state_dict({"weight": values})
    return layer


def main() -> None:
    """Analyse, and write the columns to tests/data."""
    sys.path.insert(0, str(TESTS))
    weights = import_module("weight_samples").weights()
    network = nn.ModuleDict({name: module(torch.from_numpy(w)) for name, w in weights.items()})
    watcher = import_module("weightwatcher").WeightWatcher(model=network)
    found: dict[str, Any] = {"version": metadata.version("weightwatcher")}
    for name, pool in (("pooled", True), ("slices", False)):
        details = watcher.analyze(pool=pool)
        table = {column: details[column].tolist() for column in ("longname", *COLUMNS)}
        summary = {key: float(value) for key, value in watcher.get_summary(details).items()}
        found[name] = {"columns": table, "summary": summary}
    target = TESTS / "data" / "weightwatcher.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
