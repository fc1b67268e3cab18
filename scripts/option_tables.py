"""Write docs/options.md: the options of every command, as ``--help`` has them.

python scripts/option_tables.py > docs/options.md

The site has a page for each command, made of the same tables (scripts/site_pages.py).
"""

from __future__ import annotations

from typing import Any

import typer

from hessrmt.cli.app import app


def commands() -> dict[str, Any]:
    """Every command of the program.

    Returns:
        Its words after ``hessrmt``, to what typer made of it.
    """
    found = {}
    for name, command in getattr(typer.main.get_command(app), "commands").items():  # noqa: B009
        for part, inner in getattr(command, "commands", {"": command}).items():
            found[f"{name} {part}".rstrip()] = inner
    return found


def table(command: Any) -> str:
    """What a command takes.

    Args:
        command: One of ``commands()``.

    Returns:
        Markdown: a row for each option and argument.
    """
    lines = ["| option | meaning |", "| --- | --- |"]
    for parameter in command.params:
        names = [*parameter.opts, *parameter.secondary_opts]
        words = ", ".join(f"`{word}`" for word in names if word.startswith("-"))
        words = words or f"`{(parameter.metavar or parameter.name).upper()}`"
        meaning = (parameter.help or "").replace("\\[", "[").replace("|", "\\|")
        default = parameter.default
        if "default:" not in meaning and default not in {None, False, True, ()}:
            meaning += f" [default: {default}]"
        lines.append(f"| {words} | {meaning} |")
    return "\n".join(lines)


def tables() -> str:
    """A table for each command.

    Returns:
        Markdown.
    """
    parts = [
        "# Options of all commands\n\n"
        "Made from the settings classes (`hessrmt/config.py`) by `scripts/option_tables.py`. "
        "Names\nin a TOML file (`--config`) are those of the options, with `_` in place of `-`.",
        *(f"## hessrmt {name}\n\n{table(command)}" for name, command in commands().items()),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(tables(), end="")
