"""`pqkv env`: the machine and versions that every record carries."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from pqkv_cli.output import console, echo
from pqkv_cli.table import print_lines, print_pairs


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
        echo(json.dumps({**found, "git": git_state()}, indent=2, sort_keys=True))
        return
    out = console()
    print_lines(out, machine_name(found), style="table.title")
    print_pairs(out, [(key, _text(value)) for key, value in {**found, "git": git_state()}.items()])


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    return str(value)
