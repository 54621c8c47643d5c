"""What a layer of a cache costs in Python: beside attention (appending one token, views, pages that are sealed), and in
attention beside its kernels (arguments, results, one compiled call).

.venv/bin/python experiments/checks/layer_cost.py [--steps 256] [--threads 1] [-o results/checks]

Attention is a stand-in that returns what it is given: all that is left is the cache's own. Steps of one token after a
prefill, in the processor's time of this thread, the fastest tenth and the median: other work on the machine lengthens
the median. Steps that seal a page (every `page_size`-th of a coded cache) are apart: what they cost is encoding. Of
backend `cpu` a step is timed, and the same step with nothing to attend to: the rest is its kernels'.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from recording import keep

from pqkv.cache import KVCache
from pqkv.cache.layer import Geometry
from pqkv.codec import CodebookSet
from pqkv.config import BenchConfig, CacheConfig
from pqkv.kernels import ExactTokens, PagedTokens
from pqkv.kernels.cpu.backend import attention
from pqkv.kernels.cpu.decode import without_attention
from pqkv.speed.synthetic import decode_inputs, key_book, value_book

KV_HEADS, HEADS, HEAD_DIM, PREFILL = 8, 32, 128, 1024
CONTEXTS = (256, 1024)


def no_attention(
    query: torch.Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    *,
    scale: float,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return query, query[..., 0]


def cache_of(kind: str, dtype: torch.dtype, batch: int) -> KVCache:
    codebooks = None
    if kind != "exact":
        served = () if kind == "plain codes" else BenchConfig().served
        config = BenchConfig(served=served)
        draw = torch.Generator().manual_seed(0)
        codebooks = CodebookSet((key_book(config, (64, 8), draw),), (value_book(config, (64, 8), draw),))
    geometry = Geometry(batch, KV_HEADS, HEAD_DIM, dtype, torch.device("cpu"))
    return KVCache(CacheConfig(), geometry, 1, codebooks, backend=no_attention)


@torch.inference_mode()
def measure(steps: int) -> list[dict[str, Any]]:
    rows = []
    for kind in ("exact", "plain codes", "served codes"):
        for batch in (1, 8):
            cache = cache_of(kind, torch.bfloat16, batch)
            layer = cache.layers[0]
            shape = (batch, KV_HEADS, PREFILL, HEAD_DIM)
            layer.append(torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16())
            keys, values = (torch.randn(batch, KV_HEADS, 1, HEAD_DIM).bfloat16() for _ in range(2))
            query = torch.randn(batch, 1, HEADS, HEAD_DIM).bfloat16()
            plain, sealing = [], []
            for _ in range(steps):
                before, start = sum(layer.coded), time.thread_time()
                layer.attend(query, keys, values, scale=1.0)
                (plain if sum(layer.coded) == before else sealing).append(1e6 * (time.thread_time() - start))
            rows.append(
                {
                    "cache": kind, "batch": batch, "step_us": statistics.quantiles(plain, n=10)[0],
                    "median_step_us": statistics.median(plain),
                    "sealing_step_us": statistics.median(sealing) if sealing else None,
                }
            )  # fmt: skip
    return rows


@torch.inference_mode()
def measure_attention(steps: int) -> list[dict[str, Any]]:
    rows = []
    for heads, kv_heads, head_dim in ((9, 3, 64), (HEADS, KV_HEADS, HEAD_DIM)):
        for kind in ("plain codes", "served codes"):
            served = () if kind == "plain codes" else BenchConfig().served
            config = BenchConfig(served=served, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
            for context in CONTEXTS:
                case = decode_inputs(config, context, 1, (head_dim // 2, 8), 0)
                inputs = case.query, case.pages, case.sinks, case.residual
                attention(*inputs, scale=1.0)
                whole, beside = [], []
                for _ in range(steps):
                    start = time.thread_time()
                    attention(*inputs, scale=1.0)
                    between = time.thread_time()
                    without_attention(*inputs, scale=1.0)
                    whole.append(1e6 * (between - start))
                    beside.append(1e6 * (time.thread_time() - between))
                fast = [statistics.quantiles(times, n=10)[0] for times in (whole, beside)]
                rows.append(
                    {
                        "cache": kind, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "context": context,
                        "attention_us": fast[0], "kernels_us": fast[0] - fast[1], "beside_us": fast[1],
                    }
                )  # fmt: skip
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1, help="a second one spins while it waits for a busy core")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep("layer_cost", {"steps": given.steps}, given.output, lambda: measure(given.steps))
    keep("attention_cost", {"steps": given.steps}, given.output, lambda: measure_attention(given.steps))
