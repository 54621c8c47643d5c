"""Which tokens are coded when: the one formula that caches and evaluation share."""

from __future__ import annotations


def coded_len(cached: int, *, page_size: int, residual: int, sink_tokens: int) -> int:
    """Tokens coded once `cached` tokens are in the cache: P * max(0, floor((cached - S - R + P) / P)).

    A page is sealed as soon as the exact window holds `residual` tokens, so the newest R - P to R - 1 stay exact.
    """
    return page_size * max(0, (cached - sink_tokens - residual + page_size) // page_size)
