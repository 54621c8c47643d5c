"""Rotary embedding as codecs need it: keys taken back to position 0, and means turned to where they stand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rotary:
    """RoPE of one layer in its half-split form (Llama; Su et al. 2021): channels (i, i + R/2) of the first R are a pair
    that position p turns by p * frequencies[i]; channels past R stay. Without rotary embedding there are no pairs.
    """

    frequencies: Tensor  # (R/2,) float64, radians a position

    @property
    def pairs(self) -> int:
        """R / 2."""
        return len(self.frequencies)

    def turn(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """Vectors (..., T, D) turned by positions (T,), or by -p to take it off."""
        half = self.pairs
        angle = positions.to(torch.float64)[:, None] * self.frequencies.to(positions.device)  # (T, R/2)
        cos, sin = angle.cos().to(vectors.dtype), angle.sin().to(vectors.dtype)
        a, b, rest = vectors[..., :half], vectors[..., half : 2 * half], vectors[..., 2 * half :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)

    def take_off(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """Keys (..., T, D) as they are before rotary embedding; a factor that YaRN puts on them stays."""
        return self.turn(vectors, -positions)
