"""Part b of `million`: all bytes of a coded cache beside those of an exact one in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from pqkv.config import CacheConfig
from pqkv.record import Record
from pqkv.report.drawing import Plot
from pqkv.reproduce.million.lab import MILLION, OURS, Lab, Recipe
from pqkv.reproduce.million.settings import Shape
from pqkv.reproduce.tables import Row, claim, lines, newest, plot, table_rows

if TYPE_CHECKING:
    from pqkv.cache import CacheMemory
    from pqkv.codec import CodebookSet

KIND = "million-memory"
CLAIMED_SHARE = 0.25
BFLOAT16 = 2  # bytes an element
_CHUNK = 2048  # tokens appended at once
CACHES = {  # MILLION's grows in one piece a sequence and keeps no first tokens
    MILLION.name: CacheConfig(paged=False, sink_tokens=0, backend="reference"),
    OURS.name: CacheConfig(backend="reference"),
}


def part_b(lab: Lab) -> Iterator[Record]:
    """Both caches for the model and for larger shapes. What codebooks hold does not matter to what they weigh."""
    from pqkv.lm.shapes import SHAPES

    lm = lab.lm
    geometries = {lm.name: (len(lm.coded_layers), lm.num_kv_heads, lm.head_dim)}
    for name in lab.settings.memory_models:
        known = SHAPES[name]
        dim = known["hidden_size"] // known["num_attention_heads"]
        geometries[name] = (known["num_hidden_layers"], known["num_key_value_heads"], dim)
    for name, geometry in geometries.items():
        for recipe in (MILLION, OURS):
            for M, nbits in lab.settings.memory_shapes:
                shape = (M * geometry[2] // lm.head_dim, nbits)  # the same bits at another head size
                cache = CACHES[recipe.name]
                config = {
                    "part": "b",
                    "model": name,
                    "layers": geometry[0],
                    "num_kv_heads": geometry[1],
                    "head_dim": geometry[2],
                    "setting": recipe.name,
                    "scope": recipe.scope,
                    "num_subspaces": shape[0],
                    "nbits": nbits,
                    "bits": shape[0] * nbits / geometry[2],
                    "exact_dtype": "bfloat16",
                    "lengths": list(lab.settings.lengths),
                    "verify_up_to": lab.settings.verify_up_to,
                    **cache.model_dump(mode="json", exclude={"backend", "fallback", "max_pages"}),
                }
                lab.request.report(f"b: {name}, {recipe.name}, {config['bits']:g} bits", 0, 1)
                yield lab.cell(KIND, config, partial(_measure, lab, recipe, shape, geometry, cache))


def rows_b(records: Sequence[Record]) -> list[Row]:
    """One row for each model, setting, bits and length."""
    dropped = ("part", "lengths", "verify_up_to", "exact_dtype", "key_layout", "value_layout")
    rows = list(table_rows(records, KIND, "memory"))
    rows = newest(rows, "model", "setting", "bits", "tokens", most="verify_up_to")
    return [{key: value for key, value in row.items() if key not in dropped} for row in rows]


def finding_b(records: Sequence[Record]) -> list[Row]:
    """The claim at 4 bits, at every length. It holds where the share is at most 25.0%, unrounded; where a cache that
    was filled weighs something else than was computed, nothing is known.
    """
    found = []
    for row in rows_b(records):
        if row["bits"] == 4:
            how, sound = _weighing(row)
            found.append(
                claim(
                    f"memory of a bfloat16 cache at 4 bits, {row['model']}, {row['setting']}, {row['tokens']:,} tokens",
                    "25%",
                    f"{row['share']:.2%}, {row['bytes_computed']:,} of {row['bytes_exact']:,} bytes, {how}",
                    row["share"] <= CLAIMED_SHARE if sound else None,
                )
            )
    return found


def _weighing(row: Row) -> tuple[str, bool]:
    """How bytes were found, and whether what was weighed is what was computed."""
    if row["bytes_measured"] is None:
        return "computed", True
    if row["bytes_measured"] != row["bytes_computed_for_them"]:
        return (
            f"but {row['bytes_measured']:,} were weighed where {row['bytes_computed_for_them']:,} were computed",
            False,
        )
    whole = row["layers_measured"] == row["layers"]
    held = row["bytes_allocated"] - row["bytes_measured"]
    waiting = f" and {held / row['bytes_measured']:.1%} more held for tokens to come" if held else ""
    return f"{'filled' if whole else 'one layer filled'} and weighed{waiting}", True


def plots_b(records: Sequence[Record]) -> list[Plot]:
    """Share of a bfloat16 cache against length, at 4 bits."""
    rows = [row for row in rows_b(records) if row["bits"] == 4]
    drawn = lines(rows, lambda row: str(row["model"]), "setting", "tokens", "share")
    labels = ("tokens", "bytes / bytes of a bfloat16 cache")
    return [plot("b_memory", "Memory at 4 bits, everything counted", labels, drawn, "setting", log_x=True)]


def _measure(
    lab: Lab, recipe: Recipe, shape: Shape, geometry: tuple[int, int, int], cache: CacheConfig
) -> dict[str, Any]:
    from pqkv.cache import effective_bits, footprint

    layers, heads, dim = geometry
    books, one = (_books(recipe, shape, (n, heads, dim)) for n in (layers, 1))
    rows = []
    for tokens in lab.settings.lengths:
        parts = footprint(tokens, cache, *geometry, BFLOAT16, books)
        exact = 2 * layers * tokens * heads * dim * BFLOAT16
        row = {
            "tokens": tokens,
            "bytes_computed": parts.total,
            "bytes_exact": exact,
            "share": parts.total / exact,
            "effective_bits": effective_bits(parts.total, tokens, *geometry),
            **{f"{name}_bytes": value for name, value in asdict(parts).items() if name != "spare"},
            "layers_measured": None,
            "bytes_measured": None,
            "bytes_allocated": None,
            "bytes_computed_for_them": None,
        }
        if tokens <= lab.settings.verify_up_to:
            # a whole cache of the model; of a larger shape one layer, which is all that its layers differ by
            whole = layers * heads * dim <= 4096
            counted = (books, layers) if whole else (one, 1)
            row["layers_measured"] = counted[1]
            memory = _filled(tokens, cache, (counted[1], heads, dim), counted[0])
            row["bytes_measured"], row["bytes_allocated"] = memory.total, memory.allocated
            row["bytes_computed_for_them"] = footprint(
                tokens, cache, counted[1], heads, dim, BFLOAT16, counted[0]
            ).total
        rows.append(row)
    wrong = [r["tokens"] for r in rows if r["bytes_measured"] != r["bytes_computed_for_them"]]
    notes = [f"a filled cache weighs something else than was computed, at {wrong} tokens"] if wrong else []
    return {"tables": {"memory": rows}, "notes": notes}


def _filled(tokens: int, cache: CacheConfig, geometry: tuple[int, int, int], books: CodebookSet) -> CacheMemory:
    """Bytes of a real cache after that many random tokens in bfloat16."""
    import torch

    from pqkv.cache import Geometry, KVCache

    layers, heads, dim = geometry
    kv = KVCache(cache, Geometry(1, heads, dim, torch.bfloat16, torch.device("cpu")), layers, books)
    draw = torch.Generator().manual_seed(0)
    for start in range(0, tokens, _CHUNK):
        new = torch.randn((1, heads, min(_CHUNK, tokens - start), dim), generator=draw).bfloat16()
        for layer in kv.layers:
            layer.append(new, new)
    return kv.memory()


def _books(recipe: Recipe, shape: Shape, geometry: tuple[int, int, int]) -> CodebookSet:
    """Codebooks of the size and parts that training writes, all zeros."""
    import torch

    from pqkv.codec import Codebook, CodebookSet

    layers, heads, dim = geometry
    M, nbits = shape
    H = heads if recipe.scope == "head" else 1

    def book(*, weighted: bool) -> Codebook:
        order = torch.arange(dim).repeat(H, 1) if recipe.channels == "balanced" else None
        weights = torch.ones(H, dim) if weighted else None
        return Codebook(torch.zeros(H, M, 2**nbits, dim // M), order, weights)

    sides = []
    for weighted in (recipe.metric == "query", False):
        own = [book(weighted=weighted) for _ in range(1 if recipe.scope == "global" else layers)]
        sides.append(tuple(own * (layers if recipe.scope == "global" else 1)))
    return CodebookSet(*sides)
