"""Exact causal attention of rows on the columns before them, with or without a window: prefills and schedules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from pqkv.cache.window import Window

_TILE_ROWS = 512  # at once: the mask of a whole prefill would be its square


def causal_rows(query: Tensor, keys: Tensor, values: Tensor, scale: float, window: Window | None = None) -> Tensor:
    """Attention of the newest rows (B, Hq, t, D) over keys and values (B, Hkv, n, D), the query heads packed."""
    B, Hq, t, D = query.shape
    Hkv, n = keys.shape[1:3]
    G = Hq // Hkv
    rows, columns = torch.arange(n - t, n, device=query.device)[:, None], torch.arange(n, device=query.device)
    if window is not None and (first := window.first_visible(n - t)):
        columns = columns[(columns >= first) | (columns < window.sinks)]  # what no row sees is not multiplied
        keys, values = keys[:, :, columns], values[:, :, columns]
    visible = columns <= rows
    if window is not None:
        visible &= ~window.hidden(rows, columns)
    packed = query.reshape(B, Hkv, G * t, D)  # rows of a group stand one head after another
    out = F.scaled_dot_product_attention(packed, keys, values, attn_mask=visible.repeat(G, 1), scale=scale)
    return out.reshape(B, Hq, t, D)


def windowed_prefill(
    query: Tensor, keys: Tensor, values: Tensor, padding: Sequence[int], window: Window, scale: float
) -> Tensor:
    """Attention of query (B, Hq, T, D) over keys and values (B, Hkv, T, D) through a window, the first `padding[b]`
    columns of sequence b not real: (B, T, Hq, D), 0 where they stand.
    """
    out = torch.zeros_like(query)
    for b, pad in enumerate(padding):
        own = [part[b : b + 1, :, pad:] for part in (query, keys, values)]
        for start in range(0, own[0].shape[2], _TILE_ROWS):
            q, (k, v) = own[0][:, :, start : start + _TILE_ROWS], own[1:]
            end = start + q.shape[2]
            out[b : b + 1, :, pad + start : pad + end] = causal_rows(q, k[:, :, :end], v[:, :, :end], scale, window)
    return out.transpose(1, 2)
