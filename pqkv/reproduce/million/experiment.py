"""The parts of `million` together: their cells, and the claims, tables and pictures made of the records of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pqkv.errors import PqkvError
from pqkv.record import Record
from pqkv.report.drawing import Plot
from pqkv.reproduce.million import layouts, lookups, memory, pages, pool, quality, splits, steps, tokens
from pqkv.reproduce.million.lab import Lab
from pqkv.reproduce.million.settings import Settings
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import CLAIM_COLUMNS, WORDS, Row, write_plot, write_rows


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the experiment: how its cells are run, and what is made of the records of all parts."""

    letter: str
    cells: Callable[[Lab], Iterator[Record]]
    finding: Callable[[Sequence[Record]], list[Row]]
    tables: Callable[[Sequence[Record]], dict[str, list[Row]]] = lambda records: {}
    plots: Callable[[Sequence[Record]], list[Plot]] = lambda records: []


PARTS = (
    Part(
        "a", quality.part_a, quality.finding_a, lambda records: {"a_quality": quality.rows_a(records)}, quality.plots_a
    ),
    Part("b", memory.part_b, memory.finding_b, lambda records: {"b_memory": memory.rows_b(records)}, memory.plots_b),
    Part("c", lambda lab: lookups.part_c(lab.request), lookups.finding_c),
    Part("d", lambda lab: layouts.part_d(lab.request), layouts.finding_d),
    Part(
        "e",
        pages.part_e,
        pages.finding_e,
        lambda records: {
            "e_pages": pages.rows_e(records),
            "e_flushes": pages.flush_rows(records),
            "e_slots": pages.slot_rows(records),
        },
        pages.plots_e,
    ),
    Part(
        "e",
        pool.pool_part,
        pool.pool_finding,
        lambda records: {"e_allocation": pool.allocation_rows(records), "e_pool_sizes": pool.pool_rows(records)},
        pool.pool_plots,
    ),
    Part("f", lambda lab: splits.part_f(lab.request), splits.finding_f),
    Part("g", lambda lab: tokens.part_g(lab.request), tokens.finding_g),
    Part(
        "h",
        quality.part_h,
        quality.finding_h,
        lambda records: {"h_opq": quality.rows_h(records), "h_errors": quality.errors_h(records)},
        quality.plots_h,
    ),
    Part("i", lambda lab: steps.part_i(lab.request), steps.finding_i),
)
LETTERS = "".join(dict.fromkeys(part.letter for part in PARTS))


def cells(settings: Settings, request: Request) -> Iterator[Record]:
    """Run every part that is asked for; one that cannot begin is a failed record, and the next begins."""
    lab = Lab(settings, request)
    for part in PARTS:
        if request.parts and part.letter not in request.parts:
            continue
        try:
            yield from part.cells(lab)
        except PqkvError as error:
            yield lab.failure(part.letter, error)


def derive(records: list[Record], folder: Path) -> list[Path]:
    """`claims.csv`, the tables of each part and its pictures; a part without records leaves none."""
    folder = Path(folder)
    claims: list[Row] = []
    written: list[Path] = []
    for part in PARTS:
        claims += [
            {"part": part.letter, **row, "holds": WORDS.get(row["holds"], row["holds"])}
            for row in part.finding(records)
        ]
        for name, rows in part.tables(records).items():
            if rows:
                written.append(write_rows(rows, folder / f"{name}.csv"))
        for drawn in part.plots(records):
            written += write_plot(drawn, folder)
    return [write_rows(claims, folder / "claims.csv", CLAIM_COLUMNS), *written]
