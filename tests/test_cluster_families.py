"""Networks of families and training runs on workers: bit for bit those of one process."""

import os
import signal
import threading
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from cluster_samples import as_one_worker, two_workers, worker_processes
from family_samples import family_on, write_images
from gate import open_gate, wait_for
from hessrmt.workflows import families, iterate_averaging, members, puzzles, training_budget

from hessrmt.errors import ClusterError, NonFiniteError
from hessrmt.experiments.iterate_averaging import IterateAveragingConfig
from hessrmt.experiments.puzzles import PuzzlesConfig
from hessrmt.experiments.training_budget import BudgetConfig
from hessrmt.problems import checkpoints
from hessrmt.store.family import load_family

# Keeps its weights after every epoch, wherever it is built, and in a worker waits for the file "go"
# after the first; each building leaves a mark
HELD = f"""
import sys, uuid
from pathlib import Path
from hessrmt.problems import models
from hessrmt.workflows import members

members.SAVE_SECONDS = 0
folder = Path(__file__).parent

if "dask_worker" in sys.argv[0]:
    sys.path.append({str(Path(__file__).parent)!r})
    import gate

    write = members._write

    def held(plan, progress):
        write(plan, progress)
        gate.wait_for((folder / "go").exists)

    members._write = held

def net(input_shape, outputs):
    (folder / "built" / uuid.uuid4().hex).touch()
    return models.NUMBERED["conv3s2-"](input_shape, outputs, 2)
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    with two_workers(tmp_path_factory) as opened:
        yield opened


@pytest.fixture(autouse=True)
def one_thread():
    with as_one_worker():
        yield


@pytest.fixture
def family(tmp_path):
    return partial(family_on, write_images(tmp_path / "images.npz"))


def contents(out, name):
    """Bytes of a family's numbers but the timings, and of its trained networks."""
    found = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset) and name != "seconds":
            found[name] = item[()].tobytes()

    with h5py.File(out / "families" / f"{name}.h5") as file:
        file.visititems(keep)
    finals = sorted((out / "checkpoints").glob(f"{name}-*"))
    return found | {file.name: plain(checkpoints.read(file)) for file in finals}


def plain(content):
    """What a checkpoint holds, with bytes for tensors; a file also depends on shared strings."""
    if isinstance(content, torch.Tensor):
        return str(content.dtype), tuple(content.shape), content.numpy().tobytes()
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    return [plain(value) for value in content] if isinstance(content, list | tuple) else content


@pytest.mark.slow
def test_families_are_those_of_one_process(tmp_path, family, pool, monkeypatch):
    monkeypatch.chdir(tmp_path)  # but the workers are elsewhere
    natural = family(data="images.npz", values=(0.1, 0.3, 0.1), reference_loss=0.9, augment=True)
    corrupted = family(name="wrong", vary="corruption", values=(0.5, 1.0), pretraining=2)
    random = family(name="random", values=(0.2,), labels="random", norm=float("inf"))
    settings = PuzzlesConfig.model_validate(
        {
            "experiment": "puzzles",
            "title": "small",
            "device": "cpu",
            "presets": {"small": {"families": (natural, corrupted, random)}},
        }
    )
    here, there = tmp_path / "here", tmp_path / "there"
    puzzles.run(settings, "small", here)
    seen = []
    # one network is there already; the command was killed before it tidied up
    with pytest.raises(KeyboardInterrupt):
        families.run(natural, there, device="cpu", observer=stop_at("2/3"))
    (there / "checkpoints" / "scales-0.pt").touch()
    puzzles.run(settings, "small", there.relative_to(tmp_path), observer=watch(seen), pool=pool)
    assert seen == [("networks", k, 6) for k in range(1, 7)] + [("done", 3, 3)]
    for item in (natural, corrupted, random):
        assert contents(there, item.name) == contents(here, item.name)
        assert contents(here, item.name).keys() >= {"test_loss", "history/margin", "factors"}
        assert len(list((there / "checkpoints").glob(f"{item.name}-*"))) == len(item.values)
    words = "computed by 2 local Dask worker(s), threads of each: 1"
    assert words in load_family(there / "families" / "wrong.h5").notes
    before = (there / "families" / "wrong.h5").read_bytes()
    puzzles.run(settings, "small", there, pool=pool)
    assert (there / "families" / "wrong.h5").read_bytes() == before  # nothing was left to do


@pytest.mark.slow
def test_workers_killed_in_the_middle_of_networks(tmp_path, family, pool, monkeypatch):
    monkeypatch.setattr(members, "SAVE_SECONDS", 0)  # undone for the networks of this process
    (tmp_path / "net.py").write_text(HELD)
    (tmp_path / "built").mkdir()
    settings = family(model=f"{tmp_path}/net.py:net", values=(0.1, 0.3, 0.2), epochs=8)
    out, victims = tmp_path / "there", []

    def kill():
        wait_for(lambda: len(list((out / "checkpoints").glob("scales-?.pt"))) == 2)
        victims.extend(worker_processes(os.getpid()))
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        open_gate(tmp_path)

    killer = threading.Thread(target=kill)
    killer.start()
    families.run(settings, out, device="cpu", pool=pool)
    killer.join()
    assert len(victims) == 2  # each with a network in training, saved on its way
    assert len(list((tmp_path / "built").iterdir())) == 3 + 2
    families.run(settings, tmp_path / "here", device="cpu")
    assert contents(out, "scales") == contents(tmp_path / "here", "scales")


@pytest.mark.slow
def test_errors_of_workers(tmp_path, family, pool):
    settings = family(values=(0.1, 1e30), epochs=1, rates=(0.1,))
    messages = []
    for given in ({}, {"pool": pool}):
        with pytest.raises(
            NonFiniteError, match=r"network 2 of scales \(.*: .* 2 networks"
        ) as caught:
            families.run(settings, tmp_path / "out", device="cpu", **given)
        messages.append(str(caught.value).partition(" networks are in ")[0])
    assert messages[0] == messages[1]  # the first network is in the file both times
    job = families._job(settings, tmp_path / "elsewhere", 0, "cpu", None, "other")
    with pytest.raises(ClusterError, match=r"worker on \S+ has no folder .*elsewhere"):
        families._make_there((job, 0))
    (tmp_path / "elsewhere" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ClusterError, match="has other data"):
        families._make_there((job, 0))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["training-budget", "iterate-averaging"])
def test_training_runs_are_those_of_one_process(tmp_path, digits, pool, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = {"experiment": kind, "title": "small", "data": digits.name, "device": "cpu"}
    if kind == "training-budget":
        module, size = training_budget, {"budgets": (1, 3), "seeds": 2, "lr": 0.02, "batch": 30}
        settings = BudgetConfig.model_validate(
            common | {"presets": {"small": size | {"model": "logistic"}}}
        )
    else:
        module = iterate_averaging
        size = {
            "networks": [{"model": "logistic", "spectra": 1, "batch": 20}],
            "rates": [{"name": "high", "lr": 0.05}],
            "epochs": 3,
            "tail_start": 1,
            "batch": 32,
            "seeds": 2,
        }
        settings = IterateAveragingConfig.model_validate(common | {"presets": {"small": size}})
    here = module.run(settings, "small", tmp_path / "here")
    there = module.run(settings, "small", tmp_path / "there", pool=pool)
    np.testing.assert_equal(module.table(there), module.table(here))
    files = sorted((tmp_path / "here" / "checkpoints").iterdir())
    assert len(files) == 8  # a run leaves one, and one for each of its points
    for file in files:
        other = tmp_path / "there" / "checkpoints" / file.name
        assert plain(checkpoints.read(other)) == plain(checkpoints.read(file))
    for run in there[0].runs:
        assert all(path.is_relative_to(tmp_path / "there") for path in run.files.values())


def watch(seen):
    return lambda *step: seen.append(step)


def stop_at(word):
    def observer(phase, done, total):
        if word in phase:
            raise KeyboardInterrupt

    return observer
