"""The pool of pages: who owns which page, by reference count. It holds numbers, no tensors."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from pqkv.errors import CacheError, OutOfPages

_log = logging.getLogger("pqkv")
_LOW_FRACTION = 0.05


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Counts of pages; `shared` have more than one owner."""

    capacity: int
    used: int
    free: int
    peak_used: int
    shared: int
    allocations: int
    releases: int


class PagePool:
    """Page ids 0 ... capacity-1, allocated and released in O(1) from a preallocated free list.

    With `max_pages` the pool has that size for good and raises `OutOfPages`; without, it begins with `initial` pages
    and grows by what is needed, but by a quarter at least, so that pages move a few times in all (page stores follow,
    see `PagedCodeStore`).
    """

    def __init__(self, max_pages: int | None = None, *, initial: int = 0) -> None:
        self.max_pages = max_pages
        self._references: list[int] = []
        self._free: list[int] = []
        self._peak = self._allocations = self._releases = 0
        self._warned = False
        self._extend(initial if max_pages is None else max_pages)

    @property
    def capacity(self) -> int:
        """Pages that exist."""
        return len(self._references)

    @property
    def used(self) -> int:
        """Pages with an owner."""
        return self.capacity - len(self._free)

    def available(self) -> int | None:
        """Pages that can still be allocated; None means as many as memory holds."""
        return None if self.max_pages is None else len(self._free)

    def require(self, count: int) -> None:
        """Raise `OutOfPages` unless `count` pages can be allocated now. Changes nothing."""
        free = self.available()
        if free is not None and count > free:
            raise OutOfPages(
                f"out of pages: {count} needed, {free} of {self.capacity} free; raise --max-pages, "
                "shorten the context or release sequences"
            )

    def reserve(self, count: int) -> None:
        """See that `count` pages are free, so that the pool grows once for all of them. Raises `OutOfPages`."""
        self.require(count)
        if (missing := count - len(self._free)) > 0:
            self._extend(max(missing, self.capacity // 4))

    def allocate(self) -> int:
        """A page with one owner. Raises `OutOfPages`."""
        self.reserve(1)
        page = self._free.pop()
        self._references[page] = 1
        self._allocations += 1
        self._peak = max(self._peak, self.used)
        if self.max_pages is not None and not self._warned and len(self._free) < _LOW_FRACTION * self.capacity:
            self._warned = True
            _log.warning("page pool low: %d of %d pages free", len(self._free), self.capacity)
        return page

    def share(self, page: int) -> None:
        """Add an owner to an allocated page."""
        self._check(page)
        self._references[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Drop one owner of each page; a page without owners is free again."""
        for page in pages:
            self._check(page)
            self._references[page] -= 1
            if self._references[page] == 0:
                self._free.append(page)
                self._releases += 1

    def references(self, page: int) -> int:
        """Owners of a page."""
        return self._references[page]

    def stats(self) -> PoolStats:
        """Counts as of now."""
        shared = sum(count > 1 for count in self._references)
        used = self.used
        return PoolStats(
            self.capacity, used, self.capacity - used, self._peak, shared, self._allocations, self._releases
        )

    def _extend(self, count: int) -> None:
        first = self.capacity
        self._references.extend([0] * count)
        self._free.extend(range(first + count - 1, first - 1, -1))  # low ids come out first

    def _check(self, page: int) -> None:
        if not 0 <= page < self.capacity or self._references[page] == 0:
            raise CacheError(f"page {page} is not allocated")
