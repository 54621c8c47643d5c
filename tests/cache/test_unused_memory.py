"""Slots of a cache without a token in them may hold anything at all."""

from copy import deepcopy

import pytest
import torch
from naive import Pair, served_books

from pqkv.cache.coded import CodedLayer
from pqkv.cache.store import ContiguousCodeStore
from pqkv.config import CacheConfig

KINDS = {
    "exact": {},
    "paged": {"value_layout": "row"},
    "transposed": {},
    "contiguous": {"paged": False},
    "served": {},
    "served contiguous": {"paged": False},
}


def unused_parts(cache):
    """Views of everything in a cache that holds no token."""
    rows = [cache.table.pages(sequence) for sequence in range(len(cache.table))]
    unused = sorted(set(range(cache.pool.capacity)) - {page for row in rows for page in row})
    for layer in cache.layers:
        yield from (_coded_parts if isinstance(layer, CodedLayer) else _exact_parts)(layer, rows, unused)


def _exact_parts(layer, rows, unused):
    for pages in layer._pages:
        yield from (pages[page] for page in unused if page < len(pages))
        for row, n in zip(rows, layer.lengths, strict=True):
            if n:
                yield pages[row[-1], :, (n - 1) % layer.page_size + 1 :]


def _coded_parts(layer, _, unused):
    for b, n in enumerate(layer.lengths):
        sinks, coded = min(n, layer.config.sink_tokens), layer.coded[b]
        yield from (buffer[b, :, sinks:] for buffer in layer._sinks)
        yield from (buffer[b, :, n - sinks - coded :] for buffer in layer._residual)
        if isinstance(layer.store, ContiguousCodeStore):
            yield from (part[b, :, coded:] for row in layer.store._rows for part in _parts(row.codes, row.gains))
    if not isinstance(layer.store, ContiguousCodeStore):
        for side in (layer.store.keys, layer.store.values):
            for part in _parts(side.pages, side.gains):
                yield from (part[page] for page in unused if page < len(part))


def _parts(*parts):
    return [part for part in parts if part is not None]


def spoil(cache, fill):
    """Let `fill` overwrite everything that holds no token."""
    spoiled = 0
    for part in unused_parts(cache):
        fill(part)
        spoiled += part.numel()
    assert spoiled


def poison(tensor):
    tensor.fill_(float("nan") if tensor.is_floating_point() else 255)


def zero(tensor):
    tensor.zero_()


def garbage(tensor):
    if tensor.is_floating_point():
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(9)) * 1e4)
    else:
        tensor.random_(0, 256, generator=torch.Generator().manual_seed(9))


def make_pair(kind, lengths):
    config = CacheConfig(page_size=4, residual=10, sink_tokens=3, **KINDS[kind])
    books = served_books(2) if kind.startswith("served") else None
    pair = Pair(config, exact=kind == "exact", books=books, sequences=len(lengths), layers=2)
    pair.cache.pool.__init__(initial=16)  # few unused pages to overwrite
    pair.append(max(lengths), [max(lengths) - n for n in lengths])
    return pair


def continued(pair, fill, sizes):
    cache, outs = deepcopy(pair.cache), []
    random = torch.Generator().manual_seed(5)
    B = len(cache.layers[0].lengths)
    for size in sizes:
        spoil(cache, fill)
        for layer in cache.layers:
            query = torch.randn(B, size, 4, 8, generator=random, dtype=torch.float64)
            keys, values = (torch.randn(B, 2, size, 8, generator=random, dtype=torch.float64) for _ in range(2))
            outs.append(layer.attend(query, keys, values, scale=0.7))
    return outs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(0, 1, 2), (3, 12, 13), (17, 16, 18), (40, 4, 21)])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (6, 1, 3)])
def test_what_lies_in_unused_slots_never_reaches_a_result(kind, lengths, sizes):
    pair = make_pair(kind, lengths)
    clean = continued(pair, zero, sizes)
    for fill in (poison, garbage):
        for one, other in zip(clean, continued(pair, fill, sizes), strict=True):
            assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    assert all(torch.isfinite(out).all() for out in clean)


@pytest.mark.parametrize("kind", KINDS)
def test_a_used_slot_that_is_spoiled_is_noticed(kind):
    """The comparison itself: one spoiled slot that holds tokens, and results differ."""
    pair = make_pair(kind, (40, 4, 21))
    clean = continued(pair, zero, (1,))
    layer = pair.cache.layers[0]
    if kind == "exact":
        garbage(layer._pages[1][pair.cache.table.pages(0)[3]])
    elif "contiguous" in kind:
        garbage(layer.store._rows[1].codes[0, :, :1])
    else:
        garbage(layer.store.values.pages[pair.cache.table.pages(0)[3]])
    spoiled = continued(pair, zero, (1,))
    assert not torch.equal(spoiled[0][0], clean[0][0])
    assert torch.equal(spoiled[0][1:], clean[0][1:])


def test_a_page_another_sequence_left_behind_is_as_good_as_new():
    pair = make_pair("exact", (10, 7))
    pair.select([1])
    spoil(pair.cache, poison)
    for size in (1, 3, 6):
        pair.attend(size)
