"""What the encoding kernel is compiled for, and the sizes that follow."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pqkv.kernels.cuda.codes import Codes
from pqkv.kernels.cuda.exact import SHARED_BYTES
from pqkv.packing import packed_size

MOST_TOKENS = 8  # of a lane
_CHANNELS = 16  # of a block: as many registers as a lane has for vectors, and 32 bytes of a row in half precision
_TOGETHER = 8  # centroids whose lowest distance is found before any code is remembered


@dataclass(frozen=True, slots=True)
class EncodeVariant:
    """What the kernel is compiled for. `dtype` is that of the vectors: float32, float16 or bfloat16."""

    codes: Codes
    page_size: int
    dtype: str
    permuted: bool = False
    weighted: bool = False
    most_tokens: int = MOST_TOKENS

    @property
    def head_dim(self) -> int:
        """Elements of a vector."""
        return self.codes.num_subspaces * self.codes.d_sub

    @property
    def block(self) -> int:
        """Threads of a block."""
        return 32 * self.subspaces

    @property
    def ranges(self) -> int:
        """Blocks that share the subspaces."""
        return -(-self.codes.num_subspaces // self.subspaces)

    @property
    def pieces(self) -> int:
        """Of a block."""
        return self.tile // self.piece

    @property
    def cuts(self) -> int:
        """Pieces of a page."""
        return -(-self.page_size // self.piece)

    @property
    def tokens(self) -> int:
        """Vectors of a lane: as many as registers hold."""
        most = max(1, _CHANNELS // self.codes.d_sub)
        return min(self.most_tokens, 1 << most.bit_length() - 1)

    @property
    def tile(self) -> int:
        """Vectors of a block."""
        return 32 * self.tokens

    @property
    def subspaces(self) -> int:
        """Of a block, a warp each; in rows their codes end with a byte, or are all there are."""
        whole = 8 // math.gcd(8, self.codes.nbits) if self.codes.layout == "row" else 1
        wanted = -(-_CHANNELS // self.codes.d_sub)
        return min(self.codes.num_subspaces, -(-wanted // whole) * whole)

    @property
    def piece(self) -> int:
        """Tokens of a page that a block takes: all, or a tile of them."""
        return min(self.page_size, self.tile)

    @property
    def stride(self) -> int:
        """Words from one channel to the next in the shared vectors; apart so that a warp writes to all banks."""
        return self.tile + max(1, 32 // (self.subspaces * self.codes.d_sub))

    @property
    def chunk(self) -> int:
        """Centroids of each subspace that are in shared memory at a time: a power of two, 0 if not one fits."""
        room = SHARED_BYTES - self._fixed_bytes
        count = self.codes.entries
        while count and self._table_bytes(count) > room:
            count //= 2
        return count

    @property
    def together(self) -> int:
        """Centroids of a group, whose lowest distance is found before any code is remembered."""
        return _together(self.chunk)

    @property
    def column(self) -> int:
        """Words of one channel of the centroids in shared memory."""
        return _column(self.chunk)

    @property
    def apart(self) -> int:
        """Words between the centroids of one group."""
        return self.column // self.together

    @property
    def unit(self) -> int:
        """Bytes that are written at once: 4 where lines, and a block's share of them, are whole words."""
        M, nbits = self.codes.num_subspaces, self.codes.nbits
        in_row = self.codes.layout == "row"
        line = packed_size(M if in_row else self.page_size, nbits)
        shared_line = in_row and self.subspaces < M
        return 1 if line % 4 or (shared_line and self.subspaces * nbits % 32) else 4

    @property
    def _fixed_bytes(self) -> int:
        vectors = 4 * self.subspaces * self.codes.d_sub * self.stride
        return vectors + 2 * self.subspaces * self.tile + 16 * (self.tile // self.piece)

    def _table_bytes(self, count: int) -> int:
        return 4 * self.subspaces * (self.codes.d_sub + 1) * _column(count)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return self._fixed_bytes + self._table_bytes(self.chunk)


def _together(chunk: int) -> int:
    """Of `chunk` centroids; few are not worth a second look."""
    return _TOGETHER if chunk >= 8 * _TOGETHER else 1


def _column(chunk: int) -> int:
    """Words of one channel of `chunk` centroids. Those of one group lie apart, so that lanes whose groups differ look
    at theirs a second time without wanting the same bank.
    """
    group = _together(chunk)
    return chunk if group == 1 else group * (chunk // group + 4)
