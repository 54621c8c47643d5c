"""What the report's split kernel does with a tile of L_t tokens and L_t threads, counted thread by thread.

A thread looks up the M key codes of its own token; then threads share the d output elements, each of which goes over
all tokens of the tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TileWork:
    """Of one tile: `steps` that the block takes (those of its busiest thread, loop by loop), `busy` thread-steps of
    them, and bytes of shared memory: scores and output in float32, codes of a byte.
    """

    tokens: int
    steps: int
    busy: int
    shared_bytes: int

    @property
    def idle(self) -> float:
        """Share of thread-steps in which a thread has nothing to do."""
        return 1 - self.busy / (self.steps * self.tokens)


def tile_work(tile: int, head_dim: int, num_subspaces: int) -> TileWork:
    """Work of a full tile of `tile` tokens, by the loops that the report lists."""
    keys, values = zip(*_threads(tile, head_dim, num_subspaces), strict=True)
    steps, busy = max(keys) + max(values), sum(keys) + sum(values)
    return TileWork(tile, steps, busy, 4 * (tile + head_dim) + tile * num_subspaces)


def _threads(tile: int, head_dim: int, num_subspaces: int) -> Iterator[tuple[int, int]]:
    """(look-ups of keys, products with values) of each thread."""
    for thread in range(tile):
        look_ups = num_subspaces if thread < tile else 0
        yield look_ups, len(range(thread, head_dim, tile)) * tile
