"""Seeded k-means of many subspaces at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pqkv.codec.lloyd import lloyd
from pqkv.codec.seeding import plus_plus
from pqkv.config import Init

_BATCH = 16  # subspaces between two reports, where threads are few
_DRAWN_FROM = 16  # points for each centroid that k-means++ draws from: all of them gain it 0.3% of the error


def kmeans(
    points: np.ndarray,
    nbits: int,
    iterations: int,
    seed: int,
    report: Callable[[int], None] | None = None,
    *,
    init: Init = "k-means++",
) -> np.ndarray:
    """(P, N, d_sub) float32 -> (P, C, d_sub), C = 2**nbits at most N. `report` is told, every few subspaces, how many
    more are done.

    `init` says where it begins: at points that `k-means++` draws, or at `random` ones, those of FAISS, of which Lloyd's
    steps make what `faiss.Clustering` finds, up to rounding.
    """
    C = 2**nbits
    first = first_points(points.shape[1], C if init == "random" else min(_DRAWN_FROM * C, points.shape[1]), seed)
    batch = max(_BATCH, 4 * torch.get_num_threads())
    found = []
    for start in range(0, len(points), batch):
        part = points[start : start + batch]
        begun = part[:, first] if init == "random" else plus_plus(part[:, first], C, seed)
        found.append(lloyd(part, begun, iterations)[0])
        if report:
            report(len(part))
    return np.concatenate(found)


def first_points(count: int, wanted: int, seed: int) -> np.ndarray:
    """The `wanted` of `count` points that FAISS starts from: `rand_perm` of its seed, the next one (MT19937)."""
    drawn = np.random.RandomState(seed + 1).randint(0, 2**32, wanted, np.uint32)
    order = np.arange(count)
    for i, number in enumerate(drawn):
        other = i + int(number) % (count - i)
        order[i], order[other] = order[other], order[i]
    return order[:wanted]
