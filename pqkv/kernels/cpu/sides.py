"""Keys and values of one decoding step as the arrays that the CPU kernels read."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pqkv.kernels.cpu.coded import CENTROID, TABLE
from pqkv.kernels.cpu.exact_form import BFLOAT16, FLOAT16, FLOAT32
from pqkv.kernels.cpu.lookups import ROW, TRANSPOSED, TRANSPOSED_64
from pqkv.kernels.cpu.paging import Side
from pqkv.kernels.types import ExactTokens, PagedSide, PagedTokens
from pqkv.packing import packed_size
from pqkv.vector_code import tag

Array = np.ndarray
Way = Literal["auto", "centroids", "tables"]

_WAYS: dict[Way, int] = {"centroids": CENTROID, "tables": TABLE}
_LANES = 64  # floats of the centroid rows under way: eight vector registers of eight
_KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}


def coded_side(side: PagedSide, page_size: int, G: int, way: Way, most_lanes: int) -> Side:
    """Coded keys or values for G query heads of a KV head; more than `most_lanes` floats of a centroid, for all of
    them, make `auto` take tables.
    """
    assert side.centroids is not None
    M, _, d_sub = side.centroids.shape[1:]
    transposed = side.layout == "transposed"
    block = next(j for j in (8, 4, 2, 1) if M % j == 0 and (j == 1 or j * G * d_sub <= _LANES))
    in_place = side.nbits == 8
    if way == "auto":
        way = "tables" if G * d_sub > most_lanes else "centroids"
    order = ROW if not transposed else TRANSPOSED_64 if page_size == 64 or not in_place else TRANSPOSED
    return Side(
        pages=side.pages.reshape(-1).numpy(),
        line=packed_size(page_size if transposed else M, side.nbits),
        centroids=side.float_centroids().detach().float().contiguous().numpy(),
        channels=channels_of(side),
        unpacked=tag(0 if in_place else 1 if side.nbits < 8 else 2),
        d_sub=tag(d_sub),
        block=tag(block),
        nbits=tag(8 if in_place else 0),
        order=tag(order),
        way=tag(_WAYS[way]),
    )


def channels_of(side: PagedSide) -> Array:
    """The channel of each coded element, (H, D)."""
    assert side.centroids is not None
    if side.channels is not None:
        return side.channels.numpy()
    H, M, _, d_sub = side.centroids.shape
    return np.broadcast_to(np.arange(M * d_sub), (H, M * d_sub)).copy()


def exact_sides(pages: PagedTokens) -> tuple[int, list[Array]]:
    """Which kind of number keys and values are, and where they lie."""
    dtype = pages.keys.pages.dtype if pages.keys.pages.dtype in _KINDS else torch.float32
    return _KINDS[dtype], [_flat(side.pages.to(dtype)) for side in (pages.keys, pages.values)]


def _flat(tensor: Tensor) -> Array:
    return _array(tensor).reshape(-1)


def _array(tensor: Tensor) -> Array:
    tensor = tensor.contiguous()
    return tensor.numpy() if tensor.dtype == torch.float32 else tensor.view(torch.uint16).numpy()


def exact_parts(
    sinks: ExactTokens | None, residual: ExactTokens | None, Hkv: int, D: int, of_pages: torch.dtype
) -> tuple[int, list[tuple[Array, Array]]]:
    """Keys and values of both parts, and which kind of number they hold; an absent part has no capacity. Where both are
    absent the kind is that of pages: nothing else need be compiled.
    """
    dtypes = {part.keys.dtype for part in (sinks, residual) if part is not None} or {of_pages}
    dtype = dtypes.pop() if len(dtypes) == 1 and dtypes <= set(_KINDS) else torch.float32
    nothing = torch.empty(0, Hkv, 0, D, dtype=dtype)
    parts = [
        (_array(nothing), _array(nothing))
        if part is None
        else (_array(part.keys.detach().to(dtype)), _array(part.values.detach().to(dtype)))
        for part in (sinks, residual)
    ]
    return _KINDS[dtype], parts
