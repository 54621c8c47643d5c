"""Ways of taking one decoding step, and the parts of each, timed in turns in one run: their ratios are of the same
rounds, so that what disturbed one disturbed the other. Cells of two runs are nothing to compare.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pqkv.config import BenchConfig
from pqkv.errors import KernelError
from pqkv.kernels import ChosenBackend, get_backend
from pqkv.kernels.parts import part_source
from pqkv.kernels.types import AttentionBackend, Part
from pqkv.record import Record, RecordStore
from pqkv.speed.baselines import exact_contestants
from pqkv.speed.bench import Cell, Report, run_grid
from pqkv.speed.breakdown import WHOLE, part_rows
from pqkv.speed.check import TOLERANCE, relative_error
from pqkv.speed.dequantized import dequantized
from pqkv.speed.synthetic import DecodeInputs, decode_inputs, lengths_of
from pqkv.speed.timing import Contestant, copies_beyond_cache, median_interval, race

DEQUANTIZED = "dequantized, then attended"


@dataclass(frozen=True, slots=True)
class Way:
    """How a step is taken: with another backend than the grid's, with `given` in place of settings of the grid."""

    backend: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median of ratios of rounds, with its 95% interval where there are rounds enough for one."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}x{interval}"


def ratio_of(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Of times of the same rounds."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return Ratio(statistics.median(ratios), *median_interval(ratios))


def paired_grid(
    config: BenchConfig,
    name: str,
    ways: Mapping[str, Way],
    store: RecordStore | None = None,
    *,
    force: bool = False,
    report: Report | None = None,
) -> Iterator[Record]:
    """A record for every cell of the grid, mode "paired `name`". `samples` has the milliseconds of every round by
    "way: part", the whole step among the parts, and of every exact form that ran in all rounds; on a processor also of
    `DEQUANTIZED`, which decodes all keys and values and then multiplies, where codes are all there is.
    `tables["ways"]` has the medians.
    """
    measure = functools.partial(_measure, ways)
    return run_grid(config, measure, store, force=force, report=report, mode=f"paired {name}")


def _measure(
    ways: Mapping[str, Way], config: BenchConfig, cell: Cell, backend: ChosenBackend, device: torch.device,
    bandwidth: Callable[[], float],
) -> dict[str, Any]:  # fmt: skip
    scale, contestants = config.head_dim**-0.5, []
    parts: dict[str, list[Part]] = {}
    read: dict[str, int] = {}
    for name, way in ways.items():
        own, run = config.model_copy(update=dict(way.given)), backend.run
        if way.backend is not None:
            run = get_backend(way.backend)
        cases = _inputs(own, cell, run, device)
        source = part_source(way.backend or backend.name)
        found = [
            source.parts(case.query, case.pages, case.sinks, case.residual, scale=scale, window=own.window)
            for case in cases
        ]
        parts[name], read[name] = found[0], cases[0].read
        half = len(cases) // 2
        calls = [_call(run, case, scale, own.window) for case in cases]
        contestants.append(Contestant(f"{name}: {WHOLE}", calls[half:] + calls[:half]))
        contestants += [
            Contestant(f"{name}: {part.name}", [each[i].run for each in found]) for i, part in enumerate(found[0])
        ]
    if device.type == "cpu" and cell.shape is not None and not config.served and config.window is None:
        cases = _inputs(config, cell, dequantized, device)
        contestants.append(Contestant(DEQUANTIZED, [_call(dequantized, case, scale, None) for case in cases]))
    exact, _ = exact_contestants(config, lengths_of(cell.batch, cell.context, config.ragged), device)
    always = [c.name for c in contestants]
    timings = race([*contestants, *exact], config.repeats, always=always, device=device)
    samples: dict[str, list[float]] = {}
    rows = []
    for name, own_parts in parts.items():
        named = {part: timings[f"{name}: {part}"] for part in (WHOLE, *(part.name for part in own_parts))}
        own_rows, own_samples = part_rows(own_parts, named)
        samples |= {f"{name}: {part}": times for part, times in own_samples.items()}
        moved = read[name] / (named[WHOLE].median * 1e-3) / 1e9
        rows += [
            {"way": name, **row, "bandwidth_fraction": moved / bandwidth() if row["part"] == WHOLE else None}
            for row in own_rows
        ]
    for other in [c.name for c in exact] + ([DEQUANTIZED] if DEQUANTIZED in timings else []):
        rows.append({"way": other, "part": WHOLE, "median_ms": timings[other].median})
        if len(timings[other].seconds) == config.repeats:
            samples[other] = [1e3 * s for s in timings[other].seconds]
    return {"tables": {"ways": rows, "exact": [{"name": c.name} for c in exact]}, "samples": samples}


def _inputs(config: BenchConfig, cell: Cell, run: AttentionBackend, device: torch.device) -> list[DecodeInputs]:
    """Copies beyond the processor's cache, after the way was held to the reference on one of them."""

    def inputs_of(seed: int) -> DecodeInputs:
        return decode_inputs(config, cell.context, cell.batch, cell.shape, seed, device)

    first = inputs_of(config.seed)
    error, limit = relative_error(run, first, config.head_dim**-0.5, config.window), TOLERANCE[first.query.dtype]
    if not error <= limit:
        raise KernelError(f"wrong result: relative error {error:.1e} is above {limit:.0e}, so nothing was timed")
    return [first] + [inputs_of(config.seed + i) for i in range(1, copies_beyond_cache(first.read, device))]


def _call(run: AttentionBackend, case: DecodeInputs, scale: float, window: int | None) -> Callable[[], object]:
    return lambda: case.step(run, scale, window)


def strongest(record: Record) -> str:
    """The fastest exact form of a record of `paired_grid`; it ran in all rounds."""
    exact = {row["name"] for row in record.tables["exact"]} & record.samples.keys()
    return min(exact, key=lambda name: statistics.median(record.samples[name]))
