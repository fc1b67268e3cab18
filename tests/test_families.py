"""Families of networks: settings, what is stored of them, training that is killed, files."""

import math
from functools import partial

import h5py
import numpy as np
import pytest
import torch
from experiment_samples import family_on, numbers_of, write_images
from scipy import stats

from hessrmt import rng
from hessrmt.config import TrainConfig
from hessrmt.errors import ConfigError, DataError, NonFiniteError, ProblemError, StoreError
from hessrmt.experiments import families
from hessrmt.experiments.families import FamilySamples, run_all
from hessrmt.generalization import evaluate, normalize, output_normalize
from hessrmt.generalization.normalization import QUANTILES, margins
from hessrmt.problems import checkpoints, data, losses, models
from hessrmt.store.family import load_family
from hessrmt.store.hdf5 import dataset
from hessrmt.training.protocol import crop_and_flip, drawn, initialize, permuted, train

SINGLE = 1e3 * float(np.finfo(np.float32).eps)


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images.npz")


@pytest.fixture
def family(images):
    return partial(family_on, images)


def run(settings, out, **options):
    (result,) = run_all([settings], out, **options)
    return result


# a family


BY_OUTPUT = {"model": "resnet8", "by": "output", "augment": True}


@pytest.mark.parametrize("changes", [{}, BY_OUTPUT], ids=["layers", "output"])
def test_stored_numbers_are_those_of_the_final_weights(family, tmp_path, changes):
    settings = family(measure_every=2, **changes)
    result = run(settings, tmp_path / "out")
    assert result.complete
    assert [member.value for member in result.members] == [0.1, 0.3]
    samples = FamilySamples(settings)
    loss, x = losses.resolve("cross-entropy"), samples.train.tensors(slice(None))[0]
    for index, member in enumerate(result.members):
        model = models.build(settings.model, (1, 8, 8), 3, 1).double()
        final = tmp_path / "out" / "checkpoints" / f"scales-{index}.final.pt"
        checkpoints.load_into(model, final)
        net = output_normalize(model, samples.fixed) if changes else normalize(model, x)
        assert member.factors == pytest.approx(tuple(net.factors.values()), rel=1e-13)
        assert member.product == pytest.approx(math.prod(member.factors), rel=1e-13)
        for split, part in (("train", samples.train), ("test", samples.test)):
            pairs = [part.tensors(slice(None))]
            # the normalised network itself, not f divided by a number
            normalized = evaluate(net.model, pairs, loss, 1.0)
            found = evaluate(model, pairs, loss, net.product)
            for name, value in (("normalized_", normalized.loss), ("", found.loss)):
                stored = getattr(member, f"{name}{split}_loss")
                assert stored == pytest.approx(value, abs=1e-12)
            assert getattr(member, f"{split}_error") == found.error
        summary = margins(model, *samples.train.tensors(slice(None)), product=net.product)
        assert member.margin == pytest.approx(summary.minimum, rel=1e-11)
        assert member.normalized_margin == pytest.approx(summary.normalized_minimum, rel=1e-11)
        expected = np.array(list(summary.quantiles(QUANTILES).values())) / net.product
        assert member.margin_quantiles == pytest.approx(expected, rel=1e-11)
        top = net.model(x).amax(dim=1).detach().numpy()
        assert member.top_output_mean == pytest.approx(top.mean(), rel=1e-12)
        assert member.raw_top_output_std == pytest.approx(top.std() * net.product, rel=1e-11)
        assert member.top_output_counts.sum() == len(samples.train)
        assert member.top_output_edges[0] == pytest.approx(top.min(), rel=1e-12)
        # after epoch 2 and the last; in single precision
        assert member.history["epoch"].tolist() == [2, 3]
        assert member.history["rate"].tolist() == [0.05, 0.01]
        for name in ("train_loss", "normalized_test_loss", "margin", "product"):
            last = pytest.approx(getattr(member, name), abs=SINGLE, rel=SINGLE)
            assert member.history[name][-1] == last
    assert not list((tmp_path / "out" / "checkpoints").glob("*[0-9].pt"))


def test_random_labels_are_drawn_for_both_splits(family):
    natural, random, again = (
        FamilySamples(family(seed=3, labels=labels)) for labels in ("natural", "random", "random")
    )
    assert np.array_equal(natural.train.x, random.train.x)
    assert not np.array_equal(natural.train.y, random.train.y)
    assert not np.array_equal(natural.test.y, random.test.y)
    # the permutation of the samples is one of the data set
    whole = data.load(family().data, "train")
    assert sorted(map(bytes, natural.train.x)) == sorted(map(bytes, whole.x))
    assert torch.equal(natural.fixed, whole.tensors(slice(1))[0])
    assert np.array_equal(again.train.y, random.train.y)


@pytest.mark.parametrize(
    ("changes", "samples", "parameters"),
    [
        ({"vary": "samples", "values": (8, 20), "batch": 4, "labels": "random"}, [8, 20], [62, 62]),
        (
            {"vary": "width", "values": (1, 3), "model": "conv3s2-{width}"},
            [64, 64],
            [25 + 25 + 12, 3 * 25 + 9 * 25 + 3 * 12],
        ),
        ({"values": (0.1, 0.1)}, [64, 64], [62, 62]),
    ],
)
def test_what_is_varied(family, tmp_path, changes, samples, parameters):
    few = {"model": "conv3s2-1", "epochs": 1, "rates": (0.01,)}
    one, two = run(family(**few | changes), tmp_path / "out").members
    assert [member.top_output_counts.sum() for member in (one, two)] == samples
    assert [member.parameters for member in (one, two)] == parameters
    assert one.product != two.product  # equal values have random numbers of their own


def test_the_epoch_closest_to_the_reference_loss_is_kept(family, tmp_path):
    last = run(family(epochs=6), tmp_path / "last").members[0].history["train_loss"]
    reference = float(last[2] + 0.1 * (last[1] - last[2]))  # closest to epoch 3
    kept = int(np.argmin(np.abs(last - reference)))
    result = run(family(epochs=6, reference_loss=reference), tmp_path / "kept")
    member = result.members[0]
    assert np.array_equal(member.history["train_loss"], last)
    assert member.epoch == kept + 1
    assert member.train_loss == pytest.approx(last[kept], abs=SINGLE)


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

    monkeypatch.setattr(families, "train", watched)
    settings = family(vary="corruption", values=(0.0, 1.0), pretraining=2, initial_scale=0.2)
    result = run(settings, tmp_path / "out")
    true = FamilySamples(settings).train.y
    assert [epochs for _, epochs, _ in seen] == [2, 3, 2, 3]
    for index, (labels, _, _) in enumerate(seen):
        assert np.array_equal(labels, true) == (index != 2)
        assert np.array_equal(np.bincount(labels), np.bincount(true))
    for _, _, start in seen[1::2]:
        assert start.epoch == 0
        assert start.optimizer["state"] == {}  # no momentum is carried over
    assert all(member.history["epoch"].tolist() == [1, 2, 3] for member in result.members)


# killed, continued, refused


@pytest.mark.parametrize(
    ("changes", "number", "epochs", "phase"),
    [
        ({"reference_loss": 0.9, "augment": True}, 2, 8 + 5, 1),
        ({"vary": "corruption", "values": (0.5, 1.0), "pretraining": 4}, 1, 3, 0),
    ],
)
def test_stopped_and_continued_is_bit_for_bit_the_same(
    family, tmp_path, monkeypatch, changes, number, epochs, phase
):
    monkeypatch.setattr(families, "SAVE_SECONDS", 0)
    settings = family(epochs=8, measure_every=3, **changes)
    stopped, path = tmp_path / "stopped", tmp_path / "stopped" / "families" / "scales.h5"

    def stop(_words, done, _total):
        if done == epochs:
            with pytest.raises(StoreError, match="another process is writing"):
                run(settings, stopped)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, stopped, tick=stop)
    assert len(load_family(path).members) == number - 1
    (left,) = (stopped / "checkpoints").glob("scales-?.pt")  # the network that was in training
    content = checkpoints.read(left)
    assert content["extra"]["phase"] == phase
    steps = []
    assert run(settings, stopped, tick=lambda *step: steps.append(step)).complete
    assert steps[1][1] == content["epoch"] + 1 + phase * settings.pretraining > 1
    run(settings, tmp_path / "whole")
    assert numbers_of(path) == numbers_of(tmp_path / "whole" / "families" / "scales.h5")
    before = path.read_bytes()
    run(settings, stopped)
    assert path.read_bytes() == before  # nothing was left to do


def test_other_checkpoints_and_data_are_refused(family, tmp_path, images, monkeypatch):
    def stop(_phase, done, _total):
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(families, "SAVE_SECONDS", 0)
    out, path = tmp_path / "out", tmp_path / "out" / "checkpoints" / "scales-0.pt"
    with pytest.raises(KeyboardInterrupt):
        run(family(), out, tick=stop)
    (out / "families" / "scales.h5").unlink()
    with pytest.raises(StoreError, match=r"another configuration: family batch \(16 in the file"):
        run(family(batch=8), out)
    (out / "families" / "scales.h5").unlink()
    torch.save({"state_dict": {}}, path)
    with pytest.raises(StoreError, match=r"network 1 of scales .* is not a checkpoint written by"):
        run(family(), out)
    path.unlink()
    run(family(), out)
    with np.load(images) as arrays:
        changed = dict(arrays)
    changed["y_train"][0] = (changed["y_train"][0] + 1) % 3
    np.savez(images, **changed)
    with pytest.raises(StoreError, match="data_sha256"):
        run(family(), out)


def test_diverging_training_names_the_network(family, tmp_path):
    settings = family(values=(0.1, 1e30), epochs=1, rates=(0.1,))
    with pytest.raises(NonFiniteError, match=r"network 2 of scales \(initial-scale 1e\+30\)"):
        run(settings, tmp_path / "out")
    path = tmp_path / "out" / "families" / "scales.h5"
    assert [member.value for member in load_family(path).members] == [0.1]


def test_damaged_files(family, tmp_path):
    settings = family(values=(0.1,), epochs=1, rates=(0.1,))
    run(settings, tmp_path / "out")
    path = tmp_path / "out" / "families" / "scales.h5"
    with h5py.File(path, "r+") as file:
        dataset(file, "test_loss")[0] = np.nan
    with pytest.raises(StoreError, match="is damaged: row 0 is not complete"):
        load_family(path)
    with h5py.File(path, "r+") as file:
        del file["margin"]
    with pytest.raises(StoreError, match="is damaged"):
        run(settings, tmp_path / "out")
    with h5py.File(path, "r+") as file:
        file.attrs["schema"] = "hessrmt/spectra"
    with pytest.raises(StoreError, match="expected 'hessrmt/family'"):
        load_family(path)


# labels, initial weights, images


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_a_share_of_the_labels_is_permuted(share):
    labels = np.arange(10_000)
    found = permuted(labels, share, rng.stream(1, "corruption"))
    assert np.array_equal(labels, np.arange(10_000))
    assert np.array_equal(np.sort(found), labels)
    # a random permutation has one fixed point on average, Poisson
    chosen = round(share * len(labels))
    assert chosen - stats.poisson.isf(1e-6, 1) <= (found != labels).sum() <= chosen


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, True])
def test_no_share(share):
    with pytest.raises(DataError, match="share of permuted labels"):
        permuted(np.arange(5), share, rng.stream(0, "x"))


def test_drawn_labels_are_uniform():
    found = drawn(20_000, 10, rng.stream(0, "drawn"))
    assert found.dtype == np.int64
    assert stats.chisquare(np.bincount(found, minlength=10)).pvalue > 1e-4


@pytest.mark.parametrize("scale", [1e-4, 0.3])
def test_initial_weights(scale):
    model = models.build("conv5", (3, 16, 16), 10, 0)
    initialize(model, scale, rng.torch_generator(0, "initial-scale"))
    for name, value in model.named_parameters():
        layer = model.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, torch.nn.BatchNorm2d):
            assert torch.equal(value, torch.full_like(value, float(name.endswith("weight"))))
        elif name.endswith("bias"):
            assert not value.any()
        else:
            z = value.detach().double().flatten().numpy() / scale
            assert abs(z.std() - 1) < 5 / math.sqrt(2 * len(z))
            assert abs(z.mean()) < 5 / math.sqrt(len(z))


def test_initial_weights_need_a_layer():
    with pytest.raises(ProblemError, match="no linear or convolution layer"):
        initialize(torch.nn.ReLU(), 0.1, rng.torch_generator(0))
    with pytest.raises(ProblemError, match="positive"):
        initialize(torch.nn.Linear(2, 2), 0.0, rng.torch_generator(0))


def test_crops_are_parts_of_the_padded_image():
    count, size, padding = 600, 5, 2
    one = torch.arange(2 * size * size, dtype=torch.float32).reshape(1, 2, size, size)
    images = one.expand(count, -1, -1, -1)
    with rng.torch_seeded(0, "augment"):
        found = crop_and_flip(images, padding=padding, fill=-1.0)
    padded = torch.full((2, size + 2 * padding, size + 2 * padding), -1.0)
    padded[:, padding:-padding, padding:-padding] = one[0]
    windows = padded.unfold(1, size, 1).unfold(2, size, 1).permute(1, 2, 0, 3, 4)
    possible = torch.cat([windows.flatten(0, 1), windows.flatten(0, 1).flip(3)])
    kinds = [int((possible == image).all(dim=(1, 2, 3)).nonzero()[0]) for image in found]
    seen = np.bincount(kinds, minlength=2 * (2 * padding + 1) ** 2)
    assert stats.chisquare(seen).pvalue > 1e-4
    with pytest.raises(DataError, match="images"):
        crop_and_flip(torch.zeros(3, 7))


# the protocol, generalised


def test_rates_stop_and_augmentation_of_the_protocol(images):
    samples = data.load(str(images), "train")
    model = models.build("conv3s2-2", samples.input_shape, 3, 0)
    seen, sizes = [], []

    def augment(inputs):
        sizes.append(len(inputs))
        return inputs

    state = train(
        model,
        losses.resolve("cross-entropy"),
        samples,
        TrainConfig(epochs=9, batch=40),
        device=torch.device("cpu"),
        rate=lambda epoch: 0.1 / (1 + epoch),
        augment=augment,
        stop=lambda state: state.epoch == 3,
        on_epoch=lambda state: seen.append(state.epoch),
    )
    assert seen == [1, 2, 3]
    assert state.epoch == 3
    assert [entry["lr"] for entry in state.history] == [0.1, 0.1 / 2, 0.1 / 3]
    assert sizes == [40, 24] * 3


def test_learning_rates_of_equal_pieces(family):
    for rates, expected in (((4, 2), [4, 4, 4, 2, 2]), ((5, 4, 3, 2, 1), [5, 4, 3, 2, 1])):
        settings = family(epochs=5, rates=rates)
        assert [settings.rate(epoch) for epoch in range(5)] == expected


# bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"values": ()}, "at least 1 item"),
        ({"values": (0.1, -0.1)}, "standard deviations"),
        ({"values": (math.inf,)}, "standard deviations"),
        ({"vary": "corruption", "values": (1.5,), "pretraining": 1}, "shares of the labels"),
        ({"vary": "corruption", "values": (math.nan,), "pretraining": 1}, "shares of the labels"),
        ({"vary": "corruption", "values": (0.5,)}, "pretraining is 0"),
        ({"pretraining": 3}, "pretraining is 3"),
        ({"vary": "samples", "values": (10.5,)}, "whole numbers"),
        ({"vary": "samples", "values": (0,)}, "whole numbers"),
        ({"vary": "samples", "values": (10,), "samples": 20}, "leave samples out"),
        ({"vary": "width", "values": (4,)}, "{width}"),
        ({"vary": "width", "values": (4.5,), "model": "conv3-{width}"}, "whole numbers"),
        ({"model": "conv3-{width}"}, "{width}"),
        ({"initial_scale": 0.1}, "leave initial_scale out"),
        ({"samples": 0}, "positive integer, or 'all'"),
        ({"rates": ()}, "at least 1 item"),
        ({"rates": (0.1, -0.1)}, "greater than 0"),
        ({"rates": (0.1,) * 4}, "4 learning rates for 3 epochs"),
        ({"name": "../x"}, "pattern"),
        ({"norm": 0.5}, "greater than or equal to 1"),
        ({"stop_loss": 0.0}, "greater than 0"),
        ({"momentum": 1.0}, "less than 1"),
        ({"measure_every": 0}, "greater than or equal to 1"),
        ({"flips": True}, "not permitted"),
    ],
)
def test_families_that_make_no_sense(family, changes, words):
    with pytest.raises(ValueError, match=words.replace("{", r"\{")):
        family(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples": 65}, "65 training samples, but there are 64"),
        ({"vary": "samples", "values": (10, 100)}, "100 training samples"),
        ({"data": "cifar10"}, "cifar10"),
        ({"data": "regression.npz"}, "no classes"),
        ({"data": "whole.npz"}, "no splits"),
    ],
)
def test_data_that_cannot_be_used(family, tmp_path, monkeypatch, changes, said):
    monkeypatch.chdir(tmp_path)
    x = np.zeros((5, 8, 8), dtype=np.uint8)
    np.savez("regression.npz", x_train=x, y_train=np.zeros(5), x_test=x, y_test=np.zeros(5))
    np.savez("whole.npz", x=x, y=np.zeros(5, dtype=np.int64))
    with pytest.raises((ConfigError, DataError), match=said):
        run(family(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_from_before_the_bounds_are_read(family, tmp_path):
    result = run(family(epochs=1, rates=(0.01,)), tmp_path / "out")
    (one, _) = result.members
    # no bound on an error is below the training error, and these networks are small
    assert one.error_bound > one.train_error
    assert 0 < one.rademacher < math.inf
    path = tmp_path / "out" / "families" / "scales.h5"
    with h5py.File(path, "r+") as file:
        for name in ("rademacher", "error_bound", "error_bound_margin"):
            del file[name]
    (old, _) = load_family(path).members
    assert math.isnan(old.rademacher)
    assert math.isnan(old.error_bound)
    assert old.product == one.product
