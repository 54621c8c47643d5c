"""Pages of a codec that no kernel reads: what it restores, kept as exact vectors, which every backend reads already.

It is a measurement of quality: tokens are coded when they would be, once, and attended to as restored. Its bytes are
those of exact pages; what the codes would take is counted elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pqkv.cache.layer import Geometry
from pqkv.cache.table import PageTable
from pqkv.codec.interface import Codec
from pqkv.config import CacheConfig
from pqkv.errors import CacheError
from pqkv.kernels import Kept, PagedSide, PagedTokens


class RestoredStore:
    """A `CodeStore` of one layer whose pages (num_pages, Hkv, page_size, D) hold restored vectors."""

    def __init__(self, table: PageTable, codec: Codec, layer: int, config: CacheConfig, geometry: Geometry) -> None:
        if codec.looks_below:
            raise CacheError("a codec that looks at the layer below is measured in one forward: pages come one by one")
        if config.page_size % codec.group:
            raise CacheError(
                f"pages of {config.page_size} tokens cannot hold groups of {codec.group} that are coded together: take "
                f"a page size that is a multiple of {codec.group}"
            )
        self.table, self.codec, self.layer = table, codec.to(geometry.device), layer
        self.page_size, self.first = config.page_size, config.sink_tokens
        shape = (0, geometry.num_kv_heads, config.page_size, geometry.head_dim)
        self._pages = [torch.empty(shape, dtype=geometry.dtype, device=geometry.device) for _ in range(2)]
        self._read: tuple[PagedSide, PagedSide] | None = None
        self._kept = Kept()

    def reserve(self, counts: Sequence[int], firsts: Sequence[int] | None = None) -> None:
        """See `CodeStore`."""
        self.table.ensure(counts, firsts)

    def seal(self, sequences: Sequence[int], first_page: int, keys: Tensor, values: Tensor) -> None:
        """See `CodeStore`. Positions count real tokens: pages begin behind the sinks."""
        start, count = self.first + first_page * self.page_size, keys.shape[2]
        positions = torch.arange(start, start + count, device=keys.device)
        compute = torch.float64 if keys.dtype == torch.float64 else torch.float32
        restored = self.codec.restore(self.layer, keys.to(compute), values.to(compute), positions)
        ids = [self.table.pages(s)[first_page : first_page + count // self.page_size] for s in sequences]
        index = torch.tensor(ids, device=keys.device)
        for i, vectors in enumerate(restored):
            self._grow(i)
            self._pages[i][index] = vectors.unflatten(2, (-1, self.page_size)).transpose(1, 2).to(self._pages[i].dtype)

    def tokens(self, context_len: Tensor, firsts: Sequence[int] | None = None) -> PagedTokens:
        """See `CodeStore`."""
        if self._read is None:
            self._read = PagedSide(self._pages[0]), PagedSide(self._pages[1])
        table = self.table.as_tensor(context_len.device, firsts)
        return PagedTokens(*self._read, table, context_len, self.page_size, trusted=True, kept=self._kept)

    def select(self, sequences: Sequence[int]) -> None:
        """See `CodeStore`."""

    def page_bytes(self, counts: Sequence[int]) -> tuple[int, int]:
        """See `CodeStore`: of exact vectors."""
        page = sum(pages.element_size() * pages[0].numel() for pages in self._pages) if len(self._pages[0]) else 0
        used = self.table.distinct(counts)
        return used * page, (len(self._pages[0]) - used) * page

    def derived_bytes(self) -> int:
        """See `CodeStore`: none."""
        return 0

    def _grow(self, side: int) -> None:
        pages, capacity = self._pages[side], self.table.pool.capacity
        if capacity > pages.shape[0]:
            self._read = None
            self._kept.clear()
            self._pages[side] = pages.new_empty((capacity, *pages.shape[1:]))
            self._pages[side][: pages.shape[0]] = pages
