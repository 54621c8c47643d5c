"""Optimized product quantization: a rotation under which subspaces lose less (Ge et al. 2013; MILLION's `--opq`)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pqkv.codec.grouping import balanced_channels
from pqkv.codec.kmeans import kmeans, nearest, settled

_FIRST_ITERATIONS = 4  # of k-means before the first turn: the codebooks move with the rotation anyway


def opq_rotation(vectors: Tensor, num_subspaces: int, nbits: int, *, rounds: int, seed: int) -> Tensor:
    """An orthogonal rotation (D, D), float32, for vectors (N, D): coded is `rotation @ vector`.

    Starts from the parametric solution (principal axes, dealt out so that subspaces carry like products of variance)
    and takes turns, `rounds` times: one step of k-means in every subspace, then the rotation that brings the vectors
    nearest to their codes (orthogonal Procrustes, by a singular value decomposition).
    """
    x = vectors.double()
    centred = x - x.mean(0)
    variance, axes = torch.linalg.eigh(centred.mT @ centred / len(x))
    rotation = axes[:, balanced_channels(variance, num_subspaces)].mT.float()
    centroids: list[np.ndarray] = []
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for _ in range(rounds):
            turned = (x @ rotation.double().mT).float()
            split = [part.contiguous().numpy() for part in turned.chunk(num_subspaces, -1)]
            if not centroids:
                centroids = list(threads.map(lambda part: kmeans(part, nbits, _FIRST_ITERATIONS, seed), split))
            codes = list(threads.map(nearest, centroids, split))
            centroids = list(threads.map(settled, centroids, split, codes))
            restored = np.concatenate([c[code] for c, code in zip(centroids, codes, strict=True)], -1)
            # the largest trace of rotation @ (x' restored)
            left, _, right = torch.linalg.svd(x.mT @ torch.from_numpy(restored).double())
            rotation = (left @ right).mT.float()
    return rotation
