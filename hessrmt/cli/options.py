"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="logistic, mlp2, mlp3, lenet5, or file.py:factory. \\[default: mlp3]"
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="mnist, fashion-mnist, an .npz file with x and y, or a directory of IDX files. "
        "\\[default: mnist]",
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
