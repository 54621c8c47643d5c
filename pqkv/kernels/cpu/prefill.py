"""Many queries a sequence on the CPU: its keys and values decoded once for all of them, head by head."""

from __future__ import annotations

import torch
from torch import Tensor

from pqkv.kernels.types import ExactTokens, PagedSide, PagedTokens
from pqkv.packing import unpack

_TILE = 1 << 22  # scores alive at once


def prefill(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    *,
    scale: float,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`AttentionBackend` for any Tq, as matrix products in float32; lse is float64."""
    B, Tq, Hq, D = query.shape
    out = torch.zeros(B, Tq, Hq, D, dtype=torch.float32)
    lse = torch.full((B, Tq, Hq), float("-inf"), dtype=torch.float64)
    for b in range(B):
        keys, values = (_vectors(b, side, pages, sinks, residual) for side in ("keys", "values"))
        if not keys:
            continue
        Hkv, total = keys[0].shape[0], sum(part.shape[1] for part in keys)
        G = Hq // Hkv
        for h in range(Hkv):
            own = slice(h * G, (h + 1) * G)
            q = query[b, :, own].float().transpose(0, 1) * scale  # (G, Tq, D)
            k, v = (torch.cat([part[h] for part in side]) for side in (keys, values))
            rows = max(1, _TILE // (G * total))
            for start in range(0, Tq, rows):
                tile = slice(start, start + rows)
                mixed, sums = _attend(q[:, tile], k, v, total - Tq + start, window)
                out[b, tile, own] = mixed.transpose(0, 1)
                lse[b, tile, own] = sums.T
    return out.to(query.dtype), lse


def _attend(q: Tensor, keys: Tensor, values: Tensor, first: int, window: int | None) -> tuple[Tensor, Tensor]:
    """Queries (G, t, D) at positions first, first + 1, ... over (n, D) -> out (G, t, D), lse (G, t)."""
    scores = q @ keys.T
    columns = torch.arange(len(keys))
    positions = first + torch.arange(q.shape[1])[:, None]
    hidden = columns > positions
    if window is not None:
        hidden |= columns <= positions - window
    scores.masked_fill_(hidden, float("-inf"))
    top = scores.amax(-1, keepdim=True)
    top.masked_fill_(top.isinf(), 0.0)  # a row that sees nothing: its output is 0, its lse -inf
    mass = scores.sub_(top).exp_()
    total = mass.sum(-1, keepdim=True, dtype=torch.float64)
    lse = (top + total.log())[..., 0]
    return mass @ values / total.clamp(min=1e-30).float(), lse


def _vectors(
    b: int, side: str, pages: PagedTokens | None, sinks: ExactTokens | None, residual: ExactTokens | None
) -> list[Tensor]:
    """Keys or values of sequence b in order of position, parts of (Hkv, n, D) float32; empty ones are left out."""
    found = []
    if sinks is not None and (n := int(sinks.length[b])):
        found.append(getattr(sinks, side)[b, :, :n].float())
    if pages is not None and (n := int(pages.context_len[b])):
        ids = pages.page_table[b, : -(-n // pages.page_size)].long()
        found.append(_page_vectors(getattr(pages, side), ids, n, pages.page_size))
    if residual is not None and (n := int(residual.length[b])):
        found.append(getattr(residual, side)[b, :, :n].float())
    return found


def _page_vectors(side: PagedSide, ids: Tensor, n: int, page_size: int) -> Tensor:
    """The first n tokens in these pages, (Hkv, n, D) float32."""
    owned = side.pages[ids].transpose(0, 1)  # (Hkv, pages, ...)
    if side.centroids is None:
        return owned.flatten(1, 2)[:, :n].float()
    H, M, C, d_sub = side.centroids.shape
    if side.layout == "row":
        codes = unpack(owned.flatten(1, 2)[:, :n], side.nbits, M)  # (Hkv, n, M)
    else:
        codes = unpack(owned, side.nbits, page_size).mT.flatten(1, 2)[:, :n]  # from (Hkv, pages, M, P)
    own = torch.arange(len(codes)) % H  # H = 1 serves every head
    rows = codes + ((own[:, None] * M + torch.arange(M)) * C)[:, None]
    table = side.centroids.float().reshape(H * M * C, d_sub)
    coded = table.index_select(0, rows.reshape(-1)).reshape(len(codes), n, M * d_sub)
    if side.channels is None:
        return coded
    return coded.gather(-1, side.channels[own].argsort(-1)[:, None].expand_as(coded))
