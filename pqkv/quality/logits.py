"""How far logits are from the exact ones: what a defect of attention is told by, whatever measure it is then put to.

KLD, perplexity and agreement weigh an error by what it does to a distribution; to say which of them sees a defect, that
there is one has to be known from something else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pqkv.lm.head import Head
from pqkv.quality.measures import positions_at_once


def logit_errors(exact: Tensor, coded: Tensor, head: Head, *, exact_head: Head | None = None) -> Tensor:
    """The largest error of a position's logits over the largest of the exact ones: of states (n, hidden) on each side
    (n,) float64. NaN or infinite where the coded ones are no numbers.

    Exact states of another model (the same one in float64) have an `exact_head` of their own. A word that both rule
    out (a masked vocabulary) counts nothing.
    """
    size = positions_at_once(head.vocab_size, dtype=torch.float64)
    found = []
    for start in range(0, len(exact), size):
        rows = slice(start, start + size)
        right, wrong = (exact_head or head)(exact[rows]).double(), head(coded[rows]).double()
        ruled_out = right == -torch.inf
        gap = (wrong - right).abs().masked_fill_(ruled_out & (wrong == -torch.inf), 0)
        found.append(gap.amax(-1) / right.masked_fill(ruled_out, 0).abs().amax(-1))
    return torch.cat(found).cpu()
