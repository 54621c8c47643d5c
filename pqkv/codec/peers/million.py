"""MILLION: product codes with one codebook for all keys and one for all values."""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pqkv.codec.codebook import Codebook
from pqkv.codec.geometry import code_geometry
from pqkv.codec.interface import Side, SideCodec, State
from pqkv.codec.planes import Plane, Planes
from pqkv.codec.samples import Samples
from pqkv.codec.training import train_codebooks
from pqkv.config import CodeShape, Settings


class MillionOptions(Settings):
    """Published with 64 x 8 to 64 x 12 and 32 x 8 to 32 x 12 for heads of 128."""

    bits: float | None = Field(None, description="of codes, an element: 6, 4, 3, 2, 1.5, 1")
    num_subspaces: int | None = Field(None, ge=1)
    nbits: int | None = Field(None, ge=1, le=12)
    iterations: int = Field(25, ge=1)

    @model_validator(mode="after")
    def _check(self) -> MillionOptions:
        self.shape()
        return self

    def shape(self) -> CodeShape:
        """Of the codes; 4 bits where nothing was said."""
        given = (self.bits, self.num_subspaces, self.nbits)
        bits = 4 if given == (None,) * 3 else self.bits
        return CodeShape(bits=bits, num_subspaces=self.num_subspaces, nbits=self.nbits)


class Million(SideCodec):
    """Codes of neighbouring channels as they are in the cache, Euclidean, k-means from random points."""

    Options = MillionOptions
    calibrated = "one codebook a side"
    source = "MILLION (DAC 2025)"

    options: MillionOptions

    def __init__(self, options: Settings, side: Side, state: State) -> None:
        super().__init__(options, side, state)
        self._book: Codebook | None = None

    @classmethod
    def learn(cls, options: Settings, side: Side, samples: Samples, seed: int) -> State:
        """Centroids (1, M, C, d_sub), the same for every layer and head."""
        options = cast(MillionOptions, options)
        M, nbits = code_geometry(options.shape(), samples.of(side)[0].shape[-1])
        books = train_codebooks(
            samples.of(side),
            M,
            nbits,
            scope="global",
            iterations=options.iterations,
            seed=seed,
            channels="adjacent",
            init="random",
        )
        return {"centroids": books[0].centroids.contiguous()}

    def encode(self, layer: int, vectors: Tensor, positions: Tensor) -> Planes:
        """Codes (B, Hkv, T, M)."""
        book = self._codebook()
        return {"codes": Plane(book.encode(vectors), book.nbits)}

    def decode(self, layer: int, planes: Planes, positions: Tensor) -> Tensor:
        """Centroids."""
        return self._codebook().decode(planes["codes"].values.to(torch.int16))

    def _codebook(self) -> Codebook:
        if self._book is None:
            self._book = Codebook(self.state["centroids"])
        return self._book
