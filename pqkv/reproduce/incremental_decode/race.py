"""Part c: a step of one layer by each way of attending, over lengths."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from pqkv.cache import StaticStore
from pqkv.kernels import AttentionBackend, choose_backend
from pqkv.record import Record
from pqkv.report.drawing import Plot
from pqkv.reproduce.devices import machines, measured_on
from pqkv.reproduce.incremental_decode.settings import Settings
from pqkv.reproduce.parts import part_cell
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import NO_CLAIM, NOT_HERE, Row, claim, lines, newest, of_kind, plot, table_rows
from pqkv.speed.baselines import grouped_sdpa
from pqkv.speed.timing import Contestant, copies_beyond_cache, median_interval, race

RACE = "incremental-race"
SDPA = "sdpa on a static store"
SPLIT = "split"
# what the report has, and the two of its options that it leaves for later
REPORTED = {
    "round-trip": "PAR-018: round trip, all rows",
    "all-rows": "option A: compacted on the device, all rows",
    "one-warp": "PAR-020: one warp a head",
}
_SLOW = 1000.0  # times the fastest: from then on a contestant is left out of longer races


def part_c(settings: Settings, request: Request) -> Iterator[Record]:
    """A race at each length; who took `_SLOW` times the fastest does not run at the next."""
    for device, machine in machines():
        left_out: set[str] = set()
        for length in settings.raced:
            request.report(f"c: {length} tokens, {device}", 0, 1)
            shape = settings.model_dump(include={"heads", "kv_heads", "head_dim", "repeats", "seed"})
            config = {"part": "c", "length": length, "device": device, "machine": machine, **shape}
            if left_out:
                config["left_out"] = sorted(left_out)
            record = part_cell(RACE, config, partial(_raced, settings, length, device, frozenset(left_out)), request)
            yield record
            rows = record.tables.get("race", [])
            fastest = min((row["median_ms"] for row in rows), default=0.0)
            left_out |= {row["way"] for row in rows if row["median_ms"] > _SLOW * fastest}


def _raced(settings: Settings, length: int, device: str, left_out: frozenset[str]) -> dict[str, Any]:
    s, place = settings, torch.device(device)
    generator = torch.Generator().manual_seed(s.seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(place)

    count = copies_beyond_cache(2 * s.kv_heads * length * s.head_dim * torch.float32.itemsize, place)
    cases = []
    for _ in range(count):
        store = StaticStore(s.kv_heads, length, s.head_dim, device=place)
        store.append(drawn(s.kv_heads, length, s.head_dim), drawn(s.kv_heads, length, s.head_dim))
        cases.append((drawn(1, 1, s.heads, s.head_dim), store))

    def ours(run: AttentionBackend) -> list[Any]:
        return [partial(run, q, store.tokens(), None, None, scale=s.head_dim**-0.5) for q, store in cases]

    ways: dict[str, list[Any]] = {
        text: ours(choose_backend(name, place, torch.float32, fallback=False).run)
        for name, text in REPORTED.items()
        if text not in left_out
    }
    ways[SPLIT] = ours(choose_backend("auto", place, torch.float32).run)
    ways[SDPA] = [
        partial(grouped_sdpa, q.view(1, s.kv_heads, -1, s.head_dim), store.keys[None], store.values[None])
        for q, store in cases
    ]
    waits = REPORTED["round-trip"]  # for the device, which a graph cannot
    made = [Contestant(name, calls, capture=name != waits) for name, calls in ways.items()]
    timings = race(made, s.repeats, slow=50.0, device=place)
    rows = []
    for name, timing in timings.items():
        pairs = zip(timing.seconds, timings[SDPA].seconds, strict=False)
        ratios = [own / other for own, other in pairs] if len(timing.seconds) == s.repeats else []
        low, high = median_interval(timing.seconds)
        rows.append({
            "way": name, "median_ms": timing.median, "low_ms": None if low is None else 1e3 * low,
            "high_ms": None if high is None else 1e3 * high, "runs": len(timing.seconds),
            "times_sdpa": statistics.median(ratios) if ratios else timing.median / timings[SDPA].median,
        })  # fmt: skip
    return {"tables": {"race": rows}}


def race_rows(records: Sequence[Record]) -> list[Row]:
    """Milliseconds of a layer's step, and times those of torch's exact attention."""
    kept = ("machine", "device", "length", "way", "median_ms", "low_ms", "high_ms", "runs", "times_sdpa")
    return newest([{key: row[key] for key in kept} for row in table_rows(records, RACE, "race")],
                  "machine", "device", "way", "length")  # fmt: skip


def finding_c(records: Sequence[Record]) -> list[Row]:
    """Slopes, crossings and what all rows cost; times of a processor decide nothing."""
    if not of_kind(records, RACE):
        return []
    found, every = [], race_rows(records)
    for machine in dict.fromkeys(row["machine"] for row in every):
        rows = [row for row in every if row["machine"] == machine]
        device = rows[0]["device"]
        by = {way: [r for r in rows if r["way"] == way] for way in dict.fromkeys(r["way"] for r in rows)}
        trip, warp, every_row = by[REPORTED["round-trip"]], by[REPORTED["one-warp"]], by[REPORTED["all-rows"]]
        shared = max({r["length"] for r in trip} & {r["length"] for r in warp})
        most, longest = (max(r["length"] for r in own) for own in (every_row, warp))
        times = _at(trip, shared) / _at(warp, shared)
        split, exact = (_at(warp, longest) / _at(by[way], longest) for way in (SPLIT, SDPA))
        slopes = "; ".join(f"{way}: {1e6 * _slope(own):.3g} ns" for way, own in by.items() if len(own) > 2)
        on_gpu = device == "cuda"
        claims = [
            claim("PAR-020 is faster than PAR-018", "eliminates the main bottleneck",
                  f"{times:,.0f} times at {shared:,} tokens, {machine}", times > 1 if on_gpu else NOT_HERE),
            claim("what all rows for one query take", "not said",
                  f"{_at(every_row, most) / _at(by[SDPA], most):,.0f} times the time of one row at {most:,} tokens, "
                  f"{machine}", NO_CLAIM),
            claim("one warp a head is enough", "one block of 32 threads a head, no split",
                  f"{split:.1f} times as long as pages split over threads at {longest:,} tokens and {exact:.1f} times "
                  f"torch's, {machine}", split < 1.1 if on_gpu else NOT_HERE),
            claim("a token more costs a step of one layer", "not said", f"{slopes}; {machine}", NO_CLAIM),
        ]  # fmt: skip
        found += [measured_on(device, row) for row in claims]
    return found


def _at(rows: list[Row], length: int) -> float:
    return next(float(row["median_ms"]) for row in rows if row["length"] == length)


def _slope(rows: list[Row]) -> float:
    """Milliseconds a token, between the two longest."""
    (a, first), (b, last) = ((row["length"], row["median_ms"]) for row in rows[-2:])
    return float(np.divide(last - first, b - a))


def plots_c(records: Sequence[Record]) -> list[Plot]:
    """Milliseconds against tokens."""
    rows = [{**row, "median_ms_low": row["low_ms"], "median_ms_high": row["high_ms"]} for row in race_rows(records)]
    drawn = lines(rows, lambda row: row["machine"], "way", "length", "median_ms")
    labels = ("tokens", "milliseconds")
    return [plot("c_race", "A step of one layer", labels, drawn, "way", log_x=True, log_y=True)]
