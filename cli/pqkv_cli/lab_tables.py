"""The table of a lab: a row a method, by what it takes, and how it differs from the one it is held against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pqkv.env import machine_name
from pqkv.lab.differences import Difference, differences
from pqkv.record import Record
from pqkv.report.series import mode_name
from pqkv_cli.output import console
from pqkv_cli.table import print_table


def print_lab(records: Sequence[Record], names: Mapping[str, str], against: str | None) -> None:
    """A table for each text, context and choice of exact tokens."""
    out = console()
    for group in _grouped(records):
        first = group[0].config
        by_name = {names[record.digest]: record for record in group}
        told = differences(by_name, against) if against in by_name and len(by_name) > 1 else {}
        rows = sorted(by_name.items(), key=lambda item: (item[1].metrics["code_bits"].value or 0, _kld(item[1])))
        difference = f"KLD less {against}'s"
        print_table(
            out,
            ("method", "bits", "keys", "values", "KLD, nats", "PPL", "top-1", difference),
            [[*_row(name, record), _said(told.get(name))] for name, record in rows],
            words=("method",),
            title=f"{first['model']} on {first['data']}/{first['split']}: {mode_name(first)}, "
            f"{first['windows']} windows of {first['context']} tokens",
            caption="in brackets: 95% bootstrap over windows"
            + (", of differences for all of them together" if told else "")
            + f"; {machine_name(group[0].env)}, {first['dtype']} on {first['device']}",
        )


def _grouped(records: Sequence[Record]) -> Iterator[list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        c = record.config
        key = ("data", "context", "windows", "mode", "coded_sinks", "sink_tokens", "residual")
        groups.setdefault(str([c.get(name) for name in key]), []).append(record)
    yield from groups.values()


def _kld(record: Record) -> float:
    return record.metrics["kld_mean"].value or 0.0


def _row(name: str, record: Record) -> list[str]:
    m = record.metrics
    kld, ratio = m["kld_mean"], m["perplexity_ratio"]
    interval = "" if kld.low is None or kld.high is None else f" [{kld.low:.3g}, {kld.high:.3g}]"
    return [
        name,
        *(f"{m[bits].value:.3f}" for bits in ("code_bits", "key_bits", "value_bits")),
        "" if kld.value is None else f"{kld.value:.3g}{interval}",
        "" if ratio.value is None else f"{100 * (ratio.value - 1):+.2f}%",
        f"{m['agreement_at_1'].value:.1%}",
    ]


def _said(difference: Difference | None) -> str:
    if difference is None:
        return ""
    if difference.low == -float("inf"):
        return f"{difference.value:+.2g}"
    return f"{difference.value:+.2g} [{difference.low:+.2g}, {difference.high:+.2g}]"
