"""scripts/gpu_check.py without a GPU: its steps go through the stand-in for CuPy."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import gpu_check
import gpu_steps

ROOT = Path(__file__).parents[1]
NEED_G = pytest.mark.skipif(not shutil.which("g++"), reason="no g++")


def read(folder):
    (path,) = folder.glob("gpu_check-stand-in-*.json")
    return json.loads(path.read_text())


def start(folder, *options, tree=ROOT):
    command = [sys.executable, "scripts/gpu_check.py", "--stand-in", "--out", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    return subprocess.Popen(
        [*command, *options], cwd=tree, env=environment, stdout=subprocess.PIPE, text=True
    )


def run(folder, *options, tree=ROOT):
    """The program from a source tree; its exit code, its record by steps, and what it printed."""
    done = start(folder, *options, tree=tree)
    said, _ = done.communicate()
    record = read(folder)
    return done.returncode, record, {step["name"]: step for step in record["steps"]}, said


@pytest.fixture
def tree(tmp_path):
    """A source tree of its own, to plant a fault in."""
    for name in ("hessrmt", "csrc", "scripts", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def plant(tree, file, right, wrong):
    path = tree / "csrc" / file
    text = path.read_text()
    assert text.count(right) == 1
    path.write_text(text.replace(right, wrong))


@NEED_G
@pytest.mark.slow
def test_everything(tmp_path):
    code, record, steps, said = run(tmp_path)
    assert code == 0, said
    assert record["complete"]
    assert [step["name"] for step in record["steps"]] == [step.name for step in gpu_check.STEPS]
    outside = {"memcheck", "racecheck", "parity tests"}  # programs that may be missing
    for name, found in steps.items():
        assert found["status"] in {"passed", "skipped" if name in outside else ""}, found
    profile = next(entry for entry in steps["spectrum"]["entries"] if "top" in entry)
    assert len(profile["top"]) == 15
    staged = [e for e in steps["n = 5,000"]["entries"] if "stages" in e]
    assert set(staged[0]["stages"]) == {
        "dense to band",
        "band to tridiagonal",
        "tridiagonal to eigenvalues",
    }
    assert record["conclusions"] == {}  # of main memory nothing is learnt


@NEED_G
@pytest.mark.slow
def test_a_fault_in_one_kernel_fails_its_step_alone(tree):
    """Strict becomes not strict: a tail begins behind its own first value."""
    plant(tree, "powerlaw_scan.cu", "x[middle] < value", "x[middle] <= value")
    code, record, steps, said = run(tree / "out", "--only", "versions", "power-law scan", tree=tree)
    assert code == 1
    assert steps["versions"]["status"] == "passed"
    assert steps["power-law scan"]["status"] == "failed"
    wrong = [entry for entry in steps["power-law scan"]["entries"] if not entry["agrees"]]
    assert wrong[0]["difference"] > 1e6 * wrong[0]["allowed"]
    assert "differ" in said
    assert record["complete"]


@NEED_G
@pytest.mark.slow
def test_a_kernel_that_does_not_compile_is_named(tree):
    plant(tree, "goe_fill.cu", "void goe_tile(double *a", "void goe_tile(Nothing *a")
    code, _, steps, _ = run(tree / "out", "--only", "compile", tree=tree)
    assert code == 1
    assert steps["compile"]["status"] == "failed"
    said = {entry["what"]: entry for entry in steps["compile"]["entries"]}
    assert not said["compile goe_fill"]["agrees"]
    assert all(e["agrees"] for what, e in said.items() if what != "compile goe_fill")
    assert said["compile sturm"]["kernels"]["sturm_bisect_f64"]["registers"] > 0


@NEED_G
@pytest.mark.slow
def test_a_step_that_hangs_and_one_that_crashes_cost_only_themselves(tmp_path):
    faults = ["--plant", "sturm=hang", "--plant", "goe=crash"]
    code, record, steps, said = run(tmp_path, "--only", "goe", "sturm", "power-law scan", *faults)
    assert code == 1
    assert {name: step["status"] for name, step in steps.items()} == {
        "goe": "crashed",
        "power-law scan": "passed",
        "sturm": "timed out",
    }
    assert "-11" in steps["goe"]["error"]
    assert "stopped after" in steps["sturm"]["error"]
    assert "timed out  sturm" in said
    assert record["complete"]


def test_a_run_that_is_cut_off_leaves_what_it_has(tmp_path):
    """The record after the first step is whole, though the second never ends."""
    process = start(tmp_path, "--only", "versions", "goe", "--plant", "goe=hang")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("passed     versions")
    process.kill()
    process.communicate()
    record = read(tmp_path)
    assert not record["complete"]
    assert [step["name"] for step in record["steps"]] == ["versions"]


def test_when_the_time_is_over_the_rest_is_not_run(tmp_path):
    code, record, _, said = run(tmp_path, "--seconds", "1", "--only", "versions", "goe")
    assert code == 3
    assert [step["status"] for step in record["steps"]] == ["not run", "not run"]
    assert "the 1 s are over" in said


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    step = gpu_check.Step("x", 1, ("json", "no_such_package_anywhere"))
    assert gpu_check.missing(step, tmp_path) == "no_such_package_anywhere"
    (tmp_path / "no_such_package_anywhere.py").touch()
    assert gpu_check.missing(step, tmp_path) == ""


def test_without_a_gpu(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_check.main([]) == 2
    assert "no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["sturm", "sturm=sleep", "nothing=hang"])
def test_only_known_faults_are_planted(word):
    with pytest.raises(argparse.ArgumentTypeError, match="STEP=hang or STEP=crash"):
        gpu_check.planted(word)


def test_steps_are_those_that_can_be_run():
    assert {step.name for step in gpu_check.STEPS} | {"sanitized"} == set(gpu_steps.STEPS)
    assert sum(step.limit for step in gpu_check.STEPS[:2]) < 430


def test_the_parent_imports_nothing_large():
    program = "import sys, gpu_check; print(sorted({'torch', 'numpy', 'cupy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT / "scripts",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


# What is compared, and what is concluded


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
        (1.0, 1.5, True),
    ],
)
def test_compared(found, expected, agrees):
    assert gpu_steps.compared("x", found, expected, 0.5)["agrees"] is agrees


def step(monkeypatch, entries):
    """What a step of these entries writes in the end."""
    monkeypatch.setitem(gpu_steps.STEPS, "goe", entries)
    said = []
    gpu_steps.run("goe", lambda: None, lambda *a, **k: said.append((*a, k)))
    return said[-1]


def test_a_fallback_is_a_failure(monkeypatch):
    """The backend takes another route with a warning: the right number by the wrong kernel."""

    def falls_back(machine):
        gpu_steps.warnings.warn("cuda:0: goe_fill not used: it hangs", RuntimeWarning, stacklevel=1)
        yield {"what": "x", "agrees": True}

    status, entries, _ = step(monkeypatch, falls_back)
    assert status == "failed"
    assert entries[-1] == {"what": "cuda:0: goe_fill not used: it hangs", "agrees": False}


def test_an_error_is_recorded_with_what_came_before(monkeypatch):
    def breaks(machine):
        yield {"what": "first", "agrees": True}
        raise ValueError("no second")

    status, entries, more = step(monkeypatch, breaks)
    assert (status, entries) == ("failed", [{"what": "first", "agrees": True}])
    assert "no second" in more["error"]


def race(name, n, count=1, **median):
    about = {"race": name, "n": n} | ({"count": count} if count > 1 else {})
    return [{**about, "route": route, "median": value} for route, value in median.items()]


def test_conclusions():
    entries = [
        *race("n = 5,000", 5000, torch=1.0, cupy=0.5, **{"two-stage": 0.6}),
        *race("n = 10,000", 10_000, torch=4.0, **{"two-stage": 1.0, "sytrd alone": 0.1}),
        *race("n = 20,060", 20_060, cupy=9.0, **{"two-stage": 1.0}),
        *race("n = 40,000", 40_000, **{"two-stage": 5.0}),
        *race("100 x n = 32", 32, 100, **{"one block": 1.0}, torch=2.0, cupy=9.0),
        *race("100 x n = 160", 160, 100, **{"one block": 3.0}, XsyevBatched=2.0, auto=3.0),
        *race("100 x n = 300", 300, 100, **{"batched two-stage": 3.0}, XsyevBatched=2.0),
        *race("32 x n = 2,000", 2000, 32, **{"batched two-stage": 1.0}, XsyevBatched=2.0),
        *race("32 x n = 2,750", 2750, 32, **{"batched two-stage": 1.0}, torch=1.5),
        {"race": "n = 40,000", "route": "torch", "not timed": "MemoryError"},
        {"cuSOLVER": {"libcusolver.so.12": "12.0.4"}},
    ]
    found = gpu_check.conclusions([{"entries": entries}])
    faster = {
        row["race"]: (row["ours"], row["peer"], row["times faster"]) for row in found["races"]
    }
    assert faster["n = 10,000"] == ("two-stage", "torch", 4.0)
    assert faster["n = 20,060"] == ("two-stage", "cupy", 9.0)
    assert faster["100 x n = 32"] == ("one block", "torch", 2.0)
    assert "n = 40,000" not in faster
    assert (found["TWO_STAGE_FROM"], found["SMALL_LIMIT"]) == (10_000, 32)
    assert found["BATCHED_FROM"] == 2000
    assert found["cuSOLVER"] == {"libcusolver.so.12": "12.0.4"}
    nothing = gpu_check.conclusions([])
    names = "TWO_STAGE_FROM", "BATCHED_FROM", "SMALL_LIMIT"
    assert {nothing[name] for name in names} == {"not measured"}
    assert nothing["cuSOLVER"] is None
