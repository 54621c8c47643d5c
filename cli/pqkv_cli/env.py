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
        if isinstance(value, dict):
            value = ", ".join(f"{name} {item}" for name, item in value.items())  # noqa: PLW2901
        elif isinstance(value, list):
            value = ", ".join(str(item) for item in value) or "none"  # noqa: PLW2901
        table.add_row(key, str(value))
    Console().print(table)
