"""``hessrmt``: the commands, and how errors become exit codes."""

from __future__ import annotations

import sys
from typing import Annotated

import click
import typer

from hessrmt.cli import console
from hessrmt.cli import data as data_command
from hessrmt.cli.info import info
from hessrmt.cli.plot import plot
from hessrmt.cli.spectrum import spectrum
from hessrmt.cli.train import train
from hessrmt.errors import HessrmtError

app = typer.Typer(
    name="hessrmt",
    help="Exact, certified Hessian spectra of neural networks, compared with random matrix theory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        import hessrmt

        typer.echo(f"hessrmt {hessrmt.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


app.command("spectrum")(spectrum)
app.command("train")(train)
app.command("plot")(plot)
app.add_typer(data_command.app, name="data")
app.command("info")(info)


def main() -> None:
    """Run the command line; exit 0 on success, 1 if the run failed, 2 on bad usage or input."""
    try:
        app(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        console.fail(error.format_message())
        context = getattr(error, "ctx", None)
        if context is not None:
            console.note(f"try: {context.command_path} --help")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        console.fail("interrupted; what was finished is on disk, --resume continues it")
        sys.exit(130)
    except HessrmtError as error:
        console.fail(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
