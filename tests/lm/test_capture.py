"""Capture keeps what a cache would be given, at the positions it drew."""

import numpy as np
import pytest
import torch
from models import random_ids, tiny_lm, untouched
from transformers import DynamicCache

from pqkv.lm.capture import capture
from pqkv.lm.step import cache_argument


@pytest.fixture(scope="module")
def windows():
    return random_ids(40, batch=3, seed=6).numpy()


def held_by_dynamic_cache(lm, windows):
    """Per layer: keys and values (windows, Hkv, T, D)."""
    plain = untouched(lm.model)
    held = []
    for window in windows:
        cache = DynamicCache(config=plain.config)
        with torch.inference_mode():
            plain(torch.from_numpy(window)[None], **cache_argument(plain, cache))
        held.append(cache)
    return [
        tuple(torch.cat([getattr(cache.layers[i], side) for cache in held]) for side in ("keys", "values"))
        for i in range(lm.num_layers)
    ]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_samples_are_what_dynamic_cache_holds_at_the_drawn_positions(windows, family):
    lm = tiny_lm(family)
    samples = capture(lm, windows, 50, seed=3)
    chosen = np.sort(np.random.default_rng(3).permutation(120)[:50])  # of the 3 x 40 tokens, in order
    window, position = chosen // 40, chosen % 40
    for i, (keys, values) in enumerate(held_by_dynamic_cache(lm, windows)):
        for got, held in ((samples.keys[i], keys), (samples.values[i], values)):
            expected = held[window, :, position].transpose(0, 1)  # (N, Hkv, D) -> (Hkv, N, D)
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, expected.float(), rtol=1e-6, atol=1e-6)


def test_all_tokens_are_taken_when_fewer_exist_than_asked_for(tiny, windows):
    samples = capture(tiny, windows, 10_000, seed=0)
    keys, _ = held_by_dynamic_cache(tiny, windows)[2]
    torch.testing.assert_close(samples.keys[2], keys.transpose(0, 1).flatten(1, 2).float(), rtol=1e-6, atol=1e-6)


def test_the_draw_follows_the_seed(tiny, windows):
    first, same, other = (capture(tiny, windows, 50, seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, first.keys + first.values + first.queries, same.keys + same.values + same.queries))
    assert not torch.equal(first.keys[0], other.keys[0])
    assert torch.equal(first.queries[0], other.queries[0])  # of all tokens, whatever was drawn


def test_query_rms_is_that_of_the_rotated_queries_of_each_group(tiny, windows):
    """The queries are taken where sdpa gets them, so rotation and scale cannot be forgotten alike."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    seen = []

    def spy(module, query, *args, **kwargs):
        seen.append(query)
        return sdpa_attention_forward(module, query, *args, **kwargs)

    AttentionInterface.register("spy", spy)
    model = untouched(tiny.model)
    model.set_attn_implementation("spy")
    with torch.inference_mode():
        model(torch.from_numpy(windows))
    for got, query in zip(capture(tiny, windows, 5, seed=0).queries, seen, strict=True):
        for head in range(2):
            own = query[:, 2 * head : 2 * head + 2]  # two query heads to a KV head: (windows, 2, T, D)
            torch.testing.assert_close(got[head], own.square().mean((0, 1, 2)).sqrt().float(), rtol=1e-5, atol=1e-6)


def test_progress_counts_windows(tiny, windows):
    told = []
    capture(tiny, windows, 5, 0, lambda done, total: told.append((done, total)))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
