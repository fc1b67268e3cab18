"""Sampled Hessians of the Gaussian-process loss model, against the way of the published notebook.

    python benchmarks/lossmodel.py large dense figure band

- large: one complete spectrum without outliers at n = 20,000 and 100,000. hessrmt draws a
  tridiagonal matrix and calls LAPACK's dsterf; beside it other LAPACK drivers for the same
  tridiagonal matrix (dstemr without vectors; dstebz up to n = 5,000), and the dense way where the
  matrix fits (``--dense-limit``): drawn by NumPy, ``numpy.linalg.eigvalsh``.
- dense: 100 samples at n = 300, k' = 1, k'' = 0.1. Peer: a loop over samples with the steps of the
  published code (github.com/npbaskerville/dnn-rmt-spacings), written afresh for this file: the
  diagonal from ``numpy.random.multivariate_normal`` with its 300 × 300 covariance k'² + 2k''·1, the
  rest from a symmetrised matrix of normals, ``numpy.linalg.eigvalsh``.
- figure: the samples of the nine panels of Baskerville, Granziol and Keating 2022, Fig. 5:
  n = 300, 100 samples each, six values of k'', with 100 degenerate directions, with 20 outliers of
  scale 10, with both; the same peer.
- band: outliers against n: the band of half-width r and dense matrices, the crossover behind
  ``method="auto"``.

hessrmt's own ways are timed through :func:`hessrmt.lossmodel.sampler.sample_spectra`, records and
all. Everything is float64; ways take turns; medians are compared. At n = 300 NumPy may be faster in
one thread: run with OPENBLAS_NUM_THREADS=1 too, and compare with the peer's better time.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from levels import repeated
from scipy.linalg import eigvalsh_tridiagonal
from spectrum import RESULTS, machine

from hessrmt import rng
from hessrmt.lossmodel import paper
from hessrmt.lossmodel.sampler import goe_band, sample_spectra
from hessrmt.records import Provenance

DIMENSION, SAMPLES = 300, 100
CURVATURES = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)
DEGENERATE, OUTLIERS, SCALE = 100, 20, 10.0
PANELS: dict[str, dict[str, Any]] = {
    **{f"k2={k2:g}": {"k2": k2} for k2 in CURVATURES},
    "degenerate": {"k2": 1.0, "degenerate": DEGENERATE},
    "outliers": {"k2": 1.0, "outliers": OUTLIERS},
    "degenerate and outliers": {"k2": 1.0, "degenerate": DEGENERATE, "outliers": OUTLIERS},
}
LARGE = (20_000, 100_000)
BISECTION_LIMIT = 5_000
STEMR_LIMIT = 20_000
BAND = {300: (1, 5, 10, 20, 40, 80), 1000: (1, 20, 60, 125, 250), 2000: (1, 20, 100, 250, 500)}


def published(
    k1: float, k2: float, samples: int, degenerate: int = 0, outliers: int = 0
) -> list[np.ndarray]:
    """Eigenvalues of samples, one after the other, with the steps of the published code."""
    n = DIMENSION
    draw = np.random.RandomState(0)
    covariance = k1**2 * np.ones((n, n)) + 2 * k2 * np.eye(n)
    found = []
    for _ in range(samples):
        diagonal = draw.multivariate_normal(np.zeros(n), covariance)
        matrix = np.sqrt(2) * np.sqrt(k2) * draw.randn(n, n)
        matrix = (matrix + matrix.T) / 2
        np.fill_diagonal(matrix, diagonal)
        size = n + degenerate
        whole = np.zeros((size, size))
        whole[:n, :n] = matrix
        where = draw.permutation(size)[:outliers]
        whole[where, where] += SCALE * (1 + draw.randn(outliers) ** 2)
        found.append(np.linalg.eigvalsh(whole))
    return found


def ours(
    k1: float, k2: float, samples: int, method: str, degenerate: int = 0, outliers: int = 0
) -> list[np.ndarray]:
    """Eigenvalues of the same number of samples by hessrmt."""
    spectra = sample_spectra(paper(k1, k2), DIMENSION, samples, outliers, SCALE, degenerate, method)
    return [spectrum.eigenvalues for spectrum in spectra]


def medians(seconds: dict[str, list[float]], peer: str) -> dict[str, Any]:
    """Median of every way and how many times longer the peer took."""
    middle = {name: float(np.median(times)) for name, times in seconds.items()}
    ratios = {name: middle[peer] / time for name, time in middle.items() if name != peer}
    return {"seconds": seconds, "median_seconds": middle, f"times_faster_than_{peer}": ratios}


def large(options: argparse.Namespace) -> dict[str, Any]:
    """One spectrum without outliers, and the tridiagonal eigenvalues by other drivers."""
    table = {}
    for n in options.large:
        band = goe_band(n, 1, rng.stream(0, "benchmark", n))
        ways: dict[str, Callable[[], Any]] = {
            "hessrmt": lambda n=n: sample_spectra(paper(1, 1), n, 1)[0].eigenvalues
        }
        # SciPy gives stemr an n × n array even where it computes no vectors
        drivers = ["sterf"] + ["stemr"] * (n <= STEMR_LIMIT) + ["stebz"] * (n <= BISECTION_LIMIT)
        for driver in drivers:
            ways[f"tridiagonal_{driver}"] = lambda driver=driver, band=band: eigvalsh_tridiagonal(
                band[0], band[1, :-1], lapack_driver=driver
            )
        if n <= options.dense_limit:
            ways["dense"] = lambda n=n: dense(n)
        seconds, results = repeated(ways, options.repeat)
        scale = float(np.abs(results["tridiagonal_sterf"]).max())
        table[str(n)] = medians(
            seconds,
            next(w for w in ("dense", "tridiagonal_stemr", "tridiagonal_sterf") if w in ways),
        ) | {
            "largest_difference_of_drivers_over_norm": max(
                float(np.abs(results[f"tridiagonal_{driver}"] - results["tridiagonal_sterf"]).max())
                for driver in drivers
            )
            / scale,
        }
    return table


def dense(n: int) -> np.ndarray:
    """One spectrum of a dense matrix by NumPy."""
    draw = rng.stream(0, "benchmark", "dense", n)
    matrix = draw.normal(size=(n, n))
    matrix += matrix.T
    matrix /= np.sqrt(2)
    matrix[np.diag_indices(n)] += draw.normal()
    return np.linalg.eigvalsh(matrix)


def dense_samples(options: argparse.Namespace) -> dict[str, Any]:
    """One setting, three ways."""
    ways = {
        "published": lambda: published(1.0, 0.1, options.samples),
        "hessrmt_dense": lambda: ours(1.0, 0.1, options.samples, "dense"),
        "hessrmt_tridiagonal": lambda: ours(1.0, 0.1, options.samples, "tridiagonal"),
    }
    seconds, results = repeated(ways, options.repeat)
    settings = {"n": DIMENSION, "samples": options.samples, "k1": 1.0, "k2": 0.1}
    spread = {name: float(np.std(levels)) for name, levels in results.items()}
    return settings | medians(seconds, "published") | {"standard_deviation_of_levels": spread}


def figure(options: argparse.Namespace) -> dict[str, Any]:
    """The samples of nine panels."""

    def panels(function: Callable[..., Any], **more: Any) -> list[Any]:
        return [
            function(k1=0.0, samples=options.samples, **panel, **more) for panel in PANELS.values()
        ]

    ways = {
        "published": lambda: panels(published),
        "hessrmt_dense": lambda: panels(ours, method="dense"),
        "hessrmt_tridiagonal": lambda: panels(ours, method="tridiagonal"),
        "hessrmt_auto": lambda: panels(ours, method="auto"),
    }
    seconds, _ = repeated(ways, options.repeat)
    settings = {"n": DIMENSION, "samples": options.samples, "k1": 0.0, "panels": PANELS}
    return settings | medians(seconds, "published")


def band(options: argparse.Namespace) -> dict[str, Any]:
    """The band against dense matrices, several numbers of outliers."""
    table = {}
    for n, widths in BAND.items():
        samples = max(2, 4 * DIMENSION // n)
        ways: dict[str, Callable[[], Any]] = {
            "dense": lambda n=n, samples=samples: sample_spectra(
                paper(0, 1), n, samples, 1, 10.0, method="dense"
            )
        }
        for r in widths:
            ways[f"r={r}"] = lambda n=n, samples=samples, r=r: sample_spectra(
                paper(0, 1), n, samples, r, 10.0, method="tridiagonal"
            )
        seconds, _ = repeated(ways, options.repeat)
        table[str(n)] = {"samples": samples} | medians(seconds, "dense")
    return table


SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "large": large,
    "dense": dense_samples,
    "figure": figure,
    "band": band,
}


def main() -> None:
    """Measure, print, store the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("sections", nargs="+", choices=list(SECTIONS))
    parser.add_argument("--repeat", type=int, default=5, help="runs of everything")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each setting")
    parser.add_argument("--large", type=int, nargs="+", default=list(LARGE), help="dimensions")
    parser.add_argument("--dense-limit", type=int, default=5_000, help="largest dense matrix")
    parser.add_argument("--name", default="lossmodel-2core-cpu", help="name of the result file")
    options = parser.parse_args()
    # as spectra are computed: MKL repeats itself, at no cost
    os.environ.setdefault("MKL_CBWR", "AUTO")
    RESULTS.mkdir(exist_ok=True)
    stored = RESULTS / f"{options.name}.json"
    for name in options.sections:
        section = {
            "machine": machine(),
            "versions": dict(Provenance().versions),
            "threads_of_numpy": os.environ.get("OPENBLAS_NUM_THREADS", "all"),
        } | SECTIONS[name](options)
        print(json.dumps({name: section}, indent=2))
        # sections measured earlier stay
        table = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
        table[name] = section
        stored.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
