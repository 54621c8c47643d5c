"""What a decoding step of the bundled model takes with one core kept busy by another process, and what it takes idle.

.venv/bin/python experiments/checks/busy_core.py [STEPS_A_TURN] [ROUNDS]

4-bit default codebooks and transformers' DynamicCache past about 2,000 tokens, on one thread and on two. In each round
every combination takes a turn of so many steps, first with idle cores, then beside a process that counts. Reported are
medians over all steps of busy turns and of idle turns, their ratio, and the ratio of the two caches' ratios.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from transformers import Cache, DynamicCache

from pqkv.config import CacheConfig, TrainConfig
from pqkv.lm import PQKVCache, attach, load_model
from pqkv.lm.defaults import default_codebooks
from pqkv.lm.step import forward

PROMPT = 2000
steps, rounds = (int(word) for word in [*sys.argv[1:], "40", "12"][:2])
lm = load_model()
attach(lm.model)
books = default_codebooks(lm, TrainConfig.parse({"bits": 4}))[0]
ids = torch.randint(1, lm.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(0))
makers = {
    "pqkv, 4 bits": lambda: PQKVCache(lm.model.config, books, CacheConfig()),
    "DynamicCache": lambda: DynamicCache(config=lm.model.config),
}


def decode(make: Callable[[], Cache], count: int) -> list[float]:
    """Seconds of each of `count` steps after the prompt; the first ones warm up and are left out."""
    cache, seconds = make(), list[float]()
    with torch.inference_mode():
        token = forward(lm.model, ids, cache).logits[:, -1:].argmax(-1)
        for _ in range(count + 3):
            start = time.perf_counter()
            token = forward(lm.model, token, cache).logits[:, -1:].argmax(-1)
            seconds.append(time.perf_counter() - start)
    return seconds[3:]


found: dict[tuple[str, int, bool], list[float]] = {
    (name, n, busy): [] for name in makers for n in (1, 2) for busy in (False, True)
}
for turn in range(rounds + 1):  # the first one compiles
    for busy in (False, True):
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
        try:
            for n in (1, 2):
                torch.set_num_threads(n)
                for name, make in makers.items():
                    seconds = decode(make, steps)
                    if turn:
                        found[name, n, busy] += seconds
        finally:
            if other is not None:
                other.kill()
                other.wait()

print(f"{rounds} rounds of {steps} steps after {PROMPT} tokens, medians; torch {torch.__version__}")
for n in (1, 2):
    slowdowns = {}
    for name in makers:
        idle, busy = (1e3 * statistics.median(found[name, n, b]) for b in (False, True))
        slowdowns[name] = busy / idle
        print(f"{n} threads, {name}: {idle:.2f} ms idle, {busy:.2f} ms busy: {busy / idle:.2f}x")
    ratio = slowdowns["pqkv, 4 bits"] / slowdowns["DynamicCache"]
    print(f"{n} threads: pqkv's slowdown is {ratio:.2f} of DynamicCache's")
