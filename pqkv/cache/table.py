"""The page table: which pages hold the tokens of which sequence, shared by all layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pqkv.cache.pool import PagePool

UNUSED = -1


class PageTable:
    """Sequences x pages. Layers advance one after another: the first that needs a page allocates it for all.

    Pages are numbered from the beginning of a sequence. Under a sliding window those in front are given back (`drop`)
    and the others keep their numbers.
    """

    def __init__(self, pool: PagePool, num_sequences: int) -> None:
        self.pool = pool
        self._rows: list[list[int]] = [[] for _ in range(num_sequences)]  # of the pages from _first on
        self._first = [0] * num_sequences
        self._tensor: Tensor | None = None
        self._made_for: tuple[torch.device, tuple[int, ...]] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def pages(self, sequence: int) -> tuple[int, ...]:
        """Page ids of a sequence in order of position, -1 for those that were dropped or never needed."""
        return (UNUSED,) * self._first[sequence] + tuple(self._rows[sequence])

    def page(self, sequence: int, index: int) -> int:
        """The id of a page that was not dropped."""
        return self._rows[sequence][index - self._first[sequence]]

    def first(self, sequence: int) -> int:
        """Pages that were dropped from the front of a sequence."""
        return self._first[sequence]

    def ensure(self, counts: Sequence[int], firsts: Sequence[int] | None = None) -> None:
        """Give every sequence its pages `firsts[sequence]` (0) ... `counts[sequence]` - 1. Raises `OutOfPages` before
        anything changes.
        """
        missing = self._missing(counts, firsts)
        if not any(missing):
            return
        self.pool.reserve(sum(map(len, missing)))
        for row, indices in zip(self._rows, missing, strict=True):
            for i in indices:
                row.extend([UNUSED] * (i + 1 - len(row)))
                row[i] = self.pool.allocate()
        self._tensor = None

    def missing(self, counts: Sequence[int], firsts: Sequence[int] | None = None) -> int:
        """Pages that `ensure` would allocate."""
        return sum(map(len, self._missing(counts, firsts)))

    def _missing(self, counts: Sequence[int], firsts: Sequence[int] | None) -> Sequence[Sequence[int]]:
        """Of each sequence where in its row."""
        rows = list(zip(self._rows, self._first, counts, strict=True))
        if firsts is None:
            return [range(len(row), count - gone) for row, gone, count in rows]
        return [  # only under a window, whose rows are short, can a page in the middle be missing
            [i for i in range(max(0, first - gone), count - gone) if i >= len(row) or row[i] == UNUSED]
            for (row, gone, count), first in zip(rows, firsts, strict=True)
        ]

    def drop(self, firsts: Sequence[int]) -> None:
        """Give back the pages of each sequence before `firsts[sequence]`: no query will see them again."""
        for b, (row, first) in enumerate(zip(self._rows, firsts, strict=True)):
            if (count := first - self._first[b]) > 0:
                self.pool.release(page for page in row[:count] if page != UNUSED)
                del row[:count]
                self._first[b], self._tensor = first, None

    def own(self, sequence: int, index: int) -> tuple[int, int] | None:
        """Make a page safe to write: None if it has one owner, else (old, new) ids for the copy the caller makes."""
        row, index = self._rows[sequence], index - self._first[sequence]
        old = row[index]
        if self.pool.references(old) == 1:
            return None
        new = self.pool.allocate()
        self.pool.release([old])
        row[index] = new
        self._tensor = None
        return old, new

    def fork(self, sequence: int) -> int:
        """Append a sequence that shares all pages of `sequence`; returns its index."""
        return self.select([*range(len(self)), sequence])

    def select(self, sequences: Sequence[int]) -> int:
        """Make row i what row sequences[i] was (beams, fork, batch changes); returns the last index."""
        rows = [list(self._rows[sequence]) for sequence in sequences]
        firsts = [self._first[sequence] for sequence in sequences]
        for row in rows:
            for page in row:
                if page != UNUSED:
                    self.pool.share(page)
        self.clear()
        self._rows, self._first, self._tensor = rows, firsts, None
        return len(rows) - 1

    def truncate(self, counts: Sequence[int]) -> None:
        """Release what a sequence holds past `counts[sequence]` pages, dropped ones among them."""
        for b, (row, count) in enumerate(zip(self._rows, counts, strict=True)):
            kept = max(0, count - self._first[b])
            if row[kept:]:
                self.pool.release(page for page in row[kept:] if page != UNUSED)
                del row[kept:]
                self._tensor = None

    def distinct(self, counts: Sequence[int]) -> int:
        """Pages among the first `counts[sequence]` of each sequence, shared ones counted once, dropped ones not."""
        rows = zip(self._rows, self._first, counts, strict=True)
        return len({page for row, gone, count in rows for page in row[: max(0, count - gone)]} - {UNUSED})

    def clear(self) -> None:
        """Release every page; sequences stay, empty."""
        self.truncate([0] * len(self._rows))
        self._first = [0] * len(self._rows)

    def as_tensor(self, device: torch.device, firsts: Sequence[int] | None = None) -> Tensor:
        """(sequences, max(1, most pages of a sequence)) int32 of the pages from `firsts[sequence]` (0) on, unused
        entries -1. Rebuilt only after a change.
        """
        # the device as it was asked for: a tensor asked for on `cuda` says it is on `cuda:0`
        wanted = device, tuple(firsts or self._none())
        if self._tensor is None or self._made_for != wanted:
            rows = [self.pages(b)[first:] for b, first in enumerate(wanted[1])]
            width = max(1, *map(len, rows)) if rows else 1
            padded = [[*row, *[UNUSED] * (width - len(row))] for row in rows]
            self._tensor = torch.tensor(padded, dtype=torch.int32).reshape(len(padded), width).to(device)
            self._made_for = wanted
        return self._tensor

    def _none(self) -> list[int]:
        return [0] * len(self._rows)

    def nbytes(self) -> int:
        """Bytes of the entries in use, as int32."""
        return 4 * sum(len(row) for row in self._rows)
