"""Attention with a block and an offset for every token, on a GPU: a warp a query row and head, as the report's grid of
(position, head) has it, with KV heads of their own, a scale and a causal mask, which its signature lacks.
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

_LN2 = math.log(2)
WARP = 32


def indexed_kernel(head_dim: int) -> Callable[..., Any]:
    """The kernel, not compiled yet. Its grid is (rows, query heads), its block one warp; arguments as those of
    `pqkv.kernels.cpu.indexed.attend_by_index`, blocks and offsets int32. D is a multiple of 32.
    """
    D, OWN = head_dim, head_dim // WARP

    def kernel(query, keys, values, blocks, offsets, out, lse, of_block, of_slot, of_head, kv_heads, first, window):
        q = cuda.local.array(OWN, float32)
        acc = cuda.local.array(OWN, float32)
        t, head, lane = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        heads = cuda.gridDim.y
        kv = head // (heads // kv_heads)
        end = int32(first + t + 1)
        low = max(end - int32(window), int32(0)) if window > 0 else int32(0)
        at = int64(t * heads + head) * D + lane
        for i in range(OWN):
            q[i] = query[uint64(at + i * WARP)]
            acc[i] = float32(0.0)
        top, mass = float32(LOWEST), float32(0.0)
        for n in range(low, end):
            row = int64(blocks[n]) * of_block + int64(offsets[n]) * of_slot + kv * of_head + lane
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
            out[uint64(at + i * WARP)] = acc[i] / mass
        if lane == 0:
            lse[uint64(t * heads + head)] = (top + math.log2(mass)) * float32(_LN2)

    return kernel


def attend_by_index(
    query: Tensor, keys: Tensor, values: Tensor, strides: tuple[int, int, int], kv_heads: int, blocks: Tensor,
    offsets: Tensor, first: int, window: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rows (T, Hq, D) and their lse (T, Hq); raises `KernelError` for heads of other than a multiple of 32."""
    T, Hq, D = query.shape
    if D % WARP:
        raise KernelError(f"one warp a row shares channels among {WARP} lanes, and a head has {D}")
    out, lse = torch.empty_like(query), query.new_empty(T, Hq)
    launch(
        compiled(indexed_kernel, D), (T, Hq), WARP, array(query), array(keys), array(values), array(blocks),
        array(offsets), array(out), array(lse), *strides, kv_heads, first, window,
    )  # fmt: skip
    return out, lse
