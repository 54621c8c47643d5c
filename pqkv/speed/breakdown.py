"""`pqkv bench --breakdown`: what each part of a decoding step on the cache takes, and apart from it what encoding does.

The whole step and its parts take turns, on buffers that are rotated so that a part does not find in the processor's
cache what the whole has just read. How parts are told apart is the backend's matter and stands in the record; they need
not add up to the whole, so their sum stands beside it. Encoding is of one layer, keys and values: `encode` makes the
codes of one page, `flush` encodes a page and stores it, `prefill` all pages of a prompt of the cell's length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pqkv.cache.store import CodeSide
from pqkv.codec import code_bits
from pqkv.config import BenchConfig
from pqkv.kernels import ChosenBackend
from pqkv.kernels.parts import part_source
from pqkv.kernels.types import Part
from pqkv.record import Metric, Record, RecordStore
from pqkv.speed.bench import Cell, Report, backend_call, metric_of, run_grid
from pqkv.speed.check import check_backend
from pqkv.speed.synthetic import DecodeInputs, decode_inputs, key_book, parts_of, value_book
from pqkv.speed.timing import Contestant, Timing, copies_beyond_cache, race

WHOLE, SUM = "whole step", "sum of parts"
_MOST_COPIES = 64


def breakdown(
    config: BenchConfig, store: RecordStore | None = None, *, force: bool = False, report: Report | None = None
) -> Iterator[Record]:
    """A record for every cell of the grid, with its parts in `tables["breakdown"]`: rows of part, median_ms, q10_ms,
    q90_ms, share of the whole step (None for encoding), tokens that a call encodes and us_per_token (None for a step).
    Times of a step are of one layer. A backend whose parts cannot be told apart gives failed records.
    """
    return run_grid(config, _measure, store, force=force, report=report, mode="breakdown")


def _measure(
    config: BenchConfig, cell: Cell, backend: ChosenBackend, device: torch.device, bandwidth: Callable[[], float]
) -> dict[str, Any]:
    source, scale = part_source(backend.name), config.head_dim**-0.5

    def inputs_of(seed: int) -> DecodeInputs:
        return decode_inputs(config, cell.context, cell.batch, cell.shape, seed, device)

    first = inputs_of(config.seed)
    check_backend(backend, first, scale, config.window)
    inputs = [first] + [inputs_of(config.seed + i) for i in range(1, copies_beyond_cache(first.read, device))]
    found = [
        source.parts(case.query, case.pages, case.sinks, case.residual, scale=scale, window=config.window)
        for case in inputs
    ]
    calls = [backend_call(backend, case, scale, config.window) for case in inputs]
    half = len(calls) // 2
    contestants = [Contestant(WHOLE, calls[half:] + calls[:half])]
    contestants += [Contestant(part.name, [parts[i].run for parts in found]) for i, part in enumerate(found[0])]
    # every part in every round: it takes what the one before it left
    timings = race(contestants, config.repeats, always=[c.name for c in contestants], device=device)
    rows, samples = part_rows(found[0], timings)
    moved = first.read / (timings[WHOLE].median * 1e-3) / 1e9
    metrics = {
        "latency_ms": metric_of(timings[WHOLE].median, samples[WHOLE], "ms"),
        "bandwidth_gbs": Metric(value=moved, unit="GB/s"),
        "bandwidth_fraction": Metric(value=moved / bandwidth()),
    }
    if cell.shape is not None:
        metrics["code_bits"] = Metric(value=code_bits(*cell.shape, config.head_dim), unit="bits")
        rows += _encoding_rows(config, cell, device)
    method = [{"method": source.method, "captured": timings[WHOLE].captured}]
    return {"metrics": metrics, "tables": {"breakdown": rows, "method": method}, "samples": samples}


def part_rows(parts: Sequence[Part], timings: dict[str, Timing]) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """Rows of the whole step, each part and their sum, and the milliseconds of all rounds behind them. The time of a
    part beyond another is the difference of the two in the same round.
    """
    samples = {WHOLE: [1e3 * s for s in timings[WHOLE].seconds]}
    for part in parts:
        own = timings[part.name].seconds
        less = timings[part.beyond].seconds if part.beyond is not None else (0.0,) * len(own)
        samples[part.name] = [1e3 * (a - b) for a, b in zip(own, less, strict=True)]
    samples[SUM] = [sum(together) for together in zip(*(samples[part.name] for part in parts), strict=True)]
    whole = timings[WHOLE].median
    rows = [_row(name, times) | {"share": _row(name, times)["median_ms"] / whole} for name, times in samples.items()]
    return rows, samples


def _row(name: str, milliseconds: Sequence[float], tokens: int | None = None) -> dict[str, Any]:
    timing = Timing(name, tuple(1e-3 * ms for ms in milliseconds))
    return {
        "part": name, "median_ms": timing.median, "q10_ms": timing.quantile(0.1), "q90_ms": timing.quantile(0.9),
        "share": None, "tokens": tokens, "us_per_token": None if tokens is None else 1e3 * timing.median / tokens,
    }  # fmt: skip


def _encoding_rows(config: BenchConfig, cell: Cell, device: torch.device) -> list[dict[str, Any]]:
    """Encoding, flush and prefill of one sequence; a GPU has no encoding apart from the flush: one kernel does both."""
    P = config.page_size
    pages = parts_of(config, cell.context, cell.shape)[1] // P
    vectors = _vectors(config, P, device)
    copies = [vectors] + [
        _vectors(config, P, device)
        for _ in range(1, min(_MOST_COPIES, copies_beyond_cache(2 * vectors[0].nbytes, device)))
    ]
    sides = _sides(config, cell, max(pages, len(copies)), device)
    work: dict[str, tuple[int, list[Callable[[], object]], int]] = {}
    if device.type == "cpu":
        work["encode"] = P, [_encode_call(sides, pair) for pair in copies], config.repeats
    work["flush"] = P, [_write_call(sides, pair, i, 1) for i, pair in enumerate(copies)], config.repeats
    if pages:
        prompt = _vectors(config, pages * P, device)
        work["prefill"] = pages * P, [_write_call(sides, prompt, 0, pages)], max(3, config.repeats // 5)
    rows = []
    for name, (tokens, calls, repeats) in work.items():
        timing = race([Contestant(name, calls)], repeats, device=device)[name]
        rows.append(_row(name, [1e3 * s for s in timing.seconds], tokens))
    return rows


def _vectors(config: BenchConfig, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Keys and values (1, Hkv, count, D)."""
    shape = (1, config.kv_heads, count, config.head_dim)
    keys, values = (torch.randn(shape).to(device, getattr(torch, config.dtype)) for _ in range(2))
    return keys, values


def _sides(config: BenchConfig, cell: Cell, pages: int, device: torch.device) -> tuple[CodeSide, CodeSide]:
    assert cell.shape is not None
    draw = torch.Generator().manual_seed(config.seed)
    sides = []
    for make, layout in ((key_book, config.key_layout), (value_book, config.value_layout)):
        book = make(config, cell.shape, draw).map(lambda t: t.to(device))
        sides.append(CodeSide(book, layout, config.kv_heads, config.page_size, device))
        sides[-1].grow(pages)
    return sides[0], sides[1]


def _encode_call(sides: tuple[CodeSide, CodeSide], pair: tuple[Tensor, Tensor]) -> Callable[[], object]:
    positions = torch.arange(pair[0].shape[2], device=pair[0].device)
    return lambda: [side.book.code(vectors, positions) for side, vectors in zip(sides, pair, strict=True)]


def _write_call(
    sides: tuple[CodeSide, CodeSide], pair: tuple[Tensor, Tensor], first: int, count: int
) -> Callable[[], object]:
    ids = torch.arange(first, first + count, device=pair[0].device)[None]

    def write() -> None:
        for side, vectors in zip(sides, pair, strict=True):
            side.write(vectors, ids)

    return write
