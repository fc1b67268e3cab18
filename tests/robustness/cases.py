"""Commands that write files, as small as they can be, and what their files hold."""

from __future__ import annotations

import json
import shutil
from typing import NamedTuple

import h5py
import numpy as np
import torch

from hessrmt.curvature.density import DensityResult
from hessrmt.runs.stored import contents as contents_of
from hessrmt.runs.training import load_checkpoint
from hessrmt.store.history import History

DATA = "--data tiny.npz --device cpu"
NET = f"--model logistic {DATA}"

NETWORK = """
from torch import nn


def net():
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
"""


class Case(NamedTuple):
    """A command that is disturbed.

    Attributes:
        words: Of the command.
        again: What completes it: by default the same with ``--resume``.
        before: Commands that have run.
        results: Files and folders that must come out the same.
        rows: Of them, those that hold finished rows while it runs.
    """

    words: str
    results: tuple[str, ...]
    rows: tuple[str, ...] = ()
    again: str = ""
    before: tuple[str, ...] = ()

    @property
    def completion(self):
        return (self.again or f"{self.words} --resume").split()


SPECTRUM = f"spectrum {NET} --batch 10 --batches {{}} --out a.h5"
SIMULATE = "simulate --samples {} --dimension 12 --out a.h5"
TRAIN = f"train {NET} --batch 16 --epochs {{}} --out a.pt --history b.h5 --history-batch 12"
DENSITY = f"density {NET} --batch 60 --steps 6 --probes {{}} --out a.h5"
LEVELS = "levels s.h5 --surrogates 20 --csv a.csv --out a.h5 --overwrite"
DRAWN = "levels s.h5 --surrogates 0 --csv a.csv --plot pictures --format svg"
LANDSCAPE = f"landscape {NET} --batch 60 --points 5 --out a.h5"
CAPACITY = "capacity n.pt --csv a.csv --plot pictures"
SAMPLED = SIMULATE.format(4).replace("a.h5", "s.h5")

CASES = {
    "spectrum": Case(SPECTRUM.format(4), ("a.h5",), ("a.h5",)),
    "spectrum, extended": Case(
        f"{SPECTRUM.format(4)} --resume", ("a.h5",), ("a.h5",), before=(SPECTRUM.format(2),)
    ),
    "spectrum of blocks": Case(
        f"spectrum --model net.py:net {DATA} --batch 20 --batches 3 --blocks layer --out a.h5",
        ("a.h5",),
        ("a.h5",),
    ),
    "train": Case(TRAIN.format(3), ("a.pt", "b.h5"), ("a.pt", "b.h5")),
    "train, longer": Case(
        f"train {NET} --batch 16 --epochs 3 --out a.pt --resume",
        ("a.pt",),
        ("a.pt",),
        before=(f"train {NET} --batch 16 --epochs 2 --out a.pt",),
    ),
    "density": Case(f"{DENSITY.format(3)} --top 2 --plot a.png", ("a.h5", "a.png"), ("a.h5",)),
    "simulate": Case(SIMULATE.format(4), ("a.h5",), ("a.h5",)),
    "simulate, extended": Case(
        f"{SIMULATE.format(4)} --resume", ("a.h5",), ("a.h5",), before=(SIMULATE.format(2),)
    ),
    "levels": Case(
        LEVELS, ("a.csv", "a.h5", "cache/hessrmt/surrogates"), again=LEVELS, before=(SAMPLED,)
    ),
    "levels, pictures": Case(DRAWN, ("a.csv", "pictures"), again=DRAWN, before=(SAMPLED,)),
    "landscape, replaced": Case(
        f"{LANDSCAPE} --overwrite",
        ("a.h5",),
        again=f"{LANDSCAPE} --overwrite",
        before=(LANDSCAPE.replace("--points 5", "--points 3"),),
    ),
    "capacity": Case(
        CAPACITY,
        ("a.csv", "pictures"),
        again=CAPACITY,
        before=(f"train {NET} --batch 16 --epochs 1 --out n.pt",),
    ),
}
"""Name to command."""


WARM = (f"{SPECTRUM.format(1)} -q".split(),)
"""What the server of faults runs first, so that what is imported late is there."""


def write_inputs(folder):
    """Data and a network."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(5)
    np.savez(folder / "tiny.npz", x=draw.normal(size=(60, 6)), y=draw.permutation(60) % 3)
    (folder / "net.py").write_text(NETWORK)
    return folder


class Undisturbed:
    """A case without a fault.

    Attributes:
        points: How often it changes a file.
        seconds: That it takes.
        contents: Of its results.
        before: What was finished before it, file by file.
        rows: What is in the end.
    """

    def __init__(self, program, folder, case):
        self.case, self._template, self._place = case, folder / "before", folder / "run"
        write_inputs(self._template)
        for words in case.before:
            done = program.run(words.split(), self._template)
            assert done.code == 0, done.err
        done = program.run(case.words.split(), self.fresh())
        assert done.code == 0, done.err
        self.points, self.seconds = done.points, done.seconds
        self.contents = contents(self._place, case.results)
        self.rows = self.finished(self._place)
        self.before = self.finished(self._template)

    def fresh(self):
        """A folder as it is before the command, in place of that of the last run."""
        shutil.rmtree(self._place, ignore_errors=True)
        shutil.copytree(self._template, self._place)
        return self._place

    def finished(self, folder):
        """What is finished in the files of a folder, row by row."""
        found = {name: rows(folder / name) for name in self.case.rows}
        return {
            f"{name}: {row}": value for name, part in found.items() for row, value in part.items()
        }

    def faults_of(self, folder, told):
        """What is wrong with the files of a run that came to a bad end.

        Args:
            folder: Where it ran.
            told: How many rows it said that it has written.

        Returns:
            Sentences.
        """
        try:
            found = self.finished(folder)
        except Exception as error:
            return [f"its files can't be read: {type(error).__name__}: {error}"]
        wrong = [f"{name} is gone" for name in self.before if name not in found]
        wrong += [f"{name} is another" for name, v in found.items() if self.rows.get(name) != v]
        if len(found) < len(self.before) + told:
            wrong.append(f"{len(self.before)} + {told} rows were written, {len(found)} are there")
        return wrong

    def faults_after(self, folder, done):
        """What is wrong with a run that completed what another began."""
        if done.code != 0:
            return [f"the run that completes it ended with {done.code}: {done.err.strip()}"]
        found = contents(folder, self.case.results)
        differing = {k for k in {**found, **self.contents} if found.get(k) != self.contents.get(k)}
        return [f"in the end differ {', '.join(sorted(differing))}"] if differing else []


# What is in files


def contents(folder, names):
    """Everything that must not depend on what happened: name to bytes."""
    found = {}
    for name in names:
        path = folder / name
        if path.is_dir():
            drafts = set(path.glob(".*.part"))  # of a run that was killed
            files = {p.name: p for p in {*path.iterdir()} - drafts}
            found |= {f"{name}/{key}": p.read_bytes() for key, p in files.items()}
        elif path.suffix == ".h5":
            found |= {f"{name}/{key}": value for key, value in _of_hdf5(path).items()}
        elif path.suffix == ".pt":
            stored = torch.load(path, weights_only=True)
            found |= {f"{name}{key}": value for key, value in _flat("", stored).items()}
        else:
            found[name] = path.read_bytes()
    return found


def _timed(name):
    """Whether a dataset or an attribute says when, or how long it took."""
    return "seconds" in name or name.rpartition("/")[2] == "created"


def _of_hdf5(path):
    found = {}

    def add(name, item):
        for key, value in item.attrs.items():
            if key not in {"REFERENCE_LIST", "DIMENSION_LIST"}:  # places in the file
                found[f"{name}@{key}"] = _bytes(value)
        if name == "value":  # of a result: everything but its arrays
            found.update(_flat(name, json.loads(item[()])))
        elif isinstance(item, h5py.Dataset):
            found[name] = _bytes(item[()])

    with h5py.File(path) as file:
        add("", file)
        file.visititems(add)
    return {k: v for k, v in found.items() if not _timed(k.replace("@", "/"))}


def _bytes(value):
    array = np.asarray(value)
    content = array.tolist() if array.dtype == object else array.tobytes()
    return str(array.dtype), array.shape, content


def _flat(name, value):
    if isinstance(value, dict):
        parts = [_flat(f"{name}/{key}", part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [_flat(f"{name}/{i}", part) for i, part in enumerate(value)]
    elif isinstance(value, torch.Tensor):
        return {name: _bytes(value.numpy())}
    else:
        return {} if _timed(name) else {name: repr(value)}
    return {k: v for part in parts for k, v in part.items()}


def rows(path):
    """What is finished in a file, row by row: name to numbers. Nothing, if there is no file."""
    if not path.exists():
        return {}
    if path.suffix == ".pt":
        found = load_checkpoint(path)
        columns = zip(found.epochs, found.rate, found.train_loss, strict=True)
        return {f"epoch {row[0]}": tuple(row) for row in columns}
    _, parts = contents_of(path)
    found = next(iter(parts.values()))
    if isinstance(found, DensityResult):
        pairs = zip(found.quadrature.nodes, found.quadrature.weights, strict=True)
        finished = {f"probe {i}": (*map(_bytes, pair),) for i, pair in enumerate(pairs)}
        if found.traces is not None:
            finished["traces"] = repr(found.traces)
        if found.edges is not None:
            finished["edges"] = _bytes(found.edges.values)
        return finished
    finished = {}
    for part, result in parts.items():
        history = isinstance(result, History)
        spectra = result.spectra if history else result
        named = result.epochs if history else [which.tolist() for which in spectra.batch_indices]
        for label, item in zip(named, spectra, strict=True):
            numbers = (item.eigenvalues, item.noise_floor, item.rank, item.loss, item.gradient_norm)
            finished[f"{part} {label}"] = tuple(map(_bytes, numbers))
    return finished
