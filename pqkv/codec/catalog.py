"""Every way of coding by name, and specifications of them: `kivi:bits=2`, `composed:mean=turning/composed:gain=true`.

A codec is one file and one line of the table here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pqkv.codec.composed import Composed
from pqkv.codec.interface import Codec, Exact, Side, SideCodec, Sides, State, WholeCodec
from pqkv.codec.peers.aqua import Aqua
from pqkv.codec.peers.cq import CQ
from pqkv.codec.peers.fp8 import Fp8
from pqkv.codec.peers.integer import Integer
from pqkv.codec.peers.kivi import Kivi
from pqkv.codec.peers.kvarn import KVarN
from pqkv.codec.peers.kvquant import KVQuant
from pqkv.codec.peers.million import Million
from pqkv.codec.peers.mxfp4 import Mxfp4
from pqkv.codec.peers.nsn import NSN
from pqkv.codec.peers.nvfp4 import Nvfp4
from pqkv.codec.peers.oscar import Oscar
from pqkv.codec.peers.q4_0 import Q4_0
from pqkv.codec.peers.q8_0 import Q8_0
from pqkv.codec.peers.turboquant import TurboQuant
from pqkv.codec.predicted import Predicted
from pqkv.codec.samples import Samples
from pqkv.config import Settings
from pqkv.errors import ConfigError

CODECS: dict[str, type[SideCodec] | type[WholeCodec]] = {
    "exact": Exact,
    "composed": Composed,
    "predicted": Predicted,
    "int": Integer,
    "kivi": Kivi,
    "q8_0": Q8_0,
    "q4_0": Q4_0,
    "fp8": Fp8,
    "mxfp4": Mxfp4,
    "nvfp4": Nvfp4,
    "turboquant": TurboQuant,
    "kvquant": KVQuant,
    "cq": CQ,
    "oscar": Oscar,
    "kvarn": KVarN,
    "aqua": Aqua,
    "nsn": NSN,
    "million": Million,
}


@dataclass(frozen=True, slots=True)
class Part:
    """A codec by name, with its options."""

    name: str
    options: Settings

    @property
    def kind(self) -> type[SideCodec] | type[WholeCodec]:
        """Its class."""
        return CODECS[self.name]

    @property
    def learns(self) -> bool:
        """Whether it learns from samples."""
        return self.kind.learns(self.options)

    def __str__(self) -> str:
        given = self.options.model_dump(mode="json", exclude_defaults=True)
        return self.name + (":" + ",".join(f"{k}={_written(v)}" for k, v in given.items()) if given else "")


@dataclass(frozen=True, slots=True)
class Learning:
    """A part that learns, for the side it codes; None for one of both."""

    part: Part
    side: Side | None

    @property
    def prefix(self) -> str:
        """What the names of its tensors begin with."""
        return self.side or "both"

    @property
    def gradients(self) -> bool:
        """Whether it learns from gradients too, which take a backward pass."""
        return self.part.kind.wants_gradients(self.part.options)

    def config(self) -> dict[str, Any]:
        """For digests."""
        return {"side": self.side, "codec": self.part.name, **self.part.options.model_dump(mode="json")}

    def learn(self, samples: Samples, seed: int) -> State:
        """Tensors by name."""
        kind = self.part.kind
        if self.side is None:
            assert issubclass(kind, WholeCodec)
            return kind.learn(self.part.options, samples, seed)
        assert issubclass(kind, SideCodec)
        return kind.learn(self.part.options, self.side, samples, seed)


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """What codes keys and what codes values; the same part twice for a codec of both."""

    keys: Part
    values: Part

    @classmethod
    def parse(cls, text: str) -> CodecSpec:
        """`NAME:option=value,...` for both sides, or `KEYS/VALUES`. Raises `ConfigError` that says what is known."""
        parts = [_part(part.strip()) for part in text.split("/")]
        if len(parts) > 2:
            raise ConfigError(f"codec '{text}': one part, or keys/values")
        return cls.of(parts[0], parts[-1])

    @classmethod
    def of(cls, keys: Part, values: Part) -> CodecSpec:
        """Raises `ConfigError` where one side alone is given a codec of both."""
        if keys != values:
            for part in (keys, values):
                if issubclass(part.kind, WholeCodec):
                    raise ConfigError(f"codec {part.name} codes keys and values together: give it alone")
        return cls(keys, values)

    def __str__(self) -> str:
        return str(self.keys) if self.keys == self.values else f"{self.keys}/{self.values}"

    @property
    def calibrated(self) -> bool:
        """Whether it learns from samples."""
        return self.keys.learns or self.values.learns

    def config(self) -> dict[str, Any]:
        """For digests and records: names and all options."""
        sides = {"keys": self.keys, "values": self.values}
        return {side: {"codec": p.name, **p.options.model_dump(mode="json")} for side, p in sides.items()}

    def learnings(self) -> list[Learning]:
        """What has to be learnt, each apart."""
        if issubclass(self.keys.kind, WholeCodec):
            return [Learning(self.keys, None)] if self.keys.learns else []
        sides: list[tuple[Side, Part]] = [("keys", self.keys), ("values", self.values)]
        return [Learning(part, side) for side, part in sides if part.learns]

    def learn(self, samples: Samples, seed: int = 0) -> State:
        """All of `learnings`: what `make` takes."""
        found: dict[str, Tensor] = {}
        for learning in self.learnings():
            found |= {f"{learning.prefix}.{name}": t for name, t in learning.learn(samples, seed).items()}
        return found

    def make(self, state: State) -> Codec:
        """The codec with what it learnt."""
        if issubclass(kind := self.keys.kind, WholeCodec):
            return kind(self.keys.options, _under("both", state))
        return Sides(_side(self.keys, "keys", state), _side(self.values, "values", state))


def _side(part: Part, side: Side, state: State) -> SideCodec:
    assert issubclass(part.kind, SideCodec)
    return part.kind(part.options, side, _under(side, state))


def _under(prefix: str, state: State) -> State:
    return {name.removeprefix(f"{prefix}."): t for name, t in state.items() if name.startswith(f"{prefix}.")}


def part_of(given: dict[str, Any]) -> Part:
    """A part from a table: `codec` is its name, the rest its options."""
    options = dict(given)
    name = options.pop("codec", None)
    if name not in CODECS:
        raise ConfigError(f"no codec '{name}'; there are {', '.join(CODECS)}")
    return Part(name, CODECS[name].Options.parse(options, source=f"codec {name}"))


def _part(text: str) -> Part:
    name, _, rest = text.partition(":")
    given: dict[str, Any] = {"codec": name}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"codec '{text}': '{item}' is no option=value")
        given[key.strip().replace("-", "_")] = _read(value.strip())
    return part_of(given)


def _read(value: str) -> Any:  # noqa: ANN401 - whatever the options take
    """`2`, `true` or `4+3+2` (a list), else the text."""
    if "+" in value:
        return [_read(item) for item in value.split("+")]
    try:
        return json.loads(value)
    except ValueError:
        return value


def _written(value: Any) -> str:  # noqa: ANN401 - as `_read`
    if isinstance(value, list):
        return "+".join(map(_written, value))
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
