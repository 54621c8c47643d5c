"""How many windows run together: enough to fill a forward, no more than memory is set aside for."""

from __future__ import annotations

import torch

from pqkv.lm import LanguageModel

WINDOWS_TOGETHER = 8  # at most, of a batch that is taken step by step
FORWARD_TOKENS = 4096  # of one forward over several short windows
STEP_BYTES = 1 << 30  # of the caches and hidden states of windows that are taken step by step together


def windows_together(lm: LanguageModel, context: int, *, stepwise: bool, most: int) -> int:
    """Windows of `context` tokens of one batch, at most `most` of them where they are taken `stepwise`; 1 for all
    modes where `most` is 1.
    """
    if most == 1:
        return 1
    if not stepwise:
        return max(1, FORWARD_TOKENS // context)
    itemsize = torch.empty((), dtype=lm.dtype).element_size()
    cached = 2 * lm.num_layers * lm.num_kv_heads * lm.head_dim  # of a token in an exact cache: what codes do not exceed
    return max(1, min(most, STEP_BYTES // (context * (cached + 2 * lm.hidden_size) * itemsize)))
