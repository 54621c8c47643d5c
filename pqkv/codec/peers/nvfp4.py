"""NVFP4: floats of 4 bits in blocks of 16 with a float of 8 bits as their scale."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pqkv.codec.interface import Side, SideCodec, State
from pqkv.codec.peers.e2m1 import LARGEST, e2m1_codes, e2m1_floats
from pqkv.codec.peers.fp8 import largest_scales
from pqkv.codec.peers.groups import grouped
from pqkv.codec.planes import Plane, Planes
from pqkv.codec.samples import Samples
from pqkv.config import Settings

_BLOCK = 16
_LARGEST_SCALE = 448.0  # of e4m3


class Nvfp4Options(Settings):
    """The scale of scales."""

    scale: Literal["learnt", "one"] = Field(
        "learnt", description="of a layer's keys or values: the largest scale of the samples becomes 448, or 1"
    )


class Nvfp4(SideCodec):
    """e2m1 with e4m3 scales, a block's largest over 6, in one float32 scale a layer and side: 4.5 bits an element."""

    Options = Nvfp4Options
    calibrated = "a scale a layer and side"
    source = "NVIDIA, NVFP4 (Blackwell)"

    options: Nvfp4Options

    @classmethod
    def learns(cls, options: Settings) -> bool:
        """A scale of 1 is not learnt."""
        assert isinstance(options, Nvfp4Options)
        return options.scale == "learnt"

    @classmethod
    def learn(cls, options: Settings, side: Side, samples: Samples, seed: int) -> State:
        """`scale` of each layer, a float32 scalar."""
        return largest_scales(samples, side, LARGEST * _LARGEST_SCALE)

    def encode(self, layer: int, vectors: Tensor, positions: Tensor) -> Planes:
        """Codes (B, Hkv, T, D/16, 16), scales (B, Hkv, T, D/16, 1), float8_e4m3fn."""
        if self.options.scale == "learnt":
            vectors = vectors / self.of_layer(layer, "scale")
        blocks = grouped(vectors, _BLOCK, "nvfp4", "take int with a group that divides them")
        largest = blocks.abs().amax(-1, keepdim=True)
        scales = (largest / LARGEST).clamp(max=_LARGEST_SCALE).to(torch.float8_e4m3fn)
        steps = scales.to(blocks.dtype)
        codes = e2m1_codes(blocks / steps.where(steps > 0, 1))  # a block under the least scale is 0
        return {"codes": Plane(codes, 4), "scales": Plane(scales)}

    def decode(self, layer: int, planes: Planes, positions: Tensor) -> Tensor:
        """(B, Hkv, T, D) float32."""
        restored = (e2m1_floats(planes["codes"].values) * planes["scales"].values.float()).flatten(-2)
        return restored * self.of_layer(layer, "scale") if self.options.scale == "learnt" else restored
