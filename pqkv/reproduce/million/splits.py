"""Part f of `million`: the number of splits against context length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from pqkv.record import Record
from pqkv.reproduce.million.speed import cell_of, comparable, measured, on_devices, where_of
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row
from pqkv.speed.splits import split_grid

_COUNTS = (1, 2, 4, 8, 16, 32)
_SHAPES = "split shapes"  # mode of the records of the grid over shapes
# pages and window small enough for codes in a context of 64 tokens
_SMALL = {"page_size": 16, "residual": 16, "sink_tokens": 0}


def part_f(request: Request) -> Iterator[Record]:
    """A step with 1 to 32 splits of the context, over lengths; on a GPU at a batch of 1, where splits matter most. Then
    over the shapes that the report builds kernels for, from 64 tokens on.
    """
    lengths = (256, 2048, 8192) if request.quick else (256, 1024, 4096, 32768)
    for heads, kv_heads in ((32, 8),) if request.quick else ((8, 1), (32, 8)):
        given = {"heads": heads, "kv_heads": kv_heads, "repeats": 5 if request.quick else 21}
        for config in on_devices(request.quick, lengths, **given):
            yield from split_grid(config, _COUNTS, request.store, force=request.force, report=request.report)
    small: tuple[int, ...] = (64,) if request.quick else (64, 4096)
    for dim, M in ((128, 64),) if request.quick else product((64, 128), (32, 64)):
        shape = {"head_dim": dim, "num_subspaces": M, "nbits": 8, "repeats": 5 if request.quick else 21, **_SMALL}
        for config in on_devices(request.quick, small, **shape):
            yield from split_grid(
                config, _COUNTS, request.store, force=request.force, report=request.report, name=_SHAPES
            )


def finding_f(records: Sequence[Record]) -> list[Row]:
    """The number of splits that was fastest at each length, and what it is worth. On a GPU the claimed number holds
    where it takes at most 5% longer than the fastest.
    """
    rows = []
    for record in [*_of(records, "splits"), *_of(records, _SHAPES)]:
        c, splits = record.config, record.tables["splits"]
        forced = [r for r in splits if not r["chosen"]]
        own = next(r for r in splits if r["chosen"])
        best, fewest = (min(forced, key=lambda r: r[name]) for name in ("median_ms", "splits"))
        theirs = 32 if c["context"] > 2048 else 1 if c["context"] <= 64 else None
        on_host = f"{c['threads']} threads, " if c["device"] == "cpu" else ""
        said = (
            f"{on_host}fastest {best['splits']} ({best['median_ms']:.3g} ms; {fewest['splits']}: "
            f"{fewest['median_ms']:.3g} ms); "
            f"the backend takes {own['splits']} ({own['median_ms']:.3g} ms)"
        )
        rule = next((r for r in forced if r["asked"] == theirs and c["device"] == "cuda"), None)
        holds = None if rule is None else rule["median_ms"] <= 1.05 * best["median_ms"]
        claim = "1 up to 64 tokens ... 32 above 2,048"
        shape = f"M {c['num_subspaces']}, " if str(c["mode"]).startswith(_SHAPES) else ""
        rows.append(measured(f"splits, {shape}{where_of(cell_of(record))}", claim, said, holds, c["device"]))
    return rows


def _of(records: Sequence[Record], mode: str) -> list[Record]:
    return sorted(comparable(records, mode), key=cell_of)
