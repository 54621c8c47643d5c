"""Many queries a sequence on the CPU: its keys and values decoded once for all of them, head by head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pqkv.kernels.reference import page_gains
from pqkv.kernels.turns import all_turns
from pqkv.kernels.types import CodedQuery, ExactTokens, PagedSide, PagedTokens
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
        parts = _parts(b, query, pages, sinks, residual)
        if not parts:
            continue
        Hkv, total = parts[0].keys.shape[0], sum(part.keys.shape[1] for part in parts)
        G = Hq // Hkv
        for h in range(Hkv):
            own = slice(h * G, (h + 1) * G)
            queries = [part.query[:, own].float().transpose(0, 1) * scale for part in parts]  # (G, Tq, K)
            values = torch.cat([part.values[h] for part in parts])
            rows = max(1, _TILE // (G * total))
            for start in range(0, Tq, rows):
                tile = slice(start, start + rows)
                scores = torch.cat(
                    [q[:, tile] @ part.keys[h].T for q, part in zip(queries, parts, strict=True)], -1
                )  # (G, t, total)
                mixed, sums = _attend(scores, values, total - Tq + start, window)
                out[b, tile, own] = mixed.transpose(0, 1)
                lse[b, tile, own] = sums.T
    return out.to(query.dtype), lse


def _attend(scores: Tensor, values: Tensor, first: int, window: int | None) -> tuple[Tensor, Tensor]:
    """Scores (G, t, n) of queries at positions first, first + 1, ... -> out (G, t, D), lse (G, t)."""
    columns = torch.arange(len(values))
    positions = first + torch.arange(scores.shape[1])[:, None]
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


@dataclass(frozen=True, slots=True)
class _Part:
    """Tokens of one sequence: keys (Hkv, n, K), values (Hkv, n, D) float32, and what scores them, (Tq, Hq, K)."""

    query: Tensor
    keys: Tensor
    values: Tensor


def _parts(
    b: int, query: Tensor, pages: PagedTokens | None, sinks: ExactTokens | None, residual: ExactTokens | None
) -> list[_Part]:
    """What sequence b holds in order of position; empty parts are left out."""
    found = []
    if sinks is not None and (n := int(sinks.length[b])):
        found.append(_Part(query[b], sinks.keys[b, :, :n].float(), sinks.values[b, :, :n].float()))
    if pages is not None and (n := int(pages.context_len[b])):
        ids = pages.page_table[b, : -(-n // pages.page_size)].long()
        keys, values = (_page_vectors(side, ids, n, pages.page_size) for side in (pages.keys, pages.values))
        found.append(_Part(*_scored(b, query, pages.query, keys), values))
    if residual is not None and (n := int(residual.length[b])):
        found.append(_Part(query[b], residual.keys[b, :, :n].float(), residual.values[b, :, :n].float()))
    return found


def _scored(b: int, query: Tensor, coded: CodedQuery | None, keys: Tensor) -> tuple[Tensor, Tensor]:
    """A query and keys (Hkv, n, K) whose products are the scores of coded tokens: phasors stand behind the one, the
    turns of every token behind the other. Keys need not be turned back for it, which would take D products each.
    """
    if coded is None:
        return query[b], keys
    if not coded.frequencies:
        return coded.query[b], keys
    turned = all_turns(coded.frequencies, keys.shape[1], keys.device).flatten(1)  # (n, 2 P)
    return (
        torch.cat([coded.query[b], coded.phasors[b].flatten(-2)], -1),
        torch.cat([keys, turned.expand(len(keys), -1, -1)], -1),
    )


def _page_vectors(side: PagedSide, ids: Tensor, n: int, page_size: int) -> Tensor:
    """The first n tokens in these pages, (Hkv, n, D) float32, as their codes stand for them."""
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
    table = side.float_centroids().float().reshape(H * M * C, d_sub)
    coded = table.index_select(0, rows.reshape(-1)).reshape(len(codes), n, M * d_sub)
    if (gains := page_gains(side, ids, n, torch.float32)) is not None:
        coded *= gains[..., None]
    if side.channels is None:
        return coded
    return coded.gather(-1, side.channels[own].argsort(-1)[:, None].expand_as(coded))
