"""Part d of `million`: rows against transposed pages, by count of accesses and by time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from statistics import median

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
    measured,
    on_devices,
    row_of,
    where_of,
)
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row
from pqkv.speed.accesses import Accesses, cpu_lines, key_accesses, value_accesses
from pqkv.speed.breakdown import WHOLE
from pqkv.speed.paired import Way, paired_grid, ratio_of, strongest

_LAYOUTS: tuple[tuple[Layout, Layout], ...] = (
    ("row", "row"), ("row", "transposed"), ("transposed", "row"), ("transposed", "transposed"),
)  # fmt: skip
_ACCESSES = "accesses"  # kind of the records that count
_CPU_BLOCK = 8  # subspaces that the CPU's kernels take at a time at most
_COUNTED = (  # where the addresses that are counted come from
    "speed/accesses.py", "packing.py", "kernels/cuda/backend.py", "kernels/cuda/lookups.py", "kernels/cuda/steps.py",
    "kernels/cuda/codes.py", "kernels/cuda/code_bytes.py", "kernels/cuda/paging.py", "kernels/cuda/coded/variant.py",
    "kernels/cuda/coded/scores.py", "kernels/cuda/coded/values.py",
)  # fmt: skip


def part_d(request: Request) -> Iterator[Record]:
    """Pairs of layouts of keys and values, quick all but (transposed, row), in one run: the parts of a step and exact
    attention; and a count of accesses.
    """
    lengths = (4096,) if request.quick else (4096, 32768)
    layouts = (_LAYOUTS[0], _LAYOUTS[1], _LAYOUTS[3]) if request.quick else _LAYOUTS
    ways = {_way(pair): Way(given={"key_layout": pair[0], "value_layout": pair[1]}) for pair in layouts}
    for config in on_devices(request.quick, lengths):
        yield from paired_grid(config, "layouts", ways, request.store, force=request.force, report=request.report)
    for bits in (4, 2) if request.quick else (4, 3, 2):
        yield _access_record(bits, request.store, request.force)


def finding_d(records: Sequence[Record]) -> list[Row]:
    """Accesses by count; cost of values and of keys, bandwidth and speed-up as measured in one run, each with the
    layout of one side changed and that of the other side kept.
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
    for record in sorted(comparable(records, "paired layouts"), key=cell_of):
        rows += _layout_rows(record)
    return rows


def _way(pair: tuple[str, str]) -> str:
    return f"keys {_in(pair[0])}, values {_in(pair[1])}"


def _layout_rows(record: Record) -> list[Row]:
    """What rows and transposed pages of one side cost where the other side is kept, and speed-ups of the same cells."""
    rows: list[Row] = []
    for kept in ("transposed", "row"):
        in_values = (
            _way((kept, "row")),
            _way((kept, "transposed")),
        )  # MILLION's to its extension's where keys are in rows
        in_keys = _way(("row", kept)), _way(("transposed", kept))
        rows += _part_rows(record, in_values, "values", f"keys {_in(kept)}")
        rows += _part_rows(record, in_keys, "scores", f"values {_in(kept)}")
        rows += _race_rows(record, in_values, f"keys {_in(kept)}, {where_of(cell_of(record))}")
    return rows


def _part_rows(record: Record, pair: tuple[str, str], part: str, kept: str) -> list[Row]:
    """What a part takes in the first and in the second of two ways; nothing where one was not measured."""
    device, where = record.config["device"], where_of(cell_of(record))
    row, transposed = (record.samples.get(f"{way}: {part}") for way in pair)
    if row is None or transposed is None:
        return []
    share = ratio_of(transposed, row)
    said = f"{median(row):.3g} ms in rows, {median(transposed):.3g} ms transposed: {share} as long"
    if part == "scores":
        return [measured(f"access to keys, {kept}, {where}", "not said", said, None, device)]
    holds = round(1 - share.value, 2) >= 0.6 if device == "cuda" else None
    return [measured(f"access to values, {kept}, {where}", "60% to 70% cheaper transposed", said, holds, device)]


def _race_rows(record: Record, pair: tuple[str, str], where: str) -> list[Row]:
    """Bandwidth and speed-up with values in rows and transposed."""
    wholes = {row["way"]: row for row in record.tables["ways"] if row["part"] == WHOLE}
    if not wholes.keys() >= set(pair):
        return []
    device, exact = record.config["device"], strongest(record)
    moved = [wholes[way]["bandwidth_fraction"] for way in pair]
    first, second = (ratio_of(record.samples[exact], record.samples[f"{way}: {WHOLE}"]) for way in pair)
    on_gpu = device == "cuda"
    said = f"{moved[0]:.0%} of the copy bandwidth with values in rows, {moved[1]:.0%} transposed"
    holds = round(moved[1], 2) >= 0.95 if on_gpu else None
    rows = [measured(f"bandwidth, {where}", "60% in rows, 95% transposed", said, holds, device)]
    said = f"{first} with values in rows, {second} transposed, over the fastest exact attention ({exact})"
    holds = round(second.value, 1) >= 2.5 if on_gpu and is_claimed(record) else None
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
