"""Codebooks that know no model: optimal for a Gaussian, and Gaussian is what a rotation makes of most vectors."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from pqkv.codec.kmeans import kmeans

_POINTS = 1 << 17  # drawn for it: 512 a centroid of 8-bit codes
_ITERATIONS = 60


@functools.cache
def gaussian_codebook(d_sub: int, nbits: int) -> Tensor:
    """Centroids (2**nbits, d_sub) for independent N(0, 1) channels, always the same."""
    points = np.random.default_rng(0).standard_normal((1, _POINTS, d_sub)).astype(np.float32)
    return torch.from_numpy(kmeans(points, nbits, _ITERATIONS, 0)[0])
