"""Models of a named shape with random weights: what a step costs does not depend on what the weights say."""

from __future__ import annotations

from typing import Any

import torch

from pqkv.errors import ConfigError, ModelError
from pqkv.lm.load import describe
from pqkv.lm.model import LanguageModel

# From the models' published configurations.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "intermediate_size": 11008, "vocab_size": 32000, "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "llama-3.1-8b": {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    },
    "tinyllama": {
        "hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
        "intermediate_size": 5632, "vocab_size": 32000, "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    },
}  # fmt: skip


def heads_of(model: str) -> dict[str, int]:
    """Query heads, KV heads and head_dim of a named shape; raises `ConfigError` for another name."""
    if model not in SHAPES:
        raise ConfigError(f"--model {model}: without --end-to-end it names a shape: {', '.join(SHAPES)}")
    shape = SHAPES[model]
    heads = shape["num_attention_heads"]
    return {"heads": heads, "kv_heads": shape["num_key_value_heads"], "head_dim": shape["hidden_size"] // heads}


def random_model(name: str, dtype: str, device: torch.device) -> LanguageModel:
    """A Llama of the shape called `name`, weights drawn from a normal distribution; it has no tokenizer.

    Raises `ModelError` for a name that is not in `SHAPES`.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    if name not in SHAPES:
        raise ModelError(f"no shape is called '{name}'; known: {', '.join(SHAPES)}")
    config = LlamaConfig(**SHAPES[name], tie_word_embeddings=False)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return describe(name, model.eval(), None)
