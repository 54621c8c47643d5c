"""Coded sides as look-ups in byte tables take them, and whether they can."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pqkv.cpu_path import CpuPath
from pqkv.kernels.cpu.byte_lookups.attend import ByteSide
from pqkv.kernels.cpu.byte_lookups.instructions import BLOCK
from pqkv.kernels.cpu.byte_lookups.shapes import largest_head_dim
from pqkv.kernels.types import PagedSide, PagedTokens
from pqkv.packing import packed_size
from pqkv.vector_code import tag

_MOST_HEADS = 8  # of a group that share a look-up
_FEWEST_IN_PARTS = 3  # of a part of a larger group: with fewer heads to share them look-ups cost more than floats
_WIDTHS_OF_SUBSPACES = (1, 2, 4, 8)


def serves_bytes(pages: PagedTokens, group: int, path: CpuPath, *, rounded: bool = False) -> bool:
    """Whether keys and values of these pages are looked up in byte tables on this path; `rounded` takes centroids of
    floats too.
    """
    return all(
        side.centroids is not None
        and (rounded or side.scales is not None)
        and side.layout == "transposed"
        and serves_shape((side.centroids.shape[1], side.nbits), side.centroids.shape[3], pages.page_size, group, path)
        for side in (pages.keys, pages.values)
    )


def serves_shape(shape: tuple[int, int], d_sub: int, page_size: int, group: int, path: CpuPath) -> bool:
    """Whether codes of a shape (M, nbits) in transposed pages are, where their centroids are bytes."""
    return shape_obstacle(shape, d_sub, page_size, group, path) is None


def shape_obstacle(shape: tuple[int, int], d_sub: int, page_size: int, group: int, path: CpuPath) -> str | None:
    """Why codes of a shape are not looked up in byte tables, but as floats, or None."""
    (M, nbits), most = shape, largest_head_dim()
    obstacles = (
        (not path.serves(nbits), f"path '{path.name}' has no byte tables for codes of {nbits} bits"),
        (page_size % BLOCK, f"pages of {page_size} tokens are no whole blocks of {BLOCK}"),
        (
            group > _MOST_HEADS and heads_at_once(group) < _FEWEST_IN_PARTS,
            f"{group} query heads share a KV head, no multiple of {_FEWEST_IN_PARTS} to {_MOST_HEADS}",
        ),
        (d_sub not in _WIDTHS_OF_SUBSPACES, f"subspaces of {d_sub} elements are none of 1, 2, 4 and 8"),
        (M * d_sub % 4, f"heads of {M * d_sub} elements are no multiple of 4"),
        (M * d_sub > most, f"heads of {M * d_sub} elements are more than the {most} whose sums fit 32 bits"),
    )
    return next((reason for applies, reason in obstacles if applies), None)


def heads_at_once(group: int) -> int:
    """Query heads of a group of so many that share a look-up: the most that divide it."""
    return next(heads for heads in range(min(group, _MOST_HEADS), 0, -1) if group % heads == 0)


def byte_side(side: PagedSide, page_size: int, channels: np.ndarray, *, keys: bool) -> ByteSide:
    """A side with its tables, which are made once (`PagedSide.derived`); centroids of floats are rounded for them."""
    assert side.centroids is not None
    lay_out = _unsigned if keys else _by_element
    if side.scales is None:
        scales = side.derive("byte scales", _scales_of)
        table = side.derive(("rounded tables", keys), lambda centroids: lay_out(rounded_centroids(centroids)))
    else:
        scales = side.scales
        table = side.derive_stored(("byte tables", keys), lay_out)
    return ByteSide(
        pages=side.pages.reshape(-1).numpy(),
        line=packed_size(page_size, side.nbits),
        table=table.numpy(),
        scales=scales.reshape(len(scales), -1).numpy(),
        channels=channels,
        nbits=tag(side.nbits),
        d_sub=tag(side.centroids.shape[3]),
    )


def _scales_of(centroids: Tensor) -> Tensor:
    """(H, M, C, d_sub) floats -> (H, M, d_sub) float32, by which a channel's largest number becomes 127."""
    return (centroids.float().abs().amax(2) / 127).clamp(min=2.0**-100)


def rounded_centroids(centroids: Tensor) -> Tensor:
    """Centroids of floats as int8, a scale a channel (`_scales_of`)."""
    return (centroids.float() / _scales_of(centroids)[:, :, None]).round().to(torch.int8)


def with_rounded_centroids(side: PagedSide) -> PagedSide:
    """A side whose centroids are what look-ups in byte tables take them for."""
    assert side.centroids is not None
    if side.scales is not None:
        return side
    return replace(side, centroids=rounded_centroids(side.centroids), scales=_scales_of(side.centroids), derived={})


def _by_element(centroids: Tensor) -> Tensor:
    """(H, M, C, d_sub) int8 -> (H * D * C,) bytes, all centroids' components of an element together."""
    return centroids.transpose(2, 3).contiguous().view(torch.uint8).reshape(-1)


def _unsigned(centroids: Tensor) -> Tensor:
    return _by_element(centroids).bitwise_xor(128)
