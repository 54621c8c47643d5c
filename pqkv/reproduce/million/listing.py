"""The report's `PageManager` and `PagedPQCache`, statement for statement as it lists them, faults included.

What it does not list is not made up: of `DynamicPQCache`, which `PagedPQCache` extends, `decoding` is counted and
attends to nothing, and codes are those of the nearest centroids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pqkv.codec import Codebook


class PageManager:
    """Pages of value codes: a pool (max_pages, M, page_size) of one layer."""

    def __init__(self, page_size: int = 64, max_pages: int = 1000, M: int = 64) -> None:
        self.page_pool = torch.zeros((max_pages, M, page_size), dtype=torch.uint8)
        self.free_pages = set(range(max_pages))
        self.allocated_pages: dict[int, object] = {}

    def allocate_page(self) -> int:
        """A page's id; raises `RuntimeError` where none is free."""
        if not self.free_pages:
            raise RuntimeError("No free pages available")
        return self.free_pages.pop()

    def free_page(self, page_id: int) -> None:
        """Give back a page that `allocated_pages` knows."""
        if page_id in self.allocated_pages:
            del self.allocated_pages[page_id]
            self.free_pages.add(page_id)

    def get_page(self, page_id: int) -> Tensor:
        """(M, page_size)."""
        return self.page_pool[page_id]


class DynamicPQCache:
    """What is extended. The report does not list its `decoding`; here it counts its calls, and may be told to fail."""

    def __init__(self, book: Codebook, heads: int) -> None:
        self.book, self.heads, self.seen_tokens = book, heads, 0
        self.key_cache = torch.empty((1, heads, 0, book.num_subspaces), dtype=torch.uint8)
        self.fallbacks, self.fails = 0, False

    def decoding(self, query: Tensor, keys: Tensor, values: Tensor) -> None:
        """A step as it was before there were pages."""
        self.fallbacks += 1
        if self.fails:
            self.fails = False
            raise RuntimeError("made to fail")


class PagedPQCache(DynamicPQCache):
    """One layer of it, one sequence: keys, values (1, heads, n, D)."""

    def __init__(self, book: Codebook, heads: int, *, max_pages: int = 1000, page_size: int = 64,
                 extended_residual_size: int = 128) -> None:  # fmt: skip
        super().__init__(book, heads)
        self.page_size, self.extended_residual_size = page_size, extended_residual_size
        self.page_manager = PageManager(page_size, max_pages, book.num_subspaces)
        self.value_page_ids: list[int] = []
        shape = (1, heads, extended_residual_size, book.head_dim)
        self.key_residual_cache, self.value_residual_cache = torch.zeros(shape), torch.zeros(shape)
        self.residualed_tokens = 0

    def flush_to_pages(self) -> None:
        """Code the oldest `page_size` tokens of the residual."""
        if self.residualed_tokens < self.page_size:
            return
        k_to_flush = self.key_residual_cache[:, :, : self.page_size]
        v_to_flush = self.value_residual_cache[:, :, : self.page_size]
        self.key_cache = torch.cat([self.key_cache, self.book.encode(k_to_flush)], dim=2)
        v_codes = self.book.encode(v_to_flush)
        for h in range(self.heads):
            page_id = self.page_manager.allocate_page()
            self.page_manager.get_page(page_id)[:, :] = v_codes[0, h].transpose(0, 1)
            if h == 0:  # the listing records the first head alone, and says so
                self.value_page_ids.append(page_id)
        remaining = self.residualed_tokens - self.page_size
        for residual in (self.key_residual_cache, self.value_residual_cache):
            residual[:, :, :remaining] = residual[:, :, self.page_size : self.residualed_tokens].clone()
        self.residualed_tokens = remaining
        self.seen_tokens += self.page_size

    def decoding_with_pages(self, query: Tensor, keys: Tensor, values: Tensor) -> None:
        """A step as the plan lists it."""
        if self.residualed_tokens >= self.extended_residual_size:
            self.flush_to_pages()
        r, n = self.residualed_tokens, keys.shape[2]
        self.key_residual_cache[:, :, r : r + n] = keys
        self.value_residual_cache[:, :, r : r + n] = values
        self.residualed_tokens += n
        self.seen_tokens += n
        self.decoding(query, keys, values)  # where the listing leaves its paged kernel uncalled

    def decoding_with_fallback(self, query: Tensor, keys: Tensor, values: Tensor) -> None:
        """What phase 3 lists of it: the same call in `try` and in `except`."""
        try:
            self.decoding(query, keys, values)
        except Exception:  # noqa: BLE001 - as listed
            self.decoding(query, keys, values)
