"""The frame that codes live in: one invertible matrix a head, from a metric, a rotation and an order of channels.

Codes stand for F (x - mean). Attention never turns back what it reads: tables are built of F^-T q (keys), and the sum
over values is turned once (see DESIGN, "What is served").
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from pqkv.codec.grouping import balanced_channels, unequal_channels
from pqkv.codec.opq import opq_rotation
from pqkv.errors import ConfigError

Transform = Literal["none", "hadamard", "klt", "oscar", "opq"]
Metric = Literal["none", "diagonal", "full"]
Grouping = Literal["adjacent", "balanced", "unequal"]

_LONGEST = 4  # times an equal share of the channels: what a subspace of unequal length may hold
_FLOOR = 1e-3  # of the mean eigenvalue, or of the mean weight: what no query looks at is coded all the same


def metric_root(moments: Tensor, metric: Metric) -> Tensor:
    """(H, D, D) with root^T root = the metric, of a mean determinant of 1 in scale: what is coded in y = root x errs by
    |y - y'|^2 = (x - x')^T A (x - x').
    """
    H, D, _ = moments.shape
    if metric == "none":
        return torch.eye(D, dtype=torch.float64).expand(H, D, D)
    A = moments.double()
    if metric == "diagonal":
        weights = A.diagonal(dim1=-2, dim2=-1).sqrt()
        weights = weights / weights.mean(-1, keepdim=True)
        return torch.diag_embed(weights.clamp(min=_FLOOR))
    values, axes = torch.linalg.eigh(A)
    values = values / values.mean(-1, keepdim=True)
    return axes * values.clamp(min=_FLOOR).sqrt()[:, None] @ axes.mT  # the symmetric root


def hadamard(size: int) -> Tensor:
    """The Hadamard matrix of `size` over its root (Sylvester), orthogonal and symmetric; where size is no power of two,
    the largest block that divides it, along the diagonal.
    """
    block = size & -size
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return torch.block_diag(*[matrix / block**0.5] * (size // block))


def rotation(
    transform: Transform, points: Tensor, moments: Tensor | None, num_subspaces: int, nbits: int, seed: int
) -> Tensor:
    """(H, D, D) orthogonal for points (H, N, D): z = rotation y.

    `klt` are the principal axes of the points; `oscar` the eigenvectors U of `moments` in the order of bit-reversed
    ranks behind a Hadamard matrix, (U H P)^T (OSCAR, arXiv 2605.17757); `opq` is learnt (Ge et al. 2013).
    """
    H, _, D = points.shape
    if transform == "none":
        return torch.eye(D, dtype=torch.float64).expand(H, D, D)
    if transform == "hadamard":
        return hadamard(D).expand(H, D, D)
    if transform == "klt":
        return torch.stack([torch.linalg.eigh(p.double().mT.cov())[1].mT for p in points])
    if transform == "opq":
        return torch.stack(
            [opq_rotation(p, num_subspaces, nbits, rounds=10, seed=seed).double() for p in points.float()]
        )
    if moments is None:
        raise ConfigError("transform oscar is made of the queries' moments: samples hold none")
    axes = torch.linalg.eigh(moments.double())[1].flip(-1)  # the largest first
    return (axes @ hadamard(D))[..., bit_reversed(D)].mT


def bit_reversed(size: int) -> Tensor:
    """Where rank i of `size`, a power of two, goes: the number of its bits read backwards."""
    bits = size.bit_length() - 1
    if size != 2**bits:
        raise ConfigError(f"bit-reversed order wants a power of two, not {size} channels")
    return torch.tensor([int(f"{i:0{bits}b}"[::-1], 2) for i in range(size)])


def order(grouping: Grouping, points: Tensor, num_subspaces: int, nbits: int) -> Tensor:
    """(H, D): which channel of points (H, N, D) stands where, so that a subspace holds neighbours. Subspaces of unequal
    length are filled up with -1 to the longest of all heads: (H, num_subspaces * longest).
    """
    H, _, D = points.shape
    if grouping == "adjacent":
        return torch.arange(D).expand(H, D)
    if grouping == "balanced":
        return torch.stack([balanced_channels(p.var(0), num_subspaces) for p in points])
    most = _LONGEST * -(-D // num_subspaces)
    heads = [unequal_channels(p.var(0), num_subspaces, nbits, most) for p in points]
    longest = max(len(members) for head in heads for members in head)
    return torch.tensor([[c for g in head for c in [*g, *[-1] * (longest - len(g))]] for head in heads])


def rows(matrix: Tensor, places: Tensor) -> Tensor:
    """Rows (H, P, D) of a matrix (H, D, D) at places (H, P), zeros where a place is -1."""
    picked = matrix.gather(1, places.clamp(min=0)[..., None].expand(*places.shape, matrix.shape[-1]))
    return picked * (places >= 0)[..., None]


def inverse(frame: Tensor) -> Tensor:
    """Of a frame (H, D, D), or one with rows of zeros, or of what this gave for one."""
    return torch.linalg.inv(frame) if frame.shape[-2] == frame.shape[-1] else torch.linalg.pinv(frame)


@lru_cache(maxsize=16)
def _hadamard_matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it outlives the mode that it is first asked for in
        return hadamard(size).to(device, dtype)


def turned_by_hadamard(vectors: Tensor) -> Tensor:
    """Vectors (..., D) times the Hadamard matrix of `hadamard`, which is its own inverse, in their dtype. One product
    with one matrix for all layers: the fast form takes fewer operations and a dozen launches.
    """
    return vectors @ _hadamard_matrix(vectors.shape[-1], vectors.dtype, vectors.device)
