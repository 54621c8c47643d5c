"""Where tokens lie: pages of exact vectors or of codes, and the contiguous form, one store per layer."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pqkv.cache.table import PageTable
from pqkv.codec import Codebook
from pqkv.config import Layout
from pqkv.errors import CacheError
from pqkv.kernels import Kept, PagedSide, PagedTokens, page_encoder
from pqkv.packing import pack, packed_size


class CodeStore(Protocol):
    """Coded tokens of one layer. `seal` appends whole pages; sealed pages never change."""

    def reserve(self, counts: Sequence[int], firsts: Sequence[int] | None = None) -> None:
        """Make room for pages `firsts[b]` (0) ... `counts[b]` - 1 of sequence b, or raise `OutOfPages` with nothing
        changed.
        """

    def seal(self, sequences: Sequence[int], first_page: int, keys: Tensor, values: Tensor) -> None:
        """Encode keys and values (len(sequences), Hkv, n * page_size, D) into pages first_page, first_page + 1 ..."""

    def tokens(self, context_len: Tensor, firsts: Sequence[int] | None = None) -> PagedTokens:
        """What the kernels read: `context_len` tokens of each sequence from page `firsts[b]` (0) on."""
        ...

    def select(self, sequences: Sequence[int]) -> None:
        """Follow a change of the batch; paged stores do nothing, their table did it."""

    def page_bytes(self, counts: Sequence[int]) -> tuple[int, int]:
        """Bytes of the first `counts[b]` pages of each sequence, shared ones once, and of all else allocated."""
        ...

    def derived_bytes(self) -> int:
        """Bytes of what backends made of its codebooks."""
        ...


class CodeSide:
    """Packed codes of keys or values, and their gains where a codebook has some: encoding and the layout of one page.

    Values are given as they are searched for, turned already (`pqkv.cache.turns`). `first` is the position of the first
    coded token: the mean of keys may turn with it.
    """

    def __init__(
        self,
        book: Codebook,
        layout: Layout,
        num_kv_heads: int,
        page_size: int,
        device: torch.device,
        first: int = 0,
    ) -> None:
        self.book, self.layout, self.page_size, self.first = book, layout, page_size, first
        M, nbits = book.num_subspaces, book.nbits
        lines, count = (page_size, M) if layout == "row" else (M, page_size)
        self.shape = (num_kv_heads, lines, packed_size(count, nbits))  # of one page
        self.pages = torch.empty((0, *self.shape), dtype=torch.uint8, device=device)
        self.gains: Tensor | None = None
        self._gain_values: Tensor | None = None
        if book.middle_gain is not None:
            self.gains = torch.empty((0, num_kv_heads, page_size), dtype=torch.uint8, device=device)
            every = torch.arange(256, device=device).expand(num_kv_heads, -1)
            self._gain_values = book.gain_of(every).contiguous()
        self._derived: dict[Hashable, tuple[Tensor, Tensor]] = {}
        self._own: PagedSide | None = None

    def grow(self, capacity: int) -> None:
        """Follow the pool."""
        if capacity > len(self.pages):
            self._own = None
        self.pages = _grown(self.pages, capacity)
        if self.gains is not None:
            self.gains = _grown(self.gains, capacity)

    def encode(self, vectors: Tensor, first_token: int = 0) -> tuple[Tensor, Tensor | None]:
        """Vectors (B, Hkv, n * page_size, D), coded tokens `first_token` on -> packed pages (B, n, *shape), and gains
        (B, n, Hkv, page_size) or None.
        """
        coded = self.book.code(vectors, self._positions(vectors, first_token))
        codes = coded.codes.unflatten(2, (-1, self.page_size)).transpose(1, 2)  # (B, n, Hkv, P, M)
        if self.layout == "transposed":
            codes = codes.transpose(3, 4)
        return pack(codes, self.book.nbits), self._by_page(coded.gains)

    def write(self, vectors: Tensor, page_ids: Tensor, first_token: int = 0) -> None:
        """Encode vectors (B, Hkv, n * page_size, D) into its own pages page_ids (B, n); one kernel finds the codes on a
        GPU.
        """
        encoder = page_encoder(vectors.device, vectors.dtype)
        if encoder is None:
            self.pages[page_ids], gains = self.encode(vectors, first_token)
        else:
            book, weights, stored = self.book, self.book.weights, None
            if not book.stands_for_itself:
                vectors, stored = book.framed(vectors.float(), self._positions(vectors, first_token))
            if book.rotation is not None:
                weighted = vectors.float() if weights is None else vectors.float() * weights.float()[:, None]
                vectors, weights = weighted @ book.rotation.float().mT, None
            encoder(
                vectors, book.float_centroids().float(), book.channels, None if weights is None else weights.float(),
                book.nbits, self.layout, self.pages, page_ids,
            )  # fmt: skip
            gains = self._by_page(stored)
        if self.gains is not None and gains is not None:
            self.gains[page_ids] = gains

    def _positions(self, vectors: Tensor, first_token: int) -> Tensor | None:
        """(T,) of coded tokens, where the mean turns with them."""
        if self.book.turning is None:
            return None
        start = self.first + first_token
        return torch.arange(start, start + vectors.shape[2], device=vectors.device)

    def _by_page(self, gains: Tensor | None) -> Tensor | None:
        """(B, Hkv, n * page_size) -> (B, n, Hkv, page_size)."""
        return None if gains is None else gains.unflatten(2, (-1, self.page_size)).transpose(1, 2)

    def side(self, pages: Tensor | None = None, gains: Tensor | None = None) -> PagedSide:
        """What the kernels read: these pages with their gains, or its own, which are one object until they grow."""
        if pages is not None:
            return self._side(pages, gains)
        if self._own is None:
            self._own = self._side(self.pages, self.gains)
        return self._own

    def _side(self, pages: Tensor, gains: Tensor | None) -> PagedSide:
        book = self.book
        return PagedSide(
            pages, self.layout, book.centroids, book.channels, book.nbits, book.scales, gains, self._gain_values,
            self._derived,
        )  # fmt: skip

    def page_bytes(self) -> int:
        """Bytes of one page, its gains included."""
        heads, lines, size = self.shape
        return heads * (lines * size + (0 if self.gains is None else self.page_size))

    def derived_bytes(self) -> int:
        """Bytes of what backends made of the centroids."""
        made = sum(tensor.numel() * tensor.element_size() for _, tensor in self._derived.values())
        return made + (0 if self._gain_values is None else self._gain_values.numel() * 4)


def _grown(pages: Tensor, capacity: int) -> Tensor:
    """The same pages with room for more."""
    if capacity <= len(pages):
        return pages
    grown = pages.new_empty((capacity, *pages.shape[1:]))
    grown[: len(pages)] = pages
    return grown


class PagedCodeStore:
    """Codes in pages of the shared pool, each layout chosen apart."""

    def __init__(self, table: PageTable, keys: CodeSide, values: CodeSide) -> None:
        self.table, self.keys, self.values = table, keys, values
        self._kept = Kept()

    def reserve(self, counts: Sequence[int], firsts: Sequence[int] | None = None) -> None:
        """See `CodeStore`."""
        self.table.ensure(counts, firsts)

    def seal(self, sequences: Sequence[int], first_page: int, keys: Tensor, values: Tensor) -> None:
        """See `CodeStore`."""
        count = keys.shape[2] // self.keys.page_size
        ids = [self.table.pages(s)[first_page : first_page + count] for s in sequences]
        index = torch.tensor(ids, device=keys.device)
        if self.table.pool.capacity > len(self.keys.pages):
            self._kept.clear()
        for side, vectors in ((self.keys, keys), (self.values, values)):
            side.grow(self.table.pool.capacity)
            side.write(vectors, index, first_page * self.keys.page_size)

    def tokens(self, context_len: Tensor, firsts: Sequence[int] | None = None) -> PagedTokens:
        """See `CodeStore`."""
        table = self.table.as_tensor(context_len.device, firsts)
        return PagedTokens(
            self.keys.side(), self.values.side(), table, context_len, self.keys.page_size, trusted=True, kept=self._kept
        )

    def select(self, sequences: Sequence[int]) -> None:
        """See `CodeStore`."""

    def page_bytes(self, counts: Sequence[int]) -> tuple[int, int]:
        """See `CodeStore`."""
        page = self.keys.page_bytes() + self.values.page_bytes()
        used = self.table.distinct(counts)
        return used * page, (self.keys.pages.shape[0] - used) * page

    def derived_bytes(self) -> int:
        """See `CodeStore`."""
        return self.keys.derived_bytes() + self.values.derived_bytes()


class ContiguousCodeStore:
    """Codes of each sequence in one growing row (MILLION's DynamicPQCache), blocks of page_size sealed as they fill.

    To the kernels it is one page per sequence whose size is the capacity.
    """

    def __init__(self, num_sequences: int, keys: CodeSide, values: CodeSide) -> None:
        if keys.layout != "row" or values.layout != "row":
            raise CacheError("a contiguous cache has row layout: transposing is what pages are for")
        self.keys, self.values = keys, values
        self._sequences = num_sequences
        self._rows = [_Row.empty(side, num_sequences, 0) for side in (keys, values)]
        self._read: tuple[PagedSide, PagedSide, Tensor] | None = None  # what kernels read of these rows
        self._kept = Kept()

    def reserve(self, counts: Sequence[int], firsts: Sequence[int] | None = None) -> None:
        """See `CodeStore`; grows by doubling, and keeps what no window shows any more."""
        needed = max(counts, default=0) * self.keys.page_size
        if needed <= (capacity := self._rows[0].capacity):
            return
        capacity = max(needed, 2 * capacity)
        self._moved()
        for i, side in enumerate((self.keys, self.values)):
            grown = _Row.empty(side, self._sequences, capacity)
            grown.write(slice(None), 0, self._rows[i])
            self._rows[i] = grown

    def seal(self, sequences: Sequence[int], first_page: int, keys: Tensor, values: Tensor) -> None:
        """See `CodeStore`."""
        start = first_page * self.keys.page_size
        index = torch.tensor(list(sequences), device=keys.device)
        packed = self.keys.encode(keys, start), self.values.encode(values, start)
        for row, (pages, gains) in zip(self._rows, packed, strict=True):
            codes = pages.transpose(1, 2).flatten(2, 3)  # (B, n, Hkv, P, bytes) -> (B, Hkv, n * P, bytes)
            row.write(index, start, _Row(codes, None if gains is None else gains.transpose(1, 2).flatten(2, 3)))

    def tokens(self, context_len: Tensor, firsts: Sequence[int] | None = None) -> PagedTokens:
        """See `CodeStore`. Under a window a cache has pages: there are no `firsts` here."""
        assert not any(firsts or ())
        if self._read is None:
            keys, values = (
                side.side(row.codes, row.gains) for row, side in zip(self._rows, (self.keys, self.values), strict=True)
            )
            table = torch.arange(self._sequences, dtype=torch.int32, device=context_len.device)[:, None]
            self._read = keys, values, table
        return PagedTokens(*self._read, context_len, self._rows[0].capacity, trusted=True, kept=self._kept)

    def select(self, sequences: Sequence[int]) -> None:
        """See `CodeStore`."""
        self._moved()
        self._sequences = len(sequences)
        self._rows = [row.of(list(sequences)) for row in self._rows]

    def _moved(self) -> None:
        """Let go of what refers to the rows as they were."""
        self._read = None
        self._kept.clear()

    def page_bytes(self, counts: Sequence[int]) -> tuple[int, int]:
        """See `CodeStore`; nothing is shared."""
        used = sum(counts) * (self.keys.page_bytes() + self.values.page_bytes())
        return used, sum(row.nbytes() for row in self._rows) - used

    def derived_bytes(self) -> int:
        """See `CodeStore`."""
        return self.keys.derived_bytes() + self.values.derived_bytes()


@dataclass(frozen=True, slots=True)
class _Row:
    """One side of a contiguous cache: codes (sequences, Hkv, capacity, bytes), and gains (sequences, Hkv, capacity)."""

    codes: Tensor
    gains: Tensor | None

    @classmethod
    def empty(cls, side: CodeSide, sequences: int, capacity: int) -> _Row:
        heads, _, size = side.shape
        codes = torch.empty((sequences, heads, capacity, size), dtype=torch.uint8, device=side.pages.device)
        return cls(codes, None if side.gains is None else torch.empty_like(codes[..., 0]))

    @property
    def capacity(self) -> int:
        return self.codes.shape[2]

    def write(self, sequences: Tensor | slice, start: int, other: _Row) -> None:
        """Put `other` behind `start` tokens."""
        place = slice(start, start + other.capacity)
        self.codes[sequences, :, place] = other.codes
        if self.gains is not None and other.gains is not None:
            self.gains[sequences, :, place] = other.gains

    def of(self, sequences: list[int]) -> _Row:
        return _Row(self.codes[sequences], None if self.gains is None else self.gains[sequences])

    def nbytes(self) -> int:
        return self.codes.numel() + (0 if self.gains is None else self.gains.numel())
