"""scripts/gpu_check.py without a GPU: CPU backends in its place, right ones and wrong ones."""

import io
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from hessrmt.backend.cpu import CpuBackend

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import gpu_check
import gpu_parity
import gpu_timing

CPU = CpuBackend()
PEERS = {"torch": torch.linalg.eigvalsh}
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def machine(backend=None, peers=None):
    routes = dict.fromkeys(("auto", "two-stage", "library"), backend or CpuBackend())
    peers = PEERS if peers is None else peers
    return gpu_parity.Machine("A Device, 1 GB", CPU, routes, peers, peers)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The whole script but its processes, on small sizes."""
    for name, size in (("SCAN", (2, 50)), ("LEVELS", 100), ("GOE", (2, 20)), ("SQUARE", 50)):
        monkeypatch.setattr(gpu_timing, name, size)

    def call(given, *more):
        line = "--parity-sizes 1 33 65 --sizes 20 40 --repeats 2 --inside-only --batch 8"
        options = gpu_check.parse([*line.split(), "--out", str(tmp_path), *more])
        options.batches = ((3, 10), (2, 65))
        options.models, options.timed_model = ["logistic"], "logistic"
        said, log = io.StringIO(), gpu_parity.Log()
        code, file = gpu_check.check(given, options, log, Console(file=said, width=120))
        return code, json.loads(file.read_text()), said.getvalue()

    return call


def test_everything_agrees(run, tmp_path):
    code, result, said = run(machine())
    assert code == 0
    assert result["failures"] == []
    assert (tmp_path / "gpu_check-a-device-1-gb.json").exists()
    assert (result["device"], result["kernels"]) == (
        "A Device, 1 GB",
        {"all": "not tried: no CUDA device"},
    )
    checked = " ".join(check["what"] for check in result["checks"])
    verbs = ("symmetrize", "eigvalsh", "eigvalsh_batch", "staircase", "powerlaw_scan", "sample_goe")
    kinds = ("Toeplitz", "clustered", "graded", "diagonal", "zero", "rank-deficient", "float32")
    for word in (*verbs, *kinds, "spectrum of logistic, P = 7,850", "two-stage", "n = 65"):
        assert word in checked
    timed = {row["what"]: row for row in result["timings"]}
    row = timed["eigvalsh, n = 40, float64"]
    assert set(row["median"]) == {"torch", "auto", "two-stage", "library"}
    assert all(len(times) == 2 for times in row["seconds"].values())
    assert timed["spectrum of logistic, batch 8"]["dimension"] == 7850
    assert "0 differ" in said
    assert "not timed" in said  # none of the targets' sizes was


class Wrong(CpuBackend):
    """Right but for one eigenvalue of matrices larger than 40."""

    def eigvalsh(self, matrix):
        levels = super().eigvalsh(matrix)
        if len(levels) > 40:
            levels[-1] += 1e-6 * max(1, abs(levels[-1]))
        return levels


def test_a_wrong_eigenvalue_is_seen(run):
    code, result, said = run(machine(Wrong()))
    assert code == 1
    wrong = [check["what"] for check in result["checks"] if not check["agrees"]]
    assert any("random, n = 65, float64" in what for what in wrong)
    assert not any("n = 33," in what or "batch" in what for what in wrong if "eigvalsh" in what)
    assert "DIFFERS: eigvalsh, random, n = 65, float64, auto" in said


class Broken(CpuBackend):
    """Fails in every verb it overrides."""

    def eigvalsh_batch(self, matrices):
        raise RuntimeError("no batches [today]")

    def powerlaw_scan(self, values):
        raise RuntimeError("no scans")

    def sample_goe(self, n, count, key, dtype=torch.float64, first=0):
        warnings.warn("goe_fill not used: it hangs", RuntimeWarning, stacklevel=2)
        return super().sample_goe(n, count, key, dtype, first)

    def free_memory(self):
        return 30_000  # bytes: enough for 4 times 20 x 20, not for 4 times 40 x 40 in float64


def test_no_failure_stops_the_rest(run):
    def broken_peer(a):
        raise torch.linalg.LinAlgError("no library")

    code, result, said = run(machine(Broken(), {"torch": PEERS["torch"], "cupy": broken_peer}))
    assert code == 1
    reasons = " ".join(f"{failure['what']}: {failure['reason']}" for failure in result["failures"])
    for word in ("no batches [today]", "no scans", "no library", "copies need"):
        assert word in reasons
    assert result["fallbacks"] == ["goe_fill not used: it hangs"]
    assert "no batches [today]" in said
    done = [check["what"] for check in result["checks"] if check["agrees"]]
    assert any("staircase" in what for what in done)
    timed = {row["what"]: row for row in result["timings"]}
    assert "two-stage" in timed["eigvalsh, n = 20, float64"]["median"]
    assert timed["eigvalsh, n = 40, float64"]["median"] == {}
    assert "staircase, 100 levels and queries" in timed


def test_tests_that_fail_or_do_not_run_are_no_success(run, monkeypatch):
    given = machine()
    for tests in (lambda: {"exit_code": 1, "tail": []}, lambda: 1 / 0):
        monkeypatch.setattr(gpu_check, "run_tests", tests)
        monkeypatch.setattr(gpu_check, "sanitize", lambda tool: {"tool": tool, "exit_code": None})
        monkeypatch.setattr(gpu_check, "compare", lambda *_: [])
        monkeypatch.setattr(gpu_check, "measure", lambda *_: ([], []))
        options = gpu_check.parse(["--compare-only"])
        options.compare_only, options.out = False, Path(".")
        monkeypatch.setattr(Path, "write_text", lambda *_, **__: 0)
        console = Console(file=io.StringIO())
        assert gpu_check.check(given, options, gpu_parity.Log(), console)[0] == 1


def test_sanitizer_that_is_not_there(monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda _: None)
    found = gpu_check.sanitize("memcheck")
    assert found["exit_code"] is None
    assert "no compute-sanitizer on PATH" in found["tail"][0]


@NO_CUDA
def test_no_gpu(capsys):
    assert gpu_check.main([]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err


# Comparing


@pytest.mark.parametrize(
    ("found", "expected", "agrees"),
    [
        ([1.0, np.nan], [1.0, np.nan], True),
        ([1.0, np.nan], [1.0, 2.0], False),
        ([1.0, 2.0], [1.0, np.nan], False),
        ([1.0], [1.0, 2.0], False),
        ([1.0, 2.5], [1.0, 2.0], True),
        ([1.0, 2.6], [1.0, 2.0], False),
        ([], [], True),
    ],
)
def test_entry(found, expected, agrees):
    assert gpu_parity.entry("x", found, expected, 0.5)["agrees"] is agrees


def test_tolerance_follows_the_norm_the_size_and_the_precision():
    levels = np.array([-3.0, 1.0])
    assert gpu_parity.tolerance(levels, torch.float64) == 20 * 2 * 2.0**-52 * 3
    assert gpu_parity.tolerance(levels, torch.float32) == 20 * 2 * 2.0**-23 * 3
    assert 0 < gpu_parity.tolerance(np.zeros(2), torch.float64) < 1e-300


@pytest.mark.parametrize("n", [1, 2, 50])
def test_families(n):
    found = gpu_parity.families(n, torch.float64)
    assert all(torch.equal(a, a.T) and a.isfinite().all() for a in found.values())
    if n == 50:
        assert np.linalg.matrix_rank(found["rank-deficient"].numpy()) == 12
        levels = np.linalg.eigvalsh(found["clustered"].numpy())
        # four clusters at 1, 2, 3 and 4
        assert np.abs(levels - np.round(levels)).max() < 1e-10
        assert set(np.round(levels)) == {1, 2, 3, 4}


# Targets and thresholds


def timed(what, n=None, dtype="float64", **median):
    return {"what": what, "n": n, "dtype": dtype, "median": median}


def test_ratio_is_the_best_of_ours_to_the_best_peer():
    row = timed("x", torch=8.0, cupy=6.0, nvmath=1.0, library=1.0, auto=4.0)
    assert gpu_timing.ratio(row) == (1.5, "auto", "cupy")
    row["median"]["two-stage"] = 2.0
    assert gpu_timing.ratio(row) == (3.0, "two-stage", "cupy")
    assert gpu_timing.ratio(timed("x", torch=1.0, library=1.0)) is None
    assert gpu_timing.ratio(timed("x", auto=1.0)) is None


def test_targets():
    rows = [
        timed("eigvalsh, n = 5,000, float64", torch=4.0, auto=2.0),
        timed("eigvalsh, n = 10,000, float64", torch=2.9, auto=1.0),
        timed("eigvalsh, n = 20,060, float64", auto=1.0),
        timed("powerlaw_scan, 100 x 1,000", cpu=51.0, auto=1.0),
        timed("spectrum of mlp3, batch 64", auto=1.0),
    ]
    judged = {target["what"]: target["met"] for target in gpu_timing.judge(rows)}
    assert judged == {
        "eigvalsh, n = 5,000, float64": True,
        "eigvalsh, n = 10,000, float64": False,
        "eigvalsh, n = 20,060, float64": None,
        "eigvalsh, n = 40,000, float64": None,
        "eigvalsh_batch, 100 x n = 300, float64": None,
        "eigvalsh_batch, 32 x n = 2,750, float64": None,
        "powerlaw_scan, 100 x 1,000": True,
        "spectrum of mlp3, batch 64": False,
    }


def test_the_targets_are_among_what_is_timed():
    sizes = {f"eigvalsh, n = {n:,}, float64" for n in gpu_check.SIZES}
    batches = {f"eigvalsh_batch, {k} x n = {n:,}, float64" for k, n in gpu_check.BATCHES}
    scan = {f"powerlaw_scan, {gpu_timing.SCAN[0]} x {gpu_timing.SCAN[1]:,}"}
    assert set(gpu_timing.TARGETS) <= sizes | batches | scan


def test_suggested_thresholds():
    def single(n, two_stage, dtype="float64"):
        return timed("eigvalsh, ...", n, dtype, **{"two-stage": two_stage, "library": 1.0})

    def batch(n, auto, dtype="float64"):
        return timed("eigvalsh_batch, ...", n, dtype, auto=auto, library=1.0)

    rows = [
        *(single(1000, 0.9), single(2000, 1.1), single(3000, 0.9), single(5000, 0.5)),
        *(single(1000, 0.5, "float32"), single(3000, 2.0, "float32")),
        *(batch(32, 0.1), batch(64, 0.2), batch(128, 1.2), batch(160, 0.9), batch(300, 0.1)),
        timed("eigvalsh, ...", 8000, library=1.0),
    ]
    assert gpu_timing.suggest(rows) == {
        "TWO_STAGE_FROM float64": 3000,
        "SMALL_LIMIT float64": 64,
        "TWO_STAGE_FROM float32": None,
        "SMALL_LIMIT float32": None,
    }


def test_long_calls_are_repeated_once(monkeypatch):
    monkeypatch.setattr(gpu_timing, "LONG", -1.0)
    calls = []
    times, _ = gpu_timing.seconds(lambda: calls.append(1), torch.device("cpu"), 5)
    assert (len(times), len(calls)) == (1, 2)
