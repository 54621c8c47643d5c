"""Coded sides as look-ups in byte tables take them, and whether they can."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pqkv.kernels.cpu.byte_lookups.attend import ByteSide
from pqkv.kernels.cpu.byte_lookups.instructions import BLOCK
from pqkv.kernels.cpu.byte_lookups.paths import CpuPath
from pqkv.kernels.cpu.byte_lookups.shapes import largest_head_dim
from pqkv.kernels.types import PagedSide, PagedTokens
from pqkv.packing import packed_size
from pqkv.vector_code import tag

_MOST_HEADS = 8  # of a group
_WIDTHS_OF_SUBSPACES = (1, 2, 4, 8)


def serves_bytes(pages: PagedTokens, group: int, path: CpuPath) -> bool:
    """Whether keys and values of these pages are looked up in byte tables on this path."""
    return (
        pages.page_size % BLOCK == 0
        and group <= _MOST_HEADS
        and all(_serves(side, path) for side in (pages.keys, pages.values))
    )


def _serves(side: PagedSide, path: CpuPath) -> bool:
    if side.centroids is None or side.scales is None or side.layout != "transposed":
        return False
    _, M, _, d_sub = side.centroids.shape
    D = M * d_sub
    return path.serves(side.nbits) and d_sub in _WIDTHS_OF_SUBSPACES and D % 4 == 0 and largest_head_dim() >= D


def byte_side(side: PagedSide, page_size: int, channels: np.ndarray, *, keys: bool) -> ByteSide:
    """A side with its tables; they are made once (`PagedSide.derived`)."""
    assert side.centroids is not None and side.scales is not None
    d_sub = side.centroids.shape[3]
    return ByteSide(
        pages=side.pages.reshape(-1).numpy(),
        line=packed_size(page_size, side.nbits),
        table=side.derive_stored(("byte tables", keys), _unsigned if keys else _by_element).numpy(),
        scales=side.scales.reshape(len(side.scales), -1).numpy(),
        channels=channels,
        nbits=tag(side.nbits),
        d_sub=tag(d_sub),
    )


def _by_element(centroids: Tensor) -> Tensor:
    """(H, M, C, d_sub) int8 -> (H * D * C,) bytes, all centroids' components of an element together."""
    return centroids.transpose(2, 3).contiguous().view(torch.uint8).reshape(-1)


def _unsigned(centroids: Tensor) -> Tensor:
    return _by_element(centroids).bitwise_xor(128)
