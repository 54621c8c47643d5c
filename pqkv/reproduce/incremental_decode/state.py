"""Part b: what is left of a step that fails, and what caches take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pqkv.cache import Geometry, KVCache, StaticStore
from pqkv.config import CacheConfig
from pqkv.errors import CacheError, KernelError
from pqkv.kernels.reported.decoder import ResidentLayer
from pqkv.kernels.reported.memory import DeviceMemory, Transfers
from pqkv.record import Record
from pqkv.reproduce.incremental_decode.settings import Settings
from pqkv.reproduce.incremental_decode.steps import RESIDENT, TRIP, drawn, filled, layer_of
from pqkv.reproduce.parts import part_cell
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row, claim, newest, of_kind, table_rows

STATE, SIZES = "incremental-state", "incremental-sizes"
_MIB = 2**20


def part_b(settings: Settings, request: Request) -> Iterator[Record]:
    """What is left of a step that fails, and the bytes of caches."""
    shape = settings.model_dump(include={"layers", "heads", "kv_heads", "head_dim", "max_len", "seed"})
    yield part_cell(STATE, {"part": "b", **shape}, partial(_states, settings), request)
    yield part_cell(
        SIZES, {"part": "b", "lengths": list(settings.lengths), **shape}, partial(_sizes, settings), request
    )


def _states(settings: Settings) -> dict[str, Any]:
    """Tokens a layer says that it holds after a step that failed and was tried again, by what failed."""
    rows = []
    for decoder in (TRIP, RESIDENT):
        before = settings.head_dim + 3  # past the branch, so that the first decoder launches too
        for what in ("launch", "copy between key and value"):
            memory, layer = filled(settings, decoder, before, "cpu")
            given = drawn(settings, layer, torch.Generator().manual_seed(settings.seed + 1))
            with Transfers(memory):
                if what == "launch":
                    memory.fail_launch = True
                else:
                    memory.fail_copy = len(layer.keys)  # all of the key, nothing of the value
                told = _refusal(layer, given)
                layer.step(*given)
            twice = bool(torch.equal(layer.keys[:, before], layer.keys[:, before + 1]))
            rows.append({
                "decoder": decoder, "failed": what, "told": told, "tokens": before + 1, "length": layer.length,
                "token_twice": twice,
            })  # fmt: skip
        memory, layer = filled(settings, decoder, settings.max_len, "cpu")
        kept = layer.keys.clone(), layer.values.clone()
        with Transfers(memory):
            told = _refusal(layer, drawn(settings, layer, torch.Generator().manual_seed(settings.seed + 1)))
        same = torch.equal(layer.keys, kept[0]) and torch.equal(layer.values, kept[1])
        rows.append({
            "decoder": decoder, "failed": "overflow", "told": told, "tokens": settings.max_len,
            "length": layer.length, "token_twice": not same,
        })  # fmt: skip
    rows.append(_ours(settings))
    memory, layer = filled(settings, TRIP, 0, "cpu")
    resident = layer_of(settings, RESIDENT, DeviceMemory())
    told = _refusal(layer, drawn(settings, resident, torch.Generator().manual_seed(settings.seed)))
    rows.append({"decoder": TRIP, "failed": "KV heads of their own", "told": told, "tokens": 0, "length": layer.length})
    return {"tables": {"states": rows}}


def _refusal(layer: ResidentLayer, given: tuple[Tensor, Tensor, Tensor]) -> str:
    try:
        layer.step(*given)
    except KernelError as error:
        return str(error)
    return ""


def _ours(settings: Settings) -> Row:
    """A full static store of ours, asked for one more."""
    store = StaticStore(settings.kv_heads, settings.max_len, settings.head_dim)
    content = torch.randn(settings.kv_heads, settings.max_len, settings.head_dim)
    store.append(content, content)
    told = ""
    try:
        store.append(content[:, :1], content[:, :1])
    except CacheError as error:
        told = str(error)
    same = torch.equal(store.keys, content) and torch.equal(store.values, content)
    return {"decoder": "StaticStore", "failed": "overflow", "told": told, "tokens": settings.max_len,
            "length": store.length, "token_twice": not same}  # fmt: skip


def _sizes(settings: Settings) -> dict[str, Any]:
    """Bytes of all layers, of caches that hold so many tokens."""
    from transformers.cache_utils import DynamicCache

    s, rows = settings, []
    stores = {"static": s.kv_heads, "static, a KV head for each query head": s.heads}
    for length in s.lengths:
        content = torch.zeros(1, s.kv_heads, length, s.head_dim)
        for name, heads in stores.items():
            nbytes = s.layers * StaticStore(heads, s.max_len, s.head_dim).nbytes
            rows.append({"cache": name, "length": length, "bytes": nbytes})
        geometry = Geometry(1, s.kv_heads, s.head_dim, torch.float32, torch.device("cpu"))
        paged = KVCache(CacheConfig(page_size=64), geometry, s.layers)
        grown = DynamicCache()
        for i, layer in enumerate(paged.layers):
            layer.append(content, content)
            grown.update(content.clone(), content.clone(), i)
        rows.append({"cache": "paged, 64 tokens a page", "length": length, "bytes": paged.memory().total})
        held = sum(side.nbytes for layer in grown.layers for side in (layer.keys, layer.values))
        rows.append({"cache": "growing (DynamicCache)", "length": length, "bytes": held})
    return {"tables": {"sizes": rows}}


def size_rows(records: Sequence[Record]) -> list[Row]:
    """Bytes by cache and length."""
    rows = [{key: row[key] for key in ("cache", "length", "bytes")} for row in table_rows(records, SIZES, "sizes")]
    return newest(rows, "cache", "length")


def finding_b(records: Sequence[Record]) -> list[Row]:
    """What a failed step leaves, and what caches take."""
    rows: list[Row] = []
    for record in of_kind(records, STATE)[-1:]:
        for row in record.tables["states"]:
            if row["decoder"] == "StaticStore":
                text, theirs = "a full static store of pqkv's changes nothing", "ours"
            elif row["failed"] == "KV heads of their own":
                text, theirs = f"{TRIP} serves grouped KV heads", "sizes K/V by query heads"
                rows.append(claim(text, theirs, f"refused: {row['told']}", False))
                continue
            elif row["failed"] == "overflow":
                text, theirs = f"{row['decoder']}: a token past max_len changes nothing", "an error"
            else:
                text, theirs = f"{row['decoder']}: a step whose {row['failed']} fails can be tried again", "not said"
            left = f"{row['length']:,} tokens where there are {row['tokens']:,}"
            held = row["length"] == row["tokens"] and not row["token_twice"]
            if row["failed"] == "overflow" and held:
                left = f"refused, nothing changed: {row['told']}"
            rows.append(claim(text, theirs, left, held))
    sizes = size_rows(records)
    if sizes:
        most = max(row["length"] for row in sizes)
        least = min(row["length"] for row in sizes)
        static = {row["bytes"] for row in sizes if row["cache"] == "static"}
        for length in (least, most):
            said = "; ".join(
                f"{row['cache']} {row['bytes'] / _MIB:,.1f} MiB" for row in sizes if row["length"] == length
            )
            rows.append(claim(f"memory of {length:,} tokens", "max_len is allocated", said, len(static) == 1))
    rows.append(
        claim("host copies are ordered with compute_stream", "copy_from_host, then a launch on compute_stream",
              "the listing does not show which stream copies use", None)
    )  # fmt: skip
    return rows
