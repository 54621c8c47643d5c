"""Part h: whether techniques "stack": fewer KV heads, a window and codes, alone and together, bytes and time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from pqkv.config import BIT_CHOICES, BenchConfig
from pqkv.kernels import choose_backend
from pqkv.record import Record
from pqkv.reproduce.attention_variants.settings import Settings
from pqkv.reproduce.devices import machines, measured_on
from pqkv.reproduce.parts import part_cell
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row, claim, held, newest, table_rows
from pqkv.speed.synthetic import decode_inputs
from pqkv.speed.timing import Contestant, copies_beyond_cache, race

STACKED = "attention-stacked"
CLAIMED_WINDOW = 1.2  # times as fast
_SPREAD = 1.5  # between lengths: then no factor is right for both
_APART = 0.8  # of the product: a race on a shared machine tells no finer


def part_h(settings: Settings, request: Request) -> Iterator[Record]:
    """A step with every combination of techniques, all in turns."""
    for device, machine in machines():
        for tokens in settings.stacked_lengths:
            request.report(f"h: {tokens} tokens, {device}", 0, 1)
            shape = settings.model_dump(include={"heads", "head_dim", "stacked_window", "repeats", "seed"})
            config = {"part": "h", "tokens": tokens, "device": device, "machine": machine, **shape}
            yield part_cell(STACKED, config, partial(_raced, settings, tokens, device), request)


def _raced(settings: Settings, tokens: int, device: str) -> dict[str, Any]:
    place = torch.device(device)
    made, read = [], {}
    dtype = "float32" if device == "cpu" else "float16"
    backend = choose_backend("auto", place, getattr(torch, dtype)).run
    for shared in (False, True):
        for window in (None, settings.stacked_window):
            for bits in (None, 4.0):
                kv_heads = settings.heads // 4 if shared else settings.heads
                config = BenchConfig(
                    heads=settings.heads, kv_heads=kv_heads, head_dim=settings.head_dim, window=window, dtype=dtype,
                    lengths=(tokens,), bits=(4,),
                )  # fmt: skip
                channels, nbits = BIT_CHOICES[4]
                shape = None if bits is None else (settings.head_dim // channels, nbits)
                first = decode_inputs(config, tokens, 1, shape, settings.seed, place)
                count = copies_beyond_cache(first.read, place)
                cases = [
                    first,
                    *(decode_inputs(config, tokens, 1, shape, settings.seed + i, place) for i in range(1, count)),
                ]
                name = "+".join(
                    part for part, on in (("heads", shared), ("window", window), ("codes", bits)) if on
                ) or "none"  # fmt: skip
                read[name] = first.read
                scale = settings.head_dim**-0.5
                calls = [partial(case.step, backend, scale, window) for case in cases]
                made.append(Contestant(name, calls))
    timings = race(made, settings.repeats, always=[c.name for c in made], device=place)
    rows = [{"techniques": name, "median_ms": timings[name].median, "read_bytes": read[name]} for name in read]
    return {"tables": {"stacked": rows}}


def stacked_rows(records: Sequence[Record]) -> list[Row]:
    """Milliseconds and bytes of a step, and times as fast and as small as with none."""
    kept = ("machine", "device", "tokens", "stacked_window", "techniques", "median_ms", "read_bytes")
    rows = newest(
        ({key: row[key] for key in kept} for row in table_rows(records, STACKED, "stacked")),
        "machine", "device", "tokens", "techniques",
    )  # fmt: skip
    plain = {(r["machine"], r["device"], r["tokens"]): r for r in rows if r["techniques"] == "none"}
    for row in rows:
        base = plain[row["machine"], row["device"], row["tokens"]]
        row |= {"faster": base["median_ms"] / row["median_ms"], "smaller": base["read_bytes"] / row["read_bytes"]}
    return rows


def finding_h(records: Sequence[Record]) -> list[Row]:
    """A window's speed, and what of the product of the parts all together reach."""
    result, rows = [], stacked_rows(records)
    for machine, device in dict.fromkeys((row["machine"], row["device"]) for row in rows):
        own = {(r["techniques"], r["tokens"]): r for r in rows if (r["machine"], r["device"]) == (machine, device)}
        lengths = sorted({tokens for _, tokens in own})
        window = next(iter(own.values()))["stacked_window"]
        faster = {n: own["window", n]["faster"] for n in lengths}
        said = ", ".join(f"{n:,}: {x:.1f} (L/W {max(1.0, n / window):.1f})" for n, x in faster.items())
        said = f"attention alone through a window of {window:,}, by tokens: {said}: no one factor; {machine}"
        spread = max(faster.values()) > _SPREAD * min(faster.values())
        row = claim(
            "a sliding window is 1.2 times as fast", f"{CLAIMED_WINDOW}x", said, held(inside=False, outside=spread)
        )
        result.append(measured_on(device, row))
        n = lengths[-1]
        singles = [own[name, n] for name in ("heads", "window", "codes")]
        whole = own["heads+window+codes", n]
        product_time, product_bytes = 1.0, 1.0
        for single in singles:
            product_time, product_bytes = product_time * single["faster"], product_bytes * single["smaller"]
        said = (
            f"{n:,} tokens, heads {singles[0]['faster']:.1f}, window {singles[1]['faster']:.1f}, codes "
            f"{singles[2]['faster']:.1f} times as fast: together {whole['faster']:.1f}, their product "
            f"{product_time:.1f}; bytes read {whole['smaller']:.0f} times fewer, product {product_bytes:.0f}; {machine}"
        )
        reached = whole["faster"] / product_time
        row = claim("techniques used together add up", "combine for more", said,
                    held(inside=reached >= _APART, outside=reached < _APART))  # fmt: skip
        result.append(measured_on(device, row))
    return result
