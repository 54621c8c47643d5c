"""The parts of `million` together: their cells, and the claims, tables and pictures made of the records of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pqkv.errors import PqkvError
from pqkv.record import Record
from pqkv.report.drawing import Plot
from pqkv.reproduce.million import (
    bins,
    copies,
    layouts,
    lookups,
    memory,
    outliers,
    pages,
    pool,
    quality,
    reported,
    splits,
    steps,
    tokens,
    windows,
)
from pqkv.reproduce.million.lab import Lab
from pqkv.reproduce.million.settings import Settings
from pqkv.reproduce.models import write_models
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import WORDS, Row, write_claims, write_plot, write_rows


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the experiment: how its cells are run, and what is made of the records of all parts; `asks` says that
    its claims are about a model, each of which answers in rows of its own.
    """

    letter: str
    cells: Callable[[Lab], Iterator[Record]]
    finding: Callable[[Sequence[Record]], list[Row]]
    tables: Callable[[Sequence[Record]], dict[str, list[Row]]] = lambda records: {}
    plots: Callable[[Sequence[Record]], list[Plot]] = lambda records: []
    asks: bool = False


PARTS = (
    Part(
        "a",
        quality.part_a,
        quality.finding_a,
        lambda records: {"a_quality": quality.rows_a(records)},
        quality.plots_a,
        asks=True,
    ),
    Part(
        "a",
        outliers.outlier_part,
        outliers.outlier_finding,
        lambda records: {"a_outliers": outliers.outlier_rows(records)},
        asks=True,
    ),
    Part("b", memory.part_b, memory.finding_b, lambda records: {"b_memory": memory.rows_b(records)}, memory.plots_b),
    Part("c", bins.bins_part, bins.bins_finding),
    Part("c", lambda lab: lookups.part_c(lab.request), lookups.finding_c),
    Part("d", lambda lab: layouts.part_d(lab.request), layouts.finding_d),
    Part("d", copies.copies_part, copies.copies_finding),
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
    Part("e", windows.capacity_part, windows.windows_finding),
    Part("f", lambda lab: splits.part_f(lab.request), splits.finding_f),
    Part("g", lambda lab: tokens.part_g(lab.request), tokens.finding_g),
    Part(
        "h",
        quality.part_h,
        quality.finding_h,
        lambda records: {"h_opq": quality.rows_h(records), "h_errors": quality.errors_h(records)},
        quality.plots_h,
        asks=True,
    ),
    Part("i", lambda lab: steps.part_i(lab.request), steps.finding_i),
    Part("j", reported.part_j, reported.finding_j),
)
LETTERS = "".join(dict.fromkeys(part.letter for part in PARTS))
MODEL_LETTERS = "".join(dict.fromkeys(part.letter for part in PARTS if part.asks))


def cells(settings: Settings, request: Request) -> Iterator[Record]:
    """Run every part that is asked for; one that cannot begin is a failed record, and the next begins.

    Raises `ConfigError` and `ModelError` for a model, named by the request, that cannot be loaded or asked.
    """
    lab = Lab(settings, request)
    if request.model is not None:
        lab.check_model()
    for part in PARTS:
        if (request.parts and part.letter not in request.parts) or (request.model is not None and not part.asks):
            continue
        try:
            yield from part.cells(lab)
        except PqkvError as error:
            yield lab.failure(part.letter, error)


def claims_of(records: Sequence[Record]) -> list[Row]:
    """The rows of claims.csv, part by part."""
    return [
        {"part": part.letter, **row, "holds": WORDS.get(row["holds"], row["holds"])}
        for part in PARTS
        for row in part.finding(records)
    ]


def derive(records: list[Record], folder: Path) -> list[Path]:
    """`claims.csv` and `claims.md`, the models side by side, the tables of each part and its pictures; a part without
    records leaves none.
    """
    folder = Path(folder)
    claims = claims_of(records)
    written = write_models(claims, folder)
    for part in PARTS:
        for name, rows in part.tables(records).items():
            if rows:
                written.append(write_rows(rows, folder / f"{name}.csv"))
        for drawn in part.plots(records):
            written += write_plot(drawn, folder)
    return [*write_claims(claims, folder), *written]
