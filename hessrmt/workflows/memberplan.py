"""What the networks of a family are to be, and on which samples."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hessrmt import rng
from hessrmt.errors import ConfigError, DataError
from hessrmt.problems import data
from hessrmt.training.protocol import drawn
from hessrmt.workflows.digest import digest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from torch import Tensor

    from hessrmt.config import Family
    from hessrmt.problems.data import Dataset


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of a family, the training samples in a random order of their own.

    Attributes:
        train: All training samples, with the family's labels.
        test: All test samples, with the family's labels.
        fixed: (1, ...) float64, the first training sample of the data set.
        sha256: Of the data set as it was found.
    """

    train: Dataset
    test: Dataset
    fixed: Tensor
    sha256: str

    def first(self, count: int) -> Dataset:
        """Some training samples.

        Args:
            count: How many.

        Returns:
            The first.
        """
        chosen = self.train.x[:count], self.train.y[:count]
        return dataclasses.replace(self.train, x=chosen[0], y=chosen[1])


def samples_of(family: Family, seed: int, folder: Path | None = None) -> Samples:
    """The samples of a family.

    Args:
        family: Its settings.
        seed: Of the experiment; all families of one experiment share samples and random labels.
        folder: Folder searched first for data sets.

    Returns:
        Its samples.

    Raises:
        DataError: If the data are missing or have no classes or no test split.
        ConfigError: If more samples are asked for than there are.
    """
    test = data.load(family.data, "test", folder)
    train = data.load(family.data, "train", folder)
    if train.classes is None:
        raise DataError(f"{family.data} has no classes; families need class labels")
    most = max(_sizes(family, len(train)))
    if most > len(train):
        raise ConfigError(
            f"{family.name} asks for {most:,} training samples, but there are {len(train):,} "
            f"({train.origin})"
        )
    sha256 = digest([train.x, train.y, test.x, test.y])
    fixed = train.tensors(slice(1))[0]
    if family.labels == "random":
        train, test = (
            dataclasses.replace(
                part,
                y=drawn(len(part), train.classes, rng.stream(seed, "random-labels", part.split)),
            )
            for part in (train, test)
        )
    order = rng.stream(seed, "samples").permutation(len(train))
    return Samples(
        dataclasses.replace(train, x=train.x[order], y=train.y[order]), test, fixed, sha256
    )


@dataclass(frozen=True, eq=False)
class Plan:
    """What one network is to be.

    Attributes:
        family: Its family.
        value: Of what is varied.
        seed: Of everything random in it.
        train: Training samples with the family's labels.
        test: Test samples with the family's labels.
        fixed: (1, ...) float64, the first training sample of the data set.
        device: Where to compute.
        identity: What a continued run must share, in one text.
        checkpoint: File of the network in training.
        final: File of the trained network.
    """

    family: Family
    value: float
    seed: int
    train: Dataset
    test: Dataset
    fixed: Tensor
    device: torch.device
    identity: str
    checkpoint: Path
    final: Path

    @property
    def model(self) -> str:
        """Registry name or ``file.py:factory``."""
        return self.family.model_of(self.value)


def plan_of(
    family: Family,
    index: int,
    samples: Samples,
    *,
    seed: int,
    out: Path,
    device: torch.device,
    identity: Mapping[str, Any],
) -> Plan:
    """What one network is to be.

    Args:
        family: Its family.
        index: Which of the family's values.
        samples: Of the family.
        seed: Of the experiment.
        out: Folder of ``checkpoints/``.
        device: Where to compute.
        identity: What a continued run of the family must share.

    Returns:
        Its plan.
    """
    value = family.values[index]
    again = family.values[:index].count(value)  # equal values have random numbers of their own
    words = rng.seed_sequence(seed, "puzzles", family.name, repr(value), again)
    sizes = _sizes(family, len(samples.train))
    checkpoint = checkpoint_of(family, index, out)
    return Plan(
        family=family,
        value=value,
        seed=int(words.generate_state(1)[0]),
        train=samples.first(sizes[index] if family.vary == "samples" else sizes[0]),
        test=samples.test,
        fixed=samples.fixed,
        device=device,
        identity=json.dumps({"member": index, **identity}, sort_keys=True),
        checkpoint=checkpoint,
        final=checkpoint.with_suffix(".final.pt"),
    )


def checkpoint_of(family: Family, index: int, out: Path) -> Path:
    """File of a network in training.

    Args:
        family: Its family.
        index: Which of the family's values.
        out: Folder of ``checkpoints/``.

    Returns:
        Its path.
    """
    return out / "checkpoints" / f"{family.name}-{index}.pt"


def _sizes(family: Family, there: int) -> list[int]:
    if family.vary == "samples":
        return [int(value) for value in family.values]
    return [there if family.samples == "all" else family.samples]
