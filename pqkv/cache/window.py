"""A sliding window: which tokens a query sees, which pages nobody will see again, and first tokens beside the window.

A query at position p sees the newest `size` tokens up to its own, p - size + 1 ... p, and of those before them the
first `sinks`: attention sinks that stay visible, as StreamingLLM keeps them (Xiao et al. 2023), at their own positions.
Backends know a window and nothing of sinks beside it; what these bring is merged with what a backend returns by the
log-sum-exps of both, which is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pqkv.errors import CacheError


@dataclass(frozen=True, slots=True)
class Window:
    """`size` tokens, and the first `sinks` of a sequence beside them."""

    size: int
    sinks: int = 0

    @classmethod
    def of(cls, size: int | None, sinks: int) -> Window | None:
        """None where all tokens are seen."""
        return None if size is None else cls(size, sinks)

    def first_visible(self, cached: int) -> int:
        """The oldest token, sinks aside, that the next query of a sequence of `cached` tokens sees."""
        return max(0, cached - self.size + 1)

    def seen(self, row: int, start: int, stop: int) -> int:
        """How many of the tokens start ... stop - 1, none of them newer than itself, the query at `row` sees."""
        first = max(0, row + 1 - self.size)
        beside = max(0, min(self.sinks, first, stop) - start)
        return beside + max(0, stop - max(start, first))

    def hidden(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Which of `columns`, positions of tokens, no row of `rows` sees because of the window; broadcast."""
        return (columns <= rows - self.size) & (columns >= self.sinks)

    def beside(
        self,
        query: Tensor,
        sinks: tuple[Tensor, Tensor],
        lengths: Sequence[int],
        out: Tensor,
        lse: Tensor,
        scale: float,
    ) -> Tensor:
        """Attention with the first tokens that its window does not hold: out (B, T, Hq, D) and lse (B, T, Hq) of a
        backend with a window of `size`, for the newest rows of sequences of `lengths` tokens, whose first tokens are
        `sinks`, keys and values (B, Hkv, capacity, D).
        """
        B, T, _, D = query.shape
        if not self.sinks or max(lengths) <= self.size:
            return out
        keys, values = (part[:, :, : self.sinks].double() for part in sinks)
        rows = torch.tensor(lengths, device=query.device)[:, None] - T + torch.arange(T, device=query.device)  # (B, T)
        seen = torch.arange(self.sinks, device=query.device) <= rows[..., None] - self.size  # (B, T, sinks)
        grouped = query.double().reshape(B, T, keys.shape[1], -1, D) * scale
        # slots that nothing was written to yet are seen by nobody, whatever lies there
        scores = torch.einsum("bthgd,bhnd->bthgn", grouped, keys).flatten(2, 3)
        scores = torch.where(seen[:, :, None], scores, float("-inf"))
        whole = torch.logaddexp(lse.double(), scores.logsumexp(-1))
        at = torch.where(whole.isinf(), 0.0, whole)  # rows of padding see nothing: their output is 0
        weights = torch.exp(scores - at[..., None]).unflatten(2, grouped.shape[2:4])
        kept = torch.where(seen.any(1)[:, None, :, None], values, 0.0)  # 0 times NaN would be NaN
        added = torch.einsum("bthgn,bhnd->bthgd", weights, kept).flatten(2, 3)
        return (out.double() * torch.exp(lse.double() - at)[..., None] + added).to(out.dtype)


def check_window_after_crop(
    window: Window | None,
    lengths: Sequence[int],
    wanted: Sequence[int],
    first_page: Callable[..., int],
    *states: Sequence[int],
) -> None:
    """Raise `CacheError` where sequences of `lengths` tokens, cropped to `wanted`, would see pages that were given
    back: `first_page` of a length, and of what else a layer knows of a sequence, is the first that is seen.
    """
    if window is None:
        return
    for b, (old, new, *more) in enumerate(zip(lengths, wanted, *states, strict=True)):
        if first_page(new, *more) < first_page(old, *more):
            raise CacheError(
                f"cannot crop sequence {b} from {old} to {new} tokens: a window of {window.size} would reach pages "
                "that were given back; crop less, or reset the cache"
            )
