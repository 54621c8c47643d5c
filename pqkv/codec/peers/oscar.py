"""OSCAR: a rotation from what attention looks at, rows clipped at an order statistic, two bits."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from pqkv.codec.interface import Side, SideCodec, State
from pqkv.codec.peers.minmax import put_back, round_min_max
from pqkv.codec.planes import Plane, Planes
from pqkv.codec.samples import Samples
from pqkv.codec.transforms import rotation
from pqkv.config import Settings
from pqkv.errors import ConfigError

_KEPT = {"keys": 0.96, "values": 0.92}  # of a row's magnitudes, those that no clipping touches


class OscarOptions(Settings):
    """The recipe's own numbers by default."""

    bits: int = Field(2, ge=1, le=8, description="of an element")
    channels: int = Field(128, ge=1, description="that share scale and zero, the head's if it has fewer")
    clip: float | None = Field(None, gt=0, le=1, description="order statistic; absent: 0.96 for keys, 0.92 for values")


class Oscar(SideCodec):
    """z = (U H P)^T x, U the eigenvectors of the queries' moments (keys) or of values weighted by what queries make of
    their keys (values); every row of z is clipped by its own magnitudes and rounded asymmetrically.
    """

    Options = OscarOptions
    calibrated = "a rotation for each head"
    source = "OSCAR (arXiv 2605.17757)"

    options: OscarOptions

    @classmethod
    def learn(cls, options: Settings, side: Side, samples: Samples, seed: int) -> State:
        """A rotation (Hkv, D, D) of each layer."""
        if samples.query_moments is None:
            raise ConfigError("oscar turns by the queries' moments: samples hold none")
        state = {}
        for layer, (keys, values, queries) in enumerate(
            zip(samples.keys, samples.values, samples.query_moments, strict=True)
        ):
            moments = queries if side == "keys" else weighted_moments(keys, values, queries)
            state[f"{layer}.rotation"] = rotation("oscar", keys, moments, 1, 1, seed).float()
        return state

    def encode(self, layer: int, vectors: Tensor, positions: Tensor) -> Planes:
        """Codes (B, Hkv, T, groups, channels), scales and zeros (..., 1)."""
        D = vectors.shape[-1]
        channels = min(self.options.channels, D)
        if D % channels:
            raise ConfigError(f"groups of {channels} channels do not divide a head of {D}: take other --channels")
        turned = vectors @ self.of_layer(layer, "rotation").to(vectors).mT
        kept = _KEPT[self.side] if self.options.clip is None else self.options.clip
        codes, scale, zero = round_min_max(clip_rows(turned, kept).unflatten(-1, (-1, channels)), self.options.bits)
        return {"codes": Plane(codes, self.options.bits), "scales": Plane(scale), "zeros": Plane(zero)}

    def decode(self, layer: int, planes: Planes, positions: Tensor) -> Tensor:
        """Turned back."""
        found = put_back(planes["codes"].values, planes["scales"].values, planes["zeros"].values).flatten(-2)
        return found @ self.of_layer(layer, "rotation").to(found)


def weighted_moments(keys: Tensor, values: Tensor, queries: Tensor) -> Tensor:
    """V^T diag(w) V / n of values (Hkv, n, D), w_t = k_t^T A k_t of mean 1 with A (Hkv, D, D) the queries' moments."""
    keys, values = keys.double(), values.double()
    weights = ((keys @ queries.double()) * keys).sum(-1, keepdim=True)  # (Hkv, n, 1)
    weights = weights / weights.mean(1, keepdim=True).clamp(min=1e-30)
    return (weights * values).mT @ values / values.shape[1]


def clip_rows(rows: Tensor, kept: float) -> Tensor:
    """Rows (..., D), each clipped at the ceil(kept * D)-th smallest of its own magnitudes."""
    rank = math.ceil(kept * rows.shape[-1] - 1e-9)
    bound = torch.kthvalue(rows.abs(), max(1, rank), -1, keepdim=True).values
    return rows.clamp(-bound, bound)
