"""Records as a lab leaves them, of a model that nobody ran."""

import json

from pqkv.config import digest_of
from pqkv.record import Metric, Record

LAYERS, HEADS, D = 2, 2, 16


def record(
    bits,
    ppl,
    kld,
    *,
    context=1024,
    data="a.txt",
    codec="int",
    model="m",
    mode="all-coded",
    sinks=4,
    spread=0.1,
    windows=4,
):
    part = {"codec": codec, "bits": bits}
    config = {
        "model": "tiny", "model_weights": model, "data": data, "split": "all", "bits": float(bits), "context": context,
        "windows": windows, "mode": mode, "codec": {"keys": part, "values": part}, "codebooks": "0",
        **({"coded_sinks": sinks} if sinks else {}),
    }  # fmt: skip
    elements = 2 * LAYERS * HEADS * D
    memory = [
        {"tokens": t, "cache_bytes": 5000 + t * elements * bits // 8,
         "effective_bits": 8 * (5000 + t * elements * bits // 8) / (t * elements)}
        for t in (2048, 32768, 131072)
    ]  # fmt: skip

    def metric(value, up):
        return Metric(value=value, low=value - up, high=value + up)

    return Record(
        kind="eval", config=config, digest=digest_of(json.loads(json.dumps(config))), env={}, git={}, seed=0,
        status="ok", started_at="2026-01-01T00:00:00Z", seconds=1,
        metrics={"code_bits": Metric(value=bits), "perplexity_ratio": metric(1 + ppl, ppl * spread),
                 "kld_mean": metric(kld, kld * spread), "agreement_at_1": Metric(value=0.9)},
        tables={"memory": memory},
    )  # fmt: skip
