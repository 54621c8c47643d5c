"""How one side of a cache is coded, as kernels have to know it."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from pqkv.config import Layout


@dataclass(frozen=True, slots=True)
class Codes:
    """How keys or values are coded: M codes of `nbits` bits for `d_sub` elements each, in rows or transposed."""

    num_subspaces: int
    nbits: int
    d_sub: int
    layout: Layout

    @property
    def entries(self) -> int:
        """Centroids of a subspace."""
        return 2**self.nbits

    @property
    def period(self) -> int:
        """Codes after which the bit stream is at the start of a word again, at least 4."""
        return max(4, 32 // gcd(32, self.nbits))

    @property
    def centroid_words(self) -> int:
        """32-bit words of a centroid in fp16."""
        return (self.d_sub + 1) // 2


def words_of_loads(words: int) -> tuple[int, int]:
    """How wide loads of `words` words are, and how many."""
    width = next(width for width in (4, 2, 1) if words % width == 0)
    return width, words // width
