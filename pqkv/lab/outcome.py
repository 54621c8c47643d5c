"""What a lab found, as rows: a method on a text, at a context, with the same exact tokens as all others."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pqkv.lab.differences import Difference, differences
from pqkv.record import Metric, Record, atomic_write
from pqkv.report.series import codec_name, machine_of, mode_name

_FLOOR = "bfloat16 arithmetic"
_SAME = ("model", "data", "split", "context", "windows", "mode", "coded_sinks", "sink_tokens", "residual", "page_size")


@dataclass(frozen=True, slots=True)
class Row:
    """One method."""

    method: str
    record: Record
    difference: Difference | None

    def value(self, metric: str) -> float:
        """A figure of the record; NaN where it is none."""
        found = self.record.metrics.get(metric)
        return float("nan") if found is None or found.value is None else found.value

    @property
    def kld(self) -> Metric:
        """Mean KLD with its interval."""
        return self.record.metrics["kld_mean"]


@dataclass(frozen=True, slots=True)
class Group:
    """Methods on the same windows, the cheapest first."""

    rows: tuple[Row, ...]
    against: str | None

    @property
    def config(self) -> dict[str, object]:
        """What the rows have in common."""
        return {key: self.rows[0].record.config.get(key) for key in _SAME}

    @property
    def title(self) -> str:
        """In words."""
        c = self.rows[0].record.config
        where = f"{c['data']}/{c['split']}"
        return f"{c['model']} on {where}: {mode_name(c)}, {c['windows']} windows of {c['context']} tokens"

    @property
    def name(self) -> str:
        """For files."""
        c = self.rows[0].record.config
        exact = f"{c['coded_sinks']}-0" if c.get("coded_sinks") else "0-0"
        if c["mode"] != "all-coded":
            exact = f"{c['sink_tokens']}-{c['residual']}"
        return f"{Path(str(c['data'])).stem}-{c['context']}-{exact}"

    def best(self) -> list[Row]:
        """Those that no other row beats in bits and KLD at once, by bits."""
        found: list[Row] = []
        for row in sorted(self.rows, key=lambda r: (r.value("code_bits"), r.value("kld_mean"))):
            if not found or row.value("kld_mean") < found[-1].value("kld_mean"):
                found.append(row)
        return found


def groups(records: Sequence[Record], names: Mapping[str, str], against: str | None) -> list[Group]:
    """Records that ran, by what they have in common; `names` says which method a digest is."""
    apart: dict[str, dict[str, Record]] = {}
    for record in records:
        if record.status == "ok" and record.digest in names:
            apart.setdefault(str([record.config.get(key) for key in _SAME]), {})[names[record.digest]] = record
    return [_group(by_name, against) for by_name in apart.values()]


def _group(by_name: dict[str, Record], against: str | None) -> Group:
    told = differences(by_name, against) if against in by_name and len(by_name) > 1 else {}
    rows = [Row(name, record, told.get(name)) for name, record in by_name.items()]
    rows.sort(key=lambda row: (row.value("code_bits"), row.value("kld_mean")))
    return Group(tuple(rows), against if told else None)


def floors(records: Sequence[Record], found: Sequence[Group]) -> dict[str, float]:
    """KLD of bfloat16 arithmetic by the name of a group, where a record has it of the same text and context: on the
    same windows, else on the most (`pqkv eval --noise-floor`). Under it nothing can be told.
    """
    measured = [r for r in records if r.status == "ok" and r.config.get("floor") == _FLOOR]
    own: dict[str, float] = {}
    for group in found:
        config, keys = group.config, ("model", "data", "split", "context")
        near = [r for r in measured if all(r.config.get(key) == config[key] for key in keys)]
        if near:
            best = max(near, key=lambda r: (r.config["windows"] == config["windows"], r.config["windows"]))
            kld = best.metrics["kld_mean"].value
            own |= {} if kld is None else {group.name: kld}
    return own


def write_outcome(found: Sequence[Group], folder: Path) -> list[Path]:
    """`methods.csv` and `methods.md` of all groups."""
    paths = [folder / "methods.csv", folder / "methods.md"]
    atomic_write(paths[0], _csv(found).encode())
    atomic_write(paths[1], "\n".join(map(markdown, found)).encode())
    return paths


def markdown(group: Group, methods: Sequence[str] | None = None) -> str:
    """A table of `methods`, or of all."""
    told = group.against is not None
    header = ["bits", "keys", "values", "method", "KLD, nats", "perplexity", "top-1"]
    header += [f"KLD less that of {group.against}"] if told else []
    machines = sorted({machine_of(row.record) for row in group.rows})
    lines = [f"{group.title} ({'; '.join(machines)})", ""]
    lines += ["| " + " | ".join(header) + " |", "|" + "|".join([" --- "] * len(header)) + "|"]
    for row in group.rows:
        if methods is None or row.method in methods:
            cells = [*(f"{row.value(f'{side}_bits'):.2f}" for side in ("code", "key", "value")), row.method]
            cells += [_figure(row.kld), f"{100 * (row.value('perplexity_ratio') - 1):+.2f}%"]
            cells += [f"{row.value('agreement_at_1'):.1%}"]
            cells += [_gap(row.difference)] if told else []
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _figure(metric: Metric) -> str:
    if metric.value is None:
        return "-"
    interval = "" if metric.low is None or metric.high is None else f" [{metric.low:#.3g}, {metric.high:#.3g}]"
    return f"{metric.value:#.3g}{interval}"


def _gap(difference: Difference | None) -> str:
    if difference is None:
        return ""
    if difference.low == -float("inf"):
        return f"{difference.value:+.2g}"
    return f"{difference.value:+.2g} [{difference.low:+.2g}, {difference.high:+.2g}]"


def _csv(found: Sequence[Group]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    metrics = ("code_bits", "key_bits", "value_bits", "kld_mean", "perplexity_ratio", "agreement_at_1", "cache_bytes")
    columns = [f"{m}{part}" for m in metrics for part in (("", "_low", "_high") if m in _WITH_INTERVAL else ("",))]
    writer.writerow([*_SAME, "method", "codec", "digest", *columns, "difference", "difference_low", "difference_high"])
    for group in found:
        for row in group.rows:
            spec = codec_name(row.record.config)
            figures = [
                getattr(row.record.metrics[m], part)
                for m in metrics
                for part in (("value", "low", "high") if m in _WITH_INTERVAL else ("value",))
            ]
            d = row.difference
            gap = ("", "", "") if d is None else (d.value, d.low, d.high)
            writer.writerow([*group.config.values(), row.method, spec, row.record.digest, *figures, *gap])
    return text.getvalue()


_WITH_INTERVAL = ("kld_mean", "perplexity_ratio", "agreement_at_1")
