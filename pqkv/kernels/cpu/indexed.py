"""Attention with a block and an offset for every token: one query row and head a unit, no token read in common."""

from __future__ import annotations

import numpy as np

from pqkv.compiled import compiled
from pqkv.thread_code import next_unit, on_threads

_SUMS = {"reassoc", "contract", "nsz"}  # sums may be reordered, so that they become vectors; NaN and infinity stay


@compiled(error_model="numpy", fastmath=_SUMS)
def _dot(query, keys, place, D):
    score = np.float32(0.0)
    for d in range(D):
        score += query[d] * keys[place + d]
    return score


@compiled(nogil=True)
def attend_by_index(launch, threads, taken, query, keys, values, strides, blocks, offsets, first, window, out, lse):
    """query (T, Hq, D) times scale and log2(e), of positions first ... first + T - 1; keys, values flat, token n of KV
    head h at blocks[n] * strides[0] + offsets[n] * strides[1] + h * strides[2] -> out (T, Hq, D), lse (T, Hq) float32.
    A row sees the newest `window` columns up to its own, all if it is 0.
    """
    given = taken, query, keys, values, strides, blocks, offsets, first, window, out, lse
    return on_threads(launch, threads, _units, given)


@compiled(error_model="numpy")
def _units(taken, query, keys, values, strides, blocks, offsets, first, window, out, lse):
    T, Hq, D = query.shape
    Hkv = strides[3]
    row = np.empty(D, np.float32)
    job = next_unit(taken)
    while job < T * Hq:
        t, h = T - 1 - job // Hq, job % Hq  # the longest rows first
        kv = h // (Hq // Hkv)
        end = first + t + 1
        low = max(0, end - window) if window > 0 else 0
        row[:] = 0.0
        top, mass = np.float32(-np.inf), np.float32(0.0)
        for n in range(low, end):
            place = blocks[n] * strides[0] + offsets[n] * strides[1] + kv * strides[2]
            score = _dot(query[t, h], keys, place, D)
            if score > top:
                shrink = np.exp2(top - score)
                top = score
                mass *= shrink
                for d in range(D):
                    row[d] *= shrink
            weight = np.exp2(score - top)
            mass += weight
            for d in range(D):
                row[d] += weight * values[place + d]
        for d in range(D):
            out[t, h, d] = row[d] / mass
        lse[t, h] = (top + np.log2(mass)) * np.float32(np.log(2.0))
        job = next_unit(taken)
