"""``hessrmt info``: this installation, its devices and data; or what a file holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from hessrmt.cli import console
from hessrmt.cli.options import Report, quick
from hessrmt.errors import ConfigError


@quick
def info(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="A file of spectra, a density, a history, a checkpoint or any saved result; "
            "without it, this installation. With --verify any number of files.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read all of each file and compare it with the checksums in it; exit status 1 if "
            "one is damaged.",
        ),
    ] = False,
) -> Report:
    """Show versions, devices and data; or the contents and provenance of a file.

    With --verify: whether files are as they were written.

    Returns:
        What --json and --csv write.

    Raises:
        ConfigError: If there are no files to verify, or several to show.
    """
    if verify:
        return _verified(files or [])
    if files and len(files) > 1:
        raise ConfigError("info shows one file; give one, or --verify for several")
    if files:
        from hessrmt.runs.stored import facts

        found = facts(files[0])
    else:
        found = _about_installation()
    shown = dict(row for key, value in found.items() for row in _rows(key, value))
    console.facts(shown)
    return Report(found, lambda: [{"name": k, "value": v} for k, v in shown.items()])


def _verified(files: list[Path]) -> Report:
    from hessrmt.runs.verify import verify

    if not files:
        raise ConfigError("--verify needs the names of files")
    found = [verify(path) for path in files]
    for item in found:
        console.facts({str(item.file): item.words})
    damaged = sum(bool(item.damage) for item in found)
    plain = {"files": [item.to_dict() for item in found], "damaged": damaged}
    return Report(
        plain,
        lambda: [
            {"file": str(item.file), "state": item.state, "words": item.words} for item in found
        ],
        exit_code=int(damaged > 0),
    )


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
    from hessrmt.backend.select import select
    from hessrmt.memory import free_host_memory
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
