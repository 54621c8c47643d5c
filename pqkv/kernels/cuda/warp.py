"""Attention by one warp for each row and head, without a split: a running softmax in registers, no shared memory.

Two reports launch such a grid and do not show the kernel: incremental-decode a query head of each sequence over pages,
paged-kernel each (position, head) over tokens that have an index and an offset of their own. This is what they say,
written well: a lane holds each 32nd channel. Keys and values are read again by every query head of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class WarpVariant:
    """What the kernel is compiled for. `indexed`: a block and an offset a token, in place of a table of pages."""

    head_dim: int
    indexed: bool


def warp_kernel(variant: WarpVariant) -> Callable[..., Any]:
    """The kernel, not compiled yet. Its grid is (rows, query heads), its block one warp; a row is a query.

    query (rows, Hq, D) float32, times scale and log2(e); keys, values float32, flat: token n of KV head h begins at
    block * of_block + slot * of_slot + h * of_head. Indexed, its block is blocks[n] and its slot slots[n]; else row r
    has the table blocks[r * table_stride ...] of pages of `page_size`, and slots are not read. A row sees tokens up to
    ends[r], the newest `window` of them, all if it is 0. -> out (rows, Hq, D), lse (rows, Hq) float32.
    """
    D, OWN, INDEXED = variant.head_dim, variant.head_dim // WARP, variant.indexed

    def kernel(
        query, keys, values, blocks, slots, ends, out, lse, of_block, of_slot, of_head, kv_heads, page_size,
        table_stride, window,
    ):  # fmt: skip
        q = cuda.local.array(OWN, float32)
        acc = cuda.local.array(OWN, float32)
        r, head, lane = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        heads = cuda.gridDim.y
        kv = head // (heads // kv_heads)
        end = ends[r]
        low = max(end - int32(window), int32(0)) if window > 0 else int32(0)
        at = int64(r * heads + head) * D + lane
        for i in range(OWN):
            q[i] = query[uint64(at + i * WARP)]
            acc[i] = float32(0.0)
        top, mass = float32(LOWEST), float32(0.0)
        for n in range(low, end):
            if INDEXED:
                place = int64(blocks[n]) * of_block + int64(slots[n]) * of_slot
            else:
                place = int64(blocks[uint64(r * table_stride + n // page_size)]) * of_block + n % page_size * of_slot
            row = place + kv * of_head + lane
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
            out[uint64(at + i * WARP)] = acc[i] / mass if end > low else float32(0.0)
        if lane == 0:
            lse[uint64(r * heads + head)] = (top + math.log2(mass)) * float32(_LN2) if end > low else float32(-math.inf)

    return kernel


def decode_by_warps(query: Tensor, pages: PagedTokens, *, scale: float, window: int | None) -> tuple[Tensor, Tensor]:
    """`AttentionBackend` for Tq = 1 and exact pages of float32 alone. Raises `KernelError` for heads of other than a
    multiple of 32.
    """
    Hkv, P, D = pages.keys.pages.shape[1:]
    scaled = query[:, 0].float().contiguous() * (scale * math.log2(math.e))
    table, lengths = pages.page_table, pages.context_len
    sides = pages.keys.pages.flatten(), pages.values.pages.flatten()
    out, lse = _run(
        scaled, sides, (table, table, lengths), (Hkv * P * D, D, P * D), Hkv, (P, table.shape[1], window or 0),
        indexed=False,
    )  # fmt: skip
    return out[:, None], lse[:, None]


def attend_by_index(
    query: Tensor,
    sides: tuple[Tensor, Tensor],
    places: tuple[Tensor, Tensor],
    strides: tuple[int, int, int],
    kv_heads: int,
    window: int,
) -> tuple[Tensor, Tensor]:
    """Rows (T, Hq, D), scaled, of the last T of n tokens, over flat keys and values; `places` are blocks and slots (n,)
    int32. Raises `KernelError` for heads of other than a multiple of 32.
    """
    T, n = len(query), len(places[0])
    ends = torch.arange(n - T + 1, n + 1, dtype=torch.int32, device=query.device)
    return _run(query, sides, (*places, ends), strides, kv_heads, (0, 0, window), indexed=True)


def _run(
    query: Tensor,
    sides: tuple[Tensor, Tensor],
    places: tuple[Tensor, Tensor, Tensor],
    strides: tuple[int, int, int],
    kv_heads: int,
    numbers: tuple[int, int, int],
    *,
    indexed: bool,
) -> tuple[Tensor, Tensor]:
    rows, Hq, D = query.shape
    if D % WARP:
        raise KernelError(f"one warp a row shares channels among {WARP} lanes, and a head has {D}")
    out, lse = torch.empty_like(query), query.new_empty(rows, Hq)
    arrays = [array(tensor.contiguous()) for tensor in (query, *sides, *places)]
    kernel = compiled(warp_kernel, WarpVariant(D, indexed))
    launch(kernel, (rows, Hq), WARP, *arrays, array(out), array(lse), *strides, kv_heads, *numbers)
    return out, lse
