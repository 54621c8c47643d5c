"""One layer of a paged exact cache: whole vectors in pages, the last page of a sequence partly filled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pqkv.cache.layer import AttentionObserver, Geometry, checked_crop, checked_padding, length_tensor
from pqkv.cache.table import PageTable
from pqkv.cache.window import Window, check_window_after_crop
from pqkv.config import CacheConfig
from pqkv.kernels import AttentionBackend, Kept, PagedSide, PagedTokens


class PagedExactLayer:
    """Keys and values of one layer in pages (num_pages, Hkv, page_size, D).

    Under a window the first tokens that stay visible beside it lie in buffers of their own, and `advanced` is called
    when pages fell behind it: their owner gives them back.
    """

    observer: AttentionObserver | None = None

    def __init__(
        self,
        table: PageTable,
        config: CacheConfig,
        geometry: Geometry,
        backend: AttentionBackend,
        copy_page: Callable[[int, int], None],
        advanced: Callable[[], None],
    ) -> None:
        self.table, self.page_size, self.geometry, self.backend = table, config.page_size, geometry, backend
        self.window = Window.of(config.window, config.window_sinks)
        self._copy_everywhere = copy_page  # copy on write happens once for all layers: the table is theirs together
        self._advanced = advanced
        self.lengths = [0] * geometry.num_sequences
        g, visible = geometry, config.window_sinks
        self._pages = [self._empty(0, g.num_kv_heads, config.page_size, g.head_dim) for _ in range(2)]
        self._read: tuple[PagedSide, PagedSide] | None = None
        self._kept = Kept()
        self._sinks = [self._empty(g.num_sequences, g.num_kv_heads, visible, g.head_dim) for _ in range(2)]

    @property
    def coded(self) -> list[int]:
        """See `Layer`: none."""
        return [0] * len(self.lengths)

    def append(self, keys: Tensor, values: Tensor, padding: Sequence[int] | None = None) -> None:
        """Add tokens (B, Hkv, T, D); raises `OutOfPages` before anything changes."""
        checked = checked_padding(padding, keys, len(self.lengths))
        lengths = self._after(keys, checked)
        self._write(keys, values, checked, list(map(self._first_page, lengths)))
        self._grew(lengths)

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
        checked = checked_padding(padding, keys, len(self.lengths))
        firsts, lengths, own = self.first_pages(), self._after(keys, checked), self.window
        self._write(keys, values, checked, firsts)
        seen = [total - first * self.page_size for total, first in zip(lengths, firsts, strict=True)]
        if self._read is None:
            self._read = PagedSide(self._pages[0]), PagedSide(self._pages[1])
        table, lengths_seen = self.table.as_tensor(keys.device, firsts), length_tensor(seen, keys.device)
        pages = PagedTokens(*self._read, table, lengths_seen, self.page_size, trusted=True, kept=self._kept)
        window = own.size if own is not None else window
        out, lse = self.backend(query, pages, None, None, scale=scale, window=window)
        if self.observer is not None:
            self.observer(query, pages, None, None, scale=scale, window=window, out=out, lse=lse)
        self._grew(lengths)
        return (
            out if own is None else own.beside(query, (self._sinks[0], self._sinks[1]), lengths, out, lse, scale=scale)
        )

    def _after(self, keys: Tensor, padding: Sequence[int]) -> list[int]:
        return [n + keys.shape[2] - pad for n, pad in zip(self.lengths, padding, strict=True)]

    def _write(self, keys: Tensor, values: Tensor, padding: Sequence[int], firsts: Sequence[int]) -> None:
        """Put the new tokens into their pages from `firsts` on."""
        P, lengths = self.page_size, self._after(keys, padding)
        keys, values = keys.detach(), values.detach()  # a cache is no part of a graph
        self._own(lengths, firsts)
        if keys.shape[2] == 1 and not any(padding):
            self._write_tokens(keys[:, :, 0], values[:, :, 0])
            return
        for b, (n, total, pad, first) in enumerate(zip(self.lengths, lengths, padding, firsts, strict=True)):
            start = max(n, first * P)
            position = torch.arange(start, total, device=keys.device)
            ids = torch.tensor(self.table.pages(b), dtype=torch.long, device=keys.device)[position // P]
            for pages, sinks, new in zip(self._pages, self._sinks, (keys, values), strict=True):
                own = new[b, :, pad:]
                pages[ids, :, position % P] = own[:, start - n :].transpose(0, 1).to(pages.dtype)  # (T, Hkv, D)
                kept = sinks[b, :, n : n + own.shape[1]]
                kept[:] = own[:, : kept.shape[1]]

    def _write_tokens(self, keys: Tensor, values: Tensor) -> None:
        """Put one new token a sequence, (B, Hkv, D), into its page: what a step of decoding does."""
        P, kept = self.page_size, self._sinks[0].shape[2]
        ids = [self.table.page(b, n // P) for b, n in enumerate(self.lengths)]
        slots = [n % P for n in self.lengths]
        if len(ids) == 1:  # without an index on the device
            places = ids[0], slice(None), slots[0]
            keys, values = keys[0], values[0]
        else:
            page, slot = torch.tensor([ids, slots], dtype=torch.long).to(keys.device)
            places = page, slice(None), slot
        for pages, new in zip(self._pages, (keys, values), strict=True):
            pages[places] = new.to(pages.dtype)
        for b, n in enumerate(self.lengths if kept else ()):
            if n < kept:
                for sinks, new in zip(self._sinks, (keys, values), strict=True):
                    sinks[b, :, n] = new if len(ids) == 1 else new[b]

    def _grew(self, lengths: list[int]) -> None:
        behind = self.first_pages()
        self.lengths = lengths
        if self.window is not None and self.first_pages() != behind:
            self._advanced()

    def copy_page(self, old: int, new: int) -> None:
        """Copy one page of this layer."""
        self._grow()
        for pages in self._pages:
            pages[new] = pages[old]

    def select(self, sequences: Sequence[int]) -> None:
        """Make sequence i what sequences[i] was; the table moved the pages."""
        self.lengths = [self.lengths[s] for s in sequences]
        index = torch.tensor(list(sequences), device=self.geometry.device)
        self._sinks = [buffer[index] for buffer in self._sinks]

    def check_crop(self, lengths: Sequence[int]) -> None:
        """See `Layer`: every token can go, unless a window would reach pages that were given back."""
        checked_crop(self.lengths, lengths)
        check_window_after_crop(self.window, self.lengths, lengths, self._first_page)

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

    def first_pages(self) -> list[int]:
        """The first page of each sequence that the next query sees."""
        return list(map(self._first_page, self.lengths))

    def pages(self, side: int) -> Tensor:
        """All pages of keys (0) or values (1), (num_pages, Hkv, page_size, D)."""
        return self._pages[side]

    def exact_bytes(self) -> tuple[int, int]:
        """Of no residual, and of the first tokens that stay visible beside a window."""
        return 0, sum(buffer.numel() * buffer.element_size() for buffer in self._sinks)

    def page_bytes(self) -> tuple[int, int]:
        """Bytes of the pages in use, slack included, shared ones once, and of pages that wait for tokens."""
        page = sum(pages[0].numel() * pages.element_size() for pages in self._pages) if len(self._pages[0]) else 0
        used = self.table.distinct(self.page_counts())
        return used * page, (len(self._pages[0]) - used) * page

    def derived_bytes(self) -> int:
        """See `Layer`: none."""
        return 0

    def _first_page(self, n: int) -> int:
        """The first page that the next query of a sequence of n tokens sees."""
        return 0 if self.window is None else self.window.first_visible(n) // self.page_size

    def _own(self, lengths: Sequence[int], firsts: Sequence[int]) -> None:
        """Allocate the pages the new tokens need and copy shared ones that they would be written into."""
        P, table = self.page_size, self.table
        counts = [-(-n // P) for n in lengths]
        written = {
            b: n // P for b, (n, total) in enumerate(zip(self.lengths, lengths, strict=True)) if n % P and total > n
        }
        writers = Counter(table.page(b, index) for b, index in written.items())
        # of the writers of a shared page all get a copy, or all but the last if nobody else owns it
        copies = sum(min(count, table.pool.references(page) - 1) for page, count in writers.items())
        needed = None if self.window is None else firsts
        missing = table.missing(counts, needed)
        if not missing + copies and self._pages[0].shape[0] == table.pool.capacity:
            return
        table.pool.require(missing + copies)
        table.ensure(counts, needed)
        self._grow()
        for b, index in written.items():
            moved = table.own(b, index)
            if moved is not None:
                self._copy_everywhere(*moved)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.geometry.dtype, device=self.geometry.device)

    def _grow(self) -> None:
        capacity = self.table.pool.capacity
        if capacity > self._pages[0].shape[0]:
            self._read = None
            self._kept.clear()
            for i, pages in enumerate(self._pages):
                grown = pages.new_empty((capacity, *pages.shape[1:]))
                grown[: pages.shape[0]] = pages
                self._pages[i] = grown
