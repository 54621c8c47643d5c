"""Floats of 8 bits (e4m3), the cache that servers offer by default."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pqkv.codec.interface import Side, SideCodec, State
from pqkv.codec.planes import Plane, Planes
from pqkv.codec.samples import Samples
from pqkv.config import Settings

_LARGEST = 448.0  # of e4m3


class Fp8Options(Settings):
    """The one scale."""

    scale: Literal["learnt", "one"] = Field(
        "learnt", description="of a layer's keys or values: the largest of the samples becomes 448, or 1"
    )


class Fp8(SideCodec):
    """e4m3 with one float32 scale a layer and side: 8 bits an element. What is past 448 scales saturates."""

    Options = Fp8Options
    calibrated = "a scale a layer and side"
    source = "vLLM, kv_cache_dtype fp8; Micikevicius et al., arXiv 2209.05433"

    options: Fp8Options

    @classmethod
    def learns(cls, options: Settings) -> bool:
        """A scale of 1 is not learnt."""
        assert isinstance(options, Fp8Options)
        return options.scale == "learnt"

    @classmethod
    def learn(cls, options: Settings, side: Side, samples: Samples, seed: int) -> State:
        """`scale` of each layer, a float32 scalar."""
        return largest_scales(samples, side, _LARGEST)

    def encode(self, layer: int, vectors: Tensor, positions: Tensor) -> Planes:
        """float8_e4m3fn (B, Hkv, T, D)."""
        scaled = vectors / self._scale(layer) if self.options.scale == "learnt" else vectors
        return {"floats": Plane(scaled.clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn))}

    def decode(self, layer: int, planes: Planes, positions: Tensor) -> Tensor:
        """(B, Hkv, T, D) float32."""
        floats = planes["floats"].values.float()
        return floats * self._scale(layer) if self.options.scale == "learnt" else floats

    def _scale(self, layer: int) -> Tensor:
        return self.of_layer(layer, "scale")


def largest_scales(samples: Samples, side: Side, largest: float) -> State:
    """`scale` of each layer, float32 scalars: what divides the largest magnitude of its samples to `largest`."""
    tiny = torch.finfo(torch.float32).tiny  # of a layer that is 0 throughout
    scales = [(vectors.abs().amax().float() / largest).clamp(min=tiny) for vectors in samples.of(side)]
    return {f"{layer}.scale": scale for layer, scale in enumerate(scales)}
