"""The ways to run a window through a coded cache; each returns logits (B, T, V)."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor

from pqkv.codec import CodebookSet
from pqkv.config import CacheConfig, Mode
from pqkv.errors import ConfigError
from pqkv.lm import LanguageModel, PQKVCache, attach
from pqkv.lm.plugin import Attended
from pqkv.quality.schedule import ScheduleCache
from pqkv.quality.softmax_mass import SoftmaxMassProbe

PROBE_EVERY = 64  # steps between two looks of the softmax probe: it costs as much as the step
DECODE_PROBE_EVERY = 16  # the same after a prefill, where steps are few
Step = Callable[[int, int], None]


def run_exact(lm: LanguageModel, ids: Tensor, newest: int = 0) -> Tensor:
    """The reference: one plain forward, which equals an exact contiguous cache token by token. Logits of the `newest`
    tokens, 0 for all.
    """
    attach(lm.model)
    return lm.logits(ids, newest=newest)


def run_decode(
    lm: LanguageModel,
    ids: Tensor,
    cache: PQKVCache,
    *,
    position_shift: int = 0,
    probe: SoftmaxMassProbe | None = None,
    step: Step | None = None,
    attended: Attended | None = None,
) -> Tensor:
    """Take ids (B, n) one by one through a `cache` that holds what stands before them: logits (B, n, V).

    `position_shift` is added to the positions they are told to have (see `pqkv.kernels.faults`). What these steps saw
    is added to `attended`.
    """
    B, n = ids.shape
    before = copy(cache.attended)
    start = cache.get_seq_length()
    logits = torch.empty(B, n, lm.vocab_size, dtype=lm.dtype, device=lm.device)
    for i in range(n):
        _watch(cache, probe, i % DECODE_PROBE_EVERY == 0 or i == n - 1)
        positions = torch.tensor([start + i + position_shift], device=ids.device) if position_shift else None
        logits[:, i : i + 1] = lm.logits(ids[:, i : i + 1], cache, positions=positions)
        if step:
            step(i + 1, n)
    if attended is not None:
        attended.add(cache.attended - before)
    return logits


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
    attended: Attended | None = None,
) -> Tensor:
    """Run ids (B, T) with the cache `config` describes; `books` None is the paged exact cache (token, chunk only).
    Mode decode is `run_decode`. What the rows saw is added to `attended`.
    """
    attach(lm.model)
    if mode in ("exact-schedule", "all-coded"):
        if books is None:
            raise ConfigError(f"mode {mode} is about codes; the exact cache runs in mode token, chunk or decode")
        schedule = ScheduleCache(lm.model.config, books, config, all_coded=mode == "all-coded")
        logits, used = lm.logits(ids, schedule), schedule.attended
    else:
        cache = PQKVCache(lm.model.config, books, config)
        logits = _through_cache(lm, ids, cache, 1 if mode == "token" else chunk_size, probe, step)
        used = cache.attended
    if attended is not None:
        attended.add(used)
    return logits


def _through_cache(
    lm: LanguageModel,
    ids: Tensor,
    cache: PQKVCache,
    size: int,
    probe: SoftmaxMassProbe | None,
    step: Step | None,
) -> Tensor:
    """The real cache and backend, `size` tokens a step."""
    B, T = ids.shape
    logits = torch.empty(B, T, lm.vocab_size, dtype=lm.dtype, device=lm.device)
    for start in range(0, T, size):
        _watch(cache, probe, start % PROBE_EVERY < size or start + size >= T)
        logits[:, start : start + size] = lm.logits(ids[:, start : start + size], cache)
        if step:
            step(min(start + size, T), T)
    return logits


def _watch(cache: PQKVCache, probe: SoftmaxMassProbe | None, now: bool) -> None:
    """Let the probe see the calls of the next step, or not."""
    if probe is not None and cache.kv is not None:
        probe.active = now
        for layer in cache.kv.layers:
            layer.observer = probe
