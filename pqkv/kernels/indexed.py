"""Attention by `block_indices` and `block_offsets`, one of each for every token, in place of a page table.

What a report on a kernel for AMD takes (paged-kernel): 8 bytes a token of each layout where a table of pages takes 4 a
page. Here with what its signature lacks: KV heads of their own, a scale, a causal mask, fewer rows than tokens.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pqkv.errors import KernelError
from pqkv.kernels.checks import check_inputs, check_lengths
from pqkv.kernels.cpu.indexed import attend_by_index as on_the_processor
from pqkv.kernels.types import ExactTokens, PagedTokens
from pqkv.parallel import run_units

_US_NUMBER = 2.5e-4  # microseconds a channel of a token takes, about


def indexed_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    block_indices: Tensor,
    block_offsets: Tensor,
    *,
    scale: float,
    window: int | None = None,
    live: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention of the newest rows: query (T, Hq, D) float32, of the last T of n tokens; keys, values (blocks,
    block_size, Hkv, D) float32 with D contiguous, in the same layout; token i stands in block `block_indices[i]` at
    `block_offsets[i]`, both (n,) int32. Returns out (T, Hq, D) and lse (T, Hq). The newest `window` columns are seen.

    Raises `KernelError` for shapes that do not fit, an index or offset that names no slot, and with `live` (blocks,)
    bool for a block that is not in use.
    """
    _check(query, keys, values, block_indices, block_offsets, live)
    T, Hq, D = query.shape
    n = len(block_indices)
    strides = keys.stride(0), keys.stride(1), keys.stride(2)
    scaled = query.contiguous() * (scale * math.log2(math.e))
    flat_keys, flat_values = _flat(keys), _flat(values)
    if query.device.type == "cuda":
        from pqkv.kernels.cuda.warp import attend_by_index

        sides, places = (flat_keys, flat_values), (block_indices, block_offsets)
        return attend_by_index(scaled, sides, places, strides, keys.shape[2], window or 0)
    out, lse = np.empty((T, Hq, D), np.float32), np.empty((T, Hq), np.float32)
    work = T * Hq * D * _US_NUMBER * min(n, window or n)
    blocks, offsets = (given.numpy().astype(np.int64) for given in (block_indices, block_offsets))
    run_units(
        on_the_processor, T * Hq, work, scaled.numpy(), flat_keys.numpy(), flat_values.numpy(),
        (*strides, keys.shape[2]), blocks, offsets, n - T, window or 0, out, lse,
    )  # fmt: skip
    return torch.from_numpy(out), torch.from_numpy(lse)


def indices_of(tokens: PagedTokens, sequence: int) -> tuple[Tensor, Tensor]:
    """`block_indices` and `block_offsets` (n,) int32 of a sequence with a page table."""
    n, P = int(tokens.context_len[sequence]), tokens.page_size
    places = torch.arange(n, device=tokens.page_table.device)
    return tokens.page_table[sequence, places // P].to(torch.int32), (places % P).to(torch.int32)


def attention(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    *,
    scale: float,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Backend `indexed`: see `AttentionBackend`; exact pages of float32 alone, any number of queries."""
    check_inputs(query, pages, sinks, residual, window)
    check_lengths(pages, sinks, residual)
    if pages is None or pages.keys.centroids is not None or sinks is not None or residual is not None:
        raise KernelError("backend 'indexed' serves exact pages alone, without sinks and residual")
    if {query.dtype, pages.keys.pages.dtype, pages.values.pages.dtype} != {torch.float32}:
        raise KernelError("backend 'indexed' serves float32")
    B, Tq, Hq, _ = query.shape
    out, lse = torch.zeros_like(query), query.new_full((B, Tq, Hq), float("-inf"))
    keys, values = (side.pages.transpose(1, 2) for side in (pages.keys, pages.values))
    for b in range(B):
        blocks, offsets = indices_of(pages, b)
        rows = min(Tq, len(blocks))  # the others are padding
        if rows:
            own = query[b, Tq - rows :]
            out[b, Tq - rows :], lse[b, Tq - rows :] = indexed_attention(
                own, keys, values, blocks, offsets, scale=scale, window=window
            )
    return out, lse


def _flat(side: Tensor) -> Tensor:
    """All of its memory in a row, from its first element on."""
    if side.stride(3) != 1:
        raise KernelError("the channels of keys and values must lie side by side")
    spread = sum((size - 1) * step for size, step in zip(side.shape, side.stride(), strict=True)) + 1
    return side.as_strided((spread if side.numel() else 0,), (1,))


def _check(query: Tensor, keys: Tensor, values: Tensor, indices: Tensor, offsets: Tensor, live: Tensor | None) -> None:
    if query.ndim != 3 or keys.ndim != 4 or keys.shape != values.shape or keys.stride() != values.stride():
        raise KernelError(
            f"query {tuple(query.shape)}, keys {tuple(keys.shape)}, values {tuple(values.shape)}: they must be (T, Hq, "
            "D) and twice (blocks, block_size, Hkv, D) in the same layout"
        )
    if {query.dtype, keys.dtype, values.dtype} != {torch.float32}:
        raise KernelError(f"query is {query.dtype}, keys {keys.dtype}, values {values.dtype}: all must be float32")
    if keys.shape[3] != query.shape[2] or not keys.shape[2] or query.shape[1] % keys.shape[2]:
        raise KernelError(
            f"{query.shape[1]} query heads of {query.shape[2]} do not fit {keys.shape[2]} of {keys.shape[3]}"
        )
    for name, given in (("block_indices", indices), ("block_offsets", offsets)):
        if given.ndim != 1 or given.dtype != torch.int32:
            raise KernelError(f"{name} is {given.dtype} of shape {tuple(given.shape)}, not int32 of (tokens,)")
    if len(indices) != len(offsets) or len(indices) < len(query):
        raise KernelError(
            f"{len(indices)} block_indices, {len(offsets)} block_offsets, {len(query)} query rows: a token has one of "
            "each, and a row is of one of the tokens"
        )
    for name, given, limit in (("block_indices", indices, keys.shape[0]), ("block_offsets", offsets, keys.shape[1])):
        if len(given) and not 0 <= int(given.min()) <= int(given.max()) < limit:
            worst = int(given.min()) if int(given.min()) < 0 else int(given.max())
            raise KernelError(f"{name} holds {worst}; there are 0 to {limit - 1}")
    if live is not None and len(indices) and not bool(live[indices.long()].all()):
        dead = indices[~live[indices.long()]]
        raise KernelError(f"block_indices holds {int(dead[0])}, which is not in use")
