"""Tokens a second of `generate` on the bundled model past a prompt, coded caches beside DynamicCache, in turns.

.venv/bin/python experiments/checks/generate_rate.py [PROMPT_TOKENS] [NEW_TOKENS] [ROUNDS]
"""

import statistics
import sys
import time

import torch
from transformers import DynamicCache

from pqkv.config import CacheConfig, TrainConfig
from pqkv.lm import PQKVCache, attach, load_model
from pqkv.lm.defaults import default_codebooks
from pqkv.lm.step import cache_argument

prompt, new, rounds = (int(word) for word in [*sys.argv[1:], "4096", "128", "5"][:3])
lm = load_model()
attach(lm.model)
books = {bits: default_codebooks(lm, TrainConfig.parse({"bits": bits}))[0] for bits in (4, 2)}
ids = torch.randint(1, lm.vocab_size, (1, prompt), generator=torch.Generator().manual_seed(0))
caches = {
    "DynamicCache, sdpa": lambda: DynamicCache(config=lm.model.config),
    **{f"PQKVCache, {b} bits": lambda b=b: PQKVCache(lm.model.config, books[b], CacheConfig()) for b in books},
    "PQKVCache, exact pages": lambda: PQKVCache(lm.model.config, None, CacheConfig()),
}
rates: dict[str, list[float]] = {name: [] for name in caches}
backends = set()  # that the coded and paged caches chose
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
            backends.add(cache.kv.backend.name)
        if i:
            rates[name].append(new / seconds)
threads, backend = torch.get_num_threads(), ", ".join(sorted(backends))
print(f"{new} tokens after {prompt}, {threads} threads, median of {rounds}, backend {backend}")
for name, found in rates.items():
    ratio = statistics.median(a / b for a, b in zip(found, rates["DynamicCache, sdpa"], strict=True))
    print(f"{name}: {statistics.median(found):.1f} tokens/s ({ratio:.2f}x)")
