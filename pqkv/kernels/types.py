"""What attention on pages takes: plain tensors, nothing of caches, codecs or models."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

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

    Centroids of int8 have `scales` (H, M, d_sub) float32, one a channel. Coded values may have gains: the vector that
    codes of token t stand for is multiplied by `gain_values[h, gains[page, h, slot]]`, gains (num_pages, Hkv,
    page_size) uint8, gain_values (Hkv, 256) float32.

    `derived` is for what a backend makes of the centroids once and wants again in the next step: whoever makes a side
    for each step passes the same dictionary.
    """

    pages: Tensor
    layout: Layout = "row"
    centroids: Tensor | None = None
    channels: Tensor | None = None
    nbits: int = 8
    scales: Tensor | None = None
    gains: Tensor | None = None
    gain_values: Tensor | None = None
    derived: dict[Hashable, tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False, repr=False)

    def float_centroids(self) -> Tensor:
        """Centroids as numbers that lie one after another: as they are, or made once of int8 ones with their scales, or
        of one codebook that all subspaces share.
        """
        assert self.centroids is not None
        if self.scales is None and self.centroids.is_contiguous():
            return self.centroids
        return self.derive("numbers", lambda centroids: centroids.contiguous())

    def derive(self, name: Hashable, make: Callable[[Tensor], Tensor]) -> Tensor:
        """`make(centroids)`, made once for these centroids, as float numbers, and kept under `name`."""

        def made(stored: Tensor) -> Tensor:
            return make(stored if self.scales is None else stored.float() * self.scales[:, :, None])

        return self.derive_stored(name, made)

    def derive_stored(self, name: Hashable, make: Callable[[Tensor], Tensor]) -> Tensor:
        """`make(centroids)`, made once for these centroids as they are stored, and kept under `name`."""
        assert self.centroids is not None
        source, made = self.derived.get(name, (None, None))
        if made is None or source is not self.centroids:
            with torch.inference_mode(False):  # it outlives the mode that it is first asked for in
                made = make(self.centroids)
            self.derived[name] = self.centroids, made
        return made

    def to(self, device: torch.device) -> PagedSide:
        """On another device."""
        names = ("pages", "centroids", "channels", "scales", "gains", "gain_values")
        moved = {name: part.to(device) for name in names if (part := getattr(self, name)) is not None}
        return replace(self, **moved, derived={})


@dataclass(frozen=True, slots=True)
class CodedQuery:
    """What coded keys are scored with where codes stand for F (k - mean(position)): `query` (B, Tq, Hq, D) = F^-T q in
    place of the query, and a bias that depends on the query and the token's place only. To the score of coded token j
    of a sequence (j = 0 is the first in its pages) comes

        sum over i of phasors[..., i, 0] cos(frequencies[i] j) + phasors[..., i, 1] sin(frequencies[i] j),

    phasors (B, Tq, Hq, P, 2) in the query's dtype, before `scale`; what does not turn is a pair of frequency 0.
    """

    query: Tensor
    phasors: Tensor
    frequencies: tuple[float, ...] = ()

    def to(self, device: torch.device) -> CodedQuery:
        """On another device."""
        return replace(self, query=self.query.to(device), phasors=self.phasors.to(device))

    def rows(self, rows: slice) -> CodedQuery:
        """Of some of the Tq queries."""
        return replace(self, query=self.query[:, rows], phasors=self.phasors[:, rows])


class Kept(dict[Hashable, Any]):
    """What a backend keeps of tensors, as arrays in the same memory. It is not copied with them: the copy of an array
    would lie elsewhere than the copy of its tensor.
    """

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        """Of `copy` and `pickle`."""
        return Kept, ()


@dataclass(frozen=True, slots=True)
class PagedTokens:
    """The paged tokens of a batch: sequence b holds `context_len[b]` of them, in the pages of row b of the table.

    page_table (B, max_pages) int32, context_len (B,) int32. Nothing past `context_len` is read, whatever lies there.
    `trusted` says that ids and lengths were made on the host by a cache's own table: a backend on another device need
    not wait for them to look at them again, and nobody checks ids. `query` is what coded keys are scored with, None for
    the query itself.

    `kept` is for what a backend makes of where all these tensors lie and wants again in the next step: whoever makes
    tokens of the same tensors in every step passes the same dictionary, and empties it before letting go of one.
    """

    keys: PagedSide
    values: PagedSide
    page_table: Tensor
    context_len: Tensor
    page_size: int
    trusted: bool = False
    query: CodedQuery | None = None
    kept: Kept = field(default_factory=Kept, compare=False, repr=False)

    def meeting(self, query: CodedQuery) -> PagedTokens:
        """The same tokens with what their coded keys are scored with."""
        return PagedTokens(
            self.keys, self.values, self.page_table, self.context_len, self.page_size, self.trusted, query, self.kept
        )

    def to(self, device: torch.device) -> PagedTokens:
        """On another device."""
        return replace(
            self,
            keys=self.keys.to(device),
            values=self.values.to(device),
            page_table=self.page_table.to(device),
            context_len=self.context_len.to(device),
            query=None if self.query is None else self.query.to(device),
            kept=Kept(),
        )


@dataclass(frozen=True, slots=True)
class ExactTokens:
    """Exact tokens of a batch: keys and values (B, Hkv, capacity, D); the first length[b] count, length (B,) int32.
    `kept` of the residual is what `PagedTokens.kept` is, where there are no pages.
    """

    keys: Tensor
    values: Tensor
    length: Tensor
    kept: Kept = field(default_factory=Kept, compare=False, repr=False)

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
