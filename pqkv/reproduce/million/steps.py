"""Part i of `million`: the parts of a step, and what a step pays for encoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pqkv.record import Record
from pqkv.reproduce.million.speed import cell_of, comparable, layout_of, measured, on_devices, parts_of, where_of
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row
from pqkv.speed.breakdown import SUM, WHOLE, breakdown

_NO_PARTS = (WHOLE, SUM, "encode", "flush", "prefill")  # of a step


def part_i(request: Request) -> Iterator[Record]:
    """The parts of a step and of encoding over lengths."""
    lengths = (1024, 4096) if request.quick else (4096, 32768)
    bits = (4.0,) if request.quick else (4.0, 2.0, 0.0)
    for config in on_devices(request.quick, lengths, bits=bits):
        yield from breakdown(config, request.store, force=request.force, report=request.report)


def finding_i(records: Sequence[Record]) -> list[Row]:
    """Where the time of a step goes, how far parts add up, and what a step pays for encoding."""
    rows = []
    for record in sorted(comparable(records, "breakdown"), key=cell_of):
        c, parts = record.config, parts_of(record)
        if c["backend"] not in ("cpu", "cuda") or layout_of(record) != ("transposed", "transposed"):
            continue
        own = {name: ms for name, ms in parts.items() if name not in _NO_PARTS}
        shares = [f"{name} {ms / sum(own.values()):.0%}" for name, ms in own.items()]
        said = f"{', '.join(shares)}; sum of parts {parts[SUM] / parts[WHOLE]:.0%} of {parts[WHOLE]:.2f} ms"
        rows.append(measured(f"parts of a step, {where_of(cell_of(record))}", "not said", said, None, c["device"]))
        if "flush" in parts:
            charge = c["batch"] * parts["flush"] / c["page_size"]
            said = f"{charge:.3f} ms a step, {charge / parts[WHOLE]:.1%} of it"
            claim = "encoding is off the critical path and not timed"
            rows.append(measured(f"encoding, {where_of(cell_of(record))}", claim, said, None, c["device"]))
    return rows
