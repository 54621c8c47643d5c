"""What commands that run a grid of cells have in common: gather the records, print them, fail if a cell did."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from pqkv_cli.output import echo

if TYPE_CHECKING:
    from pqkv.record import Record, RecordStore
    from pqkv_cli.progress import ProgressBar


class RecordFormat(StrEnum):
    """How records are printed."""

    table = "table"
    json = "json"
    csv = "csv"


def gather(cells: Callable[[RecordStore | None, ProgressBar], Iterable[Record]], output: Path | None) -> list[Record]:
    """All records that `cells` yields, kept in `output` where it is given; notes and failures are said as they come."""
    from pqkv.record import RecordStore
    from pqkv_cli.progress import ProgressBar

    store = RecordStore(output) if output is not None else None
    records = []
    with ProgressBar() as bar:
        for record in cells(store, bar):
            records.append(record)
            for note in record.notes:
                bar.say(f"note: {note}")
            if record.status == "failed":
                bar.say(f"failed: {record.error}")
    return records


def print_records(
    records: list[Record], format: RecordFormat, output: Path | None, table: Callable[[list[Record]], None]
) -> None:
    """On stdout: JSON or CSV of all records, or the command's own table of those that ran and where they are kept."""
    if format is RecordFormat.json:
        echo_json(records)
        return
    if format is RecordFormat.csv:
        from pqkv.report import to_frame

        echo(to_frame(records).to_csv(index=False), end="")
        return
    table([record for record in records if record.status == "ok"])
    if output is not None:
        echo(f"records: {output} (pqkv report {output} -o {output} derives tables, plots and a page)")


def echo_json(records: list[Record]) -> None:
    """All records on stdout as one JSON list, in ASCII."""
    echo(json.dumps([record.model_dump(mode="json") for record in records], indent=1, allow_nan=False))


def raise_if_failed(records: list[Record]) -> None:
    """Raise `PqkvError`, with the first cause, if a cell failed: the command ends with exit code 2."""
    failed = [record for record in records if record.status == "failed"]
    if failed:
        from pqkv.errors import PqkvError

        raise PqkvError(f"{len(failed)} of {len(records)} cells failed: {failed[0].error}")
