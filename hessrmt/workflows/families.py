"""One family of networks: trained one after the other into one HDF5 file."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import torch

from hessrmt import rng
from hessrmt.backend.select import select
from hessrmt.errors import ConfigError, DataError, GeneralizationError, NonFiniteError
from hessrmt.problems import data
from hessrmt.records import Provenance
from hessrmt.store.family import load_family
from hessrmt.store.familywriter import FamilyWriter
from hessrmt.training.labels import drawn
from hessrmt.workflows.digest import digest
from hessrmt.workflows.memberplan import Plan
from hessrmt.workflows.members import make
from hessrmt.workflows.reproduce import Observer, make_folders, silent

if TYPE_CHECKING:
    from pathlib import Path

    from hessrmt.config import Family
    from hessrmt.problems.data import Dataset
    from hessrmt.store.family import FamilyResult


@dataclasses.dataclass(frozen=True, eq=False)
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
    fixed: torch.Tensor
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


def run(
    family: Family,
    out: Path,
    *,
    seed: int = 0,
    device: str = "auto",
    folder: Path | None = None,
    observer: Observer | None = None,
) -> FamilyResult:
    """Train what is not trained yet of a family, and read all of it.

    Args:
        family: Its settings.
        out: Folder for ``families/`` and ``checkpoints/``; an earlier run in it is continued.
        seed: Of everything random.
        device: ``auto``, ``cpu`` or ``cuda[:i]``.
        folder: Folder searched first for data sets.
        observer: Told of progress.

    Returns:
        The family, complete.

    Raises:
        NonFiniteError: If the training of a network diverges; those before it are kept.
        GeneralizationError: If a network cannot be normalised; those before it are kept.
    """
    backend = select(device)
    samples = samples_of(family, seed, folder)
    make_folders(out, "families", "checkpoints")
    path = out / "families" / f"{family.name}.h5"
    identity: dict[str, Any] = {
        "family": family.model_dump(),
        "seed": seed,
        "data_sha256": samples.sha256,
    }
    notes = (samples.train.origin,) if samples.train.embedded else ()
    about = Provenance({"data": samples.train.origin}, backend.name, notes=notes)
    observer = observer or silent
    with FamilyWriter(path, family.values, identity, about) as writer:
        for index, value in enumerate(family.values):
            plan = _plan(family, index, samples, seed, out, backend.device, identity)
            if index not in writer.members:
                phase = f"{family.name} {index + 1}/{len(family.values)} ({value:g}), epochs"
                try:
                    member = make(plan, lambda *steps, phase=phase: observer(phase, *steps))
                except (NonFiniteError, GeneralizationError) as error:
                    raise type(error)(
                        f"network {index + 1} of {family.name} ({family.vary} {value:g}): {error}"
                        f". {len(writer.members)} of {len(family.values)} networks are in {path}"
                    ) from error
                writer.write(index, member)
            plan.checkpoint.unlink(missing_ok=True)
    return load_family(path)


def _sizes(family: Family, there: int) -> list[int]:
    if family.vary == "samples":
        return [int(value) for value in family.values]
    return [there if family.samples == "all" else family.samples]


def _plan(
    family: Family,
    index: int,
    samples: Samples,
    seed: int,
    out: Path,
    device: torch.device,
    identity: dict[str, Any],
) -> Plan:
    value = family.values[index]
    again = family.values[:index].count(value)  # equal values have random numbers of their own
    words = rng.seed_sequence(seed, "puzzles", family.name, repr(value), again)
    sizes = _sizes(family, len(samples.train))
    stem = f"{family.name}-{index}"
    return Plan(
        family=family,
        value=value,
        seed=int(words.generate_state(1)[0]),
        train=samples.first(sizes[index] if family.vary == "samples" else sizes[0]),
        test=samples.test,
        fixed=samples.fixed,
        device=device,
        identity=json.dumps({"member": index, **identity}, sort_keys=True),
        checkpoint=out / "checkpoints" / f"{stem}.pt",
        final=out / "checkpoints" / f"{stem}.final.pt",
    )
