"""What kernels take of a cache's tensors is made once: it has to be seen when the tensors change, and let go of."""

from copy import deepcopy
from dataclasses import replace
from weakref import ref

import numpy as np
import pytest
import torch
from batches import Spec, brute_force, build

from pqkv.cache import KVCache
from pqkv.cache.layer import Geometry
from pqkv.codec import CodebookSet
from pqkv.config import BenchConfig, CacheConfig
from pqkv.errors import KernelError
from pqkv.kernels.cpu.backend import attention
from pqkv.kernels.cpu.held import recall
from pqkv.speed.synthetic import key_book, value_book

pytestmark = pytest.mark.xdist_group("numba")  # one process compiles the kernels, not each its own
SMALL = Spec((70, 3), (2, 2), (5, 1), dtype=torch.float32, heads=2, group=2, head_dim=16, subspaces=(8, 8))
AS_IT_IS = ("auto", "auto"), False, 2  # ways, rounded, planes


def found(batch, **changed):
    return recall(changed.get("query", batch.query), *batch.inputs[1:], *AS_IT_IS)


def close(batch):
    out, lse = attention(*batch.inputs, scale=0.25)
    expected, expected_lse = brute_force(batch, 0.25)
    np.testing.assert_allclose(out.double().numpy(), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(lse.numpy(), expected_lse, rtol=0, atol=1e-4)


def test_the_second_step_finds_what_the_first_one_made():
    batch = build(SMALL)
    assert found(batch) is None
    close(batch)
    made = found(batch)
    assert made is not None
    close(batch)
    assert found(batch) is made


def test_what_is_written_into_the_same_tensors_is_seen():
    batch = build(SMALL)
    attention(*batch.inputs, scale=0.25)
    other = build(SMALL.but(seed=7))
    for own, new in (
        (batch.pages.keys.pages, other.pages.keys.pages), (batch.pages.values.pages, other.pages.values.pages),
        (batch.pages.page_table, other.pages.page_table), (batch.residual.keys, other.residual.keys),
        (batch.residual.values, other.residual.values), (batch.sinks.keys, other.sinks.keys),
        (batch.sinks.values, other.sinks.values), (batch.pages.keys.centroids, other.pages.keys.centroids),
        (batch.pages.values.centroids, other.pages.values.centroids), (batch.query, other.query),
        (batch.pages.keys.channels, other.pages.keys.channels),
        (batch.pages.values.channels, other.pages.values.channels),
    ):  # fmt: skip
        own.copy_(new)
    assert found(batch) is not None
    once, again = (attention(*each.inputs, scale=0.25) for each in (batch, other))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("part", ["keys", "values", "sinks", "residual", "query"])
def test_another_tensor_in_the_place_of_one_is_not_taken_for_it(part):
    batch = build(SMALL)
    attention(*batch.inputs, scale=0.25)
    query, pages, sinks, residual = batch.inputs
    if part in ("keys", "values"):
        pages = replace(pages, **{part: replace(getattr(pages, part), pages=getattr(pages, part).pages.clone())})
    elif part == "query":
        query = query[:1]
        assert recall(query, pages, sinks, residual, *AS_IT_IS) is None
        return
    else:
        batch_part = replace(batch, **{part: replace(getattr(batch, part), keys=getattr(batch, part).keys.clone())})
        sinks, residual = batch_part.sinks, batch_part.residual
    assert recall(query, pages, sinks, residual, *AS_IT_IS) is None
    changed = replace(batch, pages=pages, sinks=sinks, residual=residual)
    close(changed)


def test_copies_are_not_kept():
    """Of parts in two dtypes, or not one number after another, kernels read a copy: the next step makes its own."""
    batch = build(SMALL)
    for residual in (
        replace(batch.residual, keys=batch.residual.keys.half(), values=batch.residual.values.half()),
        replace(batch.residual, keys=batch.residual.keys.transpose(1, 2).contiguous().transpose(1, 2)),
    ):
        attention(batch.query, batch.pages, batch.sinks, residual, scale=0.25)
        assert recall(batch.query, batch.pages, batch.sinks, residual, *AS_IT_IS) is None


def test_lengths_and_ids_that_are_wrong_are_refused_in_a_later_step_too():
    batch = build(SMALL)
    attention(*batch.inputs, scale=0.25)
    query, pages, sinks, residual = batch.inputs
    assert found(batch) is not None
    wrong = [
        (replace(pages, context_len=pages.context_len + 900), sinks, residual, "room"),
        (replace(pages, context_len=pages.context_len[:1]), sinks, residual, "not int32"),
        (replace(pages, page_table=pages.page_table + 900), sinks, residual, "names pages"),
        (replace(pages, page_table=pages.page_table.long()), sinks, residual, "page_table is"),
        (pages, replace(sinks, length=sinks.length + 9), residual, "room"),
        (pages, sinks, replace(residual, length=residual.length.long()), "not int32"),
    ]
    for pages_, sinks_, residual_, words in wrong:
        with pytest.raises(KernelError, match=words):
            attention(query, pages_, sinks_, residual_, scale=0.25)
    with pytest.raises(KernelError, match="window"):
        attention(*batch.inputs, scale=0.25, window=0)


def test_pages_that_grew_are_let_go_of():
    """Else the old ones of every layer would be there beside the new ones until its next step."""
    torch.manual_seed(0)
    cache = KVCache(CacheConfig(page_size=4), Geometry(1, 2, 16, torch.float32, torch.device("cpu")), 1)
    layer = cache.layers[0]

    def step(count):
        return layer.attend(
            torch.randn(1, count, 4, 16), torch.randn(1, 2, count, 16), torch.randn(1, 2, count, 16), scale=0.25
        )

    step(1)
    step(1)
    assert layer._kept
    before = ref(layer.pages(0))
    capacity = len(layer.pages(0))
    while len(layer.pages(0)) == capacity:
        layer.append(torch.randn(1, 2, 4, 16), torch.randn(1, 2, 4, 16))
    assert before() is None
    assert not layer._kept


@pytest.mark.parametrize("coded", [False, True])
def test_a_copied_cache_goes_on_by_itself(coded):
    """As `copy.deepcopy` makes one of a cache with a prompt: a copy of an array is not an array of the copy."""
    config = BenchConfig(served=(), heads=4, kv_heads=2, head_dim=16)
    draw = torch.Generator().manual_seed(0)
    books = CodebookSet((key_book(config, (8, 8), draw),), (value_book(config, (8, 8), draw),)) if coded else None
    geometry = Geometry(1, 2, 16, torch.float32, torch.device("cpu"))
    cache = KVCache(CacheConfig(page_size=4, residual=8), geometry, 1, books, backend=attention)

    def step(own, seed, count=1):
        new = torch.Generator().manual_seed(seed)
        shapes = (1, count, 4, 16), (1, 2, count, 16), (1, 2, count, 16)
        return own.layers[0].attend(*(torch.randn(shape, generator=new) for shape in shapes), scale=0.25)

    step(cache, 0, 21)
    step(cache, 1)
    step(cache, 2)
    layer = cache.layers[0]
    assert (layer.store if coded else layer)._kept
    twin = deepcopy(cache)
    for seed in range(3, 9):  # other tokens in each
        step(cache, seed)
        step(twin, seed + 100)
    alone = KVCache(CacheConfig(page_size=4, residual=8), geometry, 1, books, backend=attention)
    step(alone, 0, 21)
    for seed in (1, 2, *range(103, 109)):
        step(alone, seed)
    assert torch.equal(step(twin, 50), step(alone, 50))
