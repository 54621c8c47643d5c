"""The paged exact cache under transformers is transformers: same logits as DynamicCache, whatever the length."""

import pytest
import torch
from models import dynamic_logits, gap, random_ids, stepwise, tiny_lm

from pqkv.config import CacheConfig
from pqkv.lm import PQKVCache, attach

LENGTHS = (1, 63, 64, 65, 127, 128, 129, 700)
PAGED = CacheConfig(page_size=64)


@pytest.fixture(scope="module")
def truth(tiny):
    ids = random_ids(704)
    return ids, dynamic_logits(tiny.model, ids)


@pytest.mark.parametrize("length", LENGTHS)
def test_prefill_and_decode_equal_dynamic_cache(tiny, truth, length):
    ids, exact = truth
    attach(tiny.model)
    cache = PQKVCache(tiny.model.config, config=PAGED)
    prefill = stepwise(tiny.model, ids[:, :length], cache, length)
    decode = stepwise(tiny.model, ids[:, length : length + 4], cache)
    assert gap(torch.cat([prefill, decode], 1), exact[:, : length + 4]) <= 1e-9
    assert cache.get_seq_length() == length + 4
    assert [layer.lengths for layer in cache.kv.layers] == [[length + 4]] * 3


def test_token_by_token_equals_dynamic_cache_at_every_length(tiny, truth):
    ids, exact = truth
    attach(tiny.model)
    cache = PQKVCache(tiny.model.config, config=PAGED)
    assert gap(stepwise(tiny.model, ids, cache), exact) <= 1e-9
    assert cache.kv.pool.used == 11  # 704 tokens of 64, in pages that all layers share


@pytest.mark.parametrize("size", [7, 64, 100])
def test_chunks_on_a_filled_cache_equal_dynamic_cache(tiny, truth, size):
    ids, exact = truth
    attach(tiny.model)
    cache = PQKVCache(tiny.model.config, config=CacheConfig(page_size=16, residual=16))
    assert gap(stepwise(tiny.model, ids[:, :300], cache, size), exact[:, :300]) <= 1e-9


def test_keys_of_decode_steps_carry_the_positions_that_prefill_gives_them(tiny):
    """Keys are cached after RoPE, so a wrong position shows in the pages themselves."""
    ids = random_ids(40)
    attach(tiny.model)
    caches = [PQKVCache(tiny.model.config, config=CacheConfig(page_size=8, residual=8)) for _ in range(2)]
    stepwise(tiny.model, ids, caches[0], 40)
    stepwise(tiny.model, ids, caches[1])
    for whole, single in zip(caches[0].kv.layers, caches[1].kv.layers, strict=True):
        pages = [layer._pages[0][list(layer.table.pages(0))] for layer in (whole, single)]
        assert gap(*pages) <= 1e-12
        # the keys of one token at another position differ by a rotation, far above the tolerance
        assert gap(pages[0][1:], pages[1][:-1]) > 0.1


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_every_supported_family_is_exact(family):
    more = {"sliding_window": None} if family == "mistral" else {}
    lm = tiny_lm(family, **more)
    ids = random_ids(150)
    exact = dynamic_logits(lm.model, ids)
    attach(lm.model)
    cache = PQKVCache(lm.model.config, config=CacheConfig(page_size=16, residual=16))
    assert cache.coded_layers == (0, 1, 2)
    assert (
        gap(
            torch.cat([stepwise(lm.model, ids[:, :100], cache, 100), stepwise(lm.model, ids[:, 100:], cache)], 1), exact
        )
        <= 1e-9
    )


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_sliding_layers_keep_transformers_own_layer(family):
    sliding = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
    lm = tiny_lm(family, **sliding)
    ids = random_ids(120)
    exact = dynamic_logits(lm.model, ids)
    attach(lm.model)
    cache = PQKVCache(lm.model.config, config=CacheConfig(page_size=16, residual=16))
    assert cache.coded_layers == (0,)
    assert [type(layer).__name__ for layer in cache.layers[1:]] == ["DynamicSlidingWindowLayer"] * 2
    assert (
        gap(torch.cat([stepwise(lm.model, ids[:, :50], cache, 50), stepwise(lm.model, ids[:, 50:], cache)], 1), exact)
        <= 1e-9
    )
    assert len(cache.kv.layers) == 1
    # the window matters: without it the logits are others
    full = tiny_lm(family)
    assert gap(dynamic_logits(full.model, ids), exact) > 0.1


def test_attach_leaves_other_caches_as_they_were(tiny, truth):
    ids, exact = truth
    attach(tiny.model)
    from transformers import DynamicCache

    assert gap(stepwise(tiny.model, ids[:, :100], DynamicCache(), 10), exact[:, :100]) <= 1e-9
    with torch.inference_mode():
        assert gap(tiny.model(ids[:, :100]).logits, exact[:, :100]) <= 1e-9
