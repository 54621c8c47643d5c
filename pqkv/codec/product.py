"""Product codes of a codebook file as a codec: what pages and kernels serve."""

from __future__ import annotations

import torch
from torch import Tensor

from pqkv.codec.codebook import CodebookSet
from pqkv.codec.interface import Codec, Pair
from pqkv.codec.planes import Plane, Planes


class ProductCodec(Codec):
    """Keys and values as the codes of `books`."""

    def __init__(self, books: CodebookSet) -> None:
        self.books = books

    def encode(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor, below: Pair | None) -> Planes:
        """Codes (B, Hkv, T, M) of either side, and gains (B, Hkv, T) in bytes of those that have some."""
        planes = {}
        sides = (("keys", self.books.keys[layer], keys), ("values", self.books.values[layer], values))
        for side, book, vectors in sides:
            coded = book.code(vectors, positions)
            planes[f"{side}.codes"] = Plane(coded.codes, book.nbits)
            if coded.gains is not None:
                planes[f"{side}.gains"] = Plane(coded.gains)
        return planes

    def decode(self, layer: int, planes: Planes, positions: Tensor, below: Pair | None) -> Pair:
        """What codes and gains stand for."""
        found = []
        for side, book in (("keys", self.books.keys[layer]), ("values", self.books.values[layer])):
            gains = planes.get(f"{side}.gains")
            stored = None if gains is None else gains.values
            found.append(book.decode(planes[f"{side}.codes"].values, stored, positions))
        return found[0], found[1]

    def fixed_bytes(self) -> int:
        """Of the codebooks."""
        return self.books.nbytes()

    def to(self, device: torch.device) -> Codec:
        """Its codebooks there."""
        moved = self.books.map(lambda book: book.map(lambda t: t.to(device)))
        same = all(a is b for a, b in zip(moved.keys + moved.values, self.books.keys + self.books.values, strict=True))
        return self if same else ProductCodec(moved)
