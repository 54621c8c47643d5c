"""Part e of `million`: a window that is coded whole when it is full, as MILLION does, beside one that gives up its
oldest page; and what a page holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from pqkv.config import CacheConfig
from pqkv.record import Record
from pqkv.reproduce.million.lab import Lab
from pqkv.reproduce.million.pages import rows_e
from pqkv.reproduce.million.reported import HEAD_DIM, NBITS, SUBSPACES
from pqkv.reproduce.tables import Row, claim, table_rows

CAPACITY = "million-capacity"
PAGED, WHOLE = (64, 128), (128, 128)  # page and window of the extension; MILLION's, whose window is L_t = d = 128
EXACT_TOKENS, CODED_TOKENS = 16, 64  # of a page, in vLLM and in the extension
_HEADS = 8


def capacity_part(lab: Lab) -> Iterator[Record]:
    """A page of each kind, filled and weighed."""
    config = {
        "part": "e", "data": "random numbers", "heads": _HEADS, "head_dim": HEAD_DIM, "num_subspaces": SUBSPACES,
        "nbits": NBITS, "exact_dtype": "float16", "exact_tokens": EXACT_TOKENS, "coded_tokens": CODED_TOKENS,
        "seed": lab.settings.seed,
    }  # fmt: skip
    yield lab.cell(CAPACITY, config, partial(_weighed, config))


def windows_finding(records: Sequence[Record]) -> list[Row]:
    """Flushes of either policy with the same window, what they lose, and the capacity of pages."""
    return [*_policies(records), *_capacity(records)]


def _policies(records: Sequence[Record]) -> list[Row]:
    rows = {(row["model"], row["page_size"], row["residual"]): row for row in rows_e(records)}
    found = []
    for model in sorted({model for model, *_ in rows}):
        paged, whole = (rows.get((model, *policy)) for policy in (PAGED, WHOLE))
        if paged is None or whole is None:
            continue
        times = paged["flushes_per_token"] / whole["flushes_per_token"]
        said = (
            f"{times:.2f} times as many: {paged['flushes_per_token']:.5f} a token by pages of {PAGED[0]}, "
            f"{whole['flushes_per_token']:.5f} of the whole window; KLD {paged['kld_mean']:.2g} and "
            f"{whole['kld_mean']:.2g} nats, as {PAGED[1] - PAGED[0]} to {PAGED[1] - 1} and 0 to {WHOLE[1] - 1} newest "
            "tokens are exact"
        )
        what = (
            f"a window of {PAGED[1]} flushed by pages of {PAGED[0]} flushes half as often as MILLION's, flushed whole"
        )
        found.append(claim(what, "half as often", said, times <= 1 / 2, model))
    return found


def _capacity(records: Sequence[Record]) -> list[Row]:
    found = []
    for row in list(table_rows(records, CAPACITY, "pages"))[-1:]:
        said = (
            f"{row['exact_bytes']:,} bytes of keys and values of {row['exact_tokens']} tokens, "
            f"{row['coded_bytes']:,} of the codes of {row['coded_tokens']}, filled and weighed; codebooks come on top"
        )
        what = f"a page holds {row['exact_tokens']} tokens in fp16 or {row['coded_tokens']} in 4 bits"
        found.append(claim(what, "4 times the density", said, row["exact_bytes"] == row["coded_bytes"]))
    return found


def _weighed(config: dict[str, Any]) -> dict[str, Any]:
    from pqkv.cache import Geometry, KVCache
    from pqkv.codec import Codebook, CodebookSet

    heads, dim = config["heads"], config["head_dim"]
    draw = torch.Generator().manual_seed(config["seed"])
    M, C = config["num_subspaces"], 2 ** config["nbits"]
    book = Codebook(torch.randn(1, M, C, dim // M, generator=draw))
    geometry = Geometry(1, heads, dim, torch.float16, torch.device("cpu"))
    weights = {}
    for name, tokens, books in (("exact", config["exact_tokens"], None), ("coded", config["coded_tokens"], book)):
        cache = CacheConfig(page_size=tokens, residual=tokens, sink_tokens=0, backend="reference")
        kv = KVCache(cache, geometry, 1, None if books is None else CodebookSet((books,), (books,)))
        new = torch.randn(1, heads, tokens, dim, generator=draw).half()
        kv.layers[0].append(new, new)
        assert kv.pool.stats().used == 1
        weights[f"{name}_bytes"] = kv.memory().pages
    return {"tables": {"pages": [weights]}}
