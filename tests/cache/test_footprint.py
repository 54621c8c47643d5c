import itertools
from dataclasses import replace

import pytest
import torch
from naive import DIM, HEADS, make_books, served_books

from pqkv.cache import Geometry, KVCache, effective_bits, footprint
from pqkv.codec import CodebookSet
from pqkv.config import CacheConfig

CPU = torch.device("cpu")
LAYERS = 3
LAYOUTS = list(itertools.product(["row", "transposed"], repeat=2))


def filled(config, books, dtype, tokens, sequences=1):
    cache = KVCache(config, Geometry(sequences, HEADS, DIM, dtype, CPU), LAYERS, books)
    vectors = torch.randn(sequences, HEADS, tokens, DIM, generator=torch.Generator().manual_seed(0)).to(dtype)
    for layer in cache.layers:
        layer.append(vectors, vectors)
    return cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 9, 10, 14, 37, 64])
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("exact", {}),
        ("coded", {"paged": False}),
        ("served", {}),
        ("served", {"paged": False}),
        ("exact", {"window": 13, "window_sinks": 1}),
        ("served", {"window": 13, "window_sinks": 2}),
        ("coded", {"window": 6}),
        *[("coded", {"key_layout": key, "value_layout": value}) for key, value in LAYOUTS],
    ],
)  # fmt: skip
def test_a_cache_measures_what_its_footprint_says(kind, more, tokens, dtype):
    config = CacheConfig(page_size=5, residual=8, sink_tokens=2, **more)
    books = {"exact": lambda _: None, "coded": make_books, "served": served_books}[kind](LAYERS)
    memory = filled(config, books, dtype, tokens).memory()
    assert replace(memory, spare=0, derived=0) == footprint(tokens, config, LAYERS, HEADS, DIM, dtype.itemsize, books)
    assert memory.total == memory.pages + memory.residual + memory.sinks + memory.tables + memory.codebooks


def test_the_bytes_of_a_coded_cache_counted_by_hand():
    """20 tokens, 2 sinks, pages of 5, a window of 8: (20 - 2 - 8 + 5) // 5 = 3 pages sealed."""
    config = CacheConfig(page_size=5, residual=8, sink_tokens=2, key_layout="transposed", value_layout="row")
    books = make_books(LAYERS, nbits=3, subspaces=(4, 2))
    memory = filled(config, books, torch.float32, 20).memory()
    keys = 4 * 2  # four lines of 5 codes of 3 bits: 15 bits in 2 bytes
    values = 5 * 1  # five lines of 2 codes of 3 bits: 6 bits in 1 byte
    assert memory.pages == LAYERS * 3 * HEADS * (keys + values)
    assert memory.residual == LAYERS * 2 * HEADS * 8 * DIM * 4
    assert memory.sinks == LAYERS * 2 * HEADS * 2 * DIM * 4
    assert memory.tables == 3 * 4
    centroids, channels, weights = HEADS * 8 * DIM * 4, HEADS * DIM * 8, HEADS * DIM * 4
    assert memory.codebooks == LAYERS * 2 * (centroids + channels + weights)


def test_the_bytes_of_a_served_cache_counted_by_hand():
    config = CacheConfig(page_size=5, residual=8, sink_tokens=2, key_layout="transposed", value_layout="row")
    memory = filled(config, served_books(LAYERS), torch.float32, 20).memory()
    keys, values, gains = 4 * 2, 5 * 1, 5
    assert memory.pages == LAYERS * 3 * HEADS * (keys + values + gains)
    of_keys = 8 * DIM + 4 * DIM + 2 * 4 * DIM * DIM + 4 * DIM + 4 * 6  # int8, scales, F and its inverse, both means
    of_values = 4 * 8 * DIM + 8 * DIM + 4  # centroids, channels, the middle gain; the Hadamard matrix is nobody's
    assert memory.codebooks == LAYERS * HEADS * (of_keys + of_values)
    assert memory.derived > 0


def test_the_bytes_of_an_exact_cache_counted_by_hand():
    memory = filled(CacheConfig(page_size=5), None, torch.bfloat16, 11).memory()
    assert memory.pages == LAYERS * 3 * 5 * 2 * HEADS * DIM * 2  # 3 pages, the last with slack
    assert (memory.residual, memory.sinks, memory.tables, memory.codebooks) == (0, 0, 12, 0)


def test_pages_take_the_memory_that_is_counted_for_them():
    """What is counted is what the tensors hold, page by page."""
    config = CacheConfig(page_size=5, residual=8, sink_tokens=2)
    cache = filled(config, make_books(LAYERS), torch.float32, 37)
    allocated = sum(
        side.pages[: cache.pool.used].numel() * side.pages.element_size()
        for layer in cache.layers
        for side in (layer.store.keys, layer.store.values)
    )
    assert cache.memory().pages == allocated


def tensors_of(store):
    parts = getattr(store, "_rows", None)
    found = (
        [(row.codes, row.gains) for row in parts] if parts else [(s.pages, s.gains) for s in (store.keys, store.values)]
    )
    return [tensor for pair in found for tensor in pair if tensor is not None]


def test_pages_that_sequences_share_count_once_and_those_that_wait_are_spare():
    for more, make in itertools.product(({}, {"paged": False}), (make_books, served_books)):
        config = CacheConfig(page_size=5, residual=8, sink_tokens=2, **more)
        cache = filled(config, make(LAYERS), torch.float32, 37)
        before = cache.memory()
        tensors = [tensor for layer in cache.layers for tensor in tensors_of(layer.store)]
        assert before.pages + before.spare == sum(t.numel() * t.element_size() for t in tensors)
        cache.fork(0)
        assert cache.memory().pages == before.pages * (1 if config.paged else 2)


def test_a_global_codebook_counts_once():
    book = make_books(1).keys[0]
    shared = CodebookSet((book,) * LAYERS, (book,) * LAYERS)
    config = CacheConfig(page_size=5, residual=8)
    assert filled(config, shared, torch.float32, 9).memory().codebooks == book.nbytes()


def test_a_batch_takes_a_sequence_many_times():
    config = CacheConfig(page_size=5, residual=8, sink_tokens=2)
    books = make_books(LAYERS)
    one, three = (filled(config, books, torch.float32, 37, sequences).memory() for sequences in (1, 3))
    assert [3 * one.pages, 3 * one.residual, 3 * one.sinks, 3 * one.tables] == [
        three.pages, three.residual, three.sinks, three.tables,
    ]  # fmt: skip
    assert one.codebooks == three.codebooks


def test_effective_bits_tend_to_the_width_of_the_codes():
    config = CacheConfig(page_size=64, residual=128)
    books = make_books(LAYERS, nbits=8, subspaces=(4, 4))
    bits = [
        effective_bits(footprint(tokens, config, LAYERS, HEADS, DIM, 4, books).total, tokens, LAYERS, HEADS, DIM)
        for tokens in (2048, 32768, 10**7)
    ]
    assert bits == sorted(bits, reverse=True)
    assert bits[-1] == pytest.approx(books.code_bits, rel=0.01)
    assert effective_bits(2 * 3 * 100 * 4 * 16 * 2, 100, 3, 4, 16) == 16


@pytest.mark.parametrize("paged", [True, False], ids=["paged", "contiguous"])
def test_a_short_cache_allocates_little_more_than_it_uses(paged):
    """248 tokens are two pages of codes: a pool that began with 64 of them would hold 62 for nothing."""
    config = CacheConfig(paged=paged, **({} if paged else {"key_layout": "row", "value_layout": "row"}))
    cache = KVCache(config, Geometry(1, HEADS, DIM, torch.float32, CPU), LAYERS, make_books(LAYERS))
    for layer in cache.layers:
        for _ in range(248):
            layer.append(*torch.randn(2, 1, HEADS, 1, DIM))
    memory = cache.memory()
    assert memory.spare <= memory.pages
    assert memory.allocated == memory.total + memory.spare
    assert cache.pool.capacity <= 4
