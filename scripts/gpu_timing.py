"""Timings, targets and thresholds for ``gpu_check.py``."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gpu_parity import DTYPES, Entry, Log, Machine, Peers, entry, problem, tolerance

from hessrmt import rng
from hessrmt.curvature.spectrum import compute

SCAN = (100, 1000)
"""Layers of the power-law scan, and values in each."""
LEVELS = 10**6
GOE = (20, 1000)
SQUARE = 4000
"""Sizes of the timings of ``staircase``, ``sample_goe`` and ``symmetrize_``."""
COPIES = 4
"""Matrices of memory that a timing may need: the matrix, its copy, two of a solver's workspace."""
LONG = 20.0
"""Seconds from which one repetition is enough."""
TARGETS = {
    "eigvalsh, n = 5,000, float64": 2.0,
    "eigvalsh, n = 10,000, float64": 3.0,
    "eigvalsh, n = 20,060, float64": 5.0,
    "eigvalsh, n = 40,000, float64": 6.0,
    "eigvalsh_batch, 100 x n = 300, float64": 10.0,
    "eigvalsh_batch, 32 x n = 2,750, float64": 4.0,
    "powerlaw_scan, 100 x 1,000": 50.0,
}
"""How many times faster than the best of torch and CuPy (the scan: than the CPU)."""
SPECTRUM_TARGET = ("spectrum of mlp3, batch 64", 1.0)
"""Seconds a batch."""
PEERS = ("torch", "cupy", "cpu")
OURS = ("auto", "two-stage")


def seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> tuple[list[float], Any]:
    """Wall-clock times of a call, after one call that warms up.

    Args:
        work: What is timed.
        device: Waited for before and after.
        repeats: How many times; one if a call takes longer than :data:`LONG`.

    Returns:
        Seconds of each repetition, and what the last call returned.
    """
    _release(device)
    times: list[float] = []
    found: Any = None
    wanted = 1 + repeats
    while len(times) < wanted:
        _wait(device)
        start = time.perf_counter()
        found = work()
        _wait(device)
        times.append(time.perf_counter() - start)
        if times[0] > LONG:
            wanted = 2
    return times[1:], found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _release(device: torch.device) -> None:
    """Give back what torch and CuPy keep: each is blind to the other's cache."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        if "cupy" in sys.modules:
            sys.modules["cupy"].get_default_memory_pool().free_all_blocks()


def _row(what: str, **about: Any) -> Entry:
    return {"what": what, **about, "seconds": {}, "median": {}, "routes": {}}


def _add(row: Entry, name: str, times: list[float]) -> None:
    row["seconds"][name], row["median"][name] = times, statistics.median(times)


def _random(machine: Machine, n: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    backend = machine.routes["auto"]
    needed, free = COPIES * count * n * n * dtype.itemsize, backend.free_memory()
    if needed > free:
        raise MemoryError(f"{COPIES} copies need {needed:,} bytes, {free:,} are free: left out")
    key = int(rng.seed_sequence(0, "gpu_check", n).generate_state(1, np.uint64)[0])
    draw = torch.Generator(backend.device).manual_seed(key >> 1)
    a = torch.randn(count, n, n, dtype=dtype, device=backend.device, generator=draw)
    for matrix in a:
        backend.symmetrize_(matrix)
    return a


def time_eigvalsh(
    machine: Machine, n: int, dtype: torch.dtype, repeats: int, log: Log
) -> tuple[Entry, list[Entry]]:
    """Time one matrix on every route and peer.

    Args:
        machine: What is timed.
        n: Dimension.
        dtype: Of the matrix.
        repeats: How many times.
        log: Where failures go.

    Returns:
        The timings, and comparisons of the eigenvalues with the first peer's.
    """
    kind = str(dtype).removeprefix("torch.")
    row = _row(f"eigvalsh, n = {n:,}, {kind}", n=n, dtype=kind)
    a = log.guarded(row["what"], lambda: _random(machine, n, 1, dtype)[0])
    if a is None:
        return row, []
    return row, _race(
        row,
        a,
        machine.single,
        {name: b.eigvalsh for name, b in machine.routes.items()},
        repeats,
        log,
        lambda name: machine.routes[name].solver,
    )


def time_batch(
    machine: Machine, count: int, n: int, dtype: torch.dtype, repeats: int, log: Log
) -> tuple[Entry, list[Entry]]:
    """Time a stack of matrices on every route and peer.

    Args:
        machine: What is timed.
        count: Matrices.
        n: Dimension.
        dtype: Of the matrices.
        repeats: How many times.
        log: Where failures go.

    Returns:
        The timings, and comparisons of the eigenvalues with the first peer's.
    """
    kind = str(dtype).removeprefix("torch.")
    row = _row(f"eigvalsh_batch, {count} x n = {n:,}, {kind}", n=n, count=count, dtype=kind)
    a = log.guarded(row["what"], lambda: _random(machine, n, count, dtype))
    if a is None:
        return row, []
    routes = {name: b.eigvalsh_batch for name, b in machine.routes.items()}
    return row, _race(row, a, machine.stacked, routes, repeats, log, lambda name: name)


def _race(
    row: Entry,
    a: torch.Tensor,
    peers: Peers,
    routes: Mapping[str, Callable[[Any], Any]],
    repeats: int,
    log: Log,
    words: Callable[[str], str],
) -> list[Entry]:
    """Fill a row; compare eigenvalues with those of the first peer that has any."""
    expected: np.ndarray | None = None
    checks = []
    for name, solve in (*peers.items(), *routes.items()):
        what = f"{row['what']}, {name}"
        # every solver starts from a copy: some overwrite their argument
        done = log.guarded(
            what, lambda solve=solve: seconds(lambda: solve(a.clone()), a.device, repeats)
        )
        if done is None:
            continue
        _add(row, name, done[0])
        levels = _as_rows(done[1])
        if name in routes:
            row["routes"][name] = words(name)
            if expected is not None:
                allowed = max(tolerance(y, a.dtype) for y in expected)
                checks.append(entry(what, levels, expected, allowed, row["routes"][name]))
        elif expected is None:
            expected = levels
    return checks


def _as_rows(levels: Any) -> np.ndarray:
    """Eigenvalues of one matrix or several as (batch, n)."""
    if isinstance(levels, torch.Tensor):
        levels = levels.cpu().double().numpy()
    return np.atleast_2d(np.asarray(levels, dtype=np.float64))


def time_other_verbs(machine: Machine, repeats: int, log: Log) -> Iterator[Entry]:
    """Time ``powerlaw_scan`` against the CPU, the other verbs against torch.

    Args:
        machine: What is timed.
        repeats: How many times.
        log: Where failures go.

    Yields:
        Timings.
    """
    gpu, cpu = machine.routes["auto"], machine.cpu
    device = gpu.device
    draw = rng.stream(0, "gpu_check", "timing")
    layers = [torch.from_numpy(np.sort(1 + draw.pareto(2, size=SCAN[1]))) for _ in range(SCAN[0])]
    there = [layer.to(device) for layer in layers]
    pool = torch.from_numpy(np.sort(draw.normal(size=LEVELS))).to(device)
    count, n = GOE
    square = torch.randn(SQUARE, SQUARE, dtype=torch.float64).to(device)

    def goe_by_torch() -> torch.Tensor:
        a = torch.randn(count, n, n, dtype=torch.float64, device=device)
        return (a + a.mT) / 2**0.5

    races: dict[str, dict[str, Callable[[], Any]]] = {
        f"powerlaw_scan, {SCAN[0]} x {SCAN[1]:,}": {
            "cpu": lambda: cpu.powerlaw_scan(layers),
            "auto": lambda: gpu.powerlaw_scan(there),
        },
        f"staircase, {LEVELS:,} levels and queries": {
            "torch": lambda: torch.searchsorted(pool, pool).cpu(),
            "auto": lambda: gpu.staircase(pool, pool),
        },
        f"sample_goe, {count} x n = {n:,}": {
            "torch": goe_by_torch,
            "auto": lambda: gpu.sample_goe(n, count, 1, torch.float64),
        },
        f"symmetrize, n = {SQUARE:,}": {
            "torch": lambda: ((square - square.T).abs().max().item(), (square + square.T) / 2),
            "auto": lambda: gpu.symmetrize_(square),
        },
    }
    for what, solvers in races.items():
        row = _row(what)
        for name, work in solvers.items():
            done = log.guarded(f"{what}, {name}", lambda work=work: seconds(work, device, repeats))
            if done is not None:
                _add(row, name, done[0])
        yield row


def time_spectrum(machine: Machine, model: str, batch: int, repeats: int) -> Entry:
    """Time whole spectra, a batch each, after one that warms up.

    Args:
        machine: What is timed.
        model: Of the registry.
        batch: Samples in a batch.
        repeats: Batches.

    Returns:
        The timings, with the seconds of each phase of the last batch.
    """
    row = _row(f"spectrum of {model}, batch {batch}")
    backend = machine.routes["auto"]
    times = []
    for number in range(1 + repeats):
        given = problem(model, batch, number)
        start = time.perf_counter()
        found = compute(given, backend, "float64", "hessian")
        times.append(time.perf_counter() - start)
        row.update(dimension=found.dimension, rank=found.rank, phases=dict(found.seconds))
        row["routes"]["auto"] = found.solver
    _add(row, "auto", times[1:])
    return row


def ratio(row: Entry) -> tuple[float, str, str] | None:
    """How many times faster than the best peer.

    Args:
        row: Timings.

    Returns:
        The ratio, our fastest route and the fastest of torch and CuPy (or the CPU); None if one
        side was not timed.
    """
    median = row["median"]
    ours = min((name for name in OURS if name in median), key=median.__getitem__, default=None)
    peer = min((name for name in PEERS if name in median), key=median.__getitem__, default=None)
    if ours is None or peer is None:
        return None
    return median[peer] / median[ours], ours, peer


def judge(rows: Sequence[Entry]) -> list[Entry]:
    """Compare with the targets.

    Args:
        rows: Timings.

    Returns:
        For each target what was asked, what was found and whether it was met; None where it was
        not timed.
    """
    found = {row["what"]: row for row in rows}
    judged = []
    for what, wanted in TARGETS.items():
        reached = ratio(found[what]) if what in found else None
        faster = None if reached is None else reached[0]
        met = None if faster is None else faster >= wanted
        target = {"what": what, "wanted": f">= {wanted:g} times faster", "found": faster}
        judged.append({**target, "met": met, "against": reached and reached[2]})
    what, limit = SPECTRUM_TARGET
    took = found[what]["median"].get("auto") if what in found else None
    met = None if took is None else took < limit
    judged.append({"what": what, "wanted": f"< {limit:g} s", "found": took, "met": met})
    return judged


def suggest(rows: Sequence[Entry]) -> dict[str, int | None]:
    """Thresholds for ``hessrmt/backend/solvers.py``.

    Args:
        rows: Timings.

    Returns:
        ``TWO_STAGE_FROM`` of each precision: the smallest n from which the two-stage solver was
        faster than the library at every size timed. ``SMALL_LIMIT``: the largest n up to which
        batches of small matrices were faster than the library's. None if there is no such size.
    """
    found: dict[str, int | None] = {}
    for dtype in DTYPES:
        kind = str(dtype).removeprefix("torch.")
        timed = _against_library(rows, "eigvalsh,", "two-stage", kind)
        start = None
        for n in sorted(timed, reverse=True):
            if not timed[n]:
                break
            start = n
        found[f"TWO_STAGE_FROM {kind}"] = start
        # beyond 160 one block can't hold a matrix
        timed = _against_library(rows, "eigvalsh_batch,", "auto", kind)
        limit = None
        for n in sorted(n for n in timed if n <= 160):
            if not timed[n]:
                break
            limit = n
        found[f"SMALL_LIMIT {kind}"] = limit
    return found


def _against_library(rows: Sequence[Entry], verb: str, ours: str, kind: str) -> dict[int, bool]:
    """Whether a route was faster than the library, for each n timed on both."""
    return {
        row["n"]: row["median"][ours] < row["median"]["library"]
        for row in rows
        if row["what"].startswith(verb)
        and row.get("dtype") == kind
        and {ours, "library"} <= set(row["median"])
    }
