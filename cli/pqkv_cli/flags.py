"""From flags to configuration: lists, layers (defaults < file < flags), and who runs on how many threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pqkv.errors import ConfigError


def option(help: str, panel: str, default: str | bool, *names: str) -> Any:  # noqa: ANN401 - typer's own
    """A typer option in a panel of the help; `default` is what the help shows, the configuration holds the real one."""
    import typer

    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=default)


def split_list(text: str | None, kind: type, flag: str) -> tuple[Any, ...] | None:
    """`"128,512"` -> (128, 512); None stays None. Raises `ConfigError` for what is not a list of `kind`."""
    if text is None:
        return None
    try:
        return tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        noun = {"int": "whole numbers", "float": "numbers"}.get(kind.__name__, "words")
        raise ConfigError(f"{flag} takes {noun} separated by commas, not '{text}'") from error


def layered(file: Path | None, flags: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What the file says, overridden by the flags that were given; and whom to name when a value is wrong."""
    from pqkv.config import read_config_file

    values = read_config_file(file) if file is not None else {}
    given = {key: value for key, value in flags.items() if value is not None}
    return values | given, f"{file.name} and flags" if file is not None else "flags"
