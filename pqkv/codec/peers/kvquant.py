"""KVQuant: keys before rotary embedding by channel, values by token, levels where Fisher information wants them."""

from __future__ import annotations

import math
from typing import cast

import torch
from pydantic import Field
from torch import Tensor

from pqkv.codec.interface import Side, SideCodec, State
from pqkv.codec.peers.fisher import fisher, still, still_rotary
from pqkv.codec.peers.lloyd_max import nearest_level
from pqkv.codec.peers.minmax import half, safe
from pqkv.codec.peers.sparse import put_sparse, sparse_planes
from pqkv.codec.planes import Plane, Planes
from pqkv.codec.rotary import Rotary
from pqkv.codec.samples import Samples
from pqkv.codec.weighted import weighted_kmeans
from pqkv.config import Settings

_NUMBERS = 1 << 16  # that the levels of a layer are made of


class KVQuantOptions(Settings):
    """Published with 2, 3 and 4 bits, with and without 1% of outliers."""

    bits: int = Field(4, ge=1, le=8, description="of an element")
    outliers: float = Field(0, ge=0, lt=0.5, description="share of the elements that is kept exactly (published: 0.01)")
    fisher: bool = Field(True, description="k-means weighs numbers by their squared gradients")
    iterations: int = Field(50, ge=1)


class KVQuant(SideCodec):
    """A number is brought to [-1, 1] and rounded to one of 2**bits levels, which all heads of a layer share. The range
    is the channel's, of the samples, for keys; for values that of the token over all its heads, two float16.

    Outliers are the outermost numbers of a range, half of them at either end: keys past their channel's quantiles of
    the samples, values at the ends of their token. They make no range, and stand beside the codes exactly, in float16.
    """

    Options = KVQuantOptions
    calibrated = "levels of a layer, ranges of keys' channels"
    source = "KVQuant (arXiv 2401.18079)"

    options: KVQuantOptions

    @classmethod
    def wants_gradients(cls, options: Settings) -> bool:
        """For Fisher information."""
        return cast(KVQuantOptions, options).fisher

    @classmethod
    def learn(cls, options: Settings, side: Side, samples: Samples, seed: int) -> State:
        """Levels (2**bits,) of each layer; for keys ranges `low` and `high` (Hkv * D,) and rotary frequencies."""
        options = cast(KVQuantOptions, options)
        state: dict[str, Tensor] = {}
        for layer in range(len(samples.of(side))):
            rows = _rows(still(samples, side, layer)[None])[0]  # (N, Hkv * D)
            if side == "keys":
                low, high = _quantiles(rows, options.outliers / 2)
                outlying = (rows < low) | (rows > high)
                state |= {f"{layer}.low": low, f"{layer}.high": high}
                rotary = still_rotary(samples, side, layer)
                assert rotary is not None
                state[f"{layer}.frequencies"] = rotary.frequencies
            else:
                outlying = outermost(rows, options.outliers)
                low, high = _ends(rows, outlying)
            zero, reach = (high + low) / 2, (high - low) / 2
            numbers = ((rows - zero) / safe(reach))[~outlying]
            costs = _rows(fisher(samples, side, layer)[None])[0] if options.fisher else torch.ones_like(rows)
            found = weighted_kmeans(
                numbers[None, :, None],
                costs[~outlying][None],
                options.bits,
                options.iterations,
                seed,
                largest=_NUMBERS,
            )
            state[f"{layer}.levels"] = found.flatten().sort().values
        return state

    def encode(self, layer: int, vectors: Tensor, positions: Tensor) -> Planes:
        """Codes (B, T, Hkv, D), values' zeros and reaches (B, T, 1), outliers as `sparse_planes` has them."""
        Hkv = vectors.shape[1]
        if self.side == "keys":
            vectors = Rotary(self.of_layer(layer, "frequencies")).take_off(vectors, positions)
        rows = _rows(vectors)
        planes: dict[str, Plane] = {}
        if self.side == "keys":
            low, high = self.of_layer(layer, "low"), self.of_layer(layer, "high")
            outlying = (rows < low) | (rows > high)
            zero, reach = (high + low) / 2, (high - low) / 2
        else:
            outlying = outermost(rows, self.options.outliers)
            low, high = _ends(rows, outlying)
            zero, reach = half((high + low) / 2), half((high - low) / 2)
            planes = {"zeros": Plane(zero), "reaches": Plane(reach)}
        even = (rows - zero.to(rows)) / safe(reach.to(rows))
        codes = nearest_level(even, self.of_layer(layer, "levels")).unflatten(-1, (Hkv, -1))
        if self.options.outliers:
            planes |= sparse_planes(rows, outlying)
        return {"codes": Plane(codes, self.options.bits), **planes}

    def decode(self, layer: int, planes: Planes, positions: Tensor) -> Tensor:
        """Levels in their ranges, outliers in their places, keys turned to where they stand."""
        codes = planes["codes"].values
        if self.side == "keys":
            low, high = self.of_layer(layer, "low"), self.of_layer(layer, "high")
            zero, reach = (high + low) / 2, (high - low) / 2
        else:
            zero, reach = planes["zeros"].values.float(), planes["reaches"].values.float()
        rows = self.of_layer(layer, "levels")[codes.flatten(-2).long()] * reach + zero
        found = put_sparse(rows, planes).unflatten(-1, codes.shape[-2:]).transpose(1, 2)  # (B, Hkv, T, D)
        return Rotary(self.of_layer(layer, "frequencies")).turn(found, positions) if self.side == "keys" else found


def outermost(rows: Tensor, share: float) -> Tensor:
    """(..., W) bool: the largest and the least numbers of each row (..., W), `share` in all: at either end those that
    are past the quantile of share / 2 (between order statistics, linearly), so at least one; none for share 0.
    """
    chosen = torch.zeros_like(rows, dtype=torch.bool)
    if not share:
        return chosen
    last = rows.shape[-1] - 1
    count = last - math.floor(last * (1 - share / 2) + 1e-9) or 1
    for largest in (True, False):
        chosen.scatter_(-1, rows.topk(min(count, last + 1), -1, largest=largest).indices, True)
    return chosen


def _ends(rows: Tensor, outlying: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest (..., 1) of what is no outlier; 0 where nothing is left."""
    low = rows.masked_fill(outlying, torch.inf).amin(-1, keepdim=True)
    high = rows.masked_fill(outlying, -torch.inf).amax(-1, keepdim=True)
    return low.masked_fill(low == torch.inf, 0), high.masked_fill(high == -torch.inf, 0)


def _quantiles(rows: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Quantiles `share` and 1 - share (W,) of rows (N, W), linear between order statistics."""
    parts = [column.quantile(torch.tensor([share, 1 - share]), 0) for column in rows.split(64, -1)]  # has a limit
    found = torch.cat(parts, -1)
    return found[0], found[1]


def _rows(vectors: Tensor) -> Tensor:
    """(B, Hkv, T, D) -> (B, T, Hkv * D): what a token has in all heads."""
    return vectors.transpose(1, 2).flatten(2)
