"""Keeping a share of a prefill: which tokens stay by brute force, and what is attended to then."""

import numpy as np
import pytest
import torch
from models import gap, masked_tail, random_ids, stepwise

from pqkv.config import CacheConfig
from pqkv.lm import PQKVCache, attach
from pqkv.lm.keep import Keeper, attention_sums

H, G, D = 2, 3, 8


def vectors(n, batch=1, seed=0):
    draws = torch.Generator().manual_seed(seed)
    shapes = [(batch, H * G, n, D), (batch, H, n, D), (batch, H, n, D)]
    return [torch.randn(shape, generator=draws, dtype=torch.float64) for shape in shapes]


def test_attention_sums_are_counted_row_by_row():
    query, keys, _ = vectors(300)
    expected = np.zeros((H, 300))
    for h in range(H * G):
        for t in range(300):
            scores = (keys[0, h // G, : t + 1] @ query[0, h, t]).numpy() * 0.6
            mass = np.exp(scores - scores.max())
            expected[h // G, : t + 1] += mass / mass.sum()
    found = attention_sums(query[0], keys[0], 0.6)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4)  # float32 rows of a sum of hundreds
    np.testing.assert_allclose(found.sum(1).numpy(), 300 * G, rtol=1e-6)


@pytest.mark.parametrize("policy", ["attention-sum", "recent", "random"])
@pytest.mark.parametrize("sinks", [0, 4])
@pytest.mark.parametrize("share", [0.02, 0.25, 0.5])
def test_first_and_newest_tokens_stay_and_the_rest_by_merit(policy, sinks, share):
    n = 120
    query, keys, values = vectors(n)
    keeper = Keeper(policy, share, sinks)
    kept, kept_values, padding = keeper(query, keys, values, [0], 0.6, 1)
    count = max(1, int(np.ceil(share * n)))
    assert padding == [0]
    assert kept.shape == (1, H, count, D)
    first = min(sinks, count)
    half = int(np.ceil((count - first) / 2))
    sums = attention_sums(query[0], keys[0], 0.6)
    for h in range(H):
        where = [int((keys[0, h] == row).all(-1).nonzero()) for row in kept[0, h]]
        assert where == sorted(where)
        assert torch.equal(values[0, h, where], kept_values[0, h])
        assert set(range(first)) <= set(where)
        newest = set(range(n - (count - first if policy == "recent" else half), n))
        assert newest <= set(where)
        more = set(where) - set(range(first)) - newest
        if policy == "attention-sum":
            rest = range(first, n - half)
            assert more == set(sorted(rest, key=lambda i: -float(sums[h, i]))[: count - first - half])


def test_chance_is_the_same_in_every_run_and_another_in_every_layer():
    query, keys, values = vectors(200)
    keeper = Keeper("random", 0.25, 0)
    one, again, other = (keeper(query, keys, values, [0], 0.6, layer)[0] for layer in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_padded_sequences_keep_their_share_of_what_is_real():
    query, keys, values = vectors(100, batch=3)
    kept, _, padding = Keeper("attention-sum", 0.5, 2)(query, keys, values, [0, 40, 100], 0.6, 0)
    assert padding == [0, 20, 50]
    alone, _, _ = Keeper("attention-sum", 0.5, 2)(
        query[1:2, :, 40:], keys[1:2, :, 40:], values[1:2, :, 40:], [0], 0.6, 0
    )
    assert torch.equal(kept[1, :, 20:], alone[0])


@pytest.mark.parametrize("coded", [False, True])
def test_what_stays_is_what_later_tokens_attend_to(tiny, books, coded):
    """Beside transformers' cache whose other columns a mask hides: the newest tokens and the first, policy recent."""
    ids, config = random_ids(140), CacheConfig(page_size=8, residual=16, keep="recent", keep_share=0.4, window_sinks=2)
    attach(tiny.model)
    cache = PQKVCache(tiny.model.config, books if coded else None, config)
    stepwise(tiny.model, ids[:, :100], cache, 100)
    assert cache.get_seq_length() == 100
    assert cache.kv.layers[0].lengths == [40]
    found = stepwise(tiny.model, ids[:, 100:], cache)
    expected = masked_tail(tiny.model, ids, 100, [0, 1, *range(62, 100)])
    assert (gap(found, expected) <= 1e-9) is not coded
    if coded:
        assert gap(found, expected) > 0.01
    everything = masked_tail(tiny.model, ids, 100, range(100))
    assert gap(found, everything) > 0.1


def test_taking_tokens_back_counts_from_what_stayed(tiny):
    config = CacheConfig(page_size=8, residual=16, keep="recent", keep_share=0.5)
    ids = random_ids(60)
    attach(tiny.model)
    cache = PQKVCache(tiny.model.config, None, config)
    stepwise(tiny.model, ids[:, :40], cache, 40)
    first = stepwise(tiny.model, ids[:, 40:50], cache)
    cache.crop(-10)
    assert cache.get_seq_length() == 40
    assert gap(stepwise(tiny.model, ids[:, 40:50], cache), first) == 0
