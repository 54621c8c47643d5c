"""What a lab measures: one TOML file."""

from __future__ import annotations

import itertools
import random
from typing import Any

from pydantic import Field, field_validator, model_validator

from pqkv.codec.catalog import CodecSpec, Part, part_of
from pqkv.config import Bos, CodecCalibration, Dtype, EvalConfig, Settings, Split
from pqkv.errors import ConfigError

Methods = dict[str, CodecSpec]


class Grid(Settings):
    """Methods that differ in options of one: all combinations of `vary`, or a fraction of them."""

    base: str = Field(description="the method that is varied, as --codec of pqkv eval")
    vary: dict[str, tuple[Any, ...]] = Field(description="`keys.OPTION` or `values.OPTION` and what it takes")
    fraction: float = Field(1.0, gt=0, le=1, description="of the combinations, drawn by the seed")
    each_alone: bool = Field(False, description="the base, and what differs from it in one option, instead of all")


class LabConfig(Settings):
    """`pqkv lab`."""

    model: str = "reference"
    dtype: Dtype = "float32"
    device: str = "cpu"
    texts: tuple[str, ...] = ("stdlib",)
    split: Split | None = None
    bos: Bos = "auto"
    calibration: CodecCalibration = CodecCalibration()
    context: tuple[int, ...] = (1024,)
    windows: tuple[int, ...] = Field((8,), description="of each context, or of all")
    exact: tuple[str, ...] = Field(("4/0",), description="exact tokens, SINKS/NEWEST; 0 newest: every other one coded")
    page_size: int = Field(64, ge=1, le=4096)
    methods: dict[str, str] = Field({}, description="names, and codecs as --codec of pqkv eval takes them")
    grid: dict[str, Grid] = Field({}, description="methods that differ in options of one")
    against: str | None = Field(None, description="the method that the others are compared with, pair by pair")
    seed: int = Field(0, ge=0, lt=2**31)

    @field_validator("exact")
    @classmethod
    def _exact(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for text in given:
            sinks_and_newest(text)
        return given

    @model_validator(mode="after")
    def _check(self) -> LabConfig:
        if len(self.windows) not in (1, len(self.context)):
            raise ValueError(f"{len(self.windows)} numbers of windows for {len(self.context)} contexts")
        if not self.methods and not self.grid:
            raise ValueError("nothing to measure: name methods, or a grid")
        methods = self.all_methods()
        if self.against is not None and self.against not in methods:
            raise ValueError(f"against: there is no method '{self.against}'")
        return self

    def all_methods(self) -> Methods:
        """Names and codecs, in the order of the file; a codec that occurs twice keeps its first name."""
        found: Methods = {}
        seen: set[str] = set()
        named = [(name, CodecSpec.parse(text)) for name, text in self.methods.items()]
        varied = [item for key, grid in self.grid.items() for item in expanded(key, grid, self.seed)]
        for name, spec in named + varied:
            if str(spec) not in seen:
                seen.add(str(spec))
                found[name] = spec
        return found

    def evaluations(self) -> list[EvalConfig]:
        """One for each text, context and choice of exact tokens."""
        return [
            self._evaluation(text, context, windows, exact)
            for text in self.texts
            for context, windows in zip(self.context, self._windows(), strict=True)
            for exact in self.exact
        ]

    def _windows(self) -> tuple[int, ...]:
        return self.windows * len(self.context) if len(self.windows) == 1 else self.windows

    def _evaluation(self, text: str, context: int, windows: int, exact: str) -> EvalConfig:
        sinks, newest = sinks_and_newest(exact)
        settings: dict[str, Any] = {
            "model": self.model,
            "dtype": self.dtype,
            "device": self.device,
            "data": text,
            "split": self.split,
            "bos": self.bos,
            "codec": tuple(str(spec) for spec in self.all_methods().values()),
            "calibration": self.calibration,
            "context": (context,),
            "windows": windows,
            "page_size": self.page_size,
            "metrics": ("perplexity", "agreement", "kld"),
            "seed": self.seed,
        }
        if newest:
            settings |= {"mode": ("exact-schedule",), "sink_tokens": sinks, "residual": newest}
        else:
            settings |= {"mode": ("all-coded",), "coded_sinks": (sinks,)}
        return EvalConfig.parse(settings, source="lab")


def sinks_and_newest(text: str) -> tuple[int, int]:
    """`4/128` -> (4, 128). Raises `ValueError` for anything else."""
    first, _, newest = text.partition("/")
    if not (first.isdecimal() and newest.isdecimal()):
        raise ValueError(f"exact tokens are SINKS/NEWEST, as 4/128, not '{text}'")
    return int(first), int(newest)


def expanded(name: str, grid: Grid, seed: int) -> list[tuple[str, CodecSpec]]:
    """Names and codecs of a grid, its base first where it is not varied away."""
    base = CodecSpec.parse(grid.base)
    for key in grid.vary:
        if key.partition(".")[0] not in ("keys", "values"):
            raise ConfigError(f"grid {name}: vary takes keys.OPTION and values.OPTION, not {key}")
    if grid.each_alone:
        changes = [{}, *({key: value} for key, values in grid.vary.items() for value in values)]
    else:
        changes = [dict(zip(grid.vary, values, strict=True)) for values in itertools.product(*grid.vary.values())]
        count = max(1, round(len(changes) * grid.fraction))
        if count < len(changes):
            kept = sorted(random.Random(seed).sample(range(len(changes)), count))
            changes = [changes[i] for i in kept]
    return [(_label(name, change), _changed(base, change)) for change in changes]


def _label(name: str, change: dict[str, Any]) -> str:
    said = ", ".join(f"{key}={str(v).lower() if isinstance(v, bool) else v}" for key, v in change.items())
    return f"{name}: {said}" if said else name


def _changed(base: CodecSpec, change: dict[str, Any]) -> CodecSpec:
    sides: dict[str, Part] = {"keys": base.keys, "values": base.values}
    for side, part in sides.items():
        own = {key.partition(".")[2]: value for key, value in change.items() if key.startswith(f"{side}.")}
        if own:
            codec = own.pop("codec", part.name)
            kept = part.options.model_dump(mode="json", exclude_defaults=True) if codec == part.name else {}
            sides[side] = part_of({"codec": codec, **kept, **own})
    return CodecSpec.of(sides["keys"], sides["values"])
