"""`pqkv bench --end-to-end`: time to the first token and per output token of a whole model, through real flushes.

A prompt of random tokens is prefilled, then tokens are decoded one by one, so that pages fill, are encoded and sealed
on the way. Coded and paged caches run beside transformers' DynamicCache and StaticCache in turns. What attention is
to the whole bounds what any cache can gain: `amdahl_ceiling` is the exact cache's time per token over its time per
token after a prompt of a few tokens, where attention costs next to nothing.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import Cache, DynamicCache, StaticCache

from pqkv.cell import run_cell
from pqkv.codec import Codebook, CodebookSet, code_bits, code_geometry
from pqkv.config import BenchConfig, CacheConfig
from pqkv.env import environment, git_state, machine_name
from pqkv.kernels import choose_backend
from pqkv.lm import PQKVCache, attach, load_model
from pqkv.lm.model import LanguageModel
from pqkv.lm.shapes import SHAPES, random_model
from pqkv.lm.step import forward
from pqkv.record import Metric, Record, RecordStore
from pqkv.speed.bench import asked_threads, code_shapes, device_of, on_threads
from pqkv.speed.timing import median_interval

Report = Callable[[str, int, int], None]
MakeCache = Callable[[], Cache]
_SHORT = 16  # tokens of the prompt after which attention costs next to nothing
_EXACT = ("DynamicCache", "StaticCache")


def end_to_end(
    config: BenchConfig, store: RecordStore | None = None, *, force: bool = False,
    report: Report | None = None,
) -> Iterator[Record]:  # fmt: skip
    """A record for every code shape (0 bits: paged exact), batch and length of the grid, on one model."""
    tell = report or (lambda stage, done, total: None)
    threads = asked_threads(config)
    shapes = code_shapes(config)
    name, device = config.model or "reference", device_of(config)
    tell(f"load {name}", 0, 1)
    known = name in SHAPES
    lm = random_model(name, config.dtype, device) if known else load_model(name, config.dtype, str(device))
    attach(lm.model)
    backend = choose_backend(config.backend, device, lm.dtype, head_dim=lm.head_dim, fallback=config.fallback)
    cells = [(shape, b, n) for n in config.lengths for b in config.batch for shape in shapes]
    with on_threads(threads):
        env, git = environment(), git_state()
    machine = machine_name(env if device.type == "cuda" else {**env, "gpus": []})
    for number, (shape, batch, context) in enumerate(cells):
        geometry = None if shape is None else code_geometry(shape, lm.head_dim)
        bits = 0.0 if geometry is None else code_bits(*geometry, lm.head_dim)
        tell(f"{bits:g} bits, batch {batch}, {context} tokens", number, len(cells))
        with on_threads(threads):  # not while a record is out
            record = run_cell(
                functools.partial(_measure, config, lm, geometry, batch, context),
                kind="end-to-end",
                config={
                    "model": lm.name, "weights": "random" if known else lm.fingerprint, "dtype": config.dtype,
                    "device": device.type, "machine": machine, "backend": backend.name, "bits": bits, "batch": batch,
                    "context": context, "new_tokens": config.new_tokens, "page_size": config.page_size,
                    "residual": config.residual, "sink_tokens": config.sink_tokens, "key_layout": config.key_layout,
                    "value_layout": config.value_layout, "repeats": config.repeats, "seed": config.seed,
                    "threads": threads, "data": "random tokens", "mode": "generate",
                },
                seed=config.seed,
                env=env,
                git=git,
                notes=[note for note in (backend.note, backend.prefill_note) if note],
                store=store,
                force=force,
            )  # fmt: skip
        yield record
    tell("done", len(cells), len(cells))


def _measure(
    config: BenchConfig, lm: LanguageModel, geometry: tuple[int, int] | None, batch: int, context: int
) -> dict[str, Any]:
    total = context + config.new_tokens
    if total > lm.max_positions:
        note = [f"{total} tokens are beyond the {lm.max_positions} positions of the model: times only, no text"]
    else:
        note = []
    cache_config = CacheConfig(
        page_size=config.page_size, residual=config.residual, sink_tokens=config.sink_tokens,
        key_layout=config.key_layout, value_layout=config.value_layout, backend=config.backend,
        fallback=config.fallback,
    )  # fmt: skip
    books = None if geometry is None else _random_books(lm, geometry, config.seed)
    hf = lm.model.config
    makers: dict[str, MakeCache] = {
        "pqkv": lambda: PQKVCache(hf, books, cache_config),
        "DynamicCache": lambda: DynamicCache(config=hf),
        "StaticCache": lambda: StaticCache(config=hf, max_cache_len=total),
    }
    draw = torch.Generator().manual_seed(config.seed)
    ids = torch.randint(1, lm.vocab_size, (batch, context), generator=draw).to(lm.device)
    first: dict[str, list[float]] = {name: [] for name in makers}
    each: dict[str, list[float]] = {name: [] for name in makers}
    alone: list[float] = []
    sizes = {}
    for turn in range(config.repeats + 1):
        for name, make in makers.items():
            cache = make()
            prefill, token = _generate(lm, cache, ids, config.new_tokens)
            if turn:  # the first round compiles
                first[name].append(prefill)
                each[name].append(token)
            if isinstance(cache, PQKVCache) and cache.kv is not None:
                sizes["cache_bytes"] = Metric(value=float(cache.kv.memory().total), unit="B")
        _, token = _generate(lm, DynamicCache(config=hf), ids[:, :_SHORT], config.new_tokens)
        if turn:
            alone.append(token)
    strongest = min(_EXACT, key=lambda name: statistics.median(each[name]))
    ratios = [theirs / ours for theirs, ours in zip(each[strongest], each["pqkv"], strict=True)]
    ceilings = [theirs / rest for theirs, rest in zip(each[strongest], alone, strict=True)]
    metrics = {
        "ttft_ms": _metric(first["pqkv"], "ms", 1e3),
        "tpot_ms": _metric(each["pqkv"], "ms", 1e3),
        "speedup": _metric(ratios, "x"),
        "amdahl_ceiling": _metric(ceilings, "x"),
        **sizes,
    }
    if books is not None:
        metrics["code_bits"] = Metric(value=books.code_bits, unit="bits")
    rows = [
        {
            "name": name,
            "ttft_ms": 1e3 * statistics.median(first[name]),
            "tpot_ms": 1e3 * statistics.median(each[name]),
            "tokens_per_s": batch / statistics.median(each[name]),
        }
        for name in makers
    ]
    samples = {f"{name} tpot_ms": [1e3 * s for s in found] for name, found in each.items()}
    return {"metrics": metrics, "tables": {"caches": rows}, "samples": samples, "notes": note}


def _generate(lm: LanguageModel, cache: Cache, ids: torch.Tensor, new: int) -> tuple[float, float]:
    """Seconds to the first token after prompt `ids` (B, T), and seconds per token of the `new` that follow it."""
    with torch.inference_mode():
        _wait(lm.device)
        start = time.perf_counter()
        token = forward(lm.model, ids, cache, logits_to_keep=1).logits.argmax(-1)
        _wait(lm.device)
        prefilled = time.perf_counter()
        for _ in range(new):
            token = forward(lm.model, token, cache, logits_to_keep=1).logits.argmax(-1)
        _wait(lm.device)
        return prefilled - start, (time.perf_counter() - prefilled) / new


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _random_books(lm: LanguageModel, geometry: tuple[int, int], seed: int) -> CodebookSet:
    """A codebook of its own for keys and values of every layer: sharing one would keep it in a processor's cache."""
    M, nbits = geometry
    draw = torch.Generator().manual_seed(seed)
    shape = (lm.num_kv_heads, M, 2**nbits, lm.head_dim // M)

    def books() -> tuple[Codebook, ...]:
        return tuple(Codebook(torch.randn(shape, generator=draw).to(lm.device)) for _ in lm.coded_layers)

    return CodebookSet(books(), books())


def _metric(values: list[float], unit: str, factor: float = 1.0) -> Metric:
    scaled = [factor * value for value in values]
    low, high = median_interval(scaled)
    return Metric(value=statistics.median(scaled), low=low, high=high, unit=unit, n=len(scaled))
