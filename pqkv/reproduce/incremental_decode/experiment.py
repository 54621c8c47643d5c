"""The parts of `incremental-decode` together: cells, claims, tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pqkv.record import Record
from pqkv.reproduce.incremental_decode.race import finding_c, part_c, plots_c, race_rows
from pqkv.reproduce.incremental_decode.settings import Settings
from pqkv.reproduce.incremental_decode.steps import finding_a, finding_b, part_a, part_b, size_rows, step_rows
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row, lines, plot, write_claims, write_plot, write_rows

PARTS = {"a": (part_a, finding_a), "b": (part_b, finding_b), "c": (part_c, finding_c)}
LETTERS = "".join(PARTS)
MODEL_LETTERS = ""  # nothing here asks a model


def cells(settings: Settings, request: Request) -> Iterator[Record]:
    """Every part that is asked for."""
    for letter, (run, _) in PARTS.items():
        if not request.parts or letter in request.parts:
            yield from run(settings, request)


def claims_of(records: Sequence[Record]) -> list[Row]:
    """The rows of claims.csv, part by part."""
    return [{"part": letter, **row} for letter, (_, finding) in PARTS.items() for row in finding(records)]


def derive(records: list[Record], folder: Path) -> list[Path]:
    """`claims.csv`, a table for each part, pictures of bytes and of times."""
    folder, steps = Path(folder), step_rows(records)
    written = write_claims(claims_of(records), folder)
    for name, rows in (("a_steps", steps), ("b_sizes", size_rows(records)), ("c_race", race_rows(records))):
        if rows:
            written.append(write_rows(rows, folder / f"{name}.csv"))
    if steps:
        own = [row for row in steps if row["device"] == "cpu"]
        drawn = lines(own, lambda row: "all layers", "decoder", "length", "bytes_per_token")
        labels = ("tokens", "bytes between host and device")
        bytes_plot = plot("a_bytes", "What a token moves", labels, drawn, "decoder", log_x=True, log_y=True)
        written += write_plot(bytes_plot, folder)
    for drawn_plot in plots_c(records):
        written += write_plot(drawn_plot, folder)
    return written
