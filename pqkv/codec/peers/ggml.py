"""What llama.cpp's cache types share: blocks of 32 channels with one float16 scale, and the rotation before them."""

from __future__ import annotations

from abc import abstractmethod

import torch
from pydantic import Field
from torch import Tensor

from pqkv.codec.interface import SideCodec
from pqkv.codec.peers.groups import grouped
from pqkv.codec.peers.minmax import half
from pqkv.codec.planes import Plane, Planes
from pqkv.config import Settings
from pqkv.errors import ConfigError

_BLOCK = 32
_ROTATED = 64  # llama.cpp rotates heads of a multiple of this


class BlockOptions(Settings):
    """Rotated or plain; how many bits the type's name says."""

    rotate: bool = Field(False, description="turned by Hadamard matrices first, as llama.cpp does by default")


class BlockCodec(SideCodec):
    """A ggml type. Everything is float32, as it is there.

    With `rotate` keys are turned by the Hadamard matrix of the largest power of two that divides head_dim, values by
    that of 64 channels; llama.cpp leaves other heads than multiples of 64 as they are, this raises `ConfigError`.
    """

    Options = BlockOptions
    source = "llama.cpp; its rotation since pull request 21038"

    options: BlockOptions
    name: str
    width: int | None  # of a code

    @abstractmethod
    def scales_of(self, blocks: Tensor) -> Tensor:
        """Scales (..., 1) of blocks (..., 32)."""

    @abstractmethod
    def codes_of(self, scaled: Tensor) -> Tensor:
        """Codes of what was divided by its scale."""

    @abstractmethod
    def levels_of(self, codes: Tensor) -> Tensor:
        """What codes stand for, float32, in scales."""

    def encode(self, layer: int, vectors: Tensor, positions: Tensor) -> Planes:
        """Codes (B, Hkv, T, D/32, 32), scales (B, Hkv, T, D/32, 1), float16."""
        blocks = grouped(self._turn(vectors.float()), _BLOCK, self.name, "take int with a group that divides them")
        scales = self.scales_of(blocks)
        # codes are of the float32 scale, though its float16 decodes; a subnormal one is no scale, and decodes to 0
        inverse = (1 / scales).where(scales.abs() >= torch.finfo(torch.float32).tiny, 0)
        return {"codes": Plane(self.codes_of(blocks * inverse), self.width), "scales": Plane(half(scales))}

    def decode(self, layer: int, planes: Planes, positions: Tensor) -> Tensor:
        """(B, Hkv, T, D) float32."""
        blocks = planes["scales"].values.float() * self.levels_of(planes["codes"].values)
        return self._turn(blocks.flatten(-2))

    def _turn(self, vectors: Tensor) -> Tensor:
        """Its own inverse."""
        if not self.options.rotate:
            return vectors
        D = vectors.shape[-1]
        if D % _ROTATED:
            raise ConfigError(f"{self.name}: heads of {D} are not rotated, only multiples of 64: take rotate=false")
        size = D & -D if self.side == "keys" else _ROTATED
        return walsh_hadamard(vectors.unflatten(-1, (-1, size))).flatten(-2)


def walsh_hadamard(vectors: Tensor) -> Tensor:
    """Vectors (..., n) turned by the Hadamard matrix of n, a power of two, over its root.

    By sums and differences, as the last bits of a matrix product depend on how many vectors there are, and a code may.
    """
    size, half = vectors.shape[-1], 1
    while half < size:
        a, b = vectors.unflatten(-1, (-1, 2, half)).unbind(-2)
        vectors = torch.stack([a + b, a - b], -2).flatten(-3)
        half *= 2
    return vectors / size**0.5
