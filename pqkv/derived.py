"""Figures that follow from what else a record holds: computed when it is shown, never stored, never measured."""

from __future__ import annotations

from pqkv.metrics import PARTS, charge_ms, part_metric
from pqkv.record import Metric, Record
from pqkv.schedule import share_of_config


def derived(record: Record) -> dict[str, Metric]:
    """What follows from the record: of a breakdown its parts, of decoding on codes what encoding makes of it, of an
    evaluation without it the share of coded columns.
    """
    return _parts(record) | _charged(record) | _share(record)


def nothing_coded(record: Record) -> bool:
    """Whether a cell was to show what codes cost and had none: its figures are the exact cache's."""
    share = record.metrics.get("coded_share") or derived(record).get("coded_share")
    return bool(record.config.get("bits")) and share is not None and share.value == 0


def _share(record: Record) -> dict[str, Metric]:
    """`coded_share` by the schedule, of records that were made before it was measured."""
    if record.kind != "eval" or record.status != "ok" or "coded_share" in record.metrics:
        return {}
    share = share_of_config(record.config)
    return {} if share is None else {"coded_share": Metric(value=share)}


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
