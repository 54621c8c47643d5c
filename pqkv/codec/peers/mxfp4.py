"""MXFP4: floats of 4 bits in blocks of 32 with a power of two as their scale."""

from __future__ import annotations

import torch
from torch import Tensor

from pqkv.codec.interface import SideCodec
from pqkv.codec.peers.e2m1 import e2m1_codes, e2m1_floats
from pqkv.codec.peers.groups import grouped
from pqkv.codec.planes import Plane, Planes

_BLOCK = 32
_BIAS = 127
_OCTAVE = 2  # of e2m1's largest float


class Mxfp4(SideCodec):
    """e2m1 with e8m0 scales, 2 to the octave of the block's largest less that of the largest float: 4.25 bits an
    element. A largest of 7 in scales of 1 saturates at 6, as the format's conversion says.
    """

    source = "OCP Microscaling Formats 1.0"

    def encode(self, layer: int, vectors: Tensor, positions: Tensor) -> Planes:
        """Codes (B, Hkv, T, D/32, 32); biased exponents (B, Hkv, T, D/32, 1), uint8."""
        blocks = grouped(vectors.float(), _BLOCK, "mxfp4", "take int with a group that divides them")
        largest = blocks.abs().amax(-1, keepdim=True)
        exponents = (torch.frexp(largest)[1] - 1 - _OCTAVE).clamp(min=-_BIAS)  # of a float32 no more than 125
        codes = e2m1_codes(torch.ldexp(blocks, -exponents))
        return {"codes": Plane(codes, 4), "exponents": Plane((exponents + _BIAS).byte())}

    def decode(self, layer: int, planes: Planes, positions: Tensor) -> Tensor:
        """(B, Hkv, T, D) float32."""
        exponents = planes["exponents"].values.int() - _BIAS
        return torch.ldexp(e2m1_floats(planes["codes"].values), exponents).flatten(-2)
