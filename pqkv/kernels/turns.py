"""Tables of what positions do to a mean that turns with them, made in float64 once and shared by layers and heads.

In float32 an angle of 131,072 radians is wrong by a hundredth; as a product of the turn to a block's middle and the
turn from there, both rounded once, it is right to a few units in the last place however long the context.

Most pairs of a rotary embedding turn little within a block. Their cosines and sines are a few Chebyshev polynomials of
the distance from its middle, and all slow pairs together are one such series: 9 products a token in place of 2 for
each. Cosines and even polynomials are the same as far before the middle as behind it, sines and odd ones change their
sign: who takes two such tokens at once needs every product for one of them only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

BLOCK = 64  # tokens
POLYNOMIALS = 9  # Chebyshev's, T_0 ... T_8, of the distance from a block's middle; one more is even than is odd
_KEPT = 8  # tables: of a few models, or of one whose layers differ
_MIDDLE = (BLOCK - 1) / 2
_SLOW = 2.3 / _MIDDLE  # radians a token: what T_9 and all above it would add to a cosine or sine is below 2e-5
_NODES = 64  # of Chebyshev's, which give the series of such a cosine to the last bit


@dataclass(frozen=True, slots=True)
class Turns:
    """What a block of tokens needs to know of `frequencies`, the fast ones first.

    `middles` (blocks, P, 2): cos and sin of each pair at a block's middle, between two tokens. `rows` (R, BLOCK): cos
    and sin of each fast pair from there, then polynomials of the distance: every second row is even, the others odd.
    `slow` (slow pairs, POLYNOMIALS): with what a slow pair's phasor comes to the factor of each; even ones take the
    phasor's cosine, odd ones its sine. All float32.
    """

    order: tuple[int, ...]  # of the frequencies as they were given
    fast: int
    middles: Tensor
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
    middles = theta * (torch.arange(blocks).double()[:, None] * BLOCK + _MIDDLE)
    distance = torch.arange(BLOCK).double() - _MIDDLE
    within = theta[:fast, None] * distance
    polynomials = _chebyshev((distance / _MIDDLE).acos())
    slow = _series(theta[fast:] * _MIDDLE)
    rows = torch.cat([torch.stack([within.cos(), within.sin()], 1).flatten(0, 1), polynomials])
    tables = (torch.stack([middles.cos(), middles.sin()], -1), rows, slow)
    return Turns(tuple(order), fast, *(table.float().contiguous().to(device) for table in tables))


def _chebyshev(angles: Tensor) -> Tensor:
    """T_k of the cosines of angles (n,): (POLYNOMIALS, n)."""
    return (torch.arange(POLYNOMIALS)[:, None] * angles).cos()


def _series(angles: Tensor) -> Tensor:
    """(pairs, POLYNOMIALS): of each T_k in cos(angle x), k even, and in sin(angle x), k odd, for x from -1 to 1."""
    nodes = (torch.arange(_NODES).double() + 0.5) * (math.pi / _NODES)
    turned = angles[:, None] * nodes.cos()
    even, odd = (2 / _NODES * wave @ _chebyshev(nodes).mT for wave in (turned.cos(), turned.sin()))
    even[:, 0] /= 2
    return torch.where(torch.arange(POLYNOMIALS) % 2 == 0, even, odd)


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
