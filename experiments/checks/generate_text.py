"""What a model writes on coded caches and on DynamicCache: text side by side, tokens a second, bytes.

.venv/bin/python experiments/checks/generate_text.py [--model smollm2] [--bits 4,2] [--tokens 2000] [--prompt TEXT] \
    [--temperature 0.8] [--window 512 --window-sinks 4] [-o results/generation]

Every cache decodes alone, token by token, after the same prompt; with -o each leaves a record (kind `generation`).
Small models repeat themselves when they write greedily: with a temperature tokens are drawn, by the same random numbers
on every cache, so that texts part only where the caches' logits do. Through a window the coded caches see the newest
tokens, and their pages come back.
"""

import argparse
import hashlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from pqkv.cell import run_cell
from pqkv.config import CacheConfig, TrainConfig
from pqkv.env import environment, git_state
from pqkv.lm import PQKVCache, attach, load_model
from pqkv.lm.defaults import default_codebooks
from pqkv.lm.step import forward
from pqkv.record import Metric, RecordStore

PROMPT = "The history of the book begins long before printing."
asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
asked.add_argument("--model", default="smollm2")
asked.add_argument("--bits", default="4,2")
asked.add_argument("--tokens", type=int, default=2000)
asked.add_argument("--prompt", default=PROMPT)
asked.add_argument("--temperature", type=float, default=0.0)
asked.add_argument("--window", type=int)
asked.add_argument("--window-sinks", type=int, default=0)
asked.add_argument("-o", "--output", type=Path)
given = asked.parse_args()
seen = CacheConfig.parse({"window": given.window, "window_sinks": given.window_sinks})

lm = load_model(given.model)
attach(lm.model)
widths = [float(bits) for bits in given.bits.split(",")]
books = {b: default_codebooks(lm, TrainConfig.parse({"model": given.model, "bits": b}))[0] for b in widths}
ids = torch.tensor([lm.encode(given.prompt)], device=lm.device)
caches = {"DynamicCache": (0.0, lambda: DynamicCache(config=lm.model.config))}
caches |= {f"{b:g} bits": (b, lambda b=b: PQKVCache(lm.model.config, books[b], seen)) for b in widths}


def bytes_of(cache: Cache) -> tuple[int, int]:
    """In use and allocated."""
    if isinstance(cache, PQKVCache):
        memory = cache.kv.memory()
        return memory.total, memory.allocated
    held = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    total = sum(tensor.numel() * tensor.element_size() for tensor in held)
    return total, total


def chosen(logits: Tensor, draws: torch.Generator) -> Tensor:
    """The next token (1, 1) of logits (1, 1, V): the largest, or one drawn (Gumbel's largest) where it is warm."""
    if given.temperature:
        uniform = torch.rand(logits.shape, generator=draws, dtype=torch.float64)
        logits = logits.double() / given.temperature - (-uniform.log()).log()
    return logits.argmax(-1)


def write(make: Callable[[], Cache]) -> dict[str, Any]:
    """Fields of a record: tokens, the time of each, the cache at its end."""
    cache, tokens, seconds, draws = make(), [], [], torch.Generator().manual_seed(0)
    with torch.inference_mode():
        token = chosen(forward(lm.model, ids, cache).logits[:, -1:], draws)
        for _ in range(given.tokens):
            tokens.append(int(token))
            start = time.perf_counter()
            logits = forward(lm.model, token, cache).logits
            seconds.append(time.perf_counter() - start)
            token = chosen(logits, draws)
    used, allocated = bytes_of(cache)
    times = torch.tensor(seconds) * 1e3
    rows = [{"text": lm.tokenizer.decode(tokens), "tokens": len(tokens), "allocated_bytes": allocated}]
    metrics = {
        "tpot_ms": Metric(value=float(times.median()), unit="ms", n=len(times)),
        "cache_bytes": Metric(value=float(used), unit="B"),
    }
    return {"metrics": metrics, "tables": {"generated": rows}, "samples": {"token_ids": [float(t) for t in tokens]}}


store, env, git = RecordStore(given.output) if given.output else None, environment(), git_state()
records = {}
for name, (bits, make) in caches.items():
    config = {
        "model": lm.name, "model_weights": lm.fingerprint, "cache": name, "bits": bits, "mode": "greedy",
        "prompt_sha256": hashlib.sha256(given.prompt.encode()).hexdigest(), "new_tokens": given.tokens,
        "context": ids.shape[1] + given.tokens, "dtype": "float32", "device": "cpu",
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    if given.temperature:
        config |= {"mode": "drawn", "temperature": given.temperature}
    if given.window and bits:
        config |= {"window": given.window, "window_sinks": given.window_sinks}
    records[name] = run_cell(
        partial(write, make), kind="generation", config=config, seed=0, env=env, git=git, store=store
    )
    if records[name].status == "failed":
        raise SystemExit(f"{name}: {records[name].error}")
exact = records["DynamicCache"]
for name, record in records.items():
    (row,) = record.tables["generated"]
    pairs = zip(record.samples["token_ids"], exact.samples["token_ids"], strict=True)
    parts = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    where = "" if record is exact else ", same text" if parts is None else f", parts from it at token {parts + 1}"
    rate, used = 1e3 / record.metrics["tpot_ms"].value, record.metrics["cache_bytes"].value
    size = f"cache {used / 1e6:.2f} MB ({row['allocated_bytes'] / 1e6:.2f} allocated)"
    print(f"== {name}: {rate:.1f} tokens/s, {size}{where}")
    print(row["text"] if len(row["text"]) < 1200 else f"{row['text'][:600]}\n[...]\n{row['text'][-500:]}")
