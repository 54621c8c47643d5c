"""Caches of every kind beside the naive one, small enough that pages fill up, are shared and run out."""

import pytest
from naive import Pair, served_books

from pqkv.config import CacheConfig

KINDS = {
    "exact": {},
    "paged": {"key_layout": "row"},
    "contiguous": {"paged": False},
    "served": {},
    "served contiguous": {"paged": False},
}
kinds = pytest.mark.parametrize("kind", KINDS)


def make_pair(kind, *, layers=2, **more):
    config = CacheConfig(page_size=4, residual=8, sink_tokens=1, max_pages=more.pop("max_pages", None), **KINDS[kind])
    books = served_books(layers) if kind.startswith("served") else None
    return Pair(config, exact=kind == "exact", layers=layers, books=books, **more)


def table_of(cache):
    return [cache.table.pages(sequence) for sequence in range(len(cache.table))]
