"""The ways to run a window through a coded cache.

Each returns the last hidden states (B, T, hidden), of which `lm.head` makes logits where they are asked for: those of a
whole window may not fit into memory. The functions `run_...` do, for windows whose logits do fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from pqkv.codec import CodebookSet
from pqkv.codec.interface import Codec
from pqkv.codec.sizes import CodedSizes
from pqkv.config import CacheConfig, Mode
from pqkv.errors import ConfigError
from pqkv.lm import LanguageModel, PQKVCache, attach
from pqkv.lm.plugin import Attended
from pqkv.quality.schedule import ScheduleCache
from pqkv.quality.softmax_mass import SoftmaxMassProbe

PROBE_EVERY = 64  # steps between two looks of the softmax probe: it costs as much as the step
DECODE_PROBE_EVERY = 16  # the same after a prefill, where steps are few
Step = Callable[[int, int], None]


def exact_states(lm: LanguageModel, ids: Tensor, newest: int = 0) -> Tensor:
    """The reference: one plain forward, which equals an exact contiguous cache token by token. States of the `newest`
    tokens, 0 for all.
    """
    attach(lm.model)
    return lm.states(ids, newest=newest)


def decoded_states(
    lm: LanguageModel,
    ids: Tensor,
    cache: PQKVCache,
    *,
    position_shift: int = 0,
    probe: SoftmaxMassProbe | None = None,
    step: Step | None = None,
    attended: Attended | None = None,
) -> Tensor:
    """Take ids (B, n) one by one through a `cache` that holds what stands before them: states (B, n, hidden).

    `position_shift` is added to the positions they are told to have (see `pqkv.kernels.faults`). What these steps saw
    is added to `attended`.
    """
    B, n = ids.shape
    before = copy(cache.attended)
    start = cache.get_seq_length()
    states = torch.empty(B, n, lm.hidden_size, dtype=lm.dtype, device=lm.device)
    for i in range(n):
        _watch(cache, probe, i % DECODE_PROBE_EVERY == 0 or i == n - 1)
        positions = torch.tensor([start + i + position_shift], device=ids.device) if position_shift else None
        states[:, i : i + 1] = lm.states(ids[:, i : i + 1], cache, positions=positions)
        if step:
            step(i + 1, n)
    if attended is not None:
        attended.add(cache.attended - before)
    return states


def coded_states(
    lm: LanguageModel,
    ids: Tensor,
    books: CodebookSet | Codec | None,
    config: CacheConfig,
    mode: Mode,
    *,
    chunk_size: int = 256,
    coded_sinks: int = 0,
    sides: Sequence[tuple[bool, bool]] | None = None,
    sizes: CodedSizes | None = None,
    probe: SoftmaxMassProbe | None = None,
    step: Step | None = None,
    attended: Attended | None = None,
) -> Tensor:
    """Run ids (B, T) with the cache `config` describes; `books` are codebooks or another codec, None is the paged exact
    cache (token, chunk; with a window also exact-schedule). Mode decode is `decoded_states`. `coded_sinks` are exact in
    mode all-coded; in the modes of one forward `sides` says of each coded layer whether keys and values are coded, and
    `sizes` counts bytes. What the rows saw is added to `attended`.
    """
    attach(lm.model)
    if mode in ("exact-schedule", "all-coded"):
        if books is None and (mode == "all-coded" or config.window is None):
            raise ConfigError(
                f"mode {mode} is about codes; the exact cache runs in mode token, chunk or decode, and with a window "
                "in exact-schedule"
            )
        schedule = ScheduleCache(
            lm.model.config,
            books,
            config,
            all_coded=mode == "all-coded",
            coded_sinks=coded_sinks,
            sides=sides,
            sizes=sizes,
        )
        states, used = lm.states(ids, schedule), schedule.attended
    else:
        cache = PQKVCache(lm.model.config, books, config)
        states = _through_cache(lm, ids, cache, 1 if mode == "token" else chunk_size, probe, step)
        used = cache.attended
    if attended is not None:
        attended.add(used)
    return states


def run_exact(lm: LanguageModel, ids: Tensor, newest: int = 0) -> Tensor:
    """Logits (B, T, V) of `exact_states`, all at once."""
    return lm.head(exact_states(lm, ids, newest))


def run_decode(lm: LanguageModel, ids: Tensor, cache: PQKVCache, **more: Any) -> Tensor:  # noqa: ANN401 - handed on
    """Logits (B, n, V) of `decoded_states`, which takes the same arguments, all at once."""
    return lm.head(decoded_states(lm, ids, cache, **more))


def run_coded(
    lm: LanguageModel,
    ids: Tensor,
    books: CodebookSet | Codec | None,
    config: CacheConfig,
    mode: Mode,
    **more: Any,  # noqa: ANN401 - handed on
) -> Tensor:
    """Logits (B, T, V) of `coded_states`, which takes the same arguments, all at once."""
    return lm.head(coded_states(lm, ids, books, config, mode, **more))


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
    states = torch.empty(B, T, lm.hidden_size, dtype=lm.dtype, device=lm.device)
    for start in range(0, T, size):
        _watch(cache, probe, start % PROBE_EVERY < size or start + size >= T)
        states[:, start : start + size] = lm.states(ids[:, start : start + size], cache)
        if step:
            step(min(start + size, T), T)
    return states


def _watch(cache: PQKVCache, probe: SoftmaxMassProbe | None, now: bool) -> None:
    """Let the probe see the calls of the next step, or not."""
    if probe is not None and cache.kv is not None:
        probe.active = now
        for layer in cache.kv.layers:
            layer.observer = probe
