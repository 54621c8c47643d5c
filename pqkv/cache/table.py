"""The page table: which pages hold the tokens of which sequence, shared by all layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pqkv.cache.pool import PagePool

UNUSED = -1


class PageTable:
    """Sequences x pages. Layers advance one after another: the first that needs a page allocates it for all."""

    def __init__(self, pool: PagePool, num_sequences: int) -> None:
        self.pool = pool
        self._rows: list[list[int]] = [[] for _ in range(num_sequences)]
        self._tensor: Tensor | None = None
        self._device: torch.device | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def pages(self, sequence: int) -> tuple[int, ...]:
        """Page ids of a sequence in order of position."""
        return tuple(self._rows[sequence])

    def ensure(self, counts: Sequence[int]) -> None:
        """Give every sequence at least `counts[sequence]` pages. Raises `OutOfPages` before anything changes."""
        missing = [max(0, count - len(row)) for count, row in zip(counts, self._rows, strict=True)]
        if not any(missing):
            return
        self.pool.reserve(sum(missing))
        for row, count in zip(self._rows, missing, strict=True):
            row.extend(self.pool.allocate() for _ in range(count))
        self._tensor = None

    def own(self, sequence: int, index: int) -> tuple[int, int] | None:
        """Make a page safe to write: None if it has one owner, else (old, new) ids for the copy the caller makes."""
        old = self._rows[sequence][index]
        if self.pool.references(old) == 1:
            return None
        new = self.pool.allocate()
        self.pool.release([old])
        self._rows[sequence][index] = new
        self._tensor = None
        return old, new

    def fork(self, sequence: int) -> int:
        """Append a sequence that shares all pages of `sequence`; returns its index."""
        return self.select([*range(len(self)), sequence])

    def select(self, sequences: Sequence[int]) -> int:
        """Make row i what row sequences[i] was (beams, fork, batch changes); returns the last index."""
        rows = [list(self._rows[sequence]) for sequence in sequences]
        for row in rows:
            for page in row:
                self.pool.share(page)
        self.clear()
        self._rows, self._tensor = rows, None
        return len(rows) - 1

    def truncate(self, counts: Sequence[int]) -> None:
        """Release what a sequence holds past `counts[sequence]` pages."""
        for row, count in zip(self._rows, counts, strict=True):
            if row[count:]:
                self.pool.release(row[count:])
                del row[count:]
                self._tensor = None

    def distinct(self, counts: Sequence[int]) -> int:
        """Pages among the first `counts[sequence]` of each sequence, shared ones counted once."""
        return len({page for row, count in zip(self._rows, counts, strict=True) for page in row[:count]})

    def clear(self) -> None:
        """Release every page; sequences stay, empty."""
        self.truncate([0] * len(self._rows))

    def as_tensor(self, device: torch.device) -> Tensor:
        """(sequences, max(1, most pages of a sequence)) int32, unused entries -1. Rebuilt only after a change."""
        if self._tensor is None or self._device != device:
            width = max(1, *(len(row) for row in self._rows)) if self._rows else 1
            padded = [row + [UNUSED] * (width - len(row)) for row in self._rows]
            self._tensor = torch.tensor(padded, dtype=torch.int32).reshape(len(padded), width).to(device)
            self._device = device  # as it was asked for: a tensor asked for on `cuda` says it is on `cuda:0`
        return self._tensor

    def nbytes(self) -> int:
        """Bytes of the entries in use, as int32."""
        return 4 * sum(len(row) for row in self._rows)
