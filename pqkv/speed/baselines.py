"""Exact attention on contiguous keys and values in torch, every form that may be the fastest on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from pqkv.config import BenchConfig
from pqkv.speed.timing import Contestant, copies_beyond_cache

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def grouped_sdpa(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Query heads of a group as rows, (B, Hkv, G, D): on the CPU up to 8 times faster than `enable_gqa`."""
    return F.scaled_dot_product_attention(query, keys, values)


def matmul(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Two products with a softmax in float32 between."""
    scores = torch.matmul(query, keys.mT).float() * query.shape[-1] ** -0.5
    return torch.matmul(scores.softmax(-1).to(values.dtype), values)


FORMS: dict[str, tuple[Attend, torch.dtype]] = {
    "sdpa float32": (grouped_sdpa, torch.float32),
    "sdpa bfloat16": (grouped_sdpa, torch.bfloat16),
    "matmul float32": (matmul, torch.float32),
    "matmul bfloat16": (matmul, torch.bfloat16),
}


def exact_contestants(config: BenchConfig, lengths: Sequence[int]) -> list[Contestant]:
    """Each form on caches of these lengths; sequences of unequal length run one after another."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        caches = _caches(config, lengths, dtype)
        for name, (attend, kind) in FORMS.items():
            if kind == dtype:
                found.append(Contestant(name, [_call(attend, cache) for cache in caches]))
    return found


def _call(attend: Attend, cache: list[tuple[Tensor, Tensor, Tensor]]) -> Callable[[], object]:
    return lambda: [attend(*tensors) for tensors in cache]


def _caches(
    config: BenchConfig, lengths: Sequence[int], dtype: torch.dtype
) -> list[list[tuple[Tensor, Tensor, Tensor]]]:
    """Enough copies of query, keys and values that none is in the cache when its turn comes again."""
    Hkv, G, D = config.kv_heads, config.heads // config.kv_heads, config.head_dim
    equal = len(set(lengths)) == 1
    groups = [(len(lengths), lengths[0])] if equal else [(1, n) for n in lengths]
    visible = [(b, n if config.window is None else min(n, config.window)) for b, n in groups]
    nbytes = sum(2 * b * n * Hkv * D * dtype.itemsize for b, n in visible)

    def tensors(b: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = (torch.randn(b, Hkv, n, D).to(dtype) for _ in range(2))
        return torch.randn(b, Hkv, G, D).to(dtype), keys, values

    return [[tensors(b, n) for b, n in visible] for _ in range(copies_beyond_cache(nbytes))]
