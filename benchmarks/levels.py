"""Long-range level statistics, pooled unfolding and ``hessrmt levels``, against other ways.

    python benchmarks/levels.py longrange pooled command

- longrange: Σ²(L) and Δ₃(L) of 20,000 unfolded GOE levels at 50 lengths. Direct: a Python loop over
  windows, each evaluated with NumPy, on the windows that hessrmt's Δ₃ averages over (two to four
  for each level); hessrmt's Σ² averages over all windows. Peer: empyricalRMT, whose compiled loops
  run on every core, with 10,000 random windows for each length. Its windows reach half out of the
  spectrum at both ends, which adds about L³/(12 n) to Σ², and its Δ₃ comes from 100 points of each.
- pooled: the published unfolding of 100 spectra of 10,000 levels, two thirds of them the pool, one
  third unfolded. Peer: the merge of the published code (github.com/npbaskerville/dnn-rmt-spacings),
  one pass through each sorted spectrum and the sorted pool, written here for numba.
- command: the console script on a file of 157 spectra of 9,960 certified levels, 200 surrogates.
  The spectra are five GOE spectra, stretched and shifted at random. First run: none are cached.

Everything is float64. empyricalRMT and numba are no dependencies of the project and are skipped
where they are missing. empyricalRMT 1.1.1 asks for older versions than it needs: install it with
``pip install --no-deps``, and numba, pandas and so on beside it. Compilation is not counted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal
from spectrum import RESULTS, machine

from hessrmt import rng
from hessrmt.levels import number_variance, rigidity
from hessrmt.levels.unfolding import pooled
from hessrmt.records import Provenance, Spectrum
from hessrmt.store.writing import SpectrumWriter
from hessrmt.theory import semicircle_cdf, semicircle_radius

LEVELS = 20_000
LENGTHS = np.geomspace(0.5, 100.0, 50)
WINDOWS = 10_000
"""Of empyricalRMT, for each length."""
SPECTRA, SPECTRUM_SIZE, FOLDS = 100, 10_000, 3
FILE_SHAPE, BANK, SURROGATES = (157, 9_960), 5, 200


def goe(n: int, *names: str | int) -> np.ndarray:
    """GOE spectrum from its tridiagonal form (Dumitriu, Edelman 2002)."""
    draw = rng.stream(0, "benchmark", *names)
    chi = np.sqrt(draw.chisquare(np.arange(n - 1, 0, -1)))
    return np.asarray(eigvalsh_tridiagonal(np.sqrt(2) * draw.normal(size=n), chi))


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of one call."""
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


def repeated(functions: dict[str, Callable[[], Any]], repeat: int) -> tuple[dict, dict]:
    """Seconds of every repetition, in turns, and the last results."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    results = {}
    for _ in range(repeat):
        for name, function in functions.items():
            one, results[name] = timed(function)
            seconds[name].append(one)
    return seconds, results


def optional(name: str) -> Any:
    """A module that may be missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return None


# long-range statistics


def window_starts(levels: np.ndarray, length: float) -> np.ndarray:
    """The windows of :func:`hessrmt.levels.longrange`."""
    step = length / (int(2 * length) + 1)
    return levels[0] + step * np.arange(int((levels[-1] - levels[0] - length) / step) + 1)


def direct_counts(levels: np.ndarray) -> list[np.ndarray]:
    """Levels in each window of each length, window by window."""
    found = []
    for length in LENGTHS.tolist():
        starts = window_starts(levels, length)
        counts = np.empty(len(starts))
        for j, x in enumerate(starts.tolist()):
            low, high = levels.searchsorted((x, x + length), side="right")
            counts[j] = high - low
        found.append(counts)
    return found


def direct_deviations(levels: np.ndarray) -> list[np.ndarray]:
    """Δ₃ of each window of each length (Bohigas, Giannoni 1975), window by window."""
    found = []
    for length in LENGTHS.tolist():
        starts = window_starts(levels, length)
        deviations = np.empty(len(starts))
        for j, x in enumerate(starts.tolist()):
            low, high = levels.searchsorted((x, x + length), side="right")
            t = levels[low:high] - (x + length / 2)
            n, square = high - low, t @ t
            deviations[j] = (
                n * n / 16
                - (t.sum() / length) ** 2
                + 1.5 * n * square / length**2
                - 3 * square**2 / length**4
                + np.arange(n - 1, -n, -2) @ t / length
            )
        found.append(deviations)
    return found


def longrange(options: argparse.Namespace) -> dict[str, Any]:
    """Σ² and Δ₃ by three ways."""
    n = LEVELS * 3 // 2
    unfolded = n * semicircle_cdf(goe(n, "longrange"), semicircle_radius(n))
    levels = unfolded[LEVELS // 4 :][:LEVELS]
    ours = {
        "number_variance": lambda: number_variance(levels, LENGTHS),
        "rigidity": lambda: rigidity(levels, LENGTHS),
    }
    for function in ours.values():
        function()
    seconds, found = repeated(ours, options.repeat)
    direct_seconds, direct = repeated(
        {
            "number_variance": lambda: direct_counts(levels),
            "rigidity": lambda: direct_deviations(levels),
        },
        options.slow_repeat,
    )
    squares = [(counts - counts.mean()) ** 2 for counts in direct["number_variance"]]
    difference = [
        abs(value - one.mean()) / (one.std() / np.sqrt(len(one)))
        for value, one in zip(found["number_variance"], squares, strict=True)
    ]
    exact = np.array([one.mean() for one in direct["rigidity"]])
    table = {
        "levels": LEVELS,
        "lengths": [float(LENGTHS[0]), float(LENGTHS[-1]), len(LENGTHS)],
        "windows": {
            "direct": sum(map(len, squares)),
            "hessrmt number_variance": "all, integrated exactly",
            "hessrmt rigidity": sum(map(len, squares)),
            "empyricalRMT": WINDOWS * len(LENGTHS),
        },
        "seconds": {"hessrmt": seconds, "direct": direct_seconds},
        "ratio_to_direct": ratios(direct_seconds, seconds),
        "difference_from_direct": {
            "number_variance, in standard errors of independent windows": float(max(difference)),
            "rigidity, same windows": float(np.abs(found["rigidity"] - exact).max()),
        },
    }
    peer = empyrical(levels, options.repeat)
    if peer is not None:
        table["seconds"]["empyricalRMT"], values = peer
        table["ratio_to_empyricalRMT"] = ratios(peer[0], seconds)
        table["relative_difference_of_empyricalRMT"] = {
            k: {f"L = {LENGTHS[i]:.3g}": float(v[i] / found[k][i] - 1) for i in (0, 16, 32, 49)}
            for k, v in values.items()
        }
    return table


def ratios(other: dict[str, list[float]], ours: dict[str, list[float]]) -> dict[str, float]:
    """Ratios of the medians, for each statistic and for both."""
    medians = [{k: float(np.median(v)) for k, v in one.items()} for one in (other, ours)]
    each = {k: medians[0][k] / medians[1][k] for k in medians[1]}
    return each | {"both": sum(medians[0].values()) / sum(medians[1].values())}


def empyrical(levels: np.ndarray, repeat: int) -> tuple[dict, dict] | None:
    """Seconds and values of empyricalRMT with a fixed number of windows."""
    variance = optional("empyricalRMT.observables.levelvariance")
    delta = optional("empyricalRMT.observables.rigidity")
    if variance is None or delta is None:
        return None
    # a tolerance that is never reached, so that max_iters windows are drawn
    fixed = {"tol": 1e-300, "show_progress": False}

    def run(which: Callable, windows: int) -> np.ndarray:
        return which(levels, LENGTHS, max_iters=windows, **fixed)[1]

    ways = {
        "number_variance": variance.level_number_variance,
        "rigidity": delta.spectral_rigidity,
    }
    for function in ways.values():
        run(function, 10)  # compiles
    return repeated({k: lambda f=f: run(f, WINDOWS) for k, f in ways.items()}, repeat)


# pooled unfolding


def pooled_unfolding(options: argparse.Namespace) -> dict[str, Any]:
    """The published protocol by hessrmt and by a compiled merge."""
    draw = rng.stream(0, "benchmark", "pooled")
    spectra = [np.sort(draw.normal(size=SPECTRUM_SIZE)) for _ in range(SPECTRA)]
    groups = np.array(pooled(spectra, folds=FOLDS, rotate=False).groups)
    unfold = [spectra[i] for i in np.flatnonzero(groups == 0)]
    pool = [spectra[i] for i in np.flatnonzero(groups != 0)]
    ways: dict[str, Callable[[], Any]] = {
        "hessrmt": lambda: pooled(spectra, folds=FOLDS, rotate=False),
        "hessrmt_every_group_in_turn": lambda: pooled(spectra, folds=FOLDS, rotate=True),
    }
    numba = optional("numba")
    if numba is not None:
        compiled = numba.njit(merge)
        compiled(np.arange(3.0), np.arange(3.0))

        def published() -> list[np.ndarray]:
            ordered = np.sort(np.concatenate(pool))
            return [compiled(one, ordered) / len(pool) for one in unfold]

        ways["numba_merge"] = published
    seconds, results = repeated(ways, options.repeat)
    table: dict[str, Any] = {
        "spectra": SPECTRA,
        "levels": SPECTRUM_SIZE,
        "pooled": len(pool),
        "unfolded": len(unfold),
        "seconds": seconds,
    }
    if numba is not None:
        table["ratio_to_numba_merge"] = float(
            np.median(seconds["numba_merge"]) / np.median(seconds["hessrmt"])
        )
        ours = [one for one in results["hessrmt"].levels if one is not None]
        table["largest_difference_from_numba_merge"] = max(
            float(np.abs(a - b).max()) for a, b in zip(ours, results["numba_merge"], strict=True)
        )
    return table


def merge(levels: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """Number of pooled levels below each level; both sorted. Compiled by numba."""
    below = np.empty(len(levels))
    k = 0
    for i in range(len(levels)):
        while k < len(pool) and pool[k] < levels[i]:
            k += 1
        below[i] = k
    return below


# the command


def command(options: argparse.Namespace) -> dict[str, Any]:
    """The console script, start-up included."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spectra.h5"
        write_spectra(file)
        script = Path(sys.executable).with_name("hessrmt")
        arguments = [str(script), "levels", str(file), "--surrogates", str(SURROGATES), "--json"]
        environment = os.environ | {"XDG_CACHE_HOME": folder}
        seconds = []
        for _ in range(1 + options.repeat):
            begin = time.perf_counter()
            done = subprocess.run(
                arguments, capture_output=True, text=True, check=False, env=environment
            )
            seconds.append(time.perf_counter() - begin)
            if done.returncode:
                raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return {
        "spectra": FILE_SHAPE[0],
        "levels": FILE_SHAPE[1],
        "surrogates": SURROGATES,
        "made_of": f"{BANK} GOE spectra, each stretched and shifted at random",
        "seconds": {"first": seconds[:1], "surrogates_cached": seconds[1:]},
    }


def write_spectra(file: Path) -> None:
    """A file of complete spectra, every level above its noise floor."""
    batches, size = FILE_SHAPE
    bank = [goe(size, "command", k) / np.sqrt(size) for k in range(BANK)]
    draw = rng.stream(0, "benchmark", "command")
    with SpectrumWriter(
        file,
        identity={"benchmark": "levels"},
        solver="LAPACK stebz",
        dimension=size,
        batch_indices=np.arange(batches)[:, None],
        provenance=Provenance(config={"operator": "ensemble", "dtype": "float64"}),
    ) as writer:
        for row in range(batches):
            levels = 3 + bank[row % BANK] * draw.uniform(0.98, 1.02) + draw.normal(scale=0.01)
            writer.write(row, Spectrum(levels, 1e-12, size, size))


SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "longrange": longrange,
    "pooled": pooled_unfolding,
    "command": command,
}


def versions() -> dict[str, str]:
    """Versions of everything that ran."""
    found = dict(Provenance().versions)
    for name in ("numba", "empyricalRMT"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> None:
    """Measure, print, store the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("sections", nargs="+", choices=list(SECTIONS))
    parser.add_argument("--repeat", type=int, default=5, help="runs of everything but the loop")
    parser.add_argument("--slow-repeat", type=int, default=1, help="runs of the direct loop")
    parser.add_argument("--name", default="levels-2core-cpu", help="name of the result file")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    stored = RESULTS / f"{options.name}.json"
    for name in options.sections:
        section = {"machine": machine(), "versions": versions()} | SECTIONS[name](options)
        print(json.dumps({name: section}, indent=2))
        # sections measured earlier stay
        table = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
        table[name] = section
        stored.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
