"""One query per sequence over coded pages: scores, softmax and values of a stretch of tokens, head group by head group.

A stretch (some thousand tokens of one sequence and KV head, in whole pages) is one unit of work; its scores stay in the
second-level cache. Within it the subspaces pass in blocks whose tables fit the first. Nothing is decoded to memory.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pqkv.kernels.cpu.lookups import bin_block, empty_bins, fill_table, score_block, sum_block, value_block
from pqkv.kernels.cpu.paging import Side, Stretch, codes_at, own_centroids, prefetch_block, scratch_of
from pqkv.kernels.cpu.softmax import fold_scores, largest, soften
from pqkv.vector_code import chosen

REGISTER = 8  # floats of one vector register; more lanes than this and tables or bins cost less than centroids


@numba.njit(parallel=True, cache=True, error_model="numpy")
def attend_coded(
    query, context_len, lowest, table, num_kv_heads, page_size, stretch_pages,
    key_pages, key_line, key_centroids, key_channels, key_unpacked, key_d_sub, key_block, key_nbits, key_order,
    value_pages, value_line, value_centroids, value_channels, value_unpacked, value_d_sub, value_block_, value_nbits,
    value_order, out, top, total, heads, unit,
):  # fmt: skip
    """Partial attention of every stretch; `pqkv.kernels.cpu.decode` merges them.

    query (B, Hq, D) float32, scaled to base 2. Sequence b has context_len[b] tokens in the pages of table[b], of which
    those before lowest[b] are not seen. Of keys and values: the fields of a `Side`. Per (b, head, stretch): out
    (..., G, D), largest score `top` and mass `total` (..., G); -inf and 0 for what is empty.
    """
    stretches = out.shape[2]
    for job in numba.prange(query.shape[0] * num_kv_heads * stretches):
        b = job // (num_kv_heads * stretches)
        h = job // stretches % num_kv_heads
        s = job % stretches
        # tuples are made here: Numba does not hand nested ones to its threads
        keys = Side(
            key_pages, key_line, key_centroids, key_channels, key_unpacked, key_d_sub, key_block, key_nbits, key_order,
        )  # fmt: skip
        values = Side(
            value_pages, value_line, value_centroids, value_channels, value_unpacked, value_d_sub, value_block_,
            value_nbits, value_order,
        )  # fmt: skip
        first_page = max(s * stretch_pages, lowest[b] // page_size)
        first = first_page * page_size
        count = min((s + 1) * stretch_pages * page_size, context_len[b]) - first
        stretch = Stretch(table[b], page_size, num_kv_heads, h, first_page, count)
        _attend(
            query[b], stretch, keys, values, lowest[b] - first, out[b, h, s], top[b, h, s], total[b, h, s], heads, unit
        )


@numba.njit(error_model="numpy")
def _attend(query, stretch, keys, values, hidden, out, top, total, heads, unit):
    """Partial attention of a stretch of whose tokens the first `hidden` are not seen."""
    G, U, count = len(heads), len(unit), stretch.length
    top[:] = -np.inf
    total[:] = 0.0
    if count <= 0:
        return
    units = (count + U - 1) // U
    scores = np.empty(units * U * G, np.float32)
    _scores(scores, query, stretch, keys, heads)
    scores[count * G :] = -np.inf
    scores[: min(max(hidden, 0), count) * G] = -np.inf
    highest = np.empty(G * U, np.float32)
    sums = np.empty(G * U, np.float32)
    largest(scores, highest, units, heads, unit)
    for g in range(G):
        best = highest[g]
        for i in range(g + G, G * U, G):
            best = max(best, highest[i])
        top[g] = best
        for i in range(g, G * U, G):
            highest[i] = best if best > -np.inf else np.float32(0.0)
    soften(scores, highest, sums, units, heads, unit)
    for i in range(G * U):
        total[i % G] += sums[i]
    _mix(out, scores, stretch, values, heads)


def _lanes(heads: Any, side: Any) -> int:
    """Lanes that a centroid takes for all heads, of Numba types."""
    return len(heads) * len(Side._make(side).d_sub)


@chosen
def _scores(scores, query, stretch, side, heads):
    """scores (count, G) of a stretch."""
    return _scores_by_table if _lanes(heads, side) > REGISTER else _scores_by_centroid


@chosen
def _mix(out, weights, stretch, side, heads):
    """out (G, D) = the sum of the values of a stretch by weights (count, G)."""
    return _mix_by_bin if _lanes(heads, side) > 2 * REGISTER else _mix_by_centroid


def _scores_by_centroid(scores, query, stretch, side, heads):
    G, S, J = len(heads), len(side.d_sub), len(side.block)
    W = G * S
    M, C = side.centroids.shape[1:3]
    own, book = own_centroids(side, stretch.head)
    lanes = np.empty(M * W, np.float32)
    for m in range(M):
        for g in range(G):
            for e in range(S):
                lanes[m * W + g * S + e] = query[stretch.head * G + g, side.channels[own, m * S + e]]
    partial = np.zeros(stretch.length * W, np.float32)
    scratch = scratch_of(side)
    prefetch_block(side, book, 0)
    for m in range(0, M, J):
        prefetch_block(side, book, m + J)
        start = 0
        while start < stretch.length:
            codes, place, stride, n = codes_at(scratch, stretch, side, m, start)
            score_block(
                partial, lanes[m * W :], book[m * C * S :], codes, start, n, place, stride, C,
                heads, side.d_sub, side.block, side.nbits, side.order,
            )  # fmt: skip
            start += n
    fold_scores(partial, scores, stretch.length, heads, side.d_sub)


def _scores_by_table(scores, query, stretch, side, heads):
    G, S, J = len(heads), len(side.d_sub), len(side.block)
    M, C = side.centroids.shape[1:3]
    own, book = own_centroids(side, stretch.head)
    wanted = np.empty(S * G, np.float32)
    lookup = np.empty(J * C * G, np.float32)
    scores[: stretch.length * G] = 0.0
    scratch = scratch_of(side)
    prefetch_block(side, book, 0)
    for m in range(0, M, J):
        prefetch_block(side, book, m + J)
        for j in range(J):
            for e in range(S):
                for g in range(G):
                    wanted[e * G + g] = query[stretch.head * G + g, side.channels[own, (m + j) * S + e]]
            fill_table(lookup[j * C * G :], wanted, book[(m + j) * C * S :], C, heads, side.d_sub)
        start = 0
        while start < stretch.length:
            codes, place, stride, n = codes_at(scratch, stretch, side, m, start)
            sum_block(scores, lookup, codes, start, n, place, stride, C, heads, side.block, side.nbits, side.order)
            start += n


def _mix_by_centroid(out, weights, stretch, side, heads):
    G, S, J = len(heads), len(side.d_sub), len(side.block)
    W = G * S
    M, C = side.centroids.shape[1:3]
    own, book = own_centroids(side, stretch.head)
    sums = np.empty(J * W, np.float32)
    scratch = scratch_of(side)
    prefetch_block(side, book, 0)
    for m in range(0, M, J):
        prefetch_block(side, book, m + J)
        sums[:] = 0.0
        start = 0
        while start < stretch.length:
            codes, place, stride, n = codes_at(scratch, stretch, side, m, start)
            value_block(
                sums, weights, book[m * C * S :], codes, start, n, place, stride, C,
                heads, side.d_sub, side.block, side.nbits, side.order,
            )  # fmt: skip
            start += n
        for j in range(J):
            for g in range(G):
                for e in range(S):
                    out[g, side.channels[own, (m + j) * S + e]] = sums[j * W + g * S + e]


def _mix_by_bin(out, weights, stretch, side, heads):
    G, S, J = len(heads), len(side.d_sub), len(side.block)
    M, C = side.centroids.shape[1:3]
    own, book = own_centroids(side, stretch.head)
    bins = np.empty(J * C * G, np.float32)
    sums = np.empty(G * S, np.float32)
    scratch = scratch_of(side)
    prefetch_block(side, book, 0)
    for m in range(0, M, J):
        prefetch_block(side, book, m + J)
        bins[:] = 0.0
        start = 0
        while start < stretch.length:
            codes, place, stride, n = codes_at(scratch, stretch, side, m, start)
            bin_block(bins, weights, codes, start, n, place, stride, C, heads, side.block, side.nbits, side.order)
            start += n
        for j in range(J):
            empty_bins(sums, bins[j * C * G :], book[(m + j) * C * S :], C, heads, side.d_sub)
            for g in range(G):
                for e in range(S):
                    out[g, side.channels[own, (m + j) * S + e]] = sums[g * S + e]
