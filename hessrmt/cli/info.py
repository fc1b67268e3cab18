"""``hessrmt info``: this installation, its devices and data; or what a spectrum file holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from hessrmt.cli import console
from hessrmt.cli.options import with_settings


@with_settings
def info(
    file: Annotated[
        Path | None, typer.Argument(help="A spectrum file; without it, this installation.")
    ] = None,
) -> dict[str, Any]:
    """Show versions, devices and data; or the contents and provenance of a spectrum file."""
    found = _about_file(file) if file else _about_installation()
    console.facts(dict(row for key, value in found.items() for row in _rows(key, value)))
    return found


def _rows(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """One row for a value or a list, one for each entry of a nested dictionary."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _rows(f"{key}, {name}", inner)
    else:
        yield key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _about_installation() -> dict[str, Any]:
    import torch

    from hessrmt.backend.cuda_kernels import compile_report, cupy_version
    from hessrmt.backend.host import free_host_memory
    from hessrmt.backend.select import select
    from hessrmt.problems import models
    from hessrmt.problems.data import NAMES, locate
    from hessrmt.problems.losses import LOSSES
    from hessrmt.records import Provenance

    words = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    backends = {word: select(word) for word in words}
    kernels = {word: compile_report(backends[word].device) for word in words[1:]}
    return {
        **Provenance().versions,
        "CUDA of torch": torch.version.cuda or "none: built without",
        "CuPy": cupy_version(),
        "devices": [backend.name for backend in backends.values()],
        "eigenvalue solvers": {word: b.solver_table() for word, b in backends.items()},
        "CUDA kernels": kernels or compile_report(backends["cpu"].device)["all"],
        "free memory GiB": round(free_host_memory() / 2**30, 1),
        "models": list(models.NAMES),
        "losses": list(LOSSES),
        "data on disk": [name for name in NAMES if locate(name)] or ["embedded subset of mnist"],
    }


def _about_file(file: Path) -> dict[str, Any]:
    from hessrmt.store.spectra import load_all

    found = load_all(file)
    spectra = next(iter(found.values()))
    source = spectra.provenance
    blocks = {name: part for name, part in found.items() if name is not None}
    ranks = {f"rank of {name}": [item.rank for item in part] for name, part in blocks.items()}
    return {
        "file": str(file),
        **ranks,
        "batches done": len(spectra),
        "batches planned": spectra.planned,
        "solver": sorted({item.solver for part in found.values() for item in part}),
        "parameters": spectra[0].dimension if spectra else None,
        "rank": [item.rank for item in spectra],
        "created": source.created,
        "device": source.device,
        **{f"config {key}": value for key, value in source.config.items()},
        **{f"version {key}": value for key, value in source.versions.items()},
        "notes": list(source.notes),
    }
