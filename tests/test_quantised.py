"""Quantised checkpoints: whole where it is said how they are packed, refused by name elsewhere.

Weights are packed here number by number, as the formats' own programs describe it. They are (q - z)
times a float16 scale, exact in float32, so whatever is read must be equal, not close.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hessrmt.capacity import analyze, open_source
from hessrmt.errors import ProblemError
from hessrmt.problems import checkpoints

ROWS, COLUMNS, GROUP = 32, 64, 16  # outputs and inputs


def drawn(bits, seed=0):
    """Numbers q, zero points z and scales s of one matrix."""
    generator = np.random.default_rng(seed)
    q = generator.integers(0, 2**bits, (ROWS, COLUMNS))
    z = generator.integers(1, 2**bits, (ROWS, COLUMNS // GROUP))
    s = generator.uniform(0.01, 0.1, z.shape).astype(np.float16)
    whole = (q - z.repeat(GROUP, 1)) * s.astype(np.float64).repeat(GROUP, 1)
    return q, z, s, whole


def stream(numbers, bits):
    """Numbers along the last axis in 32-bit words, one after the other, lowest bits first."""
    words = []
    for row in numbers.reshape(-1, numbers.shape[-1]).tolist():
        long = sum(number << bits * i for i, number in enumerate(row))
        words.append([long >> 32 * i & 0xFFFFFFFF for i in range(len(row) * bits // 32)])
    return torch.from_numpy(np.array(words, np.uint32).view(np.int32))


def write(folder, state, **files):
    folder.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "m.safetensors")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def config(**about):
    return {"config": {"quantization_config": about}}


def gptq(bits, order=None, less=1):
    q, z, s, whole = drawn(bits)
    state = {
        "fc.qweight": stream(q, bits).T,
        "fc.qzeros": stream((z - less).T, bits),
        "fc.scales": torch.from_numpy(s.T.copy()),
    }
    if order is not None:  # desc_act: a group for each input
        state["fc.g_idx"] = torch.from_numpy(order.astype(np.int32))
        whole = (q - z[:, order]) * s.astype(np.float64)[:, order]
    return state, whole


def awq():
    q, z, s, whole = drawn(4)
    place = np.arange(8)[[0, 2, 4, 6, 1, 3, 5, 7]]  # of the k-th four bits

    def packed(numbers):
        return stream(numbers.T.reshape(-1, ROWS // 8, 8)[:, :, place].reshape(-1, ROWS), 4)

    state = {"fc.qweight": packed(q), "fc.qzeros": packed(z)}
    return state | {"fc.scales": torch.from_numpy(s.T.copy())}, whole


def check(folder, whole, how):
    with open_source(folder) as layers:
        layer = layers.get("fc.weight")
        np.testing.assert_array_equal(layer.load()[0], whole)
        assert [each.name for each in layers if each.skipped is None] == ["fc.weight"]
        assert any(how in note for note in layers.notes)
    net = nn.ModuleDict({"fc": nn.Linear(COLUMNS, ROWS, bias=False)})
    checkpoints.load_into(net, folder)
    np.testing.assert_array_equal(net["fc"].weight.detach(), whole.astype(np.float32))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shuffled", [False, True])
def test_gptq(bits, shuffled, tmp_path):
    order = np.random.default_rng(1).integers(0, COLUMNS // GROUP, COLUMNS) if shuffled else None
    state, whole = gptq(bits, order)
    said = {"bits": bits, "group_size": GROUP, "desc_act": shuffled}
    check(write(tmp_path / "a", state, quantize_config=said), whole, f"GPTQ, {bits} bits")
    state, whole = gptq(bits, order, less=0)
    said |= {"quant_method": "gptq", "checkpoint_format": "gptq_v2"}
    check(write(tmp_path / "b", state, **config(**said)), whole, f"GPTQ, {bits} bits")


def test_awq(tmp_path):
    state, whole = awq()
    said = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    check(write(tmp_path / "a", state, **config(**said)), whole, "AWQ, 4 bits")
    older = {"w_bit": 4, "q_group_size": GROUP, "version": "GEMM", "zero_point": True}
    check(write(tmp_path / "b", state, quant_config=older), whole, "AWQ, 4 bits")


@pytest.mark.parametrize("nested", [False, True])
def test_four_bits_of_bitsandbytes(nested, tmp_path):
    generator, count, block = np.random.default_rng(2), ROWS * COLUMNS, 64
    code = np.sort(generator.normal(size=16)).astype(np.float32)
    numbers = generator.integers(0, 16, count)
    said = {"quant_type": "nf4", "blocksize": block, "shape": [ROWS, COLUMNS], "dtype": "float32"}
    state = {
        "fc.weight": torch.from_numpy((numbers[::2] << 4 | numbers[1::2]).astype(np.uint8))[
            :, None
        ],
        "fc.weight.quant_map": torch.from_numpy(code),
    }
    bounds = generator.uniform(1, 2, count // block).astype(np.float32)
    if nested:
        outer_code = np.linspace(-1, 1, 256, dtype=np.float32)
        inner, outer = generator.integers(0, 256, count // block), np.float32([1.5, 2.5])
        said |= {"nested_blocksize": 16, "nested_offset": 4.0}
        bounds = outer_code[inner] * outer.repeat(16) + np.float32(4.0)
        state["fc.weight.nested_absmax"] = torch.from_numpy(outer)
        state["fc.weight.nested_quant_map"] = torch.from_numpy(outer_code)
    absmax = torch.from_numpy(inner.astype(np.uint8) if nested else bounds)
    about = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
    state |= {"fc.weight.absmax": absmax, "fc.weight.quant_state.bitsandbytes__nf4": about}
    whole = (code[numbers] * bounds.repeat(block)).reshape(ROWS, COLUMNS)
    check(write(tmp_path, state), whole, "bitsandbytes, nf4")  # nothing else need say it
    assert analyze(state).layers[0].skipped is None


def test_eight_bits_and_scales(tmp_path):
    generator = torch.Generator().manual_seed(3)
    scale = torch.rand(ROWS, generator=generator)
    whole8 = torch.randint(-127, 128, (ROWS, COLUMNS), generator=generator, dtype=torch.int8)
    state = {"fc.weight": whole8, "fc.SCB": scale, "fc.weight_format": torch.tensor(0).byte()}
    expected = whole8.float() * (scale / 127)[:, None]
    check(write(tmp_path / "a", state), expected.numpy(), "bitsandbytes, int8")
    state = {"fc.weight": whole8, "fc.weight_scale": scale[:, None]}
    said = config(quant_method="compressed-tensors", format="int-quantized")
    check(write(tmp_path / "b", state, **said), (whole8 * scale[:, None]).numpy(), "int8")
    float8 = torch.randn(ROWS, COLUMNS, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(2, 3, generator=generator)
    expected = torch.empty(ROWS, COLUMNS)
    for i in range(ROWS):
        for j in range(COLUMNS):
            expected[i, j] = float8[i, j].float() * scales[i // 20, j // 24]
    state = {"fc.weight": float8, "fc.weight_scale_inv": scales}
    said = config(quant_method="fp8", weight_block_size=[20, 24])
    check(write(tmp_path / "c", state, **said), expected.numpy(), "blocks of 20 x 24")
    state = {"fc.weight": float8, "fc.weight_scale": torch.tensor([0.5])}
    said = config(quant_method="compressed-tensors", format="float-quantized")
    check(write(tmp_path / "d", state, **said), (float8.float() / 2).numpy(), "one scale")


def test_packed_integers_of_compressed_tensors(tmp_path):
    q = np.random.default_rng(5).integers(-8, 8, (ROWS, COLUMNS))
    scale = torch.rand(ROWS, COLUMNS // GROUP, generator=torch.Generator().manual_seed(5))
    state = {
        "fc.weight_packed": stream(q + 8, 4),
        "fc.weight_scale": scale,
        "fc.weight_shape": torch.tensor([ROWS, COLUMNS]),
    }
    whole = torch.from_numpy(q) * scale.repeat_interleave(GROUP, 1)
    groups = {"group_0": {"weights": {"num_bits": 4, "group_size": GROUP}}}
    said = config(quant_method="compressed-tensors", format="pack-quantized", config_groups=groups)
    check(write(tmp_path, state, **said), whole.numpy(), "compressed-tensors, 4 bits")


def test_four_bit_floats_of_experts(tmp_path):
    """Bit by bit: sign, two of the exponent, one of the fraction; the scale is a power of two."""
    generator = np.random.default_rng(4)
    blocks = generator.integers(0, 256, (2, 5, 3, 16), np.uint8)
    scales = generator.integers(110, 140, (2, 5, 3), np.uint8)

    def value(bits):
        exponent, fraction = bits >> 1 & 3, bits & 1
        size = 2.0 ** (exponent - 1) * (1 + fraction / 2) if exponent else fraction / 2
        return -size if bits & 8 else size

    expected = np.zeros((2, 96, 5))
    for e, row, group, byte in np.ndindex(*blocks.shape):
        for half in (0, 1):
            number = value(int(blocks[e, row, group, byte]) >> 4 * half & 15)
            number *= 2.0 ** (int(scales[e, row, group]) - 127)
            expected[e, group * 32 + 2 * byte + half, row] = number
    names = "mlp.experts.down_proj_blocks", "mlp.experts.down_proj_scales"
    state = dict(zip(names, map(torch.from_numpy, (blocks, scales)), strict=True))
    with open_source(write(tmp_path, state, **config(quant_method="mxfp4"))) as layers:
        assert layers.get("mlp.experts.down_proj").kind == "Experts"
        np.testing.assert_array_equal(layers.get("mlp.experts.down_proj").load(), expected)
    assert all("MXFP4" in layer.skipped for layer in analyze(state).layers)


def packed(*shape, dtype=torch.int32):
    return torch.ones(shape, dtype=dtype)


UNKNOWN = {
    "GPTQ or AWQ": {
        "a.qweight": packed(4, 8),
        "a.qzeros": packed(2, 1),
        "a.scales": torch.ones(2, 8),
    },
    "HQQ": {"a.W_q": packed(32, 4, dtype=torch.uint8), "a.scale": torch.ones(32, 2)},
    "AQLM": {"a.codes": packed(8, 4, dtype=torch.int8), "a.codebooks": torch.ones(2, 9, 8)},
    "VPTQ": {"a.indices": packed(8, 4), "a.centroids.weight": torch.ones(7, 8)},
    "quanto": {
        "a.weight._data": packed(8, 8, dtype=torch.int8),
        "a.weight._scale": torch.ones(8, 2),
    },
    "NVFP4": {
        "a.weight": packed(8, 8, dtype=torch.uint8),
        "a.weight_scale": torch.ones(8, 4).to(torch.float8_e4m3fn),
        "a.weight_scale_2": torch.tensor(1.0),
    },
    "EETQ": {"a.qweight": packed(8, 8, dtype=torch.int8), "a.weight_scales": torch.ones(8, 2)},
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_nothing_of_an_unknown_format_is_taken_for_a_layer(name, tmp_path):
    state = UNKNOWN[name] | {"norm.weight": torch.ones(8)}
    assert not analyze(state).analyzed
    good = analyze(state | {"b.weight": torch.randn(9, 8), "b.scale": torch.randn(9, 8)})
    assert [layer.name for layer in good.analyzed] == ["b.weight", "b.scale"]
    write(tmp_path, {key: value.contiguous() for key, value in state.items()})
    with pytest.raises(ProblemError, match=r"does not hold whole weights|of integers"):
        checkpoints.load_into(nn.ModuleDict({"a": nn.Linear(8, 8)}), tmp_path)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, "there is nothing; give the folder"),
        ({"quant_method": "exl2"}, "quant_method 'exl2'"),
        ({"quant_method": "gptq", "bits": 5, "group_size": GROUP}, "5 bits"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 8}, "not the shapes"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "not the shapes"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "layout 'marlin'"),
        ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemv"}, "'gemv'"),
    ],
    ids=str,
)
def test_gptq_is_read_only_where_its_layout_is_known(said, reason, tmp_path):
    folder = write(tmp_path, gptq(4)[0], **config(**said))
    with open_source(folder) as layers:
        assert {layer.skipped is None for layer in layers} == {False}
        assert all(reason in layer.skipped for layer in layers)


def test_zero_points_that_programs_read_differently(tmp_path):
    state, _ = gptq(4)
    state["fc.qzeros"] = torch.full_like(
        state["fc.qzeros"], -1
    )  # 15 + 1: 16 for some, 0 for others
    folder = write(tmp_path, state, quantize_config={"bits": 4, "group_size": GROUP})
    with pytest.raises(ProblemError, match="programs read differently"):
        checkpoints.load_state(folder)
