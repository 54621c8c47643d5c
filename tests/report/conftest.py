"""Records of a small made-up experiment."""

import pytest

from pqkv.config import digest_of
from pqkv.record import Metric, Record

ENV = {
    "python": "3.11.7", "cpu": "AMD EPYC", "cores": 2, "memory_bytes": 24 * 2**30, "gpus": [],
    "versions": {"torch": "2.13.0", "pqkv": "0.1.0"},
}  # fmt: skip


def make_record(bits=4, mode="exact-schedule", context=512, *, metrics=None, tables=None, error=None, **more):
    fields = {key: more.pop(key) for key in ("kind", "env", "notes", "git", "started_at") if key in more}
    config = {
        "model": "reference", "data": "stdlib", "split": "test", "bits": bits, "num_subspaces": None, "nbits": None,
        "scope": "head", "mode": mode, "context": context, "page_size": 64, "residual": 128, "sink_tokens": 4,
        "key_layout": "transposed", "value_layout": "transposed", "paged": True, "backend": "reference",
        "device": "cpu", "seed": 0, **more,
    }  # fmt: skip
    kld = 0.1 / (bits or 4)
    if metrics is None:
        metrics = {
            "perplexity": Metric(value=5.0 + kld), "perplexity_exact": Metric(value=5.0),
            "perplexity_ratio": Metric(value=1 + kld / 5, low=1 + kld / 6, high=1 + kld / 4),
            "agreement_at_1": Metric(value=0.9, low=0.88, high=0.92),
            "kld_mean": Metric(value=kld, low=kld / 2, high=kld * 2, unit="nats"),
            "code_bits": Metric(value=bits or 4), "effective_bits": Metric(value=(bits or 4) + 1),
            "recall": Metric(value=0.75), "recall_exact": Metric(value=1.0),
        }  # fmt: skip
    if tables is None:
        rows = [{"start": 0, "end": 128, "kld_mean": kld / 2}, {"start": 128, "end": 512, "kld_mean": kld}]
        tables = {"by_position": rows}
    values = {
        "kind": "eval", "config": config, "digest": digest_of(config), "env": ENV, "git": {}, "seed": 0,
        "status": "failed" if error else "ok", "error": error, "started_at": "2025-01-01T00:00:00+00:00",
        "seconds": 1.0, "metrics": {} if error else metrics, "tables": {} if error else tables,
    }  # fmt: skip
    return Record(**{**values, **fields})


@pytest.fixture(scope="session")
def make():
    return make_record


@pytest.fixture
def grid():
    modes = ("exact-schedule", "token")
    return [make_record(bits, mode, context) for bits in (4, 2) for mode in modes for context in (512, 2048)]
