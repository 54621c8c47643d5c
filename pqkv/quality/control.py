"""The control of every quality figure: the same codes, dealt to the wrong tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from pqkv.codec import Codebook, CodebookSet


class ShuffledCodebook(Codebook):
    """Encodes as its codebook does, then permutes the codes over the tokens of each call, per subspace.

    The codes keep their distribution and lose their meaning, so a measure that does not react measures nothing.
    """

    __slots__ = ()

    def encode(self, vectors: Tensor) -> Tensor:
        """Vectors (B, Hkv, T, D) -> shuffled codes (B, Hkv, T, M)."""
        codes = super().encode(vectors)
        generator = torch.Generator().manual_seed(0)
        order = torch.rand(codes.shape, generator=generator).argsort(2).to(codes.device)
        return codes.gather(2, order)


def shuffled(books: CodebookSet) -> CodebookSet:
    """The control of `books`."""

    def shuffle(book: Codebook) -> Codebook:
        return ShuffledCodebook(book.centroids, book.channels, book.weights)

    return CodebookSet(tuple(map(shuffle, books.keys)), tuple(map(shuffle, books.values)))
