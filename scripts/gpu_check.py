"""Check this machine's GPU against its CPU, and time the eigenvalue solver.

    python scripts/gpu_check.py

Compares every verb of the GPU backend and whole spectra of MNIST with the CPU's, prints a table
and writes ``benchmarks/results/gpu_check-<device>.json``. Exit code 0 if all agree, 1 if not, 2
without a GPU.
"""

import argparse
import datetime as dt
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import hessrmt as hr
from hessrmt.backend.base import Backend
from hessrmt.backend.cpu import CpuBackend
from hessrmt.backend.select import select
from hessrmt.errors import DeviceError
from hessrmt.problems import data, models

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
PACKAGES = ("hessrmt", "torch", "numpy", "cupy-cuda12x", "cupy-cuda13x")
PARITY_SIZES = (1, 33, 100, 513, 2000)
REPEATS = 3


def check_verbs(cpu: Backend, gpu: Backend) -> list[dict[str, Any]]:
    """Differences of the verbs on random matrices.

    Args:
        cpu: The oracle.
        gpu: What is checked.

    Returns:
        One entry for each verb, size and precision: the largest difference and its tolerance.
    """
    found = []
    for dtype in (torch.float64, torch.float32):
        for n in PARITY_SIZES:
            here = torch.randn(n, n, dtype=dtype, generator=torch.Generator().manual_seed(n))
            there = here.to(gpu.device, copy=True)
            gap = abs(gpu.symmetrize_(there) - cpu.symmetrize_(here))
            gap = max(gap, float((there.cpu() - here).abs().max()))
            name = f"n = {n}, {str(dtype).removeprefix('torch.')}"
            found.append(_entry(f"symmetrize, {name}", gap, 0.0))  # the same bits
            expected = cpu.eigvalsh(here.clone())
            gap = float(np.abs(gpu.eigvalsh(there) - expected).max())
            found.append(_entry(f"eigvalsh, {name}", gap, _tolerance(expected, n, dtype)))
    return found


def check_spectrum(name: str, batch: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Difference of a whole spectrum.

    Args:
        name: Model of the registry.
        batch: Samples in the batch.

    Returns:
        The comparison, and the seconds of each phase on either device.
    """
    split = data.load("mnist", "test")
    model = models.build(name, split.input_shape, split.outputs, seed=0).eval()
    pair = split.tensors(slice(0, batch), torch.float64)
    problem = hr.Problem(model, "cross-entropy", pair)
    here = hr.spectrum(problem, device="cpu")
    there = hr.spectrum(problem, device="cuda")
    gap = float(np.abs(there.eigenvalues - here.eigenvalues).max())
    tolerance = _tolerance(here.eigenvalues, here.dimension, torch.float64)
    entries = [
        _entry(f"spectrum of {name}, P = {here.dimension:,}", gap, tolerance),
        _entry(f"loss of {name}", abs(there.loss - here.loss), 64 * np.finfo(float).eps),
    ]
    timing = {
        "model": name,
        "dimension": here.dimension,
        "rank": {"cpu": here.rank, "cuda": there.rank},
        "seconds": {"cpu": dict(here.seconds), "cuda": dict(there.seconds)},
        "data": split.origin,
    }
    return entries, timing


def time_eigvalsh(gpu: Backend, n: int) -> dict[str, Any]:
    """Median seconds of the backend's solver and of torch's on the same matrix.

    Args:
        gpu: The backend.
        n: Dimension.

    Returns:
        Plain values.
    """
    generator = torch.Generator(gpu.device).manual_seed(0)
    matrix = torch.randn(n, n, dtype=torch.float64, device=gpu.device, generator=generator)
    gpu.symmetrize_(matrix)
    return {
        "n": n,
        "backend": _seconds(lambda: gpu.eigvalsh(matrix.clone())),
        "torch": _seconds(lambda: torch.linalg.eigvalsh(matrix)),
    }


def _tolerance(levels: np.ndarray, n: int, dtype: torch.dtype) -> float:
    """Backward stability of two solvers, 10 n ε ‖A‖₂."""
    return 10 * n * torch.finfo(dtype).eps * float(np.abs(levels).max())


def _entry(what: str, difference: float, tolerance: float) -> dict[str, Any]:
    agrees = bool(difference <= tolerance)  # False for NaN
    return {"what": what, "difference": difference, "tolerance": tolerance, "agrees": agrees}


def _seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(1 + REPEATS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first one warms up


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"cuda (torch)": torch.version.cuda}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _show(checks: list[dict[str, Any]], solver: str, timings: list[dict[str, Any]]) -> None:
    table = Table("check", "largest difference", "tolerance", "", title="GPU against CPU")
    for entry in checks:
        verdict = "agrees" if entry["agrees"] else "[bold red]DIFFERS[/bold red]"
        table.add_row(
            entry["what"], f"{entry['difference']:.2e}", f"{entry['tolerance']:.2e}", verdict
        )
    console = Console()
    console.print(table)
    table = Table("n", "backend (s)", "torch (s)", title=f"eigenvalues in float64: {solver}")
    for row in timings:
        table.add_row(f"{row['n']:,}", f"{row['backend']:.3f}", f"{row['torch']:.3f}")
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    """Run all checks.

    Args:
        arguments: Command line without the program's name; None takes the process's own.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="*", default=["logistic", "mlp2"], help="registry names")
    parser.add_argument("--batch", type=int, default=64, help="samples in the batch")
    parser.add_argument("--sizes", nargs="*", type=int, default=[1000, 2000, 4000, 8000])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    options = parser.parse_args(arguments)
    try:
        gpu = select("cuda")
    except DeviceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    checks = check_verbs(CpuBackend(), gpu)
    spectra = []
    for name in options.models:
        entries, timing = check_spectrum(name, options.batch)
        checks += entries
        spectra.append(timing)
    timings = [time_eigvalsh(gpu, n) for n in options.sizes]
    _show(checks, gpu.solver, timings)
    device = torch.cuda.get_device_name(gpu.device)
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    target = options.out / f"gpu_check-{slug}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "device": device,
        "solver": gpu.solver,
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
        "checks": checks,
        "eigvalsh_seconds": timings,
        "spectra": spectra,
    }
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written: {target}")
    return 0 if all(entry["agrees"] for entry in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
