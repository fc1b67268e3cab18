"""Which matrices a layer is analysed as, and why others are not."""

import numpy as np
import pytest
import torch
from network_samples import Conv1D, contents, network
from torch import nn

from hessrmt.capacity.sources import open_source
from hessrmt.errors import CapacityError


@pytest.fixture
def net():
    return network()


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
        with open_source(source) as layers:
            analysed = {layer.name: layer for layer in layers if not layer.skipped}
            assert {name: analysed[name].kind for name in kinds} == kinds
            assert {analysed[name].inferred for name in kinds} == {inferred}
            assert all(layer.skipped for layer in layers if len(layer.shape) < 2)
            assert layers.get("norm.running_var").skipped.startswith("1-D")
            assert layers.get("norm.num_batches_tracked").skipped == "a single number"


def test_a_modules_class_overrules_a_misleading_name():
    net = nn.ModuleDict({"embed": nn.Linear(4, 3), "conv": nn.Bilinear(3, 4, 2)})
    with open_source(net) as layers:
        assert layers.get("embed.weight").kind == "Linear"
        assert layers.get("conv.weight").kind == "Bilinear"
        assert layers.get("conv.weight").load().shape == (2, 3, 4)


def test_packed_projections_and_gates_are_taken_apart(net):
    state = net.state_dict()
    with open_source(state) as layers:
        for name, parts in {
            "attention.in_proj_weight": "qkv",
            "lstm.weight_ih_l0": "ifgo",
            "lstm.weight_hh_l0_reverse": "ifgo",
            "gru.weight_hh_l0": "rzn",
        }.items():
            layer = layers.get(name)
            assert layer.parts == tuple(parts)
            blocks = np.split(state[name].double().numpy(), len(parts))  # torch's row blocks
            np.testing.assert_array_equal(layer.load(), blocks)
        assert layers.get("rnn.weight_ih_l0").parts == ("",)


def test_a_projected_lstm_has_four_gates_and_a_projection():
    lstm = nn.LSTM(3, 6, proj_size=2)
    for source in (lstm, lstm.state_dict()):
        with open_source(source) as layers:
            shapes = {layer.name: layer.load().shape for layer in layers if not layer.skipped}
        assert shapes == {
            "weight_ih_l0": (4, 6, 3),
            "weight_hh_l0": (4, 6, 2),
            "weight_hr_l0": (1, 2, 6),
        }


def test_gpt2_stores_its_linear_layers_transposed():
    block = nn.ModuleDict(
        {
            "attn": nn.ModuleDict({"c_attn": Conv1D(12, 4), "c_proj": Conv1D(4, 4)}),
            "mlp": nn.ModuleDict({"c_fc": Conv1D(16, 4), "c_proj": Conv1D(4, 16)}),
            "crossattention": nn.ModuleDict({"c_attn": Conv1D(8, 4), "q_attn": Conv1D(4, 4)}),
        }
    )
    state = block.state_dict()
    for source in (block, state):
        with open_source(source) as layers:
            analysed = [layer for layer in layers if not layer.skipped]
            assert {layer.kind for layer in analysed} == {"Conv1D"}
            packed = layers.get("attn.c_attn.weight")
            assert packed.parts == ("q", "k", "v")
            thirds = np.split(state["attn.c_attn.weight"].double().numpy(), 3, axis=1)
            np.testing.assert_array_equal(packed.load(), thirds)
            assert layers.get("crossattention.c_attn.weight").parts == ("k", "v")
            assert layers.get("crossattention.q_attn.weight").parts == ("",)


def test_linear_layers_with_gpt2s_names_are_packed_along_rows():
    attention = nn.ModuleDict({"c_attn": nn.Linear(4, 12), "c_proj": nn.Linear(4, 4)})
    state = attention.state_dict()
    for source in (attention, state):
        with open_source(source) as layers:
            assert layers.get("c_proj.weight").kind == layers.get("c_attn.weight").kind == "Linear"
            thirds = np.split(state["c_attn.weight"].double().numpy(), 3)
            np.testing.assert_array_equal(layers.get("c_attn.weight").load(), thirds)


def test_stacks_of_experts_and_position_tables():
    state = {
        "mlp.experts.down_proj": torch.randn(4, 5, 3),
        "pos_embed": torch.randn(1, 9, 6),
        "patch_embed.proj.weight": torch.randn(6, 3, 2, 2),
        "transformer.wte.weight": torch.randn(9, 6),
        "embed_out.weight": torch.randn(9, 6),
    }
    found = contents(state)
    assert [found[name][0] for name in state] == [
        "Experts", "Embedding", "Conv2d", "Embedding", "Linear"
    ]  # fmt: skip
    np.testing.assert_array_equal(found["mlp.experts.down_proj"][2], state["mlp.experts.down_proj"])
    np.testing.assert_array_equal(found["pos_embed"][2], state["pos_embed"])


CONVOLUTIONS = [
    nn.Conv1d(4, 6, 3),
    nn.Conv2d(4, 6, (2, 3)),
    nn.Conv3d(4, 6, (2, 1, 3)),
    nn.Conv2d(4, 6, 2, groups=2),
    nn.ConvTranspose1d(4, 6, 3),
    nn.ConvTranspose2d(4, 6, (2, 3)),
    nn.ConvTranspose2d(4, 6, 2, groups=2),
]


def same_to_rounding(found, expected, terms):
    """Both are sums of ``terms`` float64 products of numbers of order 1."""
    np.testing.assert_allclose(found, expected, atol=64 * terms * np.finfo(float).eps)


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_slices_act_as_the_convolution_does(conv):
    """On an input as large as the kernel (one pixel, for a transposed one), by torch itself."""
    kernel, groups, transposed = conv.kernel_size, conv.groups, conv.transposed
    generator = np.random.default_rng(8)
    x = generator.normal(size=(conv.in_channels, *((1,) * len(kernel) if transposed else kernel)))
    operator = getattr(nn.functional, f"conv{'_transpose' if transposed else ''}{len(kernel)}d")
    weight = conv.weight.detach().double()
    expected = operator(torch.from_numpy(x)[None], weight, groups=groups)[0].numpy()
    with open_source(nn.Sequential(conv)) as layers:
        layer = layers.get("0.weight")
        assert layer.kind == type(conv).__name__
        matrices = layer.load()
    positions = list(np.ndindex(*kernel))
    labels = [",".join(map(str, at)) for at in positions]
    labels = [f"g{g}:{at}" for g in range(groups) for at in labels] if groups > 1 else labels
    assert layer.parts == tuple(labels)
    inputs = x.reshape(groups, -1, *x.shape[1:])
    found = np.zeros((groups, conv.out_channels // groups, *expected.shape[1:]))
    for part, matrix in enumerate(matrices):
        group, at = part // len(positions), positions[part % len(positions)]
        if transposed:
            found[(group, slice(None), *at)] = matrix.T @ inputs[group].ravel()
        else:
            found[group, :] += (matrix @ inputs[(group, slice(None), *at)]).reshape(
                found[group].shape
            )
    same_to_rounding(found.reshape(expected.shape), expected, x.size)


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_unfolded_has_a_row_for_each_output_channel(conv):
    with open_source(conv, conv="unfolded") as layers:
        (matrix,) = layers.get("weight").load()
    weight = conv.weight.detach().double().numpy()
    inputs = conv.in_channels // conv.groups
    assert matrix.shape == (conv.out_channels, inputs * np.prod(conv.kernel_size))
    for channel in range(conv.out_channels):
        if conv.transposed:
            group, within = divmod(channel, conv.out_channels // conv.groups)
            row = weight[group * inputs : (group + 1) * inputs, within]
        else:
            row = weight[channel]
        np.testing.assert_array_equal(matrix[channel], row.ravel())


def test_pooled_delivers_the_slices_for_one_spectrum(net):
    with open_source(net, conv="pooled") as pooled, open_source(net) as slices:
        assert [layer.name for layer in pooled if layer.pooled] == ["conv.weight"]
        assert not any(layer.pooled for layer in slices)
        loaded = (source.get("conv.weight").load() for source in (pooled, slices))
        np.testing.assert_array_equal(*loaded)


def test_a_depthwise_convolution_has_no_slices():
    conv = nn.Conv2d(4, 4, 3, groups=4)
    for source in (conv, conv.state_dict()):
        with open_source(source) as layers:
            assert "single row or column" in layers.get("weight").skipped
            assert "unfolded" in layers.get("weight").skipped
        with open_source(source, conv="unfolded") as layers:
            assert layers.get("weight").load().shape == (1, 4, 9)


SKIPPED = {
    "int8": (torch.ones(4, 4, dtype=torch.int8), "int8: quantised weights"),
    "index": (torch.ones(4, 4, dtype=torch.int64), "int64: integers"),
    "mask": (torch.ones(4, 4, dtype=torch.bool), "bool: a mask"),
    "complex": (torch.ones(4, 4, dtype=torch.complex64), "complex64"),
    "empty": (torch.ones(0, 4), "empty"),
    "row": (torch.ones(1, 4), "1 x 4: a single row or column"),
    "column": (torch.ones(4, 1), "4 x 1: a single row or column"),
    "bias": (torch.ones(4), "1-D"),
    "scalar": (torch.tensor(2.0), "a single number"),
    "six": (torch.ones((2,) * 6), "6-D"),
    "sparse": (torch.eye(4).to_sparse(), "sparse_coo"),
    "meta": (torch.ones(4, 4, device="meta"), "meta device"),
    "number": (3, "of type int"),
    "small": (torch.ones(2, 9), "fewer than the 3"),
    "x.parametrizations.weight.original0": (torch.ones(4, 4), "parametris"),
    "scaled": (torch.ones(4, 4).to(torch.float8_e4m3fn), "scaled_scale_inv"),
    "scaled_scale_inv": (torch.ones(4, 4), "scales of the quantised scaled"),
}


def test_what_is_skipped_is_listed_with_its_reason():
    good = torch.ones(4, 4)
    state = {"good": good} | {name: value for name, (value, _) in SKIPPED.items()} | {"tied": good}
    with open_source(state, min_size=3) as layers:
        assert [layer.name for layer in layers] == list(state)
        assert len(layers) == len(state)
        assert [layer.name for layer in layers if layer.skipped is None] == ["good"]
        for name, (_, reason) in SKIPPED.items():
            assert reason in layers.get(name).skipped, name
            assert not layers.get(name).parts
            with pytest.raises(CapacityError):
                layers.get(name).load()
        assert layers.get("tied").skipped == "shares the storage of good"
        assert layers.get("nothing") is None


def test_weights_that_are_not_finite_are_counted_when_read(tmp_path):
    weight = torch.ones(5, 4)
    weight[0, 0], weight[3, 1], weight[4, 2] = torch.nan, torch.inf, -torch.inf
    torch.save({"bad": weight, "good": torch.ones(3, 3)}, tmp_path / "c.pt")
    with open_source(tmp_path / "c.pt") as layers:
        with pytest.raises(CapacityError, match="3 of 20 weights are NaN or infinite"):
            layers.get("bad").load()
        assert layers.get("good").load().shape == (1, 3, 3)


def test_huge_finite_weights_and_zeros_are_delivered():
    huge, zero = torch.full((3, 3), 1e308, dtype=torch.float64), torch.zeros(4, 3)
    found = contents({"huge": huge, "zero": zero})
    np.testing.assert_array_equal(found["huge"][2][0], huge)
    np.testing.assert_array_equal(found["zero"][2][0], zero)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_buffers_lazy_and_scripted_modules():
    net = nn.Sequential(nn.Linear(4, 3), nn.LazyLinear(5))
    net.register_buffer("table", torch.ones(4, 4))
    net.register_buffer("codes", torch.ones(4, 4, dtype=torch.int8))
    found = contents(net)
    assert "buffer" in found["table"][1]
    assert "int8" in found["codes"][1]
    assert "not initialised" in found["1.weight"][1]
    plain = nn.Sequential(nn.Conv2d(4, 6, 2, groups=2), nn.Flatten(), nn.Linear(6, 3))
    plain.register_buffer("table", torch.ones(4, 4))
    scripted, expected = contents(torch.jit.trace(plain, torch.ones(2, 4, 2, 2))), contents(plain)
    assert scripted.keys() == expected.keys()
    for name, (kind, skipped, matrices) in expected.items():
        assert scripted[name][:2] == (kind, skipped)
        if skipped is None and kind == "Linear":
            np.testing.assert_array_equal(scripted[name][2], matrices)


def test_weight_norm_is_refused_rather_than_measured_by_its_direction():
    linear = nn.Linear(4, 3)
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(linear), nn.Linear(3, 3))
    found = contents(net)
    assert "parametris" in found["0.parametrizations.weight.original1"][1]
    assert found["1.weight"][1] is None
