"""Families of networks as training would give them, made up from simple laws."""

import numpy as np

from hessrmt import rng
from hessrmt.experiments.families import Family
from hessrmt.experiments.puzzles import FamilyEntry
from hessrmt.generalization.normalization import QUANTILES
from hessrmt.store.family import HISTORY, FamilyResult, Member

DEFAULTS = {
    "initial-scale": {"values": (0.0001, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)},
    "corruption": {"values": (0, 0.01, 0.1, 0.2, 0.4, 0.6, 0.8, 1), "pretraining": 30},
    "width": {"values": (4, 8, 16, 32, 64, 128), "model": "conv5-{width}"},
    "samples": {"values": (100, 300, 1000, 3000, 10000, 50000)},
}


def family(vary="initial-scale", **changes):
    name = changes.pop("name", vary)
    made = {"name": name, "vary": vary, "model": "conv3-34", "epochs": 40, "rates": (0.01,)}
    return Family(**{**made, **DEFAULTS[vary], **changes})


def entry(vary="initial-scale", separated=True, **changes):
    settings = family(vary, **changes)
    members = tuple(
        member(settings, i, value, separated) for i, value in enumerate(settings.values)
    )
    result = FamilyResult(settings.model_dump(), members, "made up", "cpu", True)
    return FamilyEntry(settings.name, settings, result)


def member(settings, index, value, separated=True):
    """Larger values give larger norms, losses nearer to ln 10 and more errors."""
    draw = rng.stream(7, "family", settings.name, index)
    noise = draw.normal(size=12)
    place = {
        "initial-scale": lambda: (np.log10(value) + 4) / 3.4,
        "corruption": lambda: value,
        "width": lambda: np.log2(value) / 8,
        "samples": lambda: 1 - np.log10(value) / 5,
    }[settings.vary]()
    random = settings.labels == "random"
    samples = int(value) if settings.vary == "samples" else 50000
    error = 0.9 if random else 0.02 + 0.3 * place**2 + 0.002 * abs(noise[0])
    product = 500 * 60 ** (1.2 if random else place) * np.exp(0.05 * noise[1])
    train = 2.3024 if random else 2.21 + 0.09 * place + 5e-4 * noise[2]
    test = 1.0075 * train - 0.0174 + 5e-4 * noise[3] * (2.31 - train) / 0.1
    epochs = np.arange(1.0, settings.epochs + 1)
    raw = 0.004 * np.exp(0.1 * noise[4])
    margin = np.log1p(epochs) - 1.5 if separated else -np.ones(len(epochs))
    history = {key: np.linspace(1, 0.1, len(epochs)) for key in HISTORY}
    growing = product * (0.5 + 0.5 * epochs / epochs[-1])
    history |= {"epoch": epochs, "margin": margin, "product": growing}
    mean = 0.3 * (2.3026 - train) + 1e-3
    edges = np.linspace(0, 3 * mean, 61)
    return Member(
        value=float(value),
        parameters=round(40 * value**2) if settings.vary == "width" else 165784,
        epoch=settings.epochs,
        train_loss=raw,
        test_loss=(5.0 if random else 0.1 + 2 * error) * np.exp(0.3 * noise[5]),
        normalized_train_loss=train,
        normalized_test_loss=test,
        train_error=0.0 if separated else 0.01,
        test_error=error,
        product=product,
        factors=(product ** (1 / 3),) * 3,
        margin=margin[-1],
        normalized_margin=margin[-1] / product,
        margin_quantiles=np.sort(mean * np.array(QUANTILES)),
        top_output_mean=mean,
        top_output_std=0.21 * mean,
        top_output_edges=edges,
        top_output_counts=np.full(60, samples / 60),
        raw_top_output_mean=mean * product,
        raw_top_output_std=0.21 * mean * product,
        rademacher=40 * product,
        error_bound=1600 * product / max(margin[-1], 0.1),
        error_bound_margin=max(margin[-1], 0.1) / product,
        history=history,
    )
