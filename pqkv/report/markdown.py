"""Records as GitHub tables: the headline of every cell, where it ran, and what failed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from pqkv.record import Record, atomic_write
from pqkv.report.series import Cell, cells
from pqkv.report.tables import (
    HEADLINES,
    Column,
    Origin,
    cell_columns,
    groups,
    metric_columns,
    origins,
    reading_key,
)


def write_markdown(records: Iterable[Record], path: Path) -> Path:
    """Write one table per model, data and kind, with machine, versions and notes below it, then the failed cells."""
    atomic_write(path, markdown(records).encode("utf-8", "backslashreplace"))
    return path


def markdown(records: Iterable[Record]) -> str:
    """The text that `write_markdown` writes."""
    everything = cells(records)
    ran = [cell for cell in everything if cell.record.status == "ok"]
    failed = [cell for cell in everything if cell.record.status == "failed"]
    blocks = ["# Results", f"{len(ran)} cells ran, {len(failed)} failed."]
    for name, members in groups(ran):
        blocks += _section(name, members)
    if failed:
        blocks += ["## Failed cells", "\n".join(_failure(cell) for cell in failed)]
    return "\n\n".join(blocks) + "\n"


def _section(name: str, members: list[Cell]) -> list[str]:
    blocks = [f"## {_inline(name)}"]
    shown = [columns for formats in HEADLINES if (columns := metric_columns(formats, members))]
    for columns in shown or [[]]:
        blocks.append(_table([*cell_columns(members), *columns], members))
    names = [column.name for columns in shown for column in columns]
    if names:
        blocks.append(reading_key(names, members))
    blocks.append("\n".join(f"- {line}" for line in sorted({_origin(origin) for origin in origins(members)})))
    if notes := sorted({note for cell in members for note in cell.record.notes}):
        blocks += ["Notes:", "\n".join(f"- {_inline(note)}" for note in notes)]
    return blocks


def _table(columns: Sequence[Column], members: list[Cell]) -> str:
    head = [column.name for column in columns]
    rule = ["---:" if column.is_number else "---" for column in columns]
    rows = [[_inline(str(column.entry(cell))) for column in columns] for cell in members]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def _origin(origin: Origin) -> str:
    software = "".join(f", {package} {version}" for package, version in origin.versions)
    commit = f"; commit {origin.commit}" if origin.commit else ""
    return _inline(f"{origin.machine}; Python {origin.python}{software}{commit}")


def _failure(cell: Cell) -> str:
    context = "" if cell.context is None else f"context {cell.context}"
    what = ", ".join(part for part in (cell.group, cell.shape, cell.mode, context, cell.variant) if part)
    return f"- {_inline(what)} (`{cell.record.digest}`): {_verbatim(cell.record.error or '')}"


def _inline(text: str) -> str:
    """Text that stays on its line and in its table cell."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")


def _verbatim(text: str) -> str:
    """A code span: an error message may hold any character that Markdown knows."""
    text = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}"
