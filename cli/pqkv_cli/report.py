"""`pqkv report`: tables, plots and a page from records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pqkv_cli.output import echo


def report(
    results: Annotated[list[Path], typer.Argument(help="Record files or folders of them.", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for CSV, Markdown, PNG and HTML.", show_default=False)
    ],
    experiments: Annotated[
        Path | None,
        typer.Option(
            "--experiments",
            help="Folder with NAME/README.md for each experiment: its question and finding.",
            show_default="experiments, where there is one",
        ),
    ] = None,
) -> None:
    """Derive CSV, Markdown, plots and one HTML page from records; the records stay as they are.

    On the page each sub-folder with records is an experiment of its own, with the tables and pictures that lie in it.
    """
    from pqkv.errors import RecordError
    from pqkv.record import load_records
    from pqkv.report import find_experiments, write_page, write_report
    from pqkv_cli.progress import ProgressBar

    with ProgressBar() as bar:
        bar.show("read records", 0, 1)
        records = load_records(results)
        if not records:
            names = ", ".join(str(path) for path in results)
            raise RecordError(f"no records in {names}; make some with pqkv eval -o FOLDER")
        if experiments is None and Path("experiments").is_dir():
            experiments = Path("experiments")
        found = find_experiments(results, experiments)
        count = f"{len(records)} record{'' if len(records) == 1 else 's'}"
        bar.show(f"tables and plots of {count}", 0, 1)
        paths = write_report(records, output)
        bar.show("page", 0, 1)
        paths = [*paths, write_page(found, output)]
    for path in paths:
        echo(path)
