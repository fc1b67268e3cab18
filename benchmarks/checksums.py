"""What checksums cost a run: seconds in them while a spectrum file is written and loaded.

    python benchmarks/checksums.py --model logistic --batches 100 --repeat 5

The run writes its file as ``hessrmt spectrum`` does, and the file is loaded once. Every call that
makes or compares a checksum of a row or a seal is timed on its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from spectrum import RESULTS, machine

import hessrmt as hr
from hessrmt.config import SpectrumConfig, load_settings
from hessrmt.runs import spectrum
from hessrmt.store import hdf5, spectra, writing


class Clock:
    """Seconds spent in functions that are called through it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def call(*args: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds += time.perf_counter() - begin

        return call


PLACES = ((spectra, "checksums"), (writing, "checksums"), (hdf5, "seal"), (hdf5, "is_sealed"))
"""Modules and the names under which they make or compare checksums."""


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="logistic")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--name", default="checksums-2core-cpu", help="of the result file")
    options = parser.parse_args()
    prepared = spectrum.prepare(
        load_settings(
            SpectrumConfig,
            model=options.model,
            split="train",
            batches=options.batches,
            device="cpu",
        )
    )
    runs = []
    for _ in range(options.repeat):
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            for module, name in PLACES:
                stand_in = patch.object(module, name, clock.timed(getattr(module, name)))
                stand_in.start()
            path = Path(folder) / "spectra.h5"
            begin = time.perf_counter()
            spectrum.run(prepared, path)
            written, of_writing = time.perf_counter() - begin, clock.seconds
            begin, clock.seconds = time.perf_counter(), 0.0
            hr.load(path)
            loaded = time.perf_counter() - begin
            patch.stopall()
        runs.append(
            {
                "run_seconds": written,
                "checksums_in_run": of_writing,
                "load_seconds": loaded,
                "checksums_in_load": clock.seconds,
            }
        )
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    cost = (medians["checksums_in_run"] + medians["checksums_in_load"]) / medians["run_seconds"]
    found = {
        "model": options.model,
        "batches": options.batches,
        "machine": machine(),
        "medians": medians,
        "cost_of_run": cost,
        "runs": runs,
    }
    (RESULTS / f"{options.name}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(medians, indent=1))
    print(f"checksums, written and compared: {100 * cost:.3f} % of the run")


if __name__ == "__main__":
    main()
