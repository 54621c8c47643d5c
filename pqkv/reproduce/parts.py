"""Experiments in parts that ask no model: how their cells are run, and what is made of the records of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pqkv.cell import run_cell
from pqkv.config import Settings
from pqkv.env import environment, git_state
from pqkv.record import Record
from pqkv.report.drawing import Plot
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row, write_claims, write_plot, write_rows

Rows = Callable[[Sequence[Record]], list[Row]]


@dataclass(frozen=True, slots=True)
class Part:
    """A part: `cells(settings, request)` runs it, `finding(records)` are its claims, `tables` its tables by the names
    of their files, `plots` its pictures.
    """

    cells: Callable[[Any, Request], Iterator[Record]]
    finding: Rows
    tables: Mapping[str, Rows] = field(default_factory=dict)
    plots: Callable[[Sequence[Record]], list[Plot]] = lambda records: []


def run_parts(parts: Mapping[str, Part], settings: Settings, request: Request) -> Iterator[Record]:
    """The cells of every part that is asked for."""
    for letter, part in parts.items():
        if not request.parts or letter in request.parts:
            yield from part.cells(settings, request)


def part_cell(kind: str, config: dict[str, Any], measure: Callable[[], dict[str, Any]], request: Request) -> Record:
    """A cell of a part, in the store of the request; `config` has its seed."""
    return run_cell(
        measure, kind=kind, config=config, seed=config["seed"], env=environment(), git=git_state(),
        store=request.store, force=request.force,
    )  # fmt: skip


def claims_of(parts: Mapping[str, Part], records: Sequence[Record]) -> list[Row]:
    """The rows of claims.csv, part by part."""
    return [{"part": letter, **row} for letter, part in parts.items() for row in part.finding(records)]


def derive_parts(
    parts: Mapping[str, Part], records: list[Record], folder: Path, claims: Sequence[Row] | None = None
) -> list[Path]:
    """`claims.csv` and `claims.md`, the tables and the pictures of each part; a part without records leaves none.
    `claims` are those of these records where they are made already.
    """
    folder = Path(folder)
    written = write_claims(claims_of(parts, records) if claims is None else claims, folder)
    for part in parts.values():
        for name, rows_of in part.tables.items():
            if rows := rows_of(records):
                written.append(write_rows(rows, folder / f"{name}.csv"))
        for drawn in part.plots(records):
            written += write_plot(drawn, folder)
    return written
