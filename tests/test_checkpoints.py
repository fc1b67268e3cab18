"""Checkpoints: only tensors get in, they fit exactly, and a failed write destroys nothing."""

import errno
import hashlib
import io
import os
import pickle
import warnings
import zipfile
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from file_samples import Planted
from safetensors.torch import save_file
from torch import nn

from hessrmt.errors import DeviceError, ProblemError, StoreError, WriteError
from hessrmt.problems import archives, checkpoints, readers
from hessrmt.runs.capacity import named
from hessrmt.runs.verify import verify


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def prefixed(prefix):
    return lambda state: {prefix + name: value for name, value in state.items()}


def nested(key):
    return lambda state: {"epoch": 3, key: state}


WRAPPERS = [dict, *map(prefixed, ("module.", "_orig_mod."))]
KINDS = [("c.safetensors", save_file, wrap) for wrap in WRAPPERS]
KINDS += [("c.pt", torch.save, wrap) for wrap in (*WRAPPERS, *map(nested, readers.NESTED_UNDER))]


@pytest.mark.parametrize(("name", "save", "wrap"), [*KINDS, ("c.pth", torch.save, dict)])
def test_state_dicts_of_every_kind_are_loaded(model, tmp_path, name, save, wrap):
    state, path = model.state_dict(), tmp_path / name
    save(wrap(state), path)
    assert same(checkpoints.load_state(path), state)
    twin = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert checkpoints.load_into(twin, path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert same(twin.state_dict(), state)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing.pt", None, r"no file or folder .*nothing\.pt"),
        ("weights", b"?", r"cannot tell what .*; expected a \.pt, \.pth"),
        ("weights.npz", b"", "is not a complete .npz file"),
        ("c.pt", b"", "not a PyTorch checkpoint, or is damaged"),
        ("c.pt", b"hello world" * 50, "not a PyTorch checkpoint, or is damaged"),
        ("c.pt", b"PK\x03\x04" + bytes(200), "cut short or damaged"),
        ("c.pt", pickle.dumps({"a": 1}, protocol=4), "pickle that was not written by torch.save"),
        ("c.pt", nn.Linear(2, 2), r"torch\.save\(model\.state_dict\(\), path\)"),
        ("c.pt", {"epoch": 3, "net": {"a": 1}}, r"no tensors \(its keys: epoch, net\)"),
        ("c.pt", [1, 2], "no state dict but a list"),
        ("c.pt", torch.ones(3), "no state dict but a Tensor"),
        ("folder.pt", None, "holds no .safetensors files"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif name == "folder.pt":
        path.mkdir()
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ProblemError, match=message):
        checkpoints.load_state(path)


@pytest.mark.parametrize("way", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_truncated_checkpoint(model, tmp_path, way, part):
    path = tmp_path / ("c.safetensors" if way == "safetensors" else "c.pt")
    if way == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=way == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ProblemError, match=r"damaged|not written by|not a complete safetensors"):
        checkpoints.load_state(path)


def test_hostile_pickle_is_refused_and_not_executed(tmp_path):
    trap, path = tmp_path / "trap", tmp_path / "c.pt"
    torch.save({"weight": torch.ones(2), "x": Planted(trap)}, path)
    with pytest.raises(ProblemError, match=r"pickled Python objects \(posix\.mkdir\)"):
        checkpoints.load_state(path)
    path.write_bytes(pickle.dumps({"x": Planted(trap)}))
    with pytest.raises(ProblemError, match="nothing in it was executed"):
        checkpoints.load_state(path)
    assert not trap.exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_nan_and_infinity_are_counted_and_named(tmp_path, dtype):
    bad = torch.ones(3, 2, dtype=dtype)
    bad[0, 0], bad[2, 1] = float("nan"), float("inf")
    state = {"a.weight": torch.ones(2), "b.weight": bad, "steps": torch.tensor(3)}
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(ProblemError, match=r"2 values .* of 6, in 'b\.weight'"):
        checkpoints.load_state(tmp_path / "c.pt")


def test_mismatch_names_every_entry_and_leaves_the_model_alone(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = dict(before) | {"extra.weight": torch.ones(1), "0.weight": torch.ones(3, 5)}
    del state["2.bias"]
    with pytest.raises(ProblemError) as caught:
        checkpoints.apply_state(model, state)
    message = str(caught.value)
    assert "missing from the checkpoint: 2.bias" in message
    assert "not in the model: extra.weight" in message
    assert "0.weight (3, 5) where the model has (3, 4)" in message
    assert same(model.state_dict(), before)
    state = {f"layer{i}.weight": torch.ones(1) for i in range(20)}
    with pytest.raises(ProblemError, match=r"layer7\.weight and 12 more"):
        checkpoints.apply_state(model, state)
    state = {name: value.double() / 3 for name, value in before.items()}
    checkpoints.apply_state(model, state)  # cast to the model's type
    assert same(model.state_dict(), {name: value.float() for name, value in state.items()})


@pytest.mark.parametrize("target", ["os.replace", "os.fsync"])
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(errno.ENOSPC, "No space left"), WriteError, "No space left.*untouched"),
        (OSError(errno.EACCES, "Permission denied"), StoreError, "Permission denied"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_failed_write_leaves_the_old_checkpoint(
    tmp_path, monkeypatch, target, error, kind, message
):
    path = tmp_path / "c.pt"
    checkpoints.save_atomic({"a": torch.ones(2)}, path)
    before = path.read_bytes()
    monkeypatch.setattr(target, Mock(side_effect=error))
    with pytest.raises(kind, match=message) as caught:
        checkpoints.save_atomic({"a": torch.zeros(2)}, path)
    assert type(caught.value) is kind
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["c.pt"]


def test_the_bytes_depend_on_the_content_only(tmp_path):
    one, another = tmp_path / "one.pt", tmp_path / "another.pt"
    for path in (one, another):
        checkpoints.save_atomic({"a": torch.ones(2)}, path)
    assert one.read_bytes() == another.read_bytes()
    with pytest.raises(StoreError, match="No such file or directory"):
        checkpoints.save_atomic({"a": torch.ones(2)}, tmp_path / "none" / "c.pt")


class Tied(nn.Module):
    """An embedding whose weight is the head's too."""

    def __init__(self):
        super().__init__()
        self.emb, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.emb.weight


@pytest.mark.parametrize("names", [("emb",), ("head",), ("emb", "head")])
def test_tied_weights_may_be_stored_once(tmp_path, names):
    weight, model = torch.randn(7, 4), Tied()
    save_file({f"{name}.weight": weight.clone() for name in names}, tmp_path / "c.safetensors")
    checkpoints.load_into(model, tmp_path / "c.safetensors")
    assert model.head.weight is model.emb.weight
    assert torch.equal(model.head.weight, weight)


def test_weights_that_differ_where_the_model_ties_them_are_refused():
    model = Tied()
    before = model.emb.weight.detach().clone()
    state = {"emb.weight": torch.ones(7, 4), "head.weight": torch.zeros(7, 4)}
    with pytest.raises(ProblemError, match=r"emb.weight and head.weight are one weight"):
        checkpoints.apply_state(model, state)
    with pytest.raises(ProblemError, match=r"head.weight \(7, 5\) where the model has \(7, 4\)"):
        checkpoints.apply_state(model, {"head.weight": torch.zeros(7, 5)})
    assert torch.equal(model.emb.weight, before)


def test_names_that_differ_by_what_wraps_the_network(model):
    state = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    for given, target in (
        (prefixed("net.")(state), model),  # of a LightningModule, into its network
        (state, nn.ModuleDict({"net": model})),
        (state, torch.nn.DataParallel(model)),
    ):
        for value in model.parameters():
            value.data.zero_()
        checkpoints.apply_state(target, given)
        assert same(model.state_dict(), state)


def test_counters_of_batchnorm_may_be_missing_and_integers_are_no_weights():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = {k: v + 1 for k, v in model.state_dict().items() if "num_batches" not in k}
    checkpoints.apply_state(model, state)
    assert torch.equal(model[1].running_var, state["1.running_var"])
    assert model[1].num_batches_tracked == 0
    state["0.weight"] = torch.ones(4, 3, dtype=torch.int8)
    with pytest.raises(ProblemError, match=r"of integers, .*0.weight, torch.int8"):
        checkpoints.apply_state(model, state)


def repacked(path, change):
    """A checkpoint as a zip file with other members: those that ``change`` makes of each."""
    with zipfile.ZipFile(path) as old:
        members = [(info.filename, old.read(info)) for info in old.infolist()]
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as new:
        warnings.simplefilter("ignore")  # of names that are there twice
        for member in members:
            for name, raw in change(*member):
                new.writestr(name, raw)


def test_two_members_of_one_name_are_refused(model, tmp_path):
    def twice(name, raw):
        if not name.endswith("data/0"):
            return [(name, raw)]
        return [(name, b""), (name, raw)]

    def cased(name, raw):
        return [(name, raw), (name.upper(), raw)] if name.endswith("data/0") else [(name, raw)]

    for change in (twice, cased):
        path = tmp_path / "twice.pt"
        torch.save(model.state_dict(), path)
        repacked(path, change)
        with pytest.raises(ProblemError, match="2 of its members are called"):
            checkpoints.load_state(path)
    path = tmp_path / "twice.npz"
    np.savez(path, **{"0.weight": np.ones(3)})
    repacked(path, lambda name, raw: [(name, raw), (name, raw)])
    with pytest.raises(ProblemError, match=r"2 of its members are called '0\.weight\.npy'"):
        checkpoints.load_state(path)
    np.savez(path, W=np.ones(3), w=np.zeros(2))
    assert {k: len(v) for k, v in checkpoints.load_state(path).items()} == {"W": 3, "w": 2}


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_complex_weights_do_not_lose_their_imaginary_part(model):
    state = {name: value * 1j for name, value in model.state_dict().items()}
    with pytest.raises(ProblemError, match=r"complex where the model is real: 0\.weight, torch\."):
        checkpoints.apply_state(model, state)
    twin = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).to(torch.complex64)
    checkpoints.apply_state(twin, state)
    assert same(twin.state_dict(), state)


def test_expanded_tensors_are_read_unless_they_are_far_larger_than_the_file(tmp_path):
    path = tmp_path / "expanded.pt"
    torch.save({"bias": torch.ones(1).expand(8), "weight": torch.ones(4, 1).expand(4, 8)}, path)
    state = checkpoints.load_state(path)
    assert same(state, {"bias": torch.ones(8), "weight": torch.ones(4, 8)})
    torch.save({f"{i}.weight": torch.ones(1).expand(10_000, 10_000) for i in range(3)}, path)
    with pytest.raises(ProblemError, match=r"'2\.weight' of shape \(10000, 10000\) repeats few"):
        readers.open_path(path)


@pytest.mark.filterwarnings("ignore:.*(nested|Sparse)")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse_coo: sparse tensors aren't analysed"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse_csr: sparse tensors aren't analysed"),
        (lambda: torch.ones(3, device="meta"), "on the meta device"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a nested tensor"),
    ],
)
def test_tensors_without_plain_numbers_are_refused_by_name(tmp_path, make, words):
    path = tmp_path / "odd.pt"
    torch.save({"0.weight": make(), "0.bias": torch.ones(3)}, path)
    with pytest.raises(ProblemError, match=f"'0.weight' is {words}"):
        checkpoints.load_state(path)
    assert readers.open_path(path).entries["0.weight"].unusable is not None


def test_what_is_packed_too_well_or_has_no_room_is_refused_before_it_is_unpacked(
    tmp_path, monkeypatch
):
    path = tmp_path / "zeros.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        np.lib.format.write_array_header_1_0(
            header := io.BytesIO(), {"descr": "<f4", "fortran_order": False, "shape": (2**24,)}
        )
        archive.writestr("w.npy", header.getvalue() + bytes(2**26))
    monkeypatch.setattr(archives, "_MOST", 1 << 25)
    with pytest.raises(ProblemError, match=r"unpack to 67,\d+,\d+ bytes, \d{3} times the file"):
        readers.open_path(path)
    draw = np.random.default_rng(1)
    np.savez_compressed(path, w=draw.integers(0, 2, 2**17).astype("f4"))
    monkeypatch.setattr(archives, "_MOST", 1 << 10)
    monkeypatch.setattr(archives, "free_host_memory", lambda: 1 << 18)
    with pytest.raises(DeviceError, match=r"zeros\.npz unpacks to 0\.0 GiB, and 0\.0 GiB"):
        checkpoints.load_state(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["net.pt", "no_ending"])
def test_checkpoints_of_every_pickle_protocol_are_read(model, tmp_path, protocol, zipped, name):
    state, path = model.state_dict(), tmp_path / name
    # torch and OrderedDict are names that are needed again as texts
    content = {
        "torch": 1,
        "OrderedDict": ["torch", b"\xff\0", None, 1.5, (2**40, -3)],
        "é": "é" * 300,
    }
    content |= {"state_dict": state, "again": "OrderedDict", "shared": state["0.weight"]}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert same(checkpoints.load_state(path), state)
    back = readers.read(path)
    assert {k: back[k] for k in ("torch", "OrderedDict", "é", "again")} == {
        k: content[k] for k in ("torch", "OrderedDict", "é", "again")
    }
    assert back["shared"].data_ptr() == back["state_dict"]["0.weight"].data_ptr()
    assert verify(path).state == ("verified" if zipped else "no checksums")


@pytest.mark.parametrize("protocol", [2, 4])
def test_whole_modules_are_refused_but_not_damaged(model, tmp_path, protocol):
    path = tmp_path / "whole.pt"
    torch.save(model, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    with pytest.raises(ProblemError, match=r"holds pickled Python objects \(torch\.nn\.modules"):
        checkpoints.load_state(path)
    found = verify(path)
    assert found.state == "no checksums"
    assert "pickled Python objects" in found.words


def test_translated_pickles_still_execute_nothing(tmp_path):
    path, trap = tmp_path / "c.pt", tmp_path / "executed"
    torch.save({"weight": torch.ones(2), "x": Planted(trap)}, path, pickle_protocol=4)
    with pytest.raises(ProblemError, match="nothing in it was executed"):
        checkpoints.load_state(path)
    assert not trap.exists()


def test_names_of_tensors_stay_on_one_line_of_a_message(model, tmp_path):
    state = model.state_dict() | {"a\nb\x1b": torch.ones(2)}
    with pytest.raises(ProblemError, match=r"not in the model: a\\nb\\x1b\. Give the model"):
        checkpoints.apply_state(model, state)
    assert named(["a\nb\x1b"]) == r"a\nb\x1b"


@pytest.mark.parametrize("protocol", [2, 4])
def test_checkpoints_without_checksums_are_read(model, tmp_path, protocol):
    path = tmp_path / "c.pt"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(model.state_dict(), path, pickle_protocol=protocol)
    finally:
        torch.serialization.set_crc32_options(before)
    assert same(checkpoints.load_state(path), model.state_dict())
