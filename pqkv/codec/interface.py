"""The one interface for every way of coding keys and values.

The unit is the set of layers, as some recipes look across them. A codec says what it keeps of vectors (`encode`, in
planes) and what it makes of that again (`decode`); what it takes is measured from the planes' bytes, never declared.
Codecs know vectors and positions, and no model: what they learn from is a `Samples`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from pqkv.codec.planes import Plane, Planes
from pqkv.codec.samples import Samples
from pqkv.config import Settings
from pqkv.errors import ConfigError

Pair = tuple[Tensor, Tensor]
State = Mapping[str, Tensor]  # what was learnt: named tensors
Side = str  # "keys" or "values"


class Codec(ABC):
    """A way of coding the keys and values of all coded layers. Vectors are (B, Hkv, T, D), keys after rotary embedding;
    `positions` (T,) int64 are those of the T tokens; `below` is what the layer underneath was restored to, None in the
    first layer and for codecs that do not look (`looks_below`).
    """

    looks_below: bool = False
    group: int = 1  # tokens that are coded together; a shorter last group is coded as it is

    @abstractmethod
    def encode(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor, below: Pair | None) -> Planes:
        """What is kept of the tokens: planes named `keys.*`, `values.*`, or otherwise where both share one."""

    @abstractmethod
    def decode(self, layer: int, planes: Planes, positions: Tensor, below: Pair | None) -> Pair:
        """What attention is given in place of the vectors that were encoded, float32 (float64 from float64)."""

    def restore(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor, below: Pair | None = None) -> Pair:
        """Encode and decode at once. Codecs override it only to be faster, never to differ."""
        return self.decode(layer, self.encode(layer, keys, values, positions, below), positions, below)

    def fixed_bytes(self) -> int:
        """Bytes that do not grow with tokens: codebooks, rotations, means, as they are held."""
        return 0

    @abstractmethod
    def to(self, device: torch.device) -> Codec:
        """The codec with what it learnt on another device."""


class Learnt:
    """What codecs with options have in common: where the recipe is from, and what they learn from samples."""

    Options: ClassVar[type[Settings]] = Settings
    calibrated: ClassVar[str] = ""  # what it learns, in a few words; empty for nothing
    recipe: ClassVar[int] = 0  # raised when what it learns changes, so that what was kept before is not taken for it
    source: ClassVar[str] = ""
    state: State

    @classmethod
    def learns(cls, options: Settings) -> bool:
        """Whether it learns from samples under these options."""
        return bool(cls.calibrated)

    @classmethod
    def wants_gradients(cls, options: Settings) -> bool:
        """Whether samples must hold gradients, which take a backward pass over the calibration text."""
        return False

    def fixed_bytes(self) -> int:
        """Bytes of what was learnt; what is shared is counted once."""
        return state_bytes(self.state)

    def on(self, device: torch.device) -> State | None:
        """What was learnt on another device; None where it is there."""
        if all(tensor.device == device for tensor in self.state.values()):
            return None
        return {name: tensor.to(device) for name, tensor in self.state.items()}


class WholeCodec(Learnt, Codec):
    """A codec of both sides, or across layers, that has `Options`, learns a `State` and is made of both."""

    def __init__(self, options: Settings, state: State) -> None:
        self.options, self.state = options, state

    @classmethod
    def learn(cls, options: Settings, samples: Samples, seed: int) -> State:
        """Tensors by name, those of a layer named `<layer>.<name>`."""
        return {}

    def to(self, device: torch.device) -> Self:
        """The codec with what it learnt on another device."""
        moved = self.on(device)
        return self if moved is None else type(self)(self.options, moved)


class SideCodec(Learnt, ABC):
    """A way of coding one side, keys or values. A subclass has `Options`, learns a `State` from samples of its side
    with `learn` and is made of both.
    """

    sides: ClassVar[tuple[Side, ...]] = ("keys", "values")  # that it can code
    group: int = 1

    def __init__(self, options: Settings, side: Side, state: State) -> None:
        self.options, self.side, self.state = options, side, state

    @classmethod
    def learn(cls, options: Settings, side: Side, samples: Samples, seed: int) -> State:
        """Tensors by name, those of a layer named `<layer>.<name>`."""
        return {}

    @classmethod
    def learnt(cls, options: Settings, side: Side, samples: Samples, seed: int = 0) -> Self:
        """Learn and make."""
        return cls(options, side, cls.learn(options, side, samples, seed))

    @abstractmethod
    def encode(self, layer: int, vectors: Tensor, positions: Tensor) -> Planes:
        """What is kept of vectors (B, Hkv, T, D)."""

    @abstractmethod
    def decode(self, layer: int, planes: Planes, positions: Tensor) -> Tensor:
        """The vectors restored, (B, Hkv, T, D)."""

    def restore(self, layer: int, vectors: Tensor, positions: Tensor) -> Tensor:
        """Encode and decode at once."""
        return self.decode(layer, self.encode(layer, vectors, positions), positions)

    def to(self, device: torch.device) -> Self:
        """The codec with what it learnt on another device."""
        moved = self.on(device)
        return self if moved is None else type(self)(self.options, self.side, moved)

    def of_layer(self, layer: int, name: str) -> Tensor:
        """A learnt tensor."""
        return self.state[f"{layer}.{name}"]


class Exact(SideCodec):
    """Vectors as they are, in their own dtype: what stands beside a side that is coded alone."""

    source = "the cache as it is"

    def encode(self, layer: int, vectors: Tensor, positions: Tensor) -> Planes:
        """One plane."""
        return {"vectors": Plane(vectors)}

    def decode(self, layer: int, planes: Planes, positions: Tensor) -> Tensor:
        """The plane."""
        return planes["vectors"].values


class Sides(Codec):
    """A codec for keys and one for values, neither of which sees the other side or another layer."""

    def __init__(self, keys: SideCodec, values: SideCodec) -> None:
        self.keys, self.values = keys, values
        for codec, side in ((keys, "keys"), (values, "values")):
            if side not in codec.sides:
                raise ConfigError(f"{type(codec).__name__} codes {' and '.join(codec.sides)}, not {side}")
        larger, smaller = max(keys.group, values.group), min(keys.group, values.group)
        if larger % smaller:
            raise ConfigError(f"keys coded {keys.group} tokens at a time and values {values.group} share no page")
        self.group = larger

    def encode(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor, below: Pair | None) -> Planes:
        """Both sides' planes under their names."""
        parts = {
            "keys": self.keys.encode(layer, keys, positions),
            "values": self.values.encode(layer, values, positions),
        }
        return {f"{side}.{name}": plane for side, planes in parts.items() for name, plane in planes.items()}

    def decode(self, layer: int, planes: Planes, positions: Tensor, below: Pair | None) -> Pair:
        """Each side from its planes."""
        return (
            self.keys.decode(layer, _of(planes, "keys"), positions),
            self.values.decode(layer, _of(planes, "values"), positions),
        )

    def fixed_bytes(self) -> int:
        """Of both."""
        return self.keys.fixed_bytes() + self.values.fixed_bytes()

    def to(self, device: torch.device) -> Codec:
        """Both."""
        return Sides(self.keys.to(device), self.values.to(device))


def state_bytes(state: State) -> int:
    """Bytes that tensors take; what several share is counted once, what is expanded as it lies in memory."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.values()}
    return sum(storages.values())


def _of(planes: Planes, side: Side) -> dict[str, Plane]:
    return {name.removeprefix(f"{side}."): plane for name, plane in planes.items() if name.startswith(f"{side}.")}
