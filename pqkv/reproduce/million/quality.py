"""Parts a and h of `million`: what its codes cost in quality beside ours, and what a rotation (OPQ) adds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pqkv.quality.summary import bootstrap
from pqkv.record import Record
from pqkv.report.drawing import Plot
from pqkv.reproduce.million.lab import CLAIMED_BITS, MILLION, OURS, Lab, Recipe
from pqkv.reproduce.million.settings import Shape
from pqkv.reproduce.tables import Row, claim, held, lines, newest, of_kind, plot

STDLIB = "stdlib"
CLAIMED_CHANGE = 0.01
# in the schedule that decoding follows, one codebook a head; ours is the last, and stands for part a as well
PER_HEAD = (
    Recipe("neighbours", "head", "adjacent", "euclidean"),
    Recipe("OPQ", "head", "opq", "euclidean"),
    Recipe("balanced", "head", "balanced", "euclidean"),
    Recipe("OPQ, queries' metric", "head", "opq", "query"),
    OURS,
)
ROTATED_MILLION = Recipe("MILLION with OPQ", "global", "opq", "euclidean")
_NAMES = {(r.scope, r.channels, r.metric): r.name for r in (MILLION, ROTATED_MILLION, *PER_HEAD)}
_DEFAULT_CACHE = {"page_size": 64, "residual": 128, "sink_tokens": 4}


def part_a(lab: Lab) -> Iterator[Record]:
    """MILLION's own setting, everything coded, and ours on the schedule of decoding, at the same bits."""
    shapes = lab.settings.shapes
    contexts = lab.settings.contexts
    yield from _coded(lab, "a", contexts, [(MILLION, shape) for shape in shapes])
    yield from _scheduled(lab, "a", contexts, [(OURS, shape) for shape in shapes])


def part_h(lab: Lab) -> Iterator[Record]:
    """Neighbouring channels, OPQ and balanced channels at equal bits; and OPQ in MILLION's own setting."""
    shapes = lab.settings.opq_shapes
    contexts, pair = lab.settings.opq_contexts, (MILLION, ROTATED_MILLION)
    yield from _scheduled(lab, "h", contexts, [(recipe, shape) for recipe in PER_HEAD for shape in shapes])
    yield from _coded(lab, "h", contexts, [(recipe, shape) for recipe in pair for shape in shapes])


def quality_rows(records: Sequence[Record]) -> list[Row]:
    """One row for each evaluated cell whose codebooks were trained by one of the recipes."""
    rows = []
    for record in of_kind(records, "eval"):
        config, metrics = record.config, record.metrics
        name = _NAMES.get((config["scope"], config["channels"], config["metric"]))
        if name is None or "kld_mean" not in metrics:
            continue
        row: Row = {
            "model": config["model"],
            "text": f"{config['data']} {config['split']}",
            "context": config["context"],
            "setting": name,
            "mode": config["mode"],
            "bits": metrics["code_bits"].value,
            "num_subspaces": config["num_subspaces"],
            "nbits": config["nbits"],
            **{key: config[key] for key in _DEFAULT_CACHE},
            "windows": config["windows"],
        }
        for metric in ("perplexity_exact", "perplexity_ratio", "agreement_at_1", "kld_mean"):
            found = metrics[metric]
            row |= {metric: found.value, f"{metric}_low": found.low, f"{metric}_high": found.high}
        row |= {"effective_bits": metrics["effective_bits"].value, "cache_bytes": metrics["cache_bytes"].value}
        rows.append({**row, "record": record.digest})
    keys = ("model", "text", "context", "setting", "mode", "bits", "num_subspaces", *_DEFAULT_CACHE)
    return newest(rows, *keys, most="windows")


def rows_a(records: Sequence[Record]) -> list[Row]:
    """MILLION's setting all coded, ours scheduled."""
    return [
        row
        for row in quality_rows(records)
        if (row["setting"], row["mode"]) == (MILLION.name, "all-coded") or (row["setting"] == OURS.name and _usual(row))
    ]


def rows_h(records: Sequence[Record]) -> list[Row]:
    """Cells of shapes that were run with OPQ."""
    rows = [row for row in quality_rows(records) if row["mode"] == "all-coded" or _usual(row)]
    rotated = {_shape(row) for row in rows if "OPQ" in row["setting"]}
    return [row for row in rows if _shape(row) in rotated]


def errors_h(records: Sequence[Record]) -> list[Row]:
    """Squared error of keys and values on held-out vectors, mean over the layers of each set of codebooks: over their
    energy in older records (`keys`, `values`), over their squared distance to the mean in newer ones.
    """
    rows = []
    for record in of_kind(records, "million-codebooks"):
        config, layers = record.config, record.tables["errors"]
        rows.append(
            {
                "model": config["model"],
                "setting": _NAMES.get((config["scope"], config["channels"], config["metric"]), "other"),
                "bits": record.metrics["code_bits"].value,
                "num_subspaces": config["num_subspaces"],
                "nbits": config["nbits"],
                "samples": config["samples"],
                "iterations": config["iterations"],
                **{
                    name: sum(layer[name] for layer in layers) / len(layers) if name in layers[0] else None
                    for name in ("keys", "values", "keys_centred", "values_centred", "keys_in_query_metric")
                },
                "record": record.digest,
            }
        )
    return newest(rows, "model", "setting", "bits", "num_subspaces", most="samples")


def finding_a(records: Sequence[Record]) -> list[Row]:
    """The claim at 4 bits, for each model, text, context and setting."""
    found = []
    for row in rows_a(records):
        if row["bits"] != CLAIMED_BITS:
            continue
        change = row["perplexity_ratio"] - 1
        interval, inside, outside = "", False, False
        if row["perplexity_ratio_low"] is not None and row["perplexity_ratio_high"] is not None:
            low, high = row["perplexity_ratio_low"] - 1, row["perplexity_ratio_high"] - 1
            interval = f" [{low:+.2%}, {high:+.2%}]"
            inside = low > -CLAIMED_CHANGE and high < CLAIMED_CHANGE
            outside = low >= CLAIMED_CHANGE or high <= -CLAIMED_CHANGE
        found.append(
            claim(
                f"perplexity change at {CLAIMED_BITS} bits, {_how(row)}, {row['text']}, {row['context']:,} tokens",
                "< 1%",
                f"{change:+.2%}{interval}",
                held(inside=inside, outside=outside),
                row["model"],
            )
        )
    return found


def finding_h(records: Sequence[Record]) -> list[Row]:
    """Whether OPQ loses less than what it is compared with, at equal metric and bits: mean KLD. Known where the
    interval of the ratio excludes 1.
    """
    of_digest = {record.digest: record for record in records}
    by_key = {(r["model"], r["text"], r["context"], r["bits"], r["setting"], r["mode"]): r for r in rows_h(records)}
    compared = (
        ("OPQ", "neighbours", "exact-schedule"),
        ("OPQ", "balanced", "exact-schedule"),
        ("OPQ, queries' metric", OURS.name, "exact-schedule"),
        (ROTATED_MILLION.name, MILLION.name, "all-coded"),
    )
    found = []
    for model, text, context, bits in sorted({key[:4] for key in by_key}):
        for ours, other, mode in compared:
            a, b = (by_key.get((model, text, context, bits, name, mode)) for name in (ours, other))
            if a is not None and b is not None:
                ratio, low, high = _ratio(of_digest[a["record"]], of_digest[b["record"]])
                times = "" if ratio is None else f": {ratio:.2f}x"
                times += "" if low is None else f" [{low:.2f}, {high:.2f}]"
                found.append(
                    claim(
                        f"{ours} loses less than {other} at {bits:g} bits, {text}, {context:,} tokens",
                        "a flag that raises NotImplementedError",
                        f"KLD {a['kld_mean']:.3g} against {b['kld_mean']:.3g}{times}",
                        None if low is None or high is None or low <= 1 <= high else high < 1,
                        model,
                    )
                )
    return found


def _ratio(a: Record, b: Record) -> tuple[float | None, float | None, float | None]:
    """KLD of a over that of b with its interval, windows drawn together; None for what cannot be said: the same
    windows of the same text are needed, two at least, and some loss in each of b's.
    """
    over, under = (np.array(record.samples.get("kld_mean", [])) for record in (a, b))
    same = all(a.config.get(key) == b.config.get(key) for key in ("data_sha256", "context", "windows", "model_weights"))
    if not same or len(over) != len(under) or not len(over) or not (under > 0).all():
        return None, None, None
    ratio = over.mean() / under.mean()
    return float(ratio), *bootstrap([over, under], lambda x, y: x.mean(-1) / y.mean(-1), a.seed)


def plots_a(records: Sequence[Record]) -> list[Plot]:
    """Mean KLD and perplexity ratio against bits."""
    rows = rows_a(records)
    return [
        plot(
            f"a_{metric}", f"MILLION's setting and ours: {label}", ("bits per element", label),
            lines(rows, _panel, "setting", "bits", metric), "setting", log_y=log_y, baseline=baseline,
        )
        for metric, label, log_y, baseline in (
            ("kld_mean", "mean KL divergence (nats)", True, None),
            ("perplexity_ratio", "perplexity / exact perplexity", False, 1.0),
        )
    ]  # fmt: skip


def plots_h(records: Sequence[Record]) -> list[Plot]:
    """Mean KLD against bits."""
    drawn = lines(rows_h(records), lambda row: f"{_panel(row)}, {row['mode']}", "setting", "bits", "kld_mean")
    labels = ("bits per element", "mean KL divergence (nats)")
    return [plot("h_opq_kld", "OPQ beside plain codes", labels, drawn, "channels", log_y=True)]


def texts(lab: Lab) -> tuple[str, ...]:
    """The bundled text, then those of the settings."""
    return (STDLIB, *lab.settings.data)


def _coded(lab: Lab, part: str, contexts: Sequence[int], wanted: Sequence[tuple[Recipe, Shape]]) -> Iterator[Record]:
    paths: list[str] = []
    yield from lab.codebooks(wanted, paths)
    s = lab.settings
    yield from lab.evaluated(
        part, paths, "all-coded", texts=texts(lab), contexts=contexts, windows=s.windows, sink_tokens=0
    )


def _scheduled(
    lab: Lab, part: str, contexts: Sequence[int], wanted: Sequence[tuple[Recipe, Shape]]
) -> Iterator[Record]:
    paths: list[str] = []
    yield from lab.codebooks(wanted, paths)
    s = lab.settings
    yield from lab.evaluated(
        part, paths, "exact-schedule", texts=texts(lab), contexts=contexts, windows=s.windows, **_DEFAULT_CACHE
    )


def _usual(row: Row) -> bool:
    return row["mode"] == "exact-schedule" and all(row[key] == value for key, value in _DEFAULT_CACHE.items())


def _how(row: Row) -> str:
    return "MILLION's setting" if row["setting"] == MILLION.name else "our setting"


def _panel(row: Row) -> str:
    return f"{row['model']}, {row['text']}, {row['context']:,} tokens"


def _shape(row: Row) -> tuple[str, int, int]:
    return row["model"], row["num_subspaces"], row["nbits"]
