"""`pqkv bench`: decoding attention on codes beside the strongest exact attention, cell by cell."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pqkv.cell import run_cell
from pqkv.codec import code_bits, code_geometry
from pqkv.config import BenchConfig, CodeShape
from pqkv.cpu_path import cpu_path
from pqkv.env import environment, git_state, machine_name, usable_cores
from pqkv.errors import ConfigError, KernelError
from pqkv.kernels import ROUNDED, ChosenBackend, choose_backend
from pqkv.kernels.cpu.byte_lookups.prepare import shape_obstacle
from pqkv.record import Metric, Record, RecordStore
from pqkv.speed.baselines import exact_contestants
from pqkv.speed.check import check_backend
from pqkv.speed.encoding import encoding_contestants, tokens_of
from pqkv.speed.synthetic import DecodeInputs, decode_inputs, lengths_of
from pqkv.speed.timing import Contestant, Timing, copies_beyond_cache, copy_bandwidth, median_interval, race, ratios

Report = Callable[[str, int, int], None]
_OURS = "pqkv"
# of the grid, of the choice of backend, or of the other kinds of bench
_NOT_OF_A_CELL = frozenset(
    (
        "lengths", "batch", "bits", "fallback", "threads", "backend", "device", "model", "end_to_end", "new_tokens",
        "breakdown",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """One code shape (None: exact pages), batch and length."""

    bits: float
    shape: tuple[int, int] | None
    batch: int
    context: int

    @property
    def label(self) -> str:
        """What is running, for people."""
        return (
            f"{self.bits:g} bits, batch {self.batch}, {self.context} tokens" if self.bits else f"exact, {self.context}"
        )


Measure = Callable[[BenchConfig, Cell, ChosenBackend, torch.device, Callable[[], float]], dict[str, Any]]


def bench(
    config: BenchConfig, store: RecordStore | None = None, *, force: bool = False, report: Report | None = None
) -> Iterator[Record]:
    """Run the grid and yield each cell's record; one that `store` holds is not run again.

    A cell whose backend is wrong or whose memory runs short yields a failed record and the grid goes on. Raises
    `ConfigError` for a geometry that no code shape fits.
    """
    return run_grid(config, _measure, store, force=force, report=report)


def run_grid(
    config: BenchConfig,
    measure: Measure,
    store: RecordStore | None,
    *,
    force: bool,
    report: Report | None,
    mode: str = "decode",
) -> Iterator[Record]:
    """A record of what `measure` finds of each cell; `mode` names it in what describes the cells."""
    tell = report or (lambda stage, done, total: None)
    threads = asked_threads(config)
    device = device_of(config)
    backend = choose_backend(
        config.backend, device, getattr(torch, config.dtype), head_dim=config.head_dim, fallback=config.fallback
    )
    grid = [Cell(bits, shape, b, n) for n in config.lengths for b in config.batch for bits, shape in _shapes(config)]
    if store is not None:
        store.check_writable()
    with on_threads(threads):
        env, git = environment(), git_state()
    machine = machine_name(env if device.type == "cuda" else {**env, "gpus": []})
    # of this machine now: measured once, and only if a cell is
    bandwidth = functools.cache(functools.partial(copy_bandwidth, device=device))
    for number, cell in enumerate(grid):
        tell(cell.label, number, len(grid))
        described = _describe(config, cell, mode, backend.name, threads)
        with on_threads(threads):  # not while a record is out
            record = run_cell(
                functools.partial(measure, config, cell, backend, device, bandwidth),
                kind="bench",
                config=described | {"device": device.type, "machine": machine},
                seed=config.seed,
                env=env,
                git=git,
                notes=[note for note in (backend.note, _float_note(config, cell, backend.name)) if note],
                store=store,
                force=force,
            )
        yield record
    tell("done", len(grid), len(grid))


def asked_threads(config: BenchConfig) -> int:
    """The threads asked for, or as many as torch has. Raises `ConfigError` for more than there are cores."""
    most = usable_cores()
    if config.threads is not None and config.threads > most:
        raise ConfigError(f"threads: {config.threads} are more than the {most} cores that pqkv may use here")
    return config.threads or torch.get_num_threads()


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Torch, and the kernels with it, on so many threads; afterwards on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def code_shapes(config: BenchConfig) -> list[CodeShape | None]:
    """Every code shape asked for; None, from bits 0, are exact pages."""
    if config.num_subspaces is not None and config.nbits is not None:
        return [CodeShape(num_subspaces=config.num_subspaces, nbits=config.nbits)]
    return [CodeShape(bits=bits) if bits else None for bits in config.bits]


def _shapes(config: BenchConfig) -> list[tuple[float, tuple[int, int] | None]]:
    """(bits, (M, nbits)) of every code shape asked for, bits 0 those of exact pages."""
    found = [None if shape is None else code_geometry(shape, config.head_dim) for shape in code_shapes(config)]
    return [(0.0 if shape is None else code_bits(*shape, config.head_dim), shape) for shape in found]


def _describe(config: BenchConfig, cell: Cell, mode: str, backend: str, threads: int) -> dict[str, Any]:
    M, nbits = cell.shape or (None, None)
    settings = config.model_dump(mode="json", exclude=set(_NOT_OF_A_CELL))
    if cell.shape is None or not config.served:  # as records were before anything was
        del settings["served"]
    if (path := _byte_path(config, cell, backend)) is not None:
        settings["cpu_path"] = path
    return settings | {
        "model": f"{config.heads} query heads on {config.kv_heads} KV heads of {config.head_dim}",
        "data": "random numbers",
        "mode": f"{mode}, batch {cell.batch}{', ragged' if config.ragged and cell.batch > 1 else ''}",
        "backend": backend,
        "bits": cell.bits,
        "num_subspaces": M,
        "nbits": nbits,
        "batch": cell.batch,
        "context": cell.context,
        "threads": threads,
    }


def _byte_path(config: BenchConfig, cell: Cell, backend: str) -> str | None:
    """How this processor looks codes up in byte tables, or None where it does not; of pages of vectors the path that is
    forced.
    """
    if backend != "cpu" and backend not in ROUNDED:
        return None
    if cell.shape is None:
        return cpu_path().name if cpu_path().forced and cpu_path().name != "float" else None
    return cpu_path().name if _of_bytes(config, backend) and _byte_obstacle(config, cell) is None else None


def _of_bytes(config: BenchConfig, backend: str) -> bool:
    """Whether this backend takes these centroids as bytes."""
    return backend in ROUNDED or (backend == "cpu" and "int8" in config.served and "universal" not in config.served)


def _byte_obstacle(config: BenchConfig, cell: Cell) -> str | None:
    """Why codes are not looked up in byte tables, or None."""
    assert cell.shape is not None
    if not config.key_layout == config.value_layout == "transposed":
        return "pages of rows have none of the blocks that byte tables take"
    d_sub, group = config.head_dim // cell.shape[0], config.heads // config.kv_heads
    return shape_obstacle(cell.shape, d_sub, config.page_size, group, cpu_path())


def _float_note(config: BenchConfig, cell: Cell, backend: str) -> str | None:
    """What a record says of codes that go by floats though centroids are bytes, at least of keys, or None."""
    if cell.shape is None or not (backend in ROUNDED or (backend == "cpu" and "int8" in config.served)):
        return None
    obstacle = _byte_obstacle(config, cell)
    if obstacle is None and not _of_bytes(config, backend):
        obstacle = "values share one codebook of floats, which backend cpu-bytes rounds to bytes"
    return None if obstacle is None else f"codes are looked up as floats: {obstacle}"


def _measure(
    config: BenchConfig, cell: Cell, backend: ChosenBackend, device: torch.device, bandwidth: Callable[[], float]
) -> dict[str, Any]:
    scale, copied = config.head_dim**-0.5, bandwidth()

    def inputs_of(seed: int) -> DecodeInputs:
        return decode_inputs(config, cell.context, cell.batch, cell.shape, seed, device)

    first = inputs_of(config.seed)
    error, limit = check_backend(backend, first, scale, config.window)
    inputs = [first] + [inputs_of(config.seed + i) for i in range(1, copies_beyond_cache(first.read, device))]
    calls = [backend_call(backend, case, scale, config.window) for case in inputs]
    ours = Contestant(_OURS, calls, capture=backend.name == "cuda")  # the others look at numbers on the host
    exact, missing = exact_contestants(config, lengths_of(cell.batch, cell.context, config.ragged), device)
    timings = race([ours, *exact], config.repeats, always=[_OURS], device=device)
    strongest = min((timings[c.name] for c in exact), key=lambda timing: timing.median)
    mine = timings[_OURS]
    times = ratios(strongest, mine)
    moved = first.read / (mine.median * 1e-3) / 1e9
    metrics = {
        "latency_ms": metric_of(mine.median, [1e3 * s for s in mine.seconds], "ms"),
        "exact_latency_ms": metric_of(strongest.median, [1e3 * s for s in strongest.seconds], "ms"),
        "speedup": metric_of(statistics.median(times), times, "x"),
        "bandwidth_gbs": Metric(value=moved, unit="GB/s"),
        "bandwidth_fraction": Metric(value=moved / copied),
        "cache_bytes": Metric(value=float(first.nbytes), unit="B"),
    }
    tables: dict[str, Any] = {"contestants": [_row(timing, mine) for timing in timings.values()]}
    if cell.shape is not None:
        bits = code_bits(*cell.shape, config.head_dim)
        if first.pages.values.gains is not None:
            bits += 8 / config.head_dim / 2  # of one side
        metrics["code_bits"] = Metric(value=bits, unit="bits")
        encoding = race(encoding_contestants(config, cell.shape, device), config.repeats, device=device)
        rates = {name: tokens_of(config) / (timing.median * 1e-3) for name, timing in encoding.items()}
        metrics["encode_tokens_per_s"] = Metric(value=rates[_OURS], unit="tokens/s", n=config.repeats)
        tables["encoding"] = [{"name": name, "tokens_per_s": rate} for name, rate in rates.items()]
    tables["check"] = [{"relative_error": error, "limit": limit, "copy_bandwidth_gbs": copied}]
    samples = {timing.name: [1e3 * s for s in timing.seconds] for timing in timings.values()}
    notes = [f"not run: {reason}" for reason in missing]
    if device.type == "cuda" and not mine.captured:
        notes.append("pqkv could not be captured into a CUDA graph: its times hold the launches from Python")
    return {"metrics": metrics, "tables": tables, "samples": samples, "notes": notes}


def device_of(config: BenchConfig) -> torch.device:
    """Where to run: as asked, else where the backend runs. Raises `KernelError` where that takes a GPU and there is
    none: for a device always, for a backend where fallbacks are off.
    """
    there = torch.cuda.is_available()
    wanted = config.device == "cuda" or (config.device is None and config.backend.startswith("cuda"))
    if wanted and not there and (config.device == "cuda" or not config.fallback):
        what = "device 'cuda'" if config.device == "cuda" else f"backend '{config.backend}'"
        raise KernelError(
            f"{what} cannot run: torch finds no NVIDIA GPU; nvidia-smi shows whether there is one, `pqkv env` what "
            "torch was built for"
        )
    if config.device is None and config.backend == "auto":
        wanted = there
    return torch.device("cuda" if wanted and there else "cpu")


def backend_call(backend: ChosenBackend, case: DecodeInputs, scale: float, window: int | None) -> Callable[[], object]:
    """One step of the backend on this cache, to be timed."""
    return lambda: case.step(backend.run, scale, window)


def metric_of(value: float, samples: list[float], unit: str) -> Metric:
    """A figure with the interval of the median of its samples."""
    low, high = median_interval(samples)
    return Metric(value=value, low=low, high=high, unit=unit, n=len(samples))


def _row(timing: Timing, mine: Timing) -> dict[str, Any]:
    return {
        "name": timing.name,
        "runs": len(timing.seconds),
        "median_ms": timing.median,
        "q10_ms": timing.quantile(0.1),
        "q90_ms": timing.quantile(0.9),
        "min_ms": timing.quantile(0.0),
        "speedup": timing.median / mine.median,
    }


def break_even(records: list[Record]) -> float | None:
    """The context from which on codes are faster than the strongest exact attention, between the lengths of `records`
    of one shape by interpolation of log speed-up over log length. None if there is none; the shortest length if always.
    """
    points = sorted((r.config["context"], r.metrics["speedup"].value or 0.0) for r in records if r.status == "ok")
    if not points or points[-1][1] < 1:
        return None
    last = max((i for i, (_, speedup) in enumerate(points) if speedup < 1), default=-1)
    if last < 0:
        return float(points[0][0])
    (n0, s0), (n1, s1) = points[last], points[last + 1]
    if s0 <= 0:
        raise ConfigError("a speed-up is not positive")
    import math

    share = math.log(1 / s0) / math.log(s1 / s0)
    return float(n0 * (n1 / n0) ** share)
