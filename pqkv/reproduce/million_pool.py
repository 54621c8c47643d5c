"""Part e of `million`, the pool alone: what allocating a page costs, and what a pool of 2.44 MB can be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from pqkv.record import Record
from pqkv.report.drawing import Plot
from pqkv.reproduce.million_lab import Lab
from pqkv.reproduce.tables import Row, claim, lines, newest, plot, table_rows

ALLOCATION, POOL_SIZE = "million-allocation", "million-pool-size"
CLAIMED_MS, CLAIMED_MB = 1.0, "2.44"
CONSTANT = 0.25  # power of the pages up to which a median counts as constant: caches miss more often in a larger pool
# what a report on a paged, transposed MILLION could mean by a pool
PAGES = (64, 100, 128, 256, 500, 512, 625, 1000, 1024, 2000, 2048, 4096, 5000, 8192, 10_000, 65_536, 100_000)
PAGE_SIZES = (16, 32, 64, 128, 256)
HEADS = (1, 2, 4, 8, 32, 40)
SUBSPACES = (16, 32, 64, 128)
CODE_BYTES = (1, 2)
SIDES = {"keys or values": 1, "keys and values": 2}
UNITS = {"MB": 1e6, "MiB": 2**20}


def pool_part(lab: Lab) -> Iterator[Record]:
    """Time single calls at each number of pages in use, and the call that grows the pool; list what gives 2.44 MB."""
    s = lab.settings
    for pages in s.pool_pages:
        config = {"part": "e", "pages_in_use": pages, "calls": s.pool_calls, "growths": s.pool_growths}
        lab.request.report(f"e: pool of {pages:,} pages", 0, 1)
        yield lab.cell(ALLOCATION, config, partial(_timed, pages, s.pool_calls, s.pool_growths))
    config = {"part": "e", "claimed": CLAIMED_MB, "pages": PAGES, "page_sizes": PAGE_SIZES, "heads": HEADS}
    config |= {"subspaces": SUBSPACES, "code_bytes": CODE_BYTES, "sides": list(SIDES), "units": list(UNITS)}
    yield lab.cell(POOL_SIZE, config, lambda: {"tables": {"pools": pools_of(CLAIMED_MB)}})


def allocation_rows(records: Sequence[Record]) -> list[Row]:
    """Microseconds of one call, by pages in use."""
    kept = ("pages_in_use", "operation", "median_us", "p99_us", "max_us", "count", "clock_us")
    rows = [{key: row[key] for key in kept} for row in table_rows(records, ALLOCATION, "calls")]
    return newest(rows, "operation", "pages_in_use")


def pool_rows(records: Sequence[Record]) -> list[Row]:
    """The parameters that give the claimed size."""
    kept = ("pages", "page_size", "heads", "subspaces", "code_bytes", "holds", "unit", "bytes")
    rows = [{key: row[key] for key in kept} for row in table_rows(records, POOL_SIZE, "pools")]
    return newest(rows, *kept)


def pool_finding(records: Sequence[Record]) -> list[Row]:
    """Constant time, under a millisecond, and the size that cannot be checked."""
    rows, found = allocation_rows(records), []
    for operation in ("allocate", "release"):
        own = [row for row in rows if row["operation"] == operation]
        if len(own) > 1:
            first, last = own[0], own[-1]
            medians = [row["median_us"] for row in own]
            spread, pages = max(medians) / min(medians), last["pages_in_use"] / first["pages_in_use"]
            sizes = f"{first['pages_in_use']:,} to {last['pages_in_use']:,} pages in use"
            found.append(
                claim(
                    f"{operation} takes constant time, {sizes}",
                    "O(1)",
                    f"medians {min(medians):.2f} to {max(medians):.2f} us: {spread:.2f}x for {pages:,.0f}x the pages",
                    spread < pages**CONSTANT,
                )
            )
        if own:
            worst = max(own, key=lambda row: float(row["p99_us"]))
            ours = f"p99 {worst['p99_us']:.2f} us, at {worst['pages_in_use']:,} pages"
            found.append(claim(f"{operation} under 1 ms", "< 1 ms", ours, worst["p99_us"] < 1e3 * CLAIMED_MS))
    growing = [row for row in rows if row["operation"] == "allocate that doubles the pool"]
    if growing:
        worst = max(growing, key=lambda row: float(row["median_us"]))
        ours = f"median {worst['median_us'] / 1e3:.2f} ms, at {worst['pages_in_use']:,} pages"
        what = "the allocate that doubles a pool without --max-pages under 1 ms"
        found.append(claim(what, "< 1 ms", ours, worst["median_us"] < 1e3 * CLAIMED_MS))
    if pools := pool_rows(records):
        ours = f"{len(pools)} plausible sets of parameters give it, none is stated"
        found.append(claim("a pool of 2.44 MB", "2.44 MB", ours, None))
    return found


def pool_plots(records: Sequence[Record]) -> list[Plot]:
    """Median and 99th percentile of a call against pages in use."""
    rows = [
        {**row, "hue": f"{row['operation']}, {name}", "us": row[key]}
        for row in allocation_rows(records)
        if row["operation"] in ("allocate", "release")
        for name, key in (("median", "median_us"), ("p99", "p99_us"))
    ]
    drawn = lines(rows, lambda row: "one call, the clock's own time included", "hue", "pages_in_use", "us")
    labels = ("pages in use", "microseconds")
    return [plot("e_allocation", "What one call of the page pool takes", labels, drawn, "call", log_x=True, log_y=True)]


def pools_of(megabytes: str) -> list[Row]:
    """Pools of codes whose size prints as `megabytes`, in 10^6 or 2^20 bytes, with as many digits."""
    digits = len(megabytes.partition(".")[2])
    rows = []
    for pages, size, heads, subspaces, width, (what, sides) in product(
        PAGES, PAGE_SIZES, HEADS, SUBSPACES, CODE_BYTES, SIDES.items()
    ):
        nbytes = pages * size * heads * subspaces * width * sides
        for unit, value in UNITS.items():
            if f"{nbytes / value:.{digits}f}" == megabytes:
                rows.append(
                    {
                        "pages": pages,
                        "page_size": size,
                        "heads": heads,
                        "subspaces": subspaces,
                        "code_bytes": width,
                        "holds": what,
                        "unit": unit,
                        "bytes": nbytes,
                    }
                )
    return rows


def _timed(pages: int, calls: int, growths: int) -> dict[str, Any]:
    from pqkv.cache import PagePool

    pool = PagePool(pages + max(pages, 100))  # room enough that no warning of a low pool falls into the times
    held = [pool.allocate() for _ in range(pages)]
    draw = np.random.default_rng(0)
    allocate, release = [], []
    clock = time.perf_counter_ns
    for k in draw.integers(pages, size=calls).tolist():
        start = clock()
        pool.release((held[k],))
        middle = clock()
        held[k] = pool.allocate()
        end = clock()
        release.append(middle - start)
        allocate.append(end - middle)
    empty = [_between(clock) for _ in range(calls)]
    grown = [_growth(pages) for _ in range(growths)]
    clock_us = float(np.median(empty)) / 1e3
    return {
        "tables": {
            "calls": [
                {
                    "operation": name,
                    "median_us": float(np.median(times)) / 1e3,
                    "p99_us": float(np.quantile(times, 0.99)) / 1e3,
                    "max_us": max(times) / 1e3,
                    "count": len(times),
                    "clock_us": clock_us,
                }
                for name, times in (
                    ("allocate", allocate), ("release", release), ("allocate that doubles the pool", grown),
                )
            ]
        }
    }  # fmt: skip


def _between(clock: Callable[[], int]) -> int:
    start = clock()
    return clock() - start


def _growth(pages: int) -> int:
    """Nanoseconds of the allocate that finds a growing pool of `pages` pages empty."""
    from pqkv.cache import PagePool

    pool = PagePool(initial=pages)
    for _ in range(pages):
        pool.allocate()
    start = time.perf_counter_ns()
    pool.allocate()
    return time.perf_counter_ns() - start
