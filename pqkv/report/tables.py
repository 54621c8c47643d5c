"""What the tables of a report hold, whoever sets them: the headline of every cell, and where it ran."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from pqkv.derived import nothing_coded
from pqkv.metrics import PARTS, metric_info, metric_order, part_metric
from pqkv.record import Metric, Record
from pqkv.report.series import Cell, codec_name, machine_of

# Columns of metrics and their number formats. A table shows those that one of its cells has.
QUALITY = {
    "code_bits": ".3g", "effective_bits": ".3g", "coded_share": ".2f", "perplexity": ".3f", "perplexity_exact": ".3f",
    "perplexity_ratio": ".4f", "agreement_at_1": ".4f", "kld_mean": "#.3g", "recall": ".3f", "recall_exact": ".3f",
}  # fmt: skip
SPEED = {
    "latency_ms": ".3g", "exact_latency_ms": ".3g", "speedup": ".2f", "charged_latency_ms": ".3g",
    "charged_speedup": ".2f", "bandwidth_gbs": ".3g", "bandwidth_fraction": ".3f", "encode_tokens_per_s": ".3g",
    "ttft_ms": ".3g", "tpot_ms": ".3g",
}  # fmt: skip
STATIC = {
    "registers": ".0f", "static_shared_bytes": ".0f", "spill_bytes": ".0f", "stack_bytes": ".0f",
    "blocks_per_multiprocessor": ".0f", "warps_per_multiprocessor": ".0f", "key_instructions": ".2f",
    "value_instructions": ".2f", "key_table_instructions": ".2f", "value_table_instructions": ".2f",
}  # fmt: skip
BREAKDOWN = {part_metric(part): ".3g" for part in PARTS}
HEADLINES = (QUALITY, SPEED, BREAKDOWN, STATIC)


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands in a field of a table: a figure with its interval, or words alone."""

    text: str
    interval: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.interval}" if self.interval else self.text


@dataclass(frozen=True, slots=True)
class Column:
    """A heading and what stands under it for each cell."""

    name: str
    entry: Callable[[Cell], Entry]
    is_number: bool = True


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """Where cells were measured: machine, software, and the commit, empty where it is not known."""

    machine: str
    python: str
    versions: tuple[tuple[str, str], ...]
    commit: str


def groups(ran: Iterable[Cell]) -> list[tuple[str, list[Cell]]]:
    """The cells that stand in a table together, by the name of their group."""
    return [(name, list(members)) for name, members in groupby(ran, key=lambda cell: cell.group)]


def cell_columns(members: Sequence[Cell]) -> list[Column]:
    """The columns that say which cell a row is."""
    columns = [
        Column("bits", _bits),
        Column("mode", lambda cell: Entry(cell.mode or "-"), is_number=False),
        Column("context", lambda cell: Entry("-" if cell.context is None else str(cell.context))),
    ]
    if any(codec_name(cell.record.config) for cell in members):
        columns.append(Column("codec", lambda cell: Entry(codec_name(cell.record.config) or "-"), is_number=False))
    if any(cell.variant for cell in members):
        columns.append(Column("variant", lambda cell: Entry(cell.variant or "-"), is_number=False))
    return columns


def _bits(cell: Cell) -> Entry:
    """The code shape; of cells that were to show what codes cost and had none, that."""
    bits = cell.record.config.get("bits")
    shape = f"{bits:g}" if codec_name(cell.record.config) and bits else re.sub(" bits?$", "", cell.shape)
    return Entry(f"{shape}, nothing coded" if nothing_coded(cell.record) else shape)


def metric_columns(formats: dict[str, str], members: Sequence[Cell]) -> list[Column]:
    """The columns of those metrics that one of the cells has a value of."""
    return [
        Column(name, partial(_metric_entry, name=name, spec=spec))
        for name, spec in formats.items()
        if any(cell.value(name) is not None for cell in members)
    ]


def further_formats(members: Sequence[Cell]) -> dict[str, str]:
    """The metrics of the cells that no headline table shows, with a format for each."""
    shown = {name for formats in HEADLINES for name in formats}
    return {
        name: "#.3g"
        for name in sorted({name for cell in members for name in cell.record.metrics}, key=metric_order)
        if name not in shown
    }


def metric_entry(metric: Metric | None, spec: str) -> Entry:
    """A figure with its 95% interval, a dash where there is none."""
    if metric is None or metric.value is None:
        return Entry("-")
    text = format(metric.value, spec)
    if metric.low is None or metric.high is None:
        return Entry(text)
    return Entry(text, f"[{metric.low:{spec}}, {metric.high:{spec}}]")


def reading_key(names: Sequence[str], members: Sequence[Cell]) -> str:
    """How to read the columns: intervals, units, and which way is better."""
    sentences = []
    if any(metric.low is not None for cell in members for metric in cell.record.metrics.values()):
        sentences.append("Brackets hold 95% intervals.")
    units = [f"{name} in {metric_info(name).unit}" for name in names if metric_info(name).unit not in ("", "x")]
    if units:
        sentences.append(f"Units: {', '.join(units)}.")
    for direction in ("lower", "higher"):
        better = [name for name in names if metric_info(name).direction == direction]
        if better:
            sentences.append(f"{direction.capitalize()} is better: {', '.join(better)}.")
    return " ".join(sentences)


def origins(members: Iterable[Cell]) -> dict[Origin, int]:
    """Each combination of machine, versions and commit that the cells came from, and how many came from it."""
    return dict(sorted(Counter(_origin(cell.record) for cell in members).items()))


def _origin(record: Record) -> Origin:
    versions = record.env.get("versions")
    named = sorted((name, str(version)) for name, version in versions.items()) if isinstance(versions, dict) else []
    return Origin(machine_of(record), str(record.env.get("python", "?")), tuple(named), _commit(record))


def _commit(record: Record) -> str:
    commit = record.git.get("commit")
    if not commit:
        return ""
    return f"{str(commit)[:8]}{' with local changes' if record.git.get('dirty') else ''}"


def _metric_entry(cell: Cell, name: str, spec: str) -> Entry:
    return metric_entry(cell.record.metrics.get(name), spec)
