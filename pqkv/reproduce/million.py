"""The experiment `million`: what two reports on product-quantized caches claim, part by part, measured.

Parts a, b, e and h (quality, memory, pages, OPQ) are here and in the modules next to this one; c, d, f, g and i (speed)
in `million_speed`, where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from pqkv.errors import PqkvError
from pqkv.record import Record
from pqkv.report.drawing import Plot
from pqkv.reproduce import million_memory, million_pages, million_pool, million_quality
from pqkv.reproduce.million_lab import Lab
from pqkv.reproduce.million_settings import Settings
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import CLAIM_COLUMNS, WORDS, Row, write_plot, write_rows

__all__ = ["Settings", "cells", "derive"]

SPEED = "pqkv.reproduce.million_speed"
SPEED_PARTS = "cdfgi"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the experiment: how its cells are run, and what is made of the records of all parts."""

    letter: str
    cells: Callable[[Lab], Iterator[Record]]
    finding: Callable[[Sequence[Record]], list[Row]]
    tables: Callable[[Sequence[Record]], dict[str, list[Row]]] = lambda records: {}
    plots: Callable[[Sequence[Record]], list[Plot]] = lambda records: []


def parts() -> list[Part]:
    """The parts in order of their letters, those on speed only where they are installed."""
    own = [
        Part(
            "a",
            million_quality.part_a,
            million_quality.finding_a,
            lambda records: {"a_quality": million_quality.rows_a(records)},
            million_quality.plots_a,
        ),
        Part(
            "b",
            million_memory.part_b,
            million_memory.finding_b,
            lambda records: {"b_memory": million_memory.rows_b(records)},
            million_memory.plots_b,
        ),
        Part(
            "e",
            million_pages.part_e,
            million_pages.finding_e,
            lambda records: {
                "e_pages": million_pages.rows_e(records),
                "e_flushes": million_pages.flush_rows(records),
                "e_slots": million_pages.slot_rows(records),
            },
            million_pages.plots_e,
        ),
        Part(
            "e",
            million_pool.pool_part,
            million_pool.pool_finding,
            lambda records: {
                "e_allocation": million_pool.allocation_rows(records),
                "e_pool_sizes": million_pool.pool_rows(records),
            },
            million_pool.pool_plots,
        ),
        Part(
            "h",
            million_quality.part_h,
            million_quality.finding_h,
            lambda records: {
                "h_opq": million_quality.rows_h(records),
                "h_errors": million_quality.errors_h(records),
            },
            million_quality.plots_h,
        ),
    ]
    return sorted(own + _speed_parts(), key=lambda part: part.letter)


def cells(settings: Settings, request: Request) -> Iterator[Record]:
    """Run every part; one that cannot begin is a failed record, and the next begins."""
    lab = Lab(settings, request)
    for part in parts():
        try:
            yield from part.cells(lab)
        except PqkvError as error:
            yield lab.failure(part.letter, error)


def derive(records: list[Record], folder: Path) -> list[Path]:
    """`claims.csv`, the tables of each part and its pictures; a part without records leaves none."""
    folder = Path(folder)
    claims: list[Row] = []
    written: list[Path] = []
    for part in parts():
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


def _speed_parts() -> list[Part]:
    """`part_x(quick, store, force, report)` and `finding_x(records)` of the module on speed, for each letter."""
    if find_spec(SPEED) is None:
        return []
    module = import_module(SPEED)

    def cells_of(letter: str) -> Callable[[Lab], Iterator[Record]]:
        def run(lab: Lab) -> Iterator[Record]:
            r = lab.request
            found: Iterator[Record] = getattr(module, f"part_{letter}")(r.quick, r.store, r.force, r.report)
            yield from found

        return run

    return [
        Part(letter, cells_of(letter), getattr(module, f"finding_{letter}"))
        for letter in SPEED_PARTS
        if hasattr(module, f"part_{letter}")
    ]
