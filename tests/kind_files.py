"""A file of every kind that is written or read, and what a reader takes out of it."""

import gzip
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import hessrmt as hr
from hessrmt.cli.app import app
from hessrmt.config import SpectrumConfig, load_settings
from hessrmt.problems import formats, readers
from hessrmt.results import flat
from hessrmt.runs.stored import contents
from hessrmt.runs.tables import read_table
from hessrmt.store.history import History

DATA = "--data tiny.npz --device cpu"
NET = f"--model logistic {DATA}"

COMMANDS = {
    "spectra.h5": f"spectrum {NET} --batch 10 --batches 2",
    "blocks.h5": f"spectrum {NET} --batch 10 --batches 2 --blocks layer",
    "density.h5": f"density {NET} --batch 60 --steps 8 --probes 2 --top 2",
    "net.pt": f"train {NET} --batch 16 --epochs 2 --history history.h5 --history-batch 12",
    "simulated.h5": "simulate --samples 3 --dimension 20",
    "landscape.h5": f"landscape {NET} --batch 60 --points 5",
}


def write_stored(folder: Path) -> None:
    """A file of each kind that hessrmt writes, and one of the published code."""
    draw = np.random.default_rng(5)
    np.savez(folder / "tiny.npz", x=draw.normal(size=(60, 6)), y=draw.permutation(60) % 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, command in COMMANDS.items():
            done = CliRunner().invoke(app, [*command.split(), "--out", name, "-q"])
            assert done.exit_code == 0, done.output
    rows = np.sort(draw.normal(size=(2, 60)))
    hr.levels.analyze(rows, surrogates=20).save(folder / "levels.h5")
    layer = torch.nn.Linear(2, 3)
    problem = hr.Problem(layer, "cross-entropy", (torch.eye(2), torch.tensor([0, 1])))
    with hr.Tracker(problem, out=folder / "track.h5") as tracker:
        tracker(0, lr=0.1)
    with h5py.File(folder / "published.h5", "w") as file:
        file["hessian_evals"] = rows


def write_all(folder: Path) -> None:
    """The same, and files of others that are read."""
    write_stored(folder)
    draw = np.random.default_rng(6)
    weights = {"a.weight": torch.from_numpy(draw.normal(size=(12, 9))), "a.bias": torch.ones(12)}
    torch.save(weights, folder / "weights.pt")
    save_file(weights, folder / "weights.safetensors")
    np.savez_compressed(folder / "weights.npz", **{k: v.numpy() for k, v in weights.items()})
    images = draw.integers(0, 256, (7, 5, 5), dtype=np.uint8)
    idx = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape) + images.tobytes()
    (folder / "images-idx3-ubyte").write_bytes(idx)
    (folder / "images-idx3-ubyte.gz").write_bytes(gzip.compress(idx, mtime=0))
    (folder / "table.csv").write_text("name,top1\na,0.5\nb,0.6\nc,0.7\n")
    (folder / "settings.toml").write_text('model = "mlp2"\nbatch = 8\nseed = 3\ndevice = "cpu"\n')


def _stored(path):
    """All numbers and words of a file of ours; a row of spectra is one entry."""
    found = {}
    words, parts = contents(Path(path))
    for block, result in parts.items():
        rows = {}
        spectra = result.spectra if isinstance(result, History) else result
        if type(spectra).__name__ == "Spectra":
            epochs = result.epochs if isinstance(result, History) else [""] * len(spectra)
            for item, which, at in zip(spectra, spectra.batch_indices, epochs, strict=True):
                name = f"row {block} {which.tolist()} {at}"
                numbers = {k: v for k, v in vars(item).items() if k != "provenance"}
                rows[name] = {**numbers, "seconds": dict(item.seconds), "indices": which}
            about = spectra.provenance
            notes = [note for note in about.notes if "damaged" not in note]
            found |= {"planned": spectra.planned, "config": dict(about.config), "notes": notes}
            found |= {"device": about.device, "versions": dict(about.versions)}
        if spectra is not result:
            numbers = {"epochs": result.epochs, **result.capacity, **result.network}
            numbers |= result.training
            for at, name in enumerate(list(rows)):
                rows[name] |= {k: np.asarray(v[at]) for k, v in numbers.items()}
        elif not rows and type(spectra).__name__ != "Spectra":
            found |= flat(result.to_dict())
        found |= rows
    return {"words": words, **found}


def _checkpoint(path):
    content = readers.read(Path(path))
    return _flat("", content) | _stored(path)


def _flat(name, value):
    if isinstance(value, torch.Tensor):
        return {name: value.numpy()}
    if isinstance(value, dict):
        parts = [_flat(f"{name}/{key}", part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [_flat(f"{name}/{i}", part) for i, part in enumerate(value)]
    else:
        return {name: value}
    return {k: v for part in parts for k, v in part.items()}


def _weights(path):
    reader = readers.open_path(Path(path))
    try:
        return {name: reader.read(name).numpy() for name in reader.entries}
    finally:
        reader.close()


READERS = {
    **{name: _stored for name in COMMANDS if name.endswith(".h5")},
    "history.h5": _stored,
    "levels.h5": _stored,
    "track.h5": _stored,
    "published.h5": _stored,
    "net.pt": _checkpoint,
    "weights.pt": _weights,
    "weights.npz": _weights,
    "tiny.npz": lambda path: formats.read_npz(Path(path)),
    "images-idx3-ubyte.gz": lambda path: {"x": formats.read_idx(Path(path))},
    "images-idx3-ubyte": lambda path: {"x": formats.read_idx(Path(path))},
    "weights.safetensors": _weights,
    "table.csv": lambda path: {"rows": read_table(Path(path))},
    "settings.toml": lambda path: {"settings": load_settings(SpectrumConfig, Path(path))},
}
"""File to what reads it."""

UNCHECKED = (
    "published.h5",
    "images-idx3-ubyte",
    "weights.safetensors",
    "table.csv",
    "settings.toml",
)
CHECKED = [name for name in READERS if name not in UNCHECKED]
"""Files that carry checksums."""
