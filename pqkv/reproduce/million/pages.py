"""Part e of `million`: page size and residual window. Quality, bytes, flushes, and the slots that hold no token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from pqkv.config import CacheConfig
from pqkv.record import Record
from pqkv.report.drawing import Plot
from pqkv.reproduce.million.lab import OURS, Lab
from pqkv.reproduce.million.quality import STDLIB, quality_rows
from pqkv.reproduce.tables import Row, claim, lines, newest, plot, table_rows

FLUSHES, SLOTS = "million-flushes", "million-slots"
CLAIMED_OVERHEAD = 0.05


def part_e(lab: Lab) -> Iterator[Record]:
    """Every page size with every residual that can hold a page of it."""
    s = lab.settings
    paths: list[str] = []
    yield from lab.codebooks([(OURS, s.page_shape)], paths)
    if not paths:
        return
    pairs = [(size, residual) for size in s.page_sizes for residual in s.residuals if residual >= size]
    for size, residual in pairs:
        yield from lab.evaluated(
            f"e: pages of {size}, residual {residual}",
            paths,
            "exact-schedule",
            texts=(STDLIB,),
            contexts=(s.page_context,),
            windows=s.page_windows,
            page_size=size,
            residual=residual,
            sink_tokens=4,
        )
    about = {"part": "e", "model": lab.lm.name, "model_weights": lab.lm.fingerprint, "seed": s.seed}
    about |= {"num_subspaces": s.page_shape[0], "nbits": s.page_shape[1]}
    for size, residual in pairs:
        config = {**about, "page_size": size, "residual": residual, "sink_tokens": 4}
        counted = config | {"prompt": s.prompt, "decoded": s.decoded}
        lab.request.report(f"e: flushes, pages of {size}, residual {residual}", 0, 1)
        yield lab.cell(FLUSHES, counted, partial(_flushes, lab, paths[0], counted))
    for size in s.page_sizes:
        config = {**about, "page_size": size, "residual": max(size, 128), "sink_tokens": 4}
        ragged = config | {"sequences": s.sequences, "shortest": s.ragged[0], "longest": s.ragged[1]}
        yield lab.cell(SLOTS, ragged, partial(_slots, lab, paths[0], ragged))


def rows_e(records: Sequence[Record]) -> list[Row]:
    """Quality, bytes and flushes of each page size and residual."""
    keys = ("model", "page_size", "residual", "num_subspaces", "nbits")
    flushes = {tuple(row[key] for key in keys): row for row in flush_rows(records)}
    rows = []
    for row in quality_rows(records):
        counted = flushes.get(tuple(row[key] for key in keys))
        if (row["setting"], row["mode"]) == (OURS.name, "exact-schedule") and counted is not None:
            rows.append({**row, **{key: counted[key] for key in ("flushes", "decoded", "flushes_per_token")}})
    # part a runs the default cache on other texts and contexts too: alone it compares with nothing
    places = [(row["model"], row["text"], row["context"]) for row in rows]
    return [row for row, place in zip(rows, places, strict=True) if places.count(place) > 1]


def flush_rows(records: Sequence[Record]) -> list[Row]:
    """Steps that sealed a page, of the tokens decoded one by one."""
    return newest(table_rows(records, FLUSHES, "flushes"), "model", "page_size", "residual", most="decoded")


def slot_rows(records: Sequence[Record]) -> list[Row]:
    """Slots without a token, in pages and around them."""
    dropped = ("part", "seed", "num_subspaces", "nbits", "model_weights")
    rows = [{k: v for k, v in row.items() if k not in dropped} for row in table_rows(records, SLOTS, "slots")]
    return newest(rows, "model", "cache", "page_size", most="tokens")


def finding_e(records: Sequence[Record]) -> list[Row]:
    """Flushes halved by the residual, and the overhead of the pool, for each model whose cache was counted."""
    flushes, slots = flush_rows(records), slot_rows(records)
    found = []
    for model in sorted({row["model"] for row in (*flushes, *slots)}):
        counted, filled = ([row for row in rows if row["model"] == model] for rows in (flushes, slots))
        found += [{**row, "model": model} for row in (*_flushes_halved(counted), *_overhead(filled))]
    return found


def _flushes_halved(rows: Sequence[Row]) -> list[Row]:
    rate = {(row["page_size"], row["residual"]): row["flushes_per_token"] for row in rows}
    found = []
    for before, after, what in (
        ((64, 64), (64, 128), "a residual of 128 halves the flushes of one of 64, pages of 64"),
        ((64, 128), (64, 256), "a residual of 256 halves the flushes of one of 128, pages of 64"),
        ((64, 128), (128, 128), "pages of 128 halve the flushes of pages of 64, residual 128"),
    ):
        if rate.get(before) and after in rate:
            ratio = rate[after] / rate[before]
            theirs = "0.5x" if before[0] == after[0] else "not said"
            found.append(
                claim(what, theirs, f"{ratio:.2f}x ({rate[before]:.5f} to {rate[after]:.5f} a token)", ratio <= 0.5)
            )
    return found


def _overhead(rows: Sequence[Row]) -> list[Row]:
    found = []
    for cache in dict.fromkeys(row["cache"] for row in rows):
        own = [row for row in rows if row["cache"] == cache]
        for key, what in (
            ("unused_in_pages", "slots without a token in pages in use"),
            ("free_of_pool", "pages of the pool that nobody uses"),
            ("unused_in_residual", "slots without a token in the residual windows"),
        ):
            if (cache, key) == ("coded", "unused_in_pages"):
                continue  # zero by construction: only whole pages are sealed, which is nothing that was found
            worst = max((row for row in own if row[key] is not None), key=lambda row: float(row[key]), default=None)
            if worst is not None:
                ours = (
                    f"{min(row[key] for row in own):.1%} to {worst[key]:.1%}, most with pages of {worst['page_size']}"
                )
                holds = worst[key] < CLAIMED_OVERHEAD
                found.append(claim(f"pool overhead, {cache} cache: {what}", "< 5%", ours, holds))
    return found


def plots_e(records: Sequence[Record]) -> list[Plot]:
    """KLD, bytes and flushes against page size, a line for each residual."""
    rows = [{**row, "hue": f"residual {row['residual']}"} for row in rows_e(records)]
    drawn = (
        ("kld_mean", "mean KL divergence (nats)"),
        ("effective_bits", "bits per element, exact parts float32"),
        ("flushes_per_token", "flushes per decoded token"),
    )
    plots = []
    for key, label in drawn:
        found = lines(rows, _panel, "hue", "page_size", key)
        log_y = key == "flushes_per_token"
        labels = ("page size (tokens)", label)
        plots.append(plot(f"e_{key}", "Pages and residual", labels, found, "window", log_x=True, log_y=log_y))
    return plots


def _panel(row: Row) -> str:
    return f"{row['bits']:g} bits, {row['text']}, {row['context']:,} tokens"


def _flushes(lab: Lab, path: str, config: dict[str, Any]) -> dict[str, Any]:
    """Decode text token by token with the model and count the steps after which the cache has more pages."""
    from pathlib import Path

    import torch

    from pqkv.codec.codebook_file import load_codebooks
    from pqkv.lm import PQKVCache, attach
    from pqkv.text import load_corpus, tokenize, windows

    lm, prompt, decoded = lab.lm, config["prompt"], config["decoded"]
    stream = tokenize(load_corpus(STDLIB, None, default="test"), lm.encode, lm.separator)
    ids = torch.from_numpy(windows(stream, prompt + decoded, 1).tokens).to(lm.device)
    attach(lm.model)
    cache = PQKVCache(lm.model.config, load_codebooks(Path(path))[0], _config(config))
    lm.logits(ids[:, :prompt], cache)
    assert cache.kv is not None
    flushes = sealed = 0
    before = cache.kv.layers[0].page_counts()[0]
    for i in range(prompt, prompt + decoded):
        lm.logits(ids[:, i : i + 1], cache)
        after = cache.kv.layers[0].page_counts()[0]
        flushes, sealed, before = flushes + (after > before), sealed + after - before, after
    row = {"flushes": flushes, "pages_sealed": sealed, "flushes_per_token": flushes / decoded}
    return {"tables": {"flushes": [row]}}


def _slots(lab: Lab, path: str, config: dict[str, Any]) -> dict[str, Any]:
    """Fill a layer of a coded and of an exact cache with sequences of random lengths and count what holds no token."""
    from pathlib import Path

    import numpy as np
    import torch

    from pqkv.cache import Geometry, KVCache
    from pqkv.codec import CodebookSet
    from pqkv.codec.codebook_file import load_codebooks

    books, lm, B = load_codebooks(Path(path))[0], lab.lm, config["sequences"]
    drawn = np.random.default_rng(config["seed"]).integers(config["shortest"], config["longest"] + 1, B)
    longest = int(drawn.max())
    draw = torch.Generator().manual_seed(config["seed"])
    new = torch.randn((B, lm.num_kv_heads, longest, lm.head_dim), generator=draw)
    geometry = Geometry(B, lm.num_kv_heads, lm.head_dim, torch.float32, torch.device("cpu"))
    rows = []
    for name, own in (("coded", CodebookSet(books.keys[:1], books.values[:1])), ("exact", None)):
        kv = KVCache(_config(config), geometry, 1, own)
        kv.layers[0].append(new, new, [longest - int(n) for n in drawn])
        stats, memory = kv.pool.stats(), kv.memory()
        slots = sum(kv.layers[0].page_counts()) * config["page_size"]
        # a coded page is sealed whole, so what is not in one is a sink or in the residual
        sinks, residual = (B * config[key] if own is not None else 0 for key in ("sink_tokens", "residual"))
        in_pages = slots if own is not None else int(drawn.sum())
        in_residual = int(drawn.sum()) - sinks - in_pages
        rows.append(
            {
                "cache": name,
                "tokens": int(drawn.sum()),
                "pages": stats.used,
                "slots_in_pages": slots,
                "unused_in_pages": 1 - in_pages / slots if slots else 0.0,
                "pool_pages": stats.capacity,
                "free_of_pool": stats.free / stats.capacity,
                "unused_in_residual": 1 - in_residual / residual if residual else None,
                "bytes_in_use": memory.total,
                "bytes_spare": memory.spare,
            }
        )
    return {"tables": {"slots": rows}}


def _config(config: dict[str, Any]) -> CacheConfig:
    values = {key: config[key] for key in ("page_size", "residual", "sink_tokens")}
    return CacheConfig.parse(values, source="million, part e")
