"""``hessrmt info``: this installation, its devices and data; or what a file holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from hessrmt.cli import console
from hessrmt.cli.options import Report, quick


@quick
def info(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A file of spectra, a density, a history, a checkpoint or any saved result; "
            "without it, this installation."
        ),
    ] = None,
) -> Report:
    """Show versions, devices and data; or the contents and provenance of a file."""
    if file:
        from hessrmt.runs.stored import facts

        found = facts(file)
    else:
        found = _about_installation()
    shown = dict(row for key, value in found.items() for row in _rows(key, value))
    console.facts(shown)
    return Report(found, lambda: [{"name": k, "value": v} for k, v in shown.items()])


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
