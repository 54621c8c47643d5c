"""What the kernel of exact attention is compiled for, and how lanes share a row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

SHARED_BYTES = 48 << 10  # what Numba can give a block


@dataclass(frozen=True, slots=True)
class ExactVariant:
    """What the kernel is compiled for. `dtype` is that of the vectors, `query` of the queries: float32, float16 or
    bfloat16. Vectors lie in pages, or, not `paged`, in a row a sequence. `uneven`: blocks of `group` heads do not
    divide those of a KV head. `blocks`: that a multiprocessor is to have room for, whatever that costs; 0: as many as
    the assembler likes, None: what was measured to pay (`bounds.py`).
    """

    dtype: str
    head_dim: int
    group: int
    block: int = 128
    tokens: int = 4  # in flight per group of lanes
    query: str = "float16"
    paged: bool = True
    uneven: bool = False
    blocks: int | None = None

    @property
    def vector(self) -> int:
        """Elements of a 128-bit load."""
        return 4 if self.dtype == "float32" else 8

    @property
    def lanes(self) -> int:
        """Lanes that read a row."""
        most = 32
        while most > self.block:
            most //= 2
        return gcd(self.head_dim // self.vector, most)

    @property
    def loads(self) -> int:
        """128-bit loads of a row by one lane."""
        return self.head_dim // (self.vector * self.lanes)

    @property
    def own(self) -> int:
        """Elements of a row that a lane holds."""
        return self.loads * self.vector

    @property
    def teams(self) -> int:
        """Groups of lanes that read rows of their own."""
        return self.block // self.lanes

    @property
    def at_once(self) -> int:
        """Tokens that a block has in flight."""
        return self.teams * self.tokens

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return 4 * self.teams * self.group * (self.head_dim + 2)


def fitting(variant: ExactVariant) -> ExactVariant:
    """The variant with a block small enough for its partial results to fit shared memory."""
    while variant.shared_bytes > SHARED_BYTES and variant.block > variant.lanes:
        variant = replace(variant, block=variant.block // 2)
    return variant
