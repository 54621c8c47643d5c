"""Of a hybrid model the truth about the whole cache: sliding windows are part of it and stay exact."""

import pytest
import torch
from models import random_ids, sampled_books, tiny_lm, untouched
from transformers import DynamicCache

from pqkv.cache import footprint
from pqkv.config import CacheConfig
from pqkv.lm import PQKVCache
from pqkv.lm.step import forward
from pqkv.quality.whole_cache import whole_cache

WINDOW = 24
HYBRID = {
    "num_hidden_layers": 3, "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip


def held(cache):
    tensors = [part for layer in cache.layers if hasattr(layer, "keys") for part in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("tokens", [10, 23, 24, 60])
def test_bytes_are_those_that_transformers_holds(tokens):
    lm = tiny_lm("gemma3_text", **HYBRID)
    plain = untouched(lm.model)
    cache, ids = DynamicCache(config=plain.config), random_ids(tokens)
    with torch.inference_mode():
        for t in range(tokens):
            forward(plain, ids[:, t : t + 1], cache)
    assert whole_cache(lm, tokens, 0)["whole_bytes_exact"] == held(cache)


def test_codes_and_windows_add_up_to_what_a_coded_cache_holds():
    lm, config = tiny_lm("gemma3_text", **HYBRID), CacheConfig(page_size=16, residual=32)
    books, tokens = sampled_books(lm), 90
    cache, ids = PQKVCache(lm.model.config, books, config), random_ids(tokens)
    for t in range(tokens):
        lm.states(ids[:, t : t + 1], cache)
    coded = footprint(tokens, config, 1, lm.num_kv_heads, lm.head_dim, 8, books).total
    assert coded == cache.kv.memory().total
    sliding = sum(held(type("Cache", (), {"layers": [cache.layers[i]]})) for i in (0, 2))
    found = whole_cache(lm, tokens, coded)
    assert found["whole_bytes"] == coded + sliding
    elements = found["whole_bytes_exact"] / 8
    assert found["whole_effective_bits"] == pytest.approx(8 * (coded + sliding) / elements)


def test_a_model_whose_layers_are_all_coded_has_nothing_to_add(tiny):
    assert whole_cache(tiny, 100, 1) == {}
