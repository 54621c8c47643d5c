"""Part e of `million`, the pool alone: what allocating a page costs, and what a pool of 2.44 MB can be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from pqkv.env import machine_name
from pqkv.record import Record
from pqkv.report.drawing import Plot
from pqkv.reproduce.million.lab import Lab
from pqkv.reproduce.tables import Row, claim, held, lines, newest, plot, table_rows

ALLOCATION, POOL_SIZE = "million-allocation", "million-pool-size"
CLAIMED_MS, CLAIMED_MB = 1.0, "2.44"
STATED = (1000, 8, 64)  # pages, subspaces and bytes of the pool that is said to take them
TESTED = 5  # pages of 8 x 64 that its test creates
# Slope of log median against log pages below which a median counts as constant between these numbers of pages in use: a
# structure of O(log n) grows threefold there, a slope of 0.12. Over a smaller span the two cannot be told apart.
CONSTANT, SPAN = 0.1, (10**2, 10**6)
GROWTH = "allocate that grows a full pool"
# operations that grow a pool, and the claim on each: pools doubled before they grew by a quarter
GROWTHS = {
    "allocate that doubles the pool": "the allocate that doubles a pool without --max-pages under 1 ms",
    GROWTH: "the allocate that grows a full pool without --max-pages under 1 ms",
}
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
        config |= {"machine": machine_name({**lab.env, "gpus": []}), "clock": "taken off"}
        lab.request.report(f"e: pool of {pages:,} pages", 0, 1)
        yield lab.cell(ALLOCATION, config, partial(_timed, pages, s.pool_calls, s.pool_growths))
    config = {"part": "e", "claimed": CLAIMED_MB, "pages": PAGES, "page_sizes": PAGE_SIZES, "heads": HEADS}
    config |= {"subspaces": SUBSPACES, "code_bytes": CODE_BYTES, "sides": list(SIDES), "units": list(UNITS)}
    yield lab.cell(POOL_SIZE, config, lambda: {"tables": {"pools": pools_of(CLAIMED_MB)}})


def allocation_rows(records: Sequence[Record]) -> list[Row]:
    """Microseconds of one call, by machine and pages in use."""
    kept = ("machine", "pages_in_use", "operation", "median_us", "p99_us", "max_us", "count", "clock_us")
    timed = table_rows(records, ALLOCATION, "calls")
    rows = [{key: row[key] for key in kept} for row in timed if "machine" in row]  # older ones hold the clock's time
    return newest(rows, "machine", "operation", "pages_in_use", most="count")


def pool_rows(records: Sequence[Record]) -> list[Row]:
    """The parameters that give the claimed size."""
    kept = ("pages", "page_size", "heads", "subspaces", "code_bytes", "holds", "unit", "bytes")
    rows = [{key: row[key] for key in kept} for row in table_rows(records, POOL_SIZE, "pools")]
    return newest(rows, *kept)


def pool_finding(records: Sequence[Record]) -> list[Row]:
    """Constant time, under a millisecond, on each machine; and the size that cannot be checked."""
    rows, found = allocation_rows(records), []
    for machine in dict.fromkeys(row["machine"] for row in rows):
        own = [row for row in rows if row["machine"] == machine]
        for operation in ("allocate", "release"):
            found += _finding_of_calls(operation, machine, [row for row in own if row["operation"] == operation])
        for operation, what in GROWTHS.items():
            if not (growing := [row for row in own if row["operation"] == operation]):
                continue
            worst = max(growing, key=lambda row: float(row["median_us"]))
            ours = (
                f"median {worst['median_us'] / 1e3:.2f} ms, maximum {worst['max_us'] / 1e3:.2f} ms, "
                f"at {worst['pages_in_use']:,} pages, {machine}"
            )
            found.append(claim(what, "< 1 ms", ours, _quick(worst["median_us"], max(r["max_us"] for r in growing))))
    if pools := pool_rows(records):
        stated = STATED[0] * STATED[1] * STATED[2]
        shape = " x ".join(f"{n:,}" for n in STATED)
        ours = (
            f"{shape} bytes are {stated / 2**20:.3f} MiB; {CLAIMED_MB} MiB are "
            f"{float(CLAIMED_MB) * 2**20 / stated:.1f} times that, and {STATED[0]:,} times the {TESTED} pages of its "
            f"test ({TESTED * STATED[1] * STATED[2] / 2**20:.5f} MiB); {len(pools)} other sets of parameters give it"
        )
        found.append(claim("a pool of 2.44 MB", f"{CLAIMED_MB} MB ({shape})", ours, _prints(stated)))
    return found


def _prints(nbytes: int) -> bool:
    """Whether so many bytes are the claimed size, in either unit."""
    digits = len(CLAIMED_MB.partition(".")[2])
    return any(f"{nbytes / unit:.{digits}f}" == CLAIMED_MB for unit in UNITS.values())


def _finding_of_calls(operation: str, machine: str, rows: list[Row]) -> list[Row]:
    """The claims on one operation, its rows in order of their pages."""
    found = []
    if len(rows) > 1:
        pages, medians = [row["pages_in_use"] for row in rows], [row["median_us"] for row in rows]
        power, known = None, pages[0] <= SPAN[0] and pages[-1] >= SPAN[1]
        if min(medians) > 0:
            power = float(np.polyfit(np.log10(pages), np.log10(medians), 1)[0])
        found.append(
            claim(
                f"{operation} takes constant time, {pages[0]:,} to {pages[-1]:,} pages in use",
                "O(1)",
                f"medians {min(medians):.3f} to {max(medians):.3f} us, "
                f"slope {'not known' if power is None else f'{power:.3f}'}, {machine}",
                abs(power) < CONSTANT if power is not None and known else None,
            )
        )
    if rows:
        worst, longest = (max(rows, key=lambda row: float(row[key])) for key in ("p99_us", "max_us"))
        ours = (
            f"p99 {worst['p99_us']:.2f} us, at {worst['pages_in_use']:,} pages; maximum {longest['max_us']:.2f} us, "
            f"at {longest['pages_in_use']:,} pages, {machine}"
        )
        found.append(claim(f"{operation} under 1 ms", "< 1 ms", ours, _quick(worst["p99_us"], longest["max_us"])))
    return found


def _quick(usual_us: float, longest_us: float) -> bool | None:
    return held(inside=longest_us < 1e3 * CLAIMED_MS, outside=usual_us >= 1e3 * CLAIMED_MS)


def pool_plots(records: Sequence[Record]) -> list[Plot]:
    """Median and 99th percentile of a call against pages in use."""
    rows = [
        {**row, "hue": f"{row['operation']}, {name}", "us": row[key]}
        for row in allocation_rows(records)
        if row["operation"] in ("allocate", "release")
        for name, key in (("median", "median_us"), ("p99", "p99_us"))
    ]
    drawn = lines(rows, lambda row: f"one call, {row['machine']}", "hue", "pages_in_use", "us")
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
    """Single calls, the clock's own median taken off each.

    A batch of pages drawn at random is released, then a batch allocated: one after the other would get back the page
    just released, which the processor's caches still hold.
    """
    from pqkv.cache import PagePool

    pool = PagePool(pages + max(pages, 100))  # room enough that no warning of a low pool falls into the times
    held_pages = [pool.allocate() for _ in range(pages)]
    draw = np.random.default_rng(0)
    batch = max(1, min(pages // 10, 1000))  # at least nine tenths of the pages stay in use
    clock = time.perf_counter_ns
    empty = float(np.median([_between(clock) for _ in range(calls)]))
    allocate: list[int] = []
    release: list[int] = []
    while len(allocate) < calls:
        chosen = draw.choice(pages, min(batch, calls - len(allocate)), replace=False).tolist()
        for k in chosen:
            one = (held_pages[k],)
            start = clock()
            pool.release(one)
            release.append(clock() - start)
        for k in chosen:
            start = clock()
            page = pool.allocate()
            allocate.append(clock() - start)
            held_pages[k] = page
    grown = [_growth(pages) for _ in range(growths)]
    found = {"allocate": allocate, "release": release, GROWTH: grown}
    own = {name: np.maximum(np.array(times) - empty, 0) / 1e3 for name, times in found.items()}
    return {
        "tables": {
            "calls": [
                {
                    "operation": name,
                    "median_us": float(np.median(times)),
                    "p99_us": float(np.quantile(times, 0.99)),
                    "max_us": float(times.max()),
                    "count": len(times),
                    "clock_us": empty / 1e3,
                }
                for name, times in own.items()
            ]
        }
    }


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
