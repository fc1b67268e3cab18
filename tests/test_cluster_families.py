"""Networks of families and training runs on workers: bit for bit those of one process."""

import os
import signal
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cluster_samples import as_one_worker, two_workers, worker_processes
from experiment_samples import family_on, numbers_of, write_images, write_settings
from gate import open_gate, wait_for

from hessrmt.errors import ClusterError, NonFiniteError
from hessrmt.experiments import families, load
from hessrmt.experiments.families import run_all
from hessrmt.experiments.puzzles import Puzzles, PuzzlesConfig
from hessrmt.runs.run import Run
from hessrmt.store.family import load_family

pytestmark = pytest.mark.slow

# Keeps its weights after every epoch, wherever it is built, and in a worker waits for the file "go"
# after the first; each building leaves a mark
HELD = f"""
import multiprocessing, sys, uuid
from pathlib import Path
from hessrmt.experiments import families
from hessrmt.problems import models
from hessrmt.runs import training

families.SAVE_SECONDS = 0
folder = Path(__file__).parent

if multiprocessing.parent_process() is not None:
    sys.path.append({str(Path(__file__).parent)!r})
    import gate

    save = training.TrainingFile.save

    def held(*given, **extra):
        save(*given, **extra)
        gate.wait_for((folder / "go").exists)

    training.TrainingFile.save = held

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
    """A family's numbers and its trained networks."""
    files = [out / "families" / f"{name}.h5", *(out / "checkpoints").glob(f"{name}-*")]
    return {file.name: numbers_of(file) for file in files}


def test_families_are_those_of_one_process(tmp_path, family, pool, monkeypatch):
    monkeypatch.chdir(tmp_path)  # but the workers are elsewhere
    natural = family(data="images.npz", values=(0.1, 0.3, 0.1), reference_loss=0.9, augment=True)
    corrupted = family(name="wrong", vary="corruption", values=(0.5, 1.0), pretraining=2)
    random = family(name="random", values=(0.2,), labels="random", norm=float("inf"))
    every = [natural, corrupted, random]
    plain = [one.model_dump(exclude={"seed", "device"}) for one in every]
    settings = PuzzlesConfig.model_validate(
        {"experiment": "puzzles", "device": "cpu", "presets": {"small": {"families": plain}}}
    )
    here, there = tmp_path / "here", tmp_path / "there"
    Puzzles().run(settings, "small", here)
    seen = []

    def stop(phase, *_):
        if "network 2 " in phase:
            raise KeyboardInterrupt

    # one network is there already; the command was killed before it tidied up
    with pytest.raises(KeyboardInterrupt):
        run_all([natural], there, tick=stop)
    (there / "checkpoints" / "scales-0.pt").touch()
    relative = there.relative_to(tmp_path)
    Puzzles().run(settings, "small", relative, tick=lambda *step: seen.append(step), pool=pool)
    # epochs of the networks that were left, as many as they were done in
    assert [step[0] for step in seen] == ["training"] * 6 + ["done"]
    assert (seen[0][1:], seen[-2][1:]) == ((0, 19), (19, 19))
    for item in every:
        assert contents(there, item.name) == contents(here, item.name)
        assert len(contents(here, item.name)) == 1 + len(item.values)
    words = "computed by 2 local Dask worker(s), threads of each: 1"
    assert words in load_family(there / "families" / "wrong.h5").notes
    before = (there / "families" / "wrong.h5").read_bytes()
    Puzzles().run(settings, "small", there, pool=pool)
    assert (there / "families" / "wrong.h5").read_bytes() == before  # nothing was left to do


def test_workers_killed_in_the_middle_of_networks(tmp_path, family, pool, monkeypatch):
    monkeypatch.setattr(families, "SAVE_SECONDS", 0)  # undone for the networks of this process
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
    run_all([settings], out, pool=pool)
    killer.join()
    assert len(victims) == 2  # each with a network in training, saved on its way
    assert len(list((tmp_path / "built").iterdir())) == 3 + 2
    run_all([settings], tmp_path / "here")
    assert contents(out, "scales") == contents(tmp_path / "here", "scales")


def test_errors_of_workers(tmp_path, family, pool):
    settings = family(values=(0.1, 1e30), epochs=1, rates=(0.1,))
    messages = []
    for given in ({}, {"pool": pool}):
        with pytest.raises(
            NonFiniteError, match=r"network 2 of scales \(.*: .* 2 networks"
        ) as caught:
            run_all([settings], tmp_path / "out", **given)
        messages.append(str(caught.value).partition(" networks are in ")[0])
    assert messages[0] == messages[1]  # the first network is in the file both times
    elsewhere = tmp_path / "elsewhere"
    work = Run(families.FamilySamples, settings, pool=pool, out=elsewhere)
    with pytest.raises(ClusterError, match=r"worker on \S+ has no folder .*elsewhere"):
        work.on_one(families._device, None)
    elsewhere.mkdir()
    write_images(tmp_path / "images.npz", seed=1)
    with pytest.raises(ClusterError, match="has other data"):
        work.on_one(families._device, None)


@pytest.mark.parametrize("kind", ["training-budget", "iterate-averaging"])
def test_training_runs_are_those_of_one_process(tmp_path, digits, pool, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment, settings = load(write_settings(tmp_path, kind))
    here = experiment.run(settings, "small", tmp_path / "here")
    there = experiment.run(settings, "small", tmp_path / "there", pool=pool)
    np.testing.assert_equal(experiment.table(there).plain(), experiment.table(here).plain())
    files = sorted((tmp_path / "here" / "checkpoints").iterdir())
    assert len(files) >= 2 * 4  # a run leaves one, and one for each of its points
    for file in files:
        other = tmp_path / "there" / "checkpoints" / file.name
        assert numbers_of(other) == numbers_of(file)
    for run in there[0].runs:
        assert all(path.is_relative_to(tmp_path / "there") for path in run.files.values())
