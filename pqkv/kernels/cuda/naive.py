"""Paged attention as first written: one block for a query head, the whole row of scores in shared memory.

Correct, and slow on purpose: keys and values are read again by every query head of a group, one thread takes one token
at a time, and the context is bounded by shared memory. It is what the reports behind pqkv started from, and what their
defects are reproduced on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from numba import cuda, float32, int32, int64, uint32, uint64
from torch import Tensor

from pqkv.errors import KernelError
from pqkv.kernels.checks import check_inputs, check_lengths
from pqkv.kernels.cuda.device import LOWEST, exchange, float_of, floats_of_bfloats, floats_of_halves, power_of_two
from pqkv.kernels.cuda.launch import array, compiled, launch, words
from pqkv.kernels.faults.catalog import Fault
from pqkv.kernels.types import ExactTokens, PagedTokens

_LN2 = math.log(2)


@dataclass(frozen=True, slots=True)
class NaiveVariant:
    """What the kernel is compiled for: dtype of the pages, threads of a block, tokens the score row has room for."""

    dtype: str
    head_dim: int
    block: int = 128
    room: int = 8192
    # the faults of `pqkv.kernels.faults`: scores past `room`, and threads that see their own warp's result only
    past_room: Literal["refused", "dropped", "aliased"] = "refused"
    own_warp_max: bool = False
    own_warp_sum: bool = False

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return 4 * (self.room + -(-self.block // 32))


def naive_kernel(variant: NaiveVariant) -> Callable[..., Any]:
    """The kernel, not compiled yet. Its grid is (query heads, sequences).

    query (B, Hq, D) float32, times scale and log2(e); keys, values: 32-bit words of pages (pages, Hkv, page_size, D);
    table (B, table_stride) int32; context_len (B,) int32 -> out (B, Hq, D) float32, lse (B, Hq) float32.
    """
    D, BLOCK, ROOM, DTYPE = variant.head_dim, variant.block, variant.room, variant.dtype
    DROPS, ALIASES = variant.past_room == "dropped", variant.past_room == "aliased"
    WHOLE_MAX, WHOLE_SUM = not variant.own_warp_max, not variant.own_warp_sum
    WIDE, BRAIN = DTYPE == "float32", DTYPE == "bfloat16"
    PER_WORD = 1 if WIDE else 2
    WARPS = (BLOCK + 31) // 32

    def kernel(query, keys, values, table, context_len, out, lse, page_size, table_stride, kv_heads, window):
        scores = cuda.shared.array(ROOM, float32)
        warps = cuda.shared.array(WARPS, float32)
        head, b, thread = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        heads = cuda.gridDim.x
        kv = head // (heads // kv_heads)
        length = context_len[b]
        low = max(length - window, 0) if window > 0 else int32(0)
        lane, warp = thread % 32, thread // 32
        # the last warp may have fewer lanes: only those that exist may be named
        here = min(32, BLOCK - warp * 32)
        mask = uint32(0xFFFFFFFF) if here == 32 else uint32((1 << here) - 1)
        at = (b * heads + head) * D

        top = float32(LOWEST)
        for token in range(low + thread, length, BLOCK):
            page = int64(table[uint64(b * table_stride + token // page_size)])
            row = ((page * kv_heads + kv) * page_size + token % page_size) * (D // PER_WORD)
            total = float32(0.0)
            for w in range(D // PER_WORD):
                word = uint32(keys[uint64(row + w)])
                if WIDE:
                    total += query[uint64(at + w)] * float_of(word)
                else:
                    first, second = floats_of_bfloats(word) if BRAIN else floats_of_halves(word)
                    total += query[uint64(at + 2 * w)] * first + query[uint64(at + 2 * w + 1)] * second
            slot = (token - low) % ROOM if ALIASES else token - low
            if not DROPS or slot < ROOM:
                scores[slot] = total
            top = max(top, total)
        for halving in range(5):
            # where the partner does not exist a lane exchanges with itself; lane 0 still hears of all
            partner = int32(1 << halving) if lane ^ (1 << halving) < here else int32(0)
            top = max(top, exchange(mask, top, partner))
        if lane == 0:
            warps[warp] = top
        cuda.syncthreads()
        if WHOLE_MAX:
            for one in range(WARPS):
                top = max(top, warps[one])
        else:
            top = warps[warp]
        cuda.syncthreads()

        mass = float32(0.0)
        for token in range(low + thread, length, BLOCK):
            slot = (token - low) % ROOM if ALIASES else token - low
            # what was dropped reads as zero
            score = scores[slot] if not DROPS or slot < ROOM else float32(0.0)
            weight = power_of_two(score - top)
            if not DROPS or slot < ROOM:
                scores[slot] = weight
            mass += weight
        for halving in range(5):
            exists = lane ^ (1 << halving) < here
            other = exchange(mask, mass, int32(1 << halving) if exists else int32(0))
            mass += other if exists else float32(0.0)
        if lane == 0:
            warps[warp] = mass
        cuda.syncthreads()
        if WHOLE_SUM:
            mass = float32(0.0)
            for one in range(WARPS):
                mass += warps[one]
        else:
            mass = warps[warp]

        for e in range(thread, D, BLOCK):
            total = float32(0.0)
            for token in range(low, length):
                page = int64(table[uint64(b * table_stride + token // page_size)])
                row = ((page * kv_heads + kv) * page_size + token % page_size) * (D // PER_WORD)
                word = uint32(values[uint64(row + e // PER_WORD)])
                if WIDE:
                    value = float_of(word)
                else:
                    first, second = floats_of_bfloats(word) if BRAIN else floats_of_halves(word)
                    value = first if e % 2 == 0 else second
                slot = (token - low) % ROOM if ALIASES else token - low
                weight = scores[slot] if not DROPS or slot < ROOM else float32(0.0)
                total += weight * value
            out[uint64(at + e)] = total / mass if length > low else float32(0.0)
        if thread == 0:
            lse[uint64(b * heads + head)] = (
                (top + math.log2(mass)) * float32(_LN2) if length > low else float32(-math.inf)
            )

    return kernel


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
