"""A network with many kinds of layers, in every form that a source of weights may have."""

import json

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from hessrmt.capacity import open_source

FORMATS = [
    *("module", "mapping", "arrays", "plugin"),
    *("pt", "pth", "nested", "prefixed", "legacy", "safetensors", "folder", "shards", "npz"),
]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.conv = nn.Conv2d(3, 5, (2, 3))
        self.norm = nn.BatchNorm2d(5)
        self.attention = nn.MultiheadAttention(6, 2)
        self.lstm = nn.LSTM(6, 4, bidirectional=True)
        self.gru = nn.GRU(6, 4)
        self.rnn = nn.RNN(6, 4)
        self.head = nn.Linear(6, 3)


class Conv1D(nn.Module):
    """GPT-2's: a linear layer whose weight is stored (in, out)."""

    def __init__(self, out, into):
        super().__init__()
        self.nf = out
        self.weight = nn.Parameter(torch.randn(into, out))
        self.bias = nn.Parameter(torch.zeros(out))


def network():
    torch.manual_seed(3)
    return Net()


def write_shards(state, folder):
    """Two safetensors files and their index, in Hugging Face's layout."""
    folder.mkdir()
    names = list(state)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        save_file({name: state[name].contiguous() for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def stored(net, form, tmp_path):
    """The network in one of the forms that a source may have."""
    state = net.state_dict()
    if form in {"module", "mapping", "arrays"}:
        arrays = {name: value.numpy() for name, value in state.items()}
        return {"module": net, "mapping": {"model": state, "epoch": 3}, "arrays": arrays}[form]
    if form == "shards":
        return write_shards(state, tmp_path / "shards")
    if form == "folder":
        (tmp_path / "one").mkdir()
        save_file(state, tmp_path / "one" / "model.safetensors")
        return tmp_path / "one"
    if form == "plugin":
        torch.save(net, tmp_path / "whole.bin")
        (tmp_path / "mine.py").write_text(
            "from pathlib import Path\nimport torch\n"
            "def build():\n"
            "    file = Path(__file__).with_name('whole.bin')\n"
            "    return torch.load(file, weights_only=False)\n"
        )
        return f"{tmp_path}/mine.py:build"
    path = tmp_path / f"net.{form if form in {'pth', 'safetensors', 'npz'} else 'pt'}"
    if form == "safetensors":
        save_file(state, path)
    elif form == "npz":
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    elif form == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif form == "nested":
        torch.save({"epoch": 3, "state_dict": state, "optimizer": {"x": torch.ones(2, 2)}}, path)
    elif form == "prefixed":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def contents(source, **options):
    with open_source(source, **options) as layers:
        return {
            layer.name: (layer.kind, layer.skipped, None if layer.skipped else layer.load())
            for layer in layers
        }
