"""The best scalar quantizer of a Gaussian (Max 1960, Lloyd 1982)."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

_STEPS = 20_000  # of 64 levels; fewer levels are still after a few hundred
_STILL = 1e-12


@functools.cache
def normal_levels(bits: int) -> Tensor:
    """The 2**bits levels of least mean squared error for N(0, 1), ascending, float64.

    A level is the mean of the normal density between the middles to its neighbours.
    """
    count = 2**bits
    shares = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    levels = math.sqrt(3) * torch.special.ndtri(shares)  # where levels lie for many bits (Panter and Dite 1951)
    edge = torch.full((1,), math.inf, dtype=torch.float64)
    for _ in range(_STEPS):
        bounds = torch.cat([-edge, (levels[1:] + levels[:-1]) / 2, edge])
        density = torch.exp(-bounds.square() / 2) / math.sqrt(2 * math.pi)
        found = (density[:-1] - density[1:]) / torch.special.ndtr(bounds).diff()
        moved = float((found - levels).abs().max())
        levels = (found - found.flip(0)) / 2  # rounding would leave them slightly lopsided
        if moved < _STILL:
            break
    return levels


def nearest_level(x: Tensor, levels: Tensor) -> Tensor:
    """Place of the nearest of ascending levels (C,) to each of x, uint8."""
    bounds = ((levels[1:] + levels[:-1]) / 2).to(x)
    return torch.bucketize(x, bounds).to(torch.uint8)
