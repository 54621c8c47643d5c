"""Bytes of a cache at any length, from its configuration alone (equal to what a cache of that length measures)."""

from __future__ import annotations

from pqkv.cache.kv_cache import CacheMemory
from pqkv.cache.window import Window
from pqkv.codec import CodebookSet
from pqkv.config import CacheConfig
from pqkv.packing import packed_size
from pqkv.schedule import coded_len


def footprint(
    tokens: int,
    config: CacheConfig,
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    itemsize: int,
    books: CodebookSet | None,
) -> CacheMemory:
    """Bytes of one sequence of `tokens` tokens whose exact parts take `itemsize` bytes an element; of those behind a
    window as far as they are still kept.
    """
    P, window = config.page_size, Window.of(config.window, config.window_sinks)
    vector = num_kv_heads * head_dim * itemsize
    behind = 0 if window is None else window.first_visible(tokens)
    if books is None:
        pages = -(-tokens // P) - behind // P
        sinks = 2 * config.window_sinks * vector * num_layers
        return CacheMemory(pages * P * 2 * vector * num_layers, 0, sinks, 4 * pages, 0)
    coded = coded_len(tokens, page_size=P, residual=config.residual, sink_tokens=config.sink_tokens)
    pages = (coded - min(coded, max(0, behind - config.sink_tokens)) // P * P) // P
    page_bytes = 0
    for side, layout in ((books.keys, config.key_layout), (books.values, config.value_layout)):
        for book in side:
            M, nbits = book.num_subspaces, book.nbits
            row = layout == "row" or not config.paged
            page_bytes += num_kv_heads * (P * packed_size(M, nbits) if row else M * packed_size(P, nbits))
            page_bytes += 0 if book.middle_gain is None else num_kv_heads * P
    return CacheMemory(
        pages=pages * page_bytes,
        residual=2 * config.residual * vector * num_layers,
        sinks=2 * config.sink_tokens * vector * num_layers,
        tables=4 * pages if config.paged else 0,
        codebooks=books.nbytes(),
    )


def effective_bits(nbytes: int, tokens: int, num_layers: int, num_kv_heads: int, head_dim: int) -> float:
    """Bits per cached element when everything is counted."""
    return 8 * nbytes / (2 * num_layers * tokens * num_kv_heads * head_dim)
