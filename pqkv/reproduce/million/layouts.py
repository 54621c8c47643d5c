"""Part d of `million`: rows against transposed pages, by count of accesses and by time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

from pqkv.cell import run_cell
from pqkv.codec import code_geometry
from pqkv.config import CodeShape, Layout
from pqkv.env import environment, git_state
from pqkv.kernels.cuda.backend import heads_of_block
from pqkv.kernels.cuda.coded import Codes, coded_variant
from pqkv.record import Record, RecordStore
from pqkv.reproduce.million.speed import (
    cell_of,
    change,
    comparable,
    is_claimed,
    layout_of,
    measured,
    on_devices,
    parts_of,
    row_of,
    where_of,
)
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row
from pqkv.speed.accesses import Accesses, cpu_lines, key_accesses, value_accesses
from pqkv.speed.bench import bench
from pqkv.speed.breakdown import breakdown

_LAYOUTS: tuple[tuple[Layout, Layout], ...] = (
    ("row", "row"), ("row", "transposed"), ("transposed", "row"), ("transposed", "transposed"),
)  # fmt: skip
_ACCESSES = "accesses"  # kind of the records that count
_CPU_BLOCK = 8  # subspaces that the CPU's kernels take at a time at most
_COUNTED = (  # where the addresses that are counted come from
    "speed/accesses.py", "packing.py", "kernels/cuda/backend.py", "kernels/cuda/coded.py",
    "kernels/cuda/lookups.py", "kernels/cuda/steps.py",
)  # fmt: skip


def part_d(request: Request) -> Iterator[Record]:
    """Pairs of layouts of keys and values, quick all but (transposed, row): the parts of a step, the race against
    exact attention, and a count of accesses.
    """
    lengths = (4096,) if request.quick else (4096, 32768)
    layouts = (_LAYOUTS[0], _LAYOUTS[1], _LAYOUTS[3]) if request.quick else _LAYOUTS
    for keys, values in layouts:
        given = {"key_layout": keys, "value_layout": values}
        for config in on_devices(request.quick, lengths, **given):
            yield from breakdown(config, request.store, force=request.force, report=request.report)
            yield from bench(config, request.store, force=request.force, report=request.report)
    for bits in (4, 2) if request.quick else (4, 3, 2):
        yield _access_record(bits, request.store, request.force)


def finding_d(records: Sequence[Record]) -> list[Row]:
    """Accesses by count; cost of values and of keys, bandwidth and speed-up as measured, each with the layout of one
    side changed and that of the other side kept.
    """
    rows = []
    for record in sorted(comparable(records, kind=_ACCESSES), key=lambda r: -r.config["bits"]):
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
                    f"({change(fewer, 'fewer')}), in {row['loads_per_token']:g} and "
                    f"{transposed['loads_per_token']:g} loads; counted, each {unit}"
                )
                rows.append(row_of(f"{name} of {side}, {bits:g} bits", "75% fewer transposed", said, fewer >= 0.75))
    for device in ("cpu", "cuda"):
        rows += _layout_rows([r for r in records if r.config.get("device") == device], device)
    return rows


def _layout_rows(records: Sequence[Record], device: str) -> list[Row]:
    parts = {
        cell_of(r) + layout_of(r): parts_of(r)
        for r in comparable(records, "breakdown")
        if r.config["backend"] == device
    }
    races = {cell_of(r) + layout_of(r): r for r in comparable(records, "decode") if r.config["backend"] == device}
    rows: list[Row] = []
    for cell in sorted({key[:-2] for key in (*parts, *races)}):
        for kept in ("transposed", "row"):
            in_values = (kept, "row"), (kept, "transposed")  # MILLION's to its extension's where keys are kept in rows
            in_keys = ("row", kept), ("transposed", kept)
            rows += _part_rows(parts, cell, in_values, "values", f"keys {_in(kept)}", device)
            rows += _part_rows(parts, cell, in_keys, "scores", f"values {_in(kept)}", device)
            row, transposed = (races.get((*cell, *pair)) for pair in in_values)
            if row is not None and transposed is not None:
                rows += _race_rows(row, transposed, f"keys {_in(kept)}, {where_of(cell)}", device)
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
    said = f"{row:.3g} ms in rows, {transposed:.3g} ms transposed: {change(saved, 'less')} time"
    if part == "scores":
        return [measured(f"access to keys, {kept}, {where_of(cell)}", "not said", said, None, device)]
    holds = round(saved, 2) >= 0.6 if device == "cuda" else None
    name = f"access to values, {kept}, {where_of(cell)}"
    return [measured(name, "60% to 70% cheaper transposed", said, holds, device)]


def _race_rows(row: Record, transposed: Record, where: str, device: str) -> list[Row]:
    """Bandwidth and speed-up with values in rows and transposed."""
    moved, ratio = (
        [r.metrics[name].value or 0.0 for r in (row, transposed)] for name in ("bandwidth_fraction", "speedup")
    )
    on_gpu = device == "cuda"
    said = f"{moved[0]:.0%} of the copy bandwidth with values in rows, {moved[1]:.0%} transposed"
    holds = round(moved[1], 2) >= 0.95 if on_gpu else None
    rows = [measured(f"bandwidth, {where}", "60% in rows, 95% transposed", said, holds, device)]
    said = f"{ratio[0]:.2f}x with values in rows, {ratio[1]:.2f}x transposed, over the fastest exact attention"
    holds = round(ratio[1], 1) >= 2.5 if on_gpu and is_claimed(row) else None
    return [
        *rows,
        measured(f"speed-up, {where}", "2.09x in rows, 2.5x to 3.0x transposed at 32K", said, holds, device),
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


def _in(layout: str) -> str:
    return "in rows" if layout == "row" else layout
