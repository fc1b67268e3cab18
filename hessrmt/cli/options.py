"""Options of the commands: those of a settings class are made from it, the others stand here."""

from __future__ import annotations

import inspect
import math
import os
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import wraps
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import typer

from hessrmt.cli import console
from hessrmt.config import Settings, load_settings
from hessrmt.errors import ConfigError, HessrmtError
from hessrmt.files import (
    require_apart,
    require_file,
    require_new,
    require_ordinary,
    write_whole,
)
from hessrmt.tables import to_csv

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from hessrmt.runs.run import Pool

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder searched first for data sets (also $HESSRMT_DATA)."),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the file if it is there; with more batches, samples or epochs it grows.",
    ),
]
SpectrumFile = Annotated[Path, typer.Option("--out", "-o", help="Spectrum file to write (HDF5).")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="File to keep the result in (HDF5), for report, plot and hr.load."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")]
PlotFolder = Annotated[
    Path | None, typer.Option("--plot", metavar="DIR", help="Draw pictures into this folder.")
]
PictureFile = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Picture (.png, .pdf, .svg).")
]
PictureFormat = Annotated[str, typer.Option("--format", help="Of the pictures: png, svg or pdf.")]
Style = Annotated[
    str,
    typer.Option(
        "--style",
        metavar="screen|paper|dark",
        help="For a screen, 3.3 inches wide for a column of print, or on a dark ground.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        max=4096,
        help="Compute in this many processes: one a GPU, or the cores divided among them. "
        "\\[default: in this process]",
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="ADDRESS",
        help="Compute with the workers of a Dask cluster that is there, e.g. tcp://node:8786.",
    ),
]
_JSON = typer.Option("--json", help="Print one JSON object on standard output.")
_MARKDOWN = typer.Option("--markdown", help="Print the report as Markdown on standard output.")
_CSV = typer.Option("--csv", metavar="F", help="Write the table of the result to this file.")
_CONFIG = typer.Option("--config", help="TOML file of settings; options given here override it.")
_QUIET = typer.Option("--quiet", "-q", help="Print results and errors alone.")


class Group(NamedTuple):
    """Where the options of a further settings class stand in a command.

    Attributes:
        prefix: With which they begin, e.g. ``"--history-"``.
        panel: Their heading in ``--help``.
    """

    prefix: str
    panel: str


class Report(NamedTuple):
    """What a command found, beside what it has shown.

    Attributes:
        plain: What ``--json`` prints, or a function that gives it.
        rows: Gives what ``--csv`` writes: flat dictionaries.
        exit_code: Of the process, once all is printed.
    """

    plain: Any
    rows: Callable[[], list[dict[str, Any]]]
    exit_code: int = 0


def quick(command: Callable[..., Report]) -> Callable[..., None]:
    """:func:`with_settings` for a command that only looks something up.

    With ``--json`` nothing but JSON is printed, on standard error neither.

    Args:
        command: As there.

    Returns:
        The command as typer takes it.
    """
    return with_settings(command, quick=True)


def with_settings(command: Callable[..., Any], *, quick: bool = False) -> Callable[..., None]:
    """Give a command an option for every setting of its parameters that are settings classes.

    Those that are in no :class:`Group` can also be read from a file with ``--config``. A command
    that returns a :class:`Report` has ``--json``, ``--markdown`` and ``--csv``.

    Args:
        command: Its parameters are arguments, settings classes and options of typer.
        quick: Whether it only looks something up.

    Returns:
        The command as typer takes it.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters, kinds = [], {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if not (isinstance(kind, type) and issubclass(kind, Settings)):
            parameters.append(_parameter(parameter.name, hint, parameter.default))
            continue
        group = next((mark for mark in marks if isinstance(mark, Group)), None)
        made = {f"{parameter.name}__{name}": name for name in kind.model_fields}
        kinds[parameter.name] = kind, group, made
        parameters += [
            _parameter(name, _option(field, kind.model_fields[field], group), None)
            for name, field in made.items()
        ]
    if hints["return"] is not type(None):
        parameters.append(_parameter("csv", Annotated[Path | None, _CSV], None))
        parameters.append(_parameter("markdown", Annotated[bool, _MARKDOWN], False))
        parameters.append(_parameter("json", Annotated[bool, _JSON], False))
    if kinds:
        parameters.append(_parameter("config", Annotated[Path | None, _CONFIG], None))
    parameters.append(_parameter("quiet", Annotated[bool, _QUIET], False))

    @wraps(command)
    def run(**given: Any) -> None:
        file = given.pop("config", None)
        json, markdown = given.pop("json", False), given.pop("markdown", False)
        console.begin(quiet=given.pop("quiet"), json=json, markdown=markdown, quick=quick)
        if json and markdown:
            raise ConfigError("--json and --markdown both print on standard output; give one")
        if (table := given.pop("csv", None)) is not None:
            require_file(table, "--csv")
        for name, (kind, group, made) in kinds.items():
            values = {field: given.pop(option) for option, field in made.items()}
            values = {k: v for k, v in values.items() if v is not None and v != []}
            try:
                given[name] = load_settings(kind, None if group else file, **values)
            except ConfigError as error:
                raise ConfigError(f"{group.prefix if group else ''}{error}") from error
        _keep_inputs({**given, "csv": table}, file)
        with console.silent_output() if json else nullcontext():
            found = command(**given)
        if found is None:
            return
        if table is not None:
            write_whole(table, to_csv([{k: _blank(v) for k, v in r.items()} for r in found.rows()]))
            console.note(f"written: {table}")
        if json:
            console.emit_json(found.plain() if callable(found.plain) else found.plain)
        if found.exit_code:
            raise typer.Exit(found.exit_code)

    run.__doc__ = (command.__doc__ or "").partition("Returns:")[0]
    setattr(run, "__signature__", inspect.Signature(parameters))  # noqa: B010
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


_OUTPUTS = ("out", "csv", "plot", "history")
"""Options that name what is written."""


def _keep_inputs(given: Mapping[str, Any], config: Path | None) -> None:
    """Refuse options by which a command would write onto what it reads, or never finish reading."""
    written = {f"--{name}": Path(given[name]) for name in _OUTPUTS if given.get(name)}
    read: list[Any] = [config]
    for name, value in given.items():
        if name not in _OUTPUTS:
            read += value.model_dump().values() if isinstance(value, Settings) else [value]
    every = [x for one in read for x in (one if isinstance(one, list | tuple) else [one])]
    # a word without a dot or a folder is the name of something known
    words = [
        str(x) for x in every if isinstance(x, Path) or (isinstance(x, str) and set(x) & set("./"))
    ]
    files = [*words, *(word.partition(".py:")[0] + ".py" for word in words if ".py:" in word)]
    for file in files:
        require_ordinary(Path(file))
    if any(map(os.path.exists, written.values())):
        words += [x for value in given.values() for x in _listed(value)]
        files += words
        folders = [x for x in (*every, os.environ.get("HESSRMT_DATA")) if isinstance(x, str)]
        files += [file for word in dict.fromkeys((*words, *folders)) for file in _behind(word)]
    require_apart(written, files)


def _listed(settings: Any) -> list[str]:
    """The networks that a table names, where one is given in their place or beside them."""
    from hessrmt.runs.capacity import read_paths

    table = getattr(settings, "against", None)
    with suppress(HessrmtError):  # said when it is read
        return read_paths(table) if table else []
    return []


def _behind(word: str) -> Iterator[str | Path]:
    """Files that are read where a folder, an index of shards or a file of code is given."""
    from hessrmt.problems import data, plugins, readers

    if plugins.is_plugin(word):
        yield from plugins.neighbours(word)
        return
    path = Path(os.path.expanduser(word))
    if os.path.isdir(path):
        yield from data.files_below(path)
    if os.path.exists(path):
        yield from readers.files_beside(path)


def _blank(value: Any) -> Any:
    """NaN and None as empty cells."""
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _option(field: str, info: FieldInfo, group: Group | None) -> Any:
    """The annotation of a setting for typer, to be None where the option is not given."""
    extra: Any = info.json_schema_extra or {}
    kind = _kind(info.annotation)
    word = (group.prefix if group else "--") + field.replace("_", "-")
    if kind is bool and info.default:
        word += f"/--no-{word.removeprefix('--')}"
    default, text = info.default, info.description or ""
    shown = extra.get("shown") or ("" if default in {None, False, ()} and default != 0 else default)
    if shown != "" and default is not False:
        text += f" \\[default: {shown:g}]" if isinstance(shown, float) else f" \\[default: {shown}]"
    panel = extra.get("panel") or (group.panel if group else None)
    made = typer.Option(word, help=text, metavar=extra.get("metavar"), rich_help_panel=panel)
    return Annotated[kind | None, made]


def _kind(annotation: Any) -> Any:
    """What typer makes of the words of an option; pydantic does the rest."""
    union = get_origin(annotation) in {Union, types.UnionType}
    parts = [p for p in (get_args(annotation) if union else (annotation,)) if p is not type(None)]
    if len(parts) > 1:
        return str
    if get_origin(parts[0]) is tuple and get_origin(get_args(parts[0])[0]) is Literal:
        return list[str]
    return parts[0] if parts[0] in {bool, int, float, Path} else str


def require_result(out: Path, *, may_exist: bool) -> None:
    """Refuse before minutes of work a file for a result that couldn't be loaded again.

    Args:
        out: The file.
        may_exist: Whether it may be replaced.

    Raises:
        ConfigError: If it has another ending, or cannot be written.
    """
    require_ending(out, (".h5", ".hdf5"))
    require_file(out, "--out")
    require_new(out, may_exist=may_exist, resumable=False)


def require_ending(out: Path, endings: Sequence[str]) -> None:
    """Refuse a name that promises another kind of file than what is written.

    Args:
        out: The file.
        endings: That it may have.

    Raises:
        ConfigError: If it has another one.
    """
    if out.suffix.lower() not in endings:
        raise ConfigError(f"--out {out} must end in {' or '.join(endings)}")


def check_picture(file: Path | None, *, may_exist: bool) -> None:
    """Refuse before minutes of work a picture that cannot be written or would replace another.

    Args:
        file: For it, if there is to be one.
        may_exist: Whether it may be replaced.
    """
    if file is not None:
        from hessrmt.plots.files import checked_ending

        require_file(file, "--plot")
        checked_ending(file.suffix or file.name)
        require_new(file, may_exist=may_exist, resumable=False)


def check_pictures(folder: Path | None, ending: str) -> None:
    """Refuse pictures that cannot be written before anything is computed.

    Args:
        folder: For them, if there are to be some.
        ending: Of their files.
    """
    if folder is not None or ending != "png":
        from hessrmt.plots.files import checked_ending, require_folder

        checked_ending(ending)
        if folder is not None:
            require_folder(folder)


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
    from hessrmt.runs.run import SERIAL

    if workers is None and scheduler is None:
        yield SERIAL
        return
    if workers is not None and scheduler is not None:
        raise ConfigError("--workers starts processes here, --scheduler uses others: give one")
    try:
        from hessrmt.runs.dask_pool import open_pool
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {"dask", "distributed"}:
            raise
        raise ConfigError(
            f"--workers and --scheduler need Dask (no module {error.name}): pip install "
            '"hessrmt[cluster]"'
        ) from error
    if workers is not None:  # a device that is not there is refused before processes are started
        from hessrmt.backend.select import select

        select(device)
    with open_pool(workers, scheduler, device) as pool:
        console.note(f"computing with {pool.words}")
        yield pool
