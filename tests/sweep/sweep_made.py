"""Records as evaluations and benches leave them, of figures that are made up."""

import numpy as np

from pqkv.config import digest_of
from pqkv.record import Metric, Record, RecordStore


def eval_record(kld, *, context=512, bits=4, codebooks="a", nll=2.0, at="2026-01-01T00:00:00+00:00", **config):
    """`kld` by window; `nll` likewise or one number for all."""
    kld, nll = np.array(kld, float), np.broadcast_to(nll, len(kld)).astype(float)
    config = {
        "model": "m", "data": "d", "data_sha256": "0", "bits": bits, "mode": "all-coded", "context": context,
        "windows": len(kld), "codebooks": codebooks, "chunk_size": None, **config,
    }  # fmt: skip
    return Record(
        kind="eval", config=config, digest=digest_of(config), env={}, git={}, seed=0, status="ok", started_at=at,
        seconds=1.0,
        metrics={"kld_mean": Metric(value=kld.mean(), low=kld.mean() / 2, high=kld.mean() * 2),
                 "perplexity": Metric(value=float(np.exp(nll.mean()))),
                 "agreement_at_1": Metric(value=0.9, low=0.89, high=0.91)},
        samples={"kld_mean": kld.tolist(), "nll": nll.tolist()},
    )  # fmt: skip


def failure(context=512, error="no room", at="2026-01-01T00:00:00+00:00"):
    config = eval_record([0.1, 0.2], context=context).config
    return Record(
        kind="eval", config=config, digest=digest_of(config), env={}, git={}, seed=0, status="failed", error=error,
        started_at=at, seconds=1.0,
    )  # fmt: skip


def bench_record(latency, *, context=512, machine="a"):
    config = {"model": "heads", "bits": 4, "mode": "decode", "context": context, "machine": machine, "batch": 1}
    return Record(
        kind="bench", config=config, digest=digest_of(config), env={}, git={}, seed=0, status="ok",
        started_at="2026-01-01T00:00:00+00:00", seconds=1.0,
        metrics={"latency_ms": Metric(value=latency, low=latency * 0.99, high=latency * 1.01, unit="ms")},
    )  # fmt: skip


def folder_of(path, *records):
    for record in records:
        RecordStore(path).write(record)
    return path
