"""Centroids as `coded_kernel` copies them into shared memory: fp16, two elements a 32-bit word, in the tables' order.

Made once for a codebook: a block then reads half of the bytes of the float32 centroids, all of them in a row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def key_words(centroids: Tensor) -> Tensor:
    """(H, M, C, d_sub) -> (H, M, C, words) int32; an odd d_sub leaves half of the last word zero."""
    halves = centroids.half()
    if halves.shape[3] % 2:
        halves = torch.nn.functional.pad(halves, (0, 1))
    return halves.contiguous().view(torch.int32)


def value_words(centroids: Tensor, stage: int) -> Tensor:
    """(H, M, C, d_sub) -> (H, M / stage, words, C, stage) int32: the words of one centroid id lie side by side for
    the `stage` subspaces whose tables are in shared memory at a time.
    """
    H, M, C, _ = centroids.shape
    staged = key_words(centroids).reshape(H, M // stage, stage, C, -1)
    return staged.permute(0, 1, 4, 3, 2).contiguous()
