"""Comparisons of a GPU backend's verbs with their CPU twins, for ``gpu_check.py``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

import hessrmt as hr
from hessrmt import rng
from hessrmt.backend.base import Backend
from hessrmt.curvature.spectrum import compute
from hessrmt.problems import data, models

DTYPES = (torch.float64, torch.float32)
BATCHED = 325
"""Largest n that also goes into a batch."""

Entry = dict[str, Any]
Peers = Mapping[str, Callable[[torch.Tensor], Any]]


class Machine(NamedTuple):
    """What is checked, and against what; tests put CPU backends here.

    Attributes:
        name: The device in words.
        cpu: The oracle.
        routes: Backends of the device: "auto", "two-stage" and "library", each a policy.
        single: Other libraries' eigenvalues of one matrix.
        stacked: Other libraries' eigenvalues of a stack.
    """

    name: str
    cpu: Backend
    routes: Mapping[str, Backend]
    single: Peers
    stacked: Peers


class Log:
    """Failures of parts, none of which stops the others."""

    def __init__(self) -> None:
        self.failures: list[Entry] = []

    def guarded(self, what: str, work: Callable[[], Any]) -> Any:
        """Result of a part; None, and the reason recorded, if it fails.

        Args:
            what: The part in words.
            work: The part.

        Returns:
            What ``work`` returned.
        """
        try:
            return work()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            self.failures.append({"what": what, "reason": reason})
            return None


def families(n: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Symmetric matrices that are hard on eigenvalue solvers.

    Args:
        n: Dimension.
        dtype: Of the matrices.

    Returns:
        From a kind to (n, n).
    """
    draw = rng.torch_generator(0, "gpu_check", n)
    noise = torch.randn(n, n, generator=draw, dtype=torch.float64)
    noise = noise + noise.T
    place = torch.arange(n, dtype=torch.float64)
    basis = torch.linalg.qr(noise)[0]
    clusters = 1 + torch.floor(4 * place / n) + 1e-12 * place / n
    grades = torch.logspace(0, -16, n, dtype=torch.float64)
    thin = noise[:, : max(1, n // 4)]
    kinds = {
        "random": noise,
        "Toeplitz": 1 / (1 + (place[:, None] - place).abs()),
        "clustered": (basis * clusters) @ basis.T,
        "graded": noise * torch.sqrt(torch.outer(grades, grades)),
        "diagonal": torch.diag(noise[0]),
        "zero": torch.zeros(n, n, dtype=torch.float64),
        "rank-deficient": thin @ thin.T,
    }
    return {kind: ((a + a.T) / 2).to(dtype) for kind, a in kinds.items()}


def tolerance(levels: np.ndarray, dtype: torch.dtype) -> float:
    """Backward stability of two solvers: 20 n ε ‖A‖₂.

    Args:
        levels: (n,) eigenvalues of A.
        dtype: The precision whose ε counts.

    Returns:
        The largest difference allowed, at least n times the smallest normal number.
    """
    of, n = torch.finfo(dtype), len(levels)
    return max(20 * n * of.eps * float(np.abs(levels).max(initial=0.0)), n * of.tiny)


def entry(what: str, found: Any, expected: Any, allowed: float, route: str = "") -> Entry:
    """One comparison.

    Args:
        what: In words.
        found: Array to check.
        expected: The oracle's.
        allowed: Largest difference.
        route: Solver that was used, in words.

    Returns:
        Plain values; NaN at the same places agree, others never.
    """
    found, expected = np.asarray(found), np.asarray(expected)
    difference = float("nan")
    if found.shape == expected.shape:
        gap = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        gap[np.isnan(found) & np.isnan(expected)] = 0
        difference = float(gap.max(initial=0.0))
    agrees = bool(difference <= allowed)
    return {
        "what": what,
        "difference": difference,
        "tolerance": allowed,
        "agrees": agrees,
        "route": route,
    }


def compared(log: Log, what: str, work: Callable[[], Entry]) -> Entry:
    """Run a comparison; one that fails does not agree.

    Args:
        log: Where the reason goes.
        what: The comparison in words.
        work: The comparison.

    Returns:
        Plain values.
    """
    done = log.guarded(what, work)
    return done or {"what": what, "difference": None, "tolerance": None, "agrees": False}


def check_eigenvalues(machine: Machine, sizes: Sequence[int], log: Log) -> Iterator[Entry]:
    """Compare ``symmetrize_``, ``eigvalsh`` and ``eigvalsh_batch`` of every route with the CPU's.

    Args:
        machine: What is checked.
        sizes: Dimensions.
        log: Where failures go.

    Yields:
        Comparisons.
    """
    for dtype in DTYPES:
        kind = str(dtype).removeprefix("torch.")
        batch: list[torch.Tensor] = []
        levels: list[np.ndarray] = []
        for n in sizes:
            yield compared(
                log,
                f"symmetrize, n = {n}, {kind}",
                lambda n=n, dtype=dtype: _symmetrized(machine, n, dtype),
            )
            for family, a in families(n, dtype).items():
                expected = machine.cpu.eigvalsh(a.double())
                allowed = tolerance(expected, dtype)
                if n <= BATCHED:
                    batch.append(a)
                    levels.append(expected)
                for route, backend in machine.routes.items():
                    what = f"eigvalsh, {family}, n = {n}, {kind}, {route}"

                    def one(backend=backend, a=a, expected=expected, allowed=allowed, what=what):
                        found = backend.eigvalsh(a.to(backend.device, copy=True))
                        return entry(what, found, expected, allowed, backend.solver)

                    yield compared(log, what, one)
        yield from _check_batch(machine, batch, levels, dtype, log)


def _symmetrized(machine: Machine, n: int, dtype: torch.dtype) -> Entry:
    here = torch.randn(n, n, dtype=dtype, generator=rng.torch_generator(1, "gpu_check", n))
    backend = machine.routes["auto"]
    there = here.to(backend.device, copy=True)
    worst = [backend.symmetrize_(there), machine.cpu.symmetrize_(here)]
    found, expected = (
        np.append(a.cpu().double().numpy(), w) for a, w in zip((there, here), worst, strict=True)
    )
    return entry(f"symmetrize, n = {n}, {dtype}", found, expected, 0.0)  # the same bits


def _check_batch(
    machine: Machine,
    batch: list[torch.Tensor],
    levels: list[np.ndarray],
    dtype: torch.dtype,
    log: Log,
) -> Iterator[Entry]:
    for route, backend in machine.routes.items():
        what = f"eigvalsh_batch, {len(batch)} matrices, {dtype}, {route}"

        def solve(backend=backend):
            found = backend.eigvalsh_batch([a.to(backend.device, copy=True) for a in batch])
            if len(found) != len(levels):
                raise ValueError(f"{len(found)} results for {len(levels)} matrices")
            return found

        found = log.guarded(what, solve)
        if found is None:
            yield {"what": what, "difference": None, "tolerance": None, "agrees": False}
            continue
        each = [
            entry(f"{what}, n = {len(y)}", x, y, tolerance(y, dtype))
            for x, y in zip(found, levels, strict=True)
        ]
        # the worst relative to its tolerance stands for all
        yield max(each, key=lambda e: (not e["agrees"], e["difference"] / e["tolerance"]))


def check_other_verbs(machine: Machine, log: Log) -> Iterator[Entry]:
    """Compare ``staircase``, ``powerlaw_scan`` and ``sample_goe`` with the CPU's.

    Args:
        machine: What is checked.
        log: Where failures go.

    Yields:
        Comparisons.
    """
    cpu, gpu = machine.cpu, machine.routes["auto"]
    draw = rng.stream(0, "gpu_check", "values")
    for m, n in ((0, 5), (1, 1), (5000, 3001)):
        pool = torch.from_numpy(np.sort(np.round(draw.normal(size=m), 2)))  # with equal values
        queries = torch.from_numpy(np.sort(np.round(draw.normal(size=n), 2)))

        def counted(pool=pool, queries=queries, what=f"staircase, {m} levels, {n} queries"):
            found = gpu.staircase(pool.to(gpu.device), queries.to(gpu.device))
            return entry(what, found, cpu.staircase(pool, queries), 0)

        yield compared(log, f"staircase, {m} levels", counted)
    layers = [torch.from_numpy(np.sort(1 + draw.pareto(2, size=n))) for n in (1, 2, 33, 1000)]
    layers.append(torch.ones(5, dtype=torch.float64))

    def scanned(which: int, what: str) -> Entry:
        found = gpu.powerlaw_scan([x.to(gpu.device) for x in layers])
        x, y = (np.concatenate([fit[which] for fit in fits]) for fits in (found, expected))
        # sums of at most 1,000 positive terms; relative to alpha, distances are at most 1
        scale = float(np.nanmax(np.abs(y)))
        return entry(what, x, y, 2 * 1000 * np.finfo(float).eps * max(1.0, scale))

    expected = cpu.powerlaw_scan(layers)
    for which, name in enumerate(("alpha", "distance")):
        what = f"powerlaw_scan, {name}"
        yield compared(log, what, lambda which=which, what=what: scanned(which, what))
    for dtype in DTYPES:
        for n in (1, 33, 65):

            def drawn(dtype=dtype, n=n):
                key = 2**63 + 12345
                found, expected = (b.sample_goe(n, 3, key, dtype, 2**32 - 1) for b in (gpu, cpu))
                # a few ulp of log, cos and sin; |x| < 9 sqrt(2)
                allowed = 32 * torch.finfo(dtype).eps * 13
                what = f"sample_goe, n = {n}, {dtype}"
                return entry(what, found.cpu().numpy(), expected.numpy(), allowed)

            yield compared(log, f"sample_goe, n = {n}, {dtype}", drawn)


def problem(model: str, batch: int, number: int) -> hr.Problem:
    """A batch of MNIST's test split.

    Args:
        model: Of the registry, at its initialisation of seed 0.
        batch: Samples.
        number: Which batch.

    Returns:
        The problem.
    """
    split = data.load("mnist", "test")
    network = models.build(model, split.input_shape, split.outputs, seed=0).eval()
    pair = split.tensors(slice(number * batch, (number + 1) * batch), torch.float64)
    return hr.Problem(network, "cross-entropy", pair)


def check_spectrum(machine: Machine, model: str, batch: int) -> Entry:
    """Compare a whole spectrum of MNIST with the CPU's.

    Args:
        machine: What is checked.
        model: Of the registry.
        batch: Samples.

    Returns:
        The comparison.
    """
    given = problem(model, batch, 0)
    here = compute(given, machine.cpu, "float64", "hessian")
    there = compute(given, machine.routes["auto"], "float64", "hessian")
    allowed = tolerance(here.eigenvalues, torch.float64)
    what = f"spectrum of {model}, P = {here.dimension:,}, batch {batch}"
    return entry(what, there.eigenvalues, here.eigenvalues, allowed, there.solver)
