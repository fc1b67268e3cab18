"""Families of networks: what is stored of them, training that is killed, files."""

import dataclasses
import math
import subprocess
import sys
from functools import partial

import h5py
import numpy as np
import pytest
import torch
from family_samples import family_on, write_images
from hessrmt.workflows import members

from hessrmt.errors import NonFiniteError, StoreError
from hessrmt.experiments.families import samples_of
from hessrmt.generalization import evaluate, normalize, output_normalize
from hessrmt.generalization.normalization import QUANTILES, margins
from hessrmt.problems import checkpoints, data, losses, models
from hessrmt.records import Provenance
from hessrmt.store.family import HISTORY, FamilyWriter, load_family
from hessrmt.store.files import dataset as array
from hessrmt.training.protocol import train


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images.npz")


@pytest.fixture
def family(images):
    return partial(family_on, images)


def same(one, other):
    """Two families agree bit for bit, in all but the time they took."""
    assert one.family == other.family
    assert len(one.members) == len(other.members)
    for a, b in zip(one.members, other.members, strict=True):
        for item in dataclasses.fields(a):
            if item.name in {"seconds", "history"}:
                continue
            assert np.array_equal(getattr(a, item.name), getattr(b, item.name)), item.name
        for name in HISTORY:
            assert np.array_equal(a.history[name], b.history[name]), name


# a family


def test_stored_numbers_are_those_of_the_final_weights(family, tmp_path):
    settings = family(stop_loss=None, measure_every=2)
    result = run(settings, tmp_path / "out")
    assert result.complete
    assert [member.value for member in result.members] == [0.1, 0.3]
    samples = samples_of(settings, 0)
    loss = losses.resolve("cross-entropy")
    for index, member in enumerate(result.members):
        model = models.build("conv3s2-2", (1, 8, 8), 3, 1).double()
        final = tmp_path / "out" / "checkpoints" / f"scales-{index}.final.pt"
        checkpoints.load_into(model, final)
        net = normalize(model, samples.train.tensors(slice(None))[0])
        assert member.factors == pytest.approx(tuple(net.factors.values()), rel=1e-13)
        assert member.product == pytest.approx(math.prod(member.factors), rel=1e-13)
        for split, part in (("train", samples.train), ("test", samples.test)):
            # the normalised network itself, not f divided by a number
            found = evaluate(net.model, [part.tensors(slice(None))], loss, 1.0)
            assert getattr(member, f"normalized_{split}_loss") == pytest.approx(
                found.loss, abs=1e-12
            )
            found = evaluate(model, [part.tensors(slice(None))], loss, net.product)
            assert getattr(member, f"{split}_loss") == pytest.approx(found.loss, abs=1e-12)
            assert getattr(member, f"{split}_error") == found.error
        summary = margins(model, *samples.train.tensors(slice(None)), product=net.product)
        assert member.margin == pytest.approx(summary.minimum, rel=1e-11)
        assert member.normalized_margin == pytest.approx(summary.normalized_minimum, rel=1e-11)
        expected = np.array(list(summary.quantiles(QUANTILES).values())) / net.product
        assert member.margin_quantiles == pytest.approx(expected, rel=1e-11)
        top = net.model(samples.train.tensors(slice(None))[0]).amax(dim=1).detach().numpy()
        assert member.top_output_mean == pytest.approx(top.mean(), rel=1e-12)
        assert member.raw_top_output_std == pytest.approx(top.std() * net.product, rel=1e-11)
        assert member.top_output_counts.sum() == len(samples.train)
        assert member.top_output_edges[0] == pytest.approx(top.min(), rel=1e-12)
        # after epoch 2 and the last; in single precision
        assert member.history["epoch"].tolist() == [2, 3]
        assert member.history["rate"].tolist() == [0.05, 0.01]
        single = 1e3 * float(np.finfo(np.float32).eps)
        for name in ("train_loss", "normalized_test_loss", "margin", "product"):
            assert member.history[name][-1] == pytest.approx(
                getattr(member, name), abs=single, rel=single
            )
    assert not list((tmp_path / "out" / "checkpoints").glob("*[0-9].pt"))


def test_random_labels_are_drawn_for_both_splits(family):
    natural, random = samples_of(family(), 3), samples_of(family(labels="random"), 3)
    assert np.array_equal(natural.train.x, random.train.x)
    assert not np.array_equal(natural.train.y, random.train.y)
    assert not np.array_equal(natural.test.y, random.test.y)
    # the permutation of the samples is one of the data set
    whole = data.load(family().data, "train")
    assert sorted(map(bytes, natural.train.x)) == sorted(map(bytes, whole.x))
    assert torch.equal(natural.fixed, whole.tensors(slice(1))[0])
    again = samples_of(family(labels="random"), 3)
    assert np.array_equal(again.train.y, random.train.y)


def test_a_family_over_samples_takes_the_first(family, tmp_path):
    settings = family(vary="samples", values=(8, 20), batch=4, epochs=2, labels="random")
    result = run(settings, tmp_path / "out")
    assert [member.top_output_counts.sum() for member in result.members] == [8, 20]


def test_a_family_over_widths(family, tmp_path):
    settings = family(vary="width", values=(1, 3), model="conv3s2-{width}", epochs=2)
    result = run(settings, tmp_path / "out")
    assert [m.parameters for m in result.members] == [25 + 25 + 12, 3 * 25 + 9 * 25 + 3 * 12]


def test_the_epoch_closest_to_the_reference_loss_is_kept(family, tmp_path):
    last = run(family(epochs=6), tmp_path / "last").members[0].history["train_loss"]
    reference = float(last[2] + 0.1 * (last[1] - last[2]))  # closest to epoch 3
    kept = int(np.argmin(np.abs(last - reference)))
    result = run(family(epochs=6, reference_loss=reference), tmp_path / "kept")
    member = result.members[0]
    assert np.array_equal(member.history["train_loss"], last)
    assert member.epoch == kept + 1
    single = 1e3 * float(np.finfo(np.float32).eps)
    assert member.train_loss == pytest.approx(last[kept], abs=single)


def test_training_stops_at_the_loss_asked_for(family, tmp_path):
    settings = family(values=(0.1,), model="conv3s2-4", epochs=60, stop_loss=0.2, rates=(0.05,))
    member = run(settings, tmp_path / "out").members[0]
    assert member.epoch < 60
    losses_, errors = member.history["train_loss"], member.history["train_error"]
    good = (losses_ <= 0.2) & (errors == 0)
    assert good.tolist() == [False] * (len(good) - 1) + [True]
    assert member.train_error == 0


def test_corrupted_pretraining_then_the_true_labels(family, tmp_path, monkeypatch):
    seen = []

    def watched(model, loss, samples, settings, **others):
        seen.append((samples.y.copy(), settings.epochs, others["start"]))
        return train(model, loss, samples, settings, **others)

    monkeypatch.setattr(members, "train", watched)
    settings = family(vary="corruption", values=(0.0, 1.0), pretraining=2, initial_scale=0.2)
    result = run(settings, tmp_path / "out")
    true = samples_of(settings, 0).train.y
    assert [epochs for _, epochs, _ in seen] == [2, 3, 2, 3]
    for index, (labels, _, _) in enumerate(seen):
        assert np.array_equal(labels, true) == (index != 2)
        assert np.array_equal(np.bincount(labels), np.bincount(true))
    for _, _, start in seen[1::2]:
        assert start.epoch == 0
        assert start.optimizer["state"] == {}  # no momentum is carried over
    assert all(member.history["epoch"].tolist() == [1, 2, 3] for member in result.members)


def test_normalised_by_the_output_on_one_image(family, tmp_path):
    changes = {"values": (0.1,), "epochs": 1, "rates": (0.01,), "augment": True}
    settings = family(model="resnet8", by="output", **changes)
    member = run(settings, tmp_path / "out").members[0]
    samples = samples_of(settings, 0)
    model = models.build("resnet8", (1, 8, 8), 3, 1).double()
    checkpoints.load_into(model, tmp_path / "out" / "checkpoints" / "scales-0.final.pt")
    net = output_normalize(model, data.load(settings.data, "train").tensors(slice(1))[0])
    assert member.factors == pytest.approx([net.product], rel=1e-12)
    found = evaluate(
        net.model, [samples.test.tensors(slice(None))], losses.resolve("cross-entropy"), 1
    )
    assert member.normalized_test_loss == pytest.approx(found.loss, abs=1e-12)


def test_equal_values_have_random_numbers_of_their_own(family, tmp_path):
    result = run(family(values=(0.1, 0.1), epochs=1, rates=(0.01,)), tmp_path / "out")
    assert result.members[0].product != result.members[1].product


# killed, continued, refused

KILLED = """
import sys
import time
from pathlib import Path
from hessrmt.experiments.families import Family
from hessrmt.workflows import families, members

members.SAVE_SECONDS = 0


def observer(*step):
    print(*step, flush=True)
    if " ".join(map(str, step)).startswith(sys.argv[3]):
        time.sleep(600)  # until it is killed


family = Family.model_validate_json(sys.argv[1])
families.run(family, Path(sys.argv[2]), device="cpu", observer=observer)
"""


@pytest.mark.parametrize(
    ("changes", "until", "phase"),
    [
        ({"reference_loss": 0.9, "augment": True}, "2/2 (0.3), epochs 5", 1),
        ({"vary": "corruption", "values": (0.5, 1.0), "pretraining": 4}, "1/2 (0.5), epochs 3", 0),
    ],
)
@pytest.mark.slow
def test_killed_and_continued_is_bit_for_bit_the_same(family, tmp_path, changes, until, phase):
    settings = family(epochs=8, measure_every=3, **changes)
    killed, path = tmp_path / "killed", tmp_path / "killed" / "families" / "scales.h5"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, settings.model_dump_json(), str(killed), f"scales {until} "],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert any(until in line for line in process.stdout)
        with pytest.raises(StoreError, match="another process is writing"):
            run(settings, killed, device="cpu")
    finally:
        process.kill()
        process.communicate()
    partial = load_family(path)
    assert len(partial.members) == int(until[0]) - 1
    assert not partial.complete
    left = list((killed / "checkpoints").glob("scales-?.pt"))
    assert len(left) == 1  # the network that was in training
    content = checkpoints.read(left[0])
    assert content["phase"] == phase
    assert 1 <= content["state"]["epoch"] < 8
    with pytest.raises(StoreError, match="another configuration"):
        run(settings.model_copy(update={"batch": 8}), killed, device="cpu")
    steps = []
    result = run(settings, killed, device="cpu", observer=lambda *step: steps.append(step))
    assert steps[1][1] == content["state"]["epoch"] + 1 + phase * settings.pretraining
    assert result.complete
    same(result, run(settings, tmp_path / "whole", device="cpu"))
    before = path.read_bytes()
    same(run(settings, killed, device="cpu"), result)
    assert path.read_bytes() == before  # nothing was left to do


def test_a_checkpoint_of_other_settings_is_refused(family, tmp_path):
    settings = family(epochs=1, rates=(0.1,))
    run(settings, tmp_path / "out")
    folder = tmp_path / "out" / "checkpoints"
    final = checkpoints.read(folder / "scales-0.final.pt")
    checkpoints.save_atomic(final | {"identity": "other"}, folder / "scales-0.pt")
    (tmp_path / "out" / "families" / "scales.h5").unlink()
    with pytest.raises(StoreError, match="other settings"):
        run(settings, tmp_path / "out")
    checkpoints.save_atomic({"state_dict": final["state_dict"]}, folder / "scales-0.pt")
    with pytest.raises(StoreError, match="no network in training"):
        run(settings, tmp_path / "out")


def test_other_data_are_refused(family, tmp_path, images):
    settings = family(epochs=1, rates=(0.1,))
    run(settings, tmp_path / "out")
    with np.load(images) as arrays:
        changed = dict(arrays)
    changed["y_train"][0] = (changed["y_train"][0] + 1) % 3
    np.savez(images, **changed)
    with pytest.raises(StoreError, match="data_sha256"):
        run(settings, tmp_path / "out")


def test_diverging_training_names_the_network(family, tmp_path):
    settings = family(values=(0.1, 1e30), epochs=1, rates=(0.1,))
    with pytest.raises(NonFiniteError, match=r"network 2 of scales \(initial-scale 1e\+30\)"):
        run(settings, tmp_path / "out")
    path = tmp_path / "out" / "families" / "scales.h5"
    assert [member.value for member in load_family(path).members] == [0.1]


def test_files_that_are_no_family(family, tmp_path):
    path = tmp_path / "x.h5"
    with pytest.raises(StoreError, match="no file"):
        load_family(path)
    path.write_bytes(b"\x89HDF nonsense")
    with pytest.raises(StoreError, match="cannot be opened as HDF5"):
        load_family(path)
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = "hessrmt/spectra"
    with pytest.raises(StoreError, match="holds no family"):
        load_family(path)
    run(family(values=(0.1,), epochs=1, rates=(0.1,)), tmp_path / "out")
    good = tmp_path / "out" / "families" / "scales.h5"
    with h5py.File(good, "r+") as file:
        file.attrs["schema_version"] = 99
    with pytest.raises(StoreError, match="version 99"):
        load_family(good)
    with h5py.File(good, "r+") as file:
        file.attrs["schema_version"] = 1
        array(file, "test_loss")[0] = np.nan
    with pytest.raises(StoreError, match="is damaged: row 0 is not complete"):
        load_family(good)
    with h5py.File(good, "r+") as file:
        del file["margin"]
    with pytest.raises(StoreError, match="is damaged"):
        run(family(values=(0.1,), epochs=1, rates=(0.1,)), tmp_path / "out")


def test_a_row_out_of_range(family, tmp_path):
    settings = family(values=(0.1,), epochs=1, rates=(0.1,))
    member = run(settings, tmp_path / "out").members[0]
    about = Provenance({"data": "none"})
    with FamilyWriter(tmp_path / "y.h5", (1.0,), {"family": {}}, about) as writer:
        for row in (-1, 1):
            with pytest.raises(StoreError, match="1 rows"):
                writer.write(row, member)
        assert not load_family(writer.path).members
        writer.write(0, member)
        assert load_family(writer.path).complete
