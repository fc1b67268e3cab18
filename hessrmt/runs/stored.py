"""Any file that hessrmt has written: recognised, read, described and drawn, in one place.

A file says what it is by its attribute ``schema``; files of the published code have none, training
checkpoints are recognised by their own ``format``. A new kind of file is one entry of
:data:`_KINDS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from hessrmt.curvature.density import load_density
from hessrmt.errors import ConfigError, StoreError
from hessrmt.levels.histograms import mean_ratios
from hessrmt.problems import readers
from hessrmt.records import BlockSpectra, Provenance, Spectra, source_in_words
from hessrmt.results import Result, flat, plain
from hessrmt.runs.training import load_checkpoint
from hessrmt.store import density, family, results, search, spectra
from hessrmt.store.files import schema_of, written_by
from hessrmt.store.history import History, holds_history, load_history
from hessrmt.tables import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Parts: TypeAlias = "dict[str | None, Any]"
"""Name of a block to its result; None to that of a file without blocks."""

_TABLES = (".json", ".csv", ".md")
_SHORT = 8
"""Numbers of a list that are shown."""


class _Kind(NamedTuple):
    """A kind of file.

    Attributes:
        words: What it holds.
        read: All of a file.
    """

    words: str
    read: Callable[[Path], Parts]


def _single(read: Callable[[Path], Any]) -> Callable[[Path], Parts]:
    return lambda path: {None: read(path)}


_CHECKPOINT = _Kind("training checkpoint", _single(load_checkpoint))
_HISTORY = _Kind("training history", _single(load_history))
_KINDS = {
    "": _Kind("spectra of the published code", spectra.load_all),
    spectra.SCHEMA: _Kind("spectra", spectra.load_all),
    density.SCHEMA: _Kind("density", _single(load_density)),
    family.SCHEMA: _Kind("family of networks", _single(family.load_family)),
    results.SCHEMA: _Kind("result", _single(results.load)),
}
"""Schema of an HDF5 file to what it is."""


def _kind_of(path: Path) -> _Kind:
    if path.suffix.lower() in readers.WRITTEN:
        return _CHECKPOINT
    if path.suffix.lower() in _TABLES and path.exists():
        raise StoreError(
            f"{path} is a table for other programs; what is to be loaded again is saved with the "
            "ending .h5"
        )
    if search.is_search(path):
        raise StoreError(
            f"{path} is a search that has not finished; the command or the call that began it "
            "continues it (--resume, checkpoint=...)"
        )
    return _KINDS.get(schema_of(path), _KINDS[spectra.SCHEMA])  # whose reader says what is wrong


def load(path: str | Path, block: str | None = None) -> Any:
    """What a run has written, whichever kind of file it is; also while the run is still writing.

    Args:
        path: A file of spectra, of a density, of a family of networks, of any result that was saved
            as HDF5, or a checkpoint of ``hessrmt train``. Of a training history the spectra;
            ``hessrmt.load_history`` gives all of it.
        block: Which block's spectra, for a file of blocks.

    Returns:
        Its complete content; of a file of blocks, if none is named, a dict of all of them,
        :class:`~hessrmt.records.BlockSpectra`.
    """
    if block is not None:
        return spectra.load(path, block)
    parts = _kind_of(Path(path)).read(Path(path))
    return parts[None] if None in parts else _blocks(parts)


def _blocks(parts: Parts) -> BlockSpectra:
    return BlockSpectra({str(name): part for name, part in parts.items()})


def contents(path: Path) -> tuple[str, Parts]:
    """What a file is, and all of it: of a history more than its spectra.

    Args:
        path: As for :func:`load`.

    Returns:
        Words on its kind, and name of a block to its result; None to that of a file without blocks.
    """
    kind = _kind_of(path)
    if kind.read is spectra.load_all and holds_history(path):
        kind = _HISTORY
    return kind.words, kind.read(path)


def require_finished(path: Path, found: Result) -> None:
    """Refuse what has nothing to show yet.

    Args:
        path: A file.
        found: What it holds.

    Raises:
        StoreError: If no spectrum in it is finished.
    """
    whole = found.spectra if isinstance(found, History) else found
    parts = whole.values() if isinstance(whole, BlockSpectra) else [whole]
    if any(isinstance(part, Spectra) and not part for part in parts):
        raise StoreError(f"{path} holds no finished batch yet; continue it with --resume")


_HEADINGS = {
    "Track": "Curvature along a training",
    "Spectra": "Eigenvalues",
    "DensityResult": "Density of eigenvalues",
    "Landscape": "Loss along eigenvectors",
    "LevelStatistics": "Level statistics",
    "CapacityReport": "Capacity of a network",
    "Series": "Capacity of several networks",
    "SideBySide": "Layers of several networks",
    "History": "A network along its training",
    "Checkpoint": "A training run",
    "FamilyResult": "A family of trained networks",
    "ExperimentResult": "A published experiment",
    "Eigenpairs": "Eigenvalues with eigenvectors",
    "EdgeLevels": "Extremal eigenvalues",
}
"""Class of a result to what a reader calls it."""


def heading(found: Result) -> str:
    """What a result is called where nothing is known of its origin, e.g. above its picture.

    Args:
        found: The result.

    Returns:
        A few words; of a class without any its name as words.
    """
    name = type(found).__name__
    return _HEADINGS.get(name, re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).capitalize())


def samples_in_words(found: Any, settings: Mapping[str, Any]) -> str:
    """How many samples a result is about, where :func:`source_in_words` doesn't say it.

    Args:
        found: The result.
        settings: The settings in its provenance.

    Returns:
        Such as "500 samples"; empty where that isn't known, or batches were taken.
    """
    count = getattr(found, "samples", None) or settings.get("samples")
    if settings.get("batch") or not isinstance(count, int) or not count:
        return ""
    return counted(count, "sample", "samples")


def facts(path: Path) -> dict[str, Any]:
    """What a file holds and where it came from.

    Args:
        path: As for :func:`load`.

    Returns:
        Name to plain value.
    """
    words, parts = contents(path)
    first = next(iter(parts.values()))
    source = getattr(first, "provenance", None)
    about: dict[str, Any] = {"file": str(path), "kind": words}
    if isinstance(first, History):
        about |= {"epochs": first.epochs.tolist(), "layers": list(first.layers)}
        first = first.spectra
        parts, source = {None: first}, first.provenance
    if isinstance(first, Spectra):
        about |= _of_spectra(parts, first)
    else:
        about |= {} if words != "result" else {"result": type(first).__name__}
        about |= dict(_of_result(first))
    return about | ({} if source is None else _of_provenance(source))


def _of_spectra(parts: Mapping[Any, Spectra], first: Spectra) -> dict[str, Any]:
    blocks = {name: part for name, part in parts.items() if name is not None}
    return {
        **{f"rank of {name}": [item.rank for item in part] for name, part in blocks.items()},
        "batches done": len(first),
        "batches planned": first.planned,
        "solver": sorted({item.solver for part in parts.values() for item in part}),
        "parameters": first[0].dimension if first else None,
        "rank": [item.rank for item in first],
    }


def _of_provenance(source: Provenance) -> dict[str, Any]:
    return {
        "created": source.created,
        "device": source.device,
        **{f"config {key}": value for key, value in source.config.items()},
        **{f"version {key}": value for key, value in source.versions.items()},
        "notes": list(source.notes),
    }


def _of_result(found: Result) -> Iterator[tuple[str, Any]]:
    """Its numbers and words; of long lists only how long they are."""
    for name, value in flat(plain(found.to_dict())).items():
        if name.startswith("provenance.") or value is None:
            continue
        if not isinstance(value, list):
            yield name, value
        elif len(value) > _SHORT or any(isinstance(item, list | dict) for item in value):
            yield name, f"{len(value):,} items"
        else:
            yield name, value


def picture(
    path: Path,
    block: str | None,
    title: Callable[[Mapping[str, Any]], str],
    *,
    compare: bool = False,
) -> Figure:
    """The picture of what a file holds.

    Args:
        path: As for :func:`load`.
        block: Which block's, for a file of blocks; all of them in one picture if None.
        title: From the settings in the file's provenance to what it is about, in words.
        compare: Whether to show the published cutoff beside the spectra.

    Returns:
        The picture.

    Raises:
        ConfigError: If the published cutoff is to be shown beside something else.
    """
    _, parts = contents(path)
    found = spectra.load(path, block) if block is not None else parts.get(None)
    if found is None:
        found = _blocks(parts)
    require_finished(path, found)
    whole = found.spectra if isinstance(found, History) else found
    source = getattr(whole, "provenance", None)
    settings = {} if source is None else source.config
    words = title(settings) if source_in_words(settings) else heading(whole)
    draw = found.plot
    if compare:
        if isinstance(found, History) or not isinstance(whole, Spectra | BlockSpectra):
            raise ConfigError(f"--compare shows a cutoff of spectra; {path} holds none")
        draw = partial(draw, compare=True)
    if isinstance(found, History):
        draw = partial(draw, mean_ratios(found.spectra))
    named = block if block is not None else ", ".join(filter(None, parts))
    about: list[Any] = [f"block {named}"] if named else []
    about = ["blocks of layers"] if isinstance(whole, BlockSpectra) and len(whole) > 1 else about
    about.append(getattr(whole, "operator", settings.get("operator")))
    if isinstance(whole, Spectra | BlockSpectra):
        about.append(settings.get("dtype"))
    elif samples := samples_in_words(whole, settings):
        about.insert(0, samples)
    return draw(title=", ".join([words, *filter(None, about)]))


def provenance(path: Path, found: Any) -> Provenance:
    """Where a result came from, as far as it or its file says.

    Args:
        path: Of the file.
        found: What was read from it.

    Returns:
        That of the result; for one without, when and with what its file was written.
    """
    for owner in (found, getattr(found, "spectra", None)):
        if isinstance(source := getattr(owner, "provenance", None), Provenance):
            return source
    known = getattr(found, "device", None)
    return replace(written_by(path), device=known if isinstance(known, str) else "unknown")
