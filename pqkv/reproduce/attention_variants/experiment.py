"""The parts of `attention-variants` together: cells, claims, tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pqkv.record import Record
from pqkv.reproduce.attention_variants import sharing, sizes, softmax
from pqkv.reproduce.attention_variants.settings import Settings
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row, write_claims, write_plot, write_rows

PARTS = {
    "a": (softmax.part_a, softmax.finding_a),
    "b": (sizes.part_b, sizes.finding_b),
    "c": (sharing.part_c, sharing.finding_c),
}
LETTERS = "".join(PARTS)
MODEL_LETTERS = ""  # nothing of these parts asks a model


def cells(settings: Settings, request: Request) -> Iterator[Record]:
    """Every part that is asked for."""
    for letter, (run, _) in PARTS.items():
        if not request.parts or letter in request.parts:
            yield from run(settings, request)


def claims_of(records: Sequence[Record]) -> list[Row]:
    """The rows of claims.csv, part by part."""
    return [{"part": letter, **row} for letter, (_, finding) in PARTS.items() for row in finding(records)]


def derive(records: list[Record], folder: Path) -> list[Path]:
    """`claims.csv`, a table for what was measured, pictures."""
    folder = Path(folder)
    written = write_claims(claims_of(records), folder)
    tables = {
        "a_memory": softmax.memory_rows, "a_defects": softmax.defect_rows, "a_kernel": softmax.kernel_rows,
        "c_sharing": sharing.sharing_rows,
    }  # fmt: skip
    for name, rows_of in tables.items():
        if rows := rows_of(records):
            written.append(write_rows(rows, folder / f"{name}.csv"))
    for drawn in softmax.plots_a(records):
        written += write_plot(drawn, folder)
    return written
