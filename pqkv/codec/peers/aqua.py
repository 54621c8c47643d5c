"""AQUA-KV with HIGGS: what the layer underneath does not predict, on a grid for a Gaussian."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pqkv.codec.gaussian import gaussian_codebook
from pqkv.codec.interface import Pair, State, WholeCodec
from pqkv.codec.linear import linear
from pqkv.codec.nearest import nearest
from pqkv.codec.peers.minmax import half, safe
from pqkv.codec.planes import Plane, Planes
from pqkv.codec.rotary import Rotary
from pqkv.codec.samples import Samples
from pqkv.codec.transforms import hadamard
from pqkv.config import Settings
from pqkv.errors import ConfigError

_GROUP = 1024  # channels of all heads that share a norm, at most


class AquaOptions(Settings):
    """Published with grids of 16, 64 and 256 points in two dimensions, of 256 in the first layer."""

    bits: Literal[2, 3, 4] = Field(2, description="of an element")
    first_bits: Literal[2, 3, 4] = Field(4, description="of the first layer, which nothing predicts")


class Aqua(WholeCodec):
    """Keys are taken as they are before rotary embedding, all heads of a token as one vector. From the second layer on
    linear predictors are taken off: of keys, from the keys that the layer underneath decodes to; of values, from the
    layer's own decoded keys and the decoded values underneath. The rest is coded by `grid_codes`.
    """

    Options = AquaOptions
    calibrated = "linear predictors between layers"
    source = "AQUA-KV (arXiv 2501.19392) with HIGGS"
    looks_below = True

    options: AquaOptions

    @classmethod
    def learn(cls, options: Settings, samples: Samples, seed: int) -> State:
        """Layer after layer, so that predictors learn from what will be decoded: `keys.weight` (in, Hkv * D),
        `keys.bias`, the same of values, and rotary frequencies.
        """
        if samples.rotary is None or samples.positions is None:
            raise ConfigError("aqua wants the positions and the rotary embedding of the samples")
        state: dict[str, Tensor] = {}
        below: Pair | None = None
        for layer, rotary in enumerate(samples.rotary):
            keys, values = samples.keys[layer][None], samples.values[layer][None]
            state[f"{layer}.frequencies"] = rotary.frequencies
            codec = cls(options, state)
            k, v = codec._rows(layer, keys, values, samples.positions)
            under = codec._under(layer, below, samples.positions)
            if under is not None:
                state[f"{layer}.keys.weight"], state[f"{layer}.keys.bias"] = linear(under[0], k)
                decoded = codec._decoded(layer, "keys", codec._coded(layer, "keys", k, under[0]), under[0])
                seen = torch.cat([decoded, under[1]], -1)
                state[f"{layer}.values.weight"], state[f"{layer}.values.bias"] = linear(seen, v)
            below = codec.restore(layer, keys, values, samples.positions, below)
        return state

    def encode(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor, below: Pair | None) -> Planes:
        """Of both sides codes (B, T, Hkv, D / 2) and norms (B, T, groups)."""
        if keys.shape[-1] % 2:
            raise ConfigError(f"aqua codes pairs of channels, and a head has {keys.shape[-1]}: take another codec")
        k, v = self._rows(layer, keys, values, positions)
        under = self._under(layer, below, positions)
        coded = self._coded(layer, "keys", k, None if under is None else under[0])
        found = {"keys": coded}
        if under is None:
            found["values"] = self._coded(layer, "values", v, None)
        else:
            decoded = self._decoded(layer, "keys", coded, under[0])
            found["values"] = self._coded(layer, "values", v, torch.cat([decoded, under[1]], -1))
        width, planes = 2 * self._bits(layer), {}
        for side, (codes, norms) in found.items():
            planes[f"{side}.codes"] = Plane(codes.unflatten(-1, (keys.shape[1], -1)), width)
            planes[f"{side}.norms"] = Plane(norms)
        return planes

    def decode(self, layer: int, planes: Planes, positions: Tensor, below: Pair | None) -> Pair:
        """Predictions and what they leave."""
        heads = planes["keys.codes"].values.shape[2]
        coded = {s: (planes[f"{s}.codes"].values.flatten(2), planes[f"{s}.norms"].values) for s in ("keys", "values")}
        under = self._under(layer, below, positions)
        keys = self._decoded(layer, "keys", coded["keys"], None if under is None else under[0])
        seen = None if under is None else torch.cat([keys, under[1]], -1)
        values = self._decoded(layer, "values", coded["values"], seen)
        k, v = (rows.unflatten(-1, (heads, -1)).transpose(1, 2) for rows in (keys, values))
        return Rotary(self.state[f"{layer}.frequencies"]).turn(k, positions), v

    def _bits(self, layer: int) -> int:
        return self.options.bits if layer else self.options.first_bits

    def _rows(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> Pair:
        """Keys before rotary embedding and values, (B, T, Hkv * D) each."""
        still = Rotary(self.state[f"{layer}.frequencies"]).take_off(keys.float(), positions)
        return still.transpose(1, 2).flatten(2), values.float().transpose(1, 2).flatten(2)

    def _under(self, layer: int, below: Pair | None, positions: Tensor) -> Pair | None:
        """What the layer underneath was restored to, as rows; None for the first layer."""
        if not layer:
            return None
        if below is None:
            raise ConfigError(
                f"aqua predicts layer {layer} from the one underneath, which was not coded: code all layers"
            )
        return self._rows(layer - 1, *below, positions)

    def _predicted(self, layer: int, side: str, seen: Tensor | None) -> Tensor | float:
        if seen is None:
            return 0.0
        return seen @ self.state[f"{layer}.{side}.weight"] + self.state[f"{layer}.{side}.bias"]

    def _coded(self, layer: int, side: str, rows: Tensor, seen: Tensor | None) -> Pair:
        return grid_codes(rows - self._predicted(layer, side, seen), self._bits(layer))

    def _decoded(self, layer: int, side: str, coded: Pair, seen: Tensor | None) -> Tensor:
        return grid_vectors(*coded, self._bits(layer)) + self._predicted(layer, side, seen)


def grid_codes(rows: Tensor, bits: int) -> Pair:
    """HIGGS: rows (..., W) in groups, turned by a Hadamard matrix and brought to N(0, 1) by their root mean square:
    codes (..., W / 2) of the nearest points of a grid in two dimensions, and norms (..., groups) float16.
    """
    groups = _groups(rows.shape[-1])
    split = rows.unflatten(-1, (groups, -1))
    norms = half(split.square().mean(-1).sqrt())
    turned = split @ hadamard(split.shape[-1]).to(rows) / safe(norms.to(rows))[..., None]
    grid = gaussian_codebook(2, 2 * bits).to(rows)[None, None]
    return nearest(turned.reshape(1, -1, 2), grid).reshape(*rows.shape[:-1], -1), norms


def grid_vectors(codes: Tensor, norms: Tensor, bits: int) -> Tensor:
    """What `grid_codes` stand for, (..., W) float32."""
    grid = gaussian_codebook(2, 2 * bits).to(codes.device)
    split = grid[codes.long()].flatten(-2).unflatten(-1, (norms.shape[-1], -1))
    return (split @ hadamard(split.shape[-1]).to(split) * norms.float()[..., None]).flatten(-2)


def _groups(width: int) -> int:
    """How many groups of even size, of at most 1,024 channels, a row makes: as few as there can be."""
    return next(n for n in range(1, width + 1) if width % n == 0 and width // n <= _GROUP and width // n % 2 == 0)
