"""What `pqkv bench --breakdown` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pqkv.record import Record


def breakdown_table(records: list[Record]) -> None:
    """For every cell a table of its parts."""
    from pqkv.report.series import machine_of, shape_name
    from pqkv_cli.output import console
    from pqkv_cli.table import print_table

    out = console()
    for record in records:
        c = record.config
        method = record.tables["method"][0]["method"]
        print_table(
            out,
            ("part", "ms", "10% to 90%", "of whole", "tokens", "us/token"),
            map(_cells, record.tables["breakdown"]),
            words=("part",),
            title=f"{shape_name(c)}, batch {c['batch']}, {c['context']} tokens: {c['model']}, backend {c['backend']}, "
            f"{c['threads']} threads",
            caption=f"one layer, medians of {c['repeats']} cold runs in turns; {method}, so parts need not add up to "
            "the whole (sum of parts); encoding, flush and prefill are no part of a step and take keys and values; "
            f"{machine_of(record)}",
        )


def _cells(row: dict[str, Any]) -> list[str]:
    share, tokens = row["share"], row["tokens"]
    return [
        row["part"],
        f"{row['median_ms']:.3f}",
        f"{row['q10_ms']:.3f} to {row['q90_ms']:.3f}",
        "" if share is None else f"{share:.0%}",
        "" if tokens is None else str(tokens),
        "" if tokens is None else f"{row['us_per_token']:.1f}",
    ]
