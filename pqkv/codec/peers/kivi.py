"""KIVI: keys by channel, whose outliers stay in their channels; values by token."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from pqkv.codec.interface import Side, SideCodec, State
from pqkv.codec.peers.groups import grouped
from pqkv.codec.peers.minmax import put_back, round_min_max
from pqkv.codec.planes import Plane, Planes
from pqkv.config import Settings


class KiviOptions(Settings):
    """How many bits, and how many share a scale."""

    bits: int = Field(2, ge=1, le=8, description="of each integer")
    group: int = Field(32, ge=1, description="that share a scale and a zero: tokens of keys, channels of values")


class Kivi(SideCodec):
    """Asymmetric min-max rounding, each channel of keys over 32 tokens, each token of values over 32 channels:
    bits + 32/group an element.
    """

    Options = KiviOptions
    source = "KIVI, arXiv 2402.02750"

    options: KiviOptions

    def __init__(self, options: KiviOptions, side: Side, state: State) -> None:
        super().__init__(options, side, state)
        self.group = options.group if side == "keys" else 1

    def encode(self, layer: int, vectors: Tensor, positions: Tensor) -> Planes:
        """Codes (B, Hkv, T, D) of keys, (B, Hkv, T, D/g, g) of values; float16 scales and zeros, one a group."""
        if self.side == "keys":
            codes, scales, zeros = round_min_max(_by_tokens(vectors, self.group), self.options.bits, -2)
            codes = codes.flatten(2, 3)[:, :, : vectors.shape[2]]
            scales, zeros = scales.squeeze(-2), zeros.squeeze(-2)  # (B, Hkv, groups, D)
        else:
            groups = grouped(vectors, self.options.group, "kivi", "take a divisor for group")
            codes, scales, zeros = round_min_max(groups, self.options.bits, -1)
        return {"codes": Plane(codes, self.options.bits), "scales": Plane(scales), "zeros": Plane(zeros)}

    def decode(self, layer: int, planes: Planes, positions: Tensor) -> Tensor:
        """(B, Hkv, T, D) float32."""
        codes, scales, zeros = (planes[name].values for name in ("codes", "scales", "zeros"))
        if self.side == "values":
            return put_back(codes, scales, zeros).flatten(-2)
        T = codes.shape[2]
        scales, zeros = (part.repeat_interleave(self.group, 2)[:, :, :T] for part in (scales, zeros))
        return put_back(codes, scales, zeros)


def _by_tokens(vectors: Tensor, size: int) -> Tensor:
    """(B, H, T, D) -> (B, H, groups, size, D); the last token again fills the last group, whose range it leaves."""
    T = vectors.shape[2]
    if T % size:
        vectors = vectors[:, :, torch.arange(-(-T // size) * size, device=vectors.device).clamp(max=T - 1)]
    return vectors.unflatten(2, (-1, size))
