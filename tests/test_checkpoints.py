"""Checkpoints: only tensors get in, they fit exactly, and a failed write destroys nothing."""

import errno
import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hessrmt.errors import ProblemError, StoreError, WriteError
from hessrmt.problems import checkpoints


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def saved(obj, path: Path) -> Path:
    torch.save(obj, path)
    return path


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_plain_and_nested_state_dicts(model, tmp_path, key, suffix):
    state = model.state_dict()
    path = saved(state if key is None else {"epoch": 3, key: state}, tmp_path / f"c{suffix}")
    assert same(checkpoints.load_state(path), state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_wrapper_prefix_is_stripped(model, tmp_path, prefix):
    state = {prefix + name: value for name, value in model.state_dict().items()}
    assert same(checkpoints.load_state(saved(state, tmp_path / "c.pt")), model.state_dict())


def test_safetensors(model, tmp_path):
    path = tmp_path / "c.safetensors"
    save_file(model.state_dict(), path)
    assert same(checkpoints.load_state(path), model.state_dict())


def test_load_into_returns_the_files_sha256(model, tmp_path):
    path = saved(model.state_dict(), tmp_path / "c.pt")
    twin = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    digest = checkpoints.load_into(twin, path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert same(twin.state_dict(), model.state_dict())


def test_missing_file_folder_and_suffix(tmp_path):
    with pytest.raises(ProblemError, match=r"nothing\.pt does not exist"):
        checkpoints.load_state(tmp_path / "nothing.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(ProblemError, match="is a folder"):
        checkpoints.load_state(tmp_path / "folder.pt")
    with pytest.raises(ProblemError, match=r"expected a name ending in \.pt, \.pth"):
        checkpoints.load_state(tmp_path / "weights.npz")
    with pytest.raises(ProblemError, match="cannot read"):
        checkpoints.sha256(tmp_path / "nothing.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a PyTorch checkpoint, or is damaged"),
        (b"hello world" * 50, "not a PyTorch checkpoint, or is damaged"),
        (b"PK\x03\x04" + bytes(200), "cut short or damaged"),
        (pickle.dumps({"a": 1}, protocol=4), "pickle that was not written by torch.save"),
    ],
)
def test_foreign_files(tmp_path, content, message):
    path = tmp_path / "c.pt"
    path.write_bytes(content)
    with pytest.raises(ProblemError, match=message):
        checkpoints.load_state(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated_checkpoint(model, tmp_path, zipped, part):
    path = tmp_path / "c.pt"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ProblemError, match=r"damaged|not written by"):
        checkpoints.load_state(path)


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_truncated_safetensors(model, tmp_path, keep):
    path = tmp_path / "c.safetensors"
    save_file(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ProblemError, match="not a complete safetensors file"):
        checkpoints.load_state(path)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_hostile_pickle_is_refused_and_not_executed(tmp_path):
    trap = tmp_path / "trap"
    path = saved({"weight": torch.ones(2), "x": Hostile(trap)}, tmp_path / "c.pt")
    with pytest.raises(ProblemError, match=r"pickled Python objects \(posix\.mkdir\)"):
        checkpoints.load_state(path)
    path.write_bytes(pickle.dumps({"x": Hostile(trap)}))
    with pytest.raises(ProblemError, match="nothing in it was executed"):
        checkpoints.load_state(path)
    assert not trap.exists()


def test_pickled_module_says_what_to_save_instead(model, tmp_path):
    with pytest.raises(ProblemError, match=r"torch\.save\(model\.state_dict\(\), path\)"):
        checkpoints.load_state(saved(model, tmp_path / "c.pt"))


def test_no_tensors_inside(tmp_path):
    with pytest.raises(ProblemError, match=r"no tensors \(its keys: epoch, net\)"):
        checkpoints.load_state(saved({"epoch": 3, "net": {"a": 1}}, tmp_path / "c.pt"))
    with pytest.raises(ProblemError, match="no state dict but a list"):
        checkpoints.load_state(saved([1, 2], tmp_path / "c.pt"))
    with pytest.raises(ProblemError, match="no state dict but a Tensor"):
        checkpoints.load_state(saved(torch.ones(3), tmp_path / "c.pt"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_nan_and_infinity_are_counted_and_named(tmp_path, dtype):
    bad = torch.ones(3, 2, dtype=dtype)
    bad[0, 0], bad[2, 1] = float("nan"), float("inf")
    state = {"a.weight": torch.ones(2), "b.weight": bad, "steps": torch.tensor(3)}
    with pytest.raises(ProblemError, match=r"2 values .* of 6, in 'b\.weight'"):
        checkpoints.load_state(saved(state, tmp_path / "c.pt"))


def test_mismatch_names_every_entry_and_leaves_the_model_alone(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = dict(before)
    state["extra.weight"] = torch.ones(1)
    state["0.weight"] = torch.ones(3, 5)
    del state["2.bias"]
    with pytest.raises(ProblemError) as caught:
        checkpoints.apply_state(model, state)
    message = str(caught.value)
    assert "missing from the checkpoint: 2.bias" in message
    assert "not in the model: extra.weight" in message
    assert "0.weight (3, 5) where the model has (3, 4)" in message
    assert same(model.state_dict(), before)


def test_long_lists_are_cut(model):
    state = {f"layer{i}.weight": torch.ones(1) for i in range(20)}
    with pytest.raises(ProblemError, match=r"layer7\.weight and 12 more"):
        checkpoints.apply_state(model, state)


def test_state_is_cast_to_the_models_dtype(model):
    state = {name: value.double() for name, value in model.state_dict().items()}
    checkpoints.apply_state(model, state)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(p.double(), state[n]) for n, p in model.named_parameters())


def fail_with(code):
    def failing(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    return failing


@pytest.mark.parametrize("target", ["os.replace", "os.fsync", "torch.save"])
@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (errno.ENOSPC, WriteError, "No space left.*untouched"),
        (errno.EACCES, StoreError, "Permission denied"),
    ],
)
def test_a_failed_write_leaves_the_old_checkpoint(
    tmp_path, monkeypatch, target, code, kind, message
):
    path = tmp_path / "c.pt"
    checkpoints.save_atomic({"a": torch.ones(2)}, path)
    before = path.read_bytes()
    monkeypatch.setattr(target, fail_with(code))
    with pytest.raises(kind, match=message) as caught:
        checkpoints.save_atomic({"a": torch.zeros(2)}, path)
    assert type(caught.value) is kind
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["c.pt"]


def test_an_interrupted_write_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(_handle):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save_atomic({"a": torch.ones(2)}, tmp_path / "c.pt")
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match="No such file or directory"):
        checkpoints.save_atomic({"a": torch.ones(2)}, tmp_path / "none" / "c.pt")


def test_the_bytes_depend_on_the_content_only(tmp_path):
    for name in ("one.pt", "another.pt"):
        checkpoints.save_atomic({"a": torch.ones(2)}, tmp_path / name)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "another.pt").read_bytes()
