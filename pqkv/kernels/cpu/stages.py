"""The stages of `bind_coded` one by one: each goes over all stretches and leaves arrays to the next.

Arguments as those of `bind_coded`; the first dimension of `prepared` and `scores` are units of work.
"""

from __future__ import annotations

import numpy as np

from pqkv.compiled import compiled
from pqkv.kernels.cpu.coded import look_up_keys, mix, prepare_keys, scores_size, soften_stretch, stretch_of
from pqkv.kernels.cpu.paging import Side
from pqkv.kernels.cpu.turning import add_bias, weigh_by_gains
from pqkv.thread_code import next_unit, on_threads


@compiled(nogil=True)
def prepare_all(
    launch, threads, taken, context_len, lowest, table, num_kv_heads, page_size, stretch_pages, stretches,
    pages, line, centroids, channels, unpacked, d_sub, block, nbits, order, way, query, prepared, heads,
):  # fmt: skip
    """prepared (units of work, numbers) of all stretches; the arguments are those of `bind_coded`."""
    side = Side(pages, line, centroids, channels, unpacked, d_sub, block, nbits, order, way)
    places = stretches, context_len, lowest, table, num_kv_heads, page_size, stretch_pages
    return on_threads(launch, threads, _prepare_units, (taken, places, side, query, prepared, heads))


@compiled(error_model="numpy")
def _prepare_units(taken, places, side, query, prepared, heads):
    job = next_unit(taken)
    while job < len(prepared):
        b, _h, _s, _hidden, stretch = stretch_of(job, *places)
        if stretch.length > 0:
            prepare_keys(prepared[job], query[b], stretch, side, heads)
        job = next_unit(taken)


@compiled(nogil=True)
def look_up_all(
    launch, threads, taken, context_len, lowest, table, num_kv_heads, page_size, stretch_pages, stretches,
    pages, line, centroids, channels, unpacked, d_sub, block, nbits, order, way, prepared,
    phasors, phasor_scale, turn_middles, turn_rows, turn_slow, scores, heads, unit,
):  # fmt: skip
    """scores (units of work, numbers) of all stretches, with their bias."""
    side = Side(pages, line, centroids, channels, unpacked, d_sub, block, nbits, order, way)
    places = stretches, context_len, lowest, table, num_kv_heads, page_size, stretch_pages
    turning = phasors, phasor_scale, turn_middles, turn_rows, turn_slow
    return on_threads(launch, threads, _look_up_units, (taken, places, side, prepared, turning, scores, heads, unit))


@compiled(error_model="numpy")
def _look_up_units(taken, places, side, prepared, turning, scores, heads, unit):
    phasors, scale, middles, rows, slow = turning
    G = len(heads)
    job = next_unit(taken)
    while job < len(scores):
        b, h, _s, _hidden, stretch = stretch_of(job, *places)
        if stretch.length > 0:
            own = scores[job, : scores_size(stretch.length, heads, unit)]
            look_up_keys(own, prepared[job], stretch, side, heads)
            first = stretch.first_page * stretch.page_size
            add_bias(own, (phasors[b, h * G : (h + 1) * G], scale, middles, rows, slow), first, stretch.length, heads)
        job = next_unit(taken)


@compiled(nogil=True)
def soften_all(
    launch, threads, taken, context_len, lowest, table, num_kv_heads, page_size, stretch_pages, stretches,
    scores, top, total, heads, unit,
):  # fmt: skip
    """Scores become weights; top and total (B, Hkv, stretches, G)."""
    places = stretches, context_len, lowest, table, num_kv_heads, page_size, stretch_pages
    return on_threads(launch, threads, _soften_units, (taken, places, scores, top, total, heads, unit))


@compiled(error_model="numpy")
def _soften_units(taken, places, scores, top, total, heads, unit):
    job = next_unit(taken)
    while job < len(scores):
        b, h, s, hidden, stretch = stretch_of(job, *places)
        top[b, h, s] = -np.inf
        total[b, h, s] = 0.0
        if stretch.length > 0:
            own = scores[job, : scores_size(stretch.length, heads, unit)]
            soften_stretch(own, stretch.length, hidden, top[b, h, s], total[b, h, s], heads, unit)
        job = next_unit(taken)


@compiled(nogil=True)
def mix_all(
    launch, threads, taken, context_len, lowest, table, num_kv_heads, page_size, stretch_pages, stretches,
    pages, line, centroids, channels, unpacked, d_sub, block, nbits, order, way, gains, gain_values,
    scores, out, heads, unit,
):  # fmt: skip
    """out (B, Hkv, stretches, G, D) from the weights of all stretches, which are left as they came."""
    side = Side(pages, line, centroids, channels, unpacked, d_sub, block, nbits, order, way)
    places = stretches, context_len, lowest, table, num_kv_heads, page_size, stretch_pages
    return on_threads(
        launch, threads, _mix_units, (taken, places, side, (gains, gain_values), scores, out, heads, unit)
    )


@compiled(error_model="numpy")
def _mix_units(taken, places, side, gains, scores, out, heads, unit):
    job = next_unit(taken)
    while job < len(scores):
        b, h, s, _hidden, stretch = stretch_of(job, *places)
        if stretch.length > 0:
            weights = scores[job, : scores_size(stretch.length, heads, unit)]
            if len(gains[0]):
                weights = weights.copy()  # the stage can be run again
            weigh_by_gains(weights, stretch, *gains, heads)
            mix(out[b, h, s], weights, stretch, side, heads)
        job = next_unit(taken)
