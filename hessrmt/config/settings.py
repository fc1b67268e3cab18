"""TOML files and command-line options become one validated, frozen object."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hessrmt.errors import ConfigError

Dtype = Literal["float32", "float64"]


class Settings(BaseModel):
    """What every settings class does: frozen, and no unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def number_or_text(value: str) -> int | float | str:
    """A value as the most special of integer, number and text."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


SettingsT = TypeVar("SettingsT", bound=Settings)


def load_settings(kind: type[SettingsT], file: Path | None = None, **options: Any) -> SettingsT:
    """Settings from a TOML file, overridden by the options that are not None.

    Args:
        kind: Which settings class to build.
        file: TOML file with the class's field names as keys, or None.
        options: Values given on the command line; None means "not given".

    Returns:
        The validated settings.

    Raises:
        ConfigError: If the file is unreadable, a name is unknown or a value cannot be used.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the settings file {file}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} is not valid TOML: {error}") from error
    values |= {name: value for name, value in options.items() if value is not None}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_in_words(error)) from error


def _in_words(error: ValidationError) -> str:
    lines: dict[str, str] = {}
    for item in error.errors():
        name = str(item["loc"][0]) if item["loc"] else "settings"
        given = f" (got {item['input']!r})" if item["loc"] else ""
        message = item["msg"].removeprefix("Value error, ")
        lines.setdefault(name, f"{name}: {message}{given}")
    return "; ".join(lines.values())
