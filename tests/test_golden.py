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
import tomllib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from family_samples import write_images
from golden_samples import (
    DOUBLE,
    LEVELS,
    SINGLE,
    Run,
    compact,
    differences,
    expanded,
    numbers,
    plain,
    shortened,
)
from level_samples import write_file

import hessrmt as hr
from hessrmt import rng
from hessrmt.ensembles import goe, poisson

GOLDEN = Path(__file__).parent / "golden"
WRITE = "HESSRMT_WRITE_GOLDEN"
"""Set by ``--write`` in the environment of the tests."""

GROUPS = {}

LIKELIHOOD = 1e-6
"""Of what maximises a likelihood: where it is flat to ε, the maximum is known to √ε."""

NETWORK = """
from torch import nn


def make():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
"""

RESIDUAL = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(6, 6), torch.nn.Linear(6, 2)

    def forward(self, x):
        return self.b(x + self.a(x).relu())
"""

SPECTRUM = ("spectrum", "--model", "net.py:make", "--data", "clouds.npz", "--device", "cpu")
FEW = (*SPECTRUM, "--split", "train", "--batch", 20, "--batches", 3)
ONE = (*SPECTRUM, "--batch", "all", "--batches", 1, "--json")


def group(commands):
    """A group of commands that share a folder, each run with ``run(name, *words)``."""
    GROUPS[commands.__name__] = commands
    return commands


def tear(path, *rows):
    """Make rows absent, as in the file of a run that was stopped."""
    with h5py.File(path, "r+") as file:
        for row in rows:
            file["done"][row] = 0
            if "hessian_evals" in file:
                file["hessian_evals"][row] = np.nan


@group
def spectrum(run):
    (run.folder / "net.py").write_text(NETWORK)
    (run.folder / "few.toml").write_text('model = "net.py:make"\ndata = "clouds.npz"\nbatch = 15\n')
    run("hessian", *FEW, "--out", "a.h5")
    run("finished", *FEW, "--out", "a.h5", "--resume", "--json")
    shutil.copy(run.folder / "a.h5", run.folder / "torn.h5")
    tear(run.folder / "torn.h5", 1, 2)
    run("info of an interrupted file", "info", "torn.h5", "--json")
    run("resumed", *FEW, "--out", "torn.h5", "--resume", "--json")
    run("replaced", *FEW, "--out", "a.h5", "--overwrite", "--seed", 3, "--json")
    run("ggn", *FEW, "--operator", "ggn", "--out", "ggn.h5")
    run("ggn, json", *FEW, "--operator", "ggn", "--out", "ggn.h5", "--resume", "--json")
    run("blocks", *FEW, "--blocks", "layer", "--out", "blocks.h5")
    run("blocks, json", *FEW, "--blocks", "layer", "--out", "blocks.h5", "--resume", "--json")
    run("blocks, info", "info", "blocks.h5")
    run("nothing removed", *FEW, "--reduce", "none", "--out", "none.h5")
    run("nothing removed, json", *FEW, "--reduce", "none", "--out", "none.h5", "--resume", "--json")
    single = ("--dtype", "float32", "--out", "single.h5")
    run("single precision", *FEW, *single, "--json", tolerance=SINGLE)
    run("only some", *ONE, "--only", "2.*", "--out", "only.h5", brief=True)
    run("two layers of relu", *ONE, "--model", "mlp2", "--out", "mlp2.h5", brief=True)
    run(
        "squared error",
        *ONE,
        "--loss",
        "mse",
        "--data",
        "tiny.npz",
        "--model",
        "logistic",
        brief=True,
    )
    words = ("--epochs", 2, "--dtype", "float64", "--device", "cpu")
    run("trained", "train", *FEW[1:5], *words, "--batch", 32, "--out", "trained.pt")
    run("checkpoint", *ONE, "--checkpoint", "trained.pt", "--out", "trained.h5", brief=True)
    run(
        "settings",
        "spectrum",
        "--config",
        "few.toml",
        "--batches",
        2,
        "--out",
        "few.h5",
        "--json",
        brief=True,
    )
    run("embedded digits", "spectrum", "--model", "logistic", "--batch", 8, "--batches", 1,
        "--out", "digits.h5", "--json", brief=True)  # fmt: skip


@group
def density(run):
    words = ("density", "--model", "mlp2", "--data", "clouds.npz", "--batch", 40, "--probes", 2,
             "--steps", 8, "--device", "cpu")  # fmt: skip
    ends = (*words, "--top", 4, "--bottom", 3, "--trace", "hutch++", "--trace-products", 12)
    run("tables", *ends, "--plot", "picture.png")
    run("finished", *ends, "--resume", "--json")
    shutil.copy(run.folder / "density.h5", run.folder / "torn.h5")
    other = ("--operator", "ggn", "--law", "gaussian", "--trace", "xtrace", "--largest", 5)
    run("ggn", *words, *other, "--samples", 20, "--out", "ggn.h5", "--json")
    run("bare", *words, "--only", "1.*", "--out", "bare.h5", "--seed", 2, "--json")
    run("single", *words, "--dtype", "float32", "--out", "single.h5", "--json", tolerance=SINGLE)
    run("levels of the edges", "levels", "density.h5", "--surrogates", 0, "--json")
    found = hr.load_density(run.folder / "density.h5")
    run.note("load_density", plain(found.to_dict(), run.folder))
    run.mistakes(
        ("density", "--data", "clouds.npz", "--out", "density.h5"),
        (*words, "--resume", "--seed", 1),
        (*words, "--resume", "--overwrite"),
        (*words, "--overwrite", "--probes", 0),
        (*words, "--overwrite", "--trace", "plain"),
        (*words, "--overwrite", "--largest", 3, "--top", 2),
        (*words, "--overwrite", "--plot", "picture"),
        ("levels", "bare.h5"),
    )


@group
def simulate(run):
    words = ("simulate", "--dimension", 20, "--samples", 3, "--device", "cpu", "--out", "sim.h5")
    run("tables", *words, "--outlier-values", "30,-20", "--degenerate", 4)
    run("finished", *words, "--outlier-values", "30,-20", "--degenerate", 4, "--resume", "--json")
    shutil.copy(run.folder / "sim.h5", run.folder / "torn.h5")
    tear(run.folder / "torn.h5", 2)
    torn = ("--outlier-values", "30,-20", "--degenerate", 4, "--out", "torn.h5", "--resume")
    run("resumed", *words, *torn, "--json")
    again = (*words, "--overwrite", "--json")
    run("drawn outliers", *again, "--outliers", 2, "--outlier-scale", 5, "--seed", 3, brief=True)
    run("dense", *again, "--method", "dense", brief=True)
    run("given loss", *again, "--given-loss", 0.5, brief=True)
    for kernel in (
        ("rational-quadratic", "--alpha", 3),
        ("matern", "--nu", 3.5, "--length", 2),
        ("p-spin", "--p", 4),
        ("mixed-spherical", "--coefficients", "1,0.5"),
        ("paper", "--k1", 0.5, "--k2", 3),
    ):
        run(kernel[0], *again, "--kernel", *kernel, brief=True)
    run("levels", "levels", "sim.h5", "--surrogates", 0, "--json")
    run.note("load", loaded(run.folder / "sim.h5"), LEVELS)
    run.mistakes(
        words,
        (*words, "--resume", "--seed", 3),
        (*words, "--overwrite", "--kernel", "cubic"),
        (*words, "--overwrite", "--kernel", "rbf", "--p", 3),
        (*words, "--overwrite", "--kernel", "mixed-spherical"),
        (*words, "--overwrite", "--outliers", 41),
        (*words, "--overwrite", "--dimension", 0),
    )


def loaded(path):
    """What ``hr.load`` finds in a spectrum file."""
    found = hr.load(path)
    return {
        "spectra": len(found),
        "planned": found.planned,
        "eigenvalues": numbers(found.eigenvalues, max(item.noise_floor for item in found)),
        "noise floors": [item.noise_floor for item in found],
        "ranks": [item.rank for item in found],
        "resolved": [len(item.resolved) for item in found],
        "losses": plain([item.loss for item in found], ""),
        "gradients": plain([item.gradient_norm for item in found], ""),
        "operator, dtype, solver": [found[0].operator, found[0].dtype, found[0].solver],
        "settings": sorted(found.provenance.config),
        "versions": sorted(found.provenance.versions),
        "batches": plain(found.batch_indices, ""),
    }


@group
def levels(run):
    write_file(run.folder / "goe.h5", [goe(40, 0, index=index) for index in range(3)])
    write_file(run.folder / "many.h5", [goe(12, 1, index=index) for index in range(32)])
    write_file(run.folder / "poisson.h5", [poisson(40, 0, index=index) for index in range(2)])
    write_file(run.folder / "two.h5", [goe(2, 0)])
    words = ("--surrogates", 10)
    run("tables", "levels", "goe.h5", *words)
    run("json", "levels", "goe.h5", *words, "--seed", 1, "--json")
    run("poisson", "levels", "poisson.h5", *words, "--json")
    run("pooled", "levels", "many.h5", *words, "--json")
    run("published split", "levels", "many.h5", "--no-rotate", "--surrogates", 0, "--json")
    for method in ("kernel", "spline", "polynomial:degree=5", "analytic:law=semicircle"):
        run(method, "levels", "goe.h5", "--unfold", method, "--surrogates", 0, "--json")
    window = ("--window", "-1:1.5", "--cutoff", 0.01)
    run("window", "levels", "goe.h5", *window, "--surrogates", 0, "--json")
    run("pictures", "levels", "goe.h5", *words, "--plot", "pictures", "--format", "svg")
    made = ("--model", "logistic", "--data", "tiny.npz", "--batch", 12, "--batches", 3)
    run("a network", "spectrum", *made, "--device", "cpu", "--out", "tiny.h5", "--json")
    run("compare", "levels", "tiny.h5", "--compare", *words)
    run("compare, json", "levels", "tiny.h5", "--compare", *words, "--json")
    run.mistakes(
        ("levels", "no.h5"),
        ("levels", "clouds.npz"),
        ("levels", "two.h5"),
        ("levels", "goe.h5", "--unfold", "nonsense"),
        ("levels", "goe.h5", "--unfold", "polynomial:degree=x"),
        ("levels", "goe.h5", "--compare", "--cutoff", "paper"),
        ("levels", "goe.h5", "--window", "2:1"),
        ("levels", "goe.h5", "--surrogates", -1),
        ("levels", "goe.h5", "--plot", "pictures", "--format", "docx"),
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
    table = "source,name,top1\nnet.pt,a,60\nother.pt,b,62.5\nthird.pt,c,61\n"
    (run.folder / "table.csv").write_text(table)
    run("tables", "capacity", "net.pt", "--csv", "out.csv")
    run("json", "capacity", "net.pt", "--conv", "pooled", "--seed", 3, "--json")
    laws = ("--compare", "lognormal", "--compare", "exponential", "--compare", "truncated")
    more = ("--randomize", "--p-values", 4, "--exact", "--initial", "other.pt")
    run("everything", "capacity", "net.pt", "--conv", "unfolded", *laws, *more, "--json",
        tolerance=LIKELIHOOD)  # fmt: skip
    run(
        "ends of tails",
        "capacity",
        "net.pt",
        "--x-max",
        "max",
        "--conv",
        "pooled",
        "--json",
        tolerance=LIKELIHOOD,
    )
    run("pictures", "capacity", "net.pt", "--only", "head.*", "--plot", "pictures")
    series = ("capacity", "net.pt", "other.pt", "third.pt", "--only", "head.*")
    run("series", *series, "--against", "table.csv", "--plot", "pictures")
    run("series, json", *series, "--against", "table.csv", "--csv", "series.csv", "--json")
    run.mistakes(
        ("capacity",),
        ("capacity", "no.pt"),
        ("capacity", "nan.pt"),
        ("capacity", "net.pt", "net.pt"),
        ("capacity", "net.pt", "--conv", "sliced"),
        ("capacity", "net.pt", "--only", "decoder.*"),
        ("capacity", "net.pt", "--x-max", "least"),
        ("capacity", "net.pt", "--compare", "cauchy"),
        ("capacity", "net.pt", "--min-size", 0),
        ("capacity", "net.pt", "--against", "no.csv"),
    )


@group
def train(run):
    words = ("train", "--model", "mlp2", "--data", "clouds.npz", "--batch", 32, "--lr", 0.05,
             "--dtype", "float64", "--device", "cpu", "--out", "net.pt")  # fmt: skip
    falls = ("--epochs", 4, "--decay-start", 1, "--decay-end", 3, "--final-lr", 0.001)
    run("tables", *words, *falls)
    run("finished", *words, *falls, "--resume", "--json")
    run("continued", *words, "--epochs", 2, "--overwrite", "--seed", 1)
    run("further", *words, "--epochs", 3, "--resume", "--seed", 1, "--json", code=None)
    single = ("--dtype", "float32", "--momentum", 0.5, "--weight-decay", 0.01, "--overwrite")
    run("single", *words, "--epochs", 2, *single, "--json", tolerance=SINGLE)
    history = ("--epochs", 4, "--history", "history.h5", "--history-batch", 12)
    epochs = ("--history-epochs", "0,1,4", "--overwrite")
    run("history", *words, *history, *epochs, "--out", "recorded.pt")
    only = ("--history-only", "3.*", "--history-epochs", 2, "--history", "some.h5")
    run("history of a layer", *words, *history, *only, "--out", "some.pt", "--json")
    run("picture of the history", "plot", "history.h5")
    run("info of the history", "info", "history.h5", "--json")
    found = hr.load_history(run.folder / "history.h5")
    run.note(
        "load_history",
        plain(
            {
                "epochs": found.epochs,
                "layers": found.layers,
                **{name: getattr(found, name) for name in ("network", "training", "capacity")},
            },
            run.folder,
        ),
    )
    run.mistakes(
        (*words, "--epochs", 3),
        (*words, "--epochs", 3, "--resume", "--lr", 0.01),
        (*words, "--epochs", 3, "--overwrite", "--lr", -1),
        (*words, "--epochs", 3, "--overwrite", "--decay-start", 9, "--decay-end", 3),
        (*words, "--epochs", 3, "--overwrite", "--history-epochs", 1),
        (*words, "--epochs", 3, "--overwrite", "--history", "h.h5", "--history-epochs", "3,1"),
    )
    run("diverging", *words, "--epochs", 2, "--overwrite", "--lr", 1e300, code=1)


@group
def normalize(run):
    (run.folder / "net.py").write_text(RESIDUAL)
    data = ("--data", "clouds.npz", "--device", "cpu")
    made = ("--epochs", 3, "--lr", 0.05, "--dtype", "float64", "--out", "net.pt")
    run("trained", "train", "--model", "mlp2", *data, *made, "--json")
    words = ("normalize", "--model", "mlp2", *data, "--checkpoint", "net.pt")
    run("tables", *words)
    run("json", *words, "--json")
    for norm in (1, "inf"):
        run(f"norm {norm}", *words, "--norm", norm, "--json")
    own = ("normalize", "--model", "net.py:Net", *data, "--seed", 3)
    run("by output", *own, "--by", "output", "--reference", 4, "--json")
    run("no splits", "normalize", "--model", "logistic", "--data", "tiny.npz", "--json")
    run.mistakes(
        own,
        (*words, "--norm", 0.5),
        (*words, "--by", "magic"),
        (*words, "--by", "output", "--reference", 1000),
        ("normalize", "--model", "mlp9", *data),
        ("normalize", "--model", "mlp2", *data, "--checkpoint", "no.pt"),
    )


@group
def files(run):
    """Data, info and plot, and what is said of an installation."""
    (run.folder / "net.py").write_text(NETWORK)
    run("made", *FEW, "--out", "a.h5", "--json")
    run("info", "info", "a.h5")
    run("info, json", "info", "a.h5", "--json")
    run("plot", "plot", "a.h5")
    run("plot, named", "plot", "a.h5", "--out", "b.svg")
    run.note("load", loaded(run.folder / "a.h5"), LEVELS)
    run("data", "data", "list")
    run("data, json", "data", "list", "--json")
    run("version", "--version")
    result = run.cli("info", "--json")
    run.note("installation", sorted(json.loads(result.stdout)))
    run.note(
        "models and losses", {key: json.loads(result.stdout)[key] for key in ("models", "losses")}
    )
    run.mistakes(
        ("spektrum",),
        ("info", "no.h5"),
        ("info", "clouds.npz"),
        ("plot", "no.h5"),
        ("plot", "a.h5", "--out", "b.foo"),
        ("plot", "a.h5", "--out", "absent/b.png"),
        ("data", "fetch", "cifar"),
    )
    tear(run.folder / "a.h5", 0, 1, 2)
    run.mistakes(("plot", "a.h5"), ("levels", "a.h5"))
    run("info of no spectrum", "info", "a.h5", "--json")


@group
def mistakes(run):
    """What ``hessrmt spectrum`` refuses."""
    (run.folder / "net.py").write_text(NETWORK)
    (run.folder / "taken.h5").write_text("precious")
    (run.folder / "bad.toml").write_text("batch = = 3\n")
    (run.folder / "unknown.toml").write_text('modle = "mlp2"\n')
    with np.load(run.folder / "tiny.npz") as tiny:
        x, y = tiny["x"], tiny["y"]
    np.savez(run.folder / "nan.npz", x=np.where(np.arange(60)[:, None] == 17, np.nan, x), y=y)
    x[25, 0] = 1e200
    np.savez(run.folder / "late.npz", x=x, y=y)
    torch.save({"1.weight": torch.zeros(4, 6), "1.bias": torch.zeros(4)}, run.folder / "shape.pt")
    words = ("spectrum", "--model", "logistic", "--data", "tiny.npz", "--batch", 10, "--batches", 2)
    run.mistakes(
        *(
            (*words, *given)
            for given in (
                ("--model", "resnet"),
                ("--model", "no.py:Net"),
                ("--model", "net.py:absent"),
                ("--data", "absent.npz"),
                ("--data", "nan.npz"),
                ("--split", "test"),
                ("--loss", "hinge"),
                ("--operator", "fisher"),
                ("--dtype", "float16"),
                ("--reduce", "some"),
                ("--device", "tpu"),
                ("--seed", -1),
                ("--batch", 0),
                ("--batch", 61),
                ("--batches", 7),
                ("--batches", "some"),
                ("--only", "9.*"),
                ("--checkpoint", "no.pt"),
                ("--checkpoint", "shape.pt"),
                ("--config", "bad.toml"),
                ("--config", "unknown.toml"),
                ("--out", "absent/a.h5"),
                ("--out", "taken.h5"),
                ("--out", "taken.h5", "--resume"),
                ("--resume", "--overwrite"),
                ("--workers", 1, "--scheduler", "tcp://localhost:1"),
                ("--tpyo", 1),
            )
        )
    )
    run("good", *words, "--out", "a.h5", "--json")
    for given in (("--seed", 3), ("--dtype", "float32"), ("--operator", "ggn"), ("--batch", 12)):
        run.mistakes((*words, *given, "--out", "a.h5", "--resume"))
    infinite = (*words, "--data", "late.npz", "--batches", 3, "--loss", "mse", "--out", "late.h5")
    run("not finite", *infinite, code=None)


SPACINGS = """
experiment = "hessian-spacings"
title = "a small one"
data = "clouds.npz"

[presets.small]
models = ["logistic"]
epochs = 2
splits = ["test"]
batch = 15
batches = "all"
unreduced = [{ model = "logistic", dtype = "float32", batches = 1 }]
"""

LOSS_MODEL = """
experiment = "gp-loss-model"
title = "a small one"
panels = [{ k2 = 0.01 }, { k2 = 0.1, outliers = 2, degenerate = 3 }]

[presets.small]
dimension = 16
samples = 3
"""

AVERAGING = """
experiment = "iterate-averaging"
title = "a small one"
data = "clouds.npz"
device = "cpu"

[presets.small]
networks = [{ model = "logistic", spectra = 1, batch = 20 }]
rates = [{ name = "high", lr = 0.05 }, { name = "low", lr = 0.01, final_lr = 0.001 }]
epochs = 3
tail_start = 1
batch = 32
seeds = 2
"""

BUDGET = """
experiment = "training-budget"
title = "a small one"
data = "clouds.npz"
device = "cpu"

[presets.small]
model = "logistic"
budgets = [1, 2, 3, 4, 6]
lr = 0.02
batch = 30
seeds = 2
"""

PUZZLES = """
experiment = "puzzles"
title = "a small one"
reference = [{ label = "somewhere", slope = 1.1, intercept = -0.2, r2 = 0.99 }]
"""

FAMILY = """
[[presets.small.families]]
data = "images.npz"
epochs = 2
batch = 16
rates = [0.05, 0.01]
"""

FAMILIES = {
    "puzzles-initialization": (
        {"name": "natural", "vary": "initial-scale", "values": [0.1, 0.2, 0.3]},
        {"name": "random", "vary": "initial-scale", "values": [0.2], "labels": "random"},
    ),
    "puzzles-corruption": (
        {"name": "wrong", "vary": "corruption", "values": [0.0, 0.5, 1.0], "pretraining": 1,
         "norm": 1.0, "reference_loss": 1.0},
    ),
    "puzzles-width": (
        {"name": "widths", "vary": "width", "values": [1, 2, 3], "model": "conv3s2-{width}",
         "stop_loss": 1.0},
    ),
    "puzzles-samples": (
        {"name": "sizes", "vary": "samples", "values": [16, 32, 64], "momentum": 0.9},
    ),
    "puzzles-resnet": (
        {"name": "output", "vary": "initial-scale", "values": [0.1], "model": "resnet8",
         "by": "output", "augment": True, "rates": [0.01], "epochs": 1},
    ),
}  # fmt: skip


def experiment(run, name, text, tolerance=SINGLE, **options):
    """Run an experiment of these settings, and again, which finds everything done."""
    (run.folder / f"{name}.toml").write_text(text)
    run(name, "reproduce", f"{name}.toml", "--json", tolerance=tolerance, **options)


@group
def spacings(run):
    experiment(run, "hessian-spacings", SPACINGS)


@group
def loss_model(run):
    experiment(run, "gp-loss-model", LOSS_MODEL, DOUBLE)
    run("again", "reproduce", "gp-loss-model.toml", "--format", "svg")
    run("list", "reproduce")
    run("list, json", "reproduce", "--json")
    other = LOSS_MODEL.replace("0.01", "0.02")
    (run.folder / "other.toml").write_text(other)
    (run.folder / "foreign.toml").write_text('experiment = "nonsense"')
    run.mistakes(
        ("reproduce", "nonsense"),
        ("reproduce", "foreign.toml"),
        ("reproduce", "other.toml", "--out", "gp-loss-model"),
        ("reproduce", "gp-loss-model.toml", "--preset", "large"),
        ("reproduce", "gp-loss-model.toml", "--format", "docx"),
    )


@group
def averaging(run):
    experiment(run, "iterate-averaging", AVERAGING, brief=True)


@group
def budget(run):
    experiment(run, "training-budget", BUDGET)


@group
def puzzles(run):
    write_images(run.folder / "images.npz")
    for name, families in FAMILIES.items():
        parts = [PUZZLES]
        for family in families:
            given = tomllib.loads(FAMILY)["presets"]["small"]["families"][0]
            given |= {"model": "conv3s2-2"} | family
            lines_ = [f"{key} = {json.dumps(value)}" for key, value in given.items()]
            parts.append("\n".join(["[[presets.small.families]]", *lines_, ""]))
        brief = name in {"puzzles-width", "puzzles-samples"}
        experiment(run, name, "\n".join(parts), brief=brief)


@pytest.fixture
def machine(monkeypatch, tmp_path_factory):
    """No GPU, no table wrapped, and surrogates drawn once."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "golden-cache"))


@pytest.mark.parametrize("name", GROUPS)
def test_golden(name, machine, cli, tmp_path, digits, tiny_npz):
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
        if os.environ[WRITE] == "times":
            for case, seconds in sorted(run.seconds.items(), key=lambda item: -item[1])[:8]:
                print(f"  {seconds:.2f} s  {case}")
        if changed:
            path.write_text(compact(shortened(found)) + "\n", encoding="utf-8")
        return
    assert not changed, "\n".join([f"{len(changed)} differences:", *changed[:50]])


if __name__ == "__main__":
    if sys.argv[1:2] != ["--write"]:
        sys.exit(__doc__)
    os.environ.setdefault(WRITE, "1")
    chosen = [f"{__file__}::test_golden[{name}]" for name in sys.argv[2:]] or [__file__]
    sys.exit(pytest.main(["-q", "-s", "-n0", "-p", "no:cacheprovider", *chosen]))
