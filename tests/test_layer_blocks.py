"""``hessrmt spectrum --blocks layer``: one file, a group for each layer's own block."""

import json

import h5py
import numpy as np
import pytest
import torch
from store_samples import NET
from torch import nn

import hessrmt as hr
from hessrmt.config import SpectrumConfig
from hessrmt.errors import StoreError
from hessrmt.levels import analyze
from hessrmt.problems import data, models
from hessrmt.runs.levels import ALL, open_spectra
from hessrmt.runs.spectrum import prepare, run
from hessrmt.store.spectra import load_all


@pytest.fixture
def settings(tmp_path, tiny_npz):
    net = tmp_path / "net.py"
    net.write_text(NET)
    return SpectrumConfig(
        model=f"{net}:net", data=str(tiny_npz), batch=20, batches=3, blocks="layer"
    )


def test_every_layer_is_a_group_of_the_file(cli, refused, tmp_path, settings):
    path = tmp_path / "b.h5"
    run(prepare(settings), path)
    samples, net = data.load(settings.data), models.build(settings.model, (6,), 3, 0)
    for number in range(3):
        pair = samples.tensors(slice(20 * number, 20 * number + 20))
        expected = hr.spectrum(hr.Problem(net, "cross-entropy", pair), blocks="layer")
        for layer, size in (("0", 35), ("2", 18)):
            found = hr.load(path, layer)
            assert found.planned == len(found) == 3
            assert found[number].dimension == size
            np.testing.assert_array_equal(found.eigenvalues[number], expected[layer].eigenvalues)
    refused(["levels", "b.h5"], ["blocks '0', '2'"])
    each = open_spectra(path, ALL)
    assert list(each) == ["0", "2"]
    np.testing.assert_array_equal(each["2"].eigenvalues, open_spectra(path, "2")["2"].eigenvalues)
    found = json.loads(cli("levels", path, "--block", "all", "--surrogates", "0", "--json").stdout)
    alone = analyze(each["0"], surrogates=0).to_dict()
    assert found["blocks"]["0"]["mean_ratio"] == alone["mean_ratio"]
    with pytest.raises(StoreError, match="blocks '0', '2'"):
        hr.load(path, "1")
    whole = hr.load(path)  # all of them
    assert list(whole) == ["0", "2"]
    np.testing.assert_array_equal(whole["2"].eigenvalues, hr.load(path, "2").eigenvalues)
    run(prepare(settings.model_copy(update={"blocks": None})), tmp_path / "whole.h5")
    with pytest.raises(StoreError, match="holds no blocks"):
        hr.load(tmp_path / "whole.h5", "0")


def test_a_program_writes_what_the_command_writes(cli, tmp_path, settings):
    samples, net = data.load(settings.data), models.build(settings.model, (6,), 3, 0)
    problem = hr.Problem(net, "cross-entropy", samples.tensors(slice(20), torch.float64))
    for blocks, name in (("layer", "both.h5"), ({"2": "2.*"}, "one.h5")):
        found = hr.spectrum(problem, blocks=blocks)
        assert isinstance(found, dict)
        assert [row["block"] for row in found.rows()] == list(found)
        assert [row["rank"] for row in found.rows()] == [part.rank for part in found.values()]
        found.save(tmp_path / name)
        with pytest.raises(StoreError, match="exists"):
            found.save(tmp_path / name)
        back = hr.load(tmp_path / name)
        assert list(back) == list(found)
        for block, part in found.items():
            np.testing.assert_array_equal(back[block].eigenvalues, part.eigenvalues[None])
            assert back[block][0].noise_floor == part.noise_floor
    # with one block none need be named, with several all are drawn
    assert open_spectra(tmp_path / "one.h5")["2"].planned == 1
    assert cli("plot", "both.h5", "--compare", "--out", "c.svg").returncode == 0
    assert "published cutoff" in (tmp_path / "c.svg").read_text(encoding="utf-8")
    for name, drawn in (("both", ["0, certified", "2, certified"]), ("one", ["block 2"])):
        assert cli("plot", f"{name}.h5", "--out", f"{name}.svg").returncode == 0
        shown = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
        assert all(words in shown for words in drawn)
    said = cli("spectrum", "--model", settings.model, "--data", settings.data, "--batches", 1,
               "--batch", 20,
               "--blocks", "layer", "--only", "2.*").stdout  # fmt: skip
    assert "2 (P = 18)\n" in said
    assert "in the parameters of that layer alone" in said


def test_a_row_is_complete_in_all_blocks_or_absent(tmp_path, settings):
    path = tmp_path / "b.h5"
    run(prepare(settings), path)
    whole = load_all(path)
    with h5py.File(path, "r+") as file:
        file["blocks/2/done"][1] = 0  # as if the process had died between the two
        file["blocks/2/hessian_evals"][1] = np.nan
    seen = []
    run(prepare(settings), path, resume=True, finished=lambda batch, item: seen.append(batch))
    again = load_all(path)
    assert seen == [0, 2, 1]
    for layer in ("0", "2"):
        np.testing.assert_array_equal(whole[layer].eigenvalues, again[layer].eigenvalues)


def test_progress_names_each_block_and_what_is_done_in_it():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    problem = hr.Problem(model, "mse", (torch.randn(5, 4), torch.randn(5, 2)))
    told = []
    hr.spectrum(problem, blocks="layer", tick=lambda *step: told.append(step))
    blocks = [step for step in told if step[0].startswith("block")]
    assert blocks == [("block 0", 0, 2), ("block 2", 1, 2), ("blocks", 2, 2)]
    assert told.count(("eigenvalues", 1, 1)) == 2
    told.clear()
    hr.spectrum(np.diag([1.0, 2.0]), tick=lambda *step: told.append(step))
    assert told == [("matrix", 0, 2), ("eigenvalues", 0, 1), ("eigenvalues", 1, 1)]
