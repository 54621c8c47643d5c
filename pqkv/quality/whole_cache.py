"""The whole cache of a hybrid model: what codes save of it, sliding windows included, which stay exact."""

from __future__ import annotations

import torch

from pqkv.lm import LanguageModel
from pqkv.lm.layers import layer_plan


def whole_cache(lm: LanguageModel, tokens: int, coded_bytes: int) -> dict[str, float]:
    """Beside the `coded_bytes` of the coded layers at `tokens` tokens: bytes of all layers, those of an exact cache of
    the model, and bits per element that the exact one holds. Empty for a model whose layers are all coded.

    A window of W tokens holds W - 1 of them between two steps, as transformers' `DynamicSlidingWindowLayer` does.
    """
    windows = layer_plan(lm.model.config).windows
    if not windows:
        return {}
    itemsize = torch.empty((), dtype=lm.dtype).element_size()
    vector = 2 * lm.num_kv_heads * lm.head_dim  # elements of a token and layer
    sliding = sum(min(tokens, window - 1) for window in windows) * vector
    elements = len(lm.coded_layers) * tokens * vector + sliding
    total = coded_bytes + sliding * itemsize
    return {
        "whole_bytes": total,
        "whole_bytes_exact": elements * itemsize,
        "whole_effective_bits": 8 * total / elements,
    }
