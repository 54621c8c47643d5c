"""What a forward under the exact schedule costs beside a plain forward, medians of one run.

.venv/bin/python experiments/checks/schedule_cost.py [--model reference] [--context 4096] [-o results/checks]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from recording import keep

from pqkv.config import CacheConfig, TrainConfig
from pqkv.lm import load_model
from pqkv.lm.defaults import default_codebooks
from pqkv.quality.modes import run_coded, run_exact

BITS = (4, 3, 2)


def clock(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(model: str, context: int, repeats: int) -> list[dict[str, Any]]:
    lm = load_model(model)
    ids = torch.randint(0, lm.vocab_size, (1, context), generator=torch.Generator().manual_seed(0))
    books = {bits: default_codebooks(lm, TrainConfig.parse({"model": model, "bits": bits}))[0] for bits in BITS}
    plain, ratios = [], {bits: [] for bits in BITS}
    for i in range(repeats + 1):  # interleaved, so that a busy machine disturbs all alike; the first round warms up
        seconds = clock(lambda: run_exact(lm, ids))
        rounds = {
            b: clock(lambda k=own: run_coded(lm, ids, k, CacheConfig(), "exact-schedule")) for b, own in books.items()
        }
        if i:
            plain.append(seconds)
            for b, value in rounds.items():
                ratios[b].append(value / seconds)
    return [
        {"bits": b, "times": statistics.median(r), "least": min(r), "most": max(r), "plain_s": statistics.median(plain)}
        for b, r in ratios.items()
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="reference")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    asked = {"model": given.model, "context": given.context, "repeats": given.repeats}
    keep("schedule_cost", asked, given.output, lambda: measure(**asked))
