"""Backend `reference`: attention on pages in plain torch, any device, float32 or float64.

One sequence at a time and only the pages it owns, cut to `context_len` before anything is computed: unused slots and
table entries cannot be read. Few queries take keys by table look-up and values by probability mass per centroid
(nothing is decoded); many queries decode a tile of pages once for all of them, as a prefill kernel would. Scores are
summed and the softmax is taken in float64: at an lse of 64 one unit in the last place of float32 is 8e-6 of the mass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pqkv.kernels.checks import check_inputs, check_lengths
from pqkv.kernels.types import ExactTokens, PagedSide, PagedTokens
from pqkv.packing import unpack

LOOKUP_QUERIES = 4  # with more query rows than this per KV head a decoded tile costs less than tables
_TILE_ELEMENTS = 1 << 24  # scores alive at once, per sequence


def attention(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    *,
    scale: float,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """See `AttentionBackend`."""
    check_inputs(query, pages, sinks, residual, window)
    check_lengths(pages, sinks, residual)
    compute = torch.float64 if query.dtype == torch.float64 else torch.float32
    B, Tq, Hq, D = query.shape
    out = query.new_zeros(B, Tq, Hq, D)
    lse = torch.full((B, Tq, Hq), float("-inf"), dtype=torch.float64, device=query.device)
    for b in range(B):
        parts = _parts(b, pages, sinks, residual, compute)
        total = sum(part.length for part in parts)
        Hkv = parts[0].heads if parts else Hq
        queries = _Queries.of(b, query, pages, Hkv, scale, compute)
        rows = max(1, _TILE_ELEMENTS // max(1, Hq * total))
        for start in range(0, Tq, rows):
            tile = slice(start, start + rows)
            first = total - Tq + start  # position of the tile's first query
            o, row_lse = _attend(queries.rows(tile), parts, first, window)
            out[b, tile] = o.permute(2, 0, 1, 3).flatten(1, 2).to(out.dtype)  # (Hkv, G, t, D) -> (t, Hq, D)
            lse[b, tile] = row_lse.permute(2, 0, 1).flatten(1, 2)
    return out, lse


@dataclass(frozen=True, slots=True)
class _Queries:
    """Queries of one sequence, scaled: (Hkv, G, t, D) of exact and of coded keys, and phasors (Hkv, G, t, P, 2)."""

    exact: Tensor
    coded: Tensor
    phasors: Tensor | None
    frequencies: tuple[float, ...]

    @classmethod
    def of(
        cls, b: int, query: Tensor, pages: PagedTokens | None, Hkv: int, scale: float, compute: torch.dtype
    ) -> _Queries:
        def grouped(part: Tensor) -> Tensor:
            # heads of a group share a KV head: (Tq, Hq, ...) -> (Hkv, G, Tq, ...)
            return part.to(compute).unflatten(1, (Hkv, part.shape[1] // Hkv)).movedim(0, 2) * scale

        exact, own = grouped(query[b]), None if pages is None else pages.query
        if own is None:
            return cls(exact, exact, None, ())
        phasors = grouped(own.phasors[b]) if own.frequencies else None
        return cls(exact, grouped(own.query[b]), phasors, own.frequencies)

    def rows(self, rows: slice) -> _Queries:
        """Some of the t."""
        phasors = None if self.phasors is None else self.phasors[:, :, rows]
        return _Queries(self.exact[:, :, rows], self.coded[:, :, rows], phasors, self.frequencies)

    def bias(self, count: int) -> Tensor | float:
        """(Hkv, G, t, count) float64: what coded tokens 0 ... count - 1 get beside their look-ups."""
        if self.phasors is None:
            return 0.0
        turned = turns(self.frequencies, count, self.phasors.device)  # (P, 2, count)
        return torch.einsum("hgtpc,pcn->hgtn", self.phasors.double(), turned)


def turns(frequencies: tuple[float, ...], count: int, device: torch.device) -> Tensor:
    """Cosines and sines (P, 2, count) float64 of frequencies times 0 ... count - 1."""
    angles = torch.tensor(frequencies, dtype=torch.float64)[:, None] * torch.arange(count, dtype=torch.float64)
    return torch.stack([angles.cos(), angles.sin()], 1).to(device)


class _Exact:
    """Exact keys and values (Hkv, n, D) of one sequence."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.heads, self.length = keys.shape[0], keys.shape[1]

    def scores(self, queries: _Queries) -> Tensor:
        return torch.einsum("hgtd,hnd->hgtn", queries.exact.double(), self.keys.double())

    def mix(self, p: Tensor) -> Tensor:
        return torch.einsum("hgtn,hnd->hgtd", p, self.values)


class _Coded:
    """Codes (Hkv, M, n) of one sequence's keys and values with their centroids (Hkv, M, C, d_sub)."""

    def __init__(self, keys: _Codes, values: _Codes) -> None:
        self.keys, self.values = keys, values
        self.heads, self.length = keys.codes.shape[0], keys.codes.shape[2]

    def scores(self, queries: _Queries) -> Tensor:
        return self._looked_up(queries.coded) + queries.bias(self.length)

    def _looked_up(self, q: Tensor) -> Tensor:
        side, (H, G, t, D) = self.keys, q.shape
        M, _, d_sub = side.centroids.shape[1:]
        q = q.reshape(H, G * t, D)
        if side.channels is not None:
            q = q.gather(-1, side.channels[:, None].expand_as(q))  # into coded order
        if G * t > LOOKUP_QUERIES:
            return torch.einsum("hrd,hnd->hrn", q, side.decode()).unflatten(1, (G, t)).double()
        # one table per query row: (H, G*t, M, C); then one look-up per code, summed over the subspaces
        table = torch.einsum("hrms,hmcs->hrmc", q.unflatten(-1, (M, d_sub)), side.centroids)
        index = side.codes[:, None].expand(H, G * t, M, self.length)
        return table.gather(-1, index).sum(2, dtype=torch.float64).unflatten(1, (G, t))

    def mix(self, p: Tensor) -> Tensor:
        side, (H, G, t, n) = self.values, p.shape
        M, C, _ = side.centroids.shape[1:]
        if side.gains is not None:
            p = p * side.gains[:, None, None]
        p = p.reshape(H, G * t, n)
        if G * t > LOOKUP_QUERIES or n < C:
            out = torch.einsum("hrn,hnd->hrd", p, side.decode())
        else:  # probability mass per centroid, then one product with the centroids
            index = side.codes[:, None].expand(H, G * t, M, n)
            mass = p.new_zeros(H, G * t, M, C)
            mass.scatter_add_(-1, index, p[:, :, None].expand(H, G * t, M, n))
            out = torch.einsum("hrmc,hmcs->hrms", mass, side.centroids).flatten(-2)
        if side.channels is not None:
            out = out.gather(-1, side.channels.argsort(-1)[:, None].expand_as(out))  # out of coded order
        return out.unflatten(1, (G, t))


class _Codes:
    """Codes (Hkv, M, n), centroids (Hkv, M, C, d_sub), channel order (Hkv, D) and gains (Hkv, n) or None of a side."""

    def __init__(self, codes: Tensor, centroids: Tensor, channels: Tensor | None, gains: Tensor | None) -> None:
        self.codes, self.centroids, self.channels, self.gains = codes, centroids, channels, gains

    def decode(self) -> Tensor:
        """-> vectors (Hkv, n, D) in coded order."""
        H, M, C, d_sub = self.centroids.shape
        base = torch.arange(H * M, device=self.codes.device).reshape(H, 1, M) * C
        index = self.codes.transpose(1, 2) + base  # (H, n, M)
        rows = self.centroids.reshape(H * M * C, d_sub).index_select(0, index.reshape(-1))
        return rows.reshape(H, -1, M * d_sub)


def _attend(queries: _Queries, parts: list[_Exact | _Coded], first: int, window: int | None) -> tuple[Tensor, Tensor]:
    """Queries at positions first, first + 1, ... -> out (H, G, t, D), lse (H, G, t)."""
    q = queries.exact
    if not parts:
        return torch.zeros_like(q), q.new_full(q.shape[:-1], float("-inf"), dtype=torch.float64)
    scores = torch.cat([part.scores(queries) for part in parts], -1)
    columns = torch.arange(scores.shape[-1], device=q.device)
    positions = first + torch.arange(q.shape[2], device=q.device)[:, None]
    hidden = columns > positions
    if window is not None:
        hidden |= columns <= positions - window
    scores = scores.masked_fill(hidden, float("-inf"))
    lse = scores.logsumexp(-1)
    # a row that sees nothing has lse -inf: -inf - -inf would be NaN, and its output is 0
    p = torch.exp(scores - torch.where(lse.isinf(), 0.0, lse)[..., None]).to(q.dtype)
    out = torch.zeros_like(q)
    column = 0
    for part in parts:
        out = out + part.mix(p[..., column : column + part.length])
        column += part.length
    return out, lse


def _parts(
    b: int,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    compute: torch.dtype,
) -> list[_Exact | _Coded]:
    """What sequence b holds, in order of position; empty parts are left out."""
    found: list[_Exact | _Coded] = []
    if sinks is not None and (n := int(sinks.length[b])):
        found.append(_exact(b, n, sinks, compute))
    if pages is not None and (n := int(pages.context_len[b])):
        found.append(_paged(b, n, pages, compute))
    if residual is not None and (n := int(residual.length[b])):
        found.append(_exact(b, n, residual, compute))
    return found


def _exact(b: int, n: int, tokens: ExactTokens, compute: torch.dtype) -> _Exact:
    return _Exact(tokens.keys[b, :, :n].to(compute), tokens.values[b, :, :n].to(compute))


def _paged(b: int, n: int, pages: PagedTokens, compute: torch.dtype) -> _Exact | _Coded:
    ids = pages.page_table[b, : -(-n // pages.page_size)].long()
    if pages.keys.centroids is None or pages.values.centroids is None:
        return _Exact(_exact_rows(pages.keys, ids, n, compute), _exact_rows(pages.values, ids, n, compute))
    return _Coded(*(_side(side, ids, n, pages.page_size, compute) for side in (pages.keys, pages.values)))


def _side(side: PagedSide, ids: Tensor, n: int, page_size: int, compute: torch.dtype) -> _Codes:
    assert side.centroids is not None
    Hkv = side.pages.shape[1]
    centroids = side.float_centroids().to(compute).expand(Hkv, -1, -1, -1)
    channels = None if side.channels is None else side.channels.expand(Hkv, -1)
    return _Codes(_codes(side, ids, n, page_size), centroids, channels, page_gains(side, ids, n, compute))


def page_gains(side: PagedSide, ids: Tensor, n: int, compute: torch.dtype) -> Tensor | None:
    """Gains of the first n tokens in these pages, (Hkv, n); None where a side has none."""
    if side.gains is None or side.gain_values is None:
        return None
    stored = side.gains[ids].transpose(0, 1).flatten(1, 2)[:, :n]  # (Hkv, n)
    return side.gain_values.to(compute).gather(1, stored.long())


def _exact_rows(side: PagedSide, ids: Tensor, n: int, compute: torch.dtype) -> Tensor:
    """-> (Hkv, n, D)."""
    return side.pages[ids].transpose(0, 1).flatten(1, 2)[:, :n].to(compute)


def _codes(side: PagedSide, ids: Tensor, n: int, page_size: int) -> Tensor:
    """-> int64 codes (Hkv, M, n)."""
    assert side.centroids is not None
    owned = side.pages[ids].transpose(0, 1)  # (Hkv, used pages, ...)
    if side.layout == "row":
        rows = owned.flatten(1, 2)[:, :n]  # (Hkv, n, packed(M))
        return unpack(rows, side.nbits, side.centroids.shape[1]).transpose(1, 2)
    lines = owned.transpose(1, 2).contiguous()  # (Hkv, M, used pages, packed(page_size)): moved while still packed
    return unpack(lines, side.nbits, page_size).flatten(2, 3)[:, :, :n]
