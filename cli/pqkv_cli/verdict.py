"""The table of an evaluation, and its verdict in words."""

from __future__ import annotations

from rich import box
from rich.table import Table

from pqkv.env import machine_name
from pqkv.record import Record
from pqkv_cli.output import console

_HALF_PRECISION = 16  # bits an element has in the caches people run
_SMALL_CHANGE, _GOOD_AGREEMENT = 0.01, 0.95


def print_verdict(records: list[Record]) -> None:
    """One row per cell, then memory per coding, then what it means."""
    if not records:
        return
    out = console()
    first = records[0]
    config = first.config
    table = Table(
        title=f"{config['model']} on {config['data']}/{config['split']}: coded cache against the exact one",
        box=box.SIMPLE,
        padding=(0, 1),
        caption="in brackets: 95% bootstrap over windows; recall: coded (exact); "
        f"{machine_name(first.env)}, {config['dtype']} on {config['device']}",
    )
    columns = ("bits", "mode", "context", "PPL exact", "PPL ratio", "top-1", "KLD, nats", "recall")
    probed = any("softmax_mass_error" in record.metrics for record in records)
    controlled = any("kld_control" in record.metrics for record in records)
    for name in (*columns, *(("control KLD",) if controlled else ()), *(("mass error",) if probed else ())):
        table.add_column(name, justify="left" if name == "mode" else "right")
    for record in records:
        c = record.config
        bits = "exact" if c["bits"] == 0 else f"{c['bits']:g}"
        row = [bits, c["mode"], str(c["context"]), _value(record, "perplexity_exact", ".3f")]
        row += [_interval(record, "perplexity_ratio", ".4f"), _interval(record, "agreement_at_1", ".1%")]
        row += [_interval(record, "kld_mean", ".2g")]
        recall, exact = _value(record, "recall", ".0%"), _value(record, "recall_exact", ".0%")
        row.append(f"{recall} ({exact})" if recall else "")
        if controlled:
            row.append(_value(record, "kld_control", ".2g"))
        if probed:
            row.append(_value(record, "softmax_mass_error", ".1e"))
        table.add_row(*row)
    out.print(table)
    out.print(_memory_table(records))
    for line in verdicts(records):
        out.print(line, highlight=False, soft_wrap=True)


def verdicts(records: list[Record]) -> list[str]:
    """One sentence per coding in the default mode, or in the first mode there is, at its longest context."""
    found = {}
    for record in records:
        c = record.config
        key = (c["bits"], c.get("codebooks"))
        best = found.get(key)
        rank = (c["mode"] == "exact-schedule", c["context"])
        if "perplexity_ratio" in record.metrics and (best is None or rank > best[0]):
            found[key] = (rank, record)
    lines = []
    for _, record in found.values():
        c, m = record.config, record.metrics
        if m["perplexity_ratio"].value is None:
            lines.append(f"{c['bits']:g} bits at {c['context']} tokens ({c['mode']}): the logits are no numbers")
            continue
        change = m["perplexity_ratio"].value - 1
        line = f"{c['bits']:g} bits at {c['context']} tokens ({c['mode']}): perplexity {change:+.2%}"
        good = abs(change) <= _SMALL_CHANGE
        if "agreement_at_1" in m:
            line += f", top-1 agreement {_value(record, 'agreement_at_1', '.1%')}"
            good = good and (m["agreement_at_1"].value or 0) >= _GOOD_AGREEMENT
        if c["bits"] == 0:
            line = f"exact pages at {c['context']} tokens ({c['mode']}): perplexity {change:+.2%}"
        word = "within" if good else "outside"
        lines.append(f"{line}: {word} 1% and 95%")
    return lines


def _memory_table(records: list[Record]) -> Table:
    dtype = records[0].config["dtype"]
    (layers,) = records[0].tables.get("layers") or [{}]  # records of the first version do not say
    coded = f"; codes in {layers['coded']} of {layers['total']} layers" if layers else ""
    table = Table(
        box=box.SIMPLE,
        title=f"bits per cached element, everything counted (exact parts {dtype}{coded})",
        caption="codes, codebooks, residual, sinks, table, slack; in brackets: times smaller than 16 bits",
    )
    stated = records[0].tables.get("memory", [])
    for name in ("bits", "marginal", *(f"at {row['tokens'] // 1024}K" for row in stated)):
        table.add_column(name, justify="right")
    seen = set()
    for record in records:
        key = (record.config["bits"], record.config.get("codebooks"))
        if key in seen:
            continue
        seen.add(key)
        cells = [
            f"{r['effective_bits']:.2f} ({_HALF_PRECISION / r['effective_bits']:.1f}x)" for r in record.tables["memory"]
        ]
        name = "exact" if record.config["bits"] == 0 else f"{record.config['bits']:g}"
        table.add_row(name, _value(record, "code_bits", ".2f"), *cells)
    return table


def _value(record: Record, name: str, form: str) -> str:
    metric = record.metrics.get(name)
    return "" if metric is None or metric.value is None else format(metric.value, form)


def _interval(record: Record, name: str, form: str) -> str:
    metric = record.metrics.get(name)
    if metric is None or metric.value is None:
        return ""
    text = format(metric.value, form)
    if metric.low is None or metric.high is None:
        return text
    return f"{text}\n\\[{format(metric.low, form)}, {format(metric.high, form)}]"
