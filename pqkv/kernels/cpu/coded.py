"""One query per sequence over coded pages: scores, softmax and values of a stretch of tokens, head group by head group.

A stretch (some thousand tokens of one sequence and KV head, in whole pages) is one unit of work; its scores stay in the
second-level cache. Within it the subspaces pass in blocks whose tables fit the first. Nothing is decoded to memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from pqkv.compiled import compiled
from pqkv.kernels.cpu.lookups import bin_block, empty_bins, fill_table, score_block, sum_block, value_block
from pqkv.kernels.cpu.paging import Side, Stretch, codes_at, own_centroids, prefetch_block, scratch_of
from pqkv.kernels.cpu.softmax import fold_scores, largest, soften
from pqkv.kernels.cpu.step import PAGES, end_unit
from pqkv.kernels.cpu.turning import add_bias, weigh_by_gains
from pqkv.thread_code import bind, bound_size, next_unit
from pqkv.vector_code import (
    chosen,
)

CENTROID, TABLE = range(2)  # lengths of a `way`


@compiled(nogil=True)
def bind_coded(
    changing, turn_middles, turn_rows, turn_slow, gains, gain_values, num_kv_heads, page_size,
    key_pages, key_line, key_centroids, key_channels, key_unpacked, key_d_sub, key_block, key_nbits, key_order, key_way,
    value_pages, value_line, value_centroids, value_channels, value_unpacked, value_d_sub, value_block_, value_nbits,
    value_order, value_way, heads, unit,
):  # fmt: skip
    """Partial attention of every stretch of a step, a unit of work each, bound (`thread_code.bind`) to what stays: its
    address and its room. `changing` is `step.NOW`, of which kept code is a variant: with another it would be misread.

    The tables of `pqkv.kernels.turns`; gains, flat, and gain_values (Hkv, 256) of values; of keys and values the fields
    of a `Side`.
    """
    # made here: as arguments, named tuples take long to be recognised
    keys = Side(
        key_pages, key_line, key_centroids, key_channels, key_unpacked, key_d_sub, key_block, key_nbits, key_order,
        key_way,
    )  # fmt: skip
    values = Side(
        value_pages, value_line, value_centroids, value_channels, value_unpacked, value_d_sub, value_block_,
        value_nbits, value_order, value_way,
    )  # fmt: skip
    turns = turn_middles, turn_rows, turn_slow
    given = turns, (gains, gain_values), num_kv_heads, page_size, keys, values, heads, unit
    room = np.empty(bound_size(_attend_units, changing, given), np.uint8)
    return bind(_attend_units, changing, given, room), room


@compiled(error_model="numpy")
def _attend_units(now, turns, gains, Hkv, page_size, keys, values, heads, unit):
    middles, rows, slow = turns
    stretches, G = now.top.shape[2] - 1, len(heads)
    places = now.lengths[PAGES], now.starts[PAGES], now.table, Hkv, page_size, now.stretch // page_size
    job = next_unit(now.taken)
    while job < len(now.query) * Hkv * stretches:
        b, h, s, hidden, stretch = stretch_of(job, stretches, *places)
        turning = now.phasors[b, h * G : (h + 1) * G], now.phasor_scale, middles, rows, slow
        found = now.out[b, h, s], now.top[b, h, s], now.total[b, h, s]
        _attend(now.coded_query[b], turning, gains, stretch, keys, values, hidden, *found, heads, unit)
        end_unit(now, b, h)
        job = next_unit(now.taken)


@register_jitable
def stretch_of(job, stretches, context_len, lowest, table, num_kv_heads, page_size, stretch_pages):
    """Sequence, KV head and place of a unit of work, how many of its first tokens are not seen, and its tokens."""
    b = job // (num_kv_heads * stretches)
    h = job // stretches % num_kv_heads
    s = job % stretches
    first_page = max(s * stretch_pages, lowest[b] // page_size)
    first = first_page * page_size
    count = min((s + 1) * stretch_pages * page_size, context_len[b]) - first
    return b, h, s, lowest[b] - first, Stretch(table[b], page_size, num_kv_heads, h, first_page, count)


@compiled(error_model="numpy")
def _attend(query, turning, gains, stretch, keys, values, hidden, out, top, total, heads, unit):
    """Partial attention of a stretch of whose tokens the first `hidden` are not seen."""
    top[:] = -np.inf
    total[:] = 0.0
    if stretch.length <= 0:
        return
    scores = np.empty(scores_size(stretch.length, heads, unit), np.float32)
    _scores(scores, query, stretch, keys, heads)
    add_bias(scores, turning, stretch.first_page * stretch.page_size, stretch.length, heads)
    soften_stretch(scores, stretch.length, hidden, top, total, heads, unit)
    weigh_by_gains(scores, stretch, *gains, heads)
    mix(out, scores, stretch, values, heads)


@register_jitable
def scores_size(count, heads, unit):
    """Numbers that hold the scores of `count` tokens in whole vectors."""
    return (count + len(unit) - 1) // len(unit) * len(unit) * len(heads)


@compiled(error_model="numpy")
def soften_stretch(scores, count, hidden, top, total, heads, unit):
    """Scores (count, G) become 2**(score - top), hidden ones 0; top and total (G,) are their largest and their sums."""
    G, U = len(heads), len(unit)
    units = (count + U - 1) // U
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


def _by_table(side: Any) -> bool:
    """Whether codes of a side, given in Numba types, look up what all heads have in common: a table entry or a bin."""
    return len(Side._make(side).way) == TABLE


@chosen
def _scores(scores, query, stretch, side, heads):
    """scores (count, G) of a stretch."""
    return _scores_by_table if _by_table(side) else _scores_by_centroid


@chosen
def mix(out, weights, stretch, side, heads):
    """out (G, D) = the sum of the values of a stretch by weights (count, G)."""
    return _mix_by_bin if _by_table(side) else _mix_by_centroid


@chosen
def prepare_keys(prepared, query, stretch, side, heads):
    """What `look_up_keys` takes of the queries: the tables of all subspaces, (M, C, G), or their elements in the order
    of lanes, (M, G * d_sub).
    """
    return _fill_tables if _by_table(side) else _fill_lanes


@chosen
def look_up_keys(scores, prepared, stretch, side, heads):
    """scores (count, G) of a stretch from what `prepare_keys` made."""
    return _look_up_tables if _by_table(side) else _look_up_centroids


def _scores_by_centroid(scores, query, stretch, side, heads):
    lanes = np.empty(side.centroids.shape[1] * len(heads) * len(side.d_sub), np.float32)
    _fill_lanes(lanes, query, stretch, side, heads)
    _look_up_centroids(scores, lanes, stretch, side, heads)


@register_jitable
def _fill_lanes(prepared, query, stretch, side, heads):
    G, S = len(heads), len(side.d_sub)
    W = G * S
    own, _ = own_centroids(side, stretch.head)
    for m in range(side.centroids.shape[1]):
        for g in range(G):
            for e in range(S):
                prepared[m * W + g * S + e] = query[stretch.head * G + g, side.channels[own, m * S + e]]


@register_jitable
def _look_up_centroids(scores, prepared, stretch, side, heads):
    S, J = len(side.d_sub), len(side.block)
    W = len(heads) * S
    M, C = side.centroids.shape[1:3]
    _, book = own_centroids(side, stretch.head)
    partial = np.zeros(stretch.length * W, np.float32)
    scratch = scratch_of(side)
    prefetch_block(side, book, 0)
    for m in range(0, M, J):
        prefetch_block(side, book, m + J)
        start = 0
        while start < stretch.length:
            codes, place, stride, n = codes_at(scratch, stretch, side, m, start)
            score_block(
                partial, prepared[m * W :], book[m * C * S :], codes, start, n, place, stride, C,
                heads, side.d_sub, side.block, side.nbits, side.order,
            )  # fmt: skip
            start += n
    fold_scores(partial, scores, stretch.length, heads, side.d_sub)


def _scores_by_table(scores, query, stretch, side, heads):
    J = len(side.block)
    M, C = side.centroids.shape[1:3]
    _, book = own_centroids(side, stretch.head)
    lookup = np.empty(J * C * len(heads), np.float32)  # of one block: it stays in the first-level cache
    scores[: stretch.length * len(heads)] = 0.0
    scratch = scratch_of(side)
    prefetch_block(side, book, 0)
    for m in range(0, M, J):
        prefetch_block(side, book, m + J)
        _fill_block(lookup, query, stretch, side, m, heads)
        _sum_block(scores, lookup, scratch, stretch, side, m, heads)


@register_jitable
def _fill_block(lookup, query, stretch, side, m, heads):
    """The tables of the J subspaces from m on."""
    G, S = len(heads), len(side.d_sub)
    C = side.centroids.shape[2]
    own, book = own_centroids(side, stretch.head)
    wanted = np.empty(S * G, np.float32)
    for j in range(len(side.block)):
        for e in range(S):
            for g in range(G):
                wanted[e * G + g] = query[stretch.head * G + g, side.channels[own, (m + j) * S + e]]
        fill_table(lookup[j * C * G :], wanted, book[(m + j) * C * S :], C, heads, side.d_sub)


@register_jitable
def _sum_block(scores, lookup, scratch, stretch, side, m, heads):
    """Add to scores what the codes of the J subspaces from m on find in their tables."""
    C = side.centroids.shape[2]
    start = 0
    while start < stretch.length:
        codes, place, stride, n = codes_at(scratch, stretch, side, m, start)
        sum_block(scores, lookup, codes, start, n, place, stride, C, heads, side.block, side.nbits, side.order)
        start += n


@register_jitable
def _fill_tables(prepared, query, stretch, side, heads):
    M, C = side.centroids.shape[1:3]
    _, book = own_centroids(side, stretch.head)
    prefetch_block(side, book, 0)
    for m in range(0, M, len(side.block)):
        prefetch_block(side, book, m + len(side.block))
        _fill_block(prepared[m * C * len(heads) :], query, stretch, side, m, heads)


@register_jitable
def _look_up_tables(scores, prepared, stretch, side, heads):
    M, C = side.centroids.shape[1:3]
    scores[: stretch.length * len(heads)] = 0.0
    scratch = scratch_of(side)
    for m in range(0, M, len(side.block)):
        _sum_block(scores, prepared[m * C * len(heads) :], scratch, stretch, side, m, heads)


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
