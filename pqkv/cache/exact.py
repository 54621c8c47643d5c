"""One layer of a paged exact cache: whole vectors in pages, the last page of a sequence partly filled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pqkv.cache.layer import AttentionObserver, Geometry, checked_crop, checked_padding, length_tensor
from pqkv.cache.table import PageTable
from pqkv.kernels import AttentionBackend, PagedSide, PagedTokens


class PagedExactLayer:
    """Keys and values of one layer in pages (num_pages, Hkv, page_size, D)."""

    observer: AttentionObserver | None = None

    def __init__(
        self,
        table: PageTable,
        page_size: int,
        geometry: Geometry,
        backend: AttentionBackend,
        copy_page: Callable[[int, int], None],
    ) -> None:
        self.table, self.page_size, self.geometry, self.backend = table, page_size, geometry, backend
        self._copy_everywhere = copy_page  # copy on write happens once for all layers: the table is theirs together
        self.lengths = [0] * geometry.num_sequences
        shape = (0, geometry.num_kv_heads, page_size, geometry.head_dim)
        self._pages = [torch.empty(shape, dtype=geometry.dtype, device=geometry.device) for _ in range(2)]

    @property
    def coded(self) -> list[int]:
        """See `Layer`: none."""
        return [0] * len(self.lengths)

    def append(self, keys: Tensor, values: Tensor, padding: Sequence[int] | None = None) -> None:
        """Add tokens (B, Hkv, T, D); raises `OutOfPages` before anything changes."""
        checked = checked_padding(padding, keys, len(self.lengths))
        T, P = keys.shape[2], self.page_size
        keys, values = keys.detach(), values.detach()  # a cache is no part of a graph
        lengths = [n + T - pad for n, pad in zip(self.lengths, checked, strict=True)]
        self._own(lengths)
        for b, (n, total, pad) in enumerate(zip(self.lengths, lengths, checked, strict=True)):
            position = torch.arange(n, total, device=keys.device)
            ids = torch.tensor(self.table.pages(b), dtype=torch.long, device=keys.device)[position // P]
            for pages, new in zip(self._pages, (keys, values), strict=True):
                pages[ids, :, position % P] = new[b, :, pad:].transpose(0, 1).to(pages.dtype)  # (T, Hkv, D)
        self.lengths = lengths

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scale: float,
        padding: Sequence[int] | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Add the new tokens, then attend causally over the pages; returns (B, T, Hq, D)."""
        self.append(keys, values, padding)
        pages = PagedTokens(
            PagedSide(self._pages[0]),
            PagedSide(self._pages[1]),
            self.table.as_tensor(keys.device),
            length_tensor(self.lengths, keys.device),
            self.page_size,
            trusted=True,
        )
        out, lse = self.backend(query, pages, None, None, scale=scale, window=window)
        if self.observer is not None:
            self.observer(query, pages, None, None, scale=scale, window=window, out=out, lse=lse)
        return out

    def copy_page(self, old: int, new: int) -> None:
        """Copy one page of this layer."""
        self._grow()
        for pages in self._pages:
            pages[new] = pages[old]

    def select(self, sequences: Sequence[int]) -> None:
        """Make sequence i what sequences[i] was; the table moved the pages."""
        self.lengths = [self.lengths[s] for s in sequences]

    def check_crop(self, lengths: Sequence[int]) -> None:
        """See `Layer`: every token can go."""
        checked_crop(self.lengths, lengths)

    def crop(self, lengths: Sequence[int]) -> None:
        """Keep the first `lengths[b]` tokens of sequence b."""
        self.check_crop(lengths)
        self.lengths = list(lengths)

    def reset(self) -> None:
        """Forget every token; the owner of the page table releases the pages."""
        self.lengths = [0] * len(self.lengths)

    def page_counts(self) -> list[int]:
        """Pages of each sequence, the last partly filled."""
        return [-(-n // self.page_size) for n in self.lengths]

    def exact_bytes(self) -> tuple[int, int]:
        """No residual and no sinks: all of it is pages."""
        return 0, 0

    def page_bytes(self) -> tuple[int, int]:
        """Bytes of the pages in use, slack included, shared ones once, and of pages that wait for tokens."""
        page = sum(pages[0].numel() * pages.element_size() for pages in self._pages) if len(self._pages[0]) else 0
        used = self.table.distinct(self.page_counts())
        return used * page, (len(self._pages[0]) - used) * page

    def derived_bytes(self) -> int:
        """See `Layer`: none."""
        return 0

    def _own(self, lengths: Sequence[int]) -> None:
        """Allocate the pages the new tokens need and copy shared ones that they would be written into."""
        P, table = self.page_size, self.table
        counts = [-(-n // P) for n in lengths]
        written = {
            b: n // P for b, (n, total) in enumerate(zip(self.lengths, lengths, strict=True)) if n % P and total > n
        }
        writers = Counter(table.pages(b)[index] for b, index in written.items())
        # of the writers of a shared page all get a copy, or all but the last if nobody else owns it
        copies = sum(min(count, table.pool.references(page) - 1) for page, count in writers.items())
        missing = sum(max(0, count - len(table.pages(b))) for b, count in enumerate(counts))
        table.pool.require(missing + copies)
        table.ensure(counts)
        self._grow()
        for b, index in written.items():
            moved = table.own(b, index)
            if moved is not None:
                self._copy_everywhere(*moved)

    def _grow(self) -> None:
        capacity = self.table.pool.capacity
        if capacity > self._pages[0].shape[0]:
            for i, pages in enumerate(self._pages):
                grown = pages.new_empty((capacity, *pages.shape[1:]))
                grown[: pages.shape[0]] = pages
                self._pages[i] = grown
