"""Paged attention as first written: one block for a query head, the whole row of scores in shared memory.

Correct, and slow on purpose: keys and values are read again by every query head of a group, one thread takes one token
at a time, and the context is bounded by shared memory. It is what the reports behind pqkv started from, and what their
defects are reproduced on.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from pqkv.errors import KernelError
from pqkv.kernels.checks import check_inputs, check_lengths
from pqkv.kernels.cuda.launch import array, compiled, launch, words
from pqkv.kernels.cuda.score_row import NaiveVariant, naive_kernel
from pqkv.kernels.faults.catalog import Fault
from pqkv.kernels.types import ExactTokens, PagedTokens


def attention(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    *,
    scale: float,
    window: int | None = None,
    block: int = 128,
) -> tuple[Tensor, Tensor]:
    """Backend `cuda-naive`: see `AttentionBackend`; exact pages only, one query a sequence.

    Raises `KernelError` for anything else, and for a context that the score row has no room for.
    """
    check_inputs(query, pages, sinks, residual, window)
    _, Tq, _, D = query.shape
    if pages is None or pages.keys.centroids is not None or sinks is not None or residual is not None:
        raise KernelError("backend 'cuda-naive' serves exact pages alone, without sinks and residual")
    if Tq != 1 or torch.float64 in (query.dtype, pages.keys.pages.dtype):
        raise KernelError("backend 'cuda-naive' serves one query a sequence, in float32 or half precision")
    if D * pages.keys.pages.dtype.itemsize % 4:
        raise KernelError(
            f"backend 'cuda-naive' reads words of 32 bits: {D} elements of a row are no whole number of them"
        )
    check_lengths(pages, None, None)
    return _run(query, pages, NaiveVariant(_dtype(pages), D, block), scale, window)


def faulty_attention(
    query: Tensor, pages: PagedTokens, fault: Fault, *, scale: float, window: int | None = None
) -> tuple[Tensor, Tensor]:
    """`attention` with a fault of the kernel; inputs as `pqkv.kernels.faults.backend` has checked and prepared them."""
    variant = NaiveVariant(_dtype(pages), query.shape[3], fault.block)
    if fault.room is not None:
        variant = replace(variant, room=fault.room, past_room=fault.past_room)
    variant = replace(variant, own_warp_max=fault.own_warp_max, own_warp_sum=fault.own_warp_sum)
    return _run(query, pages, variant, scale, window)


def _dtype(pages: PagedTokens) -> str:
    return str(pages.keys.pages.dtype).removeprefix("torch.")


def _run(
    query: Tensor, pages: PagedTokens, variant: NaiveVariant, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    B, _, Hq, D = query.shape
    longest = int(pages.context_len.max()) if B else 0
    if variant.past_room == "refused" and min(longest, window or longest) > variant.room:
        raise KernelError(
            f"backend 'cuda-naive' keeps the scores of {variant.room} tokens in shared memory, not of {longest}; "
            "use backend 'cuda'"
        )
    out = torch.empty(B, Hq, D, dtype=torch.float32, device=query.device)
    lse = torch.empty(B, Hq, dtype=torch.float32, device=query.device)
    scaled = query.reshape(B, Hq, D).float() * (scale * math.log2(math.e))
    launch(
        compiled(naive_kernel, variant), (Hq, B), variant.block, array(scaled), words(pages.keys.pages),
        words(pages.values.pages), array(pages.page_table), array(pages.context_len), array(out), array(lse),
        pages.page_size, pages.page_table.shape[1], pages.keys.pages.shape[1], window or 0,
    )  # fmt: skip
    return out[:, None].to(query.dtype), lse[:, None]
