"""Keeping a part of what a prefill brought: which tokens stay in the cache, head by head.

Keys and values leave the cache, what stays keeps the rotary embedding of its own position, and later tokens stand at
their own positions: so evicts H2O (Zhang et al. 2023), and other than a prompt that is cut and run again. In a coded
cache codes are numbered by what was kept, so a mean that turns with the position is taken out at the number of a token,
not at its position: right, but of less use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pqkv.config import CacheConfig, Keep

_TILE_ROWS = 256  # of attention at once


@dataclass(frozen=True, slots=True)
class Keeper:
    """Of n tokens `share` stay (at least one): the first `sinks`, half of the others the newest, and as many more as

    - recent: again the newest,
    - attention-sum: those that all queries of a KV head together looked at most (H2O's heavy hitters),
    - random: drawn, layer by layer by other numbers, the same in every run: the control.
    """

    policy: Keep
    share: float
    sinks: int

    @classmethod
    def of(cls, config: CacheConfig) -> Keeper | None:
        """None where everything is kept."""
        if config.keep is None or config.keep_share is None:
            return None
        return cls(config.keep, config.keep_share, config.window_sinks)

    def count(self, tokens: int) -> int:
        """Tokens that stay of so many."""
        return min(tokens, max(1, math.ceil(self.share * tokens)))

    def __call__(
        self, query: Tensor, keys: Tensor, values: Tensor, padding: Sequence[int], scale: float, layer: int
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Of keys and values (B, Hkv, T, D), which queries (B, Hq, T, D) attended to, those that stay, in order:
        (B, Hkv, most, D) each and the padding on their left.
        """
        T = keys.shape[2]
        counts = [self.count(T - pad) if pad < T else 0 for pad in padding]
        most = max(counts)
        kept_keys, kept_values = (part.new_zeros(*part.shape[:2], most, part.shape[3]) for part in (keys, values))
        for b, (pad, count) in enumerate(zip(padding, counts, strict=True)):
            if not count:
                continue
            chosen = pad + self._chosen(query[b, :, pad:], keys[b, :, pad:], count, scale, layer)
            for kept, part in ((kept_keys, keys), (kept_values, values)):
                kept[b, :, most - count :] = part[b].gather(1, chosen[..., None].expand(-1, -1, part.shape[3]))
        return kept_keys, kept_values, [most - count for count in counts]

    def _chosen(self, query: Tensor, keys: Tensor, count: int, scale: float, layer: int) -> Tensor:
        """(Hkv, count) in order, of query (Hq, n, D) and keys (Hkv, n, D)."""
        if self.policy == "attention-sum":
            return self.by_merit(attention_sums(query, keys, scale), count)
        draws = torch.Generator().manual_seed(layer)
        return self.by_merit(torch.rand(keys.shape[:2], generator=draws, dtype=torch.float64).to(keys.device), count)

    def by_merit(self, merit: Tensor, count: int) -> Tensor:
        """Which `count` of n tokens stay, in order, by their merit (H, n) float64 beside the first and the newest."""
        (H, n), device = merit.shape, merit.device
        first = min(self.sinks, count)
        newest = count - first if self.policy == "recent" else math.ceil((count - first) / 2)
        sure = torch.cat([torch.arange(first, device=device), torch.arange(n - newest, n, device=device)])
        more = count - first - newest
        if not more:
            return sure.sort().values.expand(H, -1)
        merit = merit.index_fill(1, sure, float("-inf"))
        return torch.cat([sure.expand(H, -1), merit.topk(more, -1).indices], -1).sort(-1).values


def attention_sums(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    """What each of n tokens got of the causal attention of all rows and of all query heads of its KV head: (Hkv, n)
    float64, of query (Hq, n, D) and keys (Hkv, n, D).
    """
    Hkv, n, D = keys.shape
    grouped = query.float().reshape(Hkv, -1, n, D)
    sums = torch.zeros(Hkv, n, dtype=torch.float64, device=keys.device)
    for start in range(0, n, _TILE_ROWS):
        rows = grouped[:, :, start : start + _TILE_ROWS]
        end = start + rows.shape[2]
        scores = torch.einsum("hgtd,hnd->hgtn", rows, keys[:, :end].float()) * scale
        hidden = torch.ones(end - start, end, dtype=torch.bool, device=keys.device).triu(start + 1)
        sums[:, :end] += scores.masked_fill(hidden, float("-inf")).softmax(-1).sum((1, 2), dtype=torch.float64)
    return sums
