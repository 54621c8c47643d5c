"""Exact keys and values of one query per sequence: sinks, residual window, exact pages, and the merge of all parts.

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
from pqkv.vector_code import next_unit, on_threads

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
def _fold(query, first_head, keys, values, place, first, end, state, out, orders, heads, unit, rest, kind, form):
    """out (G, D) = sums of values of the tokens first ... end - 1 by 2 ** (score - state[0]), state[1] (G,) those of
    the weights, state[0] the largest scores.

    query (Hq, D) of a sequence, scaled to base 2; place = (table (pages,), page_size, num_kv_heads, head).
    """
    G, U, D = len(heads), len(unit), out.shape[1]
    for g in range(G):
        state[0, g] = -np.inf
        state[1, g] = 0.0
        for d in range(D):
            out[g, d] = 0.0
    if first >= end:
        return
    query_order, value_order = orders
    V, L = value_order.shape
    prepared = query_room(query_order, heads, kind, form)
    prepare_query(prepared, query, first_head, query_order, heads, kind, form)
    most = min(_CHUNK, end - first)
    sums = np.zeros(V * G * L, np.float32)
    scores = np.empty((most + _ROOM + U) * G, np.float32)
    room = weight_room(most, heads, kind, form)
    top, total = np.empty(G * U, np.float32), np.empty(G * U, np.float32)
    for start in range(first, end, _CHUNK):
        n = min(_CHUNK, end - start)
        t = 0
        while t < n:
            count = _run_at(start + t, start + n, place)
            rows, then = _place_of(start + t, *place, D), t + count
            later, ahead = (keys, start + then) if then < n else (values, start)
            score_rows(
                scores,
                t * G,
                prepared,
                keys,
                D,
                rows,
                count,
                later,
                _place_of(ahead, *place, D),
                heads,
                rest,
                kind,
                form,
            )
            t = then
        for i in range(n * G, (n + _ROOM) * G):
            scores[i] = -np.inf
        _soften(scores, n, state, sums, top, total, heads, unit, V, L)
        weights, token, head = prepare_weights(room, scores, n, heads, kind, form)
        t = 0
        while t < n:
            count = _run_at(start + t, start + n, place)
            rows, then = _place_of(start + t, *place, D), t + count
            later, ahead = (values, start + then) if then < n else (keys, min(start + n, end - 1))
            add_values(
                sums, weights, t * token, head, values, D, rows, count, later, _place_of(ahead, *place, D), heads, rest,
                kind, form,
            )  # fmt: skip
            t = then
    for v in range(V):
        for g in range(G):
            for i in range(L):
                if value_order[v, i] >= 0:
                    out[g, value_order[v, i]] = sums[(v * G + g) * L + i]


@compiled(error_model="numpy")
def _soften(scores, count, state, sums, top, total, heads, unit, V, L):
    """Scores become weights relative to the largest so far, which what was summed before comes to follow."""
    G, U = len(heads), len(unit)
    units = (count + U - 1) // U
    largest(scores, top, units, heads, unit)
    for g in range(G):
        best = state[0, g]
        for i in range(g, G * U, G):
            best = max(best, top[i])
        if best > state[0, g]:
            shrink = np.exp2(state[0, g] - best)
            state[0, g] = best
            state[1, g] *= shrink
            for v in range(V):
                for i in range((v * G + g) * L, (v * G + g + 1) * L):
                    sums[i] *= shrink
        for i in range(g, G * U, G):
            top[i] = best if best > -np.inf else np.float32(0.0)
    soften(scores, top, total, units, heads, unit)
    for i in range(G * U):
        state[1, i % G] += total[i]


@compiled(nogil=True)
def attend_exact_pages(
    launch, threads, taken, query, table, context_len, lowest, num_kv_heads, page_size, stretch_tokens,
    keys, values, out, top, total, query_order, value_order, heads, unit, rest, kind, form,
):  # fmt: skip
    """Partial attention of every stretch of `stretch_tokens` in exact pages (flat, as (pages, Hkv, page_size, D)); as
    `attend_coded`.
    """
    places, orders = (table, context_len, lowest, num_kv_heads, page_size, stretch_tokens), (query_order, value_order)
    return on_threads(
        launch, threads, _attend_units,
        (taken, query, places, keys, values, out, top, total, orders, heads, unit, rest, kind, form),
    )  # fmt: skip


@compiled(error_model="numpy")
def _attend_units(taken, query, places, keys, values, out, top, total, orders, heads, unit, rest, kind, form):
    table, context_len, lowest, num_kv_heads, page_size, stretch_tokens = places
    G, stretches = len(heads), out.shape[2]
    state = np.empty((2, G), np.float32)
    job = next_unit(taken)
    while job < len(query) * num_kv_heads * stretches:
        b = job // (num_kv_heads * stretches)
        h = job // stretches % num_kv_heads
        s = job % stretches
        first = max(s * stretch_tokens, lowest[b])
        end = min((s + 1) * stretch_tokens, context_len[b])
        _fold(
            query[b], h * G, keys, values, (table[b], page_size, num_kv_heads, h), first, end, state, out[b, h, s],
            orders, heads, unit, rest, kind, form,
        )  # fmt: skip
        for g in range(G):
            top[b, h, s, g], total[b, h, s, g] = state[0, g], state[1, g]
        job = next_unit(taken)


@compiled(nogil=True)
def merge(
    launch, threads, taken, query, out, top, total, sink_keys, sink_values, sink_capacity, sink_len, sink_lowest,
    residual_keys, residual_values, residual_capacity, residual_len, residual_lowest, result, lse,
    query_order, value_order, heads, unit, rest, kind, form,
):  # fmt: skip
    """Stretches, sinks and residual together: result (B, Hq, D), lse (B, Hq) float64, in base e.

    Exact parts are flat, as (B, Hkv, capacity, D); of sequence b the tokens lowest[b] ... len[b] - 1 are seen.
    """
    sinks = sink_keys, sink_values, sink_capacity, sink_len, sink_lowest
    residual = residual_keys, residual_values, residual_capacity, residual_len, residual_lowest
    given = taken, query, (out, top, total), sinks, residual, result, lse, (query_order, value_order)
    return on_threads(launch, threads, _merge_units, (*given, heads, unit, rest, kind, form))


@compiled(error_model="numpy")
def _merge_units(taken, query, stretches, sinks, residual, result, lse, orders, heads, unit, rest, kind, form):
    out, top, total = stretches
    B, Hkv, S = top.shape[:3]
    G, D = len(heads), query.shape[2]
    states, sums = np.empty((2, 2, G), np.float32), np.empty((2, G, D), np.float32)
    own = np.empty(1, np.int32)
    job = next_unit(taken)
    while job < B * Hkv:
        b, h = job // Hkv, job % Hkv
        own[0] = b
        for part in range(2):
            keys, values, capacity, lengths, lows = sinks if part == 0 else residual
            _fold(
                query[b], h * G, keys, values, (own, max(capacity, 1), Hkv, h), lows[b], lengths[b], states[part],
                sums[part], orders, heads, unit, rest, kind, form,
            )  # fmt: skip
        for g in range(G):
            best = max(states[0, 0, g], states[1, 0, g])
            for s in range(S):
                best = max(best, top[b, h, s, g])
            mixed, mass = result[b, h * G + g], np.float32(0.0)
            for d in range(D):
                mixed[d] = 0.0
            for part in range(2):
                mass += _join(mixed, sums[part, g], states[part, 0, g], states[part, 1, g], best)
            for s in range(S):
                mass += _join(mixed, out[b, h, s, g], top[b, h, s, g], total[b, h, s, g], best)
            if mass == 0.0:
                lse[b, h * G + g] = -np.inf
            else:
                for d in range(D):
                    mixed[d] /= mass
                lse[b, h * G + g] = (np.float64(best) + np.log2(np.float64(mass))) * np.log(2.0)
        job = next_unit(taken)


@register_jitable
def _join(mixed, part, top, total, best):
    """Add a part to `mixed`, (D,), relative to the score `best`; returns its mass."""
    if total == 0.0:  # NaN is not 0 and goes on
        return np.float32(0.0)
    weight = np.exp2(top - best)
    for d in range(len(mixed)):
        mixed[d] += weight * part[d]
    return weight * total
