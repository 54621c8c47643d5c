"""Attention on codes of any width, in float32 throughout: centroids are read from global memory, nothing is rounded.

Slower than `coded`, whose tables are fp16 in shared memory; it serves float32 queries and every shape that the other
cannot: odd widths, pages of odd sizes, tables too large for shared memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import cuda, float32, uint32

from pqkv.kernels.cuda.device import float_of
from pqkv.kernels.cuda.paging import Coded, Paging, Partial, heads_of_blocks, no_tokens, stretch_of_block
from pqkv.kernels.cuda.plain.phases import apply_gains, load_query, mix_values, score_keys, softmax
from pqkv.kernels.cuda.plain.turning import bias_scores
from pqkv.kernels.cuda.plain.variant import ROWS, PlainVariant


def plain_kernel(variant: PlainVariant) -> Callable[..., Any]:
    """The kernel, not compiled yet; arguments as those of `coded_kernel`, but all codes and gains are bytes."""
    GROUP, D, TURNING, GAINS = variant.group, variant.head_dim, variant.turning, variant.gains
    QUERY, WEIGHTS, MEETING = GROUP * D, GROUP * variant.tokens, GROUP * variant.block
    TURNED = ROWS * variant.turned_blocks * GROUP
    stretch_of, leave_empty = stretch_of_block(1), no_tokens(GROUP, D, variant.block)
    heads_of = heads_of_blocks(variant)
    load, add_bias, score, to_weights, use_gains, mix = (
        part(variant) for part in (load_query, bias_scores, score_keys, softmax, apply_gains, mix_values)
    )

    def kernel(
        query, key_codes, value_codes, key_centroids, value_centroids, key_channels, value_channels, table, lengths,
        partial, scale, page_size, _page_shift, table_stride, kv_heads, chunks, heads, key_heads, value_heads, window,
        share, first_slot, slots, turning, gains,
    ):  # fmt: skip
        q = cuda.shared.array(QUERY, float32)
        weights = cuda.shared.array(WEIGHTS, float32)
        meeting = cuda.shared.array(MEETING, float32)

        split, kv, b = cuda.blockIdx.x, cuda.blockIdx.y // chunks, cuda.blockIdx.z
        thread = cuda.threadIdx.x
        first_head, row = heads_of(b, kv_heads, chunks, heads)
        factor = float_of(uint32(scale))
        stretch = stretch_of(lengths, b, cuda.gridDim.z, window, split, share)
        result = Partial(partial, (row * slots + first_slot + split) * (D + 2), slots * (D + 2))
        if stretch.start >= stretch.end:
            leave_empty(result, thread)
            return
        paging = Paging(table, b * table_stride, page_size, -1, kv_heads, kv)
        keys = Coded(key_codes, key_centroids, key_channels, min(kv, key_heads - 1), 0)
        values = Coded(value_codes, value_centroids, value_channels, min(kv, value_heads - 1), 0)

        load(query, factor, first_head, keys, q, thread)
        if TURNING:
            turned = cuda.shared.array(TURNED, float32)
            add_bias(turning, factor, first_head, stretch, turned, weights, thread)
        cuda.syncthreads()
        score(keys, paging, stretch, q, weights, thread)
        cuda.syncthreads()
        to_weights(stretch.end - stretch.start, weights, meeting, result, thread)
        if GAINS:
            cuda.syncthreads()
            use_gains(gains, paging, stretch, weights, thread)
            cuda.syncthreads()
        mix(values, paging, stretch, weights, result, thread)

    return kernel
