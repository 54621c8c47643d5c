"""TurboQuant as vLLM has it: keys by their norm and Lloyd-Max levels of a turned unit vector, values by min-max."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pqkv.codec.interface import SideCodec
from pqkv.codec.peers.lloyd_max import nearest_level, normal_levels
from pqkv.codec.peers.minmax import half, put_back, round_min_max, safe
from pqkv.codec.planes import Plane, Planes
from pqkv.codec.transforms import hadamard
from pqkv.config import Settings


class TurboQuantOptions(Settings):
    """What the recipe leaves open."""

    bits: int = Field(4, ge=1, le=6, description="of an element")
    renormalise: bool = Field(False, description="decoded unit vectors are given length 1 again (vLLM: `nc`)")
    values: Literal["min-max", "keys"] = Field("min-max", description="keys: values are coded in the keys' way")


class TurboQuant(SideCodec):
    """A vector is a norm, float16, and a direction: random signs and a Hadamard matrix make a direction's channels
    nearly N(0, 1/D), whose Lloyd-Max levels it is rounded to. Values: min-max for each token and head.
    """

    Options = TurboQuantOptions
    source = "TurboQuant (arXiv 2504.19874) as in vLLM"

    options: TurboQuantOptions

    def encode(self, layer: int, vectors: Tensor, positions: Tensor) -> Planes:
        """Codes (B, Hkv, T, D); norms (B, Hkv, T, 1), or scales and zeros."""
        if not self._turns:
            codes, scale, zero = round_min_max(vectors, self.options.bits)
            return {"codes": Plane(codes, self.options.bits), "scales": Plane(scale), "zeros": Plane(zero)}
        D = vectors.shape[-1]
        norms = vectors.norm(dim=-1, keepdim=True)
        turned = vectors / safe(norms) @ turn(layer, D).to(vectors)
        codes = nearest_level(turned * D**0.5, normal_levels(self.options.bits))
        return {"codes": Plane(codes, self.options.bits), "norms": Plane(half(norms))}

    def decode(self, layer: int, planes: Planes, positions: Tensor) -> Tensor:
        """Levels turned back, as long as the norm says."""
        codes = planes["codes"].values
        if not self._turns:
            return put_back(codes, planes["scales"].values, planes["zeros"].values)
        D = codes.shape[-1]
        turned = normal_levels(self.options.bits).float().to(codes.device)[codes.long()] / D**0.5
        if self.options.renormalise:
            turned = turned / turned.norm(dim=-1, keepdim=True)
        return turned @ turn(layer, D).to(turned).mT * planes["norms"].values.float()

    @property
    def _turns(self) -> bool:
        return self.side == "keys" or self.options.values == "keys"


def turn(layer: int, size: int) -> Tensor:
    """(D, D) orthogonal, for vectors from its left: random signs, the layer's own, and a Hadamard matrix."""
    signs = torch.randint(0, 2, (size, 1), generator=torch.Generator().manual_seed(layer)) * 2 - 1
    return signs * hadamard(size)
