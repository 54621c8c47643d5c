"""Part a: standard and online softmax, by bytes, time and error; the lesson's pseudocode and its kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pqkv.env import environment, machine_name
from pqkv.record import Record
from pqkv.report.drawing import Plot
from pqkv.reproduce.attention_variants.flash import DEFECTS, exact, online, reported_kernel, standard
from pqkv.reproduce.attention_variants.settings import Settings
from pqkv.reproduce.parts import part_cell
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import NOT_HERE, Row, claim, lines, newest, plot, table_rows
from pqkv.speed.allocations import PeakMemory
from pqkv.speed.timing import Contestant, race

MEMORY, DEFECT, KERNEL = "attention-memory", "attention-defects", "attention-kernel"
TOLERANCE = 2e-5  # of a row's largest element, against float64
WAYS = {"standard": standard, "online": online}
SDPA = "sdpa"
_THREADS = (32, 128)


def part_a(settings: Settings, request: Request) -> Iterator[Record]:
    """Bytes and times by length, errors by defect, channels that the kernel gets right."""
    env, shape = environment(), {"head_dim": settings.head_dim, "seed": settings.seed}
    timed = {"machine": machine_name({**env, "gpus": []}), "repeats": settings.repeats}
    for rows in settings.lengths:
        request.report(f"a: {rows} rows", 0, 1)
        yield part_cell(
            MEMORY, {"part": "a", "rows": rows, **shape, **timed}, partial(_memory, settings, rows), request
        )
    for rows in settings.defect_lengths:
        yield part_cell(DEFECT, {"part": "a", "rows": rows, **shape}, partial(_defects, settings, rows), request)
    for tokens in settings.kernel_lengths:
        yield part_cell(KERNEL, {"part": "a", "tokens": tokens, **shape}, partial(_kernel, settings, tokens), request)


def _drawn(settings: Settings, rows: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(settings.seed)
    return [torch.randn(rows, settings.head_dim, generator=generator) for _ in range(3)]


def _memory(settings: Settings, rows: int) -> dict[str, Any]:
    drawn, found = _drawn(settings, rows), []
    for way, attend in WAYS.items():
        with PeakMemory() as counted:
            attend(*drawn)
        found.append({"way": way, "peak_bytes": counted.peak})
    query, keys, values = (x[None, None] for x in drawn)
    sdpa = partial(torch.nn.functional.scaled_dot_product_attention, query, keys, values, is_causal=True)
    contestants = [Contestant(way, [partial(attend, *drawn)]) for way, attend in WAYS.items()]
    timings = race([*contestants, Contestant(SDPA, [sdpa])], settings.repeats, always=[*WAYS, SDPA])
    for row in found:
        row["median_ms"] = timings[row["way"]].median
    return {"tables": {"memory": [*found, {"way": SDPA, "peak_bytes": None, "median_ms": timings[SDPA].median}]}}


def _error(found: Tensor, right: Tensor) -> float | None:
    """Largest error of a row, of its largest element; None for what is no number."""
    error = float(((found.double() - right).abs().amax(1) / right.abs().amax(1)).max())
    return error if np.isfinite(error) else None


def _defects(settings: Settings, rows: int) -> dict[str, Any]:
    query, keys, values = _drawn(settings, rows)
    right = exact(query, keys, values)
    return {"tables": {"defects": [
        {"defect": defect, "error": _error(online(query, keys, values, defect=defect), right)} for defect in DEFECTS
    ]}}  # fmt: skip


def _kernel(settings: Settings, tokens: int) -> dict[str, Any]:
    generator, rows = np.random.default_rng(settings.seed), []
    query, keys, values = (
        generator.standard_normal(shape) for shape in ((settings.head_dim,), *[(tokens, settings.head_dim)] * 2)
    )
    scores = keys @ query / settings.head_dim**0.5
    weights = np.exp(scores - scores.max())
    right = weights @ values / weights.sum()
    for threads in _THREADS:
        found, wrong = reported_kernel(query, keys, values, threads)
        with np.errstate(invalid="ignore"):
            good = np.abs(found - right) <= 1e-4 * np.abs(right).max()
        rows.append(
            {"threads": threads, "right_channels": int(good.sum()), "channels": settings.head_dim, "wrong": wrong}
        )
    return {"tables": {"kernel": rows}}


def memory_rows(records: Sequence[Record]) -> list[Row]:
    """Peak bytes and milliseconds of one head."""
    kept = ("machine", "rows", "way", "peak_bytes", "median_ms")
    rows = [{key: row[key] for key in kept} for row in table_rows(records, MEMORY, "memory")]
    return newest(rows, "machine", "way", "rows")


def defect_rows(records: Sequence[Record]) -> list[Row]:
    """Error of the pseudocode with one defect."""
    rows = [{key: row[key] for key in ("rows", "defect", "error")} for row in table_rows(records, DEFECT, "defects")]
    return newest(rows, "defect", "rows")


def kernel_rows(records: Sequence[Record]) -> list[Row]:
    """Channels of the emulated kernel's output that are right."""
    kept = ("tokens", "threads", "right_channels", "channels")
    rows = [{key: row[key] for key in kept} | {"wrong": "; ".join(row["wrong"])}
            for row in table_rows(records, KERNEL, "kernel")]  # fmt: skip
    return newest(rows, "threads", "tokens")


_HALF = (0.45, 0.55)  # what "50%" may be


def finding_a(records: Sequence[Record]) -> list[Row]:
    """Memory, speed and the two listings."""
    result, memory = [], memory_rows(records)
    for machine in dict.fromkeys(row["machine"] for row in memory):
        own = {(row["way"], row["rows"]): row for row in memory if row["machine"] == machine}
        lengths = sorted({rows for _, rows in own})
        few, most = lengths[0], lengths[-1]
        growth = {way: own[way, most]["peak_bytes"] / own[way, few]["peak_bytes"] for way in WAYS}
        share = own["online", most]["peak_bytes"] / own["standard", most]["peak_bytes"]
        at = ", ".join(
            f"{n:,}: {own['standard', n]['peak_bytes'] / own['online', n]['peak_bytes']:.3g}" for n in lengths
        )
        result += [
            claim("flash attention needs O(N) bytes in place of O(N^2)", "O(N)",
                  f"from {few:,} to {most:,} rows ({most // few} times) online grows {growth['online']:.1f} times, "
                  f"standard {growth['standard']:.0f} times", growth["online"] < 1.5 * most / few),
            claim("flash attention saves 50% of the memory", "50%",
                  f"standard over online, by rows: {at}; at {most:,} rows it saves {1 - share:.1%}: no one share",
                  all(_HALF[0] <= 1 - own["online", n]["peak_bytes"] / own["standard", n]["peak_bytes"] <= _HALF[1]
                      for n in lengths)),
        ]  # fmt: skip
        speeds = ", ".join(
            f"{n:,}: online {own['standard', n]['median_ms'] / own['online', n]['median_ms']:.2f}, fused "
            f"{own['standard', n]['median_ms'] / own[SDPA, n]['median_ms']:.2f}"
            for n in lengths
        )
        # theirs is of a GPU's memory, and this part runs on the processor
        result.append(claim("flash attention is 2-4 times as fast (elsewhere ~5)", "2-4x, ~5x of HBM traffic",
                            f"standard over online in torch's operations, and over torch's fused one, by rows: "
                            f"{speeds}; {machine}", NOT_HERE))  # fmt: skip
    if defects := defect_rows(records):
        by = {name: [row for row in defects if row["defect"] == name] for name in DEFECTS}
        for name, rows in by.items():
            said = ", ".join(
                f"{row['rows']:,}: {'no number' if row['error'] is None else format(row['error'], '.1e')}"
                for row in rows
            )
            held = all(row["error"] is not None and row["error"] <= TOLERANCE for row in rows)
            text = "the online softmax, written right" if name == "none" else f"its pseudocode: {name}"
            result.append(claim(text, "numerically stable" if name == "none" else DEFECTS[name],
                                f"error of a row's largest element, by rows: {said}", held))  # fmt: skip
    if kernel := kernel_rows(records):
        for threads in dict.fromkeys(row["threads"] for row in kernel):
            own_rows = [row for row in kernel if row["threads"] == threads]
            said = ", ".join(f"{row['tokens']:,}: {row['right_channels']}" for row in own_rows)
            wrong = max((row["wrong"] for row in own_rows), key=len)
            held = all(row["right_channels"] == row["channels"] for row in own_rows)
            result.append(claim(f"its CUDA kernel, {threads} threads", "its own short form of fattn.cuh",
                                f"right channels of {own_rows[0]['channels']} by tokens: {said}; {wrong}",
                                held))  # fmt: skip
    return result


def plots_a(records: Sequence[Record]) -> list[Plot]:
    """Peak bytes against rows."""
    rows = [row for row in memory_rows(records) if row["peak_bytes"] is not None]
    drawn = lines(rows, lambda row: "one head", "way", "rows", "peak_bytes")
    return [
        plot("a_memory", "What attention holds at once", ("rows", "bytes"), drawn, "softmax", log_x=True, log_y=True)
    ]
