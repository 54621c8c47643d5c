"""Backend `cpu`: single queries through the Numba kernels, many queries at once as matrix products in torch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pqkv.errors import KernelError
from pqkv.kernels.checks import check_channels, check_inputs, check_lengths, check_step
from pqkv.kernels.cpu.decode import decode
from pqkv.kernels.cpu.held import recall
from pqkv.kernels.cpu.prefill import prefill
from pqkv.kernels.cpu.sides import Way
from pqkv.kernels.types import ExactTokens, PagedTokens

_FEW = 4  # queries of a sequence that cost less one by one than decoding its keys and values


def attention(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    *,
    scale: float,
    window: int | None = None,
    ways: tuple[Way, Way] = ("auto", "auto"),
    rounded: bool = False,
    planes: int = 2,
) -> tuple[Tensor, Tensor]:
    """See `AttentionBackend`. Computes in float32, lse is float64. `ways` force what codes of keys and of values look
    up where there is one query a sequence; `rounded` takes centroids of floats as bytes there, with a scale a channel,
    and `planes` is of how many bytes queries and weights are where centroids are bytes.
    """
    held = recall(query, pages, sinks, residual, ways, rounded, planes) if query.ndim == 4 else None
    Tq = query.shape[1] if query.ndim > 1 else 0
    if held is None:
        check_inputs(query, pages, sinks, residual, window)
        if query.dtype == torch.float64 or query.device.type != "cpu":
            raise KernelError(f"backend 'cpu' serves float32 and half precision on the CPU, not {query.dtype}")
        if pages is not None and pages.trusted:
            check_channels(pages)
    elif Tq != 1 or (pages is not None and not (pages.trusted and pages.query is None)):
        check_step(query, pages, sinks, residual, window)
    if Tq != 1 or (pages is not None and not pages.trusted):  # else `decode` looks whether there is room
        check_lengths(pages, sinks, residual)
    if Tq == 1:
        return decode(
            query, pages, sinks, residual, scale=scale, window=window, ways=ways, rounded=rounded, planes=planes,
            held=held,
        )  # fmt: skip
    if Tq <= _FEW and residual is not None and query.shape[0] and int(residual.length.min()) >= Tq:
        # all new tokens stand in the residual: each query sees one more of them than the one before
        steps = [
            decode(
                query[:, i : i + 1],
                _row(pages, i),
                sinks,
                replace(residual, length=residual.length - (Tq - 1 - i)),
                scale=scale,
                window=window,
                ways=ways,
                rounded=rounded,
                planes=planes,
            )
            for i in range(Tq)
        ]
        return torch.cat([out for out, _ in steps], 1), torch.cat([lse for _, lse in steps], 1)
    return prefill(query, pages, sinks, residual, scale=scale, window=window)


def _row(pages: PagedTokens | None, i: int) -> PagedTokens | None:
    """The pages as query i of a sequence meets them."""
    if pages is None or pages.query is None:
        return pages
    return replace(pages, query=pages.query.rows(slice(i, i + 1)))
