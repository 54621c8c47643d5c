"""How many positions a model serves, whatever its configuration states of scaled ones."""

import pytest
from models import tiny_lm, tiny_model
from transformers import AutoConfig

from pqkv.errors import ModelError
from pqkv.lm.load import describe
from pqkv.lm.positions import position_limit, positions_note, positions_refusal

LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}

# as published models state them: (family, max_position_embeddings, rope parameters, positions that suffice)
PUBLISHED = {
    "plain": ("llama", 4096, {"rope_type": "default"}, 4096),
    "Vicuna 16k, unscaled": ("llama", 4096, {"rope_type": "linear", "factor": 4.0}, 16384),
    "Qwen2.5 with YaRN, unscaled": (
        "qwen2",
        32768,
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        131072,
    ),
    "Qwen3 with YaRN, neither": (
        "qwen3",
        40960,
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        131072,
    ),
    "YaRN, scaled": (
        "llama",
        131072,
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        131072,
    ),
    "YaRN, the original unsaid": ("llama", 4096, {"rope_type": "yarn", "factor": 4.0}, 16384),
    "dynamic": ("llama", 2048, {"rope_type": "dynamic", "factor": 2.0}, 4096),
    "Llama 3.2, scaled": (
        "llama",
        131072,
        {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192},
        131072,
    ),
    "llama3, unscaled": ("llama", 8192, {**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 8192}, 65536),
    "Phi-3 128k": ("phi3", 131072, {**LONG, "original_max_position_embeddings": 4096}, 131072),
    "an old rope_scaling": ("llama", 4096, {"type": "linear", "factor": 2.0}, 8192),
}


def configured(family, positions, rope):
    more = {"head_dim": 16, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 6, "pad_token_id": 0}
    return AutoConfig.for_model(family, max_position_embeddings=positions, rope_scaling=dict(rope), **more)


@pytest.mark.parametrize("name", PUBLISHED)
def test_positions_are_those_that_rope_reaches(name):
    family, positions, rope, expected = PUBLISHED[name]
    assert position_limit(configured(family, positions, rope)) == expected


def test_gemma3_states_scaled_positions():
    config = AutoConfig.for_model(
        "gemma3_text", max_position_embeddings=131072, rope_scaling={"rope_type": "linear", "factor": 8.0}
    )
    assert config.rope_parameters["full_attention"]["factor"] == 8.0
    assert position_limit(config) == 131072


def test_a_model_counts_scaled_positions_as_its_own():
    lm = tiny_lm(rope_parameters={"rope_type": "linear", "factor": 4.0}, max_position_embeddings=64)
    assert lm.max_positions == 256
    assert positions_refusal(lm, 256) is None
    assert positions_note(lm, 64) is None
    note = positions_note(lm, 65)
    for word in ("65 tokens", "max_position_embeddings (64)", "rope type 'linear', factor 4 on 64 positions", "256"):
        assert word in note
    assert positions_note(lm, 257) is None


def test_a_refusal_names_rope_and_both_numbers():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    lm = tiny_lm(rope_parameters=yarn, max_position_embeddings=64)
    told = positions_refusal(lm, 300)
    assert "\n" not in told
    for word in (
        "context 300 is beyond the 256 positions of tiny-llama",
        "max_position_embeddings 64",
        "rope type 'yarn', factor 4 on 64 positions",
        "lower --context",
    ):
        assert word in told


def test_a_model_without_positions_is_one_line():
    model = tiny_model()
    object.__setattr__(model.config, "max_position_embeddings", None)
    with pytest.raises(ModelError, match="'llama' states no max_position_embeddings"):
        describe("unbounded", model, None)
