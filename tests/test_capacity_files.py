"""Damaged, foreign and dangerous files of weights: refused by name, nothing in them executed."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from network_samples import contents, network, stored, write_shards
from safetensors.torch import save_file

from hessrmt.capacity.sources import open_source
from hessrmt.errors import CapacityError, ProblemError


@pytest.fixture
def net():
    return network()


def bad_files(folder, net):
    """Name of each damaged or foreign file, and what its error says beside the name."""
    state = net.state_dict()
    for suffix in ("pt", "safetensors", "npz"):
        whole = stored(net, suffix, folder).read_bytes()
        (folder / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
        (folder / f"void.{suffix}").write_bytes(b"")
        (folder / f"text.{suffix}").write_text("not a network")
    torch.save([1, 2, 3], folder / "list.pt")
    torch.save({"epoch": 3}, folder / "numbers.pt")
    torch.save(net, folder / "whole.pt")
    (folder / "plain.pt").write_bytes(pickle.dumps({"w": np.ones((3, 3))}))
    save_file({}, folder / "no.safetensors")
    np.savez(folder / "no.npz")
    np.save(folder / "single.npy", np.ones((3, 3)))
    os.rename(folder / "single.npy", folder / "single.npz")
    (folder / "vacant").mkdir()
    (folder / "torch").mkdir()
    torch.save(state, folder / "torch" / "pytorch_model.bin")
    (folder / "net.weights").write_text("?")
    return {
        "cut.pt": "cut short or damaged",
        "cut.safetensors": "not a complete safetensors file",
        "cut.npz": "copy or save it again",
        "void.pt": "not a PyTorch checkpoint",
        "void.safetensors": "not a complete safetensors file",
        "void.npz": "copy or save it again",
        "text.pt": "not a PyTorch checkpoint",
        "text.safetensors": "not a complete safetensors file",
        "text.npz": "copy or save it again",
        "list.pt": "no state dict but a list",
        "numbers.pt": "holds no tensors",
        "whole.pt": "nothing in it was executed",
        "plain.pt": "not written by torch.save",
        "no.safetensors": "holds no tensors",
        "no.npz": "holds no arrays",
        "single.npz": "not an .npz file",
        "vacant": "holds no .safetensors files",
        "torch": "but pytorch_model.bin",
        "net.weights": "cannot tell what",
        "missing.pt": "there is no file or folder",
    }


def test_damaged_and_foreign_files_are_named(net, tmp_path):
    for name, reason in bad_files(tmp_path, net).items():
        with pytest.raises((ProblemError, CapacityError)) as error:
            open_source(tmp_path / name)
        assert str(tmp_path / name) in str(error.value), name
        assert reason in str(error.value), name


def test_a_pickle_with_code_is_not_executed(tmp_path):
    class Touch:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"w": torch.ones(3, 3), "x": Touch()}, tmp_path / "evil.pt")
    with pytest.raises(ProblemError, match="nothing in it was executed"):
        open_source(tmp_path / "evil.pt")
    np.savez(tmp_path / "evil.npz", w=np.ones((3, 3)), x=np.array([Touch()]))
    assert "never executed" in contents(tmp_path / "evil.npz")["x"][1]
    assert not (tmp_path / "executed").exists()


def test_folders_whose_index_and_files_disagree(net, tmp_path):
    state = net.state_dict()
    folder = write_shards(state, tmp_path / "shards")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    second = folder / "model-00002-of-00002.safetensors"

    def refused(match):
        with pytest.raises(ProblemError, match=match) as error:
            open_source(folder)
        assert str(folder) in str(error.value)

    content["weight_map"]["ghost.weight"] = second.name
    index.write_text(json.dumps(content))
    refused("ghost.weight")
    for text in ("[]", "{}", '{"weight_map": 3}', "{", '{"weight_map": {}}', '{"weight_map": [1]}'):
        index.write_text(text)
        refused("download or save the folder again")
    index.unlink()
    save_file({"embed.weight": torch.ones(2, 2)}, folder / "again.safetensors")
    refused("both hold a tensor")
    (folder / "again.safetensors").unlink()
    assert contents(folder).keys() == state.keys()
    for name in ("a", "b"):
        (folder / f"{name}.safetensors.index.json").write_text("{}")
    refused("several indices")
    (folder / "b.safetensors.index.json").unlink()
    second.unlink()
    (folder / "a.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": second.name, "y": "model-00001-of-00002.safetensors"}})
    )
    refused(f"lacks 1 of the 2 shards.*{second.name}")


def test_npz_files_of_other_programs(tmp_path):
    path = tmp_path / "c.npz"
    big_endian = np.arange(12.0).reshape(3, 4).astype(">f4")
    np.savez(path, big=big_endian, fortran=np.asfortranarray(big_endian), text=np.array([["a"]]))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README", "hello")
    found = contents(path)
    np.testing.assert_array_equal(found["big"][2][0], big_endian)
    np.testing.assert_array_equal(found["fortran"][2][0], big_endian)
    assert "str" in found["text"][1]
    assert "not an array" in found["README"][1]
