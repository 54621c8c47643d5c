"""Caches of every kind hold what was put into them: agreement with a naive double at 1e-9 in float64."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import DIM, GROUP, HEADS, Pair, make_books

from pqkv.cache import Geometry, KVCache
from pqkv.config import CacheConfig
from pqkv.errors import CacheError

LAYOUTS = list(itertools.product(["row", "transposed"], repeat=2))
CODED = {f"paged {key}/{value}": {"key_layout": key, "value_layout": value} for key, value in LAYOUTS}
CODED["contiguous"] = {"paged": False}
SHAPES = [(4, 8, 2), (4, 10, 0), (3, 4, 1), (1, 1, 5), (5, 5, 0)]  # page_size, residual, sink_tokens

coded = pytest.mark.parametrize("kind", CODED)
shapes = pytest.mark.parametrize("shape", SHAPES)


def config_of(shape=(4, 8, 2), kind=None):
    page_size, residual, sinks = shape
    more = CODED[kind] if kind else {}
    return CacheConfig(page_size=page_size, residual=residual, sink_tokens=sinks, **more)


def chunks(total, pattern):
    """Cut `total` into chunks of the sizes of `pattern`, over and over."""
    sizes, endless = [], itertools.cycle(pattern)
    while sum(sizes) < total:
        sizes.append(min(next(endless), total - sum(sizes)))
    return sizes


@coded
@shapes
def test_token_by_token_every_result_is_the_naive_one(kind, shape):
    pair = Pair(config_of(shape, kind))
    for _ in range(30):
        pair.attend()


@coded
@shapes
@pytest.mark.parametrize("pattern", [(37,), (7,), (1, 9, 2)])
def test_chunks_see_as_coded_what_was_coded_before_them(kind, shape, pattern):
    pair = Pair(config_of(shape, kind))
    for size in chunks(37, pattern):
        pair.attend(size)
    pair.attend()


@coded
@shapes
def test_it_does_not_matter_how_tokens_came_in(kind, shape):
    """One at a time, in chunks, at once, by append or by attend: the next query sees the same."""
    total, results = 31, []
    generator = torch.Generator().manual_seed(1)
    keys, values = (torch.randn(2, HEADS, total + 1, DIM, generator=generator, dtype=torch.float64) for _ in range(2))
    query = torch.randn(2, total + 1, HEADS * GROUP, DIM, generator=generator, dtype=torch.float64)
    for pattern, by in [((1,), "append"), ((1,), "attend"), ((total,), "append"), ((5,), "attend"), ((2, 9), "append")]:
        layer = Pair(config_of(shape, kind)).cache.layers[0]
        start = 0
        for size in [*chunks(total, pattern), 1]:
            part = slice(start, start + size)
            start += size
            if by == "append" and start <= total:
                layer.append(keys[:, :, part], values[:, :, part])
            else:
                out = layer.attend(query[:, part], keys[:, :, part], values[:, :, part], scale=0.7)
        results.append(out)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-12)


@shapes
def test_all_layouts_hold_the_same(shape):
    results = []
    for kind in CODED:
        pair = Pair(config_of(shape, kind))
        pair.append(23)
        query, keys, values = pair.tokens(1)
        results.append(pair.cache.layers[0].attend(query, keys, values, scale=0.7))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-12)


@given(
    kind=st.sampled_from([*CODED, "exact"]),
    shape=st.sampled_from(SHAPES),
    steps=st.lists(st.tuples(st.integers(1, 12), st.booleans(), st.integers(0, 3)), min_size=1, max_size=7),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_mixture_of_ragged_steps_is_the_naive_one(kind, shape, steps, data):
    exact = kind == "exact"
    pair = Pair(config_of(shape, None if exact else kind), exact=exact, sequences=3)
    for size, attends, ragged in steps:
        padding = None
        if ragged == 0:
            padding = [data.draw(st.integers(0, size)) for _ in range(3)]
        if attends:
            pair.attend(size, padding)
        else:
            pair.append(size, padding)
    pair.attend()


@coded
@pytest.mark.parametrize("window", [1, 3, 9, 1000])
def test_a_sliding_window_reaches_over_all_parts(kind, window):
    pair = Pair(config_of(kind=kind))
    for size in (13, 1, 1, 6, 1):
        pair.attend(size, window=window)


@pytest.mark.parametrize("page_size", [1, 4, 5, 64])
def test_a_paged_exact_cache_is_plain_attention_at_every_length(page_size):
    pair = Pair(CacheConfig(page_size=page_size), exact=True)
    for _ in range(14):
        pair.attend()
    pair.attend(7)
    pair.append(3)
    pair.attend(2, window=4)


def test_a_paged_exact_cache_is_torch_attention():
    pair = Pair(CacheConfig(page_size=4), exact=True, sequences=1)
    query, keys, values = pair.tokens(10)
    out = pair.cache.layers[0].attend(query, keys, values, scale=DIM**-0.5)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2), keys, values, is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(out, expected.transpose(1, 2), rtol=0, atol=1e-12)


@coded
def test_padded_rows_equal_the_same_rows_alone(kind):
    padding, size = [0, 3, 8, 11], 11
    batch = Pair(config_of(kind=kind), sequences=4)
    _, keys, values = batch.tokens(size)
    nan = torch.full_like(keys, float("nan"))
    shown = torch.arange(size)[None, None, :, None] >= torch.tensor(padding)[:, None, None, None]
    layer = batch.cache.layers[0]
    layer.append(torch.where(shown, keys, nan), torch.where(shown, values, nan), padding)
    steps = [batch.tokens(1) for _ in range(9)]
    found = [layer.attend(*step, scale=0.7) for step in steps]
    for b, pad in enumerate(padding):
        alone = Pair(config_of(kind=kind), sequences=1).cache.layers[0]
        alone.append(keys[b : b + 1, :, pad:], values[b : b + 1, :, pad:])
        for step, out in zip(steps, found, strict=True):
            torch.testing.assert_close(
                alone.attend(*(x[b : b + 1] for x in step), scale=0.7)[0], out[b], rtol=0, atol=1e-12
            )


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("padding", [[0], [0, 1, 2], [0, -1], [0, 6]])
def test_padding_that_does_not_fit_is_refused(exact, padding):
    pair = Pair(config_of(), exact=exact)
    with pytest.raises(CacheError, match="does not fit a batch of 2 with 5 new tokens"):
        pair.append(5, padding)
    assert pair.cache.layers[0].lengths == [0, 0]


@pytest.mark.parametrize("exact", [False, True])
def test_a_batch_of_another_size_is_refused(exact):
    pair, other = Pair(config_of(), exact=exact), Pair(config_of(), sequences=3)
    query, keys, values = other.tokens(2)
    for act in (
        lambda layer: layer.append(keys, values),
        lambda layer: layer.attend(query, keys, values, scale=1.0),
    ):
        with pytest.raises(CacheError, match="holds 2 sequences"):
            act(pair.cache.layers[0])
    pair.append(11)
    pair.probe()


@pytest.mark.parametrize("exact", [False, True])
def test_pages_keep_their_content_when_the_pool_grows(exact):
    pair = Pair(config_of((1, 1, 0)), exact=exact, layers=2, sequences=1)
    for size in (30, 1, 5, 1):
        pair.attend(size)
    before = pair.cache.pool.capacity
    pair.append(3 * before)
    assert pair.cache.pool.capacity > 2 * before
    pair.attend()


def test_layers_do_not_see_each_other():
    pair = Pair(config_of(), layers=3, books=make_books(3))
    for size in (5, 1, 9, 1, 1):
        pair.attend(size)


def test_a_codebook_shared_by_heads_serves_all():
    pair = Pair(config_of(), books=make_books(heads=1))
    for size in (15, 1, 6):
        pair.attend(size)


@pytest.mark.parametrize("nbits", [1, 5, 8, 12])
def test_any_width_of_codes(nbits):
    pair = Pair(config_of(), books=make_books(nbits=nbits))
    for size in (15, 1, 6):
        pair.attend(size)


@coded
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_what_no_code_can_stand_for_is_refused_when_it_would_be_coded(kind, broken, side):
    pair = Pair(config_of(kind=kind))
    pair.append(2)  # the sinks
    query, *new = pair.tokens(8)
    new[side][1, 0, 2, 3] = broken
    layer = pair.cache.layers[0]
    for act in (lambda: layer.append(*new), lambda: layer.attend(query, *new, scale=1.0)):
        with pytest.raises(CacheError, match="NaN or infinite"):
            act()
        assert layer.lengths == [2, 2]


@coded
@pytest.mark.parametrize("side", [0, 1])
def test_where_asking_means_waiting_single_tokens_are_checked_when_their_page_is_sealed(kind, side):
    """As on a GPU: 2 sinks, a broken token and 6 more; the 8th of the residual window would seal its page."""
    pair = Pair(config_of(kind=kind))
    layer = pair.cache.layers[0]
    assert not layer.checks_late  # a CPU does not wait
    layer.checks_late = True
    pair.append(2)
    _, *broken = pair.tokens(1)
    broken[side][1, 0, 0, 3] = float("nan")
    layer.append(*broken)
    for _ in range(6):
        layer.append(*pair.tokens(1)[1:])
    assert layer.lengths == [9, 9]
    with pytest.raises(CacheError, match=f"{('keys', 'values')[side]} that are NaN or infinite"):
        layer.append(*pair.tokens(1)[1:])
    assert (layer.lengths, layer.coded) == ([9, 9], [0, 0])
    _, *chunk = pair.tokens(3)
    chunk[side][0, 0, 0, 0] = float("inf")
    with pytest.raises(CacheError, match="NaN or infinite"):  # several at once, a prompt, are still checked at once
        layer.append(*chunk)


def test_after_a_refused_step_the_cache_goes_on_from_where_it_was():
    pair = Pair(config_of(), sequences=2)
    pair.append(11, [0, 4])
    query, keys, values = pair.tokens(8)  # both sequences come to seal a page, the second one a broken one
    values[1, 0, 0, 0] = float("nan")
    with pytest.raises(CacheError, match="NaN or infinite"):
        pair.cache.layers[0].attend(query, keys, values, scale=1.0)
    pair.probe()
    for size in (1, 6, 1):
        pair.attend(size)


def test_half_precision_is_kept_as_it_is():
    pair = Pair(config_of(), dtype=torch.bfloat16)
    query, keys, values = (x.bfloat16() for x in pair.tokens(21))
    out = pair.cache.layers[0].attend(query, keys, values, scale=0.7)
    naive = pair.naive.attend(0, query.double(), keys.double(), values.double(), 0.7)
    assert out.dtype == torch.bfloat16
    np.testing.assert_allclose(out.double().numpy(), naive, rtol=0.01, atol=1e-6)


def test_an_observer_sees_every_call_and_its_result():
    seen = []
    pair = Pair(config_of())
    layer = pair.cache.layers[0]
    layer.observer = lambda query, pages, sinks, residual, **more: seen.append((query, pages, residual, more))
    query, keys, values = pair.tokens(11)
    out = layer.attend(query, keys, values, scale=0.7, window=6)
    assert seen[0][0] is query
    assert seen[0][1] is None
    assert seen[0][2].length.tolist() == [9, 9]
    assert seen[0][3]["out"] is out
    assert seen[0][3]["window"] == 6
    layer.attend(*pair.tokens(1), scale=0.7)
    assert seen[1][1].context_len.tolist() == [4, 4]


@pytest.mark.parametrize(
    ("config", "books", "layers", "says"),
    [
        (config_of(), make_books(2), 1, "codebooks for 2 layers cannot serve 1"),
        (config_of(), make_books(heads=3), 1, "layer 0: codebook for 3 heads of 8 elements cannot serve 2"),
        (CacheConfig(paged=False), None, 1, "contiguous exact cache"),
    ],
)  # fmt: skip
def test_a_cache_that_cannot_be_is_refused(config, books, layers, says):
    with pytest.raises(CacheError, match=says):
        KVCache(config, Geometry(1, HEADS, DIM, torch.float32, torch.device("cpu")), layers, books)


def test_codebooks_for_another_head_dim_are_refused():
    with pytest.raises(CacheError, match="of 8 elements cannot serve 2 KV heads of 16"):
        KVCache(config_of(), Geometry(1, HEADS, 16, torch.float32, torch.device("cpu")), 1, make_books())
