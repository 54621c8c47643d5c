"""A cache with a sliding window: what it attends to is the naive double's, and what nobody sees is given back."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import Pair, served_books

from pqkv.cache.pool import PagePool
from pqkv.cache.table import UNUSED, PageTable
from pqkv.config import CacheConfig
from pqkv.errors import CacheError, ConfigError

KINDS = ["exact", "coded", "served"]
P = 4


def windowed(kind, window, beside=0, *, sinks=2, layers=2, sequences=2, **more):
    config = CacheConfig(
        page_size=P, residual=8, sink_tokens=sinks, window=window, window_sinks=beside, backend="reference", **more
    )
    books = served_books(layers) if kind == "served" else None
    return Pair(config, exact=kind == "exact", layers=layers, books=books, sequences=sequences)


def live(pair, sequence=0):
    return [page for page in pair.cache.table.pages(sequence) if page != UNUSED]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beside", [0, 1, 2])
@pytest.mark.parametrize("window", [1, 3, 8, 13, 100])
def test_token_by_token_it_is_the_naive_one(kind, window, beside):
    pair = windowed(kind, window, beside)
    for _ in range(45):
        pair.attend()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2, 5, 11, 30])
def test_in_chunks_it_is_the_naive_one(kind, size):
    pair = windowed(kind, 9, 2)
    for _ in range(60 // size):
        pair.attend(size)
    pair.attend()


@given(
    kind=st.sampled_from(KINDS),
    window=st.integers(1, 20),
    beside=st.integers(0, 2),
    steps=st.lists(st.tuples(st.integers(1, 14), st.booleans(), st.booleans()), min_size=1, max_size=8),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_mixture_of_ragged_steps_is_the_naive_one(kind, window, beside, steps, data):
    pair = windowed(kind, window, beside, sequences=3)
    for size, attends, ragged in steps:
        padding = [data.draw(st.integers(0, size)) for _ in range(3)] if ragged else None
        (pair.attend if attends else pair.append)(size, padding)
    pair.attend()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [1, 4, 6, 17])
def test_pages_are_bounded_by_the_window_at_every_step(kind, window):
    """At eight times the window, sampled after every step; the pool need not be larger than that."""
    most = math.ceil(window / P) + 2
    pair = windowed(kind, window, 2, sequences=2, max_pages=2 * most)
    for _ in range(8 * max(window, 8)):
        pair.attend()
        assert all(len(live(pair, b)) <= most for b in range(2))
    stats = pair.cache.pool.stats()
    assert stats.used == len(live(pair, 0)) + len(live(pair, 1)) <= 2 * most
    assert stats.releases > 0 or (kind != "exact" and window <= P)  # what the residual shows alone is never coded


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_prefill_takes_no_page_that_nobody_will_see(kind):
    pair = windowed(kind, 8, 2)
    pair.append(400)
    assert pair.cache.pool.stats().peak_used <= 2 * (math.ceil(8 / P) + 2)
    pair.attend()
    pair.attend(3)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_run_apart_keep_what_the_last_of_them_needs(kind):
    pair = windowed(kind, 6, 1)
    first, second = pair.cache.layers
    for layer, number in ((first, 0), (second, 1)):  # the first layer is done before the second begins
        for _ in range(40):
            query, keys, values = pair.tokens(1)
            out = layer.attend(query, keys, values, scale=0.7)
            expected = pair.naive.attend(number, query, keys, values, 0.7)
            assert abs(out.numpy() - expected).max() < 1e-6
    assert len(live(pair)) <= math.ceil(6 / P) + 2


@pytest.mark.parametrize("kind", KINDS)
def test_one_layer_at_once_and_the_other_in_steps(kind):
    """A page that the first layer's prefill left out is made when the second layer's step needs it."""
    pair = windowed(kind, 6, 1)
    first, second = pair.cache.layers
    _, keys, values = pair.tokens(40)
    first.append(keys, values)
    pair.naive.layers[0][0].append(keys[0].numpy(), values[0].numpy())
    for _ in range(40):
        query, keys, values = pair.tokens(1)
        out = second.attend(query, keys, values, scale=0.7)
        assert abs(out.numpy() - pair.naive.attend(1, query, keys, values, 0.7)).max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_forks_and_selections_keep_their_windows(kind):
    pair = windowed(kind, 10, 2)
    pair.append(30, [0, 7])
    pair.fork(0)
    pair.attend(2)
    pair.select([2, 1])
    for _ in range(15):
        pair.attend()
    pair.reset()
    pair.attend(20)
    assert pair.cache.pool.used <= 2 * (math.ceil(10 / P) + 7)


@pytest.mark.parametrize("kind", KINDS)
def test_crop_goes_as_far_as_the_pages_do(kind):
    pair = windowed(kind, 10, 2)
    pair.append(41)
    length, refused = 41, None
    while refused is None:
        try:
            pair.crop([length - 1] * 2)
            length -= 1
            pair.probe()
        except CacheError as error:
            refused = str(error)
    assert "given back" in refused or "sealed pages" in refused
    pair.probe()  # and nothing has changed


@pytest.mark.parametrize("kind", ["coded", "served"])
def test_a_window_that_never_bites_is_no_window(kind):
    """To the bit, codes and all."""
    results = []
    for window in (None, 1000):
        config = CacheConfig(page_size=P, residual=8, sink_tokens=2, window=window)
        books = served_books(1) if kind == "served" else None
        pair = Pair(config, books=books, layers=1)
        pair.append(50)
        query, keys, values = pair.tokens(1)
        results.append(pair.cache.layers[0].attend(query, keys, values, scale=0.7))
    assert torch.equal(*results)


def test_memory_is_what_the_window_holds():
    short, long = (windowed("coded", 16, 2, sinks=2) for _ in range(2))
    short.append(100)
    long.append(1000)
    assert short.cache.memory().total == long.cache.memory().total


def test_a_table_gives_back_its_front_and_keeps_its_numbers():
    table = PageTable(PagePool(), 2)
    table.ensure([5, 3])
    pages = table.pages(0)
    table.drop([2, 0])
    assert table.pages(0) == (UNUSED, UNUSED, *pages[2:])
    assert table.first(0) == 2
    assert table.as_tensor(torch.device("cpu"), [2, 0]).tolist() == [[*pages[2:]], [*table.pages(1)]]
    assert table.distinct([5, 3]) == 6
    table.ensure([9, 3], [7, 0])  # pages 5 and 6 are never needed
    assert table.pages(0)[5:7] == (UNUSED, UNUSED)
    table.ensure([9, 3], [6, 0])  # but now one of them is
    assert UNUSED not in table.pages(0)[6:]
    table.select([0, 0])
    assert table.pages(0) == table.pages(1)
    table.drop([9, 9])
    assert table.pool.used == 0
    table.clear()
    assert table.first(0) == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"window": 0}, "window"),
        ({"window_sinks": 2}, "give one of them"),
        ({"window": 8, "window_sinks": 9, "sink_tokens": 4}, "stays exact"),
        ({"window": 8, "paged": False}, "paged"),
        ({"keep": "recent"}, "keep_share"),
        ({"keep": "recent", "keep_share": 0.5, "window": 8}, "take one"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        CacheConfig.parse(given)


def test_a_cache_that_sees_everything_is_described_as_before():
    assert not {"window", "window_sinks", "keep", "keep_share"} & set(CacheConfig().model_dump())
    assert CacheConfig(window=8).model_dump()["window"] == 8
