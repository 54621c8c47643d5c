"""The whole report of a folder of records."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pqkv.errors import RecordError
from pqkv.record import Record
from pqkv.report.frame import write_csv
from pqkv.report.heatmap import write_heatmaps
from pqkv.report.markdown import write_markdown
from pqkv.report.plots import write_plots


def write_report(records: Iterable[Record], folder: Path) -> list[Path]:
    """Write `summary.csv`, `summary.md` and the plots that have data; return what was written, in that order.

    The same records give the same bytes, in whatever order they come. Raises `RecordError` when there are none, or
    when `folder` cannot take the files.
    """
    records = list(records)
    if not records:
        raise RecordError("there are no records to report; run `pqkv eval` first")
    folder = Path(folder)
    return [
        write_csv(records, folder / "summary.csv"),
        write_markdown(records, folder / "summary.md"),
        *write_plots(records, folder),
        *write_heatmaps(records, folder),
    ]
