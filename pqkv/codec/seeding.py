"""Where k-means begins: k-means++ (Arthur and Vassilvitskii 2007) for many small problems at once.

Keys and values have heavy tails. Points drawn evenly lie where most points are, and Lloyd's steps hardly carry a
centroid from there into a tail; points drawn by their squared distance to those before them cover it from the start.
"""

from __future__ import annotations

import numpy as np

from pqkv.compiled import compiled
from pqkv.parallel import run_units
from pqkv.thread_code import next_unit, on_threads
from pqkv.vector_code import (
    drop_stale_code,
)

_BLOCK = 64  # points whose weights are summed: a draw looks through blocks, then through one of them
_LANES = 8  # running sums at once


def plus_plus(points: np.ndarray, wanted: int, seed: int) -> np.ndarray:
    """Draw `wanted` of N points of each problem (P, N, d_sub), float32, N >= wanted -> (P, wanted, d_sub).

    The first is any of them, each other one is drawn with a probability that goes as its squared distance to the
    nearest of those before; where all lie on such a point, they follow in their order. Problems draw the same numbers.
    """
    P, N, S = points.shape
    found = np.empty((P, wanted, S), np.float32)
    work = 1e-3 * P * N * wanted
    run_units(_plus_plus, P, work, np.ascontiguousarray(points), found, seed)
    return found


@compiled(nogil=True)
def _plus_plus(launch, threads, taken, points, found, seed):
    return on_threads(launch, threads, _units, (taken, points, found, seed))


@compiled()
def _units(taken, points, found, seed):
    N, S = points.shape[1:]
    blocks = (N + _BLOCK - 1) // _BLOCK
    columns = np.empty((blocks, S, _BLOCK), np.float32)
    weights, sums = np.empty((blocks, _BLOCK), np.float32), np.empty(blocks)
    problem = next_unit(taken)
    while problem < len(points):
        for n in range(blocks * _BLOCK):
            b, i = n // _BLOCK, n % _BLOCK
            weights[b, i] = np.inf if n < N else 0.0
            for k in range(S):
                columns[b, k, i] = points[problem, min(n, N - 1), k]
        state = next_state(np.uint64(seed))
        chosen = int(_uniform(state) * N)
        for c in range(found.shape[1]):
            for k in range(S):
                found[problem, c, k] = points[problem, chosen, k]
            total = _approach(columns, weights, sums, found[problem, c])
            state = next_state(state)
            chosen = _draw(weights, sums, _uniform(state) * total) if total > 0 else (c + 1) % N
        problem = next_unit(taken)


@compiled()
def _approach(columns, weights, sums, centre):
    """weights = squared distances to the nearest centre, now that `centre` is one; their sums by blocks, and in all."""
    blocks, S = columns.shape[:2]
    total = 0.0
    apart = np.empty(_BLOCK, np.float32)
    lanes = np.empty(_LANES)
    for b in range(blocks):
        apart[:] = 0.0
        for k in range(S):
            x = centre[k]
            for i in range(_BLOCK):
                apart[i] += (columns[b, k, i] - x) * (columns[b, k, i] - x)
        for i in range(_BLOCK):
            weights[b, i] = apart[i] if apart[i] < weights[b, i] else weights[b, i]
        lanes[:] = 0.0
        for start in range(0, _BLOCK, _LANES):
            for i in range(_LANES):
                lanes[i] += weights[b, start + i]
        sums[b] = 0.0
        for i in range(_LANES):
            sums[b] += lanes[i]
        total += sums[b]
    return total


@compiled()
def _draw(weights, sums, at):
    """The point in whose share of the running sum of weights `at` lies; the last one with any where rounding puts it
    past the end.
    """
    last = 0
    for b in range(len(sums)):
        if at >= sums[b]:
            at -= sums[b]
            if sums[b] > 0:
                last = b
            continue
        last = b
        break
    chosen = 0
    for i in range(_BLOCK):
        if weights[last, i] > 0:
            chosen = i
            if at < weights[last, i]:
                break
            at -= weights[last, i]
    return last * _BLOCK + chosen


@compiled()
def next_state(state):
    """The state of the generator after `state` (uint64): the numbers of Knuth's MMIX."""
    return state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)


@compiled()
def _uniform(state):
    """In [0, 1), of the high bits."""
    return np.float64(state >> np.uint64(11)) * 2.0**-53


drop_stale_code(_plus_plus)
