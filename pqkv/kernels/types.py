"""What attention on pages takes: plain tensors, nothing of caches, codecs or models."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from pqkv.config import Layout


@dataclass(frozen=True, slots=True)
class PagedSide:
    """Keys or values of one layer, in pages.

    Exact (`centroids` is None): pages (num_pages, Hkv, page_size, D), layout row.
    Coded: packed codes, uint8, row (num_pages, Hkv, page_size, packed(M)) or transposed
    (num_pages, Hkv, M, packed(page_size)), with centroids (H, M, C, d_sub), H = 1 or Hkv. Element m * d_sub + s of a
    coded vector is channel `channels[h, m * d_sub + s]` (H, D) int64; None is the natural order.

    `derived` is for what a backend makes of the centroids once and wants again in the next step: whoever makes a side
    for each step passes the same dictionary.
    """

    pages: Tensor
    layout: Layout = "row"
    centroids: Tensor | None = None
    channels: Tensor | None = None
    nbits: int = 8
    derived: dict[Hashable, tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False, repr=False)

    def derive(self, name: Hashable, make: Callable[[Tensor], Tensor]) -> Tensor:
        """`make(centroids)`, made once for these centroids and kept under `name`."""
        assert self.centroids is not None
        source, made = self.derived.get(name, (None, None))
        if made is None or source is not self.centroids:
            made = make(self.centroids)
            self.derived[name] = self.centroids, made
        return made

    def to(self, device: torch.device) -> PagedSide:
        """On another device."""
        centroids, channels = (None if t is None else t.to(device) for t in (self.centroids, self.channels))
        return replace(self, pages=self.pages.to(device), centroids=centroids, channels=channels, derived={})


@dataclass(frozen=True, slots=True)
class PagedTokens:
    """The paged tokens of a batch: sequence b holds `context_len[b]` of them, in the pages of row b of the table.

    page_table (B, max_pages) int32, context_len (B,) int32. Nothing past `context_len` is read, whatever lies there.
    `trusted` says that ids and lengths were made on the host by a cache's own table: a backend on another device need
    not wait for them to look at them again.
    """

    keys: PagedSide
    values: PagedSide
    page_table: Tensor
    context_len: Tensor
    page_size: int
    trusted: bool = False

    def to(self, device: torch.device) -> PagedTokens:
        """On another device."""
        return replace(
            self,
            keys=self.keys.to(device),
            values=self.values.to(device),
            page_table=self.page_table.to(device),
            context_len=self.context_len.to(device),
        )


@dataclass(frozen=True, slots=True)
class ExactTokens:
    """Exact tokens of a batch: keys and values (B, Hkv, capacity, D); the first length[b] count, length (B,) int32."""

    keys: Tensor
    values: Tensor
    length: Tensor

    def to(self, device: torch.device) -> ExactTokens:
        """On another device."""
        return ExactTokens(self.keys.to(device), self.values.to(device), self.length.to(device))


class AttentionBackend(Protocol):
    """Attention over sinks, pages and residual, in this order of position.

    query (B, Tq, Hq, D). The last token of the residual (of the pages where there is no residual) is the last
    query's own: query i of sequence b stands at position total[b] - Tq + i and sees the columns up to itself, the
    newest `window` of them if a window is given. Queries at negative positions are padding: output 0, lse -inf.
    Returns out (B, Tq, Hq, D) in the query's dtype and lse (B, Tq, Hq), float32 or float64 as the backend accumulates.
    """

    def __call__(
        self,
        query: Tensor,
        pages: PagedTokens | None,
        sinks: ExactTokens | None,
        residual: ExactTokens | None,
        *,
        scale: float,
        window: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run attention."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a decoding step that can be run and timed. Where `beyond` names another, `run` does what that one does
    and then this part: its own time is the difference.
    """

    name: str
    run: Callable[[], object]
    beyond: str | None = None
