"""Part g: what a trained model loses when its KV heads are made fewer by their mean, without training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from pqkv.lm import attach, load_model
from pqkv.lm.load import describe
from pqkv.lm.pooled import pool_kv_heads
from pqkv.quality.summary import bootstrap
from pqkv.record import Metric, Record
from pqkv.reproduce.attention_variants.reach import losses_of
from pqkv.reproduce.attention_variants.settings import Settings
from pqkv.reproduce.attention_variants.windows import TEXT, interval, text_windows
from pqkv.reproduce.parts import part_cell
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row, claim, newest, of_kind

POOLED = "attention-pooled"


def part_g(settings: Settings, request: Request) -> Iterator[Record]:
    """Every divisor of the model's KV heads below their number."""
    before = load_model(settings.model).num_kv_heads
    for kv_heads in (n for n in range(before - 1, 0, -1) if before % n == 0):
        request.report(f"g: {settings.model}, {kv_heads} of {before} KV heads", 0, 1)
        config = {
            "part": "g", "model": settings.model, "data": TEXT, "kv_heads": kv_heads, "of": before,
            "tokens": settings.pooled_context, "windows": settings.text_windows, "seed": settings.seed,
        }  # fmt: skip
        yield part_cell(POOLED, config, partial(_measured, settings, kv_heads), request)


def _measured(settings: Settings, kv_heads: int) -> dict[str, Any]:
    lm = load_model(settings.model)
    attach(lm.model)
    ids = text_windows(lm, settings.pooled_context, settings.text_windows)
    exact = np.array([losses_of(lm, one[None]).mean() for one in ids])
    pool_kv_heads(settings.model, lm.model, kv_heads)
    pooled = describe(settings.model, lm.model, lm.tokenizer)
    attach(pooled.model)
    nll = np.array([losses_of(pooled, one[None]).mean() for one in ids])
    low, high = bootstrap([nll, exact], lambda a, b: np.exp(a.mean(-1) - b.mean(-1)), settings.seed)
    value = float(np.exp(nll.mean() - exact.mean()))
    return {
        "metrics": {"perplexity_ratio": Metric(value=value, low=low, high=high, n=len(ids))},
        "samples": {"nll": nll.tolist(), "nll_exact": exact.tolist()},
    }


def pooled_rows(records: Sequence[Record]) -> list[Row]:
    """Perplexity with pooled heads over that of the model."""
    rows = []
    for record in of_kind(records, POOLED):
        found = record.metrics["perplexity_ratio"]
        kept = {key: record.config[key] for key in ("model", "kv_heads", "of", "tokens", "windows")}
        rows.append(kept | {"perplexity_ratio": found.value, **interval("perplexity_ratio", found)})
    return newest(rows, "model", "kv_heads", "of", "tokens", most="windows")


def finding_g(records: Sequence[Record]) -> list[Row]:
    """The direction only: what trained models of fewer heads lose is not known here."""
    result = []
    for row in pooled_rows(records):
        said = (
            f"{row['kv_heads']} of {row['of']} KV heads by their mean, untrained: perplexity "
            f"{row['perplexity_ratio']:,.3g} times [{row['perplexity_ratio_low']:,.3g}, "
            f"{row['perplexity_ratio_high']:,.3g}] at {row['tokens']:,} "
            "tokens; what training on makes of it is not measured"
        )
        result.append(claim("sharing KV heads costs a little quality", "a little (GQA)", said, None, row["model"]))
    return result
