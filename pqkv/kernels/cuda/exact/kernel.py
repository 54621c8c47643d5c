"""Exact keys and values: one KV head of one sequence, one stretch of its tokens, all query heads of a group.

A row of D elements is read by LANES lanes, 128 bits each at a time; LANES is the largest power of two that divides the
row and fits the block, so sums are right at every block size. Each group of lanes goes over tokens of its own with an
online softmax in registers, and the groups are merged in shared memory at the end. Keys and values are read once for
all GROUP query heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import cuda, float32, int32, int64, uint32

from pqkv.kernels.cuda.device import LOWEST, device_function, float_of
from pqkv.kernels.cuda.exact.rows import Lane, add_values, find_rows, load_query, score_rows
from pqkv.kernels.cuda.exact.softmax import Teams, leave_team, merge_teams, weigh
from pqkv.kernels.cuda.exact.variant import ExactVariant
from pqkv.kernels.cuda.paging import Paging, Partial, Stretch, heads_of_blocks

SINKS, PAGES, RESIDUAL = range(3)


@device_function
def stretch_of_part(lengths, sequence, sequences, part, window, split, splits):
    """What a block reads of sinks, pages or residual (`part`), whose tokens seen are cut into `splits`."""
    sinks, paged, residual = lengths[sequence], lengths[sequences + sequence], lengths[2 * sequences + sequence]
    length = sinks if part == SINKS else (paged if part == PAGES else residual)
    before = 0 if part == SINKS else (sinks if part == PAGES else sinks + paged)
    low = int32(0)
    if window > 0:
        low = min(max(sinks + paged + residual - window - before, 0), length)
    share = (length - low + splits - 1) // splits
    start = low + split * share
    return Stretch(low, start, min(start + share, length))


def attend_stretch(variant):
    """attend(query, scale, first_head, keys, values, paging, stretch, result, thread): a block's partial result."""
    D, GROUP, TOKENS, LANES, TEAMS = variant.head_dim, variant.group, variant.tokens, variant.lanes, variant.teams
    TEAM_HEADS, TEAM_ELEMENTS, HELD, SCORES = TEAMS * GROUP, TEAMS * GROUP * D, GROUP * variant.own, GROUP * TOKENS
    load, find, score_tile, add = (part(variant) for part in (load_query, find_rows, score_rows, add_values))
    to_weights, leave, merge = (part(variant) for part in (weigh, leave_team, merge_teams))

    @device_function
    def attend(query, scale, first_head, keys, values, paging, stretch, result, thread):
        maxima = cuda.shared.array(TEAM_HEADS, float32)
        sums = cuda.shared.array(TEAM_HEADS, float32)
        mixed = cuda.shared.array(TEAM_ELEMENTS, float32)
        teams = Teams(maxima, sums, mixed)
        q = cuda.local.array(HELD, float32)
        acc = cuda.local.array(HELD, float32)
        best = cuda.local.array(GROUP, float32)
        mass = cuda.local.array(GROUP, float32)
        score = cuda.local.array(SCORES, float32)
        place = cuda.local.array(TOKENS, int64)
        if thread // LANES < TEAMS:
            mask = uint32(0xFFFFFFFF) if LANES == 32 else uint32(((1 << LANES) - 1) << (thread % 32 // LANES * LANES))
            lane = Lane(thread // LANES, thread % LANES, mask)
            load(query, scale, first_head, lane.lane, q)
            for g in range(GROUP):
                best[g] = LOWEST
                mass[g] = 0.0
            for i in range(HELD):
                acc[i] = 0.0
            token = stretch.start + lane.team * TOKENS
            while token < stretch.end:
                find(paging, token, stretch.end, place)
                score_tile(keys, place, lane, token, stretch.end, q, score)
                to_weights(score, best, mass, acc)
                add(values, place, lane, score, acc)
                token += TEAMS * TOKENS
            leave(lane, best, mass, acc, teams)
        cuda.syncthreads()
        merge(teams, result, thread)

    return attend


def exact_kernel(variant: ExactVariant) -> Callable[..., Any]:
    """Of pages; not compiled yet. Its grid is (splits, KV heads * chunks of query heads, sequences).

    query (B, Hq, D) in the variant's type, `heads` of them to a KV head, whose products are times `scale`, the bits of
    a float32 that has log2(e) in it; keys, values: words of pages (pages, Hkv, page_size, D); table (B, table_stride)
    int32; lengths (3, B) int32 of sinks, pages, residual; partial (B, Hq, slots, D + 2) float32: mixed values, maximum
    of the scores in powers of two, sum; split i writes slot first_slot + i. The newest `window` columns are seen, all
    if it is 0. page_shift is log2 of the page size, or -1.
    """
    D, heads_of, attend = variant.head_dim, heads_of_blocks(variant), attend_stretch(variant)

    def kernel(
        query, keys, values, table, lengths, partial, scale, page_size, page_shift, table_stride, kv_heads, chunks,
        heads, window, splits, first_slot, slots,
    ):  # fmt: skip
        split, kv, b = cuda.blockIdx.x, cuda.blockIdx.y // chunks, cuda.blockIdx.z
        first_head, row = heads_of(b, kv_heads, chunks, heads)
        stretch = stretch_of_part(lengths, b, cuda.gridDim.z, PAGES, window, split, splits)
        paging = Paging(table, b * table_stride, page_size, page_shift, kv_heads, kv)
        result = Partial(partial, (row * slots + first_slot + split) * (D + 2), slots * (D + 2))
        attend(query, float_of(uint32(scale)), first_head, keys, values, paging, stretch, result, cuda.threadIdx.x)

    return kernel


def rows_kernel(variant: ExactVariant) -> Callable[..., Any]:
    """Of sinks and residual, which lie in rows (B, Hkv, capacity, D); not compiled yet. The first `sink_splits` blocks
    of the grid read sinks of capacity `sink_size`, `splits` more read the residual; for the rest see `exact_kernel`.
    """
    D, heads_of, attend = variant.head_dim, heads_of_blocks(variant), attend_stretch(variant)

    def kernel(
        query, sink_keys, sink_values, keys, values, lengths, partial, scale, sink_size, size, kv_heads, chunks, heads,
        window, sink_splits, splits, first_slot, slots,
    ):  # fmt: skip
        split, kv, b = cuda.blockIdx.x, cuda.blockIdx.y // chunks, cuda.blockIdx.z
        first_head, row = heads_of(b, kv_heads, chunks, heads)
        result = Partial(partial, (row * slots + first_slot + split) * (D + 2), slots * (D + 2))
        sinks = split < sink_splits
        part, share = (SINKS, sink_splits) if sinks else (RESIDUAL, splits)
        stretch = stretch_of_part(
            lengths, b, cuda.gridDim.z, part, window, split if sinks else split - sink_splits, share
        )
        paging = Paging(lengths, b, sink_size if sinks else size, -1, kv_heads, kv)
        attend(
            query, float_of(uint32(scale)), first_head, sink_keys if sinks else keys, sink_values if sinks else values,
            paging, stretch, result, cuda.threadIdx.x,
        )  # fmt: skip

    return kernel
