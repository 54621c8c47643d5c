"""One query per sequence over coded pages: scores, softmax and values of a stretch of tokens, head group by head group.

A stretch (some thousand tokens of one sequence and KV head, in whole pages) is one unit of work; its scores stay in the
second-level cache. Within it the subspaces pass in blocks whose tables fit the first. Nothing is decoded to memory.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.extending import overload

from pqkv.kernels.cpu.lookups import (
    ROW,
    bin_block,
    empty_bins,
    fill_table,
    prefetch_lines,
    prefetch_table,
    score_block,
    sum_block,
    value_block,
)
from pqkv.kernels.cpu.softmax import fold_scores, largest, soften
from pqkv.kernels.cpu.unpack import unpack_lines, unpack_rows

REGISTER = 8  # floats of one vector register; more lanes than this and tables or bins cost less than centroids
_SPAN = 64  # tokens unpacked at once
_AHEAD = 2  # pages between the one whose codes are asked for and the one that is read


@numba.njit(parallel=True, cache=True, error_model="numpy")
def attend_coded(
    query, context_len, lowest, table, num_kv_heads, page_size, stretch_pages,
    key_pages, key_line, key_centroids, key_channels, key_scratch, key_d_sub, key_block, key_nbits, key_order,
    value_pages, value_line, value_centroids, value_channels, value_scratch, value_d_sub, value_block_, value_nbits,
    value_order, out, top, total, heads, unit,
):  # fmt: skip
    """Partial attention of every stretch; `pqkv.kernels.cpu.decode` merges them.

    query (B, Hq, D) float32, scaled to base 2. Sequence b has context_len[b] tokens in the pages of table[b], of which
    those before lowest[b] are not seen. Of each side: flat uint8 pages, bytes of a line, centroids (H, M, C, d_sub),
    channels (H, D), and tags: bytes of an unpacked code (0 where codes are read where they lie), d_sub, J, nbits, order
    (see `lookups`). Per (b, head, stretch): out (..., G, D), largest score `top` and mass `total` (..., G); -inf and 0
    for what is empty.
    """
    stretches = out.shape[2]
    for job in numba.prange(query.shape[0] * num_kv_heads * stretches):
        b = job // (num_kv_heads * stretches)
        h = job // stretches % num_kv_heads
        s = job % stretches
        # tuples are made here: Numba does not hand nested ones to its threads
        keys = (
            key_pages, key_line, key_centroids, key_channels, key_scratch, key_d_sub, key_block, key_nbits, key_order,
        )  # fmt: skip
        values = (
            value_pages, value_line, value_centroids, value_channels, value_scratch, value_d_sub, value_block_,
            value_nbits, value_order,
        )  # fmt: skip
        first_page = max(s * stretch_pages, lowest[b] // page_size)
        first = first_page * page_size
        count = min((s + 1) * stretch_pages * page_size, context_len[b]) - first
        _stretch(
            query, (table, num_kv_heads, page_size), keys, values, heads, unit, b, h, first_page, count,
            lowest[b] - first, out[b, h, s], top[b, h, s], total[b, h, s],
        )  # fmt: skip


@numba.njit(error_model="numpy")
def _stretch(query, paging, keys, values, heads, unit, b, h, first_page, count, hidden, out, top, total):
    """Partial attention of `count` tokens from `first_page` on, of which the first `hidden` are not seen."""
    G, U = len(heads), len(unit)
    top[:] = -np.inf
    total[:] = 0.0
    if count <= 0:
        return
    units = (count + U - 1) // U
    scores = np.empty(units * U * G, np.float32)
    _scores(scores, query, paging, keys, heads, b, h, first_page, count)
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
    _mix(out, scores, paging, values, heads, b, h, first_page, count)


def _scores(scores, query, paging, side, heads, b, h, first_page, count):
    """scores (count, G) of the tokens from `first_page` on."""
    raise NotImplementedError


def _mix(out, weights, paging, side, heads, b, h, first_page, count):
    """out (G, D) = the sum of the values of the tokens from `first_page` on by weights (count, G)."""
    raise NotImplementedError


def _codes(scratch, paging, side, b, h, m, first_page, start, count):
    """Codes of J subspaces from m on and the tokens from `start` on that lie in one page: (array, where they start,
    stride, how many tokens).
    """
    raise NotImplementedError


def _lanes(heads: Any, side: Any) -> int:
    return len(heads) * len(side[5])


@overload(_scores)
def _choose_scores(scores, query, paging, side, heads, b, h, first_page, count):
    return _scores_by_table if _lanes(heads, side) > REGISTER else _scores_by_centroid


@overload(_mix)
def _choose_mix(out, weights, paging, side, heads, b, h, first_page, count):
    return _mix_by_bin if _lanes(heads, side) > 2 * REGISTER else _mix_by_centroid


@overload(_codes)
def _choose_codes(scratch, paging, side, b, h, m, first_page, start, count):
    transposed = len(side[8]) != ROW
    if not len(side[4]):
        return _lines_in_place if transposed else _rows_in_place
    return _lines_unpacked if transposed else _rows_unpacked


# side: 0 pages, 1 line, 2 centroids, 3 channels, tags: 4 bytes of an unpacked code, 5 d_sub, 6 block, 7 nbits, 8 order
def _lines_in_place(scratch, paging, side, b, h, m, first_page, start, count):
    table, Hkv, page_size = paging
    line, M = side[1], side[2].shape[1]
    index = first_page + start // page_size
    later = min(index + _AHEAD, first_page + (count - 1) // page_size)
    prefetch_lines(side[0], ((np.int64(table[b, later]) * Hkv + h) * M + m) * line, line, side[6])
    return side[0], ((np.int64(table[b, index]) * Hkv + h) * M + m) * line, line, min(page_size, count - start)


def _rows_in_place(scratch, paging, side, b, h, m, first_page, start, count):
    table, Hkv, page_size = paging
    page = np.int64(table[b, first_page + start // page_size])
    return side[0], (page * Hkv + h) * page_size * side[1] + m, side[1], min(page_size, count - start)


def _lines_unpacked(scratch, paging, side, b, h, m, first_page, start, count):
    table, Hkv, page_size = paging
    base = (np.int64(table[b, first_page + start // page_size]) * Hkv + h) * side[2].shape[1] * side[1]
    slot = start % page_size
    n = min(_SPAN, page_size - slot, count - start)
    nbits = _width(side[2].shape[2])
    unpack_lines(side[0], base, side[1], m, len(side[6]), slot, n, nbits, _SPAN, scratch)
    return scratch, 0, _SPAN, n


def _rows_unpacked(scratch, paging, side, b, h, m, first_page, start, count):
    table, Hkv, page_size = paging
    base = (np.int64(table[b, first_page + start // page_size]) * Hkv + h) * page_size * side[1]
    slot = start % page_size
    n = min(_SPAN, page_size - slot, count - start)
    nbits = _width(side[2].shape[2])
    unpack_rows(side[0], base + slot * side[1], side[1], m, len(side[6]), n, nbits, scratch)
    return scratch, 0, 8, n


@numba.njit(inline="always")
def _width(entries):
    """Bits of a code that names one of `entries` (a power of 2)."""
    nbits = 0
    while entries > 1:
        entries >>= 1
        nbits += 1
    return nbits


def _scratch(side):
    """Room for the unpacked codes of a block; unused where codes are read where they lie."""
    raise NotImplementedError


@overload(_scratch)
def _choose_scratch(side):
    if not len(side[4]):
        return lambda side: side[0]
    kind = np.uint8 if len(side[4]) == 1 else np.uint16
    return lambda side: np.empty(8 * _SPAN, kind)


def _scores_by_centroid(scores, query, paging, side, heads, b, h, first_page, count):
    G, S, J = len(heads), len(side[5]), len(side[6])
    W = G * S
    H, M, C = side[2].shape[:3]
    own = h % H
    book = side[2].reshape(-1)[own * M * C * S : (own + 1) * M * C * S]
    lanes = np.empty(M * W, np.float32)
    for m in range(M):
        for g in range(G):
            for e in range(S):
                lanes[m * W + g * S + e] = query[b, h * G + g, side[3][own, m * S + e]]
    partial = np.zeros(count * W, np.float32)
    scratch = _scratch(side)
    prefetch_table(book, 0, J * C * S)
    for m in range(0, M, J):
        prefetch_table(book, (m + J) * C * S, min(J, M - m - J) * C * S)
        start = 0
        while start < count:
            codes, place, stride, n = _codes(scratch, paging, side, b, h, m, first_page, start, count)
            score_block(
                partial, lanes[m * W :], book[m * C * S :], codes, start, n, place, stride, C,
                heads, side[5], side[6], side[7], side[8],
            )  # fmt: skip
            start += n
    fold_scores(partial, scores, count, heads, side[5])


def _scores_by_table(scores, query, paging, side, heads, b, h, first_page, count):
    G, S, J = len(heads), len(side[5]), len(side[6])
    H, M, C = side[2].shape[:3]
    own = h % H
    book = side[2].reshape(-1)[own * M * C * S : (own + 1) * M * C * S]
    wanted = np.empty(S * G, np.float32)
    lookup = np.empty(J * C * G, np.float32)
    scores[: count * G] = 0.0
    scratch = _scratch(side)
    prefetch_table(book, 0, J * C * S)
    for m in range(0, M, J):
        prefetch_table(book, (m + J) * C * S, min(J, M - m - J) * C * S)
        for j in range(J):
            for e in range(S):
                for g in range(G):
                    wanted[e * G + g] = query[b, h * G + g, side[3][own, (m + j) * S + e]]
            fill_table(lookup[j * C * G :], wanted, book[(m + j) * C * S :], C, heads, side[5])
        start = 0
        while start < count:
            codes, place, stride, n = _codes(scratch, paging, side, b, h, m, first_page, start, count)
            sum_block(scores, lookup, codes, start, n, place, stride, C, heads, side[6], side[7], side[8])
            start += n


def _mix_by_centroid(out, weights, paging, side, heads, b, h, first_page, count):
    G, S, J = len(heads), len(side[5]), len(side[6])
    W = G * S
    H, M, C = side[2].shape[:3]
    own = h % H
    book = side[2].reshape(-1)[own * M * C * S : (own + 1) * M * C * S]
    sums = np.empty(J * W, np.float32)
    scratch = _scratch(side)
    prefetch_table(book, 0, J * C * S)
    for m in range(0, M, J):
        prefetch_table(book, (m + J) * C * S, min(J, M - m - J) * C * S)
        sums[:] = 0.0
        start = 0
        while start < count:
            codes, place, stride, n = _codes(scratch, paging, side, b, h, m, first_page, start, count)
            value_block(
                sums, weights, book[m * C * S :], codes, start, n, place, stride, C,
                heads, side[5], side[6], side[7], side[8],
            )  # fmt: skip
            start += n
        for j in range(J):
            for g in range(G):
                for e in range(S):
                    out[g, side[3][own, (m + j) * S + e]] = sums[j * W + g * S + e]


def _mix_by_bin(out, weights, paging, side, heads, b, h, first_page, count):
    G, S, J = len(heads), len(side[5]), len(side[6])
    H, M, C = side[2].shape[:3]
    own = h % H
    book = side[2].reshape(-1)[own * M * C * S : (own + 1) * M * C * S]
    bins = np.empty(J * C * G, np.float32)
    sums = np.empty(G * S, np.float32)
    scratch = _scratch(side)
    prefetch_table(book, 0, J * C * S)
    for m in range(0, M, J):
        prefetch_table(book, (m + J) * C * S, min(J, M - m - J) * C * S)
        bins[:] = 0.0
        start = 0
        while start < count:
            codes, place, stride, n = _codes(scratch, paging, side, b, h, m, first_page, start, count)
            bin_block(bins, weights, codes, start, n, place, stride, C, heads, side[6], side[7], side[8])
            start += n
        for j in range(J):
            empty_bins(sums, bins[j * C * G :], book[(m + j) * C * S :], C, heads, side[5])
            for g in range(G):
                for e in range(S):
                    out[g, side[3][own, (m + j) * S + e]] = sums[g * S + e]
