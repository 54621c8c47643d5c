"""What the MILLION reports claim of speed, each part measured here: c look-ups, d layouts, f splits, g tokens, i steps.

`part_x` yields records, `finding_x` says what they mean as rows of claim, theirs, ours, gpu (what was measured on a
GPU, None without one) and holds. The reports measured on GPUs, so times of a CPU decide nothing: they are stated and
`holds` is None. Counts are of the kernels' addresses and hold anywhere. A claim that names a context or a number of
bits is judged there only, its figure rounded to the digits of the claim.

A folder may hold records of several machines and settings. Figures of different ones are never compared: of every kind
of cell and device only the records that agree with the newest in `_SETTINGS` count. So all breakdowns have the same
number of repeats, whichever part asks for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from typing import Any

import torch

from pqkv.cell import run_cell
from pqkv.codec import code_geometry
from pqkv.config import BenchConfig, CodeShape, Layout
from pqkv.env import environment, git_state
from pqkv.kernels.cuda.backend import heads_of_block
from pqkv.kernels.cuda.coded import Codes, coded_variant
from pqkv.record import Record, RecordStore
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
_COUNTED = (  # where the addresses that are counted come from
    "speed/accesses.py", "kernels/packing.py", "kernels/cuda/backend.py", "kernels/cuda/coded.py",
    "kernels/cuda/lookups.py", "kernels/cuda/steps.py",
)  # fmt: skip
_SETTINGS = (  # what a cell is measured on and with, beside what tells it from other cells of its kind
    "machine", "threads", "dtype", "repeats", "new_tokens", "page_size", "residual", "sink_tokens", "window", "seed",
    "weights", "kernels",
)  # fmt: skip
_CLAIMED = 32768, 4  # context and bits of MILLION's 2.09x


# ---- c: what a code looks up


def part_c(quick: bool, store: RecordStore | None, force: bool, report: Report | None) -> Iterator[Record]:
    """The parts of a step with tables and bins, and with centroids, on the CPU; on a GPU as its kernel chooses."""
    lengths = (4096,) if quick else (4096, 32768)
    heads = ((32, 8),) if quick else ((32, 8), (8, 8))
    for query_heads, kv_heads in heads:
        for backend in ("cpu-tables", "cpu-centroids"):
            config = _config(quick, lengths, heads=query_heads, kv_heads=kv_heads, backend=backend)
            yield from breakdown(config, store, force=force, report=report)
        for config in _on_gpu(quick, lengths, heads=query_heads, kv_heads=kv_heads):
            yield from breakdown(config, store, force=force, report=report)


def finding_c(records: Sequence[Record]) -> list[Row]:
    """For each shape: what keys cost by table and by centroid, what values cost by bin and by gather. A GPU's kernel
    looks keys up in the way that loads fewer words, which is what is judged there, and only ever gathers values: with
    nothing to compare, that is not judged.
    """
    keys_claim, values_claim = "a table of products with the query looks keys up", "values are gathered from centroids"
    rows: list[Row] = []
    found = _of(records, "breakdown")
    parts = {(*_cell(r), r.config["backend"]): _parts(r) for r in found if _layout(r) == ("transposed", "transposed")}
    for cell in sorted({key[:-1] for key in parts}):
        where = _where(cell)
        names = f"keys by table, {where}", f"values by gather or bins, {where}"
        table, centroid = (parts.get((*cell, f"cpu-{way}")) for way in ("tables", "centroids"))
        if table is not None and centroid is not None:
            keys = table["key tables"] + table["scores"], centroid["query"] + centroid["scores"]
            said = f"{keys[0]:.2f} ms by table (tables {table['key tables']:.2f}), {keys[1]:.2f} ms by centroid"
            rows.append(_measured(names[0], keys_claim, said, None, "cpu"))
            said = f"{centroid['values']:.2f} ms by gather, {table['values']:.2f} ms by bins"
            rows.append(_measured(names[1], values_claim, said, None, "cpu"))
        device = parts.get((*cell, "cuda"), {})
        way = next((way for way in ("tables", "centroids") if f"key {way}" in device), None)
        if way is not None:
            first, scores = device[f"key {way}"], device["scores"]
            said = f"{first + scores:.3f} ms by {way} (before any look-up {first:.3f}): fewer words a look-up, by count"
            rows.append(_measured(names[0], keys_claim, said, way == "tables", "cuda"))
            said = f"{device['values']:.3f} ms by gather; no kernel has bins to compare with"
            rows.append(_measured(names[1], values_claim, said, None, "cuda"))
    return rows


# ---- d: rows against transposed pages


def part_d(quick: bool, store: RecordStore | None, force: bool, report: Report | None) -> Iterator[Record]:
    """Pairs of layouts of keys and values, quick all but (transposed, row): the parts of a step, the race against
    exact attention, and a count of accesses.
    """
    lengths = (8192,) if quick else (4096, 32768)
    layouts = (_LAYOUTS[0], _LAYOUTS[1], _LAYOUTS[3]) if quick else _LAYOUTS
    for keys, values in layouts:
        given = {"key_layout": keys, "value_layout": values}
        for config in (_config(quick, lengths, backend="cpu", **given), *_on_gpu(quick, lengths, **given)):
            yield from breakdown(config, store, force=force, report=report)
            yield from bench(config, store, force=force, report=report)
    for bits in (4, 2) if quick else (4, 3, 2):
        yield _access_record(bits, store, force)


def finding_d(records: Sequence[Record]) -> list[Row]:
    """Accesses by count; cost of values and of keys, bandwidth and speed-up as measured, each with the layout of one
    side changed and that of the other side kept.
    """
    rows = []
    for record in sorted(_of(records, kind=_ACCESSES), key=lambda r: -r.config["bits"]):
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
    for cell in sorted({key[:-2] for key in (*parts, *races)}):
        for kept in ("transposed", "row"):
            in_values = (kept, "row"), (kept, "transposed")  # MILLION's to its extension's where keys are kept in rows
            in_keys = ("row", kept), ("transposed", kept)
            rows += _part_rows(parts, cell, in_values, "values", f"keys {_in(kept)}", device)
            rows += _part_rows(parts, cell, in_keys, "scores", f"values {_in(kept)}", device)
            row, transposed = (races.get((*cell, *pair)) for pair in in_values)
            if row is not None and transposed is not None:
                rows += _race_rows(row, transposed, f"keys {_in(kept)}, {_where(cell)}", device)
    return rows


def _part_rows(
    parts: dict[tuple[Any, ...], dict[str, float]], cell: tuple[Any, ...], pairs: tuple[tuple[str, str], ...],
    part: str, kept: str, device: str,
) -> list[Row]:  # fmt: skip
    """What a part takes in the first and in the second of two pairs of layouts; nothing where one was not measured."""
    row, transposed = (parts.get((*cell, *pair), {}).get(part) for pair in pairs)
    if row is None or transposed is None:
        return []
    saved = 1 - transposed / row
    said = f"{row:.3g} ms in rows, {transposed:.3g} ms transposed: {_change(saved, 'less')} time"
    if part == "scores":
        return [_measured(f"access to keys, {kept}, {_where(cell)}", "not said", said, None, device)]
    holds = round(saved, 2) >= 0.6 if device == "cuda" else None
    name = f"access to values, {kept}, {_where(cell)}"
    return [_measured(name, "60% to 70% cheaper transposed", said, holds, device)]


def _race_rows(row: Record, transposed: Record, where: str, device: str) -> list[Row]:
    """Bandwidth and speed-up with values in rows and transposed."""
    moved, ratio = (
        [r.metrics[name].value or 0.0 for r in (row, transposed)] for name in ("bandwidth_fraction", "speedup")
    )
    on_gpu = device == "cuda"
    said = f"{moved[0]:.0%} of the copy bandwidth with values in rows, {moved[1]:.0%} transposed"
    holds = round(moved[1], 2) >= 0.95 if on_gpu else None
    rows = [_measured(f"bandwidth, {where}", "60% in rows, 95% transposed", said, holds, device)]
    said = f"{ratio[0]:.2f}x with values in rows, {ratio[1]:.2f}x transposed, over the fastest exact attention"
    holds = round(ratio[1], 1) >= 2.5 if on_gpu and _is_claimed(row) else None
    return [
        *rows,
        _measured(f"speed-up, {where}", "2.09x in rows, 2.5x to 3.0x transposed at 32K", said, holds, device),
    ]


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
        "data": "none: addresses counted", "mode": "count", "bits": bits, "cpu_block": _CPU_BLOCK,
        "kernels": _kernels(),
    }  # fmt: skip
    return run_cell(
        lambda: {"tables": {"accesses": access_rows(bits)}},
        kind=_ACCESSES,
        config=config,
        seed=0,
        env=environment(),
        git=git_state(),
        store=store,
        force=force,
    )


def _kernels() -> str:
    """Twelve hexadecimal digits of SHA-256 over the source of what is counted: other kernels are counted anew."""
    text = "".join(files("pqkv").joinpath(name).read_text(encoding="utf-8") for name in _COUNTED)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# ---- f: splits of the context


def part_f(quick: bool, store: RecordStore | None, force: bool, report: Report | None) -> Iterator[Record]:
    """A step with 1 to 32 units of work a sequence and KV head, over lengths; on the CPU."""
    lengths = (256, 2048, 8192) if quick else (256, 1024, 4096, 32768)
    for heads, kv_heads in ((8, 1),) if quick else ((8, 1), (32, 8)):
        given = {"heads": heads, "kv_heads": kv_heads, "repeats": 5 if quick else 21}
        config = _config(quick, lengths, backend="cpu", **given)
        yield from stretch_grid(config, (1, 2, 4, 8, 16, 32), store, force=force, report=report)


def finding_f(records: Sequence[Record]) -> list[Row]:
    """The number of splits that was fastest at each length, and what it is worth. On a GPU the claimed number holds
    where it takes at most 5% longer than the fastest.
    """
    rows = []
    for record in sorted(_of(records, "splits"), key=_cell):
        c, splits = record.config, record.tables["splits"]
        forced = {r["splits"]: r["median_ms"] for r in splits if not r["chosen"]}
        own = next(r for r in splits if r["chosen"])
        best = min(forced, key=lambda count: forced[count])
        theirs = 32 if c["context"] > 2048 else 1 if c["context"] <= 64 else None
        on_host = f"{c['threads']} threads, " if c["device"] == "cpu" else ""
        said = (
            f"{on_host}fastest {best} ({forced[best]:.3g} ms; 1: {forced[1]:.3g} ms); the backend takes "
            f"{own['splits']} ({own['median_ms']:.3g} ms)"
        )
        judged = c["device"] == "cuda" and theirs in forced
        holds = forced[theirs] <= 1.05 * forced[best] if judged else None
        claim = "1 up to 64 tokens ... 32 above 2,048"
        rows.append(_measured(f"splits, {_where(_cell(record))}", claim, said, holds, c["device"]))
    return rows


# ---- g: a whole model


def part_g(quick: bool, store: RecordStore | None, force: bool, report: Report | None) -> Iterator[Record]:
    """Time per token of a whole model, encoding and flushes on the way (128 tokens are two pages), beside DynamicCache
    and StaticCache; 0 bits are exact pages. The bundled model on the CPU; on a GPU random weights in the shape of
    Llama-3.1-8B, quick the bundled model too.
    """
    small = {"lengths": (256, 2048), "new_tokens": 66, "repeats": 1, "bits": (0.0, 4.0)}
    full = {"lengths": (512, 2048, 8192), "new_tokens": 128, "repeats": 3, "bits": (0.0, 4.0, 2.0)}
    large = {**full, "model": "llama-3.1-8b", "lengths": (4096, 32768)}
    own = small if quick else full
    given = [{**own, "backend": "cpu"}]
    if torch.cuda.is_available():
        on_gpu = {"backend": "cuda", "dtype": "float16", "fallback": False}
        given.append({**(small if quick else large), **on_gpu})
    for values in given:
        yield from end_to_end(_parsed({"end_to_end": True, **values}), store, force=force, report=report)


def finding_g(records: Sequence[Record]) -> list[Row]:
    """Speed-up over the cache that grows by torch.cat, which is what the report compares with and so is judged, and
    over the strongest: of that, StaticCache and exact pages of the same length (those have a record of their own).
    """
    rows = []
    found = _of(records, kind="end-to-end")
    caches = {_cell(r): {row["name"]: row["tpot_ms"] for row in r.tables["caches"]} for r in found}
    for record in sorted(found, key=_cell):
        c, cell = record.config, _cell(record)
        own, exact = caches[cell]["pqkv"], {n: caches[cell][n] for n in ("DynamicCache", "StaticCache")}
        pages = caches.get((cell[0], 0, *cell[2:]))
        if c["bits"] and pages is not None:
            exact["exact pages"] = pages["pqkv"]
        strong = min(exact, key=lambda name: exact[name])
        grown = exact["DynamicCache"] / own
        said = (
            f"{own:.2f} ms a token, {grown:.2f}x over a cache grown by torch.cat ({exact['DynamicCache']:.2f} ms), "
            f"{exact[strong] / own:.2f}x over the strongest, {strong} ({exact[strong]:.2f} ms); encoding and flushes "
            "charged"
        )
        if c["context"] < _CLAIMED[0]:
            said += "; nothing was claimed of so short contexts"
        holds = round(grown, 2) >= 2.09 if c["device"] == "cuda" and _is_claimed(record) else None
        claim = "2.09x at 32K, encoding not charged"
        rows.append(_measured(f"time per token, {_where(cell)}", claim, said, holds, c["device"]))
    return rows


# ---- i: the parts of a step


def part_i(quick: bool, store: RecordStore | None, force: bool, report: Report | None) -> Iterator[Record]:
    """The parts of a step and of encoding over lengths."""
    lengths = (1024, 8192) if quick else (4096, 32768)
    bits = (4.0,) if quick else (4.0, 2.0, 0.0)
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
    return _parsed({"lengths": lengths, "bits": (4.0,), "repeats": 5 if quick else 11, **given})


def _parsed(values: dict[str, Any]) -> BenchConfig:
    return BenchConfig.parse(values, source="speed parts of million")


def _on_gpu(quick: bool, lengths: tuple[int, ...], **given: Any) -> list[BenchConfig]:  # noqa: ANN401 - settings by name
    """The same on a GPU, where there is one."""
    if not torch.cuda.is_available():
        return []
    return [_config(quick, lengths, **{**given, "backend": "cuda", "dtype": "float16", "fallback": False})]


def _of(records: Iterable[Record], mode: str | None = None, *, kind: str = "bench") -> list[Record]:
    """The records of a kind that ran, and of a mode of it, oldest first: for each device those whose machine and
    settings (`_SETTINGS`) are those of its newest record.
    """
    ran = [r for r in records if r.kind == kind and r.status == "ok"]
    ran = [r for r in ran if mode is None or str(r.config["mode"]).startswith(mode)]
    ran.sort(key=lambda r: (r.started_at, r.digest))
    newest = {r.config.get("device"): _settings(r) for r in ran}
    return [r for r in ran if _settings(r) == newest[r.config.get("device")]]


def _settings(record: Record) -> tuple[Any, ...]:
    return tuple(record.config.get(name) for name in _SETTINGS)


def _cell(record: Record) -> tuple[Any, ...]:
    c = record.config
    return c["model"], -c["bits"], c["context"], c["batch"], c["device"]


def _is_claimed(record: Record) -> bool:
    """Whether this is a cell of the context and the bits that MILLION names."""
    return (record.config["context"], record.config["bits"]) == _CLAIMED


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


def _in(layout: str) -> str:
    return "in rows" if layout == "row" else layout


def _change(saved: float, word: str) -> str:
    return f"{saved:.0%} {word}" if saved >= 0 else f"{-saved:.0%} more"


def _measured(claim: str, theirs: str, said: str, holds: bool | None, device: str) -> Row:
    """What was measured on a GPU goes to its own column too."""
    on_gpu = device == "cuda"
    return _row(claim, theirs, f"{'GPU' if on_gpu else 'CPU'}: {said}", holds, said if on_gpu else None)
