"""The control of every quality figure: the same codes, dealt to the wrong tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from pqkv.codec import Codebook, CodebookSet


class ShuffledCodebook(Codebook):
    """Encodes as its codebook does, then permutes the codes over the tokens of each call, per subspace.

    The codes keep their distribution and lose their meaning, so a measure that does not react measures nothing.
    """

    __slots__ = ()
    seed: ClassVar[int] = 0

    def encode(self, vectors: Tensor) -> Tensor:
        """Vectors (B, Hkv, T, D) -> shuffled codes (B, Hkv, T, M)."""
        codes = super().encode(vectors)
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.rand(codes.shape, generator=generator).argsort(2).to(codes.device)
        return codes.gather(2, order)


class _ShuffledValues(ShuffledCodebook):
    """Values move apart from their keys: attention does not see pairs that move together."""

    __slots__ = ()
    seed = 1


def shuffled(books: CodebookSet) -> CodebookSet:
    """The control of `books`."""
    keys, values = (
        tuple(kind(book.centroids, book.channels, book.weights, book.rotation) for book in side)
        for kind, side in ((ShuffledCodebook, books.keys), (_ShuffledValues, books.values))
    )
    return CodebookSet(keys, values)
