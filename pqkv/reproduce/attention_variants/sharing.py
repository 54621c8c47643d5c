"""Part c: a step by the number of KV heads, query heads of a group as rows, and keys repeated as the lesson has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pqkv.record import Record
from pqkv.reproduce.attention_variants.settings import Settings
from pqkv.reproduce.devices import machines, measured_on
from pqkv.reproduce.parts import part_cell
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row, claim, held, newest, table_rows
from pqkv.speed.allocations import PeakMemory
from pqkv.speed.baselines import grouped_sdpa
from pqkv.speed.timing import Contestant, copies_beyond_cache, race

SHARING = "attention-sharing"
GROUPED, REPEATED = "grouped rows", "repeated"
CLAIMED = {8: 1.5, 1: 2.0}  # times as fast as 32 KV heads, by KV heads


def part_c(settings: Settings, request: Request) -> Iterator[Record]:
    """A step at each length, all numbers of KV heads in one race."""
    for device, machine in machines():
        for tokens in settings.shared_lengths:
            request.report(f"c: {tokens} tokens, {device}", 0, 1)
            shape = settings.model_dump(include={"heads", "kv_heads", "head_dim", "repeats", "seed"})
            config = {"part": "c", "tokens": tokens, "device": device, "machine": machine, **shape}
            yield part_cell(SHARING, config, partial(_raced, settings, tokens, device), request)


def repeated(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """As the lesson has it: keys and values repeated for each query head. query (1, Hkv, G, D)."""
    G = query.shape[2]
    keys, values = (side.repeat_interleave(G, 1) for side in (keys, values))
    return torch.nn.functional.scaled_dot_product_attention(query.flatten(1, 2)[:, :, None], keys, values)


def _raced(settings: Settings, tokens: int, device: str) -> dict[str, Any]:
    s, place = settings, torch.device(device)
    made, peaks = [], {}
    dtype = torch.float32 if device == "cpu" else torch.float16
    for kv_heads in s.kv_heads:
        count = copies_beyond_cache(2 * kv_heads * tokens * s.head_dim * dtype.itemsize, place)
        cases = [
            (torch.randn(1, kv_heads, s.heads // kv_heads, s.head_dim, dtype=dtype, device=place),
             *(torch.randn(1, kv_heads, tokens, s.head_dim, dtype=dtype, device=place) for _ in range(2)))
            for _ in range(count)
        ]  # fmt: skip
        for way, attend in ((GROUPED, grouped_sdpa), (REPEATED, repeated)):
            with PeakMemory() as counted:
                attend(*cases[0])
            peaks[way, kv_heads] = counted.peak
            made.append(Contestant(f"{way}/{kv_heads}", [partial(attend, *case) for case in cases]))
    timings = race(made, s.repeats, always=[c.name for c in made], device=place)
    return {"tables": {"sharing": [
        {"way": way, "shared_by": s.heads // kv_heads, "of": kv_heads, "median_ms": timings[f"{way}/{kv_heads}"].median,
         "peak_bytes": peak}
        for (way, kv_heads), peak in peaks.items()
    ]}}  # fmt: skip


def sharing_rows(records: Sequence[Record]) -> list[Row]:
    """Milliseconds and peak bytes of a step."""
    kept = ("machine", "device", "tokens", "way", "of", "median_ms", "peak_bytes")
    rows = [{key: row[key] for key in kept} for row in table_rows(records, SHARING, "sharing")]
    return newest(rows, "machine", "device", "way", "of", "tokens")


def finding_c(records: Sequence[Record]) -> list[Row]:
    """Times as fast as a KV head for each query head, and what repeating costs."""
    result, every = [], sharing_rows(records)
    for machine in dict.fromkeys(row["machine"] for row in every):
        rows = [row for row in every if row["machine"] == machine]
        device = rows[0]["device"]
        at = {(row["way"], row["of"], row["tokens"]): row for row in rows}
        lengths = sorted({row["tokens"] for row in rows})
        most = max(row["of"] for row in rows)
        for kv_heads, theirs in CLAIMED.items():
            if (GROUPED, kv_heads, lengths[0]) not in at:
                continue
            times = [at[GROUPED, most, n]["median_ms"] / at[GROUPED, kv_heads, n]["median_ms"] for n in lengths]
            said = ", ".join(f"{n:,}: {x:.1f}" for n, x in zip(lengths, times, strict=True))
            name = "MQA" if kv_heads == 1 else "GQA"
            row = claim(f"{name} with {kv_heads} of {most} KV heads is {theirs:g} times as fast", f"{theirs:g}x",
                        f"attention alone (theirs does not say of what), by tokens: {said}; {machine}",
                        None)  # fmt: skip
            result.append(measured_on(device, row))
        few, longest = min(row["of"] for row in rows), lengths[-1]
        slow = at[REPEATED, few, longest]["median_ms"] / at[GROUPED, few, longest]["median_ms"]
        peak = at[REPEATED, few, longest]["peak_bytes"] / 2**20
        said = (
            f"{few} of {most} KV heads, {longest:,} tokens: {slow:.1f} times as long as grouped rows, {peak:,.0f} MiB "
            f"more at once in place of {at[GROUPED, few, longest]['peak_bytes'] / 2**20:.2f}, {machine}"
        )
        row = claim("its MQA listing (ggml_repeat, no mask)", "2x, 32x less memory", said,
                    held(inside=slow < 1 and not peak, outside=slow > 1 and peak > 0))  # fmt: skip
        result.append(measured_on(device, row))
    return result
