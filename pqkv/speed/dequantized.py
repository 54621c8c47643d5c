"""Decoding all keys and values first, then exact attention: what a cache of codes costs without kernels of its own.

As cheap as torch can have it: vectors stay in the order of the codes, to which the query is brought, and a centroid of
two float32 is looked up as one word of 64 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pqkv.errors import KernelError
from pqkv.kernels.types import ExactTokens, PagedSide, PagedTokens
from pqkv.packing import unpack
from pqkv.speed.baselines import grouped_sdpa

_WORDS = {1: torch.int32, 2: torch.int64}  # that hold a centroid of so many float32


def dequantized(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    *,
    scale: float,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As an `AttentionBackend`, for one query a sequence on plain product codes; sums of weights are not kept, so lse
    is NaN. Raises `KernelError` for anything else.
    """
    if pages is None or pages.keys.centroids is None or query.shape[1] != 1 or window is not None:
        raise KernelError("one query a sequence is served here, on pages of codes and without a window")
    if pages.query is not None or pages.values.gains is not None:
        raise KernelError("codes alone are decoded here, without a query of their own and without gains")
    B, _, Hq, D = query.shape
    out = torch.empty(B, 1, Hq, D)
    Hkv = pages.keys.pages.shape[1]
    for b in range(B):
        keys, values = (_decoded(b, side, pages, sinks, residual, which)
                        for side, which in ((pages.keys, "keys"), (pages.values, "values")))  # fmt: skip
        own = query[b].float().reshape(Hkv, -1, D) * (scale * D**0.5)  # (1, Hq, D) -> (Hkv, G, D)
        found = grouped_sdpa(_ordered(own, pages.keys), keys, values)
        if pages.values.channels is not None:
            found = found.gather(-1, pages.values.channels.argsort(-1)[:, None].expand_as(found))
        out[b, 0] = found.reshape(Hq, D)
    return out.to(query.dtype), torch.full((B, 1, Hq), float("nan"))


def _decoded(
    b: int, side: PagedSide, pages: PagedTokens, sinks: ExactTokens | None, residual: ExactTokens | None, which: str
) -> Tensor:
    """(Hkv, total, D) float32 in the order of the codes: sinks, pages, residual."""
    Hkv, P, n = side.pages.shape[1], pages.page_size, int(pages.context_len[b])
    exact = [None if part is None else getattr(part, which)[b, :, : int(part.length[b])] for part in (sinks, residual)]
    first, last = (0 if part is None else part.shape[1] for part in exact)
    centroids = side.float_centroids().float()
    H, M, C, d_sub = centroids.shape
    whole = torch.empty(Hkv, first + n + last, M * d_sub)
    for part, place in zip(exact, (slice(first), slice(first + n, None)), strict=True):
        if part is not None:
            whole[:, place] = _ordered(part.float(), side)
    ids, words = pages.page_table[b, : -(-n // P)].long(), _WORDS.get(d_sub)
    for h in range(Hkv):
        lines = side.pages[ids, h]
        if side.layout == "row":
            codes = unpack(lines.flatten(0, 1)[:n], side.nbits, M)
        else:
            codes = unpack(lines, side.nbits, P).mT.flatten(0, 1)[:n]
        index = (codes + torch.arange(M) * C).flatten()
        table, target = centroids[h % H].reshape(M * C, d_sub), whole[h, first : first + n]
        if words is None:
            torch.index_select(table, 0, index, out=target.view(-1, d_sub))
        else:  # one word a centroid costs less than a row of two
            torch.index_select(table.view(words).flatten(), 0, index, out=target.view(words).view(-1))
    return whole


def _ordered(vectors: Tensor, side: PagedSide) -> Tensor:
    """(Hkv, n, D) with channels in the order of the codes."""
    if side.channels is None:
        return vectors
    return vectors.gather(-1, side.channels[:, None].expand_as(vectors))
