"""Networks on disk and in memory: every form gives the same layers, one in memory at a time."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from network_samples import FORMATS, Net, contents, network, stored, write_shards
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from hessrmt import rng
from hessrmt.capacity.sources import open_source, pairs
from hessrmt.cli.train import train as train_command
from hessrmt.errors import CapacityError, ProblemError
from hessrmt.problems import checkpoints


@pytest.fixture
def net():
    return network()


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_holds_the_same_layers(net, form, tmp_path):
    expected = contents(net)
    assert expected.keys() == net.state_dict().keys()
    found = contents(stored(net, form, tmp_path))
    assert found.keys() == expected.keys()
    for name, (kind, skipped, matrices) in expected.items():
        assert found[name][0] == kind
        assert found[name][1] == skipped
        np.testing.assert_array_equal(found[name][2], matrices)


NARROW = [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64]


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_narrow_floats_are_widened_exactly(dtype, suffix, tmp_path):
    weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    path = tmp_path / f"c.{suffix}"
    (torch.save if suffix == "pt" else save_file)({"weight": weight}, path)
    with open_source(path) as layers:
        layer = layers.get("weight")
        assert layer.dtype == str(dtype).removeprefix("torch.")
        (matrix,) = layer.load()
    assert matrix.dtype == np.float64
    assert matrix.flags.c_contiguous
    np.testing.assert_array_equal(matrix, weight.tolist())


def test_a_loaded_matrix_is_the_callers_own():
    weight = torch.ones(3, 2, dtype=torch.float64)
    with open_source({"w": weight}) as layers:
        layers.get("w").load()[:] = 5.0
    assert torch.equal(weight, torch.ones(3, 2, dtype=torch.float64))


def test_transposed_views_are_read_in_their_own_order(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({"t": whole.T, "part": whole[:, 1:3]}, tmp_path / "views.pt")
    found = contents(tmp_path / "views.pt")
    np.testing.assert_array_equal(found["t"][2][0], whole.T)
    np.testing.assert_array_equal(found["part"][2][0], whole[:, 1:3])


@pytest.mark.parametrize("form", ["module", "pt"])
def test_tied_weights_are_analysed_once(form, tmp_path):
    net = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6))
    net[1].weight = net[0].weight
    source = stored(net, form, tmp_path)
    with open_source(source) as layers:
        assert layers.get("0.weight").skipped is None
        assert layers.get("1.weight").skipped == "shares the storage of 0.weight"
    with open_source(source, only="1.*") as layers:  # the first of the two is not asked for
        assert layers.get("1.weight").skipped is None
        assert "does not match" in layers.get("0.weight").skipped


def test_weights_trained_by_hessrmt(tiny_npz, tmp_path):
    app = typer.Typer()
    app.command("train")(train_command)
    out = tmp_path / "c.pt"
    options = ["--model", "mlp3", "--data", str(tiny_npz), "--epochs", "1", "--out", str(out)]
    assert CliRunner().invoke(app, options, catch_exceptions=False).exit_code == 0
    state = checkpoints.load_state(out)
    found = contents(out)
    assert found.keys() == state.keys()
    weights = {name for name in state if name.endswith("weight")}
    assert {name for name, about in found.items() if about[1] is None} == weights
    for name in weights:
        np.testing.assert_array_equal(found[name][2][0], state[name].double())


def test_a_factory_is_initialised_from_the_seed(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(width=4):\n    return nn.Linear(width, 3)\n"
        "def needs(width):\n    return nn.Linear(width, 3)\n"
        "def fails():\n    raise KeyError('x')\n"
        "def other():\n    return 3\n"
        "number = 3\n"
    )
    spec = f"{tmp_path}/mine.py:net"
    with rng.torch_seeded(5, "init"):  # as `--model file.py:factory --seed 5` does it
        expected = nn.Linear(4, 3).weight.detach().double()
    np.testing.assert_array_equal(contents(spec, seed=5)["weight"][2][0], expected)
    assert not np.array_equal(contents(spec, seed=6)["weight"][2][0], expected)
    for name, match in {
        "needs": "needs width",
        "fails": "KeyError",
        "other": "returned int",
        "number": "not callable",
        "nothing": "defines no 'nothing'",
    }.items():
        with pytest.raises(ProblemError, match=match):
            open_source(f"{tmp_path}/mine.py:{name}")


def test_pairs_finds_the_same_layers_of_another_state(net, tmp_path):
    torch.manual_seed(4)
    other = Net()
    state = {name: value for name, value in other.state_dict().items() if name != "head.weight"}
    save_file(state, tmp_path / "initial.safetensors")
    with open_source(net) as source, open_source(tmp_path / "initial.safetensors") as initial:
        found = {layer.name: before for layer, before in pairs(source, initial)}
        assert found.keys() == {layer.name for layer in source if not layer.skipped}
        assert found.pop("head.weight") is None
        for name, before in found.items():
            with open_source(other) as modules:
                np.testing.assert_array_equal(before.load(), modules.get(name).load())
    wide = {name: torch.ones(9, 9) for name in net.state_dict()}
    with (
        open_source(net) as source,
        open_source(wide) as initial,
        pytest.raises(CapacityError, match="shape"),
    ):
        list(pairs(source, initial))
    with (
        open_source(net) as source,
        open_source({"x": torch.ones(3, 3)}) as initial,
        pytest.raises(CapacityError, match="no layer name in common"),
    ):
        list(pairs(source, initial))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"conv": "slice"}, "slices, pooled, unfolded"),
        ({"min_size": 0}, "min_size"),
        ({"min_size": True}, "min_size"),
        ({"min_size": 2.5}, "min_size"),
        ({"only": ["a"]}, "pattern"),
        ({"only": "nothing.*"}, "first names are embed.weight"),
    ],
)
def test_unusable_options(net, options, match):
    with pytest.raises(CapacityError, match=match):
        open_source(net, **options)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (3, "int"),
        (None, "NoneType"),
        (torch.ones(3, 3), "Tensor"),
        ({}, "none"),
        ({"epoch": 3}, "epoch"),
        (nn.ReLU(), "no tensors"),
    ],
    ids=str,
)
def test_what_holds_no_weights(source, match):
    with pytest.raises(CapacityError, match=match):
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
    paths = [tmp_path / f"c.{suffix}" for suffix in ("npz", "pt", "safetensors")]
    np.savez(paths[0], **state)
    torch.save(state, paths[1])
    save_file(state, paths[2])
    shards = write_shards(state, tmp_path / "shards")
    run = [sys.executable, "-c", MEASURE, *map(str, paths), str(shards)]
    lines = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    for line in lines:
        assert float(line.split()[1]) < 32 + 48 + 24, line  # the whole file mapped: 144 + 48
    assert len(lines) == 4
