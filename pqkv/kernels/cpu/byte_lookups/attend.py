"""One query per sequence over coded pages by look-ups in byte tables: a stretch of tokens of one KV head at a time.

Pages are transposed, of whole blocks of 64 tokens. Scores of a stretch stay in the second-level cache, the weights of a
span of blocks in the first. What a code past the context brings is hidden before anybody looks: codes are bytes, and
no byte is outside a table.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from pqkv.compiled import compiled
from pqkv.kernels.cpu.byte_lookups.instructions import BLOCK, WEIGHT_BYTES
from pqkv.kernels.cpu.byte_lookups.intrinsics import (
    largest,
    mix_span,
    prefetch_bytes,
    score_block,
    sum_lanes,
    weigh,
)
from pqkv.kernels.cpu.byte_lookups.shapes import SPAN
from pqkv.kernels.cpu.byte_lookups.weights import LANES
from pqkv.kernels.cpu.step import PAGES, end_unit
from pqkv.kernels.cpu.turning import add_bias_of_blocks
from pqkv.thread_code import bind, bound_size, next_unit
from pqkv.vector_code import chosen, drop_stale_code

SCORES, WEIGHTS, VALUES = 1, 2, 3  # phases
_AHEAD = 2  # blocks between the one that is scored and the one whose codes are asked for meanwhile
_LEAST = np.float32(2.0**-100)  # a query all of whose numbers are below scores 0


class ByteSide(NamedTuple):
    """Coded keys or values with centroids of bytes; the last two are tags (`vector_code.tag`)."""

    pages: np.ndarray  # flat, uint8
    line: int  # bytes of the codes of a subspace in a page
    table: np.ndarray  # (H * D * C,) bytes: of each element the components of all centroids; of keys 128 more
    scales: np.ndarray  # (H, D) float32, of an element
    channels: np.ndarray  # (H, D): coded element -> channel
    nbits: tuple[int, ...]
    d_sub: tuple[int, ...]


@compiled(nogil=True)
def bind_bytes(
    changing, turn_middles, turn_rows, turn_slow, gains, gain_values, num_kv_heads, page_size,
    key_pages, key_line, key_table, key_scales, key_channels, key_nbits, key_d_sub,
    value_pages, value_line, value_table, value_scales, value_channels, value_nbits, value_d_sub,
    largest_query, path, lanes, scaled, heads, gained, query_bytes, phases,
):  # fmt: skip
    """As `coded.bind_coded`; `largest_query`, `lanes` and `scaled` are a path's, and `query_bytes`, of a query's
    numbers. A group of more query heads than the tag `heads` is long is served in parts of as many, a unit of work
    each. It ends after as many `phases` as the tag is long (`SCORES`, `WEIGHTS`, `VALUES`).
    """
    keys = ByteSide(key_pages, key_line, key_table, key_scales, key_channels, key_nbits, key_d_sub)
    values = ByteSide(value_pages, value_line, value_table, value_scales, value_channels, value_nbits, value_d_sub)
    tags = largest_query, path, lanes, scaled, heads, gained, query_bytes, phases
    turns = turn_middles, turn_rows, turn_slow
    given = turns, (gains, gain_values), num_kv_heads, page_size, keys, values, tags
    room = np.empty(bound_size(_attend_units, changing, given), np.uint8)
    return bind(_attend_units, changing, given, room), room


@compiled(error_model="numpy")
def _attend_units(now, turns, gains, Hkv, page_size, keys, values, tags):
    middles, rows, slow = turns
    stretches, G = now.top.shape[2] - 1, len(tags[4])
    room = _room_of(min(now.stretch, _longest(now.lengths[PAGES])), keys.channels.shape[1], tags)
    parts = now.top.shape[3] // G  # one after another on a stretch: its codes are in a cache then
    job = next_unit(now.taken)
    while job < len(now.query) * Hkv * stretches * parts:
        part, unit = job % parts * G, job // parts
        b, h, s = unit // (Hkv * stretches), unit // stretches % Hkv, unit % stretches
        lowest = now.starts[PAGES, b]
        first_page = max(s * now.stretch, lowest) // page_size
        first = first_page * page_size
        count = min((s + 1) * now.stretch, now.lengths[PAGES, b]) - first
        own = now.out[b, h, s, part : part + G], now.top[b, h, s, part : part + G], now.total[b, h, s, part : part + G]
        own[1][:] = -np.inf
        own[2][:] = 0.0
        if count > 0:
            pages = now.table[b, first_page : first_page + (count + page_size - 1) // page_size]
            asking = h * now.top.shape[3] + part  # the first of the query heads
            turning = now.phasors[b, asking : asking + G], now.phasor_scale, middles, rows, slow
            seen = count, lowest - first, first // BLOCK
            query = now.coded_query[b, asking : asking + G]
            _attend(query, turning, gains, pages, seen, h, Hkv, page_size, keys, values, own, room, tags)
        if len(tags[7]) == VALUES:
            end_unit(now, b, h)
        job = next_unit(now.taken)


@compiled(error_model="numpy")
def _attend(query, turning, gains, pages, seen, head, Hkv, page_size, keys, values, found, room, tags):
    """Partial attention of `count` tokens in `pages`, from block `first_block` of their sequence on, of which the first
    `hidden` are not seen. `room` is of `_room_of`.
    """
    count, hidden, first_block = seen
    largest_query, path, _, scaled, heads, _, query_bytes, phases = tags
    out, top, total = found
    G, D = len(heads), keys.channels.shape[1]
    blocks = (count + BLOCK - 1) // BLOCK
    groups = (blocks + len(scaled) - 1) // len(scaled)
    scores = room[0][: groups * len(scaled) * G * BLOCK]
    key_places = _places(keys, pages, blocks, groups * len(scaled), head, Hkv, page_size, D)
    value_places = _places(values, pages, blocks, groups * len(scaled), head, Hkv, page_size, D)
    for i in range(min(_AHEAD, blocks)):
        _ask_for_block(keys, key_places[i], D)
    own = head % keys.channels.shape[0]
    integers, offsets, scales = _as_integers(query, keys.scales[own], keys.channels[own], G, largest_query, query_bytes)
    size = D * (1 << len(keys.nbits))
    key_start, value_start = keys.pages.ctypes.data, values.pages.ctypes.data
    mixed_first = blocks - min(SPAN, blocks)  # from here on the values that are read first are asked for as well
    for i in range(blocks):
        soon = key_start + key_places[min(i + _AHEAD, blocks - 1)]
        later, later_line = soon, 0  # nothing: the same line again and again
        if i >= mixed_first:
            later = value_start + value_places[i - mixed_first]
            later_line = values.line
        score_block(
            scores, keys.pages, keys.table, integers, offsets, scales, i, key_places[i], keys.line, own * size, D,
            soon, keys.line, later, later_line, path, keys.nbits, keys.d_sub, heads,
        )  # fmt: skip
    add_bias_of_blocks(scores, turning, first_block, blocks, heads)
    _hide(scores, count, hidden, G)
    if len(phases) == SCORES:
        return
    largest(scores, top, groups * len(scaled), heads)
    _mix(out, scores, value_places, top, total, gains, pages, count, head, Hkv, page_size, values, room, tags)


@register_jitable
def _longest(context_len):
    """Tokens of the longest sequence."""
    most = np.int64(0)
    for length in context_len:
        most = max(most, length)
    return most


@register_jitable
def _room_of(tokens, D, tags):
    """What a thread works in, for all its units, of at most `tokens` each: scores of a stretch, weights of a span, sums
    of values. Fresh pages of memory for each unit would cost more than the smallest of them.
    """
    lanes, scaled, G = len(tags[2]), len(tags[3]), len(tags[4])
    blocks = (tokens + BLOCK - 1) // BLOCK
    blocks = (blocks + scaled - 1) // scaled * scaled
    scores = _lines(4 * blocks * G * BLOCK).view(np.float32)
    weights = _lines(min(SPAN, blocks) * G * WEIGHT_BYTES)
    rows = (D * G + lanes - 1) // lanes * lanes  # as many at a time are summed up in the end
    return scores, weights, _lines(4 * rows * lanes).view(np.float32)


@register_jitable
def _lines(count):
    """`count` bytes that begin with a line of the cache: a vector that lies across two of them takes two loads."""
    room = np.empty(count + BLOCK, np.uint8)
    first = -room.ctypes.data % BLOCK
    return room[first : first + count]


@register_jitable
def _places(side, pages, blocks, count, head, Hkv, page_size, D):
    """Where the codes of each block's first subspace begin, `count` of them; past the last that of the last."""
    places, share, i = np.empty(count, np.int64), BLOCK * len(side.nbits) // 8, 0
    for page in pages:
        start = (np.int64(page) * Hkv + head) * (D // len(side.d_sub)) * side.line
        for j in range(min(page_size // BLOCK, blocks - i)):
            places[i] = start + j * share
            i += 1
    places[i:] = places[i - 1]
    return places


@register_jitable
def _ask_for_block(side, place, D):
    """Ask for the codes of a block: those that no look-up before them asks for."""
    share = BLOCK * len(side.nbits) // 8
    for m in range(D // len(side.d_sub)):
        prefetch_bytes(side.pages, place + m * side.line, share)


@chosen
def _query_room(shape, query_bytes):
    """Room for integers of so many bytes."""
    kind = np.int8 if len(query_bytes) == 1 else np.int16
    return lambda shape, query_bytes: np.empty(shape, kind)


@register_jitable
def _as_integers(query, scales, channels, G, largest_query, query_bytes):
    """Queries (G, D), signed and at most `largest_query`, in coded order with the centroids' scales in them, what
    unsigned components add to a sum, and what a product of integers stands for.
    """
    D = len(channels)
    integers, offsets, steps = _query_room((G, D), query_bytes), np.empty(G, np.int32), np.empty(G, np.float32)
    limit = np.float32(largest_query)
    scaled = np.empty(D, np.float32)
    for g in range(G):
        most = np.float32(0.0)
        for e in range(D):
            scaled[e] = query[g, channels[e]] * scales[e]
            most = max(most, abs(scaled[e]))
        up = limit / most if most > _LEAST else np.float32(0.0)
        steps[g] = most / limit
        summed = np.int64(0)
        if most < np.inf:
            for e in range(D):
                whole = np.int64(np.rint(scaled[e] * up))
                integers[g, e] = whole
                summed += whole
        else:  # infinite or NaN, as the scores then are
            integers[g] = 0
            steps[g] = np.nan
        offsets[g] = 128 * summed
    return integers, offsets, steps


@register_jitable
def _hide(scores, count, hidden, G):
    """Scores (blocks, G, 64) of tokens before `hidden` and from `count` on become -inf."""
    blocks = len(scores) // (G * BLOCK)
    for block in range((hidden + BLOCK - 1) // BLOCK):
        for g in range(G):
            start = (block * G + g) * BLOCK
            scores[start : start + min(hidden - block * BLOCK, BLOCK)] = -np.inf
    for block in range(count // BLOCK, blocks):
        for g in range(G):
            start = (block * G + g) * BLOCK
            scores[start + max(count - block * BLOCK, 0) : start + BLOCK] = -np.inf


@register_jitable
def _mix(out, scores, places, top, total, gains, pages, count, head, Hkv, page_size, values, room, tags):
    _, path, lanes, scaled, heads, gained, _, phases = tags
    G, D = len(heads), values.channels.shape[1]
    best = np.empty(G, np.float32)
    for g in range(G):
        best[g] = top[g] if top[g] > -np.inf else np.float32(0.0)
    _, weights, sums = room
    span = min(SPAN, len(places))
    asked, start = np.empty(span, np.int64), values.pages.ctypes.data
    steps = np.empty(span // len(scaled) * G, np.float32)
    mass, norm = np.zeros(G * LANES, np.float32), np.zeros(G * LANES, np.float32)
    sums[:] = 0.0
    gain = np.empty(span * BLOCK if len(gained) else 0, np.float32)
    inverse = np.empty_like(gain)
    own = head % values.channels.shape[0]
    size = D * (1 << len(values.nbits))
    for first in range(0, len(places), span):
        groups = min(span, len(places) - first) // len(scaled)
        if len(gained):
            _spread_gains(gain, inverse, gains, pages, first * BLOCK, count, head, Hkv, page_size)
        weigh(scores, best, gain, inverse, weights, steps, mass, norm, first, groups, path, heads, gained)
        if len(phases) == VALUES:
            for i in range(span):  # of the next span
                asked[i] = start + places[min(first + span + i, len(places) - 1)]
            mix_span(
                sums, values.pages, places[first:], values.table, weights, steps, asked, groups, values.line,
                own * size, D, path, values.nbits, values.d_sub, heads,
            )  # fmt: skip
    summed = np.empty(len(sums) // len(lanes), np.float32)
    sum_lanes(sums, summed, len(summed), lanes)
    for g in range(G):
        stood = np.float32(0.0)
        for i in range(LANES):
            total[g] += mass[g * LANES + i]
            stood += norm[g * LANES + i]
        share = total[g] / stood if stood > 0.0 else np.float32(0.0)
        for e in range(D):
            out[g, values.channels[own, e]] = summed[e * G + g] * values.scales[own, e] * share


@register_jitable
def _spread_gains(gain, inverse, gains, pages, first, count, head, Hkv, page_size):
    """The gains of tokens `first` on and their inverses; 1 past the context."""
    stored, numbers = gains
    for i in range(len(gain)):
        token, factor = first + i, np.float32(1.0)
        if token < count:
            page = np.int64(pages[token // page_size])
            factor = numbers[head, stored[(page * Hkv + head) * page_size + token % page_size]]
        gain[i] = factor
        inverse[i] = np.float32(1.0) / factor


drop_stale_code(bind_bytes, *Path(__file__).parents[1:3])  # of `cpu` and `kernels`
