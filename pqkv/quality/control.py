"""The control of every quality figure: the same codes, dealt to the wrong tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from pqkv.codec import Codebook, CodebookSet
from pqkv.codec.codebook import Coded
from pqkv.codec.interface import Codec, Pair
from pqkv.codec.planes import Planes


class ShuffledCodebook(Codebook):
    """Encodes as its codebook does, then permutes the codes over the tokens of each call, per subspace.

    The codes keep their distribution and lose their meaning, so a measure that does not react measures nothing.
    """

    __slots__ = ()
    seed: ClassVar[int] = 0

    def code(self, vectors: Tensor, positions: Tensor | None = None) -> Coded:
        """Vectors (B, Hkv, T, D) -> shuffled codes (B, Hkv, T, M), and gains (B, Hkv, T) as they were."""
        codes, gains = super().code(vectors, positions)
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.rand(codes.shape, generator=generator).argsort(2).to(codes.device)
        return Coded(codes.gather(2, order), gains)


class _ShuffledValues(ShuffledCodebook):
    """Values move apart from their keys: attention does not see pairs that move together."""

    __slots__ = ()
    seed = 1


class ShuffledCodec(Codec):
    """Restores what its codec does, then deals it out to the wrong tokens, keys and values apart."""

    def __init__(self, codec: Codec) -> None:
        self.codec, self.group, self.looks_below = codec, codec.group, codec.looks_below

    def encode(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor, below: Pair | None) -> Planes:
        """As its codec does."""
        return self.codec.encode(layer, keys, values, positions, below)

    def decode(self, layer: int, planes: Planes, positions: Tensor, below: Pair | None) -> Pair:
        """To the wrong tokens."""
        keys, values = self.codec.decode(layer, planes, positions, below)
        orders = [
            torch.randperm(keys.shape[2], generator=torch.Generator().manual_seed(seed)).to(keys.device)
            for seed in (0, 1)
        ]
        return keys[:, :, orders[0]], values[:, :, orders[1]]

    def to(self, device: torch.device) -> ShuffledCodec:
        """The control of the codec there."""
        return ShuffledCodec(self.codec.to(device))


def shuffled(books: CodebookSet | Codec) -> CodebookSet | Codec:
    """The control of `books`, or of a codec."""
    if isinstance(books, Codec):
        return ShuffledCodec(books)
    keys, values = (
        tuple(kind(**book.tensors(), frequencies=book.frequencies, hadamard=book.hadamard) for book in side)
        for kind, side in ((ShuffledCodebook, books.keys), (_ShuffledValues, books.values))
    )
    return CodebookSet(keys, values)
