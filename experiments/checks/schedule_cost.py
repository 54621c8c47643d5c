"""What a forward under the exact schedule costs beside a plain forward, medians of one run.

.venv/bin/python experiments/checks/schedule_cost.py [CONTEXT] [REPEATS]
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch

from pqkv.config import CacheConfig, TrainConfig
from pqkv.lm import load_model
from pqkv.lm.defaults import default_codebooks
from pqkv.quality.modes import run_coded, run_exact

context, repeats = (int(word) for word in [*sys.argv[1:], "4096", "7"][:2])
lm = load_model()
ids = torch.randint(0, lm.vocab_size, (1, context), generator=torch.Generator().manual_seed(0))


def clock(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


plain, coded = [], {}
for bits in (4, 3, 2):
    books, _, _ = default_codebooks(lm, TrainConfig.parse({"bits": bits}))
    coded[bits] = (books, [])
for i in range(repeats + 1):  # interleaved, so that a busy machine disturbs all alike; the first round warms up
    seconds = clock(lambda: run_exact(lm, ids))
    rounds = {
        b: clock(lambda k=books: run_coded(lm, ids, k, CacheConfig(), "exact-schedule"))
        for b, (books, _) in coded.items()
    }
    if i:
        plain.append(seconds)
        for b, value in rounds.items():
            coded[b][1].append(value / seconds)
threads = torch.get_num_threads()
print(f"plain forward of {context} tokens: median {statistics.median(plain):.2f} s of {repeats}, {threads} threads")
for b, (_, ratios) in coded.items():
    print(f"exact-schedule at {b} bits: {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")
