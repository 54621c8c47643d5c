"""Where vectors stand: the mean that is taken out before they are coded.

A mean of keys that is constant before rotary embedding turns with the position, and is known from the position alone:
taken out after it, it costs attention a bias of the score that depends on query and position only.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pqkv.codec.rotary import Rotary
from pqkv.errors import ConfigError

Mean = Literal["none", "constant", "turning"]


class TurningMean:
    """What is taken out of vectors (B, Hkv, T, D): `constant` (Hkv, D), and R_p `turning` (Hkv, D) turned to positions,
    rounded to the middle of blocks of `every`.
    """

    def __init__(self, constant: Tensor, turning: Tensor, rotary: Rotary, every: int) -> None:
        self.constant, self.turning, self.rotary, self.every = constant, turning, rotary, every

    def at(self, positions: Tensor) -> Tensor:
        """(Hkv, T, D) at positions (T,)."""
        places = positions.double()
        if self.every > 1:
            places = (positions // self.every * self.every).double() + (self.every - 1) / 2
        spread = self.turning[:, None].expand(-1, len(positions), -1)
        return self.constant[:, None] + self.rotary.turn(spread, places)


def means(
    mean: Mean,
    vectors: Tensor,
    positions: Tensor | None,
    rotary: Rotary | None,
    moments: Tensor | None,
    pairs: int | None,
) -> tuple[Tensor, Tensor]:
    """`constant` and `turning` (Hkv, D) of vectors (Hkv, N, D) at positions (N,).

    With `pairs` only that many pairs of channels of each head turn: those with the most energy in the queries' metric
    that a constant mean leaves. The others keep their constant mean.
    """
    constant = torch.zeros_like(vectors[:, 0]) if mean == "none" else vectors.mean(1)
    if mean != "turning":
        return constant, torch.zeros_like(constant)
    if positions is None or rotary is None:
        raise ConfigError("a mean that turns wants the positions and the rotary embedding of the samples")
    still = rotary.take_off(vectors.double(), positions).mean(1)  # (Hkv, D)
    chosen = torch.ones_like(still, dtype=torch.bool)
    if pairs is not None:
        if moments is None:
            raise ConfigError("pairs are chosen in the queries' metric: samples hold no moments")
        chosen = _chosen(still, constant.double(), rotary, moments.double(), pairs)
    turning = still.where(chosen, torch.zeros_like(still)).to(vectors.dtype)
    return constant.where(~chosen, torch.zeros_like(constant)), turning


def _chosen(still: Tensor, constant: Tensor, rotary: Rotary, moments: Tensor, pairs: int) -> Tensor:
    """(Hkv, D) bool: the channels of the pairs that turn."""
    half = rotary.pairs
    weights = moments.diagonal(dim1=-2, dim2=-1)  # (Hkv, D)
    # what a constant mean leaves of the turning one, |m|^2 less what its average over positions has
    gained = weights * (still.square() - constant.square()).clamp(min=0)
    energy = gained[:, :half] + gained[:, half : 2 * half]
    best = energy.topk(min(pairs, half), dim=-1).indices
    chosen = torch.zeros_like(energy, dtype=torch.bool).scatter(-1, best, torch.ones_like(best, dtype=torch.bool))
    rest = torch.zeros(len(still), still.shape[1] - 2 * half, dtype=torch.bool)
    return torch.cat([chosen, chosen, rest], -1)
