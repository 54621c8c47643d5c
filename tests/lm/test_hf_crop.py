"""Tokens taken back: `crop`, assisted generation that needs it, and steps that were cut off half way."""

import pytest
import torch
from models import gap, random_ids, stepwise, untouched
from transformers import DynamicCache

from pqkv.config import CacheConfig
from pqkv.errors import CacheError
from pqkv.lm import PQKVCache, attach
from pqkv.lm.step import cache_argument

SMALL = CacheConfig(page_size=8, residual=16, sink_tokens=2)
kinds = pytest.mark.parametrize("kind", ["paged", "contiguous", "exact"])


def cache_of(lm, books, kind="paged", config=SMALL):
    attach(lm.model)
    config = config.model_copy(update={"paged": kind != "contiguous"})
    return PQKVCache(lm.model.config, None if kind == "exact" else books, config)


@kinds
def test_after_a_crop_it_is_as_if_the_tokens_had_never_come(tiny, books, kind):
    stem, wrong, right = random_ids(50, batch=2), random_ids(5, batch=2, seed=1), random_ids(30, batch=2, seed=2)
    cropped, plain = cache_of(tiny, books, kind), cache_of(tiny, books, kind)
    for cache in (cropped, plain):
        stepwise(tiny.model, stem, cache, 10)  # 40 of them coded, 8 in the window: 5 more seal nothing
    stepwise(tiny.model, wrong, cropped, 5)
    cropped.crop(-5)
    assert cropped.get_seq_length() == 50
    assert gap(stepwise(tiny.model, right, cropped), stepwise(tiny.model, right, plain)) == 0


def test_a_crop_into_sealed_pages_is_refused_and_the_cache_goes_on(tiny, books):
    ids = random_ids(60)
    cache, plain = cache_of(tiny, books), cache_of(tiny, books)
    for each in (cache, plain):
        stepwise(tiny.model, ids[:, :50], each, 10)
    with pytest.raises(CacheError, match="42 of them are sinks or in sealed pages"):
        cache.crop(-9)
    for wrong in (5, -51):
        with pytest.raises(CacheError):
            cache.crop(wrong)
    cache.crop(0)
    assert gap(stepwise(tiny.model, ids[:, 50:], cache), stepwise(tiny.model, ids[:, 50:], plain)) == 0


@pytest.mark.parametrize("kind", ["paged", "exact"])
def test_assisted_generation_with_nothing_coded_equals_dynamic_cache(tiny, books, kind):
    ids = random_ids(20).repeat(1, 3)  # repeats, so that looking the prompt up proposes tokens, most of them wrong
    ask = {
        "max_new_tokens": 40,
        "do_sample": False,
        "prompt_lookup_num_tokens": 4,
        "attention_mask": torch.ones_like(ids),
    }
    got = tiny.model.generate(ids, **cache_argument(tiny.model, cache_of(tiny, books, kind, CacheConfig())), **ask)
    plain = untouched(tiny.model)
    assert torch.equal(got, plain.generate(ids, **cache_argument(plain, DynamicCache(config=plain.config)), **ask))


def test_assisted_generation_runs_through_flushes(tiny, books):
    ids = random_ids(20).repeat(1, 3)
    cache = cache_of(tiny, books)
    out = tiny.model.generate(
        ids, **cache_argument(tiny.model, cache), max_new_tokens=60, do_sample=False, prompt_lookup_num_tokens=4
    )
    assert out.shape == (1, 120)
    assert cache.kv.layers[0].coded[0] >= 88


def test_a_step_cut_off_between_two_layers_is_noticed(tiny, books):
    ids = random_ids(40)
    cache = cache_of(tiny, books)
    stepwise(tiny.model, ids[:, :30], cache, 10)
    second = cache.kv.layers[1]
    works, second.attend = second.attend, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        stepwise(tiny.model, ids[:, 30:31], cache)
    second.attend = works
    with pytest.raises(CacheError, match="interrupted between two layers"):
        stepwise(tiny.model, ids[:, 30:31], cache)
    cache.reset()
    assert gap(stepwise(tiny.model, ids, cache, 10), stepwise(tiny.model, ids, cache_of(tiny, books), 10)) == 0


def test_a_hybrid_model_past_its_window_cannot_be_cropped_and_stays_whole():
    from models import sampled_books, tiny_lm

    lm = tiny_lm(
        "gemma3_text", layer_types=["sliding_attention", "full_attention", "full_attention"], sliding_window=8,
        query_pre_attn_scalar=16,
    )  # fmt: skip
    books, ids = sampled_books(lm), random_ids(30)
    cache, plain = cache_of(lm, books), cache_of(lm, books)
    for each in (cache, plain):
        stepwise(lm.model, ids[:, :20], each, 20)
    with pytest.raises(CacheError, match="the sliding window of layer 0 has forgotten"):
        cache.crop(-2)
    assert gap(stepwise(lm.model, ids[:, 20:], cache), stepwise(lm.model, ids[:, 20:], plain)) == 0
