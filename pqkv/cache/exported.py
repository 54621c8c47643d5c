"""A cache as one safetensors file, its pages found as FlashInfer finds those of a paged KV cache.

Sequence b owns the pages kv_indices[kv_indptr[b] : kv_indptr[b + 1]], all full but the last, which holds
last_page_len[b] tokens (0 where it owns none); pages are numbered from 0 in this file, and one that sequences share is
there once. In front of the tokens in pages stand min(n, sink_tokens) exact sinks, behind them the exact residual.

    kv_indptr (B + 1,), kv_indices (pages of all,), last_page_len (B,), sink_len (B,), residual_len (B,)        int32
    layers.I.{keys,values}.sinks, .residual (B, Hkv, longest, D), padded with zeros              float32 or float64
    layers.I.{keys,values}.pages (N, Hkv, page_size, D) of an exact cache ("HND")                float32 or float64

of a coded cache, with C = 2**nbits centroids in each of M subspaces of D / M elements:

    .pages (N, Hkv, M, packed(page_size)) transposed, or (N, Hkv, page_size, packed(M)) row                    uint8
        codes of nbits bits, a little-endian bit stream along the last axis, each line from a byte on
    .centroids (H, M, C, D / M), any of H and M 1 where heads or subspaces share them; of int8 .scales (H, M, D / M)
    .channels (H, D): element m * D / M + s of the subspaces is channel channels[h, ...]                       int64
    .gains (N, Hkv, page_size) uint8, which stand for .gain_values (Hkv, 256)
    .inverse (H, D, D): a row y made of centroids, channels and gain is the vector y @ inverse
    .mean (Hkv, D), .turning (Hkv, R) with .frequencies (R / 2): to be added, the second turned by the token's position
        p in pairs (i, i + R / 2) by the angles p * frequencies; coded token j stands at position sink_tokens + j

What is absent is not part of these codes. The metadata has one key, `pqkv-export`: JSON with format, layers, page_size,
sink_tokens, and of each side its layout, num_subspaces and nbits. `pqkv.cache.plain` reads all this in NumPy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from pqkv.cache.coded import CodedLayer
from pqkv.cache.exact import PagedExactLayer
from pqkv.cache.kv_cache import KVCache
from pqkv.cache.store import CodeSide, PagedCodeStore
from pqkv.cache.table import UNUSED
from pqkv.codec import Codebook, CodebookSet
from pqkv.errors import CacheError
from pqkv.record import atomic_write

KEY = "pqkv-export"
FORMAT = 1
_WIDE = {torch.float64: torch.float64}


def save_export(path: Path, cache: KVCache) -> dict[str, Any]:
    """Write `cache` to `path` in one step; returns the header. Raises `CacheError` for a cache whose tokens such pages
    cannot hold, and `RecordError` where the place cannot be written.
    """
    tensors, header = export(cache)
    atomic_write(path, save(tensors, metadata={KEY: json.dumps(header, sort_keys=True)}))
    return header


def export(cache: KVCache) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors on the CPU, and the header, as the module says."""
    _check(cache)
    config, lengths = cache.config, cache.layers[0].lengths
    counts = cache.layers[0].page_counts()
    rows = [list(cache.table.pages(b)[:count]) for b, count in enumerate(counts)]
    owned = sorted({page for row in rows for page in row if page != UNUSED})
    place = {page: i for i, page in enumerate(owned)}
    coded = isinstance(cache.codebooks, CodebookSet)
    sinks = [min(n, config.sink_tokens) if coded else 0 for n in lengths]
    in_pages = cache.layers[0].coded if coded else lengths
    residual = [n - s - c for n, s, c in zip(lengths, sinks, in_pages, strict=True)]
    tensors = {
        "kv_indptr": _whole([sum(counts[:b]) for b in range(len(counts) + 1)]),
        "kv_indices": _whole([place[page] for row in rows for page in row]),
        "last_page_len": _whole(
            [n - (count - 1) * config.page_size if count else 0 for n, count in zip(in_pages, counts, strict=True)]
        ),
        "sink_len": _whole(sinks),
        "residual_len": _whole(residual),
    }
    header: dict[str, Any] = {
        "format": FORMAT,
        "layers": len(cache.layers),
        "page_size": config.page_size,
        "sink_tokens": config.sink_tokens if coded else 0,
    }
    index = torch.tensor(owned, dtype=torch.long)
    for i, layer in enumerate(cache.layers):
        for side, name in enumerate(("keys", "values")):
            if isinstance(layer, PagedExactLayer):
                parts = {"pages": _numbers(layer.pages(side)[index.to(layer.geometry.device)])}
            else:
                assert isinstance(layer, CodedLayer)
                assert isinstance(cache.codebooks, CodebookSet)
                book = (cache.codebooks.keys, cache.codebooks.values)[side][i]
                parts = _coded_side(layer, side, book, index, (sinks, residual))
                header.setdefault(name, []).append(
                    {
                        "layout": (config.key_layout, config.value_layout)[side],
                        "num_subspaces": book.num_subspaces,
                        "nbits": book.nbits,
                    }
                )
            tensors |= {f"layers.{i}.{name}.{part}": tensor for part, tensor in parts.items()}
    return tensors, header


def _check(cache: KVCache) -> None:
    c = cache.config
    wrong = (
        "a contiguous cache has no pages" if not c.paged
        else "a window or keep has dropped tokens, which kv_indptr cannot say" if c.window or c.keep
        else "a codec to measure keeps no codes in pages"
        if cache.codebooks is not None and not isinstance(cache.codebooks, CodebookSet)
        else "it is empty" if not any(cache.layers[0].lengths)
        else None
    )  # fmt: skip
    if wrong:
        raise CacheError(f"this cache cannot be exported: {wrong}; export a paged one that sees every token")


def _coded_side(
    layer: CodedLayer, side: int, book: Codebook, index: Tensor, counts: tuple[list[int], list[int]]
) -> dict[str, Tensor]:
    """Everything of the keys (0) or values (1) of a coded layer. Exact values, which lie turned, are turned back."""
    store = layer.store
    assert isinstance(store, PagedCodeStore)
    own: CodeSide = (store.keys, store.values)[side]
    at, inverse = index.to(own.pages.device), _inverse(book)
    parts = {"pages": own.pages[at], "centroids": _once(book.centroids)}
    if own.gains is not None:
        parts |= {"gains": own.gains[at], "gain_values": book.gain_of(_every_byte(layer.geometry.num_kv_heads))}
    if inverse is not None:
        parts["inverse"] = inverse
    for name in ("scales", "channels", "mean", "turning"):
        if (part := getattr(book, name)) is not None and not (name == "channels" and book.rotation is not None):
            parts[name] = part if name == "channels" else _once(part)
    if book.frequencies:
        parts["frequencies"] = torch.tensor(book.frequencies, dtype=torch.float64)
    for name, buffers, count in zip(("sinks", "residual"), layer.exact_parts(), counts, strict=True):
        exact = _numbers(buffers[side][:, :, : max(count)]).clone()
        for b, n in enumerate(count):
            exact[b, :, n:] = 0  # memory that holds nothing is not written to a file
        turned = side == 1 and layer.turn is not None and inverse is not None
        parts[name] = exact @ inverse.to(exact) if turned and inverse is not None else exact
    # layers may share a codebook, and safetensors writes no memory twice
    return {name: part.detach().cpu().contiguous().clone() for name, part in parts.items()}


def _inverse(book: Codebook) -> Tensor | None:
    """(H, D, D): what turns rows of coded elements into vectors, taken from what the codebook does to the identity."""
    if book.rotation is None and book.back is None and not book.hadamard:
        return None
    return book.undone(torch.eye(book.head_dim, dtype=torch.float64)[None])


def _once(tensor: Tensor) -> Tensor:
    """What strides of 0 repeat over heads or subspaces, there once; numbers of half precision as float32."""
    for axis in range(min(2, tensor.dim())):
        if tensor.stride(axis) == 0:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor if tensor.dtype == torch.int8 else _numbers(tensor)


def _numbers(tensor: Tensor) -> Tensor:
    return tensor.cpu().to(_WIDE.get(tensor.dtype, torch.float32)).contiguous()


def _every_byte(heads: int) -> Tensor:
    return torch.arange(256, dtype=torch.uint8).expand(heads, -1)


def _whole(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
