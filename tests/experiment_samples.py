"""Small settings of every experiment, small images, and experiments that are run twice."""

import json
from pathlib import Path

import h5py
import numpy as np
import torch

from hessrmt import rng
from hessrmt.experiments.families import SeededFamily
from hessrmt.problems import checkpoints
from hessrmt.store import results

SETTINGS = {
    "hessian-spacings": """
experiment = "hessian-spacings"
data = "clouds.npz"

[presets.small]
models = ["logistic"]
epochs = 2
splits = ["test"]
batch = 15
batches = "all"
unreduced = [{ model = "logistic", dtype = "float32", batches = 1 }]
""",
    "gp-loss-model": """
experiment = "gp-loss-model"
panels = [{ k2 = 0.01 }, { k2 = 0.1, outliers = 2, degenerate = 3 }]

[presets.small]
dimension = 16
samples = 3
""",
    "iterate-averaging": """
experiment = "iterate-averaging"
data = "clouds.npz"
device = "cpu"

[presets.small]
networks = [{ model = "logistic", spectra = 1, batch = 20 }]
rates = [{ name = "high", lr = 0.05 }, { name = "low", lr = 0.01, final_lr = 0.001 }]
epochs = 3
tail_start = 1
batch = 32
seeds = 2
""",
    "averaging-theory": """
experiment = "averaging-theory"

[presets.small]
dimension = 12
least = 0.2
largest = 1.0
start = 0.5
noise = 0.5
batch = 2
rates = [0.2, 1.0]
newton_rates = [0.3]
landscapes = [
    { kind = "quadratic", steps = 200, samples = 300 },
    { kind = "huber", scale = 2.0, damping = 0.1, steps = 50, samples = 20 },
    { kind = "surface", scale = 1.0, damping = 0.2, steps = 6, samples = 3 },
]
""",
    "compression": """
experiment = "compression"
data = "clouds.npz"
device = "cpu"

[presets.small]
model = "mlp2"
epochs = 2
batch = 30

[presets.small.strengths]
uniform = [8, 2]
magnitude = [0.5, 0.9]
low-rank = [0.5]
""",
    "training-budget": """
experiment = "training-budget"
data = "clouds.npz"
device = "cpu"

[presets.small]
model = "logistic"
budgets = [1, 2, 3, 4, 6]
lr = 0.02
batch = 30
seeds = 2
""",
    "approximation": """
experiment = "approximation"

[presets.small]
seeds = 2
iterations = 3
repeats = 1
scales = [0.5, 0.25, 0.125]
levels = 3
fits = [
    { targets = ["sine"], inputs = [2, 4], widths = [1, 2], samples = 64 },
    { targets = ["parity"], inputs = [2], widths = [1, 2] },
    { targets = ["sine"], inputs = [2], widths = [1, 2], samples = 64, start = "random" },
]
polynomials = [
    { kind = "shallow", inputs = 2, degree = 1 },
    { kind = "deep", inputs = 2, degree = 2 },
]
""",
    "flow": """
experiment = "flow"

[[presets.small.flows]]
name = "line"
task = { kind = "hyperplane", samples = 6, features = 2 }
kinds = ["descent", "constrained"]
log_time = 10

[[presets.small.flows]]
name = "hidden"
task = { kind = "hyperplane", samples = 6, features = 2, gap = 2.0 }
hidden = [5]
log_time = 5

[[presets.small.flows]]
name = "batch"
task = { kind = "hyperplane", samples = 6, features = 2 }
hidden = [1]
kinds = ["batch-normalization"]
activation = "linear"
log_time = 4

[[presets.small.sets]]
name = "sets"
task = { kind = "hyperplane", samples = 6, features = 2 }
hidden = [1]
starts = 1
log_time = 2
""",
    "stability": """
experiment = "stability"

[presets.small]
flows = [{ name = "few", samples = 3, fresh = 20, hidden = [2], starts = 2, log_time = 1 }]
squares = { samples = 6, dimensions = [2, 10, 20], draws = 4 }
""",
}
"""Of the experiments on the data of the fixture ``digits``, or on none."""

PUZZLES = {
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
"""Families on images, of each experiment with families."""


def write_settings(folder, kind, *changes):
    """The settings file of an experiment, with some texts replaced by others."""
    text = SETTINGS[kind] if kind in SETTINGS else _puzzles(PUZZLES[kind])
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path = folder / f"{kind}.toml"
    path.write_text(text)
    return path


def _puzzles(families):
    lines = [
        'experiment = "puzzles"',
        'reference = [{ label = "somewhere", slope = 1.1, intercept = -0.2, r2 = 0.99 }]',
    ]
    common = {"data": "images.npz", "epochs": 2, "batch": 16, "rates": [0.05, 0.01]}
    for family in families:
        given = common | {"model": "conv3s2-2"} | family
        lines += ["", "[[presets.small.families]]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in given.items()]
    return "\n".join(lines)


def numbers_of(path):
    """What a file holds but clocks, with bytes for tensors and arrays."""
    if path.suffix == ".pt":
        content = checkpoints.read(path)
        return {name: _plain(part) for name, part in content.items() if name != "provenance"}
    found = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith("seconds"):
            texts = item.dtype.kind == "O"
            found[name] = item.asstr()[()].tolist() if texts else item[()].tobytes()

    with h5py.File(path) as file:
        file.visititems(keep)
    return found


def _plain(content):
    if isinstance(content, torch.Tensor):
        return str(content.dtype), tuple(content.shape), content.numpy().tobytes()
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    return [_plain(value) for value in content] if isinstance(content, list | tuple) else content


def run_twice(cli, path, gone, change, said):
    """Run an experiment; again without one of its files, for print: only that is made anew.

    And once more with other settings, which that folder is not for.

    Returns:
        What the first run printed as JSON, its notes, and the folder.
    """
    first = cli("reproduce", path, "--out", "done", "--json")
    assert first.returncode == 0, first.stderr
    found, out = json.loads(first.stdout), path.parent / "done"
    assert json.loads((out / "results.json").read_text()) == found["runs"]
    kept = results.load(out / "results.h5").to_dict()
    assert [kept["runs"], kept["experiment"]] == [found["runs"], found["experiment"]]
    assert kept["conclusions"]
    assert kept["table"]
    files = [
        file
        for name in ("checkpoints", "spectra", "families", "studies")
        for file in (out / name).glob("*")
    ]
    before = {file: file.stat().st_mtime_ns for file in files if Path(gone).stem not in file.name}
    (missing,) = [file for file in files if file.name == gone]
    content = numbers_of(missing)
    missing.unlink()
    again = cli("reproduce", path, "--out", "done", "--json", "--style", "paper")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == found
    for picture in (out / "figures").glob("*.png"):  # one or two columns of 3.3 inches, 150 dpi
        assert int.from_bytes(picture.read_bytes()[16:20], "big") < 2 * 3.4 * 150
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert numbers_of(missing) == content
    path.write_text(path.read_text().replace(*change))
    other = cli("reproduce", path, "--out", "done")
    assert other.returncode == 2
    assert "was made with another configuration" in other.stderr
    assert said in other.stderr
    return found, first.stderr, out


def write_images(path, seed=0):
    """64 + 40 images of 8 x 8 pixels in 3 classes: a bright column each, with noise."""
    draw = rng.stream(seed, "test images")
    y = draw.integers(0, 3, 104)
    x = draw.integers(0, 120, (104, 8, 8))
    x[np.arange(104), :, 2 * y + 1] += 120
    x = x.astype(np.uint8)
    np.savez(path, x_train=x[:64], y_train=y[:64], x_test=x[64:], y_test=y[64:], classes=3)
    return path


def family_on(images, **changes):
    """Settings of a small family."""
    given = {
        "name": "scales",
        "vary": "initial-scale",
        "values": (0.1, 0.3),
        "model": "conv3s2-2",
        "data": str(images),
        "epochs": 3,
        "batch": 16,
        "rates": (0.05, 0.01),
        "momentum": 0.9,
    }
    return SeededFamily.model_validate({"device": "cpu"} | given | changes)
