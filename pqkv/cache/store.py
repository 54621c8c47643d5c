"""Where tokens lie: pages of exact vectors or of codes, and the contiguous form, one store per layer."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pqkv.cache.table import PageTable
from pqkv.codec import Codebook
from pqkv.config import Layout
from pqkv.errors import CacheError
from pqkv.kernels import PagedSide, PagedTokens, page_encoder
from pqkv.packing import pack, packed_size


class CodeStore(Protocol):
    """Coded tokens of one layer. `seal` appends whole pages; sealed pages never change."""

    def reserve(self, counts: Sequence[int]) -> None:
        """Make room for `counts[b]` pages of sequence b, or raise `OutOfPages` with nothing changed."""

    def seal(self, sequences: Sequence[int], first_page: int, keys: Tensor, values: Tensor) -> None:
        """Encode keys and values (len(sequences), Hkv, n * page_size, D) into pages first_page, first_page + 1 ..."""

    def tokens(self, context_len: Tensor) -> PagedTokens:
        """What the kernels read."""
        ...

    def select(self, sequences: Sequence[int]) -> None:
        """Follow a change of the batch; paged stores do nothing, their table did it."""

    def page_bytes(self, counts: Sequence[int]) -> tuple[int, int]:
        """Bytes of the first `counts[b]` pages of each sequence, shared ones once, and of all else allocated."""
        ...


class CodeSide:
    """Packed codes of keys or values: encoding and the layout of one page."""

    def __init__(self, book: Codebook, layout: Layout, num_kv_heads: int, page_size: int, device: torch.device) -> None:
        if book.rotation is not None:
            raise CacheError("pages hold codes of turned vectors: a codebook with a rotation needs a RotatedLayer")
        self.book, self.layout, self.page_size = book, layout, page_size
        M, nbits = book.num_subspaces, book.nbits
        lines, count = (page_size, M) if layout == "row" else (M, page_size)
        self.shape = (num_kv_heads, lines, packed_size(count, nbits))  # of one page
        self.pages = torch.empty((0, *self.shape), dtype=torch.uint8, device=device)
        self._derived: dict[Hashable, tuple[Tensor, Tensor]] = {}

    def grow(self, capacity: int) -> None:
        """Follow the pool."""
        if capacity > self.pages.shape[0]:
            grown = self.pages.new_empty((capacity, *self.shape))
            grown[: self.pages.shape[0]] = self.pages
            self.pages = grown

    def encode(self, vectors: Tensor) -> Tensor:
        """Vectors (B, Hkv, n * page_size, D) -> packed pages (B, n, *shape)."""
        codes = self.book.encode(vectors).unflatten(2, (-1, self.page_size))  # (B, Hkv, n, P, M)
        codes = codes.transpose(1, 2)  # (B, n, Hkv, P, M)
        if self.layout == "transposed":
            codes = codes.transpose(3, 4)
        return pack(codes, self.book.nbits)

    def write(self, vectors: Tensor, page_ids: Tensor) -> None:
        """Encode vectors (B, Hkv, n * page_size, D) into its own pages page_ids (B, n); one kernel does it on a GPU."""
        encoder = page_encoder(vectors.device, vectors.dtype)
        if encoder is None:
            self.pages[page_ids] = self.encode(vectors)
            return
        book = self.book.map(lambda t: t.float() if t.is_floating_point() else t)
        encoder(
            vectors, book.centroids, book.channels, book.weights, book.nbits, self.layout, self.pages, page_ids
        )  # fmt: skip

    def side(self, pages: Tensor | None = None) -> PagedSide:
        """What the kernels read: these pages, or its own."""
        book, own = self.book, self.pages if pages is None else pages
        return PagedSide(own, self.layout, book.centroids, book.channels, book.nbits, self._derived)

    def page_bytes(self) -> int:
        """Bytes of one page."""
        heads, lines, size = self.shape
        return heads * lines * size


class PagedCodeStore:
    """Codes in pages of the shared pool, each layout chosen apart."""

    def __init__(self, table: PageTable, keys: CodeSide, values: CodeSide) -> None:
        self.table, self.keys, self.values = table, keys, values

    def reserve(self, counts: Sequence[int]) -> None:
        """See `CodeStore`."""
        self.table.ensure(counts)

    def seal(self, sequences: Sequence[int], first_page: int, keys: Tensor, values: Tensor) -> None:
        """See `CodeStore`."""
        count = keys.shape[2] // self.keys.page_size
        ids = [self.table.pages(s)[first_page : first_page + count] for s in sequences]
        index = torch.tensor(ids, device=keys.device)
        for side, vectors in ((self.keys, keys), (self.values, values)):
            side.grow(self.table.pool.capacity)
            side.write(vectors, index)

    def tokens(self, context_len: Tensor) -> PagedTokens:
        """See `CodeStore`."""
        table = self.table.as_tensor(context_len.device)
        return PagedTokens(self.keys.side(), self.values.side(), table, context_len, self.keys.page_size, trusted=True)

    def select(self, sequences: Sequence[int]) -> None:
        """See `CodeStore`."""

    def page_bytes(self, counts: Sequence[int]) -> tuple[int, int]:
        """See `CodeStore`."""
        page = self.keys.page_bytes() + self.values.page_bytes()
        used = self.table.distinct(counts)
        return used * page, (self.keys.pages.shape[0] - used) * page


class ContiguousCodeStore:
    """Codes of each sequence in one growing row (MILLION's DynamicPQCache), blocks of page_size sealed as they fill.

    To the kernels it is one page per sequence whose size is the capacity.
    """

    def __init__(self, num_sequences: int, keys: CodeSide, values: CodeSide) -> None:
        if keys.layout != "row" or values.layout != "row":
            raise CacheError("a contiguous cache has row layout: transposing is what pages are for")
        self.keys, self.values = keys, values
        self._sequences = num_sequences
        self._rows = [self._empty(side, num_sequences, 0) for side in (keys, values)]

    def reserve(self, counts: Sequence[int]) -> None:
        """See `CodeStore`; grows by doubling."""
        needed = max(counts, default=0) * self.keys.page_size
        if needed <= (capacity := self._rows[0].shape[2]):
            return
        capacity = max(needed, 2 * capacity)
        for i, side in enumerate((self.keys, self.values)):
            grown = self._empty(side, self._sequences, capacity)
            grown[:, :, : self._rows[i].shape[2]] = self._rows[i]
            self._rows[i] = grown

    def seal(self, sequences: Sequence[int], first_page: int, keys: Tensor, values: Tensor) -> None:
        """See `CodeStore`."""
        start = first_page * self.keys.page_size
        index = torch.tensor(list(sequences), device=keys.device)
        packed = self.keys.encode(keys), self.values.encode(values)
        for rows, pages in zip(self._rows, packed, strict=True):
            block = pages.transpose(1, 2).flatten(2, 3)  # (B, n, Hkv, P, bytes) -> (B, Hkv, n * P, bytes)
            rows[index, :, start : start + block.shape[2]] = block

    def tokens(self, context_len: Tensor) -> PagedTokens:
        """See `CodeStore`."""
        table = torch.arange(self._sequences, dtype=torch.int32, device=context_len.device)[:, None]
        sides = [side.side(rows) for rows, side in zip(self._rows, (self.keys, self.values), strict=True)]
        return PagedTokens(sides[0], sides[1], table, context_len, self._rows[0].shape[2], trusted=True)

    def select(self, sequences: Sequence[int]) -> None:
        """See `CodeStore`."""
        self._sequences = len(sequences)
        self._rows = [rows[list(sequences)] for rows in self._rows]

    def page_bytes(self, counts: Sequence[int]) -> tuple[int, int]:
        """See `CodeStore`; nothing is shared."""
        used = sum(counts) * (self.keys.page_bytes() + self.values.page_bytes())
        return used, sum(rows.numel() for rows in self._rows) - used

    @staticmethod
    def _empty(side: CodeSide, sequences: int, capacity: int) -> Tensor:
        heads, _, size = side.shape
        return torch.empty((sequences, heads, capacity, size), dtype=torch.uint8, device=side.pages.device)
