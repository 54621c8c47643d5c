"""Lloyd's algorithm for many small problems at once: the k-means of every subspace of every head.

A problem is a unit of work for one thread, so what comes out does not depend on their number. Points lie in tiles
(`tiles`), and a tile is compared only with the centroids that can be nearest to a point in its box (the filtering
algorithm of Kanungo et al. 2002, on the leaves of its tree): of 256 centroids in two channels about 12. Which those are
never changes a result: what is left out is farther from every point of the box than another centroid, by more than
rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pqkv.codec.seeding import next_state
from pqkv.codec.tiles import TILE, tile_order
from pqkv.compiled import compiled
from pqkv.parallel import run_units
from pqkv.thread_code import next_unit, on_threads
from pqkv.vector_code import (
    I32,
    I64,
    add_product,
    constant,
    data,
    drop_stale_code,
    floats,
    number,
    splat,
    store,
    tag,
    variable,
    vector,
)

_LANES = 16  # points, or centroids, in a vector; LLVM halves them where the processor's are shorter
_VECTORS = 2  # of points that share each centroid: as many as registers hold
_FAR = 1e18  # coordinate of the centroids that fill up a vector: its square is finite
_ROUNDING = 2.0**-23
_ASIDE = np.float32(1 / 1024)  # by how much of its length a twin stands aside
_SEED = 1234  # of the choice of twins


def lloyd(points: np.ndarray, centroids: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means of points (P, N, d_sub) from centroids (P, C, d_sub), float32 -> centroids (P, C, d_sub) and codes (P, N)
    int32, the first nearest of the centroids before the last means.

    Each of `iterations` assigns points, takes means and makes centroids without points twins of others, as FAISS does,
    which a last step of means alone leaves out. Where one vector occurs again and again, as a frequent token's value in
    the first layer does, twins are never told apart, and that vector, midway, would get one code or the other by
    rounding. After the last step it has a centroid of its own.
    """
    P, N, S = points.shape
    found, codes = np.ascontiguousarray(centroids).copy(), np.empty((P, N), np.int32)
    work = 1e-4 * codes.size * centroids.shape[1] * (iterations + 1)
    run_units(_lloyd, P, work, points, found, codes, iterations, tag(S))
    return found, codes


@intrinsic
def _possible(typing_context, columns, entries, first, middle, reach, at, known, d_sub):
    """Bits of the centroids columns[first ... first + 15] that may be nearest to a point in a box.

    columns[k * entries + c] is channel k of centroid c; the box is middle[at + k] +- reach[at + k]. Left out is a
    centroid c than which `known` is nearer to every point of the box. Seen from its middle, |c|^2 - |known|^2 says by
    how much it is there, and 2 sum_k reach_k |c_k - known_k| what the worst corner takes off.
    """
    whole = types.intp
    signature = types.int32(columns, whole, whole, middle, reach, whole, whole, d_sub)
    S = len(d_sub)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        columns, middle, reach = (data(context, builder, signature, arguments, i) for i in (0, 3, 4))
        entries, first, at, known = (arguments[i] for i in (1, 2, 5, 6))
        kind = floats(_LANES)
        absolute = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind]), f"llvm.fabs.v{_LANES}f32"
        )
        zero = constant(kind, [0.0] * _LANES)
        theirs, other, turn, size = zero, zero, zero, zero
        for k in range(S):
            row, place = builder.mul(entries, I64(k)), builder.add(at, I64(k))
            centre = number(builder, middle, place)
            half = splat(builder, number(builder, reach, place), _LANES)
            own = builder.fsub(number(builder, columns, builder.add(row, known)), centre)
            own = splat(builder, own, _LANES)
            away = builder.fsub(
                vector(builder, columns, builder.add(row, first), _LANES), splat(builder, centre, _LANES)
            )
            theirs = add_product(builder, away, away, theirs)
            other = add_product(builder, own, own, other)
            size = add_product(builder, half, half, size)
            turn = add_product(builder, half, builder.call(absolute, [builder.fsub(away, own)]), turn)
        rounding = constant(kind, [4 * (S + 3) * _ROUNDING] * _LANES)
        slack = builder.fadd(builder.fadd(theirs, other), size)
        gap = builder.fsub(builder.fsub(theirs, other), builder.fadd(turn, turn))
        near = builder.fcmp_unordered("<=", gap, builder.fmul(slack, rounding))
        return builder.zext(builder.bitcast(near, ir.IntType(_LANES)), I32)

    return signature, generate


@intrinsic
def _lowest_bit(typing_context, bits):
    """Place of the lowest bit that is set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int32(types.int32), generate


@intrinsic
def _assign(typing_context, tiles, at, columns, entries, listed, count, codes, target, d_sub):
    """codes[target + i] = the first nearest of `count` centroids, columns[..., listed[j]], to each of 32 points.

    tiles[at + k * TILE + i] is channel k of point i.
    """
    whole = types.intp
    signature = types.void(tiles, whole, columns, whole, listed, whole, codes, whole, d_sub)
    S = len(d_sub)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tiles, columns, listed, codes = (data(context, builder, signature, arguments, i) for i in (0, 2, 4, 6))
        at, entries, count, target = (arguments[i] for i in (1, 3, 5, 7))
        parts = range(_VECTORS)
        points = [
            [vector(builder, tiles, builder.add(at, I64(k * TILE + _LANES * i)), _LANES) for k in range(S)]
            for i in parts
        ]
        lowest = [variable(builder, constant(floats(_LANES), [float("inf")] * _LANES)) for _ in parts]
        found = [variable(builder, constant(ir.VectorType(I32, _LANES), [0] * _LANES)) for _ in parts]
        with cgutils.for_range(builder, count) as loop:
            code = number(builder, listed, loop.index)
            c = builder.sext(code, I64)
            code = splat(builder, code, _LANES)
            rows = [
                splat(builder, number(builder, columns, builder.add(builder.mul(entries, I64(k)), c)), _LANES)
                for k in range(S)
            ]
            for i in parts:
                distance = None
                for k in range(S):
                    away = builder.fsub(points[i][k], rows[k])
                    square = builder.fmul(away, away)
                    distance = square if distance is None else add_product(builder, away, away, distance)
                known = builder.load(lowest[i])
                less = builder.fcmp_ordered("<", distance, known)
                builder.store(builder.select(less, distance, known), lowest[i])
                builder.store(builder.select(less, code, builder.load(found[i])), found[i])
        for i in parts:
            store(builder, builder.load(found[i]), codes, builder.add(target, I64(_LANES * i)))
        return context.get_dummy_value()

    return signature, generate


@compiled(nogil=True)
def _lloyd(launch, threads, taken, points, centroids, codes, iterations, d_sub):
    return on_threads(launch, threads, _units, (taken, points, centroids, codes, iterations, d_sub))


@compiled()
def _units(taken, points, centroids, codes, iterations, d_sub):
    N, C = points.shape[1], centroids.shape[1]
    counts, sums = np.empty(C, np.int64), np.empty(C * len(d_sub))
    job = next_unit(taken)
    while job < len(points):
        order = tile_order(points[job])
        tiles, middle, reach = _tiled(points[job], order)
        own, before = np.empty(len(tiles) * TILE, np.int32), np.empty(N, np.int32)
        own[0] = 0
        for i in range(N):
            before[i] = -1
        for c in range(C):
            counts[c] = 0
        for i in range(len(sums)):
            sums[i] = 0.0
        state = np.uint64(_SEED)
        for step in range(iterations + 1):
            _search(tiles, middle, reach, centroids[job], own, step == 0, d_sub)
            changed = _move(tiles, own, before, sums, counts, d_sub)
            empty = _means(sums, counts, centroids[job], d_sub)
            if empty and step < iterations:
                state = _split(N, centroids[job], counts.copy(), state)
            elif not changed:
                break  # every step to come would find the same
        for i in range(N):
            codes[job, order[i]] = own[i]
        job = next_unit(taken)


@compiled()
def _tiled(points, order):
    """Tiles (tiles, d_sub * TILE), the last one filled up with its last point, and middles and reaches (tiles, d_sub)
    of the boxes around them.
    """
    N, S = points.shape
    count = (N + TILE - 1) // TILE
    tiles = np.empty((count, S * TILE), np.float32)
    middle, reach = np.empty((count, S), np.float32), np.empty((count, S), np.float32)
    for t in range(count):
        for k in range(S):
            low, high = np.float32(np.inf), np.float32(-np.inf)
            for i in range(TILE):
                x = points[order[min(t * TILE + i, N - 1)], k]
                tiles[t, k * TILE + i] = x
                low, high = min(low, x), max(high, x)
            middle[t, k] = low + (high - low) / 2
            reach[t, k] = max(high - middle[t, k], middle[t, k] - low) * np.float32(1 + 2 * _ROUNDING)
    return tiles, middle, reach


@compiled()
def _search(tiles, middle, reach, centroids, codes, first, d_sub):
    """codes[i] = the first nearest centroid of point i, in the order of tiles; what they were, unless this is the
    `first` search, says where to begin.
    """
    C, S = centroids.shape
    entries = (C + _LANES - 1) // _LANES * _LANES
    columns = np.empty(S * entries, np.float32)
    for i in range(S * entries):
        columns[i] = _FAR
    for c in range(C):
        for k in range(S):
            columns[k * entries + c] = centroids[c, k]
    listed = np.empty(entries, np.int32)
    flat, middles, reaches = tiles.reshape(-1), middle.reshape(-1), reach.reshape(-1)
    for t in range(len(tiles)):
        known = codes[max(t * TILE - 1, 0)] if first else codes[t * TILE + TILE // 2]
        count = 0
        for c in range(0, entries, _LANES):
            near = _possible(columns, entries, c, middles, reaches, t * S, known, d_sub)
            while near != 0:
                listed[count] = c + _lowest_bit(near)
                count += 1
                near &= near - 1
        for i in range(0, TILE, _VECTORS * _LANES):
            _assign(flat, t * S * TILE + i, columns, entries, listed, count, codes, t * TILE + i, d_sub)


@compiled()
def _move(tiles, codes, before, sums, counts, d_sub):
    """Sums (C * d_sub,) float64 and counts (C,) of the points of each centroid follow the points whose code is not what
    it was `before`, -1 for none; returns whether there are such.
    """
    S = len(d_sub)
    changed = False
    for n in range(len(before)):
        if codes[n] != before[n]:
            changed = True
            old, new = before[n], codes[n]
            before[n] = new
            t, i = n // TILE, n % TILE
            counts[new] += 1
            for k in range(S):
                sums[new * S + k] += tiles[t, k * TILE + i]
            if old >= 0:
                counts[old] -= 1
                for k in range(S):
                    sums[old * S + k] -= tiles[t, k * TILE + i]
    return changed


@compiled()
def _means(sums, counts, centroids, d_sub):
    """Every centroid becomes the mean of its points, one without points stays; returns whether there are such."""
    S = len(d_sub)
    empty = False
    for c in range(len(counts)):
        if counts[c] == 0:
            empty = True
        else:
            for k in range(S):
                centroids[c, k] = sums[c * S + k] / counts[c]
    return empty


@compiled()
def _split(N, centroids, counts, state):
    """Centroids without points become twins of others, drawn with the probability of their points; returns the state of
    the generator. FAISS's `split_clusters`.
    """
    C, S = centroids.shape
    for c in range(C):
        if counts[c] == 0:
            big = -1
            while big < 0:
                for other in range(C):
                    state = next_state(state)
                    if np.int64(state >> np.uint64(33)) * np.float64(N - C) < (counts[other] - 1) * 2.0**31:
                        big = other
                        break
            for k in range(S):
                aside = _ASIDE if k % 2 == 0 else -_ASIDE
                centroids[c, k] = centroids[big, k] * (1 + aside)
                centroids[big, k] *= 1 - aside
            counts[c] = counts[big] // 2
            counts[big] -= counts[c]
    return state


drop_stale_code(_lloyd)
