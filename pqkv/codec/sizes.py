"""What codes take, counted in the bytes of their planes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pqkv.codec.interface import Codec, Pair
from pqkv.codec.planes import Packed, pack_planes

_TOKENS = 128  # a multiple of what any codec codes together


@dataclass(slots=True)
class CodedSizes:
    """Bytes of coded vectors by side, what the sides `share` apart, and how many elements each side had."""

    keys: int = 0
    values: int = 0
    shared: int = 0
    elements: int = 0

    def add(self, packed: dict[str, Packed], elements: int) -> None:
        """Count the planes of one layer, with `elements` of either side."""
        for name, plane in packed.items():
            if name.startswith("keys."):
                self.keys += len(plane.data)
            elif name.startswith("values."):
                self.values += len(plane.data)
            else:
                self.shared += len(plane.data)
        self.elements += elements

    @property
    def key_bits(self) -> float:
        """Bits an element of the keys; half of what is shared counts."""
        return 8 * (self.keys + self.shared / 2) / max(1, self.elements)

    @property
    def value_bits(self) -> float:
        """Bits an element of the values."""
        return 8 * (self.values + self.shared / 2) / max(1, self.elements)

    @property
    def bits(self) -> float:
        """Bits an element of both."""
        return (self.key_bits + self.value_bits) / 2


def nominal_bits(codec: Codec, layers: int, heads: int, head_dim: int) -> float:
    """Bits an element of 128 tokens of seeded normal numbers, of all layers."""
    generator, sizes = torch.Generator().manual_seed(0), CodedSizes()
    positions = torch.arange(_TOKENS)
    below: Pair | None = None
    for layer in range(layers):
        keys, values = torch.randn(2, 1, heads, _TOKENS, head_dim, generator=generator)
        planes = codec.encode(layer, keys, values, positions, below)
        sizes.add(pack_planes(planes), keys.numel())
        if codec.looks_below:
            below = codec.decode(layer, planes, positions, below)
    return sizes.bits
