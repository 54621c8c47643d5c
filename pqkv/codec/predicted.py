"""The composed codec on what the layer underneath does not predict: the limit of looking across layers.

AQUA-KV (arXiv 2501.19392) takes linear predictions off keys and values and rounds the rest on a grid; here the rest is
coded by composed parts, keys in the queries' metric. It is for measuring: a score on codes would need the keys of every
layer underneath, turned to every position, so no look-up serves it.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pqkv.codec.composed import Composed, ComposedOptions, learn_layer
from pqkv.codec.geometry import unknown_bits
from pqkv.codec.interface import Pair, State, WholeCodec
from pqkv.codec.linear import linear
from pqkv.codec.planes import Plane, Planes
from pqkv.codec.rotary import Rotary
from pqkv.codec.samples import Samples
from pqkv.codec.transforms import Metric, Transform
from pqkv.config import Settings
from pqkv.errors import ConfigError


class PredictedOptions(Settings):
    """Of both sides; the layer that nothing predicts can have bits of its own."""

    bits: float = Field(4, description="of codes, an element")
    first_bits: float | None = Field(None, description="of the first layer, which nothing predicts; absent: bits")
    metric: Metric = Field("full", description="of keys' errors")
    transform: Transform = Field("klt", description="of keys' residuals")
    universal: bool = Field(True, description="values: gain, Hadamard matrix and a codebook that nobody trained")

    @model_validator(mode="after")
    def _check(self) -> PredictedOptions:
        if problem := unknown_bits(self.bits, self.first_bits):
            raise ValueError(problem)
        return self


class Predicted(WholeCodec):
    """Keys are predicted, before rotary embedding, from the keys and values that the layer underneath is restored to;
    values from those and from the layer's own restored keys. Predictors are ridge regressions on what will be
    decoded, one layer after another.
    """

    Options = PredictedOptions
    calibrated = "linear predictors between layers, frames and centroids"
    source = "pqkv, after AQUA-KV"
    recipe = 1  # values see the keys underneath
    looks_below = True

    options: PredictedOptions

    def __init__(self, options: Settings, state: State) -> None:
        super().__init__(options, state)
        sides = {"keys": self._key_options(), "values": self._value_options()}
        self._sides = {
            side: Composed(
                own,
                side,
                {name.removeprefix(f"{side}."): t for name, t in state.items() if name.startswith(f"{side}.")},
            )
            for side, own in sides.items()
        }

    @classmethod
    def learn(cls, options: Settings, samples: Samples, seed: int) -> State:
        """`<side>.<layer>.*` as `Composed` has them, `<layer>.<side>_weight` (in, Hkv * D) and `_bias`, frequencies."""
        if samples.rotary is None or samples.positions is None:
            raise ConfigError("predictions want the positions and the rotary embedding of the samples")
        state: dict[str, Tensor] = {}
        below: Pair | None = None
        positions = samples.positions
        for layer, rotary in enumerate(samples.rotary):
            state[f"{layer}.frequencies"] = rotary.frequencies
            sides = samples.keys[layer][None], samples.values[layer][None]
            restored: list[Tensor] = []
            for side, vectors in zip(("keys", "values"), sides, strict=True):
                codec = cls(options, state)
                seen = codec._seen(layer, below, restored, positions)
                if seen is not None:
                    state[f"{layer}.{side}_weight"], state[f"{layer}.{side}_bias"] = linear(
                        seen, codec._rows(layer, side, vectors, positions)
                    )
                rest = vectors - codec._predicted(layer, side, seen, positions, vectors)
                metric = samples.metric(side)
                own = codec._sides[side].options
                shape = own.shape(layer)
                assert shape is not None
                found = learn_layer(
                    own, shape, rest[0], positions, rotary, None if metric is None else metric[layer], seed
                )
                state |= {f"{side}.{layer}.{name}": tensor for name, tensor in found.items()}
                state |= {f"{side}.{name}": tensor for name, tensor in Composed.universals(own, shape, rest).items()}
                codec = cls(options, state)
                restored.append(codec._sides[side].restore(layer, rest, positions) + (vectors - rest))
            below = restored[0], restored[1]
        return state

    def encode(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor, below: Pair | None) -> Planes:
        """Planes of both sides' residuals."""
        planes: dict[str, Plane] = {}
        restored: list[Tensor] = []
        for side, vectors in (("keys", keys), ("values", values)):
            seen = self._seen(layer, below, restored, positions)
            predicted = self._predicted(layer, side, seen, positions, vectors)
            own = self._sides[side].encode(layer, vectors - predicted, positions)
            planes |= {f"{side}.{name}": plane for name, plane in own.items()}
            restored.append(self._sides[side].decode(layer, own, positions) + predicted)
        return planes

    def decode(self, layer: int, planes: Planes, positions: Tensor, below: Pair | None) -> Pair:
        """Predictions and what they leave."""
        restored: list[Tensor] = []
        for side in ("keys", "values"):
            own = {name.removeprefix(f"{side}."): p for name, p in planes.items() if name.startswith(f"{side}.")}
            rest = self._sides[side].decode(layer, own, positions)
            seen = self._seen(layer, below, restored, positions)
            restored.append(rest + self._predicted(layer, side, seen, positions, rest))
        return restored[0], restored[1]

    def _key_options(self) -> ComposedOptions:
        given = {"metric": self.options.metric, "transform": self.options.transform}
        return ComposedOptions.parse({**given, "layer_bits": self._layer_bits()})

    def _value_options(self) -> ComposedOptions:
        given = {"gain": True, "transform": "hadamard", "scope": "universal"} if self.options.universal else {}
        return ComposedOptions.parse({**given, "layer_bits": self._layer_bits()})

    def _layer_bits(self) -> tuple[float, ...]:
        first = self.options.bits if self.options.first_bits is None else self.options.first_bits
        return (first, *[self.options.bits] * _LAYERS)

    def _seen(self, layer: int, below: Pair | None, own: list[Tensor], positions: Tensor) -> Tensor | None:
        """(B, T, in): what predictions are made of, the layer's `own` sides among them; None for the first layer."""
        if not layer:
            return None
        if below is None:
            raise ConfigError(
                f"layer {layer} is predicted from the one underneath, which was not coded: code all layers"
            )
        parts = [self._rows(layer - 1, side, x, positions) for side, x in zip(("keys", "values"), below, strict=True)]
        return torch.cat([*parts, *(self._rows(layer, "keys", x, positions) for x in own)], -1)

    def _rows(self, layer: int, side: str, vectors: Tensor, positions: Tensor) -> Tensor:
        """Vectors (B, Hkv, T, D) of all heads side by side, keys before rotary embedding: (B, T, Hkv * D) float32."""
        still = vectors.float()
        if side == "keys":
            still = Rotary(self.state[f"{layer}.frequencies"]).take_off(still, positions)
        return still.transpose(1, 2).flatten(2)

    def _predicted(self, layer: int, side: str, seen: Tensor | None, positions: Tensor, like: Tensor) -> Tensor:
        """(B, Hkv, T, D), keys turned to their positions."""
        if seen is None:
            return torch.zeros_like(like, dtype=torch.float32)
        rows = seen @ self.state[f"{layer}.{side}_weight"] + self.state[f"{layer}.{side}_bias"]
        vectors = rows.unflatten(-1, (like.shape[1], -1)).transpose(1, 2)
        if side == "keys":
            vectors = Rotary(self.state[f"{layer}.frequencies"]).turn(vectors, positions)
        return vectors


_LAYERS = 256  # more than any model has: bits of every layer behind the first
