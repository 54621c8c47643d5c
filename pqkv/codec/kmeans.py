"""Seeded k-means of many subspaces at once: what `faiss.Clustering` finds for each of them, up to rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pqkv.codec.lloyd import lloyd

_BATCH = 16  # subspaces between two reports, where threads are few


def kmeans(
    points: np.ndarray, nbits: int, iterations: int, seed: int, report: Callable[[int], None] | None = None
) -> np.ndarray:
    """(P, N, d_sub) float32 -> (P, C, d_sub), C = 2**nbits at most N. `report` is told, every few subspaces, how many
    more are done.
    """
    first = first_points(points.shape[1], 2**nbits, seed)
    batch = max(_BATCH, 4 * torch.get_num_threads())
    found = []
    for start in range(0, len(points), batch):
        part = points[start : start + batch]
        found.append(lloyd(part, part[:, first], iterations)[0])
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
