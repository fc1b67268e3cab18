"""Networks on disk and in memory: the matrices of their layers, whatever they are stored as."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from file_samples import Planted
from safetensors.torch import save_file
from torch import nn

from hessrmt import rng
from hessrmt.capacity import open_source
from hessrmt.errors import DataError, ProblemError


class Net(nn.Module):
    """Many kinds of layers."""

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
        self.weight = nn.Parameter(torch.randn(into, out))
        self.bias = nn.Parameter(torch.zeros(out))


@pytest.fixture
def net():
    torch.manual_seed(3)
    return Net()


def read(source, **options):
    """Name of each tensor to its description and its matrices, None if skipped."""
    with open_source(source, **options) as layers:
        return {layer.name: (layer, None if layer.skipped else layer.load()) for layer in layers}


def skipped(source, **options):
    return {name: layer.skipped for name, (layer, _) in read(source, **options).items()}


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


FORMS = ("mapping", "arrays", "pt", "nested", "prefixed", "legacy", "safetensors", "shards", "npz")


def stored(form, state, folder):
    """A state dict in one of the forms that a source may have."""
    arrays = {name: value.numpy() for name, value in state.items()}
    path = folder / f"c.{form if form in {'safetensors', 'npz'} else 'pth'}"
    if form in {"mapping", "arrays"}:
        return arrays if form == "arrays" else {"model": state, "epoch": 3}
    if form == "shards":
        return write_shards(state, folder / form)
    if form == "safetensors":
        save_file(state, path)
    elif form == "npz":
        np.savez(path, **arrays)
    else:
        nested = {"epoch": 3, "state_dict": state, "optimizer": {"x": torch.ones(2, 2)}}
        prefixed = {f"module.{name}": value for name, value in state.items()}
        content = {"nested": nested, "prefixed": prefixed}.get(form, state)
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    return path


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_layers(net, form, tmp_path):
    expected, found = read(net), read(stored(form, net.state_dict(), tmp_path))
    assert found.keys() == expected.keys() == net.state_dict().keys()
    for name, (layer, matrices) in expected.items():
        assert (found[name][0].kind, found[name][0].skipped) == (layer.kind, layer.skipped)
        np.testing.assert_array_equal(found[name][1], matrices)


NARROW = [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64]


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_narrow_floats_are_widened_exactly(dtype, suffix, tmp_path):
    weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    path = tmp_path / f"c.{suffix}"
    (torch.save if suffix == "pt" else save_file)({"weight": weight}, path)
    layer, (matrix,) = read(path)["weight"]
    assert layer.dtype == str(dtype).removeprefix("torch.")
    assert matrix.dtype == np.float64
    assert matrix.flags.c_contiguous
    np.testing.assert_array_equal(matrix, weight.tolist())


def test_views_and_what_the_caller_owns(tmp_path):
    whole = torch.arange(12.0, dtype=torch.float64).reshape(3, 4)
    torch.save({"t": whole.T, "part": whole[:, 1:3]}, tmp_path / "views.pt")
    found = read(tmp_path / "views.pt")
    np.testing.assert_array_equal(found["t"][1][0], whole.T)
    np.testing.assert_array_equal(found["part"][1][0], whole[:, 1:3])
    read({"w": whole})["w"][1][:] = 5.0
    assert whole[2, 3] == 11.0


@pytest.mark.parametrize("form", ["mapping", "pt"])
def test_tied_weights_are_analysed_once(form, tmp_path):
    net = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6))
    net[1].weight = net[0].weight
    source = stored(form, net.state_dict(), tmp_path)
    both = skipped(source)
    assert (both["0.weight"], both["1.weight"]) == (None, "shares the storage of 0.weight")
    second = skipped(source, only="1.*")  # the first of the two is not asked for
    assert second["1.weight"] is None
    assert "does not match" in second["0.weight"]


@pytest.mark.parametrize("form", ["npz", "safetensors", "shards"])
def test_one_weight_that_is_stored_twice_is_analysed_once(form, tmp_path):
    """As embedding and as head; equal layers of one kind are two, e.g. those of a fresh encoder."""
    weight = torch.randn(6, 4)
    names = ("shared.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    state = {name: weight.clone() for name in names} | {"other.weight": torch.randn(6, 4)}
    reasons = skipped(stored(form, state, tmp_path))
    (first,) = (name for name in names if reasons[name] is None)
    again = f"has the numbers of {first}: one weight, stored twice"
    assert [reasons[name] for name in names if name != first] == [again, again]
    assert reasons["other.weight"] is None
    fresh = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 6), 2, enable_nested_tensor=False
    )
    for source in (fresh, fresh.state_dict()):
        reasons = skipped(source)
        assert reasons["layers.0.linear1.weight"] is reasons["layers.1.linear1.weight"] is None


def test_a_factory_is_initialised_from_the_seed(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(width=4):\n    return nn.Linear(width, 3)\n"
        "def needs(width):\n    return nn.Linear(width, 3)\n"
    )
    with rng.torch_seeded(5, "init"):  # as `--model file.py:factory --seed 5` does it
        expected = nn.Linear(4, 3).weight.detach().double()
    found = [read(f"{tmp_path}/mine.py:net", seed=seed)["weight"][1][0] for seed in (5, 6)]
    np.testing.assert_array_equal(found[0], expected)
    assert not np.array_equal(found[1], expected)
    with pytest.raises(ProblemError, match=r"without arguments.*'width'"):
        open_source(f"{tmp_path}/mine.py:needs")


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (3, "int"),
        (torch.ones(3, 3), "Tensor"),
        ({}, "none"),
        ({"epoch": 3}, "epoch"),
        (nn.ReLU(), "no tensors"),
    ],
    ids=str,
)
def test_what_holds_no_weights(source, match):
    with pytest.raises(DataError, match=match):
        open_source(source)


MEASURE = """
import sys
from pathlib import Path
from hessrmt.capacity.sources import open_source

def megabytes(what):
    # not ru_maxrss, which a process inherits from the one that started it
    status = Path("/proc/self/status").read_text()
    return int(status.split(what + ":")[1].split()[0]) / 1024

for path in sys.argv[1:]:
    with open_source(path) as layers:
        layers.get("small").load()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = megabytes("VmRSS")
        for layer in layers:
            layer.load()
    print(path, megabytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured as Linux does it")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """Six layers of 24 MB: at most 32 MB stay mapped, beside one layer's 48 MB in float64."""
    state = {f"layer{i}": torch.full((1536, 4096), i / 8) for i in range(6)}
    state["small"] = torch.ones(9, 9)
    paths = [stored(form, state, tmp_path) for form in ("npz", "pt", "safetensors", "shards")]
    run = [sys.executable, "-c", MEASURE, *map(str, paths)]
    lines = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert float(line.split()[1]) < 32 + 48 + 24, line  # the whole file mapped: 144 + 48


# damaged, foreign and dangerous files


def test_damaged_and_foreign_files_are_named(net, tmp_path):
    state = net.state_dict()
    for suffix in ("safetensors", "npz"):
        whole = stored(suffix, state, tmp_path).read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
        (tmp_path / f"text.{suffix}").write_bytes(b"not a network")
    torch.save([1, 2, 3], tmp_path / "list.pt")
    save_file({}, tmp_path / "no.safetensors")
    np.savez(tmp_path / "no.npz")
    with (tmp_path / "single.npz").open("wb") as file:
        np.save(file, np.ones((3, 3)))
    (tmp_path / "void").mkdir()
    (tmp_path / "torch").mkdir()
    torch.save(state, tmp_path / "torch" / "training_args.bin")
    (tmp_path / "net.weights").write_text("?")
    for name, reason in {
        "cut.safetensors": "not a complete safetensors file",
        "text.safetensors": "not a complete safetensors file",
        "cut.npz": "copy or save it again",
        "text.npz": "copy or save it again",
        "list.pt": "no state dict but a list",
        "no.safetensors": "holds no tensors",
        "no.npz": "holds no tensors",
        "single.npz": "not a complete .npz file",
        "void": "holds no .safetensors files",
        "torch": "but training_args.bin",
        "net.weights": "cannot tell what",
        "missing.pt": "there is no file or folder",
    }.items():
        with pytest.raises((ProblemError, DataError)) as error:
            open_source(tmp_path / name)
        assert str(tmp_path / name) in str(error.value), name
        assert reason in str(error.value), name


def test_a_pickle_with_code_is_not_executed(tmp_path):
    planted = Planted(tmp_path / "executed")
    torch.save({"w": torch.ones(3, 3), "x": planted}, tmp_path / "evil.pt")
    with pytest.raises(ProblemError, match="nothing in it was executed"):
        open_source(tmp_path / "evil.pt")
    np.savez(tmp_path / "evil.npz", w=np.ones((3, 3)), x=np.array([planted]))
    assert "never executed" in skipped(tmp_path / "evil.npz")["x"]
    assert not (tmp_path / "executed").exists()


def test_folders_whose_index_and_files_disagree(net, tmp_path):
    state = net.state_dict()
    folder = write_shards(state, tmp_path / "shards")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first, second = sorted(set(content["weight_map"].values()))

    def refused(match, index, text):
        index.write_text(text)
        with pytest.raises(ProblemError, match=match) as error:
            open_source(folder)
        assert str(folder) in str(error.value)

    for text in ("[]", "{}", '{"weight_map": 3}', "{", '{"weight_map": {}}', '{"weight_map": [1]}'):
        refused("download or save the folder again", index, text)
    refused("several indices", folder / "b.safetensors.index.json", "{}")
    (folder / "b.safetensors.index.json").unlink()
    content["weight_map"]["ghost.weight"] = second
    refused("ghost.weight", index, json.dumps(content))
    (folder / second).rename(folder / "other.safetensors")
    shards = json.dumps({"weight_map": {"x": second, "y": first}})
    refused(f"lacks 1 of the 2 shards.*{second}", index, shards)
    index.unlink()
    with pytest.raises(ProblemError, match="lacks 1 of the 2 shards"):  # so says the other's name
        open_source(folder)
    (folder / first).rename(folder / "one.safetensors")
    assert skipped(folder).keys() == state.keys()
    save_file({"embed.weight": torch.ones(2, 2)}, folder / "again.safetensors")
    with pytest.raises(ProblemError, match="both hold a tensor"):
        open_source(folder)


def test_npz_files_of_other_programs(tmp_path):
    path = tmp_path / "c.npz"
    big_endian = np.arange(12.0).reshape(3, 4).astype(">f4")
    np.savez(path, big=big_endian, fortran=np.asfortranarray(big_endian), text=np.array([["a"]]))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README", "hello")
    found = read(path)
    for name in ("big", "fortran"):
        np.testing.assert_array_equal(found[name][1][0], big_endian)
    assert "str" in found["text"][0].skipped
    assert "not an array" in found["README"][0].skipped


# the matrices of a layer


def test_kinds_are_of_the_modules_or_said_to_be_inferred(net):
    kinds = {
        "embed.weight": "Embedding",
        "conv.weight": "Conv2d",
        "attention.in_proj_weight": "MultiheadAttention",
        "attention.out_proj.weight": "Linear",
        "lstm.weight_ih_l0": "LSTM",
        "lstm.weight_hh_l0_reverse": "LSTM",
        "gru.weight_ih_l0": "GRU",
        "rnn.weight_hh_l0": "RNN",
        "head.weight": "Linear",
    }
    for source, inferred in ((net, False), (net.state_dict(), True)):
        layers = {name: layer for name, (layer, _) in read(source).items()}
        assert {name: layers[name].kind for name in kinds} == kinds
        assert {layers[name].inferred for name in kinds} == {inferred}
        assert all(layer.skipped for layer in layers.values() if len(layer.shape) < 2)
        assert layers["norm.running_var"].skipped.startswith("1-D")
        assert layers["norm.num_batches_tracked"].skipped == "a single number"
    net = nn.ModuleDict({"embed": nn.Linear(4, 3), "conv": nn.Bilinear(3, 4, 2)})
    found = read(net)  # a module's class overrules a misleading name
    assert [found[f"{name}.weight"][0].kind for name in net] == ["Linear", "Bilinear"]
    assert found["conv.weight"][1].shape == (2, 3, 4)


@pytest.mark.parametrize("as_module", [True, False])
def test_packed_projections_and_gates_are_taken_apart(net, as_module):
    net.attn = nn.ModuleDict({"c_attn": nn.Linear(4, 12), "c_proj": nn.Linear(4, 4)})
    net.small = nn.LSTM(3, 6, proj_size=2)
    layers = {
        "attn": {"c_attn": Conv1D(12, 4), "c_proj": Conv1D(4, 4)},
        "mlp": {"c_fc": Conv1D(16, 4), "c_proj": Conv1D(4, 16)},
        "crossattention": {"c_attn": Conv1D(8, 4), "q_attn": Conv1D(4, 4)},
    }
    gpt2 = nn.ModuleDict({name: nn.ModuleDict(inner) for name, inner in layers.items()})
    expected = {
        "qkv": ("attention.in_proj_weight", "attn.c_attn.weight"),
        "kv": ("crossattention.c_attn.weight",),
        "ifgo": ("lstm.weight_ih_l0", "lstm.weight_hh_l0_reverse"),
        "rzn": ("gru.weight_hh_l0",),
        "": ("rnn.weight_ih_l0", "attn.c_proj.weight", "mlp.c_fc.weight", "small.weight_hr_l0"),
    }
    expected["ifgo"] += ("small.weight_ih_l0", "small.weight_hh_l0")
    parts = {name: tuple(labels) or ("",) for labels, names in expected.items() for name in names}
    for model, axis in ((net, 0), (gpt2, 1)):
        state = model.state_dict()
        found = read(model if as_module else state)
        for name in parts.keys() & found.keys():
            layer, matrices = found[name]
            assert layer.parts == parts[name], name
            blocks = np.split(state[name].double().numpy(), len(layer.parts), axis)
            np.testing.assert_array_equal(matrices, blocks)
        kinds = {layer.kind for name, (layer, _) in found.items() if "c_" in name}
        assert kinds == {"Linear" if axis == 0 else "Conv1D", "vector"}


def test_stacks_of_experts_and_position_tables():
    shapes = {
        "mlp.experts.down_proj": ("Experts", (4, 5, 3)),
        "pos_embed": ("Embedding", (1, 9, 6)),
        "patch_embed.proj.weight": ("Conv2d", (6, 3, 2, 2)),
        "transformer.wte.weight": ("Embedding", (9, 6)),
        "embed_out.weight": ("Linear", (9, 6)),
    }
    state = {name: torch.randn(shape) for name, (_, shape) in shapes.items()}
    found = read(state)
    assert {name: layer.kind for name, (layer, _) in found.items()} == {
        name: kind for name, (kind, _) in shapes.items()
    }
    for name in ("mlp.experts.down_proj", "pos_embed"):
        np.testing.assert_array_equal(found[name][1], state[name])


class Groups(nn.Module):
    """Matrices side by side in one parameter, by whatever name."""

    def __init__(self):
        super().__init__()
        self.kernels = nn.Parameter(torch.randn(3, 5, 4))


def test_matrices_in_one_parameter_are_a_batch_of_them():
    net = nn.ModuleDict({"groups": Groups(), "conv": nn.Conv1d(4, 6, 3)})
    found = read(net)
    np.testing.assert_array_equal(found["groups.kernels"][1], net["groups"].kernels.detach())
    assert found["conv.weight"][0].parts == ("0", "1", "2")
    state = {
        "ffn.experts.mlp.w1": torch.randn(4 * 6, 5),  # of DBRX: four experts one below the other
        "ffn.router.layer.weight": torch.randn(4, 5),
        "block_sparse_moe.input_linear.weight": torch.randn(3, 6, 5),
        "feed_forward.experts.gate_up_proj": torch.randn(3, 5, 12),
        "conv1.weight": torch.randn(6, 5, 3),
        "feed_forward.experts.gate_up_proj_bias": torch.randn(3, 12),
    }
    found = read(state)
    kinds = ("Experts", "Linear", "Experts", "Experts", "Conv1d")
    for name, kind, count in zip(state, kinds, (4, 1, 3, 3, 3), strict=False):
        assert (found[name][0].kind, len(found[name][1])) == (kind, count)
    assert "biases" in found["feed_forward.experts.gate_up_proj_bias"][0].skipped
    experts = state["ffn.experts.mlp.w1"].reshape(4, 6, 5)
    np.testing.assert_array_equal(found["ffn.experts.mlp.w1"][1], experts)


CONVOLUTIONS = [
    nn.Conv1d(4, 6, 3),
    nn.Conv2d(4, 6, (2, 3)),
    nn.Conv3d(4, 6, (2, 1, 3)),
    nn.Conv2d(4, 6, 2, groups=2),
    nn.ConvTranspose1d(4, 6, 3),
    nn.ConvTranspose2d(4, 6, (2, 3)),
    nn.ConvTranspose2d(4, 6, 2, groups=2),
]


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_slices_act_as_the_convolution_does(conv):
    """On an input as large as the kernel (one pixel, for a transposed one), by torch itself."""
    kernel, groups, transposed = conv.kernel_size, conv.groups, conv.transposed
    generator = np.random.default_rng(8)
    x = generator.normal(size=(conv.in_channels, *((1,) * len(kernel) if transposed else kernel)))
    operator = getattr(nn.functional, f"conv{'_transpose' if transposed else ''}{len(kernel)}d")
    weight = conv.weight.detach().double()
    expected = operator(torch.from_numpy(x)[None], weight, groups=groups)[0].numpy()
    layer, matrices = read(nn.Sequential(conv))["0.weight"]
    assert layer.kind == type(conv).__name__
    labels = [",".join(map(str, at)) for at in np.ndindex(*kernel)]
    stack = matrices.reshape(groups, len(labels), *layer.part_shape)
    labels = [f"g{g}:{at}" for g in range(groups) for at in labels] if groups > 1 else labels
    assert layer.parts == tuple(labels)
    indices = "gkio,gix->gok" if transposed else "gkoi,gik->go"
    found = np.einsum(indices, stack, x.reshape(groups, conv.in_channels // groups, -1))
    # sums of as many float64 products of numbers of order 1
    error = 64 * x.size * np.finfo(float).eps
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=error)


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_unfolded_has_a_row_for_each_output_channel(conv):
    (matrix,) = read(conv, conv="unfolded")["weight"][1]
    weight = conv.weight.detach().double().numpy()
    if conv.transposed:
        groups, shape = conv.groups, weight.shape
        weight = weight.reshape(groups, shape[0] // groups, *shape[1:]).swapaxes(1, 2)
    np.testing.assert_array_equal(matrix, weight.reshape(conv.out_channels, -1))


def test_pooled_and_depthwise_convolutions(net):
    pooled, slices = read(net, conv="pooled"), read(net)
    assert [name for name, (layer, _) in pooled.items() if layer.pooled] == ["conv.weight"]
    assert not any(layer.pooled for layer, _ in slices.values())
    np.testing.assert_array_equal(pooled["conv.weight"][1], slices["conv.weight"][1])
    conv = nn.Conv2d(4, 4, 3, groups=4)
    for source in (conv, conv.state_dict()):
        reason = skipped(source)["weight"]
        assert "single row or column" in reason
        assert "unfolded" in reason
        assert read(source, conv="unfolded")["weight"][1].shape == (1, 4, 9)


SKIPPED = {
    "int8": (torch.ones(4, 4, dtype=torch.int8), "int8: quantised weights"),
    "index": (torch.ones(4, 4, dtype=torch.int64), "int64: integers"),
    "mask": (torch.ones(4, 4, dtype=torch.bool), "bool: a mask"),
    "complex": (torch.ones(4, 4, dtype=torch.complex64), "complex64"),
    "empty": (torch.ones(0, 4), "empty"),
    "row": (torch.ones(1, 4), "1 x 4: a single row or column"),
    "column": (torch.ones(4, 1), "4 x 1: a single row or column"),
    "bias": (torch.ones(4), "1-D"),
    "scalar.weight": (torch.tensor(2.0), "a single number"),
    "six": (torch.ones((2,) * 6), "6-D"),
    "sparse": (torch.eye(4).to_sparse(), "sparse_coo"),
    "meta": (torch.ones(4, 4, device="meta"), "meta device"),
    "number": (3, "of type int"),
    "small": (torch.ones(2, 9), "fewer than the 3"),
    "scaled": (torch.ones(4, 4).to(torch.float8_e4m3fn), "float8_e4m3fn, to be scaled"),
    "scaled_scale_inv": (torch.ones(4, 4), "float8_e4m3fn, to be scaled"),
}


def test_what_is_skipped_is_listed_with_its_reason():
    good = torch.ones(4, 4)
    state = {"good": good} | {name: value for name, (value, _) in SKIPPED.items()} | {"tied": good}
    with open_source(state, min_size=3) as layers:
        assert [layer.name for layer in layers] == list(state)
        assert [layer.name for layer in layers if layer.skipped is None] == ["good"]
        for name, (_, reason) in SKIPPED.items():
            assert reason in layers.get(name).skipped, name
            assert not layers.get(name).parts
        assert layers.get("tied").skipped == "shares the storage of good"
        assert layers.get("nothing") is None


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_buffers_lazy_parametrised_and_scripted_modules():
    net = nn.Sequential(nn.Linear(4, 3), nn.LazyLinear(5), nn.Linear(4, 3))
    net.register_buffer("table", torch.ones(4, 4))
    net.register_buffer("codes", torch.ones(4, 4, dtype=torch.int8))
    nn.utils.parametrizations.weight_norm(net[2])  # not to be measured by its direction
    reasons = skipped(net)
    assert reasons["0.weight"] is None
    for name, word in {
        "table": "buffer",
        "codes": "int8",
        "1.weight": "not initialised",
        "2.parametrizations.weight.original1": "parametris",
    }.items():
        assert word in reasons[name]
    plain = nn.Sequential(nn.Conv2d(4, 6, 2, groups=2), nn.Flatten(), nn.Linear(6, 3))
    plain.register_buffer("table", torch.ones(4, 4))
    scripted, expected = read(torch.jit.trace(plain, torch.ones(2, 4, 2, 2))), read(plain)
    assert scripted.keys() == expected.keys()
    for name, (layer, matrices) in expected.items():
        found, others = scripted[name]
        assert (found.kind, found.skipped) == (layer.kind, layer.skipped)
        assert layer.kind != "Linear" or np.array_equal(others, matrices)


@pytest.mark.parametrize("nested", [False, True])
def test_weights_in_arrays_of_numpy_are_not_lost_without_a_word(tmp_path, nested):
    """A pickled array can't be told from weights before it is read, which would execute code."""
    state = {"a": torch.ones(3, 4), "b": np.ones((3, 4))}
    torch.save({"state_dict": state} if nested else state, tmp_path / "net.pt")
    with pytest.raises(ProblemError, match="pickled Python objects"):
        open_source(tmp_path / "net.pt")
