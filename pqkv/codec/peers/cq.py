"""Coupled quantization: neighbouring channels share a code, k-means weighted by Fisher information."""

from __future__ import annotations

from typing import Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pqkv.codec.codebook import Codebook
from pqkv.codec.interface import Side, SideCodec, State
from pqkv.codec.peers.fisher import fisher, still, still_rotary
from pqkv.codec.planes import Plane, Planes
from pqkv.codec.rotary import Rotary
from pqkv.codec.samples import Samples
from pqkv.codec.weighted import weighted_kmeans
from pqkv.config import BIT_CHOICES, Settings
from pqkv.errors import ConfigError


class CQOptions(Settings):
    """Published as 2c8b (4 bits), 4c8b (2) and 8c8b (1)."""

    bits: Literal[1, 2, 4] = Field(2, description="of an element; channels and nbits, given together, take its place")
    channels: int | None = Field(None, ge=1, description="neighbours that share a code")
    nbits: int | None = Field(None, ge=1, le=12, description="of a code")
    fisher: bool = Field(True, description="k-means weighs points by their squared gradients")
    iterations: int = Field(25, ge=1)

    @model_validator(mode="after")
    def _together(self) -> CQOptions:
        if (self.channels is None) != (self.nbits is None):
            raise ValueError("channels and nbits go together")
        return self

    def geometry(self) -> tuple[int, int]:
        """Channels of a code and its bits."""
        if self.channels is not None and self.nbits is not None:
            return self.channels, self.nbits
        return BIT_CHOICES[self.bits]


class CQ(SideCodec):
    """Product codes of neighbouring channels with a codebook for each layer and head; keys before rotary embedding.
    Codes are the nearest centroids, weights only made these.
    """

    Options = CQOptions
    calibrated = "a codebook for each head"
    source = "CQ (arXiv 2405.03917)"

    options: CQOptions

    def __init__(self, options: Settings, side: Side, state: State) -> None:
        super().__init__(options, side, state)
        self._books: dict[int, Codebook] = {}

    @classmethod
    def wants_gradients(cls, options: Settings) -> bool:
        """For Fisher information."""
        return cast(CQOptions, options).fisher

    @classmethod
    def learn(cls, options: Settings, side: Side, samples: Samples, seed: int) -> State:
        """Centroids (Hkv, M, C, channels) of each layer; for keys its rotary frequencies."""
        options = cast(CQOptions, options)
        channels, nbits = options.geometry()
        state = {}
        for layer in range(len(samples.of(side))):
            vectors = still(samples, side, layer)
            if vectors.shape[-1] % channels:
                raise ConfigError(
                    f"cq couples {channels} channels, which do not divide a head of {vectors.shape[-1]}: take other "
                    "channels and nbits"
                )
            points = vectors.unflatten(-1, (-1, channels)).transpose(1, 2)  # (Hkv, M, N, c)
            costs = fisher(samples, side, layer) if options.fisher else torch.ones_like(vectors)
            weights = costs.unflatten(-1, (-1, channels)).sum(-1).transpose(1, 2)  # (Hkv, M, N)
            found = weighted_kmeans(points.flatten(0, 1), weights.flatten(0, 1), nbits, options.iterations, seed)
            state[f"{layer}.centroids"] = found.unflatten(0, points.shape[:2])
            rotary = still_rotary(samples, side, layer)
            if rotary is not None:
                state[f"{layer}.frequencies"] = rotary.frequencies
        return state

    def encode(self, layer: int, vectors: Tensor, positions: Tensor) -> Planes:
        """Codes (B, Hkv, T, M)."""
        if self.side == "keys":
            vectors = Rotary(self.of_layer(layer, "frequencies")).take_off(vectors, positions)
        book = self._book(layer)
        return {"codes": Plane(book.encode(vectors), book.nbits)}

    def decode(self, layer: int, planes: Planes, positions: Tensor) -> Tensor:
        """Centroids, keys turned to where they stand."""
        found = self._book(layer).decode(planes["codes"].values)
        return Rotary(self.of_layer(layer, "frequencies")).turn(found, positions) if self.side == "keys" else found

    def _book(self, layer: int) -> Codebook:
        if layer not in self._books:
            self._books[layer] = Codebook(self.of_layer(layer, "centroids"))
        return self._books[layer]
