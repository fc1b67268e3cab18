"""Power-law fits of one sample: the package powerlaw, a NumPy scan and hessrmt, in one run.

    python benchmarks/powerlaws.py fits bootstrap huge

- fits: x_min, α and D of 4,096 and of 20,000 values: of a power law, of a lognormal law and (4,096)
  the eigenvalues of X = WᵀW/N with Student's t entries. Peer: ``powerlaw.Fit`` with its own limit
  α < 3 and hessrmt with ``max_alpha=3``; every fit of the peer that needs no optimiser of its own
  is then a closed form, which is its fastest case. Direct: a plain NumPy scan, a loop over x_min
  with vectorised tails. Scan: :func:`hessrmt.capacity.powerlaw.scan`, α and D of all candidates.
- bootstrap: the p-value of a fit of 4,096 values from 100 synthetic samples.
- huge: 5·10⁶ values (powerlaw's issue 72 reports 27 hours): a power law, whose candidates are hard
  to tell apart; one with as many values below x_min; a lognormal law.

Everything is float64 in one process and takes turns; medians are compared. hessrmt's fit runs in
one thread. (This file is not called powerlaw.py: it would hide the package.)
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
from levels import repeated, timed
from spectrum import RESULTS, machine

from hessrmt import rng
from hessrmt.capacity.powerlaw import fit, goodness_of_fit, scan
from hessrmt.records import Provenance

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import powerlaw

SIZES = 4_096, 20_000
HUGE = 5_000_000
SAMPLES = 100


def samples(n: int) -> dict[str, Any]:
    """Samples of n values, in random order."""
    draw = rng.stream(0, "benchmark", "powerlaw", n)
    found = {
        "power law, alpha 2.5": (1 - draw.random(n)) ** (-1 / 1.5),
        "lognormal": draw.lognormal(size=n),
    }
    if n == SIZES[0]:
        entries = draw.standard_t(3, size=(n, 5 * n // 2))
        gram = entries @ entries.T / entries.shape[1]
        found["spectrum, Student's t"] = np.asarray(np.linalg.eigvalsh(gram), np.float64)
    return found


def peer(values: np.ndarray) -> tuple[float, float, float]:
    """α, x_min and D by powerlaw.Fit."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = powerlaw.Fit(values, verbose=0)
    return float(found.alpha), float(found.xmin or np.nan), float(found.D)


def direct(values: np.ndarray) -> tuple[float, float, float]:
    """The same by a loop over candidates."""
    x = np.sort(values)
    logs = np.log(x)
    best = np.inf, np.nan, np.nan
    for i in range(len(x) - 2):
        depth = logs[i:] - logs[i]
        n = len(depth)
        slope = n / depth.sum()
        if slope < 2:
            gap = np.abs(1 - np.exp(-slope * depth) - np.arange(n) / n).max()
            best = min(best, (gap, 1 + slope, x[i]))
    return best[1], best[2], best[0]


def ours(values: np.ndarray) -> tuple[float, float, float]:
    """The same by hessrmt."""
    found = fit(values, max_alpha=3)
    return found.alpha, found.x_min, found.ks_distance


def fits(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one fit."""
    table = {}
    for n in SIZES:
        for name, values in samples(n).items():
            ways: dict[str, Callable[[], Any]] = {
                "hessrmt": lambda v=values: ours(v),
                "hessrmt_scan": lambda v=values: scan(v),
                "powerlaw": lambda v=values: peer(v),
                "direct": lambda v=values: direct(v),
            }
            seconds, found = repeated(ways, options.repeat)
            median = {k: float(np.median(v)) for k, v in seconds.items()}
            table[f"{n:,}: {name}"] = {
                "seconds": seconds,
                "ratio_to_powerlaw": median["powerlaw"] / median["hessrmt"],
                "ratio_to_direct": median["direct"] / median["hessrmt"],
                "alpha, x_min, D": found["hessrmt"],
                "relative_difference_from_powerlaw": [
                    abs(a / b - 1) for a, b in zip(found["hessrmt"], found["powerlaw"], strict=True)
                ],
            }
    return table


def bootstrap(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one p-value."""
    table = {}
    for name, values in samples(SIZES[0]).items():
        one = fit(values)

        def p_value(v: np.ndarray = values, one: Any = one) -> float:
            return goodness_of_fit(v, one, samples=SAMPLES)

        seconds, found = repeated({"hessrmt": p_value}, options.repeat)
        table[name] = {"samples": SAMPLES, "p_value": found["hessrmt"], "seconds": seconds}
    return table


def huge(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of fits of 5·10⁶ values, one run."""
    del options
    draw = rng.stream(0, "benchmark", "powerlaw", "huge")
    power = (1 - draw.random(HUGE)) ** (-1 / 1.5)
    half = np.append(draw.uniform(0.5, 1, HUGE // 2), power[: HUGE // 2])
    table = {}
    for name, values in (
        ("power law, alpha 2.5", power),
        ("half of it, above a uniform body", half),
        ("lognormal", draw.lognormal(size=HUGE)),
    ):
        seconds, found = timed(lambda v=values: fit(v))
        table[name] = {
            "values": HUGE,
            "seconds": seconds,
            "alpha, x_min, D, sigma": [
                found.alpha,
                found.x_min,
                found.ks_distance,
                found.sigma,
            ],
        }
    return table


SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "fits": fits,
    "bootstrap": bootstrap,
    "huge": huge,
}


def main() -> None:
    """Measure, print, store the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("sections", nargs="+", choices=list(SECTIONS))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--name", default="powerlaws-2core-cpu", help="name of the result file")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    stored = RESULTS / f"{options.name}.json"
    versions = dict(Provenance().versions) | {"powerlaw": metadata.version("powerlaw")}
    for name in options.sections:
        section = {"machine": machine(), "versions": versions} | SECTIONS[name](options)
        print(json.dumps({name: section}, indent=2))
        # sections measured earlier stay
        table = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
        table[name] = section
        stored.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
