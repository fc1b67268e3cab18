"""Batches a second with worker processes, against one process, in one run.

    python benchmarks/cluster.py mlp2 --batches 16 --repeat 5

Routes, all float64, all on the same batches of 64 of the embedded MNIST test split, each writing a
spectrum file of its own:

- one worker: ``--workers 1`` with one thread;
- workers: ``--workers N``, N the number of cores, one thread each;
- process: no workers, this process with N threads.

The routes take turns. Workers and process have computed some batches before the first timing, so
that no library is loaded and no problem prepared in it; starting workers takes some seconds more,
which are stored as start-up. The files of one worker and of all of them must be equal bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

CORES = len(os.sched_getaffinity(0))
LIBRARIES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
for library in LIBRARIES:  # before they are loaded: this process has all cores
    os.environ[library] = str(CORES)
os.environ.setdefault("MKL_CBWR", "AUTO")

import numpy as np  # noqa: E402
from spectrum import RESULTS, machine  # noqa: E402

from hessrmt.config import SpectrumConfig, load_settings  # noqa: E402
from hessrmt.records import Provenance  # noqa: E402
from hessrmt.runs import spectrum  # noqa: E402
from hessrmt.runs.dask_pool import open_pool  # noqa: E402
from hessrmt.runs.run import SERIAL, Pool  # noqa: E402


def settings(model: str, batches: int) -> spectrum.Batches:
    """The run of one timing."""
    return spectrum.prepare(
        load_settings(SpectrumConfig, model=model, batches=batches, device="cpu")
    )


def timed(prepared: spectrum.Batches, pool: Pool) -> tuple[float, np.ndarray]:
    """Seconds of one run, and its eigenvalues."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        found = spectrum.run(prepared, Path(folder) / "spectra.h5", pool=pool)
        return time.perf_counter() - begin, found.eigenvalues


def started(workers: int, stack: ExitStack) -> Pool:
    """Workers of one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        return stack.enter_context(open_pool(workers, device="cpu"))
    finally:
        os.environ["OMP_NUM_THREADS"] = str(CORES)


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", choices=["logistic", "mlp2", "mlp3"])
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--name", default=f"cluster-{CORES}core-cpu", help="of the result file")
    options = parser.parse_args()
    prepared = settings(options.model, options.batches)
    warm = settings(options.model, 2 * CORES)
    start_up = {}
    seconds: dict[str, list[float]] = {}
    levels = {}
    with ExitStack() as stack:
        pools: dict[str, Pool] = {"process": SERIAL}
        timed(warm, SERIAL)
        for name, workers in (("one worker", 1), ("workers", CORES)):
            begin = time.perf_counter()
            pools[name] = started(workers, stack)
            timed(settings(options.model, workers), pools[name])
            start_up[name] = time.perf_counter() - begin
            timed(warm, pools[name])
        for _ in range(options.repeat):
            for name, pool in pools.items():
                one, levels[name] = timed(prepared, pool)
                seconds.setdefault(name, []).append(one)
                print(f"{name}: {one:.2f} s", file=sys.stderr, flush=True)
    if not np.array_equal(levels["one worker"], levels["workers"]):
        raise SystemExit("the files of one worker and of several differ")
    median = {name: statistics.median(values) for name, values in seconds.items()}
    found = {
        "batches": options.batches,
        "workers": CORES,
        "seconds": seconds,
        "start_up_seconds_with_first_batches": start_up,
        "batches_per_second": {name: options.batches / value for name, value in median.items()},
        "ratio_to_one_worker": median["one worker"] / median["workers"],
        "ratio_to_process": median["process"] / median["workers"],
        "equal_bit_for_bit_to_one_worker": True,
    }
    print(
        f"{options.model}: {CORES} workers {found['ratio_to_one_worker']:.2f}x one worker, "
        f"{found['ratio_to_process']:.2f}x one process of {CORES} threads"
    )
    RESULTS.mkdir(exist_ok=True)
    stored = RESULTS / f"{options.name}.json"
    table = json.loads(stored.read_text("utf-8"))["models"] if stored.exists() else {}
    result = {
        "machine": machine(),
        "versions": dict(Provenance().versions),
        "models": table | {options.model: found},
    }
    stored.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
