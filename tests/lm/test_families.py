"""Every family that may run on codes, as a tiny random model, against transformers' own cache with decoded columns."""

import pytest
import torch
from models import (
    brute_cache,
    dynamic_logits,
    gap,
    left_padded_positions,
    random_ids,
    sampled_books,
    stepwise,
    tiny_lm,
    tiny_model,
    untouched,
)  # fmt: skip
from transformers import AutoConfig, DynamicCache

from pqkv.config import CacheConfig
from pqkv.errors import ModelError
from pqkv.lm import PQKVCache, attach
from pqkv.lm.families import SUPPORTED_FAMILIES, check_family
from pqkv.lm.load import describe
from pqkv.lm.step import cache_argument
from pqkv.quality.modes import run_coded, run_exact

SMALL = CacheConfig(page_size=8, residual=16, sink_tokens=2)
HYBRID = {
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window": 24},
    "qwen2": {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
}


OWN = {"mistral": {"sliding_window": None}, "gemma3_text": {**HYBRID["gemma3_text"], "query_pre_attn_scalar": 16}}


def model_of(family):
    return tiny_lm(family, **OWN.get(family, {}))


@pytest.mark.parametrize("family", SUPPORTED_FAMILIES)
def test_with_nothing_coded_a_family_gives_the_logits_of_dynamic_cache(family):
    lm, ids = model_of(family), random_ids(70, batch=2)
    expected = dynamic_logits(lm.model, ids)
    attach(lm.model)
    for books, config in ((None, SMALL), (sampled_books(lm), CacheConfig())):
        assert gap(stepwise(lm.model, ids, PQKVCache(lm.model.config, books, config), 9), expected) <= 1e-9


@pytest.mark.parametrize("family", SUPPORTED_FAMILIES)
def test_on_codes_a_family_gives_what_decoded_keys_and_values_give(family):
    """70 tokens: six pages are sealed and read in every coded layer."""
    lm, ids = model_of(family), random_ids(70)
    books = sampled_books(lm)
    expected = stepwise(untouched(lm.model), ids, brute_cache(books, SMALL, lm.model.config))
    attach(lm.model)
    cache = PQKVCache(lm.model.config, books, SMALL)
    assert gap(stepwise(lm.model, ids, cache), expected) <= 1e-9
    assert cache.kv.layers[0].coded == [(70 - 2 - 16 + 8) // 8 * 8]
    assert gap(run_coded(lm, ids, books, SMALL, "exact-schedule"), expected) <= 1e-9
    assert gap(expected, run_exact(lm, ids)) > 1e-3  # the codes are felt


@pytest.mark.parametrize("family", HYBRID)
def test_of_a_hybrid_model_only_full_attention_is_coded(family):
    lm = tiny_lm(family, **HYBRID[family])
    full = [i for i, kind in enumerate(lm.model.config.layer_types) if kind == "full_attention"]
    assert 0 < len(full) < 3
    assert lm.coded_layers == tuple(full)
    books = sampled_books(lm)
    assert books.num_layers == len(full)
    cache = PQKVCache(lm.model.config, books, SMALL)
    attach(lm.model)
    ids = random_ids(60, batch=2)
    expected = stepwise(untouched(lm.model), ids, brute_cache(books, SMALL, lm.model.config))
    assert gap(stepwise(lm.model, ids, cache), expected) <= 1e-9
    assert len(cache.kv.layers) == len(full)


@pytest.mark.parametrize("family", SUPPORTED_FAMILIES)
def test_a_family_generates_left_padded_as_with_dynamic_cache(family):
    lm = model_of(family)
    ids, mask = left_padded_positions((12, 20))
    ask = {"max_new_tokens": 20, "do_sample": False, "attention_mask": mask, "num_beams": 2}
    plain = untouched(lm.model)
    expected = plain.generate(ids, **cache_argument(plain, DynamicCache(config=plain.config)), **ask)
    attach(lm.model)
    assert torch.equal(
        lm.model.generate(ids, **cache_argument(lm.model, PQKVCache(lm.model.config, None, SMALL)), **ask), expected
    )


REFUSED = {
    "gemma2": (tiny_model, {}, "caps its attention scores"),
    "gpt_oss": (None, {}, "has attention sinks in the model itself"),
    "gemma3": (None, {}, "is part of 'gemma3', which takes more than text"),
    "gemma3_text": (None, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    "llama4_text": (None, {}, "was not checked"),
}


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_run_on_codes_is_refused_by_name_with_its_reason_and_the_list(family):
    _, more, reason = REFUSED[family]
    with pytest.raises(ModelError) as caught:
        check_family("some/model", AutoConfig.for_model(family, **more))
    text = str(caught.value)
    assert "some/model" in text
    assert reason in text
    assert text.endswith(", ".join(SUPPORTED_FAMILIES))


@pytest.mark.parametrize(("family", "more"), [("gemma3_text", {"use_bidirectional_attention": True}), ("llama", {})])
def test_a_model_that_attends_to_later_tokens_is_refused(family, more):
    config = AutoConfig.for_model(family, **more)
    if not more:
        config.is_causal = False
    with pytest.raises(ModelError, match="attends to later tokens"):
        check_family("some/model", config)


def test_a_model_of_sliding_windows_only_is_refused():
    told = r"none of the model's 3 layers has full attention \(sliding windows of 24 tokens\)"
    with pytest.raises(ModelError, match=told):
        describe("windows", tiny_model("mistral", sliding_window=24), None)
