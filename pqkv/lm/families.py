"""Which model families may run on codes, and why others may not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pqkv.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Families whose attention hands exactly what the cache's `update` returned to the attention function (read in their
# source and tested): any other may touch keys or values in between, which a cache of codes cannot serve.
SUPPORTED_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "granite", "smollm3", "gemma3_text")

_REASONS = {
    "gemma2": "caps its attention scores (softcap)",
    "gpt_oss": "has attention sinks in the model itself",
    "gemma3n_text": "shares keys and values between layers",
    "gemma4_text": "shares keys and values between layers",
    "jetmoe": "changes keys and values after the cache",
    "diffllama": "changes keys and values after the cache",
    "doge": "changes keys and values after the cache",
    "moonshine": "changes keys and values after the cache",
}


def check_family(name: str, config: PreTrainedConfig) -> None:
    """Raise `ModelError`, with the list of supported families, for a configuration that cannot run on codes."""
    text = config.get_text_config(decoder=True)
    family = text.model_type
    reason = None
    if family not in SUPPORTED_FAMILIES:
        reason = _REASONS.get(family, "was not checked to run on a coded cache")
    elif config.model_type != family:
        reason = f"is part of '{config.model_type}', which takes more than text"
    elif getattr(text, "attn_logit_softcapping", None) is not None:
        reason = "caps its attention scores (attn_logit_softcapping)"
    elif getattr(text, "num_kv_shared_layers", None):
        reason = "shares keys and values between layers (num_kv_shared_layers)"
    elif getattr(text, "use_bidirectional_attention", None) or getattr(text, "is_causal", True) is False:
        reason = "attends to later tokens"
    if reason:
        raise ModelError(
            f"model '{name}' of family '{family}' cannot run on codes: it {reason}; "
            f"supported: {', '.join(SUPPORTED_FAMILIES)}"
        )
