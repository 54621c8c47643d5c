"""The commands whose cells a sweep runs: what a cell's settings are, and which call measures it."""

from __future__ import annotations

import time
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pqkv.config import BenchConfig, EvalConfig, Settings, digest_of
from pqkv.errors import ConfigError
from pqkv.sweep.cells import SweepCell

if TYPE_CHECKING:
    from pqkv.lab.config import LabConfig
    from pqkv.quality.cell_run import Shared
    from pqkv.record import Record, RecordStore

CommandName = Literal["eval", "lab", "bench", "end-to-end"]
Report = Callable[[str, int, int], None]
_SIZES = {"context", "windows", "lengths", "batch", "repeats", "new_tokens", "seed"}  # how much, not what


@dataclass(slots=True)
class Kept:
    """What a process keeps from one cell for the next: the model it loaded, and what loading took in seconds."""

    key: tuple[Any, ...] = ()
    shared: Shared | None = None
    loading: float = 0.0

    def model(self, config: Settings) -> Shared:
        """The model of a configuration, loaded unless the cell before had it."""
        from pqkv.lm import load_model
        from pqkv.lm.rope_variant import rope_variant
        from pqkv.quality.cell_run import Shared

        model, dtype, device, device_map, rope, factor = key = self._named(config)
        if self.shared is None or key != self.key:
            self.shared, start = None, time.perf_counter()
            variant = rope_variant(rope or "default", factor)
            self.shared, self.key = Shared(load_model(model, dtype, device, device_map, variant)), key
            self.loading += time.perf_counter() - start
        return self.shared

    @staticmethod
    def _named(config: Settings) -> tuple[Any, ...]:
        """What a model is loaded by; a lab has no device map and no rotary embedding of its own."""
        return tuple(
            getattr(config, name, None) for name in ("model", "dtype", "device", "device_map", "rope", "rope_factor")
        )


Run = Callable[[Any, "RecordStore", Kept, Report], "Iterator[Record]"]


@dataclass(frozen=True, slots=True)
class Command:
    """How a sweep runs one command. `timed`: its figures are times, so each cell gets a process of its own."""

    name: CommandName
    settings: Callable[[], type[Settings]]
    run: Run
    size: Callable[[Any], tuple[int, int]]  # tokens of a sequence, and of everything that is run
    alike: Sequence[str]
    timed: bool = False
    always: dict[str, Any] = field(default_factory=dict)
    never: Sequence[str] = ()

    def cell(self, values: dict[str, Any], varied: dict[str, Any], run: int, source: str) -> SweepCell:
        """A cell of these settings, validated; raises `ConfigError` for those the command does not take."""
        kind = self.settings()
        for name in self.never:
            if name in values:
                raise ConfigError(f"{source}: command '{self.name}' has no setting {name}")
        given = {name: _as_tuple(kind, name, value) for name, value in (self.always | _heads(self, values)).items()}
        where = ", ".join(f"{name} {value}" for name, value in varied.items())
        config = kind.parse(given, source=f"{source}, {self.name} cell of {where}" if where else source)
        whole, settings = config.model_dump(mode="json"), config.model_dump(mode="json", exclude_defaults=True)
        context, tokens = self.size(config)
        what = [self.name, *(whole.get(name) for name in self.alike)]
        same = digest_of([self.name, {name: value for name, value in settings.items() if name not in _SIZES}])
        return SweepCell(
            self.name, settings, varied, run, context, tokens, (same, digest_of(what), digest_of(what[:4]))
        )

    def configuration(self, settings: dict[str, Any]) -> Settings:
        """The configuration of a cell's settings."""
        kind = self.settings()
        return kind.parse({name: _as_tuple(kind, name, value) for name, value in settings.items()}, source=self.name)


def _evaluate(config: EvalConfig, store: RecordStore, kept: Kept, report: Report) -> Iterator[Record]:
    from pqkv.quality.cells import check_something_coded
    from pqkv.quality.evaluate import evaluate

    check_something_coded(config)
    return evaluate(config, store, report=lambda now: report(now.stage, now.done, now.total), shared=kept.model(config))


def _lab(config: LabConfig, store: RecordStore, kept: Kept, report: Report) -> Iterator[Record]:
    from pqkv.lab.run import run_lab

    return (record for _, record in run_lab(config, store, report=report, shared=kept.model(config)))


def _bench(config: BenchConfig, store: RecordStore, kept: Kept, report: Report) -> Iterator[Record]:
    if config.end_to_end:
        from pqkv.speed.end_to_end import end_to_end

        return end_to_end(config, store, report=report)
    if config.breakdown:
        from pqkv.speed.breakdown import breakdown

        return breakdown(config, store, report=report)
    from pqkv.speed.bench import bench

    return bench(config, store, report=report)


def _lab_settings() -> type[Settings]:
    from pqkv.lab.config import LabConfig

    return LabConfig


def _eval_size(config: EvalConfig) -> tuple[int, int]:
    ways = len(config.codebooks or config.codec or config.bits) * len(config.mode)
    return max(config.context), sum(config.context) * (config.windows or 8) * ways * (1 + config.control)


def _lab_size(config: LabConfig) -> tuple[int, int]:
    one = sum(e.context[0] * (e.windows or 8) for e in config.evaluations())
    return max(config.context), one * len(config.all_methods())


def _bench_size(config: BenchConfig) -> tuple[int, int]:
    every = [length * batch for length in config.lengths for batch in config.batch]
    if config.end_to_end:
        every = [tokens + config.new_tokens * batch for tokens in every for batch in config.batch]
    return max(every), sum(every) * config.repeats * max(1, len(config.bits))


def _heads(command: Command, values: dict[str, Any]) -> dict[str, Any]:
    """`pqkv bench --model` names heads; `--end-to-end` the model itself, in three runs unless told otherwise."""
    if command.name == "end-to-end":
        return {"repeats": 3, **values}
    if command.name == "bench" and values.get("model") is not None:
        from pqkv.lm.shapes import heads_of

        return {**heads_of(str(values["model"])), **values}
    return values


COMMANDS: dict[str, Command] = {
    "eval": Command("eval", lambda: EvalConfig, _evaluate, _eval_size, ("model", "dtype", "device", "mode", "metrics")),
    "lab": Command("lab", _lab_settings, _lab, _lab_size, ("model", "dtype", "device", "exact")),
    "bench": Command(
        "bench", lambda: BenchConfig, _bench, _bench_size, ("heads", "kv_heads", "head_dim", "dtype", "backend"),
        timed=True, never=("end_to_end", "new_tokens"),
    ),
    "end-to-end": Command(
        "end-to-end", lambda: BenchConfig, _bench, _bench_size, ("model", "dtype", "device", "backend"),
        timed=True, always={"end_to_end": True}, never=("end_to_end", "breakdown", "heads", "kv_heads", "head_dim"),
    ),
}  # fmt: skip


def _as_tuple(kind: type[Settings], name: str, value: object) -> object:
    """One value of a setting that takes several stands for a list of it."""
    known = kind.model_fields.get(name)
    if known is None or isinstance(value, list | tuple | dict) or value is None:
        return value
    kinds = (known.annotation, *(typing.get_args(known.annotation) if _is_union(known.annotation) else ()))
    return (value,) if any(typing.get_origin(one) is tuple for one in kinds) else value


def _is_union(annotation: object) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)
