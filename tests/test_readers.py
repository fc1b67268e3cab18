"""Files of weights as people have them: names, nested dictionaries, shards, what lies beside."""

import argparse
import datetime
import decimal
import fractions
import hashlib
import json
import os
import pathlib
import pickle
import types
import uuid
from math import prod
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from file_samples import Planted
from safetensors.torch import save_file
from torch import nn

from hessrmt.capacity import open_source
from hessrmt.errors import ConfigError, DataError, ProblemError
from hessrmt.problems import checkpoints, readers


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(7)
    return {"fc.weight": torch.randn(6, 5, generator=generator), "fc.bias": torch.ones(6)}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def analysed(source, **options):
    with open_source(source, **options) as layers:
        return {layer.name: layer.load() for layer in layers if layer.skipped is None}


NAMES = [
    "pytorch_model.bin",
    "last.ckpt",
    "model_best.pth.tar",
    "c.tar",
    "C.PTH",
    "net.weights",
    "zip",
]


@pytest.mark.parametrize("name", NAMES)
def test_files_of_torch_by_any_of_their_names(state, tmp_path, name):
    save = save_file if name == "net.weights" else torch.save  # known by its first bytes
    save(state, tmp_path / name)
    assert same(checkpoints.load_state(tmp_path / name), state)
    np.testing.assert_array_equal(analysed(tmp_path / name)["fc.weight"][0], state["fc.weight"])


NESTED = [
    *({"epoch": 3, key: "state"} for key in readers.NESTED_UNDER),
    {"state": {"generator": {"weights": "state"}}, "step": torch.tensor(3)},
    {"mine": "state", "optimizer": {"state": {0: {"m": torch.ones(3, 3)}}, "param_groups": []}},
    {"model": {"state_dict": "state"}, "ema": {"fc.weight": torch.zeros(6, 5)}},
]


def filled(content, state):
    if isinstance(content, dict):
        return {key: filled(value, state) for key, value in content.items()}
    return state if isinstance(content, str) else content


@pytest.mark.parametrize("content", NESTED, ids="-".join)
def test_state_dicts_inside_others(state, tmp_path, content):
    torch.save(filled(content, state), tmp_path / "c.pt")
    assert same(checkpoints.load_state(tmp_path / "c.pt"), state)
    assert analysed(filled(content, state)).keys() == {"fc.weight"}
    with open_source(tmp_path / "c.pt") as source:
        others = [note for note in source.notes if "others under ema" in note]
        assert len(others) == ("ema" in content and "model" in content)


def test_of_several_networks_none_is_chosen_by_chance(state, tmp_path):
    content = {"generator": state, "discriminator": state}
    torch.save(content, tmp_path / "gan.pt")
    with pytest.raises(ProblemError, match="several state dicts, under generator, discriminator"):
        checkpoints.load_state(tmp_path / "gan.pt")
    with pytest.raises(DataError, match="several, under generator, discriminator"):
        open_source(content)


def prefixed(*prefixes):
    return lambda state: {"".join(prefixes) + name: value for name, value in state.items()}


WRAPPED = {
    "parallel": prefixed("module."),
    "parallel, compiled": prefixed("_orig_mod.", "module."),
    "compiled, parallel": prefixed("module.", "_orig_mod."),
    "within": lambda s: {name.replace("fc.", "fc._orig_mod."): value for name, value in s.items()},
    "fsdp": prefixed("_fsdp_wrapped_module."),
    "averaged": lambda s: {"n_averaged": torch.tensor(4)} | prefixed("module.")(s),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_names_are_those_of_the_network_inside(state, tmp_path, wrap):
    torch.save(wrap(state), tmp_path / "c.pt")
    assert same(checkpoints.load_state(tmp_path / "c.pt"), state)
    assert analysed(wrap(state)).keys() == {"fc.weight"}


@pytest.mark.parametrize("legacy", [False, True])
def test_what_training_scripts_keep_beside_the_tensors(state, tmp_path, legacy):
    beside = {
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("out")),
        "best": [np.float64(0.9), np.int64(3), np.float32(2)],
        "took": datetime.timedelta(3),
        "more": types.SimpleNamespace(a=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)),
        "day": [datetime.date(2026, 1, 1), datetime.time(1), uuid.UUID(int=1)],
        "else": [pathlib.PurePosixPath("runs"), decimal.Decimal("1.5"), fractions.Fraction(1, 3)],
    }
    file = tmp_path / "c.pth.tar"
    torch.save(beside | {"model": state}, file, _use_new_zipfile_serialization=not legacy)
    assert same(checkpoints.load_state(file), state)
    assert type(readers.read(file)["args"]).__name__ == "Inert"
    torch.save({"args": argparse.Namespace(x=Planted(tmp_path / "made"))} | state, file)
    with pytest.raises(ProblemError, match="nothing in it was executed"):
        checkpoints.load_state(file)
    assert not (tmp_path / "made").exists()


FOREIGN = {
    "model.gguf": (b"GGUF" + bytes(40), "GGUF file of llama.cpp"),
    "pytorch_model.bin": (b"GGUF" + bytes(40), "GGUF file of llama.cpp"),
    "model.h5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5 file"),
    "net.onnx": (b"\x08\x07" + bytes(40), "ONNX"),
    "net.tar": (bytes(257) + b"ustar" + bytes(250), "tar archive; unpack it"),
    "net.txt": (b"weights", "cannot tell what"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_formats_are_refused_by_name(tmp_path, name):
    content, reason = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    for load in (checkpoints.load_state, open_source):
        with pytest.raises(ProblemError, match=reason):
            load(tmp_path / name)


def shards(folder, state, ending=".bin", index=True, places=None):
    folder.mkdir()
    stem = "pytorch_model" if ending == ".bin" else "model"
    where = {}
    for i, (name, value) in enumerate(state.items()):
        where[name] = f"{stem}-{i + 1:05}-of-{len(state):05}{ending}"
        (torch.save if ending == ".bin" else save_file)({name: value}, folder / where[name])
    if index:
        content = {"metadata": {}, "weight_map": places or where}
        (folder / f"{stem}{ending}.index.json").write_text(json.dumps(content))
    torch.save({"lr": 0.1}, folder / "training_args.bin")
    torch.save({"state": {}}, folder / "optimizer.pt")
    return folder


@pytest.mark.parametrize("ending", [".bin", ".safetensors"])
@pytest.mark.parametrize("index", [True, False])
def test_shards_with_and_without_index(state, tmp_path, ending, index):
    folder = shards(tmp_path / "net", state, ending, index)
    given = [folder, *folder.glob("*.index.json")]
    assert len(given) == 1 + index
    for path in given:
        assert same(checkpoints.load_state(path), state)
        assert analysed(path).keys() == {"fc.weight"}
    net = nn.ModuleDict({"fc": nn.Linear(5, 6)})
    sums = (
        f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in folder.glob("*-of-*")
    )
    expected = hashlib.sha256(
        "".join(sorted(sums, key=lambda line: line[66:])).encode()
    ).hexdigest()
    assert checkpoints.load_into(net, folder) == expected
    assert torch.equal(net["fc"].weight, state["fc.weight"])


@pytest.mark.parametrize("ending", [".bin", ".safetensors"])
def test_a_missing_shard_without_an_index_is_noticed(state, tmp_path, ending):
    folder = shards(tmp_path / "net", state, ending, index=False)
    sorted(folder.glob("*-of-*"))[-1].unlink()
    for load in (checkpoints.load_state, open_source):
        with pytest.raises(ProblemError, match=f"lacks 1 of the {len(state)} shards"):
            load(folder)


@pytest.mark.parametrize("length", [0, 1, 7, 1 << 20, 1 << 27, (1 << 63) - 1, (1 << 64) - 1])
@pytest.mark.parametrize("shape", [[2], [1 << 40], [1 << 63, 4]])
def test_what_a_safetensors_file_claims_is_compared_with_its_size(tmp_path, length, shape):
    about = {"weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * prod(shape)]}}
    header, path = json.dumps(about).encode(), tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ProblemError, match=r"a\.safetensors"):
        checkpoints.load_state(path)
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    if shape == [2]:
        assert checkpoints.load_state(path)["weight"].tolist() == [0, 0]
    else:
        with pytest.raises(ProblemError, match=r"a\.safetensors"):
            checkpoints.load_state(path)


OUTSIDE = ["../secret.bin", "/etc/passwd", "sub/a.bin", "..\\secret.bin", "C:a.bin", "", "..", "."]


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_names_no_file_outside_of_its_folder(state, tmp_path, name):
    torch.save(state, tmp_path / "secret.bin")
    folder = shards(tmp_path / "net", state, places=dict.fromkeys(state, name))
    for path in (folder, *folder.glob("*.index.json")):
        with pytest.raises(ProblemError, match="none in its own folder"):
            checkpoints.load_state(path)


def test_npz_files_are_checkpoints_too(state, tmp_path):
    np.savez(tmp_path / "c.npz", **{name: value.numpy() for name, value in state.items()}, a="text")
    assert same(checkpoints.load_state(tmp_path / "c.npz"), state)


@pytest.mark.parametrize("legacy", [False, True])
def test_mappings_that_share_or_hold_themselves_come_to_an_end(state, tmp_path, legacy):
    """Walked without remembering, forty mappings that hold the next twice are 2⁴⁰."""
    path, shared = tmp_path / "net.pt", {"a": 1}
    for _ in range(40):
        shared = {"a": shared, "b": shared}
    save = {"_use_new_zipfile_serialization": not legacy}
    torch.save({"state_dict": state, "extra": shared}, path, **save)
    assert same(checkpoints.load_state(path), state)
    torch.save({"extra": shared}, path, **save)
    with pytest.raises(ProblemError, match="holds no tensors"):
        checkpoints.load_state(path)
    around = {"net": {}}
    around["net"]["model"] = around
    torch.save(around, path, **save)
    with pytest.raises(ProblemError, match="holds no tensors"):
        checkpoints.load_state(path)
    deep = state
    for _ in range(200):
        deep = {"model": deep}
    torch.save(deep, path, **save)
    with pytest.raises(ProblemError, match="holds no tensors"):
        checkpoints.load_state(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_views_of_one_storage_are_other_weights_unless_they_are_the_same_matrix(tmp_path, legacy):
    numbers = torch.randn(64, generator=torch.Generator().manual_seed(1))
    views = {
        "a.weight": numbers.as_strided((8, 8), (8, 1)),
        "b.weight": numbers.as_strided((8, 8), (7, 1)),
        "c.weight": numbers.view(4, 16),
        "same.weight": numbers.view(8, 8),
        "transposed.weight": numbers.view(8, 8).T,
    }
    torch.save(views, tmp_path / "v.pt", _use_new_zipfile_serialization=not legacy)
    found = analysed(tmp_path / "v.pt")
    assert found.keys() == {"a.weight", "b.weight", "c.weight"}
    for name, (matrix,) in found.items():
        np.testing.assert_array_equal(matrix, views[name])


def test_keys_that_are_one_text_are_refused(tmp_path):
    twins = {1: torch.ones(3, 3), "1": torch.zeros(3, 3)}
    torch.save(twins, tmp_path / "t.pt")
    for source in (twins, tmp_path / "t.pt"):
        with pytest.raises(ProblemError, match=r"two keys of .* are '1' as text"):
            analysed(source)


def test_masked_arrays_are_no_weights():
    array = np.ma.masked_less(np.arange(-4.0, 21.0).reshape(5, 5), 0)
    with open_source({"w": array, "whole": np.ma.masked_array(np.eye(5))}) as layers:
        said = {layer.name: layer.skipped for layer in layers}
    assert said == {"w": "not a tensor, but of type MaskedArray", "whole": None}


def test_pipes_in_a_folder_of_shards_are_not_read(state, tmp_path):
    save_file(state, tmp_path / "model.safetensors")
    for name in ("model.safetensors.index.json", "a.safetensors", "config.json"):
        os.mkfifo(tmp_path / name)
    assert same(checkpoints.load_state(tmp_path), state)
    with pytest.raises(ConfigError, match="is a device or a pipe"):
        checkpoints.load_state(tmp_path / "model.safetensors.index.json")
    with pytest.raises(ConfigError, match="is a device or a pipe"):
        readers.read(tmp_path / "a.safetensors")


PREAMBLE = [
    0x1950A86A20F9469CFC6C,
    1001,
    {"protocol_version": 1001, "little_endian": True, "type_sizes": {}},
]
"""What torch's older format begins with."""


@pytest.mark.parametrize("kind", ["zip", "older format", "pickle"])
def test_a_key_that_holds_one_tuple_many_times_is_refused(state, tmp_path, kind):
    """Its hash, which every reader needs, is that of 2⁴⁰ tuples."""
    pickled = b"\x80\x02}K\x01" + b"".join(
        b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(40)
    )
    pickled += b"K\x01s."
    torch.save(state, tmp_path / "whole.pt")
    path = tmp_path / "t.pt"
    if kind == "zip":
        with ZipFile(tmp_path / "whole.pt") as whole, ZipFile(path, "w") as changed:
            for name in whole.namelist():
                content = pickled if name.endswith("data.pkl") else whole.read(name)
                changed.writestr(name, content)
    else:
        start = [pickle.dumps(part, 2) for part in PREAMBLE if kind == "older format"]
        path.write_bytes(b"".join(start) + pickled)
    with pytest.raises(ProblemError, match="most of them shared"):
        readers.read(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_large_tuples_are_read_as_ever(state, tmp_path, legacy):
    content = {"state_dict": state, "order": tuple(range(50_000)), ("a", ("b", 1)): 2}
    torch.save(content, tmp_path / "t.pt", _use_new_zipfile_serialization=not legacy)
    assert readers.read(tmp_path / "t.pt")["order"] == content["order"]
