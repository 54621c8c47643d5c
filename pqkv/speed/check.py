"""Is the backend right on this very case? Asked before it is timed: a wrong kernel gets no time."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pqkv.kernels import AttentionBackend, CodedQuery, ExactTokens, PagedSide, get_backend
from pqkv.speed.synthetic import DecodeInputs

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def relative_error(run: AttentionBackend, case: DecodeInputs, scale: float, window: int | None) -> float:
    """Largest deviation of an output row from `reference` in float64, over the row's norm. One KV head at a time: the
    reference holds a score of every (query head, token, subspace).
    """
    out, _ = run(case.query, case.pages, case.sinks, case.residual, scale=scale, window=window)
    Hkv = case.pages.keys.pages.shape[1]
    G = case.query.shape[2] // Hkv
    reference = get_backend("reference")
    worst = 0.0
    for b in range(case.query.shape[0]):
        for h in range(Hkv):
            pages = replace(
                case.pages,
                keys=_head(case.pages.keys, h),
                values=_head(case.pages.values, h),
                page_table=case.pages.page_table[b : b + 1],
                context_len=case.pages.context_len[b : b + 1],
                query=_heads(case.pages.query, b, slice(h * G, (h + 1) * G)),
            )
            parts = [None if p is None else _part(p, b, h) for p in (case.sinks, case.residual)]
            own = slice(h * G, (h + 1) * G)
            query = case.query[b : b + 1, :, own].double()
            expected, _ = reference(query, pages, *parts, scale=scale, window=window)
            gap = (out[b : b + 1, :, own].double() - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-30)
            worst = max(worst, float(torch.nan_to_num(gap, nan=torch.inf, posinf=torch.inf).max()))
    return worst


def _head(side: PagedSide, h: int) -> PagedSide:
    def own(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[h : h + 1] if tensor.shape[0] > 1 else tensor

    return replace(
        side,
        pages=side.pages[:, h : h + 1],
        centroids=own(side.centroids),
        channels=own(side.channels),
        scales=own(side.scales),
        gains=None if side.gains is None else side.gains[:, h : h + 1],
        gain_values=own(side.gain_values),
        derived={},
    )


def _heads(coded: CodedQuery | None, b: int, heads: slice) -> CodedQuery | None:
    if coded is None:
        return None
    query, phasors = (part[b : b + 1, :, heads].double() for part in (coded.query, coded.phasors))
    return replace(coded, query=query, phasors=phasors)


def _part(part: ExactTokens, b: int, h: int) -> ExactTokens:
    return ExactTokens(part.keys[b : b + 1, h : h + 1], part.values[b : b + 1, h : h + 1], part.length[b : b + 1])
