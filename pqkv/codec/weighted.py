"""Weighted k-means of many small problems at once: what quantization weighted by Fisher information is made of."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pqkv.codec.nearest import NearestCentroids
from pqkv.errors import DataError

_POINTS = 8192  # of a problem, drawn where there are more: 32 a centroid of 8-bit codes
_DRAWN_FROM = 16  # points for each centroid that the first ones are drawn from
_AT_ONCE = 64  # problems


def weighted_kmeans(
    points: Tensor, weights: Tensor, nbits: int, iterations: int, seed: int, *, largest: int = _POINTS
) -> Tensor:
    """Centroids (P, 2**nbits, d) float32 of points (P, N, d) that count as weights (P, N) say, none negative: Lloyd's
    steps from where k-means++ begins. Of more than `largest` points so many are drawn, the same of every problem.

    A problem without weights is one in which all weigh the same; a centroid that no weight falls to stays where it is.
    Problems know nothing of each other. Raises `DataError` for fewer points than centroids.
    """
    N, C = points.shape[1], 2**nbits
    if N < C:
        raise DataError(f"{N} calibration vectors cannot train {C} centroids; raise --samples and --calibration-tokens")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(N, generator=generator)[:largest]
    uniform = torch.rand(C, generator=generator)
    found = []
    for start in range(0, len(points), _AT_ONCE):
        x = points[start : start + _AT_ONCE, order].float()
        w = weights[start : start + _AT_ONCE, order].double()
        w = w / w.mean(-1, keepdim=True)
        w = torch.where(w.isfinite(), w, torch.ones_like(w))
        pool = min(len(order), _DRAWN_FROM * C)
        found.append(_lloyd(x, w, _plus_plus(x[:, :pool], w[:, :pool].float(), uniform), iterations))
    return torch.cat(found)


def _plus_plus(x: Tensor, w: Tensor, uniform: Tensor) -> Tensor:
    """Points (P, C, d), each drawn with a probability of its weight times its squared distance to those before."""
    chances = w.clone()
    apart = torch.full_like(w, torch.inf)
    found = []
    for u in uniform:
        upto = chances.cumsum(-1)
        place = torch.searchsorted(upto, u * upto[:, -1:], right=True).clamp(max=x.shape[1] - 1)  # (P, 1)
        chosen = x.gather(1, place[..., None].expand(-1, -1, x.shape[2]))  # (P, 1, d)
        found.append(chosen)
        apart = torch.minimum(apart, (x - chosen).square().sum(-1))
        chances = w * apart
    return torch.cat(found, 1)


def _lloyd(x: Tensor, w: Tensor, centroids: Tensor, iterations: int) -> Tensor:
    P, C, d = centroids.shape
    shift = C * np.arange(P)[:, None]
    flat = w.numpy().reshape(-1)
    moments = [(w * x[..., k]).numpy().reshape(-1) for k in range(d)]
    before = None
    for _ in range(iterations):
        codes = NearestCentroids(centroids[:, None])(x)[..., 0].numpy()  # (P, N)
        if before is not None and np.array_equal(codes, before):
            break
        before = codes
        own = (codes + shift).reshape(-1)
        mass = np.bincount(own, flat, P * C)
        sums = np.stack([np.bincount(own, m, P * C) for m in moments], -1)
        means = torch.from_numpy(sums / np.where(mass > 0, mass, 1)[:, None]).float()
        kept = torch.from_numpy(mass > 0)[:, None]
        centroids = torch.where(kept, means, centroids.reshape(P * C, d)).reshape(P, C, d)
    return centroids
