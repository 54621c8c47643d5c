"""What the plain kernel of coded attention is compiled for."""

from __future__ import annotations

from dataclasses import dataclass

from pqkv.kernels.cuda.codes import Codes
from pqkv.kernels.turns import BLOCK as TURN

ROWS = 16  # of turns, whose weights lie in shared memory at a time


@dataclass(frozen=True, slots=True)
class PlainVariant:
    """What the kernel is compiled for; `tokens` are those of a split at most. For the rest see `CodedVariant`."""

    group: int
    keys: Codes
    values: Codes
    block: int = 128
    tokens: int = 512
    turning: bool = False
    gains: bool = False
    query: str = "float32"
    uneven: bool = False
    blocks: int | None = None

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        return self.keys.num_subspaces * self.keys.d_sub

    @property
    def turned_blocks(self) -> int:
        """Blocks of `turns` that a split lies in at most."""
        return (TURN - 1 + self.tokens - 1) // TURN + 1

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        turned = ROWS * self.turned_blocks if self.turning else 0
        return 4 * self.group * (self.tokens + self.head_dim + self.block + turned)
