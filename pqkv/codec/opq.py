"""Optimized product quantization: a rotation under which subspaces lose less (Ge et al. 2013; MILLION's `--opq`)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pqkv.codec.grouping import balanced_channels
from pqkv.codec.kmeans import kmeans
from pqkv.codec.lloyd import lloyd
from pqkv.config import Init

_FIRST_ITERATIONS = 4  # of k-means before the first turn: the codebooks move with the rotation anyway


def opq_rotation(
    vectors: Tensor, num_subspaces: int, nbits: int, *, rounds: int, seed: int, init: Init = "k-means++"
) -> Tensor:
    """An orthogonal rotation (D, D), float32, for vectors (N, D): coded is `rotation @ vector`.

    Starts from the parametric solution (principal axes, dealt out so that subspaces carry like products of variance)
    and takes turns, `rounds` times: one step of k-means in every subspace, then the rotation that brings the vectors
    nearest to their codes (orthogonal Procrustes, by a singular value decomposition).
    """
    x = vectors.double()
    centred = x - x.mean(0)
    variance, axes = torch.linalg.eigh(centred.mT @ centred / len(x))
    rotation = axes[:, balanced_channels(variance, num_subspaces)].mT.float()
    centroids: np.ndarray | None = None
    for _ in range(rounds):
        turned = (x @ rotation.double().mT).float()
        points = turned.unflatten(-1, (num_subspaces, -1)).transpose(0, 1).contiguous().numpy()  # (M, N, d_sub)
        if centroids is None:
            centroids = kmeans(points, nbits, _FIRST_ITERATIONS, seed, init=init)
        centroids, codes = lloyd(points, centroids, 0)
        restored = np.take_along_axis(centroids, codes[..., None].astype(np.int64), 1)  # (M, N, d_sub)
        flat = torch.from_numpy(restored).transpose(0, 1).flatten(1)
        left, _, right = torch.linalg.svd(x.mT @ flat.double())  # the largest trace of rotation @ (x' restored)
        rotation = (left @ right).mT.float()
    return rotation
