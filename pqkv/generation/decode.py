"""Writing token by token on one cache: the greedy or drawn token, the time of each step, the bytes as they grow."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import Cache

from pqkv.lm import LanguageModel
from pqkv.lm.hf_cache import PQKVCache
from pqkv.lm.plugin import Attended
from pqkv.lm.step import forward

_SIZES = 16  # times that the bytes of a cache are looked at while it grows


@dataclass(slots=True)
class Written:
    """Tokens, the milliseconds of the step that each took, those of the prompt, rows of `tokens` (cached, the prompt's
    included), `cache_bytes` and `allocated_bytes`, and what the steps after the prompt attended to (of a pqkv cache).
    """

    prompt_ms: float
    tokens: list[int] = field(default_factory=list)
    steps_ms: list[float] = field(default_factory=list)
    growth: list[dict[str, int]] = field(default_factory=list)
    attended: Attended = field(default_factory=Attended)


def write(
    lm: LanguageModel,
    ids: Tensor,
    cache: Cache,
    *,
    tokens: int,
    ends: Collection[int] = (),
    temperature: float = 0.0,
    seed: int = 0,
    heard: Callable[[int], None] = lambda token: None,
) -> Written:
    """At most `tokens` tokens after the prompt `ids` (1, T), on an empty `cache`; one of `ends` is the last.

    With a `temperature` tokens are drawn. The same `seed` draws the same numbers on any cache, so texts part only where
    logits do. `heard` is called with each token before its own step; neither it nor looking at sizes counts in times.
    """
    draws = torch.Generator().manual_seed(seed)
    every = max(1, tokens // _SIZES)
    with torch.inference_mode():
        token, took = _step(lm, ids, cache, temperature, draws)
        found = Written(took)
        before = _attended(cache)
        while len(found.tokens) < tokens:
            if len(found.tokens) % every == 0:
                found.growth.append(_sizes(cache, ids.shape[1] + len(found.tokens)))
            found.tokens.append(token)
            heard(token)
            last = token
            token, took = _step(lm, torch.tensor([[last]], device=ids.device), cache, temperature, draws)
            found.steps_ms.append(took)
            if last in ends:
                break
    found.growth.append(_sizes(cache, ids.shape[1] + len(found.tokens)))
    found.attended = _attended(cache) - before
    return found


def chosen(logits: Tensor, temperature: float, draws: torch.Generator) -> int:
    """The token of logits (1, 1, V): the largest, or with a temperature one drawn, as the largest of logits with
    Gumbel's noise (float64).
    """
    if temperature:
        uniform = torch.rand(logits.shape, generator=draws, dtype=torch.float64)
        logits = logits.cpu().double() / temperature - (-uniform.log()).log()
    return int(logits.argmax(-1))


def bytes_of(cache: Cache) -> tuple[int, int]:
    """Bytes of a cache in use, and allocated: of a pqkv cache everything, codebooks and page table too, and layers with
    a sliding window, which stay transformers' own.
    """
    own = cache.coded_layers if isinstance(cache, PQKVCache) else ()
    parts = [
        tensor
        for i, layer in enumerate(cache.layers)
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if i not in own and tensor is not None
    ]
    others = sum(tensor.numel() * tensor.element_size() for tensor in parts)
    if not isinstance(cache, PQKVCache) or cache.kv is None:
        return others, others
    memory = cache.kv.memory()
    return others + memory.total, others + memory.allocated


def _step(
    lm: LanguageModel, ids: Tensor, cache: Cache, temperature: float, draws: torch.Generator
) -> tuple[int, float]:
    """The token after `ids`, and the milliseconds of the forward; choosing is not counted."""
    _wait(ids.device)
    start = time.perf_counter()
    logits = forward(lm.model, ids, cache, logits_to_keep=1).logits
    _wait(ids.device)
    took = (time.perf_counter() - start) * 1e3
    return chosen(logits[:, -1:], temperature, draws), took


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _sizes(cache: Cache, tokens: int) -> dict[str, int]:
    used, allocated = bytes_of(cache)
    return {"tokens": tokens, "cache_bytes": used, "allocated_bytes": allocated}


def _attended(cache: Cache) -> Attended:
    seen = Attended()
    if isinstance(cache, PQKVCache):
        seen.add(cache.attended)
    return seen
