"""Memory that holds no token is never read: whatever lies there, the logits are the same bit for bit."""

import pytest
import torch
from models import gap, random_ids, stepwise

from pqkv.cache.exact import PagedExactLayer
from pqkv.cache.store import PagedCodeStore
from pqkv.config import CacheConfig
from pqkv.lm import PQKVCache, attach
from pqkv.lm.step import cache_argument

POISONS = {"nan": (float("nan"), 255), "finite garbage": (1e4, 170)}
SHAPES = {"paged": {}, "row": {"key_layout": "row", "value_layout": "row"}, "contiguous": {"paged": False}}


def cache_of(lm, books, **more):
    attach(lm.model)
    return PQKVCache(lm.model.config, books, CacheConfig(page_size=8, residual=16, sink_tokens=2, **more))


def poison(cache, value, byte):
    """Fill every slot of every layer that holds no token; exact memory gets `value`, codes get `byte`."""
    count = 0
    for layer in cache.kv.layers:
        if isinstance(layer, PagedExactLayer):
            count += _poison_pages(layer.table, layer.page_size, layer._pages, layer.lengths, value)
            continue
        for b, n in enumerate(layer.lengths):
            sinks = min(n, layer.config.sink_tokens)
            coded = max(0, (n - layer.config.sink_tokens - layer.config.residual + 8) // 8) * 8
            for buffers, used in ((layer._sinks, sinks), (layer._residual, n - sinks - coded)):
                for buffer in buffers:
                    buffer[b, :, used:] = value
                    count += buffer[b, :, used:].numel()
            if not isinstance(layer.store, PagedCodeStore):
                for part in (part for row in layer.store._rows for part in (row.codes, row.gains) if part is not None):
                    part[b, :, coded:] = byte
                    count += part[b, :, coded:].numel()
        if isinstance(layer.store, PagedCodeStore):
            sides = [layer.store.keys.pages, layer.store.values.pages]
            sealed = [max(0, (n - 10) // 8) * 8 for n in layer.lengths]  # n - 2 sinks - 16 + 8
            count += _poison_pages(layer.store.table, 8, sides, sealed, byte)
    return count


def _poison_pages(table, size, sides, lengths, value):
    """Pages nobody owns whole, and the slots past the length of those that somebody does."""
    owned = {}
    for b, n in enumerate(lengths):
        for i, page in enumerate(table.pages(b)):
            owned[page] = max(owned.get(page, 0), min(size, max(0, n - i * size)))
    for pages in sides:
        for page in range(pages.shape[0]):
            used = owned.get(page, 0)
            assert used == size or pages.dtype != torch.uint8 or used == 0  # sealed pages are whole
            pages[page, :, used:] = value
    return sum(pages.numel() for pages in sides)


@pytest.mark.once  # the memory is pqkv's; such steps test_hf_batches.py takes with every version
@pytest.mark.parametrize("kind", POISONS)
@pytest.mark.parametrize("shape", [*SHAPES, "exact"])
def test_unused_memory_is_never_read(tiny, books, shape, kind):
    clean, dirty = (
        cache_of(tiny, None) if shape == "exact" else cache_of(tiny, books, **SHAPES[shape]) for _ in range(2)
    )
    ids = random_ids(75, batch=2)
    sizes = [13, *[1] * 30, 9, *[1] * 23]
    start = poisoned = 0
    with torch.inference_mode():
        for size in sizes:
            step = ids[:, start : start + size]
            expected, got = (tiny.model(step, **cache_argument(tiny.model, cache)).logits for cache in (clean, dirty))
            assert torch.equal(expected, got), f"step of {size} at {start}"
            poisoned += poison(dirty, *POISONS[kind])
            start += size
    assert start == 75
    assert poisoned > 0


def test_logits_come_out_of_the_pages_the_table_names(tiny, books):
    """The counterpart: if the table did not matter, nothing above would mean anything."""
    ids = random_ids(60)
    for own in (books, None):
        caches = [cache_of(tiny, own) for _ in range(2)]
        for cache in caches:
            stepwise(tiny.model, ids, cache, 60)
        table = caches[1].kv.table
        row = table._rows[0]
        row[0], row[1] = row[1], row[0]
        table._tensor = None
        step = random_ids(1, seed=9)
        expected, got = (stepwise(tiny.model, step, cache) for cache in caches)
        # pages of exact keys swapped whole are the same set of columns; one page twice is not
        assert gap(expected, got) <= 1e-9
        row[0] = row[1]
        table._tensor = None
        assert gap(*(stepwise(tiny.model, step, cache) for cache in caches)) > 1e-3
