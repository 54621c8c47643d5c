"""A forward that ignores the cache it is given has no figures: transformers' forwards swallow what they do not know."""

from copy import copy

import pytest
import torch
from models import random_ids, sampled_books, tiny_lm

from pqkv.config import CacheConfig
from pqkv.errors import CacheError
from pqkv.lm import PQKVCache, attach
from pqkv.lm.capture import capture
from pqkv.lm.step import cache_argument
from pqkv.quality.modes import run_coded, run_decode, run_exact
from pqkv.quality.prefills import prefill

SMALL = CacheConfig(page_size=16, residual=32)


def ignoring(lm, *, after=0):
    """The decoder of `lm`, given a forward that takes a cache from call `after` on and computes without it."""
    decoder, calls = lm.model.get_decoder(), []
    original = decoder.forward

    def forward(*args, **kwargs):
        calls.append(1)
        if len(calls) > after:
            kwargs = {k: v for k, v in kwargs.items() if k not in ("cache", "past_key_values")}
            kwargs["use_cache"] = False
        return original(*args, **kwargs)

    decoder.forward = forward
    return lm


@pytest.fixture
def deaf():
    lm = tiny_lm()
    attach(lm.model)
    return lm, sampled_books(lm)


@pytest.mark.parametrize("mode", ["exact-schedule", "all-coded", "token", "chunk"])
def test_every_mode_refuses_a_forward_that_ignores_its_cache(deaf, mode):
    lm, books = deaf
    with pytest.raises(CacheError, match=r"attended 0 times .* 3 coded layers"):
        run_coded(ignoring(lm), random_ids(60), books, SMALL, mode)


@pytest.mark.parametrize("mode", ["token", "chunk"])
def test_a_forward_that_forgets_its_cache_later_on_is_refused_too(deaf, mode):
    lm, books = deaf
    with pytest.raises(CacheError, match="attended 0 times"):
        run_coded(ignoring(lm, after=2), random_ids(60), books, SMALL, mode, chunk_size=20)


def test_prefill_and_decoding_are_refused_too(deaf):
    lm, books = deaf
    ids = random_ids(60)
    cache = prefill(lm, ids[:, :50], books, SMALL)
    with pytest.raises(CacheError, match="attended 0 times"):
        prefill(ignoring(lm), ids[:, :50], books, SMALL)
    with pytest.raises(CacheError, match="attended 0 times"):
        run_decode(lm, ids[:, 50:], cache)


def test_capture_is_refused_too(deaf):
    lm, _ = deaf
    with pytest.raises(CacheError, match="attended 0 times"):
        capture(ignoring(lm), random_ids(40).numpy(), 10, 0)


def test_a_layer_that_attends_twice_is_noticed(deaf):
    lm, _ = deaf
    layer = lm.model.model.layers[1].self_attn
    once = layer.forward

    def twice(*args, **kwargs):
        once(*args, **kwargs)
        return once(*args, **kwargs)

    layer.forward = twice
    with pytest.raises(CacheError, match="attended 4 times"):
        run_coded(lm, random_ids(30), None, SMALL, "chunk", chunk_size=30)


def test_a_plain_forward_needs_no_cache(deaf):
    lm, _ = deaf
    ids = random_ids(20)
    assert torch.equal(run_exact(ignoring(lm), ids), run_exact(lm, ids))


def test_the_cache_goes_under_the_keyword_that_the_forward_has(deaf):
    lm, _ = deaf

    def older(input_ids, past_key_values=None, **kwargs):
        return None

    def newer(input_ids, cache=None, **kwargs):
        return None

    def opaque(*args, **kwargs):
        return None

    own = set(cache_argument(lm.model, None))
    assert own < {"cache", "past_key_values"}
    for forward, names in ((older, {"past_key_values"}), (newer, {"cache"}), (opaque, own)):
        lm.model.forward = forward
        assert set(cache_argument(lm.model, None)) == names


def test_attended_counts_columns_as_the_rows_see_them(deaf):
    lm, books = deaf
    ids = random_ids(60)
    cache = PQKVCache(lm.model.config, books, SMALL)
    seen = coded = 0
    for t in range(60):
        before = copy(cache.attended)
        lm.logits(ids[:, t : t + 1], cache)
        step = cache.attended - before
        assert step.calls == 3
        assert step.columns == 3 * (t + 1)
        seen, coded = seen + step.columns, coded + step.coded_columns
    # 4 sinks, then a page of 16 for each time the window of 32 is full: from 36 tokens on 16, from 52 on 32
    assert (seen, coded) == (3 * 60 * 61 // 2, 3 * ((52 - 36) * 16 + (60 - 52) * 32))
