"""llama.cpp's q4_0."""

from __future__ import annotations

from torch import Tensor

from pqkv.codec.peers.ggml import BlockCodec


class Q4_0(BlockCodec):  # noqa: N801 - ggml's name
    """Levels -8 to 7 in blocks of 32: 4.5 bits an element."""

    name = "q4_0"
    width = 4

    def scales_of(self, blocks: Tensor) -> Tensor:
        """The element of the largest magnitude, the first of several, is level -8: scales have signs."""
        return blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)) / -8

    def codes_of(self, scaled: Tensor) -> Tensor:
        """uint8; opposite to the largest there is no level 8."""
        return (scaled + 8.5).trunc().clamp(0, 15).byte()

    def levels_of(self, codes: Tensor) -> Tensor:
        """Codes less 8."""
        return codes.float() - 8
