"""What a look-up in byte tables is compiled for, and how large its integers may grow."""

from __future__ import annotations

from dataclasses import dataclass

from pqkv.kernels.cpu.byte_lookups.instructions import BLOCK, LARGEST_QUERY

SPAN = 16  # blocks whose weights are made before values are read: they stay in the first-level cache
_BYTE = 128  # of a component, at most


@dataclass(frozen=True, slots=True)
class Shape:
    """Codes of `nbits` bits of subspaces of `d_sub` elements, for G query heads of a KV head."""

    nbits: int
    d_sub: int
    heads: int

    @property
    def entries(self) -> int:
        """Centroids of a subspace."""
        return 1 << self.nbits

    @property
    def subspaces(self) -> int:
        """Subspaces of a step, which takes four components at a time."""
        return max(1, 4 // self.d_sub)


def largest_head_dim() -> int:
    """Elements of a vector up to which no sum of unsigned components times a query can overflow int32."""
    return (2**31 - 1) // (2 * _BYTE * LARGEST_QUERY)


def largest_sum(scaled: int, largest_weight: int, lanes: int) -> int:
    """The largest sum of int32 that weights of `scaled` blocks times components can come to in a lane."""
    return scaled * BLOCK // lanes * largest_weight * _BYTE
