"""Which tokens are coded when: the one formula that caches, evaluation and reports share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def coded_len(cached: int, *, page_size: int, residual: int, sink_tokens: int) -> int:
    """Tokens coded once `cached` tokens are in the cache: P * max(0, floor((cached - S - R + P) / P)).

    A page is sealed as soon as the exact window holds `residual` tokens, so the newest R - P to R - 1 stay exact.
    """
    return page_size * max(0, (cached - sink_tokens - residual + page_size) // page_size)


def coded_share(
    mode: str,
    context: int,
    *,
    page_size: int,
    residual: int,
    sink_tokens: int,
    chunk_size: int,
    decode_tokens: int,
    coded_sinks: int = 0,
) -> float:
    """Coded columns among all that the query rows of a window of `context` tokens see, as a cell in this mode measures
    them (`coded_share` in its record). 0 means that its figures are the exact cache's.
    """
    if mode == "all-coded":
        exact = sum(min(row + 1, coded_sinks) for row in range(context))
        return 1.0 - 2 * exact / (context * (context + 1))
    first = context - decode_tokens if mode == "decode" else 0
    step = chunk_size if mode == "chunk" else 1
    seen = coded = 0
    for row in range(first, context):
        before = row - (row - first) % step  # tokens cached when its step began
        seen += row + 1
        coded += coded_len(before, page_size=page_size, residual=residual, sink_tokens=sink_tokens)
    return coded / seen


def first_coded(*, residual: int, sink_tokens: int) -> int:
    """Cached tokens from which on a query sees codes, one token a step."""
    return residual + sink_tokens


def share_of_config(config: Mapping[str, Any]) -> float | None:
    """`coded_share` of the cell that a record's configuration describes; None for one that codes nothing by intent (0
    bits) or is no cell of an evaluation.
    """
    names = ("mode", "context", "page_size", "residual", "sink_tokens")
    if config.get("window") or config.get("keep"):  # whose records have measured it
        return None
    if not config.get("bits") or any(config.get(name) is None for name in names):
        return None
    mode, context, *cache = (config[name] for name in names)
    if mode not in ("exact-schedule", "token", "chunk", "decode", "all-coded"):
        return None
    return coded_share(
        mode,
        context,
        **dict(zip(names[2:], cache, strict=True)),
        chunk_size=config.get("chunk_size") or 1,
        decode_tokens=config.get("decode_tokens") or context,
        coded_sinks=config.get("coded_sinks") or 0,
    )
