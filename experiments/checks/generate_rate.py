"""Tokens a second of `generate` past a prompt, coded caches beside DynamicCache, in turns.

.venv/bin/python experiments/checks/generate_rate.py [--model reference] [--prompt 4096] [--new 128] [-o results/checks]
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from recording import keep
from transformers import DynamicCache

from pqkv.config import CacheConfig, TrainConfig
from pqkv.lm import PQKVCache, attach, load_model
from pqkv.lm.defaults import default_codebooks
from pqkv.lm.step import cache_argument

EXACT = "DynamicCache, sdpa"


def measure(model: str, prompt: int, new: int, rounds: int) -> list[dict[str, Any]]:
    lm = load_model(model)
    attach(lm.model)
    books = {bits: default_codebooks(lm, TrainConfig.parse({"model": model, "bits": bits}))[0] for bits in (4, 2)}
    ids = torch.randint(1, lm.vocab_size, (1, prompt), generator=torch.Generator().manual_seed(0))
    caches = {
        EXACT: lambda: DynamicCache(config=lm.model.config),
        **{f"{b} bits": lambda b=b: PQKVCache(lm.model.config, books[b], CacheConfig()) for b in books},
        "exact pages": lambda: PQKVCache(lm.model.config, None, CacheConfig()),
    }
    rates: dict[str, list[float]] = {name: [] for name in caches}
    backends = dict.fromkeys(caches, "")  # that the coded and paged caches chose
    for i in range(rounds + 1):  # the first round compiles
        for name, make in caches.items():
            cache = make()
            with torch.inference_mode():
                logits = lm.model(ids, **cache_argument(lm.model, cache)).logits[:, -1:]
                start = time.perf_counter()
                for _ in range(new):
                    logits = lm.model(logits.argmax(-1), **cache_argument(lm.model, cache)).logits
                seconds = time.perf_counter() - start
            if isinstance(cache, PQKVCache) and cache.kv is not None:
                backends[name] = cache.kv.backend.name
            if i:
                rates[name].append(new / seconds)
    return [
        {
            "cache": name, "tokens_per_s": statistics.median(found), "backend": backends[name],
            "times": statistics.median(a / b for a, b in zip(found, rates[EXACT], strict=True)),
        }
        for name, found in rates.items()
    ]  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="reference")
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    asked = {"model": given.model, "prompt": given.prompt, "new": given.new, "rounds": given.rounds}
    keep("generate_rate", asked, given.output, lambda: measure(**asked))
