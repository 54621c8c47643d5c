"""Part c of `million`: what a code looks up, keys by table or by centroid, values by gather or by bins, beside decoding
everything first; all in one run.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from pqkv.record import Record
from pqkv.reproduce.million.speed import cell_of, comparable, config_of, layout_of, measured, on_gpu, parts_of, where_of
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row
from pqkv.speed.breakdown import WHOLE, breakdown
from pqkv.speed.paired import DEQUANTIZED, Way, paired_grid, ratio_of, strongest

TABLES, CENTROIDS, OWN = "tables", "centroids", "as the backend chooses"
_WAYS = {TABLES: Way("cpu-tables"), CENTROIDS: Way("cpu-centroids"), OWN: Way()}
_KEYS, _VALUES = "a table of products with the query looks keys up", "values are gathered from centroids"


def part_c(request: Request) -> Iterator[Record]:
    """The parts of a step with tables and bins, and with centroids, on the CPU, and a step that decodes keys and values
    first; on a GPU the parts as its kernel chooses.
    """
    lengths = (4096,) if request.quick else (4096, 32768)
    heads = ((32, 8),) if request.quick else ((32, 8), (8, 8))
    for query_heads, kv_heads in heads:
        config = config_of(request.quick, lengths, heads=query_heads, kv_heads=kv_heads, backend="cpu")
        yield from paired_grid(config, "look-ups", _WAYS, request.store, force=request.force, report=request.report)
        for config in on_gpu(request.quick, lengths, heads=query_heads, kv_heads=kv_heads):
            yield from breakdown(config, request.store, force=request.force, report=request.report)


def finding_c(records: Sequence[Record]) -> list[Row]:
    """For each shape: what keys cost by table and by centroid, what values cost by bin and by gather, what decoding
    first costs. A GPU's kernel looks keys up in the way that loads fewer words, which is what is judged there, and only
    ever gathers values: with nothing to compare, that is not judged.
    """
    rows = [
        row for record in sorted(comparable(records, "paired look-ups"), key=cell_of) for row in _on_processor(record)
    ]
    for record in sorted(comparable(records, "breakdown"), key=cell_of):
        if record.config["backend"] == "cuda" and layout_of(record) == ("transposed", "transposed"):
            rows += _on_gpu(record)
    return rows


def _on_processor(record: Record) -> list[Row]:
    where, samples = where_of(cell_of(record)), record.samples

    def of(way: str, *parts: str) -> list[float]:
        return [sum(times) for times in zip(*(samples[f"{way}: {part}"] for part in parts), strict=True)]

    table, centroid = of(TABLES, "key tables", "scores"), of(CENTROIDS, "query", "scores")
    bins, gather = of(TABLES, "values"), of(CENTROIDS, "values")
    own, decoded, exact = of(OWN, WHOLE), samples[DEQUANTIZED], strongest(record)
    middle = statistics.median
    said = (
        f"{middle(table):.2f} ms by table (tables {middle(of(TABLES, 'key tables')):.2f}), {middle(centroid):.2f} ms "
        f"by centroid: {ratio_of(table, centroid)} as long"
    )
    by_bins = f"{middle(gather):.2f} ms by gather, {middle(bins):.2f} ms by bins: {ratio_of(bins, gather)} as long"
    first = (
        f"{middle(decoded):.1f} ms where keys and values are decoded first, {middle(own):.2f} ms on codes: "
        f"{ratio_of(decoded, own)} as long; {ratio_of(decoded, samples[exact])} as long as {exact} on what is decoded"
    )
    return [
        measured(f"keys by table, {where}", _KEYS, said, None, "cpu"),
        measured(f"values by gather or bins, {where}", _VALUES, by_bins, None, "cpu"),
        measured(f"decoding before attending, {where}", "large reads and writes", first, None, "cpu"),
    ]


def _on_gpu(record: Record) -> list[Row]:
    where, device = where_of(cell_of(record)), parts_of(record)
    way = next((way for way in ("tables", "centroids") if f"key {way}" in device), None)
    if way is None:
        return []
    first, scores = device[f"key {way}"], device["scores"]
    said = f"{first + scores:.3f} ms by {way} (before any look-up {first:.3f}): fewer words a look-up, by count"
    by_gather = f"{device['values']:.3f} ms by gather; no kernel has bins to compare with"
    return [
        measured(f"keys by table, {where}", _KEYS, said, way == "tables", "cuda"),
        measured(f"values by gather or bins, {where}", _VALUES, by_gather, None, "cuda"),
    ]
