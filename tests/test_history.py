"""``hessrmt train --history``: Hessian and capacity of the same weights, epoch by epoch."""

import json
import os

import h5py
import numpy as np
import pytest
import torch
from experiment_samples import numbers_of
from store_samples import create, resume, spectrum

import hessrmt as hr
from hessrmt.config import HistoryConfig, TrainConfig, load_settings
from hessrmt.errors import ConfigError, DataError, NonFiniteError, StoreError
from hessrmt.levels.histograms import mean_ratios
from hessrmt.plots.training import history as draw
from hessrmt.plots.training import side_by_side
from hessrmt.problems import checkpoints, data, losses, models
from hessrmt.runs.history import Recording
from hessrmt.runs.training import TrainingFile, run
from hessrmt.store.history import holds_history
from hessrmt.store.spectra import COLUMNS, Column, Extra
from hessrmt.training.protocol import evaluate

COLUMNS_OF_A_ROW = len(COLUMNS) + 2
"""Writes of a row before its flag: eigenvalues, the columns, one extra column."""

NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x):
        return self.layers(x)


def zero_first():
    net = Net()
    nn.init.zeros_(net.layers[0].weight)
    return net


def narrow():
    return nn.Linear(6, 1)
"""


@pytest.fixture
def net(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path / 'net.py'}:Net"


@pytest.fixture
def settings(digits, net):
    return TrainConfig(model=net, data=str(digits), epochs=6, batch=16, device="cpu", lr=0.05)


def recorded(settings, folder, name="whole", epochs=(0, 1, 3, 6), batch=12, **options):
    history = HistoryConfig(epochs=epochs, batch=batch)
    options = {"history": Recording(folder / f"{name}.h5", history)} | options
    result = run(settings, folder / f"{name}.pt", **options)
    return hr.load_history(result.history)


# What is recorded


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_are_the_spectrum_and_the_capacity_of_the_checkpoints(
    settings, digits, net, tmp_path, dtype
):
    """Every number equals that of the public functions on the weights of that epoch alone."""
    settings = settings.model_copy(update={"dtype": dtype})
    found = recorded(settings, tmp_path)
    assert found.epochs.tolist() == [0, 1, 3, 6]
    assert found.layers == ("layers.0.weight", "layers.2.weight")
    assert found.spectra.planned == len(found) == 4
    test = data.load(str(digits), "test")
    train_set = data.load(str(digits), "train")
    initial = models.build(net, (6,), 2, 0).to(dtype=getattr(torch, dtype))
    for row, epoch in enumerate(found.epochs):
        model = models.build(net, (6,), 2, 0).to(dtype=getattr(torch, dtype))
        if epoch:
            alone = settings.model_copy(update={"epochs": int(epoch)})
            run(alone, tmp_path / f"{epoch}.pt")
            checkpoints.load_into(model, tmp_path / f"{epoch}.pt")
        pair = test.tensors(np.arange(12), torch.float64)
        direct = hr.spectrum(hr.Problem(model, "cross-entropy", pair), device="cpu")
        item = found.spectra[row]
        assert np.array_equal(item.eigenvalues, direct.eigenvalues)
        assert (item.loss, item.noise_floor) == (direct.loss, direct.noise_floor)
        report = hr.capacity.analyze(model, initial=initial, device="cpu")
        layers = {layer.name: layer for layer in report.layers}
        for key, values in found.capacity.items():
            wanted = np.array([getattr(layers[name], key) for name in found.layers], dtype=float)
            assert np.array_equal(values[row], wanted, equal_nan=True), key
        for key, values in found.network.items():
            assert np.array_equal(values[row], getattr(report, key), equal_nan=True), key
        for split, samples in (("train", train_set), ("test", test)):
            entropy, cpu = losses.resolve("cross-entropy"), torch.device("cpu")
            loss, accuracy = evaluate(model, entropy, samples, device=cpu, dtype=dtype)
            assert found.training[f"{split}_loss"][row] == loss
            assert found.training[f"{split}_accuracy"][row] == accuracy
    assert found.capacity["distance_frobenius"][0].tolist() == [0, 0]
    assert (found.capacity["distance_frobenius"][1:] > 0).all()
    assert found.row(3) == 2
    with pytest.raises(StoreError, match="epoch 2 was not recorded; recorded are 0, 1, 3, 6"):
        found.row(2)


def test_layer_of_zeros_has_no_numbers_until_it_has_weights(settings, net, tmp_path):
    settings = settings.model_copy(update={"model": net.replace("Net", "zero_first")})
    found = recorded(settings, tmp_path, epochs=(0, 6))
    assert found.layers == ("layers.0.weight", "layers.2.weight")
    norms = found.capacity["log_frobenius"]
    assert np.isnan(norms[0]).tolist() == [True, False]
    assert np.isfinite(norms[1]).all()
    assert np.isnan(found.capacity["rank"][0, 0])  # no zero that looks measured
    assert found.network["mean_log_norm"][0] == norms[0, 1]


def test_hessian_of_a_block(settings, digits, tmp_path):
    history = HistoryConfig(epochs=(6,), batch=12, only="layers.2.*")
    result = run(settings, tmp_path / "c.pt", history=Recording(tmp_path / "h.h5", history))
    found = hr.load_history(result.history)
    model = models.build(settings.model, (6,), 2, 0)
    checkpoints.load_into(model, tmp_path / "c.pt")
    pair = data.load(str(digits), "test").tensors(np.arange(12), torch.float64)
    problem = hr.Problem(model, "cross-entropy", pair, only="layers.2.*")
    assert found.spectra[0].dimension == problem.dimension == 8 * 2 + 2
    assert np.array_equal(found.spectra.eigenvalues[0], hr.spectrum(problem, "cpu").eigenvalues)
    assert len(found.layers) == 2  # the metrics are still those of all weights


def test_data_without_a_test_split(settings, tiny_npz, tmp_path):
    settings = settings.model_copy(update={"data": str(tiny_npz), "model": "logistic"})
    found = recorded(settings, tmp_path, epochs=(0, 6))
    assert np.isnan(found.training["test_loss"]).all()
    assert (found.training["train_loss"] > 0).all()
    assert found.spectra.provenance.config["split"] == "all"


# Which epochs


@pytest.mark.parametrize(
    ("asked", "last", "epochs"),
    [
        ("auto", 60, (0, 1, 2, 5, 10, 20, 50, 60)),
        ("auto", 100, (0, 1, 2, 5, 10, 20, 50, 100)),
        ("4", 10, (0, 4, 8, 10)),
        (7, 3, (0, 3)),
        ("0, 3", 5, (0, 3, 5)),
        ("3,", 5, (3, 5)),
    ],
)
def test_schedule(asked, last, epochs):
    assert load_settings(HistoryConfig, epochs=asked).schedule(last) == epochs


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("1,1", "ascend"),
        ("-1,2", "numbers such as"),
        ("all", "numbers such as"),
        ("", "numbers such as"),
        ((0, True), "numbers such as"),
        (True, "numbers such as"),
        (0, "N of at least 1"),
        (-3, "N of at least 1"),
    ],
)
def test_epochs_that_cannot_be(asked, message):
    with pytest.raises(ConfigError, match=message):
        load_settings(HistoryConfig, epochs=asked)


# Interrupted and continued


def stopping(where, epoch):
    """A callback of progress that dies in a certain phase of the work on an epoch."""

    def told(phase, done, _total):
        trained = where == "trained" and phase.startswith("training: loss") and done == epoch
        if trained or phase == f"measuring: epoch {epoch}, {where}":
            raise KeyboardInterrupt

    return told


@pytest.mark.parametrize(
    ("where", "epoch", "rows"),
    [
        ("eigenvalues", 1, [0]),  # trained for an epoch, and no checkpoint yet
        ("eigenvalues", 3, [0, 1]),  # in the middle of a measurement
        ("saving", 3, [0, 1, 3]),  # the row is there, its checkpoint is not
        ("trained", 3, [0, 1, 3]),
    ],
)
def test_stopped_and_resumed_is_the_same_file(settings, tmp_path, monkeypatch, where, epoch, rows):
    recorded(settings, tmp_path)
    save = TrainingFile.save

    def saving(file, state, *given):
        if where == "saving" and state.epoch == epoch:
            raise KeyboardInterrupt
        save(file, state, *given)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingFile, "save", saving)
        with pytest.raises(KeyboardInterrupt):
            recorded(settings, tmp_path, "part", tick=stopping(where, epoch))
    assert hr.load_history(tmp_path / "part.h5").epochs.tolist() == rows
    recorded(settings, tmp_path, "part", resume=True)
    for ending in ("h5", "pt"):
        one, other = (numbers_of(tmp_path / f"{name}.{ending}") for name in ("whole", "part"))
        assert one == other
    before = (tmp_path / "part.h5").read_bytes()
    recorded(settings, tmp_path, "part", resume=True)
    assert (tmp_path / "part.h5").read_bytes() == before


def test_other_history_settings_and_networks_are_refused(settings, tmp_path):
    recorded(settings, tmp_path)
    before = (tmp_path / "whole.h5").read_bytes()
    for changes, message in (
        ({"batch": 13}, "history_batch"),
        ({"epochs": (0, 1, 6)}, "history_epochs"),
    ):
        with pytest.raises(StoreError, match=message):
            recorded(settings, tmp_path, resume=True, **changes)
    assert (tmp_path / "whole.h5").read_bytes() == before
    # the factory's file was changed: same name, other initial weights
    (tmp_path / "whole.pt").unlink()
    (tmp_path / "net.py").write_text(NET.replace("self.layers =", "nn.Linear(2, 2); self.layers ="))
    with pytest.raises(StoreError, match="parameters_sha256"):
        recorded(settings, tmp_path, resume=True)


def test_epochs_that_have_passed_unrecorded(settings, tmp_path):
    """... are named, and nothing is lost; later ones can go to a file of their own."""
    half = settings.model_copy(update={"epochs": 3})
    run(half, tmp_path / "late.pt")
    checkpoint = (tmp_path / "late.pt").read_bytes()
    with pytest.raises(ConfigError, match=r"completed 3 .* lacks epochs 0, 1: .*--overwrite"):
        recorded(settings, tmp_path, "late", resume=True)
    assert not (tmp_path / "late.h5").exists()
    assert (tmp_path / "late.pt").read_bytes() == checkpoint
    late = recorded(settings, tmp_path, "late", epochs=(3,), resume=True)
    whole = recorded(settings, tmp_path)
    assert late.epochs.tolist() == [3, 6]
    assert np.array_equal(late.spectra.eigenvalues, whole.spectra.eigenvalues[2:])
    assert np.array_equal(late.capacity["alpha"], whole.capacity["alpha"][2:], equal_nan=True)


def test_existing_files_are_never_lost_by_accident(settings, tmp_path):
    recorded(settings, tmp_path)
    kept = [(tmp_path / name).read_bytes() for name in ("whole.h5", "whole.pt")]
    with pytest.raises(StoreError, match=r"whole\.pt exists"):
        recorded(settings, tmp_path)
    history = Recording(tmp_path / "whole.h5", HistoryConfig(epochs=(0, 1, 3, 6), batch=12))
    with pytest.raises(StoreError, match=r"whole\.h5 exists"):
        run(settings, tmp_path / "other.pt", history=history)
    with pytest.raises(ConfigError, match="larger than the test split"):
        recorded(settings, tmp_path, batch=31, overwrite=True)
    same = Recording(tmp_path / "." / "whole.pt", history.settings)
    with pytest.raises(ConfigError, match="two names"):
        run(settings, tmp_path / "whole.pt", history=same, overwrite=True)
    assert kept == [(tmp_path / name).read_bytes() for name in ("whole.h5", "whole.pt")]
    assert not (tmp_path / "other.pt").exists()
    recorded(settings, tmp_path, overwrite=True)


def test_what_cannot_be_measured_is_found_before_training(settings, net, tmp_path):
    narrow = settings.model_copy(update={"model": net.replace("Net", "narrow"), "loss": "mse"})
    with pytest.raises(DataError, match=r"no weight matrix to analyse.*weight"):
        recorded(narrow, tmp_path)
    with pytest.raises(ConfigError, match=r"epoch 7 cannot be recorded.* after 6"):
        recorded(settings, tmp_path, epochs=(0, 7))
    assert not list(tmp_path.glob("whole*"))


def test_failed_measurement_names_its_epoch(settings, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise NonFiniteError("the Hessian has NaN")

    monkeypatch.setattr("hessrmt.runs.history.compute", fail)
    with pytest.raises(NonFiniteError, match="history of epoch 0: the Hessian has NaN"):
        recorded(settings, tmp_path)


# The file is a spectrum file


EXTRA = Extra({"run": np.arange(3), "g/name": ("a", "b")}, {"g/x": Column("x", along="g/name")})


def test_extra_columns_are_complete_or_absent_with_their_row(path, monkeypatch):
    """The process dies before each of a row's writes in turn: there is no row until the last."""
    real = os.pwrite
    with create(path, extra=EXTRA) as writer:
        for written in range(COLUMNS_OF_A_ROW + 1):
            left = written

            def dying(*args):
                nonlocal left
                if not left:
                    raise KeyboardInterrupt
                left -= 1
                return real(*args)

            with monkeypatch.context() as patch:
                patch.setattr(os, "pwrite", dying)
                with pytest.raises(KeyboardInterrupt):
                    writer.write(1, spectrum(1), {"g/x": [3.0, 4.0]})
            assert not len(hr.load(path))
    with resume(path) as writer:
        writer.write(1, spectrum(1), {"g/x": [1.0, 2.0]})
    with h5py.File(path) as file:
        assert np.array_equal(file["g/x"], [[np.nan] * 2, [1, 2], [np.nan] * 2], equal_nan=True)
        assert [file["g/x"].dims[axis][0].name for axis in (0, 1)] == ["/batch", "/g/name"]
        assert file["run"].dims[0][0].name == "/batch"
        assert file["g/name"].asstr()[()].tolist() == ["a", "b"]
    assert np.array_equal(hr.load(path).eigenvalues, [spectrum(1).eigenvalues])


@pytest.mark.parametrize("extra", [None, {}, {"g/y": [1.0, 2.0]}, {"g/x": [1.0]}])
def test_extra_columns_that_do_not_fit(path, extra):
    with create(path, extra=EXTRA) as writer:
        with pytest.raises(StoreError, match=r"extra columns: g/x|1 values does not fit g/x"):
            writer.write(0, spectrum(0), extra)
        assert not writer.done.any()
    assert not len(hr.load(path))


def test_other_commands_read_it(settings, tmp_path, cli):
    found = recorded(settings, tmp_path)
    plain = hr.load(tmp_path / "whole.h5")
    assert np.array_equal(plain.eigenvalues, found.spectra.eigenvalues)
    assert plain.batch_indices.tolist() == [list(range(12))] * 4
    levels = cli("levels", "whole.h5", "--json", "--surrogates", 0)
    assert levels.returncode == 0
    assert json.loads(levels.stdout)["n_spectra"] == 4
    assert cli("info", "whole.h5").returncode == cli("plot", "whole.h5").returncode == 0
    assert (tmp_path / "whole.png").stat().st_size > 10_000


def test_picture_shows_every_epoch(settings, tmp_path):
    found = recorded(settings, tmp_path)
    panels = draw(found, mean_ratios(found.spectra), "a title").axes
    assert len(panels) == 6
    largest = panels[3].get_lines()[0]
    assert np.array_equal(largest.get_xdata(), found.epochs)
    assert np.array_equal(largest.get_ydata(), found.spectra.eigenvalues[:, -1])
    with pytest.raises(KeyboardInterrupt):
        recorded(settings, tmp_path, "none", tick=stopping("eigenvalues", 0))
    with pytest.raises(StoreError, match="no finished epoch"):
        draw(hr.load_history(tmp_path / "none.h5"), np.empty((0, 2)))


def test_networks_side_by_side(settings, tmp_path):
    found = recorded(settings, tmp_path)
    panels = np.reshape(side_by_side({"one": found, "other": found}).axes, (4, 2))
    ends = panels[2, 1].get_lines()[0]
    assert np.array_equal(ends.get_ydata(), found.spectra.eigenvalues[:, -1])
    assert [axes.get_xlabel().split(", ")[1] for axes in panels[-1]] == ["one", "other"]
    with pytest.raises(StoreError, match="no finished epoch of any network"):
        side_by_side({})


def test_spectra_of_batches_are_no_history(full):
    assert not holds_history(full)
    with pytest.raises(StoreError, match="spectra of batches, not of epochs"):
        hr.load_history(full)


def test_history_that_lacks_a_column_is_damaged(settings, tmp_path):
    recorded(settings, tmp_path)
    with h5py.File(tmp_path / "whole.h5", "a") as file:
        del file["capacity/alpha"]
    for read in (hr.load, hr.load_history):  # what is checked is a whole row
        with pytest.raises(StoreError, match="damaged"):
            read(tmp_path / "whole.h5")


# The command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--history-epochs", "1,2"], "say where with --history"),
        (["--history", "h.h5", "--history-epochs", "2,1"], "--history-epochs: should ascend"),
        (["--history", "h.h5", "--history-batch", 0], "--history-batch"),
        (["--history", "h.h5", "--history-conv", "sliced"], "--history-conv"),
    ],
)
def test_bad_options(refused, digits, options, message):
    refused(["train", "--model", "logistic", "--data", digits, "--epochs", 2, *options], [message])
