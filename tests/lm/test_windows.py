"""Sliding windows as long as all positions: full attention by another name."""

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
)
from transformers import AutoConfig

from pqkv.config import CacheConfig
from pqkv.lm import PQKVCache, attach
from pqkv.lm.layers import layer_plan
from pqkv.lm.windows import causal_mask, effective_window
from pqkv.quality.modes import run_coded, run_exact

ALL = 64  # positions of the models here
SMALL = CacheConfig(page_size=8, residual=16, sink_tokens=2)
TYPES = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
FAMILIES = {
    "mistral": {},
    "phi3": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, **TYPES},
    "smollm3": {"use_sliding_window": True, **TYPES},
    "gemma3_text": TYPES,
}


def config_of(family, window):
    return tiny_model(family, sliding_window=window, max_position_embeddings=ALL, **FAMILIES[family]).config


@pytest.mark.parametrize("window", [ALL, 4 * ALL])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_window_as_long_as_all_positions_is_full_attention(family, window):
    plan = layer_plan(config_of(family, window))
    assert plan.coded == (0, 1, 2)
    assert plan.types == ("full_attention",) * 3
    assert plan.settings == ({},) * 3
    assert tiny_lm(family, sliding_window=window, max_position_embeddings=ALL, **FAMILIES[family]).coded_layers == (
        (0, 1, 2)
    )


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma3_text"])
def test_a_shorter_window_leaves_its_layers_to_transformers(family):
    plan = layer_plan(config_of(family, ALL - 1))
    assert 0 < len(plan.coded) < 3
    assert {more["sliding_window"] for more in plan.settings if more} == {ALL - 1}


def test_positions_that_rope_stretches_outgrow_a_window():
    """A window of 64 tokens hides nothing from 64 positions, and 192 of the 256 that YaRN makes of them."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ALL}
    more = {"rope_parameters": yarn, "max_position_embeddings": ALL, "use_sliding_window": True}
    config = tiny_model("qwen2", sliding_window=ALL, max_window_layers=1, **more).config
    assert layer_plan(config).coded == (0,)
    assert effective_window(config, ALL) == ALL
    assert effective_window(config, 4 * ALL) is None


def test_phi3_mini_128k_has_full_attention():
    """As its config.json states it: a window of 262144 on 131072 positions."""
    rope = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    config = AutoConfig.for_model(
        "phi3",
        sliding_window=262144,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_scaling=rope,
    )
    assert len(layer_plan(config).coded) == 32
    assert effective_window(config, config.sliding_window) is None


@pytest.mark.parametrize(("columns", "rows"), [(8, 8), (8, 1), (8, 3), (9, 9), (9, 2)])
@pytest.mark.parametrize("padded", [0, 3])
def test_a_mask_is_that_of_transformers_written_out_only_where_the_window_or_padding_hides(columns, rows, padded):
    from transformers.masking_utils import sdpa_mask, sliding_window_causal_mask_function

    given = {
        "batch_size": 1,
        "q_length": rows,
        "kv_length": columns,
        "q_offset": columns - rows,
        "mask_function": sliding_window_causal_mask_function(8),
        "attention_mask": torch.tensor([[False] * padded + [True] * (columns - padded)]),
    }
    written = sdpa_mask(**given, local_size=8, allow_is_causal_skip=False)
    ours = causal_mask(**given, local_size=8)
    if ours is not None:
        assert torch.equal(ours, written)
    else:
        causal = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
        assert torch.equal(written[0, 0], causal)
    if columns == 8 and not padded:
        assert (ours is None) is (rows in (1, 8))


@pytest.mark.parametrize("window", [ALL, 2 * ALL])
@pytest.mark.parametrize("family", FAMILIES)
def test_over_all_its_positions_such_a_model_runs_on_codes_in_every_mode(family, window):
    """All 64 positions: with a window of 64, transformers would write its mask out."""
    lm = tiny_lm(family, sliding_window=window, max_position_embeddings=ALL, **FAMILIES[family])
    ids, books = random_ids(ALL), sampled_books(lm)
    assert gap(run_exact(lm, ids), dynamic_logits(lm.model, ids)) <= 1e-9
    expected = stepwise(untouched(lm.model), ids, brute_cache(books, SMALL))
    for mode in ("token", "exact-schedule"):
        assert gap(run_coded(lm, ids, books, SMALL, mode), expected) <= 1e-9
    assert gap(run_coded(lm, ids, None, SMALL, "chunk", chunk_size=24), run_exact(lm, ids)) <= 1e-9
    assert gap(expected, run_exact(lm, ids)) > 1e-3  # the codes are felt


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_such_a_model_generates_left_padded_as_without_a_window(family):
    from pqkv.lm.step import cache_argument

    ids, mask = left_padded_positions((12, 20))
    ask = {"max_new_tokens": 20, "do_sample": False, "attention_mask": mask}
    lm = tiny_lm(family, sliding_window=ALL, max_position_embeddings=ALL, **FAMILIES[family])
    expected = untouched(lm.model).generate(ids, **ask)
    attach(lm.model)
    cache = PQKVCache(lm.model.config, None, SMALL)
    assert torch.equal(lm.model.generate(ids, **cache_argument(lm.model, cache), **ask), expected)


def test_the_exact_logits_of_such_a_model_are_those_of_one_without_windows():
    ids = random_ids(ALL)
    wide, none = (tiny_lm("mistral", sliding_window=window, max_position_embeddings=ALL) for window in (ALL, None))
    assert gap(run_exact(wide, ids), run_exact(none, ids)) <= 1e-9
