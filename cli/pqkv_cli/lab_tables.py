"""The table of a lab: a row a method, by what it takes, and how it differs from the one it is held against."""

from __future__ import annotations

from collections.abc import Sequence

from pqkv.lab.outcome import Group, Row
from pqkv.report.series import machine_of
from pqkv_cli.output import console
from pqkv_cli.table import print_table


def print_lab(found: Sequence[Group]) -> None:
    """A table for each text, context and choice of exact tokens."""
    out = console()
    for group in found:
        first = group.rows[0].record
        print_table(
            out,
            ("method", "bits", "keys", "values", "KLD, nats", "PPL", "top-1", f"KLD less {group.against}'s"),
            [_row(row) for row in group.rows],
            words=("method",),
            title=group.title,
            caption="in brackets: 95% bootstrap over windows"
            + (", of differences for all of them together" if group.against else "")
            + f"; {machine_of(first)}, {first.config['dtype']} on {first.config['device']}",
        )


def _row(row: Row) -> list[str]:
    kld, gap = row.kld, row.difference
    interval = "" if kld.low is None or kld.high is None else f" [{kld.low:.3g}, {kld.high:.3g}]"
    told = ""
    if gap is not None:
        told = f"{gap.value:+.2g}" + ("" if gap.low == -float("inf") else f" [{gap.low:+.2g}, {gap.high:+.2g}]")
    return [
        row.method,
        *(f"{row.value(bits):.3f}" for bits in ("code_bits", "key_bits", "value_bits")),
        "" if kld.value is None else f"{kld.value:.3g}{interval}",
        f"{100 * (row.value('perplexity_ratio') - 1):+.2f}%",
        f"{row.value('agreement_at_1'):.1%}",
        told,
    ]
