"""Tables of what positions do to a mean that turns with them, made in float64 once and shared by layers and heads.

In float32 an angle of 131,072 radians is wrong by a hundredth; as a product of the turn at a block's start and the turn
within the block, both rounded once, it is right to a few units in the last place however long the context.

Most pairs of a rotary embedding hardly turn within a block. Around its middle their cosines and sines are a few powers
of the distance, and all slow pairs together are one polynomial of it: 7 products a token in place of 2 for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import factorial

import torch
from torch import Tensor

BLOCK = 64  # tokens from one start to the next
POWERS = 7  # of the distance from a block's middle, 0 ... 6
_KEPT = 8  # tables: of a few models, or of one whose layers differ
_MIDDLE = (BLOCK - 1) / 2
_SLOW = 0.7 / _MIDDLE  # radians a token: what the powers leave out of a sine is 0.7**7 / 7! = 2e-5


@dataclass(frozen=True, slots=True)
class Turns:
    """What a block of tokens needs to know of `frequencies`, the fast ones first.

    `starts` (blocks, P, 2): cos and sin of each pair at a block's start, those of slow pairs at its middle. `rows`
    (R, BLOCK): cos and sin of each fast pair within a block, then powers of the distance from its middle. `slow`
    (slow pairs, POWERS): with what a slow pair's phasor comes to the factor of each power; even powers take the
    phasor's cosine, odd ones its sine. All float32.
    """

    order: tuple[int, ...]  # of the frequencies as they were given
    fast: int
    starts: Tensor
    rows: Tensor
    slow: Tensor

    @property
    def in_order(self) -> bool:
        """Whether the frequencies were given with the fast ones first, as rotary embeddings have them."""
        return self.order == tuple(range(len(self.order)))


@lru_cache(maxsize=_KEPT)
def _turns(frequencies: tuple[float, ...], blocks: int, device: torch.device) -> Turns:
    with torch.inference_mode(False):  # they outlive the mode that they are first asked for in
        return _made(frequencies, blocks, device)


def _made(frequencies: tuple[float, ...], blocks: int, device: torch.device) -> Turns:
    order = sorted(range(len(frequencies)), key=lambda i: frequencies[i] <= _SLOW)  # stable
    theta = torch.tensor([frequencies[i] for i in order], dtype=torch.float64)
    fast = sum(f > _SLOW for f in frequencies)
    middle = torch.zeros_like(theta)
    middle[fast:] = _MIDDLE
    starts = theta * (torch.arange(blocks).double()[:, None] * BLOCK + middle)
    within = theta[:fast, None] * torch.arange(BLOCK)
    distance = (torch.arange(BLOCK).double() - _MIDDLE) / _MIDDLE
    # cos(x + y) = cos x - ..., with y = theta _MIDDLE distance: a cos + b sin of it, power by power
    powers = torch.arange(POWERS)
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0] * 2).double()[:POWERS]
    factors = signs / torch.tensor([factorial(k) for k in range(POWERS)]).double()
    slow = (theta[fast:, None] * _MIDDLE) ** powers * factors
    rows = torch.cat([torch.stack([within.cos(), within.sin()], 1).flatten(0, 1), distance ** powers[:, None]])
    tables = (torch.stack([starts.cos(), starts.sin()], -1), rows, slow)
    return Turns(tuple(order), fast, *(table.float().contiguous().to(device) for table in tables))


def turns(frequencies: tuple[float, ...], tokens: int, device: torch.device) -> Turns:
    """Tables for `tokens` tokens at least; few of them are made, however a context grows."""
    return _turns(frequencies, _power(-(-tokens // BLOCK)), device)


def all_turns(frequencies: tuple[float, ...], count: int, device: torch.device) -> Tensor:
    """cos and sin of frequencies times 0 ... count - 1, (count, P, 2) float32."""
    return _all(frequencies, _power(-(-count // BLOCK)), device)[:count]


@lru_cache(maxsize=_KEPT)
def _all(frequencies: tuple[float, ...], blocks: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        starts, within = (_complex(frequencies, torch.arange(n) * step) for n, step in ((blocks, BLOCK), (BLOCK, 1)))
        turned = starts[:, None] * within  # (blocks, BLOCK, P): e^ja e^jb
        return torch.view_as_real(turned).flatten(0, 1).float().contiguous().to(device)


def _complex(frequencies: tuple[float, ...], places: Tensor) -> Tensor:
    """(places, P) complex128."""
    angles = places.double()[:, None] * torch.tensor(frequencies, dtype=torch.float64)
    return torch.polar(torch.ones_like(angles), angles)


def _power(count: int) -> int:
    """The power of two from `count` on."""
    return 1 << max(0, count - 1).bit_length()
