"""Does a backend's softmax sum to one? Two checks on the very calls a model makes.

With every value set to 1 the output must be 1. And the lse it returns must be the log of the sum of exp(scores), the
scores taken in float64 from keys decoded one by one: a wrong maximum that cancels in the first check shows here.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pqkv.kernels import AttentionBackend, CodedQuery, ExactTokens, PagedSide, PagedTokens
from pqkv.packing import unpack


class SoftmaxMassProbe:
    """An observer of attention calls that keeps the worst deviations; switch `active` off to pass calls by."""

    def __init__(self, backend: AttentionBackend) -> None:
        self.backend = backend
        self.active = True
        self.calls = 0
        self.mass_error = 0.0
        self.lse_error = 0.0

    def __call__(
        self,
        query: Tensor,
        pages: PagedTokens | None,
        sinks: ExactTokens | None,
        residual: ExactTokens | None,
        *,
        scale: float,
        window: int | None,
        out: Tensor,
        lse: Tensor,
    ) -> None:
        """See `AttentionObserver`."""
        if not self.active:
            return
        self.calls += 1
        ones = [
            None if part is None else replace(part, values=torch.ones_like(part.values)) for part in (sinks, residual)
        ]
        flat = None if pages is None else replace(pages, values=_all_ones(pages.values))
        mass, _ = self.backend(query, flat, *ones, scale=scale, window=window)
        for b in range(query.shape[0]):
            scores = _scores(b, query, pages, sinks, residual) * scale  # (Hq, Tq, n)
            hidden = _hidden(query.shape[1], scores.shape[2], window, scores.device)
            total = torch.exp(scores - lse[b].double().T[..., None]).masked_fill(hidden, 0).sum(-1)  # (Hq, Tq)
            real = ~hidden.all(-1)  # (Tq,), from the lengths: padding is not told by what the backend returned
            self.mass_error = _worse(self.mass_error, (mass[b] - 1)[real])
            self.lse_error = _worse(self.lse_error, (total - 1)[:, real])


def _worse(known: float, deviations: Tensor) -> float:
    """The larger of the known and the new deviation; NaN is the worst of all."""
    if not deviations.numel():
        return known
    new = float(deviations.abs().max())
    return new if new != new or new > known else known  # noqa: PLR0124 - NaN differs from itself


def _all_ones(side: PagedSide) -> PagedSide:
    if side.centroids is None:
        return replace(side, pages=torch.ones_like(side.pages))
    ones = torch.ones(side.centroids.shape, device=side.centroids.device)
    return replace(side, centroids=ones, scales=None, gains=None, gain_values=None, derived={})


def _hidden(queries: int, columns: int, window: int | None, device: torch.device) -> Tensor:
    position = torch.arange(columns - queries, columns, device=device)[:, None]
    column = torch.arange(columns, device=device)
    hidden = column > position
    return hidden if window is None else hidden | (column <= position - window)


def _scores(
    b: int, query: Tensor, pages: PagedTokens | None, sinks: ExactTokens | None, residual: ExactTokens | None
) -> Tensor:
    """Scores of sequence b before scaling, (Hq, Tq, n) float64, written apart from every backend."""
    parts = []
    if sinks is not None:
        parts.append(_products(query[b], sinks.keys[b, :, : int(sinks.length[b])].double()))
    if pages is not None:
        size, count = pages.page_size, int(pages.context_len[b])
        own = [
            _page_keys(pages.keys.pages[int(pages.page_table[b, first // size])], pages.keys, size)[:, : count - first]
            for first in range(0, count, size)
        ]
        if own:
            coded = query[b] if pages.query is None else pages.query.query[b]
            parts.append(_products(coded, torch.cat(own, 1)) + _bias(b, pages.query, count))
    if residual is not None:
        parts.append(_products(query[b], residual.keys[b, :, : int(residual.length[b])].double()))
    return torch.cat(parts, 2)


def _products(query: Tensor, keys: Tensor) -> Tensor:
    """Query (Tq, Hq, D) and keys (Hkv, n, D) -> (Hq, Tq, n)."""
    q = query.double().transpose(0, 1)
    return q @ keys.repeat_interleave(len(q) // len(keys), 0).mT


def _bias(b: int, coded: CodedQuery | None, count: int) -> Tensor | float:
    """What coded tokens 0 ... count - 1 get beside their products, (Hq, Tq, count)."""
    if coded is None or not coded.frequencies:
        return 0.0
    device = coded.phasors.device
    frequencies = torch.tensor(coded.frequencies, dtype=torch.float64, device=device)
    angles = frequencies[:, None] * torch.arange(count, dtype=torch.float64, device=device)
    cosines, sines = coded.phasors[b].double().transpose(0, 1).unbind(-1)  # (Hq, Tq, P)
    return cosines @ angles.cos() + sines @ angles.sin()


def _page_keys(page: Tensor, side: PagedSide, page_size: int) -> Tensor:
    """One page -> (Hkv, page_size, D) float64."""
    if side.centroids is None:
        return page.double()
    M = side.centroids.shape[1]
    codes = unpack(page, side.nbits, M) if side.layout == "row" else unpack(page, side.nbits, page_size).mT
    heads = []
    for h in range(page.shape[0]):
        own = h % side.centroids.shape[0]
        centroids = side.centroids[own].double()
        if side.scales is not None:
            centroids = centroids * side.scales[own].double()[:, None]
        coded = torch.cat([centroids[m][codes[h, :, m]] for m in range(M)], -1)  # (P, D)
        if side.channels is not None:
            natural = torch.empty_like(coded)
            natural[:, side.channels[own]] = coded
            coded = natural
        heads.append(coded)
    return torch.stack(heads)
