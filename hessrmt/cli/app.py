"""``hessrmt``: the commands, and how errors become exit codes."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from typing import Annotated, Any, NoReturn

import typer

from hessrmt.cli import console
from hessrmt.cli import data as data_command
from hessrmt.cli.capacity import capacity
from hessrmt.cli.density import density
from hessrmt.cli.info import info
from hessrmt.cli.landscape import landscape
from hessrmt.cli.levels import levels
from hessrmt.cli.normalize import normalize
from hessrmt.cli.plot import plot
from hessrmt.cli.report import report
from hessrmt.cli.reproduce import reproduce
from hessrmt.cli.simulate import simulate
from hessrmt.cli.spectrum import spectrum
from hessrmt.cli.train import train
from hessrmt.errors import HessrmtError, HessrmtWarning, is_out_of_memory
from hessrmt.tables import printable

_UsageError: Any = typer.BadParameter.__bases__[0]
"""Bad usage as typer raises it: click's class, or that of the copy of click inside newer typer."""

_INTERRUPTED = 130

app = typer.Typer(
    name="hessrmt",
    help="Exact, certified Hessian spectra of neural networks, compared with random matrix theory.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
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


_COMMANDS = {
    spectrum: "hessrmt spectrum --model mlp3 --data mnist --batch 64",
    train: "hessrmt train --model mlp3 --data mnist --out mlp3.pt",
    levels: "hessrmt levels spectra.h5 --compare --plot pictures",
    plot: "hessrmt plot spectra.h5 --out spectra.png",
    density: "hessrmt density --model lenet5 --top 20 --plot density.png",
    landscape: "hessrmt landscape --model mlp2 --directions 2 --plot landscape.png",
    simulate: "hessrmt simulate --kernel paper --dimension 300 --samples 100",
    capacity: "hessrmt capacity net.pt --csv layers.csv",
    normalize: "hessrmt normalize --model mlp3 --checkpoint mlp3.pt",
    reproduce: "hessrmt reproduce hessian-spacings --preset small",
    report: "hessrmt report spectra.h5 --out report.html",
    info: "hessrmt info spectra.h5",
}
"""Each command and an example of its use."""

for _command, _example in _COMMANDS.items():
    app.command(_command.__name__, epilog=f"Example: {_example}")(_command)
app.add_typer(data_command.app, name="data", epilog="Example: hessrmt data fetch mnist")


def _tell_warnings() -> None:
    """Print warnings of ours as lines for a reader, all others as Python does."""
    usual, told = warnings.showwarning, set[str]()

    def show(message: Any, category: type[Warning], file: str, *where: Any) -> None:
        if issubclass(category, HessrmtWarning):
            if str(message) not in told:  # a command may read a file several times
                console.warn(str(message))
            told.add(str(message))
        else:
            usual(printable(str(message), lines=True), category, printable(file), *where)

    warnings.showwarning = show


def main() -> None:
    """Run the command line; exit 0 on success, 1 if the run failed, 2 on bad usage or input."""
    console.take_descriptors()
    # the same file, bit for bit, from the same seed: see hessrmt/backend/cpu.py
    os.environ.setdefault("MKL_CBWR", "AUTO")
    os.environ["MPLBACKEND"] = "agg"  # pictures are files, whatever windows there are
    console.accept_any_text()
    _tell_warnings()
    console.begin(quiet=False, json=False)  # of a mistake before the command itself begins
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:  # newer typer swallows the interrupt
            raise KeyboardInterrupt
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            sys.exit(2)
        console.fail(error.format_message())
        if error.ctx is not None:
            console.note(f"try: {error.ctx.command_path} --help")
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        console.fail(
            "interrupted; what was finished is on disk: continue with --resume (reproduce: without)"
        )
        sys.exit(_INTERRUPTED)
    except HessrmtError as error:
        console.fail(str(error))
        sys.exit(error.exit_code)
    except SystemExit as error:
        if isinstance(error.__cause__, HessrmtError):  # a process of many, of which one speaks
            raise
        if getattr(error.__context__, "errno", None) == errno.EPIPE:  # typer makes an exit of it
            _leave_pipe()
        console.fail(f"code of the model or the loss ended the process: sys.exit({error.code!r})")
        sys.exit(1)
    except BrokenPipeError:
        _leave_pipe()
    except Exception as error:
        console.fail(_reason(error))
        sys.exit(1)
    if code:  # of a command that has said what is wrong
        sys.exit(code)


def _leave_pipe() -> NoReturn:
    """End without a word: who read the output has enough of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing left to flush
    sys.exit(1)


def _reason(error: Exception) -> str:
    """What of the machine ended a command; anything else is a fault of ours, and raised again."""
    if is_out_of_memory(error):
        return _lack_of_memory()
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    raise error


_SMALLER = {
    "spectrum": "a smaller --batch, --dtype float32, --only some parameters, or hessrmt density, "
    "which forms no matrix",
    "density": "a smaller --batch, fewer --steps and --top, or --dtype float32",
    "landscape": "a smaller --batch, or --dtype float32",
    "train": "a smaller --batch and --history-batch",
    "simulate": "a smaller --dimension, or --method tridiagonal",
    "capacity": "--only some layers, or --conv slices",
    "normalize": "a smaller --batch",
    "levels": "fewer --surrogates, or --window a part of the levels",
    "report": "fewer --surrogates, or fewer files",
    "reproduce": "--preset small, or fewer --workers",
}
"""Command to what takes less memory."""


def _lack_of_memory() -> str:
    """What is said where memory runs out; nothing of the error itself, which may be pages long."""
    command = next((word for word in sys.argv[1:] if word in _SMALLER), "")
    stored = command in {"spectrum", "density", "train", "simulate"}
    kept = "; what was finished is on disk: --resume continues it" * stored
    return f"out of memory; take {_SMALLER.get(command, 'a smaller input')}{kept}"
