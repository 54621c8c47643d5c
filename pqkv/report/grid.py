"""A table ready to be set: headings, rows, numbers told from words, a figure and its interval in one field."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from pqkv.errors import RecordError
from pqkv.metrics import metric_info
from pqkv.report.series import Cell, as_text
from pqkv.report.tables import Column, Entry, cell_columns

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Heading:
    """A column's name and, below it, its unit and which way is better."""

    name: str
    hint: str = ""
    is_number: bool = True


@dataclass(frozen=True, slots=True)
class Grid:
    """A table with its title. `file` names the file it was read from, for a table that an experiment wrote itself."""

    title: str
    headings: tuple[Heading, ...]
    rows: tuple[tuple[Entry, ...], ...]
    note: str = ""
    file: str = ""


def grid_of_cells(title: str, columns: Sequence[Column], members: Sequence[Cell], note: str = "") -> Grid:
    """One row a cell, with the record's digest at its end: the name of the file to look into."""
    headings = [Heading(column.name, _hint(column.name), column.is_number) for column in columns]
    rows = [(*(column.entry(cell) for column in columns), Entry(cell.record.digest)) for cell in members]
    return Grid(title, (*headings, Heading("record", is_number=False)), tuple(rows), note)


def grid_of_tables(name: str, members: Sequence[Cell]) -> Grid:
    """The tables of this name that the cells hold, one below the other, each row with the cell it belongs to."""
    columns = cell_columns(members)
    pairs = [(cell, row) for cell in members for row in cell.record.tables.get(name, [])]
    inner = grid_of_rows(name, [row for _, row in pairs])
    outer = tuple(Heading(column.name, is_number=column.is_number) for column in columns)
    rows = tuple(
        (*(column.entry(cell) for column in columns), *row) for (cell, _), row in zip(pairs, inner.rows, strict=True)
    )
    return Grid(name, (*outer, *inner.headings), rows)


def grid_of_rows(title: str, rows: Sequence[Mapping[str, Any]], note: str = "", file: str = "") -> Grid:
    """Any rows of keys and values. Columns `x_low` and `x_high` become the interval of `x`."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    bounds = {f"{name}_{end}" for name in names if _bounded(name, names) for end in ("low", "high")}
    shown = [name for name in names if name not in bounds]
    headings = [
        Heading(name, is_number=all(_is_number(row.get(name)) for row in rows if row.get(name) not in (None, "")))
        for name in shown
    ]
    entries = tuple(tuple(_entry(row, name, bounded=_bounded(name, names)) for name in shown) for row in rows)
    return Grid(title, tuple(headings), entries, note, file)


def read_csv_grid(path: Path, title: str) -> Grid:
    """A CSV file with a heading as a table. Raises `RecordError` in one line when it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
            rows = [{key: value for key, value in row.items() if isinstance(key, str)} for row in csv.DictReader(file)]
    except (OSError, csv.Error) as error:
        raise RecordError(f"cannot read the table {path}: {getattr(error, 'strerror', None) or error}") from error
    return grid_of_rows(title, rows, file=path.name)


def _hint(name: str) -> str:
    """The unit and an arrow for the better way, where `name` is a metric."""
    try:
        info = metric_info(name)
    except RecordError:
        return ""
    arrow = {"lower": "\N{DOWNWARDS ARROW}", "higher": "\N{UPWARDS ARROW}", "none": ""}[info.direction]
    return " ".join(part for part in (info.unit, arrow) if part)


def _bounded(name: str, names: Iterable[str]) -> bool:
    return {f"{name}_low", f"{name}_high"} <= set(names)


def _entry(row: Mapping[str, Any], name: str, *, bounded: bool) -> Entry:
    text = _figure(row.get(name))
    low, high = (row.get(f"{name}_{end}") for end in ("low", "high"))
    if not bounded or not _is_number(low) or not _is_number(high):
        return Entry(text)
    return Entry(text, f"[{_figure(low)}, {_figure(high)}]")


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return _NUMBER.fullmatch(value.strip()) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure(value: object) -> str:
    """A value for people: fractions to four digits, whole numbers and words as they are."""
    if value is None or value == "":
        return "-"
    if not _is_number(value):
        return as_text(value)
    text = str(value).strip()
    number = float(text)
    if not isfinite(number) or re.fullmatch(r"[-+]?\d+", text):
        return text
    return f"{number:.0f}" if number.is_integer() and abs(number) < 1e15 else f"{number:.4g}"
