"""A query head a block of 32 threads, without a split: the launch of incremental-decode's PAR-020.

The report shows the launch and not the kernel. This one is what its comments say, written well: a lane holds each 32nd
channel, a running softmax in registers, nothing in shared memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from numba import cuda, float32, int32, int64, uint32, uint64
from torch import Tensor

from pqkv.errors import KernelError
from pqkv.kernels.cuda.device import LOWEST, exchange, power_of_two
from pqkv.kernels.cuda.launch import array, compiled, launch
from pqkv.kernels.types import PagedTokens

_LN2 = math.log(2)
WARP = 32


def one_warp_kernel(head_dim: int) -> Callable[..., Any]:
    """The kernel, not compiled yet. Its grid is (query heads, sequences), its block one warp.

    query (B, Hq, D) float32, times scale and log2(e); keys, values: pages (pages, Hkv, page_size, D) float32; table
    (B, table_stride) int32; context_len (B,) int32 -> out (B, Hq, D), lse (B, Hq) float32. D is a multiple of 32.
    """
    D, OWN = head_dim, head_dim // WARP

    def kernel(query, keys, values, table, context_len, out, lse, page_size, table_stride, kv_heads, window):
        q = cuda.local.array(OWN, float32)
        acc = cuda.local.array(OWN, float32)
        head, b, lane = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        heads = cuda.gridDim.x
        kv = head // (heads // kv_heads)
        length = context_len[b]
        low = max(length - window, 0) if window > 0 else int32(0)
        at = (b * heads + head) * D + lane
        for i in range(OWN):
            q[i] = query[uint64(at + i * WARP)]
            acc[i] = float32(0.0)
        top, mass = float32(LOWEST), float32(0.0)
        for token in range(low, length):
            page = int64(table[uint64(b * table_stride + token // page_size)])
            row = ((page * kv_heads + kv) * page_size + token % page_size) * D + lane
            score = float32(0.0)
            for i in range(OWN):
                score += q[i] * keys[uint64(row + i * WARP)]
            for halving in range(5):
                score += exchange(uint32(0xFFFFFFFF), score, int32(1 << halving))
            best = max(top, score)
            shrink, weight = power_of_two(top - best), power_of_two(score - best)
            mass = mass * shrink + weight
            for i in range(OWN):
                acc[i] = acc[i] * shrink + weight * values[uint64(row + i * WARP)]
            top = best
        for i in range(OWN):
            out[uint64(at + i * WARP)] = acc[i] / mass if length > low else float32(0.0)
        if lane == 0:
            lse[uint64(b * heads + head)] = (
                (top + math.log2(mass)) * float32(_LN2) if length > low else float32(-math.inf)
            )

    return kernel


def decode_by_warps(query: Tensor, pages: PagedTokens, *, scale: float, window: int | None) -> tuple[Tensor, Tensor]:
    """`AttentionBackend` for Tq = 1 and exact pages of float32 alone. Raises `KernelError` for heads of other than a
    multiple of 32.
    """
    B, _, Hq, D = query.shape
    if D % WARP:
        raise KernelError(f"one warp a head shares channels among {WARP} lanes, and a head has {D}")
    out = torch.empty(B, Hq, D, dtype=torch.float32, device=query.device)
    lse = torch.empty(B, Hq, dtype=torch.float32, device=query.device)
    scaled = query.reshape(B, Hq, D).float() * (scale * math.log2(math.e))
    launch(
        compiled(one_warp_kernel, D), (Hq, B), WARP, array(scaled), array(pages.keys.pages), array(pages.values.pages),
        array(pages.page_table), array(pages.context_len), array(out), array(lse), pages.page_size,
        pages.page_table.shape[1], pages.keys.pages.shape[1], window or 0,
    )  # fmt: skip
    return out[:, None], lse[:, None]
