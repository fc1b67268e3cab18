"""``hessrmt data``: which data sets are on this machine, and downloading the missing ones."""

from typing import Annotated

import typer

from hessrmt.cli.console import emit_json, note
from hessrmt.cli.options import DataDir, Json

app = typer.Typer(help="List and download data sets.", no_args_is_help=True)


@app.command(epilog="Example: hessrmt data fetch mnist")
def fetch(
    name: Annotated[
        str,
        typer.Argument(help="mnist, fashion-mnist, cifar10 or cifar100.", show_default=False),
    ],
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
    json: Json = False,
) -> None:
    """Download a data set into the user cache, checked against its published hashes."""
    from hessrmt.problems.data import fetch as download

    folder = download(name, progress=progress)
    if json:
        emit_json({"name": name, "path": str(folder)})
    else:
        typer.echo(f"{name} is in {folder}")


@app.command("list", epilog="Example: hessrmt data list --json")
def list_(data_dir: DataDir = None, json: Json = False) -> None:
    """Show where each data set was found."""
    from hessrmt.problems.data import NAMES, locate

    found = {name: locate(name, data_dir) for name in NAMES}
    status = {
        name: "on disk" if path else "embedded subset" if name == "mnist" else "not on disk"
        for name, path in found.items()
    }
    if json:
        emit_json(
            {
                "datasets": [
                    {"name": name, "status": status[name], "path": str(path) if path else None}
                    for name, path in found.items()
                ]
            }
        )
        return
    width = max(map(len, NAMES))
    for name, path in found.items():
        typer.echo(f"{name:<{width}}  {path or status[name]}")
    for name in (name for name, path in found.items() if not path):
        note(f"to get all of {name}: hessrmt data fetch {name}")
