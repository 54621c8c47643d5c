"""The parts of `paged-kernel` together: cells, claims, tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pqkv.record import Record
from pqkv.reproduce.paged_kernel import checks, sizes
from pqkv.reproduce.paged_kernel.settings import Settings
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row, write_claims, write_plot, write_rows

PARTS = {
    "a": (checks.part_a, checks.finding_a),
    "b": (checks.part_b, checks.finding_b),
    "c": (checks.part_c, checks.finding_c),
    "d": (sizes.part_d, sizes.finding_d),
    "e": (sizes.part_e, sizes.finding_e),
}
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
    """`claims.csv`, the matrix of tests and faults, reductions and times, and a picture."""
    folder = Path(folder)
    written = write_claims(claims_of(records), folder)
    tables = {"a_tests": checks.test_rows, "c_waves": checks.wave_rows, "e_prefill": sizes.race_rows}
    for name, rows_of in tables.items():
        if rows := rows_of(records):
            written.append(write_rows(rows, folder / f"{name}.csv"))
    for drawn in sizes.plots_e(records):
        written += write_plot(drawn, folder)
    return written
