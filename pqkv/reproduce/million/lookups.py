"""Part c of `million`: what a code looks up, keys by table or by centroid, values by gather or by bins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pqkv.record import Record
from pqkv.reproduce.million.speed import cell_of, comparable, config_of, layout_of, measured, on_gpu, parts_of, where_of
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row
from pqkv.speed.breakdown import breakdown


def part_c(request: Request) -> Iterator[Record]:
    """The parts of a step with tables and bins, and with centroids, on the CPU; on a GPU as its kernel chooses."""
    lengths = (4096,) if request.quick else (4096, 32768)
    heads = ((32, 8),) if request.quick else ((32, 8), (8, 8))
    for query_heads, kv_heads in heads:
        for backend in ("cpu-tables", "cpu-centroids"):
            config = config_of(request.quick, lengths, heads=query_heads, kv_heads=kv_heads, backend=backend)
            yield from breakdown(config, request.store, force=request.force, report=request.report)
        for config in on_gpu(request.quick, lengths, heads=query_heads, kv_heads=kv_heads):
            yield from breakdown(config, request.store, force=request.force, report=request.report)


def finding_c(records: Sequence[Record]) -> list[Row]:
    """For each shape: what keys cost by table and by centroid, what values cost by bin and by gather. A GPU's kernel
    looks keys up in the way that loads fewer words, which is what is judged there, and only ever gathers values: with
    nothing to compare, that is not judged.
    """
    keys_claim, values_claim = "a table of products with the query looks keys up", "values are gathered from centroids"
    rows: list[Row] = []
    found = comparable(records, "breakdown")
    parts = {
        (*cell_of(r), r.config["backend"]): parts_of(r) for r in found if layout_of(r) == ("transposed", "transposed")
    }
    for cell in sorted({key[:-1] for key in parts}):
        where = where_of(cell)
        names = f"keys by table, {where}", f"values by gather or bins, {where}"
        table, centroid = (parts.get((*cell, f"cpu-{way}")) for way in ("tables", "centroids"))
        if table is not None and centroid is not None:
            keys = table["key tables"] + table["scores"], centroid["query"] + centroid["scores"]
            said = f"{keys[0]:.2f} ms by table (tables {table['key tables']:.2f}), {keys[1]:.2f} ms by centroid"
            rows.append(measured(names[0], keys_claim, said, None, "cpu"))
            said = f"{centroid['values']:.2f} ms by gather, {table['values']:.2f} ms by bins"
            rows.append(measured(names[1], values_claim, said, None, "cpu"))
        device = parts.get((*cell, "cuda"), {})
        way = next((way for way in ("tables", "centroids") if f"key {way}" in device), None)
        if way is not None:
            first, scores = device[f"key {way}"], device["scores"]
            said = f"{first + scores:.3f} ms by {way} (before any look-up {first:.3f}): fewer words a look-up, by count"
            rows.append(measured(names[0], keys_claim, said, way == "tables", "cuda"))
            said = f"{device['values']:.3f} ms by gather; no kernel has bins to compare with"
            rows.append(measured(names[1], values_claim, said, None, "cuda"))
    return rows
