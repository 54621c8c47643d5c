"""llama.cpp's q8_0."""

from __future__ import annotations

from torch import Tensor

from pqkv.codec.peers.ggml import BlockCodec


class Q8_0(BlockCodec):  # noqa: N801 - ggml's name
    """Bytes from -127 to 127 in blocks of 32: 8.5 bits an element."""

    name = "q8_0"
    width = None

    def scales_of(self, blocks: Tensor) -> Tensor:
        """The largest magnitude is 127."""
        return blocks.abs().amax(-1, keepdim=True) / 127

    def codes_of(self, scaled: Tensor) -> Tensor:
        """int8; halves are rounded away from 0, as C's roundf does."""
        size = scaled.abs()
        whole = size.floor()
        return ((whole + (size - whole >= 0.5)) * scaled.sign()).char()

    def levels_of(self, codes: Tensor) -> Tensor:
        """Themselves."""
        return codes.float()
