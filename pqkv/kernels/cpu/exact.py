"""Exact keys and values of one query per sequence: sinks, residual window, exact pages, and the merge of all parts."""

from __future__ import annotations

import numpy as np

from pqkv.compiled import compiled
from pqkv.kernels.cpu.softmax import largest, soften
from pqkv.vector_code import next_unit, on_threads, tag

_SPAN = 64  # tokens whose scores are taken before their softmax
_ONE, _EIGHT = tag(1), tag(8)
_SUMS = {"reassoc", "contract", "nsz"}  # sums may be reordered, so that they become vectors; NaN and infinity stay


@compiled(error_model="numpy", inline="always")
def _widen(data, offset, kind, row):
    """row = the len(row) numbers from `offset` on in float32; kind 0 is float32, 1 bfloat16, 2 float16 (as uint16)."""
    if kind == 0:
        for d in range(len(row)):
            row[d] = data[offset + d]
        return
    bits = row.view(np.uint32)
    if kind == 1:
        for d in range(len(row)):
            bits[d] = np.uint32(data[offset + d]) << np.uint32(16)
        return
    for d in range(len(row)):  # sign apart, the 15 other bits where float32 has them; the exponents differ by 112
        half = np.uint32(data[offset + d])
        bits[d] = (half & np.uint32(0x7FFF)) << np.uint32(13)
    for d in range(len(row)):
        half = np.uint32(data[offset + d])
        magnitude = row[d] * np.float32(2.0**112)
        if half & np.uint32(0x7C00) == np.uint32(0x7C00):  # infinite or NaN
            magnitude = np.float32(np.nan) if half & np.uint32(0x03FF) else np.float32(np.inf)
        row[d] = -magnitude if half & np.uint32(0x8000) else magnitude


# fastmath stays in a function of its own: it would undo the rounding that `soften` relies on
@compiled(error_model="numpy", fastmath=_SUMS)
def _dot(query, b, head, row):
    score = np.float32(0.0)
    for d in range(len(row)):
        score += query[b, head, d] * row[d]
    return score


@compiled(error_model="numpy")
def _fold(query, b, first_head, keys, values, key_kind, value_kind, offset, count, G, D, state, out, room):
    """Add `count` tokens, rows of D numbers from `offset` on, to the running softmax of G heads, a span at a time.

    state (2, G): largest score (base 2) and mass relative to it; out (G, D) relative to it too. room = (row (D,),
    scores (G * _SPAN,), eight largest scores, eight sums).
    """
    row, scores, top, sums = room
    for start in range(0, count, _SPAN):
        n = min(_SPAN, count - start)
        place = offset + start * D
        for t in range(n):
            _widen(keys, place + t * D, key_kind, row)
            for g in range(G):
                scores[g * _SPAN + t] = _dot(query, b, first_head + g, row)
        for g in range(G):
            own = scores[g * _SPAN : (g + 1) * _SPAN]
            own[n:] = -np.inf
            largest(own, top, _SPAN // len(_EIGHT), _ONE, _EIGHT)
            best = state[0, g]
            for i in range(len(_EIGHT)):
                best = max(best, top[i])
            if best > state[0, g]:
                shrink = np.exp2(state[0, g] - best)
                state[0, g] = best
                state[1, g] *= shrink
                for d in range(D):
                    out[g, d] *= shrink
            top[:] = best if best > -np.inf else np.float32(0.0)
            soften(own, top, sums, _SPAN // len(_EIGHT), _ONE, _EIGHT)
            for i in range(len(_EIGHT)):
                state[1, g] += sums[i]
        for t in range(n):
            _widen(values, place + t * D, value_kind, row)
            for g in range(G):
                mass = scores[g * _SPAN + t]
                for d in range(D):
                    out[g, d] += mass * row[d]


@compiled(inline="always")
def _room(G, D):
    return (
        np.empty(D, np.float32),
        np.empty(G * _SPAN, np.float32),
        np.empty(len(_EIGHT), np.float32),
        np.empty(len(_EIGHT), np.float32),
    )


@compiled(nogil=True)
def attend_exact_pages(
    launch, threads, taken, query, table, context_len, lowest, num_kv_heads, page_size, stretch_pages,
    keys, key_kind, values, value_kind, out, top, total,
):  # fmt: skip
    """Partial attention of every stretch of exact pages (flat, as (pages, Hkv, page_size, D)); as `attend_coded`."""
    numbers, places = (keys, key_kind, values, value_kind), (table, context_len, lowest, page_size, stretch_pages)
    return on_threads(launch, threads, _attend_units, (taken, query, num_kv_heads, places, numbers, out, top, total))


@compiled(error_model="numpy")
def _attend_units(taken, query, num_kv_heads, places, numbers, out, top, total):
    table, context_len, lowest, page_size, stretch_pages = places
    keys, key_kind, values, value_kind = numbers
    B, Hq, D = query.shape
    G = Hq // num_kv_heads
    stretches = out.shape[2]
    job = next_unit(taken)
    while job < B * num_kv_heads * stretches:
        b = job // (num_kv_heads * stretches)
        h = job // stretches % num_kv_heads
        s = job % stretches
        room = _room(G, D)
        state = np.empty((2, G), np.float32)
        state[0] = -np.inf
        state[1] = 0.0
        mine = np.zeros((G, D), np.float32)
        first = max(s * stretch_pages * page_size, lowest[b])
        end = min((s + 1) * stretch_pages * page_size, context_len[b])
        while first < end:
            slot = first % page_size
            n = min(page_size - slot, end - first)
            page = np.int64(table[b, first // page_size])
            offset = ((page * num_kv_heads + h) * page_size + slot) * D
            _fold(query, b, h * G, keys, values, key_kind, value_kind, offset, n, G, D, state, mine, room)
            first += n
        for g in range(G):
            top[b, h, s, g] = state[0, g]
            total[b, h, s, g] = state[1, g]
            for d in range(D):
                out[b, h, s, g, d] = mine[g, d]
        job = next_unit(taken)


@compiled(nogil=True)
def merge(
    launch, threads, taken, query, out, top, total, sink_keys, sink_values, sink_len, sink_lowest,
    residual_keys, residual_values, residual_len, residual_lowest, kind, result, lse,
):  # fmt: skip
    """Stretches, sinks and residual together: result (B, Hq, D), lse (B, Hq) float64, in base e.

    Exact parts (B, Hkv, capacity, D); of sequence b the tokens lowest[b] ... len[b] - 1 are seen.
    """
    sinks = sink_keys, sink_values, sink_len, sink_lowest
    residual = residual_keys, residual_values, residual_len, residual_lowest
    given = taken, query, out, top, total, sinks, residual, kind, result, lse
    return on_threads(launch, threads, _merge_units, given)


@compiled(error_model="numpy")
def _merge_units(taken, query, out, top, total, sinks, residual, kind, result, lse):
    B, Hkv, stretches, G = top.shape
    D = query.shape[2]
    job = next_unit(taken)
    while job < B * Hkv:
        b, h = job // Hkv, job % Hkv
        room = _room(G, D)
        state = np.empty((2, G), np.float32)
        state[0] = -np.inf
        state[1] = 0.0
        mine = np.zeros((G, D), np.float32)
        for g in range(G):
            best = np.float32(-np.inf)
            for s in range(stretches):
                best = max(best, top[b, h, s, g])
            state[0, g] = best
            for s in range(stretches):
                if total[b, h, s, g] != 0.0:  # NaN is not 0 and goes on
                    weight = np.exp2(top[b, h, s, g] - best)
                    state[1, g] += weight * total[b, h, s, g]
                    for d in range(D):
                        mine[g, d] += weight * out[b, h, s, g, d]
        for part in range(2):
            keys, values, lengths, lows = sinks if part == 0 else residual
            length, low = lengths[b], lows[b]
            if length > low:
                offset = ((b * Hkv + h) * keys.shape[2] + low) * D
                _fold(
                    query, b, h * G, keys.reshape(-1), values.reshape(-1), kind, kind, offset, length - low, G, D,
                    state, mine, room,
                )  # fmt: skip
        for g in range(G):
            mass = state[1, g]
            for d in range(D):
                result[b, h * G + g, d] = np.float32(0.0) if mass == 0.0 else mine[g, d] / mass
            lse[b, h * G + g] = (
                -np.inf if mass == 0.0 else (np.float64(state[0, g]) + np.log2(np.float64(mass))) * np.log(2.0)
            )
        job = next_unit(taken)
