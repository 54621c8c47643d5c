"""The table of `pqkv bench --end-to-end`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pqkv.record import Record


def end_to_end_table(records: list[Record]) -> None:
    """A row per cell: ours, and every exact cache of the same rounds."""
    if not records:
        return
    from pqkv.report.series import machine_of
    from pqkv_cli.output import console
    from pqkv_cli.table import print_table

    first = records[0].config
    print_table(
        console(),
        ("bits", "batch", "prompt", "TTFT ms", "ms/token", "DynamicCache", "StaticCache", "speed-up", "ceiling"),
        map(_row, records),
        title=f"{first['model']} ({first['weights']} weights, {first['dtype']}), backend {first['backend']}, "
        f"{first['new_tokens']} tokens after the prompt",
        caption=f"medians of {first['repeats']} runs in turns; ceiling: the fastest exact cache with attention for "
        f"nothing (its time per token after a prompt of 16 tokens); {machine_of(records[0])}",
    )


def _row(record: Record) -> list[str]:
    c, m = record.config, record.metrics
    others = {row["name"]: f"{row['tpot_ms']:.2f}" for row in record.tables["caches"]}
    return [
        f"{c['bits']:g}" if c["bits"] else "exact",
        str(c["batch"]),
        str(c["context"]),
        f"{m['ttft_ms'].value:.0f}",
        f"{m['tpot_ms'].value:.2f}",
        others["DynamicCache"],
        others["StaticCache"],
        f"{m['speedup'].value:.2f}x",
        f"{m['amdahl_ceiling'].value:.2f}x",
    ]
