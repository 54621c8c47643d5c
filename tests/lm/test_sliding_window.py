"""A window over a cache is transformers' own sliding window; first tokens beside it are a mask it is given."""

import pytest
import torch
from models import brute_cache, dynamic_logits, gap, random_ids, stepwise, tiny_lm, tiny_model, untouched

from pqkv.config import CacheConfig, TrainConfig
from pqkv.lm import PQKVCache, attach
from pqkv.lm.defaults import default_codebooks
from pqkv.lm.step import cache_argument
from pqkv.quality.modes import run_coded

LENGTH = 150
SHAPE = {"page_size": 8, "residual": 16}


def cache_config(window, beside=0, **more):
    return CacheConfig(**SHAPE, window=window, window_sinks=beside, **more)


def masked_logits(model, ids, window, beside, cache=None, size=None):
    """What transformers gives under a mask written out: rows see themselves, window - 1 before, and the first ones."""
    model, parts = untouched(model), []
    n = ids.shape[1]
    rows, columns = torch.arange(n)[:, None], torch.arange(n)
    seen = (columns <= rows) & ((columns > rows - window) | (columns < beside))
    with torch.inference_mode():
        for start in range(0, n, size or n):
            end = min(start + (size or n), n)
            mask = torch.where(seen[start:end, :end], 0.0, float("-inf")).to(torch.float64)[None, None]
            own = cache_argument(model, cache) if cache is not None else {}
            parts.append(model(ids[:, start:end], attention_mask=mask, **own).logits)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("window", [1, 7, 40])
def test_exact_pages_equal_the_sliding_window_of_transformers(window):
    sliding, full = tiny_model("mistral", sliding_window=window), tiny_lm("mistral", sliding_window=None)
    ids = random_ids(LENGTH)
    expected = dynamic_logits(sliding, ids)
    attach(full.model)
    for size in (1, 13, LENGTH):
        cache = PQKVCache(full.model.config, config=cache_config(window))
        assert gap(stepwise(full.model, ids, cache, size), expected) <= 1e-9
        assert cache.get_seq_length() == LENGTH


@pytest.mark.parametrize("beside", [1, 4])
@pytest.mark.parametrize("size", [1, 13, LENGTH])
def test_first_tokens_beside_the_window_equal_a_mask(tiny, beside, size):
    ids = random_ids(LENGTH)
    expected = masked_logits(tiny.model, ids, 20, beside)
    attach(tiny.model)
    cache = PQKVCache(tiny.model.config, config=cache_config(20, beside))
    assert gap(stepwise(tiny.model, ids, cache, size), expected) <= 1e-9
    assert gap(masked_logits(tiny.model, ids, 20, 0), expected) > 0.1  # it matters


@pytest.mark.parametrize("beside", [0, 3])
def test_codes_through_a_window_equal_decoded_keys_under_a_mask(tiny, books, beside):
    """Token by token: transformers' own layer with decoded columns, and the schedule in one forward."""
    ids, config = random_ids(LENGTH), cache_config(50, beside)
    plain = CacheConfig(**SHAPE)
    expected = masked_logits(tiny.model, ids, 50, beside, brute_cache(books, plain), 1)
    attach(tiny.model)
    cache = PQKVCache(tiny.model.config, books, config)
    assert gap(stepwise(tiny.model, ids, cache), expected) <= 1e-8
    assert gap(run_coded(tiny, ids, books, config, "exact-schedule"), expected) <= 1e-8
    exact = masked_logits(tiny.model, ids, 50, beside)
    assert gap(exact, expected) > 0.1
    assert gap(run_coded(tiny, ids, None, config, "exact-schedule"), exact) <= 1e-9


def test_left_padded_batches_see_what_each_sees_alone(tiny, books):
    lengths, config = [90, 61, 75], cache_config(24, 2)
    rows = [random_ids(n, seed=n) for n in lengths]
    most = max(lengths)
    ids = torch.zeros(3, most, dtype=torch.long)
    mask = torch.zeros(3, most, dtype=torch.long)
    for b, row in enumerate(rows):
        ids[b, most - row.shape[1] :], mask[b, most - row.shape[1] :] = row[0], 1
    attach(tiny.model)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        cache = PQKVCache(tiny.model.config, books, config)
        own = cache_argument(tiny.model, cache)
        first = tiny.model(ids, attention_mask=mask, position_ids=positions, **own).logits
        news = random_ids(10, batch=3, seed=9)
        later = []
        for i in range(10):
            mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], 1)
            at = mask.sum(1, keepdim=True) - 1
            later.append(tiny.model(news[:, i : i + 1], attention_mask=mask, position_ids=at, **own).logits)
    later = torch.cat(later, 1)
    for b, row in enumerate(rows):
        alone = PQKVCache(tiny.model.config, books, config)
        assert gap(stepwise(tiny.model, row, alone, row.shape[1])[0], first[b, most - row.shape[1] :]) <= 1e-8
        assert gap(stepwise(tiny.model, news[b : b + 1], alone)[0], later[b]) <= 1e-8


@pytest.mark.once  # the recipe and its kernels are pqkv's; windows beside it run with every version
def test_the_default_recipe_through_its_compiled_kernels(reference, prose):
    """Keys around a mean that turns: of pages that went, the phasors know how far the mean has turned."""
    books = default_codebooks(reference, TrainConfig(calibration_tokens=4096, samples=4096))[0]
    ids = prose[:, :600]
    config = CacheConfig(page_size=32, residual=64, window=150, window_sinks=4, backend="cpu")
    schedule = run_coded(reference, ids, books, config, "exact-schedule")
    token = run_coded(reference, ids, books, config, "token")
    assert gap(token, schedule) <= 2e-3 * schedule.abs().max()
    wide = run_coded(reference, ids, books, CacheConfig(page_size=32, residual=64), "exact-schedule")
    assert gap(wide, schedule) > 0.02 * schedule.abs().max()


def test_generation_gives_pages_back(tiny, books):
    attach(tiny.model)
    cache = PQKVCache(tiny.model.config, books, cache_config(32, 4))
    ids = random_ids(40)
    tiny.model.generate(ids, max_new_tokens=256, do_sample=False, **cache_argument(tiny.model, cache))
    stats = cache.kv.pool.stats()
    assert stats.used <= 32 // 8 + 2
    assert stats.peak_used <= 32 // 8 + 3  # one page is made before the one behind goes
    assert stats.releases > 20
