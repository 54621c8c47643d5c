"""Records as GitHub tables: the headline of every cell, where it ran, and what failed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

from pqkv.metrics import METRICS
from pqkv.record import Metric, Record, atomic_write
from pqkv.report.series import Cell, cells, machine_of

# Columns of metrics and their number formats. A table shows those that one of its cells has.
QUALITY = {
    "code_bits": ".3g", "effective_bits": ".3g", "perplexity": ".3f", "perplexity_exact": ".3f",
    "perplexity_ratio": ".4f", "agreement_at_1": ".4f", "kld_mean": "#.3g", "recall": ".3f", "recall_exact": ".3f",
}  # fmt: skip
SPEED = {
    "latency_ms": ".3g", "exact_latency_ms": ".3g", "speedup": ".2f", "charged_latency_ms": ".3g",
    "charged_speedup": ".2f", "bandwidth_gbs": ".3g", "bandwidth_fraction": ".3f", "encode_tokens_per_s": ".3g",
    "ttft_ms": ".3g", "tpot_ms": ".3g",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    text: Callable[[Cell], str]
    is_number: bool = True


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
    for name, members in groupby(ran, key=lambda cell: cell.group):
        blocks += _section(name, list(members))
    if failed:
        blocks += ["## Failed cells", "\n".join(_failure(cell) for cell in failed)]
    return "\n\n".join(blocks) + "\n"


def _section(name: str, members: list[Cell]) -> list[str]:
    blocks = [f"## {_inline(name)}"]
    shown = [
        columns
        for columns in (_metric_columns(QUALITY, members), _metric_columns(SPEED, members))
        if columns
    ]  # fmt: skip
    for columns in shown or [[]]:
        blocks.append(_table([*_cell_columns(members), *columns], members))
    names = [column.name for columns in shown for column in columns]
    if names:
        blocks.append(_key(names, members))
    blocks.append("\n".join(f"- {line}" for line in _origins(members)))
    if notes := sorted({note for cell in members for note in cell.record.notes}):
        blocks += ["Notes:", "\n".join(f"- {_inline(note)}" for note in notes)]
    return blocks


def _cell_columns(members: list[Cell]) -> list[_Column]:
    columns = [
        _Column("bits", lambda cell: re.sub(" bits?$", "", cell.shape)),
        _Column("mode", lambda cell: cell.mode or "-", is_number=False),
        _Column("context", lambda cell: "-" if cell.context is None else str(cell.context)),
    ]
    if any(cell.variant for cell in members):
        columns.append(_Column("variant", lambda cell: cell.variant or "-", is_number=False))
    return columns


def _metric_columns(formats: dict[str, str], members: list[Cell]) -> list[_Column]:
    return [
        _Column(name, partial(_metric_figure, name=name, spec=spec))
        for name, spec in formats.items()
        if any(cell.value(name) is not None for cell in members)
    ]


def _metric_figure(cell: Cell, name: str, spec: str) -> str:
    return _figure(cell.record.metrics.get(name), spec)


def _figure(metric: Metric | None, spec: str) -> str:
    if metric is None or metric.value is None:
        return "-"
    text = format(metric.value, spec)
    if metric.low is None or metric.high is None:
        return text
    return f"{text} [{metric.low:{spec}}, {metric.high:{spec}}]"


def _table(columns: Sequence[_Column], members: list[Cell]) -> str:
    head = [column.name for column in columns]
    rule = ["---:" if column.is_number else "---" for column in columns]
    rows = [[_inline(column.text(cell)) for column in columns] for cell in members]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def _key(names: list[str], members: list[Cell]) -> str:
    """How to read the columns: intervals, units, and which way is better."""
    sentences = []
    if any(metric.low is not None for cell in members for metric in cell.record.metrics.values()):
        sentences.append("Brackets hold 95% intervals.")
    units = [f"{name} in {METRICS[name].unit}" for name in names if METRICS[name].unit not in ("", "x")]
    if units:
        sentences.append(f"Units: {', '.join(units)}.")
    for direction in ("lower", "higher"):
        better = [name for name in names if METRICS[name].direction == direction]
        if better:
            sentences.append(f"{direction.capitalize()} is better: {', '.join(better)}.")
    return " ".join(sentences)


def _origins(members: list[Cell]) -> list[str]:
    """One line for each combination of machine, versions and commit that the cells came from."""
    lines = []
    for record in (cell.record for cell in members):
        versions = record.env.get("versions")
        named = sorted(versions.items()) if isinstance(versions, dict) else []
        software = ", ".join(f"{package} {version}" for package, version in named)
        python = f"Python {record.env.get('python', '?')}"
        lines.append(f"{machine_of(record)}; {python}{', ' if software else ''}{software}{_commit(record)}")
    return sorted({_inline(line) for line in lines})


def _commit(record: Record) -> str:
    commit = record.git.get("commit")
    if not commit:
        return ""
    return f"; commit {str(commit)[:8]}{' with local changes' if record.git.get('dirty') else ''}"


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
