"""`pqkv report`: tables and plots from records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[list[Path], typer.Argument(help="Record files or folders of them.", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for CSV, Markdown and PNG.", show_default=False)
    ],
) -> None:
    """Derive CSV, Markdown and plots from records; the records stay as they are."""
    from pqkv.errors import RecordError
    from pqkv.record import load_records
    from pqkv.report import write_report

    records = load_records(results)
    if not records:
        names = ", ".join(str(path) for path in results)
        raise RecordError(f"no records in {names}; make some with pqkv eval -o FOLDER")
    for path in write_report(records, output):
        typer.echo(path)
