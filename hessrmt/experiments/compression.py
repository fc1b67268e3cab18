"""``reproduce compression``: what becomes of capacity metrics when one network is compressed.

Martin and Mahoney (2019) see in compressed networks the case in which norms and α part: they expect
⟨α⟩ to rise with the test error, and norms need not. Here one network is quantised, pruned and
approximated by matrices of low rank, each in several ways and strengths, without training
afterwards. It is trained first, and its test error measured; or its weights are given, and there is
no error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator

from hessrmt.capacity.analysis import analyze
from hessrmt.capacity.compression import METHODS, compress
from hessrmt.capacity.report import CapacityReport, Correlation, correlate, side_by_side
from hessrmt.config import ConvolutionAs
from hessrmt.errors import ConfigError
from hessrmt.experiments.experiment import (
    Column,
    Experiment,
    Pictures,
    TrainedPreset,
    TrainedSettings,
    Work,
    keyed,
    stem,
)
from hessrmt.plots import capacity as plots
from hessrmt.problems import checkpoints, data, losses, models
from hessrmt.runs.trajectory import LAST, TrajectoryPlan
from hessrmt.training.protocol import evaluate

METRICS = ("alpha", "log_frobenius", "log_spectral", "stable_rank", "log_alpha_norm", "entropy")
"""Means over layers that are compared."""

_NONE = "none"


class CompressionPreset(TrainedPreset):
    """One size of the experiment.

    Attributes:
        weights: A checkpoint, by its path, or behind the name of an installed package
            (``package/folder/file.pth``); empty: ``model`` is trained.
        model: Registry name or ``file.py:factory``.
        epochs: Of the training.
        lr: Learning rate, which falls to a hundredth in the second half.
        conv: How convolutions are analysed.
        strengths: Name of a method of :data:`hessrmt.capacity.compression.METHODS` to its
            strengths.
    """

    weights: str = ""
    model: str = ""
    epochs: int = Field(20, ge=1)
    lr: float = Field(0.02, gt=0, allow_inf_nan=False)
    conv: ConvolutionAs = "unfolded"
    strengths: dict[str, tuple[float, ...]] = Field(min_length=1)

    @field_validator("strengths")
    @classmethod
    def _known(cls, value: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        unknown = sorted(set(value) - set(METHODS))
        if unknown:
            raise ValueError(f"unknown method {unknown[0]!r}; known are {', '.join(METHODS)}")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> CompressionPreset:
        if bool(self.weights) == bool(self.model):
            raise ValueError("give weights, or a model to be trained")
        return self


class CompressionConfig(TrainedSettings[CompressionPreset]):
    """Settings of ``hessrmt reproduce compression``."""


@dataclass(frozen=True)
class Compressed:
    """A network in one state of compression.

    Attributes:
        network: What it is.
        method: How it was compressed, or ``"none"``.
        strength: Bits, or the share that was removed.
        report: Its capacity.
        origin: Where weights or data came from.
        test_loss: NaN where only weights are known.
        test_error: Likewise.
    """

    network: str
    method: str
    strength: float
    report: CapacityReport
    origin: str
    test_loss: float = np.nan
    test_error: float = np.nan

    @property
    def name(self) -> str:
        """Method and strength in words."""
        if self.method == _NONE:
            return "uncompressed"
        bits = METHODS[self.method].kind == "bits"
        return f"{self.method}, {self.strength:g}{' bits' if bits else ''}"

    def mean(self, metric: str) -> float:
        """Mean over layers of one of their quantities."""
        return self.report.mean(metric)


def _mean(name: str, metric: str, form: str, terminal: str = "") -> Column[Compressed]:
    return Column(name, lambda e: e.mean(metric), form, f"mean_{metric}", terminal)


class Compression(Experiment[CompressionConfig, CompressionPreset, Compressed]):
    """Metrics of one network, compressed in many ways."""

    settings = CompressionConfig
    columns = (
        *keyed(run="name", network="network", method="method", strength="strength", data="origin"),
        Column("", lambda e: e.report.counts["analyzed"], key="layers"),
        Column("compression", lambda e: e.name),
        Column("", lambda e: e.test_loss, key="test_loss"),
        Column(
            *("test error %", lambda e: 100 * e.test_error, ".2f", "test_error_percent"),
            terminal="test\nerror %",
        ),
        _mean("⟨α⟩", "alpha", ".3f", "⟨α⟩"),
        Column("α̂", lambda e: e.report.alpha_hat, ".2f", "alpha_hat"),
        Column("", lambda e: e.report.alpha_weighted, ".3f", "alpha_weighted"),
        _mean("⟨ln‖W‖_F⟩", "log_frobenius", ".3f", "⟨ln‖W‖⟩"),
        _mean("⟨ln‖W‖₂⟩", "log_spectral", ".3f", "⟨ln‖W‖₂⟩"),
        _mean("⟨stable rank⟩", "stable_rank", ".2f", "stable\nrank"),
        _mean("⟨ln Σλ^α⟩", "log_alpha_norm", ".2f"),
        _mean("⟨entropy⟩", "entropy", ".3f"),
        Column("fits failed", lambda e: e.report.counts["fits_failed"], "d", "fits_failed"),
    )

    def compute(self, work: Work[CompressionConfig, CompressionPreset]) -> list[Compressed]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        size = work.size
        if size.weights:
            network, state, origin, measure = _given(work)
        else:
            network, state, origin, measure = _trained(work)
        options: dict[str, Any] = {"conv": size.conv, "device": work.settings.device}
        plain = analyze(state, **options)
        names = [layer.name for layer in plain.analyzed]
        found = [Compressed(network, _NONE, np.nan, plain, origin, *measure(state))]
        items = [(name, each) for name, all_of in size.strengths.items() for each in all_of]
        for method, strength in work.each("{0[0]}, {0[1]:g}", items):
            changed = compress(state, names, method, strength, work.settings.seed)
            report = analyze(changed, **options)
            entry = Compressed(network, method, strength, report, origin, *measure(changed))
            found.append(entry)
        return found

    def fits(self, entries: Sequence[Compressed]) -> list[dict[str, Any]]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        return [item.to_dict() for item in against_error(entries)]

    def conclusions(self, entries: Sequence[Compressed]) -> dict[str, str]:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        start, *others = entries
        said = {}
        for metric in METRICS:
            strongest = {entry.method: entry for entry in others}  # the last of each method
            each = (f"{entry.mean(metric):.4g} ({entry.name})" for entry in strongest.values())
            ends = ", ".join(each)
            said[f"mean {metric}"] = f"{start.mean(metric):.4g} uncompressed; {ends}."
        for item in against_error(entries):
            ranks = f"Kendall's τ {item.kendall:+.2f}, Spearman's ρ {item.spearman:+.2f}"
            # versions of one network are no independent sample: a p-value would mean nothing
            text = item.failed or f"{ranks} over {item.n} versions of this one network"
            said[f"test error and mean {item.metric}"] = f"{text}."
        return said

    def figures(self, entries: Sequence[Compressed]) -> Pictures:
        """See :class:`~hessrmt.experiments.experiment.Experiment`."""
        start, *others = entries
        by: dict[str, list[Compressed]] = {}
        for entry in others:
            by.setdefault(entry.method, []).append(entry)
        quantities = {metric: partial(Compressed.mean, metric=metric) for metric in METRICS}
        if np.isfinite(start.test_error):
            quantities = {"test_error": lambda entry: entry.test_error} | quantities
        panels = {
            name: (
                get(start),
                {
                    method: (
                        METHODS[method].kind,
                        np.array([entry.strength for entry in of]),
                        np.array([get(entry) for entry in of]),
                    )
                    for method, of in by.items()
                },
            )
            for name, get in quantities.items()
        }
        # in the middle of each method's strengths
        few = {"uncompressed": start.report} | {
            of[len(of) // 2].name: of[len(of) // 2].report for of in by.values()
        }
        return {
            "metrics": partial(plots.compression, panels, start.network),
            "layers": partial(plots.side_by_side, side_by_side(few), start.network),
        }


def against_error(entries: Sequence[Compressed]) -> list[Correlation]:
    """How the means of metrics go with the test error over all versions of the network.

    Args:
        entries: All versions, the uncompressed one included.

    Returns:
        A correlation for each of :data:`METRICS`; none where there is no test error.
    """
    errors = [entry.test_error for entry in entries]
    if not np.isfinite(errors).any():
        return []
    return [
        correlate([entry.mean(metric) for entry in entries], errors, (metric, "test error"))
        for metric in METRICS
    ]


_Found = tuple[str, Mapping[str, torch.Tensor], str, Any]


def _given(work: Work[CompressionConfig, CompressionPreset]) -> _Found:
    path = _file(work.size.weights)
    return path.stem, checkpoints.load_state(path), path.name, lambda _: ()


def _file(spec: str) -> Path:
    """A file by its path, or in the folder of an installed package."""
    if Path(spec).is_file():
        return Path(spec)
    package, _, inside = spec.partition("/")
    found = find_spec(package) if package.isidentifier() else None
    for folder in (found and found.submodule_search_locations) or ():
        if (file := Path(folder) / inside).is_file():
            return file
    hint = f"install the package {package.replace('_', '-')}, or give the path of a checkpoint"
    raise ConfigError(f"weights: there is no file {spec}; {hint}")


def _trained(work: Work[CompressionConfig, CompressionPreset]) -> _Found:
    settings, size = work.settings, work.size
    ((run,),) = work.trajectories([size.model], partial(_plan, settings, size))
    test = data.load(settings.data, "test", work.folder)
    device = torch.device("cpu")
    model = models.build(size.model, test.input_shape, test.outputs, 0)
    loss = losses.resolve("cross-entropy")

    def measure(state: Mapping[str, torch.Tensor]) -> tuple[float, float]:
        checkpoints.apply_state(model, state)
        found, accuracy = evaluate(model, loss, test, device=device)
        return found, np.nan if accuracy is None else 1 - accuracy

    return size.model, checkpoints.load_state(run.files[LAST]), run.origin, measure


def _plan(
    settings: CompressionConfig, size: CompressionPreset, model: str, number: int
) -> TrajectoryPlan:
    schedule = {"lr": size.lr, "final_lr": size.lr / 100, "decay_start": size.epochs // 2}
    schedule |= {"decay_end": max(9 * size.epochs // 10, size.epochs // 2)}
    training = settings.training(size, number, model=model, epochs=size.epochs, **schedule)
    return TrajectoryPlan(f"{stem(model)}-{number}", training, {})
