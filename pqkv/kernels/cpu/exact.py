"""Exact keys and values of one query per sequence: sinks, residual window, exact pages.

A chunk of tokens at a time: scores of its keys, their softmax, and the sums of its values, relative to the largest
score so far. Sinks and residual are pages of their own, one a sequence, so the same code serves them.
"""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from pqkv.compiled import compiled
from pqkv.kernels.cpu.exact_vectors import (
    add_values,
    prepare_query,
    prepare_weights,
    query_room,
    score_rows,
    weight_room,
)
from pqkv.kernels.cpu.softmax import largest, soften
from pqkv.kernels.cpu.step import PAGES, RESIDUAL, SINKS, end_unit
from pqkv.thread_code import bind, bound_size, next_unit

_CHUNK = 1024  # tokens whose softmax is taken at once: their scores stay in the first-level cache or close to it
_SPAN = 64  # rows that are read several times, for some of their columns or some heads each time
_ROOM = 16  # tokens past the last of a chunk that vector code may write scores of


@register_jitable
def _place_of(index, table, page_size, num_kv_heads, head, row):
    """Where the row of a token begins in pages (pages, Hkv, page_size, D)."""
    page = np.int64(table[index // page_size])
    return ((page * num_kv_heads + head) * page_size + index % page_size) * row


@register_jitable
def _run_at(index, end, place):
    """How many rows from token `index` on lie one after another, no more than are read at once."""
    return min(place[1] - index % place[1], end - index, _SPAN)


@compiled(error_model="numpy")
def _fold(query, first_head, segments, top, total, out, orders, heads, unit, rest, kind, form):
    """out (G, D) = sums of values by 2 ** (score - top), total (G,) those of the weights, top (G,) the largest scores,
    of the tokens first ... end - 1 of each of `segments`: (keys, values, place, first, end).

    query (Hq, D) of a sequence, scaled to base 2; place = (table (pages,), page_size, num_kv_heads, head).
    """
    G, U, D = len(heads), len(unit), out.shape[1]
    top[:] = -np.inf
    total[:] = 0.0
    most = 0
    for _, _, _, first, end in segments:
        most = max(most, min(_CHUNK, end - first))
    if most == 0:
        out[:] = 0.0
        return
    query_order, value_order = orders
    V, L = value_order.shape
    prepared = query_room(query_order, heads, kind, form)
    prepare_query(prepared, query, first_head, query_order, heads, kind, form)
    sums = np.zeros(V * G * L, np.float32)
    scores = np.empty((most + _ROOM + U) * G, np.float32)
    room = weight_room(most, heads, kind, form)
    highest, mass = np.empty(G * U, np.float32), np.empty(G * U, np.float32)
    for keys, values, place, first, end in segments:
        for start in range(first, end, _CHUNK):
            n = min(_CHUNK, end - start)
            t = 0
            while t < n:
                count = _run_at(start + t, start + n, place)
                rows, then = _place_of(start + t, *place, D), t + count
                later, ahead = (keys, start + then) if then < n else (values, start)
                score_rows(
                    scores, t * G, prepared, keys, D, rows, count, later, _place_of(ahead, *place, D), heads, rest,
                    kind, form,
                )  # fmt: skip
                t = then
            for i in range(n * G, (n + _ROOM) * G):
                scores[i] = -np.inf
            _soften(scores, n, top, total, sums, highest, mass, heads, unit, V, L)
            weights, token, head = prepare_weights(room, scores, n, heads, kind, form)
            t = 0
            while t < n:
                count = _run_at(start + t, start + n, place)
                rows, then = _place_of(start + t, *place, D), t + count
                later, ahead = (values, start + then) if then < n else (keys, min(start + n, end - 1))
                add_values(
                    sums, weights, t * token, head, values, D, rows, count, later, _place_of(ahead, *place, D), heads,
                    rest, kind, form,
                )  # fmt: skip
                t = then
    for v in range(V):
        for g in range(G):
            for i in range(L):
                if value_order[v, i] >= 0:
                    out[g, value_order[v, i]] = sums[(v * G + g) * L + i]


@compiled(error_model="numpy")
def _soften(scores, count, top, total, sums, highest, mass, heads, unit, V, L):
    """Scores become weights relative to the largest so far, which what was summed before comes to follow."""
    G, U = len(heads), len(unit)
    units = (count + U - 1) // U
    largest(scores, highest, units, heads, unit)
    for g in range(G):
        best = top[g]
        for i in range(g, G * U, G):
            best = max(best, highest[i])
        if best > top[g]:
            shrink = np.exp2(top[g] - best)
            top[g] = best
            total[g] *= shrink
            for v in range(V):
                for i in range((v * G + g) * L, (v * G + g + 1) * L):
                    sums[i] *= shrink
        for i in range(g, G * U, G):
            highest[i] = best if best > -np.inf else np.float32(0.0)
    soften(scores, highest, mass, units, heads, unit)
    for i in range(G * U):
        total[i % G] += mass[i]


@compiled(nogil=True)
def bind_exact_pages(
    changing, num_kv_heads, page_size, keys, values, query_order, value_order, heads, unit, rest, kind, form
):  # fmt: skip
    """As `coded.bind_coded`, of exact pages (flat, as (pages, Hkv, page_size, D))."""
    given = num_kv_heads, page_size, keys, values, (query_order, value_order), heads, unit, rest, kind, form
    room = np.empty(bound_size(_attend_units, changing, given), np.uint8)
    return bind(_attend_units, changing, given, room), room


@compiled(error_model="numpy")
def _attend_units(now, Hkv, page_size, keys, values, orders, heads, unit, rest, kind, form):
    stretches = now.top.shape[2] - 1
    job = next_unit(now.taken)
    while job < len(now.query) * Hkv * stretches:
        b = job // (Hkv * stretches)
        h = job // stretches % Hkv
        s = job % stretches
        first = max(s * now.stretch, now.starts[PAGES, b])
        end = min((s + 1) * now.stretch, now.lengths[PAGES, b])
        segments = ((keys, values, (now.table[b], page_size, Hkv, h), first, end),)
        found = now.top[b, h, s], now.total[b, h, s], now.out[b, h, s]
        _fold(now.query[b], h * len(heads), segments, *found, orders, heads, unit, rest, kind, form)
        end_unit(now, b, h)
        job = next_unit(now.taken)


@compiled(nogil=True)
def bind_exact_parts(
    changing, num_kv_heads, sink_keys, sink_values, sink_capacity, residual_keys, residual_values, residual_capacity,
    query_order, value_order, heads, unit, rest, kind, form,
):  # fmt: skip
    """Partial attention of sinks and residual (flat, as (B, Hkv, capacity, D)), a unit of work for each KV head of a
    sequence, bound as `coded.bind_coded` is.
    """
    sinks, residual = (sink_keys, sink_values, sink_capacity), (residual_keys, residual_values, residual_capacity)
    given = num_kv_heads, sinks, residual, (query_order, value_order), heads, unit, rest, kind, form
    room = np.empty(bound_size(_exact_units, changing, given), np.uint8)
    return bind(_exact_units, changing, given, room), room


@compiled(error_model="numpy")
def _exact_units(now, Hkv, sinks, residual, orders, heads, unit, rest, kind, form):
    last = now.top.shape[2] - 1
    own = np.empty(1, np.int32)
    job = next_unit(now.taken[1:])
    while job < len(now.query) * Hkv:
        b, h = job // Hkv, job % Hkv
        own[0] = b
        segments = (
            (sinks[0], sinks[1], (own, max(sinks[2], 1), Hkv, h), now.starts[SINKS, b], now.lengths[SINKS, b]),
            (residual[0], residual[1], (own, max(residual[2], 1), Hkv, h), now.starts[RESIDUAL, b],
             now.lengths[RESIDUAL, b]),
        )  # fmt: skip
        found = now.top[b, h, last], now.total[b, h, last], now.out[b, h, last]
        _fold(now.query[b], h * len(heads), segments, *found, orders, heads, unit, rest, kind, form)
        end_unit(now, b, h)
        job = next_unit(now.taken[1:])
