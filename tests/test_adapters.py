"""LoRA adapters: the update is the matrix, its factor where it is known; on a base, the sum."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from hessrmt.capacity import analyze, open_source
from hessrmt.cli.app import app
from hessrmt.errors import ProblemError
from hessrmt.problems import checkpoints

RANK = 3
EPS = np.finfo(np.float64).eps


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def factors(out=8, into=6, pattern="base_model.model.q.lora_{}.weight", names="AB"):
    return {pattern.format(names[0]): drawn(RANK, into), pattern.format(names[1]): drawn(out, RANK)}


def product(pair, factor=1.0):
    a, b = pair.values()
    return factor * np.einsum("or,ri->oi", b.numpy().astype(float), a.numpy().astype(float))


def write(folder, state, **config):
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "adapter_model.safetensors")
    if config:
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | config))
    return folder


def read(source, **options):
    with open_source(source, **options) as layers:
        return {one.name: one.load() for one in layers if one.skipped is None}, layers.notes


def close(found, expected):
    """Sums of a few products in float64."""
    np.testing.assert_allclose(
        found, np.asarray(expected), atol=8 * RANK * EPS * float(abs(expected).max())
    )


NAMES = [
    ("base_model.model.q.lora_{}.weight", "AB"),
    ("q.lora_{}.default.weight", "AB"),
    ("q.lora_{}", "AB"),
    ("q.lora_{}.weight", ("down", "up")),
    ("q.lora.{}.weight", ("down", "up")),
    ("q_lora.{}.weight", ("down", "up")),
]


@pytest.mark.parametrize(("pattern", "names"), NAMES, ids=str)
def test_the_update_is_the_layer_and_its_factors_are_not(pattern, names):
    pair = factors(pattern=pattern, names=names)
    found, notes = read(pair)
    assert found.keys() == {"q.weight"}
    close(found["q.weight"][0], product(pair))
    assert "without the factor alpha/r" in notes[0]
    report = analyze(pair)
    (layer,) = report.analyzed
    assert layer.rank == RANK
    assert report.notes == notes


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        ({"lora_alpha": 12}, 12 / RANK),
        ({"lora_alpha": 12, "use_rslora": True}, 12 / RANK**0.5),
        ({"lora_alpha": 12, "alpha_pattern": {"q": 5, "k": 9}}, 5 / RANK),
        ({"lora_alpha": 12, "alpha_pattern": {"other.q": 5}}, 12 / RANK),
    ],
    ids=str,
)
def test_the_factor_is_that_of_the_config(config, factor, tmp_path):
    pair = factors()
    found, notes = read(write(tmp_path, pair, **config))
    close(found["q.weight"][0], product(pair, factor))
    assert not notes
    found, _ = read(tmp_path / "adapter_model.safetensors")  # the file, beside its config
    close(found["q.weight"][0], product(pair, factor))


def test_alpha_among_the_tensors_convolutions_and_tables():
    pair = factors(pattern="lora_unet_q.lora_{}.weight", names=("down", "up"))
    found, _ = read(pair | {"lora_unet_q.alpha": torch.tensor(6.0)})
    close(found["lora_unet_q.weight"][0], product(pair, 2.0))
    conv = {"c.lora_A.weight": drawn(RANK, 5, 2, 2), "c.lora_B.weight": drawn(7, RANK, 1, 1)}
    found, _ = read(conv, conv="unfolded")
    a, b = conv.values()
    close(found["c.weight"][0], product({"A": a.flatten(1), "B": b.flatten(1)}))
    table = {"e.lora_embedding_A": drawn(RANK, 9), "e.lora_embedding_B": drawn(4, RANK)}
    found, _ = read(table)
    close(found["e.weight"][0], product(table).T)


BAD = {
    "lora_magnitude_vector": factors()
    | {"base_model.model.q.lora_magnitude_vector": torch.ones(8)},
    "lora_E": factors() | {"base_model.model.q.lora_E": drawn(RANK, 1)},
    "one factor": {"q.lora_A.weight": drawn(RANK, 6)},
    "can't be multiplied": {"q.lora_A.weight": drawn(RANK, 6), "q.lora_B.weight": drawn(8, 4)},
    "hada_w1_a": {"q.hada_w1_a": drawn(8, 3), "q.hada_w1_b": drawn(3, 6)},
    "lokr_w1": {"q.lokr_w1": drawn(4, 3), "q.lokr_w2": drawn(3, 6)},
}


@pytest.mark.parametrize("reason", BAD)
def test_other_updates_are_refused_by_name(reason, tmp_path):
    report = analyze(BAD[reason])
    assert not report.analyzed
    assert all(reason in layer.skipped for layer in report.layers)
    with pytest.raises(ProblemError, match=reason):
        open_source(write(tmp_path, BAD[reason], lora_alpha=1), base={"q.weight": drawn(8, 6)})


@pytest.fixture
def base(tmp_path):
    """A square transposed layer as GPT-2's, a rectangular one, an embedding, a head."""
    state = {
        "net.q.weight": drawn(8, 6, seed=1),
        "net.c_proj.weight": drawn(7, 7, seed=1),
        "net.e.weight": drawn(9, 4, seed=1),
        "head.weight": drawn(3, 8, seed=1),
        "head.bias": torch.zeros(3),
    }
    save_file(state, tmp_path / "base.safetensors")
    return state, tmp_path / "base.safetensors"


def test_on_a_base_the_sum_is_measured(base, tmp_path):
    state, path = base
    before = "base_model.model.net."
    pairs = {
        "q": factors(8, 6, before + "q.lora_{}.weight"),
        "c_proj": factors(7, 7, before + "c_proj.lora_{}.weight"),
        "e": factors(4, 9, before + "e.lora_embedding_{}"),
    }
    head = {"base_model.model.head.modules_to_save.weight": drawn(3, 8, seed=5)}
    adapter = {name: value for pair in pairs.values() for name, value in pair.items()} | head
    folder = write(tmp_path / "lora", adapter, lora_alpha=6, fan_in_fan_out=False)
    expected = {
        "net.q.weight": state["net.q.weight"].double().numpy() + product(pairs["q"], 2),
        "net.c_proj.weight": state["net.c_proj.weight"].double().numpy()
        + product(pairs["c_proj"], 2),
        "net.e.weight": state["net.e.weight"].double().numpy() + product(pairs["e"], 2).T,
        "head.weight": head["base_model.model.head.modules_to_save.weight"],
    }
    for given in (path, state):
        found, _ = read(folder, base=given)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            close(found[name][0], value)
    write(folder, pairs["c_proj"], lora_alpha=6, fan_in_fan_out=True)
    found, _ = read(folder, base=path)
    turned = state["net.c_proj.weight"].double().numpy() + product(pairs["c_proj"], 2).T
    close(found["net.c_proj.weight"][0], turned)
    found, _ = read(folder)  # the update by itself, as it is added
    close(found["net.c_proj.weight"][0], product(pairs["c_proj"], 2).T)


@pytest.mark.parametrize(
    ("pair", "config", "reason"),
    [
        (factors(), {}, "factor alpha/r of net.q.weight isn't stated"),
        (factors(), {"lora_alpha": 1, "init_lora_weights": "pissa"}, "changes the base"),
        (factors(5, 6), {"lora_alpha": 1}, r"updates \(5, 6\), but net.q.weight has \(8, 6\)"),
        (
            factors(pattern="k.lora_{}.weight"),
            {"lora_alpha": 1},
            "none of its tensors of that name",
        ),
        (factors(pattern="weight.lora_{}.weight"), {"lora_alpha": 1}, "of that name"),
        ({"q.weight": drawn(8, 6)}, {"lora_alpha": 1}, "holds no LoRA update"),
        (factors(), {"lora_alpha": 1, "alpha_pattern": {"(": 2}}, "is no pattern"),
        (factors(), {"peft_type": "LOHA"}, "an update by LOHA"),
    ],
    ids=str,
)
def test_what_does_not_belong_on_the_base(base, pair, config, reason, tmp_path):
    folder = write(tmp_path / "lora", pair, **config)
    with pytest.raises(ProblemError, match=reason):
        open_source(folder, base=base[1])


class Adapted(nn.Module):
    """A layer as PEFT wraps it."""

    def __init__(self, pair, active=("one",)):
        super().__init__()
        self.base_layer = nn.Linear(6, 8)
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        for name, scale in (("one", 2.0), ("two", 5.0)):
            self.lora_A[name], self.lora_B[name] = nn.Linear(6, 3, False), nn.Linear(3, 8, False)
            self.lora_A[name].weight.data, self.lora_B[name].weight.data = pair.values()
            self.scaling = {"one": 2.0, "two": scale}
        self.active_adapters, self.disable_adapters, self.merged_adapters = active, False, []


def test_a_module_with_adapters_is_the_network_that_it_computes():
    pair = factors()
    for active, factor in ((("one",), 2.0), (("one", "two"), 7.0), ((), 0.0)):
        net = nn.ModuleDict({"q": Adapted(pair, active)})
        weight = net["q"].base_layer.weight.detach().double().numpy()
        found, _ = read(net)
        assert found.keys() == {"q.weight"}
        close(found["q.weight"][0], weight + product(pair, factor))
    net["q"].active_adapters, net["q"].merged_adapters = ("one",), ["one"]
    close(read(net)[0]["q.weight"][0], weight)
    apart, notes = read(net.state_dict())  # which don't say the factors
    assert apart.keys() == {"q.base_layer.weight", "q.one.weight", "q.two.weight"}
    assert notes


def test_an_adapter_is_no_checkpoint_of_a_network(tmp_path):
    folder = write(tmp_path, factors(), lora_alpha=2)
    with pytest.raises(ProblemError, match=r"is an adapter.*merge it into its base"):
        checkpoints.load_into(nn.Linear(6, 8), folder)


def test_the_command_adds_the_adapter_to_its_base(base, tmp_path):
    folder = write(tmp_path / "lora", factors(), lora_alpha=6)
    for options, count in (([], 1), (["--base", str(base[1])], 4)):
        run = CliRunner().invoke(app, ["capacity", str(folder), "--json", *options])
        assert run.exit_code == 0, run.output
        layers = json.loads(run.stdout)["layers"]
        assert sum(layer["skipped"] is None for layer in layers) == count
