"""The reported ways of decoding as attention backends: exact pages of float32 alone, one query a sequence. A prefill,
which the reports do otherwise, goes to another backend.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pqkv.errors import KernelError
from pqkv.kernels.checks import check_inputs, check_lengths
from pqkv.kernels.reported.memory import DeviceMemory
from pqkv.kernels.reported.one_warp import one_warp_attention
from pqkv.kernels.reported.round_trip import all_rows, round_trip
from pqkv.kernels.types import AttentionBackend, ExactTokens, PagedTokens

Way = Callable[[Tensor, PagedTokens, float, "int | None"], tuple[Tensor, Tensor]]


def attention(
    name: str,
    prefill: AttentionBackend,
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    *,
    scale: float,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The backend called `name`, one of `WAYS`: see `AttentionBackend`. Several queries a sequence are what `prefill`
    makes of them. Raises `KernelError` for anything else that these do not serve.
    """
    check_inputs(query, pages, sinks, residual, window)
    check_lengths(pages, sinks, residual)
    if pages is None or pages.keys.centroids is not None or sinks is not None or residual is not None:
        raise KernelError(f"backend '{name}' serves exact pages alone, without sinks and residual")
    if {query.dtype, pages.keys.pages.dtype, pages.values.pages.dtype} != {torch.float32}:
        raise KernelError(f"backend '{name}' serves float32")
    if query.shape[1] != 1:
        return prefill(query, pages, sinks, residual, scale=scale, window=window)
    return WAYS[name](query, pages, scale, window)


def _one_warp(query: Tensor, tokens: PagedTokens, scale: float, window: int | None) -> tuple[Tensor, Tensor]:
    """See `pqkv.kernels.reported.one_warp`."""
    return one_warp_attention(query, tokens, scale=scale, window=window)


def _all_rows(query: Tensor, tokens: PagedTokens, scale: float, window: int | None) -> tuple[Tensor, Tensor]:
    """The query on as many rows as there are tokens, and the last row kept; nothing moves."""

    def rows(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        G = len(q) // len(keys)
        keys, values = (side.repeat_interleave(G, 0) for side in (keys, values))
        out = torch.empty_like(keys)
        all_rows(q[:, None].expand_as(keys).contiguous(), keys, values, out, scale)
        return out[:, -1]

    return _each(query, tokens, window, scale, rows)


def _round_trip(query: Tensor, tokens: PagedTokens, scale: float, window: int | None) -> tuple[Tensor, Tensor]:
    """Keys and values to the host and back before `all-rows`, fewer tokens than channels on the host
    (`pqkv.kernels.reported.round_trip`); its scale is 1 / sqrt(D) and nothing else.
    """
    if abs(scale * query.shape[3] ** 0.5 - 1) > 1e-6:
        raise KernelError(f"backend 'round-trip' scales by 1 / sqrt({query.shape[3]}), not by {scale:g}")
    memory = DeviceMemory(query.device)

    def carried(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        memory.lend(keys, values)
        out = round_trip(memory, q.cpu(), keys, values, keys.shape[1])
        memory.free(keys, values)
        return out.to(query.device)

    return _each(query, tokens, window, scale, carried)


WAYS: dict[str, Way] = {"one-warp": _one_warp, "all-rows": _all_rows, "round-trip": _round_trip}


def _each(
    query: Tensor,
    tokens: PagedTokens,
    window: int | None,
    scale: float,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """`attend(query (Hq, D), keys (Hkv, n, D), values)` -> (Hq, D) of every sequence, and lse of the same columns."""
    B, _, Hq, D = query.shape
    out, lse = torch.zeros_like(query), query.new_full((B, 1, Hq), float("-inf"))
    for b, length in enumerate(tokens.context_len.tolist()):
        low = 0 if window is None else max(0, length - window)
        if low == length:
            continue
        ids = tokens.page_table[b, : -(-length // tokens.page_size)].long()
        keys, values = (
            side.pages[ids].transpose(0, 1).flatten(1, 2)[:, low:length].contiguous()
            for side in (tokens.keys, tokens.values)
        )
        out[b, 0] = attend(query[b, 0], keys, values)
        grouped = query[b, 0].view(len(keys), -1, D)
        lse[b, 0] = (grouped @ keys.mT * scale).logsumexp(-1).flatten()
    return out, lse
