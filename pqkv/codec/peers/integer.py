"""Integers per token and head: the plain way, and that of transformers' `QuantizedCache` (quanto, axis 0)."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from pqkv.codec.interface import SideCodec
from pqkv.codec.peers.groups import grouped
from pqkv.codec.peers.minmax import put_back, round_min_max
from pqkv.codec.planes import Plane, Planes
from pqkv.config import Settings


class IntegerOptions(Settings):
    """How many bits, and what shares a scale."""

    bits: int = Field(4, ge=1, le=8, description="of each integer")
    group: int | None = Field(64, ge=1, description="channels that share a scale and a zero; absent: the whole head")


class Integer(SideCodec):
    """Asymmetric min-max rounding of groups of channels of each token: bits + 32/group an element.

    transformers requantizes the whole cache whenever its window is full; here a token is coded once.
    """

    Options = IntegerOptions
    source = "transformers, QuantizedCache"

    options: IntegerOptions

    def encode(self, layer: int, vectors: Tensor, positions: Tensor) -> Planes:
        """Codes (B, Hkv, T, D/g, g); scales and zeros (B, Hkv, T, D/g, 1), float16."""
        size = self.options.group or vectors.shape[-1]
        groups = grouped(vectors, size, "int", "take a divisor, or group=null for whole heads")
        codes, scales, zeros = round_min_max(groups, self.options.bits, -1)
        return {"codes": Plane(codes, self.options.bits), "scales": Plane(scales), "zeros": Plane(zeros)}

    def decode(self, layer: int, planes: Planes, positions: Tensor) -> Tensor:
        """(B, Hkv, T, D) float32."""
        return put_back(planes["codes"].values, planes["scales"].values, planes["zeros"].values).flatten(-2)
