"""Check this machine's GPU against its CPU, and time it against other libraries.

    python scripts/gpu_check.py

Runs the parity tests, compares every verb with its CPU twin, repeats that on small sizes under
compute-sanitizer where it is installed, times every verb against torch, CuPy and nvmath, compares
the ratios with the targets, suggests thresholds for ``hessrmt/backend/solvers.py`` and writes
``benchmarks/results/gpu_check-<device>.json``, also when a part failed: the reason is in it. Exit
code 0 if all comparisons agree and no kernel was replaced by another route, 1 if not, 2 without a
GPU.
"""

import argparse
import datetime as dt
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import gpu_parity
import gpu_peers
import gpu_timing
import torch
from gpu_parity import DTYPES, Entry, Log, Machine
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hessrmt.backend.compiling import compile_report
from hessrmt.backend.cpu import CpuBackend
from hessrmt.backend.memory import free_host_memory
from hessrmt.errors import DeviceError

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("hessrmt", "torch", "numpy", "cupy-cuda12x", "cupy-cuda13x", "nvmath-python")
PARITY_SIZES = (1, 2, 33, 64, 65, 160, 161, 325, 1000, 2000)
SANITIZED_SIZES = (1, 2, 33, 64, 65)
SIZES = (1000, 2000, 3000, 5000, 8000, 10_000, 15_000, 20_060, 30_000, 40_000)
BATCHES = ((100, 32), (100, 64), (100, 128), (100, 160), (100, 300), (32, 2750))


def gpu_machine(log: Log) -> Machine:
    """The first GPU, with every policy of its eigenvalue solver.

    Args:
        log: Told which peers are missing.

    Returns:
        What is checked.
    """
    from hessrmt.backend.cuda import cuda_backend

    policies = ("auto", "two-stage", "library")
    routes = {policy: cuda_backend(torch.device("cuda"), policy) for policy in policies}
    name = torch.cuda.get_device_name(routes["auto"].device)
    return Machine(name, CpuBackend(), routes, *gpu_peers.gpu_peers(log))


def run(command: list[str], limit: float) -> Entry:
    """Run a program.

    Args:
        command: Program and arguments.
        limit: Seconds.

    Returns:
        Exit code and the end of what it said.
    """
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False
    )
    said = f"{done.stdout}\n{done.stderr}".strip().splitlines()
    return {"command": " ".join(command), "exit_code": done.returncode, "tail": said[-30:]}


def run_tests() -> Entry:
    """The parity tests.

    Returns:
        Exit code and the end of pytest's report.
    """
    return run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py"], 3600)


def sanitize(tool: str) -> Entry:
    """Small comparisons of this script under compute-sanitizer.

    Args:
        tool: ``"memcheck"`` or ``"racecheck"``.

    Returns:
        Exit code and report; without the program why it did not run.
    """
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"tool": tool, "exit_code": None, "tail": ["not run: no compute-sanitizer on PATH"]}
    script = [sys.executable, str(Path(__file__)), "--compare-only", "--parity-sizes"]
    sizes = [str(n) for n in SANITIZED_SIZES]
    options = ["--tool", tool, "--error-exitcode", "9"]
    return {"tool": tool, **run([program, *options, *script, *sizes], 3600)}


def compare(machine: Machine, options: argparse.Namespace, log: Log) -> list[Entry]:
    """All comparisons with the CPU.

    Args:
        machine: What is checked.
        options: Sizes, models.
        log: Where failures go.

    Returns:
        Comparisons.
    """
    checks: list[Entry] = []
    for what, found in (
        ("eigenvalues", gpu_parity.check_eigenvalues(machine, options.parity_sizes, log)),
        ("other verbs", gpu_parity.check_other_verbs(machine, log)),
    ):
        if log.guarded(what, lambda found=found: checks.extend(found) or True) is None:
            checks.append({"what": what, "agrees": False})
    for model in options.models:
        checks.append(
            gpu_parity.compared(
                log,
                f"spectrum of {model}",
                lambda model=model: gpu_parity.check_spectrum(machine, model, options.batch),
            )
        )
    return checks


def measure(
    machine: Machine, options: argparse.Namespace, log: Log
) -> tuple[list[Entry], list[Entry]]:
    """All timings.

    Args:
        machine: What is timed.
        options: Sizes, repetitions.
        log: Where failures go.

    Returns:
        Timings, and comparisons of the eigenvalues on the way.
    """
    rows: list[Entry] = []
    checks: list[Entry] = []
    repeats = options.repeats
    races = [
        *((gpu_timing.time_eigvalsh, (n, dtype)) for dtype in DTYPES for n in options.sizes),
        *((gpu_timing.time_batch, (*b, dtype)) for dtype in DTYPES for b in options.batches),
    ]
    for time_it, about in races:
        done = log.guarded(
            f"{time_it.__name__} {about}",
            lambda time_it=time_it, about=about: time_it(machine, *about, repeats, log),
        )
        if done is not None:
            rows.append(done[0])
            checks += done[1]
    log.guarded(
        "other verbs, timed",
        lambda: rows.extend(gpu_timing.time_other_verbs(machine, repeats, log)),
    )
    model = options.timed_model
    row = log.guarded(
        f"spectrum of {model}, timed",
        lambda: gpu_timing.time_spectrum(machine, model, options.batch, repeats),
    )
    return rows + ([row] if row else []), checks


def versions() -> dict[str, str | None]:
    """Versions of what takes part.

    Returns:
        From a name to a version, None where it is not installed.
    """
    found: dict[str, str | None] = {"cuda (torch)": torch.version.cuda}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def show(result: dict[str, Any], console: Console) -> None:
    """Print a short report.

    Args:
        result: What is written to the file.
        console: Where to.
    """
    differ = [check for check in result["checks"] if not check["agrees"]]
    console.print(f"{len(result['checks'])} comparisons, {len(differ)} differ")
    for check in differ:
        gap, allowed = check.get("difference"), check.get("tolerance")
        console.print(f"  DIFFERS: {check['what']}: {gap} > {allowed}", markup=False)
    table = Table("timed", "seconds (medians)", "ratio", title=escape(result["device"]))
    for row in result["timings"]:
        reached = gpu_timing.ratio(row)
        times = ", ".join(f"{name} {value:.4g}" for name, value in row["median"].items())
        words = "" if reached is None else f"{reached[0]:.2f} ({reached[1]} to {reached[2]})"
        table.add_row(escape(row["what"]), escape(times), escape(words))
    console.print(table)
    verdict = {True: "met", False: "MISSED", None: "not timed"}
    table = Table("target", "wanted", "found", "")
    for target in result["targets"]:
        found = "" if target["found"] is None else f"{target['found']:.3g}"
        table.add_row(target["what"], target["wanted"], found, verdict[target["met"]])
    console.print(table)
    for title in ("suggestions", "kernels"):
        for name, value in result[title].items():
            console.print(f"{title}: {name} = {value}", markup=False)
    for failure in result["failures"]:
        console.print(f"failed: {failure['what']}: {failure['reason']}", markup=False)
    for words in result["fallbacks"]:
        console.print(f"not used: {words}", markup=False)


def check(
    machine: Machine, options: argparse.Namespace, log: Log, console: Console
) -> tuple[int, Path | None]:
    """Compare, measure, judge, write.

    Args:
        machine: What is checked.
        options: See ``--help``.
        log: Where failures go.
        console: Where the report is printed.

    Returns:
        The exit code, and the file if one was written.
    """
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", RuntimeWarning)
        checks = compare(machine, options, log)
        rows: list[Entry] = []
        if not options.compare_only:
            rows, more = measure(machine, options, log)
            checks += more
    fallbacks = [str(w.message) for w in heard if issubclass(w.category, RuntimeWarning)]
    backend = machine.routes["auto"]
    outside: dict[str, Any] = {"tests": None, "sanitizer": []}
    passed = True
    if not (options.compare_only or options.inside_only):
        outside["tests"] = log.guarded("parity tests", run_tests)
        outside["sanitizer"] = [
            log.guarded(tool, lambda tool=tool: sanitize(tool))
            for tool in ("memcheck", "racecheck")
        ]
        tests, reports = outside["tests"], outside["sanitizer"]
        passed = tests is not None and tests["exit_code"] == 0
        passed = passed and not any(report and report["exit_code"] for report in reports)
    result = {
        "device": machine.name,
        "cpu": {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
            "free_memory_bytes": free_host_memory(),
        },
        "device_free_memory_bytes": log.guarded("free memory", backend.free_memory),
        "solver_table": log.guarded("solver table", backend.solver_table),
        "kernels": log.guarded("kernels", lambda: compile_report(backend.device)) or {},
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        **outside,
        "checks": checks,
        "fallbacks": sorted(set(fallbacks)),
        "timings": rows,
        "targets": gpu_timing.judge(rows),
        "suggestions": gpu_timing.suggest(rows),
        "failures": log.failures,
    }
    show(result, console)
    good = passed and all(entry["agrees"] for entry in checks) and not fallbacks
    target = None
    if not options.compare_only:
        slug = re.sub(r"[^a-z0-9]+", "-", machine.name.lower()).strip("-")
        target = options.out / f"gpu_check-{slug}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        console.print(f"written: {target}", markup=False)
    return (0 if good else 1), target


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line.

    Args:
        arguments: Without the program's name; None takes the process's own.

    Returns:
        Options.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    add = parser.add_argument
    add("--sizes", nargs="*", type=int, default=SIZES, help="n of the timings of one matrix")
    add("--parity-sizes", nargs="*", type=int, default=PARITY_SIZES, help="n of the comparisons")
    add("--models", nargs="*", default=["logistic", "mlp2"], help="spectra that are compared")
    add("--timed-model", default="mlp3", help="spectrum that is timed")
    add("--batch", type=int, default=64, help="samples in a batch")
    add("--repeats", type=int, default=3, help="of every timing, after one that warms up")
    add("--out", type=Path, default=RESULTS, help="folder of the result file")
    add("--compare-only", action="store_true", help="no timings, no tests, no file")
    add("--inside-only", action="store_true", help="no pytest, no compute-sanitizer")
    options = parser.parse_args(arguments)
    options.batches = BATCHES
    if options.compare_only:
        options.models = []
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run all checks.

    Args:
        arguments: Command line without the program's name; None takes the process's own.

    Returns:
        The exit code.
    """
    options, log = parse(arguments), Log()
    try:
        machine = gpu_machine(log)
    except DeviceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return check(machine, options, log, Console())[0]


if __name__ == "__main__":
    sys.exit(main())
