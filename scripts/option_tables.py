"""Write docs/options.md: the options of every command, as ``--help`` has them.

python scripts/option_tables.py > docs/options.md
"""

from __future__ import annotations

import typer

from hessrmt.cli.app import app


def tables() -> str:
    """A table for each command.

    Returns:
        Markdown.
    """
    lines = [
        "# Options of all commands",
        "",
        "Made from the settings classes (`hessrmt/config.py`) by `scripts/option_tables.py`. Names",
        "in a TOML file (`--config`) are those of the options, with `_` in place of `-`.",
    ]
    commands = getattr(typer.main.get_command(app), "commands")  # noqa: B009
    for name, command in commands.items():
        for part, inner in getattr(command, "commands", {"": command}).items():
            lines += ["", f"## hessrmt {name} {part}".rstrip(), "", "| option | meaning |"]
            lines.append("| --- | --- |")
            for parameter in inner.params:
                names = [*parameter.opts, *parameter.secondary_opts]
                words = ", ".join(f"`{word}`" for word in names if word.startswith("-"))
                words = words or f"`{(parameter.metavar or parameter.name).upper()}`"
                meaning = (parameter.help or "").replace("\\[", "[").replace("|", "\\|")
                default = parameter.default
                if "default:" not in meaning and default not in {None, False, True, ()}:
                    meaning += f" [default: {default}]"
                lines.append(f"| {words} | {meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(tables(), end="")
