"""The one table of metrics: names, units, which way is better. It drives records, tables and plots."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pqkv.errors import RecordError

# of `pqkv bench --breakdown`, of every backend
PARTS = (
    "arguments", "query", "key tables", "key centroids", "scores", "softmax", "values", "exact pages", "plain kernel",
    "exact part", "merge", "sum of parts", "encode", "flush", "prefill",
)  # fmt: skip

Direction = Literal["lower", "higher", "none"]

_FAMILY = re.compile(r"(agreement_at|top1_in_top)_([1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """What a metric is: a sentence, its unit (empty for a plain number), which way is better, a label for plots."""

    description: str
    unit: str
    direction: Direction
    label: str


def _agreement(k: int) -> MetricInfo:
    return MetricInfo(f"|top-{k} of both| / {k}, mean over positions", "", "higher", f"top-{k} agreement")


def _inside(k: int) -> MetricInfo:
    return MetricInfo(
        f"exact arg-max among the coded top {k}, share of positions", "", "higher", f"exact top-1 in top {k}"
    )


def part_metric(part: str) -> str:
    """The name of the figure of a part of a breakdown."""
    return f"part_{part.replace(' ', '_')}_ms"


METRICS: dict[str, MetricInfo] = {
    "perplexity": MetricInfo("exp(mean NLL) on the coded cache", "", "lower", "perplexity"),
    "perplexity_exact": MetricInfo("exp(mean NLL) on the exact cache, same windows", "", "none", "exact perplexity"),
    "perplexity_ratio": MetricInfo("perplexity / perplexity_exact", "", "lower", "perplexity / exact perplexity"),
    "agreement_at_1": _agreement(1),
    "agreement_at_5": _agreement(5),
    "agreement_at_10": _agreement(10),
    "top1_in_top_1": _inside(1),
    "top1_in_top_5": _inside(5),
    "top1_in_top_10": _inside(10),
    "kld_mean": MetricInfo("KL(exact || coded), mean over positions", "nats", "lower", "mean KL divergence"),
    "kld_median": MetricInfo("KL(exact || coded), median", "nats", "lower", "median KL divergence"),
    "kld_p99": MetricInfo("KL(exact || coded), 99th percentile", "nats", "lower", "p99 KL divergence"),
    "kld_max": MetricInfo("KL(exact || coded), maximum", "nats", "lower", "maximum KL divergence"),
    "logit_error": MetricInfo(
        "largest error of a logit over its position's largest exact one", "", "lower", "largest error of logits"
    ),
    "kld_control": MetricInfo("kld_mean with the codes dealt to the wrong tokens", "nats", "none", "control KLD"),
    "recall": MetricInfo("planted facts answered exactly on the coded cache", "", "higher", "recall"),
    "recall_exact": MetricInfo("planted facts answered exactly on the exact cache", "", "none", "exact recall"),
    "recall_control": MetricInfo(
        "planted facts answered with the codes dealt to the wrong tokens", "", "none", "control recall"
    ),
    "softmax_mass_error": MetricInfo("largest |output - 1| with every value 1", "", "lower", "softmax mass error"),
    "lse_mass_error": MetricInfo("largest |sum exp(s - lse) - 1|, s in float64", "", "lower", "lse mass error"),
    "code_bits": MetricInfo("marginal cost of one element", "bits", "lower", "marginal cost per element"),
    "key_bits": MetricInfo("marginal cost of one element of the keys", "bits", "lower", "cost per key element"),
    "value_bits": MetricInfo("marginal cost of one element of the values", "bits", "lower", "cost per value element"),
    "effective_bits": MetricInfo("all bytes of the cache per element", "bits", "lower", "total cost per element"),
    "coded_share": MetricInfo(
        "coded columns among those that query rows saw", "", "none", "share of columns that were coded"
    ),
    "residual_tokens": MetricInfo("newest tokens kept exact", "tokens", "none", "exact newest tokens"),
    "cache_bytes": MetricInfo("bytes of the coded cache", "B", "lower", "cache size"),
    "cache_bytes_exact": MetricInfo("bytes of the exact cache", "B", "none", "exact cache size"),
    "latency_ms": MetricInfo("median time of one call", "ms", "lower", "latency"),
    "exact_latency_ms": MetricInfo("median time of the strongest exact baseline", "ms", "none", "exact latency"),
    "speedup": MetricInfo("exact_latency_ms / latency_ms", "x", "higher", "speed-up over exact"),
    "charged_latency_ms": MetricInfo(
        "derived: latency_ms and what encoding the step's own tokens takes", "ms", "lower", "latency, encoding charged"
    ),
    "charged_speedup": MetricInfo(
        "derived: speedup * latency_ms / charged_latency_ms", "x", "higher", "speed-up over exact, encoding charged"
    ),
    "bandwidth_gbs": MetricInfo("bytes moved / latency", "GB/s", "higher", "bandwidth"),
    "bandwidth_fraction": MetricInfo("bandwidth / copy bandwidth of the same run", "", "higher", "bandwidth / copy"),
    "encode_tokens_per_s": MetricInfo("tokens encoded per second", "tokens/s", "higher", "encoding rate"),
    "amdahl_ceiling": MetricInfo(
        "exact time per token over that after a prompt of 16 tokens", "x", "none", "ceiling of the speed-up"
    ),
    "ttft_ms": MetricInfo("time to the first token", "ms", "lower", "time to first token"),
    "tpot_ms": MetricInfo("time per output token", "ms", "lower", "time per output token"),
    **{
        part_metric(part): MetricInfo(f"derived: median time of the breakdown's part '{part}'", "ms", "lower", part)
        for part in PARTS
    },
    "training_s": MetricInfo(
        "time of a codebook training, loading and capture included", "s", "lower", "training time"
    ),
    "peak_rss": MetricInfo("largest resident set of the process", "B", "lower", "peak memory"),
    "key_error": MetricInfo("held-out squared error / spread, mean over layers", "", "lower", "error of keys"),
    "key_query_error": MetricInfo(
        "that of keys in the metric of the queries", "", "lower", "error of keys, queries' metric"
    ),
    "value_error": MetricInfo("held-out squared error / spread, mean over layers", "", "lower", "error of values"),
    "registers": MetricInfo("registers of a thread", "", "lower", "registers"),
    "static_shared_bytes": MetricInfo("static shared memory of a block", "B", "lower", "shared memory"),
    "spill_bytes": MetricInfo("registers spilled by a thread, written and read", "B", "lower", "spilled bytes"),
    "stack_bytes": MetricInfo("local memory of a thread", "B", "lower", "stack"),
    "blocks_per_multiprocessor": MetricInfo("blocks that fit at a time", "", "higher", "blocks at a time"),
    "warps_per_multiprocessor": MetricInfo("warps that fit at a time", "", "higher", "warps at a time"),
    "key_instructions": MetricInfo("instructions of a key look-up, by query head", "", "lower", "key instructions"),
    "value_instructions": MetricInfo(
        "instructions of a value look-up, by query head", "", "lower", "value instructions"
    ),
    "key_table_instructions": MetricInfo("instructions for a word of the keys' tables", "", "lower", "key tables"),
    "value_table_instructions": MetricInfo(
        "instructions for a word of the values' tables", "", "lower", "value tables"
    ),
}


def charge_ms(encode_tokens_per_s: float, batch: int) -> float:
    """Milliseconds by which one decoding step of one layer is charged for encoding: every step adds a token to each of
    `batch` sequences, and each is encoded once. The rate is that of keys, all KV heads, in calls of some pages; values
    are taken to cost as much.
    """
    return 2e3 * batch / encode_tokens_per_s


def metric_order(name: str) -> tuple[int, int]:
    """A sort key: the order of METRICS, each family of k where its first member stands, k ascending."""
    names = list(METRICS)
    if match := _FAMILY.fullmatch(name):
        return names.index(f"{match[1]}_1"), int(match[2])
    return names.index(name), 0


def metric_info(name: str) -> MetricInfo:
    """What `name` measures; `agreement_at_k` and `top1_in_top_k` exist for every k. Raises `RecordError` if unknown."""
    if name in METRICS:
        return METRICS[name]
    if match := _FAMILY.fullmatch(name):  # --topk takes any k
        return _agreement(int(match[2])) if match[1] == "agreement_at" else _inside(int(match[2]))
    raise RecordError(f"unknown metric '{name}'; known metrics: {', '.join(METRICS)}")
