"""Into how many stretches the context of a sequence is cut, so that every multiprocessor has work.

The rule is FlashAttention-3's: no split where the units of work fill the device already, else the smallest number of
splits whose last wave is nearly as full as the best one's. MILLION fixed 32 above 2,048 tokens whatever the batch.
"""

from __future__ import annotations

MOST_SPLITS = 128
SHORTEST_SPLIT = 256  # tokens: fewer cost more to merge than to read
BLOCKS_EACH = 4  # that a multiprocessor runs at a time, as registers and shared memory of the variants allow
BUSY_WARPS = 8  # of a multiprocessor, two for each of its schedulers; an assumption until it can be timed

_FULL = 0.8  # of the device: above it splitting only adds partial results to merge
_NEARLY = 0.85  # of the best efficiency is good enough for a smaller number of splits


def choose_splits(
    units: int,
    tokens: int,
    multiprocessors: int,
    *,
    blocks_each: int = BLOCKS_EACH,
    shortest: int = SHORTEST_SPLIT,
    most: int = MOST_SPLITS,
) -> int:
    """Splits of sequences of `tokens` tokens (the longest), where one split makes `units` blocks and a multiprocessor
    runs `blocks_each` at a time. A split has at least `shortest` tokens and there are at most `most`.
    """
    at_once = multiprocessors * blocks_each
    limit = max(1, min(most, tokens // shortest))
    if limit == 1 or units >= _FULL * at_once:
        return 1
    efficiency = {n: _efficiency(units * n, at_once) for n in range(1, limit + 1)}
    best = max(efficiency.values())
    return min(n for n, value in efficiency.items() if value >= _NEARLY * best)


def choose_coded_splits(
    units: int, tokens: int, multiprocessors: int, *, most_tokens: int, build_tokens: float, warps: int
) -> int:
    """Splits for blocks of `warps` warps that each build tables before they read at most `most_tokens` tokens: few and
    long ones build less. `build_tokens` is how many tokens could be looked up in the time that it takes.

    The number of least time by this count: the busiest multiprocessor does its blocks' tables and tokens one after the
    other, and one with fewer than `BUSY_WARPS` warps is as slow as if it had them.
    """
    least = max(1, -(-tokens // most_tokens))
    busy = BUSY_WARPS / warps

    def time(n: int) -> float:
        blocks = -(-units * n // multiprocessors)
        return max(blocks, busy) * (tokens / n + build_tokens)

    return min(range(least, max(least, min(MOST_SPLITS, tokens // SHORTEST_SPLIT)) + 1), key=time)


def _efficiency(blocks: int, at_once: int) -> float:
    """Share of the device's places that blocks fill over all waves."""
    waves = -(-blocks // at_once)
    return blocks / (waves * at_once)


def stretches(longest: int, splits: int, *, tokens: int, together: int, windowed: bool = False) -> tuple[int, int]:
    """(tokens of a stretch, number of stretches) near `splits` for a kernel whose blocks take at most `tokens`, a
    multiple of `together`, in sequences of `longest`, of which a sliding window may hide the first.
    """
    share = -(-longest // splits)
    share = min(tokens, -(-share // together) * together)
    # a window starts its first stretch on a multiple of `together`, up to that much before its first token
    return share, -(-(longest + (together - 1 if windowed else 0)) // share)
