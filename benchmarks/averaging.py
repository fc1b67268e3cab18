"""Iterate averaging on sampled loss surfaces: when it removes the noise, and when it does not.

    python benchmarks/averaging.py

Full-batch gradient descent from the minimum of L_true = ½|w|² on L_true + ε, ε a surface of random
features with the squared exponential kernel of unit gradient variance, k'(0) = 1. Compared is
2 L_true/P at the last iterate and at the average of the second half of the trajectory, over many
surfaces; a hundred independent gradients would give a gain of a hundred.

Source: Baskerville, Granziol and Keating 2022, section 8, equation (21) and the text after it.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
from spectrum import RESULTS, machine

from hessrmt import lossmodel
from hessrmt.records import Provenance

LENGTHS = (4.0, 1.0)
RATES = {0.02: 1000, 0.2: 200, 1.0: 200}
"""Learning rate to steps: enough to come to rest where descent comes to rest."""
DIMENSIONS = (4, 16, 64, 256)


def measure(length: float, rate: float, dimension: int, surfaces: int) -> dict[str, Any]:
    """Excess true loss of one component, twice, and the gain of the tail average."""
    cov = lossmodel.rbf(length**2, length)
    found = []
    for index in range(surfaces):
        true = lossmodel.quadratic(np.ones(dimension), dimension)
        features = max(512, 8 * dimension)
        surface = lossmodel.random_surface(
            cov, dimension, features, seed=1, index=index, true_loss=true
        )
        path = lossmodel.descend(surface, np.zeros(dimension), rate, RATES[rate])
        losses = lossmodel.true_losses(surface, path, tail=0.5)
        found.append((2 * losses.last / dimension, 2 * losses.tail_average / dimension))
    last, tail = np.mean(found, axis=0)
    errors = np.std(found, axis=0, ddof=1) / surfaces**0.5
    return {
        "length": length,
        "learning_rate": rate,
        "dimension": dimension,
        "surfaces": surfaces,
        "last": last,
        "last_error": errors[0],
        "tail_average": tail,
        "tail_average_error": errors[1],
        "gain": last / tail,
    }


def main() -> None:
    """Measure, print, store the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--surfaces", type=int, default=20, help="for each setting")
    options = parser.parse_args()
    rows = []
    for length in LENGTHS:
        for rate in RATES:
            for dimension in DIMENSIONS:
                rows.append(measure(length, rate, dimension, options.surfaces))
                print(json.dumps(rows[-1]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    table = {"machine": machine(), "versions": dict(Provenance().versions), "rows": rows}
    text = json.dumps(table, indent=2) + "\n"
    (RESULTS / "averaging-2core-cpu.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
