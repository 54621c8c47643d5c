"""Pooled KV heads: the mean of a group's, in the weights; what is refused."""

import pytest
import torch
from models import gap, random_ids, tiny_lm

from pqkv.errors import ModelError
from pqkv.lm.pooled import pool_kv_heads


def logits(lm, ids):
    with torch.inference_mode():
        return lm.model(ids).logits


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_weights_and_biases_are_means_of_neighbouring_heads(family, kv_heads):
    lm, pooled = (tiny_lm(family, num_key_value_heads=4) for _ in range(2))
    pool_kv_heads("tiny", pooled.model, kv_heads)
    for before, after in zip(lm.model.model.layers, pooled.model.model.layers, strict=True):
        for side in ("k_proj", "v_proj"):
            old, new = getattr(before.self_attn, side), getattr(after.self_attn, side)
            heads = old.weight.reshape(4, 16, -1)
            group = 4 // kv_heads
            expected = torch.stack([sum(heads[h * group + i] for i in range(group)) / group for h in range(kv_heads)])
            assert gap(new.weight, expected.reshape(16 * kv_heads, -1)) <= 1e-12
            assert (new.bias is None) == (old.bias is None) == (family == "llama")
    found = logits(pooled, random_ids(30))
    assert found.isfinite().all()
    assert gap(found, logits(lm, random_ids(30))) > 0.1


def test_heads_that_are_equal_lose_nothing():
    lm = tiny_lm(num_key_value_heads=2)
    for layer in lm.model.model.layers:
        for side in ("k_proj", "v_proj"):
            weight = getattr(layer.self_attn, side).weight.data
            weight[16:] = weight[:16]
    ids = random_ids(40)
    before = logits(lm, ids)
    pool_kv_heads("tiny", lm.model, 1)
    assert gap(logits(lm, ids), before) <= 1e-9
    assert lm.model.config.num_key_value_heads == 1


@pytest.mark.parametrize("kv_heads", [0, 3])
def test_what_cannot_be_shared_evenly_is_refused(kv_heads):
    with pytest.raises(ModelError, match="divisor of 2"):
        pool_kv_heads("tiny", tiny_lm().model, kv_heads)


def test_attention_without_such_projections_is_refused():
    lm = tiny_lm()
    for layer in lm.model.model.layers:
        del layer.self_attn.k_proj
    with pytest.raises(ModelError, match="k_proj"):
        pool_kv_heads("tiny", lm.model, 1)
