"""Part j of `million`: what the paged extension says of its own code, held to its listings run step by step and to what
it prints itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from pqkv.codec import Codebook
from pqkv.record import Record
from pqkv.reproduce.million.lab import Lab
from pqkv.reproduce.million.listing import PagedPQCache, PageManager
from pqkv.reproduce.million.tiles import tile_work
from pqkv.reproduce.tables import Row, claim, of_kind

LISTING = "million-listing"
PLANNED, PHASE_3 = "decoding_with_pages", "decoding_with_fallback"
# the report's own parameters
HEAD_DIM, SUBSPACES, NBITS, MAX_PAGES, PAGE_SIZE, EXTENDED = 128, 64, 8, 1000, 64, 128
CLAIMED_CONTEXT = 32768
SPLITS_BUILT = (2, 4, 8, 16, 32)  # "Ns in {2,4,8,16,32}", the instances that setup.py generates
# what phase 3 prints of its integration test, translated: a line and its mark, then "80.0% success (4/5 passed)"
TEST_LOG = (
    ("command line arguments", "passed"), ("choice of cache", "passed"), ("fallback mechanism", "passed"),
    ("PagedPQCache initialization", "passed"), ("memory safety", "passed"),
)  # fmt: skip
SUCCESS = 4, 5
OVERHEAD = "0.00"  # MB, "(pre-allocated pages take effect)"
POOLS = {"its defaults": (MAX_PAGES, SUBSPACES), "the pool of its 2.44 MB": (MAX_PAGES, 8), "its test's": (5, 8)}


def part_j(lab: Lab) -> Iterator[Record]:
    """The listings, step by step."""
    s = lab.settings
    config = {
        "part": "j", "tokens": s.listed_tokens, "heads": s.listed_heads, "head_dim": HEAD_DIM, "seed": s.seed,
        "num_subspaces": SUBSPACES, "nbits": NBITS, "max_pages": MAX_PAGES, "page_size": PAGE_SIZE,
        "tiles": [HEAD_DIM // 4, HEAD_DIM // 2, HEAD_DIM, 2 * HEAD_DIM],
    }  # fmt: skip
    lab.request.report("j: listings", 0, 1)
    yield lab.cell(LISTING, config, partial(_listed, config))


def finding_j(records: Sequence[Record]) -> list[Row]:
    """What the listings do beside what is said of them."""
    found = of_kind(records, LISTING)
    if not found:
        return []
    c, tables = found[-1].config, found[-1].tables
    return [
        *_steps(c, tables["steps"]), *_pages(c, tables["pages"][0]), *_printed(tables["pools"]),
        *_sizes(c, tables["tiles"]),
    ]  # fmt: skip


def _steps(c: dict[str, Any], rows: list[Row]) -> list[Row]:
    planned, later = (next(row for row in rows if row["listing"] == name) for name in (PLANNED, PHASE_3))
    return [
        claim(
            "a step of decoding attends to pages", "a complete chain of calls from the command line to the kernel",
            f"{planned['fallbacks']:,} of {planned['steps']:,} steps end in the unpaged cache's decoding; as phase 3 "
            f"lists it {later['fallbacks']:,} of {later['steps']:,}, and one that fails calls the same again "
            f"({later['after_a_failure']} calls)",
            planned["fallbacks"] == later["fallbacks"] == 0,
        ),
        claim(
            "seen_tokens counts tokens", "seen_tokens += n; on a flush seen_tokens += page_size",
            f"{planned['seen']:,} after {planned['steps']:,} tokens: those of a flush count twice",
            planned["seen"] == planned["steps"],
        ),
    ]  # fmt: skip


def _pages(c: dict[str, Any], row: Row) -> list[Row]:
    return [
        claim(
            "a page that is freed can be allocated again", "no leaks, pages are used again at once",
            f"of {row['allocated']} pages that were allocated and freed {row['came_back']} came back: allocate_page "
            f"registers none, and free_page frees registered ones only; {row['recorded']} of {row['allocated']} ids "
            "were kept",
            row["came_back"] == row["allocated"],
        ),
        claim(
            f"the pool holds the {CLAIMED_CONTEXT:,} tokens that the speed-up is claimed for",
            f"max_pages {c['max_pages']:,}, a pool for each layer",
            f"{c['heads']} KV heads, one sequence: no page is free after {row['lasted']:,} decoded tokens",
            row["lasted"] >= CLAIMED_CONTEXT,
        ),
    ]  # fmt: skip


def _printed(pools: list[Row]) -> list[Row]:
    ticks = sum(mark == "passed" for _, mark in TEST_LOG)
    sizes = "; ".join(
        f"{row['pool']}, {row['pages']:,} x {row['num_subspaces']} x {row['page_size']}: {row['printed']} MB"
        for row in pools
    )
    default = pools[0]
    return [
        claim(
            "80.0% of the integration test passed", f"80.0% ({SUCCESS[0]}/{SUCCESS[1]}), under its five lines",
            f"{ticks} of the {len(TEST_LOG)} lines have a tick: {ticks / len(TEST_LOG):.0%}, not "
            f"{SUCCESS[0] / SUCCESS[1]:.0%}",
            ticks * SUCCESS[1] == SUCCESS[0] * len(TEST_LOG),
        ),
        claim(
            "the memory benchmark measures the pool", f"overhead {OVERHEAD} MB, theoretical 0.00 MB",
            f"a pool as listed, allocated and weighed: {sizes}; {OVERHEAD} is a pool of a few pages, or none that was "
            "allocated between the two readings",
            default["printed"] == OVERHEAD,
        ),
    ]  # fmt: skip


def _sizes(c: dict[str, Any], tiles: list[Row]) -> list[Row]:
    d = c["head_dim"]
    busy = max(row["tokens"] for row in tiles if not row["idle"])
    said = ", ".join(f"{row['tokens']}: {row['steps_per_token']:g} ({row['idle']:.0%} idle)" for row in tiles)
    return [
        claim(
            "a residual of 128 tokens is twice MILLION's", "64 tokens in MILLION, 128 here",
            f"MILLION's listing sets max_residual_length = d, and its d is {d}: {EXTENDED / d:.3g} times as many",
            d < EXTENDED,
        ),
        claim(
            "tiles of L_t = d tokens", "the most performant choice",
            f"{busy} is the largest that leaves no thread idle, d is {d}; steps of a block a token, by tile: {said}; "
            "by count, and which is fastest only a GPU can say",
            None,
        ),
        claim(
            "one split up to 64 tokens", "Ns = 1 up to 64 tokens",
            f"kernels are built for {', '.join(map(str, SPLITS_BUILT))} splits", 1 in SPLITS_BUILT,
        ),
    ]  # fmt: skip


def _listed(config: dict[str, Any]) -> dict[str, Any]:
    heads, draw = config["heads"], torch.Generator().manual_seed(config["seed"])
    book = Codebook(torch.randn(1, SUBSPACES, 2**NBITS, HEAD_DIM // SUBSPACES, generator=draw))

    def step(cache: PagedPQCache, name: str) -> None:
        keys, values, query = (torch.randn(1, heads, 1, HEAD_DIM, generator=draw) for _ in range(3))
        getattr(cache, name)(query, keys, values)

    rows = []
    for name in (PLANNED, PHASE_3):
        cache = PagedPQCache(book, heads)
        for _ in range(config["tokens"]):
            step(cache, name)
        row = {"listing": name, "steps": config["tokens"], "fallbacks": cache.fallbacks, "seen": cache.seen_tokens,
               "after_a_failure": None}  # fmt: skip
        if name == PHASE_3:
            cache.fails = True
            step(cache, name)
            row["after_a_failure"] = cache.fallbacks - row["fallbacks"]
        rows.append(row)
    pools = [
        {"pool": name, "pages": pages, "num_subspaces": M, "page_size": PAGE_SIZE,
         "bytes": (held := PageManager(PAGE_SIZE, pages, M).page_pool.nbytes), "printed": f"{held / 2**20:.2f}"}
        for name, (pages, M) in POOLS.items()
    ]  # fmt: skip
    tiles = [
        {"tokens": tile, "steps_per_token": work.steps / tile, "idle": work.idle, "shared_bytes": work.shared_bytes}
        for tile in config["tiles"] for work in (tile_work(tile, HEAD_DIM, SUBSPACES),)
    ]  # fmt: skip
    return {"tables": {"steps": rows, "pages": [_pool_row(book, heads, step)], "pools": pools, "tiles": tiles}}


def _pool_row(book: Codebook, heads: int, step: Any) -> Row:  # noqa: ANN401 - a step of a cache, as `_listed` has it
    """One flush whose pages are freed again, and tokens until the pool has no page."""
    cache = PagedPQCache(book, heads)
    while not cache.value_page_ids:
        step(cache, PLANNED)
    manager = cache.page_manager
    before, ids = len(manager.free_pages), set(range(MAX_PAGES)) - manager.free_pages
    for page_id in ids:
        manager.free_page(page_id)
    row = {"allocated": len(ids), "recorded": len(cache.value_page_ids), "came_back": len(manager.free_pages) - before}
    cache, lasted = PagedPQCache(book, heads), 0
    try:
        while lasted < CLAIMED_CONTEXT:
            step(cache, PLANNED)
            lasted += 1
    except RuntimeError:
        pass
    return row | {"lasted": lasted}
