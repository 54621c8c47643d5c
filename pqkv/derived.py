"""Figures that follow from others of the same record: computed when a record is shown, never stored, never measured."""

from __future__ import annotations

from pqkv.metrics import PARTS, charge_ms, part_metric
from pqkv.record import Metric, Record


def derived(record: Record) -> dict[str, Metric]:
    """What follows from the record: of a breakdown its parts, of decoding on codes what encoding makes of it."""
    return _parts(record) | _charged(record)


def _parts(record: Record) -> dict[str, Metric]:
    """Median milliseconds by part, so that tables and CSV files have them as any other figure."""
    rows = record.tables.get("breakdown", [])
    return {part_metric(row["part"]): Metric(value=row["median_ms"], unit="ms") for row in rows if row["part"] in PARTS}


def _charged(record: Record) -> dict[str, Metric]:
    """`charged_latency_ms` and `charged_speedup` where the record has what they follow from. The interval is that of
    the speed-up: the charge is taken as a constant of the cell.
    """
    latency, ratio = record.metrics.get("latency_ms"), record.metrics.get("speedup")
    rate, batch = record.metrics.get("encode_tokens_per_s"), record.config.get("batch")
    if latency is None or ratio is None or rate is None or not latency.value or not rate.value or not batch:
        return {}
    charged = latency.value + charge_ms(rate.value, batch)
    share = latency.value / charged
    value, low, high = (None if part is None else part * share for part in (ratio.value, ratio.low, ratio.high))
    return {
        "charged_latency_ms": Metric(value=charged, unit="ms"),
        "charged_speedup": Metric(value=value, low=low, high=high, unit="x", n=ratio.n),
    }


def with_derived(record: Record) -> Record:
    """The record with its derived figures among its metrics, to be shown and not to be written."""
    found = derived(record)
    return record.model_copy(update={"metrics": record.metrics | found}) if found else record
