"""Which records belong side by side: groups, the order within them, and what tells two like cells apart."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, TypeGuard

from pqkv.codec.catalog import CodecSpec, part_of
from pqkv.derived import with_derived
from pqkv.env import machine_name
from pqkv.errors import ConfigError
from pqkv.record import Record

# Tried in this order until no two cells of a group look alike; any other key of the configs comes after these.
_TELLING = (
    "scope", "residual", "sink_tokens", "page_size", "key_layout", "value_layout", "paged", "backend", "split",
    "dtype", "device", "num_subspaces", "nbits", "seed",
)  # fmt: skip
_OWN_COLUMN = (
    "model",
    "data",
    "bits",
    "mode",
    "context",
    "coded_sinks",
    "floor",
    "codec",
    "window",
    "window_sinks",
    "keep",
    "keep_share",
)


@dataclass(frozen=True, slots=True)
class Cell:
    """A record with its place in a report. `variant` is empty where bits, mode and context say everything."""

    record: Record
    group: str
    shape: str
    mode: str
    context: int | None
    variant: str

    def value(self, metric: str) -> float | None:
        """The value of a metric, or None where this cell has none."""
        found = self.record.metrics.get(metric)
        return None if found is None else found.value


def cells(records: Iterable[Record]) -> list[Cell]:
    """The records in report order: by group, most bits first, then mode, context and variant. Each has the figures that
    follow from its own among its metrics.
    """
    groups, found = _groups(records), []
    for name in sorted(groups):
        members = sorted(groups[name], key=_identity)
        variants = _variants(members)
        ranked = sorted(zip(members, variants, strict=True), key=lambda pair: (*_rank(pair[0]), natural(pair[1])))
        found += [
            Cell(with_derived(record), name, shape_name(record.config), _mode(record), _context(record), variant)
            for record, variant in ranked
        ]
    return found


def shape_name(config: dict[str, Any]) -> str:
    """The code shape in words: `4 bits`, `16 x 8 bits` for 16 subspaces of 8 bits, `exact` for no codes; of a codec its
    name and options, of a noise floor what it rounds.
    """
    if floor := config.get("floor"):
        return str(floor)
    if codec := codec_name(config):
        return codec
    bits, subspaces, nbits = (config.get(key) for key in ("bits", "num_subspaces", "nbits"))
    if _is_number(bits):
        return f"{bits:g} bit{'' if bits == 1 else 's'}" if bits else "exact"
    return f"{subspaces} x {nbits} bits" if subspaces and nbits else "bits not stated"


def bits_of(config: dict[str, Any]) -> float:
    """The bits of a cell; 0 where its configuration has none, or several as an experiment's own kinds may."""
    bits = config.get("bits")
    return float(bits) if _is_number(bits) else 0.0


def codec_name(config: dict[str, Any]) -> str:
    """The codec of a cell as `--codec` takes it; empty for codebooks, and the JSON of what this pqkv does not know."""
    codec = config.get("codec")
    if not isinstance(codec, dict):
        return ""
    try:
        return str(CodecSpec.of(part_of(codec["keys"]), part_of(codec["values"])))
    except (ConfigError, KeyError, TypeError):
        return as_text(codec)


def machine_of(record: Record) -> str:
    """The machine a record was made on: a run on the processor does not bear the name of an idle GPU."""
    on_cpu = record.config.get("device") == "cpu"
    return machine_name({**record.env, "gpus": []} if on_cpu else record.env)


def as_text(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """A configuration value for people: strings bare, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def natural(text: str) -> list[str]:
    """A sorting key that puts 64 before 128."""
    return [part.zfill(12) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def _groups(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by model, text and kind. Texts of one name (each Python has a standard library of its own) are groups of
    their own, named by their digests, so that no line joins cells of two.
    """
    texts: dict[tuple[str, ...], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        config = record.config
        name = as_text(config.get("model", "?")), as_text(config.get("data", "?")), record.kind
        texts[name][as_text(config.get("data_sha256", ""))].append(record)
    found = {}
    for (model, data, kind), by_text in texts.items():
        for digest, own in by_text.items():
            which = f" (text {digest[:8]})" if len(by_text) > 1 and digest else ""
            found[f"{model} on {data}{which}: {kind}"] = own
    return found


def mode_name(config: dict[str, Any]) -> str:
    """The mode of a cell in words: `all-coded, 4 sinks` where the first four tokens stay exact in it, `decode, window
    512 + 4` where rows see the newest 512 and the first 4, `decode, keep random 0.25` where that share of a prefill
    stays.
    """
    mode, sinks = as_text(config.get("mode") or ""), config.get("coded_sinks")
    if sinks:
        mode += f", {sinks} sink{'' if sinks == 1 else 's'}"
    beside = f" + {config['window_sinks']}" if config.get("window_sinks") else ""
    if window := config.get("window"):
        mode += f", window {window}{beside}"
    if keep := config.get("keep"):
        mode += f", keep {as_text(keep)} {config.get('keep_share') or 1:.3g}{beside}"
    return mode


def _mode(record: Record) -> str:
    return mode_name(record.config)


def _context(record: Record) -> int | None:
    context = record.config.get("context")
    return int(context) if _is_number(context) else None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rank(record: Record) -> tuple[Any, ...]:
    numbers = [record.config.get(key) for key in ("bits", "num_subspaces", "nbits")]
    return (*(-value if _is_number(value) else 1 for value in numbers), _mode(record), _context(record) or 0)


def _identity(record: Record) -> tuple[str, ...]:
    """An order for records that nothing in a report tells apart, so that it does not depend on how they were read."""
    return (record.digest, machine_of(record), record.started_at, json.dumps(record.model_dump(), sort_keys=True))


def _variants(records: list[Record]) -> list[str]:
    """For each record `key=value` of the fewest keys that tell cells of equal bits, mode and context apart."""
    facts = [_facts(record) for record in records]
    others = sorted({key for fact in facts for key in fact} - set(_TELLING))
    parts: list[tuple[Hashable, ...]] = [
        (record.status, shape_name(record.config), _mode(record), _context(record)) for record in records
    ]
    chosen: list[str] = []
    for key in (*_TELLING, *(other for other in others if other not in ("machine", "commit")), "machine", "commit"):
        if len(set(parts)) == len(parts):
            break
        finer = [(*part, fact.get(key)) for part, fact in zip(parts, facts, strict=True)]
        if len(set(finer)) > len(set(parts)):
            parts, chosen = finer, [*chosen, key]
    return [", ".join(f"{key}={fact[key]}" for key in chosen if key in fact) for fact in facts]


def _facts(record: Record) -> dict[str, str]:
    facts = {key: as_text(value) for key, value in record.config.items() if key not in _OWN_COLUMN}
    facts["machine"] = machine_of(record)
    if commit := record.git.get("commit"):
        facts["commit"] = str(commit)[:8]
    return facts
