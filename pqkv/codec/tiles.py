"""Points in the order of tiles: every `TILE` of them in a row lie close together.

Sort-tile-recursive packing (Leutenegger et al. 1997): slabs of equal count along the widest channel, each cut again
along the next. Sorting is by a counting sort on 256 steps, so it is rough: which points share a tile decides how much
of a search can be left out, and never what it finds.
"""

from __future__ import annotations

import math

import numpy as np

from pqkv.compiled import compiled

TILE = 64  # points that are searched together
_STEPS = 256  # of a channel's range
_RANGE = 3.0  # standard deviations on either side of the mean; what lies beyond is sorted with the last step


@compiled()
def tile_order(points):
    """Order (N,) int32 of points (N, d_sub) in which every run of `TILE` of them is a tile."""
    N, S = points.shape
    order, room, steps = np.empty(N, np.int32), np.empty(N, np.int32), np.empty(N, np.uint8)
    for i in range(N):
        order[i] = i
    spread = np.empty(S)
    for k in range(S):
        spread[k] = _spread(points, k)[1]
    slabs = _slabs(spread, N)
    width = TILE  # of the segments that are sorted, in points
    for k in range(S):
        width *= slabs[k]
    for _ in range(S):
        k = widest(spread)
        low, scale = _spread(points, k)[0] - _RANGE * spread[k], _STEPS / (2 * _RANGE * max(spread[k], 1e-30))
        spread[k] = -1.0
        if slabs[k] > 1:
            width = width if width < N else N
            for start in range(0, N, width):
                _sort_steps(points, k, low, scale, order, start, min(start + width, N), steps, room)
            width //= slabs[k]
    return order


@compiled()
def _spread(points, k):
    """Mean and standard deviation of channel k."""
    mean, squares = 0.0, 0.0
    for n in range(len(points)):
        mean += points[n, k]
    mean /= len(points)
    for n in range(len(points)):
        squares += (points[n, k] - mean) * (points[n, k] - mean)
    return mean, math.sqrt(squares / len(points))


@compiled()
def widest(numbers):
    """Where the first largest number stands."""
    best = 0
    for k in range(len(numbers)):
        if numbers[k] > numbers[best]:
            best = k
    return best


@compiled()
def _slabs(spread, N):
    """Into how many slabs each channel is cut: a power of two, so that all slabs are about as wide."""
    S = len(spread)
    slabs, width = np.empty(S, np.int64), np.empty(S)
    for k in range(S):
        slabs[k], width[k] = 1, spread[k]
    made = TILE
    while made < N:
        k = widest(width)
        slabs[k] *= 2
        width[k] /= 2
        made *= 2
    return slabs


@compiled()
def _sort_steps(points, k, low, scale, order, start, end, steps, room):
    """Sort order[start:end] by the step that channel k of its points falls into."""
    begins = np.zeros(_STEPS + 1, np.int32)
    for i in range(start, end):
        step = (points[order[i], k] - low) * scale
        steps[i] = 0 if not step > 0.0 else _STEPS - 1 if step > _STEPS - 1.0 else np.uint8(step)
        begins[steps[i] + 1] += 1
    for step in range(_STEPS):
        begins[step + 1] += begins[step]
    for i in range(start, end):
        place = begins[steps[i]]
        begins[steps[i]] += 1
        room[place] = order[i]
    for i in range(start, end):
        order[i] = room[i - start]
