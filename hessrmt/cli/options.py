"""Options that several commands share."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hessrmt.workflows.cluster import Pool

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="logistic, mlp2, mlp3, lenet5, conv3-N, conv3s2-N, conv5, conv5-N (N filters), "
        "resnet8, resnet20, ... (6n+2), or file.py:factory. \\[default: mlp3]",
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="mnist, fashion-mnist, cifar10, cifar100, an .npz file with x and y, or a directory "
        "of IDX files or CIFAR batches. \\[default: mnist]",
    ),
]
LossOption = Annotated[
    str | None,
    typer.Option(
        "--loss", help="cross-entropy, mse, or file.py:function. \\[default: cross-entropy]"
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N. \\[default: auto]")
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", help="Seed of every random stream. \\[default: 0]")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output.")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file of settings; options given here override it."),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder searched first for data sets (also $HESSRMT_DATA)."),
]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", help="float64 or float32. \\[default: float64]")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Compute in this many processes: one a GPU, or the cores divided among them. "
        "\\[default: in this process]",
    ),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="ADDRESS",
        help="Compute with the workers of a Dask cluster that is there, e.g. tcp://node:8786.",
    ),
]


@contextmanager
def pool_of(workers: int | None, scheduler: str | None, device: str = "auto") -> Iterator[Pool]:
    """Where the tasks of a command are done.

    Args:
        workers: Processes of this machine, if asked for.
        scheduler: Address of a Dask scheduler, if given.
        device: What the processes will compute on.

    Yields:
        A pool: this process if neither is given.

    Raises:
        ConfigError: If both are given, or Dask is not installed.
        ModuleNotFoundError: If Dask is installed, but not what it needs.
    """
    from hessrmt.cli import console
    from hessrmt.errors import ConfigError
    from hessrmt.workflows.cluster import SERIAL

    if workers is None and scheduler is None:
        yield SERIAL
        return
    if workers is not None and scheduler is not None:
        raise ConfigError("--workers starts processes here, --scheduler uses others: give one")
    try:
        from hessrmt.workflows.dask_pool import open_pool
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {"dask", "distributed"}:
            raise
        raise ConfigError(
            f"--workers and --scheduler need Dask (no module {error.name}): pip install "
            '"hessrmt[cluster]"'
        ) from error
    with open_pool(workers, scheduler, device) as pool:
        console.note(f"computing with {pool.words}")
        yield pool
