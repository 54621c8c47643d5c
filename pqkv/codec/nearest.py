"""Nearest centroid per subspace: vectors -> codes.

On the CPU a fused Numba loop (7x the tensor form: no (tokens, C) distance matrix ever reaches memory), elsewhere
and for other dtypes one batched product and an arg-min. Both take the first of equal minima.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

_TILE = 1024  # tokens whose distance matrix is alive at once in the tensor form


def nearest(vectors: Tensor, centroids: Tensor) -> Tensor:
    """Codes of the nearest centroids in the Euclidean sense.

    vectors (H, N, D), centroids (H, M, C, d_sub) of the same float dtype with D = M * d_sub;
    returns (H, N, M) int16 (C can be 4096).
    """
    H, M, _, d_sub = centroids.shape
    split = vectors.detach().unflatten(-1, (M, d_sub))  # (H, N, D) -> (H, N, M, d_sub); codes have no gradient
    if vectors.device.type == "cpu" and vectors.dtype in (torch.float32, torch.float64):
        codes = np.empty((H, vectors.shape[1], M), dtype=np.int16)
        columns = centroids.mT.contiguous()  # (H, M, d_sub, C): one channel of all centroids is contiguous
        half_norms = centroids.square().sum(-1) / 2
        _nearest_cpu(split.contiguous().numpy(), columns.numpy(), half_norms.contiguous().numpy(), codes)
        return torch.from_numpy(codes)
    return nearest_by_product(vectors, centroids)


def nearest_by_product(vectors: Tensor, centroids: Tensor) -> Tensor:
    """The tensor form of `nearest`, on any device: |x - c|^2 / 2 = |c|^2 / 2 - x.c + a constant of x."""
    H, M, C, d_sub = centroids.shape
    half_norms = (centroids.square().sum(-1) / 2).reshape(H * M, 1, C)
    columns = centroids.reshape(H * M, C, d_sub).mT
    split = vectors.unflatten(-1, (M, d_sub)).transpose(1, 2)  # (H, N, M, d_sub) -> (H, M, N, d_sub)
    split = split.reshape(H * M, -1, d_sub)
    codes = torch.empty(H * M, split.shape[1], dtype=torch.int16, device=vectors.device)
    for start in range(0, split.shape[1], _TILE):
        rows = slice(start, start + _TILE)
        codes[:, rows] = torch.baddbmm(half_norms, split[:, rows], columns, alpha=-1).argmin(-1).to(torch.int16)
    return codes.unflatten(0, (H, M)).transpose(1, 2)  # (H, M, N) -> (H, N, M)


# reassoc and contract let LLVM vectorize the two passes over C; NaN semantics are kept (no nnan)
@numba.njit(parallel=True, fastmath={"reassoc", "contract", "nsz"}, cache=True)
def _nearest_cpu(vectors: np.ndarray, columns: np.ndarray, half_norms: np.ndarray, codes: np.ndarray) -> None:
    H, N, M, d_sub = vectors.shape
    C = half_norms.shape[2]
    for job in numba.prange(H * M):
        h, m = job // M, job % M
        distance = np.empty(C, vectors.dtype)
        for n in range(N):
            for c in range(C):
                distance[c] = half_norms[h, m, c]
            for k in range(d_sub):
                x = vectors[h, n, m, k]
                for c in range(C):
                    distance[c] -= x * columns[h, m, k, c]
            best = distance[0]
            for c in range(C):
                best = min(best, distance[c])
            code = 0
            for c in range(C):
                if distance[c] == best:
                    code = c
                    break
            codes[h, n, m] = code
