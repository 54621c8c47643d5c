"""FAISS k-means of one subspace, on one thread, and one step of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import numpy as np


@contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """FAISS on so many threads where this thread calls it; afterwards on as many as before."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def kmeans(points: np.ndarray, nbits: int, iterations: int, seed: int) -> np.ndarray:
    """(N, d_sub) -> (C, d_sub).

    FAISS assigns points of 8 and more dimensions with a fused kernel, 7 to 10 times faster than smaller ones
    (measured with 1.15 on AVX2); zeros in the missing dimensions change no distance.
    """
    padded = _padded(points)
    clustering = faiss.Clustering(padded.shape[1], 2**nbits)
    clustering.niter = iterations
    clustering.seed = seed
    clustering.min_points_per_centroid = 1  # the caller decided how many; FAISS would only warn on stderr
    clustering.max_points_per_centroid = 1 << 30  # never subsample behind the caller's back
    index = faiss.IndexFlatL2(padded.shape[1])
    with faiss_threads(1):
        clustering.train(padded, index)
        codes = index.search(padded, 1)[1][:, 0]
    centroids = faiss.vector_to_array(clustering.centroids).reshape(2**nbits, -1)[:, : points.shape[1]].copy()
    return settled(centroids, points, codes)


def settled(centroids: np.ndarray, points: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """The means of the points of each centroid; one without points stays.

    FAISS ends an iteration by splitting a big cluster into twins c (1 + e) and c (1 - e) wherever a centroid has no
    points. Where one vector occurs again and again, as a frequent token's value in the first layer does, the twins are
    never told apart, and that vector, midway, would get one code or the other by rounding. After this step it has
    a centroid of its own.
    """
    counts = np.bincount(nearest, minlength=len(centroids))
    used = counts > 0
    for channel in range(points.shape[1]):
        sums = np.bincount(nearest, weights=points[:, channel], minlength=len(centroids))
        centroids[used, channel] = sums[used] / counts[used]
    return centroids


def nearest(centroids: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Index (N,) of the centroid (C, d_sub) nearest to each of points (N, d_sub)."""
    index = faiss.IndexFlatL2(max(8, points.shape[1]))
    index.add(_padded(centroids))
    with faiss_threads(1):
        found: np.ndarray = index.search(_padded(points), 1)[1][:, 0]
    return found


def _padded(points: np.ndarray) -> np.ndarray:
    count, d_sub = points.shape
    padded = np.zeros((count, max(8, d_sub)), dtype=np.float32)
    padded[:, :d_sub] = points
    return padded
