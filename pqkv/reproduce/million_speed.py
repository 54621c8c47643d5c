"""What the MILLION reports claim of speed, each part measured here: c look-ups, d layouts, f splits, g tokens, i steps.

`part_x` yields records, `finding_x` says what they mean as rows of claim, theirs, ours, gpu (what was measured on a
GPU, None without one) and holds. The reports measured on GPUs: what only a GPU can decide is None without one, and what
was found on a CPU is said to be of a CPU. Counts are of the kernels' addresses and hold anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from pqkv.codec import code_geometry
from pqkv.config import BenchConfig, CodeShape, Layout, digest_of
from pqkv.env import environment, git_state
from pqkv.kernels.cuda.backend import heads_of_block
from pqkv.kernels.cuda.coded import Codes, coded_variant
from pqkv.record import Record, RecordStore, utc_now
from pqkv.speed.accesses import Accesses, cpu_lines, key_accesses, value_accesses
from pqkv.speed.bench import Report, bench
from pqkv.speed.breakdown import SUM, WHOLE, breakdown
from pqkv.speed.end_to_end import end_to_end
from pqkv.speed.stretches import stretch_grid

Row = dict[str, Any]
_LAYOUTS: tuple[tuple[Layout, Layout], ...] = (
    ("row", "row"), ("row", "transposed"), ("transposed", "row"), ("transposed", "transposed"),
)  # fmt: skip
_ACCESSES = "accesses"  # kind of the records that count
_NO_PARTS = (WHOLE, SUM, "encode", "flush", "prefill")  # of a step
_CPU_BLOCK = 8  # subspaces that the CPU's kernels take at a time at most


# ---- c: what a code looks up


def part_c(quick: bool, store: RecordStore | None, force: bool, report: Report | None) -> Iterator[Record]:
    """The parts of a step with tables and bins, and with centroids, on the CPU; on a GPU as its kernel chooses."""
    lengths = (4096,) if quick else (1024, 4096, 32768)
    heads = ((32, 8),) if quick else ((32, 8), (8, 8))
    for query_heads, kv_heads in heads:
        for backend in ("cpu-tables", "cpu-centroids"):
            config = _config(quick, lengths, heads=query_heads, kv_heads=kv_heads, backend=backend)
            yield from breakdown(config, store, force=force, report=report)
        for config in _on_gpu(quick, lengths, heads=query_heads, kv_heads=kv_heads):
            yield from breakdown(config, store, force=force, report=report)


def finding_c(records: Sequence[Record]) -> list[Row]:
    """For each shape: what keys cost by table and by centroid, what values cost by bin and by gather."""
    rows = []
    parts = {(*_cell(r), r.config["backend"]): _parts(r) for r in _of(records, "breakdown")}
    cells = sorted(
        {key[:-1] for key in parts if {(*key[:-1], "cpu-tables"), (*key[:-1], "cpu-centroids")} <= set(parts)}
    )
    for cell in cells:
        table, centroid = (parts[(*cell, f"cpu-{way}")] for way in ("tables", "centroids"))
        keys = table["key tables"] + table["scores"], centroid["query"] + centroid["scores"]
        values = table["values"], centroid["values"]
        where = _where(cell)
        rows.append(
            _row(
                f"keys by table, {where}", "a table of products with the query is the way to look keys up",
                f"CPU: {keys[0]:.2f} ms by table (tables {table['key tables']:.2f}), {keys[1]:.2f} ms by centroid",
                keys[0] < keys[1],
            )
        )  # fmt: skip
        rows.append(
            _row(
                f"values by gather or bins, {where}", "values are gathered from their centroids",
                f"CPU: {values[1]:.2f} ms by gather, {values[0]:.2f} ms by bins", values[1] < values[0],
            )
        )  # fmt: skip
    return rows


# ---- d: rows against transposed pages


def part_d(quick: bool, store: RecordStore | None, force: bool, report: Report | None) -> Iterator[Record]:
    """Every pair of layouts: the parts of a step, the race against exact attention, and a count of accesses."""
    lengths = (8192,) if quick else (4096, 32768)
    layouts = (_LAYOUTS[0], _LAYOUTS[3]) if quick else _LAYOUTS
    for keys, values in layouts:
        given = {"key_layout": keys, "value_layout": values}
        for config in (_config(quick, lengths, backend="cpu", **given), *_on_gpu(quick, lengths, **given)):
            yield from breakdown(config, store, force=force, report=report)
            yield from bench(config, store, force=force, report=report)
    for bits in (4, 2) if quick else (4, 3, 2):
        yield _access_record(bits, store, force)


def finding_d(records: Sequence[Record]) -> list[Row]:
    """Accesses by count; cost of values and of keys, bandwidth and speed-up as measured."""
    rows = []
    for record in _of(records, kind=_ACCESSES):
        bits = record.config["bits"]
        found = {(r["unit"], r["side"], r["layout"]): r for r in record.tables["accesses"]}
        for unit, name in (
            ("GPU sector of 32 bytes", "memory transactions"),
            ("CPU line of 64 bytes", "lines touched"),
        ):
            for side in ("keys", "values"):
                row, transposed = (found[unit, side, layout] for layout in ("row", "transposed"))
                fewer = 1 - transposed["units_per_token"] / row["units_per_token"]
                said = (
                    f"{row['units_per_token']:g} in rows, {transposed['units_per_token']:g} transposed a token "
                    f"({_change(fewer, 'fewer')}), in {row['loads_per_token']:g} and "
                    f"{transposed['loads_per_token']:g} loads; counted, each {unit}"
                )
                rows.append(_row(f"{name} of {side}, {bits:g} bits", "75% fewer transposed", said, fewer >= 0.75))
    for device in ("cpu", "cuda"):
        rows += _layout_rows([r for r in records if r.config.get("device") == device], device)
    return rows


def _layout_rows(records: Sequence[Record], device: str) -> list[Row]:
    parts = {_cell(r) + _layout(r): _parts(r) for r in _of(records, "breakdown") if r.config["backend"] == device}
    races = {_cell(r) + _layout(r): r for r in _of(records, "decode") if r.config["backend"] == device}
    rows: list[Row] = []
    for cell in sorted({key[:-2] for key in parts}):
        both = [parts.get((*cell, layout, layout)) for layout in ("row", "transposed")]
        if both[0] is not None and both[1] is not None:
            for side, name, theirs in (
                ("values", "access to values", "60% to 70% cheaper transposed"),
                ("scores", "access to keys", "not said"),
            ):  # fmt: skip
                row, transposed = both[0][side], both[1][side]
                saved = 1 - transposed / row
                said = f"{row:.2f} ms in rows, {transposed:.2f} ms transposed: {_change(saved, 'less')} time"
                holds = None if side == "scores" else saved >= 0.6
                rows.append(_measured(f"{name}, {_where(cell)}", theirs, said, holds, device))
        pair = [races.get((*cell, layout, layout)) for layout in ("row", "transposed")]
        if pair[0] is not None and pair[1] is not None:
            moved = [r.metrics["bandwidth_fraction"].value or 0.0 for r in pair if r is not None]
            said = f"{moved[0]:.0%} of the copy bandwidth in rows, {moved[1]:.0%} transposed"
            holds = moved[1] >= 0.95 if device == "cuda" else None
            rows.append(_measured(f"bandwidth, {_where(cell)}", "60% in rows, 95% transposed", said, holds, device))
            ratio = [r.metrics["speedup"].value or 0.0 for r in pair if r is not None]
            said = f"{ratio[0]:.2f}x in rows, {ratio[1]:.2f}x transposed over the fastest exact attention"
            holds = ratio[1] >= 2.5 if device == "cuda" else None
            rows.append(
                _measured(f"speed-up, {_where(cell)}", "2.09x in rows, 2.5x to 3.0x transposed", said, holds, device)
            )
    return rows


def access_rows(bits: float, head_dim: int = 128, page_size: int = 64, group: int = 4) -> list[Row]:
    """Units, loads and bytes a token of both layouts, of keys and values, on a GPU and on a CPU."""
    M, nbits = code_geometry(CodeShape(bits=bits), head_dim)
    rows = []
    for layout in ("row", "transposed"):
        codes = Codes(M, nbits, head_dim // M, layout)
        variant = coded_variant(heads_of_block(group), codes, codes)
        lines = cpu_lines(M, nbits, page_size, layout, min(_CPU_BLOCK, M))
        counts: dict[tuple[str, str], Accesses] = {
            ("GPU sector of 32 bytes", "keys"): key_accesses(variant, page_size),
            ("GPU sector of 32 bytes", "values"): value_accesses(variant, page_size),
            ("CPU line of 64 bytes", "keys"): lines,
            ("CPU line of 64 bytes", "values"): lines,
        }
        rows += [
            {
                "unit": unit, "side": side, "layout": layout, "units_per_token": found.units / found.tokens,
                "loads_per_token": found.loads / found.tokens, "distinct_per_token": found.distinct / found.tokens,
                "bytes_per_token": found.needed / found.tokens,
            }
            for (unit, side), found in counts.items()
        ]  # fmt: skip
    return rows


def _access_record(bits: float, store: RecordStore | None, force: bool) -> Record:
    config = {
        "model": "codes of 128 elements in pages of 64 tokens, 4 query heads a block",
        "data": "none: addresses counted", "mode": "count", "bits": bits,
    }  # fmt: skip
    digest = digest_of(config)
    known = store.find(digest) if store is not None and not force else None
    if known is not None:
        return known
    started, clock = utc_now(), time.perf_counter()
    tables = {"accesses": access_rows(bits)}
    record = Record(
        kind=_ACCESSES, config=config, digest=digest, env=environment(), git=git_state(), seed=0, status="ok",
        started_at=started, seconds=time.perf_counter() - clock, tables=tables,
    )  # fmt: skip
    if store is not None:
        store.write(record)
    return record


# ---- f: splits of the context


def part_f(quick: bool, store: RecordStore | None, force: bool, report: Report | None) -> Iterator[Record]:
    """A step with 1 to 32 units of work a sequence and KV head, over lengths; on the CPU."""
    lengths = (256, 2048, 8192) if quick else (192, 256, 512, 1024, 2048, 4096, 8192, 32768)
    for heads, kv_heads in ((8, 1),) if quick else ((8, 1), (32, 8)):
        config = _config(quick, lengths, heads=heads, kv_heads=kv_heads, backend="cpu")
        yield from stretch_grid(config, (1, 2, 4, 8, 16, 32), store, force=force, report=report)


def finding_f(records: Sequence[Record]) -> list[Row]:
    """The number of splits that was fastest at each length, and what it is worth."""
    rows = []
    for record in sorted(_of(records, "splits"), key=_cell):
        c, splits = record.config, record.tables["splits"]
        forced = {r["splits"]: r["median_ms"] for r in splits if not r["chosen"]}
        own = next(r for r in splits if r["chosen"])
        best = min(forced, key=lambda count: forced[count])
        theirs = 32 if c["context"] > 2048 else 1 if c["context"] <= 64 else None
        said = (
            f"CPU, {c['threads']} threads: fastest {best} ({forced[best]:.2f} ms; 1: {forced[1]:.2f} ms); the backend "
            f"takes {own['splits']} ({own['median_ms']:.2f} ms)"
        )
        claim = "1 up to 64 tokens ... 32 above 2,048"
        rows.append(_row(f"splits, {_where(_cell(record))}", claim, said, None if theirs is None else best == theirs))
    return rows


# ---- g: a whole model


def part_g(quick: bool, store: RecordStore | None, force: bool, report: Report | None) -> Iterator[Record]:
    """Time per token of the bundled model, encoding and flushes on the way, beside DynamicCache and StaticCache."""
    given: dict[str, Any] = (
        {"lengths": (256, 2048), "new_tokens": 66, "repeats": 1, "bits": (4.0,)} if quick
        else {"lengths": (512, 1024, 2048, 4096, 8192), "new_tokens": 320, "repeats": 5, "bits": (4.0, 2.0)}
    )  # fmt: skip
    for config in (BenchConfig(end_to_end=True, backend="cpu", **given), *_whole_on_gpu(given)):
        yield from end_to_end(config, store, force=force, report=report)


def finding_g(records: Sequence[Record]) -> list[Row]:
    """Speed-up over the cache that grows by torch.cat and over the strongest, at each length."""
    rows = []
    for record in sorted(_of(records, kind="end-to-end"), key=lambda r: (r.config["bits"], r.config["context"])):
        c = record.config
        times = {row["name"]: row["tpot_ms"] for row in record.tables["caches"]}
        grown, strong = (
            times["DynamicCache"] / times["pqkv"],
            min(times["DynamicCache"], times["StaticCache"]) / times["pqkv"],
        )
        said = (
            f"{c['model']}: {times['pqkv']:.2f} ms a token, {grown:.2f}x over a cache grown by torch.cat "
            f"({times['DynamicCache']:.2f} ms), {strong:.2f}x over the strongest; encoding and flushes charged"
        )
        where = f"{c['bits']:g} bits, {c['context']} tokens" if c["bits"] else f"exact, {c['context']} tokens"
        claim = "2.09x at 32K, encoding not charged"
        holds = grown >= 2.09 if c["context"] >= 32768 else None  # nothing is claimed of shorter contexts
        rows.append(_measured(f"time per token, {where}", claim, said, holds, c["device"]))
    return rows


# ---- i: the parts of a step


def part_i(quick: bool, store: RecordStore | None, force: bool, report: Report | None) -> Iterator[Record]:
    """The parts of a step and of encoding over lengths."""
    lengths = (1024, 8192) if quick else (1024, 4096, 8192, 32768)
    bits = (4.0,) if quick else (4.0, 3.0, 2.0, 0.0)
    for config in (_config(quick, lengths, backend="cpu", bits=bits), *_on_gpu(quick, lengths, bits=bits)):
        yield from breakdown(config, store, force=force, report=report)


def finding_i(records: Sequence[Record]) -> list[Row]:
    """Where the time of a step goes, how far parts add up, and what a step pays for encoding."""
    rows = []
    for record in sorted(_of(records, "breakdown"), key=_cell):
        c, parts = record.config, _parts(record)
        if c["backend"] not in ("cpu", "cuda") or _layout(record) != ("transposed", "transposed"):
            continue
        own = {name: ms for name, ms in parts.items() if name not in _NO_PARTS}
        shares = [f"{name} {ms / sum(own.values()):.0%}" for name, ms in own.items()]
        said = f"{', '.join(shares)}; sum of parts {parts[SUM] / parts[WHOLE]:.0%} of {parts[WHOLE]:.2f} ms"
        rows.append(_measured(f"parts of a step, {_where(_cell(record))}", "not said", said, None, c["device"]))
        if "flush" in parts:
            charge = c["batch"] * parts["flush"] / c["page_size"]
            said = f"{charge:.3f} ms a step, {charge / parts[WHOLE]:.1%} of it"
            claim = "encoding is off the critical path and not timed"
            rows.append(_measured(f"encoding, {_where(_cell(record))}", claim, said, None, c["device"]))
    return rows


# ---- what they share


def _config(quick: bool, lengths: tuple[int, ...], **given: Any) -> BenchConfig:  # noqa: ANN401 - settings by name
    return BenchConfig(**{"lengths": lengths, "bits": (4.0,), "repeats": 5 if quick else 21, **given})


def _on_gpu(quick: bool, lengths: tuple[int, ...], **given: Any) -> list[BenchConfig]:  # noqa: ANN401 - settings by name
    """The same on a GPU, where there is one."""
    if not torch.cuda.is_available():
        return []
    return [_config(quick, lengths, **{**given, "backend": "cuda", "dtype": "float16", "fallback": False})]


def _whole_on_gpu(given: dict[str, Any]) -> list[BenchConfig]:
    if not torch.cuda.is_available():
        return []
    return [BenchConfig(end_to_end=True, backend="cuda", dtype="float16", fallback=False, **given)]


def _of(records: Iterable[Record], mode: str | None = None, *, kind: str = "bench") -> list[Record]:
    """The records of a kind that ran, and of a mode of it."""
    ran = [r for r in records if r.kind == kind and r.status == "ok"]
    return [r for r in ran if mode is None or str(r.config["mode"]).startswith(mode)]


def _cell(record: Record) -> tuple[Any, ...]:
    c = record.config
    return c["model"], -c["bits"], c["context"], c["batch"], c["device"]


def _layout(record: Record) -> tuple[str, str]:
    return record.config["key_layout"], record.config["value_layout"]


def _where(cell: tuple[Any, ...]) -> str:
    model, bits, context, batch, _ = cell[:5]
    shape = f"{-bits:g} bits" if bits else "exact"
    return f"{shape}, {context} tokens, {model}{f', batch {batch}' if batch > 1 else ''}"


def _parts(record: Record) -> dict[str, float]:
    """Median milliseconds by part."""
    return {row["part"]: row["median_ms"] for row in record.tables["breakdown"]}


def _row(claim: str, theirs: str, ours: str, holds: bool | None, gpu: str | None = None) -> Row:
    return {"claim": claim, "theirs": theirs, "ours": ours, "gpu": gpu, "holds": holds}


def _change(saved: float, word: str) -> str:
    return f"{saved:.0%} {word}" if saved >= 0 else f"{-saved:.0%} more"


def _measured(claim: str, theirs: str, said: str, holds: bool | None, device: str) -> Row:
    """What was measured on a GPU goes to its own column too."""
    on_gpu = device == "cuda"
    return _row(claim, theirs, f"{'GPU' if on_gpu else 'CPU'}: {said}", holds, said if on_gpu else None)
