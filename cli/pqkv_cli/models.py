"""`pqkv models`: what goes by a name, what is there of it, and what is kept on disk."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pqkv_cli.output import console, echo
from pqkv_cli.table import print_table

if TYPE_CHECKING:
    from pqkv.lm.inventory import Entry


class ModelsFormat(StrEnum):
    """Output of `pqkv models`."""

    table = "table"
    json = "json"


def models(
    name: Annotated[
        str | None, typer.Argument(help="One model alone, as the list calls it.", show_default=False)
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove the kept copies and default codebooks, of all models or of NAME.")
    ] = False,
    format: Annotated[ModelsFormat, typer.Option(help="How to print.")] = ModelsFormat.table,
) -> None:
    """List the models that go by a name, what is there of each, and what pqkv keeps; --clear removes what it keeps."""
    from pqkv.errors import ModelError
    from pqkv.lm.inventory import clear as remove
    from pqkv.lm.inventory import inventory

    if clear:
        _say_removed(remove(name), format)
        return
    entries = [entry for entry in inventory() if name in (None, entry.name)]
    if not entries:
        raise ModelError(f"there is nothing of a model called '{name}'; pqkv models lists what there is")
    rows = [_fields(entry) for entry in entries]
    if format is ModelsFormat.json:
        echo(json.dumps(rows, indent=1))
        return
    print_table(
        console(),
        ("model", "family", "parameters", "licence", "weights", "on disk", "kept copy", "codebooks", "codecs"),
        [
            (
                str(row["model"]), str(row["family"]), _millions(int(row["parameters"])), str(row["licence"]),
                str(row["weights"]),
                *(_size(int(row[key])) for key in ("weights_bytes", "kept_bytes", "codebooks_bytes", "codecs_bytes")),
            )
            for row in rows
        ],
        title="models",
        caption=f"kept in {_place()}; removed by pqkv models --clear [MODEL]",
        words=("model", "family", "licence", "weights"),
    )  # fmt: skip


def _fields(entry: Entry) -> dict[str, str | int]:
    from pqkv.lm.inventory import size_of

    return {
        "model": entry.name,
        "family": entry.family,
        "parameters": entry.parameters,
        "licence": entry.licence,
        "weights": entry.there,
        "weights_bytes": size_of(entry.weights),
        "kept_bytes": size_of(entry.copy),
        "codebooks_bytes": size_of(entry.codebooks),
        "codecs_bytes": size_of(entry.codecs),
    }


def _say_removed(removed: list[tuple[Entry, int]], format: ModelsFormat) -> None:
    if format is ModelsFormat.json:
        rows = [{"model": entry.name, "removed_bytes": size} for entry, size in removed]
        echo(json.dumps(rows, indent=1))
        return
    for entry, size in removed:
        what = [
            *(["the dequantized copy"] if entry.copy else []),
            *([f"default codebooks ({len(entry.codebooks)})"] if entry.codebooks else []),
            *([f"codecs ({len(entry.codecs)})"] if entry.codecs else []),
        ]
        echo(f"{entry.name}: removed {' and '.join(what)}, {_size(size)}")
    if not removed:
        echo("nothing was kept")


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count else ""


def _size(count: int) -> str:
    if not count:
        return ""
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"


def _place() -> str:
    from pqkv.keeping import cache_place

    return str(cache_place().folder)
