"""`pqkv codecs`."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

from pqkv_cli.flags import option
from pqkv_cli.options import OUTPUT
from pqkv_cli.output import console, echo


class ListFormat(StrEnum):
    """How a list is printed."""

    table = "table"
    json = "json"


def codecs(
    name: Annotated[str | None, option("Only this one, with all its options.", "Codecs", False)] = None,
    format: Annotated[ListFormat, option("What to print.", OUTPUT, "table")] = ListFormat.table,
) -> None:
    """List the ways of coding that `pqkv eval --codec` and `pqkv lab` take, with their options.

    Bits are those of default options, counted in the bytes of 128 tokens of 8 heads of 128 channels.
    """
    from pqkv.codec.overview import overview

    found = overview(name)
    if format is ListFormat.json:
        echo(json.dumps(found, indent=1))
        return
    if name is not None:
        _print_one(found[0])
        return
    from pqkv_cli.table import print_table

    print_table(
        console(),
        ("codec", "bits", "learns", "modes", "from"),
        [[row["codec"], row["bits"], row["learns"], row["modes"], row["source"]] for row in found],
        words=("codec", "learns", "modes", "from"),
        title="ways of coding keys and values",
        caption="options: pqkv codecs --name NAME",
    )


def _print_one(row: dict[str, Any]) -> None:
    from pqkv_cli.table import print_lines, print_pairs

    out = console()
    print_lines(out, f"{row['codec']}: {row['about']}")
    print_pairs(out, [(key, row[key]) for key in ("bits", "learns", "modes", "source")])
    for name, said in row["options"].items():
        print_pairs(out, [(f"  {name}", said)])
