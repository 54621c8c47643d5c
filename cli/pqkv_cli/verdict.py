"""The table of an evaluation, and its verdict in words."""

from __future__ import annotations

from rich.console import Console

from pqkv.derived import nothing_coded, with_derived
from pqkv.env import machine_name
from pqkv.record import Record
from pqkv.report.series import mode_name
from pqkv.schedule import first_coded
from pqkv_cli.output import console
from pqkv_cli.table import print_lines, print_table

_HALF_PRECISION = 16  # bits an element has in the caches people run
_COLUMNS = (
    "bits", "mode", "context", "coded", "PPL exact", "PPL ratio", "top-1", "KLD, nats", "recall", "control KLD",
    "mass error",
)  # fmt: skip
_SAME = ("context", "windows", "score_after", "data_sha256", "bos", "chat")  # of cells that can be held side by side
_SMALL_CHANGE, _GOOD_AGREEMENT = 0.01, 0.95


def print_verdict(records: list[Record]) -> None:
    """One row per cell, then memory per coding, then what it means."""
    if not records:
        return
    out = console()
    layers = [record for record in records if record.kind == "eval-by-layer"]
    records = [with_derived(record) for record in records if record not in layers]
    first = records[0]
    config = first.config
    after = f"; scored from position {config['score_after']} on" if config.get("score_after") else ""
    recall = "recall: coded (exact); " if any("recall" in record.metrics for record in records) else ""
    print_table(
        out,
        _COLUMNS,
        map(_row, records),
        words=("mode",),
        title=f"{config['model']} on {config['data']}/{config['split']}: coded cache against the exact one",
        caption="in brackets: 95% bootstrap over windows; coded: share of the columns that rows see; "
        f"{recall}{machine_name(first.env)}, {config['dtype']} on {config['device']}{_conversation(records)}{after}",
    )
    for record in layers:
        _print_layers(out, record)
    _print_memory(out, records)
    for line in verdicts(records):
        print_lines(out, line)


def _conversation(records: list[Record]) -> str:
    """For a caption: whether windows go through a chat template, and how much of them is scored."""
    rows = [(record.config["context"], row) for record in records for row in record.tables.get("text", [])]
    answers = {(context, row["answer_tokens"]): None for context, row in rows if "answer_tokens" in row}
    if not answers:
        return ""
    said = ", ".join(f"{tokens} of {context}" for context, tokens in answers)
    return f"; windows through the chat template: the answer's {said} tokens are scored"


def _row(record: Record) -> list[str]:
    c = record.config
    if nothing_coded(record):  # its figures are the exact cache's: beside others they would look like praise
        return [_bits(record), mode_name(c), str(c["context"]), "nothing", *[""] * (len(_COLUMNS) - 4)]
    recall, exact = _value(record, "recall", ".0%"), _value(record, "recall_exact", ".0%")
    return [
        _bits(record),
        mode_name(c),
        str(c["context"]),
        "" if c["bits"] == 0 else _value(record, "coded_share", ".0%"),
        _value(record, "perplexity_exact", ".3f"),
        _interval(record, "perplexity_ratio", ".4f"),
        _interval(record, "agreement_at_1", ".1%"),
        _interval(record, "kld_mean", ".2g"),
        f"{recall} ({exact})" if recall else "",
        _value(record, "kld_control", ".2g"),
        _value(record, "softmax_mass_error", ".1e"),
    ]


def verdicts(records: list[Record]) -> list[str]:
    """One sentence per coding in the default mode, or in the first mode there is, at its longest context."""
    found = {}
    for record in records:
        c = record.config
        if _is_floor(record):
            continue
        key = (c["bits"], c.get("codebooks"))
        best = found.get(key)
        rank = (not nothing_coded(record), c["mode"] == "exact-schedule", c["context"])
        if "perplexity_ratio" in record.metrics and (best is None or rank > best[0]):
            found[key] = (rank, record)
    lines = []
    for _, record in found.values():
        c, m = record.config, record.metrics
        if nothing_coded(record):
            first = first_coded(residual=c["residual"], sink_tokens=c["sink_tokens"])
            lines.append(
                f"{c['bits']:.3g} bits at {c['context']} tokens ({c['mode']}): nothing was coded, so nothing is said "
                f"of codes; coding starts at {first} tokens: raise --context, or lower --residual and --page-size"
            )
            continue
        if m["perplexity_ratio"].value is None:
            lines.append(f"{c['bits']:.3g} bits at {c['context']} tokens ({c['mode']}): the logits are no numbers")
            continue
        change = m["perplexity_ratio"].value - 1
        shown = f"perplexity {round(change, 4) or 0.0:+.2%}"  # never -0.00%
        line = f"{c['bits']:.3g} bits at {c['context']} tokens ({c['mode']}): {shown}"
        good = abs(change) <= _SMALL_CHANGE
        if "agreement_at_1" in m:
            line += f", top-1 agreement {_value(record, 'agreement_at_1', '.1%')}"
            good = good and (m["agreement_at_1"].value or 0) >= _GOOD_AGREEMENT
        if c["bits"] == 0:
            line = f"exact pages at {c['context']} tokens ({c['mode']}): {shown}"
        word = "within" if good else "outside"
        lines.append(f"{line}: {word} 1% and 95%{_beside_floor(record, records)}")
    return lines


def _beside_floor(record: Record, records: list[Record]) -> str:
    """How far the KLD of a cell is above that of bfloat16 arithmetic on the same windows, where that was measured."""
    c, kld = record.config, record.metrics.get("kld_mean")
    for other in records:
        floor = other.metrics.get("kld_mean")
        same = all(other.config.get(key) == c.get(key) for key in _SAME)
        if not same or other.config.get("floor") != "bfloat16 arithmetic" or kld is None or floor is None:
            continue
        if kld.value and floor.value:
            return f"; KLD {kld.value:.2g} nats, {kld.value / floor.value:.1f} times that of bfloat16 arithmetic"
    return ""


def _is_floor(record: Record) -> bool:
    return "floor" in record.config


def _print_layers(out: Console, record: Record) -> None:
    """Where the damage of a coding comes from."""
    rows = record.tables["by_layer"]
    print_table(
        out,
        ("layer", "keys", "values", "both"),
        [(str(row["layer"]), *(f"{row[side]:.2g}" for side in ("keys", "values", "both"))) for row in rows],
        title=f"{_bits(record)} bits, {mode_name(record.config)}, {record.config['context']} tokens: one layer coded "
        "at a time",
        caption=f"KLD in nats; all layers together: {_value(record, 'kld_mean', '.2g')}",
    )


def _print_memory(out: Console, records: list[Record]) -> None:
    records = [record for record in records if not _is_floor(record)]
    if not records:
        return
    dtype = records[0].config["dtype"]
    (layers,) = records[0].tables.get("layers") or [{}]  # records of the first version do not say
    coded = f"; codes in {layers['coded']} of {layers['total']} layers" if layers else ""
    rows = {}
    for record in records:
        cells = [
            f"{r['effective_bits']:.2f} ({_HALF_PRECISION / r['effective_bits']:.1f}x)" for r in record.tables["memory"]
        ]
        key = (record.config["bits"], record.config.get("codebooks"))
        rows.setdefault(key, [_bits(record), _value(record, "code_bits", ".2f") + _range(record), *cells])
        if all("whole_bytes" in r for r in record.tables["memory"]):  # a hybrid model: most of it may not be codes
            whole = [
                f"{r['whole_effective_bits']:.2f} ({r['whole_bytes'] / r['whole_bytes_exact']:.0%})"
                for r in record.tables["memory"]
            ]
            rows.setdefault((*key, "whole"), [f"{_bits(record)}, all layers", "", *whole])
    lengths = (f"at {row['tokens'] // 1024}K" for row in records[0].tables.get("memory", []))
    print_table(
        out,
        ("bits", "marginal", *lengths),
        rows.values(),
        title=f"bits per cached element, everything counted (exact parts {dtype}{coded})",
        caption="codes, codebooks, residual, sinks, table, slack; in brackets: times smaller than 16 bits"
        + ("; all layers: sliding windows too, share of the exact cache" if any(len(key) > 2 for key in rows) else ""),
    )


def _bits(record: Record) -> str:
    if floor := record.config.get("floor"):
        return str(floor)
    return "exact" if record.config["bits"] == 0 else f"{record.config['bits']:.3g}"


def _range(record: Record) -> str:
    """The fewest and most bits of a layer and side, where they are unlike."""
    dealt = [bits for side in record.config.get("layer_bits", {}).values() for bits in side]
    return f" ({min(dealt):g} to {max(dealt):g})" if dealt else ""


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
    return f"{text}\n[{format(metric.low, form)}, {format(metric.high, form)}]"
