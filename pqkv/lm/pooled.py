"""Fewer KV heads for a trained model: those of a group made one by their mean (Ainslie et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pqkv.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def pool_kv_heads(name: str, model: PreTrainedModel, kv_heads: int) -> None:
    """Make the KV heads of every layer `kv_heads`, each the mean of neighbouring ones, weights and biases. Raises
    `ModelError` where they cannot be shared evenly, and for attention without k_proj and v_proj.

    The paper trains such a model for another twentieth of its steps; this one is as it comes out.
    """
    config: Any = model.config.get_text_config(decoder=True)
    before = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if kv_heads < 1 or before % kv_heads:
        raise ModelError(f"the {before} KV heads of '{name}' cannot become {kv_heads}; take a divisor of {before}")
    attentions = [module for module in model.modules() if hasattr(module, "k_proj") and hasattr(module, "v_proj")]
    if not attentions:
        raise ModelError(f"the attention of '{name}' has no k_proj and v_proj whose heads could be pooled")
    for attention in attentions:
        for side in ("k_proj", "v_proj"):
            setattr(attention, side, _pooled(getattr(attention, side), before, kv_heads))
        groups: Any = attention
        groups.num_key_value_groups = config.num_attention_heads // kv_heads
    config.num_key_value_heads = kv_heads


def _pooled(projection: nn.Linear, before: int, after: int) -> nn.Linear:
    def mean(part: torch.Tensor) -> torch.Tensor:
        """(before * D, ...) -> (after * D, ...)."""
        by_head = part.detach().unflatten(0, (after, before // after, -1))
        return by_head.double().mean(1).flatten(0, 1).to(part.dtype)

    weight = mean(projection.weight)
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=projection.bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if projection.bias is not None:
        made.bias = nn.Parameter(mean(projection.bias), requires_grad=False)
    return made
