"""``hessrmt data``: which data sets are on this machine, and downloading the missing ones."""

from typing import Annotated

import typer

from hessrmt.cli import console
from hessrmt.cli.options import DataDir, Report, quick, with_settings

app = typer.Typer(help="List and download data sets.", no_args_is_help=True)


@app.command(epilog="Example: hessrmt data fetch mnist")
@with_settings
def fetch(
    name: Annotated[
        str, typer.Argument(help="mnist, fashion-mnist, cifar10 or cifar100.", show_default=False)
    ],
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> Report:
    """Download a data set into the user cache, checked against its published hashes."""
    from hessrmt.problems.data import fetch as download

    folder = download(name, progress=progress)
    console.show(f"{name} is in {folder}")
    found = {"name": name, "path": str(folder)}
    return Report(found, lambda: [found])


@app.command("list", epilog="Example: hessrmt data list --json")
@quick
def list_(data_dir: DataDir = None) -> Report:
    """Show where each data set was found."""
    from hessrmt.problems.data import NAMES, locate

    found = []
    for name in NAMES:
        path = locate(name, data_dir)
        status = "on disk" if path else "embedded subset" if name == "mnist" else "not on disk"
        found.append({"name": name, "status": status, "path": str(path) if path else None})
    console.listing({item["name"]: item["path"] or item["status"] for item in found})
    missing = (item["name"] for item in found if item["path"] is None)
    console.note(*(f"to get all of {name}: hessrmt data fetch {name}" for name in missing))
    return Report({"datasets": found}, lambda: found)
