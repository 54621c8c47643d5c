"""Attention of one query by one warp a query head, without a split: 32 threads go through all tokens with a running
softmax (incremental-decode, PAR-020). Each query head reads its KV head for itself.

On a processor a query head is one unit of work, through the same code as backend `cpu`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pqkv.kernels.cpu.decode import decode
from pqkv.kernels.types import PagedSide, PagedTokens


def one_warp(query: Tensor, keys: Tensor, values: Tensor, out: Tensor, length: int) -> None:
    """query, out (Hq, D); keys, values (Hkv, max_len, D), of which the first `length` tokens count."""
    max_len = keys.shape[1]
    tokens = PagedTokens(
        PagedSide(keys[None]), PagedSide(values[None]), torch.zeros(1, 1, dtype=torch.int32, device=keys.device),
        torch.tensor([length], dtype=torch.int32, device=keys.device), max_len, trusted=True,
    )  # fmt: skip
    found, _ = one_warp_attention(query[None, None], tokens, scale=1 / math.sqrt(query.shape[1]))
    out.copy_(found[0, 0])


def one_warp_attention(
    query: Tensor, pages: PagedTokens, *, scale: float, window: int | None = None
) -> tuple[Tensor, Tensor]:
    """`AttentionBackend` for Tq = 1 and exact pages alone; out (B, 1, Hq, D), lse (B, 1, Hq)."""
    if query.device.type == "cuda":
        from pqkv.kernels.cuda.warp import decode_by_warps

        return decode_by_warps(query, pages, scale=scale, window=window)
    group = query.shape[2] // pages.keys.pages.shape[1]
    outs, lses = zip(
        *(
            decode(query[:, :, g::group], pages, None, None, scale=scale, window=window, stretches=1)
            for g in range(group)
        ),
        strict=True,
    )
    return torch.stack(outs, 3).flatten(2, 3), torch.stack(lses, 3).flatten(2)
