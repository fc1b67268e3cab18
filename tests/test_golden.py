"""What every command prints and writes, against what it printed and wrote before: ``tests/golden``.

A group of commands runs in one folder; of each command its exit code is kept, its JSON or its
tables, its notes and errors, and the content of every file that it wrote, without clocks, versions
and paths (see ``golden_samples.py``). When a difference is meant, write the files anew and look at
what has changed::

    python tests/test_golden.py --write             # all of them
    python tests/test_golden.py --write levels      # some groups
"""

import json
import os
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from experiment_samples import PUZZLES, write_images, write_settings
from golden_samples import (
    DOUBLE,
    LEVELS,
    SINGLE,
    Run,
    compact,
    differences,
    expanded,
    numbers,
    shortened,
)
from level_samples import write_file

import hessrmt as hr
from hessrmt import rng
from hessrmt.cli import console
from hessrmt.ensembles import goe, poisson
from hessrmt.records import Spectrum
from hessrmt.store.hdf5 import dataset as array

GOLDEN = Path(__file__).parent / "golden"
WRITE = "HESSRMT_WRITE_GOLDEN"
"""Set by ``--write`` in the environment of the tests."""

GROUPS = {}

LIKELIHOOD = 1e-6
"""Of what maximises a likelihood: where it is flat to ε, the maximum is known to √ε."""

NETWORKS = """
import numpy as np
import torch
from torch import nn


def drawn(*layers):
    '''torch's own initial values differ in the last bit of float32 from processor to processor.'''
    net, draw = nn.Sequential(*layers), np.random.default_rng(1)
    for p in net.parameters():
        p.data = torch.from_numpy(draw.normal(size=tuple(p.shape)) / 2).float()
    return net


def make():
    return drawn(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def relu():
    return drawn(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def linear():
    return drawn(nn.Linear(6, 3))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = drawn(nn.Linear(6, 6)), drawn(nn.Linear(6, 2))

    def forward(self, x):
        return self.b(x + self.a(x).relu())
"""

SPECTRUM = "spectrum --model net.py:make --data clouds.npz --device cpu"
FEW = f"{SPECTRUM} --split train --batch 20 --batches 3"
ONE = f"{SPECTRUM} --batch all --batches 1 --json"


def group(commands):
    """A group of commands that share a folder, each run with ``run(name, command)``."""
    GROUPS[commands.__name__] = commands
    return commands


def torn(path, *rows, without=()):
    """A copy of a file in which some rows are absent, as after a run that was stopped."""
    copy = shutil.copy(path, path.with_name("torn.h5"))
    with h5py.File(copy, "r+") as file:
        for row in rows:
            array(file, "done")[row] = 0
            for name in {"hessian_evals", "nodes"} & set(file):
                array(file, name)[row] = np.nan
        for name in without:
            del file[name]


def loaded(path):
    """What ``hr.load`` finds in a spectrum file."""
    found = hr.load(path)
    return {
        "spectra": len(found),
        "planned": found.planned,
        "eigenvalues": numbers(found.eigenvalues, max(item.noise_floor for item in found)),
        "noise_floor": [item.noise_floor for item in found],
        "rank": [item.rank for item in found],
        "resolved": [len(item.resolved) for item in found],
        "loss": [item.loss for item in found],
        "gradient_norm": [item.gradient_norm for item in found],
        "operator, dtype, solver": [found[0].operator, found[0].dtype, found[0].solver],
        "batch_indices": numbers(found.batch_indices),
        "settings": sorted(found.provenance.config),
        "packages": sorted(found.provenance.versions),
    }


@group
def spectrum(run):
    (run.folder / "few.toml").write_text('model = "net.py:make"\ndata = "clouds.npz"\nbatch = 15\n')
    run("hessian", f"{FEW} --out a.h5")
    run("finished", f"{FEW} --out a.h5 --resume --json")
    run.note("load", loaded(run.folder / "a.h5"), LEVELS)
    torn(run.folder / "a.h5", 1, 2)
    run("info of an interrupted file", "info torn.h5 --json")
    run("resumed", f"{FEW} --out torn.h5 --resume --json")
    run("replaced", f"{FEW} --out a.h5 --overwrite --loss mse --json")
    run("ggn", f"{FEW} --operator ggn --out ggn.h5")
    run("ggn, json", f"{FEW} --operator ggn --out ggn.h5 --resume --json")
    run("blocks", f"{FEW} --blocks layer --out blocks.h5")
    run("blocks, json", f"{FEW} --blocks layer --out blocks.h5 --resume --json")
    run("blocks, info", "info blocks.h5")
    run("nothing removed", f"{FEW} --reduce none --out none.h5")
    run("nothing removed, json", f"{FEW} --reduce none --out none.h5 --resume --json")
    run("single precision", f"{FEW} --dtype float32 --out one.h5 --json", tolerance=SINGLE)
    run("only some", f"{ONE} --only 2.* --out only.h5", brief=True)
    other = "--loss mse --data tiny.npz --model net.py:linear"
    run("squared error", f"{ONE} {other}", brief=True)
    initial = "--model mlp2 --seed 3 --out mlp2.h5"
    run("random initialisation", f"{ONE} {initial}", tolerance=SINGLE, brief=True)
    words = "train --model net.py:make --data clouds.npz --epochs 2 --dtype float64 --batch 32"
    run("trained", f"{words} --device cpu --out trained.pt")
    run("checkpoint", f"{ONE} --checkpoint trained.pt --out trained.h5", brief=True)
    run("settings", "spectrum --config few.toml --batches 2 --out few.h5 --json", brief=True)
    words = "spectrum --model logistic --batch 8 --batches 1 --out digits.h5 --json"
    run("embedded digits", words, tolerance=SINGLE, brief=True)


@group
def density(run):
    words = "density --model net.py:make --data clouds.npz --batch 40 --probes 2 --steps 8"
    ends = f"{words} --top 4 --bottom 3 --trace hutch++ --trace-products 12"
    run("tables", f"{ends} --plot picture.png")
    run("finished", f"{ends} --resume --json")
    torn(run.folder / "density.h5", 1, without=("edges", "traces"))
    run("resumed", f"{ends} --out torn.h5 --resume --json")
    other = "--operator ggn --law gaussian --trace xtrace --largest 5 --samples 20 --out ggn.h5"
    run("ggn", f"{words} {other} --json")
    run("bare", f"{words} --only 0.* --out bare.h5 --seed 2 --json")
    run("single", f"{words} --dtype float32 --out single.h5 --json", tolerance=SINGLE)
    run("levels of the edges", "levels density.h5 --surrogates 0 --json")
    found = hr.load_density(run.folder / "density.h5")
    run.note("load_density", found.to_dict())
    run.mistakes(
        "density --data clouds.npz --out density.h5",
        f"{words} --resume --seed 1",
        f"{words} --resume --overwrite",
        f"{words} --overwrite --probes 0",
        f"{words} --overwrite --trace plain",
        f"{words} --overwrite --largest 3 --top 2",
        f"{words} --overwrite --plot picture",
        f"{words} --overwrite --plot picture.nonsense",
        f"{words} --overwrite --plot nowhere/p.png",
        f"{words} --overwrite --samples none",
        f"{words} --overwrite --samples 1000",
        f"{words} --overwrite --operator fisher",
        f"{words} --overwrite --top 100000",
        f"{words} --overwrite --tolerance 0",
        f"{words} --overwrite --checkpoint nothing.pt",
        "levels bare.h5",
    )


@group
def simulate(run):
    words = "simulate --dimension 20 --samples 3 --device cpu --out sim.h5"
    outliers = f"{words} --outlier-values 30,-20 --degenerate 4"
    run("tables", outliers)
    run("finished", f"{outliers} --resume --json")
    torn(run.folder / "sim.h5", 2)
    run("resumed", f"{outliers} --out torn.h5 --resume --json")
    drawn = "--outliers 2 --outlier-scale 5 --seed 3"
    run("drawn outliers", f"{words} --overwrite {drawn} --json", brief=True)
    for other in (
        "--method dense",
        "--given-loss 0.5",
        "--kernel rational-quadratic --alpha 3",
        "--kernel matern --nu 3.5 --length 2",
        "--kernel p-spin --p 4",
        "--kernel mixed-spherical --coefficients 1,0.5",
        "--kernel paper --k1 0.5 --k2 3",
    ):
        run(other, f"{words} --overwrite {other} --json", brief=True)
    run("levels", "levels sim.h5 --surrogates 0 --json", tolerance=LIKELIHOOD)
    run.note("load", loaded(run.folder / "sim.h5"), LEVELS)
    run.mistakes(
        words,
        f"{words} --resume --seed 3",
        f"{words} --overwrite --kernel cubic",
        f"{words} --overwrite --kernel rbf --p 3",
        f"{words} --overwrite --kernel mixed-spherical",
        f"{words} --overwrite --outliers 41",
        f"{words} --overwrite --dimension 0",
        f"{words} --overwrite --kernel mixed-spherical --coefficients 1;2",
        f"{words} --overwrite --kernel mixed-spherical --coefficients 1,-1",
        f"{words} --overwrite --kernel matern --nu 2",
        f"{words} --overwrite --kernel paper --k1 -1",
        f"{words} --overwrite --kernel p-spin --p 1",
        f"{words} --overwrite --kernel paper --k0 0.5 --given-loss 1",
        f"{words} --overwrite --given-loss nan",
        f"{words} --overwrite --length 0",
        f"{words} --overwrite --variance nan",
        f"{words} --overwrite --samples 0",
        f"{words} --overwrite --outliers 2 --outlier-values 3",
        f"{words} --overwrite --outlier-values a",
        f"{words} --overwrite --outlier-values 3,nan",
        f"{words} --overwrite --outlier-scale 3",
        f"{words} --overwrite --outliers 1 --outlier-scale 0",
        f"{words} --overwrite --degenerate -1",
        f"{words} --overwrite --out .",
        f"{words} --overwrite --out no/sim.h5",
    )


@group
def levels(run):
    write_file(run.folder / "goe.h5", [goe(40, 0, index=index) for index in range(3)])
    write_file(run.folder / "many.h5", [goe(12, 1, index=index) for index in range(32)])
    write_file(run.folder / "poisson.h5", [poisson(40, 0, index=index) for index in range(2)])
    write_file(run.folder / "two.h5", [goe(2, 0)])
    of_no_use = {
        "equal": np.ones(20),
        "noise": 1e-13 * np.arange(20),
        "nan": goe(20, 0).eigenvalues,
    }
    for name, values in of_no_use.items():
        write_file(run.folder / f"{name}.h5", [Spectrum(values, 1e-9, 20, 20)])
    with h5py.File(run.folder / "nan.h5", "r+") as file:
        array(file, "hessian_evals")[0, 7] = np.nan
    run("tables", "levels goe.h5 --surrogates 10")
    # how far a law is excluded stands on fits, as those of a likelihood
    for name, words in {
        "json": "levels goe.h5 --surrogates 10 --seed 1",
        "poisson": "levels poisson.h5 --surrogates 10",
        "pooled": "levels many.h5 --surrogates 10",
        "published split": "levels many.h5 --no-rotate --surrogates 0",
        "kernel": "levels goe.h5 --unfold kernel --surrogates 0",
        "spline": "levels goe.h5 --unfold spline --surrogates 0",
        "polynomial:degree=5": "levels goe.h5 --unfold polynomial:degree=5 --surrogates 0",
        "analytic:law=semicircle": "levels goe.h5 --unfold analytic:law=semicircle --surrogates 0",
    }.items():
        run(name, f"{words} --json", tolerance=LIKELIHOOD)
    # few levels: the second difference that gives Brody's error is known to ε|log L|/step²
    cut = "--window -1:1.5 --cutoff 0.01"
    run("window", f"levels goe.h5 {cut} --surrogates 0 --json", tolerance=LIKELIHOOD)
    run("pictures", "levels goe.h5 --surrogates 10 --plot pictures --format svg")
    made = "--model net.py:linear --data tiny.npz --batch 12 --batches 3 --device cpu"
    run("a network", f"spectrum {made} --out tiny.h5 --json")
    run("compare", "levels tiny.h5 --compare --surrogates 10")
    run("compare, json", "levels tiny.h5 --compare --surrogates 10 --json")
    run.mistakes(
        "levels no.h5",
        "levels clouds.npz",
        "levels two.h5",
        "levels goe.h5 --unfold nonsense",
        "levels goe.h5 --unfold polynomial:degree=x",
        "levels goe.h5 --compare --cutoff paper",
        "levels goe.h5 --window 2:1",
        "levels goe.h5 --surrogates -1",
        "levels goe.h5 --plot pictures --format docx",
        "levels",
        "levels .",
        "levels equal.h5",
        "levels noise.h5",
        "levels noise.h5 --compare",
        "levels nan.h5",
        "levels goe.h5 --cutoff foo",
        "levels goe.h5 --cutoff nan",
        "levels goe.h5 --cutoff -1",
        "levels goe.h5 --cutoff 1e9",
        "levels goe.h5 --window 3",
        "levels goe.h5 --window 1:2:3",
        "levels goe.h5 --window 1e6:1e7",
        "levels goe.h5 --surrogates many",
        "levels goe.h5 --surrogates 1000000000",
        "levels goe.h5 --seed -1",
        "levels goe.h5 --unfold window:degree=3",
        "levels goe.h5 --unfold window:seed=3",
        "levels goe.h5 --unfold window:neighbours",
        "levels goe.h5 --unfold analytic:law=foo",
        "levels goe.h5 --plot clouds.npz",
    )


def weights(path, seed=0, scale=1.0):
    """A checkpoint with a convolution, a vector, and matrices with heavy tails."""
    draw = rng.stream(seed, "golden weights")

    def heavy(*shape):
        return torch.as_tensor(scale * draw.standard_t(3, size=shape) / shape[-1] ** 0.5)

    state = {
        "features.0.weight": heavy(10, 8, 3, 3),
        "features.0.bias": torch.ones(10),
        "encoder.layers.11.attention.output_projection.weight": heavy(20, 30),
        "head.weight": heavy(12, 25),
    }
    torch.save(state, path)


@group
def capacity(run):
    for number, name in enumerate(("net", "other", "third")):
        weights(run.folder / f"{name}.pt", number, 1 + number)
    torch.save({"a.weight": torch.full((4, 5), torch.nan)}, run.folder / "nan.pt")
    torch.save({"x": torch.ones(6, 7)}, run.folder / "foreign.pt")
    torch.save([1, 2, 3], run.folder / "list.pt")
    (run.folder / "cut.pt").write_bytes((run.folder / "net.pt").read_bytes()[:900])
    (run.folder / "folder").mkdir()
    table = "source,name,top1\nnet.pt,a,60\nother.pt,b,62.5\nthird.pt,c,61\n"
    (run.folder / "table.csv").write_text(table)
    run("tables", "capacity net.pt --csv out.csv")
    run("json", "capacity net.pt --conv pooled --seed 3 --json")
    laws = "--compare lognormal --compare exponential --compare truncated --p-values 4"
    more = "--conv unfolded --randomize --exact --initial other.pt"
    run("everything", f"capacity net.pt {laws} {more} --json", tolerance=LIKELIHOOD)
    ends = "--conv pooled --x-max max"
    run("ends of tails", f"capacity net.pt {ends} --json", tolerance=LIKELIHOOD)
    run("pictures", "capacity net.pt --only head.* --plot pictures")
    series = "capacity net.pt other.pt third.pt --only head.* --against table.csv"
    run("series", f"{series} --plot pictures")
    run("series, json", f"{series} --csv series.csv --json")
    run.mistakes(
        "capacity",
        "capacity no.pt",
        "capacity nan.pt",
        "capacity net.pt net.pt",
        "capacity net.pt --conv sliced",
        "capacity net.pt --only decoder.*",
        "capacity net.pt --x-max least",
        "capacity net.pt --compare cauchy",
        "capacity net.pt --min-size 0",
        "capacity net.pt --against no.csv",
        "capacity net.pt no.pt",
        "capacity folder",
        "capacity cut.pt",
        "capacity list.pt",
        "capacity table.csv",
        "capacity no.py:make",
        "capacity net.pt --min-size 1000",
        "capacity net.pt --x-max=-2",
        "capacity net.pt --compare lognormal --x-max 9",
        "capacity net.pt --initial foreign.pt",
        "capacity net.pt --csv folder",
        "capacity net.pt --csv no/out.csv",
        "capacity net.pt --plot table.csv/pictures",
        "capacity net.pt --plot pictures --format docx",
        "capacity net.pt --device tpu",
    )


@group
def train(run):
    words = "train --model net.py:relu --data clouds.npz --batch 32 --lr 0.05 --device cpu"
    double = f"{words} --dtype float64 --out net.pt"
    falls = "--epochs 4 --decay-start 1 --decay-end 3 --final-lr 0.001"
    run("tables", f"{double} {falls}")
    run("finished", f"{double} {falls} --resume --json")
    run("replaced", f"{double} --epochs 2 --overwrite --seed 1")
    run("continued", f"{double} --epochs 3 --resume --seed 1 --json")
    single = "--epochs 2 --momentum 0.5 --weight-decay 0.01 --out single.pt"
    run("single", f"{words} {single} --json", tolerance=SINGLE)
    history = f"{double} --epochs 4 --history-batch 12 --overwrite"
    run("history", f"{history} --history all.h5 --history-epochs 0,1,4")
    run("picture of the history", "plot all.h5")
    run("info of the history", "info all.h5 --json")
    some = "--history some.h5 --history-only 2.* --history-epochs 2"
    run("history of a layer", f"{history} {some} --json")
    found = hr.load_history(run.folder / "all.h5")
    names = ("epochs", "layers", "network", "training", "capacity")
    run.note("load_history", {name: getattr(found, name) for name in names})
    run.mistakes(
        f"{double} --epochs 3",
        f"{double} --epochs 5 --resume --lr 0.01",
        f"{double} --epochs 3 --overwrite --lr -1",
        f"{double} --epochs 3 --overwrite --decay-start 9 --decay-end 3",
        f"{double} --epochs 3 --overwrite --history-epochs 1",
        f"{double} --epochs 3 --overwrite --history h.h5 --history-epochs 3,1",
    )
    run("diverging", f"{double} --epochs 2 --overwrite --lr 1e300", code=1)


@group
def normalize(run):
    data = "--data clouds.npz --device cpu"
    made = f"--model net.py:relu {data} --epochs 3 --lr 0.05 --dtype float64"
    run("trained", f"train {made} --out net.pt --json")
    words = f"normalize --model net.py:relu {data} --checkpoint net.pt"
    run("tables", words)
    run("json", f"{words} --json")
    for norm in ("1", "inf"):
        run(f"norm {norm}", f"{words} --norm {norm} --json")
    own = f"normalize --model net.py:Residual {data}"
    run("by output", f"{own} --by output --reference 4 --json")
    run("no splits", "normalize --model net.py:linear --data tiny.npz --json")
    run.mistakes(
        own,
        f"{words} --norm 0.5",
        f"{words} --by magic",
        f"{words} --by output --reference 1000",
        f"normalize --model mlp9 {data}",
        f"normalize --model mlp2 {data} --checkpoint no.pt",
    )


@group
def files(run):
    """Data, info and plot, and what is said of an installation."""
    run("made", f"{FEW} --out a.h5 --json")
    run("info", "info a.h5")
    run("info, json", "info a.h5 --json")
    run("plot", "plot a.h5")
    run("plot, named", "plot a.h5 --out b.svg")
    run("data", "data list")
    run("data, json", "data list --json")
    about = json.loads(run.cli("info", "--json").stdout)
    run.note("installation", sorted(about))
    run.note("models, losses", [about["models"], about["losses"]])
    run.mistakes(
        "spektrum",
        "info no.h5",
        "info clouds.npz",
        "plot no.h5",
        "plot a.h5 --out b.foo",
        "plot a.h5 --out absent/b.png",
        "data fetch cifar",
    )
    torn(run.folder / "a.h5", 0, 1, 2)
    run.mistakes("plot torn.h5", "levels torn.h5")
    run("info of no spectrum", "info torn.h5 --json")


@group
def mistakes(run):
    """What ``hessrmt spectrum`` refuses."""
    (run.folder / "taken.h5").write_text("precious")
    (run.folder / "bad.toml").write_text("batch = = 3\n")
    (run.folder / "unknown.toml").write_text('modle = "mlp2"\n')
    with np.load(run.folder / "tiny.npz") as tiny:
        x, y = tiny["x"], tiny["y"]
    np.savez(run.folder / "nan.npz", x=np.where(np.arange(60)[:, None] == 17, np.nan, x), y=y)
    x[25, 0] = 1e200
    np.savez(run.folder / "late.npz", x=x, y=y)
    torch.save({"0.weight": torch.zeros(4, 6), "0.bias": torch.zeros(4)}, run.folder / "shape.pt")
    words = "spectrum --model net.py:linear --data tiny.npz --batch 10 --batches 2"
    run.mistakes(
        f"{words} --model resnet",
        f"{words} --model no.py:Net",
        f"{words} --model net.py:absent",
        f"{words} --data absent.npz",
        f"{words} --data nan.npz",
        f"{words} --split test",
        f"{words} --loss hinge",
        f"{words} --operator fisher",
        f"{words} --dtype float16",
        f"{words} --reduce some",
        f"{words} --device tpu",
        f"{words} --seed -1",
        f"{words} --batch 0",
        f"{words} --batch 61",
        f"{words} --batches 7",
        f"{words} --batches some",
        f"{words} --only 9.*",
        f"{words} --checkpoint no.pt",
        f"{words} --checkpoint shape.pt",
        f"{words} --config bad.toml",
        f"{words} --config unknown.toml",
        f"{words} --out absent/a.h5",
        f"{words} --out taken.h5",
        f"{words} --out taken.h5 --resume",
        f"{words} --resume --overwrite",
        f"{words} --workers 1 --scheduler tcp://localhost:1",
        f"{words} --tpyo 1",
    )
    run("good", f"{words} --out a.h5 --json")
    run.mistakes(
        f"{words} --out a.h5 --resume --seed 3",
        f"{words} --out a.h5 --resume --dtype float32",
        f"{words} --out a.h5 --resume --operator ggn",
        f"{words} --out a.h5 --resume --batch 12",
    )
    late = "--data late.npz --batches 3 --loss mse --out late.h5"
    run("not finite", f"{words} {late}", code=1)


def experiment(run, kind, tolerance=SINGLE, **options):
    """Run an experiment of these settings."""
    write_settings(run.folder, kind)
    run(kind, f"reproduce {kind}.toml --json", tolerance=tolerance, **options)


@group
def spacings(run):
    experiment(run, "hessian-spacings")


@group
def loss_model(run):
    experiment(run, "gp-loss-model", DOUBLE)
    run("again", "reproduce gp-loss-model.toml --format svg")
    run("list", "reproduce")
    run("list, json", "reproduce --json")
    write_settings(run.folder, "gp-loss-model", ("0.01", "0.02")).rename(run.folder / "other.toml")
    (run.folder / "foreign.toml").write_text('experiment = "nonsense"')
    write_settings(run.folder, "gp-loss-model")
    run.mistakes(
        "reproduce nonsense",
        "reproduce foreign.toml",
        "reproduce other.toml --out gp-loss-model",
        "reproduce gp-loss-model.toml --preset large",
        "reproduce gp-loss-model.toml --format docx",
    )


@group
def averaging(run):
    experiment(run, "iterate-averaging", brief=True)


@group
def budget(run):
    experiment(run, "training-budget")


@group
def puzzles(run):
    write_images(run.folder / "images.npz")
    for kind in PUZZLES:
        experiment(run, kind, brief=kind in {"puzzles-width", "puzzles-samples"})


@pytest.fixture
def machine(monkeypatch, tmp_path_factory):
    """No GPU, no table wrapped, and surrogates drawn once."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(console.err, "_width", 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "golden-cache"))


@pytest.mark.parametrize("name", GROUPS)
def test_golden(name, machine, cli, tmp_path, digits, tiny_npz):
    (tmp_path / "net.py").write_text(NETWORKS)
    run = Run(cli, tmp_path)
    GROUPS[name](run)
    path = GOLDEN / f"{name}.json"
    kept = expanded(json.loads(path.read_text("utf-8"))) if path.exists() else {}
    found = json.loads(json.dumps(run.kept))
    changed = [
        line
        for case in {**kept, **found}
        for line in differences(
            {case: kept[case]} if case in kept else {},
            {case: found[case]} if case in found else {},
            run.tolerances.get(case, DOUBLE),
        )
    ]
    if os.environ.get(WRITE):
        said = sum(": words: " in line for line in changed)
        print(f"{name}: {len(changed)} differences, {said} of them in words")
        print("\n".join(changed[:200]))
        if changed:
            path.write_text(compact(shortened(found)) + "\n", encoding="utf-8")
        return
    changed.sort(key=lambda line: ": words: " in line)
    assert not changed, "\n".join([f"{len(changed)} differences:", *changed[:50]])


def test_what_is_a_difference():
    kept = {"code": 0, "json": {"rank": 3, "levels": [1.0, -2.0, 1e-3], "says": "3 of 1.25e-3"}}

    def found(**changes):
        return [*differences(kept, {**kept, "json": kept["json"] | changes}, DOUBLE)]

    assert not found(levels=[1.0, -2.0 - 1e-10, 1e-3 + 1e-10], says="3 of 1.26e-3")
    assert len(found(levels=[1.0, -2.0, 1e-3 + 1e-8])) == 1
    assert len(found(levels=[1.0, -2.0])) == 1
    assert len(found(rank=4)) == len(found(rank=3.5)) == len(found(more=1)) == 1
    assert len(found(says="4 of 1.25e-3")) == len(found(says="3 of 1.28e-3")) == 1
    assert [*differences(kept, {**kept, "code": 1}, DOUBLE)] == ["/code: 0 was, 1 is"]
    assert next(differences(kept, {"code": 0}, DOUBLE)).startswith("/json: gone")
    assert expanded(shortened(kept)) == kept


if __name__ == "__main__":
    if sys.argv[1:2] != ["--write"]:
        sys.exit(__doc__)
    os.environ.setdefault(WRITE, "1")
    chosen = [f"{__file__}::test_golden[{name}]" for name in sys.argv[2:]] or [__file__]
    every = ["-m", "slow or not slow"]
    sys.exit(pytest.main(["-q", "-s", "-n0", "-p", "no:cacheprovider", *every, *chosen]))
