"""`pqkv env`: the machine and versions that every record carries."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer


class EnvFormat(StrEnum):
    """Output of `pqkv env`."""

    table = "table"
    json = "json"


def env(
    format: Annotated[EnvFormat, typer.Option(help="How to print.")] = EnvFormat.table,
) -> None:
    """Show the machine and the versions that records carry."""
    from pqkv.env import environment, git_state, machine_name

    found = environment()
    if format is EnvFormat.json:
        typer.echo(json.dumps({**found, "git": git_state()}, indent=2, sort_keys=True))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=machine_name(found), show_header=False)
    for key, value in {**found, "git": git_state()}.items():
        table.add_row(key, _text(value))
    Console().print(table)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    return str(value)
