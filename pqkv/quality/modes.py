"""The four ways to run a window through a coded cache; each returns logits (B, T, V)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pqkv.codec import CodebookSet
from pqkv.config import CacheConfig, Mode
from pqkv.errors import ConfigError
from pqkv.lm import LanguageModel, PQKVCache, attach
from pqkv.quality.schedule import ScheduleCache
from pqkv.quality.softmax_mass import SoftmaxMassProbe

PROBE_EVERY = 64  # steps between two looks of the softmax probe: it costs as much as the step
Step = Callable[[int, int], None]


def run_exact(lm: LanguageModel, ids: Tensor) -> Tensor:
    """The reference: one plain forward, which equals an exact contiguous cache token by token."""
    attach(lm.model)
    return lm.logits(ids)


def run_coded(
    lm: LanguageModel,
    ids: Tensor,
    books: CodebookSet | None,
    config: CacheConfig,
    mode: Mode,
    *,
    chunk_size: int = 256,
    probe: SoftmaxMassProbe | None = None,
    step: Step | None = None,
) -> Tensor:
    """Run ids (B, T) with the cache `config` describes; `books` None is the paged exact cache (token, chunk only)."""
    attach(lm.model)
    if mode in ("exact-schedule", "all-coded"):
        if books is None:
            raise ConfigError(f"mode {mode} is about codes; the exact cache runs in mode token or chunk")
        return lm.logits(ids, ScheduleCache(lm.model.config, books, config, all_coded=mode == "all-coded"))
    return _through_cache(lm, ids, books, config, 1 if mode == "token" else chunk_size, probe, step)


def _through_cache(
    lm: LanguageModel,
    ids: Tensor,
    books: CodebookSet | None,
    config: CacheConfig,
    size: int,
    probe: SoftmaxMassProbe | None,
    step: Step | None,
) -> Tensor:
    """The real cache and backend, `size` tokens a step."""
    B, T = ids.shape
    cache = PQKVCache(lm.model.config, books, config)
    logits = torch.empty(B, T, lm.vocab_size, dtype=lm.dtype, device=lm.device)
    for start in range(0, T, size):
        if probe is not None and cache.kv is not None:
            probe.active = start % PROBE_EVERY < size or start + size >= T
            for layer in cache.kv.layers:
                layer.observer = probe
        logits[:, start : start + size] = lm.logits(ids[:, start : start + size], cache)
        if step:
            step(min(start + size, T), T)
    return logits
